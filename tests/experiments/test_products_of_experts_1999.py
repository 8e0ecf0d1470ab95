"""The experiment on products of experts: its parts, its judgement, and a quick run of all of it."""
import numpy as np
import pytest

from minimoe import tree
from minimoe.data.digits import digits
from minimoe.experiments import (
    boltzmann_machines, harness, products_of_experts_1999 as experiment, unigauss_grid)
from minimoe.experiments.harness import Settings
from minimoe.papers import products_of_experts_1999 as paper

PAPER = "products_of_experts_1999"
HERE = Settings(seed=0)


@pytest.fixture(scope="module")
def quick():
    return harness.conduct(PAPER, Settings(seed=0, quick=True))


# -- Unigauss experts on the grid ----------------------------------------------------------------

def test_the_grid_lacks_one_of_25_clusters(rng):
    x = np.concatenate([unigauss_grid.points(rng) for _ in range(5)])
    nearest = np.round(6 * x).astype(int)
    assert abs(6 * x - nearest).max() < 0.25           # 6 SD of the noise
    assert set(map(tuple, nearest)) == {(i, j) for i in range(1, 6) for j in range(1, 6)} - {(2, 3)}
    assert 1400 < len(x) < 1480                        # 1500 less a twenty-fifth


def strips():
    """A perfect product: 10 strips of SD 0.005, 5 along each axis, all pi of nearly 1."""
    place = np.arange(1, 6) / 6
    mu = np.concatenate([np.stack([place, 0 * place + 0.5], axis=1),
                         np.stack([0 * place + 0.5, place], axis=1)])
    sd = np.concatenate([np.tile([0.005, 10.0], (5, 1)), np.tile([10.0, 0.005], (5, 1))])
    return paper.UnigaussParams(np.full(10, 5.0), mu, -2 * np.log(sd))


def test_the_score_of_a_perfect_product():
    params = strips()
    assert unigauss_grid.thin(params).tolist() == [5, 5]
    log_p, log_z = unigauss_grid.on_grid(HERE, params)
    area = unigauss_grid.RESOLUTION ** -2
    assert np.exp(log_p).sum() * area == pytest.approx(1)
    assert unigauss_grid.mass_missing(log_p) == pytest.approx(1 / 25, rel=0.05)
    x = np.array([[1 / 6, 3 / 6], [1 / 3, 1 / 2]])     # rows are x2, columns x1
    at = [log_p[tuple((unigauss_grid.RESOLUTION * point).astype(int)[::-1])] for point in x]
    direct = paper.unigauss_log_density(params, x).sum(axis=-1) - log_z
    np.testing.assert_allclose(at, direct, atol=0.02)  # cells are a fifth of the SD wide


def test_thin_experts_are_oblong():
    params = strips()
    round_ones = params._replace(log_tau=params.log_tau * 0 - 2 * np.log(0.005))
    assert unigauss_grid.thin(round_ones).tolist() == [0, 0]
    wide = params._replace(log_tau=params.log_tau - 2 * np.log(3))     # SD 0.015
    assert unigauss_grid.thin(wide).tolist() == [0, 0]


def test_a_mixture_is_fitted(rng):
    x = unigauss_grid.points(rng)
    mixture = unigauss_grid.fit_mixture(rng, x, starts=2, steps=40)
    assert np.exp(mixture.log_weights).sum() == pytest.approx(1)
    before = unigauss_grid.fit_mixture(np.random.default_rng(1), x, starts=1, steps=5)
    after = unigauss_grid.fit_mixture(np.random.default_rng(1), x, starts=1, steps=6)
    scores = [unigauss_grid.mixture_log_density(m, x).mean() for m in (before, after, mixture)]
    assert scores[0] < scores[1] and scores[2] > 2     # EM climbs
    middle = np.array([[1 / 6, 1 / 6], [0.4, 0.4]])
    h = np.exp(unigauss_grid.mixture_log_joint(mixture, middle)).sum(axis=1)
    np.testing.assert_allclose(np.log(h), unigauss_grid.mixture_log_density(mixture, middle))


# -- Boltzmann machines --------------------------------------------------------------------------

def test_a_step_against_the_gradient_makes_it_worse(rng):
    def falls(rate):
        return boltzmann_machines.learning_steps(HERE, np.random.default_rng(0), 10, 1.0, rate)

    for better, worse in zip(falls(1e-3).values(), falls(-1e-3).values()):
        assert (better > 0).all() and (worse < 0).all()


def test_cosines_of_a_known_angle(rng):
    a = (np.array([[3.0], [1.0]]), np.array([[[0.0]], [[1.0]]]))
    b = (np.array([[1.0], [1.0]]), np.array([[[1.0]], [[1.0]]]))
    np.testing.assert_allclose(boltzmann_machines.cosine(a, b), [0.5 ** 0.5, 1.0])


def test_sampled_cosines_near_the_expected_ones(rng):
    found = boltzmann_machines.cosines(HERE, rng, machines=3, ks=(1, 3), chains=400)
    assert found["sampled"].shape == found["expected"].shape == (2, 3)
    np.testing.assert_allclose(found["sampled"], found["expected"], atol=0.01)
    assert (found["expected"][0] < found["expected"][1]).all()


def test_bars_and_stripes():
    patterns = boltzmann_machines.patterns()
    assert patterns.shape == (14, 9)
    for picture in patterns.reshape(-1, 3, 3):
        assert (picture == picture[:1]).all() or (picture == picture[:, :1]).all()


@pytest.mark.parametrize("method", experiment.METHODS.values())
def test_every_method_learns_bars_and_stripes(rng, method):
    found = boltzmann_machines.bars_and_stripes(HERE, rng, method, machines=2, updates=1600,
                                                watch=800)
    assert list(found) == [0, 800, 1600]
    np.testing.assert_allclose(found[0], -9 * np.log(2), atol=0.01)
    assert (found[1600] > -5.0).all()


def test_annealing_of_digits(rng):
    found = boltzmann_machines.annealing(HERE, rng, n_hidden=6, epochs=2, lengths=(50, 200))
    assert abs(found["estimates"] - found["log_partition"]).max() < 0.3
    v = digits().image > 0.5
    p = np.clip(v.mean(axis=0), 0.01, 0.99)
    independent = np.where(v, np.log(p), np.log(1 - p)).sum(axis=1).mean()
    assert found["independent_pixels"] == pytest.approx(independent)


def test_class_machines_prefer_their_class(rng):
    data = digits()
    params = boltzmann_machines.class_machines(HERE, rng, data, epochs=15)
    assert params.w.shape == (10, 64, 50)
    gap = [paper.free_energy(tree.map(lambda p: p[digit], params), data.image) for digit in (0, 1)]
    easier = gap[1] - gap[0]
    assert easier[data.label == 0].mean() > easier[data.label == 1].mean() + 20


def test_the_read_out_is_at_its_minimum(rng):
    x, label = rng.standard_normal((60, 4)), rng.integers(0, 10, 60)
    found = boltzmann_machines.read_out(x, label, x)
    again = boltzmann_machines.read_out(x, label, x, steps=6000)
    assert (found == again).all()
    easy = np.eye(10)[label]
    assert (boltzmann_machines.read_out(easy, label, easy) == label).all()


def test_annealed_log_z_is_that_of_the_enumeration(rng):
    params = paper.RBMParams(rng.standard_normal((6, 4)), rng.standard_normal(6),
                             rng.standard_normal(4))
    found = boltzmann_machines.annealed(HERE, rng, params, params.a, steps=200)
    assert float(found.log_partition) == pytest.approx(float(paper.log_partition(params)), abs=0.1)


def test_training_is_the_same_on_the_other_library(cupy):
    """The strict twin: what is learnt there is what is learnt here."""
    def everything(settings):
        rng = np.random.default_rng(0)
        grid = unigauss_grid.train(settings, rng, unigauss_grid.points(rng), {2: 2})
        return [grid[0], grid[1],
                boltzmann_machines.learning_steps(settings, rng, 3, 1.0),
                boltzmann_machines.cosines(settings, rng, 2, (1, 2), 2),
                [boltzmann_machines.bars_and_stripes(settings, rng, method, 2, 4, watch=2)
                 for method in experiment.METHODS.values()],
                boltzmann_machines.annealing(settings, rng, 4, 1, (5, 10)),
                boltzmann_machines.digit_scores(settings, rng, epochs=1, steps=5),
                boltzmann_machines.features(settings, rng, epochs=1, n_hidden=10)]

    tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9),
             everything(HERE), everything(Settings(backend="cupy")))


# -- Judgement -----------------------------------------------------------------------------------

def findings():
    """What would be found if every claim held to the letter."""
    def start(score):
        return unigauss_grid.Study(
            None, None, np.array([1.0, 2.0, 3.0, score]), np.array([0.1, 0.1, 0.05, 0.03]),
            np.array([5, 5]), None, None, 3.0, 1e-9, None)

    return {
        "steps": [{"contrastive_divergence": np.full(200, 1e-3),
                   "relative_entropy": np.full(200, 1e-3)}] * 3,
        "cosines": [{"divergence": np.full(40, 0.95), "opposed": 0.03,
                     "expected": np.linspace(0.98, 1, 7)[:, None] * np.ones(40),
                     "sampled": np.ones((7, 40))}],
        "grid": [start(3.6), start(3.8), start(3.7)],
        "bars": [{0: np.full(3, -6.0), 50: np.full(3, end)} for end in (-2.84, -2.85, -3.21, -3.1)],
        "annealing": [{"log_partition": 50.0, "estimates": np.array([50.3, 50.1, 50.0]),
                       "effective": np.ones(3), "log_likelihood": -20.0,
                       "independent_pixels": -24.0} for _ in range(2)],
        "digits": [{"raw": 0.8, "normalised": 0.98, "scores": 0.98, "pixels": 0.95,
                    "nearest": 0.98} for _ in range(3)],
        "features": [{"on": 0.3}]}


def verdicts(found):
    return [claim.holds for claim in experiment.judged(found)]


def test_claims_hold_on_findings_that_are_as_they_say():
    assert verdicts(findings()) == [True] * 9
    assert all(claim.holds is None for claim in experiment.reported(findings()))


def spoilt(study, place, **changes):
    found = findings()
    part = found[study][place]
    if study == "bars":
        part = {0: part[0], 50: np.full(3, changes["end"])}
    else:
        part = part._replace(**changes) if study == "grid" else {**part, **changes}
    found[study][place] = part
    return found


@pytest.mark.parametrize("claim, found", [
    (0, spoilt("steps", 0, contrastive_divergence=np.repeat([1.0, -1.0], [197, 3]))),
    (0, spoilt("steps", 0, relative_entropy=np.repeat([1.0, -1.0], [195, 5]))),
    (1, spoilt("cosines", 0, divergence=np.array([0.99, 0.89]))),
    (2, spoilt("cosines", 0, expected=np.linspace(1, 0.995, 7)[:, None] * np.ones(40))),
    (2, spoilt("cosines", 0, expected=np.linspace(0.5, 0.98, 7)[:, None] * np.ones(40))),
    (3, spoilt("grid", 1, thin=np.array([4, 6]))),
    (3, spoilt("grid", 1, thin=np.array([5, 4]))),
    (4, spoilt("grid", 0, score=np.array([3.1, 3.2, 3.1, 3.0]))),
    (5, spoilt("grid", 1, missing=np.array([0.03, 0.07]))),
    (5, spoilt("grid", 1, missing=np.array([0.03, 0.004]))),
    (6, spoilt("bars", 1, end=-2.95)),
    (6, spoilt("bars", 2, end=-3.0)),
    (7, spoilt("annealing", 1, estimates=np.array([50.0, 50.2, 50.0]))),
    (7, spoilt("annealing", 0, log_likelihood=-25.0)),
    (8, spoilt("digits", 2, scores=0.959)),
    (8, spoilt("digits", 0, pixels=1.0))])
def test_a_finding_against_a_claim_makes_it_unmet(claim, found):
    expected = [True] * 9
    expected[claim] = False
    assert verdicts(found) == expected


def test_too_low_a_score_is_unmet_and_another_start_may_be_the_best():
    found = findings()
    found["grid"] = [start._replace(score=start.score - 0.4) for start in found["grid"]]
    assert verdicts(found)[3] is False
    found = spoilt("grid", 0, thin=np.array([2, 3]))       # not of the best start
    assert verdicts(found)[3] is True


def test_scores_that_could_be_compared_as_they_are_are_unmet():
    found = findings()
    found["digits"] = [{**split, "raw": 0.91} for split in found["digits"]]
    assert verdicts(found)[8] is False


# -- A quick run ---------------------------------------------------------------------------------

def test_a_quick_run_measures_everything_and_judges_nothing(quick):
    record = harness.as_record(quick)
    assert [claim["holds"] for claim in record["claims"]] == [None] * 14
    details = record["details"]
    assert len(details["cosines"]["expected"]) == len(details["cosines"]["ks"]) == 7
    assert set(details["bars"]) == set(experiment.METHODS)
    assert set(details["digits"][0]) == set(experiment.READERS)
    assert [len(table["rows"]) for table in record["tables"]] == [1, 3, 7, 4, 2, 5]
    assert len(quick.result.figure.axes) == 9


def test_its_figure_is_drawn(quick, tmp_path):
    figure, _ = harness.write(quick, tmp_path)
    assert figure.stat().st_size > 100_000


def test_the_same_seed_gives_the_same_parts(quick):
    """Of the record of a quick run, computed again by themselves."""
    planned = experiment.plan(quick=True)
    parts = [part for several in planned.values() for part in several]
    rngs = np.random.default_rng(0).spawn(len(parts))
    names = [name for name, several in planned.items() for _ in several]
    place = names.index("annealing")
    again = experiment.one(HERE, (*parts[place], rngs[place]))
    recorded = quick.result.details["annealing"][0]
    tree.map(np.testing.assert_array_equal, again, recorded)
