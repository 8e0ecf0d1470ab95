"""Is a vjp the derivative of its function? Held to complex step, or to finite differences.

    >>> check_vjp(lambda x: ops.tanh(x) * x, x, rng=rng)

The function is seen three ways: on Tensors (the vjp under test), on plain arrays, and on complex
arrays, where f(x + ih v) carries its own derivative along v in the imaginary part, free of
cancellation (W. Squire and G. Trapp, SIAM Review 40(1):110-112, 1998).

A complex step is believed only where finite differences on both sides agree with it, as far as they
can tell: it is blind to kinks and jumps, and wrong for a function that is not analytic or drops the
imaginary part. Such a function, or one that refuses complex numbers, is held to the differences
themselves. From without, neither the length on which a function bends nor the rounding inside it is
known; so differences are taken with steps of all sizes, and each says how far it may be off.
"""
import warnings
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, NamedTuple

import numpy

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, newest_first, pullback
from minimoe.backend import is_array, namespace, to_numpy

COMPLEX_STEP = 1e-30        # vanishes beside 1 when squared, so the step has no truncation error
STEPS = 0.25 ** numpy.arange(2, 21)    # of differences, in units of the entries: 0.06 to 1e-12
EPS = 2.0 ** -52
SMALLEST = 1e-270           # of sums: less would lose digits, being subnormal in a complex step
ANALYTIC_TOLERANCE = 1e-13
DIFFERENCE_TOLERANCE = 1e-6
ENTRIES_SEARCHED = 1000     # one by one for the worst, once a check has failed


class VjpError(AssertionError):
    """A vjp that is not the derivative of its function; the message says where and how."""


def check_vjp(f, *args, rng, side=0):
    """Hold the vjp of ``f`` at ``args`` to its derivative; return the largest relative error.

    ``args`` are float64 arrays or trees of them; ``f`` takes them as arrays, Tensors or complex
    arrays and returns one array. For each array among them a random direction v, in units of its
    entries, and a random cotangent g are drawn from ``rng``, and <pullback(g), v> is compared with
    <g, df/dx v>: within 1e-13 of their terms by complex step where ``f`` is analytic, within 1e-6
    by differences where it is not. At a kink give ``side``: +1 compares with the derivative from
    above, -1 with that from below, entry by entry (the direction is positive).

    An error that rounding explains is let pass: 1e-14 of all intermediates weighed by their
    cotangents, and what changing the arguments by a few eps does to the derivative. What
    ``stop_gradient`` hides is part of the function here: a vjp that ignores a smooth dependence is
    rejected, so hand the stopped value in as a constant.

    VjpError for a value that differs between arrays and Tensors, inputs or cotangents that were
    written into, a vjp that is not finite, not linear in g or another when called again, a kink or
    jump where none was announced, and a wrong derivative: it names the argument and the worst
    entry. TypeError for arguments that are not float64, or a function that does not return a
    float64 array for arrays and a Tensor for Tensors. ValueError where they are not finite, or
    there is nothing to check.
    """
    if side not in (-1, 0, 1):
        raise ValueError(f"check_vjp: side must be -1, 0 or 1; got {side}")
    leaves = _named(args)
    _check_arguments(leaves)
    value = _value(f, args)
    g = namespace(value).asarray(rng.standard_normal(value.shape))
    flows, size = _flows(f, args, value, g)

    worst = 0.0
    for name, flow in flows.items():
        line = _Line(f, args, name, value, g, flow, _direction(leaves[name], rng, side), size)
        method, tolerance = _method(line, side)
        derivative, doubt = method(line)
        error, scale = abs(line.found - derivative), line.terms + 0.1 * size + SMALLEST
        if error > tolerance * scale + doubt and method is _by_complex_step:
            doubt += _derivative_noise(line, derivative, rng)
        if not error <= tolerance * scale + doubt:
            raise VjpError(f"check_vjp: {name}: relative error {error / scale:.1e}, allowed "
                           f"{tolerance:.0e}; {_worst_entry(line, method)}")
        worst = max(worst, error / max(scale, doubt / tolerance))
    return worst


# -- The vjp -------------------------------------------------------------------------------------

def _named(args):
    """Leaves of the arguments by name: ``argument 0``, or ``argument 0 (w_in)`` inside a tree."""
    named = {}
    for i, arg in enumerate(args):
        for name, leaf in tree.named_leaves(arg).items():
            named[f"argument {i} ({name})" if name else f"argument {i}"] = leaf
    return named


def _check_arguments(leaves):
    if not leaves:
        raise ValueError("check_vjp: needs at least one array to differentiate by; got none")
    for name, x in leaves.items():
        if not is_array(x) or x.dtype != "float64":
            raise TypeError(f"check_vjp: arguments must be float64 arrays; {name} is "
                            f"{x.dtype if is_array(x) else type(x).__name__}")
        if not numpy.isfinite(to_numpy(x)).all():
            raise ValueError(f"check_vjp: arguments must be finite; {name} is not")


def _value(f, args):
    """The function's value on arrays."""
    with _unwritten(_named(args)):
        value = f(*args)
    if not is_array(value) or value.dtype != "float64":
        raise TypeError(f"check_vjp: given arrays, the function must return a float64 array; "
                        f"got {value.dtype if is_array(value) else type(value).__name__}")
    if not numpy.isfinite(to_numpy(value)).all():
        raise ValueError("check_vjp: the function's value must be finite; it is not")
    return value


def _flows(f, args, value, g):
    """Cotangents of all leaves by name, once the vjp is seen to be finite, linear and repeatable.

    And the size of what is added up on the way: rounding costs a few eps of it.
    """
    with _unwritten({**_named(args), "the cotangent": g}):
        out, tensors = _recorded(f, args)
        if out.shape != value.shape or not _near(out.array, value):
            raise VjpError("check_vjp: the value on Tensors differs from the value on arrays")
        flows, again = (dict(zip(_named(args), tree.leaves(pullback(out, h, tensors))))
                        for h in (g, -2 * g))      # which is exact in floating point
    size = _size(out, g)
    for name, x in _named(args).items():
        if not numpy.isfinite(to_numpy(flows[name])).all():
            raise VjpError(f"check_vjp: {name}: the vjp is not finite")
        units = _units(x)
        if not _near(again[name] * units, -2 * flows[name] * units, at_least=0.1 * size + SMALLEST):
            raise VjpError(f"check_vjp: {name}: the vjp is not linear in its cotangent, "
                           f"or changes from call to call")
    return flows, size


def _size(out, g):
    """What all intermediates, weighed by their cotangents, add up to; infinite ones weigh nothing.

    A logit of -inf, which hides one of several choices, has the cotangent 0.
    """
    size, nodes = 0.0, newest_first(out)
    with numpy.errstate(all="ignore"):
        for node, flow in zip(nodes, pullback(out, g, nodes)):
            xp, terms = namespace(flow), abs(flow * node.array)
            size += float(xp.where(xp.isfinite(terms), terms, 0).sum())
    return size


def _recorded(f, args):
    """The function's value on Tensors, and those."""
    tensors = tree.map(Tensor, args)
    out = f(*tensors)
    if not isinstance(out, Tensor):
        raise TypeError(f"check_vjp: given Tensors, the function must return one; "
                        f"got {type(out).__name__}")
    return out, tensors


@contextmanager
def _unwritten(arrays):
    """VjpError if any of these, given by name, is another afterwards."""
    before = {name: to_numpy(x).copy() for name, x in arrays.items()}
    yield
    for name, x in arrays.items():
        if not numpy.array_equal(to_numpy(x), before[name]):
            raise VjpError(f"check_vjp: {name} was written into")


def _near(a, b, at_least=0.0):
    """Equal but for the order of summing, which a GPU does not keep."""
    a, b = to_numpy(a), to_numpy(b)
    return bool((abs(a - b) <= 1e-12 * max(abs(b).max(initial=0.0), at_least)).all())


# -- The derivative ------------------------------------------------------------------------------

class _Line(NamedTuple):
    """The function along a line through one leaf of its arguments, t -> f(x + t v)."""

    f: Callable
    args: tuple
    name: str    # of the leaf
    value: Any   # f(x)
    g: Any       # cotangent
    flow: Any    # what the vjp made of it
    v: Any
    size: float  # of the terms in <g, f>

    def at(self, t):
        names = iter(_named(self.args))
        return self.f(*tree.map(
            lambda x: x + t * self.v if next(names) == self.name else x, self.args))

    @property
    def found(self):
        """<pullback(g), v>, under test."""
        return float((self.flow * self.v).sum())

    @property
    def terms(self):
        return float(abs(self.flow * self.v).sum())


class _Slopes(NamedTuple):
    """Estimates of one derivative, each with how far it may be off."""

    values: numpy.ndarray
    doubts: numpy.ndarray
    blind: bool    # rounding is within three digits of all that was seen

    def finest(self):
        """What the smallest steps say, narrowed by larger ones until one contradicts them."""
        low, high = -numpy.inf, numpy.inf
        for value, doubt in reversed(list(zip(self.values, self.doubts))):
            if value - doubt > high or value + doubt < low:
                break
            low, high = max(low, value - doubt), min(high, value + doubt)
        return (low + high) / 2, (high - low) / 2

    def candidates(self):
        """The finest estimate; and the surest, should rounding have spoilt small steps."""
        sure = self.doubts <= 4 * self.doubts.min()
        return [self.finest(), *zip(self.values[sure], self.doubts[sure])]

    def nearest(self, other):
        """The candidate that ``other`` lies furthest within the doubt of, or least beyond."""
        return min(self.candidates(), key=lambda estimate: abs(estimate[0] - other) - estimate[1])

    def allow(self, other, doubt=0.0):
        value, own = self.nearest(other)
        return abs(value - other) <= own + doubt


def _direction(x, rng, side):
    """A random direction in units of the entries of x, or of 1 where they are 0."""
    xp = namespace(x)
    v = rng.standard_normal(x.shape)
    return xp.asarray(abs(v) + 0.1 if side else v) * _units(x)


def _units(x):
    return namespace(x).where(x == 0, 1.0, abs(x))


def _method(line, side):
    """What finds the derivative along a line, and how near to it a vjp must come."""
    if side:
        return partial(_by_differences, side=side), DIFFERENCE_TOLERANCE
    above, below = _slopes(line, 1), _slopes(line, -1)
    exact, _ = _by_complex_step(line)
    if all(slopes.allow(exact) or slopes.blind and exact == exact for slopes in (above, below)):
        return _by_complex_step, ANALYTIC_TOLERANCE
    if not any(above.allow(*estimate) for estimate in below.candidates()):
        raise VjpError(f"check_vjp: {line.name}: the function has a kink or a jump here (slopes "
                       f"{below.finest()[0]:.6g} and {above.finest()[0]:.6g}); "
                       f"move away, or give a side")
    return partial(_by_differences, side=1), DIFFERENCE_TOLERANCE


def _by_complex_step(line):
    """<g, df/dx v>, and how far it may be off: about as far as the real part is from f(x).

    NaN for a function that refuses complex numbers, or has another value for them.
    """
    try:
        with numpy.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", numpy.exceptions.ComplexWarning)
            moved = line.at(1j * COMPLEX_STEP)
    except (TypeError, ValueError, numpy.exceptions.ComplexWarning):
        return numpy.nan, 0.0
    size = max(float(abs(line.g * line.value).sum()), 1e-3 * line.size, COMPLEX_STEP)
    off = float(abs(line.g * (moved.real - line.value)).sum()) / size
    if off > DIFFERENCE_TOLERANCE:
        return numpy.nan, 0.0
    return float((line.g * moved.imag).sum()) / COMPLEX_STEP, 10 * off * line.terms


def _by_differences(line, side):
    """The same by differences: of those that may be right, the nearest to what the vjp found."""
    return _slopes(line, side).nearest(line.found)


def _slopes(line, side):
    """The derivative to one side, by second-order differences with ever smaller steps.

    Each may be off by what it differs from those before it, and by rounding.
    """
    with numpy.errstate(all="ignore"):
        rises = [float((line.g * (line.at(side * h) - line.value)).sum()) for h in STEPS]
        first_order = side * numpy.array(rises) / STEPS
        values = (4 * first_order[1:] - first_order[:-1]) / 3
        changes = abs(numpy.diff(values))
        noise = 8 * EPS * line.size
        doubts = numpy.maximum(changes[1:], changes[:-1]) + noise / STEPS[3:]
    return _Slopes(values[2:], numpy.where(numpy.isfinite(doubts), doubts, numpy.inf),
                   blind=noise > 1e-3 * abs(numpy.array(rises)).max())


def _shaken(args, rng):
    """The arguments changed by a few eps, as often as is needed to see what that does."""
    for _ in range(4):
        yield tree.map(lambda x: x * (1 + 4 * EPS * namespace(x).asarray(
            rng.choice([-1.0, 1.0], x.shape))), args)


def _derivative_noise(line, derivative, rng):
    """How far either derivative may be off by rounding: in its third digit at most."""
    changes = []
    for args in _shaken(line.args, rng):
        out, tensors = _recorded(line.f, args)
        flow = pullback(out, line.g, _named(tensors)[line.name])
        near = line._replace(args=args, flow=flow)
        changes += [abs(near.found - line.found), abs(_by_complex_step(near)[0] - derivative)]
    return min(10 * max(changes), 1e-3 * (line.terms + line.size))


def _worst_entry(line, method):
    """Where in the argument the vjp is furthest from the derivative.

    Where there are many entries, it is sought in the half that does worse, and again in its half.
    """
    v = to_numpy(line.v)

    def along(places):
        part = numpy.zeros(v.size)
        part[places] = v.ravel()[places]
        part = line._replace(v=namespace(line.v).asarray(part.reshape(v.shape)))
        return part.found, method(part)[0]

    def error(places):
        found, derivative = along(places)
        return abs(found - derivative)

    places = numpy.arange(v.size)
    while places.size > ENTRIES_SEARCHED:
        places = max(numpy.array_split(places, 2), key=error)
    place = max(places, key=lambda place: error(place) / abs(v.flat[place]))
    found, derivative = along(place)
    step = v.flat[place]
    where = tuple(int(i) for i in numpy.unravel_index(place, v.shape))
    return f"worst at {where}: vjp {found / step:.6g}, derivative {derivative / step:.6g}"
