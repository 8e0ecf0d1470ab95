import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import is_array, to_numpy
from minimoe.optim import adafactor_init, adam, adam_init
from minimoe.papers import sparsely_gated_2017 as paper

EIGHT_DECIMALS = 3e-8     # of golden numbers, the largest being 0.2 or more


def to_host(x):
    x = stop_gradient(x)
    return to_numpy(x) if is_array(x) else np.asarray(x)


def close(computed, expected, tolerance=1e-10):
    """Within ``tolerance`` of the largest number expected."""
    computed, expected = map(to_host, (computed, expected))
    allowed = tolerance * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(computed, expected, rtol=0, atol=allowed)


def ranked(v):
    """Places of a row or column, the largest first; of equals, the lower place."""
    return np.argsort(-v, kind="stable")


def drawn(rng, params, scale=1.0):
    """The parameters of an ``init``, with draws in place of zeros."""
    return tree.map(lambda w: w if w.any() else scale * rng.standard_normal(w.shape), params)


def flat_params(rng):
    return drawn(rng, paper.init(rng, n_experts=5, width=4, hidden=3))


def hierarchical_params(rng):
    return drawn(rng, paper.hierarchical_init(rng, n_groups=3, group_size=4, width=4, hidden=3))


@pytest.fixture
def flat(rng, move):
    return move(flat_params(rng))


@pytest.fixture
def hierarchical(rng, move):
    return move(hierarchical_params(rng))


# -- By hand -------------------------------------------------------------------------------------

class Row:
    """One row of four experts, k = 2, all with a standard deviation of log 2."""

    def __init__(self, move):
        self.clean, raw, self.epsilon = move((
            np.array([[0.3, -0.1, 0.5, 0.0]]), np.zeros((1, 4)),
            np.array([[1.0, -1.0, 0.5, 0.2]])))
        self.raw = raw
        self.std = paper.noise_std(raw)
        self.noisy = paper.noisy_logits(self.clean, self.std, self.epsilon)


@pytest.fixture
def row(move):
    return Row(move)


def test_gate_threshold_and_probability_by_hand(row):
    s = math.log(2)
    close(row.noisy, [[0.3 + s, -0.1 - s, 0.5 + s / 2, s / 5]])
    # experts 0 and 2 are chosen: the softmax of 0.993147 and 0.846574
    g = 1 / (1 + math.exp(0.5 + s / 2 - 0.3 - s))
    close(paper.gate_of_top_k(row.noisy, 2), [[g, 0, 1 - g, 0]])
    # those chosen must beat the third, 0.138629; the others the second, 0.846574
    t_in, t_out = s / 5, 0.5 + s / 2
    close(paper.kth_excluding(row.noisy, 2), [[t_in, t_out, t_in, t_out]])
    z = [(0.3 - t_in) / s, (-0.1 - t_out) / s, (0.5 - t_in) / s, -t_out / s]
    gating = paper.noisy_top_k(row.clean, row.raw, row.epsilon, 2)
    close(gating.p, [[NormalDist().cdf(v) for v in z]])
    close(gating.p, [[0.59204495, 0.08602960, 0.69893765, 0.11097723]], EIGHT_DECIMALS)
    assert to_numpy(gating.routing.expert).tolist() == [[0, 2]]
    close(gating.routing.gate, [[g, 1 - g]])


@pytest.mark.parametrize("hold, by_clean, by_std", [
    (lambda threshold: threshold, [0.56016409, 0.22652940, 0.00288285, -0.78957634],
     [-0.13041097, 0.30935241, -0.51169970, 0.12091623]),
    (stop_gradient, [0.56016409, 0.22652940, 0.50241579, 0.27300355],
     [-0.13041097, 0.30935241, -0.26193323, 0.33343220])], ids=["through", "held"])
def test_gradient_of_the_load_with_and_without_that_of_the_threshold(row, hold, by_clean, by_std):
    # phi(z_i) / std reaches logit i; from it the threshold takes away what all its askers have:
    # expert 3, ranked third, loses both of the chosen; expert 2, ranked second, the other two
    clean, std = Tensor(row.clean), Tensor(row.std)
    threshold = hold(paper.kth_excluding(paper.noisy_logits(clean, std, row.epsilon), 2))
    found = grad(paper.load_probability(clean, std, threshold).sum(), (clean, std))
    close(found[0], [by_clean], EIGHT_DECIMALS)
    close(found[1], [by_std], EIGHT_DECIMALS)


def test_others_by_hand(row):
    tensor2tensor = paper.noisy_top_k_tensor2tensor(row.clean, row.raw, row.epsilon, 2)
    close(tensor2tensor.p, [[0.58965329, 0.08797888, 0.69535552, 0.11293071]], EIGHT_DECIMALS)
    close(tensor2tensor.gate, [[0.53782102, 0, 0.46217898, 0]], EIGHT_DECIMALS)
    davidmrau = paper.noisy_top_k_davidmrau(row.clean, row.raw, row.epsilon, 2)
    close(davidmrau.p, [[0.57189634, 0.26045915, 0.67926327, 0.30863867]], EIGHT_DECIMALS)
    close(davidmrau.gate, [[0.53782031, 0, 0.46217838, 0]], EIGHT_DECIMALS)
    thresholds = paper.threshold_davidmrau(davidmrau.noisy, 2)
    close(thresholds[:, :2], [[0.17258680, 0.35137163]], EIGHT_DECIMALS)
    evaluation = paper.noisy_top_k_tensor2tensor_evaluation(row.clean, row.raw, row.epsilon, 3)
    assert to_numpy(evaluation.p).tolist() == [[1, 0, 1, 1]]     # -0.1 is the last
    vmoe = paper.load_probability(row.clean, row.std, paper.kth_inclusive(row.noisy, 2))
    close(vmoe, [[0.21519075, 0.08602960, 0.30853754, 0.11097723]], EIGHT_DECIMALS)
    assert paper.noise_std_vmoe(n_experts=8) == 0.125
    # log(0.5 e^1 + 0.5 e^3), and log of the replacement where no gate is open
    gate, outputs = np.array([[0.5, 0.5], [0, 0]]), np.array([[[1.0], [3.0]], [[9.0], [9.0]]])
    close(paper.combine_log_space(gate, outputs),
          [[math.log(0.5 * math.e + 0.5 * math.e ** 3)], [-52 * math.log(2)]])


def test_cv_squared_by_hand(move):
    # mean 2, deviations 1, -1, 0, 0: variance 2 / 4, over 4; of a sample 2 / 3
    v = Tensor(move(np.array([3.0, 1.0, 2.0, 2.0])))
    close(paper.cv_squared(v), 0.125)
    # 2 / (4 * 4) (v_i - 2 - 0.5 / 2)
    close(grad(paper.cv_squared(v), v), [0.09375, -0.15625, -0.03125, -0.03125])
    close(paper.cv_squared_tensor2tensor(v), 0.125, 1e-9)
    close(paper.cv_squared_davidmrau(v), 1 / 6, 1e-9)
    close(paper.cv_squared(v.reshape(2, 2)), 0.125)
    assert paper.importance_loss(v) == paper.load_loss(v) == paper.cv_squared(v)


def test_masks_by_hand(move):
    probs = move(np.array([[0.7, 0.3], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8]]))
    threshold, m = Tensor(move(np.array([0.6, 0.35]))), 2
    assert paper.expert_capacity(n_rows=4, n_experts=2, k=1) == m
    mask = paper.batchwise_mask(probs, m)            # of the equal rows, the first
    assert to_numpy(mask).tolist() == [[True, False], [True, True], [False, False], [False, True]]
    above = paper.threshold_mask(probs, threshold)   # 0.6 is not above 0.6
    assert to_numpy(above).tolist() == [[True, False], [False, True], [False, True], [False, True]]
    close(paper.masked_gate(probs, mask), [[1, 0], [0.6, 0.4], [0, 0], [0, 1]])
    # they part at row 1, expert 0: -(0.6 - 0.6); row 2, expert 1: 0.4 - 0.35
    loss = paper.threshold_loss(probs, threshold, m)
    close(loss, 0.05, 1e-9)
    close(grad(loss, threshold), [2 - 1, 2 - 3])     # m less the rows above


@pytest.mark.numpy_only("whole numbers")
@pytest.mark.parametrize("n_rows, n_experts, k, m", [(8, 4, 2, 4), (7, 5, 2, 2), (3, 8, 2, 1),
                                                     (0, 4, 2, 1), (6, 3, 3, 6)])
def test_rows_for_each_expert(n_rows, n_experts, k, m):
    assert paper.expert_capacity(n_rows, n_experts, k) == m


def test_attention_by_hand(move):
    # x u = (1, 0), y w = (2, 3): sum_q v_q tanh of the sums; of the products the second is 0
    params = move(paper.AttentionParams(np.array([[1.0, 0]]), np.array([[2.0, 3]]),
                                        np.array([5.0, 7])))
    one = move(np.array([[1.0]]))
    close(paper.attention_gnmt(params, one, one), [[5 * math.tanh(3) + 7 * math.tanh(3)]])
    close(paper.attention(params, one, one), [[5 * math.tanh(1) * math.tanh(2)]])


def test_factored_second_moment_by_hand(move):
    # of [[1, 3], [2, 6]]: rows 2, 4; columns 1.5, 4.5; the mean of either 3. Exact, being of rank 1
    rows, columns = move((np.array([[2.0], [4]]), np.array([[1.5, 4.5]])))
    close(paper.factored_second_moment(rows, columns), [[1, 3], [2, 6]])
    # of [[4, 0], [0, 0]]: rows 2, 0; columns 2, 0; mean 1. And of nothing: nothing
    rows, columns = move((np.array([[[2.0], [0]], [[0], [0]]]), np.array([[[2.0, 0]], [[0, 0]]])))
    close(paper.factored_second_moment(rows, columns), [[[4, 0], [0, 0]], [[0, 0], [0, 0]]])


@pytest.mark.numpy_only("numbers of the schedule")
def test_learning_rates_by_hand():
    rate, of_translation = paper.learning_rate_factor, paper.translation_learning_rate_factor
    assert [rate(t - 1) for t in (1, 500, 1000, 4000)] == [0.001, 0.5, 1, 0.5]
    assert [of_translation(t - 1) for t in (1, 2000, 10_000, 40_000)] == [0.0005, 1, 1, 0.5]


@pytest.mark.numpy_only("counts")
def test_parameters_and_operations_of_tables_7_and_8():
    D, H = 512, 1024
    lstms = 2 * paper.lstm_parameters(D, D)

    def flat(n, k):
        return paper.moe_parameters(D, H, n) + lstms, paper.moe_operations(D, H, n, k) + lstms

    def two_levels(a, b, k=(2, 2)):
        return (paper.hierarchical_parameters(D, H, a, b) + lstms,
                paper.hierarchical_operations(D, H, a, b, k) + lstms)

    counted = {"MoE-4": flat(4, 4), "MoE-32": flat(32, 4), "MoE-256": flat(256, 4),
               "MoE-256-h": two_levels(16, 16), "MoE-1024-h": two_levels(16, 64),
               "MoE-4096-h": two_levels(16, 256), "MoE-65536-h": two_levels(256, 256),
               "MoE-131072-h": two_levels(256, 512)}
    printed = {"MoE-4": (8.4, 8.4), "MoE-32": (37.8, 8.4), "MoE-256": (272.9, 8.6),
               "MoE-256-h": (272.9, 8.4), "MoE-1024-h": (1079.0, 8.5), "MoE-4096-h": (4303.4, 8.9),
               "MoE-65536-h": (68791.0, 9.2), "MoE-131072-h": (137577.6, 9.7)}
    for name, millions in printed.items():
        assert counted[name] == pytest.approx([1e6 * m for m in millions], abs=0.051e6), name
    # LSTM-2048-512: 2048 units, projected to 512, and nothing else
    assert paper.lstm_parameters(512, 2048, 512) == pytest.approx(9.4e6, abs=0.05e6)
    # MoE-34M and MoE-143M: their first-level branching is not printed; 32 gives what is
    of_34 = (paper.hierarchical_parameters(1024, 2048, 32, 32)
             + 2 * paper.lstm_parameters(1024, 1024))
    of_143 = (paper.hierarchical_parameters(1024, 8192, 32, 8)
              + 2 * paper.lstm_parameters(1024, 4096, 1024))
    assert [of_34, of_143] == pytest.approx([4313.9e6, 4371.1e6], abs=0.05e6)


# -- Gradients -----------------------------------------------------------------------------------

def joined(*outputs):
    """One vector, so that one cotangent checks all of them."""
    return ops.concatenate([out.reshape(-1) for out in outputs])


def all_of(out, cv_squared=paper.cv_squared):
    return joined(out.y, out.importance, out.load, cv_squared(out.importance),
                  cv_squared(out.load))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_gradients_of_the_layer(draw, rng, flat, k):
    x, epsilon = draw(4, 4), draw(4, 5)
    check_vjp(lambda params, x: all_of(paper.moe(params, x, epsilon, k)), flat, x, rng=rng)


@pytest.mark.parametrize("noisy_top_k, cv_squared", [
    (paper.noisy_top_k_tensor2tensor, paper.cv_squared_tensor2tensor),
    (paper.noisy_top_k_davidmrau, paper.cv_squared_davidmrau)])
def test_gradients_of_the_layer_as_others_have_it(draw, rng, flat, noisy_top_k, cv_squared):
    x, epsilon = draw(4, 4), draw(4, 5)
    check_vjp(lambda params, x: all_of(paper.moe(params, x, epsilon, 2, noisy_top_k), cv_squared),
              flat, x, rng=rng)


def test_gradients_of_strictly_balanced_gating(draw, rng, move):
    params = move(drawn(rng, paper.strictly_balanced_init(rng, 4, 4, 3), 0.2))
    x = draw(6, 4)
    for layer in (paper.strictly_balanced_moe, paper.threshold_moe):
        def everything(w_gate, w_in, w_out, x):
            out = layer(paper.StrictlyBalancedParams(w_gate, params.threshold, w_in, w_out), x, 2)
            return joined(out.y, paper.importance_loss(out.importance))

        check_vjp(everything, params.w_gate, params.w_in, params.w_out, x, rng=rng)
    probs = paper.softmax_gate(x, params.w_gate)
    check_vjp(lambda probs, threshold: paper.threshold_loss(probs, threshold, 3), probs,
              params.threshold, rng=rng)
    # in the layer it trains the thresholds alone
    tensors = tree.map(Tensor, params)
    found = grad(paper.strictly_balanced_moe(tensors, x, 2).threshold_loss, tensors)
    assert [bool(flow.any()) for flow in found] == [False, True, False, False]


def test_gradients_of_both_attention_functions(draw, rng):
    params = paper.AttentionParams(draw(3, 4), draw(3, 4), draw(4))
    for attention in (paper.attention, paper.attention_gnmt):
        check_vjp(attention, params, draw(5, 3), draw(2, 3), rng=rng)


TAKES_LONG = pytest.mark.numpy_only("takes thousands of evaluations; the gradients recorded are "
                                    "computed again on both libraries")


@TAKES_LONG
@pytest.mark.parametrize("k1, k2", [(1, 1), (2, 3), (3, 4)])
def test_gradients_of_the_hierarchical_layer(rng, k1, k2):
    x = rng.standard_normal((4, 4))
    epsilon = rng.standard_normal((4, 3)), rng.standard_normal((4, k1, 4))
    check_vjp(lambda params, x: all_of(paper.hierarchical_moe(params, x, epsilon, (k1, k2))),
              hierarchical_params(rng), x, rng=rng)


@TAKES_LONG
@pytest.mark.parametrize("moe, layer, epsilon, k", [
    (flat_params, paper.moe, lambda normal: normal((6, 5)), 2),
    (hierarchical_params, paper.hierarchical_moe,
     lambda normal: (normal((6, 3)), normal((6, 2, 4))), (2, 2))], ids=["flat", "hierarchical"])
def test_gradients_of_the_language_model(rng, moe, layer, epsilon, k):
    params, epsilon = paper.language_model_init(rng, 7, 4, moe(rng)), epsilon(rng.standard_normal)
    words, targets = rng.integers(0, 7, (2, 3, 2))
    keep = paper.DropoutKeep(*(rng.random((4, 3, 2, 4)) >= 0.3))

    def loss(params):
        out = paper.language_model(params, words, epsilon, k, keep, 0.3, layer)
        return (ops.cross_entropy(out.logits, targets).mean() + paper.load_loss(out.load)
                + paper.importance_loss(out.importance))

    check_vjp(loss, params, rng=rng)


def test_gradient_of_the_importance_loss_as_derived(draw):
    """2 E I_i / T^2 reaches each gate: what the mean of CV^2 would add is the same for a row."""
    T, E, k = 7, 5, 2
    noisy = Tensor(draw(T, E))
    gate = paper.gate_of_top_k(noisy, k)
    shares = paper.importance(stop_gradient(gate))
    found = grad(paper.importance_loss(paper.importance(gate)), noisy)
    by_formula = grad((gate * (2 * E * shares / T ** 2)).sum(), noisy)
    close(found, to_numpy(by_formula))


# -- Properties: the gate ------------------------------------------------------------------------

few_values = st.sampled_from([-2.0, -1.0, 0.0, 1.0])     # ties are likely
logits = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
    lambda shape: arrays(float, shape, elements=few_values))


@given(logits, st.data())
def test_the_gate_is_a_softmax_of_the_first_k(move, noisy, data):
    T, E = noisy.shape
    k = data.draw(st.integers(1, E))
    gate = to_numpy(paper.gate_of_top_k(move(noisy), k))
    expected = np.zeros((T, E))
    for t in range(T):
        best = ranked(noisy[t])[:k]
        expected[t, best] = np.exp(noisy[t, best]) / np.exp(noisy[t, best]).sum()
    close(gate, expected, 1e-14)
    kept = to_numpy(paper.keep_top_k(move(noisy), k))
    assert ((kept == noisy) == (expected > 0)).all() and (np.isinf(kept) == (expected == 0)).all()
    # Eq. (16) under the mask of Eq. (17) is Eq. (3) without noise
    probs = ops.softmax(move(noisy))
    close(paper.masked_gate(probs, paper.top_k_mask(probs, k)), expected, 1e-14)


@given(logits, st.data())
def test_the_threshold_is_the_kth_of_the_others(move, noisy, data):
    T, E = noisy.shape
    k = data.draw(st.integers(1, E))
    found = to_numpy(paper.kth_excluding(move(noisy), k))
    for t in range(T):
        for i in range(E):
            others = np.sort(np.delete(noisy[t], i))[::-1]
            assert found[t, i] == (others[k - 1] if k <= len(others) else -math.inf)
    if k < E:
        chosen = to_numpy(paper.top_k_mask(move(noisy), k))
        assert (found[chosen] <= noisy[chosen]).all() and (found[~chosen] >= noisy[~chosen]).all()


def test_p_is_how_often_an_expert_would_be_chosen(draw, move):
    """With its own noise drawn again, and all other noise kept: quantiles in place of draws."""
    M, E, k, std = 2000, 6, 2, math.log(2)
    clean, epsilon = to_numpy(draw(E)), to_numpy(draw(E))
    quantiles = [NormalDist().inv_cdf((j + 0.5) / M) for j in range(M)]
    p = paper.noisy_top_k(*move((clean[None], np.zeros((1, E)), epsilon[None])), k).p
    for i in range(E):
        again = np.tile(epsilon, (M, 1))
        again[:, i] = quantiles
        chosen = paper.top_k_mask(move(clean + std * again), k)
        assert to_numpy(chosen)[:, i].mean() == pytest.approx(to_numpy(p)[0, i], abs=1 / M)


def test_p_is_unbiased(draw, move, rng):
    """Over all noise: the chance of being chosen, and k in all; not so with DM's threshold."""
    M, E, k = 20_000, 6, 2
    clean = ops.broadcast_to(draw(1, E), shape=(M, E))
    gating = paper.noisy_top_k(clean, 0 * clean, draw(M, E), k)
    p, chosen = to_numpy(gating.p), to_numpy(paper.top_k_mask(gating.noisy, k))
    assert abs(p.mean(axis=0) - chosen.mean(axis=0)).max() < 4 * 0.5 / math.sqrt(M)
    assert p.sum(axis=1).mean() == pytest.approx(k, abs=4 * p.sum(axis=1).std() / math.sqrt(M))
    assert p.sum(axis=1).std() > 0.5       # of one draw it is not k
    zero = move(np.zeros((M // 4, 16)))
    epsilon = draw(M // 4, 16)
    assert float(paper.noisy_top_k(zero, zero, epsilon, 4).p.mean()) == pytest.approx(
        0.25, abs=0.005)
    assert float(paper.noisy_top_k_davidmrau(zero, zero, epsilon, 4).p.mean()) == pytest.approx(
        0.454, abs=0.01)


def test_what_changes_neither_gate_nor_probability(draw, move):
    clean, raw, epsilon = draw(5, 6), draw(5, 6), draw(5, 6)
    before = paper.noisy_top_k(clean, raw, epsilon, 3)
    shifted = paper.noisy_top_k(clean + draw(5, 1), raw, epsilon, 3)
    close(shifted.gate, before.gate, 1e-13)
    close(shifted.p, before.p, 1e-13)
    order = move(np.array([3, 0, 5, 1, 4, 2]))
    permuted = paper.noisy_top_k(clean[:, order], raw[:, order], epsilon[:, order], 3)
    close(permuted.gate, before.gate[:, order], 1e-14)
    close(permuted.p, before.p[:, order], 1e-14)
    # logits and deviations times 7: the same choice as likely, but another gate
    noisy = paper.noisy_logits(7 * clean, 7 * before.std, epsilon)
    scaled = paper.load_probability(7 * clean, 7 * before.std, paper.kth_excluding(noisy, 3))
    close(scaled, before.p, 1e-13)


@pytest.mark.parametrize("n, k", [(16, 4), (16, 2), (8, 2)])
def test_balance_at_the_start_is_what_sampling_leaves(draw, move, n, k):
    """(n / k - 1) / T of rows given, (n q - 1) / T of importance, q the mean of sum_i G_i^2."""
    T, draws = 512, 60
    zero = move(np.zeros((T * draws, n)))
    gating = paper.noisy_top_k(zero, zero, draw(T * draws, n), k)

    def mean_cv_squared(v):
        per_batch = v.reshape(draws, T, n).sum(axis=1)
        return (per_batch.var(axis=1) / per_batch.mean(axis=1) ** 2).mean()

    gate, p = to_numpy(gating.gate), to_numpy(gating.p)
    rows = to_numpy(paper.top_k_mask(gating.noisy, k)).astype(float)
    # a mean over 60 draws of about chi^2 with n - 1 degrees: 4 sigma of it
    allowed = 4 * math.sqrt(2 / ((n - 1) * draws))
    assert mean_cv_squared(rows) == pytest.approx((n / k - 1) / T, rel=allowed)
    q = (gate ** 2).sum(axis=1).mean()
    assert mean_cv_squared(gate) == pytest.approx((n * q - 1) / T, rel=allowed)
    assert mean_cv_squared(p) < 0.05 * mean_cv_squared(rows)     # the smooth load is far quieter


# -- Properties: balance -------------------------------------------------------------------------

@given(arrays(float, st.integers(1, 6), elements=st.floats(0.015625, 64)))
def test_cv_squared_is_of_any_scale_and_bounded(move, v):
    tensor = Tensor(move(v))
    loss = paper.cv_squared(tensor)
    n, found = len(v), float(loss)
    assert -1e-14 <= found <= n - 1 + 1e-12
    assert found == pytest.approx(n * (v ** 2).sum() / v.sum() ** 2 - 1, abs=1e-12)
    assert abs(float((move(v) * grad(loss, tensor)).sum())) < 1e-12
    for scale in (1e-200, 1e-310, 1e200):      # squares of these would be 0, or infinite
        assert float(paper.cv_squared(move(v * scale))) == pytest.approx(found, abs=1e-9)


def test_the_loss_of_a_batch_is_at_most_the_mean_of_its_parts(draw):
    gate = paper.gate_of_top_k(draw(512, 8), 2)
    whole = float(paper.importance_loss(paper.importance(gate)))
    parts = [float(paper.importance_loss(paper.importance(gate[64 * i:64 * i + 64])))
             for i in range(8)]
    assert 0 < 4 * whole < np.mean(parts)


def test_collapse_costs_what_the_bounds_say(move):
    # the same two of eight, with equal weight: n / k - 1; one takes all: n - 1
    two = move(np.tile([0.5, 0.5, 0, 0, 0, 0, 0, 0], (10, 1)))
    one = move(np.tile([1.0, 0, 0, 0], (10, 1)))
    close(paper.importance_loss(paper.importance(two)), 3.0)
    close(paper.importance_loss(paper.importance(one)), 3.0)


# -- Properties: the layers ----------------------------------------------------------------------

def dense(params, x, gate):
    """Every expert on every row."""
    hidden = ops.relu(ops.einsum("td,edh->teh", x, params.w_in))
    return ops.einsum("te,teh,ehd->td", gate, hidden, params.w_out)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_sparse_layer_is_the_dense_sum(draw, flat, k):
    x, epsilon = draw(6, 4), draw(6, 5)
    out = paper.moe(flat, x, epsilon, k)
    close(out.y, dense(flat, x, out.gating.gate), 1e-13)
    close(out.importance.sum(), 6.0, 1e-13)
    assert int(paper.load_hard(out.routing, 5).sum()) == 6 * k
    if k == 5:                              # all of them without noise: Eq. (2)
        out = paper.moe(flat, x, 0, k)
        close(out.gating.gate, paper.softmax_gate(x, flat.gate.w_gate), 1e-14)


def test_no_noise_is_a_draw_of_zeros(draw, flat):
    x = draw(6, 4)
    for by_number, by_array in zip(tree.leaves(paper.moe(flat, x, 0, 2)),
                                   tree.leaves(paper.moe(flat, x, 0 * draw(6, 5), 2))):
        close(by_number, by_array, 0)


def test_one_expert_per_row_trains_the_gate_by_its_load_alone(draw, flat):
    """G is 1 where chosen; the paper asks for k > 1."""
    tensors, x = tree.map(Tensor, flat), draw(6, 4)
    out = paper.moe(tensors, x, draw(6, 5), k=1)
    assert to_numpy(out.routing.gate.array).tolist() == [[1.0]] * 6
    for loss, trains in [(out.y.sum(), False), (paper.importance_loss(out.importance), False),
                         (paper.load_loss(out.load), True)]:
        assert [bool(w.any()) for w in grad(loss, tensors).gate] == [trains, trains]


def test_choosing_all_is_in_balance(draw, flat):
    """There is no (k + 1)-th: P is 1, and the load loss 0 with a gradient of 0."""
    tensors, x = tree.map(Tensor, flat), draw(6, 4)
    for noisy_top_k in (paper.noisy_top_k, paper.noisy_top_k_tensor2tensor,
                        paper.noisy_top_k_davidmrau):
        out = paper.moe(tensors, x, draw(6, 5), 5, noisy_top_k)
        assert to_numpy(out.load.array).tolist() == [6.0] * 5
        loss = paper.load_loss(out.load)
        assert float(loss) == 0 and not any(w.any() for w in tree.leaves(grad(loss, tensors)))
        assert float(paper.importance_loss(out.importance)) > 0


def test_padding_does_not_count(draw, move, flat):
    x, epsilon = draw(7, 4), draw(7, 5)
    present = move(np.array([True, False, True, True, False, True, False]))
    rows = move(np.array([0, 2, 3, 5]))
    x[1] = math.nan                          # whatever it holds
    out, alone = paper.moe_of_rows(flat, x, present, epsilon, 2), paper.moe(
        flat, x[rows], epsilon[rows], 2)
    close(out.y[rows], alone.y, 0)
    close(out.load, alone.load, 0)
    assert not to_numpy(out.y[~present]).any()
    close(paper.moe_of_rows(flat, x, present, 0, 2).y[rows],
          to_numpy(paper.moe(flat, x[rows], 0, 2).y), 0)


@pytest.mark.parametrize("k1, k2", [(1, 1), (2, 2), (3, 4)])
def test_two_levels_are_the_sum_of_products(draw, move, hierarchical, k1, k2):
    x, epsilon = draw(9, 4), (draw(9, 3), draw(9, k1, 4))
    out = paper.hierarchical_moe(hierarchical, x, epsilon, (k1, k2))
    product = np.zeros((9, 12))
    np.put_along_axis(product, to_numpy(out.routing.expert), to_numpy(out.routing.gate), axis=1)
    assert ((product > 0).sum(axis=1) == k1 * k2).all()
    experts = paper.SparselyGatedParams(None, hierarchical.w_in.reshape(12, 4, 3),
                                        hierarchical.w_out.reshape(12, 3, 4))
    close(out.y, dense(experts, x, move(product)), 1e-13)
    close(out.importance, product.sum(axis=0).reshape(3, 4), 1e-13)
    close(out.importance.sum(), 9.0, 1e-13)
    if (k1, k2) == (3, 4):
        assert (to_numpy(out.load) == 9).all()


def test_one_group_is_the_flat_layer(draw, move, rng):
    params = move(drawn(rng, paper.hierarchical_init(rng, 1, 5, width=4, hidden=3)))
    flat = paper.SparselyGatedParams(*tree.map(lambda w: w[0], params[1:]))
    x, epsilon = draw(6, 4), draw(6, 5)
    found = paper.hierarchical_moe(params, x, (0, epsilon[:, None]), (1, 2))
    expected = paper.moe(flat, x, epsilon, 2)
    for name in ("y", "importance", "load"):
        close(getattr(found, name).reshape(-1), getattr(expected, name).reshape(-1), 1e-14)
    assert (found.routing.expert == expected.routing.expert).all()


def test_load_of_two_levels_counts_rows(draw, move, rng):
    """k1 k2 T in all, and at each expert about as many rows as it is given."""
    T, A, B, k1, k2 = 2000, 4, 6, 2, 2
    params = move(drawn(rng, paper.hierarchical_init(rng, A, B, 4, 1), 0.5))
    x = draw(T, 4)
    out = paper.hierarchical_moe(params, x, (draw(T, A), draw(T, k1, B)), (k1, k2))
    load = to_numpy(out.load)
    rows = np.bincount(to_numpy(out.routing.expert).ravel(), minlength=A * B).reshape(A, B)
    assert load.sum() == pytest.approx(k1 * k2 * T, rel=0.02)
    assert abs(load - rows).max() < 0.1 * rows.mean()


def test_strictly_balanced_gives_every_expert_m_rows(draw, move, rng):
    params = move(drawn(rng, paper.strictly_balanced_init(rng, 4, 4, 3)))
    for k, m in [(1, 2), (2, 5), (4, 10)]:
        out = paper.strictly_balanced_moe(params, draw(10, 4), k)
        assert to_numpy(out.routing.keep.sum(axis=0)).tolist() == [m] * 4
    # k = E: every row to every expert, which is Eq. (2)
    x = draw(10, 4)
    close(paper.strictly_balanced_moe(params, x, 4).y,
          dense(params, x, paper.softmax_gate(x, params.w_gate)), 1e-13)


@given(arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 3)),
              elements=st.sampled_from([0.1, 0.2, 0.3, 0.4])), st.data())
def test_the_threshold_loss_is_least_where_the_masks_agree(move, probs, data):
    T, E = probs.shape
    m = data.draw(st.integers(1, T))
    batch = paper.batchwise_mask(move(probs), m)
    for i in range(E):
        assert sorted(to_numpy(batch)[:, i].nonzero()[0]) == sorted(ranked(probs[:, i])[:m])
    threshold = np.array(data.draw(st.lists(st.sampled_from([0.05, 0.2, 0.25, 0.3, 0.35, 0.5]),
                                            min_size=E, max_size=E)))
    tensor = Tensor(move(threshold))
    loss = paper.threshold_loss(move(probs), tensor, m)
    disagree = (to_numpy(batch) != (probs > threshold)) & (probs != threshold)
    assert float(loss) > -1e-12 and (float(loss) > 1e-6) == disagree.any()
    assert to_numpy(grad(loss, tensor)).tolist() == (m - (probs > threshold).sum(axis=0)).tolist()


def test_thresholds_learn_the_balance_of_batches(draw, move, rng):
    """Gradient steps on batches of 256; then a fresh batch, without its neighbours' help."""
    w_gate, threshold = draw(8, 8), move(np.zeros(8))
    for step in range(200):
        tensor = Tensor(threshold)
        probs = paper.softmax_gate(draw(256, 8), w_gate)
        flow = grad(paper.threshold_loss(probs, tensor, paper.expert_capacity(256, 8, 2)), tensor)
        threshold = threshold - 1e-3 / (1 + step / 10) * flow
    probs = paper.softmax_gate(draw(2048, 8), w_gate)
    above, batch = paper.threshold_mask(probs, threshold), paper.batchwise_mask(probs, 512)
    assert float((above == batch).mean()) > 0.98
    assert abs(to_numpy(above.sum(axis=0)) / 512 - 1).max() < 0.1


def test_the_language_model_reads_forward_alone(draw, move, rng, flat):
    """All time steps make one batch for the MoE, and still no step sees a later one."""
    params = move(paper.language_model_init(rng, 7, 4, flat))
    words, epsilon = move(rng.integers(0, 7, (4, 2))), draw(8, 5)
    logits = paper.language_model(params, words, epsilon, 2).logits
    shorter = paper.language_model(params, words[:3], epsilon[:6], 2).logits
    close(shorter, logits[:3], 1e-14)
    assert logits.shape == (4, 2, 7)
    all_kept = paper.DropoutKeep(*[words[..., None] >= move(np.zeros(4, int))] * 4)
    close(paper.language_model(params, words, epsilon, 2, all_kept).logits, logits, 1e-14)


def test_dropout_falls_on_what_each_layer_adds(draw, move, rng, flat):
    """With all of it dropped, what is left is the layer's input; of the embedding, nothing."""
    params = move(paper.language_model_init(rng, 7, 4, flat))
    words, epsilon = move(rng.integers(0, 7, (3, 2))), draw(6, 5)
    none = move(np.zeros((3, 2, 4), bool))
    states = paper.language_model(params, words, epsilon, 2, paper.DropoutKeep(
        lstm_below=none, moe=none, lstm_above=none), 0.5).states
    embedded = nn.embedding(params.embedding, words)
    for state in states:
        close(state, embedded, 0)
    states = paper.language_model(params, words, epsilon, 2, paper.DropoutKeep(none), 0.5).states
    # of nothing, the LSTM without biases on its input makes nothing, and the MoE sigmoid(0)
    assert [set(to_numpy(state).ravel().tolist()) for state in states[:3]] == [{0}, {0}, {0.5}]


# -- Properties: Adam in little memory -----------------------------------------------------------

def descended(update, params, state, gradients, **settings):
    for flow in gradients:
        params, state = update(params, flow, state, learning_rate=0.1, epsilon=1e-6, **settings)
    return params, state


def test_factored_adam_is_adam_without_momentum_where_squares_have_rank_1(draw):
    """Squares a_t r c', of fixed r and c: and so every vector, and every number."""
    params = {"experts": draw(2, 3, 4), "b": draw(5), "number": draw()}
    row, column = draw(2, 3, 1), draw(2, 1, 4)
    gradients = []
    for _ in range(6):
        sign = ops.where(draw(2, 3, 4) > 0, 1.0, -1.0)
        gradients.append({"experts": sign * row * column * draw(2, 1, 1), "b": draw(5),
                          "number": draw()})
    found, state = descended(paper.factored_adam, params, adafactor_init(params), gradients)
    expected, _ = descended(adam, params, adam_init(params), gradients, beta1=0.0)
    for name in params:
        close(found[name], expected[name], 1e-13)
    assert state.step == 6
    assert [state.rows["experts"].shape, state.columns["experts"].shape] == [(2, 3, 1), (2, 1, 4)]


def test_factored_adam_leaves_alone_what_has_no_gradient(draw, move):
    """An expert without rows; and from its first row on, as if it had always been there."""
    w = draw(2, 3, 4)
    nothing, first = 0 * w, draw(2, 3, 4)
    found, state = paper.factored_adam([w], [nothing], adafactor_init([w]), learning_rate=0.1)
    close(found[0], w, 0)
    found, state = paper.factored_adam(found, [first], state, learning_rate=0.1)
    assert (found[0] != w).all()
    again, _ = paper.factored_adam(found, [nothing], state, learning_rate=0.1)
    close(again[0], found[0], 0)            # beta1 = 0: it does not coast
    single = paper.factored_adam([move(np.ones((2, 2), "float32"))],
                                 [move(np.ones((2, 2), "float32"))],
                                 adafactor_init([move(np.ones((2, 2), "float32"))]),
                                 learning_rate=np.float64(0.1))
    assert all(a.dtype == "float32" for a in tree.leaves([single[0], single[1].rows]))


# -- Edges ---------------------------------------------------------------------------------------

def test_ties_go_to_the_lower_index(draw, flat):
    """Evaluation with the gate at zero: all logits are 0, and exactly k are chosen."""
    at_zero = flat._replace(gate=tree.map(lambda w: 0 * w, flat.gate))
    out = paper.moe(at_zero, draw(4, 4), 0, 3)
    assert to_numpy(out.routing.expert).tolist() == [[0, 1, 2]] * 4
    close(out.gating.gate, [[1 / 3, 1 / 3, 1 / 3, 0, 0]] * 4, 1e-14)
    close(out.load, [2.0] * 5, 1e-14)        # at a tie, the chance of either is one half


def test_without_any_noise_p_is_a_step(move):
    clean = move(np.array([[2.0, 1.0, 1.0, 0.0]]))
    raw = Tensor(move(np.full((1, 4), -800.0)))           # Softplus underflows to 0
    noisy_clean = Tensor(clean)
    out = paper.noisy_top_k(noisy_clean, raw, move(np.ones((1, 4))), 2)
    assert to_numpy(out.std.array).tolist() == [[0.0] * 4]
    # thresholds: the third, 1, for the chosen two; the second, 1, for the others
    assert to_numpy(out.p.array).tolist() == [[1.0, 0.5, 0.5, 0.0]]
    for flow in grad(out.p.sum(), (noisy_clean, raw)):
        assert not to_numpy(flow).any()


def test_far_logits_saturate(move):
    clean, raw = move(np.array([[50.0, 0.0, -800.0]])), move(np.full((1, 3), 0.5413248546129181))
    tensor = Tensor(clean)
    out = paper.noisy_top_k(tensor, raw, move(np.zeros((1, 3))), 1)      # all deviations are 1
    assert to_numpy(out.p.array).tolist() == [[1.0, 0.0, 0.0]]
    assert not to_numpy(grad(out.p.sum(), tensor)).any()    # nothing calls the losers back
    # a gate may underflow to 0, and its expert is given the row all the same
    out = paper.noisy_top_k(clean, raw, move(np.zeros((1, 3))), 3)
    assert to_numpy(out.gate).tolist() == [[1.0, math.exp(-50.0), 0.0]]
    assert to_numpy(paper.load_hard(out.routing, 3)).tolist() == [1, 1, 1]


def test_one_expert_is_in_balance(draw, move, rng):
    params = tree.map(Tensor, move(drawn(rng, paper.init(rng, 1, width=4, hidden=3))))
    out = paper.moe(params, draw(3, 4), draw(3, 1), 1)
    for loss in (paper.importance_loss(out.importance), paper.load_loss(out.load),
                 paper.cv_squared_davidmrau(out.load)):
        assert loss.shape == () and float(loss) == 0
        assert not any(w.any() for w in tree.leaves(grad(loss, params)))


def test_a_batch_of_one(draw, flat):
    out = paper.moe(flat, draw(1, 4), draw(1, 5), 2)
    gate = to_numpy(out.gating.gate)
    close(paper.importance_loss(out.importance), 5 * (gate ** 2).sum() - 1, 1e-13)
    assert float(paper.importance_loss(out.importance)) >= 5 / 2 - 1


def test_a_batch_of_none(draw, move, rng, flat, hierarchical):
    x = draw(0, 4)
    balanced = move(paper.strictly_balanced_init(rng, 4, 4, 3))
    outs = [paper.moe(tree.map(Tensor, flat), x, draw(0, 5), 2),
            paper.hierarchical_moe(hierarchical, x, (draw(0, 3), draw(0, 2, 4)), (2, 2)),
            paper.strictly_balanced_moe(balanced, x, 2), paper.threshold_moe(balanced, x, 2)]
    for out in outs:
        assert out.y.shape == (0, 4) and float(paper.importance_loss(out.importance)) == 0
    assert [float(paper.load_loss(out.load)) for out in outs[:2]] == [0, 0]
    assert [float(out.threshold_loss) for out in outs[2:]] == [0, 0]


def test_no_load_at_all_is_in_balance(move):
    v = Tensor(move(np.zeros(4)))
    for cv_squared in (paper.cv_squared, paper.cv_squared_tensor2tensor,
                       paper.cv_squared_davidmrau):
        assert float(cv_squared(v)) == 0 and not to_numpy(grad(cv_squared(v), v)).any()


def test_a_group_without_rows_has_no_load_and_no_gradient(draw, move, hierarchical):
    x = draw(6, 4)
    x[:, 0] = 1
    hierarchical.primary.w_gate[0, 1] = -60
    params = tree.map(Tensor, hierarchical)
    out = paper.hierarchical_moe(params, x, (draw(6, 3), draw(6, 2, 4)), (2, 2))
    assert not to_numpy(out.load.array)[1].any() and not to_numpy(out.importance.array)[1].any()
    loss = out.y.sum() + paper.load_loss(out.load)
    found = grad(loss, params)
    for w in (*found.secondary, found.w_in, found.w_out):
        assert w[0].any() and not w[1].any() and w[2].any()


@pytest.mark.parametrize("layer", ["flat", "hierarchical", "strictly_balanced", "language_model"])
def test_everything_keeps_the_dtype_it_is_given(draw, move, rng, flat, hierarchical, layer):
    def single(params):
        return tree.map(lambda w: Tensor(w.astype("float32")), params)

    x = draw(6, 4).astype("float32")
    if layer == "flat":
        params = single(flat)
        out = paper.moe(params, x, draw(6, 5).astype("float32"), 2)
    elif layer == "hierarchical":
        params = single(hierarchical)
        epsilon = draw(6, 3).astype("float32"), draw(6, 2, 4).astype("float32")
        out = paper.hierarchical_moe(params, x, epsilon, (2, 2))
    elif layer == "strictly_balanced":
        params = single(move(drawn(rng, paper.strictly_balanced_init(rng, 4, 4, 3))))
        out = paper.strictly_balanced_moe(params, x, 2)
    else:
        params = single(move(paper.language_model_init(rng, 7, 4, flat)))
        keep = paper.DropoutKeep(*[move(rng.random((3, 2, 4)) >= 0.5)] * 4)
        out = paper.language_model(params, move(rng.integers(0, 7, (3, 2))), 0, 2, keep, 0.5)
    tensors = [leaf for leaf in tree.leaves(out) if isinstance(leaf, Tensor)]
    assert len(tensors) >= 3 and {t.dtype.name for t in tensors} == {"float32"}
    loss = tensors[0].sum() + paper.importance_loss(out.importance)
    if hasattr(out, "load"):
        loss = loss + paper.load_loss(out.load)
    assert {w.dtype.name for w in tree.leaves(grad(loss, params))} == {"float32"}


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    params = paper.init(rng, n_experts=6, width=20, hidden=30)
    assert [w.shape for w in tree.leaves(params)] == [(20, 6), (20, 6), (6, 20, 30), (6, 30, 20)]
    assert not params.gate.w_gate.any() and not params.gate.w_noise.any()
    assert params.w_in.std() == pytest.approx(math.sqrt(2 / 20), rel=0.05)
    assert params.w_out.std() == pytest.approx(math.sqrt(1 / 30), rel=0.05)
    levels = paper.hierarchical_init(rng, 3, 4, width=20, hidden=30)
    assert [w.shape for w in tree.leaves(levels)] == [
        (20, 3), (20, 3), (3, 20, 4), (3, 20, 4), (3, 4, 20, 30), (3, 4, 30, 20)]
    model = paper.language_model_init(rng, 50, 20, params)
    assert model.embedding.table.std() == pytest.approx(0.1, rel=0.1)
    assert model.lstm_below.w_in.std() == pytest.approx(1 / math.sqrt(40), rel=0.1)
    assert model.lstm_above.b.reshape(4, 20).mean(axis=1).tolist() == [0, 1, 0, 0]
    gate = paper.gate_init_fastmoe(rng, 50, 16)
    assert [w.shape for w in gate] == [(50, 16)] * 2 and 0.24 < abs(gate.w_gate).max() < 0.25


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("k", [0, 6, -1, 1.5, 2.0, "2"])
def test_another_number_of_experts_than_there_are_is_refused(draw, flat, hierarchical, k):
    x = draw(3, 4)
    with pytest.raises(ValueError, match=f"moe: k must be a whole number between 1 and 5 .* {k}"):
        paper.moe(flat, x, 0, k)
    for pair, E in [((k, 1), 3), ((1, k), 4)]:
        with pytest.raises(ValueError, match=f"hierarchical_moe: k must be .* 1 and {E} experts"):
            paper.hierarchical_moe(hierarchical, x, (0, 0), pair)
    balanced = paper.StrictlyBalancedParams(flat.gate.w_gate, flat.gate.w_gate[0], *flat[1:])
    for layer in (paper.strictly_balanced_moe, paper.threshold_moe):
        with pytest.raises(ValueError, match=f"{layer.__name__}: k must be a whole number"):
            layer(balanced, x, k)


@pytest.mark.parametrize("x, epsilon, message", [
    ((2, 3, 4), (6, 5), r"moe: x must be \[T, 4\].* got \(2, 3, 4\)"),
    ((6, 3), (6, 5), r"moe: x must be \[T, 4\].* got \(6, 3\)"),
    ((6, 4), (6, 4), r"moe: epsilon must be \[6, 5\], or the number 0; got \(6, 4\)"),
    ((6, 4), (1, 5), r"moe: epsilon must be \[6, 5\], or the number 0; got \(1, 5\)")])
def test_shapes_that_do_not_match_are_refused(draw, flat, x, epsilon, message):
    with pytest.raises(ValueError, match=message):
        paper.moe(flat, draw(*x), draw(*epsilon), 2)


def test_draws_of_two_levels_that_do_not_match_are_refused(draw, hierarchical):
    x = draw(6, 4)
    with pytest.raises(ValueError, match=r"hierarchical_moe: epsilon must be \[6, 3\]"):
        paper.hierarchical_moe(hierarchical, x, (draw(6, 4), draw(6, 2, 4)), (2, 2))
    with pytest.raises(ValueError, match=r"hierarchical_moe: epsilon must be \[6, 2, 4\]"):
        paper.hierarchical_moe(hierarchical, x, (draw(6, 3), draw(6, 3, 4)), (2, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "w_gate", "w_noise", "epsilon"])
def test_what_is_not_finite_is_refused(draw, flat, hierarchical, where, bad):
    arguments = {"x": draw(6, 4), "epsilon": draw(6, 5), **flat.gate._asdict()}
    arguments[where][1, 2] = bad
    params = flat._replace(gate=paper.GateParams(arguments["w_gate"], arguments["w_noise"]))
    with pytest.raises(ValueError, match=f"moe: {where} must be finite"):
        paper.moe(tree.map(Tensor, params), arguments["x"], arguments["epsilon"], 2)
    if where == "x":
        with pytest.raises(ValueError, match="hierarchical_moe: x must be finite"):
            paper.hierarchical_moe(hierarchical, arguments["x"], (0, 0), (1, 1))
        balanced = paper.StrictlyBalancedParams(flat.gate.w_gate, flat.gate.w_gate[0], *flat[1:])
        with pytest.raises(ValueError, match="strictly_balanced_moe: x must be finite"):
            paper.strictly_balanced_moe(balanced, arguments["x"], 2)


def test_logits_that_overflow_are_refused(draw, flat):
    large = flat._replace(gate=tree.map(lambda w: 1e200 * w, flat.gate))
    with np.errstate(over="ignore", invalid="ignore"):
        with pytest.raises(ValueError, match="noisy_logits: logits must be finite"):
            paper.moe(large, 1e200 * draw(6, 4), draw(6, 5), 2)
        with pytest.raises(ValueError, match="softmax_gate: logits must be finite"):
            paper.softmax_gate(1e200 * draw(6, 4), large.gate.w_gate)


def test_a_dropout_rate_of_1_is_refused(draw, move, rng, flat):
    params = move(paper.language_model_init(rng, 7, 4, flat))
    words, keep = move(rng.integers(0, 7, (3, 2))), move(np.ones((3, 2, 4), bool))
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\); got 1"):
        paper.language_model(params, words, 0, 2, paper.DropoutKeep(moe=keep), 1)


def test_bad_input_of_factored_adam(draw):
    w, state = {"w": draw(3, 4)}, adafactor_init({"w": draw(3, 4)})
    for setting in [{"learning_rate": -1}, {"beta2": 1.0}, {"beta2": -0.1}, {"epsilon": -1},
                    {"epsilon": math.nan}, {"learning_rate": math.inf}]:
        with pytest.raises(ValueError, match="factored_adam: settings must be at least 0, finite"):
            paper.factored_adam(w, w, state, **{"learning_rate": 0.1, **setting})
    with pytest.raises(ValueError, match=r"like the parameters; got \(4, 3\) for \(3, 4\)"):
        paper.factored_adam(w, {"w": draw(4, 3)}, state, learning_rate=0.1)
    with pytest.raises(ValueError, match="the trees differ"):
        paper.factored_adam(w, {"v": draw(3, 4)}, state, learning_rate=0.1)
    with pytest.raises(TypeError, match="the parameters' dtype; got float32 for float64"):
        paper.factored_adam(w, {"w": draw(3, 4).astype("float32")}, state, learning_rate=0.1)
