import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import nn, ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.densities import gaussian_log_density, gaussian_sample, log_mean_exp
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import mmvae_2019 as paper
from minimoe.papers.mmvae_2019 import LOOSER, TIGHTER, Posteriors
from minimoe.papers.mvae_2018 import decode

PIXELS = (paper.laplace_log_likelihood, paper.laplace_log_likelihood)
GRADIENTS = [paper.iwae_gradient, paper.dreg_gradient, paper.released_gradient]
BOTH_BOUNDS = pytest.mark.parametrize("bound", [LOOSER, TIGHTER], ids=["looser", "tighter"])


def close(computed, expected, tolerance=1e-10):
    """Within ``tolerance`` of the largest number expected."""
    expected = np.asarray(expected) if isinstance(expected, list) else to_numpy(expected)
    np.testing.assert_allclose(to_numpy(computed), expected, rtol=0,
                               atol=tolerance * np.abs(expected).max(initial=0.0))


def close_trees(computed, expected, tolerance=1e-10):
    tree.map(lambda a, b: close(a, b, tolerance), computed, expected)


@pytest.fixture
def model(rng, move):
    """Two modalities, 5 and 4 wide, three data, and a draw of four samples."""
    params = move(paper.init(rng, (5, 4), latent=3, hidden=(6, 4)))
    params = params._replace(prior=move(rng.standard_normal(3)))
    return (tree.map(Tensor, params), move((rng.random((3, 5)), rng.random((3, 4)))),
            move(rng.random((2, 4, 3, 3))))


@pytest.fixture
def small(rng, move):
    """Parameters, as arrays, of two modalities, 2 and 1 wide; two data and two samples."""
    params = paper.init(rng, (2, 1), latent=2, hidden=(2,))
    params = params._replace(prior=rng.standard_normal(2))
    return move((params, (rng.random((2, 2)), rng.random((2, 1))), rng.random((2, 2, 2, 2))))


def weights_of(model, alpha=None, present=None, rho=None):
    """Log weights, with all of their gradients."""
    params, x, u = model
    q = paper.posteriors(params.encoders, x)
    return paper.log_weights(params.decoders, paper.prior_scale(params.prior), q, x,
                             paper.samples(q, u), PIXELS, rho, alpha, present)


# -- By hand: z a number, p(x_d | z) = N(z, 1/4), two Gaussian posteriors ------------------------

MEAN, DEVIATION, X = np.array([-0.5, 0.6]), np.array([0.7, 0.9]), np.array([0.3, 0.5])
EPSILON = np.array([[-1, 0, 0.5], [0.25, -0.75, 1.5]])


def toy_log_weights(z, mean, deviation, x):
    """[M, K, B] of samples, [M, B], [M, 1], and a number for each modality."""
    log_p = gaussian_log_density(z, 0.0, 0.0)
    for x_d in x:
        log_p = log_p + gaussian_log_density(x_d, z, 2 * math.log(0.5))
    log_q = [gaussian_log_density(z, mean[m], 2 * np.log(deviation[m])) for m in range(len(x))]
    return log_p - log_mean_exp(ops.stack(log_q), axis=0)


@pytest.fixture
def toy(move):
    """Log weights [M, K, 1]."""
    z = MEAN[:, None] + DEVIATION[:, None] * EPSILON
    return move(toy_log_weights(z[..., None], MEAN[:, None], DEVIATION[:, None], X))


def test_bounds_and_weights_of_the_toy(toy):
    close(toy[..., 0], [[-10.775140, -3.833849, -1.735511], [-1.135156, -1.410216, -10.298672]],
          1e-7)
    # log of the mean of three exp: -2.820325 and -1.566655, whose mean is the looser bound;
    # log of the mean of all six is the tighter
    close(paper.looser_bound(toy), [-2.193490], 1e-6)
    close(paper.tighter_bound(toy), [-2.061663], 1e-6)
    close(paper.elbo(toy), [-4.864757], 1e-6)
    close(paper.looser_weights(toy)[..., 0],
          [[.000106, .109247, .890647], [.568301, .431639, .000060]], 1e-6)
    close(paper.tighter_weights(toy)[..., 0],
          [[.000027, .028327, .230938], [.420945, .319719, .000044]], 1e-6)
    # 1 / (0.109247^2 + 0.890647^2) and 1 / (0.568301^2 + 0.431639^2)
    close(paper.effective_sample_size(paper.looser_weights(toy), axis=1)[:, 0],
          [1.241946, 1.963562], 1e-5)


def test_a_laplace_likelihood_by_hand(move):
    # log Lap(1/2; 1, 3/4) = -(1/2) / (3/4) - log(3/2); a logit of 40 is clipped to 1 - 1e-6
    x, logits = move(np.array([[0.5, 0.5]])), move(np.array([[40.0, 40.0]]))
    one = -(0.5 - 1e-6) / 0.75 - math.log(1.5)
    assert one == pytest.approx(-1.072132, abs=2e-6)
    close(paper.laplace_log_likelihood(x, logits), [2 * one])


def test_scales_sum_to_D_by_hand(move):
    # softmax(log 2, 0, 0) is (1/2, 1/4, 1/4), times 3
    logits = move(np.array([math.log(2), 0.0, 0.0]))
    close(paper.prior_scale(logits), [1.5, 0.75, 0.75])
    close(paper.prior_scale_cub(logits), [1.5 + 1e-6, 0.75 + 1e-6, 0.75 + 1e-6], 1e-15)


def test_dimensions_are_multiplied_before_components_are_mixed(move):
    # two posteriors of two dimensions with scales 1, at (0, 0) and (9, 9). At (0, 9) each has
    # 2 log(1/2) - 9; a mixture in each dimension would have about 4 log(1/2) there
    q = Posteriors(move(np.array([[[0.0, 0.0]], [[9.0, 9.0]]])), move(np.ones((2, 1, 2))))
    z = move(np.array([[[[0.0, 9.0]]], [[[9.0, 0.0]]]]))
    close(paper.log_mixture_posterior(q, z), [[[-9 - 2 * math.log(2)]]] * 2)


def test_likelihoods_are_scaled_to_the_widest(model):
    assert paper.likelihood_scaling([784, 3072]) == [3072 / 784, 1.0]
    found = [to_numpy(weights_of(model, rho=rho).array) for rho in ((1.0, 1.0), (2.0, 1.0))]
    params, x, u = model
    q = paper.posteriors(params.encoders, x)
    once = paper.log_likelihoods(params.decoders, x, paper.samples(q, u), PIXELS)[0]
    close(found[1] - found[0], once.array, 1e-9)


def test_the_criteria_by_hand(move):
    # a decoder that passes on z, and judges that say the place of the larger of two numbers
    passes_on = (nn.LinearParams(move(np.eye(2)), move(np.zeros(2))),)
    swaps = (nn.LinearParams(move(np.eye(2)[::-1].copy()), move(np.zeros(2))),)
    z = move(np.array([[1.0, 0], [0, 1], [3, 2], [2, 3]]))
    label = move(np.array([0, 1, 1, 1]))

    def judge(logits):
        return logits.argmax(axis=-1)

    assert paper.cross_coherence(passes_on, z, judge, label) == 0.75
    assert paper.cross_coherence(swaps, z, judge, label) == 0.25
    assert paper.latent_accuracy(judge, z, label) == 0.75
    assert paper.joint_coherence((passes_on, passes_on), z, (judge, judge)) == 1
    assert paper.joint_coherence((passes_on, swaps), z, (judge, judge)) == 0
    assert paper.joint_coherence((passes_on, swaps), z,
                                 (judge, lambda logits: 0 * label)) == 0.5


def test_the_bound_of_what_is_there_by_hand(move):
    log_w = move(np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [9.0, 8.0]]]))   # [M, K, B]
    alpha = paper.mixture_weights(move(np.array([[True, True], [False, True]])))
    close(paper.elbo(log_w, alpha), [2.0, (3.0 + 7.0) / 2])
    close(paper.elbo(log_w), [(2.0 + 7.0) / 2, (3.0 + 7.0) / 2])


# -- Gradients -----------------------------------------------------------------------------------

@pytest.mark.parametrize("bound, missing", [
    (paper.elbo, False), (paper.looser_bound, True), (paper.tighter_bound, True)])
def test_gradients_of_the_bounds(small, move, rng, bound, missing):
    present = move(np.array([[True, False], [True, True]])) if missing else None
    alpha = paper.mixture_weights(present) if missing else None
    params, x, u = small

    def value(params):
        return bound(weights_of((params, x, u), alpha, present, (1.5, 0.5)), alpha)

    check_vjp(value, params, rng=rng)


def test_gradients_of_the_naive_bound(small, rng):
    params, x, u = small

    def naive(params):
        q, scale = paper.posteriors(params.encoders, x), paper.prior_scale(params.prior)
        log_p = paper.log_likelihoods(params.decoders, x, paper.samples(q, u), PIXELS)
        return paper.naive_elbo(log_p, q, scale, (2.0, 1.0))

    check_vjp(naive, params, rng=rng)


@BOTH_BOUNDS
def test_weights_are_the_slopes_of_their_bound(toy, bound):
    log_w = Tensor(toy)
    share = 0.5 if bound is LOOSER else 1.0        # the looser bound is a mean over modalities
    close(grad(bound.value(log_w).sum(), log_w), share * bound.weights(toy))


@BOTH_BOUNDS
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_every_estimator_reports_the_bound_and_the_same_for_decoders_and_prior(
        model, gradient, bound):
    params, x, u = model
    found = gradient(params, x, u, PIXELS, bound=bound)
    log_w = weights_of(model)
    close(found.bound, bound.value(log_w).array)
    plain = grad(bound.value(log_w).sum(), params)
    close_trees(found.gradient[1:], plain[1:])
    assert (gradient is paper.iwae_gradient) == all(
        np.allclose(to_numpy(a), to_numpy(b)) for a, b in
        zip(tree.leaves(found.gradient.encoders), tree.leaves(plain.encoders)))


@BOTH_BOUNDS
def test_dreg_is_w_squared_times_the_slope_of_log_w_through_the_sample(model, bound):
    """Against a sum over samples, each pulled back alone."""
    params, x, u = model
    x, u = tuple(a[:1] for a in x), u[:, :2, :1]
    M, K = 2, 2
    found = {gradient: gradient(params, x, u, PIXELS, bound=bound).gradient.encoders
             for gradient in (paper.dreg_gradient, paper.released_gradient)}
    q = paper.posteriors(params.encoders, x)
    stopped = Posteriors(q.location.array, q.scale.array)
    log_w = paper.log_weights(params.decoders, paper.prior_scale(params.prior), stopped, x,
                              paper.samples(q, u), PIXELS)
    w = to_numpy(bound.weights(log_w.array))
    share = 0.5 if bound is LOOSER else 1.0
    for power, gradient in ((2, paper.dreg_gradient), (1, paper.released_gradient)):
        total = tree.map(lambda p: 0 * p.array, params.encoders)
        for m in range(M):
            for k in range(K):
                alone = grad(log_w[m, k, 0] * 1.0, params.encoders)
                factor = float(share * w[m, k, 0] ** power)
                total = tree.map(lambda a, b: a + factor * b, total, alone)
        close_trees(found[gradient], total)


TOY_DRAWS = 40_000


def toy_gradients(move, rng, mean, deviation, x, K, bound):
    """In the posteriors' means, of independent draws, by each estimator: means and errors [M]."""
    M = len(mean)
    epsilon = move(rng.standard_normal((M, K, TOY_DRAWS)))
    where = move(np.array(mean)[:, None] + np.zeros((M, TOY_DRAWS)))
    spread = 2 * move(np.log(np.array(deviation)))[:, None]            # [M, 1]

    def sampled(mean):
        return gaussian_sample(mean[:, None], spread[:, None], epsilon)

    plain_mean = Tensor(where)
    log_w = toy_log_weights(sampled(plain_mean), plain_mean, deviation, x)
    found = [grad(bound.value(log_w).sum(), plain_mean)]
    for estimator in (paper.doubly_reparametrised, paper.sticking_the_landing):
        mean = Tensor(where)
        _, to_mean, none = estimator(lambda z: toy_log_weights(z[..., 0], where, deviation, x),
                                     sampled(mean)[..., None], mean, (), bound)
        assert none == ()
        found.append(to_mean)
    found = np.stack([to_numpy(g) for g in found])                     # [3, M, N]
    return found.mean(axis=-1), found.std(axis=-1) / math.sqrt(TOY_DRAWS)


# of the plain, the doubly reparametrised and the released gradient, from 400,000 draws
EXPECTED = {
    "one modality, 1 sample": ((-0.5,), (0.9,), (0.3,), 1, LOOSER, [[3.698], [3.699], [3.699]]),
    "one modality, 5": ((-0.5,), (0.9,), (0.3,), 5, LOOSER, [[0.428], [0.430], [1.236]]),
    "overlap, looser": ((-0.5, 0.6), (0.7, 0.9), (0.3, 0.5), 5, LOOSER,
                        [[0.695, -0.005], [0.589, -0.045], [1.216, -0.143]]),
    "overlap, tighter": ((-0.5, 0.6), (0.7, 0.9), (0.3, 0.5), 5, TIGHTER,
                         [[0.088, -0.032], [0.103, -0.026], [0.655, -0.150]]),
    "apart": ((-4.0, 4.0), (0.5, 0.5), (0.3, 0.5), 5, LOOSER,
              [[16.991, -13.793], [16.985, -13.794], [18.150, -14.952]])}


@pytest.mark.parametrize("case", EXPECTED.values(), ids=EXPECTED)
def test_means_of_the_estimators_where_everything_is_known(move, rng, case):
    *toy, expected = case
    mean, error = toy_gradients(move, rng, *toy)
    assert (abs(mean - expected) < 4 * error + 0.007).all()


def test_dreg_is_unbiased_for_one_modality_and_quieter(move, rng):
    toy = (-0.5,), (0.9,), (0.3,), 25, LOOSER
    (plain, dreg, released), (noise, quiet, _) = toy_gradients(move, rng, *toy)
    assert abs(plain - dreg) < 4 * (noise + quiet)
    assert quiet < 0.1 * noise
    assert abs(plain - released) > 20 * noise


# -- Properties ----------------------------------------------------------------------------------

log_weights = st.tuples(st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda MK: arrays(float, (*MK, 2), elements=st.sampled_from([-900.0, -3.0, 0.0, 1.0, 50.0])))


@given(log_weights)
def test_order_of_the_bounds(move, log_w):
    given = move(log_w)
    elbo, looser, tighter = (to_numpy(bound(given)) for bound in (
        paper.elbo, paper.looser_bound, paper.tighter_bound))
    slack = 1e-12 * (1 + abs(elbo))
    assert (elbo <= looser + slack).all() and (looser <= tighter + slack).all()
    M, K, _ = log_w.shape
    equal = move(np.full((M, 1), 1 / M))
    for bound in (paper.elbo, paper.looser_bound, paper.tighter_bound):
        close(bound(given, equal), bound(given), 1e-12)
    if K == 1:
        close(paper.looser_bound(given), elbo)
    if M == 1:
        close(paper.looser_bound(given), tighter)


def test_bounds_lie_below_the_likelihood_on_average(move, rng):
    # log p(x) of the toy: x ~ N(0, 1 1' + I / 4)
    covariance = np.ones((2, 2)) + 0.25 * np.eye(2)
    exact = -0.5 * (2 * math.log(2 * math.pi) + math.log(np.linalg.det(covariance))
                    + X @ np.linalg.solve(covariance, X))
    assert exact == pytest.approx(-1.661306, abs=1e-6)
    expected = {1: (-4.794, -2.692), 5: (-1.948, -1.749), 25: (-1.720, -1.676)}
    for K, bounds in expected.items():
        epsilon = rng.standard_normal((2, K, 20_000))
        z = MEAN[:, None, None] + DEVIATION[:, None, None] * epsilon
        log_w = move(toy_log_weights(z, MEAN[:, None], DEVIATION[:, None], X))
        for bound, mean in zip((paper.looser_bound, paper.tighter_bound), bounds):
            found = to_numpy(bound(log_w))
            error = found.std() / math.sqrt(20_000)
            assert abs(found.mean() - mean) < 4 * error + 0.008
            assert found.mean() < exact + 4 * error


def test_the_naive_bound_is_below_by_the_divergence_from_the_mixture(model, rng, move):
    """In [0, log M]; by many samples, of one datum."""
    params, x, _ = model
    x = tuple(a[:1] for a in x)
    u = move(rng.random((2, 40_000, 1, 3)))
    params = tree.map(lambda p: p.array, params)
    q, scale = paper.posteriors(params.encoders, x), paper.prior_scale(params.prior)
    q = q._replace(location=3 * q.location)                            # somewhat apart
    z = paper.samples(q, u)
    log_p = paper.log_likelihoods(params.decoders, x, z, PIXELS)
    log_w = paper.log_weights(params.decoders, scale, q, x, z, PIXELS)
    log_q = paper.component_log_densities(q, z)
    own = ops.stack([log_q[m, m] for m in range(2)])
    gap = float((own - paper.log_mixture_posterior(q, z)).mean())
    assert 0 < gap < math.log(2)
    naive, elbo = (float(a[0]) for a in (paper.naive_elbo(log_p, q, scale), paper.elbo(log_w)))
    ratio = own - paper.laplace_log_density(z, 0.0, scale).sum(axis=-1)     # its mean is the KL
    error = math.sqrt(float(to_numpy(ratio).var(axis=1).sum()) / 40_000) / 2
    assert abs(elbo - naive - gap) < 4 * error < 0.1
    # the cheap one has the mean of the naive one; a batch of one sample each
    many = Posteriors(*(ops.broadcast_to(a, shape=(2, 40_000, 3)) for a in q))
    cheap = paper.cheap_elbo(params.decoders, scale, many, x, z.swapaxes(1, 2), PIXELS)
    deviation = float(to_numpy(cheap).std())
    assert abs(float(cheap.mean()) - naive) < 4 * (error + deviation / 200)


def test_a_mixture_is_never_far_below_its_best_component(model):
    params, x, u = model
    q = paper.posteriors(params.encoders, x)
    z = paper.samples(q, u)
    best = to_numpy(paper.component_log_densities(q, z).array).max(axis=0)
    mixture = to_numpy(paper.log_mixture_posterior(q, z).array)
    assert (mixture >= best - math.log(2) - 1e-12).all() and (mixture <= best + 1e-12).all()


@BOTH_BOUNDS
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_datum_with_one_modality_is_that_of_a_model_of_one(model, move, gradient, bound):
    params, x, u = model
    present = move(np.array([[True, True, True], [True, False, False]]))
    unread = (x[0], x[1] * move(np.array([[1.0], [math.nan], [math.nan]])))
    found = gradient(params, unread, u, PIXELS, present=present, bound=bound)
    alone = gradient(params._replace(encoders=params.encoders[:1], decoders=params.decoders[:1]),
                     x[:1], u[:1], PIXELS[:1], bound=bound)
    close(found.bound[1:], alone.bound[1:])
    both = gradient(params, x, u, PIXELS, bound=bound)
    close(found.bound[0], both.bound[0])
    assert all(np.isfinite(to_numpy(g)).all() for g in tree.leaves(found.gradient))


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_batch_is_the_sum_of_its_data(model, gradient):
    params, x, u = model
    whole = gradient(params, x, u, PIXELS).gradient
    parts = [gradient(params, tuple(a[b:b + 1] for a in x), u[:, :, b:b + 1], PIXELS).gradient
             for b in range(3)]
    close_trees(whole, tree.map(lambda *g: sum(g), *parts))


def test_posteriors_sum_to_their_width(model):
    params, x, _ = model
    q = paper.posteriors(params.encoders, x)
    close(q.scale.array.sum(axis=-1), np.full((2, 3), 3 * (1 + 1e-6)))


def test_the_marginal_likelihood_is_that_of_one_decoder(model):
    params, x, u = tree.map(lambda a: a.array if isinstance(a, Tensor) else a, model)
    q, scale = paper.posteriors(params.encoders, x), paper.prior_scale(params.prior)
    z = paper.samples(q, u)
    log_w = (paper.laplace_log_density(z, 0.0, scale).sum(axis=-1)
             + paper.laplace_log_likelihood(x[1], decode(params.decoders[1], z))
             - paper.log_mixture_posterior(q, z))
    close(paper.marginal_log_likelihood(params.decoders[1], scale, q, x[1], z, PIXELS[1]),
          log_mean_exp(log_w.reshape(8, 3), axis=0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_everything_runs_in_its_dtype(model, move, gradient, dtype):
    params, x, u = tree.map(lambda a: (a.array if isinstance(a, Tensor) else a).astype(dtype),
                            model)
    present = move(np.array([[True, True, False], [True, False, True]]))
    for bound in (LOOSER, TIGHTER):
        found = gradient(tree.map(Tensor, params), x, u, PIXELS, (2.0, 1.0), present, bound)
        assert {a.dtype for a in tree.leaves(found)} == {np.dtype(dtype)}


@pytest.mark.numpy_only("draws are made in NumPy")
def test_the_prior_starts_with_scales_of_1(rng):
    params = paper.init(rng, (5, 4), latent=3, hidden=(7, 6))
    assert paper.prior_scale(params.prior).tolist() == [1, 1, 1]
    assert params.encoders[0].location.w.shape == params.encoders[0].scale.w.shape == (6, 3)


# -- Bad input -----------------------------------------------------------------------------------

def test_data_that_do_not_fit_are_refused(model, move):
    params, x, u = model
    with pytest.raises(ValueError, match="posteriors: needs 2 modalities; got 1"):
        paper.posteriors(params.encoders, x[:1])
    with pytest.raises(ValueError, match="needs as many data of each modality"):
        paper.dreg_gradient(params, (x[0], x[1][:2]), u, PIXELS)
    present = move(np.array([[True, False, False], [True, False, True]]))
    with pytest.raises(ValueError, match="every datum needs a modality; 1 of 3 have none"):
        paper.dreg_gradient(params, x, u, PIXELS, present=present)


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"mmvae_2019/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    run, found = traced("far_apart")       # a sample is impossible under the other's posterior
    log_q = found["component_log_densities"]
    assert (log_q[0, 0] - log_q[1, 0] > 10).all() and (log_q[1, 1] - log_q[0, 1] > 10).all()
    assert found["tighter_weights"].max() > 0.99
    run, found = traced("narrow")
    assert (found["scale"].max(axis=-1) > 2).all() and (found["scale"].min(axis=-1) < 0.2).all()
    assert traced("one_sample")[0].inputs["u"].shape[1] == 1
    present = traced("multivae_some_missing")[0].inputs["present"]
    assert present[:, 0].all() and (present[:, 1:].sum(axis=0) == 1).all()
    for name in paper.CASES:               # no draw whose sample depends on the dtype
        u = traced(name)[0].inputs["u"]
        assert u.min() > 0 and (u != 0.5).all()


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("the prior's scales are a millionth wider, as released for CUB", "one_sample", "prior_scale"),
    ("the prior's scales are D softmax and nothing more", "multivae_one_sample", "looser_bound"),
    ("w~ stands once for encoders, as in the released code",
     "three_samples", "dreg_gradient.looser.encoders.0.hidden.0.w"),
    ("w~ stands squared for encoders, as the text has it",
     "three_samples", "released_gradient.looser.encoders.0.hidden.0.w"),
    ("the plain gradient in place of DReG",
     "multivae_some_missing", "dreg_gradient.encoders.0.hidden.0.w"),
    ("the tighter bound in place of the looser", "three_samples", "looser_weights"),
    ("the looser bound in place of the tighter", "iwae_four_samples", "tighter_bound")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("mmvae_2019") if v.title == title]
    case = oracle.case(f"mmvae_2019/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole
