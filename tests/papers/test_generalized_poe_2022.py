import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.densities import gaussian_kl, gaussian_log_density, log_normalizer_of_gaussians
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import generalized_poe_2022 as paper, mvae_2018
from minimoe.papers.generalized_poe_2022 import PriorExpert, generalized_product

RULES = (paper.softmax_weights, paper.scaled_softmax_weights, paper.sigmoid_weights)


def close(computed, expected, tolerance=1e-12):
    """Within ``tolerance`` of the largest number expected, in every part of a tree."""
    for a, b in zip(tree.leaves(computed), tree.leaves(expected), strict=True):
        a, b = to_numpy(a), to_numpy(b)
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0.0))


@pytest.fixture
def two_experts(move):
    """Precisions (2, 1) and (4, 1/4), in two dimensions of one datum."""
    mean = np.array([[[1, -2.0]], [[3, 0.5]]])
    return move(mean), move(np.log([[[1 / 2, 1]], [[1 / 4, 4]]]))


def logs(move, *alpha):
    return move(np.log(np.array(alpha, float)))


# -- By hand -------------------------------------------------------------------------------------

@pytest.mark.parametrize("alpha, prior, mean, variance", [
    # P = (2 + 4, 1 + 1/4);  mean = ((2 + 12) / 6, (-2 + 1/8) / 1.25)
    ([[[1.0]], [[1.0]]], None, (7 / 3, -1.5), (1 / 6, 0.8)),
    # P = (7, 2.25)
    ([[[1.0]], [[1.0]]], PriorExpert(), (2, -1.875 / 2.25), (1 / 7, 1 / 2.25)),
    # P = (.3 * 2 + .7 * 4, .9 + .1 / 4) = (3.4, .925);  mean = ((.6 + 8.4) / 3.4, ...)
    ([[[.3, .9]], [[.7, .1]]], None, (9 / 3.4, (-1.8 + .0125) / .925), (1 / 3.4, 1 / .925)),
    ([[[.3, .9]], [[.7, .1]]], PriorExpert(), (9 / 4.4, -1.7875 / 1.925), (1 / 4.4, 1 / 1.925)),
    # a prior of mean 2, precision 4 and weight 1/2: P = (5.4, 2.925), pulls 9 + 4, -1.7875 + 4
    ([[[.3, .9]], [[.7, .1]]], PriorExpert(2.0, math.log(1 / 4), math.log(1 / 2)),
     (13 / 5.4, 2.2125 / 2.925), (1 / 5.4, 1 / 2.925)),
    # whoever has weight 0 is not heard
    ([[[0.0, 1]], [[1.0, 0]]], None, (3, -2), (1 / 4, 1))])
def test_products_by_hand(move, two_experts, alpha, prior, mean, variance):
    found = generalized_product(*two_experts, paper.log_weights(move(np.array(alpha))), prior=prior)
    close(found.mean, np.array([mean]))
    close(ops.exp(found.log_variance), np.array([variance]))


def test_kl_and_conflict_by_hand(two_experts, move):
    mean, log_variance = two_experts
    posterior = generalized_product(*two_experts, 0 * mean, prior=PriorExpert())
    # (4 + 1/7 - 1 + log 7) / 2 and ((5/6)^2 + 4/9 - 1 + log 2.25) / 2
    close(gaussian_kl(*posterior), np.array([[
        (3 + 1 / 7 + math.log(7)) / 2, (25 / 36 + 4 / 9 - 1 + math.log(2.25)) / 2]]))
    # -log(2 pi 0.75) / 2 - (1 - 3)^2 / (2 * 0.75)
    conflict = log_normalizer_of_gaussians(mean[..., :1], log_variance[..., :1])
    close(conflict, np.array([[-math.log(1.5 * math.pi) / 2 - 8 / 3]]))


def test_weights_by_hand(move):
    scores = logs(move, [[1.0], [1]], [[3.0], [3]])
    present = move(np.array([[True, True], [True, False]]))
    expected = {paper.softmax_weights: [[[1 / 4], [1]], [[3 / 4], [0]]],
                paper.scaled_softmax_weights: [[[1 / 2], [1]], [[3 / 2], [0]]],
                paper.sigmoid_weights: [[[1 / 2], [1 / 2]], [[3 / 4], [0]]]}
    for rule, alpha in expected.items():
        close(ops.exp(rule(scores, present)), np.array(alpha))
    everybody = {paper.softmax_weights: [1 / 4, 3 / 4], paper.sigmoid_weights: [1 / 2, 3 / 4],
                 paper.scaled_softmax_weights: [1 / 2, 3 / 2]}
    for rule, alpha in everybody.items():
        close(ops.exp(rule(scores))[:, 1, 0], np.array(alpha))
    constants = move(np.array([[[-0.5, 0.25]], [[0.75, 1.5]]]))
    close(ops.exp(paper.fixed_weights(constants)), np.array([[[0, 0.25]], [[0.75, 1]]]))


def test_entropy_changes_by_hand(move):
    # variances e^-2, 1, e against a prior of variance 1: changes 1, 0 and, below 0, 0
    log_variance = move(np.array([[[-2.0]], [[0.0]], [[1.0]]]))
    close(paper.entropy_change(log_variance), np.array([[[1.0]], [[0]], [[0]]]))
    close(ops.exp(paper.entropy_weights(log_variance)), np.array([[[1.0]], [[0]], [[0]]]))
    # of variance e^2: changes 2, 1, 1/2, in sum 7/2
    close(ops.exp(paper.normalized_entropy_weights(log_variance, 2.0)),
          np.array([[[4 / 7]], [[2 / 7]], [[1 / 7]]]))
    without_first = move(np.array([[False], [True], [True]]))
    close(ops.exp(paper.normalized_entropy_weights(log_variance, 2.0, without_first)),
          np.array([[[0.0]], [[2 / 3]], [[1 / 3]]]))
    # nobody is surer than a prior of variance e^-2
    close(ops.exp(paper.normalized_entropy_weights(log_variance, -2.0, without_first)),
          np.array([[[0.0]], [[1 / 2]], [[1 / 2]]]))


def test_committee_by_hand(move):
    mean, log_variance = move(np.array([[[1.0]], [[2.0]]])), move(np.array([[[-4.0]], [[-2.0]]]))
    # alpha = 2 and 1, so the prior's weight is -2: P = 2 e^4 + e^2 - 2
    precision = 2 * math.exp(4) + math.exp(2) - 2
    found = paper.committee(mean, log_variance)
    close(found.mean, np.array([[(2 * math.exp(4) + 2 * math.exp(2)) / precision]]))
    close(found.log_variance, np.array([[-math.log(precision)]]))


def test_product_multiview_ae_by_hand(move, two_experts):
    # epsilon = 1/4, precisions 1 / (variance + 1/2) of (1, 2/3) and (4/3, 2/9)
    found = paper.product_multiview_ae(*two_experts, move(np.ones((2, 1, 1))), epsilon=1 / 4)
    variance = np.array([[1 / (7 / 3 + 1 / 2), 1 / (8 / 9 + 1 / 2)]])
    close(found.mean, variance * [[1 + 4, -4 / 3 + 1 / 9]])
    close(found.log_variance, np.log(variance + 1 / 4))


def test_denoising_elbo_by_hand(move):
    posterior = paper.Gaussian(move(np.array([[2.0]])), move(np.array([[0.0]])))
    identity = (mvae_2018.nn.LinearParams(move(np.eye(1)), move(np.zeros(1))),)
    # z = 2 + 1/2 under targets 1 and 0: -log(1 + e^-2.5), and half of -log(1 + e^2.5); KL = 2
    found = paper.denoising_elbo(
        (identity, identity), (move(np.array([[1.0]])), move(np.array([[0.0]]))), posterior,
        move(np.array([[0.5]])), (mvae_2018.bernoulli_log_likelihood,) * 2, (1, 0.5), beta=0.25)
    close(found, np.array([-math.log1p(math.exp(-2.5)) - math.log1p(math.exp(2.5)) / 2 - 0.5]))


# -- Gradients -----------------------------------------------------------------------------------

def test_gradients(rng, move):
    experts = [rng.standard_normal((3, 4, 2)) for _ in range(2)]
    scores, alpha = rng.standard_normal((3, 4, 2)), rng.random((3, 1, 2)) + 0.1
    present = move(np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 1]], bool))
    experts, scores, alpha = move((experts, scores, alpha))
    for rule in RULES:
        check_vjp(lambda s: ops.exp(rule(s, present)), scores, rng=rng)

    def joined(product):
        return ops.concatenate(list(product), axis=0)

    for prior in (None, PriorExpert(0.5, 1.0, -1.0)):
        check_vjp(lambda experts, scores: joined(generalized_product(*experts, scores, present,
                                                                     prior)),
                  experts, scores, rng=rng)
    check_vjp(lambda experts, alpha: joined(paper.product_multiview_ae(*experts, alpha, 0.1)),
              experts, alpha, rng=rng)
    check_vjp(lambda experts: joined(paper.committee(*experts, 0.3)), experts, rng=rng)
    check_vjp(lambda v: ops.exp(paper.normalized_entropy_weights(v, 0.3, present)), experts[1],
              rng=rng)


def test_the_derivatives_of_the_docstring(draw):
    mean, log_variance, log_weight = draw(3, 4, 2), draw(3, 4, 2), draw(3, 4, 2)
    product = generalized_product(mean, log_variance, log_weight)
    T, alpha, P = ops.exp(-log_variance), ops.exp(log_weight), ops.exp(-product.log_variance)
    w, apart = alpha * T / P, mean - product.mean
    close(w.sum(axis=0), np.ones((4, 2)))

    def of(part):
        given = {"mean": Tensor(mean), "log_variance": Tensor(log_variance),
                 "alpha": Tensor(alpha)}
        found = generalized_product(given["mean"], given["log_variance"], ops.log(given["alpha"]))
        return grad(getattr(found, part).sum(), given)

    close(of("mean"), {"mean": w, "log_variance": -w * apart, "alpha": T / P * apart})
    close(of("log_variance"), {"mean": 0 * w, "log_variance": w, "alpha": -T / P})


def test_derivatives_by_hand(move, two_experts):
    """Of the third case above, in its first dimension: P = 3.4, mean 9 / 3.4."""
    alpha = Tensor(move(np.array([[[.3]], [[.7]]])))
    found = generalized_product(*(a[..., :1] for a in two_experts), ops.log(alpha))
    close(grad(found.mean.sum(), alpha)[0], np.array([[2 / 3.4 * (1 - 9 / 3.4)]]))
    close(grad(ops.exp(found.log_variance).sum(), alpha)[0], np.array([[-2 / 3.4 ** 2]]))


def test_a_whole_model_s_gradient(rng, move):
    params = move(paper.init(rng, (4, 3), (5, 3), latent=2, hidden=(6,),
                             hidden_of_credibility=(5,)))
    x = move((rng.standard_normal((4, 4)), rng.standard_normal((4, 3))))
    targets = move((rng.random((4, 5)), np.eye(3)[[0, 2, 1, 1]]))
    present = move(np.array([[True, True, False, True], [True, False, True, True]]))
    epsilon = move(rng.standard_normal((4, 2)))

    def elbo(params):
        posterior = paper.infer(params, x, present).posterior
        return paper.denoising_elbo(
            params.decoders, targets, posterior, epsilon,
            (mvae_2018.bernoulli_log_likelihood, mvae_2018.categorical_log_likelihood), beta=0.5)

    check_vjp(elbo, params, rng=rng)


# -- Properties ----------------------------------------------------------------------------------

FEW = st.sampled_from([-2.0, 0.0, 0.5, 3.0])


@st.composite
def fusions(draw):
    """Means, log-variances, log-weights and presence, ties likely; everybody has something."""
    M, N, D = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    some = [np.array(draw(st.lists(FEW, min_size=M * N * D, max_size=M * N * D))).reshape(M, N, D)
            for _ in range(3)]
    present = np.array(draw(st.lists(st.booleans(), min_size=M * N, max_size=M * N))).reshape(M, N)
    present[draw(st.integers(0, M - 1))] = True
    return *some, present


@given(fusions())
def test_the_product_is_the_density_it_is_said_to_be(move, fusion):
    """log q(z) and sum_m alpha_m log q_m(z) differ by what does not depend on z."""
    mean, log_variance, log_weight, present = move(fusion)
    for prior in (None, PriorExpert(1.0, -0.5, 0.7)):
        product = generalized_product(mean, log_variance, log_weight, present, prior)
        constants = []
        for z in (-1.5, 0.0, 2.0):
            experts = ops.exp(log_weight) * gaussian_log_density(z, mean, log_variance)
            total = ops.where(present[..., None], experts, 0.0).sum(axis=0)
            if prior:
                total = total + math.exp(0.7) * gaussian_log_density(z, total * 0 + 1, -0.5)
            constants.append(to_numpy(total - gaussian_log_density(z, *product)))
        scale = max(1.0, np.abs(constants).max())
        assert np.abs(np.diff(constants, axis=0)).max() < 1e-11 * scale


@given(fusions())
def test_who_is_missing_may_as_well_not_be_there(move, fusion):
    mean, log_variance, scores, present = fusion
    for rule in RULES:
        log_weight = rule(*move((scores, present)))
        together = generalized_product(*move((mean, log_variance)), log_weight,
                                       move(present), PriorExpert())
        for n in range(mean.shape[1]):
            here = present[:, n]
            few = [move(np.ascontiguousarray(a[here, n:n + 1]))
                   for a in (mean, log_variance, scores)]
            alone = generalized_product(*few[:2], rule(few[2]), prior=PriorExpert())
            close([part[n] for part in together], [part[0] for part in alone])


@given(fusions())
def test_weights_sum_to_one_or_to_the_number_present(move, fusion):
    _, log_variance, scores, present = move(fusion)
    count = to_numpy(present).sum(axis=0)[:, None] + np.zeros(scores.shape[1:])
    close(ops.exp(paper.softmax_weights(scores, present)).sum(axis=0), np.ones(scores.shape[1:]))
    close(ops.exp(paper.scaled_softmax_weights(scores, present)).sum(axis=0), count)
    close(ops.exp(paper.normalized_entropy_weights(log_variance, 0.5, present)).sum(axis=0),
          np.ones(scores.shape[1:]))


def test_weights_of_one_are_the_product_of_experts_and_mvae(draw, move, rng):
    mean, log_variance = draw(3, 5, 2), draw(3, 5, 2)
    present = move(rng.random((3, 5)) < 0.5)
    close(generalized_product(mean, log_variance, 0 * mean[:, :1, :1], present, PriorExpert()),
          mvae_2018.product_of_experts(mean, log_variance, present))
    equal = paper.scaled_softmax_weights(0 * mean)
    close(generalized_product(mean, log_variance, equal),
          generalized_product(mean, log_variance, 0 * mean))


def test_experts_that_agree_are_not_counted_twice(draw):
    mean, log_variance, scores = draw(1, 4, 2), draw(1, 4, 2), draw(3, 4, 2)
    same = [ops.concatenate([a] * 3) for a in (mean, log_variance)]
    product = generalized_product(*same, paper.softmax_weights(scores))
    close(product, (mean[0], log_variance[0]))
    plain = generalized_product(*same, 0 * scores)
    close(plain.log_variance, log_variance[0] - math.log(3))


def test_equal_weights_leave_the_plain_mean_and_widen_it(draw):
    mean, log_variance = draw(3, 4, 2), draw(3, 4, 2)
    plain = generalized_product(mean, log_variance, 0 * mean)
    shared = generalized_product(mean, log_variance, paper.softmax_weights(0 * mean))
    close(shared, (plain.mean, plain.log_variance + math.log(3)))


def test_one_score_to_a_datum_is_the_same_score_for_every_dimension(draw, move, rng):
    mean, log_variance, scores = draw(3, 4, 2), draw(3, 4, 2), draw(3, 4, 1)
    present = move(np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 1, 1]], bool))
    for rule in RULES:
        once = generalized_product(mean, log_variance, rule(scores, present), present)
        every = generalized_product(mean, log_variance, rule(
            ops.concatenate([scores] * 2, axis=-1), present), present)
        close(once, every)


def test_far_from_the_data(move):
    """Experts back at their prior, of variance 2: the plain product is 4 times too sure of it."""
    prior = math.log(2.0)
    mean, log_variance = move(np.zeros((4, 1, 1))), move(np.full((4, 1, 1), prior))
    plain = generalized_product(mean, log_variance, 0 * mean)
    close(plain.log_variance, np.array([[prior - math.log(4)]]))
    weights = paper.normalized_entropy_weights(log_variance, prior)
    close(generalized_product(mean, log_variance, weights).log_variance, np.array([[prior]]))
    close(paper.committee(mean, log_variance, prior).log_variance, np.array([[prior]]))
    # what little they know, 1e-6 nats each, is all that raw entropy hears
    raw = generalized_product(mean, log_variance, paper.entropy_weights(log_variance, prior + 2e-6))
    close(ops.exp(raw.log_variance), np.array([[2 / 4e-6]]), tolerance=1e-8)


@given(fusions())
def test_the_committee_is_never_less_sure_than_the_prior(move, fusion):
    mean, log_variance, *_ = move(fusion)
    assert (to_numpy(paper.committee(mean, log_variance, 0.5).log_variance) <= 0.5).all()


def test_credibility_begins_with_the_same_weight_for_all(rng, move, draw):
    params = move(paper.init(rng, (4, 3), (5,), latent=2))
    inference = paper.infer(params, (draw(6, 4), draw(6, 3)))
    close(ops.exp(inference.log_weight), np.full((2, 6, 2), 0.5))
    scores = paper.credibility_scores(move(paper.credibility_init(rng, 4, (5, 5), 3)), draw(6, 4))
    assert scores.shape == (6, 3) and not to_numpy(scores).any()


def test_a_modality_is_judged_by_itself(rng, move, draw):
    """What the other saw changes no score, and so, with sigmoids, no weight."""
    params = move(paper.init(rng, (4, 3), (5,), latent=2))
    heard = params.credibility[0][:-1] + (params.encoders[0].mean,)
    params = params._replace(credibility=(heard, params.credibility[1]))
    a, b, other = draw(6, 4), draw(6, 3), draw(6, 3)
    first, second = (paper.infer(params, (a, x), prior=PriorExpert(), weights=paper.sigmoid_weights)
                     for x in (b, other))
    close(first.log_weight[0], second.log_weight[0])
    assert abs(to_numpy(first.posterior.mean - second.posterior.mean)).min() > 1e-6


def test_a_batch_of_one_keeps_its_axis(draw):
    product = generalized_product(draw(2, 1, 3), draw(2, 1, 3), draw(2, 1, 1))
    assert product.mean.shape == product.log_variance.shape == (1, 3)


# -- The edges -----------------------------------------------------------------------------------

def test_what_is_missing_may_be_nan_forward_and_backward(draw, move, rng):
    params = move(paper.init(rng, (4, 3), (5,), latent=2))
    x = draw(4, 4), draw(4, 3)
    x[1][2] = math.nan
    present = move(np.array([[True] * 4, [True, True, False, True]]))
    tensors = tree.map(Tensor, params)
    inference = paper.infer(tensors, x, present)
    gradient = grad((inference.posterior.mean + inference.posterior.log_variance).sum(), tensors)
    assert all(np.isfinite(to_numpy(g)).all() for g in tree.leaves(gradient))
    close(inference.posterior.mean.array[2], inference.experts.mean.array[0, 2])
    mean = draw(2, 4, 2)
    mean[1, 2] = math.nan
    product = generalized_product(mean, mean, 0 * draw(2, 1, 1), present)
    assert np.isfinite(to_numpy(product.mean)).all()


@pytest.mark.parametrize("log_variance", [-2000.0, 2000.0])
def test_very_sure_and_very_unsure_experts(move, log_variance):
    mean = move(np.array([[[1.0]], [[4.0]]]))
    found = generalized_product(mean, 0 * mean + log_variance, logs(move, [[1.0]], [[2.0]]))
    close(found.mean, np.array([[3.0]]))
    close(found.log_variance, np.array([[log_variance - math.log(3)]]))


def test_nobody_heard_is_the_prior(draw, move):
    mean, log_variance = draw(2, 3, 2), draw(2, 3, 2)
    nobody = move(np.zeros((2, 3), bool))
    prior = PriorExpert(1.5, 0.5, math.log(2))
    expected = np.full((3, 2), 1.5), np.full((3, 2), 0.5 - math.log(2))
    close(generalized_product(mean, log_variance, 0 * mean, nobody, prior), expected)
    close(generalized_product(mean, log_variance, paper.log_weights(0 * mean), None, prior),
          expected)


def test_float32_stays_float32(draw):
    mean, log_variance, scores = (ops.astype(draw(2, 3, 2), dtype="float32") for _ in range(3))
    for rule in RULES:
        product = generalized_product(mean, log_variance, rule(scores), prior=PriorExpert())
        assert {a.dtype.name for a in product} == {"float32"}
    assert {a.dtype.name for a in paper.committee(mean, log_variance)} == {"float32"}
    assert paper.normalized_entropy_weights(log_variance).dtype.name == "float32"


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (1, 3, 2), (4, 1, 2)])
def test_weights_of_another_shape_are_refused(draw, shape):
    with pytest.raises(ValueError, match="generalized_product: needs weights for 2 experts"):
        generalized_product(draw(2, 3, 2), draw(2, 3, 2), draw(*shape))


def test_presence_of_another_shape_is_refused(draw, move):
    with pytest.raises(ValueError, match=r"present must have shape \(2, 3\); got \(3, 2\)"):
        generalized_product(draw(2, 3, 2), draw(2, 3, 2), draw(2, 3, 2),
                            move(np.ones((3, 2), bool)))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(draw, weight):
    log_weight = draw(2, 3, 2)
    log_weight[1, 0, 1] = weight
    with pytest.raises(ValueError, match="weights must be finite, and not NaN"):
        generalized_product(draw(2, 3, 2), draw(2, 3, 2), log_weight, prior=PriorExpert())


@pytest.mark.parametrize("alpha", [-0.1, math.nan])
def test_negative_weights_are_refused(move, alpha):
    with pytest.raises(ValueError, match="log_weights: weights must not be negative or NaN"):
        paper.log_weights(move(np.array([1.0, alpha])))


def test_data_of_which_nobody_is_heard_are_named(draw, move):
    mean, log_variance = draw(2, 4, 2), draw(2, 4, 2)
    present = move(np.array([[True, False, True, False], [True, False, False, True]]))
    with pytest.raises(ValueError, match=r"of 1 data nobody is, among them \[1\]"):
        generalized_product(mean, log_variance, 0 * mean, present)
    alpha = 0 * mean + 1
    alpha[:, 2, 1] = 0
    alpha[0, 3] = 0
    with pytest.raises(ValueError, match=r"of 1 data nobody is, among them \[2\]"):
        generalized_product(mean, log_variance, paper.log_weights(alpha))
    for rule in (paper.softmax_weights, paper.scaled_softmax_weights):
        with pytest.raises(ValueError, match="every datum needs a modality that is present"):
            rule(mean, present)


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"generalized_poe_2022/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    for name in ("weighted_missing", "scores_missing", "entropy_missing", "model_missing"):
        present = traced(name)[0].inputs["present"]
        assert present.any(axis=0).all() and present[:, 0].all() and not present.all()
    weights_of_means = abs(traced("barely_heard")[1]["grad.without_prior.mean.mean"])
    assert 0 < weights_of_means[0].max() < 1e-4 * weights_of_means[1:].max()
    log_variance = traced("sure_and_unsure")[0].inputs["log_variance"]
    assert (log_variance[0, 0] < -12).all() and (log_variance[-1, 0] > 12).all()
    assert traced("decided")[1]["softmax_weights"].max() > 1 - 1e-9
    found = traced("nobody_knows")[1]
    assert (found["change"] == 0).all() and (found["normalized"] == 1 / 3).all()
    found = traced("some_know_nothing")[1]
    assert 0 < (found["change"] == 0).mean() < 1
    assert (traced("multiview_ae_uniform")[0].inputs["alpha"] == 0.25).all()
    clipped = traced("scores")[1]["fixed_weights"]
    assert clipped.min() == 0 and clipped.max() == 1


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("weights sum to the number of modalities present", "scores_missing", "softmax_weights"),
    ("weights are sigmoids, each on its own", "model_missing", "softmax.alpha"),
    ("a standard normal prior is one expert more, as in MVAE", "weighted", "without_prior.mean"),
    ("small numbers in the product, as in multi-view-AE", "weighted_missing", "without_prior.mean"),
    ("no small numbers in the product", "multiview_ae_sure", "product.mean"),
    ("entropy changes are weights as they are", "surer_than_the_prior", "normalized")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("generalized_poe_2022") if v.title == title]
    case = oracle.case(f"generalized_poe_2022/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole
