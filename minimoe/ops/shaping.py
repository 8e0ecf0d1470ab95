"""Shapes and places: reshaping, joining, and reading entries by index."""
import math

from minimoe import backend
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def reshape(x, *, shape):
    before = x.shape
    return x.reshape(shape), lambda g: (g.reshape(before),)


@op
def transpose(x, *, axes=None):
    """Axes in another order; reversed if none is given."""
    axes = tuple(reversed(range(x.ndim))) if axes is None else tuple(a % x.ndim for a in axes)
    back = tuple(axes.index(a) for a in range(x.ndim))
    return x.transpose(axes), lambda g: (g.transpose(back),)


@op
def swapaxes(x, *, first, second):
    return x.swapaxes(first, second), lambda g: (g.swapaxes(first, second),)


@op
def broadcast_to(x, *, shape):
    before = x.shape
    return namespace(x).broadcast_to(x, shape), lambda g: (g,)


def concatenate(arrays, axis=0):
    """Arrays joined along an axis that they have."""
    return _concatenate(*arrays, axis=axis)


@op
def _concatenate(*arrays, axis):
    xp = namespace(*arrays)
    axis = axis % arrays[0].ndim
    ends = [0]
    for a in arrays:
        ends.append(ends[-1] + a.shape[axis])

    def piece(i):
        return lambda g: g[(slice(None),) * axis + (slice(ends[i], ends[i + 1]),)]

    return xp.concatenate(arrays, axis=axis), tuple(piece(i) for i in range(len(arrays)))


def stack(arrays, axis=0):
    """Arrays of one shape joined along a new axis."""
    return _stack(*arrays, axis=axis)


@op
def _stack(*arrays, axis):
    y = namespace(*arrays).stack(arrays, axis=axis)
    before = (slice(None),) * (axis % y.ndim)
    return y, tuple(lambda g, i=i: g[before + (i,)] for i in range(len(arrays)))


def split(x, sizes, axis=-1):
    """A list of pieces of these sizes, which add up to the axis. ValueError where they do not."""
    axis = axis % x.ndim
    if math.fsum(sizes) != x.shape[axis]:
        raise ValueError(f"split: sizes must add up to {x.shape[axis]}; got {list(sizes)}")
    pieces, start = [], 0
    for size in sizes:
        pieces.append(getitem(x, key=(slice(None),) * axis + (slice(start, start + size),)))
        start += size
    return pieces


@op
def pad(x, *, widths, value=0):
    """``x`` with ``widths[axis] = (before, after)`` entries of ``value`` around it."""
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))
    return (namespace(x).pad(x, widths, constant_values=value), lambda g: (g[inside],))


@op
def getitem(x, *, key):
    """``x[key]``: slices, integers, ``None``, ``...``, integer or boolean arrays.

    An entry read twice is paid back twice.
    """
    shape, dtype = x.shape, x.dtype
    parts = key if isinstance(key, tuple) else (key,)
    basic = all(p is None or p is ... or isinstance(p, (int, slice)) for p in parts)

    def vjp(g):
        z = namespace(g).zeros(shape, dtype)
        if basic:
            z[key] = g
            return (z,)
        return (backend.scatter_add(z, key, g),)

    return x[key], vjp


@op
def take(x, index, *, axis=0):
    """Rows of ``x`` by an integer array, along ``axis``. [N, ...], [T] int -> [T, ...]"""
    before = (slice(None),) * (axis % x.ndim)
    shape, dtype = x.shape, x.dtype

    def to_x(g):
        return backend.scatter_add(namespace(g).zeros(shape, dtype), before + (index,), g)

    return x[before + (index,)], (to_x, None)


@op
def take_along_axis(x, index, *, axis=-1):
    """``y[.., i, ..] = x[.., index[.., i, ..], ..]`` along ``axis``, all other places alike."""
    xp = namespace(x, index)
    axis = axis % x.ndim
    shape, dtype = x.shape, x.dtype

    def to_x(g):
        places = [xp.arange(n).reshape((-1,) + (1,) * (len(shape) - 1 - a))
                  for a, n in enumerate(index.shape)]
        places[axis] = index
        return backend.scatter_add(xp.zeros(shape, dtype), tuple(places), g)

    return xp.take_along_axis(x, index, axis=axis), (to_x, None)


@op
def scatter_add(target, index, values):
    """A copy of ``target`` with ``values`` added at ``index``; a place named twice is added to twice.

    [N, ...], [T] int, [T, ...] -> [N, ...]
    """
    y = backend.scatter_add(target.copy(), index, values)
    return y, (lambda g: g, None, lambda g: g[index])
