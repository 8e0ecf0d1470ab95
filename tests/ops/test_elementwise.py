import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy

ENTRY_BY_ENTRY = [
    ops.abs, ops.cos, ops.erf, ops.exp, ops.expm1, ops.gelu, ops.gelu_tanh, ops.log, ops.log1p,
    ops.log_gamma, ops.log_normal_cdf, ops.normal_cdf, ops.relu, ops.sigmoid, ops.sin,
    ops.softplus, ops.sqrt, ops.square, ops.tanh]


@pytest.mark.parametrize("f", ENTRY_BY_ENTRY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("x", [np.array(0.5), np.zeros((0, 3)), np.array([[0.5]])[:, ::-1].T,
                               np.array(-1.5), np.array(0.5, "float32")], ids=repr)
def test_no_axes_no_entries_no_contiguity(move, f, x):
    if x.size and float(x.min()) < 0 and f in (ops.log, ops.log1p, ops.sqrt):
        x = -x
    point = Tensor(move(x))
    y = f(point)
    g = pullback(y, move(np.ones(x.shape, x.dtype)), point)
    assert y.shape == g.shape == x.shape and y.dtype == g.dtype == x.dtype


@pytest.mark.numpy_only("NumPy alone has scalars that are not arrays")
@pytest.mark.parametrize("f", ENTRY_BY_ENTRY, ids=lambda f: f.__name__)
def test_a_numpy_scalar_is_an_array_without_axes(f):
    x = Tensor(np.float32(0.5))
    assert f(x).dtype == "float32" and f(x).shape == ()
    assert grad(f(x), x) == pytest.approx(float(pullback(f(x), np.float32(1), x)))


def test_abs_has_slope_0_at_0(move):
    x = Tensor(move(np.array([-2.0, -0.0, 0.0, 3.0])))
    assert to_numpy(grad(ops.abs(x).sum(), x)).tolist() == [-1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32")])
def test_astype_returns_the_cotangent_in_the_first_dtype(move, dtype):
    x = Tensor(move(np.array([1 / 3, 2.0])))
    y = ops.astype(x, dtype=dtype)
    assert y.dtype == "float32" and float(y.array[0]) == np.float32(1 / 3)
    g = y.vjp(move(np.array([0.5, 3.0], "float32")))[0]
    assert g.dtype == "float64" and to_numpy(g).tolist() == [0.5, 3.0]


@pytest.mark.parametrize("dtype", ["int64", "float16", bool])
def test_astype_refuses_what_carries_no_gradient_here(move, dtype):
    with pytest.raises(TypeError, match="astype: the dtype must be float32 or float64; got"):
        ops.astype(move(np.ones(2)), dtype=dtype)


def test_bfloat16_keeps_eight_bits_and_rounds_ties_to_even(move):
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-23, -1 - 2**-8], "float32")
    y = ops.round_to_bfloat16(move(x))
    assert to_numpy(y).tolist() == [1, 1, 1 + 2**-6, 1 + 2**-7, -1]


def test_bfloat16_refuses_float64(move):
    with pytest.raises(TypeError, match="round_to_bfloat16: needs a float32 array; got float64"):
        ops.round_to_bfloat16(move(np.ones(2)))
