import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy


@pytest.mark.parametrize("f, x, shares", [
    (ops.max, [[1, 3, 3], [2, 2, 2]], [[0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]]),
    (ops.min, [[1, 3, 1], [4, 5, 6]], [[1 / 2, 0, 1 / 2], [1, 0, 0]]),
    (ops.max, [[1, np.nan, 3], [np.inf, 1, np.inf]], [[0, 1, 0], [1 / 2, 0, 1 / 2]])])
def test_ties_share_the_cotangent_equally(move, f, x, shares):
    x = Tensor(move(np.array(x, float)))
    y = f(x, axis=1)
    assert to_numpy(y.array) == pytest.approx(to_numpy(f(x.array, axis=1)), nan_ok=True)
    assert to_numpy(pullback(y, move(np.ones(2)), x)) == pytest.approx(np.array(shares))


@pytest.mark.parametrize("f", [ops.sum, ops.mean, ops.max, ops.min, ops.var])
@pytest.mark.parametrize("axis", [None, 1, -3, (0, -1)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_axes(move, rng, f, axis, keepdims):
    x = rng.standard_normal((2, 3, 4))
    expected = getattr(np, f.__name__)(x, axis=axis, keepdims=keepdims)
    assert to_numpy(f(move(x), axis=axis, keepdims=keepdims)) == pytest.approx(expected, rel=1e-13)
    check_vjp(lambda x: f(x, axis=axis, keepdims=keepdims), move(x), rng=rng)


@pytest.mark.parametrize("f, slope", [(ops.sum, 1), (ops.max, 1), (ops.min, 1)])
def test_a_number_has_axis_0(move, f, slope):
    x = Tensor(move(np.array(2.0)))
    assert float(grad(f(x, axis=0), x)) == slope


def test_sample_variance_by_hand(move):
    # mean 3; squares 4, 1, 9 add up to 14; 14 / (3 - 1)
    assert float(ops.var(move(np.array([1.0, 2.0, 6.0])), ddof=1)) == 7.0


@pytest.mark.parametrize("f", [ops.sum, ops.mean, ops.var, ops.max])
def test_no_rows(move, f):
    x = Tensor(move(np.zeros((0, 5))))
    assert f(x, axis=1).shape == (0,)
    assert grad(f(x, axis=1).sum(), x).shape == (0, 5)


def test_the_sum_of_nothing_is_0(move):
    x = Tensor(move(np.zeros((0, 5))))
    assert float(ops.sum(x).array) == 0.0 and grad(ops.sum(x), x).shape == (0, 5)
