"""The GShard experiment: what it measures, how it judges, and a quick run of all of it."""
import json
import sys

import numpy as np
import pytest

from minimoe import tree
from minimoe.data import language_names
from minimoe.experiments import gshard_2020 as experiment, harness
from minimoe.experiments.chains import Recipe
from minimoe.experiments.gshard_2020 import EXPERTS, NO_LOSS, OnChains, Overflow, Translation
from minimoe.experiments.harness import Settings
from minimoe.papers import gshard_2020 as gshard
from minimoe.routing.dispatch import Routing

PAPER = "gshard_2020"


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert {claim["holds"] for claim in record["claims"]} == {None} and record["met"]
    found = record["details"]["found"]
    assert {part: len(rows) for part, rows in found.items()} == {
        "translation": 4, "experts": 6, "balance": 2, "groups": 4, "counters": 3, "gates": 3,
        "overflow": 6, "speed": 4}
    assert record["details"]["trained"]["translation, 16, no loss"]["aux_weight"] == 0
    assert found["translation"]["16"]["weights"] > found["translation"]["4"]["weights"]
    assert [len(table["rows"]) for table in record["tables"]] == [6, 9, 3, 6, 4, 12]
    assert len(quick.result.figure.axes) == 10       # the last is a colour bar
    assert harness.text(quick)


def test_without_babel_all_else_runs_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "babel", None)
    monkeypatch.setattr(harness, "_processors", lambda: 1)
    language_names._language_names.cache_clear()
    outcome = harness.conduct(PAPER, Settings(quick=True))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith("pip install 'minimoe[babel]'")
    record = harness.as_record(outcome)
    assert "translation" not in record["details"]["found"] and len(record["tables"]) == 4
    last = record["claims"][-1]
    assert last["holds"] is None and last["measured"].endswith("pip install 'minimoe[babel]'")


# -- Chains and gates ----------------------------------------------------------------------------

def test_a_run_of_chains_is_the_same_again_and_counts_who_was_taken():
    case = OnChains(Recipe(steps=3, aux_weight=0.01, watch=0, held_out=2), n_groups=64)
    one, again = (experiment.on_chains(Settings(), case) for _ in range(2))
    assert one.measures == again.measures and one.shares.sum() == pytest.approx(1)
    roomy = experiment.on_chains(Settings(), case._replace(capacity_factor=8.0)).measures
    assert one.measures["lost"] > roomy["lost"] == 0
    assert one.measures["second"] < roomy["second"] < 1
    every = case._replace(capacity_factor=8.0, counter="all second choices")
    assert experiment.on_chains(Settings(), every).measures["second"] == 1


def test_random_logits_do_what_a_second_program_found(rng):
    for sigma, expected in experiment.EXPECTED.items():
        found = experiment.gates_alone(rng, sigma, 40)
        np.testing.assert_allclose(found[:-1], expected, atol=0.01)
        assert found[-1] == 0


def test_overflow_is_simulated_as_it_is_expected(rng):
    found = experiment.overflow(rng, 64, 8, 2000)
    assert found[1.0].exact == pytest.approx(0.13055, abs=5e-6)
    assert all(experiment.deviations(entry) < 4 for entry in found.values())


# -- Translation ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    params = gshard.transformer_init(rng, 40, 30, 2, 16, 2, 8, 16, 4)
    source = rng.integers(1, 40, (20, 11))
    source[:, 7:] = language_names.PADDING
    return params, source


def test_what_is_said_is_the_likeliest_given_itself_and_ends_once(model):
    params, source = model
    params = params._replace(w_logits=params.w_logits * (1 + 2 * (np.arange(30) == 1)))   # more END
    said = experiment.likeliest(Settings(), params, source)
    ends = (said == language_names.END).sum(axis=1)
    assert ends.max() == 1 and 3 < ends.sum()
    after = np.maximum.accumulate(said == language_names.END, axis=1) & (said != language_names.END)
    assert ((said == language_names.PADDING) == after).all()
    out, _ = experiment.translate(Settings(), params, experiment.Words(source, said),
                                  **experiment.ROOM)
    spoken = said != language_names.PADDING
    assert (1 + out.logits[..., 1:].argmax(axis=-1) == said)[spoken].all()


def test_padding_costs_nothing_and_columns_of_it_are_dropped(model, rng):
    params, source = model
    target = rng.integers(2, 30, (20, 11))
    target[:, 5] = language_names.END
    target[:, 6:] = language_names.PADDING
    target[:10, 3:] = language_names.PADDING
    words = experiment.Words(source, target)
    short = experiment.without_empty_columns(words)
    assert short.source.shape == (20, 7) and short.target.shape == (20, 6)
    losses = [float(experiment.translate(Settings(), params, w, **experiment.ROOM)[1])
              for w in (words, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_letters_of_a_language_by_expert():
    # two words of the first language, one of the second: 2 + 1 letters, and 2, with the language
    source = np.array([[1, 30, 31], [1, 30, 0], [2, 31, 30]])
    expert = np.array([[0, 0, 1], [1, 1, 3], [2, 0, 2]]).reshape(9, 1)
    keep = np.ones((9, 1), bool)
    keep[4] = False
    routing, used = next(experiment.letters([Routing(expert, None, keep, None)],
                                            experiment.Words(source, source)))
    assert used.tolist() == [True] * 5 + [False] + [True] * 3
    assert experiment.taken(routing)[used].mean() == 7 / 8
    shares = experiment.language_by_expert(routing, used, source, 4)
    assert shares[:2].tolist() == [[0.4, 0.6, 0, 0], pytest.approx([1 / 3, 0, 2 / 3, 0])]
    assert not shares[2:].any()


def test_a_translator_is_the_same_again_and_dense_ones_have_no_load():
    case = Translation(4, steps=2, watch=1, held_out=20, batch=8)
    one, again = (experiment.on_translation(Settings(), case) for _ in range(2))
    assert one.measures == again.measures and one.words == again.words
    assert one.shares.shape == (2, 4) and np.allclose(one.shares.sum(axis=1), 1)
    assert one.steps.tolist() == [0, 1, 2] and one.curve[-1] == one.measures["cross_entropy"]
    dense = experiment.on_translation(Settings(), case._replace(n_experts=1))
    assert dense.shares is None and "cv" not in dense.measures
    assert dense.words[3][:3] == one.words[3][:3]


# -- Judgement -----------------------------------------------------------------------------------

def findings():
    """What would be found if all claims held comfortably."""
    def row(**measures):
        return {name: value + np.array([-0.001, 0, 0.001]) for name, value in measures.items()}

    def translator(entropy, wrong, cv=0.3, largest=1.5, starved=0.0):
        return row(cross_entropy=entropy, wrong=wrong, cv=cv, largest=largest, starved=starved)

    def exactly(S, E):
        return {factor: Overflow(exact, exact, 0.1 * exact) for factor in experiment.FACTORS
                for exact in [gshard.expected_overflow(S, E, int(factor * S / E))]}

    return {
        "experts": {E: row(excess=excess)
                    for E, excess in zip(EXPERTS, (0.51, 0.32, 0.21, 0.15, 0.12))},
        "speed": {8: np.array([3.2, 3.4, 3.6]), 16: np.array([4.1, 4.2, 4.3])},
        "balance": {0.0: row(starved=0.18, excess=0.33),
                    experiment.AUX_WEIGHT: {"starved": np.zeros(3), "excess": np.full(3, 0.28)}},
        "groups": {G: {"lost": np.full(3, lost), "second": np.full(3, second),
                       "excess": np.full(3, excess)}
                   for G, lost, second, excess in [(1, 0, .34, .232), (4, 0, .32, .232),
                                                   (16, .002, .27, .234), (64, .03, .23, .285)]},
        "gates": {sigma: np.array([*expected, 0.0])
                  for sigma, expected in experiment.EXPECTED.items()},
        "overflow": {crowd: exactly(*crowd) for crowd in experiment.CROWDS},
        "translation": {1: translator(0.7, 0.7), 4: translator(0.6, 0.65),
                        16: translator(0.5, 0.55, 0.5, 2.2, 0.02),
                        NO_LOSS: translator(0.6, 0.6, 1.0, 3.7, 0.12)}}


def verdicts(found):
    return [claim.holds for judge in (experiment.judged_chains(found),
                                      experiment.judged_gates(found),
                                      experiment.judged_translation(found["translation"]))
            for claim in judge]


def test_claims_hold_on_findings_that_bear_them_out():
    assert verdicts(findings()) == [True] * 9


@pytest.mark.parametrize("claim, place, value", [
    (0, ("experts", 16, "excess"), 0.151),                      # worse than 8
    (0, ("experts", 4, "excess"), 0.25),                        # gains .07, then .10
    (0, ("experts", 8, "excess"), 0.206),                       # 0.404 of the dense model's
    (1, ("speed", 8), np.array([3.2, 2.4, 3.6])),
    (1, ("speed", 8), np.array([3.2, np.nan, 3.6])),            # never got there
    (2, ("balance", experiment.AUX_WEIGHT, "starved"), 0.03),
    (2, ("balance", 0.0, "starved"), 0.0),
    (2, ("balance", experiment.AUX_WEIGHT, "excess"), 0.34),
    (3, ("groups", 4, "lost"), 0.001),
    (3, ("groups", 16, "second"), 0.33),
    (4, ("groups", 64, "lost"), 0.019),
    (4, ("groups", 64, "excess"), 0.26),
    (5, ("gates", 1.0, 2), 0.72),
    (5, ("gates", 3.0, 7), 0.001),
    (6, ("overflow", (64, 8), 1.0), Overflow(0.13, 0.15, 0.004)),        # 5 standard errors
    (6, ("overflow", (256, 8), 1.25), Overflow(0.005, 0.0, 0.0)),
    (7, ("translation", 4, "cross_entropy"), 0.71),
    (7, ("translation", 16, "wrong"), 0.66),
    (8, ("translation", 16, "cv"), 1.1),
    (8, ("translation", NO_LOSS, "largest"), 2.1),
    (8, ("translation", NO_LOSS, "starved"), 0.01)])
def test_a_finding_against_a_claim_makes_it_unmet(claim, place, value):
    found = findings()
    part = found
    for key in place[:-1]:
        part = part[key]
    was = part[place[-1]]
    spoils_all = isinstance(was, np.ndarray) and np.ndim(value) == 0
    part[place[-1]] = np.full(was.shape, value) if spoils_all else value
    expected = [True] * 9
    expected[claim] = False
    assert verdicts(found) == expected


def test_two_simulations_beyond_three_errors_are_one_too_many():
    found = findings()
    for crowd, number in [((64, 8), 1), ((256, 8), 2)]:
        exact = found["overflow"][crowd][1.0].exact
        found["overflow"][crowd][1.0] = Overflow(exact, 1.35 * exact, 0.1 * exact)
        assert verdicts(found)[6] is (number == 1)


def test_speed_ups_by_hand():
    def run(curve):
        return experiment.OfChains({}, np.array([0, 100, 200]), np.array(curve), None)

    runs = {("experts", 1, 0): run([3, 2, 1]), ("experts", 8, 0): run([3, 0.9, 0.5]),
            ("experts", 1, 1): run([3, 2, 1]), ("experts", 8, 1): run([3, 2, 1.1])}
    np.testing.assert_array_equal(experiment.speed_ups(runs, 8), [2, np.nan])


def test_einsums_agree_and_cost_an_eighth():
    layer, einsums, ratio = experiment.both_ways()
    np.testing.assert_allclose(layer, einsums, rtol=1e-12, atol=1e-14)
    assert ratio == 0.125
    assert tree.leaves(experiment.recorded(OnChains(Recipe())))
