"""T5: an encoder-decoder Transformer whose positions are offsets.

C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", 2019. arXiv:1910.10683v4, Section 2.1.

    B      batch                          V      vocabulary
    S, R   positions: source, target      N      buckets of offsets
    D      width of the model             A, W   attention heads, width of one head
    H      hidden width

Norms come before each part, divide by the root of the mean square, and have a scale alone; nothing
else has a bias either. One table of position biases serves all layers of a stack. Attention does
not divide by sqrt(W): ``w_query`` starts smaller by as much. What the released code adds to the
text (mesh_tensorflow's transformer.py): one embedding serves both stacks and, scaled by
1 / sqrt(D), the output.

Feed-forward layers may be others: the ``feed_forward`` of ``t5_encode`` and ``t5_decode`` is a
function of a layer's parameters, its input and ``hidden`` of a ``T5LayerKeep``.
"""
import math
from typing import Any, NamedTuple

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.backend import namespace
from minimoe.nn.layers import (
    AttentionParams, causal_mask, dropout, embedding, EmbeddingParams, masked,
    multi_head_attention)

Array = Any     # of NumPy or CuPy; for the reader
EPSILON = 1e-6  # of the norms; the paper says nothing of it


class FeedForwardParams(NamedTuple):
    w_in: Tensor     # [D, H]
    w_out: Tensor    # [H, D]


class T5LayerParams(NamedTuple):
    attention_norm: Tensor            # [D]
    attention: AttentionParams        # without biases
    cross_norm: Tensor                # [D]   None in an encoder, as ``cross``
    cross: AttentionParams
    feed_forward_norm: Tensor         # [D]
    feed_forward: FeedForwardParams   # or what another feed-forward layer has


class T5StackParams(NamedTuple):
    layers: list                      # of T5LayerParams
    position_table: Tensor            # [N, A]
    norm: Tensor                      # [D]   of what the last layer gives


class T5Params(NamedTuple):
    embedding: Tensor                 # [V, D]
    encoder: T5StackParams
    decoder: T5StackParams
    head: Tensor                      # [D, V]   None where the embedding serves


# -- Dropout: draws, True with probability 1 - rate ----------------------------------------------

class T5LayerKeep(NamedTuple):
    attention_probs: Array            # [B, A, S, S]
    attention: Array                  # [B, S, D]      of what is added to x; so the next but one
    cross_probs: Array                # [B, A, R, S]   None in an encoder, as ``cross``
    cross: Array                      # [B, R, D]
    hidden: Array                     # [B, S, H]
    feed_forward: Array               # [B, S, D]


class T5StackKeep(NamedTuple):
    embedded: Array                   # [B, S, D]
    layers: list                      # of T5LayerKeep
    y: Array                          # [B, S, D]      after the last norm


NOTHING_DROPPED = T5LayerKeep(*[None] * 6)


def t5_keep(rng, params, shape, rate, n_read=None):
    """Draws for one stack over [B, S] positions; a decoder reads ``n_read`` positions of memory."""
    (B, S), D = shape, params.norm.shape[0]

    def draw(*shape):
        return rng.random(shape) >= rate

    def layer(p):
        A, H = p.attention.w_query.shape[1], p.feed_forward.w_in.shape[-1]
        cross = (None, None) if p.cross is None else (draw(B, A, S, n_read), draw(B, S, D))
        return T5LayerKeep(draw(B, A, S, S), draw(B, S, D), *cross, draw(B, S, H), draw(B, S, D))

    return T5StackKeep(draw(B, S, D), [layer(p) for p in params.layers], draw(B, S, D))


# -- Start ---------------------------------------------------------------------------------------

def _normal(rng, shape, fan_in):
    return rng.standard_normal(shape) / math.sqrt(fan_in)


def t5_init(rng, vocabulary, width, n_heads, head_width, hidden, n_layers, n_buckets=32,
            draw=_normal):
    """``n_layers`` in each stack, the head the embedding. As released: normal, 1 / fan-in.

    The embedding has variance 1, and a query counts the width of its head in its fan-in, which
    stands in for the scale that the attention lacks. ``draw`` takes rng, a shape and a fan-in.
    """
    D, A, W, H = width, n_heads, head_width, hidden
    ones = namespace().ones

    def attention():
        return AttentionParams(draw(rng, (D, A, W), D * W), draw(rng, (D, A, W), D),
                               draw(rng, (D, A, W), D), draw(rng, (A, W, D), A * W),
                               None, None, None, None)

    def layer(reads_memory):
        cross = (ones(D), attention()) if reads_memory else (None, None)
        feed_forward = FeedForwardParams(draw(rng, (D, H), D), draw(rng, (H, D), H))
        return T5LayerParams(ones(D), attention(), *cross, ones(D), feed_forward)

    def stack(reads_memory):
        return T5StackParams([layer(reads_memory) for _ in range(n_layers)],
                             draw(rng, (n_buckets, A), D), ones(D))

    return T5Params(rng.standard_normal((vocabulary, D)), stack(False), stack(True), None)


# -- The model -----------------------------------------------------------------------------------

def t5(params, source, target, source_used=None, target_used=None):
    """Logits of what follows each position of the target. [B, S] int, [B, R] int -> [B, R, V]

    ``target`` begins with a start symbol: see ``shift_right``. Padding is False in ``..._used``:
    it is read by nobody, though it has logits.
    """
    memory = t5_encode(params, source, source_used)
    return t5_logits(params, t5_decode(params, target, memory, target_used, source_used))


def relu_feed_forward(params, x, keep=None, rate=0.0):
    """relu(x w_in) w_out, with dropout of the hidden layer. [B, S, D] -> [B, S, D]"""
    return _dropped(ops.relu(x @ params.w_in), keep, rate) @ params.w_out


def t5_encode(params, source, used=None, feed_forward=None, keep=None, rate=0.0,
              max_distance=128, epsilon=EPSILON):
    """What the decoder reads. ``keep`` is a T5StackKeep. [B, S] int -> [B, S, D]"""
    x = embedding(EmbeddingParams(params.embedding), source)           # [B, S, D]
    stack, S = params.encoder, source.shape[1]
    bias = relative_position_bias(stack.position_table, S, S, max_distance)   # [A, S, S]
    if used is not None:
        bias = masked(_readable(used), bias, x.dtype)                  # [B, A, S, S]
    return _through(stack, x, bias, None, None, feed_forward, keep, rate, epsilon)


def t5_decode(params, target, memory, used=None, memory_used=None, feed_forward=None, keep=None,
              rate=0.0, max_distance=128, epsilon=EPSILON):
    """Each position reads those up to it, and all of the memory. [B, R] int -> [B, R, D]"""
    x = embedding(EmbeddingParams(params.embedding), target)           # [B, R, D]
    stack, R = params.decoder, target.shape[1]
    bias = causal_relative_position_bias(stack.position_table, R, R, max_distance)   # [A, R, R]
    mask = causal_mask(x)                                              # [R, R]
    if used is not None:
        mask = mask & _readable(used)                                  # [B, 1, R, R]
    bias = masked(mask, bias, x.dtype)
    memory_bias = None if memory_used is None else masked(_readable(memory_used), None, x.dtype)
    return _through(stack, x, bias, memory, memory_bias, feed_forward, keep, rate, epsilon)


def t5_logits(params, y):
    """By the embedding scaled by 1 / sqrt(D), or by a head of its own. [B, R, D] -> [B, R, V]"""
    if params.head is not None:
        return y @ params.head
    return (y * y.shape[-1] ** -0.5) @ params.embedding.T


def shift_right(target, start=0):
    """What the decoder is given where it is to say ``target``. [B, R] int -> [B, R] int"""
    return namespace(target).pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=start)


def _through(stack, x, bias, memory, memory_bias, feed_forward, keep, rate, epsilon):
    """All layers of a stack; the bias, masks included, is the same in each."""
    def norm(x, scale):
        return ops.rms_norm(x, scale, epsilon=epsilon)

    def dense(p, x, keep):
        return relu_feed_forward(p, x, keep, rate)

    feed_forward = feed_forward or dense
    keep = keep or T5StackKeep(None, [NOTHING_DROPPED] * len(stack.layers), None)
    x = _dropped(x, keep.embedded, rate)
    for p, kept in zip(stack.layers, keep.layers):
        seen = norm(x, p.attention_norm)
        read = _attention(p.attention, seen, seen, bias, kept.attention_probs, rate)
        x = x + _dropped(read, kept.attention, rate)
        if memory is not None:
            seen = norm(x, p.cross_norm)
            read = _attention(p.cross, seen, memory, memory_bias, kept.cross_probs, rate)
            x = x + _dropped(read, kept.cross, rate)
        y = feed_forward(p.feed_forward, norm(x, p.feed_forward_norm), kept.hidden)
        x = x + _dropped(y, kept.feed_forward, rate)
    return _dropped(norm(x, stack.norm), keep.y, rate)


def _attention(params, x, memory, bias, keep, rate):
    """Attention without the scale 1 / sqrt(W), which ``ops.attention`` has."""
    def attend(query, key, value, bias):
        if keep is None:
            return ops.attention(query, key, value, bias)
        logits = query @ key.swapaxes(-1, -2) / math.sqrt(W)           # [B, A, S, R]
        logits = logits if bias is None else logits + bias
        return dropout(ops.softmax(logits, axis=-1), keep, rate) @ value

    W = params.w_query.shape[-1]
    unscaled = params._replace(w_query=params.w_query * math.sqrt(W))
    return multi_head_attention(unscaled, x, memory, bias=bias, attend=attend)


def _readable(used):
    """Which keys may be read. [B, R] bool -> [B, 1, 1, R]"""
    return used[:, None, None]


def _dropped(x, keep, rate):
    return x if keep is None else dropout(x, keep, rate)


# -- Relative position bias ----------------------------------------------------------------------
# One learned number per head and bucket of offsets, the buckets growing logarithmically up to an
# offset of 128, from which all are one. How they grow is in the released code alone
# (mesh_tensorflow's transformer_layers.py): half of the buckets hold one distance each, the others
# grow by a constant factor.

def relative_position_bias(table, n_queries, n_keys, max_distance=128):
    """The bias where all positions are read: half of the buckets are for keys after the query.

    ValueError for an odd number of buckets, fewer than 4, or more than ``max_distance`` allows.
    [N, A] -> [A, S, R]
    """
    N = table.shape[0]
    if N % 2:
        raise ValueError(f"relative_position_bias: needs an even number of buckets; got {N}")
    offset = _offsets(table, n_queries, n_keys)                        # [S, R]
    bucket = _bucket(abs(offset), N // 2, max_distance) + N // 2 * (offset > 0)
    return ops.take(table, bucket).transpose(2, 0, 1)


def causal_relative_position_bias(table, n_queries, n_keys, max_distance=128):
    """The bias under a causal mask: all buckets are for keys before the query, 0 for the others.

    ValueError for fewer than 2 buckets, or more than ``max_distance`` allows. [N, A] -> [A, S, R]
    """
    offset = _offsets(table, n_queries, n_keys)                        # [S, R]
    bucket = _bucket(-offset * (offset < 0), table.shape[0], max_distance)
    return ops.take(table, bucket).transpose(2, 0, 1)


def _offsets(table, n_queries, n_keys):
    """How far each key is after each query. [S, R]"""
    xp = namespace(stop_gradient(table))
    return xp.arange(n_keys) - xp.arange(n_queries)[:, None]


def _bucket(distance, n_buckets, max_distance):
    """The bucket of each distance: how many buckets begin before it or at it, less one."""
    xp = namespace(distance)
    starts = xp.asarray(bucket_starts(n_buckets, max_distance))
    return xp.searchsorted(starts, distance, side="right") - 1


def bucket_starts(n_buckets, max_distance):
    """The smallest distance in each bucket.

    From e = n // 2 on, bucket e + j begins at e (max_distance / e)^(j / (n - e)), rounded up. The
    released code rounds down a ratio of logarithms; here integers are compared, free of rounding.
    ValueError for fewer than 2 buckets, or more than ``max_distance`` allows.
    """
    e = n_buckets // 2
    if not 1 <= e < max_distance:
        raise ValueError(f"bucket_starts: needs 2 buckets or more, and max_distance beyond half of "
                         f"them; got {n_buckets} and {max_distance}")
    starts, distance, n = list(range(e)), e, n_buckets - e
    for j in range(n):
        while distance ** n * e ** j < max_distance ** j * e ** n:
            distance += 1
        starts.append(distance)
    return starts
