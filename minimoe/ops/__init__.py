"""Every primitive operation, value and vjp side by side, and the operators of Tensor.

Called with arrays only, an operation returns an array and records nothing.
"""
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.ops.activations import gelu, gelu_tanh, relu, sigmoid, softplus
from minimoe.ops.arithmetic import (
    add, clip, divide, maximum, minimum, multiply, negative, power, subtract, where)
from minimoe.ops.attention import attention, attention_composed
from minimoe.ops.convolution import conv2d, max_pool, upsample_bilinear, upsample_nearest
from minimoe.ops.elementwise import (
    abs, astype, cos, exp, expm1, log, log1p, round_to_bfloat16, sin, sqrt, square, tanh)
from minimoe.ops.normalization import batch_norm, layer_norm, rms_norm
from minimoe.ops.products import einsum, matmul
from minimoe.ops.recurrent import lstm_recurrence, lstm_recurrence_composed
from minimoe.ops.reductions import cumsum, max, mean, min, sum, var
from minimoe.ops.shaping import (
    broadcast_to, concatenate, getitem, pad, reshape, scatter_add, split, stack, swapaxes, take,
    take_along_axis, transpose)
from minimoe.ops.softmax import cross_entropy, log_softmax, logsumexp, softmax
from minimoe.ops.special_functions import erf, log_gamma, log_normal_cdf, normal_cdf

__all__ = [
    "abs", "add", "astype", "attention", "attention_composed", "batch_norm", "broadcast_to", "clip",
    "concatenate", "conv2d", "cos", "cross_entropy", "cumsum", "divide", "einsum", "erf", "exp",
    "expm1", "gelu", "gelu_tanh", "getitem", "layer_norm", "log", "log1p", "log_gamma",
    "log_normal_cdf", "log_softmax", "logsumexp", "lstm_recurrence", "lstm_recurrence_composed",
    "matmul", "max", "max_pool", "maximum", "mean", "min", "minimum", "multiply", "negative",
    "normal_cdf", "pad", "power", "relu", "reshape", "rms_norm", "round_to_bfloat16", "scatter_add",
    "sigmoid", "sin", "softmax", "softplus", "split", "sqrt", "square", "stack", "subtract", "sum",
    "swapaxes", "take", "take_along_axis", "tanh", "transpose", "upsample_bilinear",
    "upsample_nearest", "var", "where"]

# The operators and array methods of Tensor: the same names that arrays have, so that a formula
# written for one reads, and runs, for the other.

Tensor.__add__ = add
Tensor.__radd__ = lambda self, other: add(other, self)
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda self, other: subtract(other, self)
Tensor.__mul__ = multiply
Tensor.__rmul__ = lambda self, other: multiply(other, self)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda self, other: divide(other, self)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda self, other: matmul(other, self)
Tensor.__pow__ = power
Tensor.__rpow__ = lambda self, other: power(other, self)
Tensor.__neg__ = negative
Tensor.__abs__ = abs
Tensor.__getitem__ = lambda self, key: getitem(self, key=key)

Tensor.__lt__ = lambda self, other: self.array < stop_gradient(other)
Tensor.__le__ = lambda self, other: self.array <= stop_gradient(other)
Tensor.__gt__ = lambda self, other: self.array > stop_gradient(other)
Tensor.__ge__ = lambda self, other: self.array >= stop_gradient(other)
Tensor.__eq__ = lambda self, other: self.array == stop_gradient(other)
Tensor.__ne__ = lambda self, other: self.array != stop_gradient(other)

Tensor.sum = lambda self, axis=None, keepdims=False: sum(self, axis=axis, keepdims=keepdims)
Tensor.mean = lambda self, axis=None, keepdims=False: mean(self, axis=axis, keepdims=keepdims)
Tensor.max = lambda self, axis=None, keepdims=False: max(self, axis=axis, keepdims=keepdims)
Tensor.min = lambda self, axis=None, keepdims=False: min(self, axis=axis, keepdims=keepdims)
Tensor.reshape = lambda self, *shape: reshape(
    self, shape=shape[0] if len(shape) == 1 else shape)
Tensor.transpose = lambda self, *axes: transpose(
    self, axes=axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes or None)
Tensor.swapaxes = lambda self, first, second: swapaxes(self, first=first, second=second)
Tensor.astype = lambda self, dtype: astype(self, dtype=dtype)
Tensor.T = property(transpose)
