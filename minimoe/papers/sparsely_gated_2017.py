"""Sparsely-gated mixtures of experts: a noisy gate picks a few of very many.

N. Shazeer, A. Mirhoseini, K. Maziarz, A. Davis, Q. Le, G. Hinton and J. Dean, "Outrageously Large
Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017. arXiv:1701.06538v1.

    here         paper                  meaning
    T            |X|, b                 rows of a batch, all time steps run together
    D            d                      width of a row
    E, k         n, k                   experts, experts chosen per row
    A, B         a, b                   groups and experts in each, of the hierarchical layer
    H            --                     hidden width of an expert; the paper's H(x) is ``noisy``
    clean, std   x W_g, Softplus(...)   logits without noise, standard deviation of theirs
    epsilon      StandardNormal()       the draw, given by the caller; 0 for no noise
    noisy        H(x)                   noisy logits
    gate         G(x)                   weights of the experts' outputs; 0 for those not chosen
    threshold    kth_excluding(...)     what an expert's noisy logit must exceed to be chosen
    p            P(x, i)                probability that it would, were its noise drawn again
    m            m                      rows per expert, strictly balanced

There is no capacity: no expert turns a row away. Losses come without their weights w.

Where sources part, the text is the default. T2T is tensor2tensor's expert_utils.py (bafdc1b), DM
davidmrau/mixture-of-experts (f662999), FM the NoisyGate of the FastMoE family, VM vmoe (942a78b):

    noise's std        text: Softplus; T2T, DM, FM add 1e-2: noise_std_tensor2tensor
                       VM: 1 / E for all experts, not learnt: noise_std_vmoe
    gate               text, T2T, FM: softmax of the top k; DM: softmax of all, of which the top k
                       are divided by (their sum + 1e-6): gate_davidmrau
    threshold          text, T2T, FM: kth_excluding; VM counts the expert itself: kth_inclusive
                       DM compares logits with probabilities, an error: threshold_davidmrau
    its gradient       text: not said; here, and in all of these, it passes; to hold it, give
                       load_probability the stop_gradient of a threshold
    k = E              text: not said; here P = 1; T2T, DM, FM: load_hard, which is the same
    no noise           text: not said; here Eq. (9) all the same, epsilon being 0; T2T: std is 0 as
                       well, noisy_top_k_tensor2tensor_evaluation; DM: load_hard
    importance         text, T2T, DM, FM: of the gate; VM: of ``softmax_gate``
    CV                 text: not said of what variance; population: T2T, VM, here; T2T adds 1e-10:
                       cv_squared_tensor2tensor; DM, FM take the sample's: cv_squared_davidmrau
    batch              text: whole; VM: losses of each group of rows by itself
    weights w          text: two; T2T, DM: 1e-2 for both
    gate at the start  text, T2T, DM: 0; FM: uniform, gate_init_fastmoe
    experts            text: two matrices and relu; T2T: the second times sqrt(D / H); DM: a softmax
                       of what each gives, not built
    sum of outputs     text: linear; DM before December 2023: combine_log_space
    output             text: sigmoid, dropout and residual around the layer; T2T, DM: the bare sum
    hierarchical CV    text: not said; here over all A * B, no further one over groups
    group of no row    text: Eq. (14) is 0 / 0; here its load is 0
    m                  text: k T / E, not said where that is no whole number; here rounded down
    other top-k gates  mesh (da90793) and T2T on TPUs limit capacity: not built
"""
import math
from typing import Any, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import is_array, namespace
from minimoe.optim import AdafactorState, adafactor_init, inverse_square_root, linear_warmup
from minimoe.routing.dispatch import Routing, gather, packed_seats
from minimoe.routing.experts import expert_feed_forward, expert_intermediates, ragged_matmul
from minimoe.routing.topk import choice_margin, group, slots, top_k

CERTAIN = 40    # standard deviations: beyond, the normal distribution and its density underflow


# -- Gates, Section 2.1 --------------------------------------------------------------------------

class GateParams(NamedTuple):
    w_gate: Tensor    # [D, E]
    w_noise: Tensor   # [D, E]


def gate_init(width, n_experts):
    """Zeros, so that all experts begin with equal load (Appendix A): the noise alone decides."""
    zeros = namespace().zeros
    return GateParams(zeros((width, n_experts)), zeros((width, n_experts)))


def softmax_gate(x, w_gate):
    """The gate that is not sparse, Eq. (2), again Eq. (15). [T, D], [D, E] -> [T, E]"""
    return ops.softmax(_finite("softmax_gate", x @ w_gate))


def noise_std(raw):
    """Softplus(x W_noise), of Eq. (4). [T, E] -> [T, E]"""
    return ops.softplus(raw)


def noisy_logits(clean, std, epsilon):
    """H(x), Eq. (4). [T, E], [T, E], [T, E] -> [T, E]

    ValueError where NaN or infinity comes of it, here and in ``softmax_gate``: sorting would rank
    NaN last without a word.
    """
    return _finite("noisy_logits", clean + epsilon * std)


def _finite(name, logits):
    if not (abs(stop_gradient(logits)) < math.inf).all():
        raise ValueError(f"{name}: logits must be finite; rows or weights are too large")
    return logits


def keep_top_k(logits, k):
    """-inf for all but the k largest of a row; of equals, the lower index is kept. Eq. (5)

    [T, E] -> [T, E]
    """
    return ops.where(top_k_mask(logits, k), logits, -math.inf)


def gate_of_top_k(noisy, k):
    """G(x) = Softmax(KeepTopK(H(x), k)), Eq. (3). [T, E] -> [T, E]

    For k = 1 it is 1, and no gradient of the task reaches the gate.
    """
    return ops.softmax(keep_top_k(noisy, k))


# -- Balance, Section 4 and Appendix A -----------------------------------------------------------

def importance(gate):
    """What the gate gave each expert, Eq. (6). [T, E] -> [E]"""
    return gate.sum(axis=0)


def importance_loss(importance):
    """CV(Importance)^2, Eq. (7) without w. [E] -> []"""
    return cv_squared(importance)


def kth_excluding(noisy, k):
    """The k-th largest of a row with entry i left out, for each i; of Eq. (8). [T, E] -> [T, E]

    Expert i is chosen where its logit exceeds it. That is the (k + 1)-th largest of the whole row
    for those that are chosen, the k-th for the others. With k = E nothing is in the way: -inf.
    """
    if k == noisy.shape[1]:
        return 0 * stop_gradient(noisy) - math.inf
    largest = ops.take_along_axis(noisy, top_k(noisy, k + 1))            # [T, k+1]
    return ops.where(top_k_mask(noisy, k), largest[:, k:], largest[:, k - 1:k])


def load_probability(clean, std, threshold):
    """P(x, i) = Phi((clean - threshold) / std), Eq. (9). [T, E], [T, E], [T, E] -> [T, E]

    The other experts' noise stays as drawn, in the threshold, through which the gradient passes.
    Where std is 0 it is a step, 1/2 at the threshold, with a gradient of 0.
    """
    margin = clean - threshold
    above = stop_gradient(margin)
    certain = abs(above) >= CERTAIN * stop_gradient(std)
    end = ((above > 0) * CERTAIN - (above < 0) * CERTAIN).astype(above.dtype)
    return ops.normal_cdf(ops.where(certain, end, margin) / ops.where(certain, 1.0, std))


def load(p):
    """How many rows each expert can expect, Eq. (10). [T, E] -> [E]"""
    return p.sum(axis=0)


def load_loss(load):
    """CV(Load)^2, Eq. (11) without w. [E] -> []"""
    return cv_squared(load)


def cv_squared(v):
    """Variance over squared mean, of Eqs. (7) and (11). [E] or [A, B] -> []

    The variance is a population's, of v / mean, as squares of small loads would underflow; 0 where
    the mean is 0. Of a batch it is at most the mean over equal parts of it, so that losses of the
    parts, added up, ask for more.
    """
    mean = v.mean()
    return ops.var(v / ops.where(mean == 0, 1.0, mean))


# -- The layer, Section 2 ------------------------------------------------------------------------

class SparselyGatedParams(NamedTuple):
    gate: GateParams
    w_in: Tensor    # [E, D, H]
    w_out: Tensor   # [E, H, D]


class Gating(NamedTuple):
    clean: Tensor       # [T, E]
    std: Tensor         # [T, E]
    noisy: Tensor       # [T, E]
    gate: Tensor        # [T, E]
    p: Tensor           # [T, E]
    routing: Routing    # of the k chosen: its gates are those of ``gate``, the largest first


class SparselyGatedOutput(NamedTuple):
    y: Tensor            # [T, D]
    importance: Tensor   # [E]
    load: Tensor         # [E]
    routing: Routing
    gating: Gating


def init(rng, n_experts, width, hidden):
    """The gate at zero (Appendix A); experts, of which the paper says nothing, from normal draws.

    Their variance is 2 / D into the relu and 1 / H out of it.
    """
    return SparselyGatedParams(gate_init(width, n_experts),
                               *_experts_init(rng, (n_experts,), width, hidden))


def _experts_init(rng, n_experts, width, hidden):
    return (math.sqrt(2 / width) * rng.standard_normal((*n_experts, width, hidden)),
            math.sqrt(1 / hidden) * rng.standard_normal((*n_experts, hidden, width)))


def noisy_top_k(clean, raw, epsilon, k, noise_std=noise_std, gate_of_top_k=gate_of_top_k,
                threshold=kth_excluding):
    """Noisy top-k gating and its load, Eqs. (3)-(5) and (9), of x W_g and x W_noise. -> Gating

    The parts in which others differ may be exchanged for theirs. [T, E], [T, E], [T, E]
    """
    std = noise_std(raw)
    noisy = noisy_logits(clean, std, epsilon)
    gate = gate_of_top_k(noisy, k)
    p = load_probability(clean, std, threshold(noisy, k))
    expert = top_k(noisy, k)                                             # [T, k]
    routing = Routing(expert, slots(expert, noisy.shape[1]), expert >= 0,
                      ops.take_along_axis(gate, expert))
    return Gating(clean, std, noisy, gate, p, routing)


def moe(params, x, epsilon, k, noisy_top_k=noisy_top_k):
    """y = sum_i G(x)_i E_i(x), Eq. (1), over the experts chosen. [T, D], [T, E] -> [T, D]

    An expert is a layer of relu units between two matrices (Appendix C.1). ``epsilon`` is a draw
    from the standard normal, or the number 0 for no noise; ``noisy_top_k`` another's gating.
    ValueError where x is not [T, D], epsilon not [T, E] or k no whole number between 1 and E, and
    for NaN or infinity in x, epsilon, the gate's weights or the logits.
    """
    w_gate, w_noise = params.gate
    _check("moe", x, params.gate, epsilon, k, w_gate.shape[:1], w_gate.shape[1:])
    gating = noisy_top_k(x @ w_gate, x @ w_noise, epsilon, k)
    y = expert_feed_forward(x, gating.routing, params.w_in, params.w_out)
    return SparselyGatedOutput(y, importance(gating.gate), load(gating.p), gating.routing, gating)


def moe_of_rows(params, x, present, epsilon, k, noisy_top_k=noisy_top_k):
    """``moe`` of the rows that ``present``, [T] bool, is True for: padding must not count as load.

    The other rows are 0; the routing is that of the rows left. [T, D], [T, E] -> [T, D]
    """
    rows = present.nonzero()[0]
    out = moe(params, x[rows], epsilon[rows] if is_array(epsilon) else epsilon, k, noisy_top_k)
    zeros = namespace(present).zeros(x.shape, x.dtype)
    return out._replace(y=ops.scatter_add(zeros, rows, out.y))


def _check(name, x, gate, epsilon, k, width, n_experts):
    if x.ndim != 2 or x.shape[1:] != width:
        raise ValueError(f"{name}: x must be [T, {width[0]}], all leading axes run together; "
                         f"got {x.shape}")
    E = n_experts[-1]
    if k not in range(1, E + 1) or not hasattr(k, "__index__"):
        raise ValueError(f"{name}: k must be a whole number between 1 and {E} experts; got {k}")
    if is_array(epsilon) and epsilon.shape != (len(x), *n_experts):
        raise ValueError(f"{name}: epsilon must be {[len(x), *n_experts]}, or the number 0; "
                         f"got {epsilon.shape}")
    for argument, a in [("x", x), ("w_gate", gate.w_gate), ("w_noise", gate.w_noise),
                        ("epsilon", epsilon)]:
        a = stop_gradient(a)
        if is_array(a) and not (abs(a) < math.inf).all():
            raise ValueError(f"{name}: {argument} must be finite")


# -- Two levels, Appendix B ----------------------------------------------------------------------

class HierarchicalParams(NamedTuple):
    primary: GateParams     # [D, A]
    secondary: GateParams   # [A, D, B]
    w_in: Tensor            # [A, B, D, H]
    w_out: Tensor           # [A, B, H, D]


class HierarchicalOutput(NamedTuple):
    y: Tensor            # [T, D]
    importance: Tensor   # [A, B]
    load: Tensor         # [A, B]
    routing: Routing     # over A * B experts, those of a group side by side; k1 * k2 for each row
    primary: Gating      # [T, A]
    secondary: Gating    # [R, B]   R = T * k1: the rows of the first group, those of the second ...


def hierarchical_init(rng, n_groups, group_size, width, hidden):
    """As ``init``: all gates at zero."""
    zeros = namespace().zeros
    shape = n_groups, width, group_size
    return HierarchicalParams(
        gate_init(width, n_groups), GateParams(zeros(shape), zeros(shape)),
        *_experts_init(rng, (n_groups, group_size), width, hidden))


def hierarchical_moe(params, x, epsilon, k):
    """A gate over groups, and in each group chosen one over its experts. Eqs. (12)-(14)

    ``k`` is a pair: groups per row, experts per group. So is ``epsilon``: [T, A] and [T, k1, B],
    the draws of a row's groups in the order of its choice, the best first; or 0 and 0. No other
    gate of the second level is computed. Errors as in ``moe``. [T, D] -> [T, D]
    """
    A, D, B = params.secondary.w_gate.shape
    k1, k2 = k
    _check("hierarchical_moe", x, params.primary, epsilon[0], k1, (D,), (A,))
    _check("hierarchical_moe", x, params.secondary, epsilon[1], k2, (D,), (k1, B))
    w_gate, w_noise = params.primary
    primary = noisy_top_k(x @ w_gate, x @ w_noise, epsilon[0], k1)
    group, _, keep, group_gate = primary.routing                         # [T, k1]

    seats, ends = packed_seats(group, keep, A)                           # R = T * k1, by group
    rows = gather(x, seats)                                              # [R, D]
    w_gate, w_noise = params.secondary
    drawn = epsilon[1].reshape(-1, B)[seats.choice] if is_array(epsilon[1]) else epsilon[1]
    secondary = noisy_top_k(ragged_matmul(rows, w_gate, ends=ends),      # [R, B]
                            ragged_matmul(rows, w_noise, ends=ends), drawn, k2)
    product = group_gate.reshape(-1)[seats.choice][:, None] * secondary.gate    # [R, B]

    expert = group[:, :, None] * B + secondary.routing.expert[seats.seat]       # [T, k1, k2]
    expert = expert.reshape(len(x), k1 * k2)
    gate = group_gate[:, :, None] * secondary.routing.gate[seats.seat]          # [T, k1, k2]
    routing = Routing(expert, slots(expert, A * B), expert >= 0, gate.reshape(*expert.shape))
    w_in, w_out = (w.reshape(A * B, *w.shape[2:]) for w in params[2:])
    y = expert_feed_forward(x, routing, w_in, w_out)                     # [T, D]    Eq. (12)

    parts = [slice(ends[i], ends[i + 1]) for i in range(A)]              # X^(i)
    load_of_group = load(primary.p)                                      # [A]
    return HierarchicalOutput(
        y,
        ops.stack([importance(product[part]) for part in parts]),        # [A, B]    Eq. (13)
        ops.stack([load_of_group[i] * load(secondary.p[part]) / max(part.stop - part.start, 1)
                   for i, part in enumerate(parts)]),                    # [A, B]    Eq. (14)
        routing, primary, secondary)


# -- Around the layer: a language model, Appendix C.1 --------------------------------------------

class LanguageModelParams(NamedTuple):
    embedding: nn.EmbeddingParams   # [V, D]
    lstm_below: nn.LSTMParams       # of D units
    moe: SparselyGatedParams        # or HierarchicalParams
    lstm_above: nn.LSTMParams       # of D units
    w_softmax: Tensor               # [D, V]


class DropoutKeep(NamedTuple):
    """Which outputs of a layer dropout lets be, [S, B, D] bool, True with probability 1 - DropProb.

    None is all of them, and unscaled.
    """
    embedding: Any = None
    lstm_below: Any = None
    moe: Any = None
    lstm_above: Any = None


class LanguageModelOutput(NamedTuple):
    logits: Tensor       # [S, B, V]
    importance: Tensor   # [E], or [A, B]
    load: Tensor
    routing: Routing     # T = S * B, the words of one time step side by side
    states: tuple = ()   # [S, B, D] above each of the layers that ``DropoutKeep`` names


def language_model_init(rng, vocabulary, width, moe):
    """Around the parameters of a layer; the paper gives no scales.

    Embedding N(0, 0.1^2), LSTMs N(0, 1 / 2D) with a bias of 1 at the forget gate and 0 elsewhere,
    softmax N(0, 1 / D).
    """
    D = width

    def lstm():
        w_in, w_hidden = rng.standard_normal((2, D, 4 * D)) / math.sqrt(2 * D)
        b = namespace().zeros(4 * D)
        b[D:2 * D] = 1
        return nn.LSTMParams(w_in, w_hidden, b)

    return LanguageModelParams(nn.EmbeddingParams(0.1 * rng.standard_normal((vocabulary, D))),
                               lstm(), moe, lstm(),
                               rng.standard_normal((D, vocabulary)) / math.sqrt(D))


def language_model(params, words, epsilon, k, keep=DropoutKeep(), drop_prob=0.0, layer=moe):
    """Embedding, LSTM, MoE, LSTM and softmax: the logits of what comes next (Appendix C.1).

    The MoE is applied to all time steps at once, as to one batch (Section 3.1), and has a sigmoid.
    Every layer but the softmax then has dropout and after it, but for the embedding, its input
    added. ``layer`` is ``moe`` or ``hierarchical_moe``, and ``epsilon`` and ``k`` are its own, with
    T = S * B. [S, B] int -> [S, B, V]
    """
    def dropout(y, keep):
        return y if keep is None else nn.dropout(y, keep, drop_prob)

    S, B = words.shape
    embedded = dropout(nn.embedding(params.embedding, words), keep.embedding)       # [S, B, D]
    below = embedded + dropout(nn.lstm(params.lstm_below, embedded).hidden, keep.lstm_below)
    out = layer(params.moe, below.reshape(S * B, -1), epsilon, k)                   # [S*B, D]
    mixed = below + dropout(ops.sigmoid(out.y).reshape(S, B, -1), keep.moe)         # [S, B, D]
    above = mixed + dropout(nn.lstm(params.lstm_above, mixed).hidden, keep.lstm_above)
    return LanguageModelOutput(above @ params.w_softmax, out.importance, out.load, out.routing,
                               (embedded, below, mixed, above))


def learning_rate_factor(step, n_warmup=1000):
    """Up in a line, then with 1 / sqrt(t): Appendix C.1. What follows ``step`` updates, at most 1.

    The paper gives neither the highest rate nor whether it is reached without a jump: here it is.
    """
    return linear_warmup(step, n_warmup) * inverse_square_root(step, n_warmup)


# -- Parameters and operations, Tables 7 and 8 ---------------------------------------------------
# Without embedding and softmax, and without biases. An operation is a multiplication with an
# addition, forward, for one word.

def lstm_parameters(n_inputs, n_units, n_outputs=None):
    """Weights of an LSTM, as many as its operations; its output may be projected, and fed back."""
    if n_outputs is None:
        return 4 * (n_inputs + n_units) * n_units
    return 4 * (n_inputs + n_outputs) * n_units + n_units * n_outputs


def expert_parameters(width, hidden):
    """Weights of one expert, as many as its operations."""
    return 2 * width * hidden


def gate_parameters(width, n_experts):
    """Weights of a noisy gate, as many as its operations."""
    return 2 * width * n_experts


def moe_parameters(width, hidden, n_experts):
    """Weights of a flat layer."""
    return n_experts * expert_parameters(width, hidden) + gate_parameters(width, n_experts)


def moe_operations(width, hidden, n_experts, k):
    """Operations of a flat layer."""
    return k * expert_parameters(width, hidden) + gate_parameters(width, n_experts)


def hierarchical_parameters(width, hidden, n_groups, group_size):
    """Weights of a hierarchical layer."""
    return (gate_parameters(width, n_groups)
            + n_groups * moe_parameters(width, hidden, group_size))


def hierarchical_operations(width, hidden, n_groups, group_size, k):
    """Operations of a hierarchical layer, ``k`` a pair: the gates of the chosen groups alone."""
    return (gate_parameters(width, n_groups)
            + k[0] * moe_operations(width, hidden, group_size, k[1]))


# -- Adam in little memory, Appendix D -----------------------------------------------------------
# No mean of gradients is kept (beta1 = 0); of the mean of their squares, only averages of each row
# and of each column. The paper does this for the experts. It leaves open beta2 and epsilon (here
# Adam's), the correction for a start at 0 (here Adam's), vectors (here a matrix of one row, which
# is Adam without momentum), stacks of matrices (here each by itself) and a matrix that never had a
# gradient, of which the mean is 0 (here it stays as it is).

def factored_adam(params, gradients, state, *, learning_rate, beta2=0.999, epsilon=1e-8):
    """Adam with beta1 = 0 and ``factored_second_moment`` in place of its second: Appendix D.

    Adam is arXiv:1412.6980v9; trees in and out are as in ``minimoe.optim``, and the state begins as
    that of ``adafactor_init``.
    ValueError where trees or shapes do not match or a setting is out of range, TypeError for
    gradients of another dtype.
    """
    if not (0 <= learning_rate < math.inf and 0 <= beta2 < 1 and 0 <= epsilon < math.inf):
        raise ValueError(f"factored_adam: settings must be at least 0, finite, and beta2 below 1; "
                         f"got {learning_rate}, {beta2} and {epsilon}")
    learning_rate, beta2, epsilon = float(learning_rate), float(beta2), float(epsilon)
    params, gradients = tree.map(stop_gradient, params), tree.map(stop_gradient, gradients)
    squares = tree.map(_squares_of_matrix, params, gradients, state.rows, state.columns)
    rows = tree.map(lambda r, s: beta2 * r + (1 - beta2) * s.mean(axis=-1, keepdims=True),
                    state.rows, squares)                                 # [..., I, 1]
    columns = tree.map(lambda c, s: beta2 * c + (1 - beta2) * s.mean(axis=-2, keepdims=True),
                       state.columns, squares)                           # [..., 1, J]
    t = state.step + 1

    def updated(p, g, r, c):
        v_hat = factored_second_moment(r, c).reshape(g.shape) / (1 - beta2 ** t)
        return p - learning_rate * g / (ops.sqrt(v_hat) + epsilon)

    return tree.map(updated, params, gradients, rows, columns), AdafactorState(t, rows, columns)


def factored_second_moment(rows, columns):
    """Averages of rows times those of columns, over the mean of either: Appendix D.

    Exact for a matrix of rank 1; 0 where all averages are. [..., I, 1], [..., 1, J] -> [..., I, J]
    """
    mean = rows.mean(axis=-2, keepdims=True)                             # [..., 1, 1]
    return rows / ops.where(mean == 0, 1.0, mean) * columns


def _squares_of_matrix(p, g, rows, columns):
    """g * g, [..., I, J], once it is seen to fit its parameter."""
    if g.shape != p.shape:
        raise ValueError(f"factored_adam: gradients must be shaped like the parameters; "
                         f"got {g.shape} for {p.shape}")
    if g.dtype != p.dtype:
        raise TypeError(f"factored_adam: gradients must have the parameters' dtype; "
                        f"got {g.dtype} for {p.dtype}")
    return (g * g).reshape(*rows.shape[:-1], columns.shape[-1])


# -- Learning rate of the translation models, Appendix E -----------------------------------------

def translation_learning_rate_factor(step, n_warmup=2000, n_constant=8000):
    """``learning_rate_factor`` with a stretch at its highest: Appendix E."""
    return linear_warmup(step, n_warmup) * inverse_square_root(step, n_warmup + n_constant)


# -- Strictly balanced gating, Appendix F --------------------------------------------------------

class StrictlyBalancedParams(NamedTuple):
    w_gate: Tensor      # [D, E]
    threshold: Tensor   # [E]      the paper's T
    w_in: Tensor        # [E, D, H]
    w_out: Tensor       # [E, H, D]


class StrictlyBalancedOutput(NamedTuple):
    y: Tensor                 # [T, D]
    importance: Tensor        # [E]
    threshold_loss: Tensor    # []       Eq. (20)
    routing: Routing          # K = E: each row with each expert, and ``keep`` says which are meant


def strictly_balanced_init(rng, n_experts, width, hidden):
    """Gate and thresholds at zero, experts as in ``init``."""
    zeros = namespace().zeros
    return StrictlyBalancedParams(zeros((width, n_experts)), zeros(n_experts),
                                  *_experts_init(rng, (n_experts,), width, hidden))


def masked_gate(probs, mask):
    """The gate of Eq. (16): a masked softmax, normalised; 0 for a row without an expert.

    [T, E], [T, E] bool -> [T, E]
    """
    masked = probs * mask
    total = masked.sum(axis=-1, keepdims=True)                           # [T, 1]
    return masked / ops.where(total == 0, 1.0, total)


def top_k_mask(v, k):
    """True for the k largest of a row; of equals, the lower index. Eq. (17) [T, E] -> [T, E] bool

    With it, Eq. (16) is Eq. (3) without noise.
    """
    expert = top_k(v, k)                                                 # [T, k]
    mask = namespace(expert).zeros(v.shape, bool)                        # [T, E]
    mask[namespace(expert).arange(len(v))[:, None], expert] = True
    return mask


def batchwise_mask(probs, m):
    """True for the m largest of a column, of equals the lower row: Eq. (18).

    [T, E] -> [T, E] bool
    """
    order = (-stop_gradient(probs)).argsort(axis=0, kind="stable")
    return order.argsort(axis=0, kind="stable") < m


def expert_capacity(n_rows, n_experts, k):
    """m = k T / E, of Eq. (18): rows for each expert, rounded down, but at least 1."""
    return max(k * n_rows // n_experts, 1)


def threshold_mask(probs, threshold):
    """True above an expert's threshold, for inference: Eq. (19). [T, E], [E] -> [T, E] bool"""
    return stop_gradient(probs) > stop_gradient(threshold)


def threshold_loss(probs, threshold, m):
    """What the thresholds learn to stand in for the batch by: Eq. (20). [T, E], [E] -> []

    Never negative; 0 where the two masks are the same. As a function of a threshold it is convex,
    and least between the m-th and the next of its column.
    """
    margin = probs - threshold
    return (margin * threshold_mask(probs, threshold) - margin * batchwise_mask(probs, m)).sum()


def strictly_balanced_moe(params, x, k):
    """Each expert is given the same number of rows, a row k on average: Appendix F, for training.

    The threshold loss reaches ``threshold`` alone: the paper does not say whether it should move
    the gate as well. [T, D] -> [T, D]
    """
    probs, m = _probs("strictly_balanced_moe", params, x, k)
    mask = batchwise_mask(probs, m)
    return _balanced(params, x, probs, mask, m)


def threshold_moe(params, x, k):
    """By thresholds, any number of rows for each expert: Appendix F, for inference."""
    probs, m = _probs("threshold_moe", params, x, k)
    return _balanced(params, x, probs, threshold_mask(probs, params.threshold), m)


def _probs(name, params, x, k):
    D, E = params.w_gate.shape
    _check(name, x, GateParams(params.w_gate, 0), 0, k, (D,), (E,))
    return softmax_gate(x, params.w_gate), expert_capacity(len(x), E, k)


def _balanced(params, x, probs, mask, m):
    gate = masked_gate(probs, mask)                                      # [T, E]
    expert = ops.broadcast_to(namespace(mask).arange(mask.shape[1]), shape=mask.shape)
    routing = Routing(expert, mask.cumsum(axis=0) - 1, mask, gate)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)
    return StrictlyBalancedOutput(
        y, importance(gate), threshold_loss(stop_gradient(probs), params.threshold, m), routing)


# -- Attention of the translation model, Appendix G ----------------------------------------------

class AttentionParams(NamedTuple):
    u: Tensor   # [D, H]
    w: Tensor   # [D, H]
    v: Tensor   # [H]


def attention_gnmt(params, source, target):
    """sum_q V_q tanh((x_i U)_q + (y_j W)_q), of GNMT: Eq. (21). [S, D], [R, D] -> [S, R]"""
    hidden = (source @ params.u)[..., :, None, :] + (target @ params.w)[..., None, :, :]
    return ops.tanh(hidden) @ params.v                                   # [S, R]


def attention(params, source, target):
    """sum_q V_q tanh((x_i U)_q) tanh((y_j W)_q), one matrix product: Eq. (22).

    [S, D], [R, D] -> [S, R]
    """
    return (ops.tanh(source @ params.u) * params.v) @ ops.tanh(target @ params.w).swapaxes(-1, -2)


# -- As others have it ---------------------------------------------------------------------------

def gate_init_fastmoe(rng, width, n_experts):
    """Uniform within 1 / sqrt(E), what torch.nn.init.kaiming_uniform_ makes of [D, E]: FM."""
    bound = 1 / math.sqrt(n_experts)
    return GateParams(*rng.uniform(-bound, bound, (2, width, n_experts)))


def noise_std_tensor2tensor(raw, floor=1e-2):
    """``noise_std`` that never falls to 0: T2T, DM and FM. [T, E] -> [T, E]"""
    return noise_std(raw) + floor


def noise_std_vmoe(n_experts, scale=1.0):
    """The one standard deviation of all experts and rows: VM."""
    return scale / n_experts


def gate_davidmrau(noisy, k, epsilon=1e-6):
    """The k largest of a softmax over all experts, divided by a little more than their sum: DM.

    [T, E] -> [T, E]
    """
    chosen = ops.softmax(noisy) * top_k_mask(noisy, k)
    return chosen / (chosen.sum(axis=-1, keepdims=True) + epsilon)


def kth_inclusive(noisy, k):
    """The k-th largest of a row, whoever asks: VM. Too high for those chosen. [T, E] -> [T, 1]"""
    return ops.take_along_axis(noisy, top_k(noisy, k)[:, k - 1:])


def threshold_davidmrau(noisy, k):
    """Probabilities where Eq. (9) has logits, since April 2024: DM, reported as its issue 31.

    The loss then finds balance where there is none. [T, E] -> [T, E]
    """
    if k == noisy.shape[1]:
        return kth_excluding(noisy, k)
    probs = ops.softmax(noisy)
    largest = ops.take_along_axis(probs, top_k(probs, k + 1))            # [T, k+1]
    within = stop_gradient(noisy) > stop_gradient(largest)[:, k:]
    return ops.where(within, largest[:, k:], largest[:, k - 1:k])


def load_hard(routing, n_experts):
    """Rows given to each expert; no gradient passes. -> [E] int

    T2T, DM and FM count gates above 0, which may miss one that underflowed; this misses none.
    """
    return group(routing.expert[routing.keep], n_experts)[1]


def cv_squared_tensor2tensor(v, epsilon=1e-10):
    """``cv_squared`` with epsilon added to the squared mean, and to the length: T2T. [E] -> []"""
    n = v.shape[0] + epsilon
    mean = v.sum() / n
    return ops.square(v - mean).sum() / n / (ops.square(mean) + epsilon)


def cv_squared_davidmrau(v, epsilon=1e-10):
    """``cv_squared`` of a sample, that is over E - 1, and 0 for one expert: DM, FM. [E] -> []"""
    if v.shape[0] == 1:
        return 0 * v.sum()
    return ops.var(v, ddof=1) / (ops.square(v.mean()) + epsilon)


def noisy_top_k_tensor2tensor(clean, raw, epsilon, k):
    """``noisy_top_k`` with the floor under the noise: T2T and FM. -> Gating"""
    return noisy_top_k(clean, raw, epsilon, k, noise_std_tensor2tensor)


def noisy_top_k_tensor2tensor_evaluation(clean, raw, epsilon, k):
    """Without noise, the standard deviation being 0 as well: T2T. p is a step, 1/2 at a tie.

    ``epsilon`` goes unused. -> Gating
    """
    return noisy_top_k(clean, raw, 0, k, lambda raw: 0 * raw)


def noisy_top_k_davidmrau(clean, raw, epsilon, k):
    """``noisy_top_k`` with the floor, DM's gate and its threshold. -> Gating"""
    return noisy_top_k(clean, raw, epsilon, k, noise_std_tensor2tensor, gate_davidmrau,
                       threshold_davidmrau)


def combine_log_space(gate, outputs, floor=2.0 ** -52):
    """log sum_i G_i exp(E_i), an exact 0 under the logarithm replaced: DM until December 2023.

    [T, E], [T, E, D] -> [T, D]
    """
    total = (gate[:, :, None] * ops.exp(outputs)).sum(axis=1)            # [T, D]
    return ops.log(ops.where(total == 0, floor, total))


# -- Recorded runs -------------------------------------------------------------------------------

GATE = {"param.gate.w_gate": "D E", "param.gate.w_noise": "D E"}
EXPERTS = {"param.w_in": "E D H", "param.w_out": "E H D"}
LAYER = {"in.x": "T D", "in.epsilon": "T E", "in.cotangent": "T D", "set.k": "", **GATE, **EXPERTS}
LSTM = {"w_in": "D F", "w_hidden": "D F", "b": "F"}      # F = 4 D


def _gradients(losses, leaves):
    return {name: grad(loss, leaves) for name, loss in losses.items()}


def _layer_params(named, prefix=""):
    gate = GateParams(named[f"{prefix}gate.w_gate"], named[f"{prefix}gate.w_noise"])
    return SparselyGatedParams(gate, named[f"{prefix}w_in"], named[f"{prefix}w_out"])


def _gating_outputs(gating, epsilon):
    """A gate, in the order of computation."""
    clean, std, noisy, gate, p, routing = gating
    return {"clean": clean, "std": std, "noise": std * epsilon, "noisy": noisy,
            "expert": routing.expert, "margin": choice_margin(noisy, routing.expert),
            "gate": gate, "p": p}


def _by_choice(x, out, w_in, w_out):
    """What the experts of each choice were given and made of it."""
    made = expert_intermediates(x, out.routing, w_in, w_out)
    return dict(zip(("expert_inputs", "hidden", "expert_outputs"), made))


def _layer_outputs(case, out, leaves, cv_squared):
    """What all layers end in, and the gradients of <y, cotangent> and of both losses."""
    losses = {"importance_loss": cv_squared(out.importance), "load_loss": cv_squared(out.load)}
    return {"y": out.y, "importance": out.importance, "load": out.load, **losses,
            "grad": _gradients({"y": (out.y * case.inputs["cotangent"]).sum(), **losses}, leaves)}


def layer_oracle(case):
    """Every intermediate of the flat layer, and its gradients."""
    return _layer_oracle(case, noisy_top_k, cv_squared)


def _layer_oracle(case, noisy_top_k, cv_squared):
    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    params, x, epsilon = _layer_params(leaves), leaves["x"], case.inputs["epsilon"]
    out = moe(params, x, epsilon, case.settings["k"], noisy_top_k)
    return tree.map(stop_gradient, {
        **_gating_outputs(out.gating, epsilon), "load_hard": load_hard(out.routing, out.load.size),
        **_by_choice(x, out, params.w_in, params.w_out),
        **_layer_outputs(case, out, leaves, cv_squared)})


def tensor2tensor_oracle(case):
    """As far as its code has names for what it computes."""
    found = _layer_oracle(case, noisy_top_k_tensor2tensor, cv_squared_tensor2tensor)
    for name in ("noise", "margin", "expert_inputs", "hidden", "expert_outputs"):
        del found[name]
    return found


def davidmrau_oracle(case):
    return _layer_oracle(case, noisy_top_k_davidmrau, cv_squared_davidmrau)


def padded_oracle(case):
    """The flat layer on the rows that are present; what belongs to a row is of those alone."""
    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    params, x, present = _layer_params(leaves), leaves["x"], case.inputs["present"]
    epsilon = case.inputs["epsilon"]
    out = moe_of_rows(params, x, present, epsilon, case.settings["k"])
    return tree.map(stop_gradient, {
        **_gating_outputs(out.gating, epsilon[present]),
        **_by_choice(x[present], out, params.w_in, params.w_out),
        **_layer_outputs(case, out, leaves, cv_squared)})


def hierarchical_oracle(case):
    """The hierarchical layer; of the second level, rows of one group side by side."""
    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    gates = (GateParams(leaves[f"{level}.w_gate"], leaves[f"{level}.w_noise"])
             for level in ("primary", "secondary"))
    params = HierarchicalParams(*gates, leaves["w_in"], leaves["w_out"])
    epsilon = case.inputs["epsilon_primary"], case.inputs["epsilon_secondary"]
    out = hierarchical_moe(params, leaves["x"], epsilon, (case.settings["k1"], case.settings["k2"]))
    A, B, D, H = params.w_in.shape
    seats, _ = packed_seats(out.primary.routing.expert, out.primary.routing.keep, A)
    drawn = epsilon[1].reshape(-1, B)[seats.choice]                      # [R, B]
    return tree.map(stop_gradient, {
        "primary": _gating_outputs(out.primary, epsilon[0]),
        "secondary": _gating_outputs(out.secondary, drawn),
        "expert": out.routing.expert, "gate": out.routing.gate,
        **_by_choice(leaves["x"], out, params.w_in.reshape(A * B, D, H),
                     params.w_out.reshape(A * B, H, D)),
        **_layer_outputs(case, out, leaves, cv_squared)})


def strictly_balanced_oracle(case):
    """Strictly balanced gating: in training by the batch, in inference by the thresholds."""
    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    params = StrictlyBalancedParams(*(leaves[name] for name in StrictlyBalancedParams._fields))
    x, k, cotangent = leaves["x"], case.settings["k"], case.inputs["cotangent"]
    trained, inferred = strictly_balanced_moe(params, x, k), threshold_moe(params, x, k)
    losses = {"importance_loss": importance_loss(trained.importance),
              "threshold_loss": trained.threshold_loss}
    return tree.map(stop_gradient, {
        "probs": softmax_gate(x, params.w_gate),
        "mask": trained.routing.keep, "gate": trained.routing.gate,
        "threshold_mask": inferred.routing.keep, "threshold_gate": inferred.routing.gate,
        "importance": trained.importance, "y": trained.y, "y_inferred": inferred.y, **losses,
        "grad": _gradients({"y": (trained.y * cotangent).sum(),
                            "y_inferred": (inferred.y * cotangent).sum(), **losses}, leaves)})


def language_model_oracle(case):
    """The language model; what is differentiated is the mean cross entropy plus both losses."""
    leaves = tree.map(Tensor, case.params)
    lstm_below, lstm_above = (
        nn.LSTMParams(*(leaves[f"lstm_{place}.{part}"] for part in nn.LSTMParams._fields))
        for place in ("below", "above"))
    params = LanguageModelParams(nn.EmbeddingParams(leaves["embedding.table"]), lstm_below,
                                 _layer_params(leaves, "moe."), lstm_above, leaves["w_softmax"])
    keep = DropoutKeep(*(case.inputs[f"keep.{name}"] for name in DropoutKeep._fields))
    out = language_model(params, case.inputs["words"], case.inputs["epsilon"], case.settings["k"],
                         keep, case.settings["drop_prob"])
    cross_entropy = ops.cross_entropy(out.logits, case.inputs["targets"])
    loss = cross_entropy.mean() + importance_loss(out.importance) + load_loss(out.load)
    return tree.map(stop_gradient, {
        "state": dict(zip(DropoutKeep._fields, out.states)),
        "expert": out.routing.expert, "gate": out.routing.gate, "importance": out.importance,
        "load": out.load, "logits": out.logits, "cross_entropy": cross_entropy, "loss": loss,
        "grad": grad(loss, leaves)})


def factored_adam_oracle(case):
    """Factorised Adam over N updates: its averages, and experts and biases, after each."""
    params = {name: case.params[name] for name in ("w", "b")}
    state, steps = adafactor_init(params), []
    for gradients in zip(case.inputs["gradients.w"], case.inputs["gradients.b"]):
        params, state = factored_adam(params, dict(zip(params, gradients)), state, **case.settings)
        steps.append({"rows": state.rows["w"], "columns": state.columns["w"],
                      "second_moment": factored_second_moment(state.rows["w"], state.columns["w"]),
                      **params})
    return tree.map(lambda *parts: ops.stack(parts), *steps)


def attention_oracle(case):
    """Both attention functions, and gradients of <A, cotangent>."""
    leaves = tree.map(Tensor, {**case.inputs, **case.params})
    params = AttentionParams(leaves["u"], leaves["w"], leaves["v"])
    cotangent = leaves.pop("cotangent")
    scores = {"gnmt": attention_gnmt(params, leaves["source"], leaves["target"]),
              "product": attention(params, leaves["source"], leaves["target"])}
    return tree.map(stop_gradient, {**scores, "grad": _gradients(
        {name: (a * cotangent).sum() for name, a in scores.items()}, leaves)})


ORACLES = {
    "layer": (LAYER, layer_oracle),
    "layer_padded": ({**LAYER, "in.present": "bool T"}, padded_oracle),
    "layer_tensor2tensor": (LAYER, tensor2tensor_oracle),
    "layer_davidmrau": (LAYER, davidmrau_oracle),
    "hierarchical": ({
        "in.x": "T D", "in.epsilon_primary": "T A", "in.epsilon_secondary": "T K B",
        "in.cotangent": "T D", "set.k1": "", "set.k2": "", "param.primary.w_gate": "D A",
        "param.primary.w_noise": "D A", "param.secondary.w_gate": "A D B",
        "param.secondary.w_noise": "A D B", "param.w_in": "A B D H", "param.w_out": "A B H D",
    }, hierarchical_oracle),
    "strictly_balanced": ({
        "in.x": "T D", "in.cotangent": "T D", "set.k": "", "param.w_gate": "D E",
        "param.threshold": "E", **EXPERTS}, strictly_balanced_oracle),
    "language_model": ({
        "in.words": "int S B", "in.targets": "int S B", "in.epsilon": "T E",
        **{f"in.keep.{name}": "bool S B D" for name in DropoutKeep._fields}, "set.k": "",
        "set.drop_prob": "", "param.embedding.table": "V D",
        **{f"param.lstm_{place}.{name}": letters for place in ("below", "above")
           for name, letters in LSTM.items()},
        **{key.replace("param.", "param.moe."): letters for key, letters in
           {**GATE, **EXPERTS}.items()},
        "param.w_softmax": "D V"}, language_model_oracle),
    "factored_adam": ({
        "in.gradients.w": "N E D H", "in.gradients.b": "N H", "set.learning_rate": "",
        "set.beta2": "", "set.epsilon": "", "param.w": "E D H", "param.b": "H",
    }, factored_adam_oracle),
    "attention": ({
        "in.source": "S D", "in.target": "R D", "in.cotangent": "S R", "param.u": "D H",
        "param.w": "D H", "param.v": "H"}, attention_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _no_noise(arrays, rng):
    arrays["in.epsilon"][:] = 0


def _zero_start(arrays, rng):
    """The gate of Appendix A, at zero: the noise alone decides."""
    arrays["param.gate.w_gate"][:] = 0
    arrays["param.gate.w_noise"][:] = 0


def _ties(arrays, rng):
    """Experts 1 and 3 are equal, noise and all, and ahead of the others."""
    arrays["in.x"][:, 0] = 1
    w_gate, w_noise, epsilon = (arrays[key] for key in (
        "param.gate.w_gate", "param.gate.w_noise", "in.epsilon"))
    w_gate[0, 1] += 4
    for a in (w_gate, w_noise, epsilon):
        a[:, 3] = a[:, 1]


def _all_equal(arrays, rng):
    """Without noise: all rows choose the first experts."""
    _zero_start(arrays, rng)
    _no_noise(arrays, rng)


def _starved(arrays, rng):
    """Nobody comes to expert 1."""
    arrays["in.x"][:, 0] = 1
    arrays["param.gate.w_gate"][0, 1] = -16


def _all_to_one(arrays, rng):
    """Expert 1 is everybody's first."""
    arrays["in.x"][:, 0] = 1
    arrays["param.gate.w_gate"][0, 1] = 16


def _in_turn(arrays, rng):
    """Rows to experts in turn, each as sure as the next: importance and load are uniform."""
    _all_equal(arrays, rng)
    x, w_gate = arrays["in.x"], arrays["param.gate.w_gate"]
    E = w_gate.shape[1]
    x[:] = 0
    for e in range(E):
        x[e::E, e], x[e::E, (e + 1) % E], w_gate[e, e] = 2, 1, 1


def _beyond_256(arrays, rng):
    """Experts from 256 upwards have the largest logits, by and large."""
    arrays["param.gate.w_gate"][:, :256] /= 8
    arrays["param.gate.w_gate"][:, 256:] *= 2
    arrays["in.epsilon"] /= 8


def _absent(*rows):
    def change(arrays, rng):
        arrays["in.present"][list(rows)] = False
    return change


def _absent_without_noise(arrays, rng):
    _no_noise(arrays, rng)
    _absent(0, 3, 4, 9, 15)(arrays, rng)


def _nobody_present(arrays, rng):
    arrays["in.present"][:] = False


def _group_starved(arrays, rng):
    """Nobody comes to group 1."""
    arrays["in.x"][:, 0] = 1
    arrays["param.primary.w_gate"][0, 1] = -64


def _near_uniform_thresholds(arrays, rng):
    threshold = arrays["param.threshold"]
    threshold[:] = 1 / len(threshold) + threshold / 16


def _equal_rows(arrays, rng):
    """Three rows alike: a column may be full before the last of them."""
    _near_uniform_thresholds(arrays, rng)
    arrays["in.x"][4] = arrays["in.x"][6] = arrays["in.x"][1]


def _words(arrays, rng):
    V = len(arrays["param.embedding.table"])
    for name in ("words", "targets"):
        arrays[f"in.{name}"] = rng.integers(V, size=arrays[f"in.{name}"].shape)


def _words_and_dropout(arrays, rng):
    _words(arrays, rng)
    for name in DropoutKeep._fields:
        key = f"in.keep.{name}"
        arrays[key] = rng.random(arrays[key].shape) >= 0.5


def _one_expert_unused(arrays, rng):
    """Expert 1 has no gradient in the first half of the updates."""
    flow = arrays["in.gradients.w"]
    flow[:len(flow) // 2, 1] = 0


_LAYER = dict(T=16, D=8, E=6, H=5)
_TWO_LEVELS = dict(T=12, D=6, A=3, B=4, H=4, K=2, k1=2, k2=2)
_MODEL = dict(S=4, B=3, T=12, V=7, D=6, F=24, E=5, H=4)
CASES = {
    "one_choice": ("layer", dict(_LAYER, k=1)),
    "two_choices": ("layer", dict(_LAYER, k=2), "k2"),
    "three_choices": ("layer", dict(_LAYER, k=3), "k3"),
    "exact": ("layer", dict(_LAYER, k=2), "exact, k2"),
    "exact_one_choice": ("layer", dict(_LAYER, k=1), "exact"),
    "no_noise": ("layer", dict(_LAYER, k=2), "k2, evaluation", _no_noise),
    "zero_start": ("layer", dict(_LAYER, k=2), "k2", _zero_start),
    "ties": ("layer", dict(_LAYER, k=1), "ties", _ties),
    "ties_of_two_choices": ("layer", dict(_LAYER, k=2), "k2, ties", _ties),
    "ties_everywhere": ("layer", dict(_LAYER, k=2), "k2, ties, degenerate", _all_equal),
    "starved": ("layer", dict(_LAYER, k=2), "k2", _starved),
    "all_to_one": ("layer", dict(_LAYER, k=1), "degenerate", _all_to_one),
    "balanced": ("layer", dict(_LAYER, T=18, k=1), "degenerate, balanced", _in_turn),
    "balanced_two_choices": ("layer", dict(_LAYER, T=18, k=2), "k2, degenerate, balanced",
                             _in_turn),
    "every_expert": ("layer", dict(_LAYER, k=6), "degenerate, k=E"),
    "one_expert": ("layer", dict(_LAYER, E=1, k=1), "degenerate, E=1, k=E"),
    "one_row": ("layer", dict(_LAYER, T=1, k=2), "k2, degenerate, T=1"),
    "no_row": ("layer", dict(_LAYER, T=0, k=2), "k2, degenerate, T=0"),
    "wide": ("layer", dict(T=10, D=4, E=288, H=2, k=4), "wide, E>256", _beyond_256),
    "wide_one_choice": ("layer", dict(T=10, D=4, E=288, H=2, k=1), "wide, E>256", _beyond_256),

    "absent_rows": ("layer_padded", dict(_LAYER, k=2), "k2, padding", _absent(0, 3, 4, 9, 15)),
    "absent_rows_exact": ("layer_padded", dict(_LAYER, k=2), "exact, k2, padding",
                          _absent(0, 3, 4, 9, 15)),
    "absent_rows_at_the_end": ("layer_padded", dict(_LAYER, k=1), "padding", _absent(13, 14, 15)),
    "absent_rows_without_noise": ("layer_padded", dict(_LAYER, k=2), "k2, padding, evaluation",
                                  _absent_without_noise),
    "nobody_present": ("layer_padded", dict(_LAYER, k=2), "k2, padding, degenerate",
                       _nobody_present),
    "tensor2tensor": ("layer_tensor2tensor", dict(_LAYER, k=2), "k2"),
    "tensor2tensor_one_choice": ("layer_tensor2tensor", dict(_LAYER, k=1)),
    "davidmrau": ("layer_davidmrau", dict(_LAYER, k=2), "k2"),
    "davidmrau_every_expert": ("layer_davidmrau", dict(_LAYER, k=6), "k=E"),

    "hierarchical": ("hierarchical", dict(_TWO_LEVELS), "k2"),
    "hierarchical_exact": ("hierarchical", dict(_TWO_LEVELS), "exact, k2"),
    "hierarchical_one_of_each": ("hierarchical", dict(_TWO_LEVELS, K=1, k1=1, k2=1)),
    "hierarchical_every_expert": ("hierarchical", dict(_TWO_LEVELS, K=3, k1=3, k2=4),
                                  "k=E, degenerate"),
    "hierarchical_group_starved": ("hierarchical", dict(_TWO_LEVELS), "k2, degenerate",
                                   _group_starved),
    "hierarchical_one_group": ("hierarchical", dict(_TWO_LEVELS, A=1, K=1, k1=1, k2=2),
                               "degenerate"),
    "strictly_balanced": ("strictly_balanced", dict(T=12, D=6, E=4, H=4, k=2), "k2",
                          _near_uniform_thresholds),
    "strictly_balanced_rounded_down": ("strictly_balanced", dict(T=11, D=6, E=4, H=4, k=1), "",
                                       _near_uniform_thresholds),
    "strictly_balanced_every_expert": ("strictly_balanced", dict(T=8, D=6, E=4, H=4, k=4),
                                       "k=E, degenerate", _near_uniform_thresholds),
    "strictly_balanced_equal_rows": ("strictly_balanced", dict(T=8, D=6, E=4, H=4, k=1), "ties",
                                     _equal_rows),
    "language_model": ("language_model", dict(_MODEL, k=2, drop_prob=0.0), "k2", _words),
    "language_model_with_dropout": ("language_model", dict(_MODEL, k=2, drop_prob=0.5), "k2",
                                    _words_and_dropout),
    "factored_adam": ("factored_adam", dict(N=6, E=3, D=4, H=3, learning_rate=2**-4, beta2=0.875,
                                            epsilon=2**-20)),
    "factored_adam_unused": ("factored_adam", dict(N=6, E=2, D=3, H=4, learning_rate=2**-6,
                                                   beta2=0.96875, epsilon=2**-10), "",
                             _one_expert_unused),
    "attention": ("attention", dict(S=5, R=4, D=6, H=4)),
    "attention_one_by_one": ("attention", dict(S=1, R=1, D=4, H=3), "degenerate"),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _noise_std_vmoe(raw):
    return 0 * raw + noise_std_vmoe(raw.shape[1])


def _held_threshold(noisy, k):
    return stop_gradient(kth_excluding(noisy, k))


def _load_of_rows(clean, raw, epsilon, k, *parts):
    gating = noisy_top_k(clean, raw, epsilon, k, *parts)
    return gating._replace(p=0 * gating.noisy + top_k_mask(gating.noisy, k))


def _importance_of_softmax(*settings):
    out = moe(*settings)
    return out._replace(importance=importance(ops.softmax(out.gating.clean)))


def _scaled(function):
    def scaled(x, routing, w_in, w_out):
        return function(x, routing, w_in, math.sqrt(w_out.shape[2] / w_out.shape[1]) * w_out)
    return scaled


def _combined_in_log_space(*settings):
    *_, outputs = expert_intermediates(*settings)
    return combine_log_space(settings[1].gate, outputs)


CONVENTIONS = {
    "1e-2 is added to the noise's standard deviation, as in tensor2tensor and FastMoE":
        {"noise_std": "noise_std_tensor2tensor"},
    "the noise's standard deviation is 1 / E, as in vmoe": {"noise_std": "_noise_std_vmoe"},
    "the k largest of a softmax over all experts, divided by their sum and 1e-6":
        {"gate_of_top_k": "gate_davidmrau"},
    "davidmrau/mixture-of-experts' gating":
        {"noisy_top_k": "noisy_top_k_davidmrau", "cv_squared": "cv_squared_davidmrau"},
    "tensor2tensor's gating":
        {"noisy_top_k": "noisy_top_k_tensor2tensor", "cv_squared": "cv_squared_tensor2tensor"},
    "tensor2tensor's gating in evaluation: no noise, and a standard deviation of 0":
        {"noisy_top_k": "noisy_top_k_tensor2tensor_evaluation"},
    "the threshold counts the expert itself, as in vmoe": {"kth_excluding": "kth_inclusive"},
    "no gradient passes through the threshold": {"kth_excluding": "_held_threshold"},
    "the load counts rows and has no gradient, as in davidmrau/mixture-of-experts in evaluation":
        {"noisy_top_k": "_load_of_rows"},
    "importance is of a softmax over all experts without noise, as in vmoe":
        {"moe": "_importance_of_softmax"},
    "1e-10 is added to the squared mean of CV, as in tensor2tensor":
        {"cv_squared": "cv_squared_tensor2tensor"},
    "the variance of CV is a sample's, as in davidmrau/mixture-of-experts and FastMoE":
        {"cv_squared": "cv_squared_davidmrau"},
    "an expert's second matrix is scaled by sqrt(D / H), as in tensor2tensor": {
        "expert_feed_forward": lambda paper: _scaled(paper.expert_feed_forward),
        "expert_intermediates": lambda paper: _scaled(paper.expert_intermediates)},
    "outputs are combined as log sum G exp E, as in davidmrau/mixture-of-experts before 2024":
        {"expert_feed_forward": "_combined_in_log_space"},
}
