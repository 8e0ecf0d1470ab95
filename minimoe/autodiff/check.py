"""Is a vjp the derivative of its function? Held to complex step, or to finite differences.

    >>> check_vjp(lambda x: ops.tanh(x) * x, x, rng=rng)

The function is seen three ways: on Tensors (the vjp under test), on plain arrays, and on complex
arrays, where f(x + ih v) carries its own derivative along v in the imaginary part, free of
cancellation. A function that is not analytic, or refuses complex numbers, is held to differences.
"""
import warnings

import numpy

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import namespace, to_numpy

COMPLEX_STEP = 1e-30       # vanishes beside 1 when squared, so the step has no truncation error
DIFFERENCE_STEP = 1e-5     # where rounding and truncation of a second-order difference meet
ANALYTIC_TOLERANCE = 1e-13
DIFFERENCE_TOLERANCE = 1e-6
ENTRIES_SEARCHED = 2000    # for the worst entry, once a check has failed


class VjpError(AssertionError):
    """A vjp that is not the derivative of its function; the message says where and how."""


def check_vjp(f, *args, rng, side=0):
    """Hold the vjp of ``f`` at ``args`` to its derivative; return the largest relative error.

    ``args`` are float64 arrays or trees of them; ``f`` takes them as arrays, Tensors or complex
    arrays and returns one array. For each argument a random direction v and a random cotangent g
    are drawn from ``rng``, and <pullback(g), v> is compared with <g, df/dx v>: within 1e-13 of its
    terms by complex step where ``f`` is analytic, within 1e-6 by differences where it is not. At a
    kink give ``side``: +1 compares with the derivative from above, -1 with that from below, entry
    by entry (the direction is positive).

    VjpError for a value that differs between arrays and Tensors, inputs or cotangents that were
    written into, a vjp that is not finite or not linear in g, a kink where none was announced, and
    a wrong derivative: it names the argument and the worst entry. TypeError for arguments that
    are not float64, or a function that does not return a Tensor when given Tensors.
    """
    leaves = _named(args)
    for name, x in leaves.items():
        if getattr(x, "dtype", None) != "float64":
            raise TypeError(f"check_vjp: arguments must be float64 arrays; {name} is "
                            f"{getattr(x, 'dtype', type(x).__name__)}")
    before = {name: to_numpy(x).copy() for name, x in leaves.items()}
    value = f(*args)
    move = namespace(value).asarray
    g = move(rng.standard_normal(value.shape))
    flows = _pulled_back(f, args, value, g)
    for name, x in leaves.items():
        if not numpy.array_equal(to_numpy(x), before[name], equal_nan=True):
            raise VjpError(f"check_vjp: {name} was written into")

    worst = 0.0
    for (name, x), flow in zip(leaves.items(), flows):
        v = rng.standard_normal(x.shape)
        v = move(numpy.abs(v) + 0.1 if side else v)
        derivative, tolerance = _derivative(f, args, name, v, g, side)
        terms = flow * v
        scale = max(float(abs(terms).sum()), abs(derivative),
                    1e-2 * float(abs(g * value).sum()), 1e-300)
        error = abs(float(terms.sum()) - derivative) / scale
        if not error <= tolerance:
            raise VjpError(f"check_vjp: {name}: relative error {error:.1e}, allowed "
                           f"{tolerance:.0e}; {_worst_entry(f, args, name, x, flow, g, side)}")
        worst = max(worst, error)
    return worst


def _named(args):
    """Leaves of the arguments by name: ``argument 0``, or ``argument 0 (w_in)`` inside a tree."""
    named = {}
    for i, arg in enumerate(args):
        for name, leaf in tree.named_leaves(arg).items():
            named[f"argument {i} ({name})" if name else f"argument {i}"] = leaf
    return named


def _pulled_back(f, args, value, g):
    """The vjp's answer for each leaf, once it has shown that it is one: repeatable, linear, finite."""
    tensors = tree.map(Tensor, args)
    out = f(*tensors)
    if not isinstance(out, Tensor):
        raise TypeError(f"check_vjp: given Tensors, the function must return one; "
                        f"got {type(out).__name__}")
    if not numpy.array_equal(to_numpy(out.array), to_numpy(value), equal_nan=True):
        raise VjpError("check_vjp: the value on Tensors differs from the value on arrays")
    kept = to_numpy(g).copy()
    flows = tree.leaves(pullback(out, g, tensors))
    if not numpy.array_equal(to_numpy(g), kept):
        raise VjpError("check_vjp: the vjp wrote into its cotangent")
    scaled = tree.leaves(pullback(out, -2 * g, tensors))     # exact in floating point, if linear
    for name, flow, twice in zip(_named(args), flows, scaled):
        if not numpy.isfinite(to_numpy(flow)).all():
            raise VjpError(f"check_vjp: {name}: the vjp is not finite")
        if not numpy.array_equal(to_numpy(twice), to_numpy(-2 * flow)):
            raise VjpError(f"check_vjp: {name}: the vjp is not linear in its cotangent, "
                           f"or changes from call to call")
    return flows


def _derivative(f, args, name, v, g, side):
    """<g, df/dx v> for the leaf ``name``, and how far a vjp may be from it."""
    def along(step):
        return f(*_replace(args, name, lambda x: x + step * v))

    def difference(sign):
        """Second-order, to one side: what a smooth function and a kink both allow."""
        h = sign * DIFFERENCE_STEP * size
        return float((g * (4 * along(h) - along(2 * h) - 3 * f(*args))).sum()) / (2 * h)

    size = max(1.0, float(abs(_named(args)[name]).max())) if v.size else 1.0
    if side:
        return difference(side), DIFFERENCE_TOLERANCE
    above, below = difference(1), difference(-1)
    middle = (above + below) / 2
    scale = max(abs(above), abs(below), float(abs(g * f(*args)).sum()))
    if not abs(above - below) <= 1e-3 * scale:
        raise VjpError(f"check_vjp: {name}: the function has a kink or a jump here "
                       f"(slopes {below:.6g} and {above:.6g}); move away, or give a side")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", numpy.exceptions.ComplexWarning)
            moved = along(1j * COMPLEX_STEP)
    except (TypeError, numpy.exceptions.ComplexWarning):
        return middle, DIFFERENCE_TOLERANCE
    exact = float((g * moved.imag).sum()) / COMPLEX_STEP
    if abs(exact - middle) <= 1e-4 * scale:
        return exact, ANALYTIC_TOLERANCE
    return middle, DIFFERENCE_TOLERANCE      # not analytic: the imaginary part is no derivative


def _replace(args, name, change):
    """The arguments with one leaf changed."""
    names = iter(_named(args))
    return tree.map(lambda x: change(x) if next(names) == name else x, args)


def _worst_entry(f, args, name, x, flow, g, side):
    """Where in the argument the vjp is furthest from the derivative."""
    worst = (-1.0, "")
    for place in list(numpy.ndindex(x.shape))[:ENTRIES_SEARCHED]:
        unit = numpy.zeros(x.shape)
        unit[place] = 1
        derivative, _ = _derivative(f, args, name, namespace(x).asarray(unit), g, side)
        distance = abs(float(flow[place]) - derivative)
        worst = max(worst, (distance, f"worst at {place}: vjp {float(flow[place]):.6g}, "
                                      f"derivative {derivative:.6g}"))
    return worst[1]
