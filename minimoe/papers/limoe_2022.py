"""LIMoE: patches of images and words of texts share experts, and no router is told which is which.

B. Mustafa, C. Riquelme, J. Puigcerver, R. Jenatton and N. Houlsby, "Multimodal Contrastive Learning
with LIMoE: the Language-Image Mixture of Experts", NeurIPS 2022. arXiv:2206.02770v1.

    here           paper      meaning
    B              n          pairs of an image and its text
    m              m          modality: IMAGE 0, TEXT 1; -1 at padding, which is of neither
    S, R           --         patches of an image, words of a text
    T              --         tokens of both, routed together, those of images first
    D, P, V        --         width of a token, numbers in a patch, words in the vocabulary
    E, C           E, B_e     experts, of which a token has one; slots in each
    Z              --         width of the embeddings
    z_image        z^img_j    embedding of an image, of length 1; z_text likewise
    t              log(1/T)   learned; T is the temperature
    gates          p(x)       [T, E] softmax of the noisy logits; G_m are the rows of modality m
    soft_minimum   S_m        experts that modality m is to use at the least; tau_m is its log
    draws          --         of the standard normal, of which noise is 1 / E
    used           --         [B, R] bool, False at padding

Router, allocation, layer and blocks are V-MoE's with k = 1 (``vmoe_2021``), and patches and words
see the same weights of all blocks. The paper's text was not at hand and its code was never
released: what is here was restated by others, and ? stands where they say nothing, or differ.

    gates in entropies    ?; here the noisy ones, which route
    local loss            of text alone ?; of images too: enable ``local_image`` as well
    average               of the losses in use, times 0.04; over layers ?, here the mean
    z-loss                in the average, which is too much of it in the small: see the experiment.
                          A weight of its own: ``losses._replace(router_z=1e-3 * losses.router_z)``
    order                 batch priority, the default; V-MoE's other: ``route_vanilla``
    groups, capacity      ?; here one group, the whole batch, and V-MoE's ``expert_capacity``
    padding               ?; here no expert sees it and no loss counts it
    one modality alone    ?; here the other's losses are None and not in the average
    initialisation        ?; here matrices as in flax, positions N(0, 0.02^2), and 1 / T = 10
    length of 0           the authors' later contrastive code adds 1e-8 to lengths: normalized
    sign                  one implementation has max(0, tau + H), which rewards collapse: not built
    softmax               another takes it over tokens, not experts: not built
"""
import math
from typing import Any, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import namespace
from minimoe.papers.sparsely_gated_2017 import noise_std_vmoe, noisy_logits
from minimoe.papers.switch_2021 import router_z_loss
from minimoe.papers.vmoe_2021 import (
    BlockParams, EncoderParams, Router, VMoEOutput, VMoEParams, encode, importance, importance_loss,
    largest_gate, load, load_loss, route_batch_prioritized, route_vanilla)
from minimoe.routing.topk import choice_margin, group

IMAGE, TEXT = 0, 1
M = 2


# -- The contrastive loss ------------------------------------------------------------------------

def normalized(u, epsilon=0.0):
    """Rows of length 1; a row of zeros stays one. [B, Z] -> [B, Z]"""
    squares = ops.square(u).sum(axis=-1, keepdims=True)                # [B, 1]
    return u / (ops.sqrt(ops.where(squares == 0, 1.0, squares)) + epsilon)


def scores(z_image, z_text, t):
    """<z_image_j, z_text_k> / T of each image with each text. [B, Z], [B, Z], [] -> [B, B]"""
    return ops.exp(t) * (z_image @ z_text.T)


def contrastive_loss(scores):
    """Cross-entropies of each image's text and of each text's image, the mean of both. Eq. (1)

    log B where nothing is known, 0 for a single pair. ValueError for scores that are not square.
    [B, B] -> []
    """
    if len(scores.shape) != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"contrastive_loss: needs as many images as texts; got {scores.shape}")
    pair = namespace(stop_gradient(scores)).arange(len(scores))
    image_to_text = ops.cross_entropy(scores, pair)                    # [B]
    text_to_image = ops.cross_entropy(scores.T, pair)                  # [B]
    return (image_to_text + text_to_image).mean() / 2


# -- Entropy losses ------------------------------------------------------------------------------

def entropy(p):
    """H(p) = -sum_e p_e log p_e in nats; 0 log 0 is 0. [..., E] -> [...]"""
    return -(p * ops.log(ops.where(p == 0, 1.0, p))).sum(axis=-1)


def local_loss(gates):
    """Omega_local = mean_i H(p(x_i)): low where each token is sure of its expert. Eq. (2)

    From 0 to log E. [N, E] -> []
    """
    return entropy(gates).mean()


def global_loss(gates):
    """Omega_global = -H(mean_i p(x_i)): low where tokens, taken together, use all experts. Eq. (2)

    From -log E to 0. [N, E] -> []
    """
    return -entropy(gates.mean(axis=0))


def thresholded_global_loss(gates, soft_minimum):
    """max(0, log S + Omega_global): nothing more is asked once H reaches log S.

    That takes S experts, used evenly, or more of them. ValueError for an S that is not between 1
    and E. [N, E] -> []
    """
    E = gates.shape[-1]
    if not 1 <= soft_minimum <= E:
        raise ValueError(f"thresholded_global_loss: the soft minimum must be between 1 and {E} "
                         f"experts; got {soft_minimum}")
    return ops.relu(math.log(soft_minimum) + global_loss(gates))


# -- Auxiliary losses ----------------------------------------------------------------------------

class AuxiliaryLosses(NamedTuple):
    importance: Tensor     # []
    load: Tensor           # []   None where there is no noise
    router_z: Tensor       # []
    local_image: Tensor    # []   None where there is no image; so are the others of a modality
    local_text: Tensor     # []
    global_image: Tensor   # []   with its threshold
    global_text: Tensor    # []


CLASSIC = ("importance", "load")
ENTROPY = ("local_text", "global_image", "global_text")
LIMOE = (*CLASSIC, "router_z", *ENTROPY)


def auxiliary_losses(layer, modality, soft_minimum):
    """Every loss of a layer with experts, each without a weight; ``soft_minimum`` is a pair.

    Of the layer, V-MoE's two losses are taken as they are, and its router. TypeError for a modality
    that is not of integers, ValueError where it is not one for each token or not 0, 1 or -1.
    VMoEOutput, [T] int -> AuxiliaryLosses
    """
    clean, _, gates = layer.router
    _check_modality("auxiliary_losses", modality, len(clean))
    rows = [gates[modality == m] if (modality == m).any() else None for m in range(M)]
    return AuxiliaryLosses(
        layer.importance_loss, layer.load_loss, router_z_loss(clean[modality >= 0]),
        *(None if G is None else local_loss(G) for G in rows),
        *(None if G is None else thresholded_global_loss(G, S) for G, S in zip(rows, soft_minimum)))


def _check_modality(name, modality, n_tokens):
    if modality.dtype.kind not in "iu":
        raise TypeError(f"{name}: the modality must be of integers; got {modality.dtype}")
    if modality.shape != (n_tokens,) or not ((modality >= -1) & (modality < M)).all():
        raise ValueError(f"{name}: needs a modality for each of {n_tokens} tokens, 0, 1 or -1; "
                         f"got shape {modality.shape}")


def auxiliary_loss(layers, enabled=LIMOE):
    """The mean of those losses that are enabled, and there, over all layers with experts.

    ``enabled`` names fields of AuxiliaryLosses. ValueError for a name that is none, and where
    nothing is left to average. list of AuxiliaryLosses -> []
    """
    unknown = set(enabled) - set(AuxiliaryLosses._fields)
    losses = [] if unknown else [loss for losses in layers for loss in (
        getattr(losses, name) for name in enabled) if loss is not None]
    if not losses:
        raise ValueError(f"auxiliary_loss: needs some of {', '.join(AuxiliaryLosses._fields)}; "
                         f"got {', '.join(enabled) or 'none'} of {len(layers)} layers")
    return sum(losses) / len(losses)


def training_loss(contrastive, layers, enabled=LIMOE, weight=0.04):
    """The contrastive loss, and 0.04 times ``auxiliary_loss``. -> []"""
    return contrastive + weight * auxiliary_loss(layers, enabled)


# -- Who is served, and by whom ------------------------------------------------------------------

class Usage(NamedTuple):
    chosen: Any     # [M, E] int   tokens of a modality that chose an expert
    kept: Any       # [M, E] int   those of them that it had a slot for


def usage(routing, modality, n_experts):
    """Each modality's tokens, expert by expert. ValueError, TypeError as in ``auxiliary_losses``.

    Routing [T, 1], [T] int -> Usage
    """
    _check_modality("usage", modality, len(routing.expert))

    def counts(counted):
        cell = ops.where(counted, n_experts * modality + routing.expert[:, 0], M * n_experts)
        return group(cell, M * n_experts + 1)[1][:-1].reshape(M, n_experts)

    return Usage(counts(modality >= 0), counts((modality >= 0) & routing.keep[:, 0]))


def success_rate(usage):
    """The share of a modality's tokens that had a slot; 1 of one that is not there. -> [M]"""
    chosen = usage.chosen.sum(axis=1)
    return (usage.kept.sum(axis=1) + (chosen == 0)) / (chosen + (chosen == 0))


def expert_shares(usage):
    """Of a modality's tokens, the share that chose each expert; 0 if it is not there. -> [M, E]"""
    total = usage.chosen.sum(axis=1)[:, None]
    return usage.chosen / (total + (total == 0))


def experts_in_use(gates):
    """exp H(mean_i p(x_i)): so many experts, evenly used, would have this entropy. [N, E] -> []"""
    return ops.exp(-global_loss(gates))


# -- One tower -----------------------------------------------------------------------------------

class LIMoEParams(NamedTuple):
    patch: nn.LinearParams       # [P, D]
    patch_position: Tensor       # [S, D]
    word: nn.EmbeddingParams     # [V, D]
    word_position: Tensor        # [R, D]
    encoder: EncoderParams       # for both
    w_image: Tensor              # [D, Z]
    w_text: Tensor               # [D, Z]
    t: Tensor                    # []


class LIMoEOutput(NamedTuple):
    z_image: Tensor      # [B, Z]    None, as z_text, where none were given
    z_text: Tensor       # [B, Z]
    modality: Any        # [T] int
    layers: list         # VMoEOutput of each block with experts


def limoe(params, patches, words, capacity, draws=None, used=None, route=route_batch_prioritized,
          activation=ops.gelu):
    """Embeddings of images and texts by the same blocks. [B, S, P], [B, R] int -> [B, Z], [B, Z]

    Attention stays within an image or a text; in the layers with experts all tokens compete for
    ``capacity`` slots of each. What is averaged over a sequence is multiplied by its modality's
    matrix. Either of patches and words may be None. ``draws`` has noise for every layer with
    experts, [L, T, E]; in evaluation there is none.
    """
    kinds = []                                                         # modality, tokens, used
    if patches is not None:
        tokens = nn.linear(params.patch, patches) + params.patch_position          # [B, S, D]
        kinds.append((IMAGE, tokens, _everywhere(tokens)))
    if words is not None:
        tokens = nn.embedding(params.word, words) + params.word_position           # [B, R, D]
        kinds.append((TEXT, tokens, _everywhere(tokens) if used is None else used))
    out = encode(params.encoder, [tokens for _, tokens, _ in kinds], capacity, 1, draws,
                 route=route, used=None if used is None else [u for *_, u in kinds],
                 activation=activation)
    z = {m: normalized(pooled(y, u) @ (params.w_image, params.w_text)[m])
         for (m, _, u), y in zip(kinds, out.y)}                        # [B, Z] of each
    modality = ops.concatenate([((m + 1) * u - 1).reshape(-1) for m, _, u in kinds])     # [T]
    return LIMoEOutput(z.get(IMAGE), z.get(TEXT), modality, out.layers)


def _everywhere(tokens):
    return namespace(stop_gradient(tokens)).ones(tokens.shape[:-1], bool)


def pooled(y, used):
    """The mean over a sequence, padding left out; 0 for padding alone. [B, S, D] -> [B, D]"""
    n = used.sum(axis=1)[:, None]                                      # [B, 1]
    return ops.where(used[..., None], y, 0.0).sum(axis=1) / (n + (n == 0)).astype(y.dtype)


def init(rng, n_patches, patch_width, n_words, vocabulary, encoder, n_embedding):
    """Around an encoder's parameters, of ``vmoe_2021.encoder_init``."""
    D = encoder.norm.scale.shape[0]
    normal = rng.standard_normal
    return LIMoEParams(
        nn.LinearParams(normal((patch_width, D)) / math.sqrt(patch_width),
                        nn.layer_norm_init(D).shift),
        0.02 * normal((n_patches, D)), nn.EmbeddingParams(normal((vocabulary, D)) / math.sqrt(D)),
        0.02 * normal((n_words, D)), encoder,
        *normal((2, D, n_embedding)) / math.sqrt(D), namespace().asarray(math.log(10.0)))


# -- Zero-shot classification --------------------------------------------------------------------

def class_embedding(z_text):
    """The mean of the embeddings of a class's prompts, of length 1. [..., N, Z] -> [..., Z]"""
    return normalized(z_text.mean(axis=-2))


def zero_shot(z_image, z_class):
    """The class whose embedding is nearest. [B, Z], [classes, Z] -> [B] int"""
    return stop_gradient(z_image @ z_class.T).argmax(axis=-1)


# -- Recorded runs -------------------------------------------------------------------------------

def contrastive_oracle(case):
    """From what two towers pooled to the loss, and its gradients."""
    leaves = tree.map(Tensor, {**case.inputs, **case.params})
    z_image = normalized(leaves["image"] @ leaves["w_image"])
    z_text = normalized(leaves["text"] @ leaves["w_text"])
    found = scores(z_image, z_text, leaves["t"])
    loss = contrastive_loss(found)
    return tree.map(stop_gradient, {"z_image": z_image, "z_text": z_text, "scores": found,
                                    "loss": loss, "grad": grad(loss, leaves)})


def _routed(router, routing):
    """What a router found and who sits where, in the order of computation."""
    expert, slot, keep, gate = routing
    return {"noisy": router.noisy, "gates": router.gates, "expert": expert,
            "margin": choice_margin(router.noisy, expert), "score": largest_gate(router.gates, 1),
            "slot": slot, "keep": keep, "gate": gate}


def losses_oracle(case):
    """Both allocations, every auxiliary loss, and its gradient by the logits."""
    clean, modality = Tensor(case.inputs["clean"]), case.inputs["modality"]
    used, E = modality >= 0, clean.shape[1]
    noisy = noisy_logits(clean, noise_std_vmoe(E), case.inputs["draws"])
    router = Router(clean, noisy, ops.softmax(noisy))
    places, found = {}, {}
    for name, route in (("vanilla", route_vanilla), ("priority", route_batch_prioritized)):
        routing = route(stop_gradient(router.gates), case.settings["capacity"], 1, used=used)
        places = _routed(router, routing)
        counts = usage(routing, modality, E)
        score, slot, keep = (places.pop(part) for part in ("score", "slot", "keep"))
        found[name] = {**({"score": score} if name == "priority" else {}), "slot": slot,
                       "keep": keep, **counts._asdict(), "success": success_rate(counts)}
    layer = VMoEOutput(None, importance_loss(clean, used=used),
                       load_loss(clean, noisy, 1, used=used), routing, router)
    losses = auxiliary_losses(layer, modality, case.settings["soft_minimum"])
    losses = {name: loss for name, loss in losses._asdict().items() if loss is not None}
    return tree.map(stop_gradient, {
        **places, **found,
        "importance": importance(clean, used=used)[0], "load": load(clean, noisy, 1, used=used)[0],
        "loss": losses, "grad": {name: grad(loss, clean) for name, loss in losses.items()}})


def _tower_shapes():
    """Three blocks, the first without experts, in the letters of a schema; A heads of width W."""
    norm = nn.LayerNormParams("D", "D")
    attention = nn.AttentionParams("D A W", "D A W", "D A W", "A W D", "A W", "A W", "A W", "D")
    feed_forward = [(nn.LinearParams("D H", "H"), nn.LinearParams("H D", "D")),
                    *[VMoEParams("D E", "E D H", "E H", "E H D", "E D")] * 2]
    blocks = [BlockParams(norm, attention, norm, p) for p in feed_forward]
    return LIMoEParams(nn.LinearParams("P D", "D"), "S D", nn.EmbeddingParams("V D"), "R D",
                       EncoderParams(blocks, norm), "D Z", "D Z", "")


def tower_oracle(case):
    """Two layers with experts, the losses of both, and the gradients of the loss of training.

    None of the keys' biases, which softmax takes away: they are rounding.
    """
    leaves, inputs = tree.map(Tensor, case.params), case.inputs
    names = iter(tree.named_leaves(_tower_shapes()))
    params = tree.map(lambda letters: leaves[next(names)], _tower_shapes())
    out = limoe(params, inputs["patches"], inputs["words"], case.settings["capacity"],
                inputs["draws"], inputs.get("used"))
    losses = [auxiliary_losses(layer, out.modality, case.settings["soft_minimum"])
              for layer in out.layers]
    found = scores(out.z_image, out.z_text, params.t)
    contrastive = contrastive_loss(found)
    loss = training_loss(contrastive, losses)
    return tree.map(stop_gradient, {
        "modality": out.modality,
        "layer": [{"clean": layer.router.clean, **_routed(layer.router, layer.routing),
                   **usage(layer.routing, out.modality, layer.router.clean.shape[1])._asdict(),
                   "y": layer.y, "loss": of._asdict()}
                  for layer, of in zip(out.layers, losses)],
        "z_image": out.z_image, "z_text": out.z_text, "scores": found, "contrastive": contrastive,
        "auxiliary": auxiliary_loss(losses), "loss": loss,
        "grad": {name: g for name, g in grad(loss, leaves).items()
                 if not name.endswith("b_key")}})


TOWER = {"in.patches": "B S P", "in.words": "int B R", "in.draws": "L T E", "set.capacity": "",
         "set.soft_minimum": "M",
         **{f"param.{name}": letters
            for name, letters in tree.named_leaves(_tower_shapes()).items()}}
ORACLES = {
    "contrastive": ({"in.image": "B D", "in.text": "B D", "param.w_image": "D Z",
                     "param.w_text": "D Z", "param.t": ""}, contrastive_oracle),
    "losses": ({"in.clean": "T E", "in.draws": "T E", "in.modality": "int T", "set.capacity": "",
                "set.soft_minimum": "M"}, losses_oracle),
    "tower": (TOWER, tower_oracle),
    "tower_padded": ({**TOWER, "in.used": "bool B R"}, tower_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _tokens(*modalities):
    """So many tokens of each modality in a row, say (IMAGE, 12), (TEXT, 4); draws are normal."""
    def change(arrays, rng):
        arrays["in.draws"] = rng.standard_normal(arrays["in.draws"].shape)
        modality = [m for m, n in modalities for _ in range(n)]
        arrays["in.modality"] = arrays["in.modality"] + modality
    return change


def _exactly(*modalities):
    """The same with draws that are multiples of 1/64."""
    def change(arrays, rng):
        draws = 4 * arrays["in.draws"] - 2
        _tokens(*modalities)(arrays, rng)
        arrays["in.draws"] = draws
    return change


def _of(modalities, alter):
    def change(arrays, rng):
        _tokens(*modalities)(arrays, rng)
        alter(arrays)
    return change


def _ties(arrays):
    """Logits of 0 and 1 without noise: many experts are equal, and many tokens as sure."""
    arrays["in.clean"][:, :2] += 1
    arrays["in.clean"] = 1.0 * (arrays["in.clean"] > 0)
    arrays["in.draws"] *= 0


def _all_equal(arrays):
    arrays["in.clean"] *= 0
    arrays["in.draws"] *= 0


def _all_to_one(arrays):
    """Expert 1 is everybody's; the others have some load, for they are not far behind."""
    arrays["in.clean"] /= 8
    arrays["in.clean"][:, 1] += 1
    arrays["in.draws"] /= 4


def _even(arrays):
    """The noise alone decides, and importance and load are even."""
    arrays["in.clean"] *= 0


def _large(arrays):
    """Tokens are all but sure."""
    arrays["in.clean"] *= 4


def _beyond_256(arrays):
    """Experts from 256 upwards have the largest logits, by far."""
    arrays["in.clean"][:, 256:] += 4


def _pairs(arrays, rng):
    """Words and normal draws; scales of layer norms as they are trained."""
    arrays["in.draws"] = rng.standard_normal(arrays["in.draws"].shape)
    arrays["in.words"] = rng.integers(len(arrays["param.word.table"]),
                                      size=arrays["in.words"].shape)
    for name in arrays:
        if name.endswith(".scale"):
            arrays[name] = 1 + arrays[name] / 8
    arrays["param.t"] /= 4


def _padded_pairs(arrays, rng):
    _pairs(arrays, rng)
    used = arrays["in.used"]
    used[0, 2:] = used[-1, 1:] = False


def _text_of_padding(arrays, rng):
    _padded_pairs(arrays, rng)
    arrays["in.used"][1] = False


_BOTH = (IMAGE, 12), (TEXT, 4)
_MIXED = (TEXT, 1), (IMAGE, 5), (TEXT, 3), (IMAGE, 6), (TEXT, 1)
_SOME_PADDING = (IMAGE, 7), (-1, 1), (TEXT, 2), (-1, 2), (TEXT, 3), (-1, 1)
_LOSSES = dict(T=16, E=4, soft_minimum=[4.0, 3.5])
_TOWER = dict(B=3, S=4, R=3, T=21, L=2, P=3, D=6, A=2, W=3, H=5, E=4, V=6, Z=3,
              soft_minimum=[4.0, 3.5])
CASES = {
    "pairs": ("contrastive", dict(B=6, D=8, Z=5)),
    "one_pair": ("contrastive", dict(B=1, D=4, Z=3), "degenerate"),
    "one_number": ("contrastive", dict(B=4, D=3, Z=1), "degenerate"),

    "roomy": ("losses", dict(_LOSSES, capacity=16), "", _tokens(*_BOTH)),
    "overflowing": ("losses", dict(_LOSSES, capacity=3), "drops", _tokens(*_BOTH)),
    "in_any_order": ("losses", dict(_LOSSES, capacity=4), "drops", _tokens(*_MIXED)),
    "exact": ("losses", dict(_LOSSES, capacity=4), "exact, drops", _exactly(*_BOTH)),
    "threshold_met": ("losses", dict(_LOSSES, soft_minimum=[1.0, 1.5], capacity=16), "",
                      _tokens(*_BOTH)),
    "images_alone": ("losses", dict(_LOSSES, capacity=4), "drops, missing",
                     _tokens((IMAGE, 16))),
    "texts_alone": ("losses", dict(_LOSSES, capacity=4), "drops, missing",
                    _tokens((TEXT, 16))),
    "one_word": ("losses", dict(_LOSSES, capacity=16), "", _tokens((IMAGE, 15), (TEXT, 1))),
    "padding": ("losses", dict(_LOSSES, capacity=3), "padding, drops", _tokens(*_SOME_PADDING)),
    "padding_with_room": ("losses", dict(_LOSSES, capacity=16), "padding",
                          _tokens(*_SOME_PADDING)),
    "all_padding": ("losses", dict(_LOSSES, capacity=16), "padding, degenerate",
                    _tokens((-1, 16))),
    "ties": ("losses", dict(_LOSSES, capacity=3), "ties, drops", _of(_BOTH, _ties)),
    "ties_everywhere": ("losses", dict(_LOSSES, capacity=5), "ties, drops, degenerate",
                        _of(_BOTH, _all_equal)),
    "balanced": ("losses", dict(_LOSSES, capacity=16), "balanced, degenerate", _of(_BOTH, _even)),
    "all_to_one": ("losses", dict(_LOSSES, capacity=5), "drops, degenerate",
                   _of(_BOTH, _all_to_one)),
    "all_dropped": ("losses", dict(_LOSSES, capacity=0), "all dropped, drops, degenerate",
                    _tokens(*_BOTH)),
    "one_expert": ("losses", dict(_LOSSES, E=1, soft_minimum=[1.0, 1.0], capacity=9),
                   "E=1, k=E, drops, degenerate", _tokens(*_BOTH)),
    "large_logits": ("losses", dict(_LOSSES, capacity=16), "extreme", _of(_BOTH, _large)),
    "wide": ("losses", dict(T=12, E=288, soft_minimum=[288.0, 20.0], capacity=1),
             "wide, E>256, drops", _of(((IMAGE, 8), (TEXT, 4)), _beyond_256)),

    "tower": ("tower", dict(_TOWER, capacity=21), "", _pairs),
    "tower_of_few_slots": ("tower", dict(_TOWER, capacity=4), "drops", _pairs),
    "tower_all_dropped": ("tower", dict(_TOWER, capacity=0), "all dropped, drops, degenerate",
                          _pairs),
    "tower_of_one_expert": ("tower", dict(_TOWER, E=1, soft_minimum=[1.0, 1.0], capacity=12),
                            "E=1, k=E, drops, degenerate", _pairs),
    "tower_of_one_pair": ("tower", dict(_TOWER, B=1, T=7, capacity=7), "degenerate", _pairs),
    "tower_padded": ("tower_padded", dict(_TOWER, capacity=21), "padding", _padded_pairs),
    "tower_padded_overflowing": ("tower_padded", dict(_TOWER, capacity=3), "padding, drops",
                                 _padded_pairs),
    "tower_with_a_text_of_padding": ("tower_padded", dict(_TOWER, capacity=21),
                                     "padding, degenerate", _text_of_padding),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _of_gates_without_noise(layer, modality, soft_minimum):
    gates = ops.softmax(layer.router.clean)
    return auxiliary_losses(layer._replace(router=layer.router._replace(gates=gates)), modality,
                            soft_minimum)


def _with_local_image(layers, enabled=LIMOE):
    return auxiliary_loss(layers, (*enabled, "local_image"))


def _added_over_layers(layers, enabled=LIMOE):
    return sum(auxiliary_loss([layer], enabled) for layer in layers)


def _z_loss_weighed(layers, enabled=LIMOE):
    return auxiliary_loss([layer._replace(router_z=1e-3 * layer.router_z) for layer in layers],
                          enabled)


def _with_1e_8(u):
    return normalized(u, 1e-8)


def _of_other_sign(gates, soft_minimum):
    return ops.relu(math.log(soft_minimum) - global_loss(gates))


CONVENTIONS = {
    "entropies are those of the gates without noise":
        {"auxiliary_losses": "_of_gates_without_noise"},
    "the local loss of images is in use, too": {"auxiliary_loss": "_with_local_image"},
    "losses of several layers are added up, not averaged":
        {"auxiliary_loss": "_added_over_layers"},
    "the z-loss has a weight of 1e-3 of its own": {"auxiliary_loss": "_z_loss_weighed"},
    "tokens are served in their order, not by priority":
        {"route_batch_prioritized": "route_vanilla"},
    "1e-8 is added to lengths, as in the authors' later code": {"normalized": "_with_1e_8"},
    "the threshold is max(0, tau + H), as one implementation has it, which rewards collapse":
        {"thresholded_global_loss": "_of_other_sign"},
}
