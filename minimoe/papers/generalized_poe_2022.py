"""Generalised products of experts: each modality is heard as far as it is credible.

A. Joshi, N. Gupta, J. Shah, B. Bhattarai, A. Modi and D. Stoyanov, "Generalized Product-of-Experts
for Learning Multimodal Representations in Noisy Environments", ICMI 2022. arXiv:2211.03587v1. (Only
its abstract could be read: what it leaves open is said below, and no equation is numbered.) The
weighted product is that of Y. Cao and D. J. Fleet, "Generalized Product of Experts for Automatic
and Principled Fusion of Gaussian Process Predictions", 2014. arXiv:1410.7827v2.

    here            meaning
    M, N, D         modalities, data, width of the latent variable
    x               tuple: what each modality saw, perhaps corrupted, [N, D_m] each
    present         [M, N] bool: which modalities each datum has; None: all of them
    mean,           [M, N, D] each, of the experts; T is the inverse of a variance
      log_variance
    scores          [M, N, S]: what credibility networks say; S is D, or 1 for one score to a datum
    log_weight      [M, N, S]: log alpha; -inf for an expert that is not heard
    prior           PriorExpert p_0, or None

Where sources part, the default is the first:

    how scores become weights    unconfirmed; softmax_weights, which sum to 1. To the number
                                 present: scaled_softmax_weights. Each on its own: sigmoid_weights.
                                 Learnt constants, without networks, multi-view-AE: fixed_weights
    entropy changes as weights   Cao and Fleet's own program: divided by their sum,
                                 normalized_entropy_weights. Other programs: as they are,
                                 entropy_weights. Deisenroth and Ng 2015: as they are, and what is
                                 missing to 1 is the prior's, committee
    prior expert                 none. Of weight 1 in MVAE, product_of_experts in mvae_2018
    derivative by a weight of 0  none: who is not heard does not learn why. Of the product as it is
                                 written: T_m for the precision; not built
    epsilon in the product       none. multi-view-AE: in four places, product_multiview_ae
    exp(-p variance) as weight   in programs for Gaussian processes; not built
"""
import math
from typing import NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.densities import gaussian_kl, gaussian_sample, product_of_gaussians
from minimoe.papers.mvae_2018 import (
    ElboTerms, EncoderParams, Gaussian, bernoulli_log_likelihood, categorical_log_likelihood,
    decode, decoder_init, encode, encoder_init, fill_missing, products_and_gradients,
    with_deviation)


# -- The weighted product ------------------------------------------------------------------------

class PriorExpert(NamedTuple):
    """The standard normal with weight 1, unless it is told otherwise. Numbers, or [D] each."""
    mean: Tensor = 0.0
    log_variance: Tensor = 0.0
    log_weight: Tensor = 0.0


def generalized_product(mean, log_variance, log_weight, present=None, prior=None):
    """The Gaussian proportional to p_0^alpha_0 prod_m q_m^alpha_m, of the modalities present.

    Its precision and mean, T_m being a precision and m = 0 the prior, where there is one:

        P = sum_m alpha_m T_m        mean = sum_m w_m mean_m, where w_m = alpha_m T_m / P

    w_m is computed as softmax_m(log alpha_m - log variance_m), so that nothing overflows. It is
    what the derivatives are made of:

        d mean / d mean_m = w_m      d mean / d log alpha_m = w_m (mean_m - mean)
                                     d mean / d log variance_m = -w_m (mean_m - mean)
        d log P / d log alpha_m = w_m = -d log P / d log variance_m

    With all alpha 1 this is the plain product, and with the prior MVAE's; with alpha that sum to 1
    experts that agree are not counted twice: what they all say is what comes out.

    ``present`` that is False silences an expert whatever it holds, NaN too. ValueError for shapes
    that do not match, weights that are NaN or infinite, and data of which nobody is heard.
    [M, N, D], [M, N, D], [M, N, D] or 1 for D, N or both, [M, N] bool -> Gaussian [N, D]
    """
    M, N, D = mean.shape
    if log_weight.ndim != 3 or len(log_weight) != M:
        raise ValueError(f"generalized_product: needs weights for {M} experts, of shape [M, N, D] "
                         f"or with 1 for N or D; got {log_weight.shape}")
    if present is not None and present.shape != (M, N):
        raise ValueError(f"generalized_product: present must have shape {(M, N)}; "
                         f"got {present.shape}")
    log_weight = ops.broadcast_to(log_weight, shape=(M, N, D))
    if not (stop_gradient(log_weight) < math.inf).all():
        raise ValueError("generalized_product: weights must be finite, and not NaN")
    present = None if present is None else present[..., None]          # [M, N, 1]
    if prior is None:
        _check_somebody_is_heard(log_weight, present)
    else:
        prior = prior.mean, prior.log_variance - prior.log_weight
    return Gaussian(*product_of_gaussians(mean, log_variance, log_weight, present, prior))


def _check_somebody_is_heard(log_weight, present):
    heard = stop_gradient(log_weight) > -math.inf                      # [M, N, D]
    heard = (heard if present is None else heard & present).any(axis=0)
    nobody = (~heard).any(axis=-1).nonzero()[0].tolist()
    if nobody:
        raise ValueError(f"generalized_product: without a prior expert somebody must be heard; of "
                         f"{len(nobody)} data nobody is, among them {nobody[:5]}")


def log_weights(alpha):
    """log alpha, and -inf for 0, where the gradient is 0: who is not heard does not learn why.

    ValueError for weights that are negative or NaN. [...] -> [...]
    """
    if not (stop_gradient(alpha) >= 0).all():
        raise ValueError("log_weights: weights must not be negative or NaN")
    positive = stop_gradient(alpha) > 0
    return ops.where(positive, ops.log(ops.where(positive, alpha, 1.0)), -math.inf)


def product_multiview_ae(mean, log_variance, alpha, epsilon=1e-8):
    """As in multi-view-AE and mmJSD: M epsilon more precision, which belongs to no expert.

    So the mean is drawn towards 0, and no log-variance is below log(epsilon).
    [M, N, D], [M, N, D], [M, N, D] or 1 for N -> Gaussian [N, D]
    """
    precision = 1 / (ops.exp(log_variance) + epsilon + epsilon)        # [M, N, D]
    variance = 1 / (alpha * precision + epsilon).sum(axis=0)           # [N, D]
    return Gaussian(variance * (alpha * mean * precision).sum(axis=0), ops.log(variance + epsilon))


# -- Credibility: weights that are learnt --------------------------------------------------------
# From scores [M, N, S], or constants, to the log of weights of the same shape.

def credibility_init(rng, width, hidden, n_scores):
    """Of one modality. The last layer is 0, so that at the start all are heard alike.

    -> tuple of LinearParams
    """
    *layers, last = nn.mlp_init(rng, (width, *hidden, n_scores))
    return *layers, nn.LinearParams(0 * last.w, 0 * last.b)


def credibility_scores(layers, x, activation=ops.relu):
    """How far a modality is to be believed, of this datum: by what it saw itself, and that alone.

    [N, D_m] -> [N, S]
    """
    return nn.mlp(layers, x, activation)


def softmax_weights(scores, present=None):
    """alpha = softmax over the modalities present: they sum to 1.

    Who is alone is believed. The product is then no surer than its surest expert, which is too
    little where modalities know different things. ValueError where none is present.
    """
    return ops.log_softmax(_among("softmax_weights", present, scores), axis=0)


def scaled_softmax_weights(scores, present=None):
    """The same times the number present, so that equal scores make the plain product."""
    log_weight = softmax_weights(scores, present)
    if present is None:
        return log_weight + math.log(len(scores))
    n_present = present.sum(axis=0)[:, None].astype(log_weight.dtype)  # [N, 1]
    return log_weight + ops.log(n_present)


def sigmoid_weights(scores, present=None):
    """alpha = sigmoid(score), each on its own: all may be disbelieved, and a prior has to answer.

    Without a prior the posterior would then be as wide as one likes.
    """
    log_weight = -ops.softplus(-scores)
    return log_weight if present is None else ops.where(present[..., None], log_weight, -math.inf)


def fixed_weights(alpha):
    """Constants [M, 1, S], the same for all data, held between 0 and 1: multi-view-AE's.

    They start at 1 / M there and need not sum to 1. One that arrives at 0 stays there: it has no
    gradient.
    """
    return log_weights(ops.clip(alpha, low=0.0, high=1.0))


def _among(name, present, scores):
    """Scores, -inf where the modality is missing."""
    if present is None:
        return scores
    if not present.any(axis=0).all():
        raise ValueError(f"{name}: every datum needs a modality that is present")
    return ops.where(present[..., None], scores, -math.inf)


# -- Entropy: weights that are not learnt, Cao and Fleet -----------------------------------------
# Of Gaussian processes the variances are those of the latent function; noise comes after fusion.

def entropy_change(log_variance, log_prior_variance=0.0):
    """By how many nats an expert is surer than the prior; 0 where it is less sure.

    (log prior variance - log variance) / 2. [M, N, D], number or broadcast -> [M, N, D]
    """
    return ops.relu(0.5 * (log_prior_variance - log_variance))


def entropy_weights(log_variance, log_prior_variance=0.0):
    """alpha = the entropy change as it is. -> log alpha [M, N, D]

    Far from the data nobody is heard, and without a prior expert the variance grows beyond bounds.
    """
    return log_weights(entropy_change(log_variance, log_prior_variance))


def normalized_entropy_weights(log_variance, log_prior_variance=0.0, present=None):
    """alpha = the entropy change over that of all modalities present. -> log alpha [M, N, D]

    Equal where nobody is surer than the prior: far from the data the product is then the prior.
    ValueError where none is present.
    """
    change = entropy_change(log_variance, log_prior_variance)          # [M, N, D]
    if present is not None:
        change = ops.where(present[..., None], change, 0.0)
    total = change.sum(axis=0)                                         # [N, D]
    nobody = stop_gradient(total) == 0
    log_weight = log_weights(ops.where(nobody, 1.0, change / ops.where(nobody, 1.0, total)))
    return softmax_weights(log_weight, present)


def committee(mean, log_variance, log_prior_variance=0.0):
    """The robust Bayesian committee machine (Deisenroth and Ng 2015, arXiv:1502.02843v3).

    Weights are the entropy changes as they are, and 1 - sum_m alpha_m that of the prior, of mean 0;
    it may be negative. The precision never falls below the prior's, from which it is counted here:
    P / T_0 = 1 + sum_m alpha_m (T_m / T_0 - 1). [M, N, D], [M, N, D] -> Gaussian [N, D]
    """
    alpha = entropy_change(log_variance, log_prior_variance)           # [M, N, D]
    ratio = ops.exp(log_prior_variance - log_variance)                 # [M, N, D]   T_m / T_0
    total = 1 + (alpha * (ratio - 1)).sum(axis=0)                      # [N, D]
    return Gaussian((alpha * ratio * mean).sum(axis=0) / total, log_prior_variance - ops.log(total))


# -- The whole model -----------------------------------------------------------------------------

class GeneralizedPoEParams(NamedTuple):
    encoders: tuple      # M of EncoderParams
    credibility: tuple   # M of tuples of LinearParams
    decoders: tuple      # of tuples of LinearParams, one for each target


class Inference(NamedTuple):
    posterior: Gaussian   # [N, D]
    experts: Gaussian     # [M, N, D]
    log_weight: Tensor    # [M, N, D]


def init(rng, widths, target_widths, latent, hidden=(64,), hidden_of_credibility=(64,)):
    """For modalities and targets of these widths, with a score for every latent dimension."""
    return GeneralizedPoEParams(
        tuple(EncoderParams(*encoder_init(rng, n, latent, hidden)) for n in widths),
        tuple(credibility_init(rng, n, hidden_of_credibility, latent) for n in widths),
        tuple(decoder_init(rng, n, latent, hidden) for n in target_widths))


def infer(params, x, present=None, prior=None, weights=softmax_weights):
    """The posterior of a datum from all its modalities, each with an expert and a credibility.

    ``weights`` makes weights of scores. M of [N, D_m], [M, N] bool -> Inference
    """
    x = fill_missing(x, present)
    found = [encode(encoder, a) for encoder, a in zip(params.encoders, x)]
    experts = Gaussian(*(ops.stack(parts) for parts in zip(*found)))   # [M, N, D]
    scores = ops.stack([credibility_scores(layers, a)
                        for layers, a in zip(params.credibility, x)])  # [M, N, D]
    log_weight = weights(scores, present)
    return Inference(generalized_product(*experts, log_weight, present, prior), experts, log_weight)


def denoising_elbo(decoders, targets, posterior, epsilon, log_likelihoods, kappas=None, beta=1.0):
    """E_q sum_j kappa_j log p(target_j | z) - beta KL(q, N(0, 1)), with one sample of z.

    Targets are what should come out, clean, whatever the modalities saw; credibility is learnt from
    them. Sums over dimensions. J of [N, D_j], Gaussian [N, D], [N, D], J functions -> [N]
    """
    terms = denoising_elbo_terms(decoders, targets, posterior, epsilon, log_likelihoods)
    total = -beta * terms.kl                                           # [N]
    for j, found in enumerate(terms.log_likelihoods):
        total = total + (found if kappas is None else kappas[j] * found)
    return total


def denoising_elbo_terms(decoders, targets, posterior, epsilon, log_likelihoods):
    """What it is made of; arguments are those of ``denoising_elbo``. -> ElboTerms"""
    z = gaussian_sample(*posterior, epsilon)                           # [N, D]
    found = tuple(log_likelihood(target, decode(layers, z)) for target, log_likelihood, layers
                  in zip(targets, log_likelihoods, decoders))          # J of [N]
    return ElboTerms(z, found, gaussian_kl(*posterior).sum(axis=-1))


# -- Recorded runs -------------------------------------------------------------------------------

def product_oracle(case):
    """With and without the prior expert.

    Here and below gradients are of <mean, cotangent> and of <log-variance, cotangent>.
    """
    given = {name: Tensor(case.inputs[name]) for name in ("mean", "log_variance", "alpha")}
    prior = PriorExpert(*(case.inputs[f"prior.{name}"] for name in PriorExpert._fields))
    log_weight, present = log_weights(given["alpha"]), case.inputs["present"]
    return products_and_gradients(case, given, {
        name: generalized_product(given["mean"], given["log_variance"], log_weight, present, p0)
        for name, p0 in (("without_prior", None), ("with_prior", prior))})


def multiview_ae_oracle(case):
    """The product as multi-view-AE has it, and its gradients."""
    given = {name: Tensor(case.inputs[name]) for name in ("mean", "log_variance", "alpha")}
    return products_and_gradients(case, given, {"product": product_multiview_ae(**given)})


def weights_oracle(case):
    """alpha by each rule, and gradients of <alpha, cotangent> with respect to the scores."""
    scores, present = Tensor(case.inputs["scores"]), case.inputs["present"]
    cotangent = case.inputs["cotangent"]
    alpha = {name: ops.exp(rule(scores, present)) for name, rule in (
        ("softmax_weights", softmax_weights), ("scaled_softmax_weights", scaled_softmax_weights),
        ("sigmoid_weights", sigmoid_weights))}
    return tree.map(stop_gradient, {
        **alpha, "fixed_weights": ops.exp(fixed_weights(case.inputs["constants"])),
        "grad": {name: grad((found * cotangent).sum(), {"scores": scores})
                 for name, found in alpha.items()}})


def entropy_oracle(case):
    """The changes, normalised weights and their product, the committee; with gradients."""
    given = {name: Tensor(case.inputs[name]) for name in ("mean", "log_variance")}
    log_prior_variance, present = case.inputs["log_prior_variance"], case.inputs["present"]
    log_weight = normalized_entropy_weights(given["log_variance"], log_prior_variance, present)
    product = generalized_product(**given, log_weight=log_weight, present=present)
    return {
        "change": stop_gradient(entropy_change(given["log_variance"], log_prior_variance)),
        "normalized": stop_gradient(ops.exp(log_weight)),
        **products_and_gradients(case, given, {
            "product": product,
            "committee": committee(**given, log_prior_variance=log_prior_variance)})}


def shapes():
    """The parameters of a recorded model, two modalities and two targets, shapes at the leaves."""
    heads = nn.LinearParams("H D", "D")
    return GeneralizedPoEParams(
        tuple(EncoderParams((nn.LinearParams(f"W{m} H", "H"),), heads, heads) for m in range(2)),
        tuple((nn.LinearParams(f"W{m} H", "H"), heads) for m in range(2)),
        tuple((nn.LinearParams("D H", "H"), nn.LinearParams(f"H U{j}", f"U{j}"))
              for j in range(2)))


def model_oracle(case):
    """Weights, posterior and bound, a grey target and a label; gradients of the mean bound."""
    names = iter(tree.named_leaves(shapes()))
    params = tree.map(lambda _: Tensor(case.params[next(names)]), shapes())
    x, targets = (tuple(case.inputs[f"{name}.{m}"] for m in range(2)) for name in ("x", "target"))
    likelihoods = bernoulli_log_likelihood, categorical_log_likelihood
    settings, found, elbos = case.settings, {}, {}
    for name, rule, prior in (("softmax", softmax_weights, None),
                              ("sigmoid_prior", sigmoid_weights, PriorExpert())):
        inference = infer(params, x, case.inputs["present"], prior, rule)
        given = params.decoders, targets, inference.posterior, case.inputs["epsilon"], likelihoods
        elbo = denoising_elbo(*given, settings["kappas"], settings["beta"])
        found["experts"] = with_deviation(inference.experts)
        found[name] = {"alpha": ops.exp(inference.log_weight),
                       **with_deviation(inference.posterior),
                       **denoising_elbo_terms(*given)._asdict(), "elbo": elbo}
        elbos[f"{name}.elbo"] = grad(elbo.mean(), params)
    return tree.map(stop_gradient, {**found, "grad": elbos})


EXPERTS = {"in.mean": "M N D", "in.log_variance": "M N D", "in.cotangent": "N D"}
ORACLES = {
    "product": ({**EXPERTS, "in.alpha": "M B S", "in.present": "bool M N", "in.prior.mean": "D",
                 "in.prior.log_variance": "D", "in.prior.log_weight": "D"}, product_oracle),
    "multiview_ae": ({**EXPERTS, "in.alpha": "M B D"}, multiview_ae_oracle),
    "weights": ({"in.scores": "M N S", "in.present": "bool M N", "in.cotangent": "M N S",
                 "in.constants": "M B S"}, weights_oracle),
    "entropy": ({**EXPERTS, "in.log_prior_variance": "D", "in.present": "bool M N"},
                entropy_oracle),
    "model": ({
        **{f"in.{name}.{m}": f"N {letter}{m}"
           for name, letter in (("x", "W"), ("target", "U")) for m in range(2)},
        "in.present": "bool M N", "in.epsilon": "N D", "set.kappas": "J", "set.beta": "",
        **{f"param.{name}": letters for name, letters in tree.named_leaves(shapes()).items()}},
        model_oracle),
}


# -- Cases and conventions -----------------------------------------------------------------------

def _experts(*changes):
    """Positive weights, if there are any in this kind; further changes."""
    def draw(arrays, rng):
        if "in.alpha" in arrays:
            arrays["in.alpha"] = rng.integers(1, 33, size=arrays["in.alpha"].shape) / 16
        for change in changes:
            change(arrays, rng)

    return draw


def _some_missing(arrays, rng):
    """Everybody has something; the first datum all."""
    present = arrays["in.present"]
    present[:] = rng.random(present.shape) < 0.4
    present[rng.integers(len(present), size=present.shape[1]), range(present.shape[1])] = True
    present[:, 0] = True


def _one_barely_heard(arrays, rng):
    arrays["in.alpha"][0] = 2**-20         # of a weight of 0 the derivative is a convention: 0


def _sure_and_unsure(arrays, rng):
    """Of the first datum: a variance near exp(-16), and one of exp(16)."""
    arrays["in.log_variance"][0, 0] -= 16
    arrays["in.log_variance"][-1, 0] += 16


def _shares(arrays, rng):
    """Weights between 0 and 1, for all data; of each modality 1 / M where M is a power of 2."""
    M = len(arrays["in.alpha"])
    arrays["in.alpha"] /= 2
    if M in (2, 4):
        arrays["in.alpha"] = 0 * arrays["in.alpha"] + 1 / M


def _scores(size=1.0, missing=False):
    """And constants, some below 0 and some above 1."""
    def draw(arrays, rng):
        arrays["in.scores"] *= size
        arrays["in.constants"] = rng.integers(-8, 25, size=arrays["in.constants"].shape) / 16
        if missing:
            _some_missing(arrays, rng)

    return draw


def _wide(log_variance, missing=False):
    """Experts wider than the prior by so much, on average, in logarithms."""
    def draw(arrays, rng):
        arrays["in.log_prior_variance"] *= 0.25
        arrays["in.log_variance"] += log_variance
        if missing:
            _some_missing(arrays, rng)

    return draw


def _targets(*changes):
    """Grey pixels and labels to come out; further changes."""
    def draw(arrays, rng):
        grey, label = arrays["in.target.0"], arrays["in.target.1"]
        grey[:] = rng.integers(256, size=grey.shape) / 255
        label[:] = 0
        label[range(len(label)), rng.integers(label.shape[1], size=len(label))] = 1
        for change in changes:
            change(arrays, rng)

    return draw


def _one_sure_one_not(arrays, rng):
    """Of one dimension: an encoder whose variance is near exp(-8), and one of exp(8)."""
    arrays["param.encoders.0.log_variance.b"][0] -= 8
    arrays["param.encoders.1.log_variance.b"][0] += 8


_MODEL = dict(M=2, J=2, D=3, H=4, W0=4, W1=3, U0=5, U1=3, kappas=[1.0, 0.75], beta=0.5)

CASES = {
    "weighted": ("product", dict(M=3, N=5, D=3, B=5, S=3), "", _experts()),
    "one_weight_to_a_datum": ("product", dict(M=2, N=4, D=3, B=4, S=1), "", _experts()),
    "one_weight_to_an_expert": ("product", dict(M=4, N=4, D=2, B=1, S=1), "", _experts()),
    "weighted_missing": ("product", dict(M=3, N=6, D=2, B=6, S=2), "missing",
                         _experts(_some_missing)),
    "barely_heard": ("product", dict(M=3, N=4, D=3, B=4, S=3), "extreme",
                     _experts(_one_barely_heard)),
    "one_expert": ("product", dict(M=1, N=4, D=3, B=4, S=3), "degenerate, one expert", _experts()),
    "sure_and_unsure": ("product", dict(M=3, N=4, D=2, B=4, S=2), "extreme",
                        _experts(_sure_and_unsure)),
    "multiview_ae": ("multiview_ae", dict(M=3, N=4, D=3, B=1), "", _experts(_shares)),
    "multiview_ae_uniform": ("multiview_ae", dict(M=4, N=4, D=2, B=1), "", _experts(_shares)),
    "multiview_ae_one_datum": ("multiview_ae", dict(M=2, N=1, D=3, B=1), "degenerate, one datum",
                               _experts()),
    "multiview_ae_sure": ("multiview_ae", dict(M=3, N=4, D=2, B=1), "extreme",
                          _experts(_sure_and_unsure)),
    "scores": ("weights", dict(M=3, N=6, S=2, B=1), "", _scores()),
    "scores_missing": ("weights", dict(M=4, N=6, S=1, B=1), "missing", _scores(missing=True)),
    "one_score": ("weights", dict(M=1, N=4, S=2, B=1), "degenerate, one expert", _scores()),
    "decided": ("weights", dict(M=3, N=6, S=3, B=1), "extreme", _scores(size=32.0)),
    "surer_than_the_prior": ("entropy", dict(M=3, N=4, D=2), "", _wide(-3.0)),
    "some_know_nothing": ("entropy", dict(M=3, N=6, D=2), "", _wide(0.5)),
    "nobody_knows": ("entropy", dict(M=3, N=4, D=2), "degenerate", _wide(8.0)),
    "entropy_missing": ("entropy", dict(M=3, N=6, D=2), "missing", _wide(-1.0, missing=True)),
    "model": ("model", dict(N=6, **_MODEL), "", _targets()),
    "model_missing": ("model", dict(N=6, **_MODEL), "missing", _targets(_some_missing)),
    "model_one_datum": ("model", dict(N=1, **{**_MODEL, "D": 1}), "degenerate, one datum",
                        _targets()),
    "model_one_sure_one_not": ("model", dict(N=6, **_MODEL), "extreme",
                               _targets(_one_sure_one_not)),
}


def _with_prior(paper):
    product = paper.generalized_product

    def with_prior(mean, log_variance, log_weight, present=None, prior=None):
        return product(mean, log_variance, log_weight, present, prior or paper.PriorExpert())
    return with_prior


def _as_multiview_ae(paper):
    def product(mean, log_variance, log_weight, present=None, prior=None):
        alpha = ops.exp(ops.broadcast_to(log_weight, shape=mean.shape))
        if present is not None:
            alpha = ops.where(present[..., None], alpha, 0.0)
        if prior is not None:
            one = 0 * mean[:1]
            mean, log_variance, alpha = (ops.concatenate([a, b + one]) for a, b in (
                (mean, prior.mean), (log_variance, prior.log_variance),
                (alpha, ops.exp(prior.log_weight + one))))
        return paper.product_multiview_ae(mean, log_variance, alpha)
    return product


def _without_small_numbers(paper):
    def product(mean, log_variance, alpha):
        return paper.generalized_product(mean, log_variance, paper.log_weights(alpha))
    return product


def _not_divided(paper):
    def weights(log_variance, log_prior_variance=0.0, present=None):
        return paper.entropy_weights(log_variance, log_prior_variance)
    return weights


CONVENTIONS = {
    "weights sum to the number of modalities present":
        {"softmax_weights": "scaled_softmax_weights"},
    "weights are sigmoids, each on its own": {"softmax_weights": "sigmoid_weights"},
    "a standard normal prior is one expert more, as in MVAE": {"generalized_product": _with_prior},
    "small numbers in the product, as in multi-view-AE": {"generalized_product": _as_multiview_ae},
    "no small numbers in the product": {"product_multiview_ae": _without_small_numbers},
    "entropy changes are weights as they are": {"normalized_entropy_weights": _not_divided},
}
