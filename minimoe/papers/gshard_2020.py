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

A gating is a function of gates, draw and capacity, and of ``used`` and ``order``; ``moe_layer`` and
``transformer`` take any of them as ``route``.

Where text and code part, the text is the default. Mesh is Mesh TensorFlow's moe.py (da90793),
lingvo gshard_layers.py (e0be5dc) and gshard_builder.py (0611ee3), by authors of the paper; praxis
feeaff1, fairscale 0.4.13, fairseq's branch moe (ebea007), DeepSpeed 0.19.8, Tutel 82af7aa,
flaxformer 399ea3a, NLLB the nllb_moe of transformers 4.44.2:

    e_2                text: the second largest. fairscale, always; DeepSpeed and fairseq, unless
                       told otherwise; lingvo and NLLB, as an option: sampled_second
    who is dispatched  text: by chance, in training; in evaluation not said: give another draw, or
                       second_all. Mesh: second_all, _none, _threshold, _random_threshold. lingvo,
                       praxis, NLLB: _all. fairseq's random is the text's; NLLB: nllb_second_random
    who takes a        text: every decision. Mesh, lingvo, praxis, fairseq, NLLB:
    number             dispatched_counter; where each e_2 is dispatched, it is the same
    order in a pass    text: of tokens. flaxformer's encoder; Tutel, fairseq, NLLB, as an option:
                       highest_gate_first, route_batch_prioritized. token_major_counter: nobody
    weights            text: g_i / (g_1 + g_2) before any is dropped; Mesh, lingvo, praxis add 1e-9:
                       pair_normalized_mesh. fairscale, DeepSpeed, fairseq, NLLB; lingvo and praxis,
                       as an option: normalized_after, where one alone is 1 and teaches the gate
                       nothing. flaxformer: never, switch_2021's ``route`` with k = 2
    auxiliary loss     text, fairscale: 1 / E^2 where all is uniform. Mesh, lingvo, praxis, fairseq,
                       DeepSpeed, Tutel: E^2 times as much, released_auxiliary_loss. Mesh, as an
                       option, adds half of second_choice_loss. All choices in f: switch_2021's
                       all_choices_ and flaxformer_load_balancing_loss. NLLB:
                       nllb_load_balancing_loss
    its sum            text: one group's; here the mean over groups, and over layers
    its weight k       text: not given; NLLB has 1e-3 of the released loss, fairseq's manual 1e-2
    padding in f, m    text: not said; here in neither. Mesh, lingvo: divided by S all the same,
                       legacy_padding_auxiliary_loss; fairseq: part of m, fairseq_auxiliary_loss
    capacity           text: 2 S / E, a whole number. fairscale: E must divide S. lingvo, praxis:
                       expert_capacity_lingvo, _praxis; NLLB, fairseq in evaluation: _evaluation.
                       Mesh, fairseq, DeepSpeed, Tutel, flaxformer: switch_2021's of these names for
                       a factor of 2 (Tutel's of 1 for k = 2)
    number of groups   text: not said. Mesh: n_groups_mesh
    which layers       text: every other. Here, as in lingvo's manual: the first, third, ...
    the Transformer    text: residual and layer norm around each part, and no more. Here, much as
                       in lingvo: norm first, by the root of the mean square; no biases; positions
                       by relative bias, one table for a stack (``nn.t5``); two embeddings, and an
                       output of its own
    initialisation     text: not said. Gate and experts as lingvo: ``init``; the rest as T5:
                       ``nn.t5_init``
    NLLB's layer       moe_layer_nllb: its experts have biases; in evaluation it scales what they
                       make by 0.8, though dropout in training has scaled it up; and the capacity
                       of evaluation stays, should training go on. A z-loss has a weight, but is
                       added nowhere; without a ``padding_mask`` of None or an array, it fails
    parallelism        Section 3: see the comments in ``algorithm_2``; not built
"""
import math
from functools import partial
from typing import NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import identity, is_array, namespace
from minimoe.routing.dispatch import Routing, gather, gather_back, packed_seats, seating
from minimoe.routing.experts import expert_feed_forward, expert_intermediates, ragged_matmul
from minimoe.routing.topk import choice_margin, counts_in_groups, slots_in_groups, top_k


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
    """The raw gates: softmax over all experts. Algorithm 1, line 2 [G, S, E] -> [G, S, E]"""
    return ops.softmax(logits, axis=-1)


def top_two(gates):
    """e_1 and e_2, of equals the lower index first. Algorithm 1, lines 5 and 15

    [G, S, E] -> [G, S, 2] int
    """
    G, S, E = gates.shape
    return top_k(gates.reshape(G * S, E), 2).reshape(G, S, 2)


def gates_of(gates, expert):
    """g_1 and g_2, raw. Algorithm 1, lines 5 and 15 [G, S, E], [G, S, K] int -> [G, S, K]"""
    return ops.take_along_axis(gates, expert, axis=-1)


def pair_normalized(gate):
    """g_i / (g_1 + g_2), before anything is dropped. Algorithm 1, lines 6 and 16

    Never 0 / 0: the largest of E probabilities is at least 1 / E. [G, S, 2] -> [G, S, 2]
    """
    return gate / gate.sum(axis=-1, keepdims=True)


def second_random(gate, u):
    """Whether 2 g_2 > rnd: with that probability, as it is at most 1. Algorithm 1, line 19

    [G, S, 2], [G, S] -> [G, S] bool
    """
    return 2 * gate[..., 1] > u


def decision_counter(expert, wanted, n_experts, used=None, order=None):
    """c_e as each choice is decided: it counts all decisions. Algorithm 1, lines 7, 11, 18 and 22

    The second pass goes on where the first ended, and a choice turned away, by chance or because
    its expert is full, has taken a number all the same. 0 at padding. ``order`` is a permutation of
    the G * S tokens, the first to be decided in front.
    [G, S, 2] int, [G, S] bool -> [G, S, 2] int
    """
    return _places(expert, _counted(wanted | True, used), n_experts, order)


def seat(expert, gate, slot, wanted, capacity, used=None):
    """Who is kept: c < C, and the second only if ``wanted``. Algorithm 1, lines 8-10 and 19-21

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
    """(1 / E) sum_e (c_e / S) m_e of each group. Algorithm 1, line 13

    1 / E^2 where either factor is uniform, 1 / E where all tokens are certain of one expert; the
    former is no lower bound. First choices count, before capacity; counts carry no gradient.
    Padding has no part in either factor, and a group of padding alone costs 0.
    [G, S, E], [G, S, K] int -> [G]
    """
    E = gates.shape[-1]
    f = first_choice_counts(expert, E, used) / _n_used(gates, used)    # [G, E]
    return (f.astype(gates.dtype) * mean_gates(gates, used)).mean(axis=-1)


def first_choice_counts(expert, n_experts, used=None):
    """c_e after the first pass. Algorithm 1, line 12 [G, S, K] int -> [G, E] int"""
    return counts_in_groups(expert[..., :1].reshape(-1, 1), n_experts, len(expert),
                            None if used is None else used.reshape(-1, 1))


def mean_gates(gates, used=None):
    """m_e. Algorithm 1, line 3 [G, S, E] -> [G, E]"""
    if used is not None:
        gates = ops.where(used[..., None], gates, 0.0)
    return gates.sum(axis=1) / _n_used(gates, used)


def algorithm_1(gates, u, capacity, second=second_random, counter=decision_counter, used=None,
                order=None):
    """Group-level top-2 gating with auxiliary loss. Algorithm 1 [G, S, E], [G, S] -> Gating

    ``u`` is the draw of line 17. ``second`` says which second choices are to be dispatched if there
    is room, ``counter`` who takes a number. Padding, False in ``used``, takes no slot. ValueError
    for gates that are not [G, S, E] with 2 experts or more, or hold NaN or a negative number, and
    where ``u`` or ``used`` is not [G, S].
    """
    _check(gates, u, used)
    expert = top_two(gates)                                            # [G, S, 2]  lines 5, 15
    gate = pair_normalized(gates_of(gates, expert))                    # [G, S, 2]  lines 6, 16
    wanted = second(stop_gradient(gate), u)                            # [G, S]     lines 17, 19
    slot = counter(expert, wanted, gates.shape[-1], used, order)       # lines 1, 7, 11, 18, 22
    routing = seat(expert, gate, slot, wanted, capacity, used)         # lines 8-10, 19-21
    return Gating(routing, auxiliary_loss(gates, expert, used))        # lines 3, 13


def _check(gates, u, used):
    if gates.ndim != 3 or gates.shape[0] < 1 or gates.shape[-1] < 2:
        raise ValueError(f"algorithm_1: needs gates of shape [G, S, E] with a group or more and "
                         f"2 experts or more; got {gates.shape}")
    for name, a in [("u", u), ("used", used)]:
        if is_array(a) and a.shape != gates.shape[:2]:
            raise ValueError(f"algorithm_1: {name} must have shape {gates.shape[:2]}; "
                             f"got {a.shape}")
    if not (stop_gradient(gates) >= 0).all():
        raise ValueError("algorithm_1: gates must be probabilities; got NaN or a negative one")


def _counted(second, used):
    """[G, S, 2] bool: whether each choice takes a number, the first always."""
    counted = ops.stack([second | True, second], axis=-1)
    return counted if used is None else counted & used[..., None]


def _places(expert, counted, n_experts, order=None):
    """The place of each choice that is counted in its queue. [G, S, K] -> [G, S, K] int"""
    G, S, K = expert.shape
    return slots_in_groups(expert.reshape(G * S, K), n_experts, G, counted.reshape(G * S, K),
                           order).reshape(G, S, K)


def _n_used(gates, used):
    """Tokens in a group, but 1 where there is none. -> a number, or [G, 1]"""
    if used is None:
        return max(gates.shape[1], 1)
    n = used.sum(axis=1)[:, None]
    return (n + (n == 0)).astype(gates.dtype)


# -- Capacity, Section 2.2 -----------------------------------------------------------------------

def expert_capacity(group_size, n_experts):
    """C = 2 N / (G E) = 2 S / E slots of each group in each expert, rounded down. Section 2.2

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
    """``moe_layer`` in einsums, each slot of an expert in one array of weights. Algorithm 2

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
    """The weight of each token in each slot. Algorithm 2 Routing [G*S, K] -> [G, S, E, C]"""
    weights = ops.einsum("tk,tkec->tec", routing.gate, seating(routing, n_experts, capacity))
    return weights.reshape(n_groups, len(routing.expert) // n_groups, n_experts, capacity)


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
    """Experts in the first, third, ... layer of each stack, feed-forward in the rest. Section 2.1

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
    """Uniform on [0, 1), for every layer. [B, S] int, [B, R] int"""
    return TransformerDraws(rng.random((len(params.encoder.layers), *source.shape)),
                            rng.random((len(params.decoder.layers), *target.shape)))


def transformer(params, source, target, draws, n_groups=1, source_used=None, target_used=None,
                capacity=expert_capacity, route=algorithm_1, keep=(None, None), rate=0.0):
    """Logits of what follows each word of the target. Section 2.1

    No logit depends on a later word, but through experts that are full: second choices queue behind
    all first ones of their group. Groups are the tokens of a stack, sequence after sequence, cut
    into ``n_groups`` parts; ``capacity`` is a function of their size and the number of experts.
    Padding, False in ``..._used``, is not read and takes no slot; its logits are to be left out of
    the loss. For dropout give ``keep``, ``nn.t5_keep`` of each stack, and its rate. ValueError for
    groups that do not divide the tokens, and for draws of another shape.
    [B, S] int, [B, R] int -> [B, R, V]
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
            out = moe_layer(p, x.reshape(*groups, x.shape[-1]), u.reshape(*groups, *u.shape[2:]),
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


# -- As others have it: which second choices are dispatched --------------------------------------
# In place of ``second_random``. [G, S, 2], [G, S] -> [G, S] bool

def second_all(gate, u=None):
    """Each one: what lingvo, praxis and transformers do unless told otherwise."""
    return gate[..., 1] >= 0


def second_none(gate, u=None):
    """None: Mesh TensorFlow's."""
    return gate[..., 1] < 0


def second_threshold(gate, u=None, threshold=0.2):
    """Those of weight above a threshold: Mesh TensorFlow's."""
    return gate[..., 1] > threshold


def second_random_threshold(gate, u, threshold=0.2):
    """With probability min(1, g_2 / threshold): Mesh TensorFlow's, whose 0.5 is the paper's."""
    return gate[..., 1] / threshold > u


def sampled_second(gates, gumbel):
    """e_1 as ever, and e_2 drawn by the other gates, after which there is no test.

    ``gumbel`` is the draw, from the standard Gumbel distribution: e_2 has the largest log gate plus
    draw. [G, S, E], [G, S, E] -> [G, S, 2] int
    """
    gates = stop_gradient(gates)
    G, S, E = gates.shape
    first = top_two(gates)[..., 0]                                     # [G, S]
    smallest = namespace(gates).finfo(gates.dtype).tiny
    scores = ops.log(ops.maximum(gates, smallest)) + gumbel            # [G, S, E]
    scores = ops.where(identity(E, like=gates)[first] > 0, -math.inf, scores)
    second = top_k(scores.reshape(G * S, E), 1).reshape(G, S)
    return ops.stack([first, second], axis=-1)


# -- As others have it: who takes a number -------------------------------------------------------
# In place of ``decision_counter``. [G, S, 2] int, [G, S] bool -> [G, S, 2] int

def dispatched_counter(expert, wanted, n_experts, used=None, order=None):
    """In the second pass, choices that passed the draw alone; 0 for the others.

    Mesh TensorFlow, lingvo and praxis, where the second pass starts at min(c_e, C), which changes
    no slot below C; fairseq and transformers.
    """
    return _places(expert, _counted(wanted, used), n_experts, order)


def token_major_counter(expert, wanted, n_experts, used=None, order=None):
    """Both choices of a token before the next token's: of no implementation, for comparison."""
    G, S, K = expert.shape
    counted = _counted(wanted | True, used)
    if order is not None:
        order = (K * order[:, None] + namespace(order).arange(K)).reshape(-1)
    places = _places(*(a.reshape(G, S * K, 1) for a in (expert, counted)), n_experts, order)
    return places.reshape(G, S, K)


def highest_gate_first(gates):
    """The order in which the most certain tokens decide first, in either pass. -> [G*S] int

    Batch-prioritised routing, for ``order``: flaxformer's encoder, Tutel, fairseq, transformers.
    Whether a token is kept then depends on those after it.
    """
    return (-stop_gradient(gates).max(axis=-1)).reshape(-1).argsort(kind="stable")


# -- As others have it: weights and losses -------------------------------------------------------

def pair_normalized_mesh(gate, epsilon=1e-9):
    """``pair_normalized``, 1e-9 added to the sum. [G, S, 2] -> [G, S, 2]"""
    return gate / (gate.sum(axis=-1, keepdims=True) + epsilon)


def normalized_after(routing):
    """A Routing of raw gates with those kept divided by their sum, which is at least an eps."""
    gate = ops.where(routing.keep, routing.gate, 0.0)                  # [G*S, K]
    eps = float(namespace(stop_gradient(gate)).finfo(gate.dtype).eps)
    return routing._replace(gate=gate / ops.maximum(gate.sum(axis=-1, keepdims=True), eps))


def released_auxiliary_loss(gates, expert, used=None):
    """``auxiliary_loss`` times E^2, so that 1 is what a uniform gate costs. -> [G]"""
    return gates.shape[-1] ** 2 * auxiliary_loss(gates, expert, used)


def legacy_padding_auxiliary_loss(gates, expert, used=None):
    """Padding is in neither count nor sum of gates, but both are divided by S. -> [G]"""
    share = 1 if used is None else used.mean(axis=1).astype(gates.dtype)   # [G]
    return share ** 2 * auxiliary_loss(gates, expert, used)


def fairseq_auxiliary_loss(gates, expert, used=None):
    """Padding is no first choice, but its gates are in m. Without fairseq's E^2. -> [G]"""
    f = first_choice_counts(expert, gates.shape[-1], used) / max(gates.shape[1], 1)   # [G, E]
    return (f.astype(gates.dtype) * mean_gates(gates)).mean(axis=-1)


def second_choice_loss(gates, expert, epsilon=1e-9):
    """E sum_e f_e m_e of second choices and of gates without the first, summing to 1. -> [G]

    Mesh TensorFlow may add half of it to ``released_auxiliary_loss``.
    """
    E = gates.shape[-1]
    first = identity(E, like=stop_gradient(gates))[expert[..., 0]]     # [G, S, E]
    others = gates * (1 - first)
    others = others / (others.sum(axis=-1, keepdims=True) + epsilon)
    return released_auxiliary_loss(others, expert[..., 1:])


def nllb_load_balancing_loss(routings, n_experts, n_groups=1):
    """L E sum_e f_e P_e of L layers, in version 4.44 of transformers. L of Routing -> [G]

    P are mean weights after capacity, not gates, and those of the first layer alone, though f is
    the mean over layers. f counts after capacity too: a token whose first choice is not kept, be it
    padding, for expert 0.
    """
    G, E, L = n_groups, n_experts, len(routings)
    first = [(r.expert * r.keep)[:, :1].reshape(G, -1, 1) for r in routings]   # [G, S, 1]
    n = L * max(first[0].shape[1], 1)
    f = first_choice_counts(ops.concatenate(first, axis=1), E) / n     # [G, E]
    P = mean_gates(weights_of_experts(routings[0], E).reshape(G, -1, E))   # [G, E]
    return L * E * (f.astype(P.dtype) * P).sum(axis=-1)


def weights_of_experts(routing, n_experts):
    """The weight of each expert for each token, 0 if it is not kept. Routing [T, K] -> [T, E]"""
    gate = ops.where(routing.keep, routing.gate, 0.0)                  # [T, K]
    chosen = identity(n_experts, like=stop_gradient(gate))[routing.expert]   # [T, K, E]
    return ops.einsum("tk,tke->te", gate, chosen)


# -- As others have it: whole gatings ------------------------------------------------------------
# In place of ``algorithm_1``; a draw that is called ``gumbel`` is [G, S, E].

def route_mesh(gates, u, capacity, used=None, order=None, second=second_random_threshold):
    """Mesh TensorFlow's. With ``second_all``, as lingvo and praxis have it at first. -> Gating"""
    _check(gates, u, used)
    expert = top_two(gates)                                            # [G, S, 2]
    gate = pair_normalized_mesh(gates_of(gates, expert))               # [G, S, 2]
    wanted = second(stop_gradient(gate), u)                            # [G, S]
    slot = dispatched_counter(expert, wanted, gates.shape[-1], used, order)
    loss = gates.shape[-1] ** 2 * legacy_padding_auxiliary_loss(gates, expert, used)
    return Gating(seat(expert, gate, slot, wanted, capacity, used), loss)


def route_batch_prioritized(gates, u, capacity, used=None):
    """The paper's, but tokens decide in the order of their largest gates. -> Gating"""
    return algorithm_1(gates, u, capacity, used=used, order=highest_gate_first(gates))


def route_fairscale(gates, gumbel, capacity, used=None, order=None):
    """A sampled second, weights normalised after dropping. -> Gating"""
    _check(gates, None, used)
    expert = sampled_second(gates, gumbel)                             # [G, S, 2]
    return Gating(_dropped_first(gates, expert, second_all, None, capacity, used, order),
                  auxiliary_loss(gates, expert, used))


def route_deepspeed(gates, gumbel, capacity, used=None, order=None):
    """``route_fairscale`` with the loss times E^2. -> Gating"""
    routing, loss = route_fairscale(gates, gumbel, capacity, used, order)
    return Gating(routing, gates.shape[-1] ** 2 * loss)


def _dropped_first(gates, expert, second, u, capacity, used, order):
    """The Routing of choices made, their raw gates normalised once it is known who is kept."""
    gate = gates_of(gates, expert)                                     # [G, S, 2]
    wanted = second(stop_gradient(gate), u)                            # [G, S]
    slot = dispatched_counter(expert, wanted, gates.shape[-1], used, order)
    return normalized_after(seat(expert, gate, slot, wanted, capacity, used))


def nllb_second_random(gate, u):
    """Whether twice the raw gate is more than the draw: so, less often than in the paper."""
    return 2 * gate[..., 1] > u


def route_nllb(gates, u, capacity, used=None, order=None, second=second_all):
    """Hugging Face's NllbMoeTop2Router, version 4.44, as it is configured at first. -> Gating

    ``second`` sees raw gates: its policy ``random`` is ``nllb_second_random``.
    """
    _check(gates, u, used)
    G, _, E = gates.shape
    routing = _dropped_first(gates, top_two(gates), second, u, capacity, used, order)
    return Gating(routing, nllb_load_balancing_loss([routing], E, G))


def route_nllb_normalized_before(gates, u, capacity, used=None, order=None):
    """The same with normalize_router_prob_before_dropping. -> Gating"""
    routing, _ = algorithm_1(gates, u, capacity, second=second_all, counter=dispatched_counter,
                             used=used, order=order)
    return Gating(routing, nllb_load_balancing_loss([routing], gates.shape[-1], len(gates)))


def route_nllb_random_normalized_before(gates, u, capacity, used=None, order=None):
    """With policy ``random`` too: the second weight is left raw, the first is not. -> Gating"""
    _check(gates, u, used)
    G, _, E = gates.shape
    expert = top_two(gates)                                            # [G, S, 2]
    raw = gates_of(gates, expert)                                      # [G, S, 2]
    gate = ops.stack([pair_normalized(raw)[..., 0], raw[..., 1]], axis=-1)
    wanted = nllb_second_random(stop_gradient(raw), u)                 # [G, S]
    slot = dispatched_counter(expert, wanted, E, used, order)
    routing = seat(expert, gate, slot, wanted, capacity, used)
    return Gating(routing, nllb_load_balancing_loss([routing], E, G))


class NllbParams(NamedTuple):
    w_gate: Tensor   # [D, E]
    w_in: Tensor     # [E, D, H]
    b_in: Tensor     # [E, H]
    w_out: Tensor    # [E, H, D]
    b_out: Tensor    # [E, D]


def moe_layer_nllb(params, x, u, capacity, route=route_nllb, used=None, scale=0.8):
    """Hugging Face's NllbMoeSparseMLP, version 4.44, in evaluation; G is 1. [G, S, D] -> [G, S, D]

    What experts make is scaled by 1 less the rate of its dropout in training, where it was scaled
    up already. For training without that dropout give a ``scale`` of 1.
    """
    G, S, D = x.shape
    gates = gate_probabilities(gate_logits(x, params.w_gate))          # [G, S, E]
    routing, aux_loss = route(gates, u, capacity, used=used)
    seats, ends = packed_seats(routing.expert, routing.keep, gates.shape[-1])
    expert = routing.expert.reshape(-1)[seats.choice]                  # [R]
    rows = gather(x.reshape(G * S, D), seats)                          # [R, D]
    hidden = ops.relu(ragged_matmul(rows, params.w_in, ends=ends) + ops.take(params.b_in, expert))
    outputs = ragged_matmul(hidden, params.w_out, ends=ends) + ops.take(params.b_out, expert)
    y = gather_back(scale * outputs, routing.gate, seats)              # [G*S, D]
    return GShardOutput(y.reshape(G, S, D), aux_loss.mean(), routing)


# -- As others have it: sizes --------------------------------------------------------------------

def expert_capacity_lingvo(group_size, n_experts, capacity_factor=2.0, configured=0):
    """Rounded down, 4 for 0; if it is more than what is configured, then up to a multiple of 4."""
    return _adopted(int(group_size * capacity_factor / n_experts) or 4, configured)


def expert_capacity_praxis(group_size, n_experts, capacity_factor=2.0, configured=0):
    """The same, but 0 may stay 0."""
    return _adopted(int(group_size * capacity_factor / n_experts), configured)


def _adopted(capacity, configured):
    return configured if capacity <= configured else -(-capacity // 4) * 4


def expert_capacity_evaluation(n_tokens, n_experts, fraction=1.0):
    """A share of all tokens, rounded up, for any number of experts: NLLB's; fairseq has 0.25."""
    return math.ceil(fraction * n_tokens)


def n_groups_mesh(n_tokens, group_size, multiple_of=1):
    """The least number of groups that divides the tokens, from tokens over group size upwards.

    Groups may come out larger than was asked for. ValueError where ``multiple_of``, the number of
    devices, does not divide the tokens.
    """
    if n_tokens < 1 or group_size < 1 or n_tokens % multiple_of:
        raise ValueError(f"n_groups_mesh: needs tokens in groups, their number a multiple of "
                         f"{multiple_of}; got {n_tokens} in groups of {group_size}")
    n = max(1, n_tokens // group_size)
    while n_tokens % n or n % multiple_of:
        n += 1
    return n


# -- The arithmetic of Tables 1 to 3, and of the cost model --------------------------------------
# Misprints: 36684 and 12228 experts in all, for 36864 and 12288; 1.4 days for the 12 layers of 2048
# experts, which at 2.15 steps per second, as at 7.5 core-years, are 1.3.

def total_experts(n_experts, n_layers):
    """Experts of a model of ``n_layers``, encoder and decoder together."""
    return n_experts * n_layers // 2


def expert_parameters(n_experts, n_layers, width=1024, hidden=8192):
    """Weights of all experts, which is nearly all there are."""
    return total_experts(n_experts, n_layers) * 2 * width * hidden


def training_days(batch, steps_per_second, n_tokens=1e12):
    """Days to see so many tokens."""
    return n_tokens / (batch * steps_per_second * 24 * 3600)


def core_years(days, cores):
    """What as many cores use in so many days."""
    return days * cores / 365


def gate_operations(n_tokens, n_experts, width):
    """Multiplications with an addition, forward, here and below: G S M E."""
    return n_tokens * width * n_experts


def expert_operations(n_tokens, width, hidden):
    """E G C H M twice: every slot is multiplied, used or not."""
    return 4 * n_tokens * width * hidden


def dispatch_operations(n_tokens, group_size, width):
    """G S M E C twice, for the einsums of dispatch and combine: G E C is 2 N.

    S / H of ``expert_operations``, whatever the number of experts. By gathers it is 2 N M, all for
    combine.
    """
    return 4 * n_tokens * group_size * width


def all_to_all_elements(n_tokens, width):
    """What a device with so many tokens hands over in each of the two, forward: E G C M."""
    return 2 * n_tokens * width


# -- Recorded runs -------------------------------------------------------------------------------

EXPERTS = {"param.w_gate": "D E", "param.w_in": "E D H", "param.w_out": "E H D"}
LAYER = {"in.x": "G S D", "in.u": "G S", "in.cotangent": "G S D", "set.capacity": "", **EXPERTS}
GATE = {"in.logits": "S E", "in.gumbel": "S E", "in.cotangent": "S E C", "set.capacity": ""}
MESH = {"in.x": "G S D", "in.cotangent": "G S E C", "set.capacity": "", "param.w_gate": "D E"}
NLLB = {"in.x": "T D", "in.cotangent": "T D", "set.capacity": "", "set.scale": "", **EXPERTS,
        "param.b_in": "E H", "param.b_out": "E D"}


def layer_oracle(case):
    """The layer, every intermediate in order, and gradients of <y, cotangent> and of the mean loss.

    Gates come before slots: a choice is dispatched by its weight.
    """
    x, u, capacity = case.inputs["x"], case.inputs["u"], case.settings["capacity"]
    used = case.inputs.get("used")
    leaves = tree.map(Tensor, {"x": x, **case.params})
    params = GShardParams(**{name: leaves[name] for name in GShardParams._fields})
    out = moe_layer(params, leaves["x"], u, capacity, algorithm_1, used)
    logits = gate_logits(leaves["x"], params.w_gate)
    gates = gate_probabilities(logits)
    (G, S, E), D = gates.shape, x.shape[-1]
    routing, aux_loss = algorithm_1(gates, u, capacity, used=used)
    first = first_choice_counts(routing.expert.reshape(G, S, 2), E, used)
    present = None if used is None else used.reshape(G * S, 1)
    inputs, hidden, outputs = expert_intermediates(leaves["x"].reshape(G * S, D), routing,
                                                   params.w_in, params.w_out)
    return tree.map(stop_gradient, {
        "logits": logits, "gates": gates, "expert": routing.expert,
        "margin": choice_margin(logits.reshape(G * S, E), routing.expert), "gate": routing.gate,
        "wanted": second_random(
            stop_gradient(pair_normalized(gates_of(gates, routing.expert.reshape(G, S, 2)))), u),
        "count_first": first, "count": counts_in_groups(routing.expert, E, G, present),
        "slot": routing.slot, "keep": routing.keep,
        "weights": combine_weights(routing, G, E, capacity),
        "expert_inputs": inputs, "hidden": hidden, "expert_outputs": outputs, "y": out.y,
        "f": (first / _n_used(gates, used)).astype(gates.dtype), "m": mean_gates(gates, used),
        "aux_loss": aux_loss,
        "grad": _gradients({"y": (out.y * case.inputs["cotangent"]).sum(),
                            "aux_loss": out.aux_loss}, leaves)})


def _gradients(losses, leaves):
    return {name: grad(loss, leaves) for name, loss in losses.items()}


def fairscale_oracle(case):
    """One group with a sampled second expert, and a capacity of 2 S / E."""
    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    params = GShardParams(**{name: leaves[name] for name in GShardParams._fields})
    S, E = len(leaves["x"].array), len(params.w_in.array)
    capacity = expert_capacity(S, E)
    out = moe_layer(params, leaves["x"][None], case.inputs["gumbel"][None], capacity,
                    route_fairscale)
    weights = combine_weights(out.routing, 1, E, capacity)[0]          # [S, E, C]
    return tree.map(stop_gradient, {
        "dispatched": weights != 0, "weights": weights, "aux_loss": out.aux_loss, "y": out.y[0],
        "grad": _gradients({"y": (out.y[0] * case.inputs["cotangent"]).sum(),
                            "aux_loss": out.aux_loss}, leaves)})


def deepspeed_oracle(case):
    """The gate alone; and gradients of <weights, cotangent> and of the loss, by logits."""
    leaves = {"logits": Tensor(case.inputs["logits"])}
    gates = gate_probabilities(leaves["logits"])[None]                 # [1, S, E]
    capacity, E = case.settings["capacity"], gates.shape[-1]
    routing, aux_loss = route_deepspeed(gates, case.inputs["gumbel"][None], capacity)
    weights = combine_weights(routing, 1, E, capacity)[0]              # [S, E, C]
    return tree.map(stop_gradient, {
        "count": counts_in_groups(routing.expert, E, 1)[0],
        "dispatched": weights != 0, "weights": weights, "aux_loss": aux_loss[0],
        "grad": _gradients({"weights": (weights * case.inputs["cotangent"]).sum(),
                            "aux_loss": aux_loss[0]}, leaves)})


def mesh_oracle(case, second=second_random_threshold):
    """The gate alone; and gradients of <weights, cotangent> and of the loss."""
    leaves = {"x": Tensor(case.inputs["x"]), "w_gate": Tensor(case.params["w_gate"])}
    gates = gate_probabilities(gate_logits(leaves["x"], leaves["w_gate"]))   # [G, S, E]
    G, _, E = gates.shape
    if "threshold" in case.settings:
        second = partial(second, threshold=case.settings["threshold"])
    routing, aux_loss = route_mesh(gates, case.inputs.get("u"), case.settings["capacity"],
                                   case.inputs.get("used"), second=second)
    weights = combine_weights(routing, G, E, case.settings["capacity"])   # [G, S, E, C]
    losses = {"weights": (weights * case.inputs["cotangent"]).sum(), "aux_loss": aux_loss.mean()}
    return tree.map(stop_gradient, {
        "dispatched": weights != 0, "weights": weights, "aux_loss": losses["aux_loss"],
        "grad": _gradients(losses, leaves)})


def mesh_all_oracle(case):
    return mesh_oracle(case, second_all)


def nllb_oracle(case, route=route_nllb, order=None):
    """The layer of one group, and gradients of <y, cotangent> and of the loss."""
    def ordered_route(gates, u, capacity, used):
        return route(gates, u, capacity, used, order and order(gates))

    leaves = tree.map(Tensor, {"x": case.inputs["x"], **case.params})
    params = NllbParams(**{name: leaves[name] for name in NllbParams._fields})
    u, used = (case.inputs[name][None] if name in case.inputs else None for name in ("u", "used"))
    out = moe_layer_nllb(params, leaves["x"][None], u, case.settings["capacity"], ordered_route,
                         used, case.settings["scale"])
    weights = weights_of_experts(out.routing, len(params.w_in.array))  # [T, E]
    first = (out.routing.expert * out.routing.keep)[:, 0]              # [T]
    return tree.map(stop_gradient, {
        "first": first, "dispatched": weights != 0, "weights": weights, "y": out.y[0],
        "aux_loss": out.aux_loss,
        "grad": _gradients({"y": (out.y[0] * case.inputs["cotangent"]).sum(),
                            "aux_loss": out.aux_loss}, leaves)})


def nllb_random_oracle(case):
    return nllb_oracle(case, partial(route_nllb, second=nllb_second_random))


def nllb_prioritized_oracle(case):
    return nllb_oracle(case, order=highest_gate_first)


def nllb_normalized_before_oracle(case):
    return nllb_oracle(case, route_nllb_normalized_before)


def nllb_random_normalized_before_oracle(case):
    return nllb_oracle(case, route_nllb_random_normalized_before)


def nllb_loss_oracle(case):
    """The one loss of several layers, and its gradients by their gates."""
    w_gate, x = Tensor(case.params["w_gate"]), case.inputs["x"]
    routings = []
    for layer in range(len(x)):
        gates = gate_probabilities(gate_logits(x[layer], w_gate[layer]))   # [T, E]
        routings.append(route_nllb(gates[None], None, case.settings["capacity"]).routing)
    loss = nllb_load_balancing_loss(routings, w_gate.shape[-1])[0]
    return {"first": ops.stack([(r.expert * r.keep)[:, 0] for r in routings]),
            "aux_loss": stop_gradient(loss), "grad": {"w_gate": grad(loss, w_gate)}}


def _transformer_shapes():
    """Of two layers in each stack, in the letters of a schema: U source and V target words."""
    attention = nn.AttentionParams("D A W", "D A W", "D A W", "A W D", None, None, None, None)
    cross = {"encoder": (None, None), "decoder": ("D", attention)}
    feed_forward = [GShardParams("D E", "E D H", "E H D"), GShardParams(None, "I D J", "I J D")]
    stacks = {name: nn.T5StackParams(
        [nn.T5LayerParams("D", attention, *cross[name], "D", p) for p in feed_forward], "N A", "D")
        for name in cross}
    return TransformerParams("U D", "V D", stacks["encoder"], stacks["decoder"], "D V")


def transformer_oracle(case):
    """Both layers with experts, and gradients of <logits, cotangent> and of the loss."""
    leaves, inputs = tree.map(Tensor, case.params), case.inputs
    names = iter(tree.named_leaves(_transformer_shapes()))
    params = tree.map(lambda letters: leaves[next(names)], _transformer_shapes())
    draws = TransformerDraws(inputs["draws.encoder"], inputs["draws.decoder"])
    out = transformer(params, inputs["source"], inputs["target"], draws, case.settings["n_groups"],
                      inputs["source_used"], inputs["target_used"])
    return tree.map(stop_gradient, {
        "routings": [r._asdict() for r in out.routings], "logits": out.logits,
        "aux_loss": out.aux_loss,
        "grad": _gradients({"logits": (out.logits * inputs["cotangent"]).sum(),
                            "aux_loss": out.aux_loss}, leaves)})


ORACLES = {
    "layer": (LAYER, layer_oracle),
    "layer_padded": ({**LAYER, "in.used": "bool G S"}, layer_oracle),
    "fairscale": ({"in.x": "S D", "in.gumbel": "S E", "in.cotangent": "S D", **EXPERTS},
                  fairscale_oracle),
    "deepspeed": (GATE, deepspeed_oracle),
    "mesh": ({**MESH, "in.u": "G S", "set.threshold": ""}, mesh_oracle),
    "mesh_padded": ({**MESH, "in.u": "G S", "set.threshold": "", "in.used": "bool G S"},
                    mesh_oracle),
    "mesh_all": (MESH, mesh_all_oracle),
    "nllb": (NLLB, nllb_oracle),
    "nllb_loss": ({"in.x": "L T D", "set.capacity": "", "param.w_gate": "L D E"},
                  nllb_loss_oracle),
    "nllb_padded": ({**NLLB, "in.used": "bool T"}, nllb_oracle),
    "nllb_prioritized": (NLLB, nllb_prioritized_oracle),
    "nllb_random": ({**NLLB, "in.u": "T"}, nllb_random_oracle),
    "nllb_normalized_before": (NLLB, nllb_normalized_before_oracle),
    "nllb_random_normalized_before": ({**NLLB, "in.u": "T"}, nllb_random_normalized_before_oracle),
    "transformer": ({
        "in.source": "int B S", "in.target": "int B R", "in.source_used": "bool B S",
        "in.target_used": "bool B R", "in.draws.encoder": "L B S", "in.draws.decoder": "L B R",
        "in.cotangent": "B R V", "set.n_groups": "",
        **{f"param.{name}": letters
           for name, letters in tree.named_leaves(_transformer_shapes()).items()}},
        transformer_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _draws(u):
    """All alike: 0 dispatches each second choice, 255/256 next to none."""
    def change(arrays, rng):
        arrays["in.u"][:] = u
    return change


def _padding(arrays, rng):
    used = arrays["in.used"]
    used[..., [0, 3, 4, 9]] = False


def _padded_group(arrays, rng):
    _padding(arrays, rng)
    arrays["in.used"][-1] = False


def _all_padding(arrays, rng):
    arrays["in.used"][:] = False


def _no_gate(arrays, rng):
    """All gates are equal, and so all tokens choose experts 0 and 1."""
    arrays["param.w_gate"][:] = 0


def _twins(arrays, rng):
    """Experts 1 and 3 are equal, and ahead of the others."""
    arrays["in.x"][..., 0] = 1
    arrays["param.w_gate"][0, 1] += 3
    arrays["param.w_gate"][:, 3] = arrays["param.w_gate"][:, 1]


def _near_twins(arrays, rng):
    """Experts 1 and 3 are 2^-12 apart, now this one ahead, now that: a tie in bfloat16."""
    _twins(arrays, rng)
    x, w_gate = arrays["in.x"], arrays["param.w_gate"]
    x[..., ::2, 1], x[..., 1::2, 1] = 2**-6, -2**-6
    w_gate[1, 1] = 0.5
    w_gate[1, 3] = 0.5 + 2**-6


def _all_to_one(arrays, rng):
    """Expert 1 is everybody's first."""
    arrays["in.x"][..., 0] = 1
    arrays["param.w_gate"][0, 1] = 8


def _most_to_one(arrays, rng):
    """Expert 1 is by and large everybody's first, its gate not so near 1 that 1 - g is rounding."""
    arrays["in.x"][..., 0] = 1
    arrays["param.w_gate"][0, 1] = 3


def _balanced(arrays, rng):
    """Tokens to experts in turn, each as sure as the next: f and m are uniform."""
    x, w_gate = arrays["in.x"], arrays["param.w_gate"]
    E = w_gate.shape[1]
    x[:] = 0
    w_gate[:] = 0
    for e in range(E):
        x[..., e::E, e], x[..., e::E, (e + 1) % E], w_gate[e, e] = 2, 1, 1


def _large(arrays, rng):
    """Logits of some tens: a first gate is near 1, a second one small."""
    arrays["param.w_gate"] *= 16


def _beyond_256(arrays, rng):
    """Experts from 256 upwards have the largest logits, by and large."""
    arrays["param.w_gate"][:, :256] /= 4


def _sentences(arrays, rng):
    for name in ("source", "target"):
        V = len(arrays[f"param.{name}_embedding"])
        arrays[f"in.{name}"] = rng.integers(V, size=arrays[f"in.{name}"].shape)


def _padded_sentences(arrays, rng):
    _sentences(arrays, rng)
    arrays["in.source_used"][0, 2:] = False
    arrays["in.target_used"][0, 2:] = False
    arrays["in.cotangent"][0, 2:] = 0


_LAYER = dict(G=1, S=16, D=8, E=4, H=6)
_ONE_GROUP = dict(T=16, D=8, E=4, H=6)
_MODEL = dict(B=2, S=6, R=4, U=9, V=7, D=8, A=2, W=4, H=6, E=4, I=1, J=6, N=8, L=2)
CASES = {
    "roomy": ("layer", dict(_LAYER, capacity=32), "k2"),
    "overflowing": ("layer", dict(_LAYER, capacity=4), "k2, drops"),
    "paper_capacity": ("layer", dict(_LAYER, capacity=8), "k2, drops"),
    "exact": ("layer", dict(_LAYER, capacity=32), "exact, k2"),
    "exact_overflowing": ("layer", dict(_LAYER, capacity=4), "exact, k2, drops, ties"),
    "every_second": ("layer", dict(_LAYER, capacity=32), "k2, every second", _draws(0.0)),
    "every_second_overflowing": ("layer", dict(_LAYER, capacity=5), "k2, every second, drops",
                                 _draws(0.0)),
    "hardly_a_second": ("layer", dict(_LAYER, capacity=8), "k2", _draws(255 / 256)),
    "groups": ("layer", dict(_LAYER, G=3, S=8, capacity=4), "k2, groups, drops"),
    "ties": ("layer", dict(_LAYER, capacity=32), "k2, ties", _twins),
    "ties_everywhere": ("layer", dict(_LAYER, capacity=12), "k2, ties, drops, degenerate",
                        _no_gate),
    "near_ties": ("layer", dict(_LAYER, capacity=32), "k2, near ties", _near_twins),
    "all_to_one": ("layer", dict(_LAYER, capacity=8), "k2, drops, degenerate", _all_to_one),
    "all_dropped": ("layer", dict(_LAYER, capacity=0), "k2, drops, all dropped, degenerate"),
    "balanced": ("layer", dict(_LAYER, capacity=8), "k2, balanced, degenerate", _balanced),
    "two_experts": ("layer", dict(_LAYER, E=2, capacity=12), "k2, k=E, drops, degenerate"),
    "one_token": ("layer", dict(_LAYER, S=1, capacity=1), "k2, T=1, degenerate"),
    "no_token": ("layer", dict(_LAYER, S=0, capacity=1), "k2, T=0, degenerate"),
    "large_logits": ("layer", dict(_LAYER, capacity=32), "k2, extreme", _large),
    "wide": ("layer", dict(_LAYER, S=10, D=4, E=288, H=2, capacity=2), "k2, wide, E>256",
             _beyond_256),
    "wide_overflowing": ("layer", dict(_LAYER, S=10, D=4, E=288, H=2, capacity=1),
                         "k2, wide, E>256, drops", _beyond_256),

    "padding": ("layer_padded", dict(_LAYER, capacity=5), "k2, padding, drops", _padding),
    "padding_with_room": ("layer_padded", dict(_LAYER, capacity=32), "k2, padding", _padding),
    "exact_padding": ("layer_padded", dict(_LAYER, capacity=5), "exact, k2, padding, drops",
                      _padding),
    "padded_group": ("layer_padded", dict(_LAYER, G=3, S=10, capacity=4),
                     "k2, groups, padding, drops", _padded_group),
    "all_padding": ("layer_padded", dict(_LAYER, capacity=8), "k2, padding, degenerate",
                    _all_padding),

    "fairscale": ("fairscale", dict(S=12, D=8, E=4, H=6), "k2, drops"),
    "fairscale_most_to_one": ("fairscale", dict(S=12, D=8, E=4, H=6), "k2, drops", _most_to_one),
    "deepspeed": ("deepspeed", dict(S=12, E=4, C=12, capacity=12), "k2"),
    "deepspeed_overflowing": ("deepspeed", dict(S=12, E=4, C=3, capacity=3), "k2, drops"),
    "mesh": ("mesh", dict(G=2, S=12, D=8, E=4, C=4, capacity=4, threshold=0.5), "k2, drops"),
    "mesh_padded": ("mesh_padded", dict(G=2, S=12, D=8, E=4, C=4, capacity=4, threshold=0.5),
                    "k2, drops, padding", _padding),
    "mesh_all": ("mesh_all", dict(G=2, S=12, D=8, E=4, C=4, capacity=4), "k2, drops"),
    "nllb": ("nllb", dict(_ONE_GROUP, capacity=8, scale=1.0), "k2"),
    "nllb_evaluation": ("nllb", dict(_ONE_GROUP, capacity=16, scale=0.8), "k2"),
    "nllb_overflowing": ("nllb", dict(_ONE_GROUP, capacity=3, scale=1.0), "k2, drops"),
    "nllb_loss": ("nllb_loss", dict(L=2, T=16, D=8, E=4, capacity=4), "k2, drops"),
    "nllb_padded": ("nllb_padded", dict(_ONE_GROUP, capacity=4, scale=1.0), "k2, drops, padding",
                    _padding),
    "nllb_prioritized": ("nllb_prioritized", dict(_ONE_GROUP, capacity=4, scale=1.0),
                         "k2, drops"),
    "nllb_random": ("nllb_random", dict(_ONE_GROUP, capacity=4, scale=1.0), "k2, drops"),
    "nllb_normalized_before": ("nllb_normalized_before",
                               dict(_ONE_GROUP, capacity=4, scale=1.0), "k2, drops"),
    "nllb_random_normalized_before": ("nllb_random_normalized_before",
                                      dict(_ONE_GROUP, capacity=4, scale=1.0), "k2, drops"),
    "transformer": ("transformer", dict(_MODEL, n_groups=1), "k2", _sentences),
    "transformer_in_padded_groups": ("transformer", dict(_MODEL, n_groups=2),
                                     "k2, groups, padding", _padded_sentences),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _normalized_after(*settings, used=None):
    gating = algorithm_1(*settings, used=used)
    return gating._replace(routing=normalized_after(gating.routing))


def _normalized_after_all(gates, u, capacity, used=None):
    gating = algorithm_1(gates, u, capacity, second_all, used=used)
    return gating._replace(routing=normalized_after(gating.routing))


def _not_normalized(gate):
    return gate


def _with_nllb_loss(gates, *settings, used=None):
    routing, _ = algorithm_1(gates, *settings, used=used)
    return Gating(routing, nllb_load_balancing_loss([routing], gates.shape[-1], len(gates)))


def _all_choice_counts(expert, n_experts, used=None):
    G, S, K = expert.shape
    return counts_in_groups(expert.reshape(G * S, K), n_experts, G,
                            None if used is None else used.reshape(-1, 1))


def _with_second_choice_loss(gates, expert, used=None):
    return (released_auxiliary_loss(gates, expert, used)
            + second_choice_loss(gates, expert) / 2)


def _half_of_all_choice_counts(expert, n_experts, used=None):
    return _all_choice_counts(expert, n_experts, used) / 2


def _n_of_all_tokens(gates, used):
    return _n_used(gates, None)


def _mean_gates_with_padding(gates, used=None):
    return mean_gates(gates)


CONVENTIONS = {
    "each second choice is dispatched, as in lingvo, praxis and NLLB":
        {"second_random": "second_all"},
    "no second choice is dispatched, as Mesh TensorFlow may have it":
        {"second_random": "second_none"},
    "second choices above 0.2 are dispatched, as Mesh TensorFlow may have it":
        {"second_random": "second_threshold"},
    "second choices are dispatched with probability g_2 / 0.2":
        {"second_random": "second_random_threshold"},
    "second choices that are not dispatched take no number, as in Mesh TensorFlow, lingvo, NLLB":
        {"decision_counter": "dispatched_counter"},
    "second choices are dispatched with probability g_2 / 0.2, and take a number only then, as in "
    "Mesh TensorFlow": {
        "second_random": "second_random_threshold", "decision_counter": "dispatched_counter"},
    "both choices of a token queue before the next token's":
        {"decision_counter": "token_major_counter"},
    "the most certain tokens come first, as Tutel, fairseq and NLLB may have it":
        {"algorithm_1": "route_batch_prioritized"},
    "1e-9 is added to g_1 + g_2, as in Mesh TensorFlow, lingvo and praxis":
        {"pair_normalized": "pair_normalized_mesh"},
    "weights are normalised after dropping, as in fairscale, DeepSpeed, fairseq and NLLB":
        {"algorithm_1": "_normalized_after"},
    "weights are normalised after dropping, and each second choice is dispatched":
        {"algorithm_1": "_normalized_after_all", "second_random": "second_all"},
    "weights are the gates as they are": {"pair_normalized": "_not_normalized"},
    "weights are the gates as they are, and each second choice is dispatched, as in flaxformer":
        {"pair_normalized": "_not_normalized", "second_random": "second_all"},
    "the auxiliary loss is E^2 times as large, as in all released code but fairscale's":
        {"auxiliary_loss": "released_auxiliary_loss"},
    "the auxiliary loss is E^2 times as large, with half of that of second choices":
        {"auxiliary_loss": lambda paper: _with_second_choice_loss},
    "f counts both choices and adds up to 2, as in flaxformer":
        {"first_choice_counts": "_all_choice_counts"},
    "f counts both choices and adds up to 1":
        {"first_choice_counts": "_half_of_all_choice_counts"},
    "the auxiliary loss is of what was dispatched, as in NLLB": {"algorithm_1": "_with_nllb_loss"},
    "padding is in the divisors of f and m, as in Mesh TensorFlow and lingvo":
        {"_n_used": "_n_of_all_tokens"},
    "padding is part of m and in the divisor of f, as in fairseq":
        {"_n_used": "_n_of_all_tokens", "mean_gates": "_mean_gates_with_padding"},
    "NLLB's gating": {"algorithm_1": "route_nllb", "second_random": "second_all"},
    "NLLB's gating, normalised before dropping":
        {"algorithm_1": "route_nllb_normalized_before", "second_random": "second_all"},
    "NLLB's gating by chance": {
        "algorithm_1": lambda paper: partial(paper.route_nllb, second=paper.nllb_second_random)},
    "NLLB's gating by chance, normalised before dropping":
        {"algorithm_1": "route_nllb_random_normalized_before"},
    "capacity as in lingvo and praxis": {"expert_capacity": "expert_capacity_lingvo"},
    "capacity as in NLLB in evaluation": {"expert_capacity": "expert_capacity_evaluation"},
}
