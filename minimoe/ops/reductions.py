"""Sums, means, variances, extremes, and running sums."""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


def _kept_shape(shape, axis):
    """``shape`` with 1 where ``axis``, a number, a tuple or None for all, takes an axis away."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = [a % len(shape) for a in axes if shape]     # a number has axis 0, to the libraries
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


def _count(shape, kept):
    """How many entries go into one."""
    return math.prod(n for n, k in zip(shape, kept) if k == 1)


@op
def sum(x, *, axis=None, keepdims=False):
    """The sum along ``axis``."""
    shape = x.shape

    def vjp(g):
        return (namespace(g).broadcast_to(g.reshape(_kept_shape(shape, axis)), shape),)

    return x.sum(axis=axis, keepdims=keepdims), vjp


@op
def mean(x, *, axis=None, keepdims=False):
    """The mean along ``axis``."""
    shape = x.shape
    y = x.mean(axis=axis, keepdims=keepdims)

    def vjp(g):
        kept = _kept_shape(shape, axis)
        return (namespace(g).broadcast_to(g.reshape(kept) / _count(shape, kept), shape),)

    return y, vjp


@op
def var(x, *, axis=None, keepdims=False, ddof=0):
    """Squared distance from the mean, over n - ``ddof``: 0 for a population, 1 for a sample."""
    centred = x - x.mean(axis=axis, keepdims=True)
    kept = _kept_shape(x.shape, axis)
    n = _count(x.shape, kept) - ddof
    return ((centred * centred).sum(axis=axis, keepdims=keepdims) / n,
            lambda g: (g.reshape(kept) * (2 / n) * centred,))


@op
def max(x, *, axis=None, keepdims=False):
    """The largest entry, or NaN; where several are largest they share the cotangent equally."""
    y = x.max(axis=axis, keepdims=keepdims)
    return y, lambda g: (_shares(x, y, g, axis),)


@op
def min(x, *, axis=None, keepdims=False):
    """The smallest entry, or NaN; where several are smallest they share the cotangent equally."""
    y = x.min(axis=axis, keepdims=keepdims)
    return y, lambda g: (_shares(x, y, g, axis),)


def _shares(x, y, g, axis):
    """The cotangent of ``y``, shared by the entries of ``x`` that are it; a NaN is every NaN."""
    kept = _kept_shape(x.shape, axis)
    hit = (x == y.reshape(kept)) | (x != x)
    return g.reshape(kept) / hit.sum(axis=axis, keepdims=True, dtype=x.dtype) * hit


@op
def cumsum(x, *, axis):
    """The running sum along ``axis``; its vjp is the running sum from the other end."""
    xp = namespace(x)
    return (xp.cumsum(x, axis=axis),
            lambda g: (xp.flip(xp.cumsum(xp.flip(g, axis), axis=axis), axis),))
