"""Products of experts under noise: data, training, measures, judgement; a quick run of it all."""
import json
import math

import numpy as np
import pytest

from minimoe import tree
from minimoe.experiments import (
    frozen_experts, gaussian_processes, generalized_poe_2022 as experiment, harness,
    noisy_modalities)
from minimoe.experiments.frozen_experts import LEARNT, ORACLE, PLAIN, WITH_PRIOR, Frozen
from minimoe.experiments.gaussian_processes import COMMITTEE, EQUAL, FUSIONS, RAW, Processes
from minimoe.experiments.generalized_poe_2022 import ANY, SOFTMAX
from minimoe.experiments.harness import Settings
from minimoe.experiments.noisy_modalities import (
    CLEAN, GPOE, LEVELS, NOBODY, POE, UPON, Halves, Pairs)
from minimoe.papers.generalized_poe_2022 import fixed_weights

PAPER = "generalized_poe_2022"


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


# -- Noise ---------------------------------------------------------------------------------------

def test_only_the_modality_that_is_named_is_corrupted(rng):
    x = np.full((300, 32), 0.5), np.full((300, 32), 0.5), np.eye(10)[rng.integers(10, size=300)]
    which = rng.integers(NOBODY, 3, size=300)
    found = noisy_modalities.corrupted(rng, x, which)
    for m, (before, after) in enumerate(zip(x, found)):
        assert (before != after)[which == m].any(axis=1).all()
        assert (before == after)[which != m].all()
    label = found[2][which == 2]
    assert (label.sum(axis=1) == 1).all() and len(np.unique(label.argmax(axis=1))) == 10


def test_a_level_is_the_share_that_is_replaced(rng):
    x = np.full((500, 32), 2.0), np.eye(10)[rng.integers(10, size=500)]
    for level in (0.0, 0.25, 1.0):
        for m in range(2):
            found = noisy_modalities.corrupted(rng, x, np.full(500, m), level)[m]
            replaced = (found != x[m]) if m == 0 else (found != x[m]).any(axis=1)
            assert replaced.mean() == pytest.approx(level, abs=0.06 if 0 < level < 1 else 0)
    of_each = np.repeat([0.0, 1.0], 250)
    found = noisy_modalities.corrupted(rng, x, np.zeros(500, int), of_each)[0]
    assert (found[:250] == 2).all() and (found[250:] < 1).all()


def test_half_the_data_have_a_corrupted_modality_and_all_have_one_that_is_there(rng):
    which = noisy_modalities.one_or_none(rng, 4000, 2)
    assert [(which == m).mean() for m in (NOBODY, 0, 1)] == pytest.approx([.5, .25, .25], abs=0.03)
    present = noisy_modalities.some_missing(rng, 3, 4000)
    assert present.any(axis=0).all()
    # half complete; of the others, one is kept and each of the two left with probability 1/2
    assert present.all(axis=0).mean() == pytest.approx(0.5 + 0.5 / 4, abs=0.03)


# -- Training ------------------------------------------------------------------------------------

def measures_of(backend, run, case):
    return run(Settings(3, False, backend), case)[0]


@pytest.mark.parametrize("run, case", [
    (frozen_experts.frozen_experts, Frozen(steps=3)),
    (frozen_experts.frozen_experts, Frozen(steps=3, weights=fixed_weights, with_label=True)),
    (noisy_modalities.from_halves, Halves(GPOE, epochs=1, n_train=100)),
    (gaussian_processes.calibration, Processes(n_draws=1, n_experts=3))])
def test_a_run_is_the_same_on_the_other_library(cupy, run, case):
    numpy, twin = (measures_of(backend, run, case) for backend in ("numpy", "cupy"))
    assert numpy.keys() == twin.keys()
    for key, number in numpy.items():
        np.testing.assert_allclose(twin[key], number, rtol=1e-7, atol=1e-10, err_msg=str(key))


def test_weight_leaves_a_half_that_is_noise_within_60_steps():
    found, _ = frozen_experts.frozen_experts(Settings(), Frozen(steps=60))
    assert found["uniform", LEARNT, "weight"] < 0.15
    assert found["uniform", LEARNT, "rmse"] < 0.75 * found["uniform", PLAIN, "rmse"]
    assert found[1.0, LEARNT, "weight"] < found[0.5, LEARNT, "weight"] < found[0.0, LEARNT,
                                                                               "weight"]


def test_only_credibility_is_learnt_where_the_experts_are_frozen(rng, monkeypatch):
    starts = []

    def trained(settings, rng, params, *args, **kwargs):
        found = train(settings, rng, params, *args, **kwargs)
        starts.append((params, found))
        return found

    train = noisy_modalities.trained
    monkeypatch.setattr(noisy_modalities, "trained", trained)
    noisy_modalities.from_pairs(Settings(), Pairs(CLEAN, epochs=1, n_train=100, n_test=100))
    (_, clean), (before, after) = starts
    for a, b in zip(tree.leaves((clean, before.encoders, before.decoders)),
                    tree.leaves((before, after.encoders, after.decoders)), strict=True):
        assert (a == b).all()
    assert abs(after.credibility[0][-1].w - before.credibility[0][-1].w).max() > 1e-4
    assert not clean.credibility[0][-1].w.any()           # without weights nothing pulls at it


def test_beta_rises_over_the_epochs_it_is_given():
    steps = [noisy_modalities.annealed(epoch, batch, 2, 2) for epoch in range(3)
             for batch in range(2)]
    assert steps == [0.25, 0.5, 0.75, 1, 1, 1] and noisy_modalities.annealed(0, 0, 2, 0) == 1


# -- Measures ------------------------------------------------------------------------------------

def test_experts_are_ridge_regressions_measured_on_other_data(rng, monkeypatch):
    monkeypatch.setattr(frozen_experts, "FITTED", 2)
    x, z = np.array([[1.0], [-1.0], [1.0]]), np.array([[2.0], [0.0], [5.0]])
    # sum a a' + 1 = 3 for both, sum a z = (2, 2): w = (2/3, 2/3), which says 4/3 for 5
    found = frozen_experts.fitted((x,), z)
    np.testing.assert_allclose(found.w[0], [[2 / 3], [2 / 3]])
    np.testing.assert_allclose(found.log_variance, [[[2 * math.log(11 / 3)]]])
    mean, log_variance = frozen_experts.opinions(found, (x[:1],))
    np.testing.assert_allclose(mean, [[[4 / 3]]])
    assert log_variance.shape == mean.shape


def test_components_make_the_image_again(rng):
    task = frozen_experts.task(rng)
    z = (task.train.image - task.mean) @ task.components
    np.testing.assert_allclose(z.std(axis=0), 1)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(8), atol=1e-12)
    np.testing.assert_allclose(task.back @ task.components, np.eye(8), atol=1e-12)


def test_a_process_that_has_seen_one_point_by_hand():
    at = np.array([1.0, 1.5, 9.0])
    mean, log_variance = gaussian_processes.predict(np.array([1.0]), np.array([2.0]), at)
    k = np.exp([0.0, -0.5, -128.0])                        # covariance with the point, length 1/2
    np.testing.assert_allclose(mean, k * 2 / 1.01)
    np.testing.assert_allclose(np.exp(log_variance), 1 - k * k / 1.01)


def test_a_process_keeps_to_what_it_was_drawn_from(rng):
    process = gaussian_processes.drawn(rng)
    whole = gaussian_processes.predict(*process[:3])
    found = gaussian_processes.judged_by(process, whole)
    assert found["rmse"] < 0.15 and found["coverage"] > 0.7 and found["far"] > 0.9
    assert abs(process.y - np.interp(process.x, process.at, process.f)).std() < 0.15
    for rows in process.split.values():
        assert sorted(rows.ravel()) == list(range(160))


def test_measures_of_a_process_by_hand():
    at = np.array([0.0, 1.0, 6.0])
    process = gaussian_processes.Process(None, None, at, np.array([0.0, 0.0, 5.0]), {})
    found = gaussian_processes.judged_by(process, gaussian_processes.Gaussian(
        np.array([1.0, 5.0, 0.0]), np.log([1.0, 4.0, 3.0])))
    # errors 1 and 5, in deviations 1 and 2.5; log 2 pi + (1 + 25/4 + log 4) / 2 nats for the two
    assert found == pytest.approx({
        "rmse": 13 ** 0.5, "coverage": 0.5, "far": 3.0,
        "nlpd": (math.log(2 * math.pi) + (1 + 25 / 4 + math.log(4)) / 2) / 2})


# -- Judgement -----------------------------------------------------------------------------------

def findings():
    """What would be found if the claims held."""
    def seeds(value, n=3):
        return value * (1 + 0.001 * np.linspace(-1, 1, n))

    frozen = {(SOFTMAX, "uniform", product, "rmse"): seeds(value)
              for product, value in ((LEARNT, 0.53), (PLAIN, 0.86), (ORACLE, 0.53))}
    frozen.update({(SOFTMAX, "clean", product, "rmse"): seeds(0.34) for product in (LEARNT, PLAIN)})
    frozen.update({(SOFTMAX, "clean", LEARNT, f"weight {m}"): seeds(0.5) for m in range(2)})
    frozen[SOFTMAX, "uniform", LEARNT, "weight"] = seeds(0.005)
    for level in LEVELS:
        frozen[ANY, level, LEARNT, "weight"] = seeds(0.5 - 0.4 * level)
        for product, value in ((LEARNT, 0.3), (PLAIN, 0.4), (WITH_PRIOR, 0.45)):
            frozen[ANY, level, product, "rmse"] = seeds(value + 0.2 * level)
    halves = {(POE, 1.0, "mse"): seeds(0.043, 4), (GPOE, 1.0, "mse"): seeds(0.041, 4)}
    pairs = {(CLEAN, 1.0, "error"): seeds(0.18), (UPON, 1.0, "error"): seeds(0.08),
             (CLEAN, "image B alone", "error"): seeds(0.09)}
    for row in (UPON, GPOE):
        pairs[row, 1.0, "weight of image A"] = seeds(0.05)
        pairs[row, 0.0, "weight of image A"] = seeds(0.5)
    processes = {(split, name, measure): np.full(5, value) for split in ("blocks", "random")
                 for name in FUSIONS for measure, value in (("far", 1.0), ("coverage", 0.96))}
    for split in ("blocks", "random"):
        processes[split, PLAIN, "far"] = np.full(5, 0.125)
        processes[split, PLAIN, "coverage"] = np.full(5, 0.9)
        processes[split, RAW, "far"] = np.full(5, 1e6)
        processes[split, EQUAL, "mean apart from PoE"] = np.full(5, 1e-15)
    return {"frozen": frozen, "halves": halves, "pairs": pairs, "processes": processes}


def verdicts(found):
    return [claim.holds for claim in (
        *experiment.judged_frozen(found["frozen"]),
        *experiment.judged_models(found["halves"], found["pairs"]),
        *experiment.judged_processes(found["processes"]))]


def test_claims_hold_on_findings_that_bear_them_out():
    assert verdicts(findings()) == [True] * 13


@pytest.mark.parametrize("claim, part, key, values", [
    (0, "frozen", (SOFTMAX, "uniform", PLAIN, "rmse"), [0.86, 0.86, 0.755]),
    (1, "frozen", (SOFTMAX, "uniform", ORACLE, "rmse"), [0.53, 0.504, 0.53]),
    (2, "frozen", (SOFTMAX, "uniform", LEARNT, "weight"), [0.005, 0.051, 0.005]),
    (3, "frozen", (SOFTMAX, "clean", PLAIN, "rmse"), [0.34, 0.333, 0.34]),
    (4, "frozen", (ANY, 0.5, PLAIN, "rmse"), 0.39),            # gPoE has 0.4
    (4, "frozen", (ANY, 0.0, WITH_PRIOR, "rmse"), 0.29),
    (5, "frozen", (ANY, 0.5, LEARNT, "weight"), 0.36),         # 0.35 at the level before
    (6, "halves", (GPOE, 1.0, "mse"), [0.03, 0.03, 0.03, 0.09]),
    (7, "pairs", (UPON, 1.0, "error"), [0.01, 0.01, 0.19]),
    (8, "pairs", (GPOE, 1.0, "weight of image A"), [0.01, 0.251, 0.01]),
    (8, "pairs", (UPON, 1.0, "weight of image A"), [0.01, 0.251, 0.01]),
    (9, "processes", ("blocks", PLAIN, "far"), 0.127),
    (9, "processes", ("random", COMMITTEE, "far"), 1.02),
    (9, "processes", ("random", EQUAL, "far"), 0.98),
    (10, "processes", ("blocks", EQUAL, "mean apart from PoE"), [0, 0, 0, 0, 1e-10]),
    (11, "processes", ("random", RAW, "far"), 1.0),
    (12, "processes", ("random", PLAIN, "coverage"), 0.931),
    (12, "processes", ("random", gaussian_processes.ENTROPY, "coverage"), 0.949)])
def test_a_finding_against_a_claim_makes_it_unmet(claim, part, key, values):
    found = findings()
    found[part][key] = np.broadcast_to(values, found[part][key].shape)
    if claim == 11:
        found[part]["blocks", RAW, "far"] = found[part][key]
    assert verdicts(found) == [i != claim for i in range(13)]


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick, tmp_path):
    figure, record = harness.write(quick, tmp_path)
    read = json.loads(record.read_text(), parse_constant=pytest.fail)
    assert [claim["holds"] for claim in read["claims"]] == [None] * 21 and harness.met(quick)
    assert [len(table["rows"]) for table in read["tables"]] == [7, 9, 4, 5, 16, 4, 6]
    for table in read["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["header"])}, table["title"]
    assert len(quick.result.figure.axes) == 9 and figure.stat().st_size > 100_000


def test_the_record_holds_every_setting_and_the_numbers_behind_the_tables(quick):
    details = harness.as_record(quick)["details"]
    assert details["cases"]["frozen, constants, 0"] == {
        "seed": 0, "weights": "fixed_weights", "prior": None, "n_scores": 8,
        "pixels": "uniform_pixels", "all_levels": False, "with_label": False, "steps": 5}
    assert details["cases"]["pairs, gPoE, 0"]["epochs"] == 1
    found = details["found"]
    assert found["halves"]["MVAE's, 1.0, weight"] == [1.0]
    assert len(found["processes"]["random, rBCM, coverage"]) == 2
    row = next(table for table in harness.as_record(quick)["tables"]
               if table["title"].startswith("Halves"))["rows"][2]
    assert row[0] == GPOE and row[1] == f"{found['halves']['gPoE, 0.0, mse'][0]:.4f} (--)"


def test_the_same_settings_make_the_same_run_whatever_runs_beside_it():
    case = Halves(GPOE, epochs=1, n_train=100)
    again = [noisy_modalities.from_halves(Settings(2), case) for _ in range(2)]
    assert again[0] == again[1]
    assert noisy_modalities.from_halves(Settings(3), case) != again[0]
