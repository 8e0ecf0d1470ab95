"""Every operation: against PyTorch, against its own derivative, in float32."""
import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.tensor import Tensor
from tests.ops import table

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
