import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mpmath import mpf

from minimoe import densities, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.oracle.runs import read_arrays

RECORDED = Path(__file__).resolve().parents[1] / "reference_runs" / "recorded" / "densities"
CASES = sorted(path.stem for path in RECORDED.glob("*.npz"))


# -- Recorded runs -------------------------------------------------------------------------------

def mixture(x, mean, log_variance, logits):
    log_weights = ops.log_softmax(logits)[:, None]                     # [M, 1]
    return densities.mixture_log_density(
        densities.gaussian_log_density(x, mean, log_variance), log_weights)


def product(mean, log_variance, log_weight):
    mean, log_variance = densities.product_of_gaussians(mean, log_variance, log_weight)
    return ops.stack([mean, ops.exp(log_variance)])


FUNCTIONS = {
    "gaussian": densities.gaussian_log_density, "laplace": densities.laplace_log_density,
    "bernoulli": densities.bernoulli_log_density, "categorical": densities.categorical_log_density,
    "mixture": mixture, "laplace_sample": densities.laplace_sample,
    "gaussian_kl": densities.gaussian_kl, "laplace_kl": densities.laplace_kl,
    "bernoulli_kl": densities.bernoulli_kl, "categorical_kl": densities.categorical_kl,
    "product": product, "log_normalizer": densities.log_normalizer_of_gaussians,
}


@pytest.mark.numpy_only("computes nothing")
def test_every_function_that_is_recorded_is_here():
    assert set(CASES) == set(FUNCTIONS)


@pytest.mark.parametrize("case", CASES)
def test_a_density_is_that_of_torch(case, move):
    given = move(read_arrays(RECORDED / f"{case}.npz"))
    arguments = {key.removeprefix("in."): a for key, a in given.items()
                 if key.startswith("in.") and key != "in.cotangent"}
    tensors = {name: Tensor(a) for name, a in arguments.items() if f"out.grad.{name}" in given}
    y = FUNCTIONS[case](**{**arguments, **tensors})
    flows = grad((y * given["in.cotangent"]).sum(), tensors)
    for name, found in {"y": y.array, **{f"grad.{name}": g for name, g in flows.items()}}.items():
        expected = to_numpy(given[f"out.{name}"])
        assert abs(to_numpy(found) - expected).max() <= 1e-12 * abs(expected).max(), name


# -- Against scipy.stats, to the extremes --------------------------------------------------------

def test_densities_at_extreme_scales_are_those_of_scipy(move):
    scale = np.array([1e-300, 1e-150, 1e-5, 1.0, 1e5, 1e150, 1e300])
    x = np.array([-3.0, -0.5, 0.0, 2.0])[:, None] * scale
    log_variance = np.array([-700.0, -100.0, -1.0, 0.0, 1.0, 100.0, 700.0])
    at = np.array([-3.0, -0.5, 0.0, 2.0])[:, None] * np.exp(log_variance / 2)
    for found, expected in [
            (densities.laplace_log_density(*move((x, 0 * scale, scale))),
             scipy.stats.laplace.logpdf(x, 0, scale)),
            (densities.gaussian_log_density(*move((at, 0 * log_variance, log_variance))),
             scipy.stats.norm.logpdf(at, 0, np.exp(log_variance / 2)))]:
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13)


def test_coins_and_choices_are_those_of_scipy(move, rng):
    logits = np.array([-700.0, -30.0, -1.0, 0.0, 2.0, 40.0, 700.0])
    for x in (np.zeros(7), np.ones(7)):
        sign = np.where(x == 1, -1.0, 1.0)
        np.testing.assert_allclose(
            to_numpy(densities.bernoulli_log_density(*move((x, logits)))),
            -np.logaddexp(0, sign * logits), rtol=1e-13, atol=1e-300)
    p = rng.dirichlet(np.ones(5), 6)
    label = rng.integers(0, 5, 6)
    found = densities.categorical_log_density(*move((label, np.log(p))))
    expected = scipy.stats.multinomial.logpmf(np.eye(5, dtype=int)[label], 1, p)
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13)


def test_divergences_are_integrals(move):
    """By mpmath's quadrature, of densities written out here."""
    def gaussian(mean, log_variance):
        return lambda z: -((z - mean)**2 * mpmath.exp(-log_variance) + log_variance
                           + mpmath.log(2 * mpmath.pi)) / 2

    def laplace(location, scale):
        return lambda z: -abs(z - location) / scale - mpmath.log(2 * scale)

    for family, function, first, second in [
            (gaussian, densities.gaussian_kl, (0.3, -1.0), (-0.5, 0.7)),
            (gaussian, densities.gaussian_kl, (0.0, 1e-6), (1e-4, 0.0)),
            (laplace, densities.laplace_kl, (1.0, 0.5), (0.0, 2.0)),
            (laplace, densities.laplace_kl, (-0.4, 3.0), (0.1, 0.2))]:
        q, p = family(*map(mpf, first)), family(*map(mpf, second))
        expected = mpmath.quad(lambda z: mpmath.exp(q(z)) * (q(z) - p(z)),
                               [-mpmath.inf, *sorted([-4, first[0], second[0], 4]), mpmath.inf])
        found = function(*move([np.array(a) for a in (*first, *second)]))
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_a_choice_never_made_costs_nothing(move):
    logits, other = np.array([0.0, -np.inf, 0.0]), np.array([0.0, -np.inf, math.log(3)])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(densities.categorical_kl(*move((logits, other)))) == pytest.approx(expected)


def test_an_estimate_of_a_divergence_is_unbiased(move, rng):
    mean, log_variance = move((np.array(0.8), np.array(-0.5)))
    draws = densities.gaussian_sample(mean, log_variance, move(rng.standard_normal(20_000)))
    log_q = densities.gaussian_log_density(draws, mean, log_variance)
    log_p = densities.gaussian_log_density(draws, 0 * mean, 0 * mean)
    exact = float(densities.gaussian_kl(mean, log_variance))
    deviation = float(to_numpy(log_q - log_p).std()) / math.sqrt(20_000)
    assert abs(float(densities.kl_estimate(log_q, log_p)) - exact) < 4 * deviation


# -- Samples -------------------------------------------------------------------------------------

def test_laplace_samples_are_quantiles(move):
    u = np.array([0.0, 1e-300, 0.1, 0.25, 0.5, 0.75, 0.9, 1 - 2**-53])
    found = to_numpy(densities.laplace_sample(*move((np.full(8, 2.0), np.full(8, 0.7), u))))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[1:], scipy.stats.laplace.ppf(u[1:], 2.0, 0.7), rtol=1e-13)
    in_float32 = densities.laplace_sample(*move(
        [a.astype("float32") for a in (np.full(8, 2.0), np.full(8, 0.7), u)]))
    assert in_float32.dtype == "float32" and np.isfinite(to_numpy(in_float32)).all()


def test_parameters_that_are_plain_numbers_leave_float32_as_it_is(move):
    x = move(np.array([0.5, -1.0], np.float32))
    for found in (densities.gaussian_log_density(x, 0.1, 0.7),
                  densities.laplace_log_density(x, 0.1, 0.7),
                  densities.gaussian_kl(0.1, x, x, 0.2), densities.laplace_kl(abs(x), 0.7),
                  densities.gaussian_sample(0.1, 0.7, x),
                  densities.laplace_sample(0.1, 0.7, abs(x) / 2)):
        assert found.dtype == "float32"


# -- Mixtures ------------------------------------------------------------------------------------

def test_a_mixture_multiplies_dimensions_before_it_mixes(move, rng):
    log_densities = rng.standard_normal((3, 5, 2))
    weights = np.array([0.2, 0.5, 0.3])
    expected = np.log(np.einsum("m,mn->n", weights, np.exp(log_densities.sum(axis=-1))))
    found = densities.mixture_log_density(*move((log_densities, np.log(weights)[:, None])))
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13)
    of_each_dimension = np.log(np.einsum("m,mnd->nd", weights, np.exp(log_densities))).sum(axis=-1)
    assert abs(to_numpy(found) - of_each_dimension).min() > 1e-3


def test_a_mixture_far_from_all_components_is_finite(move):
    log_densities = move(np.array([[-1e5, -2e5], [-1e5, -1e5]])[..., None])
    found = to_numpy(densities.mixture_log_density(log_densities))
    np.testing.assert_allclose(found, [-1e5, -1e5 - math.log(2)], rtol=1e-13)


# -- Products ------------------------------------------------------------------------------------

MEAN = np.array([[1.0, -2.0], [3.0, 0.5]])
LOG_VARIANCE = np.log([[0.5, 1.0], [0.25, 4.0]])
LOG_WEIGHT = np.log([[0.3, 0.9], [0.7, 0.1]])


@pytest.mark.parametrize("log_weight, prior, mean, variance", [
    (None, None, [7 / 3, -1.5], [1 / 6, 0.8]),                  # 2 + 4 and 1 + 1/4
    (None, (0.0, 0.0), [2.0, -1.875 / 2.25], [1 / 7, 1 / 2.25]),
    (LOG_WEIGHT, None, [9 / 3.4, -1.7875 / 0.925], [1 / 3.4, 1 / 0.925]),
    (LOG_WEIGHT, (0.0, 0.0), [9 / 4.4, -1.7875 / 1.925], [1 / 4.4, 1 / 1.925]),
    (LOG_WEIGHT, (5.0, math.log(2)), [11.5 / 3.9, 0.7125 / 1.425], [1 / 3.9, 1 / 1.425]),
])
def test_products_by_hand(move, log_weight, prior, mean, variance):
    found = densities.product_of_gaussians(
        *move((MEAN, LOG_VARIANCE)), None if log_weight is None else move(log_weight), prior=prior)
    np.testing.assert_allclose(to_numpy(found[0]), mean, rtol=1e-14)
    np.testing.assert_allclose(np.exp(to_numpy(found[1])), variance, rtol=1e-14)


def test_gradients_of_a_product(move, rng):
    shape = (3, 4, 2)
    given = move([rng.standard_normal(shape) for _ in range(3)])
    present = move(rng.random((3, 4, 1)) < 0.7)
    for function in (densities.product_of_gaussians, densities.log_normalizer_of_gaussians):
        def both(*arguments):
            y = function(*arguments, present=present, prior=(0.5, -0.3))
            return ops.stack(y) if isinstance(y, tuple) else y

        check_vjp(both, *given, rng=rng)


def test_the_integral_of_a_product(move):
    """Of three weighted Gaussians, by quadrature."""
    mean, log_variance, log_weight = [0.3, -1.0, 2.0], [-0.5, 0.4, 1.0], np.log([0.5, 2.0, 1.0])
    expected = mpmath.log(mpmath.quad(
        lambda z: mpmath.exp(sum(
            -w * ((z - m)**2 * mpmath.exp(-v) + v + mpmath.log(2 * mpmath.pi)) / 2
            for m, v, w in zip(mean, log_variance, np.exp(log_weight)))),
        [-mpmath.inf, -2, 0, 2, mpmath.inf]))
    found = densities.log_normalizer_of_gaussians(
        *move([np.array(a)[:, None] for a in (mean, log_variance, log_weight)]))
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-10)


numbers = st.floats(-5, 5)


@given(arrays(float, (3, 2), elements=numbers), arrays(float, (3, 2), elements=numbers),
       st.permutations(range(3)))
def test_a_product_knows_no_order_and_no_absent_expert(move, mean, log_variance, order):
    product = densities.product_of_gaussians
    y = product(*move((mean, log_variance)))
    z = product(*move((mean[order], log_variance[order])))
    present = np.array([True, True, True, False])[:, None]
    padded = np.concatenate([mean, np.full((1, 2), np.nan)])
    others = np.concatenate([log_variance, np.full((1, 2), np.nan)])
    w = product(*move((padded, others)), present=move(present))
    for a, b, c in zip(y, z, w):
        np.testing.assert_allclose(to_numpy(b), to_numpy(a), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(to_numpy(c), to_numpy(a), rtol=1e-15, atol=1e-15)


def test_weights_that_sum_to_one_leave_an_expert_as_it_is(move, rng):
    mean, log_variance = rng.standard_normal((2, 1, 4))
    weights = rng.dirichlet(np.ones(3), 4).T                           # [M, D]
    found = densities.product_of_gaussians(
        *move((np.repeat(mean, 3, axis=0), np.repeat(log_variance, 3, axis=0), np.log(weights))))
    np.testing.assert_allclose(to_numpy(found[0]), mean[0], rtol=1e-13)
    np.testing.assert_allclose(to_numpy(found[1]), log_variance[0], rtol=1e-12)


def test_variances_from_nothing_to_everything(move):
    log_variance = np.array([[-700.0, 700.0, 700.0, -700.0], [700.0, -700.0, 700.0, -700.0]])
    mean = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    found = densities.product_of_gaussians(*move((mean, log_variance)))
    np.testing.assert_allclose(to_numpy(found[0]), [1, 2, 1.5, 1.5])
    np.testing.assert_allclose(to_numpy(found[1]), [-700, -700, 700 - math.log(2),
                                                    -700 - math.log(2)])


def test_an_expert_of_no_variance_decides_alone(move, rng):
    mean, log_variance = MEAN.copy(), LOG_VARIANCE.copy()
    log_variance[1, 0] = -np.inf
    tensors = tree.map(Tensor, move([mean, log_variance]))
    found_mean, found_log_variance = densities.product_of_gaussians(*tensors)
    np.testing.assert_allclose(to_numpy(found_mean.array), [3.0, -1.5])
    np.testing.assert_allclose(np.exp(to_numpy(found_log_variance.array)), [0, 0.8])
    flow, _ = grad(found_mean.sum(), tensors)
    np.testing.assert_allclose(to_numpy(flow), [[0, 0.8], [1, 0.2]], atol=1e-15)
    log_variance[0, 0] = -np.inf
    with pytest.raises(ValueError, match="of variance 0 must agree; in 1 of 2 places"):
        densities.product_of_gaussians(*move((mean, log_variance)))


def test_an_absent_expert_gets_no_gradient_whatever_it_holds(move):
    mean = np.where([[True], [False]], MEAN, np.nan)
    tensors = tree.map(Tensor, move([mean, LOG_VARIANCE]))
    present = move(np.array([[True], [False]]))
    y, _ = densities.product_of_gaussians(*tensors, present=present, prior=(0.0, 0.0))
    to_mean, to_log_variance = map(to_numpy, grad(y.sum(), tensors))
    assert (to_mean[1] == 0).all() and (to_log_variance[1] == 0).all()
    assert (to_mean[0] > 0).all()


# -- Bad input -----------------------------------------------------------------------------------

def test_what_cannot_be_multiplied_is_refused(move):
    product = densities.product_of_gaussians
    given = move((MEAN, LOG_VARIANCE))
    with pytest.raises(ValueError, match="product_of_gaussians: needs an expert with a weight "
                                         "everywhere; 1 of 2 places have none"):
        product(*given, present=move(np.array([[True, False], [True, False]])))
    with pytest.raises(ValueError, match="2 of 2 places"):
        product(*given, move(np.full((2, 2), -np.inf)))
    for shape in ((2, 1), (2,)):
        with pytest.raises(ValueError, match=r"must have one shape, \[M, ...\]; got \(2, 2\) and"):
            product(given[0], move(np.zeros(shape)))
    mean, log_variance = product(*given, present=move(np.zeros((2, 1), bool)), prior=(1.0, 2.0))
    assert to_numpy(mean).tolist() == [1, 1] and to_numpy(log_variance).tolist() == [2, 2]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(move, scale):
    x, scale = move((np.zeros(2), np.array([1.0, scale])))
    for function in (densities.laplace_log_density, densities.laplace_kl):
        with pytest.raises(ValueError, match="every scale must be positive"):
            function(x, scale) if function is densities.laplace_kl else function(x, x, scale)
    with pytest.raises(ValueError, match="laplace_sample: every scale must be positive"):
        densities.laplace_sample(x, scale, x)
