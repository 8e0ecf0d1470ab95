"""The broken line: its fits, its judgement, and a quick run of all of it."""
import numpy as np
import pytest

from minimoe import tree
from minimoe.experiments import harness, hierarchical_1994 as experiment
from minimoe.experiments.harness import Settings
from minimoe.experiments.hierarchical_1994 import Fit
from minimoe.papers.hierarchical_1994 import GAUSSIAN, em_step, gradients, init

PAPER = "hierarchical_1994"


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


@pytest.fixture
def problem(rng):
    """Data, and two starts."""
    x = rng.uniform(-2, 2, 60)
    data = experiment.inputs(x), experiment.broken_line(x)[:, None]
    return data, tree.map(lambda *a: np.stack(a), *(init(rng, (2, 2), 2, 1) for _ in range(2)))


def test_the_broken_line_by_hand():
    x = np.array([-2, -1.5, -1, -0.5, 0, 0.5, 1, 2])
    assert experiment.broken_line(x).tolist() == [2, 1, 0, 0.5, 1, 0, -1, -0.5]


def test_first_at_counts_from_the_start_and_never_is_nan():
    l = np.array([[-5.0, -5, 3], [-1, -4, 3], [0, -3, 3]])
    np.testing.assert_array_equal(experiment.first_at(l, np.array([-1.0, 0, 2])), [1, np.nan, 0])


def test_a_small_rate_climbs_by_the_square_of_the_gradient(problem):
    data, params = problem
    rate = 1e-6
    l = experiment.gradient_ascent(params, data, rate, steps=1)
    g = gradients(params, *data, GAUSSIAN)
    square = sum((leaf ** 2).sum(axis=(1, 2, 3)) for leaf in [*g.w_gates, g.w_leaves])
    np.testing.assert_allclose(l[1] - l[0], rate / experiment.CASES * square, rtol=1e-4)


def test_a_rate_that_diverges_ends_in_minus_infinity_and_spoils_no_other_start(problem):
    data, params = problem
    wild = params._replace(w_leaves=params.w_leaves * np.array([1, 1e160])[:, None, None, None])
    l = experiment.gradient_ascent(wild, data, 0.01, steps=20)
    assert (l[:, 1] == -np.inf).all()
    first = tree.map(lambda p: p[:1], params)
    alone = experiment.gradient_ascent(first, data, 0.01, steps=20)
    np.testing.assert_allclose(l[:, 0], alone[:, 0], rtol=1e-9)


def test_fits_are_the_same_on_the_other_library(move, problem, monkeypatch):
    data, params = problem
    monkeypatch.setattr(experiment, "EM_STEPS", 3)
    here = experiment.fit("", params, data, em_step, GAUSSIAN)
    there = experiment.fit("", *move((params, data)), em_step, GAUSSIAN)
    np.testing.assert_allclose(here.l, there.l, rtol=1e-9)
    np.testing.assert_allclose(
        experiment.gradient_ascent(params, data, 0.05, steps=5),
        experiment.gradient_ascent(*move((params, data)), 0.05, steps=5), rtol=1e-9)


# -- Judgement -----------------------------------------------------------------------------------

def climbing(*l):
    """A fit whose l is given step by step, the same for two starts."""
    return Fit(None, np.stack([l, l], axis=-1).astype(float))


def test_one_step_down_makes_the_claim_of_monotony_unmet():
    good = climbing(-100, -50, -49.9999999999)
    assert experiment.rises(good, good).holds is True
    assert experiment.rises(good, climbing(-100, -50, -50.000001)).holds is False


def test_the_tree_of_the_highest_likelihood_is_held_to_a_third_of_the_lines_error():
    l = np.array([[-100.0, -100, -100], [300, 350, 120]])
    for second, holds in [(0.055, True), (0.056, False)]:
        errors = {"learnt": np.array([0.001, second, 0.2]), "line": 0.166}
        assert experiment.beats_the_line(errors, l).holds is holds


def test_em_must_arrive_first_from_every_start():
    em, l = climbing(-100, -50), np.zeros((3, 2))
    ascent = dict.fromkeys(experiment.RATES, l)
    never = np.array([np.nan, np.nan])
    for rate, arrivals, holds in [(0.1, [np.nan, 41], True), (0.3, [90, 40], False)]:
        arrival = {"em": np.array([16.0, 40]), **dict.fromkeys(experiment.RATES, never),
                   rate: np.array(arrivals)}
        assert experiment.faster(arrival, em, ascent).holds is holds


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = harness.as_record(quick)
    assert [claim["holds"] for claim in record["claims"]] == [None] * 6
    assert len(record["details"]["mean_squared_errors"]["learnt"]) == 2
    assert set(record["details"]["iterations_to_gain"]) == {"em", "0.03", "0.1", "0.3"}
    assert len(quick.result.figure.axes) == 6


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, Settings(seed=0, quick=True))
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}
