"""Arithmetic with broadcasting, and choosing between two arrays entry by entry.

The cotangent of an argument that was broadcast is summed back by the engine, so none of these
vjps mentions it.
"""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def add(a, b):
    """``a + b``."""
    return a + b, (lambda g: g, lambda g: g)


@op
def subtract(a, b):
    """``a - b``."""
    return a - b, (lambda g: g, lambda g: -g)


@op
def multiply(a, b):
    """``a * b``, entry by entry."""
    return a * b, (lambda g: g * b, lambda g: g * a)


@op
def divide(a, b):
    """``a / b``, entry by entry."""
    y = a / b
    return y, (lambda g: g / b, lambda g: -g * y / b)


@op
def negative(x):
    """``-x``."""
    return -x, lambda g: (-g,)


@op
def power(x, c):
    """``x ** c``. The derivative by ``c`` is 0 where ``x`` is 0, and so is that by ``x`` where ``c`` is 0."""
    y = x ** c

    def to_x(g):
        xp = namespace(g)
        slope = c * x ** xp.where(c == 0, 1, c - 1) if hasattr(c, "shape") else c and c * x ** (c - 1)
        return g * slope

    def to_c(g):
        xp = namespace(g)
        return g * y * xp.log(xp.where(x == 0, 1, x))

    return y, (to_x, to_c)


@op
def maximum(a, b):
    """The larger, entry by entry; where they are equal each receives half the cotangent."""
    return _choose(a, b, lambda p, q: p > q)


@op
def minimum(a, b):
    """The smaller, entry by entry; where they are equal each receives half the cotangent."""
    return _choose(a, b, lambda p, q: p < q)


def _choose(a, b, better):
    xp = namespace(a, b)
    real_a, real_b = a.real, b.real
    first = better(real_a, real_b)
    y = xp.where(first | (real_a != real_a), a, b)     # a NaN on either side is passed on
    tie = real_a == real_b

    def share(chosen, g):
        return g * (chosen + 0.5 * tie).astype(g.dtype)

    return y, (lambda g: share(first, g),
               lambda g: share(~first & ~tie, g))


@op
def where(condition, a, b):
    """``a`` where the boolean ``condition`` holds, ``b`` elsewhere."""
    xp = namespace(condition, a, b)
    return (xp.where(condition, a, b),
            (None, lambda g: xp.where(condition, g, 0),
             lambda g: xp.where(condition, 0, g)))


@op
def clip(x, *, low=-math.inf, high=math.inf):
    """``x`` held between two numbers; the cotangent passes where ``low <= x <= high``."""
    inside = (x.real >= low) & (x.real <= high)
    xp = namespace(x)
    return xp.where(inside, x, x.real.clip(low, high)), lambda g: (g * inside,)
