"""Functions and methods that CuPy has under NumPy's names and that do something else.

All take and return NumPy arrays, the array first, so that one definition serves the function and
the method. Where an integer array reaches past the end, CuPy begins again at the front.
"""
import operator

import numpy

from tests.strict_cupy.syncs import sync

# the size of what these return, or their course, depends on the entries
WAITING = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "histogram",
           "intersect1d", "nonzero", "setdiff1d", "setxor1d", "trim_zeros", "union1d", "unique",
           "unique_all", "unique_counts", "unique_inverse", "unique_values"}
# as the compiled messages of CuPy 14.2 say
AT_DTYPES = {"add": "ilqefdILQ", "subtract": "iI", "maximum": "ilqfdILQ", "minimum": "ilqfdILQ",
             "bitwise_and": "ilqILQ", "bitwise_or": "ilqILQ", "bitwise_xor": "ilqILQ"}

_threads = [numpy.random.default_rng(0)]


def reseed():
    """Let the random orders begin anew."""
    _threads[0] = numpy.random.default_rng(0)


def in_random_order(array, places, values, write):
    """Many threads write at once: of several to one place, any may be the last."""
    flat = numpy.arange(array.size).reshape(array.shape)[places]
    values = numpy.asarray(values)
    while values.ndim > flat.ndim and values.shape[0] == 1:
        values = values[0]
    values = numpy.broadcast_to(values, flat.shape).ravel()
    order = _threads[0].permutation(flat.size)
    write(array, numpy.unravel_index(flat.ravel()[order], array.shape), values[order])


def at(ufunc, array, places, values):
    """``cupy.add.at`` and its like: every write counts, in no order; not for every dtype."""
    if array.dtype.char not in AT_DTYPES[ufunc.__name__]:
        raise TypeError(f"cupy.{ufunc.__name__}.at does not support {array.dtype}")
    in_random_order(array, places, numpy.asarray(values).astype(array.dtype), ufunc.at)


def add_reduceat(array, indices, axis=0, dtype=None, out=None):
    """Differences of one running sum, with all their cancellation."""
    ends = numpy.append(indices, array.shape[axis])
    running = numpy.insert(array.cumsum(axis, dtype), 0, 0, axis)
    sums = running.take(ends[1:], axis) - running.take(ends[:-1], axis)
    lone = (ends[:-1] >= ends[1:]).reshape(-1, *[1] * (array.ndim - axis % array.ndim - 1))
    return numpy.where(lone, array.take(indices, axis), sums)


def argsort(a, axis=-1, kind=None):
    _check_kind(kind)
    return numpy.argsort(a, axis=axis, kind="stable")


def sort(a, axis=-1, kind=None):
    _check_kind(kind)
    return numpy.sort(a, axis=axis, kind="stable")


def _check_kind(kind):
    if kind not in (None, "stable"):
        raise ValueError(f"cupy: kind can only be None or 'stable'; got {kind!r}")


def lexsort(keys):
    if numpy.ndim(keys) > 2:
        raise NotImplementedError("cupy.lexsort: keys with more than 2 axes")
    return numpy.lexsort(keys)


def take(a, indices, axis=None, out=None):
    return numpy.take(a, indices, axis, out, mode="wrap")


def take_along_axis(a, indices, axis):
    return numpy.take_along_axis(a, indices % (a.size if axis is None else a.shape[axis]), axis)


def put_along_axis(arr, indices, values, axis):
    places = list(numpy.indices(indices.shape, sparse=True))
    places[axis] = indices % arr.shape[axis]
    in_random_order(arr, tuple(places), values, operator.setitem)


def where(condition, x=None, y=None):
    if x is not None:
        return numpy.where(condition, x, y)
    sync("where")
    return numpy.where(condition)


def repeat(a, repeats, axis=None):
    if isinstance(repeats, numpy.ndarray):
        sync("repeat")
    return numpy.repeat(a, repeats, axis)


def astype(a, dtype, order="K", casting=None, subok=None, copy=True):
    return a.astype(dtype, order, casting or "unsafe", copy=copy)


def empty(shape, dtype=float, order="C"):
    return _never_written(numpy.empty(shape, dtype, order))


def empty_like(prototype, dtype=None, order="K", subok=None, shape=None):
    return _never_written(numpy.empty_like(prototype, dtype, order, shape=shape))


def _never_written(a):
    """Memory as it was found: here what spoils a result surest."""
    if a.dtype.kind in "fc":
        a.fill(numpy.nan)
    return a


def allclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=False):
    return numpy.isclose(a, b, rtol, atol, equal_nan).all()


def array_equal(a1, a2, equal_nan=False):
    return numpy.bool_(numpy.array_equal(a1, a2, equal_nan))


# Methods that the array alone has.

def get(a, stream=None, order="C", out=None, blocking=True):
    return numpy.array(a, order=order)


def sort_in_place(a, axis=-1, kind=None):
    a[...] = sort(a, axis, kind)


FUNCTIONS = {f.__name__: f for f in (
    allclose, argsort, array_equal, astype, empty, empty_like, lexsort, put_along_axis, repeat,
    sort, take, take_along_axis, where)}
METHODS = {**FUNCTIONS, "sort": sort_in_place}
TO_HOST = {"get": get, "item": numpy.ndarray.item, "tolist": numpy.ndarray.tolist,
           "tobytes": numpy.ndarray.tobytes}
# present in CuPy, absent here until something needs them
NOT_IMITATED = {"base", "cstruct", "data", "device", "dump", "dumps", "flat", "fromDlpack", "fuse",
                "from_dlpack", "mdspan", "put", "reduced_view", "scatter_add", "scatter_max",
                "scatter_min", "set", "toDlpack", "tofile"}
