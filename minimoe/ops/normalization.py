"""Layer norm, RMS norm and batch norm, each one operation: their vjps share the statistics."""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace


@op
def layer_norm(x, scale, shift, *, epsilon):
    """scale (x - mean) / sqrt(var + epsilon) + shift along the last axis.

    arXiv:1607.06450v1, Eq. (4). The variance is the population's. [..., D], [D], [D] -> [..., D]
    """
    normal = x - x.mean(axis=-1, keepdims=True)
    inverse = _inverse_root(normal, epsilon)
    normal *= inverse
    D = x.shape[-1]

    def to_x(g):
        flow = g * scale
        along = (flow * normal).mean(axis=-1, keepdims=True)
        flow -= flow.mean(axis=-1, keepdims=True)
        flow -= normal * along
        flow *= inverse
        return flow

    return normal * scale + shift, (to_x,
                                    lambda g: (g * normal).reshape(-1, D).sum(axis=0),
                                    lambda g: g.reshape(-1, D).sum(axis=0))


@op
def rms_norm(x, scale, *, epsilon):
    """scale x / sqrt(mean x^2 + epsilon) along the last axis (arXiv:1910.07467v1, Eq. 4).

    [..., D], [D] -> [..., D]
    """
    inverse = _inverse_root(x, epsilon)
    normal = x * inverse
    D = x.shape[-1]

    def to_x(g):
        flow = g * scale
        flow -= normal * (flow * normal).mean(axis=-1, keepdims=True)
        flow *= inverse
        return flow

    return normal * scale, (to_x, lambda g: (g * normal).reshape(-1, D).sum(axis=0))


@op
def batch_norm(x, scale, shift, *, epsilon):
    """scale (x - mean) / sqrt(var + epsilon) + shift, per channel of the batch.

    arXiv:1502.03167v3, Algorithm 1. Mean and variance are the batch's own, over all axes but the
    last; the variance is the population's. ValueError for fewer than two entries of a channel, of
    which nothing but the shift would be left. [..., C], [C], [C] -> [..., C]
    """
    xp = namespace(x, scale, shift)
    *_, W, C = (1, *x.shape)
    n = x.size // C if C else 0
    if n < 2:
        raise ValueError(f"batch_norm: needs at least two entries of each channel; got {x.shape}")

    def each(v):
        return xp.tile(v, W)                           # long rows are quicker than many short ones

    def total(rows):
        return rows.sum(axis=0).reshape(W, C).sum(axis=0)              # [C]

    normal = x.reshape(-1, W * C)
    normal = normal - each(total(normal) / n)
    inverse = 1 / xp.sqrt(total(normal * normal) / n + float(epsilon))     # [C]
    normal *= each(inverse)

    def vjp(g):
        g = g.reshape(-1, W * C)
        to_scale, to_shift = total(g * normal), total(g)
        flow = g - each(to_shift / n)
        flow -= normal * each(to_scale / n)
        flow *= each(scale * inverse)
        return flow.reshape(x.shape), to_scale, to_shift

    return (normal * each(scale) + each(shift)).reshape(x.shape), vjp


def _inverse_root(x, epsilon):
    """1 / sqrt(mean x^2 + epsilon) of every row, its axis kept."""
    return 1 / namespace(x).sqrt((x * x).mean(axis=-1, keepdims=True) + float(epsilon))
