"""Record generalised products of experts (arXiv:2211.03587v1, arXiv:1410.7827v2) in PyTorch.

    pip install --no-deps multiviewae==1.1.8       # and MultiVae, as for mvae_2018
    python -m reference_runs.papers.generalized_poe_2022

The weighted product is computed in four ways, none of which is the library's: precisions added one
by one; the first two derivatives of a weighted sum of log densities (torch.distributions.Normal); a
product of Gaussians with full covariance, by matrices; and MultiVae's stable_poe, unmodified, whose
variances are divided by the weights (a Gaussian to the power alpha is one of variance / alpha). The
kind multiview_ae is multi-view-AE's weighted product, unmodified. Weights, entropy changes and the
model are written datum by datum.

multi-view-AE's package imports all of its models, and what they need, so that its module of
products is imported past it.
"""
import importlib
import importlib.util
import math
import sys
import types

import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

import reference_runs.without_torchvision  # noqa: F401   before multivae

found = importlib.util.find_spec("multiviewae")
sys.modules["multiviewae"] = types.ModuleType("multiviewae")
sys.modules["multiviewae"].__path__ = list(found.submodule_search_locations)

from multivae.models.base.base_utils import stable_poe  # noqa: E402
from multiviewae.base import representations as multiview_ae  # noqa: E402

from reference_runs.recorder import save, start  # noqa: E402

torch.set_default_dtype(torch.float64)
torch.distributions.Distribution.set_default_validate_args(False)    # grey pixels are no coins
PAPER = "generalized_poe_2022"


def source(of):
    return {"kind": "transcription", "of": of}


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape))


def presence(rng, M, N, rate=0.5):
    """Who has what, [M, N] bool; everybody something."""
    present = torch.from_numpy(rng.random((M, N)) < rate)
    present[torch.from_numpy(rng.integers(M, size=N)), torch.arange(N)] = True
    return present


def leaves(inputs, *names):
    """Those that are differentiated by."""
    return {name: inputs[name].requires_grad_() for name in names}


def gradients(name, scalar, given):
    found = torch.autograd.grad(scalar, list(given.values()), retain_graph=True, allow_unused=True)
    return {f"grad.{name}.{key}": torch.zeros_like(a) if g is None else g
            for (key, a), g in zip(given.items(), found)}


def with_deviation(name, mean, log_variance):
    return {f"{name}.mean": mean, f"{name}.log_variance": log_variance,
            f"{name}.standard_deviation": torch.sqrt(torch.exp(log_variance))}


def with_gradients(given, cotangent, **products):
    """Of pairs of a mean and a log-variance, by name."""
    out = {"standard_deviation": torch.sqrt(torch.exp(given["log_variance"])),
           "precision": 1 / torch.exp(given["log_variance"])}
    for name, pair in products.items():
        out.update(with_deviation(name, *pair))
        for part, value in zip(("mean", "log_variance"), pair):
            out.update(gradients(f"{name}.{part}", (value * cotangent).sum(), given))
    return out


# -- The weighted product: experts as lists of (mean, log-variance, alpha) -----------------------

def by_precisions(experts):
    """One latent dimension of one datum: precisions add."""
    precision, pull = 0.0, 0.0
    for mean, log_variance, alpha in experts:
        precision = precision + alpha / torch.exp(log_variance)
        pull = pull + alpha / torch.exp(log_variance) * mean
    return pull / precision, -torch.log(precision)


def by_log_densities(experts):
    """The sum of weighted log densities is a parabola: its top and how it bends there."""
    z = torch.tensor(0.0, requires_grad=True)
    parabola = sum(alpha * Normal(mean, torch.exp(log_variance / 2)).log_prob(z)
                   for mean, log_variance, alpha in experts)
    slope, = torch.autograd.grad(parabola, z, create_graph=True)
    bend, = torch.autograd.grad(slope, z, create_graph=True)
    return -slope / bend, -torch.log(-bend)


def by_stable_poe(experts):
    """MultiVae's; it returns a single expert as it is."""
    means, log_variances, alphas = (torch.stack(part) for part in zip(*experts))
    return stable_poe(means, log_variances - torch.log(alphas))


def each_dimension(product):
    """``product`` of every datum and dimension. [M, N, D] three times, lists of who is heard."""
    def of(mean, log_variance, alpha, heard):
        _, N, D = mean.shape
        found = [[product([(mean[m, n, d], log_variance[m, n, d], alpha[m, n, d])
                           for m in heard[n]]) for d in range(D)] for n in range(N)]
        return [torch.stack([torch.stack([found[n][d][part] for d in range(D)])
                             for n in range(N)]) for part in range(2)]
    return of


def by_matrices(mean, log_variance, alpha, heard):
    """Every datum by D x D matrices: P = sum W^1/2 S^-1 W^1/2, W and S of an expert being diagonal.
    """
    means, log_variances = [], []
    for n in range(mean.shape[1]):
        precision, pull = 0.0, 0.0
        for m in heard[n]:
            root = torch.diag(torch.sqrt(alpha[m, n]))
            part = root @ torch.linalg.inv(torch.diag(torch.exp(log_variance[m, n]))) @ root
            precision, pull = precision + part, pull + part @ mean[m, n]
        means.append(torch.cholesky_solve(pull[:, None], torch.linalg.cholesky(precision))[:, 0])
        log_variances.append(torch.log(torch.diagonal(torch.linalg.inv(precision))))
    return torch.stack(means), torch.stack(log_variances)


PRODUCTS = {
    "by_precisions": (each_dimension(by_precisions), ("torch", "numpy"),
                      source("arXiv:1410.7827v2: precisions times weights, added")),
    "by_log_densities": (each_dimension(by_log_densities), ("torch", "numpy"), {
        "kind": "torch",
        "of": "torch.distributions.Normal.log_prob, and derivatives by torch.autograd"}),
    "by_matrices": (by_matrices, ("torch", "numpy"), {
        "kind": "torch", "of": "torch.linalg.inv, torch.linalg.cholesky, torch.cholesky_solve"}),
    "stable_poe": (each_dimension(by_stable_poe), ("torch", "numpy", "multivae"), {
        "kind": "third-party", "repository": "AgatheSenellart/MultiVae", "commit": "1.0.3",
        "entry": "multivae.models.base.base_utils.stable_poe"})}


def derive_product(inputs, params, settings, way="by_log_densities"):
    given, present = leaves(inputs, "mean", "log_variance", "alpha"), inputs["present"]
    (M, N, D), product = given["mean"].shape, PRODUCTS[way][0]
    heard = [[m for m in range(M) if present[m, n]] for n in range(N)]
    experts = given["mean"], given["log_variance"], given["alpha"].expand(M, N, D)
    p0 = (inputs["prior.mean"], inputs["prior.log_variance"], torch.exp(inputs["prior.log_weight"]))
    one_more = [torch.cat([a, b.expand(1, N, D)]) for a, b in zip(experts, p0)]
    return with_gradients(given, inputs["cotangent"], without_prior=product(*experts, heard),
                          with_prior=product(*one_more, [[*row, M] for row in heard]))


def record_product(way, case, seed, M, N, D, S, of_datum=True, spread=1.0):
    """Weights for each dimension or one for all (S), for each datum or one for all."""
    _, packages, made = PRODUCTS[way]
    rng = start(seed)
    given = {"mean": 3 * normal(rng, M, N, D), "log_variance": spread * normal(rng, M, N, D),
             "alpha": torch.exp(normal(rng, M, N if of_datum else 1, S))}
    present = presence(rng, M, N)
    prior = {f"prior.{name}": normal(rng, D) for name in ("mean", "log_variance", "log_weight")}
    inputs = {**given, "present": present, **prior, "cotangent": normal(rng, N, D)}
    save(f"{PAPER}/product/{way}_{case}", source=made, seed=seed, packages=packages,
         **{"in": inputs}, out=derive_product(inputs, {}, {}, way))


def derive_multiview_ae(inputs, params, settings):
    """``weightedProductOfExperts``; with weights 1 / M all, ``alphaProductOfExperts``."""
    given = leaves(inputs, "mean", "log_variance", "alpha")
    alpha = given["alpha"]
    if (alpha == 1 / len(alpha)).all():
        product = multiview_ae.alphaProductOfExperts()
    else:
        product, alpha = multiview_ae.weightedProductOfExperts(), alpha[:, 0]
    return with_gradients(given, inputs["cotangent"],
                          product=product(given["mean"], given["log_variance"], alpha))


def record_multiview_ae(case, seed, M, N, D, uniform=False, spread=1.0):
    rng = start(seed)
    inputs = {"mean": normal(rng, M, N, D), "log_variance": spread * normal(rng, M, N, D),
              "alpha": torch.from_numpy(rng.random((M, 1, D)))}
    if uniform:
        inputs["alpha"] = torch.full((M, 1, D), 1 / M)
    name = "alphaProductOfExperts" if uniform else "weightedProductOfExperts"
    inputs["cotangent"] = normal(rng, N, D)
    save(f"{PAPER}/multiview_ae/{case}", seed=seed, packages=("torch", "numpy", "multiviewae"),
         source={"kind": "third-party", "repository": "alawryaguila/multi-view-AE",
                 "commit": "1.1.8", "entry": f"multiviewae.base.representations.{name}"},
         **{"in": inputs}, out=derive_multiview_ae(inputs, {}, {}))


# -- Weights -------------------------------------------------------------------------------------

def weights_of_column(rule, scores):
    """alpha of those present, from the scores of one datum and dimension."""
    if rule == "sigmoid_weights":
        return [torch.sigmoid(score) for score in scores]
    total = sum(torch.exp(score) for score in scores)
    times = len(scores) if rule == "scaled_softmax_weights" else 1
    return [times * torch.exp(score) / total for score in scores]


def weights_of(rule, scores, present):
    """alpha [M, N, S], 0 for the missing."""
    M, N, S = scores.shape
    alpha = [[[torch.tensor(0.0)] * S for n in range(N)] for m in range(M)]
    for n in range(N):
        here = [m for m in range(M) if present[m, n]]
        for s in range(S):
            for m, weight in zip(here, weights_of_column(rule, [scores[m, n, s] for m in here])):
                alpha[m][n][s] = weight
    return torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in alpha])


RULES = ("softmax_weights", "scaled_softmax_weights", "sigmoid_weights")


def derive_weights(inputs, params, settings):
    given, out = leaves(inputs, "scores"), {}
    for rule in RULES:
        alpha = weights_of(rule, given["scores"], inputs["present"])
        out[rule] = alpha
        out.update(gradients(rule, (alpha * inputs["cotangent"]).sum(), given))
    return {**out, "fixed_weights": torch.clamp(inputs["constants"], 0, 1)}


def record_weights(case, seed, M, N, S, scale=1.0):
    rng = start(seed)
    scores, present = scale * normal(rng, M, N, S), presence(rng, M, N)
    inputs = {"scores": scores, "present": present, "cotangent": normal(rng, M, N, S),
              "constants": 0.5 + normal(rng, M, 1, S)}
    save(f"{PAPER}/weights/{case}", source=source("the abstract of arXiv:2211.03587v1"), seed=seed,
         **{"in": inputs}, out=derive_weights(inputs, {}, {}))


# -- Entropy changes -----------------------------------------------------------------------------

def entropy_of(log_variance):
    return Normal(torch.tensor(0.0), torch.exp(log_variance / 2)).entropy()


def derive_entropy(inputs, params, settings):
    given, present = leaves(inputs, "mean", "log_variance"), inputs["present"]
    log_prior_variance, cotangent = inputs["log_prior_variance"], inputs["cotangent"]
    M, N, D = given["mean"].shape
    change = [[[torch.clamp(entropy_of(log_prior_variance[d]) - entropy_of(
        given["log_variance"][m, n, d]), min=0) for d in range(D)] for n in range(N)]
        for m in range(M)]
    alpha = [[[torch.tensor(0.0)] * D for n in range(N)] for m in range(M)]
    products, committees = [], []
    for n in range(N):
        here = [m for m in range(M) if present[m, n]]
        for d in range(D):
            total = sum(change[m][n][d] for m in here)
            for m in here:
                alpha[m][n][d] = change[m][n][d] / total if total > 0 else torch.tensor(
                    1 / len(here))
            experts = [(given["mean"][m, n, d], given["log_variance"][m, n, d]) for m in range(M)]
            products.append(by_precisions([(*experts[m], alpha[m][n][d]) for m in here]))
            rest = 1 - sum(change[m][n][d] for m in range(M))
            committees.append(by_precisions(
                [(torch.tensor(0.0), log_prior_variance[d], rest)]
                + [(*experts[m], change[m][n][d]) for m in range(M)]))

    def laid_out(pairs):
        return [torch.stack(part).reshape(N, D) for part in zip(*pairs)]

    def stacked(nested):
        return torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in nested])

    return {"change": stacked(change), "normalized": stacked(alpha),
            **with_gradients(given, cotangent, product=laid_out(products),
                             committee=laid_out(committees))}


def record_entropy(case, seed, M, N, D, prior_variance=1.0, wide=0.0):
    """``wide`` is added to the experts' log-variances: the wider, the more are clipped."""
    rng = start(seed)
    given = {"mean": normal(rng, M, N, D), "log_variance": wide + normal(rng, M, N, D)}
    log_prior_variance = math.log(prior_variance) + 0.3 * normal(rng, D)
    inputs = {**given, "log_prior_variance": log_prior_variance, "present": presence(rng, M, N),
              "cotangent": normal(rng, N, D)}
    save(f"{PAPER}/entropy/{case}", source=source(
        "arXiv:1410.7827v2 and Deisenroth and Ng 2015; entropies are torch.distributions.Normal's"),
        seed=seed, **{"in": inputs}, out=derive_entropy(inputs, {}, {}))


# -- The model -----------------------------------------------------------------------------------

def network(rng, *names_and_shapes):
    return {name: normal(rng, *shape) for name, shape in names_and_shapes}


def linear(params, name, x):
    return x @ params[f"{name}.w"] + params[f"{name}.b"]


def hidden(params, name, x):
    return torch.relu(linear(params, name, x))


def derive_model(inputs, params, settings):
    """Two modalities; a grey target and a label."""
    params, present, epsilon = leaves(params, *params), inputs["present"], inputs["epsilon"]
    x, grey = (inputs["x.0"], inputs["x.1"]), inputs["target.0"]
    label = inputs["target.1"].argmax(dim=1)
    (N, D), kappas, beta = epsilon.shape, settings["kappas"], settings["beta"]

    def expert(m, x):
        h = hidden(params, f"encoders.{m}.hidden.0", x)
        return (linear(params, f"encoders.{m}.mean", h),
                linear(params, f"encoders.{m}.log_variance", h))

    out = with_deviation("experts", *map(torch.stack, zip(*(
        expert(m, torch.where(present[m][:, None], x[m], 0.0)) for m in range(2)))))
    for name, rule, prior in (("softmax", "softmax_weights", False),
                              ("sigmoid_prior", "sigmoid_weights", True)):
        means, log_variances, alphas, terms = [], [], [], []
        for n in range(N):
            here = [m for m in range(2) if present[m, n]]
            experts, scores = {}, {}
            for m in here:
                experts[m] = expert(m, x[m][n])
                scores[m] = linear(params, f"credibility.{m}.1",
                                   hidden(params, f"credibility.{m}.0", x[m][n]))
            weights = [weights_of_column(rule, [scores[m][d] for m in here]) for d in range(D)]
            zero = torch.tensor(0.0)
            joint = [by_precisions(
                [(experts[m][0][d], experts[m][1][d], weights[d][i]) for i, m in enumerate(here)]
                + [(zero, zero, 1.0)] * prior) for d in range(D)]
            mean, log_variance = (torch.stack(part) for part in zip(*joint))
            alphas.append(torch.stack([torch.stack([
                weights[d][here.index(m)] if m in here else zero for d in range(D)])
                for m in range(2)]))
            q = Normal(mean, torch.exp(log_variance / 2))
            z = mean + q.stddev * epsilon[n]
            logits = [linear(params, f"decoders.{j}.1", hidden(params, f"decoders.{j}.0", z))
                      for j in range(2)]
            log_p = [Bernoulli(logits=logits[0]).log_prob(grey[n]).sum(),
                     Categorical(logits=logits[1]).log_prob(label[n])]
            kl = kl_divergence(q, Normal(zero, zero + 1)).sum()
            terms.append({"z": z, "log_likelihoods.0": log_p[0], "log_likelihoods.1": log_p[1],
                          "kl": kl, "elbo": kappas[0] * log_p[0] + kappas[1] * log_p[1]
                          - beta * kl})
            means.append(mean)
            log_variances.append(log_variance)
        stacked = {key: torch.stack([of_datum[key] for of_datum in terms]) for key in terms[0]}
        out.update({f"{name}.alpha": torch.stack(alphas, dim=1),
                    **with_deviation(name, torch.stack(means), torch.stack(log_variances)),
                    **{f"{name}.{key}": value for key, value in stacked.items()},
                    **gradients(f"{name}.elbo", stacked["elbo"].mean(), params)})
    return out


def record_model(case, seed, N, D, H, W, U, beta):
    """Of widths W, targets of widths U."""
    rng = start(seed)
    layers = [(f"encoders.{m}.{part}", shape) for m in range(2) for part, shape in (
        ("hidden.0", (W[m], H)), ("mean", (H, D)), ("log_variance", (H, D)))]
    layers += [(f"credibility.{m}.{i}", shape) for m in range(2)
               for i, shape in enumerate(((W[m], H), (H, D)))]
    layers += [(f"decoders.{j}.{i}", shape) for j in range(2)
               for i, shape in enumerate(((D, H), (H, U[j])))]
    params = network(rng, *((f"{name}.{part}", size) for name, shape in layers
                            for part, size in (("w", shape), ("b", shape[1:]))))
    x = [normal(rng, N, width) for width in W]
    grey = torch.from_numpy(rng.random((N, U[0])))
    label = torch.from_numpy(rng.integers(U[1], size=N))
    present, epsilon, kappas = presence(rng, 2, N, rate=0.8), normal(rng, N, D), rng.random(2) + 0.5
    inputs = {"x.0": x[0], "x.1": x[1], "target.0": grey,
              "target.1": torch.nn.functional.one_hot(label, U[1]).double(), "present": present,
              "epsilon": epsilon}
    settings = {"kappas": kappas, "beta": beta}
    save(f"{PAPER}/model/{case}", source=source("arXiv:2211.03587v1; arXiv:1802.05335v3, Eq. (2)"),
         seed=seed, **{"in": inputs}, param=params, set=settings,
         out=derive_model(inputs, params, settings))


DERIVATIONS = {"product": derive_product, "multiview_ae": derive_multiview_ae,
               "weights": derive_weights, "entropy": derive_entropy, "model": derive_model}
THIRD_PARTY = {"multiview_ae": "multiviewae"}


if __name__ == "__main__":
    for seed, way in enumerate(PRODUCTS):
        record_product(way, "of_each_dimension", seed=seed, M=3, N=5, D=3, S=3)
        record_product(way, "of_each_datum", seed=10 + seed, M=2, N=4, D=3, S=1)
    record_product("by_precisions", "constant", seed=20, M=4, N=4, D=2, S=2, of_datum=False)
    record_product("stable_poe", "far_apart", seed=21, M=3, N=4, D=3, S=3, spread=20.0)
    record_multiview_ae("weighted", seed=30, M=3, N=4, D=3)
    record_multiview_ae("uniform", seed=31, M=2, N=5, D=2, uniform=True)
    record_multiview_ae("epsilon_matters", seed=32, M=3, N=4, D=2, spread=12.0)
    record_weights("of_each_dimension", seed=40, M=3, N=6, S=2)
    record_weights("of_each_datum", seed=41, M=4, N=5, S=1)
    record_weights("decided", seed=42, M=2, N=6, S=3, scale=30.0)
    record_entropy("sure", seed=50, M=3, N=4, D=2, wide=-3.0)
    record_entropy("some_know_nothing", seed=51, M=3, N=5, D=2, wide=0.5)
    record_entropy("another_prior", seed=52, M=2, N=4, D=3, prior_variance=9.0)
    record_model("half_beta", seed=60, N=5, D=3, H=4, W=(4, 3), U=(5, 3), beta=0.5)
    record_model("one_dimension", seed=61, N=4, D=1, H=3, W=(2, 5), U=(3, 4), beta=1.0)
