"""The segmentation experiment: what it trains and measures, its judgement, a quick run of it."""
import json

import numpy as np
import pytest

from minimoe import tree
from minimoe.data.road_scenes import PEDESTRIAN, TRUCK, Scenes
from minimoe.experiments import harness, segmentation_2020 as experiment
from minimoe.experiments.harness import Settings
from minimoe.experiments.segmentation_2020 import (
    BASELINE, HIGHWAY, MAX, SIMPLE, TWICE, URBAN, Case, Mixing, Outputs)

PAPER = "segmentation_2020"
QUICK = Settings(seed=0, quick=True)
SMALL = {"train": 16, "steps": 2}


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, QUICK)


@pytest.fixture(scope="module")
def networks():
    return {name: experiment.trained(QUICK, Case(name, 0, **SMALL))
            for name in (HIGHWAY, URBAN, BASELINE, TWICE)}


# -- What is trained -----------------------------------------------------------------------------

def test_every_scene_comes_once_before_any_comes_again():
    found = experiment.batches(np.random.default_rng(0), n=6, size=4, steps=5)
    assert found.shape == (5, 4)
    for begin in (0, 6, 12):
        assert sorted(found.ravel()[begin:begin + 6]) == list(range(6))


def test_decay_shrinks_kernels_and_leaves_scales_and_biases():
    params = {"w": np.ones((2, 2)), "scale": np.ones(2)}
    assert experiment.decayed(params, 0.1)["w"][0, 0] == 0.9
    assert (experiment.decayed(params, 0.1)["scale"] == 1).all()


def test_networks_of_one_seed_start_alike_and_part_by_their_data(networks):
    first = [leaf[0, 0, 0] for leaf in (net.params.stem.w for net in networks.values())]
    assert len({tuple(w) for w in first}) == 3             # both baselines took the same 2 steps
    assert np.ptp(first, axis=0).max() < 0.05
    assert all(net.params.stem.w.dtype == "float32" for net in networks.values())
    assert all(len(net.running) == 11 for net in networks.values())


def test_training_lowers_the_loss_and_another_seed_is_another_network(networks):
    more = experiment.trained(QUICK, Case(URBAN, 0, steps=25, train=16))
    scenes = experiment.data(QUICK, 0, 16, 10).test["urban"]

    def right(network):
        logits = experiment.applied(QUICK, network, scenes.image).logits
        return (logits.argmax(-1) == scenes.label).mean()

    assert right(more) > right(networks[URBAN]) + 0.1
    other = experiment.trained(QUICK, Case(URBAN, 1, **SMALL))
    assert (other.params.stem.w != networks[URBAN].params.stem.w).any()


def test_experts_are_frozen_while_their_gates_are_trained(networks):
    before = tree.map(np.copy, networks)
    experiment.mixed(QUICK, Mixing(0, networks, test=4, **SMALL))
    for a, b in zip(tree.leaves(networks), tree.leaves(before)):
        assert np.array_equal(a, b)


def test_a_run_is_the_same_on_the_other_library(networks, cupy):
    on_cupy = QUICK._replace(backend="cupy")
    there = experiment.trained(on_cupy, Case(URBAN, 0, **SMALL))
    for a, b in zip(tree.leaves(there), tree.leaves(networks[URBAN])):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    case = Mixing(0, networks, test=3, **SMALL)
    here, there = experiment.mixed(QUICK, case), experiment.mixed(on_cupy, case)
    for name in here.weight:
        np.testing.assert_allclose(here.weight[name], there.weight[name], rtol=1e-4)
    assert here.miou[SIMPLE] == pytest.approx(there.miou[SIMPLE], abs=0.2)


# -- What is measured ----------------------------------------------------------------------------

def test_measures_by_hand():
    """One scene of each context, four pixels in a row; expert 1 knows classes to 6, expert 2 all.
    """
    def scene(*classes):
        return Scenes(np.zeros((1, 1, 4, 3)), np.array([[classes]]))

    def seen(weight, **classes):
        return Outputs({model: np.array([[row]]) for model, row in classes.items()},
                       np.array([weight]))

    test = {"highway": scene(0, 1, 1, TRUCK), "urban": scene(0, 1, 1, PEDESTRIAN),
            "ambiguous": scene(0, 1, TRUCK, PEDESTRIAN)}
    found = experiment.measured(test, {
        "highway": seen(.9, **{HIGHWAY: (0, 1, 1, 6), URBAN: (0, 1, 0, 1), SIMPLE: (0, 1, 1, 6)}),
        "urban": seen(.2, **{HIGHWAY: (0, 1, 1, 1), URBAN: (0, 1, 1, 9), SIMPLE: (0, 1, 1, 9)}),
        "ambiguous": seen(.5, **{HIGHWAY: (0, 1, 6, 1), URBAN: (0, 0, 1, 9),
                                 SIMPLE: (0, 1, 1, 0)})})
    assert found.weight["highway"].tolist() == [.9]
    # unseen: both last pixels; shared: of six pixels, the third of the highway
    assert found.disagreement["unseen"] == 1 and found.disagreement["pedestrians"] == 1
    assert found.disagreement["shared"] == pytest.approx(1 / 6)
    # ambiguous: they agree on the first pixel; of the three others the mixture errs in two
    assert found.disagreement["error_agreed"] == 0
    assert found.disagreement["error_apart"] == pytest.approx(2 / 3)
    assert found.accuracy[SIMPLE]["mixed"] == 100 and found.accuracy[HIGHWAY]["mixed"] == 87.5
    # the highway expert on urban: class 0 1/1, class 1 2/3, pedestrian 0/1
    assert found.miou[HIGHWAY]["urban"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert found.masks["critical"]["ambiguous"] == .25 and found.masks["critical"]["mixed"] == 0
    assert found.partition and found.overruled == 0


# -- Judgement -----------------------------------------------------------------------------------

def findings(**changes):
    """Two seeds as they would be if the claims held, but for ``changes``."""
    def one(own=85.0, other=20.0, simple=88.0, single=45.0, largest=78.0, baseline=84.0,
            twice=90.0, right=.98, undecided=.5, unseen=.97, shared=.3, apart=.13, agreed=.04,
            partition=True, overruled=0):
        def miou(highway=50.0, urban=50.0, mixed=50.0):
            return {"highway": highway, "urban": urban, "mixed": mixed, "ambiguous": 60.0}

        score = {HIGHWAY: miou(own, other, single), URBAN: miou(other, own, single),
                 BASELINE: miou(mixed=baseline), TWICE: miou(mixed=twice),
                 experiment.MEAN: miou(), MAX: miou(mixed=largest),
                 experiment.PROBABILITIES: miou(),
                 **{name: miou(mixed=simple) for name in experiment.MIXTURES}}
        masks = {mask: dict.fromkeys(experiment.SETS, .25)
                 for mask in experiment.paper.DisagreementMasks._fields}
        weight = {"highway": np.array([right]), "urban": np.array([1 - right]),
                  "ambiguous": np.array([undecided])}
        return experiment.Found(score, score, weight, {
            "unseen": unseen, "shared": shared, "pedestrians": .9, "error_apart": apart,
            "error_agreed": agreed}, masks, partition, overruled, {})

    return [one(**changes)] * 2


def test_claims_hold_on_such_findings():
    assert [claim.holds for claim in experiment.judged(findings())] == [True] * 7


@pytest.mark.parametrize("claim, change", [
    (0, {"own": 64.0}), (0, {"other": 46.0}), (1, {"single": 59.0}), (1, {"largest": 84.0}),
    (1, {"baseline": 87.0}), (2, {"twice": 93.5}), (3, {"right": .94}), (3, {"undecided": .71}),
    (3, {"undecided": .29}), (4, {"unseen": .89}), (4, {"shared": .4}), (5, {"agreed": .07}),
    (6, {"partition": False}), (6, {"overruled": 1})])
def test_a_finding_against_a_claim_makes_it_unmet(claim, change):
    verdicts = [c.holds for c in experiment.judged(findings(**change))]
    assert [i for i, holds in enumerate(verdicts) if not holds] == [claim]


def test_claims_are_of_means_but_what_is_by_construction_is_of_every_seed():
    def verdicts(**change):
        return [c.holds for c in experiment.judged([*findings(), *findings(**change)])]

    assert verdicts(right=.93, apart=.07) == [True] * 7    # 0.955, and 0.10 against 0.04
    assert verdicts(right=.90)[3] is False
    assert verdicts(overruled=1)[6] is False and verdicts(partition=False)[6] is False


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert [claim["holds"] for claim in record["claims"]] == [None] * 12
    assert len(record["tables"]) == 3 and len(quick.result.figure.axes) == 4 * 6 + 3
    found, = record["details"]["found"]
    assert set(found["miou"]) == {HIGHWAY, URBAN, BASELINE, TWICE, experiment.MEAN, MAX,
                                  experiment.PROBABILITIES, *experiment.MIXTURES}
    assert found["partition"] and found["overruled"] == 0


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, QUICK)
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}
