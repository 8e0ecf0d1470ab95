"""Two segmentation networks, one for each kind of road, and a gate that weighs their outputs.

S. Pavlitskaya, C. Hubschneider, M. Weber, R. Moritz, F. Hueger, P. Schlicht and J. M. Zoellner,
"Using Mixture of Expert Models to Gain Insights into Semantic Segmentation", CVPR Workshops 2020
(SAIAD); not on arXiv. The network: T. Pohlen, A. Hermans, M. Mathias and B. Leibe, "Full-Resolution
Residual Networks for Semantic Segmentation in Street Scenes", CVPR 2017. arXiv:1611.08323v2.

    here       paper                meaning
    B          --                   images in a batch
    H, W       --                   height and width; channels come last
    C, O       --                   channels going in, coming out
    Z          --                   channels of the residual stream
    E          n                    experts, each a whole network
    K          --                   classes
    F          --                   channels of an expert's feature map, its gate feature
    G          --                   gates: 1, or one for each class
    y, z       y_n, z_n (FRRN)      pooling stream, residual stream
    gate       g_i                  weights of the experts' logits, one distribution over experts
    outputs    --                   of the E experts: their logits and feature maps

The experts are trained apart, each on its own kind of road, then frozen; the gate is trained on all
of the data. Both experts see every image: there is no capacity, no noise and no balance loss.

Where sources part, FRRN being its authors' code (TobyPDE/FRRN) and R the re-implementation by the
first author's group (KASTEL-MobilityLab/mixtures-of-experts):

    what is mixed       paper's figure, R: logits; probabilities: probability_mixture
    class-wise mixture  R: of raw logits, although adding a number to all logits of one expert's
                        pixel, which changes none of its probabilities, changes the mixture; of
                        logits without that freedom: centred
    the gate's input    paper: "layer 42"; R: the second unit of stage 4, the last of the encoder
    frozen experts      paper: not said; here in evaluation, with running statistics; R: parameters
                        are, but batch statistics are used and running ones move on
    max pool of z       FRRN: windows as wide as their stride; R: 3 x 3 whatever the stride
    residual unit       FRRN: nothing after its sum; R: a relu
    way back to z       FRRN: pixels repeated; R: bilinear, corners aligned; mini: bilinear
    split               FRRN: batch norm, no bias; R, mini: bias, no batch norm
    before the last     FRRN: residual units, the first of which projects 128 to 48; R: a 1 x 1
    units               convolution does
    running variance    torch: of n - 1; FRRN: the population's, in CONVENTIONS alone
    loss                R: cross-entropy; FRRN: of the 32,768 worst pixels of an image, not built
    joint fine-tuning   R: settings alone; not built
    entropy, variance   of later papers (arXiv:2509.04816v1); not built
"""
import math
from typing import Any, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import namespace

EPSILON = 1e-5          # of batch norm, torch's; the papers name none


# -- Layers: a convolution, then batch norm ------------------------------------------------------

class ConvNormParams(NamedTuple):
    w: Tensor       # [P, Q, C, O]   no bias: batch norm would take it away
    scale: Tensor   # [O]
    shift: Tensor   # [O]


class Statistics(NamedTuple):
    """Of one batch norm: of a batch, or their running means."""
    mean: Any       # [O]   an array: no gradient passes
    variance: Any   # [O]   of n - 1, as torch.nn.BatchNorm2d averages it


def he_uniform(rng, *shape):
    """Uniform within sqrt(6 / fan-in), the fan-in being all axes but the last (FRRN's code)."""
    bound = math.sqrt(6 / math.prod(shape[:-1]))
    return rng.uniform(-bound, bound, shape)


def conv_norm_init(rng, size, n_in, n_out):
    return ConvNormParams(he_uniform(rng, size, size, n_in, n_out), *nn.layer_norm_init(n_out))


def conv_norm(params, x, norm):
    """The image's size stays. ``norm`` is of ``batch_norms``. [B, H, W, C] -> [B, H, W, O]"""
    return norm(params, ops.conv2d(x, params.w, padding=params.w.shape[0] // 2))


def batch_norms(given=None):
    """The batch norms of one pass through a network, and the list of Statistics that they use.

    Training, where none are ``given``: each channel by its own batch (arXiv:1502.03167v3, Algorithm
    1). Evaluation: by those given, which come in the order in which the network asks for them.
    """
    waiting, used = iter(given or ()), []

    def norm(params, x):
        if given is None:
            used.append(batch_statistics(x))
            return ops.batch_norm(x, params.scale, params.shift, epsilon=EPSILON)
        used.append(next(waiting, None))
        if used[-1] is None:
            raise ValueError(f"batch_norms: the network has more than {len(given)} batch norms, "
                             f"for which statistics were given")
        mean, variance = used[-1]
        factor = params.scale / ops.sqrt(variance + EPSILON)           # [O]
        return x * factor + (params.shift - mean * factor)

    return norm, used


def batch_statistics(x):
    """Mean and variance of each channel. [B, H, W, C] -> Statistics"""
    x = stop_gradient(x)
    *_, W, C = x.shape
    n = x.size // C

    def mean(rows):                      # sums of long rows are quicker than of many short ones
        return rows.reshape(-1, W * C).sum(axis=0).reshape(W, C).sum(axis=0) / n

    centre = mean(x)                                                   # [C]
    centred = x - centre
    return Statistics(centre, mean(centred * centred) * n / (n - 1))


def first_statistics(statistics):
    """Running statistics before any batch, mean 0 and variance 1, for batch norms like these."""
    return tuple(Statistics(0 * mean, 0 * variance + 1) for mean, variance in statistics)


def running_statistics(running, batch, momentum=0.1):
    """The running statistics a batch later: (1 - momentum) running + momentum batch."""
    return tree.map(lambda r, b: (1 - momentum) * r + momentum * b, running, batch)


# -- Units, FRRN's Figure 2 ----------------------------------------------------------------------

class ResidualUnitParams(NamedTuple):
    first: ConvNormParams    # 3 x 3
    second: ConvNormParams   # 3 x 3
    w_project: Tensor        # [C, O]   None where C is O


class FullResolutionUnitParams(NamedTuple):
    first: ConvNormParams    # 3 x 3
    second: ConvNormParams   # 3 x 3
    residual: nn.LinearParams   # [O, Z]


def residual_unit_init(rng, n_in, n_out):
    first, second = _two_layers(rng, n_in, n_out)
    return ResidualUnitParams(first, second,
                              None if n_in == n_out else he_uniform(rng, n_in, n_out))


def full_resolution_unit_init(rng, n_in, n_out, n_residual):
    return FullResolutionUnitParams(*_two_layers(rng, n_in + n_residual, n_out),
                                    _linear_init(rng, n_out, n_residual))


def _two_layers(rng, n_in, n_out):
    return conv_norm_init(rng, 3, n_in, n_out), conv_norm_init(rng, 3, n_out, n_out)


def _linear_init(rng, n_in, n_out):
    return nn.LinearParams(he_uniform(rng, n_in, n_out), nn.layer_norm_init(n_out).shift)


def residual_unit(params, x, norm):
    """x + two layers, a relu between them and none after the sum. [B, H, W, C] -> [B, H, W, O]"""
    y = ops.relu(conv_norm(params.first, x, norm))
    y = conv_norm(params.second, y, norm)
    return y + (x if params.w_project is None else x @ params.w_project)


def full_resolution_unit(params, y, z, factor, norm, upsample):
    """y_n = G(y, z) and z_n = z + H(y, z): both streams, y being ``factor`` times smaller.

    [B, H/f, W/f, C], [B, H, W, Z] -> [B, H/f, W/f, O], [B, H, W, Z]
    """
    y = ops.concatenate([y, ops.max_pool(z, size=factor)], axis=-1)    # [B, H/f, W/f, C+Z]
    y = ops.relu(conv_norm(params.first, y, norm))                     # [B, H/f, W/f, O]
    y = ops.relu(conv_norm(params.second, y, norm))
    return y, z + upsample(nn.linear(params.residual, y), factor=factor)


# -- The expert, FRRN's Table 1 ------------------------------------------------------------------

class FRRNParams(NamedTuple):
    stem: ConvNormParams      # 5 x 5
    before: tuple             # of ResidualUnitParams
    split: Any                # ConvNormParams, 1 x 1; of FRRN-mini LinearParams
    encoder: tuple            # of stages at 1/2, 1/4, ..: tuples of FullResolutionUnitParams
    decoder: tuple            # of stages back up to 1/2
    after: tuple              # of ResidualUnitParams
    classes: nn.LinearParams  # [C, K]


class FRRNOutput(NamedTuple):
    logits: Tensor       # [B, H, W, K]
    features: Tensor     # [B, H/f, W/f, F]   of the encoder's last unit: what the gate reads
    statistics: tuple    # of Statistics, one for each batch norm


def frrn_a_init(rng, n_classes, width=48, n_residual=32):
    """FRRN-A, all 3 x 3 but for the stem; the width of its stages in multiples of ``width``."""
    stages = [(2, 3), (4, 4), (8, 2), (8, 2)], [(4, 2), (4, 2), (2, 2)]
    units = _stages(rng, width, n_residual, *([(m * width, n) for m, n in side] for side in stages))
    return _frrn_init(rng, n_classes, width, n_residual, 3, *units,
                      conv_norm_init(rng, 1, width, n_residual))


def frrn_mini_init(rng, n_classes, width=8):
    """FRRN scaled down: one unit in place of each run of them, and two scales fewer."""
    units = _stages(rng, width, width, [(2 * width, 1), (3 * width, 1)], [(2 * width, 1)])
    return _frrn_init(rng, n_classes, width, width, 1, *units, _linear_init(rng, width, width))


def _frrn_init(rng, n_classes, width, n_residual, n_units, encoder, decoder, split):
    before = tuple(residual_unit_init(rng, width, width) for _ in range(n_units))
    joined = decoder[-1][-1].second.scale.shape[0] + n_residual
    after = tuple(residual_unit_init(rng, width if i else joined, width) for i in range(n_units))
    return FRRNParams(conv_norm_init(rng, 5, 3, width), before, split, encoder, decoder, after,
                      _linear_init(rng, width, n_classes))


def _stages(rng, width, n_residual, *sides):
    """For each side, its stages: pairs of a width and a number of units."""
    made = []
    for side in sides:
        stages = []
        for n_out, n_units in side:
            stage = []
            for _ in range(n_units):
                stage.append(full_resolution_unit_init(rng, width, n_out, n_residual))
                width = n_out
            stages.append(tuple(stage))
        made.append(tuple(stages))
    return made


def frrn_a(params, x, statistics=None):
    """FRRN-A. Batch statistics, or those given. [B, H, W, 3] -> FRRNOutput

    Here and in ``frrn_mini``: ValueError for a height or width that the encoder's stages do not
    halve evenly, and for fewer statistics than there are batch norms.
    """
    return _frrn(params, x, statistics, conv_norm, ops.upsample_nearest)


def frrn_mini(params, x, statistics=None):
    """FRRN scaled down, with a bias at its split and a bilinear way back. -> FRRNOutput"""
    return _frrn(params, x, statistics, lambda split, y, norm: nn.linear(split, y),
                 ops.upsample_bilinear)


def _frrn(params, x, statistics, split, upsample):
    _check_image(x, 2 ** len(params.encoder))
    norm, used = batch_norms(statistics)
    y = ops.relu(conv_norm(params.stem, x, norm))                      # [B, H, W, C]
    for unit in params.before:
        y = residual_unit(unit, y, norm)
    z = split(params.split, y, norm)                                   # [B, H, W, Z]
    factor = 1
    for stage in params.encoder:
        y, factor = ops.max_pool(y, size=2), 2 * factor                # [B, H/f, W/f, C]
        for unit in stage:
            y, z = full_resolution_unit(unit, y, z, factor, norm, upsample)
    features = y                                                       # [B, H/f, W/f, F]
    for stage in params.decoder:
        y, factor = ops.upsample_bilinear(y, factor=2), factor // 2
        for unit in stage:
            y, z = full_resolution_unit(unit, y, z, factor, norm, upsample)
    y = ops.concatenate([ops.upsample_bilinear(y, factor=2), z], axis=-1)    # [B, H, W, C+Z]
    for unit in params.after:
        y = residual_unit(unit, y, norm)
    return FRRNOutput(nn.linear(params.classes, y), features, tuple(used))


def _check_image(x, factor):
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f"frrn: needs images [B, H, W, 3] with a height and a width that "
                         f"{factor} divides; got {x.shape}")


# -- The gate ------------------------------------------------------------------------------------

class GateParams(NamedTuple):
    """G gates, each a whole network of its own with a distribution over the experts."""
    w_conv: Tensor     # [3, 3, E*F, G]
    b_conv: Tensor     # [G]
    w_hidden: Tensor   # [G, H*W, U]
    b_hidden: Tensor   # [G, U]
    w_out: Tensor      # [G, U, E]
    b_out: Tensor      # [G, E]


def gate_init(rng, n_gates, n_experts, feature_shape, n_hidden=128):
    """For feature maps of shape [H, W, F]; one gate is the simple gate, K are the class-wise one.

    The input's size is fixed: another size of image needs another gate.
    """
    H, W, F = feature_shape
    zeros = namespace().zeros
    b_hidden, b_out = zeros((n_gates, n_hidden)), zeros((n_gates, n_experts))
    w_conv = he_uniform(rng, 3, 3, n_experts * F, n_gates)
    w_hidden, w_out = (he_uniform(rng, n_in, n_gates * n_out).reshape(n_in, n_gates, n_out)
                       .swapaxes(0, 1)
                       for n_in, n_out in ((H * W, n_hidden), (n_hidden, n_experts)))
    return GateParams(w_conv, zeros(n_gates), w_hidden, b_hidden, w_out, b_out)


def gate_logits(params, features):
    """All gates, from the experts' feature maps. E of [B, H, W, F] -> [B, E, G]

    ValueError for feature maps of several sizes, or of another size than the gate was made for.
    """
    B, H, W, _ = features[0].shape
    channels = sum(f.shape[-1] for f in features)
    n_in, n_pixels = params.w_conv.shape[2], params.w_hidden.shape[1]
    if (len({f.shape[:3] for f in features}) > 1 or channels != n_in or H * W != n_pixels
            or len(features) != params.w_out.shape[-1]):
        raise ValueError(f"gate_logits: the gate is of {params.w_out.shape[-1]} experts, "
                         f"{n_in} channels together and {n_pixels} pixels; "
                         f"got feature maps of {', '.join(str(f.shape) for f in features)}")
    joined = ops.concatenate(features, axis=-1)                        # [B, H, W, E*F]
    y = ops.relu(ops.conv2d(joined, params.w_conv, padding=1) + params.b_conv)   # [B, H, W, G]
    y = y.reshape(B, H * W, -1).transpose(2, 0, 1)                     # [G, B, H*W]
    y = ops.relu(y @ params.w_hidden + params.b_hidden[:, None])       # [G, B, U]
    return (y @ params.w_out + params.b_out[:, None]).transpose(1, 2, 0)         # [B, E, G]


def simple_gate(params, features):
    """One weight for each expert and image. E of [B, H, W, F] -> [B, E]"""
    return ops.softmax(gate_logits(params, features)[:, :, 0], axis=1)


def class_wise_gate(params, features):
    """One weight for each expert, image and class; of each class they sum to 1. -> [B, E, K]"""
    return ops.softmax(gate_logits(params, features), axis=1)


# -- The mixture ---------------------------------------------------------------------------------

class MixtureParams(NamedTuple):
    gate: GateParams
    w_extra: Tensor    # [3, 3, K, K]   None: no convolution after the sum


class MixtureOutput(NamedTuple):
    gate: Tensor       # [B, E], or class-wise [B, E, K]
    logits: Tensor     # [B, H, W, K]


def simple_mixture(params, outputs):
    """s = sum_e g_e o_e, then the extra convolution if there is one. E FRRNOutputs -> MixtureOutput

    Here and in the other mixtures: ValueError for experts whose logits differ in shape.
    """
    gate = simple_gate(params.gate, [out.features for out in outputs])           # [B, E]
    logits = weighted_sum(gate, [out.logits for out in outputs])
    return MixtureOutput(gate, extra_convolution(params.w_extra, logits))


def class_wise_mixture(params, outputs):
    """s_k = sum_e g_ek o_ek, then the extra convolution if there is one. -> MixtureOutput"""
    gate = class_wise_gate(params.gate, [out.features for out in outputs])       # [B, E, K]
    logits = weighted_sum(gate, [out.logits for out in outputs])
    return MixtureOutput(gate, extra_convolution(params.w_extra, logits))


def weighted_sum(gate, logits):
    """[B, E] or [B, E, K], E of [B, H, W, K] -> [B, H, W, K]"""
    if len({o.shape for o in logits}) > 1 or len(logits) != gate.shape[1] or (
            gate.ndim == 3 and gate.shape[2] != logits[0].shape[-1]):
        raise ValueError(f"weighted_sum: needs logits of one shape from {gate.shape[1]} experts, "
                         f"and a gate of as many classes, if any; got a gate of {gate.shape} and "
                         f"{', '.join(str(o.shape) for o in logits)}")
    B, E = gate.shape[:2]
    gate = gate.reshape(B, E, 1, 1, -1)                                # [B, E, 1, 1, 1 or K]
    return sum(gate[:, e] * o for e, o in enumerate(logits))


def extra_convolution(w, logits):
    """3 x 3 over all classes, without a bias; none where ``w`` is None. [B, H, W, K] -> the same"""
    return logits if w is None else ops.conv2d(logits, w, padding=1)


def identity_kernel(n_classes):
    """An extra convolution that changes nothing, to start from. -> [3, 3, K, K]"""
    kernel = namespace().zeros((3, 3, n_classes, n_classes))
    kernel[1, 1] = namespace().eye(n_classes)
    return kernel


def probability_mixture(gate, logits):
    """sum_e g_e softmax(o_e), the classical mixture. [B, E], E of [B, H, W, K] -> [B, H, W, K]"""
    return weighted_sum(gate, [ops.softmax(o, axis=-1) for o in logits])


def centred(logits):
    """Each pixel's logits less their mean: the same probabilities, and no freedom left."""
    return logits - logits.mean(axis=-1, keepdims=True)


def mean_ensemble(logits):
    """The mean of the experts' logits, which needs no gate. E of [B, H, W, K] -> [B, H, W, K]"""
    return sum(logits[1:], logits[0]) / len(logits)


def max_ensemble(logits):
    """The largest of the experts' logits for each pixel and class. -> [B, H, W, K]"""
    return ops.stack(logits).max(axis=0)


def segmentation_loss(logits, label, ignored=250):
    """Cross-entropy, averaged over the labelled pixels; 0 where none is. [B, H, W, K], ... -> []

    ``ignored`` marks a pixel without a label. IndexError for another label outside 0 .. K - 1.
    """
    labelled = label != ignored                                        # [B, H, W]
    losses = ops.cross_entropy(logits, label * labelled)
    return ops.where(labelled, losses, 0.0).sum() / max(int(labelled.sum()), 1)


# -- Insight: where experts and mixture disagree -------------------------------------------------

class DisagreementMasks(NamedTuple):
    """Every pixel is in one of them."""
    perfect: Any    # [B, H, W] bool   all three agree
    normal_1: Any   # the mixture is with the first expert, against the second
    normal_2: Any   # the mixture is with the second expert, against the first
    critical: Any   # the mixture is against both


def predicted(logits):
    """The class of each pixel; of equals, the first. [B, H, W, K] -> [B, H, W] int"""
    return stop_gradient(logits).argmax(axis=-1)


def disagreement_masks(first, second, mixed):
    """Of the classes predicted by two experts and their mixture. Each [B, H, W] int"""
    with_first, with_second = mixed == first, mixed == second
    return DisagreementMasks(with_first & with_second, with_first & ~with_second,
                             with_second & ~with_first, ~with_first & ~with_second)


def confusion_matrix(label, predicted, n_classes, ignored=250):
    """How many pixels of each class were taken for each. [...] int twice -> [K, K] int

    Counts of several batches add up. IndexError for a class that is not in 0 .. K - 1.
    """
    labelled = label != ignored
    label, predicted = label[labelled], predicted[labelled]
    for classes in (label, predicted):
        if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < n_classes:
            raise IndexError(f"confusion_matrix: classes must lie in 0 .. {n_classes - 1}; "
                             f"got {int(classes.min())} to {int(classes.max())}")
    counts = namespace(label).bincount(n_classes * label + predicted, minlength=n_classes ** 2)
    return counts.reshape(n_classes, n_classes)


def intersection_over_union(confusion):
    """Of each class, pixels rightly taken for it over those that are it or were taken for it.

    NaN for a class that is neither; 0 for one that is only predicted. [K, K] int -> [K]
    """
    right = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right      # [K]
    return ops.where(union > 0, right / union.clip(1, None), math.nan)


def mean_iou(confusion):
    """The mean of ``intersection_over_union`` over the classes that have one. [K, K] int -> number
    """
    iou = intersection_over_union(confusion)
    return float(iou[iou == iou].mean())


def pixel_accuracy(confusion):
    """[K, K] int -> number"""
    return float(confusion.diagonal().sum() / confusion.sum())


# -- Recorded runs -------------------------------------------------------------------------------

def _conv_norm_letters(size, n_in, n_out):
    return ConvNormParams(f"{size} {size} {n_in} {n_out}", n_out, n_out)


def _residual_unit_letters(n_in):
    return ResidualUnitParams(_conv_norm_letters("3", n_in, "C"), _conv_norm_letters("3", "C", "C"),
                              None if n_in == "C" else f"{n_in} C")


def _stage_letters(n_in, n_out, n_units):
    return tuple(FullResolutionUnitParams(
        _conv_norm_letters("3", f"{n_out if i else n_in}+Z", n_out),
        _conv_norm_letters("3", n_out, n_out), nn.LinearParams(f"{n_out} Z", "Z"))
        for i in range(n_units))


FRRN_A = FRRNParams(
    _conv_norm_letters("5", "RGB", "C"), (_residual_unit_letters("C"),) * 3,
    _conv_norm_letters("1", "C", "Z"),
    (_stage_letters("C", "2C", 3), _stage_letters("2C", "4C", 4),
     _stage_letters("4C", "8C", 2), _stage_letters("8C", "8C", 2)),
    (_stage_letters("8C", "4C", 2), _stage_letters("4C", "4C", 2), _stage_letters("4C", "2C", 2)),
    tuple(map(_residual_unit_letters, ("2C+Z", "C", "C"))), nn.LinearParams("C K", "K"))
FRRN_MINI = FRRNParams(
    _conv_norm_letters("5", "RGB", "C"), (_residual_unit_letters("C"),),
    nn.LinearParams("C Z", "Z"),
    (_stage_letters("C", "2C", 1), _stage_letters("2C", "3C", 1)), (_stage_letters("3C", "2C", 1),),
    (_residual_unit_letters("2C+Z"),), nn.LinearParams("C K", "K"))
GATE = GateParams("3 3 EF G", "G", "G HW U", "G U", "G U E", "G E")
MIXTURE = {"simple": GATE._replace(w_conv="3 3 EF 1", b_conv="1", w_hidden="1 HW U", b_hidden="1 U",
                                   w_out="1 U E", b_out="1 E"),
           "class_wise": GATE._replace(w_conv="3 3 EF K", b_conv="K", w_hidden="K HW U",
                                       b_hidden="K U", w_out="K U E", b_out="K E"),
           "w_extra": "3 3 K K"}


def _recorded(letters, case):
    """A run's parameters as Tensors, built as their letters are."""
    arrays = iter([case.params[name] for name in tree.named_leaves(letters)])
    return tree.map(lambda _: Tensor(next(arrays)), letters)


def _run(letters, **inputs):
    return {**{f"in.{name}": shape for name, shape in inputs.items()},
            **{f"param.{name}": shape for name, shape in tree.named_leaves(letters).items()}}


def _network_oracle(network, letters, case):
    """A network in training, and in evaluation after one batch; gradients of the loss.

    Of <features, cotangent>, that with respect to the image.
    """
    params, x = _recorded(letters, case), Tensor(case.inputs["x"])
    out = network(params, x)
    loss = segmentation_loss(out.logits, case.inputs["label"])
    running = running_statistics(first_statistics(out.statistics), out.statistics)
    evaluated = network(params, x, running)
    seen = (out.features * case.inputs["cotangent"]).sum()
    return tree.map(stop_gradient, {
        "features": out.features, "logits": out.logits, "loss": loss,
        "running": running, "evaluated": evaluated.logits,
        "grad": {"features": grad(seen, {"x": x}),
                 "loss": grad(loss, {"x": x, **params._asdict()})}})


def frrn_a_oracle(case):
    return _network_oracle(frrn_a, FRRN_A, case)


def frrn_mini_oracle(case):
    return _network_oracle(frrn_mini, FRRN_MINI, case)


def mixture_oracle(case):
    """Both gates, without and with the extra convolution; gradients to the experts, too."""
    params = _recorded(MIXTURE, case)
    E = len([name for name in case.inputs if name.startswith("logits.")])
    experts = [FRRNOutput(*(Tensor(case.inputs[f"{name}.{e}"]) for name in ("logits", "features")),
                          ()) for e in range(E)]
    label = case.inputs["label"]
    first, second = (predicted(out.logits) for out in experts[:2])
    features, leaves = [out.features for out in experts], {
        **{f"logits.{e}": out.logits for e, out in enumerate(experts)},
        **{f"features.{e}": out.features for e, out in enumerate(experts)}}
    found = {"gate_logits": {name: gate_logits(params[name], features)
                             for name in ("simple", "class_wise")}}
    gradients = {}
    for name, mixture in (("simple", simple_mixture), ("class_wise", class_wise_mixture)):
        for ending, w_extra in (("", None), ("_extra", params["w_extra"])):
            out = mixture(MixtureParams(params[name], w_extra), experts)
            loss = segmentation_loss(out.logits, label)
            masks = disagreement_masks(first, second, predicted(out.logits))
            confusion = confusion_matrix(label, predicted(out.logits), out.logits.shape[-1])
            found[name + ending] = {**out._asdict(), "loss": loss, "masks": masks._asdict(),
                                    "confusion": confusion}
            gradients[f"{name}{ending}.loss"] = grad(loss, {
                **leaves, name: params[name], **({"w_extra": w_extra} if ending else {})})
    logits = [out.logits for out in experts]
    return tree.map(stop_gradient, {
        **found, "mean_ensemble": mean_ensemble(logits), "max_ensemble": max_ensemble(logits),
        "probability_mixture": probability_mixture(found["simple"]["gate"], logits),
        "centred": centred(logits[0]), "grad": gradients})


NETWORK = {"x": "B H W RGB", "label": "int B H W", "cotangent": "B h w F"}
ORACLES = {
    "frrn_a": (_run(FRRN_A, **NETWORK), frrn_a_oracle),
    "frrn_mini": (_run(FRRN_MINI, **NETWORK), frrn_mini_oracle),
    "mixture": ({**_run(MIXTURE, label="int B H W"),
                 "in.features.*": "B h w F", "in.logits.*": "B H W K"}, mixture_oracle),
}


# -- Cases and conventions -----------------------------------------------------------------------

def _labels(ignored=0.0, change=None):
    """Classes, of which this share is ignored; batch norms near those that training starts from."""
    def draw(arrays, rng):
        for name, array in arrays.items():
            if name.endswith(("scale", "shift")):
                array *= 0.25
                array += name.endswith("scale")
        label, n_classes = arrays["in.label"], (
            arrays["in.logits.0"].shape if "in.logits.0" in arrays else
            arrays["param.classes.b"].shape)[-1]
        label[:] = rng.integers(n_classes, size=label.shape)
        label[rng.random(label.shape) < ignored] = 250
        if change:
            change(arrays)

    return draw


def _one_saturated(arrays):
    """Features of the first image so large that its gates hear one expert alone."""
    for name in ("in.features.0", "in.features.1"):
        arrays[name][0] *= 16


def _ties(arrays):
    """Two classes are alike to the first expert, all of them to the second."""
    arrays["in.logits.0"][..., 1] = arrays["in.logits.0"][..., 2]
    arrays["in.logits.1"][...] = 0


_A = dict(RGB=3, C=2, Z=2, K=3, F=16)
_MINI = dict(RGB=3, C=2, Z=2, K=3, F=6)
_TWO = dict(E=2, n_features=2, n_logits=2, F=2, EF=4, h=2, w=3, HW=6, U=4, H=4, W=6, K=3)

CASES = {
    "frrn_a": ("frrn_a", dict(B=1, H=32, W=48, h=2, w=3, **_A), "wide", _labels()),
    "frrn_a_some_ignored": ("frrn_a", dict(B=2, H=16, W=32, h=1, w=2, **_A), "ignored, wide",
                            _labels(ignored=0.25)),
    "frrn_a_all_ignored": ("frrn_a", dict(B=2, H=16, W=32, h=1, w=2, **_A),
                           "ignored, degenerate, wide", _labels(ignored=1.0)),
    "frrn_mini": ("frrn_mini", dict(B=2, H=8, W=12, h=2, w=3, **_MINI), "", _labels()),
    "frrn_mini_some_ignored": ("frrn_mini", dict(B=1, H=12, W=12, h=3, w=3, **_MINI), "ignored",
                               _labels(ignored=0.25)),
    "frrn_mini_all_ignored": ("frrn_mini", dict(B=2, H=8, W=8, h=2, w=2, **_MINI),
                              "ignored, degenerate", _labels(ignored=1.0)),
    "two_experts": ("mixture", dict(B=2, **_TWO), "", _labels()),
    "three_experts": ("mixture", dict(B=1, **{**_TWO, "E": 3, "n_features": 3, "n_logits": 3,
                                              "EF": 6, "K": 4}), "ignored", _labels(ignored=0.25)),
    "saturated_gate": ("mixture", dict(B=4, **_TWO), "extreme", _labels(change=_one_saturated)),
    "tied_classes": ("mixture", dict(B=2, **_TWO), "ties", _labels(change=_ties)),
    "nothing_labelled": ("mixture", dict(B=1, **_TWO), "ignored, degenerate",
                         _labels(ignored=1.0)),
}


def _mixes(name, of):
    """A mixture of something else that logits give."""
    def make(paper):
        mixture = getattr(paper, name)
        return lambda params, outputs: mixture(
            params, [out._replace(logits=of(out.logits)) for out in outputs])
    return make


def _relu_after_the_sum(paper):
    return lambda params, x, norm: ops.relu(paper.residual_unit(params, x, norm))


def _variance_of_the_population(paper):
    def batch_statistics(x):
        found, n = paper.batch_statistics(x), x.size // x.shape[-1]
        return found._replace(variance=found.variance * (n - 1) / n)
    return batch_statistics


CONVENTIONS = {
    "probabilities are mixed, not logits": {
        name: _mixes(name, ops.softmax) for name in ("simple_mixture", "class_wise_mixture")},
    "the class-wise mixture is of centred logits": {
        "class_wise_mixture": _mixes("class_wise_mixture", centred)},
    "a relu follows the sum of a residual unit": {"residual_unit": _relu_after_the_sum},
    "running variances are the population's": {"batch_statistics": _variance_of_the_population},
    "FRRN-A's way back to z is bilinear": {
        "frrn_a": lambda paper: lambda params, x, statistics=None: paper._frrn(
            params, x, statistics, paper.conv_norm, ops.upsample_bilinear)},
}
