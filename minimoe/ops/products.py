"""Matrix products: batched matmul, and einsum over letters."""
import math

from minimoe.autodiff.tensor import op
from minimoe.ops.reductions import sum
from minimoe.ops.shaping import transpose


@op
def matmul(a, b):
    """``a @ b``; leading axes are batches and broadcast. [..., I, J], [..., J, K] -> [..., I, K]

    A vector is a row on the left and a column on the right. ValueError where the shapes do not fit.
    """
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: needs at least one axis each; got shapes {a.shape}, {b.shape}")
    rows = a[None] if a.ndim == 1 else a
    columns = b[:, None] if b.ndim == 1 else b

    def as_matrices(g):
        if b.ndim == 1:
            g = g[..., None]
        return g[..., None, :] if a.ndim == 1 else g

    def to_a(g):
        return _times(as_matrices(g), columns.swapaxes(-1, -2))     # a row's extra axis is summed

    def to_b(g):
        g = as_matrices(g)
        if columns.ndim == 2 and rows.ndim > 2:     # one product in place of a sum over the batch
            flow = rows.reshape(-1, rows.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        else:
            flow = rows.swapaxes(-1, -2) @ g
        return flow[..., 0] if b.ndim == 1 else flow

    return _times(a, b), (to_a, to_b)


def _times(a, b):
    """``a @ b``, as one product where a whole batch meets one matrix."""
    if a.ndim > 2 and b.ndim == 2:
        return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[1])
    return a @ b


def einsum(subscripts, *operands):
    """Sum of products over named axes, written out: ``einsum("te,ted->td", gate, y)``.

    Operands are multiplied pair by pair from the left, each pair as one batched matrix product. The
    output must be given (``->``); a letter may not repeat within one operand, and there is no
    ellipsis. ValueError where that does not hold or the letters do not fit the shapes.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = inputs.split(",")
    letters = "".join(inputs)
    if (not arrow or len(inputs) != len(operands) or not (letters + output).isalpha()
            or not set(output) <= set(letters)
            or any(len(set(group)) < len(group) for group in [*inputs, output])):
        raise ValueError(f"einsum: needs one group of distinct letters for each of "
                         f"{len(operands)} operands, and an output after ->; got {subscripts!r}")
    _check_sizes(subscripts, inputs, operands)

    y, have = operands[0], inputs[0]
    for i, (operand, group) in enumerate(zip(operands[1:], inputs[1:]), start=2):
        needed = output + "".join(inputs[i:])
        y, have = _without(y, have, group + needed)
        operand, group = _without(operand, group, have + needed)
        product = "".join(dict.fromkeys(have + group))
        product = output if i == len(operands) else "".join(n for n in product if n in needed)
        y, have = _contraction(y, operand, letters=(have, group, product)), product
    y, have = _without(y, have, output)
    return y if have == output else transpose(y, axes=tuple(have.index(n) for n in output))


def _check_sizes(subscripts, inputs, operands):
    sizes = {}
    for group, operand in zip(inputs, operands):
        if len(group) != len(operand.shape):
            raise ValueError(f"einsum: {group!r} in {subscripts!r} names {len(group)} axes; "
                             f"got shape {operand.shape}")
        for letter, n in zip(group, operand.shape):
            if sizes.setdefault(letter, n) != n:
                raise ValueError(f"einsum: {letter!r} in {subscripts!r} must have one size; "
                                 f"got {sizes[letter]} and {n}")


def _without(x, letters, needed):
    """``x`` summed over the axes that nobody needs, and the letters that it has left."""
    axes = tuple(i for i, letter in enumerate(letters) if letter not in needed)
    return (sum(x, axis=axes) if axes else x,
            "".join(letter for letter in letters if letter in needed))


@op
def _contraction(a, b, *, letters):
    """The product of two arrays, letters of each and of the result given.

    Each letter stands in two of the three, or in all; so the vjps are contractions, too.
    """
    in_a, in_b, output = letters
    return _contract(a, b, in_a, in_b, output), (lambda g: _contract(g, b, output, in_b, in_a),
                                                 lambda g: _contract(a, g, in_a, output, in_b))


def _contract(a, b, in_a, in_b, output):
    size = dict(zip(in_a + in_b, a.shape + b.shape))
    batch = [n for n in in_a if n in in_b and n in output]
    summed = [n for n in in_a if n in in_b and n not in output]
    own_a = [n for n in in_a if n not in in_b]
    own_b = [n for n in in_b if n not in in_a]

    def arranged(x, letters, *groups):
        """Axes in the order of the groups, those of all but the first run together."""
        x = x.transpose([letters.index(n) for group in (batch, *groups) for n in group])
        return x.reshape([size[n] for n in batch]
                         + [math.prod(size[n] for n in group) for group in groups])

    y = arranged(a, in_a, own_a, summed) @ arranged(b, in_b, summed, own_b)
    have = batch + own_a + own_b
    return y.reshape([size[n] for n in have]).transpose([have.index(n) for n in output])
