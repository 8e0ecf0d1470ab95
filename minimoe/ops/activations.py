"""What networks put between their layers.

One formula serves every x: an argument is clamped where its function has reached a limit to the
last digit, so that nothing overflows and infinities come out right.
"""
import math

from minimoe.autodiff.tensor import op
from minimoe.backend import namespace
from minimoe.ops.special_functions import bell, normal_cdf


@op
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    xp = namespace(x)
    e = xp.exp(xp.clip(x, -math.inf, 80))   # 1 + exp(-80) is 1, and exp(80) is still a float32
    y = e / (1 + e)
    return y, lambda g: (y / (1 + e) * g,)


@op
def softplus(x):
    """log(1 + exp(x)); its slope is the sigmoid."""
    xp = namespace(x)
    y = xp.maximum(x, 0) + xp.log1p(xp.exp(xp.minimum(x, -x)))
    return y, lambda g: (sigmoid(x) * g,)


@op
def relu(x):
    """max(x, 0); the cotangent of 0 is 0."""
    y = namespace(x).maximum(x, 0)
    return y, lambda g: (g * (y != 0),)


@op
def gelu(x):
    """x Phi(x), with the normal distribution function (arXiv:1606.08415v5, Section 2)."""
    xp = namespace(x)
    cdf = normal_cdf(x)
    y = xp.maximum(x, -40) * cdf

    def vjp(g):
        return (g * (cdf + xp.clip(x, -40, 40) * bell(x) / math.sqrt(2 * math.pi)),)

    return y, vjp


@op
def gelu_tanh(x):
    """0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3) (arXiv:1606.08415v5, Section 2).

    Computed as x sigmoid(2 u), which is the same and does not cancel in the lower tail; there the
    relative error is that of u times the size of u.
    """
    xp = namespace(x)
    t = xp.clip(x, -40, 40)
    c = 2 * math.sqrt(2 / math.pi)
    s = sigmoid(c * (t + 0.044715 * t * t * t))

    def vjp(g):
        return (g * (s + t * s * (1 - s) * (c * (1 + 3 * 0.044715 * t * t))),)

    return xp.maximum(x, -40) * s, vjp
