"""minimoe: the mixture-of-experts papers, from scratch, on a small reverse-mode autodiff engine."""
from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import (
    Tensor, grad, op, pullback, stop_gradient, value_and_grad)

__all__ = ["Tensor", "check_vjp", "grad", "op", "ops", "pullback", "stop_gradient",
           "value_and_grad"]
