import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy


def test_relu_has_slope_0_at_0_and_passes_nan_on(move):
    x = Tensor(move(np.array([-np.inf, -1.0, -0.0, 0.0, 2.0, np.inf, np.nan])))
    y = ops.relu(x)
    assert to_numpy(y.array)[:-1].tolist() == [0, 0, 0, 0, 2, np.inf]
    assert np.isnan(float(y.array[-1]))
    assert to_numpy(grad(y.sum(), x)).tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("f, below, above", [
    (ops.sigmoid, 0, 0), (ops.softplus, 0, 1), (ops.gelu, 0, 1), (ops.gelu_tanh, 0, 1),
    (ops.normal_cdf, 0, 0), (ops.log_normal_cdf, np.inf, 0), (ops.erf, 0, 0), (ops.tanh, 0, 0)])
def test_slopes_at_infinity(move, f, below, above):
    x = Tensor(move(np.array([-np.inf, np.inf])))
    y = f(x)
    with np.errstate(divide="ignore"):              # one of these is infinite, and says so
        slopes = to_numpy(pullback(y, move(np.ones(2)), x))
    assert slopes.tolist() == pytest.approx([below, above], abs=1e-30)
