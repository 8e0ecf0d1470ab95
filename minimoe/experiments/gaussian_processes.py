"""Gaussian processes on a line, and products of such that share the data out among them.

One function is drawn from a process of known covariance and seen through noise; each expert has a
share of what was seen, neighbours (*blocks*) or whoever comes (*random*), and predicts the function
everywhere. Y. Cao and D. J. Fleet, arXiv:1410.7827v2, ask which product of the predictions is
calibrated: near the data, and far away, where experts know no more than the prior.
"""
from typing import NamedTuple

import numpy as np

from minimoe import ops
from minimoe.backend import identity, solve, to_numpy
from minimoe.experiments import harness
from minimoe.papers.generalized_poe_2022 import (
    committee, entropy_weights, generalized_product, normalized_entropy_weights, softmax_weights)
from minimoe.papers.mvae_2018 import Gaussian

LENGTH = 0.5           # of the covariance, whose variance is 1
NOISE = 0.1            # standard deviation
EXPERTS, POINTS = 8, 20
SEEN, SHOWN = 4, 6     # inputs lie within 4 of 0, predictions within 6
FAR = 5.5              # whence the data are out of sight
FLOOR = 1e-12          # of latent variances


class Process(NamedTuple):
    x: np.ndarray          # [E*P]      where it was seen
    y: np.ndarray          # [E*P]      and what, noise included
    at: np.ndarray         # [T]        where it is to be foretold
    f: np.ndarray          # [T]        what it is there, without noise
    split: dict            # {name: [E, P] int}   who has seen what


def covariance(a, b):
    """exp(-(a - b)^2 / (2 length^2)). [N], [T] -> [N, T]"""
    return ops.exp(-0.5 * ops.square((a[:, None] - b) / LENGTH))


def predict(x, y, at):
    """The latent function's mean and log-variance, given what was seen. [N], [N], [T] -> [T], [T]
    """
    between = covariance(x, at)                                          # [N, T]
    right = ops.concatenate([y[:, None], between], axis=1)               # [N, 1 + T]
    solved = solve(covariance(x, x) + NOISE ** 2 * identity(len(x), like=x), right)
    mean = between.T @ solved[:, 0]
    variance = 1 - (between * solved[:, 1:]).sum(axis=0)
    return Gaussian(mean, ops.log(ops.maximum(variance, FLOOR)))


def drawn(rng, n_experts=EXPERTS, n_points=POINTS):
    """A process of n_experts * n_points inputs, uniform, and 241 places to foretell it."""
    N = n_experts * n_points
    x, at = np.sort(rng.uniform(-SEEN, SEEN, N)), np.linspace(-SHOWN, SHOWN, 241)
    both = np.concatenate([x, at])
    values, vectors = np.linalg.eigh(covariance(both, both))
    f = vectors @ (np.sqrt(values.clip(0)) * rng.standard_normal(len(both)))
    y = f[:N] + NOISE * rng.standard_normal(N)
    return Process(x, y, at, f[N:], {"blocks": np.arange(N).reshape(n_experts, n_points),
                                     "random": rng.permutation(N).reshape(n_experts, n_points)})


def plain(mean, log_variance):
    return generalized_product(mean, log_variance, 0 * mean)


def equal(mean, log_variance):
    return generalized_product(mean, log_variance, softmax_weights(0 * mean))


def normalized(mean, log_variance):
    return generalized_product(mean, log_variance, normalized_entropy_weights(log_variance))


def raw(mean, log_variance):
    return generalized_product(mean, log_variance, entropy_weights(log_variance))


PLAIN, EQUAL, ENTROPY, RAW, COMMITTEE, WHOLE = FUSIONS = (
    "PoE", "gPoE, 1/M", "gPoE, entropy", "raw entropy", "rBCM", "one process")
PRODUCTS = {PLAIN: plain, EQUAL: equal, ENTROPY: normalized, RAW: raw, COMMITTEE: committee}


def fused(settings, process, split):
    """What each product foretells, and one process that has seen everything. {name: Gaussian [T]}
    """
    x, y, at = harness.move(settings, process[:3])
    rows = harness.move(settings, process.split[split])
    experts = [predict(x[of_expert], y[of_expert], at) for of_expert in rows]
    mean, log_variance = (ops.stack(part)[..., None] for part in zip(*experts))   # [E, T, 1]
    found = {name: Gaussian(*(part[:, 0] for part in product(mean, log_variance)))
             for name, product in PRODUCTS.items()}
    return {name: Gaussian(*map(to_numpy, gaussian))
            for name, gaussian in {**found, WHOLE: predict(x, y, at)}.items()}


def judged_by(process, gaussian):
    """Of the latent function where there are data; and the variance where there are none."""
    near, far = abs(process.at) <= SEEN, abs(process.at) > FAR
    mean, variance = gaussian.mean, np.exp(gaussian.log_variance)
    error = (process.f - mean) ** 2
    return {
        "rmse": np.sqrt(error[near].mean()),
        "nlpd": 0.5 * (np.log(2 * np.pi * variance) + error / variance)[near].mean(),
        "coverage": (error <= 1.959964 ** 2 * variance)[near].mean(),
        "far": variance[far].mean()}


class Processes(NamedTuple):
    n_draws: int = 100
    n_experts: int = EXPERTS


def calibration(settings, case):
    """{(split, fusion, measure): [draws]}, and what the figure shows of the first draw."""
    rng, measures, shown = np.random.default_rng([settings.seed, 2]), {}, {}
    for _ in range(case.n_draws):
        process = drawn(rng, case.n_experts)
        for split in process.split:
            found = fused(settings, process, split)
            for name, gaussian in found.items():
                for measure, number in judged_by(process, gaussian).items():
                    measures.setdefault((split, name, measure), []).append(float(number))
            apart = np.abs(found[PLAIN].mean - found[EQUAL].mean).max()
            measures.setdefault((split, EQUAL, "mean apart from PoE"), []).append(float(apart))
        shown = shown or {"process": process, "fused": found}
    return {key: np.array(numbers) for key, numbers in measures.items()}, shown
