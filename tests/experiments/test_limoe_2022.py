"""The LIMoE experiment: what it trains and measures, its judgement, a quick run of it."""
import json

import numpy as np
import pytest

from minimoe import tree
from minimoe.backend import to_numpy
from minimoe.experiments import harness, limoe_2022 as experiment
from minimoe.experiments.harness import Settings
from minimoe.experiments.limoe_2022 import (
    CLASSIC, DENSE, FIVE, FULL, LOCAL, LOCAL_GLOBAL, LOCAL_ONLY, PLAIN, SWEEP, DigitsCase,
    RouterCase)
from minimoe.papers import limoe_2022 as paper
from minimoe.papers.vmoe_2021 import encoder_init

PAPER = "limoe_2022"
QUICK = Settings(seed=0, quick=True)


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, QUICK)


# -- Routers alone -------------------------------------------------------------------------------

def test_text_begins_on_one_expert_and_the_global_loss_takes_it_off():
    begun = experiment.router_run(QUICK, RouterCase(LOCAL_GLOBAL, 8, 9, 0, steps=1))
    assert begun["largest_share"] > .95 and begun["text_vanilla"] < .45
    trained = experiment.router_run(QUICK, RouterCase(LOCAL_GLOBAL, 4, 16, 0, steps=40))
    less = experiment.router_run(QUICK, RouterCase(LOCAL, 4, 16, 0, steps=40))
    assert trained["in_use"] > less["in_use"] + 1


def test_a_router_is_the_same_on_the_other_library(cupy):
    case = RouterCase(FIVE, 8, 9, 0, steps=2)
    here, there = (experiment.router_run(QUICK._replace(backend=backend), case)
                   for backend in ("numpy", "cupy"))
    assert here == pytest.approx(there, rel=1e-2)


# -- Digits --------------------------------------------------------------------------------------

def test_clipping_by_hand():
    found = experiment.clipped({"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])})
    assert found["a"][0] == pytest.approx(.6) and found["b"][0, 0] == pytest.approx(.8)
    short = {"a": np.array([.6])}
    assert experiment.clipped(short)["a"][0] == .6


def test_decay_shrinks_matrices_alone():
    params = {"w": np.ones((2, 2)), "b": np.ones(2), "t": np.ones(())}
    assert [float(p.ravel()[0]) for p in experiment.decayed(params, .1).values()] == [.9, 1, 1]


def test_training_finds_the_texts_of_images():
    before, after = (experiment.digits_run(QUICK, DigitsCase(FULL, 0, steps)).curves["loss"]
                     for steps in (2, 60))
    assert abs(before[0] - np.log(experiment.BATCH)) < 1.5
    assert after[-5:].mean() < before[0] - .5


def test_recipes_of_one_seed_see_the_same_batches():
    runs = [experiment.digits_run(QUICK, DigitsCase(name, 0, 1)) for name in (PLAIN, FULL)]
    assert runs[0].curves["loss"][0] != runs[1].curves["loss"][0]        # others are dropped
    dense = [experiment.digits_run(QUICK, DigitsCase(DENSE, seed, 1)) for seed in (0, 0, 1)]
    losses = [one.curves["loss"][0] for one in dense]
    assert losses[0] == losses[1] != losses[2]


def test_choices_are_shares_of_each_place(rng):
    encoder = encoder_init(rng, 2, 8, 2, 8, experiment.EXPERTS, (1,))
    params = tree.map(lambda p: p.astype(np.float32), paper.init(rng, 16, 4, 4, 20, encoder, 8))
    patches = rng.standard_normal((6, 16, 4)).astype(np.float32)
    words = rng.integers(20, size=(6, 4))
    shares = experiment.choices(params, patches, words)
    assert shares.shape == (16, 20) and np.abs(shares.sum(axis=0) - 1).max() < 1e-12
    out = paper.limoe(params, patches, words, 1, activation=experiment.ops.gelu_tanh)
    expert = to_numpy(out.layers[0].routing.expert)[:, 0]
    assert shares[expert[5], 5] >= 1 / 6 and shares[expert[6 * 16 + 2], 16 + 2] >= 1 / 6


# -- Judgement -----------------------------------------------------------------------------------

def findings(**changes):
    """Measures of two seeds as they would be if the claims held, but for ``changes``."""
    given = {"classic_text": .4, "classic_image": .97, "text": .93, "image": .94,
             "text_without": .55, "local_used": 1.6, "local_share": .92, "sweep": 1.05,
             "full_text": .99, "full_image": .96, "plain_text": .5, "collapsed": 1.4,
             "zero_shot": .89, "zero_shot_local": .6, "dense_loss": 1.5, "full_loss": 1.25,
             **changes}

    def row(**measures):
        names = ("image_vanilla", "text_vanilla", "image_priority", "text_priority",
                 "largest_share", "in_use")
        return {name: np.full(2, measures.get(name, .5)) for name in names}

    rows = {(CLASSIC, 8, 9): row(image_vanilla=given["classic_image"],
                                 text_vanilla=given["classic_text"]),
            (FIVE, 8, 9): row(image_priority=given["image"], text_priority=given["text"],
                              text_vanilla=given["text_without"]),
            ((*FIVE, "router_z"), 8, 9): row(),
            (LOCAL, 4, 9): row(in_use=given["local_used"], largest_share=given["local_share"]),
            **{(LOCAL_GLOBAL, 4, S): row(in_use=S * given["sweep"]) for S in SWEEP}}
    digits = {name: {"loss": np.full(2, 1.3), "zero_shot": np.full(2, .9), "image": np.full(2, .95),
                     "text": np.full(2, .95), "in_use": np.full(2, 9.0)}
              for name in experiment.RECIPES}
    digits[FULL] |= {measure: np.full(2, given[name]) for measure, name in (
        ("image", "full_image"), ("text", "full_text"), ("zero_shot", "zero_shot"),
        ("loss", "full_loss"))}
    digits[PLAIN] |= {"text": np.full(2, given["plain_text"])}
    digits[LOCAL_ONLY] |= {"in_use": np.full(2, given["collapsed"]),
                           "zero_shot": np.full(2, given["zero_shot_local"])}
    digits[DENSE] = {"loss": np.full(2, given["dense_loss"]), "zero_shot": np.full(2, .88)}
    return rows, digits


def test_claims_hold_on_such_findings():
    assert [claim.holds for claim in experiment.judged(*findings())] == [True] * 11


@pytest.mark.parametrize("claim, change", [
    (0, {"classic_text": .46}), (0, {"classic_image": .94}), (1, {"text": .87}),
    (1, {"image": .89}), (2, {"text_without": .66}), (3, {"local_used": 2.1}),
    (3, {"local_share": .87}), (4, {"sweep": 1.16}), (4, {"sweep": .84}), (5, {"full_text": .96}),
    (5, {"full_image": .92}), (6, {"plain_text": .71}), (7, {"collapsed": 2.1}),
    (8, {"zero_shot_local": .78}), (9, {"full_loss": 1.36}),
    (10, {"zero_shot": .84, "zero_shot_local": .5})])
def test_a_finding_against_a_claim_makes_it_unmet(claim, change):
    verdicts = [c.holds for c in experiment.judged(*findings(**change))]
    assert [i for i, holds in enumerate(verdicts) if not holds] == [claim]


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert [claim["holds"] for claim in record["claims"]] == [None] * 14
    assert len(record["tables"]) == 3 and len(quick.result.figure.axes) == 6 + 1
    assert set(record["details"]["digits"]["found"]) == set(experiment.RECIPES)
    assert len(record["details"]["routers"]["found"]) == len(experiment.R1_ROWS)


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, QUICK)
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}
