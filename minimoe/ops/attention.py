"""Scaled dot-product attention, as one primitive and as what it is made of."""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace
from minimoe.ops.products import matmul
from minimoe.ops.softmax import softmax


def attention(query, key, value, bias=None):
    """softmax(q k^T / sqrt(W) + bias) v: what each query reads. arXiv:1706.03762v7, Eq. (1)

    A bias of -inf hides a key from a query; a query from which every key is hidden reads zeros and
    passes no gradient on. [..., S, W], [..., R, W], [..., R, V], [..., S, R] -> [..., S, V]
    """
    return _attention(query, key, value) if bias is None else _attention(query, key, value, bias)


@op
def _attention(query, key, value, *bias):
    """Keeps exponentials, not probabilities: their sum divides what is read, which is smaller."""
    xp = namespace(query, key, value, *bias)
    query = query / math.sqrt(query.shape[-1])                         # [..., S, W]
    e = query @ key.swapaxes(-1, -2)                                   # [..., S, R]
    for b in bias:
        e = e + b
    top = e.real.max(axis=-1, keepdims=True)                           # [..., S, 1]
    e -= xp.where(top == -math.inf, 0, top)
    xp.exp(e, out=e)
    total = e.sum(axis=-1, keepdims=True)                              # [..., S, 1]
    total = xp.where(total == 0, 1, total)
    y = e @ value                                                      # [..., S, V]
    y /= total

    def vjp(g):
        g = g / total                                                  # [..., S, V]
        flow = g @ value.swapaxes(-1, -2)                              # [..., S, R]
        flow -= (g * y).sum(axis=-1, keepdims=True)
        flow *= e                                                      # to the logits
        to_query = flow @ key
        to_query /= math.sqrt(query.shape[-1])
        to_key = flow.swapaxes(-1, -2) @ query
        to_value = e.swapaxes(-1, -2) @ g
        return (to_query, to_key, to_value, *(flow for _ in bias))

    return y, vjp


def attention_composed(query, key, value, bias=0.0):
    """``attention`` in elementary operations, where each query has a key that it may read."""
    logits = matmul(query, key.swapaxes(-1, -2)) / math.sqrt(query.shape[-1]) + bias
    return matmul(softmax(logits, axis=-1), value)
