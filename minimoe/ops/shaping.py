"""Shapes and places: reshaping, joining, and reading entries by index.

An index past an end is an IndexError on either library. A vjp adds, where an entry was read twice.
"""
from minimoe import backend
from minimoe.autodiff.tensor import op
from minimoe.backend import check_index, is_array, namespace


@op
def reshape(x, *, shape):
    """``x`` in another shape of the same size."""
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
    """Two axes exchanged."""
    return x.swapaxes(first, second), lambda g: (g.swapaxes(first, second),)


@op
def broadcast_to(x, *, shape):
    """``x`` repeated along axes that it lacks, or that are 1; the engine sums its cotangent."""
    return namespace(x).broadcast_to(x, shape), lambda g: (g,)


def concatenate(arrays, axis=0):
    """Arrays joined along an axis that they have."""
    return _concatenate(*arrays, axis=axis)


@op
def _concatenate(*arrays, axis):
    y = namespace(*arrays).concatenate(arrays, axis=axis)
    before = (slice(None),) * (axis % y.ndim)
    pieces, start = [], 0
    for a in arrays:
        stop = start + a.shape[axis]
        pieces.append(lambda g, key=before + (slice(start, stop),): g[key])
        start = stop
    return y, tuple(pieces)


def stack(arrays, axis=0):
    """Arrays of one shape joined along a new axis."""
    return _stack(*arrays, axis=axis)


@op
def _stack(*arrays, axis):
    y = namespace(*arrays).stack(arrays, axis=axis)
    before = (slice(None),) * (axis % y.ndim)
    return y, tuple(lambda g, key=before + (i,): g[key] for i in range(len(arrays)))


def split(x, sizes, axis=-1):
    """A list of pieces of these sizes, which add up to the axis. ValueError where they do not."""
    axis = axis % x.ndim
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ValueError(f"split: sizes must add up to {x.shape[axis]}; got {list(sizes)}")
    pieces, start = [], 0
    for size in sizes:
        pieces.append(getitem(x, key=(slice(None),) * axis + (slice(start, start + size),)))
        start += size
    return pieces


@op
def pad(x, *, widths, value=0):
    """``x`` with ``widths[axis] = (before, after)`` entries of ``value`` around it."""
    if len(widths) != x.ndim:
        raise ValueError(f"pad: needs a pair of widths for each of {x.ndim} axes; got {widths}")
    inside = tuple(slice(before, before + n) for (before, _), n in zip(widths, x.shape))
    return namespace(x).pad(x, widths, constant_values=value), lambda g: (g[inside],)


@op
def getitem(x, *, key):
    """``x[key]``: slices, integers, ``None``, ``...``, integer or boolean arrays.

    TypeError for a list, which the two libraries do not read alike.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, list) for part in parts):
        raise TypeError("getitem: a list is not an index; make it an array")
    shape, dtype = x.shape, x.dtype
    check_index(x, key)

    def vjp(g):
        z = namespace(g).zeros(shape, dtype)
        if any(is_array(part) and part.dtype != bool for part in parts):
            return (backend.scatter_add(z, key, g),)
        z[key] = g      # slices and masks read no entry twice
        return (z,)

    return x[key], vjp


@op
def take(x, index, *, axis=0):
    """Rows of ``x`` by an integer array, along ``axis``. [N, ...], [T] int -> [T, ...]

    TypeError for an index that is not an integer array.
    """
    _check_integers("take", index)
    axis = axis % x.ndim
    key = (slice(None),) * axis + (index,)
    check_index(x, key)
    shape, dtype = x.shape, x.dtype

    def to_x(g):
        xp = namespace(g)
        z = xp.zeros(shape, dtype)
        new = range(axis, axis + index.ndim)
        backend.scatter_add(xp.moveaxis(z, axis, 0), index, xp.moveaxis(g, new, range(index.ndim)))
        return z

    return x[key], (to_x, None)


@op
def take_along_axis(x, index, *, axis=-1):
    """``y[.., i, ..] = x[.., index[.., i, ..], ..]`` along ``axis``, all other places alike.

    TypeError for an index that is not an integer array.
    """
    _check_integers("take_along_axis", index)
    xp = namespace(x, index)
    axis = axis % x.ndim
    check_index(x, (slice(None),) * axis + (index,))
    shape, dtype = x.shape, x.dtype

    def to_x(g):
        places = [xp.arange(n).reshape((-1,) + (1,) * (len(shape) - 1 - a))
                  for a, n in enumerate(shape)]
        places[axis] = index
        return backend.scatter_add(xp.zeros(shape, dtype), tuple(places), g)

    return xp.take_along_axis(x, index, axis=axis), (to_x, None)


def _check_integers(name, index):
    if not is_array(index) or index.dtype.kind not in "iu":
        raise TypeError(f"{name}: the index must be an integer array; "
                        f"got {getattr(index, 'dtype', type(index).__name__)}")


@op
def scatter_add(target, index, values):
    """A copy of ``target`` with ``values`` added at ``index``, once for each time a place is named.

    [N, ...], [T] int, [T, ...] -> [N, ...]
    """
    dtype = namespace(target, values).result_type(target, values)
    y = backend.scatter_add(target.astype(dtype), index, values)
    return y, (lambda g: g, None, lambda g: g[index])
