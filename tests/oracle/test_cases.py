"""Every case of every paper: computed the same twice, in both dtypes, and what its tags say."""
import itertools

import numpy as np
import pytest

from minimoe import tree
from minimoe.backend import to_numpy
from minimoe.oracle import Case, cases, index, tolerances, trace
from minimoe.oracle.kinds import find_kind
from minimoe.oracle.trace import as_dtype, of_variant, standard
from minimoe.oracle.variants import conventions

CASES = cases()
FOR_EACH = pytest.mark.parametrize("case", CASES, ids=str)
SCORES = ("noisy", "logits")      # what is ranked, the first that there is
USED = ("used", "present", "source_used", "target_used")


def last(name):
    return name.rpartition(".")[2]


def named(found, *names):
    """The arrays of a trace whose name ends so."""
    return [array for name, array in found.items() if last(name) in names]


@FOR_EACH
def test_a_case_is_finite_and_the_same_twice(case):
    run = as_dtype(case.run(), "float64")
    found = find_kind(case.paper, case.kind).outputs(run)      # errors of floating point are raised
    found = {standard(name): to_numpy(a) for name, a in tree.named_leaves(found).items()}
    again = trace(case)
    assert list(found) == list(again)
    for name, array in found.items():
        assert array.dtype == again[name].dtype
        np.testing.assert_array_equal(array, again[name])
        if last(name) == "margin":
            assert not np.isnan(array).any()
        else:
            assert np.isfinite(array).all(), name


@FOR_EACH
def test_decisions_of_a_case_are_the_same_in_float32(case):
    exactly, roughly = trace(case), trace(case, "float32")
    assert list(exactly) == list(roughly)
    for name, array in exactly.items():
        assert array.dtype.kind == roughly[name].dtype.kind and array.shape == roughly[name].shape
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, roughly[name], err_msg=name)


def margins(found):
    """Every margin of a trace, and what is within rounding of float32 there."""
    for name, margin in found.items():
        if last(name) == "margin":
            before = name.removesuffix("margin")
            scores = next((found[before + s] for s in SCORES if before + s in found), margin)
            yield margin, tolerances.margin_of_noise(scores, "float32")


@FOR_EACH
def test_a_case_is_what_its_tags_say(case):
    found, run, tags = trace(case), case.run(), set(case.tags)
    expert = named(found, "expert_index")
    for margin, noise in margins(found):
        if "ties" in tags:
            assert (margin == 0).any()
        elif "near ties" in tags:
            assert noise < margin.min() < 1e-3
        elif margin.size:
            assert margin.min() > noise
        if "k=E" in tags:
            assert np.isinf(margin[:, -1]).all()
    kept = named(found, "keep")
    if kept and "drops" in tags:
        assert any(not keep.all() for keep in kept)
    if "all dropped" in tags:
        assert not any(keep.any() for keep in kept)
    if "padding" in tags:
        assert (any(not run.inputs[name].all() for name in USED if name in run.inputs)
                or (run.inputs["modality"] < 0).any())
    if "groups" in tags:
        assert max(run.settings.get("n_groups", 1), case.sizes.get("G", 1)) > 1
    if "E>256" in tags:
        assert any((chosen > 255).any() for chosen in expert)
    if "E=1" in tags and expert:
        assert not any(chosen.any() for chosen in expert)
    if "T=0" in tags:
        assert expert and not any(chosen.size for chosen in expert)
    if "balanced" in tags:
        shares = named(found, "f", "importance")
        assert shares and all(np.ptp(share) == 0 for share in shares)


@pytest.mark.parametrize("case", cases(tags="exact"), ids=str)
def test_logits_of_an_exact_case_are_equal_to_the_last_bit(case):
    exactly, roughly = trace(case), trace(case, "float32")
    names = [name for name in exactly if last(name) in tolerances.EXACT]
    for name in names:
        assert (exactly[name] == roughly[name]).all()


def differs(found, other):
    return any(name in other and (
        other[name].shape != array.shape
        or (tolerances.errors(other[name], array) > 1e-12 * tolerances.scale(array)).any())
        for name, array in found.items())


@pytest.mark.parametrize("paper", [paper for paper in index.names() if conventions(paper)])
def test_every_convention_is_told_from_the_paper_by_some_case(paper):
    traces = [(case, trace(case)) for case in cases(paper)]

    def told(variant, case, found):
        try:
            return differs(found, of_variant(variant, case))
        except (TypeError, ValueError):      # not for this kind, or these sizes
            return False

    for variant in conventions(paper):
        assert any(told(variant, case, found) for case, found in traces), variant.title


# -- Sizes at their ends -------------------------------------------------------------------------

LAYERS = {    # by kind: settings but the capacity, and whether a single expert will do
    "switch_2021/layer": (dict(k=1, n_groups=1), True),
    "switch_2021/no_token_left_behind": (dict(n_stages=1, n_groups=1), True),
    "switch_2021/exploration": (dict(eps=0.5, rate=0.5), True),
    "switch_2021/expert_dropout": (dict(rate=0.5), True),
    "gshard_2020/layer": ({}, False),
    "gshard_2020/layer_padded": ({}, False),
    "gshard_2020/mesh_all": ({}, False),
    "gshard_2020/nllb": (dict(scale=1.0), False),
    "sparsely_gated_2017/layer": (dict(k=1), True),
    "sparsely_gated_2017/layer_padded": (dict(k=1), True),
    "sparsely_gated_2017/layer_davidmrau": (dict(k=1), True),
    "sparsely_gated_2017/strictly_balanced": (dict(k=1), True),
    "vmoe_2021/layer": (dict(k=1, n_groups=1), True),
    "vmoe_2021/layer_batch_prioritized": (dict(k=1, n_groups=1), True),
}


@pytest.mark.parametrize("key", LAYERS)
def test_a_layer_has_any_number_of_tokens_experts_and_slots(key):
    paper, _, kind = key.partition("/")
    (settings, single), oracle = LAYERS[key], find_kind(paper, kind)
    capacities = (0, 1, 5) if "set.capacity" in oracle.run else (None,)
    for T, E, C in itertools.product((0, 1, 5), (1 if single else 2, 3, 300), capacities):
        given = settings if C is None else {**settings, "capacity": C}
        sizes = dict(T=T, S=T, G=1, D=2, E=E, H=3, C=C)
        case = Case(f"{paper}/{T}_to_{C}_of_{E}", paper, kind, sizes, given, (), None)
        outputs = oracle.outputs(as_dtype(case.run(), "float64"))      # floating-point errors raise
        for name, array in tree.named_leaves(outputs).items():
            assert last(name) == "margin" or np.isfinite(array).all(), (case.id, name)
            if C == 0 and last(name) in ("y", "keep", "weights"):
                assert not array.any(), (case.id, name)
