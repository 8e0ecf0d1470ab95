import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import densities, ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import to_numpy
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import products_of_experts_1999 as paper
from minimoe.papers.products_of_experts_1999 import RBMParams, UnigaussParams


def close(computed, expected, tolerance=1e-12):
    """Within ``tolerance`` of the largest number expected."""
    expected = np.asarray(expected) if isinstance(expected, list) else to_numpy(expected)
    allowed = tolerance * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(to_numpy(computed), expected, rtol=0, atol=allowed)


def all_close(computed, expected, tolerance=1e-12):
    tree.map(lambda a, b: close(a, b, tolerance), computed, expected)


@pytest.fixture
def uniform(rng, move):
    return lambda *shape: move(rng.random(shape))


@pytest.fixture
def machine(draw):
    """A random machine: weights of the given scale, with any leading axes."""
    def make(D, H, *leading, scale=1.0):
        return RBMParams(scale * draw(*leading, D, H), draw(*leading, D), draw(*leading, H))
    return make


def softmax(x):
    return ops.softmax(x, axis=-1)


# -- By hand -------------------------------------------------------------------------------------

def test_product_and_pool_by_hand(move):
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.4, 0.5]])
    # products 0.05, 0.1, 0.125 of sum 0.275
    close(ops.exp(paper.log_product(move(np.log(p)))), [0.05 / 0.275, 0.1 / 0.275, 0.125 / 0.275])
    close(paper.log_normalizer(move(np.log(p))), move(np.array(math.log(0.275))))
    # an expert's unknown factor cancels
    close(paper.log_product(move(np.log(p * [[7.0], [1e-300]]))), paper.log_product(
        move(np.log(p))))
    # powers 2 and 1: 0.025, 0.025, 0.03125
    pool = ops.exp(paper.log_opinion_pool(move(np.log(p)), move(np.array([2.0, 1.0]))))
    close(pool, [0.025 / 0.08125, 0.025 / 0.08125, 0.03125 / 0.08125])


def test_an_expert_vetoes_what_a_mixture_can_only_make_rarer(move):
    log_p = move(np.array([[math.log(0.5), math.log(0.5), -math.inf], [-2.0, -1.0, 5.0]]))
    # exp(-2) against exp(-1)
    close(ops.exp(paper.log_product(log_p)), [1 / (1 + math.e), math.e / (1 + math.e), 0.0])
    pool = paper.log_opinion_pool(log_p, move(np.array([0.01, 0.99])))
    assert float(pool[2]) == -math.inf
    without = paper.log_opinion_pool(log_p, move(np.array([0.0, 1.0])))     # of weight 0, no veto
    close(without, ops.log_softmax(log_p[1], axis=-1))


def test_a_unigauss_expert_by_hand(move):
    params = UnigaussParams(move(np.array([0.0, 1.0])), move(np.array([[0.5], [0.2]])),
                            move(np.log([[25.0], [100.0]])))
    x = move(np.array([[0.3]]))
    # 0.5 * 5 / sqrt(2 pi) exp(-0.5) + 0.5 = 1.104927;  r = 0.604927 / 1.104927
    normal = [0.5 * 5 / math.sqrt(2 * math.pi) * math.exp(-0.5),
              10 / math.sqrt(2 * math.pi) * math.exp(-0.5) / (1 + math.exp(-1))]
    p = [normal[0] + 0.5, normal[1] + 1 / (1 + math.e)]
    r = [normal[0] / p[0], normal[1] / p[1]]
    close(paper.unigauss_log_density(params, x), [[math.log(p[0]), math.log(p[1])]])
    close(paper.unigauss_responsibilities(params, x), [[r[0], r[1]]])
    # r - pi;  r tau (x - mu);  r (1 - 25 * 0.2^2) / 2 and r (1 - 100 * 0.1^2) / 2
    found = paper.unigauss_statistics(params, x)
    close(found.logit_pi, [r[0] - 0.5, r[1] - 1 / (1 + math.exp(-1))])
    close(found.mu, [[-5 * r[0]], [10 * r[1]]])
    assert abs(to_numpy(found.log_tau)).max() < 1e-15
    # on a box of twice the volume the uniform part is half as high
    close(paper.unigauss_log_density(params, x, volume=2.0)[0, :1],
          [math.log(normal[0] + 0.25)])


def test_gibbs_of_unigauss_experts_by_hand(move):
    # r of both experts is above 0.99 at x, where they are centred
    params = UnigaussParams(move(np.array([5.0, 5.0])), move(np.array([[0.5, 0.5], [0.5, 0.5]])),
                            move(np.log([[16.0, 4.0], [48.0, 12.0]])))
    x = move(np.full((3, 2), 0.5))
    u = move(np.array([[[0.0, 0.0], [0.0, 0.9999], [0.9999, 0.9999]]]))
    epsilon, box = move(np.array([[[2.0, 1.0]] * 3])), move(np.array([[[0.1, 0.9]] * 3]))
    # both: precisions 64, 16;  the first alone: 16, 4;  none: a point of the box
    close(paper.unigauss_gibbs(params, x, u, epsilon, box),
          [[0.5 + 2 / 8, 0.5 + 1 / 4], [0.5 + 2 / 4, 0.5 + 1 / 2], [0.1, 0.9]])
    # and their means are weighted by precision: (16 * 0.4 + 48 * 0.6) / 64
    apart = params._replace(mu=move(np.array([[0.4, 0.5], [0.6, 0.5]])))
    close(paper.unigauss_gibbs(apart, x, u, 0 * epsilon, box)[0], [0.55, 0.5])


def test_an_update_divides_the_step_of_a_mean_and_holds_a_precision_at_its_limit(move):
    x, reconstruction = move(np.array([[0.503]])), move(np.array([[0.9]]))
    params = UnigaussParams(move(np.array([0.0, 0.0])), move(np.array([[0.5], [0.5]])),
                            move(np.array([[9.9], [10.1]])))
    before, after = params, paper.unigauss_update(params, x, reconstruction, rate=0.5)
    up = paper.contrastive_gradient(paper.unigauss_statistics, params, x, reconstruction)
    assert (to_numpy(up.log_tau) > 0.3).all() and (to_numpy(up.mu) > 10).all()
    close(after.log_tau - before.log_tau, [[0.5 * float(up.log_tau[0, 0])], [0.0]], 1e-9)
    close(after.mu, before.mu + 0.5 * up.mu * ops.exp(-before.log_tau))
    close(after.logit_pi, 0.5 * up.logit_pi)
    down = paper.unigauss_update(params, reconstruction, x)      # one that shrinks is not held
    assert (to_numpy(down.log_tau - before.log_tau) < -0.3).all()


@pytest.fixture
def two_by_two(move):
    return RBMParams(move(np.array([[1.0, -1.0], [0.5, 2.0]])), move(np.array([0.1, -0.2])),
                     move(np.array([0.0, 0.3])))


def test_a_machine_of_two_by_two(two_by_two, move):
    def plus(x):
        return math.log(1 + math.exp(x))

    # -F of 00, 01, 10, 11: plus(0) + plus(0.3), -0.2 + plus(0.5) + plus(2.3), ...
    log_p = np.array([plus(0) + plus(0.3), -0.2 + plus(0.5) + plus(2.3),
                      0.1 + plus(1) + plus(-0.7), -0.1 + plus(1.5) + plus(1.3)])
    states = paper.all_states(2, two_by_two.w)
    assert to_numpy(states).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    close(paper.free_energy(two_by_two, states), move(-log_p))
    log_z = math.log(np.exp(log_p).sum())
    assert log_z == pytest.approx(4.057128462, rel=1e-9)
    close(paper.log_partition(two_by_two), move(np.array(log_z)))
    close(paper.log_probs(two_by_two, states[2:]), move(log_p[2:] - log_z))
    close(ops.exp(paper.model_distribution(two_by_two)), [0.081299, 0.411681, 0.106386, 0.400634],
          2e-6)
    # (1 + e) (1 + e^0.5) / 4 = 2.462;  e^0.3 (1 + e^-1) (1 + e^2) / 4 = 3.873
    close(paper.expert_proportions(two_by_two), [0.711164, 0.794766], 1e-6)


def test_exact_and_contrastive_gradients_of_two_by_two(two_by_two, move):
    q = move(np.array([0.0, 0.0, 1.0, 0.0]))
    exact, cd = paper.exact_gradient(two_by_two, q), paper.expected_contrastive_gradient(
        two_by_two, q)
    close(exact.w, [[0.325736, -0.018320], [-0.583803, -0.689000]], 1e-6)
    close(exact.a, [0.492980, -0.812315], 1e-6)
    close(exact.b, [0.028832, -0.439189], 2e-6)
    close(paper.reconstructed(two_by_two, q), [0.118350, 0.267678, 0.223097, 0.390874], 2e-6)
    close(cd.w, [[0.248393, -0.049377], [-0.486187, -0.550449]], 1e-6)
    close(cd.a, [0.386028, -0.658552], 1e-6)
    close(cd.b, [0.022599, -0.360649], 2e-6)
    entropy = paper.relative_entropy(q, paper.model_distribution(two_by_two))
    assert float(entropy) == pytest.approx(2.240681, rel=1e-6)
    divergence = paper.contrastive_divergence(two_by_two, q)
    assert float(divergence) == pytest.approx(2.155892, rel=1e-6)


def test_gibbs_by_hand(two_by_two, move):
    v, logistic = move(np.array([[1.0, 0.0]] * 2)), lambda x: 1 / (1 + math.exp(-x))
    # hidden 1, 2 are on with sigmoid(1), sigmoid(-0.7): from h = 10 visible with sigmoid(1.1),
    # sigmoid(0.3); from h = 01 with sigmoid(-0.9), sigmoid(1.8)
    p = [logistic(1.0), logistic(-0.7)]
    close(paper.hidden_probs(two_by_two, v[:1]), [p])
    u_hidden = move(np.array([[[p[0] - 1e-9, p[1] + 1e-9], [p[0] + 1e-9, p[1] - 1e-9]]]))
    close(paper.visible_probs(two_by_two, move(np.eye(2))), [
        [logistic(1.1), logistic(0.3)], [logistic(-0.9), logistic(1.8)]])
    u_visible = move(np.array([[[logistic(1.1) - 1e-9, logistic(0.3) + 1e-9],
                                [logistic(-0.9) - 1e-9, logistic(1.8) + 1e-9]]]))
    assert to_numpy(paper.rbm_gibbs(two_by_two, v, u_hidden, u_visible)).tolist() == [[1, 0]] * 2
    close(paper.mean_field_reconstruction(two_by_two, v, u_hidden[0]), [
        [logistic(1.1), logistic(0.3)], [logistic(-0.9), logistic(1.8)]])
    step = paper.gibbs_step(two_by_two, v, u_hidden[0], u_visible[0])
    close(step.hidden_probs, [p, p])
    assert to_numpy(step.h).tolist() == [[1, 0], [0, 1]]
    close(step.visible_probs, paper.visible_probs(two_by_two, step.h))
    assert to_numpy(step.v).tolist() == [[1, 0]] * 2


def test_the_negative_phase_is_of_the_reconstruction(two_by_two, move):
    v, reconstruction = move(np.array([[1.0, 0.0]])), move(np.array([[0.0, 1.0]]))
    logistic = ops.sigmoid(move(np.array([1.0, -0.7, 0.5, 2.3])))
    found = paper.contrastive_gradient(paper.rbm_statistics, two_by_two, v, reconstruction)
    # v1 p(h | 10) above, v2 p(h | 01) below: 01's own hidden probabilities, not those it came from
    close(found.w, ops.stack([logistic[:2], -logistic[2:]]))
    close(found.a, [1.0, -1.0])
    close(found.b, logistic[:2] - logistic[2:])
    step = paper.gibbs_step(two_by_two, v, move(np.array([[0.9, 0.1]])), move(np.array(
        [[0.99, 0.0]])))
    assert [to_numpy(a).tolist() for a in (step.h, step.v)] == [[[0, 1]], [[0, 1]]]
    all_close(paper.rbm_contrastive_gradient(two_by_two, v, [step]), found)
    close(paper.negative_hidden(two_by_two, [step]), logistic[2:][None])
    # the data's hidden units by the states that were drawn
    close(paper.positive_hidden_states(two_by_two, v, [step]), [[0.0, 1.0]])


def test_the_phases_of_a_machine_are_those_of_any_expert(machine, uniform):
    params, v = machine(5, 4), uniform(6, 5)
    u_hidden, u_visible = uniform(2, 6, 4), uniform(2, 6, 5)
    steps = [paper.gibbs_step(params, v, u_hidden[0], u_visible[0])]
    steps.append(paper.gibbs_step(params, steps[0].v, u_hidden[1], u_visible[1]))
    reconstruction = paper.rbm_gibbs(params, v, u_hidden, u_visible)
    assert (to_numpy(steps[1].v) == to_numpy(reconstruction)).all()
    all_close(paper.rbm_contrastive_gradient(params, v, steps),
              paper.contrastive_gradient(paper.rbm_statistics, params, v, reconstruction))


# -- Gradients -----------------------------------------------------------------------------------

def test_gradients_of_products(draw, rng):
    log_p, weights = draw(3, 5), softmax(draw(3))
    check_vjp(paper.log_product, log_p, rng=rng)
    check_vjp(paper.log_opinion_pool, log_p, weights, rng=rng)


def test_the_gradient_of_softmax_experts(draw):
    """Of log p(d): e_d less the product's probabilities, for every expert alike."""
    theta = Tensor(draw(4, 6))
    log_p = paper.log_product(ops.log_softmax(theta, axis=-1))
    found = grad(log_p[2], theta)
    expected = -to_numpy(softmax(theta.array.sum(axis=0)))
    expected[2] += 1
    for row in found:
        close(row, expected.tolist())


def test_gradients_of_machines(machine, uniform, rng):
    params, v = machine(4, 3), uniform(5, 4)
    q = softmax(3 * uniform(16))
    check_vjp(paper.free_energy, params, v, rng=rng)
    check_vjp(paper.log_partition, params, rng=rng)
    check_vjp(paper.log_partition, machine(2, 4), rng=rng)
    check_vjp(paper.log_probs, params, v, rng=rng)
    check_vjp(paper.expert_log_probs, params, v, rng=rng)
    check_vjp(paper.expert_proportions, params, rng=rng)
    check_vjp(lambda params, q: paper.contrastive_divergence(params, q, k=2), params, q, rng=rng)


def test_statistics_are_gradients(machine, draw, uniform):
    x = uniform(6, 2)
    experts = UnigaussParams(draw(3), uniform(3, 2), 2 + draw(3, 2))
    tensors = tree.map(Tensor, experts)
    all_close(grad(paper.unigauss_log_density(tensors, x, 3.0).mean(axis=0).sum(), tensors),
              paper.unigauss_statistics(experts, x, 3.0))
    params, v, q = machine(4, 3), uniform(5, 4), softmax(draw(5))
    tensors = tree.map(Tensor, params)
    all_close(grad(-(paper.free_energy(tensors, v) * q).sum(), tensors),
              paper.rbm_statistics(params, v, q))
    all_close(paper.rbm_statistics(params, v), paper.rbm_statistics(params, v, 0 * q + 0.2))


def test_the_exact_gradient_is_that_of_the_likelihood(machine, draw):
    params, q = machine(4, 3), softmax(draw(16))
    tensors = tree.map(Tensor, params)
    all_close(grad((paper.model_distribution(tensors) * q).sum(), tensors),
              paper.exact_gradient(params, q))


def test_reconstructions_are_constants_to_the_loss(machine, uniform):
    """Made by the parameters, on the tape or not: the gradient stays minus Eq. (3.6)."""
    params, v, u = machine(4, 3), uniform(5, 4), uniform(5, 3)
    tensors = tree.map(Tensor, params)
    loss = paper.contrastive_divergence_loss(
        paper.free_energy, tensors, v, paper.mean_field_reconstruction(tensors, v, u))
    expected = paper.contrastive_gradient(paper.rbm_statistics, params, v,
                                          paper.mean_field_reconstruction(params, v, u))
    all_close(grad(loss, tensors), tree.map(lambda g: -g, expected))


# -- Properties: products ------------------------------------------------------------------------

few = st.sampled_from([-3.0, -1.0, 0.0, 0.5])
experts = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(arrays(float, shape, elements=few),
                            arrays(float, shape[0], elements=few),
                            arrays(float, shape[1], elements=few)))


@given(experts)
def test_how_far_a_pool_is_from_anything(move, model):
    """KL(q, pool) = sum w KL(q, p_m) - sum w KL(pool, p_m), whatever q (Heskes 1998)."""
    log_p, weights, q = move(model)
    log_p, weights, q = ops.log_softmax(log_p, axis=-1), softmax(weights), softmax(q)
    pool = paper.log_opinion_pool(log_p, weights)

    def to_experts(p):
        return (weights * paper.relative_entropy(p[None], log_p)).sum()

    left = paper.relative_entropy(q, pool)
    assert abs(float(left - to_experts(q) + to_experts(ops.exp(pool)))) < 1e-13
    assert float(paper.log_normalizer(log_p)) <= 1e-15 or len(log_p) == 1
    close(paper.log_product(log_p[::-1]), paper.log_product(log_p), 1e-13)


def test_equal_gaussians_multiply_into_a_sharper_one_and_mix_into_themselves(move):
    x = move(np.linspace(-12, 12, 2401))
    experts = densities.gaussian_log_density(x, move(np.array([[0.3]] * 4)), math.log(2.0))
    p = ops.exp(paper.log_product(experts))
    mean = (p * x).sum()
    close(mean, move(np.array(0.3)), 1e-9)
    close((p * ops.square(x - mean)).sum(), move(np.array(2.0 / 4)), 1e-9)
    mixture = softmax(densities.mixture_log_density(experts[..., None]))
    close((mixture * ops.square(x - 0.3)).sum(), move(np.array(2.0)), 1e-9)


# -- Properties: machines ------------------------------------------------------------------------

def test_a_machine_is_the_product_of_its_hidden_units_and_its_biases(machine):
    params = machine(4, 3)
    states = paper.all_states(4, params.w)
    hidden = paper.expert_log_probs(params, states)                    # [16, 3]
    biases = (states * params.a).sum(axis=-1) - ops.softplus(params.a).sum()
    close(ops.exp(hidden).sum(axis=0), [1.0] * 3)
    close(paper.log_product(ops.concatenate([hidden.T, biases[None]])),
          paper.model_distribution(params))
    # and each hidden unit is a mixture of independent units and of all states alike
    proportions = paper.expert_proportions(params)
    independent = (densities.bernoulli_log_density(states[:, None], params.w.T)).sum(axis=-1)
    close(ops.exp(hidden), proportions * ops.exp(independent) + (1 - proportions) / 16)


def test_the_chain_keeps_the_model_and_nears_it_from_anywhere(machine, draw):
    params = machine(4, 3)
    log_model, q = paper.model_distribution(params), softmax(3 * draw(16))
    model = ops.exp(log_model)
    close(paper.reconstructed(params, model), model)
    entropies = [float(paper.relative_entropy(paper.reconstructed(params, q, k), log_model))
                 for k in (1, 2, 4, 40)]
    assert all(after < before for before, after in zip(entropies, entropies[1:]))
    assert entropies[-1] < 1e-4
    assert float(paper.contrastive_divergence(params, q)) > 0
    assert abs(float(paper.contrastive_divergence(params, model))) < 1e-13
    all_close(paper.reconstructed(params, q, 3), paper.reconstructed(
        params, paper.reconstructed(params, q, 2), 1))


def test_the_contrastive_gradient_nears_the_exact_one_as_k_grows(machine, draw):
    params, q = machine(4, 3), softmax(3 * draw(16))
    exact = paper.exact_gradient(params, q)
    apart = [max(abs(to_numpy(a - b)).max() for a, b in zip(
        paper.expected_contrastive_gradient(params, q, k), exact)) for k in (1, 2, 4, 8, 16, 32)]
    assert all(after < 0.7 * before for before, after in zip(apart, apart[1:]))
    assert apart[-1] < 1e-3 * apart[0]


def test_sampled_reconstructions_are_distributed_as_the_exact_ones(machine, uniform, rng, move):
    """Counts of 40,000 chains, within 5 standard deviations: k steps, and chains that go on."""
    params, N = machine(2, 3, scale=2.0), 40_000
    v = move(np.tile([1.0, 0.0], (N, 1)))
    place = move(np.array([2.0, 1.0]))

    def count(v):
        return np.bincount(to_numpy(v @ place).astype(int), minlength=4) / N

    def expect(counts, p):
        p = to_numpy(p)
        assert (abs(counts - p) < 5 * np.sqrt(p * (1 - p) / N)).all()

    start = move(np.array([0.0, 0.0, 1.0, 0.0]))
    expect(count(paper.rbm_gibbs(params, v, uniform(2, N, 3), uniform(2, N, 2))),
           paper.reconstructed(params, start, k=2))
    h = move(np.zeros((N, 3)))
    for _ in range(25):
        gradient, h = paper.persistent_gradient(params, v, h, uniform(N, 2), uniform(N, 3))
    exact = paper.exact_gradient(params, start)
    for found, expected in zip(gradient, exact):
        assert abs(to_numpy(found - expected)).max() < 5 * 0.5 / math.sqrt(N)


def test_persistent_chains_reconstruct_from_where_they_are(machine, uniform):
    """The gradient of Eq. (3.6) at v ~ p(v | h), however many chains there are."""
    params, data = machine(4, 3), uniform(5, 4)
    h = (uniform(7, 3) < 0.5).astype("float64")
    u_visible, u_hidden = uniform(7, 4), uniform(7, 3)
    gradient, after = paper.persistent_gradient(params, data, h, u_visible, u_hidden)
    v = (u_visible < paper.visible_probs(params, h)).astype("float64")
    all_close(gradient, paper.contrastive_gradient(paper.rbm_statistics, params, data, v))
    assert (to_numpy(after) == to_numpy(u_hidden < paper.hidden_probs(params, v))).all()


def test_log_z_is_the_same_from_either_side_and_in_parts(machine, monkeypatch):
    params = machine(3, 5)
    other_side = RBMParams(params.w.T, params.b, params.a)
    whole = paper.log_partition(params)
    close(paper.log_partition(other_side), whole)
    close(ops.logsumexp(-paper.free_energy(other_side, paper.all_states(5, params.w)), axis=-1),
          whole)
    monkeypatch.setattr(paper, "UNITS_AT_ONCE", 1)
    close(paper.log_partition(params), whole)


def test_all_states_of_sixteen_units(move):
    """2^16 terms in 4 parts: without weights log Z is a sum over units."""
    params = RBMParams(move(np.zeros((16, 20))), move(np.linspace(-3, 3, 16)), move(np.ones(20)))
    close(paper.log_partition(params), ops.softplus(params.a).sum() + ops.softplus(params.b).sum())


def test_many_machines_at_once(machine, uniform, draw):
    together, q = machine(4, 3, 5), softmax(draw(5, 16))
    inputs = (q, uniform(5, 6, 4), uniform(5, 2, 6, 3), uniform(5, 2, 6, 4),
              (uniform(5, 7, 3) > 0.5).astype("float64"), uniform(5, 7, 4), uniform(5, 7, 3))

    def everything(params, q, v, u_hidden, u_visible, h, u_fantasies, u_h):
        u_hidden, u_visible = (ops.swapaxes(u, first=0, second=-3) for u in (u_hidden, u_visible))
        reconstruction = paper.rbm_gibbs(params, v, u_hidden, u_visible)
        return [reconstruction, paper.mean_field_reconstruction(params, v, u_hidden[0]),
                paper.contrastive_gradient(paper.rbm_statistics, params, v, reconstruction),
                paper.contrastive_divergence_loss(paper.free_energy, params, v, reconstruction),
                paper.persistent_gradient(params, v, h, u_fantasies, u_h),
                paper.log_probs(params, v), paper.expert_log_probs(params, v),
                paper.expert_proportions(params), paper.exact_gradient(params, q),
                paper.expected_contrastive_gradient(params, q, 2),
                paper.contrastive_divergence(params, q, 2)]

    found = tree.leaves(everything(together, *inputs))
    for i in range(5):
        alone = everything(tree.map(lambda p: p[i], together), *(part[i] for part in inputs))
        for a, b in zip(tree.leaves(alone), found):
            close(b[i], a)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_weights_and_either_precision(move, rng, dtype):
    """|v w| reaches 100 for weights from N(0, 20^2), as in the paper's own test of learning."""
    def random(*shape):
        return move(rng.random(shape).astype(dtype))

    params = move(tree.map(lambda p: p.astype(dtype), RBMParams(
        20 * rng.standard_normal((8, 4)), np.zeros(8), np.zeros(4))))
    v = (random(10, 8) < 0.5).astype(dtype)
    h, q = (random(10, 4) < 0.5).astype(dtype), softmax(random(256))
    reconstruction = paper.rbm_gibbs(params, v, random(2, 10, 4), random(2, 10, 8))
    found = [reconstruction, paper.log_probs(params, v), paper.contrastive_divergence(params, q),
             paper.contrastive_gradient(paper.rbm_statistics, params, v, reconstruction),
             paper.persistent_gradient(params, v, h, random(10, 8), random(10, 4)),
             paper.exact_gradient(params, q), paper.expected_contrastive_gradient(params, q),
             paper.annealed_importance_sampling(
                 params, params.a, [0, 0.5, 1], random(10, 8), [(random(10, 4), random(10, 8))])]
    for leaf in tree.leaves(found):
        assert leaf.dtype == dtype and np.isfinite(to_numpy(leaf)).all()
    assert (to_numpy(paper.log_probs(params, v)) <= 0).all()


def test_unigauss_experts_far_away_and_sure(move):
    params = UnigaussParams(move(np.array([800.0, -800.0, 0.0])), move(np.full((3, 1), 0.5)),
                            move(np.full((3, 1), 10.0)))
    x = move(np.array([[1e3], [0.5]]))
    statistics = paper.unigauss_statistics(params, x)
    assert all(np.isfinite(to_numpy(leaf)).all() for leaf in statistics)
    r = to_numpy(paper.unigauss_responsibilities(params, x))
    assert r[0].tolist() == [0, 0, 0] and r[1, 0] == 1 and r[1, 1] == 0
    assert np.isfinite(to_numpy(paper.unigauss_log_density(params, x))).all()


# -- Properties: annealed importance sampling ----------------------------------------------------

def test_importance_weights_of_every_state_give_log_z(machine, move):
    """From fair coins, each state once, in one step: the mean of the weights is Z / Z_0."""
    params = machine(4, 3)
    states = paper.all_states(4, params.w)
    u_start = ops.where(states == 1, 0.25, 0.75)
    found = paper.annealed_importance_sampling(params, 0 * params.a, [0, 1], u_start, [])
    close(found.log_partition, paper.log_partition(params))
    close(found.log_weights, -paper.free_energy(params, states) - 3 * math.log(2))


def test_a_machine_that_is_its_base_has_equal_weights(machine, uniform):
    params = machine(4, 3)
    params = RBMParams(0 * params.w, params.a, 0 * params.b)
    found = paper.annealed_importance_sampling(params, params.a, [0, 0.3, 1], uniform(6, 4),
                                               [(uniform(6, 3), uniform(6, 4))])
    assert float(found.effective) == pytest.approx(6)
    close(found.log_partition, paper.log_partition(params))


def test_annealing_nears_log_z(machine, uniform):
    params = machine(6, 5)
    T = 200
    found = paper.annealed_importance_sampling(
        params, 0 * params.a, np.linspace(0, 1, T + 1), uniform(100, 6),
        ((uniform(100, 5), uniform(100, 6)) for _ in range(T - 1)))
    assert abs(float(found.log_partition - paper.log_partition(params))) < 0.1
    assert 50 < float(found.effective) <= 100


# -- Starts --------------------------------------------------------------------------------------

@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    mean = np.array([0.0, 0.5, 0.9, 1.0])
    params = paper.rbm_init(rng, mean, n_hidden=5000, scale=0.02)
    assert params.w.shape == (4, 5000) and params.w.std() == pytest.approx(0.02, rel=0.05)
    close(1 / (1 + np.exp(-params.a)), [0.01, 0.5, 0.9, 0.99])
    assert not params.b.any() and params.b.shape == (5000,)
    x = np.array([[0.0, 0.0], [2.0, 4.0]])            # variances 1 and 4
    experts = paper.unigauss_init(rng, 4000, x)
    assert (experts.logit_pi == 0).all() and experts.mu.mean() == pytest.approx(0.5, abs=0.1)
    assert experts.mu.std() == pytest.approx(math.sqrt(2.5), rel=0.05)
    close(np.exp(experts.log_tau), np.full((4000, 2), 1 / 2.5))


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("log_p", [
    [[0.0, -math.inf], [-math.inf, 0.0]], [[0.0, math.nan], [0.0, 0.0]]])
def test_experts_that_leave_nothing_are_refused(move, log_p):
    for function in (paper.log_product, paper.log_normalizer):
        with pytest.raises(ValueError, match="log_product: needs a state"):
            function(move(np.array(log_p)))


@pytest.mark.parametrize("v", [
    np.full((2, 4), 1.01), np.full((2, 4), -1e-9), np.full((2, 4), math.nan), np.zeros((0, 4))])
def test_visible_values_that_are_no_probabilities_are_refused(machine, uniform, move, v):
    params, v, N = machine(4, 3), move(v), len(v)
    with pytest.raises(ValueError, match="rbm_gibbs: needs data, with values from 0 to 1"):
        paper.rbm_gibbs(params, v, uniform(1, N, 3), uniform(1, N, 4))
    with pytest.raises(ValueError, match="mean_field_reconstruction: needs data"):
        paper.mean_field_reconstruction(params, v, uniform(N, 3))
    with pytest.raises(ValueError, match="persistent_gradient: needs data"):
        paper.persistent_gradient(params, v, uniform(2, 3), uniform(2, 4), uniform(2, 3))


def test_another_width_is_refused(machine, uniform):
    params = machine(4, 3)
    for function in (paper.free_energy, paper.rbm_statistics, paper.hidden_probs):
        with pytest.raises(ValueError):
            function(params, uniform(2, 5))


@pytest.mark.parametrize("hidden, visible", [(0, 0), (1, 2), (2, 1)])
def test_steps_without_draws_are_refused(machine, uniform, hidden, visible):
    with pytest.raises(ValueError, match=f"needs draws for one step or more.*{hidden}, {visible}"):
        paper.rbm_gibbs(machine(4, 3), uniform(2, 4), uniform(hidden, 2, 3), uniform(visible, 2, 4))


def test_draws_that_many_states_would_share_are_refused(machine, uniform, move):
    params, v, h = machine(4, 3), uniform(2, 4), uniform(2, 3)
    for u_hidden, u_visible in [((1, 1, 3), (1, 2, 4)), ((1, 2, 3), (1, 1, 4)), ((1, 3), (1, 4))]:
        with pytest.raises(ValueError, match="needs draws of shape"):
            paper.rbm_gibbs(params, v, uniform(*u_hidden), uniform(*u_visible))
    with pytest.raises(ValueError, match=r"needs draws of shape \(2, 3\); got \(3,\)"):
        paper.mean_field_reconstruction(params, v, uniform(3))
    with pytest.raises(ValueError, match="needs draws of shape"):
        paper.persistent_gradient(params, v, h, uniform(2, 4), uniform(1, 3))
    experts = UnigaussParams(*move((np.zeros(2), np.zeros((2, 1)), np.zeros((2, 1)))))
    for shapes in [((1, 2), (3, 1), (3, 1)), ((3, 2), (1, 1), (3, 1)), ((3, 2), (3, 1), (1, 1))]:
        with pytest.raises(ValueError, match="needs draws of shape"):
            paper.unigauss_gibbs(experts, uniform(3, 1), *(uniform(1, *s) for s in shapes))


@pytest.mark.parametrize("x", [
    np.full((2, 1), math.inf), np.full((2, 1), math.nan), np.zeros((0, 1))])
def test_data_that_are_not_finite_are_refused(move, uniform, x):
    params, N = UnigaussParams(*move((np.zeros(2), np.zeros((2, 1)), np.zeros((2, 1))))), len(x)
    with pytest.raises(ValueError, match="unigauss_gibbs: needs data, all finite"):
        paper.unigauss_gibbs(params, move(x), uniform(1, N, 2), uniform(1, N, 1), uniform(1, N, 1))


def test_unigauss_steps_without_draws_are_refused(move, uniform):
    params = UnigaussParams(*move((np.zeros(2), np.zeros((2, 1)), np.zeros((2, 1)))))
    with pytest.raises(ValueError, match="unigauss_gibbs: needs draws.*1, 1, 2"):
        paper.unigauss_gibbs(params, uniform(3, 1), uniform(1, 3, 2), uniform(1, 3, 1),
                             uniform(2, 3, 1))


@pytest.mark.numpy_only("draws are made in NumPy")
@pytest.mark.parametrize("x", [np.ones((3, 2)), np.array([[math.nan], [1.0]])])
def test_data_that_do_not_vary_are_refused(rng, x):
    with pytest.raises(ValueError, match="unigauss_init: needs finite data that vary"):
        paper.unigauss_init(rng, 3, x)


def test_enumerations_that_would_never_end_are_refused(move):
    w = move(np.zeros((21, 21)))
    with pytest.raises(ValueError, match="all_states: at most 20 units"):
        paper.all_states(21, w)
    with pytest.raises(ValueError, match="log_partition: at most 20 units.*got 21"):
        paper.log_partition(RBMParams(w, w[0], w[0]))


@pytest.mark.parametrize("k", [0, -1])
def test_no_step_is_refused(machine, k):
    with pytest.raises(ValueError, match="reconstructed: needs 1 step or more"):
        paper.reconstructed(machine(1, 1), machine(1, 2).b, k)


@pytest.mark.parametrize("betas", [
    [], [0], [0, 0.5], [0.1, 1], [0, 0.6, 0.5, 1], [0, math.nan, 1]])
def test_betas_that_do_not_rise_are_refused(machine, uniform, betas):
    params = machine(4, 3)
    with pytest.raises(ValueError, match="betas must rise from 0 to 1"):
        paper.annealed_importance_sampling(params, params.a, betas, uniform(2, 4), [])


@pytest.mark.parametrize("steps", [0, 2])
def test_draws_for_other_steps_are_refused(machine, uniform, steps):
    params = machine(4, 3)
    with pytest.raises(ValueError):
        paper.annealed_importance_sampling(params, params.a, [0, 0.5, 1], uniform(2, 4),
                                           [(uniform(2, 3), uniform(2, 4))] * steps)


def test_nothing_is_on_the_tape_of_a_sample(machine, uniform):
    tensors = tree.map(Tensor, machine(4, 3))
    v = paper.rbm_gibbs(tensors, uniform(2, 4), uniform(1, 2, 3), uniform(1, 2, 4))
    assert not isinstance(v, Tensor) and stop_gradient(v) is v


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"products_of_experts_1999/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_of_products_are_what_they_are_named_for():
    run, found = traced("veto")
    log_p, weights = run.inputs["log_p"], run.inputs["weights"]
    assert (np.exp(found["log_product"])[:2] == 0).all()      # by the first expert, by the last
    assert weights[-1] == 0 and (np.exp(found["log_opinion_pool"])[:2] > 0).tolist() == [
        False, True] and log_p[-1, 1] < -1000
    assert np.exp(traced("sharp_opinions")[1]["log_product"]).max() > 0.999
    run, found = traced("unigauss_mostly_flat")
    used = run.inputs["u_choice"][0] < found["responsibilities"]
    assert 0 < used.sum() < used.size / 4
    run, found = traced("unigauss_held")
    held = found["update.log_tau"] == run.params["log_tau"]
    assert held.any() and not held.all() and (run.params["log_tau"][held] > 10).all()


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_of_machines_are_what_they_are_named_for():
    assert (traced("cd_large_weights")[1]["steps.0.hidden_probs"] == 1).any()
    assert (traced("few_states_seen")[0].inputs["q"] == 0).sum() > 8
    run, found = traced("cd_four_steps")
    for k in range(4):                    # draws are clear of the probabilities
        for u, p in (("u_hidden", "hidden_probs"), ("u_visible", "visible_probs")):
            probs = found[f"steps.{k}.{p}"]
            assert (abs(run.inputs[u][k] - probs) > np.minimum(probs, 1 - probs) / 4).all()
    states = np.concatenate([found[f"steps.{k}.v"] for k in range(4)])
    assert 0.1 < states.mean() < 0.9
    run, found = traced("annealed")
    assert run.inputs["betas"][0] == 0 and run.inputs["betas"][-1] == 1
    assert (np.diff(run.inputs["betas"]) >= 0).all()


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("the data's hidden units by their states", "cd_one_step", "positive_hidden"),
    ("visible units by their probabilities, as for grey images, Eq. (9.1)", "cd_grey", "steps.0.v"),
    ("a unigauss expert's step is the gradient as it is", "unigauss_one_step", "update.mu")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("products_of_experts_1999") if v.title == title]
    case = oracle.case(f"products_of_experts_1999/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole
