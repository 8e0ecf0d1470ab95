import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy


@pytest.mark.parametrize("f, of_a", [(ops.maximum, [0, 0.5, 1]), (ops.minimum, [1, 0.5, 0])])
def test_equal_entries_share_the_cotangent_by_halves(move, f, of_a):
    a, b = Tensor(move(np.array([1.0, 2.0, 3.0]))), Tensor(move(np.array([2.0, 2.0, 2.0])))
    to_a, to_b = map(to_numpy, grad(f(a, b).sum(), (a, b)))
    assert to_a.tolist() == of_a
    assert (to_a + to_b).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("f", [ops.maximum, ops.minimum])
def test_a_nan_on_either_side_is_passed_on(move, f):
    a, b = move((np.array([np.nan, 1.0, np.nan]), np.array([1.0, np.nan, np.nan])))
    assert np.isnan(to_numpy(f(a, b))).all()


@pytest.mark.parametrize("f", [
    lambda x: ops.maximum(x, 0.5), lambda x: ops.minimum(2, x), lambda x: ops.where(x > 0, x, 0.5),
    lambda x: ops.where(x > 0, 1, x), lambda x: x ** 3, lambda x: x ** 0.5, lambda x: 2 ** x,
    lambda x: 2.5 ** x, lambda x: 1 - x / 3, lambda x: 2 / x, lambda x: x - 1.5,
    lambda x: ops.clip(x, low=np.float64(0.1), high=np.float64(9)),
    lambda x: ops.rms_norm(x, x[0], epsilon=np.float64(1e-5)),
    lambda x: ops.pad(x, widths=((1, 0), (0, 1)), value=np.float64(0.1)), lambda x: x.mean(axis=0)])
def test_a_number_takes_the_dtype_of_the_array(move, f):
    x = Tensor(move(np.array([[0.5, 1.5], [2.5, 3.5]], "float32")))
    out = f(x)
    assert out.dtype == "float32"
    for flow in (out.vjp if type(out.vjp) is tuple else [lambda g: out.vjp(g)[0]]):
        assert flow(move(np.ones(out.shape, "float32"))).dtype == "float32"


def test_power_at_its_kinks(move):
    x, c = Tensor(move(np.array([0.0, 0.0, 3.0, -2.0]))), move(np.array([2.0, 0.0, 0.0, 3.0]))
    assert to_numpy(grad((x ** c).sum(), x)).tolist() == [0.0, 0.0, 0.0, 12.0]
    assert to_numpy(grad((x ** 0).sum(), x)).tolist() == [0.0] * 4
    exponent = Tensor(move(np.array([2.0, 0.0])))
    assert to_numpy(grad((move(np.zeros(2)) ** exponent).sum(), exponent)).tolist() == [0.0, 0.0]


def test_clip_passes_the_cotangent_at_its_bounds_and_not_beyond(move):
    x = Tensor(move(np.array([-np.inf, -1.5, -1.0, 0.0, 2.0, 2.5, np.inf, np.nan])))
    y = ops.clip(x, low=-1, high=2)
    assert to_numpy(y.array)[:-1].tolist() == [-1.0, -1.0, -1.0, 0.0, 2.0, 2.0, 2.0]
    assert np.isnan(to_numpy(y.array)[-1])
    assert to_numpy(pullback(y, move(np.ones(8)), x)).tolist() == [0, 0, 1, 1, 1, 0, 0, 0]


def test_where_keeps_what_is_not_chosen_out_of_the_gradient(move):
    condition, b = move((np.array([True, False]), np.array([np.inf, np.nan])))
    x = Tensor(move(np.array([1.0, 2.0])))
    assert to_numpy(grad(ops.where(condition, x, b)[:1].sum(), x)).tolist() == [1.0, 0.0]
