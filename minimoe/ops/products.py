"""Matrix products: batched matmul, and einsum over letters."""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def matmul(a, b):
    """``a @ b``; leading axes are batches and broadcast. [..., I, J], [..., J, K] -> [..., I, K]"""
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: needs at least one axis each; got shapes {a.shape}, {b.shape}")
    xp = namespace(a, b)
    shape_a, shape_b = a.shape, b.shape

    def as_matrices(g):
        """Cotangent and operands with the axes that 1-d operands lack."""
        if len(shape_b) == 1:
            g = g[..., None]
        if len(shape_a) == 1:
            g = g[..., None, :]
        return g

    def to_a(g):
        columns = b[:, None] if b.ndim == 1 else b
        flow = as_matrices(g) @ xp.swapaxes(columns, -1, -2)
        return flow[..., 0, :] if len(shape_a) == 1 else flow

    def to_b(g):
        g = as_matrices(g)
        rows = a[None, :] if a.ndim == 1 else a
        if len(shape_b) <= 2 and rows.ndim > 2:      # one product instead of a sum over the batch
            rows, g = rows.reshape(-1, rows.shape[-1]), g.reshape(-1, g.shape[-1])
        flow = xp.swapaxes(rows, -1, -2) @ g
        return flow[..., 0] if len(shape_b) == 1 else flow

    return a @ b, (to_a, to_b)


def einsum(subscripts, *operands):
    """Sum of products over named axes, written out: ``einsum("te,ted->td", gate, y)``.

    The output must be given (``->``); a letter may not repeat within one operand, and there is no
    ellipsis. ValueError where that does not hold or the letters do not fit the shapes.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = inputs.split(",")
    if not arrow or "." in subscripts or len(inputs) != len(operands) or any(
            len(set(letters)) < len(letters) for letters in [*inputs, output]):
        raise ValueError(f"einsum: needs one group of distinct letters for each of "
                         f"{len(operands)} operands, and an output after ->; got {subscripts!r}")
    return _einsum(*operands, inputs=tuple(inputs), output=output)


@op
def _einsum(*operands, inputs, output):
    xp = namespace(*operands)
    y = xp.einsum(",".join(inputs) + "->" + output, *operands, optimize=True)
    return y, tuple(_to_operand(i, operands, inputs, output) for i in range(len(operands)))


def _to_operand(i, operands, inputs, output):
    """The cotangent of operand i: g and the other operands, summed down to its letters."""
    others = [(o, letters) for j, (o, letters) in enumerate(zip(operands, inputs)) if j != i]
    shape = operands[i].shape

    def vjp(g):
        xp = namespace(g)
        known = set(output).union(*(letters for _, letters in others))
        kept = "".join(letter for letter in inputs[i] if letter in known)
        terms = ",".join([output, *(letters for _, letters in others)])
        flow = xp.einsum(f"{terms}->{kept}", g, *(o for o, _ in others), optimize=True)
        # a letter summed away in this operand alone: its cotangent is the same all along it
        full = tuple(n if letter in known else 1 for letter, n in zip(inputs[i], shape))
        return xp.broadcast_to(flow.reshape(full), shape)

    return vjp
