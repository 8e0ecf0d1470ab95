"""Sums, means and what is built on them: log-sum-exp, softmax, norms, cross-entropy."""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


def _spread(g, shape, axis, keepdims):
    """The cotangent of a reduction along ``axis``, broadcast back over what was reduced."""
    xp = namespace(g)
    if axis is not None and not keepdims:
        axes = (axis,) if isinstance(axis, int) else axis
        g = xp.expand_dims(g, tuple(a % len(shape) for a in axes))
    return xp.broadcast_to(g, shape)


def _count(shape, axis):
    """How many entries a reduction of this shape along ``axis`` puts into one."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    n = 1
    for a in axes:
        n *= shape[a]
    return n


@op
def sum(x, *, axis=None, keepdims=False):
    shape = x.shape
    return (x.sum(axis=axis, keepdims=keepdims),
            lambda g: (_spread(g, shape, axis, keepdims),))


@op
def mean(x, *, axis=None, keepdims=False):
    shape, n = x.shape, _count(x.shape, axis)
    return (x.mean(axis=axis, keepdims=keepdims),
            lambda g: (_spread(g / n, shape, axis, keepdims),))


@op
def var(x, *, axis=None, keepdims=False, ddof=0):
    """Mean squared distance from the mean, divided by n - ``ddof``: 0 population, 1 sample variance."""
    centred = x - x.mean(axis=axis, keepdims=True)
    n = _count(x.shape, axis) - ddof
    return ((centred * centred).sum(axis=axis, keepdims=keepdims) / n,
            lambda g: (_spread(g * (2 / n), centred.shape, axis, keepdims) * centred,))


@op
def max(x, *, axis=None, keepdims=False):
    """The largest entry; where several are, they share the cotangent equally."""
    return _extremum(x, x.real.max(axis=axis, keepdims=True), axis, keepdims)


@op
def min(x, *, axis=None, keepdims=False):
    """The smallest entry; where several are, they share the cotangent equally."""
    return _extremum(x, x.real.min(axis=axis, keepdims=True), axis, keepdims)


def _extremum(x, real, axis, keepdims):
    hit = (x.real == real).astype(x.real.dtype)
    hit = hit / hit.sum(axis=axis, keepdims=True)
    if x.dtype.kind == "c":
        value = (x * hit).sum(axis=axis, keepdims=keepdims)
    else:
        value = real if keepdims else real.reshape(real.sum(axis=axis).shape)
    return value, lambda g: (_spread(g, hit.shape, axis, keepdims) * hit,)


@op
def cumsum(x, *, axis):
    """Running sum along ``axis``; its vjp is the running sum from the other end."""
    xp = namespace(x)
    return (xp.cumsum(x, axis=axis),
            lambda g: (xp.flip(xp.cumsum(xp.flip(g, axis), axis=axis), axis),))


@op
def logsumexp(x, *, axis=-1, keepdims=False):
    """log sum exp(x) along ``axis``, shifted by the largest entry; -inf where every entry is."""
    xp = namespace(x)
    e, total, top = _shifted_exp(x, axis)
    y = xp.log(xp.where(total.real > 0, total, 1)) + top
    p = e / xp.where(total.real > 0, total, 1)
    return (y if keepdims else y.squeeze(axis),
            lambda g: (_spread(g, p.shape, axis, keepdims) * p,))


def _shifted_exp(x, axis):
    """exp(x - top), its sum along ``axis``, and top: the largest finite entry, or -inf or inf."""
    xp = namespace(x)
    top = x.real.max(axis=axis, keepdims=True)
    shift = xp.where(xp.isfinite(top), top, 0)
    e = xp.exp(x - shift)
    return e, e.sum(axis=axis, keepdims=True), top


@op
def softmax(x, *, axis=-1):
    """p = exp(x) / sum exp(x) along ``axis``; the cotangent of x is p (g - <g, p>)."""
    xp = namespace(x)
    p = xp.exp(x - x.real.max(axis=axis, keepdims=True))
    p /= p.sum(axis=axis, keepdims=True)

    def vjp(g):
        return (p * (g - (g * p).sum(axis=axis, keepdims=True)),)

    return p, vjp


@op
def log_softmax(x, *, axis=-1):
    """log softmax(x) along ``axis``; the cotangent of x is g - p <g, 1>."""
    xp = namespace(x)
    shifted = x - x.real.max(axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, lambda g: (g - xp.exp(y) * g.sum(axis=axis, keepdims=True),)


@op
def cross_entropy(logits, label):
    """-log softmax(logits)[label], one number per row. [..., C], [...] int -> [...]

    IndexError for a label outside 0 .. C - 1.
    """
    xp = namespace(logits, label)
    C = logits.shape[-1]
    if label.size and not 0 <= int(label.min()) <= int(label.max()) < C:
        raise IndexError(f"cross_entropy: labels must lie in 0 .. {C - 1}; "
                         f"got {int(label.min())} to {int(label.max())}")
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = label[..., None]

    def to_logits(g):
        return g[..., None] * (xp.exp(log_p) - (xp.arange(C) == chosen))

    return -xp.take_along_axis(log_p, chosen, axis=-1)[..., 0], (to_logits, None)


@op
def layer_norm(x, scale, shift, *, epsilon):
    """scale (x - mean) / sqrt(var + epsilon) + shift along the last axis (arXiv:1607.06450v1, Eq. 4).

    The variance is the population's. [..., D], [D], [D] -> [..., D]
    """
    xp = namespace(x, scale, shift)
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)
    normal = centred * inverse
    D = x.shape[-1]

    def to_x(g):
        g = g * scale
        return inverse * (g - g.mean(axis=-1, keepdims=True)
                          - normal * (g * normal).mean(axis=-1, keepdims=True))

    return normal * scale + shift, (to_x,
                                    lambda g: (g * normal).reshape(-1, D).sum(axis=0),
                                    lambda g: g.reshape(-1, D).sum(axis=0))


@op
def rms_norm(x, scale, *, epsilon):
    """scale x / sqrt(mean x^2 + epsilon) along the last axis (arXiv:1910.07467v1, Eq. 4).

    [..., D], [D] -> [..., D]
    """
    xp = namespace(x, scale)
    inverse = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon)
    normal = x * inverse
    D = x.shape[-1]

    def to_x(g):
        g = g * scale
        return inverse * (g - normal * (g * normal).mean(axis=-1, keepdims=True))

    return normal * scale, (to_x, lambda g: (g * normal).reshape(-1, D).sum(axis=0))
