"""Switch Transformers: every token to one expert.

W. Fedus, B. Zoph and N. Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with
Simple and Efficient Sparsity", JMLR 23(120):1-39, 2022. arXiv:2101.03961v3.

    here       paper           meaning
    T, D       T, d_model      tokens, width of a token
    E, H       N, d_ff         experts, hidden width of one expert
    K          k               experts chosen per token: 1, and 2 for the MoE-Base of Table 1
    C          C               slots per expert, Eq. (3)
    G          n               groups (cores): T / G tokens in a row, and C slots for each of them
    logits     h(x)            of the router
    probs      p_i(x)          its probabilities, Eq. (1)
    gate       p_i(x)          of a chosen expert; multiplies the expert's output, Eq. (2)
    f, P       f_i, P_i        per expert: share of tokens, share of probability, Eqs. (5), (6)
    used       --              [T] bool, False at padding: a token that no expert is to see

A layer is three steps, and each of them has alternatives that go with the others': probabilities
(``router_probs``), a Routing (``route``, ``route_...``), and the experts' outputs
(``routing.experts.expert_feed_forward``, ``expert_...``). ``switch_ffn`` takes the paper's, and
``switch_transformer`` is T5 made with them. ``from_transformers`` takes Hugging Face's weights.

Where text, pseudo-code (Appendix F), released code (Mesh TensorFlow da90793, mesh below; flaxformer
399ea3a) and the code of others part, the text is the default:

    rounding of Eq. (3)   text: not said, here down. Pseudo-code: expert_capacity_pseudocode;
                          expert_capacity_mesh, _flaxformer, _deepspeed, _fairseq, _tutel,
                          _transformers; as many as needed, in deepspeed and tutel: _full
    who is turned away    text: later tokens. mesh switch_max, flaxformer, tutel: the least
                          probable, for which give ``route`` gshard_2020.highest_gate_first;
                          deepspeed: a random choice, route_random_token_selection
    f                     text: argmax p, before capacity. transformers 4.44: after it, the dropped
                          counted for expert 0. Of tokens that sample, text: argmax p; mesh: what
                          was sampled, that is, the expert of their Routing
    f and P taken over    text: the batch. Pseudo-code, and ``switch_ffn``: each group, the losses
                          averaged. transformers: a sequence, in all layers at once,
                          transformers_load_balancing_loss
    gates for K > 1       text: not said, here p_i as they are. GShard divides them by their sum
    f for K > 1           text: not said, here the first choice. mesh (its no token left behind),
                          deepspeed: all_choices_load_balancing_loss; flaxformer: K times that
    padding in f and P    text: not said, here in neither. mesh: in both, which is the loss without
                          ``used``; flaxformer_load_balancing_loss, deepspeed_load_balancing_loss
    a dropped token       text: zero. transformers 4.44: gate times input, switch_ffn_transformers
    jitter                text: scales the router's input. Pseudo-code: logits_noise_pseudocode;
                          tutel: logits_noise_tutel; deepspeed: route_gumbel. transformers 4.44
                          scales the experts' input too: give that as ``x``
    precision             text: router_probs_cast_input. Pseudo-code: _cast_logits; mesh, for no
                          token left behind: _cast_probs; transformers: _transformers
    initialisation        text and mesh: init. flaxformer: init_flaxformer; transformers:
                          init_transformers; JAX makes up for what is cut off: truncation_corrected
    activation of experts text: ReLU. Table 9, all but Switch-C: expert_geglu
    attention             text: an expert is linear or a feed-forward network: switch_projection,
                          switch_ffn. mesh, one hidden layer for queries and keys: not built
    z-loss                not this paper's; mesh, flaxformer, transformers have it: router_z_loss.
                          Padding costs nothing in it here; transformers: as much as any token
    parallelism           Section 5: which core has what; not built
"""
import math
import struct
from fractions import Fraction
from typing import NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import namespace
from minimoe.routing.dispatch import Routing, gather, gather_back, packed_seats, seating
from minimoe.routing.experts import (
    expert_feed_forward, expert_intermediates, expert_matmul, ragged_matmul)
from minimoe.routing.topk import choice_margin, counts_in_groups, queues, slots_in_groups, top_k


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
    ValueError for groups that do not divide the tokens, a capacity below 0, or a ``used`` that is
    not [T]. [T, E] -> Routing [T, K]
    """
    return _first_come(probs, top_k(probs, k), capacity, n_groups, used, order)


def _first_come(probs, expert, capacity, n_groups, used, order=None):
    """The Routing of tokens whose experts are chosen. [T, E], [T, K] int -> Routing [T, K]"""
    _check_slots(capacity)
    used = _used(used, len(expert))
    slot = slots_in_groups(expert, probs.shape[-1], n_groups, used, order)   # [T, K]
    keep = slot < capacity
    return Routing(expert, slot, keep if used is None else keep & used,
                   ops.take_along_axis(probs, expert, axis=-1))


def _check_slots(capacity):
    if not capacity >= 0:
        raise ValueError(f"route: the capacity must be 0 or more; got {capacity}")


def _used(used, n_tokens):
    """``used`` as a column, [T, 1] bool, or None."""
    if used is None:
        return None
    if used.shape != (n_tokens,) or used.dtype != bool:
        raise ValueError(f"route: used must be {n_tokens} booleans, one for each token; "
                         f"got {used.dtype} of shape {used.shape}")
    return used[:, None]


# -- Capacity, Section 2.2 -----------------------------------------------------------------------

def expert_capacity(n_tokens, n_experts, capacity_factor, at_least=None):
    """Slots per expert in a group of ``n_tokens``, rounded down. Eq. (3)

    The paper does not say how to round. The product is taken exactly, because in floating point its
    order decides the answer: 100 tokens, 5 experts and a factor of 1.15 make 23 slots, but
    ``int(100 * 1.15 / 5)`` is 22. Never more slots than tokens; an infinite factor drops none.
    ValueError for a factor that is not positive, no expert, and for tokens that leave no slot to an
    expert unless ``at_least`` says how many it has then. How many tokens find no slot by chance:
    ``gshard_2020.expected_overflow``.
    """
    capacity_factor = min(capacity_factor, n_experts)    # by which all tokens have a slot
    _check_capacity("expert_capacity", n_tokens, n_experts, capacity_factor)
    capacity = math.floor(Fraction(str(capacity_factor)) * n_tokens / n_experts)
    if at_least is None and n_tokens and not capacity:
        raise ValueError(f"expert_capacity: {n_tokens} tokens and a factor of {capacity_factor} "
                         f"leave {n_experts} experts no slot; give at_least")
    return min(n_tokens, max(capacity, at_least or 0))


def _check_capacity(name, n_tokens, n_experts, capacity_factor):
    if n_tokens < 0 or n_experts < 1 or not 0 < capacity_factor < math.inf:
        raise ValueError(f"{name}: needs tokens, experts and a positive, finite capacity factor; "
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
    return _balance(f, mean_probability(probs, n_groups, used))


def dispatched_fraction(expert, n_experts, n_groups=1, used=None):
    """f_i, the share of tokens that chose expert i. Eq. (5) [T, K] int -> [G, E]"""
    T = len(expert)
    counts = counts_in_groups(expert, n_experts, n_groups, _used(used, T))     # [G, E] int
    return counts / _n_used(T, n_groups, used)


def mean_probability(probs, n_groups=1, used=None):
    """P_i, the share of probability that expert i was given. Eq. (6) [T, E] -> [G, E]"""
    n = _n_used(len(probs), n_groups, used)
    totals = _totals(probs, n_groups, used)                            # [G, E]
    return totals / (n if used is None else n.astype(totals.dtype))


def _totals(probs, n_groups, used):
    """The probability that each group gave each expert. [T, E] -> [G, E]"""
    T, E = probs.shape
    if used is not None:
        probs = ops.where(_used(used, T), probs, 0.0)
    return probs.reshape(n_groups, T // n_groups, E).sum(axis=1)


def _n_used(n_tokens, n_groups, used):
    """Tokens in a group, but 1 where there is none. -> a number, or [G, 1] int"""
    if used is None:
        return max(n_tokens // n_groups, 1)
    n = used.reshape(n_groups, n_tokens // n_groups).sum(axis=1)[:, None]
    return n + (n == 0)


def _balance(f, P):
    """N sum_i f_i P_i, averaged over groups. Eq. (4) [G, E], [G, E] -> []"""
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


def expert_geglu(x, routing, w_gate, w_in, w_out):
    """The experts of Table 9's GEGLU models: (gelu(x w_gate) * x w_in) w_out, gated and summed.

    [T, D], Routing [T, K], [E, D, H], [E, D, H], [E, H, D] -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    rows = gather(x, seats)                                            # [R, D]
    hidden = ops.gelu(ragged_matmul(rows, w_gate, ends=ends)) * ragged_matmul(rows, w_in, ends=ends)
    return gather_back(ragged_matmul(hidden, w_out, ends=ends), routing.gate, seats)


# -- Selective precision, Section 2.4 ------------------------------------------------------------
# A bfloat16 is a float32 whose last 16 bits are 0: ``ops.round_to_bfloat16``. What takes one takes
# and gives float32. Gradients pass a rounding unchanged.

def router_probs_cast_input(x, w_router):
    """The router's input is bfloat16, all that is made of it float32. Section 2.4

    [T, D], [D, E] -> [T, E]
    """
    return router_probs(ops.round_to_bfloat16(x), w_router)


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


# -- Expert dropout, Section 2.4 -----------------------------------------------------------------

def expert_dropout(x, routing, w_in, w_out, keep, rate=0.4):
    """``expert_feed_forward``, the hidden layer at zero where ``keep`` is False. Section 2.4

    For fine-tuning, at a rate of 0.4 in an expert and 0.1 elsewhere. ``keep`` is the draw: True
    with probability 1 - rate; those kept are scaled up. ValueError for a rate outside [0, 1).
    [T, D], Routing [T, K], [E, D, H], [E, H, D], [T, H] bool -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    hidden = ops.relu(ragged_matmul(gather(x, seats), w_in, ends=ends))   # [R, H]
    kept = keep[seats.choice // routing.expert.shape[1]]               # [R, H]   of each token
    hidden = nn.dropout(hidden, kept, rate)
    return gather_back(ragged_matmul(hidden, w_out, ends=ends), routing.gate, seats)


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


def share_kept(student, dense, teacher):
    """How much of the teacher's gain over the dense model a student keeps. Tables 6, 7 and 8"""
    return (student - dense) / (teacher - dense)


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
    """Who was turned away tries the next best expert, and so on. Appendix B

    After the first stage, ``route``'s, whoever has no place queues behind those who have one at the
    expert next in probability; the gate is the probability of the expert that took the token. All
    E stages unless fewer are given; Mesh TensorFlow takes 4 at most. A token that no expert took
    keeps its first one, and is turned away. ValueError for a number of stages not in 1 .. E.
    [T, E] -> Routing [T, 1]
    """
    E = probs.shape[-1]
    choices = top_k(probs, E if n_stages is None else n_stages)        # [T, stages]
    expert, slot, keep, _ = _first_come(probs, choices[:, :1], capacity, n_groups, used)   # [T, 1]
    waiting = ~keep if used is None else ~keep & used[:, None]
    for stage in range(1, choices.shape[1]):
        wanted = choices[:, stage:stage + 1]                           # [T, 1]
        seated = counts_in_groups(expert, E, n_groups, keep).reshape(-1)   # [G*E]
        place = (seated[queues(wanted, E, n_groups)]
                 + slots_in_groups(wanted, E, n_groups, waiting))      # [T, 1]
        taken = waiting & (place < capacity)
        expert, slot = ops.where(taken, wanted, expert), ops.where(taken, place, slot)
        keep, waiting = keep | taken, waiting & ~taken
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
    """``nn.dropout`` of the router's input alone. Appendix C [T, D], [T, D] bool -> [T, D]"""
    return nn.dropout(x, keep, rate)


def route_sampled(probs, u, capacity, n_groups=1, used=None):
    """Each token to an expert drawn from its probabilities. Appendix C [T, E] -> Routing [T, 1]

    ``u`` [T] is the draw, uniform on [0, 1): expert i where it falls on the i-th of the
    probabilities laid end to end. The gate is the probability of the expert drawn.
    """
    ends = ops.cumsum(stop_gradient(probs), axis=-1)                   # [T, E]
    expert = (ends[:, :-1] <= u[:, None]).sum(axis=-1)                 # [T]
    return _first_come(probs, expert[:, None], capacity, n_groups, used)


# -- The pseudo-code, Appendix F, and where it parts from the text -------------------------------

def switch_ffn_einsum(params, x, capacity, k=1, n_groups=1):
    """``switch_ffn`` with each slot of each expert in a mask. Appendix F [T, D] -> [T, D]"""
    probs = router_probs(x, params.w_router)                           # [T, E]
    routing = route(probs, capacity, k, n_groups)
    y = expert_feed_forward_einsum(x, routing, params.w_in, params.w_out, capacity, n_groups)
    return SwitchOutput(y, load_balancing_loss(probs, routing.expert, n_groups), routing)


def expert_feed_forward_einsum(x, routing, w_in, w_out, capacity, n_groups=1):
    """``expert_feed_forward``, whose first product is Eq. (7): on many machines it is local.

    The experts then fetch what is theirs. [T, D], Routing [T, K], [E, D, H], [E, H, D] -> [T, D]
    """
    T, D = x.shape
    E, C, G = w_in.shape[0], capacity, n_groups
    combine = ops.einsum("tk,tkec->tec", routing.gate, seating(routing, E, C))
    combine = combine.reshape(G, T // G, E, C)
    gate = stop_gradient(combine)
    dispatch = (gate != 0).astype(gate.dtype)                          # [G, T/G, E, C]
    inputs = ops.einsum("gtd,gtec->egcd", x.reshape(G, T // G, D), dispatch)   # Eq. (7)
    hidden = ops.relu(expert_matmul(inputs.reshape(E, G * C, D), w_in))   # [E, G*C, H]
    outputs = expert_matmul(hidden, w_out).reshape(E, G, C, D)
    return ops.einsum("egcd,gtec->gtd", outputs, combine).reshape(T, D)


def expert_capacity_pseudocode(n_tokens, n_experts, capacity_factor):
    """The slots that the listing fills: one fewer than ``expert_capacity``. Appendix F

    It counts from 1 and keeps what is below C, so that slot 0 stays empty. The released code counts
    from 0.
    """
    return max(expert_capacity(n_tokens, n_experts, capacity_factor) - 1, 0)


def logits_noise_pseudocode(logits, u, eps=1e-2):
    """A draw from [1 - eps, 1 + eps] added to each logit; softmax cancels the 1. Appendix F

    [T, E], [T, E] uniform on [0, 1) -> [T, E]
    """
    return logits + _near_one("logits_noise_pseudocode", u, eps)


def router_probs_cast_logits(x, w_router):
    """The logits are bfloat16, the softmax float32. Appendix F [T, D], [D, E] -> [T, E]"""
    return ops.softmax(_logits_in_bfloat16(x, w_router), axis=-1)


def _logits_in_bfloat16(x, w_router):
    rounded = ops.round_to_bfloat16
    return rounded(router_logits(rounded(x), rounded(w_router)))


# -- The arithmetic of Tables 7 and 9 ------------------------------------------------------------

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
    """Weights of the experts alone. Table 9"""
    return n_experts * n_switch_layers * n_matrices * width * hidden


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
                       n_groups=1, jitter_draws=None, eps=1e-2, keep=(None, None), rate=0.1,
                       expert_rate=0.4):
    """Logits of what follows each position of the target; ``target`` begins with a start symbol.

    ``capacity`` takes the tokens of a group and the number of experts: say
    ``partial(expert_capacity, capacity_factor=1.25)``. A layer is a Switch layer where its
    parameters are SwitchParams. Groups are sequences in a row: a token may be turned away because
    of the sequences before its own. Padding, False in ``..._used``, is not routed.

    Draws, if any: for ``jitter`` [T, D] of each Switch layer, the encoder's first; for dropout the
    pair of both stacks from ``nn.t5_keep``, ``expert_rate`` inside experts and ``rate`` elsewhere.
    ValueError for another number of draws. [B, S] int, [B, R] int -> [B, R, V]
    """
    aux_losses, all_probs, routings = [], [], []
    n_switch = sum(isinstance(layer.feed_forward, SwitchParams)
                   for stack in (params.encoder, params.decoder) for layer in stack.layers)
    if jitter_draws is not None and len(jitter_draws) != n_switch:
        raise ValueError(f"switch_transformer: needs draws of jitter for each of {n_switch} Switch "
                         f"layers; got {len(jitter_draws)}")

    def feed_forward_of(used):
        used = None if used is None else used.reshape(-1)              # [T]

        def feed_forward(p, x, keep):
            if not isinstance(p, SwitchParams):
                return nn.relu_feed_forward(p, x, keep, rate)
            tokens = x.reshape(-1, x.shape[-1])                        # [T, D]
            T, E = tokens.shape[0], p.w_router.shape[-1]
            seen = tokens
            if jitter_draws is not None:
                seen = jitter(tokens, jitter_draws[len(routings)], eps)
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


# -- As others have it: capacity -----------------------------------------------------------------
# In floating point, as there, where the last bit can decide; the factor must be finite.

def expert_capacity_mesh(n_tokens, n_experts, capacity_factor, at_least=4):
    """As released: at most ``n_tokens``, then at least 4."""
    _check_capacity("expert_capacity_mesh", n_tokens, n_experts, capacity_factor)
    return max(min(n_tokens, int(n_tokens * capacity_factor / n_experts)), at_least)


def expert_capacity_flaxformer(n_tokens, n_experts, capacity_factor, at_least=4):
    """As released later: to the nearest number, halves to the even one."""
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
    """fairseq's for training: the share of an expert rounded up, its product down."""
    _check_capacity("expert_capacity_fairseq", n_tokens, n_experts, capacity_factor)
    return int(capacity_factor * math.ceil(n_tokens / n_experts))


def expert_capacity_fairseq_evaluation(n_tokens, fraction=0.25):
    """fairseq's for evaluation: a share of all tokens, rounded up, whatever their experts."""
    _check_capacity("expert_capacity_fairseq_evaluation", n_tokens, 1, fraction)
    return math.ceil(fraction * n_tokens)


def expert_capacity_tutel(n_tokens, n_experts, capacity_factor=1.0, k=1):
    """Tutel's for a factor above 0: as fairseq's, and so for each of ``k`` choices.

    0 means ``expert_capacity_full``, and a factor below 0 the smaller of that and its opposite's.
    """
    return k * expert_capacity_fairseq(n_tokens, n_experts, capacity_factor)


def expert_capacity_transformers(tokens_per_sequence, expert_capacity=64):
    """Hugging Face's: a number, in a group that is one sequence, whatever the number of experts."""
    return min(tokens_per_sequence, expert_capacity)


def expert_capacity_full(expert, n_experts, used=None):
    """As many slots as the expert most in demand needs, so that none is dropped. [T, K] int -> int

    DeepSpeed's where tokens may not be dropped, and Tutel's for a factor of 0.
    """
    return int(counts_in_groups(expert, n_experts, 1, _used(used, len(expert))).max())


# -- As others have it: routes -------------------------------------------------------------------

def route_random_token_selection(probs, u, capacity, n_groups=1, used=None):
    """Each expert keeps a random choice of its tokens: DeepSpeed's, and on by default there.

    ``u`` [T, E] is the draw, uniform on (0, 1): of its tokens an expert keeps those with the
    largest number in its column. Those kept have slots in the order of tokens, the others 0.
    With the draw turned off, DeepSpeed keeps whichever of them torch.topk comes upon.
    [T, E] -> Routing [T, 1]
    """
    expert = top_k(probs, 1)                                           # [T, 1]
    luck = ops.take_along_axis(u, expert, axis=-1)[:, 0]               # [T]
    order = (-luck).argsort(kind="stable")
    _, _, keep, gate = _first_come(probs, expert, capacity, n_groups, used, order)
    return Routing(expert, slots_in_groups(expert, probs.shape[-1], n_groups, keep), keep, gate)


def route_gumbel(logits, gumbel, capacity, n_groups=1, used=None):
    """DeepSpeed's RSample: each token to the expert of the largest logit plus Gumbel draw.

    That samples from the probabilities, as ``route_sampled`` does. Gates are free of the noise.
    [T, E], [T, E] -> Routing [T, 1]
    """
    return _first_come(ops.softmax(logits, axis=-1), top_k(logits + gumbel, 1), capacity, n_groups,
                       used)


def logits_noise_tutel(logits, z, noise=1.0):
    """Tutel's, for gates and loss as well: noise / E times a standard normal draw, added.

    [T, E], [T, E] -> [T, E]
    """
    return logits + noise / logits.shape[-1] * z


def router_probs_cast_probs(x, w_router):
    """Even the softmax is bfloat16, each of its steps: Mesh TensorFlow's no token left behind.

    [T, D], [D, E] -> [T, E]
    """
    rounded = ops.round_to_bfloat16
    logits = _logits_in_bfloat16(x, w_router)
    e = rounded(ops.exp(rounded(logits - logits.max(axis=-1, keepdims=True))))
    return rounded(e / rounded(e.sum(axis=-1, keepdims=True)))


def router_probs_transformers(x, w_router):
    """Hugging Face's, of a bfloat16 input: rounded before the choice, where ties then decide.

    [T, D], [D, E] -> [T, E]
    """
    return ops.round_to_bfloat16(router_probs_cast_input(x, w_router))


# -- As others have it: losses -------------------------------------------------------------------

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
    T, E = probs.shape
    n = _n_used(T, n_groups, None)
    f = counts_in_groups(expert, E, n_groups, _used(used, T)) / n      # [G, E]
    return _balance(f, _totals(probs, n_groups, used) / n)


def deepspeed_load_balancing_loss(probs, expert, used):
    """The loss with padding part of P and of both divisors, but not counted in f.

    [T, E], [T, 1] int, [T] bool -> []
    """
    T, E = probs.shape
    f = counts_in_groups(expert, E, 1, _used(used, T)) / _n_used(T, 1, None)   # [1, E]
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


def router_z_loss(logits, used=None):
    """The mean of (log sum_j exp h_j)^2: keeps logits small. Padding costs 0. [T, E] -> []

    B. Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models", 2022.
    arXiv:2202.08906v2. The usual weight is 1e-3.
    """
    squares = ops.square(ops.logsumexp(logits, axis=-1))               # [T]
    if used is None:
        return squares.sum() / max(len(squares), 1)
    n = used.sum()
    return ops.where(used, squares, 0.0).sum() / (n + (n == 0)).astype(squares.dtype)


# -- As others have it: layers and starts --------------------------------------------------------

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


def truncation_corrected(w):
    """Scaled so that the variance is scale / fan-in after all, as JAX does: by 1 / 0.8796."""
    cut = 2 * math.sqrt(2 / math.pi) * math.exp(-2) / math.erf(math.sqrt(2))
    return w / math.sqrt(1 - cut)


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


# -- Weights from Hugging Face's transformers ----------------------------------------------------

def from_transformers(config, tensors):
    """Parameters, and settings for ``switch_transformer_transformers``, of a checkpoint there.

    From what ``data.huggingface.read_checkpoint`` gives for a Switch Transformer, or for a T5 with
    relu, which has no Switch layers. ValueError for a model or a setting that is not built here
    (gated feed-forward layers, a bias in the router), and for tensors that are missing, unexpected
    or of another shape, naming them. -> nn.T5Params, dict
    """
    _check_transformers_config(config)
    _check_transformers_tensors(_transformers_shapes(config), tensors)
    D, A, W = config["d_model"], config["num_heads"], config["d_kv"]

    def matrix(name):
        return tensors[f"{name}.weight"].T                             # theirs: [outputs, inputs]

    def attention(name):
        heads = (matrix(f"{name}.{part}").reshape(D, A, W) for part in "qkv")
        return nn.AttentionParams(*heads, matrix(f"{name}.o").reshape(A, W, D), *[None] * 4)

    def experts(name, part):
        return ops.stack([matrix(f"{name}.experts.expert_{e}.{part}")
                          for e in range(config["num_experts"])])

    def layer(stack, i):
        place = f"{stack}.block.{i}.layer"
        norms = [tensors[f"{place}.{part}.layer_norm.weight"]
                 for part in range(2 if stack == "encoder" else 3)]
        mlp = f"{place}.{len(norms) - 1}.{_mlp(config)}"
        if is_switch_layer(i, _sparse_step(config, stack)):
            feed_forward = SwitchParams(matrix(f"{mlp}.router.classifier"), experts(mlp, "wi"),
                                        experts(mlp, "wo"))
        else:
            feed_forward = nn.FeedForwardParams(matrix(f"{mlp}.wi"), matrix(f"{mlp}.wo"))
        cross = (None, None) if stack == "encoder" else (
            norms[1], attention(f"{place}.1.EncDecAttention"))
        return nn.T5LayerParams(norms[0], attention(f"{place}.0.SelfAttention"), *cross, norms[-1],
                                feed_forward)

    def stack(name):
        table = tensors[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return nn.T5StackParams([layer(name, i) for i in range(_n_layers(config, name))], table,
                                tensors[f"{name}.final_layer_norm.weight"])

    head = None if config.get("tie_word_embeddings", True) else matrix("lm_head")
    settings = {"capacity": config.get("expert_capacity", 64),
                "max_distance": config.get("relative_attention_max_distance", 128),
                "epsilon": config.get("layer_norm_epsilon", 1e-6)}
    params = nn.T5Params(tensors["shared.weight"], stack("encoder"), stack("decoder"), head)
    return params, settings


def _transformers_shapes(config):
    """The tensors of a checkpoint, by name."""
    D, H, V = config["d_model"], config["d_ff"], config["vocab_size"]
    A, W, N = config["num_heads"], config["d_kv"], config.get("relative_attention_num_buckets", 32)
    shapes = {"shared": (V, D)}
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head"] = (V, D)
    for stack, parts in (("encoder", ["SelfAttention"]),
                         ("decoder", ["SelfAttention", "EncDecAttention"])):
        shapes[f"{stack}.final_layer_norm"] = (D,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"] = (N, A)
        for i in range(_n_layers(config, stack)):
            place = f"{stack}.block.{i}.layer"
            for j, part in enumerate(parts):
                shapes |= {f"{place}.{j}.{part}.{m}": (A * W, D) for m in "qkv"}
                shapes[f"{place}.{j}.{part}.o"] = (D, A * W)
            shapes |= {f"{place}.{j}.layer_norm": (D,) for j in range(len(parts) + 1)}
            mlp = f"{place}.{len(parts)}.{_mlp(config)}"
            networks = [mlp]
            if is_switch_layer(i, _sparse_step(config, stack)):
                shapes[f"{mlp}.router.classifier"] = (config["num_experts"], D)
                networks = [f"{mlp}.experts.expert_{e}" for e in range(config["num_experts"])]
            for network in networks:
                shapes |= {f"{network}.wi": (H, D), f"{network}.wo": (D, H)}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def _mlp(config):
    return "DenseReluDense" if config["model_type"] == "t5" else "mlp"


def _n_layers(config, stack):
    n = config["num_layers"]
    return n if stack == "encoder" else config.get("num_decoder_layers") or n


def _sparse_step(config, stack):
    """``is_switch_layer``'s step; without Switch layers asked for, theirs is the number of layers.

    Which leaves them one, the second.
    """
    if config["model_type"] == "t5":
        return 0
    n, sparse = _n_layers(config, stack), config.get(f"num_sparse_{stack}_layers", 3)
    return config.get(f"{stack}_sparse_step", n // sparse if sparse > 0 else n)


def _check_transformers_config(config):
    kind = config.get("model_type")
    if kind not in ("switch_transformers", "t5"):
        raise ValueError(f"from_transformers: needs a model_type of switch_transformers or t5; "
                         f"got {kind}")
    needed = ["d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "num_layers"]
    lacking = [key for key in needed + ["num_experts"] * (kind != "t5") if key not in config]
    if lacking:
        raise ValueError(f"from_transformers: the configuration lacks {', '.join(lacking)}")
    built = {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False,
             "router_bias": False, "is_encoder_decoder": True}
    for key, value in built.items():
        if config.get(key, value) != value:
            raise ValueError(f"from_transformers: {key} must be {value}; got {config[key]}")


def _check_transformers_tensors(shapes, tensors):
    """That all are there, and nothing else but copies and one leftover that theirs ignores too."""
    copies = {f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")} | {
        "lm_head.weight", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}
    problems = [("missing", [name for name in shapes if name not in tensors]),
                ("unexpected", sorted(tensors.keys() - shapes.keys() - copies)),
                ("of another shape", [
                    f"{name} {tuple(tensors[name].shape)} for {shape}"
                    for name, shape in shapes.items()
                    if name in tensors and tuple(tensors[name].shape) != shape])]
    said = [f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}"
            for what, names in problems if names]
    if said:
        raise ValueError(f"from_transformers: tensors are {'; '.join(said)}")


# -- Recorded runs -------------------------------------------------------------------------------

LAYER = {"in.x": "T D", "in.cotangent": "T D", "set.capacity": "", "param.w_router": "D E",
         "param.w_in": "E D H", "param.w_out": "E H D"}
GROUPS = {**LAYER, "in.used": "bool T", "set.n_groups": ""}


def _leaves(case, *inputs):
    """Tensors by name: of the parameters, and of these inputs."""
    return tree.map(Tensor, {**{name: case.inputs[name] for name in inputs}, **case.params})


def _switch_params(leaves):
    return SwitchParams(*(leaves[name] for name in SwitchParams._fields))


def _layer(logits, probs, out, case, leaves, ahead=None, shares=None, losses=None, given=None,
           activation=ops.relu):
    """Every intermediate of a layer, in the order of computation, and the gradients.

    Those of <y, cotangent>, of the balance loss and of further ``losses``. ``ahead`` is the margin
    of its choices where it is not that of logits, ``shares`` are f and P, and ``given`` what the
    experts are given where it is not x.
    """
    routing, params = out.routing, _switch_params(leaves)
    inputs, hidden, outputs = expert_intermediates(
        leaves["x"] if given is None else given, routing, params.w_in, params.w_out, activation)
    losses = {"aux_loss": out.aux_loss, **(losses or {})}
    y = (out.y * case.inputs["cotangent"]).sum()
    return tree.map(stop_gradient, {
        "logits": logits, "probs": probs, "expert": routing.expert,
        "margin": choice_margin(logits, routing.expert) if ahead is None else ahead,
        "slot": routing.slot, "keep": routing.keep, "gate": routing.gate,
        "expert_inputs": inputs, "hidden": hidden, "expert_outputs": outputs, "y": out.y,
        **(shares or {}), **losses,
        "grad": {name: grad(loss, leaves) for name, loss in {"y": y, **losses}.items()}})


def _shares(probs, routing, n_groups, used):
    """What the balance loss is made of."""
    f = dispatched_fraction(routing.expert[:, :1], probs.shape[-1], n_groups, used)
    return {"f": f.astype(probs.dtype), "P": mean_probability(probs, n_groups, used)}


def layer_oracle(case):
    """The layer, its tokens in groups, some of them perhaps padding.

    ``loss`` is ``training_loss``, the task's loss being <y, cotangent>.
    """
    leaves, used, n_groups = _leaves(case, "x"), case.inputs["used"], case.settings["n_groups"]
    params, x = _switch_params(leaves), leaves["x"]
    out = switch_ffn(params, x, case.settings["capacity"], case.settings["k"], n_groups, used)
    logits, probs = router_logits(x, params.w_router), router_probs(x, params.w_router)
    shares = _shares(probs, out.routing, n_groups, used)
    loss = training_loss((out.y * case.inputs["cotangent"]).sum(), [out.aux_loss])
    return _layer(logits, probs, out, case, leaves, shares=shares,
                  losses={"z_loss": router_z_loss(logits, used), "loss": loss})


def no_token_left_behind_oracle(case):
    """The layer with no token left behind, and the balance loss of as many choices as stages.

    The margin is the smallest of all stages.
    """
    leaves, used, n_groups = _leaves(case, "x"), case.inputs["used"], case.settings["n_groups"]
    params, x, n_stages = _switch_params(leaves), leaves["x"], case.settings["n_stages"]
    logits, probs = router_logits(x, params.w_router), router_probs(x, params.w_router)
    routing = route_no_token_left_behind(probs, case.settings["capacity"], n_stages, n_groups, used)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)
    choices = top_k(probs, n_stages)                                   # [T, stages]
    aux_loss = all_choices_load_balancing_loss(probs, choices, n_groups, used)
    ahead = choice_margin(logits, choices).min(axis=-1, keepdims=True)    # [T, 1]
    return _layer(logits, probs, SwitchOutput(y, aux_loss, routing), case, leaves, ahead)


def _explored(params, x, seen, capacity):
    """A layer whose router sees something else than ``x``, and what its experts are given."""
    return x, switch_ffn(params, x, capacity, router_input=seen)


def exploration_oracle(case):
    """The layer with each policy of exploration but the first, which is its default.

    The margin of a sample is how far its draw is from the next probability's end.
    """
    leaves, capacity, inputs = _leaves(case, "x"), case.settings["capacity"], case.inputs
    params, x = _switch_params(leaves), leaves["x"]
    found = {}
    for name, seen in {"jitter": jitter(x, inputs["u"], case.settings["eps"]),
                       "dropout": input_dropout(x, inputs["kept"], case.settings["rate"])}.items():
        given, out = _explored(params, x, seen, capacity)
        found[name] = _layer(router_logits(seen, params.w_router),
                             router_probs(seen, params.w_router), out, case, leaves, given=given)
    logits, probs = router_logits(x, params.w_router), router_probs(x, params.w_router)
    routing = route_sampled(probs, inputs["draw"], capacity)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)
    out = SwitchOutput(y, load_balancing_loss(probs, top_k(probs, 1)), routing)
    ends = ops.cumsum(stop_gradient(probs), axis=-1)                   # [T, E]
    ends[:, -1] = math.inf                                             # no draw gets there
    ahead = abs(ends - inputs["draw"][:, None]).min(axis=-1, keepdims=True)    # [T, 1]
    return {**found, "sample": _layer(logits, probs, out, case, leaves, ahead)}


def expert_dropout_oracle(case):
    """The layer with dropout in its experts."""
    leaves, rate = _leaves(case, "x"), case.settings["rate"]
    params, x, kept = _switch_params(leaves), leaves["x"], case.inputs["kept"]
    logits, probs = router_logits(x, params.w_router), router_probs(x, params.w_router)
    routing = route(probs, case.settings["capacity"])
    y = expert_dropout(x, routing, params.w_in, params.w_out, kept, rate)
    out = SwitchOutput(y, load_balancing_loss(probs, routing.expert), routing)
    return _layer(logits, probs, out, case, leaves,
                  activation=lambda h: nn.dropout(ops.relu(h), kept[:, None], rate))


def pseudocode_oracle(case):
    """The layer of Appendix F: noise on the logits, slots from 1, of which C - 1 are filled."""
    leaves, n_groups = _leaves(case, "x"), case.settings["n_groups"]
    params, x, capacity = _switch_params(leaves), leaves["x"], case.settings["capacity"] - 1
    logits = logits_noise_pseudocode(router_logits(x, params.w_router), case.inputs["u"],
                                     case.settings["eps"])
    probs = ops.softmax(logits)
    routing = route(probs, capacity, n_groups=n_groups)
    y = expert_feed_forward_einsum(x, routing, params.w_in, params.w_out, capacity, n_groups)
    out = SwitchOutput(y, load_balancing_loss(probs, routing.expert, n_groups), routing)
    return _layer(logits, probs, out, case, leaves)


def selective_precision_oracle(case):
    """Probabilities and choices for each place of the up-cast; the experts in bfloat16.

    All in float32, which holds a bfloat16, also of a run that was moved to float64 to be compared.
    """
    x, w_router, w_in, w_out = (a.astype("float32") for a in (
        case.inputs["x"], *(case.params[name] for name in SwitchParams._fields)))
    probs = {"cast_input": router_probs_cast_input(x, w_router),
             "cast_logits": router_probs_cast_logits(x, w_router),
             "cast_probs": router_probs_cast_probs(x, w_router),
             "transformers": router_probs_transformers(x, w_router)}
    routing = route(probs["cast_input"], case.settings["capacity"])
    return {"probs": probs, "expert": {name: top_k(p, 1) for name, p in probs.items()},
            "y": expert_feed_forward_bfloat16(x, routing, w_in, w_out)}


def attention_oracle(case):
    """Attention whose experts are matrices; gradients of <y, cotangent> and the balance loss."""
    leaves, capacity = _leaves(case, "x"), case.settings["capacity"]
    projections = {name: SwitchProjectionParams(leaves[f"{name}.w_router"], leaves[f"{name}.w"])
                   for name in ("query", "key", "value")}
    params, x = SwitchAttentionParams(**projections, w_out=leaves["w_out"]), leaves["x"]
    B, S, D = x.shape
    out = switch_attention(params, x, capacity, bias=case.inputs["bias"])
    losses = {"y": (out.y * case.inputs["cotangent"]).sum(), "aux_loss": out.aux_loss}
    tokens, found = x.reshape(B * S, D), {}
    for (name, projection), (expert, slot, keep, gate) in zip(projections.items(), out.routings):
        logits = router_logits(tokens, projection.w_router)
        found[name] = {"logits": logits, "expert": expert, "margin": choice_margin(logits, expert),
                       "slot": slot, "keep": keep, "gate": gate,
                       "y": switch_projection(projection, tokens, capacity).y}
    return tree.map(stop_gradient, {
        **found, "y": out.y, "aux_loss": out.aux_loss,
        "grad": {name: grad(loss, leaves) for name, loss in losses.items()}})


def distillation_oracle(case):
    """The loss of each token, and the gradient of <loss, cotangent>."""
    leaves = _leaves(case, "logits")
    loss = distillation_loss(leaves["logits"], case.inputs["label"], case.inputs["teacher_probs"],
                             case.settings["of_teacher"])
    return {"loss": loss.array, "grad": grad((loss * case.inputs["cotangent"]).sum(), leaves)}


def transformers_oracle(case):
    """A stack of Hugging Face's layers, its balance loss and z-loss, and their gradients."""
    leaves, capacity = _leaves(case, "x"), case.settings["capacity"]
    B, S, D = leaves["x"].shape
    y, found, probs, routings, logits = leaves["x"].reshape(B * S, D), [], [], [], []
    for layer in range(leaves["w_router"].shape[0]):
        params = SwitchParams(*(w[layer] for w in _switch_params(leaves)))
        logits.append(router_logits(y, params.w_router))
        probs.append(router_probs(y, params.w_router))
        out = switch_ffn_transformers(params, y, capacity, B)
        y, routing = out.y, out.routing
        routings.append(routing)
        found.append({"logits": logits[-1], "keep": routing.keep,
                      "expert": routing.expert * routing.keep, "gate": routing.gate, "y": y})
    losses = {"y": (y * case.inputs["cotangent"].reshape(B * S, D)).sum(),
              "aux_loss": transformers_load_balancing_loss(probs, routings, B),
              "z_loss": router_z_loss(ops.concatenate(logits, axis=0))}
    return tree.map(stop_gradient, {
        "layer": found, "aux_loss": losses["aux_loss"], "z_loss": losses["z_loss"],
        "grad": {name: grad(loss, leaves) for name, loss in losses.items()}})


def deepspeed_oracle(case):
    """DeepSpeed's top-1 gating: random token selection, nobody dropped, and Gumbel noise.

    Expert -1 and slot 0 stand for a token that was dropped.
    """
    leaves, inputs = _leaves(case, "logits"), case.inputs
    logits, used = leaves["logits"], inputs["used"]
    probs = ops.softmax(logits)
    T, E = probs.shape
    capacity = expert_capacity_deepspeed(T, E, case.settings["capacity_factor"],
                                         case.settings["at_least"])
    enough = expert_capacity_full(top_k(probs, 1), E, used)
    routings = {
        "random_token_selection": route_random_token_selection(probs, inputs["u"], capacity,
                                                               used=used),
        "all_kept": route(probs, enough, used=used),
        "gumbel": route_gumbel(logits, inputs["gumbel"], T, used=used)}
    found = {"probs": probs, "capacity": namespace().asarray(capacity),
             "all_kept_capacity": namespace().asarray(enough)}
    for name, (expert, slot, keep, gate) in routings.items():
        kept = ops.where(keep, gate, 0.0)                              # [T, 1]
        losses = {"gate": (kept[:, 0] * inputs["cotangent"]).sum(),
                  "aux_loss": deepspeed_load_balancing_loss(probs, expert, used)}
        found[name] = {"expert": ops.where(keep, expert, -1), "slot": slot * keep, "gate": kept,
                       "aux_loss": losses["aux_loss"],
                       "grad": {loss: grad(losses[loss], leaves) for loss in losses}}
    return tree.map(stop_gradient, found)


def capacity_oracle(case):
    """The capacity of Eq. (3), of several sizes."""
    sizes = zip(*(case.settings[name] for name in ("n_tokens", "n_experts", "capacity_factor")))
    return {"capacity": namespace().asarray([expert_capacity(*size) for size in sizes])}


def capacity_deepspeed_oracle(case):
    """DeepSpeed's capacity, of several sizes."""
    sizes = zip(*(case.settings[name] for name in ("n_tokens", "n_experts", "capacity_factor",
                                                   "at_least")))
    return {"capacity": namespace().asarray([expert_capacity_deepspeed(*size) for size in sizes])}


def _stack_letters(*cross):
    """The shapes of a stack of two layers, the second a Switch layer."""
    return nn.T5StackParams([nn.T5LayerParams("D", ATTENTION_LETTERS, *cross, "D", feed_forward)
                             for feed_forward in (nn.FeedForwardParams("D H", "H D"),
                                                  SwitchParams("D E", "E D H", "E H D"))],
                            "N A", "D")


ATTENTION_LETTERS = nn.AttentionParams("D A W", "D A W", "D A W", "A W D", *[None] * 4)
ENCODER_DECODER = nn.T5Params("V D", _stack_letters(None, None),
                              _stack_letters("D", ATTENTION_LETTERS), None)


def encoder_decoder_oracle(case):
    """Two layers a stack; gradients of <logits, cotangent>, and of the sum of balance losses."""
    names, inputs = iter(tree.named_leaves(ENCODER_DECODER)), case.inputs
    params = tree.map(lambda _: Tensor(case.params[next(names)]), ENCODER_DECODER)

    def capacity(n_tokens, n_experts):
        return expert_capacity(n_tokens, n_experts, case.settings["capacity_factor"])

    out = switch_transformer(params, inputs["source"], inputs["target"], capacity,
                             inputs["source_used"], inputs["target_used"])
    losses = {"logits": (out.logits * inputs["cotangent"]).sum(), "aux_losses": sum(out.aux_losses)}
    return tree.map(stop_gradient, {
        "expert": [routing.expert for routing in out.routings],
        "keep": [routing.keep for routing in out.routings], "probs": out.probs,
        "aux_losses": out.aux_losses, "logits": out.logits,
        "grad": {name: grad(loss, params) for name, loss in losses.items()}})


ORACLES = {
    "layer": ({**GROUPS, "set.k": ""}, layer_oracle),
    "capacity": ({f"set.{name}": "N" for name in ("n_tokens", "n_experts", "capacity_factor")},
                 capacity_oracle),
    "no_token_left_behind": ({**GROUPS, "set.n_stages": ""}, no_token_left_behind_oracle),
    "exploration": ({**LAYER, "in.u": "T D", "in.kept": "bool T D", "in.draw": "T", "set.eps": "",
                     "set.rate": ""}, exploration_oracle),
    "expert_dropout": ({**LAYER, "in.kept": "bool T H", "set.rate": ""}, expert_dropout_oracle),
    "pseudocode": ({**LAYER, "in.u": "T E", "set.n_groups": "", "set.eps": ""}, pseudocode_oracle),
    "selective_precision": ({name: letters for name, letters in LAYER.items()
                             if name != "in.cotangent"}, selective_precision_oracle),
    "attention": ({
        "in.x": "B S D", "in.bias": "A S S", "in.cotangent": "B S D", "set.capacity": "",
        **{f"param.{name}.{part}": letters for name in ("query", "key", "value")
           for part, letters in (("w_router", "D E"), ("w", "E D H"))},      # H = A W
        "param.w_out": "A W D"}, attention_oracle),
    "distillation": ({"in.logits": "T V", "in.label": "int T", "in.teacher_probs": "T V",
                      "in.cotangent": "T", "set.of_teacher": ""}, distillation_oracle),
    "transformers": ({"in.x": "B S D", "in.cotangent": "B S D", "set.capacity": "",
                      "param.w_router": "L D E", "param.w_in": "L E D H",
                      "param.w_out": "L E H D"}, transformers_oracle),
    "deepspeed": ({"in.logits": "T E", "in.u": "T E", "in.gumbel": "T E", "in.used": "bool T",
                   "in.cotangent": "T", "set.capacity_factor": "", "set.at_least": ""},
                  deepspeed_oracle),
    "capacity_deepspeed": ({f"set.{name}": "N" for name in (
        "n_tokens", "n_experts", "capacity_factor", "at_least")}, capacity_deepspeed_oracle),
    "encoder_decoder": ({
        "in.source": "int B S", "in.target": "int B R", "in.source_used": "bool B S",
        "in.target_used": "bool B R", "in.cotangent": "B R V", "set.capacity_factor": "",
        **{f"param.{name}": letters for name, letters in tree.named_leaves(ENCODER_DECODER).items()}
    }, encoder_decoder_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _padding(*tokens):
    def change(arrays, rng):
        arrays["in.used"][list(tokens)] = False
    return change


def _all_padding(arrays, rng):
    arrays["in.used"][:] = False


def _no_router(arrays, rng):
    """All probabilities are equal, and so all tokens go to expert 0."""
    arrays["param.w_router"][:] = 0


def _twins(arrays, rng):
    """Experts 1 and 3 are equal, and ahead of the others."""
    arrays["in.x"][:, 0] = 1
    arrays["param.w_router"][0, 1] += 3
    arrays["param.w_router"][:, 3] = arrays["param.w_router"][:, 1]


def _near_twins(arrays, rng):
    """Experts 1 and 3 are 2^-12 apart, now this one ahead, now that: a tie in bfloat16."""
    _twins(arrays, rng)
    x, w_router = arrays["in.x"], arrays["param.w_router"]
    x[:, 0], x[::2, 1], x[1::2, 1] = 1, 2**-6, -2**-6
    w_router[1, 1] = 0.5
    w_router[1, 3] = 0.5 + 2**-6


def _all_to_one(arrays, rng):
    """Expert 1 is everybody's first."""
    arrays["in.x"][:, 0] = 1
    arrays["param.w_router"][0, 1] = 16


def _balanced(arrays, rng):
    """Tokens to experts in turn, each as sure as the next: f and P are uniform."""
    x, w_router = arrays["in.x"], arrays["param.w_router"]
    E = w_router.shape[1]
    x[:] = 0
    w_router[:] = 0
    for e in range(E):
        x[e::E, e], w_router[e, e] = 4, 1


def _large(arrays, rng):
    """Logits of some thousands, no two near each other: probabilities are 0 or 1, or nearly.

    A softmax of x - logsumexp(x), as right as any, is off by |x| eps where none is 0 or 1.
    """
    arrays["param.w_router"] *= 1024


def _beyond_256(arrays, rng):
    """Experts from 256 upwards have the largest logits, by and large."""
    arrays["param.w_router"][:, :256] /= 4


def _dropout(key):
    def change(arrays, rng):
        arrays[key] = rng.random(arrays[key].shape) >= 0.5
    return change


def _label_and_teacher(arrays, rng):
    T, V = arrays["in.logits"].shape
    arrays["in.label"] = rng.integers(V, size=T)
    halves = [2.0**-min(i + 1, V - 1) for i in range(V)]                # adding up to 1
    arrays["in.teacher_probs"] = rng.permuted([halves] * T, axis=1)


def _sentences(arrays, rng):
    V = len(arrays["param.embedding"])
    for name in ("source", "target"):
        arrays[f"in.{name}"] = rng.integers(V, size=arrays[f"in.{name}"].shape)


def _padded_sentences(arrays, rng):
    _sentences(arrays, rng)
    arrays["in.source_used"][0, 2:] = False
    arrays["in.target_used"][0, 1:] = False


_SIZES = dict(T=16, D=8, E=4, H=6, n_groups=1)
_LAYER = dict(_SIZES, k=1)
_MODEL = dict(B=2, S=5, R=4, V=9, D=8, A=2, W=4, H=6, E=4, N=8)
CASES = {
    "roomy": ("layer", dict(_LAYER, capacity=16)),
    "overflowing": ("layer", dict(_LAYER, capacity=2), "drops"),
    "exact": ("layer", dict(_LAYER, capacity=16), "exact"),
    "exact_overflowing": ("layer", dict(_LAYER, capacity=3), "exact, drops"),
    "exact_two_choices": ("layer", dict(_LAYER, capacity=6, k=2), "exact, k2, drops"),
    "exact_padding": ("layer", dict(_LAYER, capacity=3), "exact, padding, drops",
                      _padding(0, 3, 4, 9, 10)),
    "two_choices": ("layer", dict(_LAYER, capacity=16, k=2), "k2"),
    "two_choices_overflowing": ("layer", dict(_LAYER, capacity=6, k=2), "k2, drops"),
    "three_choices": ("layer", dict(_LAYER, E=5, capacity=16, k=3), "k3"),
    "three_choices_overflowing": ("layer", dict(_LAYER, E=5, capacity=7, k=3), "k3, drops"),
    "groups": ("layer", dict(_LAYER, capacity=1, n_groups=4), "groups, drops"),
    "two_choices_in_groups": ("layer", dict(_LAYER, capacity=3, k=2, n_groups=2),
                              "k2, groups, drops"),
    "padding": ("layer", dict(_LAYER, capacity=3), "padding, drops", _padding(0, 3, 4, 9, 10)),
    "padding_at_the_end": ("layer", dict(_LAYER, capacity=16), "padding", _padding(13, 14, 15)),
    "padding_in_groups": ("layer", dict(_LAYER, capacity=2, k=2, n_groups=4),
                          "padding, k2, groups, drops", _padding(0, 2, 8, 9, 10, 11, 15)),
    "padding_of_as_many_tokens_as_experts": (
        "layer", dict(_LAYER, T=6, E=6, capacity=6), "padding, T=E", _padding(1, 2)),
    "padding_of_as_many_tokens_as_experts_overflowing": (
        "layer", dict(_LAYER, T=8, E=8, capacity=1, k=2), "padding, T=E, k2, drops",
        _padding(0, 3, 5)),
    "padding_as_many_experts_as_tokens": ("layer", dict(_LAYER, T=8, E=8, capacity=8), "padding",
                                          _padding(1, 6)),
    "padding_as_many_experts_overflowing": ("layer", dict(_LAYER, T=8, E=8, capacity=1),
                                            "padding, drops", _padding(0, 5)),
    "all_padding": ("layer", dict(_LAYER, capacity=16), "padding, degenerate", _all_padding),
    "ties": ("layer", dict(_LAYER, capacity=16), "ties", _twins),
    "ties_of_two_choices": ("layer", dict(_LAYER, capacity=5, k=2), "ties, k2, drops", _twins),
    "ties_everywhere": ("layer", dict(_LAYER, capacity=16), "ties, degenerate", _no_router),
    "near_ties": ("layer", dict(_LAYER, capacity=16), "near ties", _near_twins),
    "all_to_one": ("layer", dict(_LAYER, capacity=16), "degenerate", _all_to_one),
    "all_to_one_overflowing": ("layer", dict(_LAYER, capacity=3), "degenerate, drops",
                               _all_to_one),
    "all_dropped": ("layer", dict(_LAYER, capacity=0), "degenerate, drops, all dropped"),
    "balanced": ("layer", dict(_LAYER, capacity=4), "degenerate, balanced", _balanced),
    "every_expert": ("layer", dict(_LAYER, capacity=16, k=4), "degenerate, k=E"),
    "one_expert": ("layer", dict(_LAYER, E=1, capacity=16), "degenerate, E=1, k=E"),
    "one_expert_overflowing": ("layer", dict(_LAYER, E=1, capacity=9),
                               "degenerate, E=1, k=E, drops"),
    "one_token": ("layer", dict(_LAYER, T=1, capacity=1), "degenerate, T=1"),
    "no_token": ("layer", dict(_LAYER, T=0, capacity=1), "degenerate, T=0"),
    "large_logits": ("layer", dict(_LAYER, capacity=16), "extreme", _large),
    "wide": ("layer", dict(_LAYER, T=12, D=4, E=288, H=2, capacity=12), "wide, E>256",
             _beyond_256),
    "wide_two_choices": ("layer", dict(_LAYER, T=12, D=4, E=288, H=2, capacity=1, k=2),
                         "wide, E>256, k2, drops", _beyond_256),

    "capacity": ("capacity", dict(
        n_tokens=[64, 100, 100, 7, 50, 30, 18, 64], n_experts=[8, 5, 7, 2, 2, 4, 4, 32],
        capacity_factor=[1.25, 1.15, 1.0, 2.0, 1.1, 1.0, 1.25, 1.0])),
    "no_token_left_behind": ("no_token_left_behind", dict(_SIZES, capacity=4, n_stages=4),
                             "second stage"),
    "no_token_left_behind_exact": ("no_token_left_behind", dict(_SIZES, capacity=4, n_stages=4),
                                   "exact, second stage"),
    "two_stages": ("no_token_left_behind", dict(_SIZES, capacity=2, n_stages=2),
                   "drops, second stage"),
    "two_stages_in_padded_groups": (
        "no_token_left_behind", dict(_SIZES, capacity=1, n_stages=2, n_groups=2),
        "drops, second stage, groups, padding", _padding(1, 2, 12)),
    "no_token_left_behind_with_room": (
        "no_token_left_behind", dict(_SIZES, capacity=16, n_stages=4), ""),

    "exploration": ("exploration", dict(T=16, D=8, E=4, H=6, capacity=16, eps=2**-6, rate=0.5), "",
                    _dropout("in.kept")),
    "exploration_far_and_overflowing": (
        "exploration", dict(T=16, D=8, E=4, H=6, capacity=3, eps=0.5, rate=0.5), "drops",
        _dropout("in.kept")),
    "expert_dropout": ("expert_dropout", dict(T=16, D=8, E=4, H=6, capacity=16, rate=0.5), "",
                       _dropout("in.kept")),
    "expert_dropout_overflowing": (
        "expert_dropout", dict(T=16, D=8, E=4, H=6, capacity=3, rate=0.5), "drops",
        _dropout("in.kept")),
    "pseudocode": ("pseudocode", dict(_SIZES, capacity=17, eps=2**-6)),
    "pseudocode_overflowing": ("pseudocode", dict(_SIZES, capacity=4, eps=2**-6), "drops"),
    "pseudocode_in_groups": ("pseudocode", dict(_SIZES, capacity=3, eps=0.5, n_groups=4),
                             "groups, drops"),
    "selective_precision": ("selective_precision", dict(T=16, D=8, E=4, H=6, capacity=16)),
    "selective_precision_overflowing": (
        "selective_precision", dict(T=16, D=8, E=4, H=6, capacity=3), ""),
    "selective_precision_near_ties": (
        "selective_precision", dict(T=16, D=8, E=4, H=6, capacity=16), "near ties", _near_twins),
    "attention": ("attention", dict(B=2, S=6, D=8, E=4, A=2, W=4, H=8, capacity=12)),
    "attention_overflowing": ("attention", dict(B=2, S=6, D=8, E=4, A=2, W=4, H=8, capacity=2),
                              "drops"),
    "distillation": ("distillation", dict(T=8, V=6, of_teacher=0.25), "", _label_and_teacher),
    "teacher_alone": ("distillation", dict(T=8, V=6, of_teacher=1.0), "", _label_and_teacher),
    "transformers": ("transformers", dict(B=2, S=8, D=8, E=4, H=6, L=1, capacity=8)),
    "transformers_overflowing": ("transformers", dict(B=2, S=8, D=8, E=4, H=6, L=2, capacity=2),
                                 "drops"),
    "deepspeed": ("deepspeed", dict(T=16, E=4, capacity_factor=4.0, at_least=4)),
    "deepspeed_overflowing": ("deepspeed", dict(T=16, E=4, capacity_factor=0.5, at_least=2),
                              "drops"),
    "deepspeed_padding": ("deepspeed", dict(T=16, E=4, capacity_factor=1.0, at_least=2),
                          "padding", _padding(0, 3, 4, 9, 10)),
    "capacity_deepspeed": ("capacity_deepspeed", dict(
        n_tokens=[100, 1024, 64, 100, 10, 7, 100, 100, 100],
        n_experts=[5, 8, 64, 7, 3, 2, 4, 2, 6],
        capacity_factor=[1.15, 1.25, 1.0, 1.0, 0.3, 2.0, 1.2, 1.1, 0.9],
        at_least=[8, 8, 4, 4, 0, 0, 8, 8, 8])),
    "encoder_decoder": ("encoder_decoder", dict(_MODEL, capacity_factor=4.0), "", _sentences),
    "encoder_decoder_padding": ("encoder_decoder", dict(_MODEL, capacity_factor=4.0), "padding",
                                _padded_sentences),
    "encoder_decoder_overflowing": ("encoder_decoder", dict(_MODEL, capacity_factor=1.0),
                                    "drops, padding", _padded_sentences),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _bfloat16(x):
    """Rounded, in whatever dtype."""
    a = stop_gradient(x)
    return x + (ops.round_to_bfloat16(a.astype("float32")).astype(a.dtype) - a)


def _logits_rounded(x, w_router):
    return _bfloat16(router_logits(_bfloat16(x), _bfloat16(w_router)))


def _probs_rounded(x, w_router):
    logits = _logits_rounded(x, w_router)
    e = _bfloat16(ops.exp(_bfloat16(logits - logits.max(axis=-1, keepdims=True))))
    return _bfloat16(e / _bfloat16(e.sum(axis=-1, keepdims=True)))


def _slots_for_all(probs, expert, capacity, *rest):
    return _first_come(probs, expert, len(expert), *rest)


def _slots_from_1(probs, expert, capacity, *rest):
    return _first_come(probs, expert, max(capacity - 1, 0), *rest)


def _capacity_for_all(n_tokens, *rest):
    return n_tokens


def _most_probable_first(probs, expert, capacity, n_groups, used, order=None):
    order = (-stop_gradient(probs).max(axis=-1)).argsort(kind="stable")
    return _first_come(probs, expert, capacity, n_groups, used, order)


def _gates_normalized(*settings):
    routing = _first_come(*settings)
    return routing._replace(gate=routing.gate / routing.gate.sum(axis=-1, keepdims=True))


def _counted_after_capacity(expert, keep):
    return (expert * keep)[:, :1]


def _ffn_counted_after_capacity(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
    out = switch_ffn(params, x, capacity, k, n_groups, used, router_input)
    probs = router_probs(x if router_input is None else router_input, params.w_router)
    counted = _counted_after_capacity(out.routing.expert, out.routing.keep)
    return out._replace(aux_loss=load_balancing_loss(probs, counted, n_groups, used))


def _shares_counted_after_capacity(probs, routing, n_groups, used):
    counted = _counted_after_capacity(routing.expert, routing.keep)
    return _shares(probs, routing._replace(expert=counted), n_groups, used)


def _shares_of_all_choices(probs, routing, n_groups, used):
    f = dispatched_fraction(routing.expert, probs.shape[-1], n_groups, used)
    return {"f": f / routing.expert.shape[1], "P": mean_probability(probs, n_groups, used)}


def _fraction_of_all_tokens(expert, n_experts, n_groups=1, used=None):
    counts = counts_in_groups(expert, n_experts, n_groups, _used(used, len(expert)))
    return counts / _n_used(len(expert), n_groups, None)


def _totals_over_all_tokens(probs, n_groups=1, used=None):
    return _totals(probs, n_groups, used) / _n_used(len(probs), n_groups, None)


def _shares_flaxformer(probs, routing, n_groups, used):
    f = _fraction_of_all_tokens(routing.expert, probs.shape[-1], n_groups, used)
    return {"f": f, "P": _totals_over_all_tokens(probs, n_groups, used)}


def _scaled_where_dropped(x, routing, *experts):
    scaled = ops.where(routing.keep, 0.0, routing.gate).sum(axis=-1, keepdims=True) * x
    return expert_feed_forward(x, routing, *experts) + scaled


def _loss_of_batch(probs, expert, n_groups=1, used=None):
    return load_balancing_loss(probs, expert, 1, used)


def _fraction_with_padding(expert, n_experts, n_groups=1, used=None):
    return dispatched_fraction(expert, n_experts, n_groups)


def _probability_with_padding(probs, n_groups=1, used=None):
    return mean_probability(probs, n_groups)


def _z_loss_with_padding(logits, used=None):
    return router_z_loss(logits)


def _experts_see_the_same(params, x, seen, capacity):
    return seen, switch_ffn(params, seen, capacity)


def _probs_as_bfloat16(x, w_router):
    return _bfloat16(router_probs(x, w_router))


def _training_loss_transformers(cross_entropy, aux_losses):
    return training_loss(cross_entropy, aux_losses, alpha=1e-3)


CONVENTIONS = {
    "k gates are divided by their sum": {"_first_come": "_gates_normalized"},
    "who is turned away is the least probable, as in Mesh TensorFlow, flaxformer and Tutel":
        {"_first_come": "_most_probable_first"},
    "as many slots as needed, as DeepSpeed and Tutel may have it":
        {"_first_come": "_slots_for_all", "expert_capacity": "_capacity_for_all"},
    "slot 0 stays empty, as in the pseudo-code of Appendix F":
        {"_first_come": "_slots_from_1", "expert_capacity": "expert_capacity_pseudocode"},
    "capacity as in Mesh TensorFlow": {"expert_capacity": "expert_capacity_mesh"},
    "capacity as in flaxformer": {"expert_capacity": "expert_capacity_flaxformer"},
    "capacity as in DeepSpeed": {"expert_capacity": "expert_capacity_deepspeed"},
    "capacity as in fairseq and Tutel": {"expert_capacity": "expert_capacity_fairseq"},
    "f counts after capacity, the dropped for expert 0, as in transformers":
        {"switch_ffn": "_ffn_counted_after_capacity", "_shares": "_shares_counted_after_capacity"},
    "f and P are taken over the batch, not over each group":
        {"load_balancing_loss": "_loss_of_batch"},
    "f is the share of all choices, as in Mesh TensorFlow and DeepSpeed": {
        "load_balancing_loss": "all_choices_load_balancing_loss",
        "_shares": "_shares_of_all_choices"},
    "f adds up to K, and padding is in the divisors of f and P, as in flaxformer": {
        "load_balancing_loss": "flaxformer_load_balancing_loss", "_shares": "_shares_flaxformer"},
    "padding is part of f and P, as in Mesh TensorFlow": {
        "dispatched_fraction": "_fraction_with_padding",
        "mean_probability": "_probability_with_padding"},
    "padding is part of P and in the divisor of f, as in DeepSpeed": {
        "dispatched_fraction": "_fraction_of_all_tokens",
        "mean_probability": "_probability_with_padding"},
    "padding is part of the z-loss, as in transformers": {"router_z_loss": "_z_loss_with_padding"},
    "a dropped token is its input times its gate, as in transformers 4.44":
        {"expert_feed_forward": "_scaled_where_dropped"},
    "experts, too, are given what the router sees, as in transformers 4.44":
        {"_explored": "_experts_see_the_same"},
    "logits are bfloat16, as in the pseudo-code": {"router_logits": "_logits_rounded"},
    "logits and each step of the softmax are bfloat16, as in Mesh TensorFlow":
        {"router_logits": "_logits_rounded", "router_probs": "_probs_rounded"},
    "probabilities are bfloat16, as in transformers": {"router_probs": "_probs_as_bfloat16"},
    "the balance loss weighs 1e-3, as in transformers":
        {"training_loss": "_training_loss_transformers"},
}
