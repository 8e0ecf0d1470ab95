"""GShard: each token to its best expert, and to the second best by chance.

D. Lepikhin, H. Lee, Y. Xu, D. Chen, O. Firat, Y. Huang, M. Krikun, N. Shazeer and Z. Chen, "GShard:
Scaling Giant Models with Conditional Computation and Automatic Sharding", ICLR 2021.
arXiv:2006.16668v1.

    here       paper           meaning
    G, S       G, S            groups, tokens in each; G * S = N, in rows of a group after the other
    D, H       M, H            width of a token, hidden width of an expert
    E, C       E, C            experts, slots of each group in each of them
    K          --              choices of a token, always 2
    logits     x w_g           of the gate
    gates      g               their softmax, over all experts
    expert     e_1, e_2        the two of the largest gates, as indices
    gate       g_1, g_2        those gates, raw or normalised
    u          rnd             the draw that a second choice must pass, uniform on [0, 1)
    slot       c               the counter's value as a choice is decided
    f, m       c_e / S, m_e    per expert: share of first choices, mean gate
    used       --              [G, S] bool, False at padding: a token that no expert is to see
"""
import math
from typing import NamedTuple

from minimoe import nn, ops
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.backend import namespace
from minimoe.routing.dispatch import Routing, seating
from minimoe.routing.experts import expert_feed_forward
from minimoe.routing.topk import group, slots, top_k


# -- The gate: Algorithm 1, line by line ---------------------------------------------------------

class Gating(NamedTuple):
    routing: Routing   # of all G * S tokens, one group after the other; slots are within a group
    aux_loss: Tensor   # [G]


def gate_logits(x, w_gate):
    """x w_g. ValueError where NaN or infinity comes of it. [G, S, D], [D, E] -> [G, S, E]"""
    logits = x @ w_gate
    if not (abs(stop_gradient(logits)) < math.inf).all():
        raise ValueError("gate_logits: tokens and gate must be finite, and so must their product; "
                         "got NaN or infinity")
    return logits


def gate_probabilities(logits):
    """The raw gates: softmax over all experts. Line 2. [G, S, E] -> [G, S, E]"""
    return ops.softmax(logits, axis=-1)


def top_two(gates):
    """e_1 and e_2, of equals the lower index first. Lines 5 and 15. [G, S, E] -> [G, S, 2] int"""
    G, S, E = gates.shape
    return top_k(gates.reshape(G * S, E), 2).reshape(G, S, 2)


def gates_of(gates, expert):
    """g_1 and g_2, raw. Lines 5 and 15. [G, S, E], [G, S, K] int -> [G, S, K]"""
    return ops.take_along_axis(gates, expert, axis=-1)


def pair_normalized(gate):
    """g_i / (g_1 + g_2), before anything is dropped. Lines 6 and 16. [G, S, 2] -> [G, S, 2]

    Never 0 / 0: the largest of E probabilities is at least 1 / E.
    """
    return gate / gate.sum(axis=-1, keepdims=True)


def second_random(gate, u):
    """Whether 2 g_2 > rnd: with that probability, as it is at most 1. Line 19.

    [G, S, 2], [G, S] -> [G, S] bool
    """
    return 2 * gate[..., 1] > u


def decision_counter(expert, wanted, n_experts, used=None, order=None):
    """c_e as each choice is decided: it counts all decisions. Lines 1, 7, 11, 18 and 22.

    The second pass goes on where the first ended, and a choice turned away, by chance or because
    its expert is full, has taken a number all the same. 0 at padding. ``order`` is a permutation of
    the G * S tokens, the first to be decided in front.
    [G, S, 2] int, [G, S] bool -> [G, S, 2] int
    """
    return _places(expert, _counted(wanted | True, used), n_experts, order)


def seat(expert, gate, slot, wanted, capacity, used=None):
    """Who is kept: c < C, and the second only if ``wanted``. Lines 8-10 and 19-21.

    A choice of weight 0 is not dispatched. All [G, S, 2], but ``wanted`` [G, S] -> Routing [G*S, 2]
    """
    if not capacity >= 0:
        raise ValueError(f"seat: the capacity must be 0 or more; got {capacity}")
    G, S, K = expert.shape
    keep = (slot < capacity) & (stop_gradient(gate) > 0)
    keep[..., 1] &= wanted
    if used is not None:
        keep &= used[..., None]
    return Routing(*(a.reshape(G * S, K) for a in (expert, slot, keep, gate)))


def auxiliary_loss(gates, expert, used=None):
    """(1 / E) sum_e (c_e / S) m_e of each group. Line 13. [G, S, E], [G, S, K] int -> [G]

    1 / E^2 where either factor is uniform, 1 / E where all tokens are certain of one expert; the
    former is no lower bound. First choices count, before capacity; counts carry no gradient.
    Padding has no part in either factor, and a group of padding alone costs 0.
    """
    E = gates.shape[-1]
    f = first_choice_counts(expert, E, used) / _n_used(gates.shape[1], used)   # [G, E]
    return (f.astype(gates.dtype) * mean_gates(gates, used)).mean(axis=-1)


def first_choice_counts(expert, n_experts, used=None):
    """c_e after the first pass. [G, S, K] int -> [G, E] int"""
    G = len(expert)
    line = _queue(expert[..., :1], n_experts)[..., 0]                  # [G, S]
    if used is not None:
        line = ops.where(used, line, G * n_experts)
    _, counts = group(line.reshape(-1), G * n_experts + 1)
    return counts[:-1].reshape(G, n_experts)


def mean_gates(gates, used=None):
    """m_e. Line 3. [G, S, E] -> [G, E]"""
    if used is not None:
        gates = ops.where(used[..., None], gates, 0.0)
    return gates.sum(axis=1) / _n_used(gates.shape[1], used)


def algorithm_1(gates, u, capacity, second=second_random, counter=decision_counter, used=None,
                order=None):
    """Group-level top-2 gating with auxiliary loss. [G, S, E], [G, S] -> Gating

    ``u`` is the draw of line 17. ``second`` says which second choices are to be dispatched if there
    is room, ``counter`` who takes a number. Padding, False in ``used``, takes no slot. ValueError
    for gates that are not [G, S, E] with 2 experts or more, or hold NaN or a negative number.
    """
    _check(gates, used)
    expert = top_two(gates)                                            # [G, S, 2]  lines 5, 15
    gate = pair_normalized(gates_of(gates, expert))                    # [G, S, 2]  lines 6, 16
    wanted = second(stop_gradient(gate), u)                            # [G, S]     lines 17, 19
    slot = counter(expert, wanted, gates.shape[-1], used, order)       # lines 1, 7, 11, 18, 22
    routing = seat(expert, gate, slot, wanted, capacity, used)         # lines 8-10, 19-21
    return Gating(routing, auxiliary_loss(gates, expert, used))        # lines 3, 13


def _check(gates, used):
    if gates.ndim != 3 or gates.shape[0] < 1 or gates.shape[-1] < 2:
        raise ValueError(f"algorithm_1: needs gates of shape [G, S, E] with a group or more and "
                         f"2 experts or more; got {gates.shape}")
    if used is not None and used.shape != gates.shape[:2]:
        raise ValueError(f"algorithm_1: used must have shape {gates.shape[:2]}; got {used.shape}")
    if not (stop_gradient(gates) >= 0).all():
        raise ValueError("algorithm_1: gates must be probabilities; got NaN or a negative one")


def _counted(second, used):
    """[G, S, 2] bool: whether each choice takes a number, the first always."""
    counted = ops.stack([second | True, second], axis=-1)
    return counted if used is None else counted & used[..., None]


def _places(expert, counted, n_experts, order=None):
    """Places in the queue of each expert in each group. Those not counted queue elsewhere."""
    G, S, K = expert.shape
    line = ops.where(counted, _queue(expert, n_experts), G * n_experts)
    return slots(line.reshape(G * S, K), G * n_experts + 1, order).reshape(G, S, K) * counted


def _queue(expert, n_experts):
    """One queue for each expert in each group. [G, S, K] int -> [G, S, K] int"""
    return expert + n_experts * namespace(expert).arange(len(expert))[:, None, None]


def _n_used(S, used):
    """Tokens in a group, but 1 where there is none. -> a number, or [G, 1] int"""
    if used is None:
        return max(S, 1)
    n = used.sum(axis=1)[:, None]
    return n + (n == 0)


# -- Capacity, Section 2.2 -----------------------------------------------------------------------

def expert_capacity(group_size, n_experts):
    """C = 2 N / (G E) = 2 S / E slots of each group in each expert, rounded down.

    As many as two choices of every token need, were they spread evenly. ValueError where that is
    less than 1, or for fewer than 2 experts.
    """
    if n_experts < 2 or 2 * group_size < n_experts:
        raise ValueError(f"expert_capacity: needs 2 experts or more, and a slot for each; "
                         f"got {n_experts} experts for groups of {group_size}")
    return 2 * group_size // n_experts


def expected_overflow(n_tokens, n_experts, capacity):
    """The share of tokens lost if each picks one of the experts at random, on average; exact.

    (E / S) sum_{q > C} (q - C) P(q), where q is binomial: S tokens, probability 1 / E. Not in the
    paper; it is the price of small groups.
    """
    S, E, C = n_tokens, n_experts, capacity
    if S < 1 or E < 1 or C < 0:
        raise ValueError(f"expected_overflow: needs tokens, experts and a capacity of 0 or more; "
                         f"got {S}, {E} and {C}")
    if E == 1:
        return max(S - C, 0) / S

    def log_probability(q):
        return (math.lgamma(S + 1) - math.lgamma(q + 1) - math.lgamma(S - q + 1)
                - q * math.log(E) + (S - q) * math.log1p(-1 / E))

    return E / S * math.fsum((q - C) * math.exp(log_probability(q)) for q in range(C + 1, S + 1))


# -- The layer, Eqs. (1)-(3) ---------------------------------------------------------------------

class GShardParams(NamedTuple):
    w_gate: Tensor   # [D, E]      None, with E = 1, is a feed-forward layer without a gate
    w_in: Tensor     # [E, D, H]
    w_out: Tensor    # [E, H, D]


class GShardOutput(NamedTuple):
    y: Tensor          # [G, S, D]   zero where both experts are full: the residual carries it
    aux_loss: Tensor   # []          averaged over groups
    routing: Routing


def init(rng, n_experts, width, hidden):
    """Uniform with a standard deviation of 1 / sqrt(fan-in), as lingvo; the paper does not say."""
    E, D, H = n_experts, width, hidden
    return GShardParams(_uniform(rng, D, D, E), _uniform(rng, D, E, D, H),
                        _uniform(rng, H, E, H, D))


def _uniform(rng, fan_in, *shape):
    bound = math.sqrt(3 / fan_in)
    return rng.uniform(-bound, bound, shape)


def moe_layer(params, x, u, capacity, route=algorithm_1, used=None):
    """y_s = sum_e G_{s,e} wo_e ReLU(wi_e x_s), Eqs. (1)-(3). [G, S, D], [G, S] -> [G, S, D]

    ``u`` is the draw of ``route``, which is Algorithm 1 or another of its signature. Its loss is
    averaged over groups: the paper gives that of one.
    """
    G, S, D = x.shape
    gates = gate_probabilities(gate_logits(x, params.w_gate))          # [G, S, E]
    routing, aux_loss = route(gates, u, capacity, used=used)
    y = expert_feed_forward(x.reshape(G * S, D), routing, params.w_in, params.w_out)
    return GShardOutput(y.reshape(G, S, D), aux_loss.mean(), routing)


def algorithm_2(params, x, u, capacity, route=algorithm_1, used=None):
    """``moe_layer`` in einsums, each slot of each group and expert in one array of weights.

    What is split over devices, group by group or expert by expert, and where: see the comments. A
    change from one to the other is an all-to-all. [G, S, D], [G, S] -> [G, S, D]
    """
    gates = gate_probabilities(ops.einsum("gsm,me->gse", x, params.w_gate))       # by group
    routing, aux_loss = route(gates, u, capacity, used=used)                      # by group
    weights = combine_weights(routing, len(x), len(params.w_in), capacity)        # [G, S, E, C]
    mask = (stop_gradient(weights) != 0).astype(weights.dtype)                    # [G, S, E, C]
    expert_inputs = ops.einsum("gsec,gsm->egcm", mask, x)                         # to experts
    hidden = ops.relu(ops.einsum("egcm,emh->egch", expert_inputs, params.w_in))   # by expert
    expert_outputs = ops.einsum("egch,ehm->gecm", hidden, params.w_out)           # to groups
    y = ops.einsum("gsec,gecm->gsm", weights, expert_outputs)                     # by group
    return GShardOutput(y, aux_loss.mean(), routing)


def combine_weights(routing, n_groups, n_experts, capacity):
    """The weight of each token in each slot. Routing [G*S, K] -> [G, S, E, C]"""
    weights = ops.einsum("tk,tkec->tec", routing.gate, seating(routing, n_experts, capacity))
    return weights.reshape(n_groups, -1, n_experts, capacity)


# -- The Transformer, Section 2.1 ----------------------------------------------------------------
# B sequences of S source and R target positions, V words, L layers in each stack

class TransformerParams(NamedTuple):
    source_embedding: Tensor       # [V, D]
    target_embedding: Tensor       # [V, D]
    encoder: nn.T5StackParams      # ``feed_forward`` of a layer is GShardParams
    decoder: nn.T5StackParams
    w_logits: Tensor               # [D, V]


class TransformerDraws(NamedTuple):
    """``u`` of each layer: those without a gate ignore theirs."""
    encoder: Tensor                # [L, B, S]
    decoder: Tensor                # [L, B, R]


class TransformerOutput(NamedTuple):
    logits: Tensor                 # [B, R, V]
    aux_loss: Tensor               # []   averaged over layers with experts; 0 if there are none
    routings: list                 # of these layers, the encoder's first


def transformer_init(rng, n_source_words, n_target_words, n_layers, width, n_heads, head_width,
                     hidden, n_experts, expert_hidden=None, n_buckets=32):
    """Experts in the first, third, ... layer of each stack, the rest feed-forward layers.

    They begin as in ``init``, all else as in ``nn.t5_init``. An expert is as wide as a feed-forward
    layer unless ``expert_hidden`` says otherwise. With ``n_experts`` of 1 no layer has a gate: if
    then those in place of experts are twice as wide, each token has the same work.
    """
    def feed_forward(i):
        E, H = (n_experts, expert_hidden or hidden) if i % 2 == 0 else (1, hidden)
        params = init(rng, E, width, H)
        return params if E > 1 else params._replace(w_gate=None)

    def stack(params):
        return params._replace(layers=[layer._replace(feed_forward=feed_forward(i))
                                       for i, layer in enumerate(params.layers)])

    t5 = nn.t5_init(rng, n_source_words, width, n_heads, head_width, hidden, n_layers, n_buckets)
    target_embedding = rng.standard_normal((n_target_words, width))
    return TransformerParams(t5.embedding, target_embedding, stack(t5.encoder), stack(t5.decoder),
                             _uniform(rng, width, width, n_target_words))


def transformer_draws(rng, params, source, target):
    """Uniform on [0, 1), for Algorithm 1 in every layer. [B, S] int, [B, R] int"""
    return TransformerDraws(rng.random((len(params.encoder.layers), *source.shape)),
                            rng.random((len(params.decoder.layers), *target.shape)))


def transformer(params, source, target, draws, n_groups=1, source_used=None, target_used=None,
                capacity=expert_capacity, route=algorithm_1, keep=(None, None), rate=0.0):
    """Logits of what follows each word of the target. [B, S] int, [B, R] int -> [B, R, V]

    No logit depends on a later word, but through experts that are full: second choices queue behind
    all first ones of their group. Groups are the tokens of a stack, sequence after sequence, cut
    into ``n_groups`` parts; ``capacity`` is a function of their size and the number of experts.
    Padding, False in ``..._used``, is not read and takes no slot; its logits are to be left out of
    the loss. For dropout give ``keep``, ``nn.t5_keep`` of each stack, and its rate. ValueError for
    groups that do not divide the tokens, and for draws of another shape.
    """
    outputs = []

    def experts(name, words, draws, used):
        n_layers = len(getattr(params, name).layers)
        if draws.shape[:3] != (n_layers, *words.shape):
            raise ValueError(f"transformer: the {name} needs draws of shape "
                             f"{(n_layers, *words.shape)}; got {draws.shape}")
        if n_groups < 1 or words.size % n_groups:
            raise ValueError(f"transformer: needs a number of groups that divides {words.size} "
                             f"tokens; got {n_groups}")
        groups, u_of_layers = (n_groups, words.size // n_groups), iter(draws)
        used = None if used is None else used.reshape(groups)          # [G, S']

        def feed_forward(p, x, keep_hidden):
            u = next(u_of_layers)
            if p.w_gate is None:
                dense = nn.FeedForwardParams(p.w_in[0], p.w_out[0])
                return nn.relu_feed_forward(dense, x, keep_hidden, rate)
            out = moe_layer(p, x.reshape(*groups, -1), u.reshape(*groups, *u.shape[2:]),
                            capacity(groups[1], len(p.w_in)), route, used)
            outputs.append(out)
            return out.y.reshape(x.shape)

        return feed_forward

    memory = nn.t5_encode(
        nn.T5Params(params.source_embedding, params.encoder, None, None), source, source_used,
        experts("encoder", source, draws.encoder, source_used), keep[0], rate)
    y = nn.t5_decode(
        nn.T5Params(params.target_embedding, None, params.decoder, None), target, memory,
        target_used, source_used, experts("decoder", target, draws.decoder, target_used), keep[1],
        rate)
    aux_loss = sum(out.aux_loss for out in outputs) / max(len(outputs), 1)
    return TransformerOutput(y @ params.w_logits, aux_loss, [out.routing for out in outputs])
