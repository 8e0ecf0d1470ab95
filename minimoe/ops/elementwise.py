"""Functions of one array, entry by entry, and its precision."""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def exp(x):
    """e^x."""
    y = namespace(x).exp(x)
    return y, lambda g: (g * y,)


@op
def expm1(x):
    """e^x - 1, exact near 0."""
    xp = namespace(x)
    return xp.expm1(x), lambda g: (g * xp.exp(x),)


@op
def log(x):
    """The natural logarithm."""
    return namespace(x).log(x), lambda g: (g / x,)


@op
def log1p(x):
    """log(1 + x), exact near 0."""
    return namespace(x).log1p(x), lambda g: (g / (1 + x),)


@op
def sqrt(x):
    """The square root; at 0 its slope is infinite."""
    y = namespace(x).sqrt(x)
    return y, lambda g: (g / (2 * y),)


@op
def square(x):
    """x^2."""
    return x * x, lambda g: (2 * g * x,)


@op
def abs(x):
    """|x|; the cotangent of 0 is 0."""
    sign = namespace(x).sign(x.real)
    return x * sign, lambda g: (g * sign,)


@op
def sin(x):
    """The sine of an angle in radians."""
    xp = namespace(x)
    return xp.sin(x), lambda g: (g * xp.cos(x),)


@op
def cos(x):
    """The cosine of an angle in radians."""
    xp = namespace(x)
    return xp.cos(x), lambda g: (-g * xp.sin(x),)


@op
def tanh(x):
    """The hyperbolic tangent."""
    y = namespace(x).tanh(x)
    return y, lambda g: ((1 - y * y) * g,)


@op
def astype(x, *, dtype):
    """``x`` in another floating dtype; the cotangent comes back in the first one.

    TypeError for a dtype other than float32 and float64.
    """
    if namespace(x).dtype(dtype) not in ("float32", "float64"):
        raise TypeError(f"astype: the dtype must be float32 or float64; got {dtype}")
    before = x.dtype
    return x.astype(dtype), lambda g: (g.astype(before),)


@op
def round_to_bfloat16(x):
    """A float32 array rounded to the nearest bfloat16, ties to even, and kept as float32.

    The cotangent passes unchanged (straight-through). TypeError for another dtype.
    """
    if x.dtype != "float32":
        raise TypeError(f"round_to_bfloat16: needs a float32 array; got {x.dtype}")
    xp = namespace(x)
    finite = xp.isfinite(x)
    bits = xp.where(finite, x, 0).view("uint32")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
    return xp.where(finite, rounded.view("float32"), x), lambda g: (g,)
