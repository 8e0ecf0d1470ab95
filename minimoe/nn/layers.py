"""Layers that many papers share: plain functions of their parameters, made of operations.

    B      batch                        D      width of the model
    S, R   positions, positions read    A, W   attention heads, width of one head
    H      hidden or output width       N      rows of a table

Each has a NamedTuple of parameters and an ``..._init`` that draws them, as float64 NumPy arrays, at
a scale that it cites. A parameter ``b`` or ``b_...`` that is None is left out.
"""
import math
from typing import NamedTuple

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.backend import namespace


def _uniform(rng, bound, *shape):
    return rng.uniform(-bound, bound, shape)


def _plus(y, b):
    return y if b is None else y + b


# -- Linear, layer norm, embedding ---------------------------------------------------------------

class LinearParams(NamedTuple):
    w: Tensor   # [D, H]
    b: Tensor   # [H]


def linear_init(rng, width, n_outputs):
    """Uniform within 1 / sqrt(D): torch.nn.Linear; Glorot and Bengio (AISTATS 2010), Eq. (1)."""
    bound = 1 / math.sqrt(width)
    return LinearParams(_uniform(rng, bound, width, n_outputs), _uniform(rng, bound, n_outputs))


def linear(params, x):
    """x w + b. [..., D] -> [..., H]"""
    return _plus(x @ params.w, params.b)


def mlp_init(rng, widths):
    """A linear layer from each width to the next, by ``linear_init``. -> tuple of LinearParams"""
    return tuple(linear_init(rng, width, n) for width, n in zip(widths, widths[1:]))


def mlp(layers, x, activation=ops.relu):
    """Linear layers with an activation between them, and none after the last. [..., D] -> [..., H]
    """
    *hidden, last = layers
    for layer in hidden:
        x = activation(linear(layer, x))
    return linear(last, x)


class LayerNormParams(NamedTuple):
    scale: Tensor   # [D]
    shift: Tensor   # [D]


def layer_norm_init(width):
    """Ones and zeros, so that it begins as normalisation alone (torch.nn.LayerNorm)."""
    xp = namespace()     # of no arrays: NumPy
    return LayerNormParams(xp.ones(width), xp.zeros(width))


def layer_norm(params, x, epsilon=1e-5):
    """Mean 0 and variance 1 at each position, then scaled and shifted. [..., D] -> [..., D]

    arXiv:1607.06450v1, Eq. (4), which adds no ``epsilon`` to the variance; torch.nn.LayerNorm adds
    this one.
    """
    return ops.layer_norm(x, params.scale, params.shift, epsilon=epsilon)


class EmbeddingParams(NamedTuple):
    table: Tensor   # [N, D]


def embedding_init(rng, n_rows, width):
    """Standard normal, as torch.nn.Embedding."""
    return EmbeddingParams(rng.standard_normal((n_rows, width)))


def embedding(params, index):
    """The rows that ``index`` names. [...] int -> [..., D]"""
    return ops.take(params.table, index)


# -- Dropout -------------------------------------------------------------------------------------

def dropout(x, keep, rate):
    """Entries at zero where ``keep`` is False, the others scaled up to keep the mean.

    ``keep`` is the draw: True with probability 1 - rate. ValueError for a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate must lie in [0, 1); got {rate}")
    return ops.where(keep, x / (1 - rate), 0.0)


# -- Attention -----------------------------------------------------------------------------------
# A. Vaswani et al., "Attention Is All You Need", 2017. arXiv:1706.03762v7, Section 3.2.

class AttentionParams(NamedTuple):
    w_query: Tensor   # [D, A, W]
    w_key: Tensor     # [D, A, W]
    w_value: Tensor   # [D, A, W]
    w_out: Tensor     # [A, W, D]
    b_query: Tensor   # [A, W]
    b_key: Tensor     # [A, W]
    b_value: Tensor   # [A, W]
    b_out: Tensor     # [D]


def attention_init(rng, width, n_heads):
    """Uniform within sqrt(6 / (D + A W)), Glorot and Bengio (2010), Eq. (16); the biases zero.

    The paper gives no scale; torch.nn.MultiheadAttention takes the same rule, for the three
    projections of a query, key and value as one matrix. ValueError where the heads do not divide
    the width.
    """
    if width % n_heads:
        raise ValueError(f"attention_init: the width must be a multiple of the number of heads; "
                         f"got {width} and {n_heads}")
    A, W = n_heads, width // n_heads
    bound = math.sqrt(6 / (width + A * W))
    xp = namespace()
    w_query, w_key, w_value = (_uniform(rng, bound, width, A, W) for _ in range(3))
    b_query, b_key, b_value = xp.zeros((3, A, W))
    return AttentionParams(w_query, w_key, w_value, _uniform(rng, bound, A, W, width),
                           b_query, b_key, b_value, xp.zeros(width))


def multi_head_attention(params, x, memory, mask=None, bias=None, attend=ops.attention):
    """Each position of ``x`` reads from ``memory``; for self-attention they are the same.

    ``mask`` is True where a position may read another (in torch.nn.MultiheadAttention: where it may
    not), ``bias`` is added to the logits; both broadcast to [B, A, S, R]. A position that may read
    nothing reads zeros, and so gives ``b_out``. ``attend`` takes query, key, value and bias.
    TypeError for a mask that is not boolean. [B, S, D], [B, R, D] -> [B, S, D]
    """
    query = _heads(x, params.w_query, params.b_query)                  # [B, A, S, W]
    key = _heads(memory, params.w_key, params.b_key)                   # [B, A, R, W]
    value = _heads(memory, params.w_value, params.b_value)             # [B, A, R, W]
    if mask is not None:
        bias = masked(mask, bias, query.dtype)
    y = attend(query, key, value, bias)                                # [B, A, S, W]
    A, W, D = params.w_out.shape
    y = y.swapaxes(-3, -2).reshape(*x.shape[:-1], A * W)               # [B, S, A*W]
    return _plus(y @ params.w_out.reshape(A * W, D), params.b_out)     # [B, S, D]


def _heads(x, w, b):
    """x w + b for each head. [B, S, D], [D, A, W], [A, W] -> [B, A, S, W]"""
    D, A, W = w.shape
    y = (x @ w.reshape(D, A * W)).reshape(*x.shape[:-1], A, W)         # [B, S, A, W]
    return _plus(y, b).swapaxes(-3, -2)


def masked(mask, bias, dtype):
    """The bias, or zeros for None, with -inf where the mask is False.

    TypeError for a mask that is not boolean.
    """
    if mask.dtype != bool:
        raise TypeError(f"masked: the mask must be boolean; got {mask.dtype}")
    if bias is None:
        return ops.where(mask, 0.0, -math.inf).astype(dtype)
    return ops.where(mask, bias, -math.inf)


def causal_mask(x):
    """True where a position may read another: itself, and those before it. [..., S, D] -> [S, S]"""
    position = namespace(stop_gradient(x)).arange(x.shape[-2])
    return position[:, None] >= position


# -- LSTM ----------------------------------------------------------------------------------------

class LSTMParams(NamedTuple):
    w_in: Tensor       # [D, 4*H]   input, forget, cell and output gate, side by side
    w_hidden: Tensor   # [H, 4*H]
    b: Tensor          # [4*H]


class LSTMOutput(NamedTuple):
    hidden: Tensor     # [S, B, H]   after each step
    cell: Tensor       # [B, H]      after the last


def lstm_init(rng, width, n_hidden):
    """Uniform within 1 / sqrt(H), as torch.nn.LSTM, of whose two biases this one is the sum."""
    D, H, bound = width, n_hidden, 1 / math.sqrt(n_hidden)
    return LSTMParams(_uniform(rng, bound, D, 4 * H), _uniform(rng, bound, H, 4 * H),
                      _uniform(rng, bound, 4 * H))


def lstm(params, x, hidden=0.0, cell=0.0):
    """One layer over a sequence, whose first axis is time, from the states given or from zeros.

    The equations and the order of the gates are those of ``ops.lstm_recurrence``. To go on with a
    sequence, give ``output.hidden[-1]`` and ``output.cell``. [S, B, D] -> [S, B, H], [B, H]
    """
    z = _plus(x @ params.w_in, params.b)                               # [S, B, 4*H]
    states = ops.lstm_recurrence(z, hidden, cell, params.w_hidden)     # [S + 1, B, H]
    return LSTMOutput(states[:-1], states[-1])


def stacked_lstm(layers, x, starts=None):
    """Several layers, each reading the hidden states of the one below: an LSTMOutput of each.

    ``layers`` are LSTMParams, from below; ``starts``, if given, a pair (hidden, cell) for each.
    ValueError where their numbers differ.
    """
    starts = [(0.0, 0.0)] * len(layers) if starts is None else starts
    if len(starts) != len(layers):
        raise ValueError(f"stacked_lstm: needs a pair of states for each of {len(layers)} layers; "
                         f"got {len(starts)}")
    outputs = []
    for params, (hidden, cell) in zip(layers, starts):
        outputs.append(lstm(params, x, hidden, cell))
        x = outputs[-1].hidden
    return outputs
