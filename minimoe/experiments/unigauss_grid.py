"""Unigauss experts on a grid of 5 x 5 clusters of which one is missing, and a mixture beside them.

The demonstration of Section 4 of Hinton (2002) as I. Murray's replication has it: 300 points on the
unit square, each coordinate one of 1/6 ... 5/6 plus noise of SD 0.04/6, less those about
(1/3, 1/2). A product of 15 experts needs only a strip for each row and each column; a mixture needs
a Gaussian for each cluster, and has 15.
"""
from typing import NamedTuple

import numpy as np

from minimoe import densities, ops
from minimoe.backend import to_numpy
from minimoe.experiments import harness
from minimoe.papers.products_of_experts_1999 import (
    log_normalizer, unigauss_gibbs, unigauss_init, unigauss_log_density, unigauss_update)

POINTS = 300
SIDE = 5                            # clusters in a row
NOISE = 0.04 / 6
MISSING, AROUND = np.array([1 / 3, 1 / 2]), 0.1
EXPERTS = 15
STAGES = {1: 2000, 5: 500, 20: 300, 50: 150}     # k of CD-k: updates
RESOLUTION = 1001                   # of the grid that densities are normalised on, along each axis
ROWS = 13                           # of it at once: 1001 = 7 * 11 * 13
THIN, OBLONG = 0.012, 10.0          # an expert is thin, if its smaller SD and their ratio are so


class Mixture(NamedTuple):
    log_weights: np.ndarray    # [M]
    mean: np.ndarray           # [M, 2]
    log_variance: np.ndarray   # [M, 2]


class Study(NamedTuple):
    data: np.ndarray           # [N, 2]
    params: tuple              # UnigaussParams of arrays
    score: np.ndarray          # [stages]   mean log density of the data after each
    missing: np.ndarray        # [stages]   probability of the square about the missing point
    thin: np.ndarray           # [2]        thin experts, by the axis along which they are thin
    log_p: np.ndarray          # [RESOLUTION, RESOLUTION]   log density at the end; x2, x1
    mixture: Mixture
    mixture_score: float
    mixture_missing: float
    mixture_log_p: np.ndarray


def study(settings, rng, stages, fits):
    """A product and a mixture of the same data, from one start and from the best of ``fits``."""
    data = points(rng)
    params, score, missing, log_p = train(settings, rng, data, stages)
    mixture = fit_mixture(rng, data, fits)
    mixture_log_p = mixture_on_grid(mixture)
    return Study(data, params, score, missing, thin(params), log_p, mixture,
                 float(mixture_log_density(mixture, data).mean()), mass_missing(mixture_log_p),
                 mixture_log_p)


def points(rng):
    """The data. -> [N, 2]"""
    x = (np.ceil(SIDE * rng.random((POINTS, 2))) + 6 * NOISE * rng.standard_normal((POINTS, 2))) / 6
    return x[~is_missing(x)]


def is_missing(x):
    """Whether a point is about the missing one. [..., 2]"""
    return (abs(x - MISSING) < AROUND).all(axis=-1)


# -- A product of unigauss experts ---------------------------------------------------------------

def train(settings, rng, data, stages):
    """Full-batch CD-k, k growing by stages. -> params, [stages], [stages], the final log density"""
    params, x = harness.move(settings, (unigauss_init(rng, EXPERTS, data), data))
    score, missing = [], []
    for k, updates in stages.items():
        for _ in range(updates):
            draws = (rng.random((k, len(data), EXPERTS)), rng.standard_normal((k, *data.shape)),
                     rng.random((k, *data.shape)))
            reconstruction = unigauss_gibbs(params, x, *harness.move(settings, draws))
            params = unigauss_update(params, x, reconstruction)
        log_p, log_z = on_grid(settings, params)
        score.append(float(unigauss_log_density(params, x).sum(axis=-1).mean()) - log_z)
        missing.append(mass_missing(log_p))
    return type(params)(*map(to_numpy, params)), np.array(score), np.array(missing), log_p


def on_grid(settings, params):
    """The log density at the middle of each cell of the unit square, and log Z. x2 is the row."""
    middle = (np.arange(RESOLUTION) + 0.5) / RESOLUTION
    log_p = []
    for x2 in middle.reshape(-1, ROWS):
        x = np.stack(np.meshgrid(middle, x2), axis=-1)                 # [ROWS, RESOLUTION, 2]
        experts = unigauss_log_density(params, harness.move(settings, x.reshape(-1, 2)))
        log_p.append(to_numpy(experts.sum(axis=-1)).reshape(ROWS, -1))
    log_p = np.concatenate(log_p)
    log_z = float(log_normalizer(log_p.reshape(1, -1))) - 2 * np.log(RESOLUTION)
    return log_p - log_z, log_z


def mass_missing(log_p):
    """The probability of the square about the missing point."""
    middle = (np.arange(RESOLUTION) + 0.5) / RESOLUTION
    cells = is_missing(np.stack(np.meshgrid(middle, middle), axis=-1))
    return float(np.exp(log_p[cells]).sum() / RESOLUTION ** 2)


def is_thin(params):
    """Which experts are strips. -> [M] bool"""
    sd = np.exp(-0.5 * params.log_tau)                                 # [M, 2]
    return (sd.min(axis=-1) < THIN) & (sd.max(axis=-1) > OBLONG * sd.min(axis=-1))


def thin(params):
    """How many experts are thin along x1, and along x2."""
    along = params.log_tau.argmax(axis=-1)                             # [M]
    return np.array([(is_thin(params) & (along == axis)).sum() for axis in (0, 1)])


# -- A mixture of as many Gaussians --------------------------------------------------------------

def mixture_log_joint(mixture, x):
    """log weight_m N(x; mean_m, diag variance_m). [N, 2] -> [N, M]"""
    return mixture.log_weights + densities.gaussian_log_density(
        x[:, None], mixture.mean, mixture.log_variance).sum(axis=-1)


def mixture_log_density(mixture, x):
    return ops.logsumexp(mixture_log_joint(mixture, x), axis=-1)


def fit_mixture(rng, x, starts, steps=100):
    """The best of some starts of EM, from means that are data; no SD below that of the noise."""
    fits = []
    for _ in range(starts):
        mixture = Mixture(np.full(EXPERTS, -np.log(EXPERTS)),
                          x[rng.choice(len(x), EXPERTS, replace=False)],
                          np.full((EXPERTS, 2), 2 * np.log(0.1)))
        for _ in range(steps):
            h = ops.softmax(mixture_log_joint(mixture, x), axis=-1)    # [N, M]
            size = h.sum(axis=0)[:, None] + 1e-12                      # [M, 1]
            mean = h.T @ x / size                                      # [M, 2]
            variance = (h[..., None] * (x[:, None] - mean) ** 2).sum(axis=0) / size
            mixture = Mixture(np.log(size[:, 0] / len(x)), mean,
                              np.log(np.maximum(variance, NOISE ** 2)))
        fits.append(mixture)
    return max(fits, key=lambda mixture: mixture_log_density(mixture, x).mean())


def mixture_on_grid(mixture):
    """As ``on_grid``, where nothing needs to be normalised."""
    middle = (np.arange(RESOLUTION) + 0.5) / RESOLUTION
    return np.stack([mixture_log_density(mixture, np.stack(
        [middle, np.full(RESOLUTION, x2)], axis=-1)) for x2 in middle])
