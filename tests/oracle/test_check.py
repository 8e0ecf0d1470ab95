"""A function held to a case: what is said of right ones, wrong ones, and ones that misbehave."""
import json
from typing import NamedTuple

import numpy as np
import pytest

from minimoe import Tensor, oracle, ops
from minimoe.oracle.adapters import AdapterError
from minimoe.oracle.cases import Case
from minimoe.oracle.tolerances import Tolerance, measured
from minimoe.papers import switch_2021
from tests import false_alarms
from tests.oracle.independent import switch, to_bfloat16

OVERFLOWING = "switch_2021/overflowing"


def own_layer(c):
    """The paper's own layer, on whatever the adapter gives."""
    params = switch_2021.SwitchParams(c.w_router, c.w_in, c.w_out)
    out = switch_2021.switch_ffn(params, c.x, c.capacity, c.k, c.n_groups, c.used)
    return {"y": out.y, "aux_loss": out.aux_loss}


def test_layers_written_again_raise_no_alarm():
    """Of 10,000 cases, in three precisions: ``python -m tests.false_alarms``."""
    found = list(false_alarms.alarms(60, seed=1))
    assert len(found) == 180
    assert [(case, dtype, str(report)) for case, dtype, report in found if report] == []


@pytest.mark.parametrize("case", [case for case in oracle.cases("switch")
                                  if case.kind == "layer" and case.sizes["E"] <= 64], ids=str)
def test_a_layer_by_loops_agrees_with_every_case_of_its_kind(case):
    report = oracle.check(switch, case)
    assert report.ok or not case.sizes["T"], str(report)
    assert report.identify() == report.diagnose() == []


# -- What differs --------------------------------------------------------------------------------

def test_the_first_divergence_and_what_follows_from_it():
    def late(c):
        out = switch(c)
        seated = out["position_in_expert"] + 1               # slots counted from 1
        keep = seated < c.capacity
        return {**out, "position_in_expert": seated, "keep": keep, "y": out["y"] * keep}
    report = oracle.check(late, OVERFLOWING)
    status = {finding.name: finding.status for finding in report.findings}
    assert not report.ok and report.first_divergence.name == "position_in_expert"
    assert (report.first_divergence.got, report.first_divergence.want) == (1, 0)
    assert [status[name] for name in ("logits", "probs", "expert_index", "keep", "y", "aux_loss",
                                      "gate")] == [
        "agrees", "agrees", "agrees", "follows", "follows", "agrees", "not given"]
    said = str(report)
    assert ("first divergence: expert_index agrees; position_in_expert differs first at token 0, "
            "choice 0: yours 1, paper's 0; 16 of 16 places") in said
    assert json.loads(json.dumps(report.as_json()))["first_divergence"] == "position_in_expert"


def test_two_branches_each_have_a_first_divergence():
    def both(c):
        out = switch(c)
        return {**out, "position_in_expert": out["position_in_expert"] + 1,
                "aux_loss": out["aux_loss"] + 0.5}
    report = oracle.check(both, OVERFLOWING)
    assert [f.name for f in report.of("differs")] == ["position_in_expert", "aux_loss"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_softmax_less_its_logsumexp_is_right_too(dtype):
    """PyTorch's own gradient of logsumexp: it loses |x| eps where x is large."""
    def z_loss_gradient(c):
        logits = c.x @ c.w_router
        z = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
        z = z + logits.max(axis=1, keepdims=True)                      # [T, 1]
        used = c.used[:, None]
        return {"grad.z_loss.w_router": c.x.T @ (
            used * 2 * z * np.exp(logits - z)).astype(dtype) / max(used.sum(), 1)}

    layers = [case for case in oracle.cases("switch") if case.kind == "layer" and case.sizes["T"]]
    reports = [oracle.check(z_loss_gradient, case, dtype=dtype) for case in layers]
    assert [str(report) for report in reports if not report.ok] == []


def test_a_scale_is_named():
    def scaled(c):
        out = switch(c)
        return {**out, "aux_loss": out["aux_loss"] / c.size["E"]**2}
    found, = oracle.check(scaled, OVERFLOWING).identify()
    assert str(found) == "aux_loss is the paper's times 1/E^2 = 0.0625: explains aux_loss"


@pytest.mark.parametrize("dtype, error", [("float64", 1e-14), ("float32", 1e-5),
                                          ("bfloat16", 0.5)])
def test_each_precision_has_its_tolerance(dtype, error):
    r = to_bfloat16 if dtype == "bfloat16" else lambda x: x

    def off(c):
        out = switch(c, r)
        return {**out, "probs": out["probs"] * (1 + out["probs"].dtype.type(error))}
    assert oracle.check(lambda c: switch(c, r), OVERFLOWING, dtype=dtype).ok
    assert oracle.check(off, OVERFLOWING, dtype=dtype).first_divergence.name == "probs"


def test_an_exact_case_is_held_to_the_last_bit():
    case = oracle.cases("switch", tags="exact")[0]

    def off(c):
        out = switch(c)
        return {"logits": np.nextafter(out["logits"], 9)}
    for dtype in ("float64", "float32"):
        assert oracle.check(switch, case, dtype=dtype).ok
        assert oracle.check(off, case, dtype=dtype).first_divergence.name == "logits"


def test_a_choice_within_rounding_is_undetermined_and_the_rest_is_judged_by_it():
    """Ties go to the higher index, as torch.topk may have it: not the paper's, and not wrong."""
    def from_the_right(c):
        c = type(c)({**c, "w_router": c.w_router[:, ::-1], "w_in": c.w_in[::-1],
                     "w_out": c.w_out[::-1]}, c.size)
        out = switch(c)
        return {**out, "logits": out["logits"][:, ::-1], "probs": out["probs"][:, ::-1],
                "expert_index": c.size["E"] - 1 - out["expert_index"]}
    report = oracle.check(from_the_right, "switch_2021/ties")
    assert report.ok and "within rounding of a tie" in report.notes[0]

    def and_lost(c):
        return {**from_the_right(c), "y": 0 * c.x}
    assert oracle.check(and_lost, "switch_2021/ties").first_divergence.name == "y"

    def without_choices(c):
        out = from_the_right(c)
        del out["expert_index"]
        return out
    report = oracle.check(without_choices, "switch_2021/ties")
    y, = [finding for finding in report.findings if finding.name == "y"]
    assert y.status == "undetermined" and "give expert_index to be judged" in str(report)


# -- Gradients -----------------------------------------------------------------------------------

def test_places_by_priorities_within_rounding_are_undetermined():
    case = oracle.case("vmoe_2021/prioritized_one_choice")
    trace = oracle.trace(case)
    expert, place, score = (trace[name] for name in ("expert_index", "position_in_expert", "score"))
    first, second = next((s, t) for s in range(16) for t in range(16)      # neighbours in a queue
                         if expert[s] == expert[t] and place[t] == place[s] + 1
                         and 0 < score[s] - score[t] < 0.04)
    place[[first, second]] = place[[second, first]]
    given = {"position_in_expert": place, "keep": place < 3}
    report = oracle.compare(case, given, "bfloat16")
    assert report.first_divergence is None and "within rounding of a tie" in report.notes[0]
    for dtype in ("float32", "float64"):
        assert oracle.compare(case, given, dtype).first_divergence.name == "position_in_expert"


def test_gradients_are_taken_by_the_users_own_framework():
    report = oracle.check(own_layer, OVERFLOWING, adapter="minimoe", gradients=True)
    agreed = {f.name for f in report.of("agrees")}
    assert report.ok and {f"grad.{loss}.{leaf}" for loss in ("y", "aux_loss")
                          for leaf in ("x", "w_router", "w_in", "w_out")} <= agreed

    def stopped(c):
        out = own_layer(c)
        return {**out, "y": Tensor(out["y"].array)}       # no gradient comes through
    report = oracle.check(stopped, OVERFLOWING, adapter="minimoe", gradients=True)
    assert report.first_divergence.name == "grad.y.x"


def test_gradients_need_a_framework_that_has_them():
    with pytest.raises(AdapterError, match="adapter numpy: has no gradients here; return them"):
        oracle.check(switch, OVERFLOWING, gradients=True)
    with pytest.raises(AdapterError, match="adapter torch: import torch first"):
        oracle.check(switch, OVERFLOWING, adapter="torch")
    with pytest.raises(AdapterError, match="adapter must be one of numpy, torch, "):
        oracle.check(switch, OVERFLOWING, adapter="theano")
    with pytest.raises(ValueError, match="dtype must be one of float64, float32, .*'int8'"):
        oracle.check(switch, OVERFLOWING, dtype="int8")


# -- Functions that misbehave --------------------------------------------------------------------

class Two(NamedTuple):
    y: object
    aux_loss: object


def raises(c):
    raise ArithmeticError("no\nluck")


def writes(c):
    c.x[0] = 7
    return {"aux_loss": switch(c)["aux_loss"]}


def giving(**outputs):
    return lambda c: {**switch(c), **outputs}


@pytest.mark.parametrize("fn, said", [
    (raises, "the function raised ArithmeticError: no luck"),
    (lambda c: c.bias, "the function raised AttributeError: this case has no bias; it has x, "),
    (writes, "the function wrote into x, which it was given"),
    (lambda c: None, "the function returned NoneType; needs a dict or a NamedTuple"),
    (lambda c: switch(c)["y"], "the function returned ndarray; needs a dict or a NamedTuple"),
    (lambda c: {1: 2}, "the function returned a name that is a int: 1"),
    (giving(router_logit=np.zeros(3)), "router_logit is not an intermediate of this case; near: "),
    (giving(y=np.zeros((2, 2))), "y: needs shape (16, 8); got (2, 2)"),
    (giving(y=np.zeros((16, 8), complex)), "y: needs floats; got complex128"),
    (giving(y=[[0.0]]), "y: needs a NumPy array; got list of float"),
    (giving(y=np.zeros((16, 8), int)), "y: needs floats; got int64"),
    (giving(expert_index=np.full((16, 1), 0.5)), "expert_index: needs integers; got float64"),
    (giving(keep=np.full((16, 1), 3)), "keep: needs booleans; got int64"),
    (giving(y=np.full((16, 8), np.nan)), "y is nan in 128 places, first at (0, 0)"),
    (giving(expert=np.zeros((16, 1), int)), "expert is given twice, once as expert_index"),
    (giving(y=Tensor(np.zeros((16, 8)))), "y: needs a NumPy array; got minimoe.autodiff.tensor."),
])
def test_what_is_wrong_with_a_function_is_said_and_the_case_stays_usable(fn, said):
    report = oracle.check(fn, OVERFLOWING)
    assert not report.ok and any(problem.startswith(said) for problem in report.problems), (
        report.problems)
    assert f"  problem: {said}" in str(report)
    assert oracle.check(switch, OVERFLOWING).ok


def test_what_can_be_used_beside_a_problem_is_compared():
    report = oracle.check(giving(nonsense=np.zeros(3)), OVERFLOWING)
    assert report.problems and not report.ok and report.first_divergence is None
    assert len(report.of("agrees")) == 7
    assert str(report).startswith("cannot be held to switch_2021/overflowing")


def test_names_shapes_and_kinds_of_others_are_understood():
    def theirs(c):
        out = switch(c)
        return {"router_probs": out["probs"], "expert": out["expert_index"][:, 0],
                "keep_mask": out["keep"].astype(float), "position": out["position_in_expert"] * 1.0}
    report = oracle.check(theirs, OVERFLOWING)
    assert report.ok and {f.name for f in report.of("agrees")} == {
        "probs", "expert_index", "keep", "position_in_expert"}


def test_a_named_tuple_will_do_and_nothing_at_all_will_not():
    assert oracle.check(lambda c: Two(switch(c)["y"], None), OVERFLOWING).ok
    report = oracle.check(lambda c: {}, OVERFLOWING)
    assert not report.ok and "nothing was given that the paper's trace has" in str(report)


def test_what_is_given_goes_by_name():
    def look(c):
        assert c.x is c["x"] and c.gate.w_gate is c["gate.w_gate"] and c.size["E"] == 4
        assert c.k == 2
        with pytest.raises(AttributeError, match="this case has no w_router; it has x, epsilon"):
            c.w_router
        return {"clean": c.x @ c.gate.w_gate}
    case = Case("sparsely_gated_2017/look", "sparsely_gated_2017", "layer",
                {"T": 5, "D": 3, "E": 4, "H": 2}, {"k": 2}, (), None)
    assert oracle.check(look, case).ok


# -- Comparing arrays ----------------------------------------------------------------------------

def test_every_paper_agrees_with_itself():
    for paper in {case.paper for case in oracle.cases()}:
        case = oracle.cases(paper)[0]
        report = oracle.compare(case, oracle.trace(case))
        assert report.ok and not report.of("not given")


def test_a_tolerance_is_eps_of_the_scale():
    assert Tolerance(8.0, 3.0).allowed("float64") == 24 * 2.0**-52
    assert Tolerance(8.0, 3.0).allowed("bfloat16") == 24 * 2.0**-7
    assert Tolerance(8.0, 3.0, exact=True).allowed("float32") == 0.0
    assert Tolerance(8.0, 3.0, exact=True).allowed("bfloat16") == 24 * 2.0**-7


def test_what_a_paper_has_in_float32_is_held_to_the_eps_of_float32():
    case = "switch_2021/selective_precision"
    probs = oracle.trace(oracle.case(case))["probs.cast_input"]
    assert probs.dtype == np.float32
    other = np.nextafter(probs, np.float32(1))
    assert oracle.compare(case, {"probs.cast_input": other}).ok
    assert not oracle.compare(case, {"probs.cast_input": other + 32 * 2.0**-23}).ok


def test_a_gradient_that_cancels_has_the_scale_of_its_terms():
    """A key's bias adds the same to all scores of a row: its gradient is 0, but for rounding."""
    want, single = np.array([1e-17, -2e-18]), np.array([6e-7, 0.0])
    found = measured({"grad": want}, [{"grad": single}])["grad"]
    assert found.scale == pytest.approx(6e-7 / 2.0**-23 / 8) and found.c == 64
    assert 1e-15 < found.allowed("float64") < 1e-14


def test_a_logarithm_of_what_is_near_1_may_err_by_two_eps_of_1():
    found = measured({"loss": np.array(3e-3)}, [])["loss"]
    assert found.allowed("float64") == 2 * 2.0**-52


def test_a_trace_with_other_decisions_measures_no_noise():
    want = {"expert_index": np.array([0, 1]), "y": np.array([1.0, 2.0])}
    other = {"expert_index": np.array([1, 1]), "y": np.array([5.0, 2.0])}
    assert measured(want, [other])["y"] == Tolerance(16.0, 2.0)


def test_softmax_of_another_axis_is_seen_in_the_probabilities():
    report = oracle.check(lambda c: {"probs": ops.softmax(c.x @ c.w_router, axis=0)}, OVERFLOWING)
    assert report.first_divergence.name == "probs"
