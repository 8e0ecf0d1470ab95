"""Reverse-mode automatic differentiation, first order.

A ``Tensor`` is an array that remembers which Tensors it was computed from and how a cotangent
flows back to them. An operation on Tensors records; on plain arrays it does not: that is "no
grad" mode, with no mode. Gradients live in a dictionary during the backward pass and nowhere
after it.

    >>> x = Tensor(numpy.array([1.0, 2.0, 3.0]))
    >>> grad((x * x).sum(), x)
    array([2., 4., 6.])
"""
from functools import wraps

from minimoe import tree
from minimoe.backend import is_array, namespace


class Tensor:
    """An array (float32 or float64) with its place in the record of a computation.

    ``array`` is the value, ``parents`` the Tensors it was computed from, ``vjp`` what carries a
    cotangent back to them (see ``op``). All three are set once. The operators and the methods
    that arrays have too (``sum``, ``reshape``, ``T``, ...) are attached in ``minimoe.ops``.

    TypeError for anything but an array of floats: what cannot carry a gradient is not a Tensor.
    """

    __slots__ = ("array", "parents", "vjp")
    __array_ufunc__ = None     # so that ``ndarray * Tensor`` is left to the Tensor
    __hash__ = object.__hash__   # comparisons compare values; a Tensor's identity is itself

    def __init__(self, array, parents=(), vjp=None):
        if not parents:
            _check_floating(array)
        self.array = array
        self.parents = parents
        self.vjp = vjp

    @property
    def shape(self):
        return self.array.shape

    @property
    def ndim(self):
        return self.array.ndim

    @property
    def size(self):
        return self.array.size

    @property
    def dtype(self):
        return self.array.dtype

    def __len__(self):
        return len(self.array)

    def __float__(self):
        return float(self.array)

    def __bool__(self):
        raise TypeError("Tensor: has no truth value; compare it first, which gives plain booleans")

    def __repr__(self):
        return f"Tensor({self.array!r})"


def _check_floating(array):
    if not is_array(array):
        raise TypeError(f"Tensor: needs a floating-point array; got {type(array).__name__}")
    if array.dtype not in ("float32", "float64"):
        raise TypeError(f"Tensor: needs a floating-point array (float32 or float64); "
                        f"got {array.dtype}")


def stop_gradient(x):
    """The plain array behind ``x``: a constant to everything computed from it.

    Under a complex step, where the derivative travels in the imaginary part, that part is dropped.
    """
    if isinstance(x, Tensor):
        return x.array
    return x.real if is_array(x) and x.dtype.kind == "c" else x


def op(forward):
    """Make ``forward(*arrays, **settings) -> (value, vjp)`` work on Tensors too.

    Arrays are positional, settings keyword-only. ``vjp`` is a tuple with one function for each
    array, from the cotangent of the value to that array's, ``None`` where there is none; what a
    function mentions is kept for the backward pass, nothing else is. Where the cotangents share
    their work, ``vjp`` is instead one function that returns all of them. Neither may write into
    the cotangent it is given.
    """
    if forward.__code__.co_argcount == 2 and not forward.__code__.co_kwonlyargcount:
        return _op_of_two(forward)

    @wraps(forward)
    def apply(*args, **settings):
        arrays, parents = [], []
        for a in args:
            if type(a) is Tensor:
                arrays.append(a.array)
                parents.append(a)
            else:
                arrays.append(a)
        try:
            value, vjp = forward(*arrays, **settings)
        except TypeError:
            namespace(*arrays)   # a mixture of NumPy and CuPy explains itself better
            raise
        if not parents:
            return value
        if len(parents) < len(args):
            if type(vjp) is tuple:
                vjp = tuple([f for a, f in zip(args, vjp) if type(a) is Tensor])
            else:
                parents = [a if type(a) is Tensor else None for a in args]
        return Tensor(value, parents, vjp)

    return apply


def _op_of_two(forward):
    """``op`` for two arrays and no settings, which graphs are full of: the same, in half the time."""
    @wraps(forward)
    def apply(a, b):
        if type(a) is Tensor:
            if type(b) is Tensor:
                value, vjp = forward(a.array, b.array)
                return Tensor(value, (a, b), vjp)
            value, (vjp, _) = forward(a.array, b)
            return Tensor(value, (a,), (vjp,))
        if type(b) is Tensor:
            value, (_, vjp) = forward(a, b.array)
            return Tensor(value, (b,), (vjp,))
        return forward(a, b)[0]

    return apply


def pullback(out, g, params):
    """Cotangents of ``params``, given the cotangent ``g`` of ``out``.

    ``params`` is a tree of Tensors, leaves or results of operations; ``g`` is shaped like ``out``.
    Returns the same tree of arrays: zeros for a parameter that ``out`` does not depend on.
    """
    if not isinstance(out, Tensor):
        raise TypeError(f"pullback: needs a Tensor computed from the parameters; "
                        f"got {type(out).__name__}, on which nothing was recorded")
    if g.shape != out.shape:
        raise ValueError(f"pullback: the cotangent must be shaped like the output, {out.shape}; "
                         f"got {g.shape}")
    for name, p in tree.named_leaves(params).items():
        if not isinstance(p, Tensor):
            raise TypeError(f"pullback: parameters must be Tensors; "
                            f"{name or 'params'} is {type(p).__name__}")
    found = _backward(out, g, set(tree.leaves(params)))
    return tree.map(
        lambda p: (found[p].astype(p.dtype, copy=False) if p in found
                   else namespace(p.array).zeros_like(p.array)), params)


def _backward(out, g, wanted):
    """The cotangent of each wanted Tensor that ``out`` was computed from."""
    uses = _count_uses(out)
    partial, summed, found = {}, set(), {}
    ready = [(out, g)]      # every use of these has paid in; a cotangent is dropped once used
    while ready:
        node, g = ready.pop()
        parents, vjp = node.parents, node.vjp
        if node in wanted and g is not None:
            found[node] = g
        if g is None:
            vjp = (None,) * len(parents)
        elif type(vjp) is not tuple:
            vjp = [lambda _, flow=flow: flow for flow in vjp(g)] if parents else ()
        for parent, f in zip(parents, vjp):
            if parent is None:
                continue
            flow = f and f(g)
            if flow is not None and flow.shape != parent.array.shape:
                flow = _sum_to_shape(flow, parent.array.shape)
            if parent in partial:
                before = partial.pop(parent)
                if flow is None:
                    flow = before
                elif parent in summed:     # a sum made here, which nobody else holds
                    before += flow
                    flow = before
                else:
                    flow = before + flow
                    summed.add(parent)
            left = uses[parent]
            if left == 1:
                ready.append((parent, flow))
            else:
                uses[parent] = left - 1
                if flow is not None:
                    partial[parent] = flow
    return found


def _sum_to_shape(flow, shape):
    """The cotangent of an argument that was broadcast: summed along the axes that it lacked."""
    lacked = flow.ndim - len(shape)
    if lacked < 0 or any(n not in (1, m) for n, m in zip(shape, flow.shape[lacked:])):
        raise ValueError(f"pullback: a vjp gave a cotangent of shape {flow.shape} "
                         f"to an argument of shape {shape}")
    stretched = tuple(lacked + i for i, n in enumerate(shape) if n == 1)
    return flow.sum(axis=(*range(lacked), *stretched)).reshape(shape)


def _count_uses(out):
    """How many times each Tensor behind ``out`` enters an operation. No recursion: graphs are deep."""
    uses = {}
    stack = [out]
    while stack:
        for parent in stack.pop().parents:
            if parent in uses:
                uses[parent] += 1
            elif parent is not None:
                uses[parent] = 1
                stack.append(parent)
    return uses


def grad(loss, params):
    """Gradient of the scalar ``loss`` with respect to ``params``: a tree of arrays like theirs."""
    if isinstance(loss, Tensor) and loss.shape != ():
        raise ValueError(f"grad: the loss must be a scalar; got shape {loss.shape}")
    if not isinstance(loss, Tensor):
        raise TypeError(f"grad: needs a Tensor computed from the parameters; "
                        f"got {type(loss).__name__}, on which nothing was recorded")
    return pullback(loss, namespace(loss.array).ones_like(loss.array), params)


def value_and_grad(f, params, *args):
    """``f(params, *args)``, a scalar, and its gradient with respect to ``params``, a tree of arrays.

    Returns (an array, a tree of arrays like ``params``). ``args`` are handed on as they are.
    """
    tensors = tree.map(lambda p: Tensor(stop_gradient(p)), params)
    loss = f(tensors, *args)
    gradient = grad(loss, tensors)
    return loss.array, gradient
