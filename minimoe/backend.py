"""NumPy or CuPy, asked of the data: every difference between the two is in this file.

An operation begins ``xp = namespace(x)`` and goes on with whichever library made ``x``. Nothing
here imports CuPy on its own account: a CuPy array cannot exist unless its owner imported it, so
it is looked up among the modules already loaded. What differs in a way that changes an answer:

    scatter_add        duplicate targets add up; CuPy wraps an index past the end, so it is checked
    special            SciPy's special functions, or CuPy's copy of them
    to_numpy, to_cupy  crossings are explicit: CuPy refuses implicit ones
    mover              the same, by the name a command line gives

Sorting needs no helper: ``argsort(kind="stable")`` is right on both.
"""
import importlib
import sys

import numpy


def namespace(*arrays):
    """The library, ``numpy`` or ``cupy``, that the arrays belong to; scalars belong to both.

    TypeError for a mixture of the two.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return numpy
    of_cupy = [isinstance(a, cupy.ndarray) for a in arrays
               if isinstance(a, (cupy.ndarray, numpy.ndarray))]
    if not any(of_cupy):
        return numpy
    if not all(of_cupy):
        raise TypeError("namespace: NumPy and CuPy arrays in one call; "
                        "move them with to_cupy or to_numpy first")
    return cupy


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
    """``target[index] += values`` in place, where a target named twice is added to twice."""
    xp = namespace(target)
    if xp is not numpy:
        _check_bounds(xp, target.shape, index)
    xp.add.at(target, index, values)
    return target


def _check_bounds(xp, shape, index):
    """IndexError for an integer index past the end, which CuPy would wrap without a word."""
    for size, i in zip(shape, index if isinstance(index, tuple) else (index,)):
        if isinstance(i, xp.ndarray) and i.dtype.kind in "iu" and i.size:
            low, high = int(i.min()), int(i.max())
            if low < -size or high >= size:
                raise IndexError(f"scatter_add: indices must lie in [-{size}, {size}); "
                                 f"got {low} to {high}")


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
        raise BackendError("CuPy is not installed; install minimoe[cuda12] or minimoe[cuda13]")
    if not cupy.cuda.is_available():
        raise BackendError("CuPy is installed but finds no usable GPU")
    return to_cupy
