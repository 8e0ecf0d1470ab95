"""A small model of Markov chains, around a sparse layer that is another paper's each time.

The task is ``minimoe.data.markov_chains``: 8 languages, 32 symbols. x is the embedding of the last
symbol plus the language's, entries from N(0, 0.5^2); then come one block or more, x + layer(RMS
norm of x), an RMS norm and a linear map to the next symbol. Weights start as Switch's, Adam takes
steps of 3e-3, every step has 1024 new tokens, and all is float32.

*Excess* is the loss above the entropy of the chains, on tokens held out. Where the model's
probabilities are q and the chain's p, a token counts sum p log(p / q): what the next symbol costs
on average, so none is drawn.

    T tokens, D width, V symbols, N languages
"""
from typing import Any, Callable, NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import to_numpy
from minimoe.data.markov_chains import chains, tokens
from minimoe.experiments import harness
from minimoe.optim import adam, adam_init
from minimoe.papers.switch_2021 import truncated_normal

LANGUAGES, SYMBOLS = 8, 32
WIDTH = 32
BATCH = 1024           # tokens
RATE = 3e-3
EPSILON = 1e-6         # of RMS norm


# -- The model -----------------------------------------------------------------------------------

class LayerOutput(NamedTuple):
    y: Tensor             # [T, D]
    aux_loss: Tensor      # []
    routing: Any = None


def no_draws(rng):
    """Of a layer without chance."""


class Layer(NamedTuple):
    """What stands in a block; what it gives has the fields of ``LayerOutput``."""
    init: Callable               # rng -> params
    apply: Callable              # params, x [T, D], draws -> LayerOutput
    draws: Callable = no_draws   # rng -> a tree of arrays: the draws of one batch


class ChainParams(NamedTuple):
    symbols: Tensor       # [V, D]
    languages: Tensor     # [N, D]
    scales: list          # of [D], one a block
    layers: list          # of the layer's parameters, one a block
    scale: Tensor         # [D]
    w_out: Tensor         # [D, V]


def dense_layer(hidden):
    """relu(x w_in) w_out."""
    def init(rng):
        return {"w_in": truncated_normal(rng, (WIDTH, hidden), WIDTH),
                "w_out": truncated_normal(rng, (hidden, WIDTH), hidden)}

    def apply(params, x, draws):
        return LayerOutput(ops.relu(x @ params["w_in"]) @ params["w_out"], 0.0)

    return Layer(init, apply)


def chain_init(rng, layer, n_blocks, offset, scale=0.1):
    """``offset`` times one vector from N(0, 1) is added to the embedding of every symbol."""
    symbols = 0.5 * rng.standard_normal((SYMBOLS, WIDTH)) + offset * rng.standard_normal(WIDTH)
    languages = 0.5 * rng.standard_normal((LANGUAGES, WIDTH))
    w_out = truncated_normal(rng, (WIDTH, SYMBOLS), WIDTH, scale)
    return ChainParams(symbols, languages, [np.ones(WIDTH) for _ in range(n_blocks)],
                       [layer.init(rng) for _ in range(n_blocks)], np.ones(WIDTH), w_out)


def chain_model(params, apply, read, draws):
    """Logits [T, V], and what each block's layer gave. ``draws`` has those of each block."""
    x = ops.take(params.symbols, read.previous) + ops.take(params.languages, read.language)
    outputs = []
    for scale, layer, drawn in zip(params.scales, params.layers, draws):
        outputs.append(apply(layer, ops.rms_norm(x, scale, epsilon=EPSILON), drawn))
        x = x + outputs[-1].y                                          # [T, D]
    return ops.rms_norm(x, params.scale, epsilon=EPSILON) @ params.w_out, outputs


# -- Training ------------------------------------------------------------------------------------

class Recipe(NamedTuple):
    steps: int = 500
    n_blocks: int = 1
    offset: float = 0.0
    aux_weight: float = 0.0    # on the sum of the layers' auxiliary losses
    rate: float = RATE
    watch: int = 10            # steps between looks at the first batch held out; 0: none
    held_out: int = 16         # batches
    scale: float = 0.1         # of the output weights at the start; a layer knows its own


class Trained(NamedTuple):
    params: Any                # ChainParams of arrays
    excess: float              # over all batches held out
    outputs: list              # of each batch held out: of each block, what its layer gave, arrays
    steps: np.ndarray          # [looks]   those after which the model was looked at, 0 the first
    curve: np.ndarray          # [looks]   the excess then


def train(settings, seed, layer, recipe, evaluated=None):
    """One run. ``evaluated`` is the layer as it is where it is measured, if that differs.

    Runs of one seed have chains, tokens and draws in common, and embeddings. -> Trained
    """
    world, start, data, luck, test, test_luck = np.random.default_rng(
        [settings.seed, seed]).spawn(6)
    tables = chains(world, LANGUAGES, SYMBOLS)
    params = _float32(settings, chain_init(start, layer, recipe.n_blocks, recipe.offset,
                                           recipe.scale))
    evaluated = evaluated or layer
    held_out = [(tokens(test, tables, BATCH),
                 _draws(settings, evaluated, test_luck, recipe.n_blocks))
                for _ in range(recipe.held_out)]
    state, steps, curve = adam_init(params), [], []
    for step in range(recipe.steps + 1):
        if recipe.watch and step % recipe.watch == 0:
            steps.append(step)
            curve.append(evaluate(settings, params, evaluated, tables, held_out[:1])[0])
        if step == recipe.steps:
            break
        batch = harness.move(settings, tokens(data, tables, BATCH))
        tensors = tree.map(Tensor, params)
        logits, outputs = chain_model(tensors, layer.apply, batch,
                                      _draws(settings, layer, luck, recipe.n_blocks))
        loss = ops.cross_entropy(logits, batch.following).mean()
        if recipe.aux_weight:
            loss = loss + recipe.aux_weight * sum(out.aux_loss for out in outputs)
        params, state = adam(params, grad(loss, tensors), state, learning_rate=recipe.rate)
    excess, outputs = evaluate(settings, params, evaluated, tables, held_out)
    return Trained(tree.map(to_numpy, params), excess, outputs, np.array(steps), np.array(curve))


def evaluate(settings, params, layer, tables, held_out):
    """The mean excess over batches, and their layers' outputs."""
    excess, outputs = [], []
    for read, draws in held_out:
        p = tables[read.language, read.previous]                       # [T, V]
        logits, found = chain_model(params, layer.apply, harness.move(settings, read), draws)
        log_q = to_numpy(ops.log_softmax(logits, axis=-1))             # [T, V]
        log_p = np.log(np.where(p > 0, p, 1))
        excess.append((p * (log_p - log_q)).sum(axis=-1).mean())
        outputs.append([tree.map(_host, out) for out in found])
    return float(np.mean(excess)), outputs


def recorded(case):
    """The settings of a case, which may hold a ``Recipe``, for the record: all but its seed."""
    fields = {key: value._asdict() if isinstance(value, Recipe) else value
              for key, value in case._asdict().items()}
    del fields["seed"]
    return fields


def steps_to(trained, excess):
    """After how many steps a run was first seen at an excess or below it; NaN if never."""
    there = trained.curve <= excess
    return float(trained.steps[there.argmax()]) if there.any() else np.nan


def first_choices(trained, n_experts, block=0):
    """Of all tokens held out, the share whose first choice each expert of a block is. [E]"""
    expert = np.concatenate([outputs[block].routing.expert[:, 0] for outputs in trained.outputs])
    return np.bincount(expert, minlength=n_experts) / expert.size


def starved(shares):
    """How many experts, of all, have less than a tenth of a fair share. [..., E] -> [...]"""
    return (shares < 0.1 / shares.shape[-1]).mean(axis=-1)


def _draws(settings, layer, rng, n_blocks):
    return [_float32(settings, layer.draws(rng)) for _ in range(n_blocks)]


def _float32(settings, arrays):
    """Floats in single precision, on the backend of the settings."""
    single = tree.map(lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a, arrays)
    return harness.move(settings, single)


def _host(x):
    x = stop_gradient(x)
    return x if isinstance(x, (int, float)) else to_numpy(x)
