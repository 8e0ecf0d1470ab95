"""Multi-gate mixture-of-experts: tasks that share their experts, each through a gate of its own.

J. Ma, Z. Zhao, X. Yi, J. Chen, L. Hong and E. H. Chi, "Modeling Task Relationships in Multi-task
Learning with Multi-gate Mixture-of-Experts", KDD 2018, pages 1930-1939; not on arXiv. The batch
norm of torch-rechub: S. Ioffe and C. Szegedy, arXiv:1502.03167v3, Algorithm 1.

    here       paper         meaning
    B          --            cases in a batch
    D          d             width of an input x
    E          n             experts, of index i
    K          K             tasks, of index k
    H, U       --            width of what an expert gives, of a tower's hidden layer
    experts    f_i           networks with a relu after every layer, run once for all tasks
    gate       g^k(x)        softmax of W_gk x; the paper calls it logits
    mixed      f^k(x)        what tower k sees
    towers     h^k           one for each task: hidden layers with relu, then a linear map to 1
    y          y_k           outputs; of a binary task a logit
    w, p, c    w_k, p, c     of generated tasks: their vectors, the cosine between these, a scale
    m          m             sinusoids of a generated label
    --         n, h          of layers: networks side by side, whose weights are stacked

There may be more axes before all others, of parameters and inputs alike: runs that are trained side
by side. Every expert sees every case: no noise, no capacity, no balance loss.

Where sources part; DeepCTR-Torch is 0.3.0, torch-rechub 0.9.0, keras-mmoe drawbridge/keras-mmoe:

    gate             text: W_gk x. keras-mmoe adds a bias: give x a 1. DeepCTR-Torch, as its
                     default: an MLP before it, gate_mlp_deepctr; with an empty list, the text's.
                     torch-rechub: bias and batch norm on the logits
    batch norm       text: none. torch-rechub, after every linear map but the last:
                     mmoe_torch_rechub
    tower            text: "single-layer", of size 8; here, as in all three, the linear map to one
                     output follows. DeepCTR-Torch's has a bias in its PredictionLayer
    loss             text: not said; here, as in keras-mmoe, of means over the batch, added up.
                     DeepCTR-Torch: of sums over the batch; torch-rechub: their mean over tasks
    initialisation   text: not said; here Glorot's. DeepCTR-Torch: hidden weights from N(0, 1e-8),
                     so that gates begin even; torch-rechub: torch's
    noise of labels  text: N(0, 0.01), of variance 0.01. Google Research's generator: SD 0.01
    m, alpha, beta   text: not given. Google Research: m = 10, alpha_i = i, beta_i = (i - 1)^2;
                     keras-mmoe: m = 5, from N(0, 1)
    numbers          DeepCTR-Torch refuses 1 task and 1 expert; here both are allowed
    dropout of gates text: none. Zhao et al., "Recommending What Video to Watch Next" (RecSys 2019):
                     gate_dropout, against gates that settle on one expert
"""
import math
from functools import partial
from typing import Any, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import namespace
from minimoe.nn import LinearParams

EPSILON = 1e-5          # of batch norm, torch's


# -- Networks side by side -----------------------------------------------------------------------

def layers_init(rng, n_networks, widths):
    """Glorot and Bengio's uniform weights (AISTATS 2010, Eq. 16), biases of 0; from width to width.

    ValueError where a number is below 1. -> tuple of LinearParams, [n, D, H] and [n, H]
    """
    if min(n_networks, *widths) < 1:
        raise ValueError(f"layers_init: needs at least one network, and widths from 1; "
                         f"got {n_networks} and {tuple(widths)}")
    return tuple(LinearParams(_glorot(rng, n_networks, n_in, n_out),
                              nn.layer_norm_init((n_networks, n_out)).shift)
                 for n_in, n_out in zip(widths, widths[1:]))


def _glorot(rng, n, n_in, n_out):
    bound = math.sqrt(6 / (n_in + n_out))
    return rng.uniform(-bound, bound, (n, n_in, n_out))


def linear(layer, x):
    """One linear map for each network. [..., n or 1, B, D] -> [..., n, B, H]"""
    w, b = layer
    return x @ w + b.reshape(*b.shape[:-1], 1, b.shape[-1])


def relu_network(layers, x):
    """A relu after every layer. [..., n or 1, B, D] -> [..., n, B, H]"""
    for layer in layers:
        x = ops.relu(linear(layer, x))
    return x


def towers(layers, mixed):
    """h^k of Eqs. (1) and (6): relu but after the last layer. [..., K or 1, B, H] -> [..., K, B]"""
    *hidden, last = layers
    y = linear(last, relu_network(hidden, mixed))                      # [..., K, B, 1]
    return y.reshape(*y.shape[:-1])


# -- Shared bottom, Section 3.1 ------------------------------------------------------------------

class SharedBottomParams(NamedTuple):
    bottom: tuple    # of LinearParams: [1, D, H], [1, H]
    towers: tuple    # of LinearParams: [K, H, U], [K, U]; the last [K, U, 1], [K, 1]


def shared_bottom_init(rng, n_tasks, width, hidden, tower_hidden):
    """``hidden``: the widths of the bottom's layers; ``tower_hidden``: of a tower's hidden layers.

    With one task it is a network for that task alone.
    """
    return SharedBottomParams(layers_init(rng, 1, (width, *hidden)),
                              layers_init(rng, n_tasks, (hidden[-1], *tower_hidden, 1)))


def shared_bottom(params, x):
    """y_k = h^k(f(x)), Eq. (1). [..., B, D] -> [..., K, B]"""
    _check("shared_bottom", x, params.bottom)
    return towers(params.towers, relu_network(params.bottom, _for_each(x)))


def _for_each(x):
    """An axis for networks. [..., B, D] -> [..., 1, B, D]"""
    return x.reshape(*x.shape[:-2], 1, *x.shape[-2:])


def _check(name, x, layers):
    D = layers[0].w.shape[-2]
    if x.ndim < 2 or x.shape[-1] != D:
        raise ValueError(f"{name}: x must be [..., B, {D}]; got {x.shape}")


# -- Generated tasks, Section 3.2 ----------------------------------------------------------------

def orthonormal_pair(draw):
    """u_1 and u_2, unit vectors at a right angle, of two vectors by Gram and Schmidt. Step 1

    ValueError for D < 2, where there is no such pair. [..., 2, D] -> [..., 2, D]
    """
    if draw.ndim < 2 or draw.shape[-2] != 2 or draw.shape[-1] < 2:
        raise ValueError(f"orthonormal_pair: needs two vectors, [..., 2, D] of D from 2; "
                         f"got {draw.shape}")
    first = _unit(draw[..., :1, :])                                    # [..., 1, D]
    second = draw[..., 1:, :]
    for _ in range(2):         # once leaves a rest where the two were nearly parallel
        second = _unit(second - (second * first).sum(axis=-1, keepdims=True) * first)
    return ops.concatenate([first, second], axis=-2)


def _unit(v):
    return v / ops.sqrt((v * v).sum(axis=-1, keepdims=True))


def task_vectors(u, p, c=1.0):
    """w_1 = c u_1 and w_2 = c (p u_1 + sqrt(1 - p^2) u_2), Eq. (2); their cosine is p.

    ValueError for p outside [-1, 1]. [..., 2, D] -> [..., 2, D]
    """
    if not -1 <= p <= 1:
        raise ValueError(f"task_vectors: p must lie in [-1, 1]; got {p}")
    first, second = u[..., :1, :], u[..., 1:, :]
    return c * ops.concatenate([first, p * first + math.sqrt(1 - p * p) * second], axis=-2)


def labels(x, w, alpha, beta, noise):
    """y_k = w_k x + sum_i sin(alpha_i w_k x + beta_i) + epsilon_k, Eqs. (3) and (4).

    ``alpha`` and ``beta`` are sequences of m numbers, the same for all tasks, and ``noise`` a draw
    of epsilon: from N(0, 0.01), for each task its own. x is a draw from N(0, I).
    [..., B, D], [..., K, D], [..., K, B] -> [..., K, B]
    """
    z = w @ x.swapaxes(-1, -2)                                         # [..., K, B]
    if noise.shape != z.shape:
        raise ValueError(f"labels: noise must be {z.shape}; got {noise.shape}")
    return z + sum(ops.sin(a * z + b) for a, b in zip(alpha, beta, strict=True)) + noise


# -- One gate, Section 4.1 -----------------------------------------------------------------------

class MMoEParams(NamedTuple):
    """Of OMoE, where there is one gate, and of MMoE, where there is one for each task."""
    experts: tuple   # of LinearParams: [E, D, H], [E, H]
    w_gate: Tensor   # [1 or K, D, E]   no bias
    towers: tuple    # of LinearParams: [K, H, U], [K, U]; the last [K, U, 1], [K, 1]


class MMoEOutput(NamedTuple):
    experts: Tensor  # [..., E, B, H]
    gate: Tensor     # [..., 1 or K, B, E]
    mixed: Tensor    # [..., 1 or K, B, H]
    y: Tensor        # [..., K, B]


def mmoe_init(rng, n_tasks, n_experts, width, hidden, tower_hidden):
    """``hidden``: the widths of an expert's layers; ``tower_hidden``: of a tower's hidden ones."""
    return MMoEParams(layers_init(rng, n_experts, (width, *hidden)),
                      layers_init(rng, n_tasks, (width, n_experts))[0].w,
                      layers_init(rng, n_tasks, (hidden[-1], *tower_hidden, 1)))


def omoe_init(rng, n_tasks, n_experts, width, hidden, tower_hidden):
    """As ``mmoe_init``, with one gate."""
    params = mmoe_init(rng, n_tasks, n_experts, width, hidden, tower_hidden)
    return params._replace(w_gate=params.w_gate[:1])


def mixture(gate, experts):
    """sum_i g_i(x) f_i(x), Eqs. (5) and (7), for each gate.

    [..., K, B, E], [..., E, B, H] -> [..., K, B, H]
    """
    by_case = gate.swapaxes(-3, -2) @ experts.swapaxes(-3, -2)         # [..., B, K, H]
    return by_case.swapaxes(-3, -2)


def omoe(params, x):
    """y_k = h^k(f(x)), f being the mixture of Eq. (5) by one gate for all tasks: the OMoE model.

    ValueError for a number of gates other than one. [..., B, D] -> MMoEOutput
    """
    _check("omoe", x, params.experts)
    if params.w_gate.shape[-3] != 1:
        raise ValueError(f"omoe: needs one gate, [..., 1, D, E]; got {params.w_gate.shape}")
    return _gated(params, gate(params.w_gate, x), x)


def _gated(params, gate, x):
    experts = relu_network(params.experts, _for_each(x))               # [..., E, B, H]
    mixed = mixture(gate, experts)                                     # [..., 1 or K, B, H]
    return MMoEOutput(experts, gate, mixed, towers(params.towers, mixed))


# -- A gate for each task, Section 4.2 -----------------------------------------------------------

def gate(w_gate, x):
    """g^k(x) = softmax(W_gk x), Eq. (8). [..., K, D, E], [..., B, D] -> [..., K, B, E]"""
    return ops.softmax(_for_each(x) @ w_gate, axis=-1)


def mmoe(params, x):
    """y_k = h^k(f^k(x)), Eq. (6): every task mixes the experts by its own gate.

    ValueError where gates and towers differ in number. [..., B, D] -> MMoEOutput
    """
    _check("mmoe", x, params.experts)
    if params.w_gate.shape[-3] != params.towers[0].w.shape[-3]:
        raise ValueError(f"mmoe: needs a gate for each of {params.towers[0].w.shape[-3]} towers; "
                         f"got {params.w_gate.shape}")
    return _gated(params, gate(params.w_gate, x), x)


def gate_dropout(gate, keep):
    """Experts left out at random, the rest made to sum to 1 (Zhao et al., 2019); in training.

    ``keep`` is the draw: True with probability 0.9. Where it leaves none, of which the text says
    nothing, the gate stays as it was. [..., B, E], bool -> the same
    """
    kept = keep | ~keep.any(axis=-1, keepdims=True)
    left = ops.where(kept, gate, 0.0)
    return left / left.sum(axis=-1, keepdims=True)


# -- Losses --------------------------------------------------------------------------------------

def squared_errors(y, target):
    """Of each task and case. ValueError for shapes that differ, which would broadcast.

    [..., K, B] twice -> the same
    """
    _check_alike("squared_errors", y, target)
    return ops.square(y - target)


def logistic_losses(y, label):
    """-log of the probability that the logit gives the label, 0 or 1. [..., K, B] twice -> the same
    """
    _check_alike("logistic_losses", y, label)
    return ops.softplus(y) - label * y


def _check_alike(name, y, target):
    if y.shape != target.shape:
        raise ValueError(f"{name}: outputs and labels must have one shape; "
                         f"got {y.shape} and {target.shape}")


def multi_task_loss(losses, labelled=None, task_weights=1.0):
    """sum_k lambda_k times the mean of task k's losses over the cases labelled for it.

    ``labelled`` is None for all, or [..., K, B] bool; a task without any case adds 0, and its gate
    and tower get a gradient of exactly 0. The text names no weights. [..., K, B] -> [...]
    """
    if labelled is None:
        means = losses.mean(axis=-1)                                   # [..., K]
    else:
        _check_alike("multi_task_loss", losses, labelled)
        n = labelled.sum(axis=-1).clip(1, None)                        # [..., K]
        means = ops.where(labelled, losses, 0.0).sum(axis=-1) / n
    return (task_weights * means).sum(axis=-1)


# -- Sizes, Section 5.1 --------------------------------------------------------------------------

def counted_parameters(n_tasks, n_experts, width, hidden, tower_hidden):
    """D E H + K H U, the paper's count: without gates, biases and the maps to one output."""
    return width * n_experts * hidden + n_tasks * hidden * tower_hidden


def matched_width(n_tasks, n_experts, width, hidden, tower_hidden):
    """The width of a shared bottom of about as many parameters: 113 for the paper's sizes."""
    return round(counted_parameters(n_tasks, n_experts, width, hidden, tower_hidden)
                 / (width + n_tasks * tower_hidden))


# -- Baselines, Section 6.1 ----------------------------------------------------------------------

def l2_constrained_penalty(first, second, strength):
    """alpha || theta_1 - theta_2 ||^2, added to the losses of two networks built alike. -> []"""
    return strength * sum(tree.leaves(tree.map(lambda a, b: ops.square(a - b).sum(),
                                               first, second)))


def cross_stitch(alpha, x):
    """Row k of alpha times the hidden layers of the K networks, alpha trainable.

    [K, K], [K, ..., H] -> [K, ..., H]
    """
    return (alpha @ x.reshape(len(x), -1)).reshape(*x.shape)


def tucker_weights(core, u_in, u_out, u_task):
    """W = sum_abc S_abc U_1[:, a] o U_2[:, b] o U_3[:, c]: a layer's weights for all tasks.

    [R, S, T], [D, R], [H, S], [K, T] -> [D, H, K]
    """
    return ops.einsum("abc,da,hb,kc->dhk", core, u_in, u_out, u_task)


# -- DeepCTR-Torch -------------------------------------------------------------------------------

class MMoEDeepCTRParams(NamedTuple):
    experts: tuple   # as in MMoEParams
    gate_mlp: tuple  # of LinearParams: [K, D, G], [K, G]
    w_gate: Tensor   # [K, G, E]
    towers: tuple    # as in MMoEParams


def gate_mlp_deepctr(gate_mlp, w_gate, x):
    """Gates that see a relu network's outputs in place of x. [..., B, D] -> [..., K, B, E]"""
    return ops.softmax(relu_network(gate_mlp, _for_each(x)) @ w_gate, axis=-1)


def mmoe_deepctr(params, x):
    """MMoE with the gates of DeepCTR-Torch's default; of a binary task, that gives sigmoid(y).

    [..., B, D] -> MMoEOutput
    """
    _check("mmoe_deepctr", x, params.experts)
    return _gated(params, gate_mlp_deepctr(params.gate_mlp, params.w_gate, x), x)


# -- torch-rechub --------------------------------------------------------------------------------

class NormedParams(NamedTuple):
    """Linear maps side by side, each followed by batch norm."""
    w: Tensor       # [n, D, H]
    b: Tensor       # [n, H]
    scale: Tensor   # [n, H]
    shift: Tensor   # [n, H]


class Statistics(NamedTuple):
    """Of one batch norm; arrays, through which no gradient passes."""
    mean: Any       # [n, H]
    variance: Any   # [n, H]   of n - 1, as torch.nn.BatchNorm1d averages it


class MMoERechubParams(NamedTuple):
    experts: tuple       # of NormedParams: w [E, D, H]
    gates: NormedParams  # w [K, D, E]
    towers: tuple        # of NormedParams: w [K, H, U]
    out: LinearParams    # [K, U, 1], [K, 1]


class MMoERechubOutput(NamedTuple):
    output: MMoEOutput
    statistics: MMoERechubParams   # of the batch: Statistics in place of NormedParams, None of out


def normed(params, x, running):
    """A linear map, then batch norm: by the batch, or by the statistics given in evaluation.

    ValueError, in training, for a batch of one. [n or 1, B, D] -> [n, B, H], Statistics
    """
    y = linear(LinearParams(params.w, params.b), x)                    # [n, B, H]
    n, B, H = y.shape
    rows = y.swapaxes(0, 1).reshape(B, n * H)                          # [B, n*H]
    scale, shift = params.scale.reshape(n * H), params.shift.reshape(n * H)
    if running is not None:
        mean, variance = (a.reshape(n * H) for a in running)
        rows = (rows - mean) / (variance + EPSILON) ** 0.5 * scale + shift
    else:
        array = stop_gradient(rows)
        rows = ops.batch_norm(rows, scale, shift, epsilon=EPSILON)
        running = Statistics(array.mean(axis=0).reshape(n, H),
                             ops.var(array, axis=0, ddof=1).reshape(n, H))
    return rows.reshape(B, n, H).swapaxes(0, 1), running


def mmoe_torch_rechub(params, x, running=None):
    """MMoE with batch norm after every linear map but the last, on the gates' logits, too.

    In training; in evaluation, where ``running`` statistics are given. Of a binary task,
    torch-rechub gives sigmoid(y). [B, D] -> MMoERechubOutput
    """
    _check("mmoe_torch_rechub", x, params.experts)
    given = running or MMoERechubParams((None,) * len(params.experts), None,
                                        (None,) * len(params.towers), None)

    def relu_layers(layers, x, running):
        used = []
        for layer, statistics in zip(layers, running, strict=True):
            x, batch = normed(layer, x, statistics)
            x = ops.relu(x)
            used.append(batch)
        return x, tuple(used)

    experts, of_experts = relu_layers(params.experts, _for_each(x), given.experts)
    logits, of_gates = normed(params.gates, _for_each(x), given.gates)          # [K, B, E]
    gate = ops.softmax(logits, axis=-1)
    mixed = mixture(gate, experts)                                              # [K, B, H]
    hidden, of_towers = relu_layers(params.towers, mixed, given.towers)
    return MMoERechubOutput(MMoEOutput(experts, gate, mixed, towers((params.out,), hidden)),
                            MMoERechubParams(of_experts, of_gates, of_towers, None))


def running_statistics(running, batch, momentum=0.1):
    """The running statistics a batch later: (1 - momentum) running + momentum batch."""
    return tree.map(lambda r, b: (1 - momentum) * r + momentum * b, running, batch)


def first_statistics(batch):
    """Running statistics before any batch, mean 0 and variance 1, for batch norms like these."""
    def first(part):
        if isinstance(part, Statistics):
            return Statistics(0 * part.mean, 0 * part.variance + 1)
        return part and tuple(map(first, part))
    return MMoERechubParams(*map(first, batch))


# -- Recorded runs -------------------------------------------------------------------------------

def _layers(n, *widths):
    return tuple(LinearParams(f"{n} {n_in} {n_out}", f"{n} {n_out}")
                 for n_in, n_out in zip(widths, widths[1:]))


def _normed(n, n_in, n_out):
    return NormedParams(f"{n} {n_in} {n_out}", *[f"{n} {n_out}"] * 3)


TOWERS = _layers("K", "H", "U", "1")
ONE_LAYER = MMoEParams(_layers("E", "D", "H"), "K D E", TOWERS)
TWO_LAYERS = MMoEParams(_layers("E", "D", "J", "H"), "K D E", TOWERS)
BOTTOM = SharedBottomParams(_layers("1", "D", "H"), TOWERS)
GATE_MLP = MMoEDeepCTRParams(_layers("E", "D", "J", "H"), _layers("K", "D", "G"), "K G E", TOWERS)
RECHUB = MMoERechubParams((_normed("E", "D", "J"), _normed("E", "J", "H")), _normed("K", "D", "E"),
                          (_normed("K", "H", "U"),), LinearParams("K U 1", "K 1"))
MODELS = {"bottom": SharedBottomParams(_layers("1", "D", "W"), _layers("K", "W", "U", "1")),
          "one_gate": "1 D E", "moe": ONE_LAYER}
BASELINES = {"first": BOTTOM, "second": BOTTOM, "alpha": "K K", "core": "R S T", "u_in": "D R",
             "u_out": "H S", "u_task": "K T"}


def _recorded(letters, case):
    """A run's parameters as Tensors, built as their letters are."""
    names = iter(tree.named_leaves(letters))
    return tree.map(lambda _: Tensor(case.params[next(names)]), letters)


def _run(letters, **keys):
    return {**keys, **{f"param.{name}": shape
                       for name, shape in tree.named_leaves(letters).items()}}


def models_oracle(case):
    """The paper's three models on one batch, some labels missing; and dropout of the gates.

    Each by two losses: squared errors, and logistic ones of labels that are above 0.
    """
    inputs, params, x = case.inputs, _recorded(MODELS, case), Tensor(case.inputs["x"])
    moe = params["moe"]
    one_gate = moe._replace(w_gate=params["one_gate"])

    def found(y, leaves):
        label = (inputs["target"] > 0).astype(y.dtype)
        losses = {name: multi_task_loss(values, inputs["labelled"], inputs["task_weights"])
                  for name, values in (("squared", squared_errors(y, inputs["target"])),
                                       ("logistic", logistic_losses(y, label)))}
        return {"y": y, **losses, "grad": {name: grad(loss, {"x": x, **leaves._asdict()})
                                           for name, loss in losses.items()}}

    outputs = {"omoe": (omoe(one_gate, x), one_gate), "mmoe": (mmoe(moe, x), moe)}
    dropped = gate_dropout(outputs["mmoe"][0].gate, inputs["keep"])
    return tree.map(stop_gradient, {
        "bottom": found(shared_bottom(params["bottom"], x), params["bottom"]),
        **{name: {**out._asdict(), **found(out.y, leaves)}
           for name, (out, leaves) in outputs.items()},
        "dropped": {"gate": dropped,
                    "grad": grad((dropped * inputs["cotangent"]).sum(), moe.w_gate)}})


def generated_tasks_oracle(case):
    """Vectors and labels of two generated tasks."""
    settings = case.settings
    u = orthonormal_pair(case.inputs["draw"])
    w = task_vectors(u, settings["p"], settings["c"])
    return {"u": u, "w": w, "y": labels(case.inputs["x"], w, settings["alpha"], settings["beta"],
                                        case.inputs["noise"])}


def baselines_oracle(case):
    """What the three baselines have of their own, each with its gradients."""
    params, x = _recorded(BASELINES, case), Tensor(case.inputs["x"])
    of_networks, factors = params["first"], [params[key] for key in list(BASELINES)[3:]]
    penalty = l2_constrained_penalty(of_networks, params["second"], case.settings["strength"])
    stitched, weights = cross_stitch(params["alpha"], x), tucker_weights(*factors)
    return tree.map(stop_gradient, {
        "penalty": penalty, "stitched": stitched, "weights": weights,
        "grad": {"penalty": grad(penalty, {key: params[key] for key in ("first", "second")}),
                 "stitched": grad((stitched * case.inputs["stitched_cotangent"]).sum(),
                                  {"alpha": params["alpha"], "x": x}),
                 "weights": grad((weights * case.inputs["weights_cotangent"]).sum(), factors)}})


def _predictions(y, case):
    """What the packages give: probabilities of binary tasks, and the losses of all. [K, B] each"""
    binary = namespace(case.inputs["target"]).asarray(case.settings["binary"])[:, None] == 1
    target = case.inputs["target"]
    return (ops.where(binary, ops.sigmoid(y), y),
            ops.where(binary, logistic_losses(y, target), squared_errors(y, target)))


def _deepctr_oracle(letters, model, case):
    """A model of DeepCTR-Torch: every output, its loss summed over batch and tasks, gradients."""
    params, x = _recorded(letters, case), Tensor(case.inputs["x"])
    out = model(params, x)
    parts = out._asdict() if isinstance(out, MMoEOutput) else {"y": out}
    predicted, losses = _predictions(parts.pop("y"), case)
    loss = losses.sum()
    return tree.map(stop_gradient, {**parts, "predicted": predicted, "loss": loss,
                                    "grad": {"loss": grad(loss, {"x": x, **params._asdict()})}})


def torch_rechub_oracle(case):
    """torch-rechub's model in training, and in evaluation one batch later.

    No gradients of the biases before a batch norm, which takes them away: they are rounding.
    """
    params, x = _recorded(RECHUB, case), Tensor(case.inputs["x"])
    out, batch = mmoe_torch_rechub(params, x)
    predicted, losses = _predictions(out.y, case)
    loss = multi_task_loss(losses) / len(losses)
    running = running_statistics(first_statistics(batch), batch)
    evaluated = mmoe_torch_rechub(params, x, running).output
    gradients = tree.named_leaves(grad(loss, {"x": x, **params._asdict()}))
    return tree.map(stop_gradient, {
        "experts": out.experts, "gate": out.gate, "mixed": out.mixed, "predicted": predicted,
        "loss": loss, "running": running._asdict(),
        "evaluated": _predictions(evaluated.y, case)[0],
        "grad": {"loss": {name: g for name, g in gradients.items()
                          if name == "out.b" or not name.endswith(".b")}}})


PACKAGES = {"in.x": "B D", "in.target": "K B", "set.binary": "K"}
ORACLES = {
    "models": (_run(MODELS, **{
        "in.x": "B D", "in.target": "K B", "in.labelled": "bool K B", "in.task_weights": "K",
        "in.keep": "bool K B E", "in.cotangent": "K B E"}), models_oracle),
    "generated_tasks": ({"in.draw": "2 D", "in.x": "B D", "in.noise": "2 B", "set.p": "",
                         "set.c": "", "set.alpha": "M", "set.beta": "M"}, generated_tasks_oracle),
    "baselines": (_run(BASELINES, **{
        "in.x": "K B H", "in.stitched_cotangent": "K B H", "in.weights_cotangent": "D H K",
        "set.strength": ""}), baselines_oracle),
    **{name: (_run(letters, **PACKAGES), partial(_deepctr_oracle, letters, model))
       for name, letters, model in (("shared_bottom", BOTTOM, shared_bottom),
                                    ("mmoe", TWO_LAYERS, mmoe),
                                    ("deepctr", GATE_MLP, mmoe_deepctr))},
    "torch_rechub": (_run(RECHUB, **PACKAGES), torch_rechub_oracle),
}


# -- Cases ---------------------------------------------------------------------------------------

def _training(missing=0.0, *alter):
    """Some labels missing, some experts dropped from gates; weights of tasks are positive."""
    def change(arrays, rng):
        arrays["in.labelled"] = rng.random(arrays["in.labelled"].shape) >= missing
        arrays["in.keep"] = rng.random(arrays["in.keep"].shape) < 0.75
        arrays["in.task_weights"] = abs(arrays["in.task_weights"])
        for one in alter:
            one(arrays)
    return change


def _task_without_labels(arrays):
    arrays["in.labelled"][0] = False


def _nothing_kept(arrays):
    """All experts dropped: the gates stay as they are."""
    arrays["in.keep"][:] = False


def _saturated(arrays):
    """Each gate all but settled on one expert."""
    arrays["param.moe.w_gate"] *= 16
    arrays["param.one_gate"] *= 16


def _even_gates(arrays):
    arrays["param.moe.w_gate"] *= 0
    arrays["param.one_gate"] *= 0


def _normal_draw(near=None):
    """Two vectors; with ``near`` the second is the first and so much of another."""
    def change(arrays, rng):
        draw = rng.standard_normal(arrays["in.draw"].shape)
        if near is not None:
            draw[1] = draw[0] + near * draw[1]
        arrays["in.draw"], arrays["in.noise"] = draw, arrays["in.noise"] / 8
    return change


def _labels(binary):
    """Labels of 0 and 1 for the tasks that are binary."""
    def change(arrays, rng):
        for k, is_binary in enumerate(binary):
            if is_binary:
                arrays["in.target"][k] = rng.integers(2, size=arrays["in.target"][k].shape)
    return change


def _package(kind, binary, **sizes):
    return kind, dict(K=len(binary), binary=binary, **sizes), "", _labels(binary)


_MODELS = dict(B=7, D=5, E=4, K=2, H=4, U=3, W=6)
_FOUR = dict(alpha=[1.0, 2.0, 3.0, 4.0], beta=[0.0, 1.0, 4.0, 9.0])
_BASELINES = dict(K=2, B=5, D=4, H=3, U=2, R=2, S=3, T=2)
_SMALL = dict(D=5, H=4, U=3)
CASES = {
    "two_tasks": ("models", dict(_MODELS), "", _training()),
    "three_tasks_missing_labels": ("models", dict(_MODELS, K=3), "missing", _training(0.4)),
    "a_task_without_labels": ("models", dict(_MODELS), "missing, degenerate",
                              _training(0.2, _task_without_labels)),
    "no_labels": ("models", dict(_MODELS), "missing, degenerate", _training(1.0)),
    "exact": ("models", dict(_MODELS), "exact", _training()),
    "nothing_kept": ("models", dict(_MODELS), "degenerate", _training(0.0, _nothing_kept)),
    "saturated_gates": ("models", dict(_MODELS), "extreme", _training(0.0, _saturated)),
    "even_gates": ("models", dict(_MODELS), "degenerate", _training(0.0, _even_gates)),
    "one_datum": ("models", dict(_MODELS, B=1), "one datum, degenerate", _training()),
    "one_expert": ("models", dict(_MODELS, E=1), "E=1, degenerate", _training()),
    "one_task": ("models", dict(_MODELS, K=1), "degenerate", _training()),
    "one_expert_and_task": ("models", dict(_MODELS, E=1, K=1), "E=1, degenerate", _training()),
    "wide": ("models", dict(_MODELS, B=3, D=3, E=288, H=2), "wide", _training()),

    "half_related": ("generated_tasks", dict(_FOUR, B=12, D=6, p=0.5, c=1.0), "",
                     _normal_draw()),
    "unrelated": ("generated_tasks", dict(_FOUR, B=8, D=5, p=0.0, c=0.5), "", _normal_draw()),
    "one_task_twice": ("generated_tasks", dict(_FOUR, B=6, D=5, p=1.0, c=0.25), "degenerate",
                       _normal_draw()),
    "opposite": ("generated_tasks", dict(B=6, D=2, p=-1.0, c=2.0, alpha=[1.0], beta=[0.5]),
                 "degenerate", _normal_draw()),
    "nearly_parallel": ("generated_tasks", dict(_FOUR, B=4, D=8, p=-0.25, c=1.0), "degenerate",
                        _normal_draw(2**-4)),
    "one_input": ("generated_tasks", dict(_FOUR, B=1, D=6, p=0.5, c=1.0), "one datum",
                  _normal_draw()),

    "baselines_of_two_tasks": ("baselines", dict(_BASELINES, strength=0.25)),
    "baselines_of_three_tasks": ("baselines", dict(_BASELINES, K=3, D=3, H=5, U=3, B=2, R=3, S=2,
                                                   strength=1.0)),
    "baselines_of_rank_one": ("baselines", dict(_BASELINES, B=1, R=1, S=1, T=1, strength=2.0),
                              "degenerate"),

    "shared_bottom": _package("shared_bottom", [1, 1], B=7, **_SMALL),
    "shared_bottom_mixed": _package("shared_bottom", [0, 1, 0], B=6, **_SMALL),
    "shared_bottom_of_one_datum": _package("shared_bottom", [0, 1], B=1, **_SMALL),
    "mmoe": _package("mmoe", [1, 1], B=7, E=3, J=6, **_SMALL),
    "mmoe_mixed": _package("mmoe", [0, 1, 0], B=6, E=4, J=3, **_SMALL),
    "mmoe_of_one_datum": _package("mmoe", [0, 1], B=1, E=2, J=3, **_SMALL),
    "mmoe_of_many_experts": _package("mmoe", [0, 1], B=3, E=288, J=2, D=3, H=2, U=3),
    "gates_after_a_network": _package("deepctr", [1, 1], B=7, E=3, J=6, G=4, **_SMALL),
    "gates_after_a_network_of_regression": _package("deepctr", [0, 0], B=6, E=4, J=3, G=5,
                                                    **_SMALL),
    "gates_after_a_network_of_one_datum": _package("deepctr", [0, 1], B=1, E=2, J=3, G=2,
                                                   **_SMALL),
    "batch_norm": _package("torch_rechub", [1, 1], B=9, E=3, J=6, **_SMALL),
    "batch_norm_mixed": _package("torch_rechub", [0, 1, 0], B=6, E=4, J=3, **_SMALL),
    "batch_norm_of_one_expert_and_task": _package("torch_rechub", [0], B=6, E=1, J=3, **_SMALL),
}


# -- Conventions ---------------------------------------------------------------------------------
# What stands in for which function, in a copy of this file; it sees the file as it is, ``paper``.

def _summed_over_batch(losses, labelled=None, task_weights=1.0):
    if labelled is not None:
        losses = ops.where(labelled, losses, 0.0)
    return (task_weights * losses.sum(axis=-1)).sum(axis=-1)


def _mean_over_tasks(losses, labelled=None, task_weights=1.0):
    return multi_task_loss(losses, labelled, task_weights) / losses.shape[-2]


def _logits_for_probabilities(y, case):
    return y, _predictions(y, case)[1]


def _labels_of_less_noise(x, w, alpha, beta, noise):
    return labels(x, w, alpha, beta, noise / 10)


def _gate_as_it_is(gate, keep):
    return gate


CONVENTIONS = {
    "the loss sums over the batch, as in DeepCTR-Torch": {"multi_task_loss": "_summed_over_batch"},
    "the loss is the mean over tasks, as in torch-rechub": {"multi_task_loss": "_mean_over_tasks"},
    "outputs of binary tasks are logits": {"_predictions": "_logits_for_probabilities"},
    "the noise of labels has an SD of 0.01, not 0.1, as in Google Research's generator":
        {"labels": "_labels_of_less_noise"},
    "gates have no dropout, as in the text": {"gate_dropout": "_gate_as_it_is"},
}
