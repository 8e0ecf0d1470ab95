"""Multimodal variational autoencoders: the posterior is a product of one expert per modality.

M. Wu and N. Goodman, "Multimodal Generative Models for Scalable Weakly-Supervised Learning",
NeurIPS 2018. arXiv:1802.05335v3. (Numbers of equations and sections are unconfirmed.)

    here            paper            meaning
    M, N, D         N, --, --        modalities, data, width of the latent variable
    x               x_1 ... x_N      tuple: what each modality saw, [N, D_m] each
    present         --               [M, N] bool: which modalities each datum has; None: all of them
    members         X                tuple of ints: which modalities a bound is given
    experts         q~(z | x_i)      tuple of Gaussians [N, D]: what the encoders give
    posterior       q(z | X)         their product with the prior, a Gaussian [N, D]
    epsilon         --               the draw that samples z, standard normal
    weights         lambda_i         of the modalities' log likelihoods; None: all 1
    beta            beta             of the divergence; annealed

Where sources part (the authors' code, 2a358eb; MultiVae 1.0.3), the text is the default:

    epsilon in the product   text: none, and none here, in logarithms. Released, in three of its
                             models: product_of_experts_released
    who is in a subset       text: k subsets at random. Released, celeba19: a size first, then who:
                             subset_of_random_size. MultiVae: any of all, without repetition
    weights of subsets       text: lambda in every term. Released, celeba19: forgotten in some
    average of a bound       here: over all data. MultiVae: over those that have one of its members,
                             objective_multivae
    annealing                released: annealing_factor, which ends on a jump; its fashion script:
                             annealing_factor_fashion. MultiVae: annealing_factor_multivae
    activation               released: x sigmoid(x), not built; here ReLU
    the exact quotient       text: avoided by letting encoders give q~, not q:
                             product_with_quotients
"""
import math
from typing import NamedTuple

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.densities import (
    bernoulli_log_density, gaussian_kl, gaussian_log_density, gaussian_sample, log_mean_exp,
    product_of_gaussians)


# -- The joint posterior, Section 2.1 ------------------------------------------------------------

class Gaussian(NamedTuple):
    """With independent dimensions."""
    mean: Tensor           # [..., D]
    log_variance: Tensor   # [..., D]


def product_of_experts(mean, log_variance, present=None):
    """q(z | X), proportional to p(z) prod_i q~(z | x_i): precisions add. Eq. (3)

    p(z) is standard normal, one expert more that every datum has: without any modality, the
    posterior is the prior. [M, N, D], [M, N, D], [M, N] bool -> Gaussian [N, D]
    """
    present = None if present is None else present[..., None]          # [M, N, 1]
    return Gaussian(*product_of_gaussians(mean, log_variance, present=present, prior=(0.0, 0.0)))


def product_with_quotients(mean, log_variance):
    """q(z | X), proportional to prod_i q(z | x_i) / p(z)^(M - 1), of posteriors proper. Eq. (3)

    Exact for modalities that are independent given z. ValueError where it is no density: the
    precisions of posteriors wider than the prior may not suffice for those divided out.
    [M, N, D], [M, N, D] -> Gaussian [N, D]
    """
    precision = ops.exp(-log_variance)                                 # [M, N, D]
    total = precision.sum(axis=0) - (len(precision) - 1)               # [N, D]
    if not (stop_gradient(total) > 0).all():
        raise ValueError("product_with_quotients: the precisions of the posteriors must sum to "
                         "more than those of the priors divided out")
    return Gaussian((precision * mean).sum(axis=0) / total, -ops.log(total))


def product_of_experts_released(mean, log_variance, epsilon=1e-8):
    """As released for MNIST, FashionMNIST and vision: a small number added in three places.

    The prior has to be one of the experts given. [M, N, D], [M, N, D] -> Gaussian [N, D]
    """
    precision = 1 / (ops.exp(log_variance) + epsilon + epsilon)        # [M, N, D]
    variance = 1 / precision.sum(axis=0)                               # [N, D]
    return Gaussian((precision * mean).sum(axis=0) * variance, ops.log(variance + epsilon))


# -- Networks ------------------------------------------------------------------------------------

class EncoderParams(NamedTuple):
    hidden: tuple                    # of LinearParams
    mean: nn.LinearParams            # [H, D]
    log_variance: nn.LinearParams    # [H, D]


class MVAEParams(NamedTuple):
    encoders: tuple   # M of EncoderParams
    decoders: tuple   # M of tuples of LinearParams


def init(rng, widths, latent, hidden=(128,)):
    """For modalities of these widths; decoders have the hidden layers of encoders, in turn."""
    return MVAEParams(tuple(EncoderParams(*encoder_init(rng, n, latent, hidden)) for n in widths),
                      tuple(decoder_init(rng, n, latent, hidden) for n in widths))


def encoder_init(rng, width, latent, hidden):
    """Hidden layers and two heads. -> tuple of LinearParams, LinearParams, LinearParams"""
    *layers, first = nn.mlp_init(rng, (width, *hidden, latent))
    return tuple(layers), first, nn.linear_init(rng, hidden[-1], latent)


def decoder_init(rng, width, latent, hidden):
    """-> tuple of LinearParams"""
    return nn.mlp_init(rng, (latent, *reversed(hidden), width))


def encode(params, x):
    """The expert of one modality. [N, D_m] -> Gaussian [N, D]"""
    h = ops.relu(nn.mlp(params.hidden, x))                             # [N, H]
    return Gaussian(nn.linear(params.mean, h), nn.linear(params.log_variance, h))


def decode(layers, z):
    """What the likelihood of one modality is given, logits here. [..., D] -> [..., D_m]"""
    return nn.mlp(layers, z)


def fill_missing(x, present):
    """0 for whatever stands where a modality is missing: NaN times a mask would be NaN.

    ValueError for modalities with different numbers of data. M of [N, ...], [M, N] bool -> the same
    """
    if len({len(a) for a in x}) != 1:
        raise ValueError(f"fill_missing: needs as many data of each modality; got "
                         f"{[len(a) for a in x]}")
    if present is None:
        return tuple(x)
    if present.shape != (len(x), len(x[0])):
        raise ValueError(f"fill_missing: present must have shape {(len(x), len(x[0]))}; "
                         f"got {present.shape}")
    return tuple(ops.where(here.reshape(-1, *[1] * (a.ndim - 1)), a, 0.0)
                 for here, a in zip(present, x))


# -- The bound, Eq. (2) --------------------------------------------------------------------------

def bernoulli_log_likelihood(x, logits):
    """Of binary or grey pixels. [N, D_m], [..., N, D_m] -> [..., N]"""
    return bernoulli_log_density(x, logits).sum(axis=-1)


def categorical_log_likelihood(x, logits):
    """Of labels, each a 1 among zeros. [N, D_m], [..., N, D_m] -> [..., N]"""
    return (x * ops.log_softmax(logits, axis=-1)).sum(axis=-1)


class ElboTerms(NamedTuple):
    z: Tensor                # [N, D]
    log_likelihoods: tuple   # of [N], one for each member: 0 where it is missing
    kl: Tensor               # [N]


def elbo(decoders, x, experts, members, epsilon, log_likelihoods, present=None, weights=None,
         beta=1.0):
    """E_q sum_i lambda_i log p(x_i | z) - beta KL(q(z | X), p(z)), with one sample of z. Eq. (2)

    X are the ``members`` that a datum has, and only they are reconstructed; for a datum that has
    none it is 0. Sums over dimensions.
    M of [N, D_m], M of Gaussian [N, D], tuple of ints, [N, D], M functions, [M, N] bool -> [N]
    """
    terms = elbo_terms(decoders, x, experts, members, epsilon, log_likelihoods, present)
    total = -beta * terms.kl                                           # [N]
    for m, found in zip(members, terms.log_likelihoods):
        total = total + (found if weights is None else weights[m] * found)
    return total


def elbo_terms(decoders, x, experts, members, epsilon, log_likelihoods, present=None):
    """What Eq. (2) is made of; arguments are those of ``elbo``. -> ElboTerms"""
    posterior = posterior_of(experts, members, present)
    z = gaussian_sample(*posterior, epsilon)                           # [N, D]
    found = [log_likelihoods[m](x[m], decode(decoders[m], z)) for m in members]
    if present is not None:
        found = [ops.where(present[m], part, 0.0) for m, part in zip(members, found)]
    return ElboTerms(z, tuple(found), gaussian_kl(*posterior).sum(axis=-1))


def posterior_of(experts, members, present=None):
    """q(z | X) for some of the modalities. M of Gaussian [N, D], ints, [M, N] bool -> [N, D]"""
    mean, log_variance = (ops.stack(parts) for parts in zip(*(experts[m] for m in members)))
    here = None if present is None else ops.stack([present[m] for m in members])
    return product_of_experts(mean, log_variance, here)


# -- Sub-sampled training, Section 2.2 -----------------------------------------------------------

def subsets(n_modalities, others=()):
    """All modalities together, each alone, and the ``others``. Eq. (4) -> list of tuples of ints"""
    together, alone = tuple(range(n_modalities)), [(m,) for m in range(n_modalities)]
    return [together, *alone, *others] if n_modalities > 1 else [together]


def subset_of_random_size(n_modalities, u_size, u_order):
    """2 to M - 1 modalities: first how many, then which, as released for CelebA-19.

    The draws are uniform on [0, 1): a number, and M of them. ValueError for fewer than 3
    modalities, of which there is no such subset. -> tuple of ints
    """
    if n_modalities < 3:
        raise ValueError(f"subset_of_random_size: needs 3 modalities or more; got {n_modalities}")
    size = 2 + math.floor(u_size * (n_modalities - 2))
    return tuple(sorted(sorted(range(n_modalities), key=lambda m: float(u_order[m]))[:size]))


def objective(params, x, chosen, epsilons, log_likelihoods, present=None, weights=None, beta=1.0):
    """The sum over subsets of their bounds, averaged over data; to be climbed. Eq. (4)

    The joint bound alone never trains an encoder to do without the others. Each subset has a draw
    of its own. M of [N, D_m], L tuples of ints, [L, N, D], M functions, [M, N] bool -> []
    """
    bounds = elbos(params, x, chosen, epsilons, log_likelihoods, present, weights, beta)
    return bounds.sum(axis=0).mean()


def objective_multivae(params, x, chosen, epsilons, log_likelihoods, present, weights=None,
                       beta=1.0):
    """As in MultiVae, where a bound is averaged over the data that have one of its members.

    So one that few data have counts as much as the others.
    """
    bounds = elbos(params, x, chosen, epsilons, log_likelihoods, present, weights, beta)   # [L, N]
    here = ops.stack([ops.stack([present[m] for m in members]).any(axis=0) for members in chosen])
    counted = ops.maximum(here.sum(axis=1), 1).astype(bounds.dtype)    # [L]
    return (bounds.sum(axis=1) / counted).sum()


def elbos(params, x, chosen, epsilons, log_likelihoods, present=None, weights=None, beta=1.0):
    """The bound of each subset; arguments are those of ``objective``. -> [L, N]"""
    if len(chosen) != len(epsilons):
        raise ValueError(f"elbos: needs a draw for each of {len(chosen)} subsets; "
                         f"got {len(epsilons)}")
    x = fill_missing(x, present)
    experts = [encode(encoder, a) for encoder, a in zip(params.encoders, x)]
    return ops.stack([elbo(params.decoders, x, experts, members, epsilon, log_likelihoods, present,
                           weights, beta) for members, epsilon in zip(chosen, epsilons)])


# -- Annealing -----------------------------------------------------------------------------------
# beta, of batches counted from 0 and epochs counted from 1.

def annealing_factor(batch, epoch, n_batches, n_annealing):
    """As released: it rises to (n - 1) / n, and from epoch n on it is 1."""
    if epoch >= n_annealing:
        return 1.0
    return (batch + (epoch - 1) * n_batches + 1) / (n_annealing * n_batches)


def annealing_factor_fashion(batch, epoch, n_batches, n_annealing):
    """As in the released FashionMNIST script: an epoch further on, so that it reaches 1."""
    if epoch >= n_annealing:
        return 1.0
    return (batch + epoch * n_batches + 1) / (n_annealing * n_batches)


def annealing_factor_multivae(batch, epoch, n_batches, n_annealing):
    """As in MultiVae: a batch behind the released one, from 0."""
    if epoch >= n_annealing:
        return 1.0
    return (epoch - 1 + batch / n_batches) / n_annealing


# -- What a model is worth -----------------------------------------------------------------------

def importance_log_likelihood(decoders, x, proposal, epsilon, log_likelihoods):
    """log of the mean over K samples of p(x, z) / q(z): log p(x_1 ... x_M) from below, Section 5.

    ``proposal`` is the posterior given any of the modalities, whose density is q.
    M of [N, D_m], Gaussian [N, D], [K, N, D], M functions -> [N]
    """
    z = gaussian_sample(*proposal, epsilon)                            # [K, N, D]
    return log_mean_exp(importance_log_weights(decoders, x, proposal, z, log_likelihoods), axis=0)


def importance_log_weights(decoders, x, proposal, z, log_likelihoods):
    """log p(z) + sum_i log p(x_i | z) - log q(z) of every sample. [K, N, D] -> [K, N]"""
    log_w = (gaussian_log_density(z, 0.0, 0.0) - gaussian_log_density(z, *proposal)).sum(axis=-1)
    for a, layers, log_likelihood in zip(x, decoders, log_likelihoods):
        log_w = log_w + log_likelihood(a, decode(layers, z))           # [K, N]
    return log_w


# -- Recorded runs -------------------------------------------------------------------------------
# Two modalities of grey pixels and one of labels, with one hidden layer each.

def shapes():
    """The parameters of a recorded run, with shapes in letters at the leaves."""
    heads = nn.LinearParams("H D", "D")
    return MVAEParams(
        tuple(EncoderParams((nn.LinearParams(f"W{m} H", "H"),), heads, heads) for m in range(3)),
        tuple((nn.LinearParams("D H", "H"), nn.LinearParams(f"H W{m}", f"W{m}"))
              for m in range(3)))


def _params(case):
    names = iter(tree.named_leaves(shapes()))
    return tree.map(lambda _: Tensor(case.params[next(names)]), shapes())


def _modalities(case):
    return tuple(case.inputs[f"x.{m}"] for m in range(3))


def _likelihoods():
    return bernoulli_log_likelihood, bernoulli_log_likelihood, categorical_log_likelihood


def with_deviation(gaussian):
    """Its parts and its standard deviation, for which a log-variance is easily taken."""
    return {**gaussian._asdict(), "standard_deviation": ops.exp(0.5 * gaussian.log_variance)}


def product_oracle(case):
    """Every product there is; gradients of <mean, cotangent> and of <log-variance, cotangent>."""
    mean, log_variance = Tensor(case.inputs["mean"]), Tensor(case.inputs["log_variance"])
    prior = 0 * mean[:1]
    products = {
        "product_of_experts": product_of_experts(mean, log_variance, case.inputs["present"]),
        "product_with_quotients": product_with_quotients(mean, log_variance),
        "product_of_experts_released": product_of_experts_released(
            ops.concatenate([mean, prior]), ops.concatenate([log_variance, prior]))}
    return products_and_gradients(case, {"mean": mean, "log_variance": log_variance}, products)


def products_and_gradients(case, given, products):
    """What is easily taken for a log-variance, products by name, and their gradients."""
    cotangent, log_variance = case.inputs["cotangent"], given["log_variance"]
    return tree.map(stop_gradient, {
        "standard_deviation": ops.exp(0.5 * log_variance), "precision": ops.exp(-log_variance),
        **{name: with_deviation(product) for name, product in products.items()},
        "grad": {f"{name}.{part}": grad((value * cotangent).sum(), given)
                 for name, product in products.items()
                 for part, value in product._asdict().items()}})


def objective_oracle(case):
    """Posterior and bound of each subset, the objective and its gradients."""
    return _objective(case, objective)


def multivae_oracle(case):
    """The same with MultiVae's average."""
    return _objective(case, objective_multivae)


def _objective(case, objective):
    inputs, settings, params = case.inputs, case.settings, _params(case)
    present, beta, weights = inputs["present"], settings["beta"], settings["weights"]
    chosen = [tuple(m for m, taken in enumerate(row) if taken) for row in settings["chosen"]]
    x = fill_missing(_modalities(case), present)
    experts = [encode(encoder, a) for encoder, a in zip(params.encoders, x)]
    given = (params, x, chosen, inputs["epsilon"], _likelihoods(), present, weights, beta)
    terms = [elbo_terms(params.decoders, x, experts, members, epsilon, _likelihoods(), present)
             for members, epsilon in zip(chosen, inputs["epsilon"])]
    climbed = objective(*given)
    return tree.map(stop_gradient, {
        "experts": [with_deviation(expert) for expert in experts],
        "posterior": [with_deviation(posterior_of(experts, members, present))
                      for members in chosen],
        **{name: [getattr(parts, name) for parts in terms] for name in ElboTerms._fields},
        "elbos": elbos(*given), "objective": climbed,
        "grad": {"objective": grad(climbed, params)}})


def log_likelihood_oracle(case):
    """The joint log likelihood, estimated with the posterior given all modalities."""
    params, x = tree.map(stop_gradient, _params(case)), _modalities(case)
    experts = [encode(encoder, a) for encoder, a in zip(params.encoders, x)]
    proposal, epsilon = posterior_of(experts, range(3)), case.inputs["epsilon"]
    z = gaussian_sample(*proposal, epsilon)                            # [K, N, D]
    decoded = [decode(layers, z) for layers in params.decoders]        # M of [K, N, D_m]
    given = (params.decoders, x, proposal)
    return {
        "posterior": with_deviation(proposal), "z": z, "decoded": decoded,
        "log_prior": gaussian_log_density(z, 0.0, 0.0).sum(axis=-1),
        "log_posterior": gaussian_log_density(z, *proposal).sum(axis=-1),
        "log_likelihoods": [log_likelihood(a, logits) for log_likelihood, a, logits in
                            zip(_likelihoods(), x, decoded)],
        "log_w": importance_log_weights(*given, z, _likelihoods()),
        "log_likelihood": importance_log_likelihood(*given, epsilon, _likelihoods())}


MODALITIES = {f"in.x.{m}": f"N W{m}" for m in range(3)}
PARAMS = {f"param.{name}": letters for name, letters in tree.named_leaves(shapes()).items()}
SUBSETS = {"in.present": "bool M N", "in.epsilon": "L N D", "set.chosen": "L M",
           "set.weights": "M", "set.beta": ""}
ORACLES = {
    "product": ({
        "in.mean": "M N D", "in.log_variance": "M N D", "in.present": "bool M N",
        "in.cotangent": "N D"}, product_oracle),
    "objective": ({**MODALITIES, **SUBSETS, **PARAMS}, objective_oracle),
    "multivae": ({**MODALITIES, **SUBSETS, **PARAMS}, multivae_oracle),
    "log_likelihood": ({**MODALITIES, "in.epsilon": "K N D", **PARAMS}, log_likelihood_oracle),
}


# -- Cases and conventions -----------------------------------------------------------------------

def _sure_experts(log_variance=0.0, missing=False):
    """Experts surer than the prior, so that there is a quotient; one of a datum by so much."""
    def draw(arrays, rng):
        arrays["in.log_variance"] = -0.5 - abs(arrays["in.log_variance"])
        arrays["in.log_variance"][0, 0] += log_variance
        if missing:
            _some_missing(arrays, rng)

    return draw


def _some_missing(arrays, rng):
    """Of the first datum everything is missing, of the second nothing."""
    present = arrays["in.present"]
    present[:] = rng.random(present.shape) < 0.5
    present[:, 0], present[:, 1:2] = False, True


def _pixels_and_labels(*changes):
    """Grey pixels, and labels of the third modality; further changes."""
    def draw(arrays, rng):
        for m in range(2):
            arrays[f"in.x.{m}"] = rng.integers(256, size=arrays[f"in.x.{m}"].shape) / 255
        label = arrays["in.x.2"]
        label[:] = 0
        label[range(len(label)), rng.integers(label.shape[1], size=len(label))] = 1
        for change in changes:
            change(arrays, rng)

    return draw


def _one_of_each(arrays, rng):
    """Every datum has one modality, and the first modality is there twice."""
    present = arrays["in.present"]
    present[:] = False
    present[[0, 0, 1, 2], range(4)] = True


def _nothing_there(arrays, rng):
    arrays["in.present"][:] = False


def _one_sure_one_not(arrays, rng):
    """Of one dimension: an encoder whose variance is near exp(-12), and one of exp(12)."""
    arrays["param.encoders.0.log_variance.b"][0] -= 12
    arrays["param.encoders.1.log_variance.b"][0] += 12


_WIDTHS = dict(M=3, D=3, H=4, W0=5, W1=4, W2=3)
_EACH = [[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
_ALL = dict(L=5, chosen=[*_EACH, [1, 0, 1]], weights=[1.0, 1.0, 1.0], beta=1.0, **_WIDTHS)
_WEIGHTED = {**_ALL, "weights": [1.0, 0.5, 8.0], "beta": 0.25}
_JOINT = {**_ALL, "L": 1, "chosen": _EACH[:1]}

CASES = {
    "product": ("product", dict(M=3, N=4, D=3), "", _sure_experts()),
    "product_missing": ("product", dict(M=4, N=6, D=2), "missing", _sure_experts(missing=True)),
    "product_one_number": ("product", dict(M=2, N=1, D=1), "degenerate, one datum",
                           _sure_experts()),
    "product_one_sure": ("product", dict(M=3, N=4, D=2), "extreme", _sure_experts(-16.0)),
    "complete": ("objective", dict(N=6, **_ALL), "", _pixels_and_labels()),
    "some_missing": ("objective", dict(N=8, **_WEIGHTED), "missing",
                     _pixels_and_labels(_some_missing)),
    "one_of_each": ("objective", dict(N=4, **_ALL), "missing", _pixels_and_labels(_one_of_each)),
    "nothing_there": ("objective", dict(N=3, **_ALL), "missing, degenerate",
                      _pixels_and_labels(_nothing_there)),
    "one_datum": ("objective", dict(N=1, **_JOINT), "degenerate, one datum", _pixels_and_labels()),
    "one_sure_one_not": ("objective", dict(N=6, **_ALL), "extreme",
                         _pixels_and_labels(_one_sure_one_not)),
    "multivae_complete": ("multivae", dict(N=6, **_ALL), "", _pixels_and_labels()),
    "multivae_some_missing": ("multivae", dict(N=8, **_WEIGHTED), "missing",
                              _pixels_and_labels(_some_missing)),
    "multivae_one_of_each": ("multivae", dict(N=4, **_ALL), "missing",
                             _pixels_and_labels(_one_of_each)),
    "multivae_one_datum": ("multivae", dict(N=1, **_JOINT), "degenerate, one datum",
                           _pixels_and_labels()),
    "five_samples": ("log_likelihood", dict(N=4, K=5, **_WIDTHS), "", _pixels_and_labels()),
    "one_sample": ("log_likelihood", dict(N=4, K=1, **_WIDTHS), "degenerate, one sample",
                   _pixels_and_labels()),
    "samples_of_one_datum": ("log_likelihood", dict(N=1, K=6, **_WIDTHS), "degenerate, one datum",
                             _pixels_and_labels()),
    "samples_of_the_sure": ("log_likelihood", dict(N=4, K=4, **_WIDTHS), "extreme",
                            _pixels_and_labels(_one_sure_one_not)),
}


def _as_released(paper):
    """With the prior among the experts, and nothing heard of those that are missing."""
    def product(mean, log_variance, present=None):
        if present is not None:
            mean = ops.where(present[..., None], mean, 0.0)
            log_variance = ops.where(present[..., None], log_variance, 40.0)
        prior = 0 * mean[:1]
        return paper.product_of_experts_released(ops.concatenate([mean, prior]),
                                                 ops.concatenate([log_variance, prior]))
    return product


def _of_posteriors(paper):
    """Who is missing has the prior for a posterior, which cancels one that is divided out."""
    def product(mean, log_variance, present=None):
        if present is not None:
            mean, log_variance = (ops.where(present[..., None], a, 0.0)
                                  for a in (mean, log_variance))
        return paper.product_with_quotients(mean, log_variance)
    return product


CONVENTIONS = {
    "small numbers in the product, as released": {"product_of_experts": _as_released},
    "experts are posteriors, whose priors are divided out": {"product_of_experts": _of_posteriors},
    "a bound is averaged over the data that have one of its members, as in MultiVae":
        {"objective": "objective_multivae"},
    "a bound is averaged over all data": {"objective_multivae": "objective"},
}
