"""Functions of one array, entry by entry.

Where a function has a kink, the subgradient used there is stated. The branches of a function made
of analytic pieces look at the real part alone, so that a complex step goes through them.
"""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace, special


@op
def exp(x):
    y = namespace(x).exp(x)
    return y, lambda g: (g * y,)


@op
def expm1(x):
    """``exp(x) - 1``, exact near 0."""
    y = namespace(x).expm1(x)
    return y, lambda g: (g * (y + 1),)


@op
def log(x):
    return namespace(x).log(x), lambda g: (g / x,)


@op
def log1p(x):
    """``log(1 + x)``, exact near 0."""
    return namespace(x).log1p(x), lambda g: (g / (1 + x),)


@op
def sqrt(x):
    y = namespace(x).sqrt(x)
    return y, lambda g: (g / (2 * y),)


@op
def square(x):
    return x * x, lambda g: (2 * g * x,)


@op
def abs(x):
    """``|x|``; the cotangent of 0 is 0."""
    sign = namespace(x).sign(x.real)
    return x * sign, lambda g: (g * sign,)


@op
def sin(x):
    xp = namespace(x)
    return xp.sin(x), lambda g: (g * xp.cos(x),)


@op
def cos(x):
    xp = namespace(x)
    return xp.cos(x), lambda g: (-g * xp.sin(x),)


@op
def tanh(x):
    y = namespace(x).tanh(x)
    return y, lambda g: (g * (1 - y * y),)


@op
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow and exact in both tails."""
    xp = namespace(x)
    positive = x.real >= 0
    e = xp.exp(xp.where(positive, -x, x))      # at most 1
    y = xp.where(positive, 1, e) / (1 + e)
    return y, lambda g: (g * e / (1 + e) ** 2,)


@op
def softplus(x):
    """log(1 + exp(x)), without overflow and exact in both tails."""
    xp = namespace(x)
    positive = x.real >= 0
    e = xp.exp(xp.where(positive, -x, x))
    return (xp.where(positive, x, 0) + xp.log1p(e),
            lambda g: (g * xp.where(positive, 1, e) / (1 + e),))


@op
def relu(x):
    """max(x, 0); the cotangent of 0 is 0."""
    positive = x.real > 0
    return x * positive, lambda g: (g * positive,)


@op
def gelu(x):
    """x Phi(x), with the normal distribution function: the exact form (arXiv:1606.08415v5, Section 2)."""
    xp = namespace(x)
    cdf = special(x).ndtr(x)
    return x * cdf, lambda g: (g * (cdf + x * xp.exp(-x * x / 2) / math.sqrt(2 * math.pi)),)


@op
def gelu_tanh(x):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): the approximate form (arXiv:1606.08415v5, Section 2)."""
    c = math.sqrt(2 / math.pi)
    t = namespace(x).tanh(c * (x + 0.044715 * x * x * x))
    return (0.5 * x * (1 + t),
            lambda g: (g * (0.5 * (1 + t)
                            + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)),))


@op
def erf(x):
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    xp = namespace(x)
    return special(x).erf(x), lambda g: (g * (2 / math.sqrt(math.pi)) * xp.exp(-x * x),)


@op
def normal_cdf(x):
    """Phi(x), the standard normal distribution function."""
    xp = namespace(x)
    return special(x).ndtr(x), lambda g: (g * xp.exp(-x * x / 2) / math.sqrt(2 * math.pi),)


@op
def log_normal_cdf(x):
    """log Phi(x), exact in the lower tail. Its derivative phi(x) / Phi(x) is taken by erfcx, for the same reason."""
    sp = special(x)
    return (sp.log_ndtr(x),
            lambda g: (g * math.sqrt(2 / math.pi) / sp.erfcx(-x / math.sqrt(2)),))


@op
def log_gamma(x):
    """log |Gamma(x)|."""
    sp = special(x)
    return sp.gammaln(x), lambda g: (g * sp.digamma(x),)


@op
def round_to_bfloat16(x):
    """A float32 array rounded to the nearest bfloat16, ties to even, and kept as float32.

    The cotangent passes unchanged (straight-through). TypeError for another dtype.
    """
    if x.dtype != "float32":
        raise TypeError(f"round_to_bfloat16: needs a float32 array; got {x.dtype}")
    xp = namespace(x)
    bits = x.view("uint32")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000
    y = xp.where(xp.isfinite(x), rounded.view("float32"), x)
    return y, lambda g: (g,)


@op
def astype(x, *, dtype):
    """``x`` in another floating dtype; the cotangent comes back in the first one."""
    before = x.dtype
    return x.astype(dtype), lambda g: (g.astype(before),)
