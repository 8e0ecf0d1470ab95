"""The right implementation has no bug, conventions are none, and a report is diagnosed quickly."""
import time

import numpy as np
import pytest

from minimoe import oracle
from minimoe.oracle import diagnosis
from minimoe.oracle.known_bugs import KNOWN_BUGS
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import Variant, conventions, private_copy

CASES = ["switch_2021/padding_in_groups", "gshard_2020/padding", "sparsely_gated_2017/no_noise",
         "mvae_2018/some_missing", "mmvae_2019/three_samples",
         "products_of_experts_1999/cd_four_steps", "generalized_poe_2022/weighted"]
# Where one paper's convention is reported of code that follows another as a bug, both are said.
COINCIDE = {
    ("switch_2021", "A3"): "Mesh TensorFlow counts padding in f and P",
    ("switch_2021", "A8"): "flaxformer's f adds up to K",
    ("switch_2021", "A10a"): "transformers counts padding in the z-loss",
    ("switch_2021", "R1"): "as R5, of one who gives no places in queues",
    ("switch_2021", "R2"): "transformers 4.44 returns a dropped token so",
    ("switch_2021", "R4"): "transformers 4.44 gives experts what the router sees",
    ("switch_2021", "R5"): "DeepSpeed and Tutel may have as many slots as are needed",
    ("switch_2021", "R17"): "the pseudo-code and Mesh TensorFlow have a router in bfloat16",
    ("gshard_2020", "R5"): "NLLB's capacity of evaluation drops nobody",
    ("gshard_2020", "A8"): "flaxformer's f adds up to K",
    ("gshard_2020", "R9b"): "flaxformer's weights are the gates as they are",
    ("sparsely_gated_2017", "R16"): "tensor2tensor's noise has a deviation of 0 in evaluation",
}


@pytest.mark.parametrize("id", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_right_implementation_has_no_bug(id, dtype):
    case = oracle.case(id)
    report = oracle.compare(case, trace(case, dtype), dtype)
    assert report.ok and report.diagnose() == [] and report.identify() == []


@pytest.mark.parametrize("id", CASES)
def test_a_convention_is_identified_and_no_bug(id):
    case, tried = oracle.case(id), 0
    for convention in conventions(case.paper):
        try:
            report = oracle.compare(case, of_variant(convention, case))
        except Exception:      # where sizes do not suit it
            continue
        if report.ok:          # it changes nothing here
            continue
        tried += 1
        assert any(match.variant.title == convention.title for match in report.identify())
        bugs = {match.variant.name for match in report.diagnose()}
        assert {(case.paper, name) for name in bugs} <= COINCIDE.keys(), convention.title
    assert tried


@pytest.mark.parametrize("name, id", [
    ("A1", CASES[0]), ("A4", CASES[0]), ("R3b", CASES[0]), ("R7", CASES[0]), ("R11", CASES[1]),
    ("R2", CASES[1]), ("R15", CASES[2]), ("P3", CASES[3]), ("P1", CASES[4]), ("P5", CASES[5]),
    ("P4b", CASES[6])])
def test_a_bug_is_no_convention(name, id):
    case = oracle.case(id)
    bug = next(bug for bug in KNOWN_BUGS
               if bug.name == name and diagnosis._kind(case) in bug.concerns)
    report = oracle.compare(case, of_variant(bug, case))
    assert not any(match.whole for match in report.identify())
    assert report.diagnose()[0].variant is bug


# -- How a match is found ------------------------------------------------------------------------

def slipped(id="switch_2021/overflowing", **changes):
    """A report of the paper's trace with some outputs changed, and the gradients left out."""
    case = oracle.case(id)
    outputs = {name: array for name, array in trace(case).items() if "grad." not in name}
    outputs.update({name: change(outputs[name]) for name, change in changes.items()})
    return oracle.compare(case, outputs)


def test_what_no_variant_explains_has_no_name():
    report = slipped(y=lambda y: y + 1)
    assert not report.ok and report.diagnose() == [] and report.identify() == []


def test_a_scale_is_named_by_the_size_it_is():
    match, = slipped(aux_loss=lambda loss: np.asarray(16 * loss)).identify()
    assert match.variant.title == "aux_loss is the paper's times E^2 = 16"
    assert match.explains == ("aux_loss",) and match.whole


def constant_loss(*names, **others):
    """A report of some outputs of the paper's, others, and a balance loss of E / K: A1."""
    right = trace(oracle.case("switch_2021/overflowing"))
    outputs = {**{name: right[name] for name in names}, "aux_loss": np.array(4.0), **others}
    return oracle.compare("switch_2021/overflowing", outputs)


def test_a_bug_is_named_beside_a_mistake_that_it_does_not_follow_from():
    match, = constant_loss("probs", y=np.ones((16, 8))).diagnose()
    assert match.variant.name == "A1"
    assert match.explains == ("aux_loss",) and not match.whole
    assert "A1" in str(match) and "does not explain everything" in str(match)
    assert match.as_json()["reported"] == list(match.variant.reported)


def test_what_contradicts_a_bug_rules_it_out():
    assert constant_loss("probs", "y").diagnose()
    assert constant_loss("probs", "y", "loss").diagnose() == []    # with the paper's loss in it


def test_the_papers_own_numbers_never_contradict_a_bug():
    """What the report lets pass, though it is far more than eps of the numbers: they cancelled."""
    case = oracle.case("switch_2021/all_to_one")
    bug = next(bug for bug in KNOWN_BUGS
               if bug.name == "R1" and diagnosis._kind(case) in bug.concerns)
    outputs = trace(case)
    for finding in oracle.compare(case, outputs, "float32").findings:
        if finding.tolerance:
            allowed = finding.tolerance * finding.scale * 2.0**-23
            outputs[finding.name] = outputs[finding.name] + 0.99 * allowed
    outputs["position_in_expert"] = of_variant(bug, case)["position_in_expert"]
    outputs = {name: array for name, array in outputs.items() if "z_loss" not in name}
    report = oracle.compare(case, outputs, "float32")
    assert report.first_divergence.name == "position_in_expert"
    assert [match.variant.name for match in report.diagnose()] == ["R1"]


def test_what_lies_before_and_is_unexplained_rules_it_out():
    assert constant_loss("expert_index", probs=np.full((16, 4), 0.25)).diagnose() == []


def test_other_shapes_can_be_what_a_bug_makes():
    case = oracle.case("switch_2021/two_choices_overflowing")
    expert = np.tile(np.arange(4), (16, 1))
    report = oracle.compare(case, {"expert_index": expert, "y": trace(case)["y"]})
    assert [match.variant.name for match in report.diagnose()] == ["R13"]
    report = oracle.compare(case, {"expert_index": expert[:, :3], "y": trace(case)["y"]})
    assert report.diagnose() == []


def test_of_equals_the_other_order_is_no_mistake_but_two_orders_are():
    case = oracle.case("switch_2021/ties")
    right = trace(case)
    swapped = np.choose(right["expert_index"], [0, 3, 2, 1])   # experts 1 and 3 are equal
    assert (swapped != right["expert_index"]).any()
    assert oracle.compare(case, {"probs": right["probs"], "expert_index": swapped}).ok
    report = oracle.compare(case, {"expert_index": swapped, "f": right["f"]})
    assert [match.variant.name for match in report.diagnose()] == ["R18"]


def test_a_report_is_diagnosed_in_well_under_a_second():
    report = slipped("switch_2021/padding_in_groups", y=lambda y: y + 1)
    start = time.process_time()
    report.diagnose()
    first = time.process_time() - start
    start = time.process_time()
    report.diagnose()
    assert first < 1.0
    assert time.process_time() - start < first / 2 + 0.01      # the traces of variants are kept


# -- Private copies ------------------------------------------------------------------------------

def test_what_stands_in_is_seen_wherever_the_paper_calls_it_and_nowhere_else():
    from minimoe.papers import switch_2021 as paper

    copy = private_copy("switch_2021", {"top_k": lambda before: lambda scores, k:
                                        1 + 0 * before.top_k(scores, k)})
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    assert copy.route(probs, 2).expert.tolist() == [[1], [1]]
    assert paper.route(probs, 2).expert.tolist() == [[0], [2]]


def test_a_stand_in_may_call_what_it_stands_in_for():
    """By name, and as a function: neither calls itself without end."""
    for other in ("released_auxiliary_loss",
                  lambda paper: lambda *given: 9 * paper.auxiliary_loss(*given)):
        copy = private_copy("gshard_2020", {"auxiliary_loss": other})
        gates, expert = np.full((1, 4, 3), 1 / 3), np.array([[[0, 1]] * 4])
        assert copy.auxiliary_loss(gates, expert, None) == pytest.approx(1)    # E^2 / E^2


def test_defaults_and_tables_have_the_stand_in_too():
    nobody = {"decision_counter": lambda paper: lambda expert, *rest: 0 * expert + 99}
    gates = np.array([[[0.6, 0.3, 0.1]]])
    copy = private_copy("gshard_2020", nobody)
    assert not copy.algorithm_1(gates, np.zeros((1, 1)), 4).routing.keep.any()
    copy = private_copy("mmvae_2019", {"looser_bound": "tighter_bound"})
    assert copy.LOOSER.value is copy.looser_bound


def test_a_name_that_the_paper_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="switch_2021 has no rout$"):
        private_copy("switch_2021", {"rout": "route"})


def test_a_variant_that_cannot_be_computed_explains_nothing(monkeypatch):
    def wrong(paper):
        raise RuntimeError
    monkeypatch.setattr("minimoe.oracle.known_bugs.KNOWN_BUGS", [
        Variant("X", "", ("switch_2021/layer",), {"route": wrong}, ("a/b#1",))])
    assert slipped(y=lambda y: y + 1).diagnose() == []
