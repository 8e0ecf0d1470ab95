"""The error function, the normal distribution function, and the logarithm of the gamma function.

Each within 4 units in the last place (2^-52) of its value, infinities and subnormals included.
Libraries lose digits in two places. The lower tail of the normal distribution hangs on exp(-x^2/2),
where rounding x^2 costs up to x^2 / 4 units; and log Gamma is a difference of near equals beside
its zeros, 1 and 2. Both are mended here, for the entries concerned.
"""
import math
from functools import cache

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace, special


@op
def erf(x):
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return special(x).erf(x), lambda g: (g * bell(x * math.sqrt(2)) * (2 / math.sqrt(math.pi)),)


def bell(x):
    """exp(-x^2 / 2), not differentiable.

    x is split into a, so short that a^2 is exact, and what remains.
    """
    xp = namespace(x)
    x = xp.clip(x, -40, 40)        # where the result has long underflowed
    a = xp.rint(x.real * 16) / 16
    return xp.exp(-a * a / 2) * xp.exp((a - x) * (a + x) / 2)


@op
def normal_cdf(x):
    """Phi(x), the standard normal distribution function."""
    xp = namespace(x)
    y = xp.asarray(special(x).ndtr(x))
    tail = x.real < -1
    y[tail] = _over_bell(x[tail]) * bell(x[tail])
    return y, lambda g: (g * bell(x) / math.sqrt(2 * math.pi),)


def _over_bell(x):
    """Phi(x) / exp(-x^2 / 2), which does not underflow in the lower tail."""
    return special(x).erfcx(x / -math.sqrt(2)) / 2


@op
def log_normal_cdf(x):
    """log Phi(x)."""
    xp = namespace(x)
    y = xp.asarray(xp.log1p(-normal_cdf(-xp.maximum(x, -1))))
    tail = x.real < -1
    t = x[tail]
    y[tail] = xp.log(_over_bell(xp.maximum(t, -1e30))) - t * t / 2
    return y, lambda g: (g / (_over_bell(x) * math.sqrt(2 * math.pi)),)


@op
def log_gamma(x):
    """log |Gamma(x)|; its slope is the digamma function.

    For negative x, between the poles, the error is relative to the terms: the sum has zeros there.
    """
    xp, library = namespace(x), special(x)
    y = xp.asarray(library.loggamma(x) if x.dtype.kind == "c" else library.gammaln(x))
    near = (x.real > -0.5) & (x.real < 2.5) & (x != 0)
    y[near] = _log_gamma_near_two(x[near])
    return y, lambda g: (g * library.digamma(x),)


def _log_gamma_near_two(x):
    """log |Gamma(x)| for x in (-1/2, 5/2), by a series in z, the distance to 0, 1 or 2.

    log Gamma(2 + z) = (1 - gamma) z + sum over k > 1 of (-1)^k (zeta(k) - 1) z^k / k
    (NIST Handbook of Mathematical Functions, 5.7.3), and Gamma(2 + z) = (1 + z) z Gamma(z).
    """
    xp = namespace(x)
    steps = xp.floor(2.5 - x.real)      # from x up to the neighbourhood of 2
    z = x + (steps - 2)
    y = xp.zeros_like(z)
    for c in _series():
        y = (y + c) * z
    size = xp.where(steps == 2, z * xp.sign(z.real), 1)
    return y - (steps > 0) * xp.log1p(z) - xp.log(size)


@cache
def _series():
    """The coefficients of z^26 ... z^1; for |z| <= 1/2 the rest is below the last place."""
    zeta = special().zeta
    return [float(zeta(k, 2)) * (-1) ** k / k for k in range(26, 1, -1)] + [1 - 0.5772156649015329]
