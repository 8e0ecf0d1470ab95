"""Experts that stay as they are and a credibility that is learnt, of the halves of digits.

What is asked for is z, the first principal components of a whole digit. Each half, and the label
where it is the third modality, has a ridge regression to z, fitted to clean digits and then frozen,
whose variance is how far it is off on clean digits: nothing in it knows of noise. Weights can.
"""
from typing import Any, Callable, NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import identity, solve, to_numpy
from minimoe.data import digits
from minimoe.densities import gaussian_log_density
from minimoe.experiments import harness, modalities
from minimoe.experiments.noisy_modalities import (
    BATCH, LEVELS, NOBODY, clean_ones, corrupted, gaussian_pixels, halves, heard_alike, no_pixels,
    one_or_none, uniform_pixels)
from minimoe.optim import adam, adam_init
from minimoe.papers.generalized_poe_2022 import (
    PriorExpert, credibility_init, credibility_scores, fixed_weights, generalized_product,
    normalized_entropy_weights, softmax_weights)
from minimoe.papers.mvae_2018 import product_of_experts

LATENT = 8
TRAIN, FITTED = 1200, 600      # digits; experts are fitted to the first, measured on the others
HIDDEN = (32,)
RATE = 1e-2
PLAIN, WITH_PRIOR, UNIFORM, ENTROPY, LEARNT, ORACLE = PRODUCTS = (
    "PoE", "MVAE's", "uniform", "entropy", "gPoE", "clean only")
NOISES = {"uniform": uniform_pixels, "gaussian": gaussian_pixels, "blank": no_pixels}


class Frozen(NamedTuple):
    """How credibility is learnt."""
    seed: int = 0
    weights: Callable = softmax_weights
    prior: PriorExpert | None = None
    n_scores: int = LATENT                # or 1, for all dimensions
    pixels: Callable = uniform_pixels
    all_levels: bool = False              # of noise in training: not 1, but any
    with_label: bool = False
    steps: int = 400


class Task(NamedTuple):
    train: digits.Digits
    test: digits.Digits
    mean: np.ndarray           # [64]      of the images
    components: np.ndarray     # [64, D]   an image less the mean, times these, is z
    back: np.ndarray           # [D, 64]   z times these, plus the mean, is nearly the image


def task(rng):
    """Components are scaled to variance 1 in training."""
    train, test = digits.shuffled(rng, TRAIN)
    mean = train.image.mean(axis=0)
    _, s, vt = np.linalg.svd(train.image - mean, full_matrices=False)
    deviation = s[:LATENT] / np.sqrt(TRAIN)
    return Task(train, test, mean, vt[:LATENT].T / deviation, vt[:LATENT] * deviation[:, None])


# -- The experts ---------------------------------------------------------------------------------

class Experts(NamedTuple):
    w: tuple               # M of [1 + D_m, D]
    log_variance: Any      # [M, 1, D]


def fitted(x, z):
    """Ridge regressions of penalty 1. M of [N, D_m], [N, D] -> Experts"""
    w, log_variance = [], []
    for a in map(with_one, x):
        seen = a[:FITTED]
        w.append(solve(seen.T @ seen + identity(a.shape[1], like=a), seen.T @ z[:FITTED]))
        off = z[FITTED:] - a[FITTED:] @ w[-1]
        log_variance.append(np.log((off ** 2).mean(axis=0)))
    return Experts(tuple(w), np.stack(log_variance)[:, None])


def with_one(x):
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def opinions(experts, x):
    """M of [N, D_m] -> mean [M, N, D], log-variance [M, N, D]"""
    mean = np.stack([with_one(a) @ w for a, w in zip(x, experts.w)])
    return mean, np.broadcast_to(experts.log_variance, mean.shape)


# -- Credibility ---------------------------------------------------------------------------------

def learn(settings, start, rng, case, experts, x, z):
    """Adam on -log density of z, half the data with a corrupted modality, fresh in every batch.

    What is learnt is a network for each modality; or constants, where weights are fixed.
    """
    M = len(x)
    params = tuple(credibility_init(start, a.shape[1], HIDDEN, case.n_scores) for a in x)
    if case.weights is fixed_weights:
        params = np.full((M, 1, case.n_scores), 1 / M)
    params = harness.move(settings, params)
    state = adam_init(params)
    for _ in range(case.steps):
        rows = rng.integers(len(z), size=BATCH)
        level = rng.random(BATCH) if case.all_levels else 1.0
        seen = corrupted(rng, tuple(a[rows] for a in x), one_or_none(rng, BATCH, M), level,
                         case.pixels)
        seen, mean, log_variance, target = harness.move(
            settings, (seen, *opinions(experts, seen), z[rows]))
        tensors = tree.map(Tensor, params)
        posterior = generalized_product(mean, log_variance, log_weight(case, tensors, seen),
                                        prior=case.prior)
        error = -gaussian_log_density(target, *posterior).sum(axis=-1).mean()
        params, state = adam(params, grad(error, tensors), state, learning_rate=RATE)
    return params


def log_weight(case, params, x):
    """M of [N, D_m] -> [M, N or 1, S]"""
    if case.weights is fixed_weights:
        return fixed_weights(params)
    return case.weights(ops.stack([credibility_scores(layers, a - 0.5, ops.tanh)
                                   for layers, a in zip(params, x)]))


# -- Measures ------------------------------------------------------------------------------------

def frozen_experts(settings, case):
    """{(condition, product, measure): number}, and what the figure shows."""
    rng, start, training, noise = np.random.default_rng([settings.seed, case.seed, 0]).spawn(4)
    problem = task(rng)
    x, test = halves(problem.train, case.with_label), halves(problem.test, case.with_label)
    z, target = ((data.image - problem.mean) @ problem.components
                 for data in (problem.train, problem.test))
    experts = fitted(x, z)
    params = learn(settings, start, training, case, experts, x, z)
    N, M = len(target), len(x)
    a_half = noise.integers(2, size=N)
    conditions = {
        **{level: (a_half, level, case.pixels) for level in LEVELS},
        "clean": (np.full(N, NOBODY), 1.0, case.pixels),
        **{f"modality {m}": (np.full(N, m), 1.0, case.pixels) for m in range(M)},
        **{name: (a_half, 1.0, pixels) for name, pixels in NOISES.items()}}
    measures = {}
    for condition, (which, level, pixels) in conditions.items():
        seen = corrupted(noise, test, which, level, pixels)
        found = compared(settings, case, params, experts, seen, which, target)
        measures.update({(condition, *key): number for key, number in found.items()})
    if case.with_label:
        return measures, {}
    rows = modalities.one_of_each(problem.test.label)
    which = np.arange(10) % 2
    return measures, pictures(settings, case, params, experts, problem, rows, which,
                              corrupted(noise, tuple(a[rows] for a in test), which))


def posteriors(settings, case, params, experts, x, which):
    """alpha [M, N, D], and the Gaussian [N, D] by each product, ``ORACLE`` knowing ``which``."""
    x, mean, log_variance, clean = harness.move(
        settings, (x, *opinions(experts, x), clean_ones(which, len(x))))
    learnt = ops.broadcast_to(log_weight(case, params, x), shape=mean.shape)
    plain = heard_alike(mean)
    entropy = normalized_entropy_weights(log_variance)
    return to_numpy(ops.exp(learnt)), dict(zip(PRODUCTS, (
        generalized_product(mean, log_variance, plain),
        product_of_experts(mean, log_variance),
        generalized_product(mean, log_variance, softmax_weights(plain)),
        generalized_product(mean, log_variance, entropy),
        generalized_product(mean, log_variance, learnt, prior=case.prior),
        generalized_product(mean, log_variance, plain, clean))))


def compared(settings, case, params, experts, x, which, target):
    """Errors of each product, and the mean weight of modalities, all and the corrupted ones."""
    alpha, products = posteriors(settings, case, params, experts, x, which)
    found = {}
    for name, posterior in products.items():
        mean, log_variance = map(to_numpy, posterior)
        found[name, "rmse"] = float(np.sqrt(((mean - target) ** 2).mean()))
        found[name, "nll"] = float(-gaussian_log_density(target, mean, log_variance).sum(1).mean())
    hit = ~clean_ones(which, len(x))                                     # [M, N]
    if hit.any():
        found[LEARNT, "weight"] = float(alpha[hit].mean())
    return {**found, **{(LEARNT, f"weight {m}"): float(part.mean())
                        for m, part in enumerate(alpha)}}


def pictures(settings, case, params, experts, problem, rows, which, x):
    """Digits as they are and as they are seen, the halves' weights, and what each product makes."""
    alpha, products = posteriors(settings, case, params, experts, x, which)
    images = {name: (to_numpy(products[name].mean) @ problem.back + problem.mean).clip(0, 1)
              for name in (PLAIN, LEARNT, ORACLE)}
    return {"digit": problem.test.image[rows], "seen": np.concatenate(x, axis=1).clip(0, 1),
            **images, "weights": alpha.mean(axis=-1).T}
