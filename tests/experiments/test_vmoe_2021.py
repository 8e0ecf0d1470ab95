"""The V-MoE experiment: what it measures, how it judges, and a quick run of all of it."""
import json

import numpy as np
import pytest

from minimoe.experiments import harness, vmoe_2021 as experiment
from minimoe.experiments.harness import Settings
from minimoe.experiments.vmoe_2021 import PRIORITY, RATIOS, SHOWN, VANILLA, Case, Found, Seen


@pytest.fixture(scope="module")
def quick():
    return harness.conduct("vmoe_2021", Settings(seed=0, quick=True))


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert {claim["holds"] for claim in record["claims"]} == {None} and record["met"]
    one, = record["details"]["found"]
    assert len(one["accuracy"][PRIORITY]) == len(RATIOS) == len(record["tables"][0]["rows"])
    assert len(quick.result.figure.axes) == 4
    assert harness.text(quick)


def test_fewer_slots_are_given_out_and_first_come_first_served(quick):
    one, = harness.plain(quick.result.details)["found"]
    for name in (VANILLA, PRIORITY):
        kept = list(one["kept"][name].values())
        assert kept == sorted(kept, reverse=True) and kept[-1] <= 0.15 < 0.5 < kept[0]
    places = one["by_place"][VANILLA][str(SHOWN[1])]
    assert max(places) == places[0] > 0.5 > 0.2 > places[-1]


# -- Its parts -----------------------------------------------------------------------------------

def test_a_run_is_the_same_again():
    case = Case(0, steps=2, shuffles=1, test=16)
    one, again = (experiment.measured(Settings(), case) for _ in range(2))
    assert one.accuracy == again.accuracy and one.trained == again.trained
    assert one.ink == again.ink and one.full == again.full
    kept = one.pictures[VANILLA][SHOWN[1]]                   # [8, 16]
    assert kept.shape == (8, 16) and kept[0].sum() > 8 > 4 > kept[-1].sum()


def test_tokens_are_the_squares_of_an_image():
    image = np.arange(64.0)[None]
    tokens = experiment.tokens_of(image)
    assert tokens.shape == (1, 16, 4)
    assert tokens[0, 0].tolist() == [0, 1, 8, 9] and tokens[0, 5].tolist() == [18, 19, 26, 27]
    kept = np.ones(16, bool)
    kept[5] = False
    shown = experiment.painted(np.zeros(64), kept)
    tinted = (shown != shown[0, 0]).any(axis=-1)
    assert np.argwhere(tinted).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_ink_by_hand():
    taken = np.zeros((2, 1, 17))
    taken[0, 0, [0, 3]] = 0.5                # the class token, and the third patch
    inks = np.arange(16.0)[None]
    assert experiment.ink_of([Seen(None, taken)], [inks]) == [2.0, (120 - 2) / 15]
    assert experiment.ink_of([Seen(None, 0 * taken)], [inks]) == [None, 7.5]


# -- Judgement -----------------------------------------------------------------------------------

def one_seed(vanilla=0.02, priority=0.01):
    """Accuracy falls from 0.9 by so much at each ratio below 1."""
    accuracy = {name: {ratio: 0.9 - fall * i for i, ratio in enumerate(RATIOS)}
                for name, fall in ((VANILLA, vanilla), (PRIORITY, priority))}
    places = {VANILLA: np.linspace(0.95, 0.1, 8), PRIORITY: np.full(8, 0.5)}
    return Found(accuracy, None, {name: dict.fromkeys(RATIOS, of) for name, of in places.items()},
                 {name: {SHOWN[1]: [0.4, None]} for name in places},
                 {name: {SHOWN[1]: 0.5} for name in places}, 0.9, 0.5,
                 {"kept": 0.9, "importance_loss": 0.1, "load_loss": 0.1}, None)


def verdicts(*found):
    return [claim.holds for claim in experiment.judged(found)]


def test_how_long_accuracy_holds_by_hand():
    # within .02: at .9, .88; and at .9, .89, .88; never at all
    assert experiment.held([one_seed(0.019, 0.0099)], VANILLA).tolist() == [0.9]
    assert experiment.held([one_seed(0.019, 0.0099)], PRIORITY).tolist() == [0.8]
    worse = one_seed()._replace(full=0.95)
    assert experiment.held([worse, one_seed(0, 0)], VANILLA).tolist() == [2.0, 0.1]


def test_claims_hold_on_findings_that_bear_them_out():
    assert verdicts(one_seed(), one_seed(0.03, 0.005)) == [True] * 2
    assert all(claim.holds is None for claim in experiment.reported([one_seed()]))


def test_places_in_a_group_are_told():
    told = [claim.measured for claim in experiment.reported([one_seed()])]
    assert "vanilla 0.95 and 0.10; priority 0.50 and 0.50" in told


def test_one_ratio_at_which_priority_loses_is_enough():
    lost = one_seed()
    lost.accuracy[PRIORITY][0.2] = lost.accuracy[VANILLA][0.2]
    assert verdicts(lost) == [False, True]
    early = one_seed()
    early.accuracy[PRIORITY][1.0] = 0.8      # below at once, though better in the end
    assert verdicts(early) == [True, False]
