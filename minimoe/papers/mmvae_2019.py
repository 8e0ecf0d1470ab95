"""Mixture-of-experts variational autoencoders: the posterior is a vote of all modalities.

Y. Shi, N. Siddharth, B. Paige and P. H. S. Torr, "Variational Mixture-of-Experts Autoencoders for
Multi-Modal Deep Generative Models", NeurIPS 2019. arXiv:1911.03393v1. (Numbers of sections are
unconfirmed; those of equations could not be had.)

    here               paper             meaning
    M, K, B, D         M, K, --, --      modalities, samples of each, data in a batch, latent width
    x                  x_1:M             tuple: what each modality saw, [B, D_m] each
    q                  q(z | x_m)        location and scale of M Laplace densities, [M, B, D] each
    z                  z_m^k             [M, K, B, D] sample k from the posterior of modality m
    log_w              log w_m^k         [M, K, B] its importance weight
    prior              --                [D], of whose softmax the prior's scales are D times
    alpha              alpha_m = 1 / M   [M, B] or [M, 1]: weights of the mixture; None: all equal
    present            --                [M, B] bool: which modalities each datum has; None: all
    rho                --                weights of the modalities' log likelihoods; None: all 1
    w~                 w~                w, normalised over the samples that a bound averages

Every posterior is sampled K times, not the mixture (stratified), and every sample is decoded by
every decoder, so that crossing from one modality to another is trained as well as coming back.

Where sources part (the authors' code, 54398d7; MultiVae 1.0.3), the text is the default:

    which bound           looser to train by, tighter to test by, as released
    its gradient          text: DReG, w~ squared: dreg_gradient, as in MultiVae. Released: the hook
                          that should square is on a tensor made too late and never runs, so that w~
                          stands once: released_gradient
    scale of posteriors   released, MNIST-SVHN, and here: D softmax(head) + 1e-6; CUB: softplus, not
                          built
    scale of the prior    released, MNIST-SVHN: D softmax, prior_scale; CUB, and MultiVae: plus
                          1e-6, prior_scale_cub
    cheap bound           released, not in the text: cheap_elbo
    missing modalities    authors: none. MultiVae, and here: left out of the mixture, the likelihood
                          and the average
"""
import math
from typing import Callable, NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, pullback, stop_gradient
from minimoe.densities import laplace_kl, laplace_log_density, laplace_sample, log_mean_exp
from minimoe.papers.mvae_2018 import decode, decoder_init, encoder_init, fill_missing

SMALLEST_SCALE = 1e-6
LIKELIHOOD_SCALE = 0.75


# -- Networks, Section 4 -------------------------------------------------------------------------

class EncoderParams(NamedTuple):
    hidden: tuple               # of LinearParams
    location: nn.LinearParams   # [H, D]
    scale: nn.LinearParams      # [H, D]


class MMVAEParams(NamedTuple):
    encoders: tuple             # M of EncoderParams
    decoders: tuple             # M of tuples of LinearParams
    prior: Tensor               # [D]


class Posteriors(NamedTuple):
    location: Tensor            # [M, B, D]
    scale: Tensor               # [M, B, D]


def init(rng, widths, latent, hidden=(128,)):
    """For modalities of these widths, as ``mvae_2018.init``; the prior's scales are all 1."""
    encoders = tuple(EncoderParams(*encoder_init(rng, n, latent, hidden)) for n in widths)
    decoders = tuple(decoder_init(rng, n, latent, hidden) for n in widths)
    return MMVAEParams(encoders, decoders, 0 * encoders[0].location.b)


def encode(params, x):
    """Location and scale of one modality's posterior, Section 4. [B, D_m] -> [B, D], [B, D]

    The scales of a datum sum to D (and a millionth for each): a posterior may trade width between
    dimensions and cannot shrink in all of them.
    """
    h = ops.relu(nn.mlp(params.hidden, x))                             # [B, H]
    scale = simplex_scale(nn.linear(params.scale, h)) + SMALLEST_SCALE
    return nn.linear(params.location, h), scale


def simplex_scale(logits):
    """D softmax: scales whose mean is 1. [..., D] -> [..., D]"""
    return logits.shape[-1] * ops.softmax(logits, axis=-1)


def prior_scale(prior):
    """The prior's scales, which are learnt, Section 4. [D] -> [D]"""
    return simplex_scale(prior)


def prior_scale_cub(prior):
    """As released for CUB, and in MultiVae: a millionth wider. [D] -> [D]"""
    return simplex_scale(prior) + SMALLEST_SCALE


def posteriors(encoders, x):
    """M of [B, D_m] -> Posteriors [M, B, D]"""
    if len(x) != len(encoders):
        raise ValueError(f"posteriors: needs {len(encoders)} modalities; got {len(x)}")
    found = [encode(encoder, a) for encoder, a in zip(encoders, x)]
    return Posteriors(*(ops.stack(parts) for parts in zip(*found)))


def samples(q, u):
    """K samples of every posterior, by inversion, Section 3; u uniform on [0, 1). -> [M, K, B, D]
    """
    return laplace_sample(q.location[:, None], q.scale[:, None], u)


def laplace_log_likelihood(x, logits):
    """Of pixels around sigmoids of logits. [B, D_m], [..., B, D_m] -> [..., B]"""
    mean = ops.clip(ops.sigmoid(logits), low=1e-6, high=1 - 1e-6)
    off = abs(mean - x).sum(axis=-1)     # summed first: the scale of all pixels is one
    return -off / LIKELIHOOD_SCALE - x.shape[-1] * math.log(2 * LIKELIHOOD_SCALE)


# -- Importance weights, Section 3 ---------------------------------------------------------------

def mixture_weights(present):
    """alpha for data that lack modalities: equal among those that each has. [M, B] bool -> [M, B]

    ValueError for a datum that has none.
    """
    n = present.sum(axis=0)                                            # [B]
    if not (n > 0).all():
        raise ValueError(f"mixture_weights: every datum needs a modality; {int((n == 0).sum())} of "
                         f"{len(n)} have none")
    return present / n


def log_mixture_posterior(q, z, alpha=None):
    """log q(z | x_1:M) = log sum_m alpha_m q(z | x_m), Section 3. [M, K, B, D] -> [M, K, B]

    Dimensions are multiplied before components are added up; the other order is another density.
    """
    log_q = component_log_densities(q, z)                              # [M, M, K, B]
    if alpha is None:
        return log_mean_exp(log_q, axis=0)
    return ops.logsumexp(log_q + _log(alpha, log_q)[:, None, None], axis=0)


def component_log_densities(q, z):
    """log q(z | x_m) for each m, of every sample. [M, K, B, D] -> [M, M, K, B]"""
    return log_densities_of_dimensions(q, z).sum(axis=-1)


def log_densities_of_dimensions(q, z):
    """The same before dimensions are multiplied. [M, K, B, D] -> [M, M, K, B, D]"""
    return laplace_log_density(z, q.location[:, None, None], q.scale[:, None, None])


def log_likelihoods(decoders, x, z, likelihoods, present=None):
    """log p(x_d | z_m^k), of every sample by every decoder, Section 3. [M, K, B, D] -> [M, M, K, B]

    The first axis is the decoder's; where it is that of the sample, a modality comes back to
    itself, elsewhere one crosses to another. 0 for what is missing.
    """
    found = ops.stack([likelihood(a, decode(layers, z))
                       for likelihood, a, layers in zip(likelihoods, x, decoders)])
    return found if present is None else ops.where(present[:, None, None], found, 0.0)


def log_weights(decoders, scale, q, x, z, likelihoods, rho=None, alpha=None, present=None):
    """log w = log p(z) + sum_d rho_d log p(x_d | z) - log q(z | x_1:M), Section 3. -> [M, K, B]

    ``scale`` is the prior's, [D]. For data that lack modalities, alpha is that of
    ``mixture_weights``.
    """
    found = log_likelihoods(decoders, x, z, likelihoods, present)      # [M, M, K, B]
    if rho is not None:
        found = ops.stack([factor * part for factor, part in zip(rho, found)])
    log_p = laplace_log_density(z, 0.0, scale).sum(axis=-1)            # [M, K, B]
    return log_p + found.sum(axis=0) - log_mixture_posterior(q, z, alpha)


def likelihood_scaling(widths):
    """rho_m: each modality as if it were as wide as the widest, Section 4. M ints -> M floats"""
    return [max(widths) / width for width in widths]


def _log(alpha, like):
    """log alpha, -inf for 0, in the dtype of another array."""
    alpha = alpha.astype(like.dtype)
    return ops.where(alpha > 0, ops.log(ops.where(alpha > 0, alpha, 1.0)), -math.inf)


# -- Bounds, Section 3 ---------------------------------------------------------------------------
# Of each datum, [B]. With rho = 1, on average: naive <= elbo <= looser <= tighter <= log p(x_1:M).

def naive_elbo(log_p, q, scale, rho=None):
    """Likelihoods averaged over modalities, less each posterior's own divergence, Section 3. -> [B]

    ``log_p`` are ``log_likelihoods``, [M, M, K, B], ``scale`` the prior's. Below ``elbo`` by the
    mean of KL(q_m || q), at most log M.
    """
    if rho is not None:
        log_p = ops.stack([factor * part for factor, part in zip(rho, log_p)])
    kl = laplace_kl(q.location, q.scale, 0.0, scale).sum(axis=-1)      # [M, B]
    return (log_p.sum(axis=0).mean(axis=1) - kl).mean(axis=0)


def elbo(log_w, alpha=None):
    """The mean log weight, Section 3. [M, K, B] -> [B]"""
    return _average(log_w.mean(axis=1), alpha)


def looser_bound(log_w, alpha=None):
    """Importance weighted over each modality's samples, then averaged, Section 3. [M, K, B] -> [B]
    """
    return _average(log_mean_exp(log_w, axis=1), alpha)


def looser_weights(log_w, alpha=None):
    """w~ of the looser bound: summing to 1 over the samples of a modality. [M, K, B] -> same"""
    return ops.softmax(log_w, axis=1)


def tighter_bound(log_w, alpha=None):
    """Importance weighted over all samples of all modalities, Section 3. [M, K, B] -> [B]

    Tighter, and worse to train by: whichever modality explains the data best takes it all.
    """
    M, K, B = log_w.shape
    return ops.logsumexp(_weighted(log_w, alpha).reshape(M * K, B), axis=0)


def tighter_weights(log_w, alpha=None):
    """w~ of the tighter bound: summing to 1 over all samples of a datum. [M, K, B] -> same"""
    M, K, B = log_w.shape
    return ops.softmax(_weighted(log_w, alpha).reshape(M * K, B), axis=0).reshape(M, K, B)


def effective_sample_size(weights, axis):
    """1 / sum w~^2: 1 where one sample takes all, as many as there are where they are equal."""
    return 1 / ops.square(weights).sum(axis=axis)


def _weighted(log_w, alpha):
    """log of alpha_m / K w_m^k."""
    M, K, B = log_w.shape
    if alpha is None:
        return log_w - math.log(M * K)
    return log_w + _log(alpha, log_w)[:, None] - math.log(K)


def _average(bounds, alpha):
    if alpha is None:
        return bounds.mean(axis=0)
    return (alpha.astype(bounds.dtype) * bounds).sum(axis=0)


class Bound(NamedTuple):
    value: Callable      # log_w, alpha -> [B]
    weights: Callable    # log_w, alpha -> w~


LOOSER = Bound(looser_bound, looser_weights)
TIGHTER = Bound(tighter_bound, tighter_weights)


# -- Gradients -----------------------------------------------------------------------------------
# A bound's slope in a sample z is w~ d log w / dz. What goes on from there, through the sample, to
# the encoder that drew it, is what the three estimators differ in.

def doubly_reparametrised(log_weights, z, encoders, others, bound=LOOSER, alpha=None):
    """DReG: sum w~^2 d log w / dz dz for encoders, sum w~ d log w for all others.

    ``log_weights(z)``, of ``others`` and stopped posteriors, gives log w. The graph is cut at z:
    the bound itself has w~ once in its slope there; multiplied by w~ once more, that is pulled back
    through the samples. For M = 1 its mean is the gradient's, but as K grows it does not drown in
    noise. With several modalities it is biased: it takes a sample to be from the density it is
    divided by, which is the mixture's, and here it is from one component. Where these lie far apart
    there is no difference. (Tucker et al. 2019, arXiv:1810.04152v2.)
    Trees of Tensors -> [B], and trees of arrays like ``encoders`` and ``others``
    """
    return _through_samples(log_weights, z, encoders, others, bound, alpha, bound.weights)


def sticking_the_landing(log_weights, z, encoders, others, bound=LOOSER, alpha=None):
    """w~ stands once for encoders too: what the authors' code does, and biased for K > 1.

    (Roeder et al. 2017, arXiv:1703.09194v3, who have one sample.)
    """
    return _through_samples(log_weights, z, encoders, others, bound, alpha, lambda *_: None)


def _through_samples(log_weights, z, encoders, others, bound, alpha, once_more):
    cut = Tensor(stop_gradient(z))                                     # [M, K, B, D]
    log_w = log_weights(cut)                                           # [M, K, B]
    value = bound.value(log_w, alpha)                                  # [B]
    to_z, to_others = grad(value.sum(), (cut, others))
    w = once_more(stop_gradient(log_w), alpha)
    to_encoders = pullback(z, to_z if w is None else w[..., None] * to_z, encoders)
    return stop_gradient(value), to_encoders, to_others


class BoundAndGradient(NamedTuple):
    bound: Tensor            # [B]
    gradient: MMVAEParams    # uphill, of the sum over the batch


def dreg_gradient(params, x, u, likelihoods, rho=None, present=None, bound=LOOSER,
                  scale_of_prior=prior_scale):
    """A bound and its doubly reparametrised gradient, Section 3. M of [B, D_m], [M, K, B, D]

    ``params`` are Tensors. For one modality, or posteriors far apart, the mean over draws is that
    of ``iwae_gradient``.
    """
    return _by_estimator(doubly_reparametrised, params, x, u, likelihoods, rho, present, bound,
                         scale_of_prior)


def released_gradient(params, x, u, likelihoods, rho=None, present=None, bound=LOOSER,
                      scale_of_prior=prior_scale):
    """The same as the authors' code has it, by ``sticking_the_landing``."""
    return _by_estimator(sticking_the_landing, params, x, u, likelihoods, rho, present, bound,
                         scale_of_prior)


def iwae_gradient(params, x, u, likelihoods, rho=None, present=None, bound=LOOSER,
                  scale_of_prior=prior_scale):
    """The plain gradient: through the samples and through the posteriors' densities."""
    x, alpha = _filled(x, present)
    q = posteriors(params.encoders, x)
    log_w = log_weights(params.decoders, scale_of_prior(params.prior), q, x, samples(q, u),
                        likelihoods, rho, alpha, present)
    value = bound.value(log_w, alpha)                                  # [B]
    return BoundAndGradient(stop_gradient(value), grad(value.sum(), params))


def _by_estimator(estimator, params, x, u, likelihoods, rho, present, bound, scale_of_prior):
    x, alpha = _filled(x, present)
    q = posteriors(params.encoders, x)
    stopped = Posteriors(*map(stop_gradient, q))
    decoders, prior = params.decoders, params.prior

    def log_weights_of(z):
        return log_weights(decoders, scale_of_prior(prior), stopped, x, z, likelihoods, rho, alpha,
                           present)

    value, to_encoders, to_others = estimator(
        log_weights_of, samples(q, u), params.encoders, (decoders, prior), bound, alpha)
    return BoundAndGradient(value, MMVAEParams(to_encoders, *to_others))


def _filled(x, present):
    """What is missing as zeros, and alpha."""
    return fill_missing(x, present), None if present is None else mixture_weights(present)


# -- The cheap bound of the released code --------------------------------------------------------

def cheap_elbo(decoders, scale, q, x, z, likelihoods):
    """Only M decodes: each sample is read by its own decoder, and lent to the other posteriors.

    1/M sum_r (sum_d omega_rd log p(x_d | z_d) - KL(q_r || p)), omega_rd = q_r(z_d) / q_d(z_d): it
    may be anything where posteriors disagree. Its mean is that of ``naive_elbo``. One sample of
    each, through which no omega is differentiated. [M, 1, B, D] -> [B]
    """
    M = len(q.location)
    kl = laplace_kl(q.location, q.scale, 0.0, scale).sum(axis=-1)      # [M, B]
    log_q = component_log_densities(q, stop_gradient(z))[:, :, 0]      # [M, M, B]
    total = -kl.sum(axis=0)                                            # [B]
    for d in range(M):
        found = likelihoods[d](x[d], decode(decoders[d], z[d, 0]))     # [B]
        for r in range(M):
            omega = ops.exp(log_q[r, d] - stop_gradient(log_q[d, d]))
            total = total + (found if r == d else omega * found)
    return total / M


# -- The four criteria, Section 1 ----------------------------------------------------------------
# A judge says the class of what a decoder gives, [N, D_m] -> [N] int. All are shares of N.

def latent_accuracy(classify, z, label):
    """Latent factorisation: how many latent variables tell a linear classifier their class.

    Section 1, and Section 4 for how it is measured. [N, D], [N] int -> number
    """
    return float((classify(z) == label).mean())


def joint_coherence(decoders, z, judges):
    """Whether all decoders make the same class of one draw from the prior, Section 1.

    [N, D] -> number
    """
    first, *others = [judge(decode(layers, z)) for judge, layers in zip(judges, decoders)]
    agree = first == first
    for other in others:
        agree = agree & (first == other)
    return float(agree.mean())


def cross_coherence(decoder, z, judge, label):
    """Whether one modality is decoded to the class of another, from whose posterior z are.

    Section 1. [N, D], [N] int -> number
    """
    return float((judge(decode(decoder, z)) == label).mean())


def marginal_log_likelihood(decoder, scale, q, x, z, likelihood):
    """Synergy: log p(x_d), by the tighter bound with the posteriors of some modalities. -> [B]

    Section 1. ``q`` and ``z`` [M, K, B, D] are of all modalities, of x's own, or of another. With
    all it should be higher than with its own, and that higher than with another's alone.
    """
    return tighter_bound(log_weights((decoder,), scale, q, (x,), z, (likelihood,)))


# -- Recorded runs -------------------------------------------------------------------------------
# Two modalities, with one hidden layer each.

def shapes():
    """The parameters of a recorded run, with shapes in letters at the leaves."""
    heads = nn.LinearParams("H D", "D")
    return MMVAEParams(
        tuple(EncoderParams((nn.LinearParams(f"W{m} H", "H"),), heads, heads) for m in range(2)),
        tuple((nn.LinearParams("D H", "H"), nn.LinearParams(f"H W{m}", f"W{m}"))
              for m in range(2)), "D")


def _params(case):
    names = iter(tree.named_leaves(shapes()))
    return tree.map(lambda _: Tensor(case.params[next(names)]), shapes())


def _likelihoods():
    return laplace_log_likelihood, laplace_log_likelihood


def bounds_oracle(case):
    """Every step on the way to a log weight, every bound, and gradients of their means.

    The estimators' gradients are of the sum over the batch.
    """
    inputs, params, likelihoods = case.inputs, _params(case), _likelihoods()
    x, u, rho = (inputs["x.0"], inputs["x.1"]), inputs["u"], case.settings["rho"]
    q, scale = posteriors(params.encoders, x), prior_scale(params.prior)
    z = samples(q, u)
    log_p = log_likelihoods(params.decoders, x, z, likelihoods)
    log_w = log_weights(params.decoders, scale, q, x, z, likelihoods, rho)
    bounds = {"naive_elbo": naive_elbo(log_p, q, scale, rho), "elbo": elbo(log_w),
              "looser_bound": looser_bound(log_w), "tighter_bound": tighter_bound(log_w),
              "cheap_elbo": cheap_elbo(params.decoders, scale, q, x, z[:, :1], likelihoods)}
    gradients = {
        name: {of: estimator(params, x, u, likelihoods, rho, bound=bound,
                             scale_of_prior=prior_scale).gradient
               for of, bound in (("looser", _looser()), ("tighter", _tighter()))}
        for name, estimator in (("dreg_gradient", dreg_gradient),
                                ("released_gradient", released_gradient))}
    return tree.map(stop_gradient, {
        "location": q.location, "scale": q.scale, "prior_scale": scale, "z": z,
        "log_prior": laplace_log_density(z, 0.0, scale).sum(axis=-1),
        "log_densities_of_dimensions": log_densities_of_dimensions(q, z),
        "component_log_densities": component_log_densities(q, z),
        "log_mixture_posterior": log_mixture_posterior(q, z),
        "decoded": [decode(layers, z) for layers in params.decoders], "log_likelihoods": log_p,
        "log_w": log_w,
        "looser_weights": looser_weights(log_w), "tighter_weights": tighter_weights(log_w),
        "kl": laplace_kl(q.location, q.scale, 0.0, scale).sum(axis=-1), **bounds, **gradients,
        "grad": {name: grad(bound.mean(), params) for name, bound in bounds.items()}})


def _looser():
    return Bound(looser_bound, looser_weights)


def _tighter():
    return Bound(tighter_bound, tighter_weights)


def multivae_oracle(case):
    """MultiVae's two losses to train by, ``dreg_looser`` and ``iwae_looser``, of the batch."""
    present = case.inputs["present"]
    dreg, looser = (_as_multivae(case, by, _looser(), present) for by in (dreg_gradient,
                                                                          iwae_gradient))
    return {"looser_bound": looser.bound.sum(), "dreg_gradient": dreg.gradient,
            "grad": {"looser_bound": looser.gradient}}


def multivae_iwae_oracle(case):
    """Its ``iwae``, to test by: the tighter bound of the batch.

    Of complete data: there, the weight of what is missing is 1 where it should be 0.
    """
    tighter = _as_multivae(case, iwae_gradient, _tighter())
    return {"tighter_bound": tighter.bound.sum(), "grad": {"tighter_bound": tighter.gradient}}


def _as_multivae(case, gradient, bound, present=None):
    inputs = case.inputs
    return gradient(_params(case), (inputs["x.0"], inputs["x.1"]), inputs["u"], _likelihoods(),
                    case.settings["rho"], present, bound, prior_scale_cub)


INPUTS = {"in.x.0": "B W0", "in.x.1": "B W1", "in.u": "M K B D", "set.rho": "M",
          **{f"param.{name}": letters for name, letters in tree.named_leaves(shapes()).items()}}
ORACLES = {
    "bounds": (INPUTS, bounds_oracle),
    "multivae": ({**INPUTS, "in.present": "bool M B"}, multivae_oracle),
    "multivae_iwae": (INPUTS, multivae_iwae_oracle),
}


# -- Cases and conventions -----------------------------------------------------------------------

def _pixels_and_draws(*changes):
    """Grey pixels; draws off 0, whose sample depends on the dtype, and off 1/2, its location."""
    def draw(arrays, rng):
        for m in range(2):
            arrays[f"in.x.{m}"] = rng.integers(256, size=arrays[f"in.x.{m}"].shape) / 255
        arrays["in.u"] = (2 * rng.integers(64, size=arrays["in.u"].shape) + 1) / 128
        for change in changes:
            change(arrays, rng)

    return draw


def _some_missing(arrays, rng):
    """Of every datum one modality is there, of the first both."""
    present = arrays["in.present"]
    present[0] = rng.random(present.shape[1]) < 0.5
    present[1] = ~present[0]
    present[:, 0] = True


def _far_apart(arrays, rng):
    """Each posterior's samples are impossible under the other's."""
    arrays["param.encoders.0.location.b"] += 8
    arrays["param.encoders.1.location.b"] -= 8


def _narrow(arrays, rng):
    """One dimension has almost all of the width that there is."""
    for m in range(2):
        arrays[f"param.encoders.{m}.scale.b"][0] += 3


_SIZES = dict(M=2, D=3, H=4, W0=4, W1=3, rho=[1.0, 1.0])
_SCALED = {**_SIZES, "rho": [1.0, 1.25]}

CASES = {
    "one_sample": ("bounds", dict(K=1, B=4, **_SIZES), "one sample", _pixels_and_draws()),
    "three_samples": ("bounds", dict(K=3, B=4, **_SCALED), "", _pixels_and_draws()),
    "one_datum": ("bounds", dict(K=4, B=1, **_SIZES), "degenerate, one datum",
                  _pixels_and_draws()),
    "one_dimension": ("bounds", dict(K=2, B=7, **{**_SIZES, "D": 1}), "degenerate",
                      _pixels_and_draws()),
    "far_apart": ("bounds", dict(K=2, B=8, **_SIZES), "extreme", _pixels_and_draws(_far_apart)),
    "narrow": ("bounds", dict(K=2, B=7, **_SIZES), "extreme", _pixels_and_draws(_narrow)),
    "multivae_one_sample": ("multivae", dict(K=1, B=4, **_SIZES), "one sample",
                            _pixels_and_draws()),
    "multivae_five_samples": ("multivae", dict(K=5, B=4, **_SCALED), "", _pixels_and_draws()),
    "multivae_some_missing": ("multivae", dict(K=4, B=6, **_SIZES), "missing",
                              _pixels_and_draws(_some_missing)),
    "multivae_one_datum": ("multivae", dict(K=3, B=1, **_SIZES), "degenerate, one datum",
                           _pixels_and_draws()),
    "iwae_one_sample": ("multivae_iwae", dict(K=1, B=3, **_SIZES), "one sample",
                        _pixels_and_draws()),
    "iwae_four_samples": ("multivae_iwae", dict(K=4, B=3, **_SCALED), "", _pixels_and_draws()),
    "iwae_three_samples": ("multivae_iwae", dict(K=3, B=5, **_SIZES), "", _pixels_and_draws()),
    "iwae_one_datum": ("multivae_iwae", dict(K=4, B=1, **_SIZES), "degenerate, one datum",
                       _pixels_and_draws()),
}

CONVENTIONS = {
    "the prior's scales are a millionth wider, as released for CUB":
        {"prior_scale": "prior_scale_cub"},
    "the prior's scales are D softmax and nothing more": {"prior_scale_cub": "prior_scale"},
    "w~ stands once for encoders, as in the released code":
        {"doubly_reparametrised": "sticking_the_landing"},
    "w~ stands squared for encoders, as the text has it":
        {"sticking_the_landing": "doubly_reparametrised"},
    "the plain gradient in place of DReG": {"dreg_gradient": "iwae_gradient"},
    "the tighter bound in place of the looser":
        {"looser_bound": "tighter_bound", "looser_weights": "tighter_weights"},
    "the looser bound in place of the tighter":
        {"tighter_bound": "looser_bound", "tighter_weights": "looser_weights"},
}
