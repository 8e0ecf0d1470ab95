"""Switch Transformers: every token to one expert.

W. Fedus, B. Zoph and N. Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with
Simple and Efficient Sparsity", JMLR 23(120):1-39, 2022. arXiv:2101.03961v3.

    here       paper           meaning
    T, D       T, d_model      tokens, width of a token
    E, H       N, d_ff         experts, hidden width of one expert
    K          k               experts chosen per token: 1, and 2 for the MoE-Base of Table 1
    C          C               slots per expert, Eq. (3)
    G          n               groups (cores): T / G tokens in a row, with C slots of its own for each
    logits     h(x)            of the router
    probs      p_i(x)          its probabilities, Eq. (1)
    gate       p_i(x)          of a chosen expert; multiplies the expert's output, Eq. (2)
    f, P       f_i, P_i        per expert: share of tokens, share of probability, Eqs. (5), (6)
    used       --              [T] bool, False at padding: a token that no expert is to see

A layer is three steps, and each of them has alternatives that go with the others': probabilities
(``router_probs``), a Routing (``route``, ``route_...``), and the experts' outputs
(``routing.experts.expert_feed_forward``, ``expert_...``). ``switch_ffn`` takes the paper's.

Where text, pseudo-code (Appendix F), released code (Mesh TensorFlow, mesh below; flaxformer) and
the code of others part, the text is the default:

    rounding of Eq. (3)   text: not said, here down. Pseudo-code: expert_capacity_pseudocode; others:
                          expert_capacity_mesh, _flaxformer, _deepspeed, _fairseq, _tutel,
                          _transformers; as many as needed, deepspeed and tutel: expert_capacity_full
    who is turned away    text: later tokens. mesh switch_max, flaxformer, tutel: the least probable,
                          highest_gate_first; deepspeed: a random choice,
                          route_random_token_selection
    f                     text: argmax p, before capacity. transformers 4.44: after it, the dropped
                          counted for expert 0. Of tokens that sample, text: argmax p; mesh: what
                          was sampled, that is, the expert of their Routing
    f and P taken over    text: the batch. Pseudo-code, and ``switch_ffn``: each group, the losses
                          averaged. transformers: a sequence, in all layers at once,
                          transformers_load_balancing_loss
    f for K > 1           text: not said, here the first choice. mesh (its no token left behind),
                          deepspeed: all_choices_load_balancing_loss; flaxformer: K times that
    padding in f and P    text: not said, here in neither. mesh: in both, which is the loss without
                          ``used``; flaxformer_load_balancing_loss, deepspeed_load_balancing_loss
    a dropped token       text: zero. transformers 4.44: gate times input, switch_ffn_transformers
    jitter                text: scales the router's input. Pseudo-code: logits_noise_pseudocode;
                          tutel: logits_noise_tutel; deepspeed: route_gumbel. transformers 4.44
                          scales the experts' input too: give that as ``x``
    precision             text: router_probs_cast_input. Pseudo-code: _cast_logits; mesh, for no
                          token left behind: _cast_probs
    initialisation        text and mesh: init. flaxformer: init_flaxformer; transformers:
                          init_transformers; JAX makes up for what is cut off: truncation_corrected
    activation of experts text: ReLU. Table 9, all but Switch-C: expert_geglu
    attention             text: an expert is linear or a feed-forward network: switch_projection,
                          switch_ffn. mesh, one hidden layer for queries and keys: not built
    z-loss                not this paper's: Zoph et al. 2022; not built
    parallelism           Section 5: which core has what; not built
"""
import math
import struct
from fractions import Fraction
from typing import NamedTuple

from minimoe import nn, ops
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.routing.dispatch import Routing, gather, gather_back, packed_seats, seating
from minimoe.routing.experts import expert_feed_forward, expert_matmul, ragged_matmul
from minimoe.routing.topk import group, slots, top_k


# -- The router, Section 2.1 ---------------------------------------------------------------------

class SwitchParams(NamedTuple):
    w_router: Tensor   # [D, E]
    w_in: Tensor       # [E, D, H]
    w_out: Tensor      # [E, H, D]


class SwitchOutput(NamedTuple):
    y: Tensor          # [T, D]   zero for a dropped token: the caller's residual carries it
    aux_loss: Tensor   # []       Eq. (4) without alpha
    routing: Routing


def router_logits(x, w_router):
    """h(x) = W_r x. ValueError where NaN or infinity comes of it. [T, D], [D, E] -> [T, E]"""
    logits = x @ w_router
    if not (abs(stop_gradient(logits)) < math.inf).all():
        raise ValueError("router_logits: tokens and router must be finite, and so must their "
                         "product; got NaN or infinity")
    return logits


def router_probs(x, w_router):
    """p_i(x) = exp(h_i) / sum_j exp(h_j). Eq. (1) [T, D], [D, E] -> [T, E]"""
    return ops.softmax(router_logits(x, w_router), axis=-1)


def route(probs, capacity, k=1, n_groups=1, used=None, order=None):
    """Each token to its k most probable experts, first come first served. Section 2.2

    The gates are the probabilities as they are: a single gate divided by itself would be 1, and
    the router would learn nothing. Of equal experts the lower index is chosen. Within each group
    (T / G tokens in a row) an expert takes ``capacity`` tokens, in their order or in ``order``, a
    permutation of all tokens; padding, False in ``used``, is turned away and takes no slot.
    ValueError for groups that do not divide the tokens, or a capacity below 0.
    [T, E] -> Routing [T, K]
    """
    return _first_come(probs, top_k(probs, k), capacity, n_groups, used, order)


def highest_gate_first(probs):
    """The order in which the most certain tokens are seated first: ``route``'s ``order``.

    Mesh TensorFlow's switch_max, an option of flaxformer's encoder, and Tutel's. Whether a token is
    kept then depends on those after it, so it is no order for a decoder. [T, E] -> [T] int
    """
    return (-stop_gradient(probs).max(axis=-1)).argsort(kind="stable")


def route_random_token_selection(probs, u, capacity, n_groups=1):
    """Each expert keeps a random choice of its tokens: DeepSpeed's, and on by default there.

    ``u`` [T, E] is the draw, uniform on (0, 1): of its tokens an expert keeps those with the
    largest number in its column. Those kept have slots in the order of tokens, the others 0.
    [T, E] -> Routing [T, 1]
    """
    E = probs.shape[-1]
    expert = top_k(probs, 1)                                           # [T, 1]
    luck = ops.take_along_axis(u, expert, axis=-1)[:, 0]               # [T]
    order = (-luck).argsort(kind="stable")
    keep = _slots(expert, E, n_groups, order=order) < capacity         # [T, 1]
    slot = _slots(expert, E, n_groups, used=keep[:, 0])
    return Routing(expert, slot, keep, ops.take_along_axis(probs, expert, axis=-1))


def _first_come(probs, expert, capacity, n_groups=1, used=None, order=None):
    """The Routing of tokens whose experts are chosen."""
    if not capacity >= 0:
        raise ValueError(f"route: the capacity must be 0 or more; got {capacity}")
    slot = _slots(expert, probs.shape[-1], n_groups, used, order)      # [T, K]
    keep = slot < capacity
    if used is not None:
        keep = keep & used[:, None]
    return Routing(expert, slot, keep, ops.take_along_axis(probs, expert, axis=-1))


def _slots(expert, n_experts, n_groups=1, used=None, order=None):
    """Places in the queues of each group, 0 for a token that is not used. [T, K] int -> [T, K] int

    Those not used queue for one expert more, which nobody looks at.
    """
    if used is None:
        return slots(_queue(expert, n_experts, n_groups), n_experts * n_groups, order)
    expert = ops.where(used[:, None], expert, n_experts)
    queue = _queue(expert, n_experts + 1, n_groups)
    return slots(queue, (n_experts + 1) * n_groups, order) * used[:, None]


def _queue(expert, n_experts, n_groups):
    """The number of each choice's queue: one for each expert in each group. [T, K] int"""
    T, K = expert.shape
    _check_groups(T, n_groups)
    apart = expert.reshape(n_groups, T // n_groups, K)
    first = ops.cumsum(0 * apart[:, :1, :1] + n_experts, axis=0) - n_experts   # [G, 1, 1]
    return (apart + first).reshape(T, K)


def _check_groups(n_tokens, n_groups):
    if n_groups < 1 or n_tokens % n_groups:
        raise ValueError(f"route: needs a number of groups that divides {n_tokens} tokens; "
                         f"got {n_groups}")


# -- Capacity, Section 2.2 -----------------------------------------------------------------------

def expert_capacity(n_tokens, n_experts, capacity_factor, at_least=None):
    """Slots per expert in a group of ``n_tokens``, rounded down. Eq. (3)

    The paper does not say how to round. The product is taken exactly, because in floating point its
    order decides the answer: 100 tokens, 5 experts and a factor of 1.15 make 23 slots, but
    ``int(100 * 1.15 / 5)`` is 22. Never more slots than tokens; an infinite factor drops none.
    ValueError for a factor that is not positive, no expert, and for tokens that leave no slot to an
    expert unless ``at_least`` says how many it has then.
    """
    _check_capacity("expert_capacity", n_tokens, n_experts, capacity_factor)
    if capacity_factor == math.inf:
        return n_tokens
    capacity = math.floor(Fraction(str(capacity_factor)) * n_tokens / n_experts)
    if at_least is None and n_tokens and not capacity:
        raise ValueError(f"expert_capacity: {n_tokens} tokens and a factor of {capacity_factor} "
                         f"leave {n_experts} experts no slot; give at_least")
    return min(n_tokens, max(capacity, at_least or 0))


def expert_capacity_pseudocode(n_tokens, n_experts, capacity_factor):
    """The slots that the listing of Appendix F fills: one fewer than ``expert_capacity``.

    It counts from 1 and keeps what is below C, so that slot 0 stays empty. The released code counts
    from 0.
    """
    return max(expert_capacity(n_tokens, n_experts, capacity_factor) - 1, 0)


def expert_capacity_mesh(n_tokens, n_experts, capacity_factor, at_least=4):
    """As released: in floating point, at most ``n_tokens``, then at least 4."""
    _check_capacity("expert_capacity_mesh", n_tokens, n_experts, capacity_factor)
    return max(min(n_tokens, int(n_tokens * capacity_factor / n_experts)), at_least)


def expert_capacity_flaxformer(n_tokens, n_experts, capacity_factor, at_least=4):
    """As released later: in floating point, to the nearest number, halves to the even one."""
    _check_capacity("expert_capacity_flaxformer", n_tokens, n_experts, capacity_factor)
    return max(round(capacity_factor * n_tokens / n_experts), at_least)


def expert_capacity_deepspeed(n_tokens, n_experts, capacity_factor=1.0, at_least=8):
    """DeepSpeed's: rounded up, in float32; at least 8, or 4 in its layer class."""
    _check_capacity("expert_capacity_deepspeed", n_tokens, n_experts, capacity_factor)
    product = _float32(_float32(n_tokens / n_experts) * _float32(capacity_factor))
    return max(math.ceil(product), at_least)


def _float32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def expert_capacity_fairseq(n_tokens, n_experts, capacity_factor=1.0):
    """fairseq's for training: the share of an expert rounded up, its product down.

    For evaluation it is a quarter of ``n_tokens``, rounded up.
    """
    _check_capacity("expert_capacity_fairseq", n_tokens, n_experts, capacity_factor)
    return int(capacity_factor * math.ceil(n_tokens / n_experts))


def expert_capacity_tutel(n_tokens, n_experts, capacity_factor=1.0, k=1):
    """Tutel's for a factor above 0: as fairseq's, and so for each of ``k`` choices.

    0 means ``expert_capacity_full``, and a factor below 0 the smaller of that and its opposite's.
    """
    return k * expert_capacity_fairseq(n_tokens, n_experts, capacity_factor)


def expert_capacity_transformers(tokens_per_sequence, expert_capacity=64):
    """Hugging Face's: a number, in a group that is one sequence, whatever the number of experts."""
    return min(tokens_per_sequence, expert_capacity)


def expert_capacity_full(expert, n_experts):
    """As many slots as the expert most in demand needs, so that none is dropped. [T, K] int -> int

    DeepSpeed's where tokens may not be dropped, and Tutel's for a factor of 0.
    """
    _, counts = group(expert.reshape(-1), n_experts)
    return int(counts.max())


def _check_capacity(name, n_tokens, n_experts, capacity_factor):
    if n_tokens < 0 or n_experts < 1 or not capacity_factor > 0:
        raise ValueError(f"{name}: needs tokens, experts and a positive capacity factor; "
                         f"got {n_tokens}, {n_experts} and {capacity_factor}")


# -- The balance loss, Section 2.2 ---------------------------------------------------------------

def load_balancing_loss(probs, expert, n_groups=1, used=None):
    """N sum_i f_i P_i, averaged over groups. Eqs. (4)-(6), without alpha

    1 where f or P is uniform, E where one expert takes all; 1 is not a lower bound. Choices are
    counted before capacity turns any away, and counts carry no gradient: the loss reaches the
    router through P alone. Of several choices the first counts. A group of padding alone costs 0.
    [T, E], [T, K] int -> []
    """
    f = dispatched_fraction(expert[:, :1], probs.shape[-1], n_groups, used)    # [G, E]
    P = mean_probability(probs, n_groups, used)                        # [G, E]
    return _balance(f, P)


def dispatched_fraction(expert, n_experts, n_groups=1, used=None):
    """f_i, the share of tokens that chose expert i. Eq. (5) [T, K] int -> [G, E]"""
    return _counts(expert, n_experts, n_groups, used) / _n_used(len(expert), n_groups, used)


def mean_probability(probs, n_groups=1, used=None):
    """P_i, the share of probability that expert i was given. Eq. (6) [T, E] -> [G, E]"""
    return _totals(probs, n_groups, used) / _n_used(len(probs), n_groups, used)


def all_choices_load_balancing_loss(probs, expert, n_groups=1, used=None):
    """The loss with f the share of all T K choices. [T, E], [T, K] int -> []

    Mesh TensorFlow's with no token left behind, its ``expert`` the best as many as there are
    stages, so that lower choices are balanced too; and DeepSpeed's for its K experts.
    """
    f = dispatched_fraction(expert, probs.shape[-1], n_groups, used) / expert.shape[1]
    return _balance(f, mean_probability(probs, n_groups, used))


def flaxformer_load_balancing_loss(probs, expert, n_groups=1, used=None):
    """The loss with any of a token's choices in f, and padding in the divisors alone.

    K where all is uniform, and the less the more padding there is. [T, E], [T, K] int -> []
    """
    n = max(len(probs) // n_groups, 1)
    f = _counts(expert, probs.shape[-1], n_groups, used) / n           # [G, E]
    return _balance(f, _totals(probs, n_groups, used) / n)


def deepspeed_load_balancing_loss(probs, expert, used):
    """The loss with padding part of P and of both divisors, but not counted in f.

    [T, E], [T, 1] int, [T] bool -> []
    """
    f = _counts(expert, probs.shape[-1], 1, used) / max(len(probs), 1)   # [1, E]
    return _balance(f, mean_probability(probs))


def transformers_load_balancing_loss(probs, routings, n_groups):
    """One loss for all layers of a stack: Hugging Face's, in version 4.44.

    Each sequence (a group) is joined to itself along the layers first, so that f and P are averages
    over layers; and f counts after capacity, dropped tokens for expert 0.
    L of [T, E], L of Routing [T, 1] -> []
    """
    T, E = probs[0].shape

    def joined(layers):
        apart = [a.reshape(n_groups, T // n_groups, a.shape[-1]) for a in layers]
        return ops.concatenate(apart, axis=1).reshape(len(layers) * T, -1)

    return load_balancing_loss(joined(probs), joined([r.expert * r.keep for r in routings]),
                               n_groups)


def _counts(expert, n_experts, n_groups, used):
    """How many tokens of each group chose each expert. [T, K] int -> [G, E] int"""
    if used is not None:
        expert = ops.where(used[:, None], expert, n_experts)
    queue = _queue(expert, n_experts + 1, n_groups).reshape(-1)
    _, counts = group(queue, (n_experts + 1) * n_groups)
    return counts.reshape(n_groups, n_experts + 1)[:, :-1]


def _totals(probs, n_groups, used):
    """The probability that each group gave each expert. [T, E] -> [G, E]"""
    T, E = probs.shape
    _check_groups(T, n_groups)
    if used is not None:
        probs = ops.where(used[:, None], probs, 0.0)
    return probs.reshape(n_groups, T // n_groups, E).sum(axis=1)


def _n_used(n_tokens, n_groups, used):
    """Tokens in a group, but 1 where there is none. -> a number, or [G, 1] int"""
    _check_groups(n_tokens, n_groups)
    if used is None:
        return max(n_tokens // n_groups, 1)
    n = used.reshape(n_groups, n_tokens // n_groups).sum(axis=1)[:, None]
    return n + (n == 0)


def _balance(f, P):
    """N sum_i f_i P_i, averaged over groups. [G, E], [G, E] -> []"""
    E = f.shape[-1]
    return E * (f.astype(stop_gradient(P).dtype) * P).sum(axis=-1).mean()


def training_loss(cross_entropy, aux_losses, alpha=1e-2):
    """The loss of the task, and alpha times the balance loss of each Switch layer. Section 2.2

    ValueError for an alpha below 0. [], L of [] -> []
    """
    if not alpha >= 0:
        raise ValueError(f"training_loss: alpha must be 0 or more; got {alpha}")
    return cross_entropy + alpha * sum(aux_losses)


# -- The layer, Eq. (2) --------------------------------------------------------------------------

def switch_ffn(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
    """The Switch layer: y = sum over the k chosen of p_i(x) E_i(x). Eq. (2) [T, D] -> [T, D]

    E_i(x) = relu(x W_in) W_out. What the router sees may differ from ``x``: see ``jitter``. The
    balance loss is taken in each group and averaged, as in the pseudo-code; for that of the whole
    batch see ``load_balancing_loss``.
    """
    probs = router_probs(x if router_input is None else router_input, params.w_router)   # [T, E]
    routing = route(probs, capacity, k, n_groups, used)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)     # [T, D]
    aux_loss = load_balancing_loss(probs, routing.expert, n_groups, used)
    return SwitchOutput(y, aux_loss, routing)


def switch_ffn_einsum(params, x, capacity, k=1, n_groups=1):
    """``switch_ffn`` as the pseudo-code writes it, each slot of each expert in a mask. Appendix F

    Its third product is Eq. (7), which on many machines is local; the experts then fetch what is
    theirs. [T, D] -> [T, D]
    """
    T, D = x.shape
    E, C, G = params.w_in.shape[0], capacity, n_groups
    probs = router_probs(x, params.w_router)                           # [T, E]
    routing = route(probs, C, k, G)
    combine = ops.einsum("tk,tkec->tec", routing.gate, seating(routing, E, C))
    combine = combine.reshape(G, T // G, E, C)
    gate = stop_gradient(combine)
    dispatch = (gate != 0).astype(gate.dtype)                          # [G, T/G, E, C]
    inputs = ops.einsum("gtd,gtec->egcd", x.reshape(G, T // G, D), dispatch)   # Eq. (7)
    hidden = ops.relu(expert_matmul(inputs.reshape(E, G * C, D), params.w_in))   # [E, G*C, H]
    outputs = expert_matmul(hidden, params.w_out).reshape(E, G, C, D)
    y = ops.einsum("egcd,gtec->gtd", outputs, combine).reshape(T, D)
    return SwitchOutput(y, load_balancing_loss(probs, routing.expert, G), routing)


def switch_ffn_transformers(params, x, capacity, n_groups):
    """The layer of Hugging Face's version 4.44: a dropped token comes back scaled by its gate.

    A group is a sequence. The balance loss is of this layer alone, and f as there.
    [T, D] -> [T, D]
    """
    probs = router_probs(x, params.w_router)                           # [T, E]
    routing = route(probs, capacity, n_groups=n_groups)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)     # [T, D]
    y = y + ops.where(routing.keep, 0.0, routing.gate * x)
    return SwitchOutput(y, transformers_load_balancing_loss([probs], [routing], n_groups), routing)


def expert_geglu(x, routing, w_gate, w_in, w_out):
    """The experts of Table 9's GEGLU models: (gelu(x w_gate) * x w_in) w_out, gated and summed.

    [T, D], Routing [T, K], [E, D, H], [E, D, H], [E, H, D] -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    rows = gather(x, seats)                                            # [R, D]
    hidden = ops.gelu(ragged_matmul(rows, w_gate, ends=ends)) * ragged_matmul(rows, w_in, ends=ends)
    return gather_back(ragged_matmul(hidden, w_out, ends=ends), routing.gate, seats)


# -- Selective precision, Section 2.4 ------------------------------------------------------------
# A bfloat16 is a float32 whose last 16 bits are 0: ``ops.round_to_bfloat16``. All of these take and
# give float32.

def router_probs_cast_input(x, w_router):
    """The router's input is bfloat16, all that is made of it float32. Section 2.4

    [T, D], [D, E] -> [T, E]
    """
    return router_probs(ops.round_to_bfloat16(x), w_router)


def router_probs_cast_logits(x, w_router):
    """The logits are bfloat16, the softmax float32: the pseudo-code. [T, D], [D, E] -> [T, E]"""
    return ops.softmax(_logits_in_bfloat16(x, w_router), axis=-1)


def router_probs_cast_probs(x, w_router):
    """Even the softmax is bfloat16, each of its steps: Mesh TensorFlow's no token left behind.

    [T, D], [D, E] -> [T, E]
    """
    rounded = ops.round_to_bfloat16
    logits = _logits_in_bfloat16(x, w_router)
    e = rounded(ops.exp(rounded(logits - logits.max(axis=-1, keepdims=True))))
    return rounded(e / rounded(e.sum(axis=-1, keepdims=True)))


def _logits_in_bfloat16(x, w_router):
    rounded = ops.round_to_bfloat16
    return rounded(router_logits(rounded(x), rounded(w_router)))


def expert_feed_forward_bfloat16(x, routing, w_in, w_out):
    """The experts in bfloat16, and all that is sent to them and back: tokens, gates and outputs.

    [T, D], Routing [T, K], [E, D, H], [E, H, D] -> [T, D]
    """
    rounded = ops.round_to_bfloat16
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    hidden = ops.relu(ragged_matmul(gather(rounded(x), seats), rounded(w_in), ends=ends))   # [R, H]
    outputs = rounded(ragged_matmul(rounded(hidden), rounded(w_out), ends=ends))   # [R, D]
    return rounded(gather_back(outputs, rounded(routing.gate), seats))


# -- Initialisation, Section 2.4 -----------------------------------------------------------------

def init(rng, n_experts, width, hidden, scale=0.1):
    """All weights from ``truncated_normal``, the fan-in of an expert its own. Section 2.4

    T5 starts at a scale of 1.0; a tenth of it is what the paper recommends.
    """
    E, D, H = n_experts, width, hidden
    return SwitchParams(truncated_normal(rng, (D, E), D, scale),
                        truncated_normal(rng, (E, D, H), D, scale),
                        truncated_normal(rng, (E, H, D), H, scale))


def truncated_normal(rng, shape, fan_in, scale=0.1):
    """Draws from N(0, scale / fan_in), those beyond two standard deviations drawn anew.

    What is cut off is not made up for: the weights' variance is 0.774 of scale / fan_in, as with
    TensorFlow's initialiser. ValueError for a scale or fan-in that is not positive.
    """
    if not (scale > 0 and fan_in > 0):
        raise ValueError(f"truncated_normal: scale and fan-in must be positive; "
                         f"got {scale} and {fan_in}")
    z = rng.standard_normal(shape)
    while (beyond := abs(z) > 2).any():
        z[beyond] = rng.standard_normal(int(beyond.sum()))
    return math.sqrt(scale / fan_in) * z


def truncation_corrected(w):
    """Scaled so that the variance is scale / fan-in after all, as JAX does: by 1 / 0.8796."""
    cut = 2 * math.sqrt(2 / math.pi) * math.exp(-2) / math.erf(math.sqrt(2))
    return w / math.sqrt(1 - 2 * cut)


def init_flaxformer(rng, n_experts, width, hidden, scale=0.1):
    """The paper's, but the router from N(0, 0.02^2)."""
    params = init(rng, n_experts, width, hidden, scale)
    return params._replace(w_router=0.02 * rng.standard_normal((width, n_experts)))


def init_transformers(rng, n_experts, width, hidden, factor=1.0):
    """Hugging Face's: normal, the router from N(0, 1), both matrices of an expert from N(0, 1 / D).

    All of them times ``factor``.
    """
    E, D, H = n_experts, width, hidden
    return SwitchParams(factor * rng.standard_normal((D, E)),
                        factor / math.sqrt(D) * rng.standard_normal((E, D, H)),
                        factor / math.sqrt(D) * rng.standard_normal((E, H, D)))


# -- Expert dropout, Section 2.4 -----------------------------------------------------------------

def expert_dropout(x, routing, w_in, w_out, keep, rate=0.4):
    """``expert_feed_forward``, the hidden layer at zero where ``keep`` is False. Section 2.4

    For fine-tuning, where the rate is 0.4 in an expert and 0.1 elsewhere. ``keep`` is the draw: True
    with probability 1 - rate; those kept are scaled up. ValueError for a rate outside [0, 1).
    [T, D], Routing [T, K], [E, D, H], [E, H, D], [T, H] bool -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    hidden = ops.relu(ragged_matmul(gather(x, seats), w_in, ends=ends))   # [R, H]
    hidden = dropout(hidden, gather(keep, seats), rate)
    return gather_back(ragged_matmul(hidden, w_out, ends=ends), routing.gate, seats)


def dropout(x, keep, rate):
    """Entries at zero where ``keep`` is False, the others scaled up to keep the mean.

    ValueError for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate must lie in [0, 1); got {rate}")
    return ops.where(keep, x / (1 - rate), 0.0)


# -- Distillation, Section 4.2 -------------------------------------------------------------------

def distillation_loss(logits, label, teacher_probs, of_teacher=0.25):
    """A quarter of the cross-entropy is with the teacher's probabilities, the rest with the label.

    Table 6. ValueError for a share outside [0, 1]. [T, V], [T] int, [T, V] -> [T]
    """
    if not 0 <= of_teacher <= 1:
        raise ValueError(f"distillation_loss: the teacher's share must lie in [0, 1]; "
                         f"got {of_teacher}")
    soft = -(teacher_probs * ops.log_softmax(logits, axis=-1)).sum(axis=-1)   # [T]
    return (1 - of_teacher) * ops.cross_entropy(logits, label) + of_teacher * soft


# -- Attention, Appendix A -----------------------------------------------------------------------

class SwitchProjectionParams(NamedTuple):
    w_router: Tensor   # [D, E]
    w: Tensor          # [E, D, H]


class SwitchAttentionParams(NamedTuple):
    query: SwitchProjectionParams   # or SwitchParams, w_out [E, H, A*W]; so the others
    key: SwitchProjectionParams
    value: SwitchProjectionParams
    w_out: Tensor                   # [A, W, D]   A heads of width W


class SwitchAttentionOutput(NamedTuple):
    y: Tensor          # [B, S, D]
    aux_loss: Tensor   # []   of all three
    routings: tuple    # of queries, keys, values


def switch_projection(params, x, capacity):
    """A Switch layer whose experts are matrices: y = p_i(x) x W_i. Appendix A [T, D] -> [T, H]"""
    probs = router_probs(x, params.w_router)                           # [T, E]
    routing = route(probs, capacity)
    seats, ends = packed_seats(routing.expert, routing.keep, params.w.shape[0])
    rows = ragged_matmul(gather(x, seats), params.w, ends=ends)        # [R, H]
    return SwitchOutput(gather_back(rows, routing.gate, seats),
                        load_balancing_loss(probs, routing.expert), routing)


def switch_attention(params, x, capacity, project=switch_projection, bias=None):
    """Self-attention whose queries, keys and values come from Switch layers. Appendix A

    Better for each step taken, but it diverged in bfloat16, so the paper's models go without.
    ``project`` is ``switch_ffn`` where experts are feed-forward networks; ``bias`` is added to the
    attention's logits and broadcasts to [B, A, S, S], -inf where a position may not be read.
    [B, S, D] -> [B, S, D]
    """
    B, S, D = x.shape
    A, W, _ = params.w_out.shape
    tokens = x.reshape(B * S, D)
    outputs = [project(p, tokens, capacity) for p in params[:3]]
    query, key, value = [out.y.reshape(B, S, A, W).swapaxes(1, 2) for out in outputs]
    y = ops.attention(query, key, value, bias)                         # [B, A, S, W]
    y = y.swapaxes(1, 2).reshape(B, S, A * W) @ params.w_out.reshape(A * W, D)
    return SwitchAttentionOutput(y, sum(out.aux_loss for out in outputs),
                                 tuple(out.routing for out in outputs))


# -- No token left behind, Appendix B ------------------------------------------------------------

def route_no_token_left_behind(probs, capacity, n_stages=None, n_groups=1, used=None):
    """Who was turned away tries the next best expert, and so on. Appendix B [T, E] -> Routing [T, 1]

    After the first stage, ``route``'s, whoever has no place queues behind those who have one at the
    expert next in probability; the gate is the probability of the expert that took the token. All
    E stages unless fewer are given; Mesh TensorFlow takes 4 at most. A token that no expert took
    keeps its first one, and is turned away. ValueError for a number of stages not in 1 .. E.
    """
    E = probs.shape[-1]
    choices = top_k(probs, E if n_stages is None else n_stages)        # [T, stages]
    expert = choices[:, :1]
    waiting = expert[:, 0] >= 0 if used is None else used              # [T]
    keep = expert < 0                                                  # [T, 1]   nobody yet
    slot = _slots(expert, E, n_groups, waiting)
    for stage in range(choices.shape[1]):
        wanted = choices[:, stage:stage + 1]                           # [T, 1]
        seated = _counts(expert, E, n_groups, keep[:, 0]).reshape(-1)  # [G*E]
        place = _slots(wanted, E, n_groups, waiting) + seated[_queue(wanted, E, n_groups)]
        taken = waiting[:, None] & (place < capacity)                  # [T, 1]
        expert, slot = ops.where(taken, wanted, expert), ops.where(taken, place, slot)
        keep, waiting = keep | taken, waiting & ~taken[:, 0]
    return Routing(expert, slot, keep, ops.take_along_axis(probs, expert, axis=-1))


# -- Exploration, Appendix C ---------------------------------------------------------------------

def jitter(x, u, eps=1e-2):
    """Each entry of ``x`` scaled by a draw from [1 - eps, 1 + eps]. Appendix C [T, D] -> [T, D]

    For the router's input alone; the experts get ``x`` itself. ``u``, shaped like ``x``, is the
    draw, uniform on [0, 1). The paper prints no eps; this one is the released code's. ValueError
    for an eps outside [0, 1).
    """
    return x * _near_one("jitter", u, eps)


def _near_one(name, u, eps):
    if not 0 <= eps < 1:
        raise ValueError(f"{name}: eps must lie in [0, 1); got {eps}")
    return 1 - eps + 2 * eps * u


def input_dropout(x, keep, rate=0.1):
    """``dropout`` of the router's input alone. Appendix C [T, D], [T, D] bool -> [T, D]"""
    return dropout(x, keep, rate)


def route_sampled(probs, u, capacity, n_groups=1, used=None):
    """Each token to an expert drawn from its probabilities. Appendix C [T, E] -> Routing [T, 1]

    ``u`` [T] is the draw, uniform on [0, 1): expert i where it falls on the i-th of the
    probabilities laid end to end. The gate is the probability of the expert drawn.
    """
    ends = ops.cumsum(stop_gradient(probs), axis=-1)                   # [T, E]
    expert = (ends[:, :-1] <= u[:, None]).sum(axis=-1)                 # [T]
    return _first_come(probs, expert[:, None], capacity, n_groups, used)


def logits_noise_pseudocode(logits, u, eps=1e-2):
    """A draw from [1 - eps, 1 + eps] added to each logit; softmax cancels the 1. Appendix F

    [T, E], [T, E] uniform on [0, 1) -> [T, E]
    """
    return logits + _near_one("logits_noise_pseudocode", u, eps)


def logits_noise_tutel(logits, z, noise=1.0):
    """Tutel's, for gates and loss as well: noise / E times a standard normal draw, added.

    [T, E], [T, E] -> [T, E]
    """
    return logits + noise / logits.shape[-1] * z


def route_gumbel(logits, gumbel, capacity, n_groups=1, used=None):
    """DeepSpeed's RSample: each token to the expert of the largest logit plus Gumbel draw.

    That samples from the probabilities, as ``route_sampled`` does. Gates are free of the noise.
    [T, E], [T, E] -> Routing [T, 1]
    """
    return _first_come(ops.softmax(logits, axis=-1), top_k(logits + gumbel, 1), capacity, n_groups,
                       used)


# -- The arithmetic of Tables 6 to 9 -------------------------------------------------------------

def t5_parameters(width, hidden, head_width, n_heads, n_layers, n_matrices=3, vocabulary=32128):
    """Weights of a T5 encoder-decoder with ``n_layers`` in each stack. Table 9

    One embedding for all; GEGLU has three matrices in a feed-forward layer, ReLU two. Norms and
    position biases, a few thousand, are left out.
    """
    attention = 4 * width * n_heads * head_width
    feed_forward = n_matrices * width * hidden
    return vocabulary * width + n_layers * (3 * attention + 2 * feed_forward)


def switch_parameters(n_experts, n_switch_layers, width, hidden, *shape, n_matrices=3):
    """Weights of the same with Switch layers for feed-forward ones, ``n_switch_layers`` in all.

    The shape is that of ``t5_parameters``. Tables 7 and 9
    """
    dense = t5_parameters(width, hidden, *shape, n_matrices=n_matrices)
    experts = expert_parameters(n_experts - 1, n_switch_layers, width, hidden, n_matrices)
    return dense + experts + n_switch_layers * width * n_experts


def expert_parameters(n_experts, n_switch_layers, width, hidden, n_matrices=3):
    """Weights of the experts alone."""
    return n_experts * n_switch_layers * n_matrices * width * hidden


def share_kept(student, dense, teacher):
    """How much of the teacher's gain over the dense model a student keeps. Tables 6, 7 and 8"""
    return (student - dense) / (teacher - dense)


# -- The Transformer, Sections 2 and 2.2 ---------------------------------------------------------
# T5, every other feed-forward layer a Switch layer. Which, the text does not say: here the second
# of each two, as in transformers. B sequences, S source and R target positions, V symbols: T is B S
# in the encoder and B R in the decoder.

class SwitchTransformerOutput(NamedTuple):
    logits: Tensor     # [B, R, V]
    aux_losses: list   # of each Switch layer, the encoder's first; of transformers: of each stack
    probs: list        # of each Switch layer   [T, E]
    routings: list     # of each Switch layer   [T, 1]


def is_switch_layer(layer, step=2):
    """Whether a layer of a stack, counted from 0, is a Switch layer. transformers' rule

    Every other one for a step of 2 ("expert frequency 1/2"), all for 1 (Switch-C), none for 0.
    """
    return step == 1 or step > 0 and layer % step == 1


def init_transformer(rng, vocabulary, width, n_heads, head_width, hidden, n_layers, n_experts,
                     step=2, scale=0.1):
    """Weights of ``nn.T5Params``, SwitchParams in the Switch layers. Section 2.4

    All matrices from ``truncated_normal``. The text says nothing of the embedding: normal with
    variance 1, as T5's. ``n_layers`` in each stack; for ``step`` see ``is_switch_layer``.
    """
    def draw(rng, shape, fan_in):
        return truncated_normal(rng, shape, fan_in, scale)

    def with_experts(stack):
        return stack._replace(layers=[
            layer._replace(feed_forward=init(rng, n_experts, width, hidden, scale))
            if is_switch_layer(i, step) else layer for i, layer in enumerate(stack.layers)])

    dense = nn.t5_init(rng, vocabulary, width, n_heads, head_width, hidden, n_layers, draw=draw)
    return dense._replace(encoder=with_experts(dense.encoder), decoder=with_experts(dense.decoder))


def switch_transformer(params, source, target, capacity, source_used=None, target_used=None,
                       n_groups=1, jitter_draws=None, keep=(None, None), rate=0.1, expert_rate=0.4):
    """Logits of what follows each position of the target; ``target`` begins with a start symbol.

    ``capacity`` takes the tokens of a group and the number of experts: say
    ``partial(expert_capacity, capacity_factor=1.25)``. A layer is a Switch layer where its
    parameters are SwitchParams. Groups are sequences in a row: a token may be turned away because
    of the sequences before its own. Padding, False in ``..._used``, is not routed.

    Draws, if any: for ``jitter`` [T, D] of each Switch layer, the encoder's first; for dropout the
    pair of both stacks from ``nn.t5_keep``, ``expert_rate`` inside experts and ``rate`` elsewhere.
    [B, S] int, [B, R] int -> [B, R, V]
    """
    aux_losses, all_probs, routings = [], [], []
    draws = iter(jitter_draws or ())

    def feed_forward_of(used):
        used = None if used is None else used.reshape(-1)              # [T]

        def feed_forward(p, x, keep):
            if not isinstance(p, SwitchParams):
                return nn.relu_feed_forward(p, x, keep, rate)
            tokens = x.reshape(-1, x.shape[-1])                        # [T, D]
            T, E = tokens.shape[0], p.w_router.shape[-1]
            seen = tokens if jitter_draws is None else jitter(tokens, next(draws))
            probs = router_probs(seen, p.w_router)                     # [T, E]
            routing = route(probs, capacity(T // n_groups, E), n_groups=n_groups, used=used)
            if keep is None:
                y = expert_feed_forward(tokens, routing, p.w_in, p.w_out)   # [T, D]
            else:
                y = expert_dropout(tokens, routing, p.w_in, p.w_out, keep.reshape(T, -1),
                                   expert_rate)
            aux_losses.append(load_balancing_loss(probs, routing.expert, n_groups, used))
            all_probs.append(probs)
            routings.append(routing)
            return y.reshape(x.shape)

        return feed_forward

    memory = nn.t5_encode(params, source, source_used, feed_forward_of(source_used), keep[0], rate)
    y = nn.t5_decode(params, target, memory, target_used, source_used,
                     feed_forward_of(target_used), keep[1], rate)      # [B, R, D]
    return SwitchTransformerOutput(nn.t5_logits(params, y), aux_losses, all_probs, routings)


def switch_transformer_transformers(params, source, target, capacity=64, source_used=None,
                                    target_used=None, max_distance=128, epsilon=1e-6):
    """Hugging Face's, version 4.44, without dropout: ``switch_ffn_transformers`` in each sequence.

    Padding is routed as any token. There are two balance losses: of the encoder's layers, and of
    the decoder's. (Theirs are left out where all layers of the encoder, or of the decoder, are
    Switch layers.) [B, S] int, [B, R] int -> [B, R, V]
    """
    all_probs, routings = [], []

    def feed_forward(p, x, keep):
        if not isinstance(p, SwitchParams):
            return nn.relu_feed_forward(p, x)
        tokens = x.reshape(-1, x.shape[-1])                            # [T, D]
        out = switch_ffn_transformers(p, tokens, capacity, n_groups=len(source))
        all_probs.append(router_probs(tokens, p.w_router))
        routings.append(out.routing)
        return out.y.reshape(x.shape)

    settings = {"max_distance": max_distance, "epsilon": epsilon}
    memory = nn.t5_encode(params, source, source_used, feed_forward, **settings)
    encoder = slice(len(routings))
    y = nn.t5_decode(params, target, memory, target_used, source_used, feed_forward, **settings)
    stacks = [stack for stack in (encoder, slice(encoder.stop, None)) if routings[stack]]
    aux_losses = [transformers_load_balancing_loss(all_probs[stack], routings[stack], len(source))
                  for stack in stacks]
    return SwitchTransformerOutput(nn.t5_logits(params, y), aux_losses, all_probs, routings)
