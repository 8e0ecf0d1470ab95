"""Arrays of other frameworks, there and back, and gradients by their own means.

No framework is imported here: whoever has a function of PyTorch's to check has imported PyTorch,
and it is looked up among the modules already loaded.
"""
import sys
from typing import Callable, NamedTuple

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, pullback


class AdapterError(ValueError):
    """A framework that is not there, or arrays that are not its own; one line."""


class Adapter(NamedTuple):
    """How one framework takes arrays and gives them back.

    ``to_user(array, dtype)`` makes its array of NumPy's, integers and booleans too; ``to_numpy`` is
    the way back, AdapterError for what is not the framework's. ``gradients(scalars, leaves)`` is a
    list, for each scalar, of the gradients with respect to each leaf; ``track`` makes a leaf.
    """
    to_user: Callable
    to_numpy: Callable
    track: Callable | None = None
    gradients: Callable | None = None


def adapter(name):
    """The Adapter of a name: numpy, torch, jax, cupy, or minimoe for its own Tensors.

    NumPy and CuPy have no bfloat16: what is asked for in it is given in float32, whose numbers are
    bfloat16's.
    """
    if name not in ADAPTERS:
        raise AdapterError(f"adapter must be one of {', '.join(ADAPTERS)}; got {name!r}")
    return ADAPTERS[name]()


def _loaded(name):
    if name not in sys.modules:
        raise AdapterError(f"adapter {name}: import {name} first")
    return sys.modules[name]


def _numpy():
    def to_user(x, dtype):
        return np.array(x, _numpy_dtype(x, dtype))

    def to_numpy(x):
        if isinstance(x, (np.ndarray, np.generic, float, int, bool)):
            return np.array(x)
        raise AdapterError(f"needs a NumPy array; got {_type(x)}")
    return Adapter(to_user, to_numpy)


def _numpy_dtype(x, dtype):
    if x.dtype.kind != "f":
        return x.dtype
    return "float32" if dtype == "bfloat16" else dtype


def _torch():
    torch = _loaded("torch")

    def to_user(x, dtype):
        given = torch.tensor(np.ascontiguousarray(x))      # a copy: nobody writes into a case
        return given.to(getattr(torch, dtype)) if x.dtype.kind == "f" else given

    def to_numpy(x):
        if isinstance(x, (float, int, bool, np.ndarray)):
            return np.array(x)
        if not isinstance(x, torch.Tensor):
            raise AdapterError(f"needs a torch.Tensor; got {_type(x)}")
        if x.device.type != "cpu":
            raise AdapterError(f"is on {x.device}; needs the CPU, where the case's arrays are")
        x = x.detach()
        return np.array((x.float() if x.dtype == torch.bfloat16 else x).numpy())

    def gradients(scalars, leaves):
        found = []
        for scalar in scalars:
            if not (isinstance(scalar, torch.Tensor) and scalar.requires_grad):
                found.append([torch.zeros_like(leaf) for leaf in leaves])
                continue
            parts = torch.autograd.grad(scalar, leaves, retain_graph=True, allow_unused=True)
            found.append([torch.zeros_like(leaf) if part is None else part
                          for leaf, part in zip(leaves, parts)])
        return found
    return Adapter(to_user, to_numpy, lambda x: x.requires_grad_(), gradients)


def _jax():
    jax = _loaded("jax")

    def to_user(x, dtype):
        return jax.numpy.array(x, dtype if x.dtype.kind == "f" else None)

    def to_numpy(x):
        if isinstance(x, (float, int, bool, np.ndarray)):
            return np.array(x)
        if not isinstance(x, jax.Array):
            raise AdapterError(f"needs a jax.Array; got {_type(x)}")
        return np.array(x.astype("float32") if x.dtype.name == "bfloat16" else x)
    return Adapter(to_user, to_numpy)


def _cupy():
    cupy = _loaded("cupy")

    def to_user(x, dtype):
        return cupy.array(x, _numpy_dtype(x, dtype))

    def to_numpy(x):
        if isinstance(x, cupy.ndarray):
            return cupy.asnumpy(x)
        if isinstance(x, (float, int, bool)):
            return np.array(x)
        raise AdapterError(f"needs a cupy.ndarray; got {_type(x)}")
    return Adapter(to_user, to_numpy)


def _minimoe():
    plain = _numpy()

    def to_numpy(x):
        return plain.to_numpy(x.array if isinstance(x, Tensor) else x)

    def gradients(scalars, leaves):
        return [pullback(scalar, np.ones_like(scalar.array), leaves)
                if isinstance(scalar, Tensor) else [np.zeros_like(leaf.array) for leaf in leaves]
                for scalar in scalars]
    return Adapter(plain.to_user, to_numpy, Tensor, gradients)


def _type(x):
    return tree_of(x) or f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")


def tree_of(x):
    """"list of float" for a list; empty for what is not one."""
    if isinstance(x, (list, tuple)):
        inside = tree.leaves(list(x))
        return f"{type(x).__name__} of {type(inside[0]).__name__ if inside else 'nothing'}"
    return ""


ADAPTERS = {"numpy": _numpy, "torch": _torch, "jax": _jax, "cupy": _cupy, "minimoe": _minimoe}
