"""The MMoE experiment: what it trains and measures, its judgement, quick runs of both its parts."""
import gzip
import json

import numpy as np
import pytest

from minimoe import tree
from minimoe.data.census_income import COLLEGE, FIELDS, NUMERIC
from minimoe.experiments import harness, mmoe_2018 as experiment
from minimoe.experiments.harness import DataError, Settings
from minimoe.experiments.mmoe_2018 import (
    BOTTOM, COSINES, MMOE, MODELS, NARROW, OMOE, PAPERS, PEARSON, SINGLE, Case, CensusCase)
from minimoe.papers import mmoe_2018 as paper

PAPER = "mmoe_2018"
QUICK = Settings(seed=0, quick=True)
SMALL = NARROW._replace(steps=3, runs=3)


# -- What is trained -----------------------------------------------------------------------------

def test_the_paper_itself_trained_run_by_run_is_the_batched_array():
    """Two runs side by side, and each alone from the same start on the same data."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3, 2, 8, 10), "f"), rng.standard_normal((3, 2, 2, 8), "f")
    for model in MODELS:
        runs = [experiment.init(model, rng, 2, 10, 4) for _ in range(2)]
        params = experiment.stacked(runs)
        side_by_side = experiment.Training(params, experiment.adam_init(params))
        alone = [experiment.Training(params, experiment.adam_init(params)) for params in runs]
        for i in range(3):
            side_by_side, loss = experiment.step(model, side_by_side, x[i], y[i],
                                                 paper.squared_errors, 1e-2)
            for run in range(2):
                alone[run], own = experiment.step(model, alone[run], x[i, run], y[i, run],
                                                  paper.squared_errors, 1e-2)
                assert own == pytest.approx(loss[run], rel=1e-5)
        for both, *each in zip(*(tree.leaves(t.params) for t in (side_by_side, *alone))):
            assert both.dtype == "float32"
            np.testing.assert_allclose(both, np.stack(each), rtol=2e-4, atol=2e-6)


def test_models_have_as_many_parameters_by_the_papers_count():
    rng = np.random.default_rng(0)
    for size, width in ((NARROW, 15), (PAPERS, 113)):
        bottom = experiment.init(BOTTOM, rng, 2, size.width, size.hidden)
        assert bottom.bottom[0].w.shape == (1, size.width, width)
        moe = experiment.init(MMOE, rng, 2, size.width, size.hidden)
        assert moe.experts[0].w.shape == (8, size.width, size.hidden)
        assert len(moe.w_gate) == 2
        assert len(experiment.init(OMOE, rng, 2, size.width, size.hidden).w_gate) == 1


def test_training_lowers_the_loss_and_correlations_share_draws():
    before = experiment.trained(QUICK, Case(SMALL, 1.0))
    after = experiment.trained(QUICK, Case(SMALL._replace(steps=150), 1.0))
    for model in MODELS:
        assert after.loss[model].shape == (3,)
        assert after.loss[model].mean() < 0.6 * before.loss[model].mean()
        assert len(after.curve[model]) == 3 and after.curve[model][-1] < after.curve[model][0]
        assert after.loss[model].mean() == pytest.approx(after.curve[model][-1], rel=.4)
    other = experiment.trained(QUICK, Case(SMALL, 0.9))
    assert other.loss[MMOE] == pytest.approx(before.loss[MMOE], rel=.2)
    assert (other.loss[MMOE] != before.loss[MMOE]).all()
    assert 0 < before.overlap.min() and before.overlap.max() < 1 + 1e-6
    again = experiment.trained(QUICK._replace(seed=1), Case(SMALL, 1.0))
    assert (again.loss[MMOE] != before.loss[MMOE]).all()


def test_a_run_is_the_same_on_the_other_library(cupy):
    here = experiment.trained(QUICK, Case(SMALL, 0.5))
    there = experiment.trained(QUICK._replace(backend="cupy"), Case(SMALL, 0.5))
    for a, b in zip(tree.leaves(here), tree.leaves(there)):
        np.testing.assert_allclose(a, b, rtol=1e-4)


# -- What is measured ----------------------------------------------------------------------------

def test_entropy_windows_and_auc_by_hand():
    gates = np.array([[[[.5, .5], [1, 0]]]])                           # [R, K, B, E]
    assert experiment.entropy(gates).tolist() == pytest.approx([.5])
    assert len(experiment.windows(range(120))) == 2
    assert experiment.windows([1, 3]).tolist() == [2]
    # pairs (true, false): 3 > 1, 3 > 2, 2 > 1, and 2 = 2 counts half: 3.5 of 4
    score, label = np.array([3, 1, 2, 2.0]), np.array([True, False, True, False])
    assert experiment.auc(score, label) == .875
    assert experiment.auc(0 * score, label) == .5
    assert experiment.auc(-score, label) == .125


def test_auc_is_a_count_of_pairs():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 9, 200) / 8, rng.random(200) < .3
    pairs = np.sign(score[label][:, None] - score[~label])
    assert experiment.auc(score, label) == pytest.approx((pairs.mean() + 1) / 2)
    for one_class in (np.ones(200, bool), np.zeros(200, bool)):
        with pytest.raises(ValueError, match="auc: needs cases of both labels"):
            experiment.auc(score, one_class)


def test_identities_are_exact():
    off, sizes = experiment.identities()
    assert off < 1e-14 and sizes == (113, 14818)


# -- Judgement -----------------------------------------------------------------------------------

def findings(**changes):
    """Losses as they would be if the claims held, but for ``changes``; and correlations."""
    means = {"narrow omoe 0.5": .036, "narrow omoe 1": .019, "narrow mmoe 0.5": .021,
             "narrow mmoe 1": .016, "papers omoe": .008, "papers mmoe": .0075}
    deviations = {"narrow omoe SD": .011, "narrow mmoe SD": .006, "papers omoe SD": .001,
                  "papers mmoe SD": .001}
    means |= {key: value for key, value in changes.items() if key in means}
    deviations |= {key: value for key, value in changes.items() if key in deviations}
    spread = np.array([-1, 0, 1.0])

    def of(size, p):
        if size == PAPERS.name:
            loss = {BOTTOM: .01 + .0025 * spread, **{
                model: means[f"papers {name}"] + deviations[f"papers {name} SD"] * spread
                for model, name in ((OMOE, "omoe"), (MMOE, "mmoe"))}}
        else:
            loss = {BOTTOM: .02 + .005 * spread, **{
                model: means[f"narrow {name} {min(p, .5) if p < 1 else 1:g}"]
                + deviations[f"narrow {name} SD"] * spread
                for model, name in ((OMOE, "omoe"), (MMOE, "mmoe"))}}
        return experiment.Found(loss, {model: np.linspace(1, .1, 4) for model in MODELS},
                                {OMOE: spread * 0 + .5, MMOE: spread * 0 + .5}, spread * 0 + .5)

    found = {size.name: {p: of(size.name, p) for p in size.correlations}
             for size in (PAPERS, NARROW)}
    pearson = {m: np.array(row)[:, None] + [[-.01, .01]] for m, row in PEARSON.items()}
    pearson[changes.get("m", 4)][changes.get("place", 0)] += changes.get("pearson", 0)
    return found, pearson


def verdicts(**changes):
    return [claim.holds for claim in experiment.judged(*findings(**changes))]


def test_claims_hold_on_such_findings():
    assert verdicts() == [True] * 7


@pytest.mark.parametrize("changes, unmet", [
    ({"narrow mmoe 0.5": .027}, [0, 1]),       # 1.33 at p = 0.5; and it costs MMoE 1.69
    ({"narrow mmoe 1": .0135}, [0]),           # 1.41 at p = 1
    ({"narrow omoe 1": .0245, "narrow mmoe 1": .018}, [1]),
    ({"narrow mmoe 1": .014, "narrow omoe 0.5": .045, "narrow mmoe 0.5": .023}, [1]),
    ({"narrow mmoe SD": .012}, [2]), ({"papers omoe": .0091}, [3]), ({"papers mmoe": .0092}, [3]),
    ({"papers omoe SD": .0018}, [4]), ({"papers mmoe SD": .0018}, [4]), ({"pearson": .04}, [5]),
    ({"m": 2, "place": 3, "pearson": -.04}, [5])])
def test_a_finding_against_a_claim_makes_it_unmet(changes, unmet):
    assert [i for i, holds in enumerate(verdicts(**changes)) if not holds] == unmet


# -- Quick runs ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, QUICK)


def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = json.loads(json.dumps(harness.as_record(quick), allow_nan=False))
    assert [claim["holds"] for claim in record["claims"]] == [None] * 11
    assert len(record["tables"]) == 4 and len(quick.result.figure.axes) == 4
    found = record["details"]["found"]
    assert set(found["narrow"]) == {"0.5", "0.9", "1.0"}
    assert set(found["the paper's"]["0.5"]["loss"]) == set(MODELS)
    assert len(record["details"]["pearson"]["4"]) == len(COSINES)


def test_the_same_seed_gives_the_same_record(quick):
    again = harness.conduct(PAPER, QUICK)
    assert {**harness.as_record(again), "seconds": 0} == {**harness.as_record(quick), "seconds": 0}


# -- Census --------------------------------------------------------------------------------------

def rows(n, seed=0):
    """Made-up rows: who has more weeks of work earns more; children have never been married."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        child, weeks = rng.random() < .4, rng.integers(0, 53)
        values = dict.fromkeys(FIELDS, "?") | dict.fromkeys(NUMERIC, "0") | {
            "weeks worked": str(weeks), "sex": rng.choice(["Female", "Male"]),
            "tax filer status": "Nonfiler" if child else "Single",
            "education": COLLEGE[0] if rng.random() < .3 else "Children",
            "marital status": "Never married" if child else "Widowed"}
        yield ", ".join([*values.values(), "50000+." if weeks + rng.normal(0, 9) > 35
                         else "- 50000."])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("census") / "census.gz"
    path.write_bytes(gzip.compress("\n".join(rows(900)).encode()))
    return str(path)


@pytest.fixture(scope="module")
def census(file):
    return experiment.census_income.read(file)


def test_rows_held_out_are_a_third_and_inputs_are_standardised_by_the_others(census):
    train, held_out = experiment.split(QUICK, census)
    assert len(held_out) == 300 and sorted([*train, *held_out]) == list(range(900))
    inputs = experiment.Inputs(census, train)
    x = inputs(train)
    weeks = NUMERIC.index("weeks worked")
    assert x.dtype == "float32" and x.shape == (600, inputs.width)
    assert x[:, weeks].mean() == pytest.approx(0, abs=1e-5)
    assert x[:, weeks].std() == pytest.approx(1, abs=1e-5)
    assert inputs.width == 7 + sum(map(len, census.levels))
    assert (x[:, 7:].sum(axis=1) == len(census.levels)).all()          # one 1 for each field
    np.testing.assert_array_equal(inputs(train[:6].reshape(2, 3)), x[:6].reshape(2, 3, -1))


def test_models_learn_what_can_be_learnt(census):
    for model, tasks in ((MMOE, ("income", "never_married")), (SINGLE, ("never_married",))):
        found = experiment.trained_on_census(QUICK, CensusCase(model, tasks, census, 60, 2))
        assert found.shape == (len(tasks), 2)
        assert found[-1].min() > .99
        assert .8 < found[0].min()


def test_a_quick_run_on_a_file(file):
    outcome = harness.conduct(PAPER, QUICK._replace(data=file))
    record = json.loads(json.dumps(harness.as_record(outcome), allow_nan=False))
    assert [claim["holds"] for claim in record["claims"]] == [None] * 5
    assert record["details"]["rows"] == 900 and record["settings"]["data"] == file
    assert np.array(record["details"]["auc"]["group 1"][MMOE]).shape == (2, 2)
    assert len(record["tables"]) == 2 and len(outcome.result.figure.axes) == 4


def test_label_correlations_are_judged():
    auc = {group: {model: np.full((2, 3), .9) for model in (SINGLE, *MODELS)}
           for group in experiment.GROUPS}

    def holds(first, second):
        return next(experiment.of_census(auc, {"group 1": first, "group 2": second})).holds

    assert holds(-.18, -.24) and not holds(-.15, -.24) and not holds(-.18, .30)


def test_a_file_of_too_few_rows_is_refused(tmp_path):
    path = tmp_path / "census"
    path.write_text("\n".join(rows(3)))
    with pytest.raises(DataError, match="needs more rows than 3"):
        harness.conduct(PAPER, QUICK._replace(data=str(path)))
    path.write_text("nothing")
    with pytest.raises(DataError, match="census_income: line 1 needs 42 fields"):
        harness.conduct(PAPER, QUICK._replace(data=str(path)))
