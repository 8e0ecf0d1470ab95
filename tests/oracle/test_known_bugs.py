"""Every known bug is caught by the cases, told from every other, and named.

``pytest tests/oracle/test_known_bugs.py -s -k table`` prints which cases catch which bug.
"""
import functools
import itertools
import re

import pytest

from minimoe import oracle
from minimoe.oracle import diagnosis, index, tolerances, variants
from minimoe.oracle.kinds import kinds
from minimoe.oracle.known_bugs import KNOWN_BUGS
from minimoe.oracle.trace import of_variant
from minimoe.oracle.trace import trace as right_trace

# Of each bug two cases, or more, that catch it.
KILLED_BY = {
    "A1": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A2": ("gshard_2020/transformer", "gshard_2020/transformer_in_padded_groups"),
    "A3": ("switch_2021/padding", "switch_2021/padding_in_groups"),
    "A4": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A5": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A6": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A7": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A8": ("switch_2021/two_choices_overflowing", "switch_2021/three_choices_overflowing"),
    "A9": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A10a": ("switch_2021/padding", "switch_2021/padding_in_groups"),
    "A10b": ("switch_2021/padding_as_many_experts_as_tokens",
             "switch_2021/padding_as_many_experts_overflowing"),
    "A11": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "A12": ("sparsely_gated_2017/balanced", "sparsely_gated_2017/balanced_two_choices"),
    "R1": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R2": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R3a": ("switch_2021/wide", "switch_2021/wide_two_choices"),
    "R3b": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R4": ("switch_2021/exploration", "switch_2021/exploration_far_and_overflowing"),
    "R5": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R6": ("switch_2021/three_choices_overflowing", "switch_2021/three_choices"),
    "R7": ("switch_2021/padding", "switch_2021/padding_in_groups"),
    "R8": ("switch_2021/overflowing", "switch_2021/padding"),
    "R9a": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R9b": ("gshard_2020/overflowing", "gshard_2020/groups"),
    "R10": ("switch_2021/overflowing", "vmoe_2021/roomy", "vmoe_2021/overflowing"),
    "R11": ("switch_2021/overflowing", "switch_2021/two_choices_overflowing"),
    "R12": ("switch_2021/wide", "switch_2021/wide_two_choices"),
    "R13": ("switch_2021/overflowing", "switch_2021/three_choices_overflowing"),
    "R14": ("gshard_2020/transformer", "switch_2021/encoder_decoder"),
    "R15": ("sparsely_gated_2017/one_choice", "sparsely_gated_2017/two_choices"),
    "R16": ("sparsely_gated_2017/no_noise", "sparsely_gated_2017/absent_rows_without_noise"),
    "R17": ("switch_2021/near_ties", "switch_2021/overflowing"),
    "R18": ("switch_2021/ties", "switch_2021/ties_of_two_choices"),
    "P1": ("mmvae_2019/three_samples", "mmvae_2019/multivae_some_missing"),
    "P2": ("mvae_2018/complete", "generalized_poe_2022/weighted"),
    "P3": ("mvae_2018/some_missing", "mvae_2018/five_samples"),
    "P4a": ("mvae_2018/complete", "mvae_2018/some_missing"),
    "P4b": ("mvae_2018/complete", "generalized_poe_2022/weighted"),
    "P5": ("products_of_experts_1999/cd_one_step", "products_of_experts_1999/scikit_learn_batch"),
    "P6a": ("products_of_experts_1999/cd_four_steps",
            "products_of_experts_1999/scikit_learn_batch"),
    "P6b": ("products_of_experts_1999/cd_one_step", "products_of_experts_1999/scikit_learn_batch"),
    "P7": ("mmvae_2019/three_samples", "mvae_2018/five_samples"),
    "N1": ("gshard_2020/nllb", "gshard_2020/nllb_padded", "gshard_2020/nllb_random"),
}
NAMES = list(dict.fromkeys(bug.name for bug in KNOWN_BUGS))
PAIRS = [(name, id) for name, ids in KILLED_BY.items() for id in ids]

# What a function usually returns.
USUAL = {"y", "aux_loss", "expert_index", "probs", "gates", "loss", "importance_loss", "load_loss",
         "logits", "mean", "log_variance", "elbo", "elbos", "objective", "looser_bound",
         "tighter_bound", "log_likelihood", "reconstruction", "gibbs", "free_energy",
         "contrastive_gradient", "updated"}
# Bugs of which these show nothing in the cases above, and what does.
UNSEEN = {"A12": "gradients", "R18": "f; the experts are equal in all else"}
# Pairs of which the usual outputs are the same in all cases, and what tells them apart.
ALIKE = {("R1", "R5"): "the places in the queues: all 0, or right",
         ("A3", "A10a"): "the z-loss"}


@functools.cache
def kind_of(id):
    return diagnosis._kind(oracle.case(id))


@functools.cache
def bug(name, id):
    """The Variant of a name that concerns a case's kind."""
    return next(bug for bug in KNOWN_BUGS if bug.name == name and kind_of(id) in bug.concerns)


@functools.cache
def wrong(name, id):
    return of_variant(bug(name, id), oracle.case(id))


@functools.cache
def diagnosed(name, id, usual=False):
    """The report of a bug's trace, or of its usual outputs, and the name that comes first."""
    outputs = {key: array for key, array in wrong(name, id).items()
               if not usual or is_usual(key)}
    report = oracle.compare(id, outputs)
    return report, next((match.variant.name for match in report.diagnose()), None)


def is_usual(key):
    parts = set(key.split("."))
    return bool(USUAL & parts) and "grad" not in parts


def test_every_row_of_a_single_process_is_a_bug():
    rows = {*(f"A{i}" for i in range(1, 13)), *(f"R{i}" for i in range(1, 19)),
            *(f"P{i}" for i in range(1, 8)), "N1"}
    assert {name.rstrip("ab") for name in NAMES} == rows
    assert KILLED_BY.keys() == set(NAMES) and all(len(ids) >= 2 for ids in KILLED_BY.values())


def test_bugs_concern_kinds_of_run_that_there_are_and_say_where_they_were_reported():
    papers = index.names()
    for bug in KNOWN_BUGS:
        assert bug.title and bug.reported
        own = bug.name.startswith("N")
        form = r"found here in .* \d.* \(\w+\.py: [\w.]+\)" if own else r"[\w.-]+/[\w.-]+#\d+"
        assert all(re.fullmatch(form, place) for place in bug.reported), bug.reported
        for concerned in bug.concerns:
            paper, _, kind = concerned.partition("/")
            assert paper not in papers or kind in kinds(paper), concerned
            assert sum(other.name == bug.name and concerned in other.concerns
                       for other in KNOWN_BUGS) == 1, (bug.name, concerned)


def test_who_says_so():
    assert bug("R2", "switch_2021/overflowing").source == "reported: huggingface/transformers#37017"
    assert bug("N1", "gshard_2020/nllb").source == (
        "found here in transformers 5.0.0 and 5.24.0 (modeling_nllb_moe.py: "
        "NllbMoeExperts.forward)")


def test_who_is_first_in_its_queue_needs_a_slot_too():
    assert wrong("R1", "switch_2021/all_to_one_overflowing")["keep"].all()
    assert not wrong("R1", "switch_2021/all_dropped")["keep"].any()


@pytest.mark.parametrize("name, id", PAIRS)
def test_a_case_catches_a_bug_and_it_is_named(name, id):
    report, first = diagnosed(name, id)
    assert not report.ok
    assert first == name


def test_usual_outputs_suffice_to_name_nine_bugs_of_ten():
    seen = {name: [first for id in KILLED_BY[name] for report, first in [diagnosed(name, id, True)]
                   if not report.ok and report.findings] for name in NAMES}
    unseen = {name for name in NAMES if len(seen[name]) < 2}
    assert unseen == set(UNSEEN)
    named = {name for name in NAMES if set(seen[name]) == {name}}
    assert set(NAMES) - named - unseen == {second for _, second in ALIKE}
    assert len(named) >= 0.9 * (len(NAMES) - len(unseen))


def test_table_of_bugs(capsys):
    lines = [f"{name:5} {len(KILLED_BY[name])} cases, named in "
             f"{sum(diagnosed(name, id)[1] == name for id in KILLED_BY[name])}: "
             f"{', '.join(KILLED_BY[name])}" for name in NAMES]
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert len(lines) == len(NAMES)


def test_in_every_kind_that_a_bug_concerns_some_case_catches_it():
    """If not, it is no bug there, or the paper's file lacks a case of the sizes that it takes."""
    escaped = []
    for bug in KNOWN_BUGS:
        for concerned in bug.concerns:
            ids = ids_of(concerned)
            if ids and not any(catches(bug, oracle.case(id)) for id in ids):
                escaped.append((bug.name, concerned))
    assert not escaped


def catches(bug, case):
    try:
        found = of_variant(bug, case)
    except Exception:      # where sizes do not suit it
        return False
    return differ(found, right(case.id)) and not oracle.compare(case, found).ok


def test_what_changes_nothing_or_cannot_be_computed_catches_no_case():
    """So that the test above can fail."""
    def harmless(paper):
        return lambda *given: paper.load_balancing_loss(*given)

    def broken(paper):
        raise ValueError

    for stand_in in (harmless, broken):
        nothing, = variants.bug("X", "", "a/b#1", variants.form(
            "switch_2021/layer", load_balancing_loss=stand_in))
        assert not catches(nothing, oracle.case("switch_2021/overflowing"))


@functools.cache
def right(id):
    return right_trace(oracle.case(id))


def differ(one, other):
    """Whether two traces differ by more than rounding."""
    return any(name not in other or array.shape != other[name].shape
               or (tolerances.errors(array, other[name].astype(float)).max(initial=0.0)
                   > 1e-9 * tolerances.scale(other[name]))
               for name, array in one.items())


def test_every_bug_is_told_from_every_other():
    """By a case of a kind that both concern: those above first, then all others."""
    alike = []
    for one, other in itertools.combinations(NAMES, 2):
        shared = set(concerned(one)) & set(concerned(other))
        ids = [id for id in KILLED_BY[one] + KILLED_BY[other] if kind_of(id) in shared]
        ids += [id for kind in sorted(shared) for id in ids_of(kind)]
        if ids and not any(tells_apart(id, one, other) for id in ids):
            alike.append((one, other))
    assert not alike


@functools.cache
def concerned(name):
    return [kind for bug in KNOWN_BUGS if bug.name == name for kind in bug.concerns]


@functools.cache
def ids_of(kind):
    paper = kind.partition("/")[0]
    return [case.id for case in oracle.cases(paper) if diagnosis._kind(case) == kind] if (
        paper in index.names()) else []


def tells_apart(id, one, other):
    found = [trace_or_none(name, id) for name in (one, other)]
    if None in found:          # what one does cannot happen at these sizes
        return found != [None, None]
    return differ(*found)


@functools.cache
def trace_or_none(name, id):
    try:
        return wrong(name, id)
    except Exception:
        return None
