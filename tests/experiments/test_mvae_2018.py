"""The MVAE's experiment: data, judges, training, measures, judgement, and a quick run of all of it.
"""
import json

import numpy as np
import pytest

from minimoe import nn
from minimoe.data.digits import second_rendering
from minimoe.experiments import harness, modalities, mvae_2018 as experiment
from minimoe.experiments.harness import Settings
from minimoe.experiments.mvae_2018 import AT_ONCE, JOINT, SUB, WEAK, Case

PAPER = "mvae_2018"
SMALL = Case(SUB, 0, epochs=2, n_train=100, n_test=60)


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


@pytest.fixture(scope="module")
def small():
    return modalities.problem(np.random.default_rng(0), 300, 200)


# -- What experiments on modalities share --------------------------------------------------------

def test_pairs_share_the_digit_and_nobody_is_in_both_halves(small):
    assert [len(part.label) for part in small] == [900, 200, 300]
    assert small.train.a.dtype == small.test.b.dtype == "float32"
    seen = {image.tobytes() for image in small.images.image}
    assert {image.tobytes() for image in small.train.a} == seen
    assert {second_rendering(image).tobytes() for image in small.images.image} == {
        image.tobytes() for image in small.train.b}
    assert not seen & {image.tobytes() for image in small.test.a}


def test_judges_know_real_digits_and_read_logits(small):
    judged = modalities.judges(small)
    assert min(judged.accuracy) > 0.9
    for judge, images, accuracy in zip(judged.of_images, small.test, judged.accuracy):
        logits = 20 * (images - 0.5)                   # a sharper picture of the same digit
        assert (judge(logits) == small.test.label).mean() > accuracy - 0.1


def test_a_classifier_of_noise_is_no_better_than_chance(rng):
    x, label = rng.standard_normal((4000, 5)).astype("f"), rng.integers(0, 10, 4000)
    classify = modalities.logistic_regression(x[:2000], label[:2000])
    assert (classify(x[2000:]) == label[2000:]).mean() < 0.2


def test_coherences_of_a_model_that_draws_what_it_codes(small):
    """Codes are images' logits; one decoder passes them on, the other renders them."""
    judged = modalities.judges(small)
    logits = [tuple(20 * (pairs[m] - 0.5) for pairs in (small.train, small.test))
              for m in range(2)]
    matrix = second_rendering(np.eye(64)) - second_rendering(np.zeros((1, 64)))
    passes_on = nn.LinearParams(np.eye(64), np.zeros(64))
    renders = nn.LinearParams(matrix, np.zeros(64))
    found = modalities.coherences(((renders,), (renders,)), logits, logits[0][1], small, judged)
    assert found["a_to_b"] > 0.8 and found["b_to_a"] > 0.8 and found["latent_a"] > 0.8
    crossed = modalities.coherences(((passes_on,), (renders,)), logits, logits[0][1], small,
                                    judged)
    assert crossed["joint"] > 0.8 and crossed["b_to_a"] < 0.4


def test_image_grid():
    grid = modalities.image_grid([np.ones((2, 64)), np.zeros((2, 64))])
    assert grid.shape == (17, 17) and np.isnan(grid[8]).all() and np.isnan(grid[:, 8]).all()
    assert (grid[:8, :8] == 1).all() and (grid[9:, 9:] == 0).all()


# -- Training ------------------------------------------------------------------------------------

def test_a_run_is_the_same_on_the_other_library(move):
    backend = "numpy" if isinstance(move(np.zeros(1)), np.ndarray) else "cupy"
    case = SMALL._replace(epochs=1, paired=0.5)
    here, there = (experiment.trained(Settings(3, False, backend), case)
                   for backend in ("numpy", backend))
    np.testing.assert_allclose(here.shown["history"], there.shown["history"], rtol=1e-5)
    np.testing.assert_allclose(here.shown["a_to_b"], there.shown["a_to_b"], atol=1e-4)


def test_training_climbs_its_objective():
    case = SMALL._replace(epochs=8, annealing=1)
    history = experiment.trained(Settings(), case).shown["history"]
    assert len(history) == 8 and history[-1] > history[0] + 3


@pytest.mark.parametrize("paired", [0.0, 0.3, 1.0])
def test_pairs_that_are_kept(rng, paired):
    present = experiment.kept(rng, 4000, paired)
    assert present.any(axis=1).all()
    assert present.all(axis=1).mean() == pytest.approx(paired, abs=0.03)
    alone = present[~present.all(axis=1)]
    assert paired == 1 or alone[:, 0].mean() == pytest.approx(0.5, abs=0.05)


# -- Judgement -----------------------------------------------------------------------------------

def findings(sub, joint):
    return {SUB: {"a_to_b": np.array(sub) + 0.01, "b_to_a": np.array(sub) - 0.01},
            JOINT: {"a_to_b": np.array(joint), "b_to_a": np.array(joint)}}


@pytest.mark.parametrize("sub, joint, holds", [
    ([0.7, 0.7, 0.7], [0.6, 0.3, 0.4], True), ([0.7, 0.7, 0.7], [0.6, 0.5, 0.57], False)])
def test_the_gain_is_a_mean_over_seeds(sub, joint, holds):
    claim, = experiment.judged(findings(sub, joint))
    assert claim.holds is holds


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = harness.as_record(quick)
    assert json.loads(json.dumps(record)) == record
    assert [claim["holds"] for claim in record["claims"]] == [None] * 5
    assert set(record["details"]["found"]) == {JOINT, SUB, AT_ONCE, *WEAK}
    assert [len(table["rows"]) for table in record["tables"]] == [6, 6]
    assert len(quick.result.figure.axes) == 6
    assert all(np.isfinite(values).all() for row in quick.result.details["found"].values()
               for values in row.values())


def test_the_same_seed_gives_the_same_run(quick):
    case = experiment.plan(quick=True)[1]
    again = experiment.trained(Settings(seed=0), case).measures
    found = quick.result.details["found"][case.row]
    assert found.keys() == again.keys()       # here on more threads than there: float32 to rounding
    np.testing.assert_allclose([float(value[0]) for value in found.values()], list(again.values()),
                               rtol=1e-4)
