"""The modules of the strict twin: NumPy's and SciPy's functions under CuPy's rules."""
from types import ModuleType

import numpy
import scipy.special

from tests.strict_cupy import differences
from tests.strict_cupy.array import at, function, ndarray, unwrap
from tests.strict_cupy.recorded import RECORD, UFUNC_METHODS, parameters
from tests.strict_cupy.syncs import sync


class Library(ModuleType):
    """A module with CuPy's names, each computed by ``source``'s function of that name."""

    def __init__(self, name, source=None, own=None):
        super().__init__(name)
        self.__dict__.update(own or {})
        self._source = source

    def __getattr__(self, name):
        entry = None if name.startswith("__") else RECORD.get(self.__name__, {}).get(name)
        if entry is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name in differences.NOT_IMITATED or self._source is None:
            raise NotImplementedError(f"the strict twin does not imitate {self.__name__}.{name}")
        own = differences.FUNCTIONS.get(name) if self._source is numpy else None
        found = own or getattr(self._source, name)
        if isinstance(entry, dict) and "loops" in entry:
            found = Ufunc(name, entry, found)
        elif isinstance(entry, str):
            found = function(name, entry, found)
        setattr(self, name, found)
        return found


class Ufunc:
    """A ufunc with the loops and the methods that CuPy's has."""

    def __init__(self, name, entry, compute):
        self.__name__ = name
        self._compute = compute
        self._entry = entry
        self._call = function(name, parameters(entry), compute)

    def __call__(self, *args, **settings):
        inputs = args[:self._entry["inputs"]]
        loops = [loop.partition("->")[0] for loop in self._entry["loops"].split()]
        if not any(all(map(_fits, inputs, loop)) for loop in loops):
            raise TypeError(f"cupy.{self.__name__}: no loop for "
                            f"{', '.join(str(getattr(x, 'dtype', x)) for x in inputs)}")
        return self._call(*args, **settings)

    def __getattr__(self, name):
        if name not in UFUNC_METHODS:
            raise AttributeError(f"'cupy.ufunc' object has no attribute {name!r}")
        if name not in self._entry["methods"].split():
            raise NotImplementedError(f"cupy: `{self.__name__}.{name}` is not supported")
        if name == "at":
            return lambda a, indices, b=None: at(self._compute, a, indices, b)
        compute = (differences.add_reduceat if name == "reduceat"
                   else getattr(self._compute, name))
        return function(f"{self.__name__}.{name}", UFUNC_METHODS[name], compute)


def _fits(x, loop):
    """Whether a loop of this type takes the argument; a Python number fits its own kind."""
    if hasattr(x, "dtype"):
        return numpy.can_cast(x.dtype, loop)
    kinds = "?bhilqBHILQefdFD"
    return loop in kinds[{bool: 0, int: 1, float: 11, complex: 14}.get(type(x), 0):]


# cupy

def _creates(name):
    """The few functions that take what is on the host: lists and NumPy arrays."""
    def create(obj, *args, **settings):
        if isinstance(obj, ndarray):
            return function(name, RECORD["cupy"][name], getattr(numpy, name))(
                obj, *args, **settings)
        return function(name, RECORD["cupy"][name], lambda _, *args, **settings: numpy.array(
            _anything(obj), *args, **settings))(None, *args, **settings)
    return create


def _anything(obj):
    if isinstance(obj, (list, tuple)):
        return [_anything(part) for part in obj]
    return obj if isinstance(obj, numpy.ndarray) else unwrap(obj)


def asnumpy(a):
    if not isinstance(a, ndarray):
        return numpy.asarray(a)
    sync("asnumpy")
    return differences.get(a._host)


def get_array_module(*arrays):
    return cupy if any(isinstance(a, ndarray) for a in arrays) else numpy


# cupy.linalg: failures are silent unless asked for

def _linear_algebra(name):
    compute = getattr(numpy.linalg, name)

    def call(*args, **settings):
        try:
            return compute(*args, **settings)
        except numpy.linalg.LinAlgError:
            if errstate.linalg == "raise" or name not in ("cholesky", "inv", "solve"):
                raise
            return numpy.full_like(args[-1], numpy.nan, dtype=numpy.result_type(*args, 0.0))

    if name == "solve":
        return function(name, "a, b", lambda a, b: call(a, _same_batch(a, b)))
    return function(name, RECORD["cupy.linalg"][name], call)


def _same_batch(a, b):
    if b.ndim > 1 and a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"cupy.linalg.solve: batches do not broadcast; got {a.shape}, {b.shape}")
    return b


# cupyx

class errstate:
    """``cupyx.errstate``: of all kinds of error CuPy notices ``linalg`` alone."""

    linalg = "ignore"

    def __init__(self, *, divide=None, over=None, under=None, invalid=None, linalg=None):
        if (divide, over, under, invalid) != (None,) * 4:
            raise NotImplementedError("cupyx.errstate: only linalg is supported")
        self._wanted = linalg

    def __enter__(self):
        self._before = errstate.linalg
        errstate.linalg = self._wanted or self._before

    def __exit__(self, *raised):
        errstate.linalg = self._before


linalg = Library("cupy.linalg", numpy.linalg, {
    name: _linear_algebra(name) for name, entry in RECORD["cupy.linalg"].items()
    if isinstance(entry, str) and hasattr(numpy.linalg, name)})
cuda = Library("cupy.cuda", own={"is_available": lambda: True})
random = Library("cupy.random")
cupy = Library("cupy", numpy, {
    "ndarray": ndarray, "asnumpy": asnumpy, "get_array_module": get_array_module,
    "is_available": lambda: True, "linalg": linalg, "cuda": cuda, "random": random,
    "__version__": RECORD["versions"]["cupy"],
    **{name: _creates(name) for name in (
        "array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray")}})
special = Library("cupyx.scipy.special", scipy.special)
cupyx_scipy = Library("cupyx.scipy", own={"special": special})
cupyx = Library("cupyx", own={
    "errstate": errstate, "scipy": cupyx_scipy,
    "scatter_add": lambda a, slices, value: at(numpy.add, a, slices, value)})
MODULES = {module.__name__: module for module in (
    cupy, linalg, cuda, random, cupyx, cupyx_scipy, special)}
