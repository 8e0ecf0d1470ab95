"""Arithmetic with broadcasting, and choosing between two arrays entry by entry.

The cotangent of an argument that was broadcast is summed back by the engine, so none of these
vjps mentions it. A Python number takes the dtype of the array that it meets.
"""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def add(a, b):
    """``a + b``."""
    return a + b, (_same, _same)


def _same(g):
    return g


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
    """``x ** c``; ``x`` has cotangent 0 where ``c`` is 0, and ``c`` where ``x`` is 0."""
    y = x ** c

    def to_x(g):
        return g * c * x ** ((c - 1) * (c != 0))

    def to_c(g):
        xp = namespace(g)
        return g * y * xp.log(xp.asarray(x + (x == 0), dtype=y.dtype))

    return y, (to_x, to_c)


@op
def maximum(a, b):
    """The larger, entry by entry, or NaN; where they are equal each has half the cotangent."""
    xp = namespace(a, b)
    return xp.maximum(a, b), (lambda g: xp.where(a == b, g / 2, g) * ~(a < b),
                              lambda g: xp.where(a == b, g / 2, g) * ~(b < a))


@op
def minimum(a, b):
    """The smaller, entry by entry, or NaN; where they are equal each has half the cotangent."""
    xp = namespace(a, b)
    return xp.minimum(a, b), (lambda g: xp.where(a == b, g / 2, g) * ~(a > b),
                              lambda g: xp.where(a == b, g / 2, g) * ~(b > a))


@op
def where(condition, a, b):
    """``a`` where the boolean ``condition`` holds, ``b`` elsewhere."""
    xp = namespace(condition, a, b)
    return xp.where(condition, a, b), (None,
                                       lambda g: xp.where(condition, g, 0),
                                       lambda g: xp.where(condition, 0, g))


@op
def clip(x, *, low=-math.inf, high=math.inf):
    """``x`` held between two numbers; the cotangent passes where ``low <= x <= high``."""
    xp = namespace(x)
    low, high = float(low), float(high)
    y = xp.clip(x, low, high)
    return y, lambda g: (g * ((x >= low) & (x <= high)),)
