"""The array of the strict twin: a NumPy array that nobody reaches without saying so."""
import operator

import numpy

from tests.strict_cupy import differences
from tests.strict_cupy.recorded import RECORD, signature
from tests.strict_cupy.syncs import sync

MEMBERS = RECORD["cupy.ndarray"]
SCALARS = (bool, int, float, complex, numpy.generic)
DTYPES = "?bBhHiIlLqQefdFD"
# parameters that take a list or tuple of numbers; every other one takes arrays and scalars
SEQUENCES = {"axes", "axis", "constant_values", "destination", "dimensions", "dims", "dtype",
             "end_values", "indices_or_sections", "newshape", "optimize", "pad_width", "repeats",
             "reps", "shape", "shift", "source", "stat_length"}


class ndarray:
    """What ``cupy.ndarray`` is: members as recorded, and nothing converted without being asked."""

    __slots__ = ("_host",)
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, shape, dtype=float):
        self._host = differences.empty(shape, dtype)

    def __getattr__(self, name):
        entry = None if name.startswith("__") else MEMBERS.get(name)
        if entry is None:
            raise AttributeError(f"'cupy.ndarray' object has no attribute {name!r}")
        if name in differences.NOT_IMITATED:
            raise NotImplementedError(f"the strict twin does not imitate ndarray.{name}")
        if not isinstance(entry, str):
            return wrap(getattr(self._host, name))
        compute = (differences.TO_HOST.get(name) or differences.METHODS.get(name)
                   or getattr(numpy.ndarray, name))
        return function(f"ndarray.{name}", entry,
                        lambda *args, **settings: compute(self._host, *args, **settings),
                        to_host=name in differences.TO_HOST)

    def __array__(self, *args, **settings):
        raise TypeError("Implicit conversion to a NumPy array is not allowed; "
                        "use to_numpy, asnumpy or .get()")

    def __array_function__(self, function, types, args, settings):
        raise TypeError(f"numpy.{function.__name__} was called on a CuPy array")

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        """An operator with a NumPy scalar on its left comes this way; nothing else may."""
        if method != "__call__" or settings or not isinstance(inputs[0], numpy.generic):
            raise TypeError(f"numpy.{ufunc.__name__} on a CuPy array, or an operator between "
                            f"a NumPy and a CuPy array")
        return wrap(ufunc(*map(unwrap, inputs)))

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __copy__(self):
        return wrap(self._host.copy())

    def __deepcopy__(self, memo):
        return wrap(self._host.copy())

    def __format__(self, how):
        sync("format")
        return format(self._host, how)

    def __getitem__(self, key):
        places, kind = _places(self._host.shape, key)
        found = self._host[places]
        return wrap(found if kind == "view" else numpy.array(found))

    def __setitem__(self, key, value):
        places, kind = _places(self._host.shape, key)
        value = _scalar_or_array("assignment", value)
        if kind == "integers":
            differences.in_random_order(self._host, places, value, operator.setitem)
        else:
            self._host[places] = value


def _read_by_host(name, read):
    def method(self):
        sync(name)
        return read(self._host)
    return method


def _operator(compute):
    def method(self, *others):
        if any(getattr(type(other), "__array_ufunc__", self) is None for other in others):
            return NotImplemented          # the other has asked to be left to its own operator
        return wrap(compute(self._host, *(_scalar_or_array("operator", x) for x in others)))
    return method


def _reflected(compute):
    return _operator(lambda own, other: compute(other, own))


def _in_place(compute):
    def method(self, other):
        compute(self._host, _scalar_or_array("operator", other))
        return self
    return method


for name, read in [("float", float), ("int", int), ("complex", complex), ("bool", bool),
                   ("repr", repr)]:
    setattr(ndarray, f"__{name}__", _read_by_host(name, read))
for name in ("lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{name}__", _operator(getattr(operator, name)))
for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift",
             "rshift", "and_", "or_", "xor"):
    word = name.rstrip("_")
    setattr(ndarray, f"__{word}__", _operator(getattr(operator, name)))
    setattr(ndarray, f"__r{word}__", _reflected(getattr(operator, name)))
    if f"__i{word}__" in MEMBERS:
        setattr(ndarray, f"__i{word}__", _in_place(getattr(operator, f"i{word}")))


def _places(shape, key):
    """A key for the host's array, and what it chooses by: "view", "mask" or "integers"."""
    parts = list(key) if isinstance(key, tuple) else [key]
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)             # so that a single entry, too, is an array and a view
    axis, kind = 0, "view"
    for i, part in enumerate(parts):
        if part is Ellipsis:
            axis = len(shape) - sum(map(_axes, parts[i:]))
        elif isinstance(part, ndarray):
            parts[i] = part._host
            if part.dtype == bool:
                sync("boolean mask")
                kind = "mask" if kind == "view" else kind
            elif part.dtype.kind in "iu":
                kind = "integers"
                if axis < len(shape) and shape[axis]:
                    parts[i] = part._host % shape[axis]
            else:
                raise IndexError(f"cupy: index arrays must be of integer or boolean type; "
                                 f"got {part.dtype}")
        elif not (part is None or isinstance(part, (slice, int, numpy.integer))):
            raise TypeError(f"cupy: {type(part).__name__} as an index; lists and NumPy arrays "
                            f"must be moved to the device first")
        axis += _axes(part)
    return tuple(parts), kind


def _axes(part):
    """How many axes this part of a key speaks of."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, ndarray) and part.dtype == bool else 1


def at(ufunc, array, indices, values):
    places, _ = _places(array.shape, indices)
    differences.at(ufunc, array._host, places, _scalar_or_array(f"{ufunc.__name__}.at", values))


def function(name, text, compute, to_host=False):
    """A function of CuPy, with the parameters that CuPy has, computed by NumPy."""
    def call(*args, **settings):
        try:
            bound = signature(text).bind(*args, **settings)
        except TypeError as error:
            raise TypeError(f"cupy.{name}({text}): {error}") from None
        for parameter, value in bound.arguments.items():
            if parameter not in SEQUENCES:
                for part in value if text.startswith(f"*{parameter}") else (value,):
                    _refuse_numbers_in_a_list(name, part)
        if to_host or name.rpartition(".")[2] in differences.WAITING:
            sync(name.rpartition(".")[2])
        result = compute(*map(unwrap, args), **{key: unwrap(x) for key, x in settings.items()})
        if to_host:
            return result
        return wrap(result) if settings.get("out") is None else settings["out"]
    return call


def wrap(value):
    """What NumPy computed as CuPy gives it: a scalar is an array without axes."""
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        if value.dtype.char not in DTYPES:
            raise ValueError(f"cupy: Unsupported dtype {value.dtype}")
        array = object.__new__(ndarray)
        array._host = numpy.asarray(value)
        return array
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(map(wrap, value))
    return value


def unwrap(value):
    """What NumPy may compute with. TypeError for what CuPy would not have taken."""
    if isinstance(value, ndarray):
        return value._host
    if value is None or isinstance(value, (*SCALARS, str, range, type, numpy.dtype)):
        return value
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrap, value))
    raise TypeError(f"cupy: Unsupported type {type(value)}")


def _scalar_or_array(name, value):
    if value is None or isinstance(value, (list, tuple, range, str, type, numpy.dtype)):
        raise TypeError(f"cupy: {name}: Unsupported type {type(value)}")
    return unwrap(value)


def _refuse_numbers_in_a_list(name, value):
    if isinstance(value, (list, tuple, range)) and not (
            value and all(isinstance(part, ndarray) for part in value)):
        raise TypeError(f"cupy: {name}: Unsupported type {type(value)}")
