"""Every operation: against PyTorch, against its own derivative, in float32."""
import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy
from tests.ops import exact, table

FUSED = {"attention", "attention_composed", "lstm_recurrence", "lstm_recurrence_composed"}
EVERY = sorted(set(ops.__all__) - FUSED)        # those are held to torch.nn, in tests of ``nn``


@pytest.mark.numpy_only("looks at names")
def test_every_operation_has_a_recorded_run():
    assert EVERY == sorted(path.stem for path in table.RECORDED.glob("*.npz"))


@pytest.mark.parametrize("name", EVERY)
def test_value_and_gradient_are_those_of_pytorch(name, move):
    value, gradient = table.distance_from_pytorch(name, move)
    assert value <= 1e-12 and gradient <= 1e-12


@pytest.mark.parametrize("name", sorted(set(EVERY) - table.CAST))
def test_vjp_is_the_derivative(name, move, rng, request):
    error = table.vjp_error(name, move, rng)       # CuPy's functions are not all complex ones
    assert error <= (1e-13 if "numpy" in request.node.callspec.id else 1e-6)


@pytest.mark.parametrize("name", sorted(set(EVERY) - table.CAST))
def test_float32_stays_float32_forward_and_back(name, move):
    for case in table.cases(name):
        arguments = [Tensor(move(np.clip(x, -1e4, 1e4).astype("float32")))
                     if key in case.gradients else move(x) for key, x in case.inputs.items()]
        out = table.apply(name, arguments, case.settings)
        for node in nodes(out):
            assert node.dtype == "float32"
            g = move(np.ones(node.shape, "float32"))
            flows = [f(g) for f in node.vjp if f] if type(node.vjp) is tuple else node.vjp(g)
            assert {str(flow.dtype) for flow in flows if flow is not None} == {"float32"}


def nodes(out):
    """Every Tensor that an operation made on the way to ``out``."""
    found, stack = [], [out]
    while stack:
        node = stack.pop()
        if node is not None and node.parents:
            found.append(node)
            stack.extend(node.parents)
    return found


@pytest.mark.parametrize("name", exact.FUNCTIONS)
def test_within_four_units_of_the_exact_value(name, move):
    value, slope = exact.units(name, move)
    assert value <= 4 and slope <= 4


@pytest.mark.parametrize("name", exact.ROWS)
def test_within_four_units_of_the_row(name, move):
    assert exact.units_of_row(name, move) <= 4


@pytest.mark.parametrize("name", exact.FUNCTIONS)
def test_infinities_and_nan(name, move):
    f = getattr(ops, name)
    limits = exact.FUNCTIONS[name].limits or ()
    for x, limit in zip((-np.inf, np.inf), limits):
        assert limit is None or float(f(move(np.array([x])))[0]) == limit
    x = Tensor(move(np.array([np.nan])))
    y = f(x)
    assert np.isnan(float(y.array[0]))
    assert np.isnan(float(pullback(y, move(np.ones(1)), x)[0]))


@pytest.mark.parametrize("f", [
    lambda x: x.T, lambda x: x.transpose(1, 0), lambda x: x.transpose((-1, 0)),
    lambda x: x.swapaxes(0, 1), lambda x: x.reshape(3, 2), lambda x: x.reshape((3, 2)),
    lambda x: x.reshape(-1), lambda x: ops.transpose(x), lambda x: x[::-1].max(), lambda x: x.min(),
    lambda x: x.mean(axis=0), lambda x: x.astype("float64"), lambda x: -x, lambda x: abs(x),
    lambda x: 1 + x,
    lambda x: 1 - x, lambda x: 2 * x, lambda x: 1 / x, lambda x: 2.0 ** x, lambda x: x ** 2,
    lambda x: x @ x.T, lambda x: x.sum(axis=-1, keepdims=True)])
def test_tensors_have_the_methods_and_operators_of_arrays(move, rng, f):
    x = rng.uniform(1, 2, (2, 3))
    assert to_numpy(f(Tensor(move(x))).array) == pytest.approx(f(x), rel=1e-15)
    check_vjp(f, move(x), rng=rng)


@pytest.mark.parametrize("compare", ["__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"])
def test_a_comparison_is_an_array_of_booleans(move, compare):
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    expected = getattr(x, compare)(y).tolist()
    a, b = Tensor(move(x)), Tensor(move(y))
    assert to_numpy(getattr(a, compare)(b)).tolist() == expected
    assert to_numpy(getattr(a, compare)(b.array)).tolist() == expected
