"""NumPy or CuPy, asked of the data: every difference between the two is in this file.

An operation begins ``xp = namespace(x)`` and goes on with whichever library made ``x``. Nothing
here imports CuPy on its own account: a CuPy array cannot exist unless its owner imported it, so
it is looked up among the modules already loaded. What differs in a way that changes an answer:

    scatter_add        duplicate targets add up, in an order that is the same from run to run
    check_index        an index past the end is an error; CuPy alone would wrap it
    special            SciPy's special functions, or CuPy's copy of them
    identity           an array made from nothing must be told its library
    solve              a singular system is an error; CuPy would return what is not finite
    to_numpy, to_cupy  crossings are explicit: CuPy refuses implicit ones
    mover              the same, by the name a command line gives

Sorting needs no helper: ``argsort(kind="stable")`` is right on both.
"""
import importlib
import numbers
import sys

import numpy

_PLAINLY_NUMPY = frozenset([numpy.ndarray, numpy.float64, numpy.float32, bool, int, float])


def namespace(*arrays):
    """The library, ``numpy`` or ``cupy``, that the arrays belong to; numbers belong to both.

    TypeError for a mixture of the two, and for anything else: a list, another library's array.
    """
    for a in arrays:
        if type(a) not in _PLAINLY_NUMPY:
            return _library(arrays)
    return numpy


def _library(arrays):
    """``namespace``, the long way round."""
    cupy = sys.modules.get("cupy")
    found = set()
    for a in arrays:
        if cupy is not None and isinstance(a, cupy.ndarray):
            found.add(cupy)
        elif isinstance(a, numpy.ndarray):
            found.add(numpy)
        elif not isinstance(a, (numpy.generic, numbers.Number)):
            raise TypeError(f"namespace: needs NumPy or CuPy arrays, or numbers; "
                            f"got {type(a).__module__}.{type(a).__name__}")
    if len(found) > 1:
        raise TypeError("namespace: NumPy and CuPy arrays in one call; "
                        "move them with to_cupy or to_numpy first")
    return cupy if cupy in found else numpy


def is_array(x):
    """Whether ``x`` is an array or an array scalar of either library."""
    cupy = sys.modules.get("cupy")
    return (isinstance(x, (numpy.ndarray, numpy.generic))
            or cupy is not None and isinstance(x, cupy.ndarray))


def special(*arrays):
    """The module of special functions for these arrays: ``scipy.special`` or CuPy's copy."""
    if namespace(*arrays) is numpy:
        import scipy.special   # only once it is needed: it loads more slowly than all of minimoe
        return scipy.special
    return importlib.import_module("cupyx.scipy.special")


def scatter_add(target, index, values):
    """``target[index] += values`` in place, where a target named twice is added to twice.

    The same bits from run to run. IndexError for an integer index past an end.
    """
    xp = namespace(target, values)
    check_index(target, index)
    of_rows = is_array(index) and index.dtype.kind in "iu" and target.ndim > 1
    if xp is not numpy:
        _add_in_order(xp, target, index, values, of_rows)
    elif of_rows and target.size and index.size:
        _add_rows(target, index, values)
    else:
        numpy.add.at(target, index, values)
    return target


def _add_in_order(xp, target, index, values, of_rows):
    """``scatter_add`` on CuPy, whose own adds in whatever order its threads arrive.

    Sorted by target, the values of one target are neighbours; each takes the sum of those before
    it over 1, 2, 4, ... places, so that the last holds the whole.
    """
    if of_rows:
        N, place = len(target), index % len(target)
        shape = index.shape + target.shape[1:]
    else:
        N, place = target.size, xp.arange(target.size).reshape(target.shape)[index]
        shape = place.shape
    T = place.size
    if not T:
        return
    order = xp.argsort(place.ravel(), kind="stable")
    place = place.ravel()[order]                                          # [T]
    sums = xp.broadcast_to(values, shape).reshape(T, -1)[order]           # [T, D]
    step = 1
    while step < T:
        same = place[step:] == place[:-step]
        sums[step:] = sums[step:] + xp.where(same[:, None], sums[:-step], 0)
        step *= 2
    last = xp.append(place[1:] != place[:-1], xp.ones(1, bool))
    total = xp.zeros((N + 1, sums.shape[1]), sums.dtype)
    total[xp.where(last, place, N)] = sums                  # row N is for those that are not last
    target += total[:N].reshape(target.shape)


def _add_rows(target, index, values):
    """Whole rows added by a sparse one-hot product.

    Where rows are many and wide, several times as fast as ``numpy.add.at``.
    """
    import scipy.sparse
    N, T = len(target), index.size
    if not -N <= int(index.min()) <= int(index.max()) < N:
        raise IndexError(f"scatter_add: indices on axis 0 must lie in [-{N}, {N}); "
                         f"got {int(index.min())} to {int(index.max())}")
    rows, place = numpy.unique(index.ravel().astype(numpy.intp) % N, return_inverse=True)
    values = numpy.broadcast_to(values, index.shape + target.shape[1:]).reshape(T, -1)
    one_hot = scipy.sparse.csc_array(
        (numpy.ones(T, values.dtype), place, numpy.arange(T + 1)), shape=(len(rows), T))
    target[rows] += (one_hot @ values).reshape(-1, *target.shape[1:])


def check_index(x, key):
    """IndexError where an integer array in ``key`` points past an end of ``x``.

    NumPy says so by itself and is left to it; CuPy would begin again at the other end without a
    word. Costs CuPy one wait for the device per integer array.
    """
    if namespace(x) is numpy:
        return
    parts = key if isinstance(key, tuple) else (key,)
    axis = 0
    for i, part in enumerate(parts):
        if part is ...:
            axis = x.ndim - sum(map(_axes, parts[i:]))
        elif is_array(part) and part.dtype.kind in "iu":
            namespace(x, part)      # refuses a mixture
            size = x.shape[axis]
            if bool(((part < -size) | (part >= size)).any()):
                raise IndexError(f"check_index: indices on axis {axis} must lie in "
                                 f"[-{size}, {size}); got {int(part.min())} to {int(part.max())}")
        axis += _axes(part)


def _axes(part):
    """How many axes a part of an index speaks of: a mask of all that it has, a new axis of none."""
    if part is None or part is ...:
        return 0
    return part.ndim if is_array(part) and part.dtype == bool else 1


def identity(n, like):
    """The [n, n] identity matrix, in the library and dtype of ``like``."""
    return namespace(like).eye(n, dtype=like.dtype)


def solve(a, b):
    """x with a x = b, for a batch of systems. [..., D, D], [..., D, R] -> [..., D, R]

    Not differentiable. ValueError where a system is singular.
    """
    xp = namespace(a, b)
    try:
        x = xp.linalg.solve(a, b)
    except numpy.linalg.LinAlgError:
        x = xp.asarray(numpy.nan)
    if not xp.isfinite(x).all():
        raise ValueError(f"solve: the systems must be regular, and a ridge makes them so; "
                         f"got a singular one among shape {a.shape}")
    return x


def to_numpy(x):
    """``x`` as a NumPy array, copied from the GPU if it is there."""
    return numpy.asarray(x) if namespace(x) is numpy else namespace(x).asnumpy(x)


def to_cupy(x):
    """``x`` as a CuPy array, copied to the GPU if it is not there."""
    return importlib.import_module("cupy").asarray(x)


class BackendError(RuntimeError):
    """A backend was asked for that this machine cannot give."""


def mover(name):
    """The function that moves an array to the backend ``name``, "numpy" or "cupy".

    BackendError where CuPy is not installed or finds no GPU; ValueError for another name.
    """
    if name == "numpy":
        return to_numpy
    if name != "cupy":
        raise ValueError(f"mover: a backend is numpy or cupy; got {name}")
    try:
        cupy = importlib.import_module("cupy")
    except ImportError:
        raise BackendError(
            "CuPy is not installed; install minimoe[cuda12] or minimoe[cuda13]") from None
    if not cupy.cuda.is_available():
        raise BackendError("CuPy is installed but finds no usable GPU")
    return to_cupy
