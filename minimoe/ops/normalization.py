"""Layer norm and RMS norm, each one operation: their vjps share the statistics of the row."""
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


def _inverse_root(x, epsilon):
    """1 / sqrt(mean x^2 + epsilon) of every row, its axis kept."""
    return 1 / namespace(x).sqrt((x * x).mean(axis=-1, keepdims=True) + float(epsilon))
