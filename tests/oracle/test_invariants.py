"""Invariants: they hold of the papers that they should hold of, and each is broken by something."""
import numpy as np
import pytest

from minimoe import ops, oracle, tree
from minimoe.oracle.invariants import HOLDS, OF_TOKENS
from minimoe.oracle.kinds import find_kind
from minimoe.oracle.runs import Run
from tests.oracle.independent import switch

KINDS = [("switch_2021", "layer"), ("gshard_2020", "layer"), ("gshard_2020", "layer_padded"),
         ("sparsely_gated_2017", "layer"), ("vmoe_2021", "layer"),
         ("vmoe_2021", "layer_batch_prioritized")]


def paper_layer(case):
    """A paper's own oracle as a user's function: what it gives but gradients, which are checked."""
    names = {group: set(arrays) for group, arrays in case.run()._asdict().items()}

    def layer(given):
        parts = [{name: given[name] for name in names[group]} for group in Run._fields[:3]]
        return tree.named_leaves(find_kind(case.paper, case.kind).outputs(Run(*parts, {})))
    return layer


@pytest.mark.parametrize("paper, kind", KINDS)
def test_a_papers_layer_has_the_invariants_that_it_should_have(paper, kind):
    case = next(case for case in oracle.cases(paper) if case.kind == kind
                and not {"drops", "ties", "degenerate"} & set(case.tags))
    for found in oracle.invariants(paper_layer(case), case):
        wanted = paper in found.papers or found.papers == ("every paper",)
        if found.name == "append padding" and not {"used", "present"} & set(case.run().inputs):
            assert found.detail == "this kind of run takes no padding"
        else:
            assert found.status == "holds" if wanted else found.status != "broken", str(found)


def seen_by(fn, **settings):
    return {found.name for found in oracle.invariants(fn, **settings) if found.status == "broken"}


def sees_the_order(c):
    out = switch(c)
    return {**out, "y": out["y"] * np.arange(1, len(c.x) + 1)[:, None]}


def prefers_an_expert(c):
    out = switch(c)
    return {**out, "y": out["y"] * (1 + out["expert_index"])}


def sees_the_others(c):
    out = switch(c)
    return {**out, "y": out["y"] - out["y"].mean()}


def sums_over_tokens(c):
    out = switch(c)
    return {**out, "aux_loss": out["aux_loss"] * len(c.x)}


def counts_padding(c):
    out = switch(c)
    return {**out, "aux_loss": out["aux_loss"] * c.used.mean()}


def never_full(c):
    out = switch(c)
    return {"keep": out["position_in_expert"] < 2, "aux_loss": out["aux_loss"]}


def first_choice_alone(c):
    return switch(type(c)({**c, "k": 1}, c.size))


def infinite_at_balance(c):
    flat = not c.w_router.any()
    return {**switch(c), "grad.aux_loss.w_router": c.w_router + (np.nan if flat else 0.0)}


class Forgetful:
    """Another noise at each call."""
    calls = 0

    def __call__(self, c):
        self.calls += 1
        return {"y": switch(c)["y"] * self.calls}


@pytest.mark.parametrize("fn, broken", [
    (switch, set()),
    (sees_the_order, {"permute tokens", "split the batch", "all experts are dense"}),
    (prefers_an_expert, {"permute experts", "all experts are dense"}),
    (sees_the_others, {"split the batch", "append padding", "all experts are dense"}),
    (sums_over_tokens, {"duplicate the batch", "append padding"}),
    (counts_padding, {"append padding"}),
    (never_full, {"slots to spare", "permute tokens", "split the batch"}),
    (first_choice_alone, {"all experts are dense"}),
    (infinite_at_balance, {"balanced gradient"}),
    (Forgetful(), set(HOLDS) - {"duplicate the batch", "balanced gradient",
                                "all experts are dense"}),
], ids=lambda value: getattr(value, "__name__", ""))
def test_what_breaks_an_invariant_is_seen(fn, broken):
    assert seen_by(fn) == broken


def test_every_invariant_has_been_broken():
    broken = {name for mark in test_what_breaks_an_invariant_is_seen.pytestmark
              for _, names in mark.args[1] for name in names}
    assert broken == set(HOLDS)


def test_gradients_at_balance_may_be_taken_by_the_framework():
    def spread(c):
        """The root of the variance, whose slope is infinite where there is none."""
        probs = ops.softmax(c.x @ c.w_router)
        return {"aux_loss": ((probs - 0.25)**2).mean()**0.5}
    with np.errstate(all="ignore"):
        assert seen_by(spread, adapter="minimoe") == {"balanced gradient", "append padding"}


def test_what_cannot_be_told_says_what_it_would_take():
    found = {one.name: one for one in oracle.invariants(lambda c: {"P": switch(c)["probs"].mean(0)[
        None]})}
    assert found["permute tokens"].detail == f"give one of {', '.join(OF_TOKENS)}"
    assert found["all experts are dense"].detail == "give probs and y"
    assert {found[name].status for name in ("permute tokens", "all experts are dense")} == {
        "cannot be told"}


def test_a_function_that_fails_breaks_all():
    found = oracle.invariants(lambda c: 1 / 0)
    assert {one.status for one in found} == {"broken"}
    assert found[0].detail == "the function raised ZeroDivisionError: division by zero"


def test_a_case_without_tokens_is_refused():
    with pytest.raises(ValueError, match="needs a kind of run with tokens, in.x; products_of"):
        oracle.invariants(switch, oracle.cases("products")[0])
