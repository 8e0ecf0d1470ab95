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
from inspect import signature
from itertools import count
from operator import attrgetter

from minimoe import tree
from minimoe.backend import is_array, namespace


_next_number = count().__next__
_number = attrgetter("number")


class Tensor:
    """An array (float32 or float64) with its place in the record of a computation.

    ``array`` is the value, ``parents`` the Tensors it was computed from, ``vjp`` what carries a
    cotangent back to them (see ``op``), ``number`` counts Tensors as they are made. All are set
    once. The operators and the methods that arrays have too (``sum``, ``reshape``, ``T``, ...) are
    attached in ``minimoe.ops``.

    TypeError for anything but an array of floats: what cannot carry a gradient is not a Tensor.
    """

    __slots__ = ("array", "parents", "vjp", "number")
    __array_ufunc__ = None     # so that ``ndarray * Tensor`` is left to the Tensor
    __hash__ = object.__hash__   # comparisons compare values; a Tensor's identity is itself

    def __init__(self, array, parents=(), vjp=None):
        if not parents:
            _check_floating("Tensor", array)
        self.array = array
        self.parents = parents
        self.vjp = vjp
        self.number = _next_number()

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

    def __array__(self, *args, **settings):
        raise TypeError("Tensor: is not an array; call a function of minimoe.ops, or take .array")

    def __repr__(self):
        return f"Tensor({self.array!r})"


def _check_floating(name, array):
    if not is_array(array):
        raise TypeError(f"{name}: needs a floating-point array; got {type(array).__name__}")
    if array.dtype not in ("float32", "float64"):
        raise TypeError(f"{name}: needs a floating-point array (float32 or float64); "
                        f"got {array.dtype}")


def _check_recorded(name, out):
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}: needs a Tensor computed from the parameters; "
                        f"got {type(out).__name__}, on which nothing was recorded")
    if out.dtype not in ("float32", "float64"):
        raise TypeError(f"{name}: needs a Tensor of float32 or float64; got {out.dtype}")


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
    their work, ``vjp`` is instead one function that returns a tuple of them. Neither may write
    into the cotangent it is given; what comes back larger than an array that was broadcast is
    summed to its shape by ``pullback``.

    TypeError for a Tensor given by keyword, or a ``vjp`` that does not fit the arrays.
    """
    if _takes_two_arrays(forward):
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
        for name, setting in settings.items():
            if type(setting) is Tensor:
                raise TypeError(f"{forward.__name__}: arrays are positional; "
                                f"got a Tensor as {name}")
        try:
            value, vjp = forward(*arrays, **settings)
        except TypeError:
            namespace(*arrays)   # a mixture of NumPy and CuPy explains itself better
            raise
        if not parents:
            return value
        if type(vjp) is tuple and len(vjp) != len(args):
            raise _misfit(forward, vjp, len(args))
        if len(parents) < len(args):
            if type(vjp) is tuple:
                vjp = tuple([f for a, f in zip(args, vjp) if type(a) is Tensor])
            else:
                parents = [a if type(a) is Tensor else None for a in args]
        return Tensor(value, parents, vjp)

    return apply


def _takes_two_arrays(forward):
    parameters = signature(forward).parameters.values()
    return len(parameters) == 2 and all(
        p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters)


def _op_of_two(forward):
    """``op`` for two arrays and no settings, which graphs are full of: the same, quicker."""
    @wraps(forward)
    def apply(a, b, /):
        first, second = type(a) is Tensor, type(b) is Tensor
        try:
            value, vjp = forward(a.array if first else a, b.array if second else b)
        except TypeError:
            namespace(stop_gradient(a), stop_gradient(b))
            raise
        if not (first or second):
            return value
        if type(vjp) is not tuple:
            return Tensor(value, (a if first else None, b if second else None), vjp)
        if len(vjp) != 2:
            raise _misfit(forward, vjp, 2)
        if first and second:
            return Tensor(value, (a, b), vjp)
        to_a, to_b = vjp
        return Tensor(value, (a,), (to_a,)) if first else Tensor(value, (b,), (to_b,))

    return apply


def _misfit(forward, vjp, n):
    return TypeError(f"{forward.__name__}: a vjp has one function for each positional array; "
                     f"got {len(vjp)} for {n}")


def pullback(out, g, params):
    """Cotangents of ``params``, given the cotangent ``g`` of ``out``.

    ``params`` is a tree of Tensors, leaves or results of operations; ``g`` is an array of floats
    shaped like ``out``. Returns the same tree of arrays, each in its parameter's dtype: zeros where
    ``out`` does not depend on it. They share no memory with ``g`` or with one another.

    TypeError for an ``out`` or parameters that are not Tensors, a cotangent that is not an array of
    floats, or a vjp that gives something else; ValueError for a cotangent of another shape.
    """
    _check_recorded("pullback", out)
    if isinstance(g, Tensor):
        raise TypeError("pullback: first order only: the cotangent must be an array, not a Tensor")
    _check_floating("pullback: the cotangent", g)
    namespace(out.array, g)
    if g.shape != out.shape:
        raise ValueError(f"pullback: the cotangent must be shaped like the output, {out.shape}; "
                         f"got {g.shape}")
    for name, p in tree.named_leaves(params).items():
        if not isinstance(p, Tensor):
            raise TypeError(f"pullback: parameters must be Tensors; "
                            f"{name or 'params'} is {type(p).__name__}")
    g = g.astype(out.dtype, copy=False)
    found = _backward(out, g, set(tree.leaves(params)))
    held = {id(g)}

    def own(p):
        xp = namespace(p.array)
        if p not in found:
            return xp.zeros_like(p.array)
        flow = found[p]
        if id(flow) in held or not flow.flags.owndata:
            flow = flow.copy()
        held.add(id(found[p]))
        return xp.asarray(flow, dtype=p.dtype)

    return tree.map(own, params)


def _backward(out, g, wanted):
    """The cotangent of each wanted Tensor that ``out`` was computed from."""
    cotangents, summed, found = {out: g}, set(), {}
    for node in newest_first(out):
        g = cotangents.pop(node, None)      # dropped once used
        if g is None:
            continue
        if node in wanted:
            found[node] = g
        if not node.parents:
            continue
        apart = type(node.vjp) is tuple
        flows = node.vjp if apart else _all_at_once(node, g)
        place = -1         # by hand: zip would take nearly as long as a sum of small arrays
        for parent in node.parents:
            place += 1
            flow = flows[place]
            if apart and flow is not None:
                flow = flow(g)
            if flow is None or parent is None:
                continue
            try:
                if flow.shape != parent.array.shape:
                    flow = _sum_to_shape(flow, parent.array.shape)
            except AttributeError:
                raise TypeError(f"pullback: a vjp gives arrays; got {type(flow).__name__}")
            before = cotangents.get(parent)
            if before is None:
                cotangents[parent] = flow
            elif parent in summed and before.dtype == flow.dtype:
                before += flow              # a sum made here, which nobody else holds
                cotangents[parent] = before
            else:
                cotangents[parent] = before + flow
                summed.add(parent)
    return found


def newest_first(out):
    """``out`` and all Tensors that it was computed from, each before those that it came from.

    The order in which they were made, reversed: where an operation is the last to have used
    something, its cotangent is complete first and need not wait. No recursion: graphs are deep.
    """
    behind, seen = [out], {out, None}
    for node in behind:                     # which grows
        for parent in node.parents:
            if parent not in seen:
                seen.add(parent)
                behind.append(parent)
    behind.sort(key=_number, reverse=True)
    return behind


def _all_at_once(node, g):
    """What a vjp that is one function gives, once it is seen to be one for each argument."""
    flows = node.vjp(g)
    if not isinstance(flows, (tuple, list)) or len(flows) != len(node.parents):
        got = len(flows) if isinstance(flows, (tuple, list)) else type(flows).__name__
        raise TypeError(f"pullback: a vjp gives a tuple, one cotangent for each of "
                        f"{len(node.parents)} arguments; got {got}")
    return flows


def _sum_to_shape(flow, shape):
    """The cotangent of an argument that was broadcast: summed along the axes that it lacked."""
    lacked = flow.ndim - len(shape)
    if lacked < 0 or any(n not in (1, m) for n, m in zip(shape, flow.shape[lacked:])):
        raise ValueError(f"pullback: a vjp gave a cotangent of shape {flow.shape} "
                         f"to an argument of shape {shape}")
    stretched = tuple(lacked + i for i, n in enumerate(shape) if n == 1)
    return flow.sum(axis=(*range(lacked), *stretched)).reshape(shape)


def grad(loss, params):
    """Gradient of the scalar ``loss`` with respect to ``params``: a tree of arrays like theirs.

    TypeError for a loss on which nothing was recorded, ValueError for one that is not a scalar.
    """
    _check_recorded("grad", loss)
    if loss.shape != ():
        raise ValueError(f"grad: the loss must be a scalar; got shape {loss.shape}")
    return pullback(loss, namespace(loss.array).ones_like(loss.array), params)


def value_and_grad(f, params, *args):
    """``f(params, *args)``, a scalar, and its gradient with respect to ``params``, a tree like it.

    Returns (an array, a tree of arrays like ``params``). ``args`` are handed on as they are. Errors
    are those of ``grad``.
    """
    tensors = tree.map(lambda p: Tensor(stop_gradient(p)), params)
    loss = f(tensors, *args)
    gradient = grad(loss, tensors)
    return loss.array, gradient
