import math

import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.backend import to_numpy


def test_lower_tail_by_hand(move):
    # Phi(-x) = phi(x) / x (1 - 1/x^2 + 3/x^4 - 15/x^6 + ...), here to one part in 10^9
    x = 37.0
    series = 1 - x**-2 + 3 * x**-4 - 15 * x**-6
    log_tail = -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log(series)
    assert float(ops.log_normal_cdf(move(np.array(-x)))) == pytest.approx(log_tail, rel=1e-12)
    assert float(ops.normal_cdf(move(np.array(-x)))) == pytest.approx(math.exp(log_tail), rel=1e-9)
    assert float(ops.gelu(move(np.array(-x)))) == pytest.approx(-x * math.exp(log_tail), rel=1e-9)


def test_log_gamma_of_whole_numbers_is_a_log_factorial(move):
    n = np.arange(1.0, 20.0)
    factorials = [math.log(math.factorial(int(k) - 1)) for k in n]
    assert to_numpy(ops.log_gamma(move(n))) == pytest.approx(factorials, rel=1e-15, abs=0)


def test_log_gamma_below_0(move, rng):
    # |Gamma(x) Gamma(1 - x)| = pi / |sin(pi x)|
    x = np.array([-0.25, -0.5, -1.5, -3.75, -20.1])
    reflected = np.log(np.pi / np.abs(np.sin(np.pi * x))) - to_numpy(ops.log_gamma(move(1 - x)))
    assert to_numpy(ops.log_gamma(move(x))) == pytest.approx(reflected, rel=1e-12)
    assert to_numpy(ops.log_gamma(move(np.array([0.0, -1.0, -2.0])))).tolist() == [np.inf] * 3
    tiny = np.array([1e-310, -1e-310, 5e-324, -5e-324])         # 1 / x is no float
    assert to_numpy(ops.log_gamma(move(tiny))) == pytest.approx(-np.log(np.abs(tiny)), rel=1e-15)
    check_vjp(ops.log_gamma, move(x[:4]), rng=rng)
