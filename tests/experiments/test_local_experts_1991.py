"""The vowel experiment: its training, its judgement, and a quick run of all of it."""
import numpy as np
import pytest

from minimoe import tree
from minimoe.data.peterson_barney import two_pairs
from minimoe.experiments import harness, local_experts_1991 as experiment
from minimoe.experiments.harness import Settings

PAPER = "local_experts_1991"


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


@pytest.fixture(scope="module")
def cases():
    return two_pairs()[0]


def squared_error(system, params, cases):
    _, predicted = system.errors(params, cases.x, cases.d)
    return ((cases.d - predicted) ** 2).mean(axis=(-2, -1))


# -- Training ------------------------------------------------------------------------------------

@pytest.mark.parametrize("system", [experiment.mixture(4, 20), experiment.backprop(6, 14)])
def test_each_start_stops_at_the_criterion_whoever_runs_beside_it(system, cases):
    def train(starts, **settings):
        return experiment.train(system, cases, starts, Settings(seed=5), "", criterion=0.24,
                                **settings)

    together = train(3)
    error = squared_error(system, together.params, cases)
    assert (error <= 0.24).all() and len(set(together.epochs)) > 1
    alone = train(1)
    assert alone.epochs[0] == together.epochs[0]
    tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-9),
             alone.params, together.params)
    last = together.epochs.max()
    one_less = train(3, limit=int(last) - 1)
    missed = np.isnan(one_less.epochs)
    assert missed.tolist() == (together.epochs == last).tolist()
    assert (squared_error(system, one_less.params, cases)[missed] > 0.24).all()


def test_history_holds_what_each_start_ended_with(cases):
    trained = experiment.train(experiment.mixture(4, 20), cases, 3, Settings(seed=5), "",
                               criterion=0.24, watch=1)
    epochs = [epoch for epoch, _ in trained.history]
    assert epochs == list(range(int(trained.epochs.max()) + 1))
    first = trained.epochs.argmin()
    for epoch, params in trained.history:
        same = (params.w_gate[first] == trained.params.w_gate[first]).all()
        assert same == (epoch >= trained.epochs[first])


def test_training_is_the_same_on_the_other_library(move, cases):
    backend = "numpy" if isinstance(move(np.zeros(1)), np.ndarray) else "cupy"
    system = experiment.mixture(4, 20)
    here, there = (experiment.train(system, cases, 3, Settings(0, False, backend), "",
                                    criterion=0.24, limit=150, watch=50)
                   for backend in ("numpy", backend))
    np.testing.assert_array_equal(here.epochs, there.epochs)
    tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), here.params, there.params)


# -- Judgement -----------------------------------------------------------------------------------

def findings():
    """What would be found if the paper's claims held to the letter."""
    def system(mean, sd, experts=0):
        found = {"epochs": mean + sd * np.array([-1.0, 0, 1]), "training": np.full(3, 88.0),
                 "test": np.full(3, 90.0)}
        if experts:
            found["in_use"] = np.array([2, 2, 3])
            found["proportions"] = np.zeros((3, 4, experts))
            found["proportions"][:, :2, 1] = 0.95       # iy and ih to expert 1
            found["proportions"][:, 2:, 3] = 0.99       # aa and ah to expert 3
        return found

    def errors(ratio):
        return {"blend": np.full(3, 0.08), "switch": 0.08 * ratio + np.array([-0.001, 0, 0.001])}

    return ({"4 experts": system(1124, 15, 4), "8 experts": system(1083, 12, 8),
             "backprop 6": system(2209, 83), "backprop 12": system(2435, 124)},
            {"cooperative": errors(1.7), "competitive": errors(1.01), "mixture": errors(1.01)})


def verdicts(found, contrast):
    return [claim.holds for claim in experiment.judged(found, contrast)]


def test_claims_hold_on_findings_like_the_papers():
    assert verdicts(*findings()) == [True] * 6


def spoil(place, value):
    found, contrast = findings()
    *path, last = place
    part = {"found": found, "contrast": contrast}
    for key in path:
        part = part[key]
    part[last] = value
    return found, contrast


@pytest.mark.parametrize("claim, place, value", [
    (0, ("found", "8 experts", "epochs"), np.array([1083, np.nan, 1100])),    # one never arrives
    (0, ("found", "4 experts", "epochs"), np.array([1400.0, 1410, 1420])),    # 0.64 times
    (1, ("found", "4 experts", "epochs"), np.array([1100.0, 1124, 1148])),    # 0.29 times
    (2, ("found", "4 experts", "in_use"), np.array([2, 4, 2])),
    (2, ("found", "8 experts", "in_use"), np.array([2, 1, 2])),
    (4, ("found", "8 experts", "test"), np.full(3, 88.0)),
    (4, ("found", "backprop 6", "training"), np.full(3, 91.0)),
    (5, ("contrast", "cooperative", "switch"), np.full(3, 0.08 * 1.39)),
    (5, ("contrast", "mixture", "switch"), np.full(3, 0.08 * 1.11))])
def test_a_finding_against_a_claim_makes_it_unmet(claim, place, value):
    expected = [True] * 6
    expected[claim] = False
    assert verdicts(*spoil(place, value)) == expected


def test_one_expert_for_all_vowels_or_a_shared_pair_is_no_division():
    one_for_all = np.zeros((3, 4, 4))
    one_for_all[..., 2] = 1
    assert verdicts(*spoil(("found", "4 experts", "proportions"), one_for_all))[3] is False
    found, contrast = findings()
    found["8 experts"]["proportions"][1, 1] = [0, 0.5, 0.5, 0, 0, 0, 0, 0]   # ih shared, one start
    assert verdicts(found, contrast)[3] is False


def test_nearest_point_lies_on_the_line_and_across_from_the_centre():
    # 3 x + 4 y - 25 = 0 is 5 from the origin, at (3, 4), and 4 from (0.6, 0.8)
    weights = np.array([3.0, 4.0, -25.0])
    for centre in ([0.0, 0.0], [0.6, 0.8]):
        point = experiment.nearest_point(weights, np.array(centre))
        np.testing.assert_allclose(point, [3, 4], rtol=1e-12)


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = harness.as_record(quick)
    assert [claim["holds"] for claim in record["claims"]] == [None] * 12
    assert set(record["details"]["systems"]) == set(experiment.PAPER)
    for name, system in record["details"]["systems"].items():
        assert len(system["epochs"]) == 2 and system["parameters"] in (24, 48, 25, 49), name
    assert [len(table["rows"]) for table in record["tables"][:3]] == [4, 4, 3]
    assert record["details"]["gate_entropy"]["0"] == pytest.approx(np.log(4))
    assert len(quick.result.figure.axes) == 6


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, Settings(seed=0, quick=True))
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}
