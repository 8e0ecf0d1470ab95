"""The Switch experiment: what it trains, its judgement, and a quick run of all of it."""
import json

import numpy as np
import pytest

from minimoe.experiments import harness, switch_2021 as experiment
from minimoe.experiments.chains import BATCH, WIDTH
from minimoe.experiments.harness import Settings
from minimoe.papers import switch_2021 as switch

PAPER = "switch_2021"
QUICK = Settings(seed=0, quick=True)


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, QUICK)


# -- What is trained -----------------------------------------------------------------------------

def layer(policy, capacity=BATCH):
    params = switch.init(np.random.default_rng(0), 4, WIDTH, WIDTH, scale=10.0)
    x = np.random.default_rng(2).standard_normal((BATCH, WIDTH))
    apply, draws = experiment.POLICIES[policy]
    return params, x, apply(params, x, draws(np.random.default_rng(1)), capacity)


@pytest.mark.parametrize("policy", experiment.POLICIES)
def test_policies_differ_in_who_goes_where_alone(policy):
    params, x, out = layer(policy)
    _, _, by_argmax = layer("argmax")
    moved = (out.routing.expert != by_argmax.routing.expert).mean()
    low, high = {"argmax": (0, 0), "no token left behind": (0, 0), "jitter": (1e-3, 0.02),
                 "dropout": (0.02, 0.3), "sample": (0.02, 0.6)}[policy]
    assert low <= moved <= high
    # whatever the router saw, an expert is given x itself: y is its output times the gate
    hidden = np.maximum(np.einsum("td,tdh->th", x, params.w_in[out.routing.expert[:, 0]]), 0)
    y = np.einsum("th,thd->td", hidden, params.w_out[out.routing.expert[:, 0]])
    np.testing.assert_allclose(out.y, out.routing.gate * y, atol=1e-10)


def test_f_counts_argmax_wherever_a_token_goes():
    losses = [layer(policy, BATCH // 4)[2].aux_loss
              for policy in ("argmax", "sample", "no token left behind")]
    assert losses[1] == pytest.approx(losses[0]) and losses[2] == pytest.approx(losses[0])
    assert layer("no token left behind", BATCH // 4)[2].routing.keep.all()


def test_runs_of_one_seed_hold_out_the_same_tokens_and_measure_what_the_plan_says():
    plan = experiment.plan(quick=True)
    run = experiment.trained(QUICK, plan["capacity", 0.5, 0])
    assert run.measures["dropped"] == pytest.approx(0.5, abs=0.05)      # after 2 steps
    assert run.shares.sum() == pytest.approx(1) and len(run.shares) == 8
    rescued = experiment.trained(QUICK, plan["left_behind", 1.0, 0])
    assert rescued.measures["dropped"] == 0
    one, eight = (experiment.trained(QUICK, plan["scaling", E, 0]) for E in (1, 8))
    assert one.steps.tolist() == [0, 1, 2] and one.measures["balance"] == pytest.approx(1)
    assert abs(one.curve[0] - eight.curve[0]) < 0.01    # experts hardly speak at the start


@pytest.mark.parametrize("key", [("text", experiment.SPARSE, 0), ("exploration", "sample", 0),
                                 ("exploration", "jitter", 0), ("left_behind", 1.0, 0)])
def test_a_run_is_the_same_on_the_other_library(move, key):
    backend = "numpy" if isinstance(move(np.zeros(1)), np.ndarray) else "cupy"
    here, there = (experiment.trained(QUICK._replace(backend=backend), experiment.plan(True)[key])
                   for backend in ("numpy", backend))
    assert here.measures == pytest.approx(there.measures, rel=1e-5)
    np.testing.assert_allclose(here.curve, there.curve, rtol=1e-5)


def test_text_models_share_their_text_and_differ_in_their_experts():
    dense, sparse, wide = (experiment.on_text(QUICK, case._replace(steps=0, held_out=8))
                           for case in experiment.TEXT.values())
    # two stacks, one Switch layer of 8 experts in each: 7 experts more, and a router
    assert sparse.measures["weights"] - dense.measures["weights"] == 2 * (7 * 2 * 32 * 32 + 32 * 8)
    # 4 feed-forward layers, 2 * 32 * (128 - 32) weights more in each
    assert wide.measures["weights"] - dense.measures["weights"] == 4 * 2 * 32 * 96
    for run in (dense, sparse, wide):
        assert run.steps.tolist() == [0] and 4 < run.curve[0] < 7       # log 120 = 4.8
    assert dense.measures["dropped"] == 0


def test_training_on_text_lowers_the_loss():
    run = experiment.on_text(QUICK, experiment.OnText(4, steps=20, batch=16, watch=20, held_out=64))
    assert run.curve[1] < run.curve[0] - 0.5


# -- Gates alone ---------------------------------------------------------------------------------

def test_a_crowd_of_two_tokens():
    # two tokens, two experts, a slot each: with probability 1/2 both choose alike, and one is lost
    found = experiment.overflow(QUICK, np.random.default_rng(0), 2, 2, 400)[1.0]
    assert found.exact == pytest.approx(0.25)
    assert abs(found.simulated - 0.25) < 4 * found.error < 0.06


def test_stages_leave_nobody_where_there_is_room():
    unplaced = experiment.left_behind(QUICK, np.random.default_rng(0), 1, 2.0, 1)
    assert unplaced[0] > 0.05 and unplaced[-1] == 0
    assert (np.diff(unplaced) <= 0).all()


def test_gates_are_the_same_on_the_other_library(move):
    backend = "numpy" if isinstance(move(np.zeros(1)), np.ndarray) else "cupy"
    here, there = (experiment.gates_alone(QUICK._replace(backend=backend))
                   for backend in ("numpy", backend))
    for E, row in here.precision.items():
        assert tuple(row)[1:] == pytest.approx(tuple(there.precision[E])[1:], rel=1e-5)
        assert row.changed == pytest.approx(there.precision[E].changed)
    for setting, unplaced in here.left_behind.items():
        np.testing.assert_array_equal(unplaced, there.left_behind[setting])
    assert here.overflow == there.overflow


# -- Judgement -----------------------------------------------------------------------------------

def findings():
    """What would be found if the claims held: found, gates."""
    def seeds(**measures):
        return {measure: np.array([value, value]) for measure, value in measures.items()}

    found = {
        "scaling": {E: seeds(excess=excess, faster=faster, dropped=0.0) for E, excess, faster in
                    [(1, .5, 1.0), (2, .32, 2.0), (4, .2, 3.0), (8, .14, 3.8), (16, .15, 4.4)]},
        "balance": {0.0: seeds(excess=.9, dropped=.5, starved=.6, balance=3.0),
                    experiment.ALPHA: seeds(excess=.34, dropped=.05, starved=.02, balance=1.1)},
        "capacity": {factor: seeds(excess=excess, dropped=dropped) for factor, excess, dropped in
                     [(.5, .74, .5), (1.0, .28, .1), (1.25, .21, .04), (2.0, .18, 0.0)]},
        "exploration": {policy: seeds(excess=excess) for policy, excess in
                        [("argmax", .34), ("sample", .7), ("dropout", .33), ("jitter", .32)]},
        "start": {scale: seeds(excess=excess) for scale, excess in
                  [(.1, .7), (1.0, .6), (10.0, 1.2)]},
        "deep": {(rate, scale): seeds(excess=rate * 8 + 0.1 * scale)
                 for rate, scale in experiment.DEEP}}
    gates = experiment.Gates(
        {E: experiment.Precision({"input": 0.0, "logits": logits, "probs": 0.014}, .02, .004, .009)
         for E, logits in [(8, .001), (64, .006), (256, .011)]},
        {setting: np.array([*expected, 0, 0, 0, 0])
         for setting, expected in experiment.LEFT_BEHIND.items()},
        {crowd: {1.0: experiment.Overflow(.1, .102, .001), 2.0: experiment.Overflow(1e-4, 0, 0)}
         for crowd in experiment.CROWDS})
    return found, gates


def verdicts(found, gates):
    return [claim.holds for claim in experiment.judged(found, gates)]


def test_claims_hold_on_such_findings():
    assert verdicts(*findings()) == [True] * 12


@pytest.mark.parametrize("claim, part, row, measure, value", [
    (0, "scaling", 4, "excess", 0.33),             # more than 2 experts have
    (0, "scaling", 1, "excess", 0.42),             # 2 are 0.76 times
    (0, "scaling", 8, "excess", 0.199),            # 0.398 times, but then
    (1, "scaling", 8, "faster", 2.4),
    (1, "scaling", 8, "faster", np.nan),           # never there
    (2, "balance", experiment.ALPHA, "dropped", 0.13),
    (2, "balance", experiment.ALPHA, "starved", 0.16),
    (3, "balance", experiment.ALPHA, "excess", 0.59),
    (4, "capacity", 0.5, "dropped", 0.48),
    (4, "capacity", 1.25, "dropped", 0.1),         # as many as with 1
    (4, "capacity", 0.5, "excess", 0.27),
    (4, "capacity", 2.0, "excess", 0.3),           # more than with 1.25
    (5, "exploration", "sample", "excess", 0.53),
    (5, "exploration", "dropout", "excess", 0.43),
    (6, "start", 10.0, "excess", 0.99),
    (7, "deep", (0.06, 0.1), "excess", 0.59)])
def test_a_finding_against_a_claim_makes_it_unmet(claim, part, row, measure, value):
    found, gates = findings()
    found[part][row][measure] = np.array([value, value])
    unmet = [i for i, holds in enumerate(verdicts(found, gates)) if not holds]
    assert unmet == ([] if value == 0.199 else [claim])


@pytest.mark.parametrize("claim, E, change", [
    (8, 64, {"changed": {"input": 0.002, "logits": .006, "probs": .014}}),
    (8, 64, {"changed": {"input": 0.0, "logits": .012, "probs": .014}}),      # more than with 256
    (9, 256, {"changed": {"input": 0.0, "logits": .011, "probs": .01}}),
    (9, 8, {"ties": 0.009})])
def test_a_router_against_a_claim_makes_it_unmet(claim, E, change):
    found, gates = findings()
    gates.precision[E] = gates.precision[E]._replace(**change)
    assert [i for i, holds in enumerate(verdicts(found, gates)) if not holds] == [claim]


@pytest.mark.parametrize("place, value", [(0, 0.36), (3, 0.2), (7, 0.001)])
def test_tokens_left_behind_against_the_claim_make_it_unmet(place, value):
    found, gates = findings()
    gates.left_behind[1, 1.0][place] = value
    assert [i for i, holds in enumerate(verdicts(found, gates)) if not holds] == [10]


def test_one_case_may_be_further_off_than_three_errors_but_not_two():
    found, gates = findings()
    first, second, *_ = experiment.CROWDS
    gates.overflow[first][1.0] = experiment.Overflow(.1, .104, .001)
    assert all(verdicts(found, gates))
    gates.overflow[second][1.0] = experiment.Overflow(.1, .09, 0.0)
    assert [i for i, holds in enumerate(verdicts(found, gates)) if not holds] == [11]


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert [claim["holds"] for claim in record["claims"]] == [None] * 19
    assert len(record["tables"]) == 9 and len(quick.result.figure.axes) == 9
    details = record["details"]
    assert set(details["trained"]) == set(details["found"]) - {"exploration, argmax"}
    assert details["trained"]["scaling, 8"]["recipe"]["aux_weight"] == experiment.ALPHA
    assert details["curves"]["text, dense"]["steps"] == [0, 1, 2]
    assert set(details["gates_alone"]) == {"precision", "left_behind", "overflow"}


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, QUICK)
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}
