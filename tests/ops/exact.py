"""Functions to 50 digits, by mpmath, on grids that go to every extreme of float64.

The error of a value is counted in units of 2^-52 of the value itself, or of the smallest normal
number where it lies below; of a slope, in units of 1 or of the slope, whichever is larger.
"""
from functools import cache
from typing import Callable, NamedTuple

import mpmath
import numpy as np
from mpmath import mp, mpf

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy

mp.dps = 50
EPS, TINY, LARGEST = (float(getattr(np.finfo(float), name)) for name in ("eps", "tiny", "max"))
INF = float("inf")


class Function(NamedTuple):
    """What an operation computes, and its derivative, between two ends of its domain."""

    value: Callable
    slope: Callable
    low: float = -INF
    limits: tuple = (-INF, INF)           # at minus and plus infinity
    allowed: Callable = lambda x: 4       # units
    least: float = TINY                   # the size below which units no longer shrink


def _clamped(f):
    """``f`` with its argument held where mpmath can go and the result has long underflowed."""
    return lambda x: f(max(min(x, mpf(10)**5), -mpf(10)**5))


def _normal_cdf(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def _log_normal_cdf(x):
    if x < -10**5:                        # three terms of the tail's asymptotic series
        return -x * x / 2 - mp.log(-x * mp.sqrt(2 * mp.pi)) - 1 / x**2
    return mp.log1p(-_clamped(_normal_cdf)(-x)) if x > 0 else mp.log(_normal_cdf(x))


def _log_normal_slope(x):
    if x < -10**5:
        return -x - 1 / x
    return _clamped(lambda x: mp.npdf(x) / _normal_cdf(x))(x)


def _log_gamma(x):
    return mp.log(mp.gamma(x)) if x < 10 else mp.loggamma(x)


def _sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def _tanh_argument(x):
    return mp.sqrt(2 / mp.pi) * (x + mpf("0.044715") * x**3)


def _gelu_tanh_slope(x):
    s, u = _sigmoid(2 * _tanh_argument(x)), mp.sqrt(2 / mp.pi) * (1 + 3 * mpf("0.044715") * x * x)
    return s + 2 * x * s * (1 - s) * u


FUNCTIONS = {
    "cos": Function(mp.cos, lambda x: -mp.sin(x), limits=None),
    "erf": Function(_clamped(mp.erf), _clamped(lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x)),
                    limits=(-1, 1)),
    "exp": Function(_clamped(mp.exp), _clamped(mp.exp), limits=(0, INF)),
    "expm1": Function(_clamped(mp.expm1), _clamped(mp.exp), limits=(-1, INF)),
    # the two factors of gelu's tail meet below the normal numbers when x Phi(x) is 40 times as far
    "gelu": Function(lambda x: x * _clamped(_normal_cdf)(x),
                     _clamped(lambda x: _normal_cdf(x) + x * mp.npdf(x)),
                     limits=(0, INF), least=40 * TINY),
    # the rounding of the cubic argument is multiplied by its size
    "gelu_tanh": Function(lambda x: x * _sigmoid(2 * _clamped(_tanh_argument)(x)),
                          _clamped(_gelu_tanh_slope), limits=(0, INF), least=40 * TINY,
                          allowed=lambda x: 4 + 4 * abs(_tanh_argument(x))),
    "log": Function(mp.log, lambda x: 1 / x, low=0.0, limits=(None, INF)),
    "log1p": Function(mp.log1p, lambda x: 1 / (1 + x), low=-1.0, limits=(None, INF)),
    "log_gamma": Function(_log_gamma, mp.digamma, low=0.0, limits=(None, INF)),
    "log_normal_cdf": Function(_log_normal_cdf, _log_normal_slope, limits=(-INF, 0)),
    "normal_cdf": Function(_clamped(_normal_cdf), _clamped(mp.npdf), limits=(0, 1)),
    "sigmoid": Function(_clamped(_sigmoid), _clamped(lambda x: _sigmoid(x) * _sigmoid(-x)),
                        limits=(0, 1)),
    "sin": Function(mp.sin, mp.cos, limits=None),
    "softplus": Function(lambda x: max(x, 0) + mp.log1p(mp.exp(-abs(x))), _clamped(_sigmoid),
                         limits=(0, INF)),
    "sqrt": Function(mp.sqrt, lambda x: 1 / (2 * mp.sqrt(x)), low=0.0, limits=(None, INF)),
    "tanh": Function(_clamped(mp.tanh), _clamped(lambda x: mp.sech(x)**2), limits=(-1, 1)),
}


def _grid():
    sizes = [5e-324, 1e-310, TINY, 1e-300, 1e-200, 1e-20, 1e-9, 1e-4, 0.03, 0.5, 1.0, 1.46,
             1.5, 2.0, 2.5, 3.0, 5.7, 26.6, 36.5, 37.0, 37.6, 38.2, 38.5, 40.0, 79.9, 88.8, 300.3,
             708.5, 720.0, 745.1, 746.0, 1e3, 1e5, 1e8, 1e20, 1e154, 1e200, 1e300]
    sizes += [n + sign * 10.0**-k for n in (1, 2) for k in (1, 3, 6, 9, 12, 15) for sign in (1, -1)]
    inner = np.random.default_rng(0).uniform(-1, 1, 200) * np.repeat([3, 40], 100)
    return np.concatenate([[0.0, -0.0], sizes, np.negative(sizes), inner])


GRID = _grid()


@cache
def _reference(name):
    """Points where the value, and where the slope too, is a float; and what they are there."""
    f, points = FUNCTIONS[name], []
    for x in GRID[GRID > f.low]:
        with mpmath.workdps(400 if f.limits is None else 50):     # for the remainder by 2 pi
            value, slope = f.value(mpf(float(x))), f.slope(mpf(float(x)))
        if abs(value) < LARGEST and abs(slope) < LARGEST:
            points.append((float(x), value, slope))
    return points


def units(name, move):
    """The largest errors over the grid of the value and of the slope, where 4 are allowed."""
    points, f = _reference(name), FUNCTIONS[name]
    x = Tensor(move(np.array([x for x, _, _ in points])))
    y = getattr(ops, name)(x)
    slopes = to_numpy(pullback(y, move(np.ones(len(points))), x))
    worst = [0.0, 0.0]
    for point, *computed in zip(points, to_numpy(y.array), slopes):
        x, *exact = map(mpf, point)
        for i, least in enumerate((f.least, 1)):
            error = abs(mpf(float(computed[i])) - exact[i]) / max(abs(exact[i]), least) / EPS
            worst[i] = max(worst[i], float(4 * error / f.allowed(x)))
    return worst


ROWS = ("cross_entropy", "log_softmax", "logsumexp", "softmax")


@cache
def _rows():
    """Rows of one length: near, spread, far from 0, masked, huge, tiny."""
    rng = np.random.default_rng(1)
    near, masked = rng.standard_normal(7), -rng.random(7)
    masked[[0, 3, 4]] = -INF
    return np.stack([near, 300 * near, near + 1e8, near - 745, near - np.log(np.exp(near).sum()),
                     masked, 1e300 * near, 1e-310 * near, np.full(7, 2.5),
                     [0, -40, -800, -1e5, 0, 0, 0]])


def units_of_row(name, move):
    """The largest error over the rows, in units of the largest number of the row that matters.

    Those are the results, and for ``logsumexp`` and ``cross_entropy`` the entries, too.
    """
    rows = _rows()
    settings = [move(np.full(len(rows), 2))] if name == "cross_entropy" else []
    computed = to_numpy(getattr(ops, name)(move(rows), *settings)).reshape(len(rows), -1)
    worst = 0.0
    for row, answers in zip(rows, computed):
        x = [mpf(float(entry)) for entry in row]
        log_total = max(x) + mp.log(mp.fsum(mp.exp(entry - max(x)) for entry in x))
        exact = {"logsumexp": [log_total], "cross_entropy": [log_total - x[2]],
                 "log_softmax": [entry - log_total for entry in x],
                 "softmax": [mp.exp(entry - log_total) for entry in x]}[name]
        matter = exact + (x if name in ("logsumexp", "cross_entropy") else [])
        scale = max(abs(entry) for entry in matter if mp.isfinite(entry))
        for answer, entry in zip(answers, exact):
            error = abs(mpf(float(answer)) - entry) if mp.isfinite(entry) else 0
            if not mp.isfinite(entry) and answer != float(entry):
                return INF
            worst = max(worst, float(error / max(scale, TINY) / EPS))
    return worst
