"""Log-sum-exp, softmax, and the cross-entropy of its logarithm.

Rows are shifted by their largest entry, so nothing overflows. An entry of -inf, as masks put it, is
a choice that is never made: probability 0, gradient 0.
"""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def logsumexp(x, *, axis=-1, keepdims=False):
    """log sum exp(x) along ``axis``: -inf for a row of -inf, whose gradient is 0."""
    xp = namespace(x)
    top = x.real.max(axis=axis, keepdims=True)
    largest = float(xp.finfo(top.dtype).max)
    e = xp.exp(x - xp.clip(top, -largest, largest))
    total = e.sum(axis=axis, keepdims=True)
    total = xp.where(top == -xp.inf, 1, total)
    y = xp.log(total) + top
    kept = y.shape
    return (y if keepdims else y.squeeze(axis),
            lambda g: (e * (g.reshape(kept) / total),))


@op
def softmax(x, *, axis=-1):
    """p = exp(x) / sum exp(x) along ``axis``; the cotangent of x is p (g - <g, p>).

    A row of -inf alone has no softmax and gives NaN, as in PyTorch.
    """
    p = _shifted(x, axis)
    namespace(x).exp(p, out=p)
    p /= p.sum(axis=axis, keepdims=True)
    return p, lambda g: (p * (g - (g * p).sum(axis=axis, keepdims=True)),)


@op
def log_softmax(x, *, axis=-1):
    """log softmax(x) along ``axis``; the cotangent of x is g - p <g, 1>."""
    xp = namespace(x)
    y = _shifted(x, axis)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y, lambda g: (g - xp.exp(y) * g.sum(axis=axis, keepdims=True),)


def _shifted(x, axis):
    return x - x.real.max(axis=axis, keepdims=True)


@op
def cross_entropy(logits, label):
    """-log softmax(logits)[label], one number per row. [..., C], [...] int -> [...]

    IndexError for a label outside 0 .. C - 1, TypeError for labels that are not integers,
    ValueError where their shape is not that of the rows.
    """
    C = logits.shape[-1]
    if getattr(label, "dtype", None) is None or label.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be an integer array; "
                        f"got {getattr(label, 'dtype', type(label).__name__)}")
    if label.shape != logits.shape[:-1]:
        raise ValueError(f"cross_entropy: needs one label per row, shape {logits.shape[:-1]}; "
                         f"got {label.shape}")
    if label.size and not 0 <= int(label.min()) <= int(label.max()) < C:
        raise IndexError(f"cross_entropy: labels must lie in 0 .. {C - 1}; "
                         f"got {int(label.min())} to {int(label.max())}")
    xp = namespace(logits, label)
    shifted = _shifted(logits, -1).reshape(-1, C)
    chosen = shifted[xp.arange(len(shifted)), label.ravel()]
    e = xp.exp(shifted, out=shifted)
    total = e.sum(axis=-1)

    def to_logits(g):
        g = g.reshape(-1)
        flow = e * (g / total)[:, None]
        flow[xp.arange(len(flow)), label.ravel()] -= g
        return flow.reshape(*label.shape, C)

    return (xp.log(total) - chosen).reshape(label.shape), (to_logits, None)
