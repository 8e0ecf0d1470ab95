"""V-MoE: experts for image patches, and those the router is surest of served first.

C. Riquelme, J. Puigcerver, B. Mustafa, M. Neumann, R. Jenatton, A. Susano Pinto, D. Keysers and
N. Houlsby, "Scaling Vision with Sparse Mixture of Experts", NeurIPS 2021. arXiv:2106.05974v1.

    here       paper        meaning
    B, S       N, P         images in a batch, tokens of one: its patches, and the class token
    T          N P          tokens that a layer routes
    G          --           groups: T / G tokens in a row, with slots of their own in each expert
    D, H       --           width of a token, hidden width of an MLP
    E, K       E, k         experts, experts chosen per token
    capacity   B_e          slots of a group in each expert
    C          C            capacity ratio: 1 is a slot for each choice, were they spread evenly
    clean      W x          logits without noise
    z          --           the draw, standard normal: epsilon is z / E; None for no noise
    noisy      W x + eps    logits that decide
    gates      --           their softmax over all experts, of which g(x) keeps the k largest
    gate       g(x)_i       of a chosen expert; multiplies its output
    used       --           [T] bool, False at padding: a token that no expert is to see

A layer is three steps: ``router``, an allocation (``route_vanilla``, ``route_batch_prioritized``)
and ``expert_mlp``. ``encode`` takes tokens that the caller has embedded, of several kinds if need
be: attention stays within a sequence, and experts see the tokens of all.

Where text and released code part, the text is the default; vmoe is google-research/vmoe (942a78b),
by the authors:

    priority             text: a token's largest gate, or the sum of its k. vmoe: the largest
    its order            ties: text: not said; here, and in vmoe, the token that comes first
    capacity             text: rounded, of halves to the even. vmoe rounds up, then up to a multiple
                         of 4: expert_capacity_vmoe
    no slot at all       text: not said; vmoe: an error, and so here
    load                 text: a sum over tokens; vmoe: their mean, which has the same loss
    losses over groups   vmoe: those of each group, averaged; a layer's are then summed over layers
    without noise        the load is not defined; vmoe: importance alone
    balance loss         vmoe has GShard's as an option: gshard_2020.released_auxiliary_loss
    GELU                 text: not said which; here x Phi(x). vmoe: ``ops.gelu_tanh``, which
                         ``moe_layer``, ``encode`` and ``vmoe`` take as ``activation``
    experts at first     text: not said. vmoe: all of a layer the same, init; init_apart
    what is classified   vmoe: the class token, or the mean of all tokens (``class_token`` None); a
                         third, attention with a learnt query: not built
    representation layer text: not said, but the numbers of parameters have it: a layer of D tanh
                         units under the head, in pre-training, as in the ViT
    layer norm           text: not said; 1e-6 as in vmoe
    dropout              vmoe: in experts, at a rate of 0.1 or 0.2; not built
    experts choose       vmoe's other router, of another paper; not built
    parallelism          text: experts on devices; not built
"""
import math
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import namespace
from minimoe.papers.gshard_2020 import released_auxiliary_loss, top_two
from minimoe.papers.sparsely_gated_2017 import (
    kth_inclusive, load_probability, noise_std_vmoe, noisy_logits, top_k_mask)
from minimoe.papers.switch_2021 import route, router_logits, truncated_normal, truncation_corrected
from minimoe.routing.dispatch import Routing, gather, gather_back, packed_seats
from minimoe.routing.experts import ragged_matmul
from minimoe.routing.topk import choice_margin

EPSILON = 1e-6    # of layer norms


# -- The router, Section 2.3 ---------------------------------------------------------------------

class Router(NamedTuple):
    clean: Tensor   # [T, E]
    noisy: Tensor   # [T, E]
    gates: Tensor   # [T, E]


def router(x, w_router, z=None):
    """softmax(W x + epsilon), epsilon of standard deviation 1 / E. Section 2.3

    Noise comes before the softmax, and the softmax before the choice: chosen first, a single expert
    would have the weight 1, whatever the router said. ``z`` is the draw, from the standard normal;
    at inference there is none. ValueError where logits come out as NaN or infinity.
    [T, D], [D, E], [T, E] -> Router
    """
    clean = router_logits(x, w_router)                                 # [T, E]
    noisy = clean if z is None else noisy_logits(clean, noise_std_vmoe(clean.shape[-1]), z)
    return Router(clean, noisy, ops.softmax(noisy))


def keep_top_k(gates, k):
    """g(x) = TOP_k(softmax(W x + epsilon)), not normalised. Section 2.3 [T, E] -> [T, E]"""
    return ops.where(top_k_mask(gates, k), gates, 0.0)


# -- Capacity, Section 2.4 -----------------------------------------------------------------------

def expert_capacity(n_tokens, n_experts, k, capacity_ratio):
    """B_e = round(k N P C / E) slots of a group of N P tokens. Section 2.4

    The product is exact, and a half goes to the even number. No expert can need more slots than
    there are tokens. ValueError for a ratio that is not positive, and where no slot is left.
    """
    _check_capacity("expert_capacity", n_tokens, n_experts, k, capacity_ratio)
    capacity = round(Fraction(str(capacity_ratio)) * k * n_tokens / n_experts)
    return min(n_tokens, _some("expert_capacity", capacity))


def expert_capacity_vmoe(n_tokens, n_experts, k, capacity_ratio, multiple_of=4):
    """Slots as released: in floating point, rounded up, and then up to a multiple of 4."""
    _check_capacity("expert_capacity_vmoe", n_tokens, n_experts, k, capacity_ratio)
    capacity = math.ceil(n_tokens * k * capacity_ratio / n_experts)
    return capacity + -capacity % multiple_of


def _check_capacity(name, n_tokens, n_experts, k, capacity_ratio):
    if n_tokens < 1 or not 1 <= k <= n_experts or not 0 < capacity_ratio < math.inf:
        raise ValueError(f"{name}: needs tokens, k of the experts and a positive, finite ratio; "
                         f"got {n_tokens}, {k} of {n_experts} and {capacity_ratio}")


def _some(name, capacity):
    if capacity < 1:
        raise ValueError(f"{name}: the ratio must leave a slot to each expert; got {capacity}")
    return capacity


# -- Allocation, Section 4.1 ---------------------------------------------------------------------

def route_vanilla(gates, capacity, k, n_groups=1, used=None):
    """For each rank of choice, tokens in their order take a slot if one is left. Algorithm 1

    All first choices are served before any second one. [T, E] -> Routing [T, K]
    """
    return route(gates, capacity, k, n_groups, used)


def largest_gate(gates, k):
    """s(x) = max_i g(x)_i. Section 4.1 [T, E] -> [T]"""
    return stop_gradient(gates).max(axis=-1)


def sum_of_gates(gates, k):
    """s(x) = sum_i g(x)_i, over the k chosen; for k = 1 ``largest_gate``. [T, E] -> [T]"""
    return keep_top_k(stop_gradient(gates), k).sum(axis=-1)


def highest_first(score):
    """The order in which tokens are served; of equals, the one that comes first. [T] -> [T] int"""
    return (-score).argsort(kind="stable")


def route_batch_prioritized(gates, capacity, k, n_groups=1, used=None, score=largest_gate):
    """``route_vanilla``, but tokens in the order of their priority, highest first. Algorithm 2

    The order is of a whole group, whatever images its tokens belong to, so that an image may be
    given more slots than another. It carries no gradient. [T, E] -> Routing [T, K]
    """
    return route(gates, capacity, k, n_groups, used, highest_first(score(gates, k)))


# -- Balance, Appendix A.2 -----------------------------------------------------------------------

def importance_loss(clean, n_groups=1, used=None):
    """CV(Imp)^2 of ``importance``, averaged over groups. Appendix A.2 [T, E] -> []

    0 where experts share the probability evenly, E - 1 where one has it all.
    """
    return _cv_squared(importance(clean, n_groups, used))


def importance(clean, n_groups=1, used=None):
    """Imp_i = sum_x softmax(W x)_i: of logits without noise. Appendix A.2 [T, E] -> [G, E]"""
    return _sums(ops.softmax(clean), n_groups, used)


def load_loss(clean, noisy, k, n_groups=1, used=None):
    """CV(load)^2 of ``load``, averaged over groups. Appendix A.2 [T, E], [T, E] -> []"""
    return _cv_squared(load(clean, noisy, k, n_groups, used))


def load(clean, noisy, k, n_groups=1, used=None):
    """load_i = sum_x p_i(x). Appendix A.2

    p_i(x) = 1 - Phi((threshold - (W x)_i) E) is the probability that expert i would reach the
    token's k-th largest noisy logit, were its own noise drawn again. The threshold takes part in
    the gradient. Without noise there is no such probability. [T, E], [T, E] -> [G, E]
    """
    std = 0 * stop_gradient(clean) + noise_std_vmoe(clean.shape[-1])   # [T, E]
    p = load_probability(clean, std, kth_inclusive(noisy, k))          # [T, E]
    return _sums(p, n_groups, used)


def _sums(p, n_groups, used):
    """What each expert has of each group; padding has no part in it. [T, E] -> [G, E]"""
    T, E = p.shape
    if used is not None:
        p = ops.where(used[:, None], p, 0.0)
    return p.reshape(n_groups, T // n_groups, E).sum(axis=1)


def _cv_squared(v):
    """(std / mean)^2 over experts, averaged over groups; 0 for a group of padding. [G, E] -> []"""
    mean = v.mean(axis=-1, keepdims=True)
    return ops.var(v / ops.where(mean == 0, 1.0, mean), axis=-1).mean()


def auxiliary_loss(outputs):
    """sum over layers of (L_imp + L_load) / 2; of L_imp / 2 where there is no noise. -> []"""
    losses = [loss for out in outputs for loss in (out.importance_loss, out.load_loss)]
    return sum(loss for loss in losses if loss is not None) / 2


def training_loss(cross_entropy, outputs, weight=0.01):
    """The loss of the task, and lambda times ``auxiliary_loss``. -> []"""
    return cross_entropy + weight * auxiliary_loss(outputs)


# -- The layer, Sections 2.1 and 2.2 -------------------------------------------------------------

class VMoEParams(NamedTuple):
    w_router: Tensor   # [D, E]
    w_in: Tensor       # [E, D, H]
    b_in: Tensor       # [E, H]
    w_out: Tensor      # [E, H, D]
    b_out: Tensor      # [E, D]


class VMoEOutput(NamedTuple):
    y: Tensor                 # [T, D]   zero where no expert took the token
    importance_loss: Tensor   # []
    load_loss: Tensor         # []       None without noise
    routing: Routing          # [T, K]
    router: Router            # [T, E]


def moe_layer(params, x, capacity, k, z=None, n_groups=1, route=route_vanilla, used=None,
              activation=ops.gelu):
    """MoE(x) = sum_i g(x)_i e_i(x) over the chosen experts that had a slot. Section 2.1

    [T, D] -> [T, D]

    ``route`` is ``route_vanilla``, ``route_batch_prioritized`` or another of their signature.
    ValueError where x is not [T, D] or z not [T, E], for a k that is not between 1 and E, groups
    that do not divide the tokens, a capacity below 0, and logits of NaN or infinity.
    """
    _check_layer(params, x, z)
    made = router(x, params.w_router, z)                               # [T, E]
    routing = route(made.gates, capacity, k, n_groups, used)
    y = expert_mlp(params, x, routing, activation)                     # [T, D]
    of_load = None if z is None else load_loss(made.clean, made.noisy, k, n_groups, used)
    return VMoEOutput(y, importance_loss(made.clean, n_groups, used), of_load, routing, made)


def _check_layer(params, x, z):
    D, E = params.w_router.shape
    if x.ndim != 2 or x.shape[1] != D:
        raise ValueError(f"moe_layer: x must be [T, {D}], all leading axes run together; "
                         f"got {x.shape}")
    if z is not None and z.shape != (len(x), E):
        raise ValueError(f"moe_layer: z must be {[len(x), E]}, or None; got {z.shape}")


def expert_mlp(params, x, routing, activation=ops.gelu):
    """The gated sum of e_i(x) = GELU(x W_1 + b_1) W_2 + b_2 over choices kept. Section 2.2

    [T, D], Routing [T, K] -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, params.w_in.shape[0])
    rows = gather(x, seats)                                            # [R, D]
    hidden = activation(_expert_linear(rows, params.w_in, params.b_in, ends))     # [R, H]
    return gather_back(_expert_linear(hidden, params.w_out, params.b_out, ends), routing.gate,
                       seats)


def expert_intermediates(params, x, routing, activation=ops.gelu):
    """What each choice's expert was given, made of it and gave back; 0 if it turned it away.

    By the definition, to look at and to compare with: ``expert_mlp`` keeps none of it.
    [T, D], Routing [T, K] -> [T, K, D], [T, K, H], [T, K, D]
    """
    def kept(a):
        return ops.where(routing.keep[:, :, None], a, 0.0)

    def linear(x, w, b):
        y = ops.einsum("tkd,tkdh->tkh", x, ops.take(w, routing.expert))
        return y + ops.take(b, routing.expert)

    inputs = kept(x[:, None])                                          # [T, K, D]
    hidden = kept(activation(linear(inputs, params.w_in, params.b_in)))   # [T, K, H]
    return inputs, hidden, kept(linear(hidden, params.w_out, params.b_out))


def _expert_linear(x, w, b, ends):
    """x w + b, expert by expert: b is the matrix of a further column, of ones. -> [R, H]"""
    ones = namespace(stop_gradient(x)).ones((len(x), 1), x.dtype)
    E, H = b.shape
    return ragged_matmul(x, w, ends=ends) + ragged_matmul(ones, b.reshape(E, 1, H), ends=ends)


def init(rng, n_experts, width, hidden):
    """All experts the same MLP at first, as released: tokens, and the router, make them differ."""
    w_in, b_in, w_out, b_out = (
        namespace(a).repeat(a[None], n_experts, axis=0) for a in _mlp_init(rng, width, hidden))
    return VMoEParams(_lecun_normal(rng, width, n_experts), w_in, b_in, w_out, b_out)


def init_apart(rng, n_experts, width, hidden):
    """Each expert a draw of its own."""
    experts = [_mlp_init(rng, width, hidden) for _ in range(n_experts)]
    return VMoEParams(_lecun_normal(rng, width, n_experts),
                      *(ops.stack(parts) for parts in zip(*experts)))


def _mlp_init(rng, width, hidden):
    """Of a ViT: Glorot's uniform matrices, biases from N(0, 1e-12)."""
    bound = math.sqrt(6 / (width + hidden))
    return (rng.uniform(-bound, bound, (width, hidden)), 1e-6 * rng.standard_normal(hidden),
            rng.uniform(-bound, bound, (hidden, width)), 1e-6 * rng.standard_normal(width))


def _lecun_normal(rng, fan_in, n_outputs):
    return truncation_corrected(truncated_normal(rng, (fan_in, n_outputs), fan_in, scale=1.0))


# -- Which blocks have experts -------------------------------------------------------------------

def every(n_blocks, n):
    """Every n-th block, the last of each n: (n - 1, 2 n - 1, ...), from 0. ValueError for none."""
    if not 1 <= n <= n_blocks:
        raise ValueError(f"every: n must be between 1 and {n_blocks} blocks; got {n}")
    return tuple(range(n - 1, n_blocks, n))


def last(n_blocks, n):
    """The last n of every second block (1, 3, 5, ...), from 0. ValueError where that is fewer."""
    if not 1 <= n <= n_blocks // 2:
        raise ValueError(f"last: n must be between 1 and {n_blocks // 2}, every second of "
                         f"{n_blocks} blocks; got {n}")
    return every(n_blocks, 2)[-n:]


# -- The Vision Transformer, Section 2.2 ---------------------------------------------------------
# A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
# Scale", 2020. arXiv:2010.11929v2, Section 3.1. Numbers of equations are those there.

class BlockParams(NamedTuple):
    attention_norm: nn.LayerNormParams   # [D]
    attention: nn.AttentionParams
    feed_forward_norm: nn.LayerNormParams
    feed_forward: Any                    # VMoEParams, or two LinearParams of an MLP


class EncoderParams(NamedTuple):
    blocks: list                         # of BlockParams
    norm: nn.LayerNormParams             # [D]   of what the last block gives


class EncoderOutput(NamedTuple):
    y: list                              # [B, S, D] of each kind of sequence
    layers: list                         # VMoEOutput of each block with experts


def encode(params, sequences, capacity, k, z=None, n_groups=1, route=route_vanilla, used=None,
           activation=ops.gelu):
    """Blocks of attention and an MLP or experts, each with a layer norm first.

    ``sequences`` is a list, [B, S, D] of each kind, embedded: tokens read those of their own
    sequence, and are routed together, those of the first kind in front, in groups of T / G in a
    row. ``z`` has a draw for every layer with experts, [L, T, E]; ``used`` is a list, [B, S] bool
    of each kind, or None. ValueError where their number is not that of the sequences, or of the
    layers. -> EncoderOutput
    """
    n_layers = sum(isinstance(p.feed_forward, VMoEParams) for p in params.blocks)
    _check_encode(sequences, z, used, n_layers)
    draws = iter([None] * n_layers if z is None else z)
    together = None if used is None else ops.concatenate([u.reshape(-1) for u in used])    # [T]
    masks = [None] * len(sequences) if used is None else [u[:, None, None] for u in used]
    layers = []
    for p in params.blocks:
        sequences = [x + _attention(p, x, mask) for x, mask in zip(sequences, masks)]      # Eq. (2)
        seen = [_norm(p.feed_forward_norm, x) for x in sequences]
        if isinstance(p.feed_forward, VMoEParams):
            tokens = ops.concatenate([x.reshape(-1, x.shape[-1]) for x in seen])           # [T, D]
            layers.append(moe_layer(p.feed_forward, tokens, capacity, k, next(draws), n_groups,
                                    route, together, activation))
            y = _apart(layers[-1].y, seen)
        else:
            y = [nn.mlp(p.feed_forward, x, activation) for x in seen]
        sequences = [x + change for x, change in zip(sequences, y)]                        # Eq. (3)
    return EncoderOutput([_norm(params.norm, x) for x in sequences], layers)               # Eq. (4)


def _check_encode(sequences, z, used, n_layers):
    for name, given, n in [("used", used, len(sequences)), ("z", z, n_layers)]:
        if given is not None and len(given) != n:
            raise ValueError(f"encode: {name} must have {n} parts, one for each "
                             f"{'kind of sequence' if name == 'used' else 'layer with experts'}; "
                             f"got {len(given)}")


def _attention(p, x, mask):
    seen = _norm(p.attention_norm, x)
    return nn.multi_head_attention(p.attention, seen, seen, mask)


def _norm(params, x):
    return nn.layer_norm(params, x, EPSILON)


def _apart(y, sequences):
    """Tokens back in their sequences. [T, D] -> [B, S, D] of each kind"""
    ends = [0]
    for x in sequences:
        ends.append(ends[-1] + math.prod(x.shape[:-1]))
    return [y[start:end].reshape(x.shape) for start, end, x in zip(ends, ends[1:], sequences)]


def encoder_init(rng, n_blocks, width, n_heads, hidden, n_experts, layers, init=init):
    """``layers`` are the blocks with experts, of ``every`` or ``last``; the others have an MLP."""
    def feed_forward(block):
        if block in layers:
            return init(rng, n_experts, width, hidden)
        w_in, b_in, w_out, b_out = _mlp_init(rng, width, hidden)
        return nn.LinearParams(w_in, b_in), nn.LinearParams(w_out, b_out)

    return EncoderParams(
        [BlockParams(nn.layer_norm_init(width), nn.attention_init(rng, width, n_heads),
                     nn.layer_norm_init(width), feed_forward(block)) for block in range(n_blocks)],
        nn.layer_norm_init(width))


class VisionTransformerParams(NamedTuple):
    patch: nn.LinearParams               # [P*P*C, D]
    class_token: Tensor                  # [D]      None: the mean of the tokens is classified
    position: Tensor                     # [S, D]   the class token's first
    encoder: EncoderParams
    representation: nn.LinearParams      # [D, D]   before a tanh; None in fine-tuning
    head: nn.LinearParams                # [D, V]   V classes


class VisionTransformerOutput(NamedTuple):
    logits: Tensor                       # [B, V]
    layers: list                         # VMoEOutput of each block with experts


def patches(image, size):
    """Squares of ``size`` pixels, row after row, a pixel's channels side by side.

    ValueError where they do not fill the image. [B, height, width, C] -> [B, S, size*size*C]
    """
    B, height, width, C = image.shape
    if size < 1 or height % size or width % size:
        raise ValueError(f"patches: needs a size that divides the image's {(height, width)}; "
                         f"got {size}")
    rows, columns = height // size, width // size
    y = image.reshape(B, rows, size, columns, size, C).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(B, rows * columns, size * size * C)


def embed(params, x):
    """Each patch a token, the class token in front, and their positions added.

    [B, S', P*P*C] -> [B, S, D]
    """
    tokens = nn.linear(params.patch, x)                                # [B, S', D]        Eq. (1)
    if params.class_token is not None:
        first = ops.broadcast_to(params.class_token, shape=(len(x), 1, tokens.shape[-1]))
        tokens = ops.concatenate([first, tokens], axis=1)              # [B, S, D]
    return tokens + params.position


def vmoe(params, x, capacity, k, z=None, n_groups=1, route=route_vanilla, activation=ops.gelu):
    """Logits of each class, from patches. [B, S', P*P*C] -> [B, V]"""
    out = encode(params.encoder, [embed(params, x)], capacity, k, z, n_groups, route,
                 activation=activation)
    seen = classified(out.y[0], params.class_token)                    # [B, D]
    if params.representation is not None:
        seen = ops.tanh(nn.linear(params.representation, seen))
    return VisionTransformerOutput(nn.linear(params.head, seen), out.layers)


def classified(tokens, class_token):
    """The first token, which is the class token; the mean of all where there is none. -> [B, D]"""
    return tokens.mean(axis=1) if class_token is None else tokens[:, 0]


def vmoe_init(rng, n_patches, patch_width, n_classes, encoder, class_token=True):
    """Around the parameters of an encoder: positions N(0, 0.02^2), class token and head zero.

    As released; without a representation layer.
    """
    zeros, D = namespace().zeros, encoder.norm.scale.shape[0]
    return VisionTransformerParams(
        nn.LinearParams(_lecun_normal(rng, patch_width, D), zeros(D)),
        zeros(D) if class_token else None,
        0.02 * rng.standard_normal((n_patches + class_token, D)), encoder,
        None, nn.LinearParams(zeros((D, n_classes)), zeros(n_classes)))


def n_parameters(n_blocks, width, hidden, n_patches, patch_width, n_classes, n_experts=1,
                 layers=()):
    """Parameters of ``vmoe`` with class token and representation layer, as in pre-training.

    ``layers`` are the blocks with experts, whose numbers are the paper's in millions.
    """
    D, H, E = width, hidden, n_experts
    mlp = 2 * D * H + H + D
    block = 4 * D * (D + 1) + 2 * 2 * D + mlp      # attention, two layer norms, and the MLP
    ends = ((patch_width + 1) * D + D + (n_patches + 1) * D     # patches, class token, positions
            + 2 * D + (D + 1) * D + (D + 1) * n_classes)        # layer norm, representation, head
    return n_blocks * block + ends + len(layers) * ((E - 1) * mlp + D * E)


# -- Recorded runs -------------------------------------------------------------------------------

ALGORITHMS = {"vanilla": route_vanilla, "batch_prioritized": route_batch_prioritized}
EXPERTS = VMoEParams("D E", "E D H", "E H", "E H D", "E D")
MLP = nn.LinearParams("D H", "H"), nn.LinearParams("H D", "D")


def _letters(*feed_forward):
    """The shapes of a Vision Transformer whose blocks have these layers after attention."""
    norm, linear = nn.LayerNormParams("D", "D"), nn.LinearParams
    attention = nn.AttentionParams(*["D A W"] * 3, "A W D", *["A W"] * 3, "D")
    return VisionTransformerParams(
        linear("P D", "D"), "D", "S D",
        EncoderParams([BlockParams(norm, attention, norm, p) for p in feed_forward], norm),
        linear("D D", "D"), linear("D V", "V"))


def _keys(letters):
    return {f"param.{name}": shape for name, shape in tree.named_leaves(letters).items()}


def _params(letters, case):
    names = iter(tree.named_leaves(letters))
    return tree.map(lambda _: Tensor(case.params[next(names)]), letters)


def routing_oracle(case):
    """Who sits where, by both algorithms and both scores."""
    gates, used = case.inputs["gates"], case.inputs["used"]
    by_sum = partial(route_batch_prioritized, score=sum_of_gates)
    scores = {"vanilla": None, "batch_prioritized": largest_gate, "by_sum": sum_of_gates}
    return {name: _seated(gates, gates, algorithm(gates, used=used, **case.settings), scores[name])
            for name, algorithm in {**ALGORITHMS, "by_sum": by_sum}.items()}


def _seated(gates, ranked, routing, score):
    """A Routing, in the order of computation; with the score by which tokens are served, if any."""
    expert, slot, keep, gate = routing
    scores = {} if score is None else {"score": score(gates, expert.shape[1])}
    return {"expert": expert, "margin": choice_margin(ranked, expert), **scores, "slot": slot,
            "keep": keep, "gate": gate}


def _routed(out, algorithm):
    """What a layer's router found and who sits where, in the order of computation."""
    score = largest_gate if algorithm is route_batch_prioritized else None
    return {**out.router._asdict(),
            **_seated(out.router.gates, out.router.noisy, out.routing, score)}


def layer_oracle(case):
    """The layer by Algorithm 1, and gradients of <y, cotangent> and of both losses."""
    return _layer_oracle(case, route_vanilla)


def prioritized_oracle(case):
    """The layer by Algorithm 2."""
    return _layer_oracle(case, route_batch_prioritized)


def _layer_oracle(case, algorithm):
    leaves, inputs = tree.map(Tensor, {"x": case.inputs["x"], **case.params}), case.inputs
    params, x = VMoEParams(*(leaves[name] for name in VMoEParams._fields)), leaves["x"]
    groups = case.settings["n_groups"], inputs["used"]
    out = moe_layer(params, x, z=inputs["z"], route=algorithm, used=inputs["used"], **case.settings)
    given, hidden, outputs = expert_intermediates(params, x, out.routing)
    losses = {"importance_loss": out.importance_loss, "load_loss": out.load_loss}
    y = (out.y * inputs["cotangent"]).sum()
    return tree.map(stop_gradient, {
        **_routed(out, algorithm), "expert_inputs": given, "hidden": hidden,
        "expert_outputs": outputs, "y": out.y,
        "importance": importance(out.router.clean, *groups),
        "load": load(out.router.clean, out.router.noisy, case.settings["k"], *groups), **losses,
        "grad": {name: grad(loss, leaves) for name, loss in {"y": y, **losses}.items()}})


def capacity_oracle(case):
    """The slots of an expert, of several sizes."""
    sizes = zip(*(case.settings[name] for name in CAPACITY))
    return {"capacity": namespace().asarray([expert_capacity(*size) for size in sizes])}


def _gradients(loss, params):
    """By name; none of the keys' biases, which softmax takes away: they are rounding."""
    return {name: g for name, g in tree.named_leaves(grad(loss, params)).items()
            if not name.endswith("b_key")}


def vision_transformer_oracle(case):
    """A Vision Transformer without experts, and the gradient of <logits, cotangent>."""
    params = _params(DENSE, case)
    x = patches(case.inputs["image"], case.settings["patch_size"])     # [B, S', P*P*C]
    tokens = embed(params, x)                                          # [B, S, D]
    out = vmoe(params, x, capacity=None, k=None)
    return tree.map(stop_gradient, {
        "tokens": tokens, "logits": out.logits,
        "grad": _gradients((out.logits * case.inputs["cotangent"]).sum(), params)})


def vmoe_oracle(case):
    """A training step by both algorithms: cross-entropy, losses of balance, and gradients."""
    params, found = _params(SPARSE, case), {}
    for name, algorithm in ALGORITHMS.items():
        out = vmoe(params, case.inputs["x"], z=case.inputs["z"], route=algorithm, **case.settings)
        loss = training_loss(ops.cross_entropy(out.logits, case.inputs["label"]).mean(), out.layers)
        layers = [{**_routed(layer, algorithm), "y": layer.y,
                   "importance_loss": layer.importance_loss, "load_loss": layer.load_loss}
                  for layer in out.layers]
        found[name] = {"layers": layers, "logits": out.logits, "loss": loss,
                       "grad": _gradients(loss, params)}
    return tree.map(stop_gradient, found)


DENSE, SPARSE = _letters(MLP, MLP), _letters(MLP, EXPERTS, MLP, EXPERTS)
SETTINGS = {"set.capacity": "", "set.k": "", "set.n_groups": ""}
CAPACITY = "n_tokens", "n_experts", "k", "capacity_ratio"
LAYER = {"in.x": "T D", "in.z": "T E", "in.used": "bool T", "in.cotangent": "T D", **SETTINGS,
         **_keys(EXPERTS)}
ORACLES = {
    "routing": ({"in.gates": "T E", "in.used": "bool T", **SETTINGS}, routing_oracle),
    "layer": (LAYER, layer_oracle),
    "layer_batch_prioritized": (LAYER, prioritized_oracle),
    "capacity": ({f"set.{name}": "N" for name in CAPACITY}, capacity_oracle),
    "vision_transformer": ({"in.image": "B I J C", "in.cotangent": "B V", "set.patch_size": "",
                            **_keys(DENSE)}, vision_transformer_oracle),
    "vmoe": ({"in.x": "B U P", "in.z": "L T E", "in.label": "int B", **SETTINGS, **_keys(SPARSE)},
             vmoe_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _gates(arrays, rng):
    """Softmax of the draws, to the base of 2."""
    powers = 2.0 ** arrays["in.gates"]
    arrays["in.gates"] = powers / powers.sum(axis=-1, keepdims=True)


def _powers_of_two(arrays, rng):
    """Many equal gates, and many equal priorities."""
    arrays["in.gates"] = 2.0 ** (arrays["in.gates"].round() - 4)


def _padded_gates(*tokens):
    def change(arrays, rng):
        _gates(arrays, rng)
        arrays["in.used"][list(tokens)] = False
    return change


def _padding(*tokens):
    def change(arrays, rng):
        arrays["in.used"][list(tokens)] = False
    return change


def _all_padding(arrays, rng):
    arrays["in.used"][:] = False


def _even(arrays, rng):
    """A router of zeros: the noise alone decides, and importance and load are even."""
    arrays["param.w_router"][:] = 0


def _all_equal(arrays, rng):
    """No noise either: all tokens choose the first experts, and are as sure as each other."""
    _even(arrays, rng)
    arrays["in.z"][:] = 0


def _twins(arrays, rng):
    """Experts 1 and 3 are equal, noise and all, and ahead of the others."""
    arrays["in.x"][:, 0] = 1
    w_router, z = arrays["param.w_router"], arrays["in.z"]
    w_router[0, 1] += 4
    w_router[:, 3], z[:, 3] = w_router[:, 1], z[:, 1]


def _near_twins(arrays, rng):
    """Experts 1 and 3 are 2^-12 apart, now this one ahead, now that: a tie in bfloat16."""
    _twins(arrays, rng)
    x, w_router = arrays["in.x"], arrays["param.w_router"]
    x[::2, 1], x[1::2, 1] = 2**-6, -2**-6
    w_router[1, 1] = 0.5
    w_router[1, 3] = 0.5 + 2**-6


def _all_to_one(arrays, rng):
    """Expert 1 is everybody's first; the others have some load, for they are not far behind."""
    arrays["in.x"][:, 0] = 1
    arrays["param.w_router"] /= 8
    arrays["param.w_router"][0, 1] = 0.75
    arrays["in.z"] /= 4


def _large(arrays, rng):
    """Logits of some tens: a token is all but sure."""
    arrays["param.w_router"] *= 16


def _beyond_256(arrays, rng):
    """Experts from 256 upwards have the largest logits, by and large."""
    arrays["param.w_router"][:, :256] /= 4


def _near_one(arrays, rng):
    """Scales of layer norms as they are trained, so that rounding stays small."""
    for name in arrays:
        if name.endswith(".scale"):
            arrays[name] = 1 + arrays[name] / 8


def _classes(arrays, rng):
    _near_one(arrays, rng)
    arrays["in.label"] = rng.integers(len(arrays["param.head.b"]), size=len(arrays["in.label"]))


_ROUTING = dict(T=16, E=4, n_groups=1)
_LAYER = dict(T=16, D=8, E=4, H=6, n_groups=1)
_WIDE = dict(_LAYER, T=12, D=4, E=288, H=2)
_IMAGES = dict(I=6, J=4, C=2, P=8, S=7, D=6, A=3, W=2, H=8, V=4, patch_size=2)
_MODEL = dict(B=3, U=4, S=5, T=15, P=4, D=6, A=2, W=3, H=8, E=4, V=5, L=2, n_groups=1)
CASES = {
    "capacity": ("capacity", dict(
        n_tokens=[64, 196, 50, 9, 15, 100, 7, 1024, 256], n_experts=[8, 32, 4, 6, 6, 5, 2, 32, 32],
        k=[2, 2, 1, 1, 1, 2, 2, 1, 5], capacity_ratio=[1.05, 1.05, 0.5, 1.0, 1.0, 1.15, 3.0, 0.1,
                                                       1.05])),
    "who_sits_where": ("routing", dict(_ROUTING, capacity=16, k=2), "k2", _gates),
    "who_has_a_seat": ("routing", dict(_ROUTING, capacity=3, k=2), "k2, drops", _gates),
    "one_choice_each": ("routing", dict(_ROUTING, capacity=2, k=1), "drops", _gates),
    "three_choices_each": ("routing", dict(_ROUTING, E=5, capacity=5, k=3), "k3, drops", _gates),
    "every_expert_each": ("routing", dict(_ROUTING, capacity=9, k=4), "k=E, drops, degenerate",
                          _gates),
    "who_sits_where_in_padded_groups": (
        "routing", dict(_ROUTING, T=18, capacity=2, k=2, n_groups=3),
        "k2, groups, padding, drops", _padded_gates(0, 4, 5, 11, 13)),
    "equal_gates": ("routing", dict(_ROUTING, capacity=3, k=2), "k2, ties, drops",
                    _powers_of_two),
    "no_seat": ("routing", dict(_ROUTING, capacity=0, k=2), "k2, all dropped, drops, degenerate",
                _gates),

    "roomy": ("layer", dict(_LAYER, capacity=32, k=2), "k2"),
    "overflowing": ("layer", dict(_LAYER, capacity=4, k=2), "k2, drops"),
    "one_choice": ("layer", dict(_LAYER, capacity=16, k=1)),
    "one_choice_overflowing": ("layer", dict(_LAYER, capacity=3, k=1), "drops"),
    "three_choices": ("layer", dict(_LAYER, E=5, capacity=16, k=3), "k3"),
    "three_choices_overflowing": ("layer", dict(_LAYER, E=5, capacity=7, k=3), "k3, drops"),
    "exact": ("layer", dict(_LAYER, capacity=32, k=2), "exact, k2, ties"),
    "exact_overflowing": ("layer", dict(_LAYER, capacity=3, k=1), "exact, drops"),
    "groups": ("layer", dict(_LAYER, capacity=2, k=2, n_groups=4), "k2, groups, drops"),
    "padding": ("layer", dict(_LAYER, capacity=3, k=2), "k2, padding, drops",
                _padding(0, 3, 4, 9, 10)),
    "padding_of_one_choice": ("layer", dict(_LAYER, capacity=16, k=1), "padding",
                              _padding(13, 14, 15)),
    "padding_in_groups": ("layer", dict(_LAYER, capacity=2, k=2, n_groups=4),
                          "k2, padding, groups, drops", _padding(0, 2, 8, 9, 10, 11, 15)),
    "all_padding": ("layer", dict(_LAYER, capacity=16, k=2), "k2, padding, degenerate",
                    _all_padding),
    "ties": ("layer", dict(_LAYER, capacity=16, k=1), "ties", _twins),
    "ties_of_two_choices": ("layer", dict(_LAYER, capacity=9, k=2), "k2, ties, drops", _twins),
    "ties_everywhere": ("layer", dict(_LAYER, capacity=9, k=2), "k2, ties, drops, degenerate",
                        _all_equal),
    "near_ties": ("layer", dict(_LAYER, capacity=16, k=1), "near ties", _near_twins),
    "balanced": ("layer", dict(_LAYER, capacity=32, k=2), "k2, balanced, degenerate", _even),
    "all_to_one": ("layer", dict(_LAYER, capacity=5, k=1), "drops, degenerate", _all_to_one),
    "all_dropped": ("layer", dict(_LAYER, capacity=0, k=2), "k2, all dropped, drops, degenerate"),
    "every_expert": ("layer", dict(_LAYER, capacity=16, k=4), "k=E, degenerate"),
    "one_expert": ("layer", dict(_LAYER, E=1, capacity=9, k=1), "E=1, k=E, drops, degenerate"),
    "one_token": ("layer", dict(_LAYER, T=1, capacity=1, k=2), "k2, T=1, degenerate"),
    "no_token": ("layer", dict(_LAYER, T=0, capacity=1, k=2), "k2, T=0, degenerate"),
    "large_logits": ("layer", dict(_LAYER, capacity=32, k=2), "k2, extreme", _large),
    "wide": ("layer", dict(_WIDE, capacity=12, k=1), "wide, E>256", _beyond_256),
    "wide_two_choices": ("layer", dict(_WIDE, capacity=1, k=2), "k2, wide, E>256, drops",
                         _beyond_256),

    "prioritized": ("layer_batch_prioritized", dict(_LAYER, capacity=32, k=2), "k2"),
    "prioritized_overflowing": ("layer_batch_prioritized", dict(_LAYER, capacity=4, k=2),
                                "k2, drops"),
    "prioritized_one_choice": ("layer_batch_prioritized", dict(_LAYER, capacity=3, k=1), "drops"),
    "prioritized_three_choices": ("layer_batch_prioritized",
                                  dict(_LAYER, E=5, capacity=6, k=3), "k3, drops"),
    "prioritized_exact": ("layer_batch_prioritized", dict(_LAYER, capacity=4, k=2),
                          "exact, k2, drops"),
    "prioritized_groups": ("layer_batch_prioritized", dict(_LAYER, capacity=2, k=2, n_groups=2),
                           "k2, groups, drops"),
    "prioritized_padding": ("layer_batch_prioritized", dict(_LAYER, capacity=3, k=2, n_groups=2),
                            "k2, padding, groups, drops", _padding(0, 3, 4, 9, 10)),
    "prioritized_all_padding": ("layer_batch_prioritized", dict(_LAYER, capacity=3, k=2),
                                "k2, padding, degenerate", _all_padding),
    "prioritized_ties": ("layer_batch_prioritized", dict(_LAYER, capacity=5, k=1), "ties, drops",
                         _twins),
    "prioritized_ties_everywhere": ("layer_batch_prioritized", dict(_LAYER, capacity=9, k=2),
                                    "k2, ties, drops, degenerate", _all_equal),
    "prioritized_all_to_one": ("layer_batch_prioritized", dict(_LAYER, capacity=5, k=1),
                               "drops, degenerate", _all_to_one),
    "prioritized_all_dropped": ("layer_batch_prioritized", dict(_LAYER, capacity=0, k=2),
                                "k2, all dropped, drops, degenerate"),
    "prioritized_one_expert": ("layer_batch_prioritized", dict(_LAYER, E=1, capacity=9, k=1),
                               "E=1, k=E, drops, degenerate"),
    "prioritized_no_token": ("layer_batch_prioritized", dict(_LAYER, T=0, capacity=1, k=2),
                             "k2, T=0, degenerate"),
    "prioritized_wide": ("layer_batch_prioritized", dict(_WIDE, capacity=1, k=2),
                         "k2, wide, E>256, drops", _beyond_256),

    "images": ("vision_transformer", dict(_IMAGES, B=3), "", _near_one),
    "one_image": (
        "vision_transformer", dict(_IMAGES, B=1, I=3, J=3, C=1, P=9, S=2, V=1, patch_size=3),
        "degenerate", _near_one),
    "vmoe": ("vmoe", dict(_MODEL, capacity=15, k=2), "k2", _classes),
    "vmoe_overflowing": ("vmoe", dict(_MODEL, capacity=4, k=2), "k2, drops", _classes),
    "vmoe_one_choice": ("vmoe", dict(_MODEL, capacity=2, k=1), "drops", _classes),
    "vmoe_three_choices": ("vmoe", dict(_MODEL, capacity=8, k=3), "k3, drops", _classes),
    "vmoe_groups": ("vmoe", dict(_MODEL, capacity=2, k=2, n_groups=3), "k2, groups, drops",
                    _classes),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _means(p, n_groups, used):
    """Over the tokens of a group, padding left out."""
    sums, T = _sums(p, n_groups, used), len(p)                         # [G, E]
    n = T // n_groups if used is None else used.reshape(n_groups, -1).sum(axis=1)[:, None]
    return sums * (1 / (n + (n == 0)))


def _gshard_auxiliary_loss(outputs):
    """Of the probabilities without noise, as released."""
    probs = [ops.softmax(out.router.clean)[None] for out in outputs]   # [1, T, E]
    return sum(released_auxiliary_loss(p, top_two(p)) for p in probs)[0]


def _mlp_tanh(params, x, routing, activation=None):
    return expert_mlp(params, x, routing, ops.gelu_tanh)


def _intermediates_tanh(params, x, routing, activation=None):
    return expert_intermediates(params, x, routing, ops.gelu_tanh)


def _encode_tanh(*args, **settings):
    return encode(*args, **{**settings, "activation": ops.gelu_tanh})


def _mean_of_tokens(tokens, class_token):
    return tokens.mean(axis=1)


def _importance_alone(outputs):
    return sum(out.importance_loss for out in outputs) / 2


CONVENTIONS = {
    "a token's priority is the sum of its k gates": {"largest_gate": "sum_of_gates"},
    "slots are rounded up, then up to a multiple of 4, as in vmoe":
        {"expert_capacity": "expert_capacity_vmoe"},
    "importance and load are means over tokens, as in vmoe": {"_sums": "_means"},
    "GELU is its approximation by tanh, as in vmoe": {
        "expert_mlp": "_mlp_tanh", "expert_intermediates": "_intermediates_tanh",
        "encode": "_encode_tanh"},
    "the mean of all tokens is classified, as vmoe may have it":
        {"classified": "_mean_of_tokens"},
    "the balance loss is GShard's, as vmoe may have it":
        {"auxiliary_loss": "_gshard_auxiliary_loss"},
    "the balance loss is that of importance alone, as in vmoe without noise":
        {"auxiliary_loss": "_importance_alone"},
}
