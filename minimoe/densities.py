"""Densities that papers multiply and mix: Gaussian, Laplace, Bernoulli, categorical.

    M experts or components    D dimensions of what is drawn

Densities, divergences and samples are entry by entry, except the categorical, which takes up the
last axis; whoever has independent dimensions sums over them. Variances are given by their
logarithms and probabilities by logits, so that neither overflows. A sample takes its draw as an
argument and can be differentiated with respect to the parameters.
"""
import math

from minimoe import ops
from minimoe.autodiff.tensor import stop_gradient
from minimoe.backend import namespace

LOG_2_PI = math.log(2 * math.pi)


# -- Log densities -------------------------------------------------------------------------------

def gaussian_log_density(x, mean, log_variance):
    """log N(x; mean, variance). [...] -> [...]"""
    z = (x - mean) * _keeping_dtype(ops.exp, -0.5 * log_variance)
    return -0.5 * (z * z + log_variance + LOG_2_PI)


def laplace_log_density(x, location, scale):
    """log of exp(-|x - location| / scale) / (2 scale); at the location, its slope is 0.

    ValueError for a scale that is not positive. [...] -> [...]
    """
    _check_scale("laplace_log_density", scale)
    return -abs(x - location) / scale - _keeping_dtype(ops.log, scale) - math.log(2)


def bernoulli_log_density(x, logits):
    """log of p^x (1 - p)^(1 - x), p = sigmoid(logits). [...] -> [...]

    ``x`` between 0 and 1, as grey pixels are, gives the cross-entropy, which is no density.
    """
    return x * logits - ops.relu(logits) - ops.softplus(-abs(logits))  # no digit lost for x = 1


def categorical_log_density(label, logits):
    """log softmax(logits)[label]; errors as of ``ops.cross_entropy``. [...] int, [..., C] -> [...]
    """
    return -ops.cross_entropy(logits, label)


def mixture_log_density(log_densities, log_weights=None):
    """log sum_m weight_m prod_d density_md: dimensions are multiplied before components are mixed.

    Mixing in each dimension and multiplying then is another density, with up to M^D modes.
    ``log_weights`` broadcasts to [M, ...]; without it, all are 1 / M. A row of components that are
    all impossible is -inf. [M, ..., D] -> [...]
    """
    joint = log_densities.sum(axis=-1)                                 # [M, ...]
    if log_weights is None:
        return log_mean_exp(joint, axis=0)
    return ops.logsumexp(joint + log_weights, axis=0)


def log_mean_exp(x, axis):
    """log of the mean of exp(x) along ``axis``."""
    return ops.logsumexp(x, axis=axis) - math.log(x.shape[axis])


# -- Samples -------------------------------------------------------------------------------------

def gaussian_sample(mean, log_variance, epsilon):
    """mean + sd epsilon, for standard normal draws."""
    return mean + _keeping_dtype(ops.exp, 0.5 * log_variance) * epsilon


def laplace_sample(location, scale, u):
    """By inversion of the distribution function, for draws uniform on [0, 1).

    A draw of 0, whose sample would be infinite, counts as the smallest normal number. ValueError
    for a scale that is not positive.
    """
    _check_scale("laplace_sample", scale)
    xp, u = namespace(u), stop_gradient(u)
    tail = xp.where(u < 0.5, 2 * u, 2 - 2 * u)                         # of the nearer side, (0, 1]
    unit = xp.copysign(xp.log(xp.maximum(tail, xp.finfo(u.dtype).tiny)), u - 0.5)
    return location + scale * unit


# -- Divergences ---------------------------------------------------------------------------------

def gaussian_kl(mean, log_variance, other_mean=0.0, other_log_variance=0.0):
    """KL(N(mean, variance) || N(other)), the other standard unless it is given. [...] -> [...]"""
    wider = log_variance - other_log_variance
    z = (mean - other_mean) * ops.exp(0.5 * (wider - log_variance))
    return 0.5 * (ops.expm1(wider) - wider + z * z)


def laplace_kl(location, scale, other_location=0.0, other_scale=1.0):
    """KL(Laplace(location, scale) || Laplace(other)). [...] -> [...]

    ValueError for a scale that is not positive.
    """
    _check_scale("laplace_kl", scale)
    _check_scale("laplace_kl", other_scale)
    apart = abs(location - other_location)
    ratio = scale / other_scale
    return (ratio * _keeping_dtype(ops.exp, -apart / scale) + apart / other_scale
            - _keeping_dtype(ops.log, ratio) - 1)


def bernoulli_kl(logits, other_logits):
    """KL between coins. [...] -> [...]"""
    p = ops.sigmoid(logits)
    return p * (logits - other_logits) - ops.softplus(logits) + ops.softplus(other_logits)


def categorical_kl(logits, other_logits):
    """KL between softmaxes; a choice that the first never makes costs nothing. [..., C] -> [...]"""
    log_p, log_q = ops.log_softmax(logits), ops.log_softmax(other_logits)
    never = stop_gradient(log_p) == -math.inf
    ratio = ops.where(never, 0.0, log_p) - ops.where(never, 0.0, log_q)
    return (ops.exp(log_p) * ratio).sum(axis=-1)


def kl_estimate(log_q, log_p, axis=0):
    """The mean of log q - log p over draws from q: unbiased, and negative by chance.

    For pairs without a closed form, a mixture and its prior among them.
    """
    return (log_q - log_p).mean(axis=axis)


# -- Products of Gaussians -----------------------------------------------------------------------

def product_of_gaussians(mean, log_variance, log_weight=None, present=None, prior=None):
    """The Gaussian that is proportional to prod_m N(mean_m, variance_m)^weight_m.

    Precisions add, and the mean is that of the experts by their share of the precision; all in
    logarithms, so that no variance is too small or too large. ``log_weight`` broadcasts to the
    shape of the experts; without it, all weights are 1. An expert whose ``present`` [M, ...] is
    False (broadcast in the same way) takes no part, whatever it holds. ``prior`` is a pair, the
    mean and log-variance of one expert more that is always present. An expert of variance 0
    decides alone.

    ValueError for shapes that differ, a place where no expert is present or all weights are 0, and
    experts of variance 0 that contradict each other. [M, ..., D], [M, ..., D] -> [..., D], [..., D]
    """
    mean, log_variance, log_weight = _experts(
        "product_of_gaussians", mean, log_variance, log_weight, present, prior)
    log_precision = log_weight - log_variance                          # [M, ..., D]
    sure = stop_gradient(log_precision) == math.inf
    if sure.any():
        return _decided(mean, log_precision, sure)
    total = ops.logsumexp(log_precision, axis=0)                       # [..., D]
    share = ops.exp(log_precision - total)                             # [M, ..., D]
    return (share * mean).sum(axis=0), -total


def _decided(mean, log_precision, sure):
    """The product where an expert has variance 0, in some places or in all."""
    apart = (ops.where(sure, stop_gradient(mean), -math.inf).max(axis=0)
             > ops.where(sure, stop_gradient(mean), math.inf).min(axis=0))
    if apart.any():
        raise ValueError(f"product_of_gaussians: experts of variance 0 must agree; in "
                         f"{int(apart.sum())} of {apart.size} places they do not")
    decided = sure.any(axis=0)
    among = ops.where(decided, ops.where(sure, 0.0, -math.inf), log_precision)
    total = ops.logsumexp(among, axis=0)
    mean = (ops.exp(among - total) * mean).sum(axis=0)
    return mean, ops.where(decided, -math.inf, -total)


def log_normalizer_of_gaussians(mean, log_variance, log_weight=None, present=None, prior=None):
    """log of the integral of prod_m N(mean_m, variance_m)^weight_m: how far the experts agree.

    Arguments and errors are those of ``product_of_gaussians``; no variance may be 0.
    [M, ..., D], [M, ..., D] -> [..., D]
    """
    mean, log_variance, log_weight = _experts(
        "log_normalizer_of_gaussians", mean, log_variance, log_weight, present, prior)
    joint_mean, joint_log_variance = product_of_gaussians(mean, log_variance, log_weight)
    z = (mean - joint_mean) * ops.exp(0.5 * (log_weight - log_variance))
    experts = (z * z + ops.exp(log_weight) * (log_variance + LOG_2_PI)).sum(axis=0)
    return 0.5 * (joint_log_variance + LOG_2_PI - experts)


def _experts(name, mean, log_variance, log_weight, present, prior):
    """Means, log-variances and log-weights of all experts, the prior with them, the absent at 0."""
    if mean.shape != log_variance.shape or not mean.ndim:
        raise ValueError(f"{name}: means and log-variances must have one shape, [M, ...]; "
                         f"got {mean.shape} and {log_variance.shape}")
    xp = namespace(stop_gradient(mean))
    takes_part = xp.ones(mean.shape, bool) if present is None else present & xp.ones(
        mean.shape, bool)
    if log_weight is None:
        log_weight = xp.zeros(mean.shape, stop_gradient(mean).dtype)
    takes_part = takes_part & (stop_gradient(log_weight) > -math.inf)
    log_weight = ops.where(takes_part, log_weight, -math.inf)
    if prior is not None:
        one = xp.zeros((1, *mean.shape[1:]), stop_gradient(mean).dtype)
        mean, log_variance, log_weight = (
            ops.concatenate([a, b + one]) for a, b in
            zip((mean, log_variance, log_weight), (*prior, 0.0)))
        takes_part = xp.concatenate([takes_part, one == 0])
    if not takes_part.any(axis=0).all():
        none = ~takes_part.any(axis=0)
        raise ValueError(f"{name}: needs an expert with a weight everywhere; {int(none.sum())} of "
                         f"{none.size} places have none")
    return (ops.where(takes_part, mean, 0.0), ops.where(takes_part, log_variance, 0.0), log_weight)


def _keeping_dtype(f, x):
    """f(x), a plain number for a plain number: one of NumPy's would turn float32 into float64."""
    return f(x) if hasattr(x, "shape") else float(f(x))


def _check_scale(name, scale):
    if not (stop_gradient(scale) > 0).all() if hasattr(scale, "shape") else not scale > 0:
        raise ValueError(f"{name}: every scale must be positive")
