"""Modalities of handwritten digits, one of which may be noise; VAEs that should not heed it.

*Halves*: the upper and the lower half of a digit, to be made whole. *Pairs*: an image, another of
the same digit in its second rendering, and the label (``experiments.modalities``), all three to be
given back, whichever are there. In training and in test, noise replaces all pixels or, by its
level, a share of the pixels of one modality by draws uniform on [0, 1), which are as grey as ink; a
label is replaced by another one.
"""
from typing import Callable, NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data import digits
from minimoe.experiments import harness, modalities
from minimoe.optim import adam, adam_init
from minimoe.papers.generalized_poe_2022 import (
    PriorExpert, denoising_elbo, infer, init, scaled_softmax_weights, softmax_weights)
from minimoe.papers.mvae_2018 import (
    bernoulli_log_likelihood, categorical_log_likelihood, decode)

BATCH = 100
RATE = 2e-3
LEVELS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
NOBODY = -1
CLASSES = 10           # width of a label, and of no other modality


# -- Noise ---------------------------------------------------------------------------------------

def uniform_pixels(rng, shape):
    return rng.random(shape)


def gaussian_pixels(rng, shape):
    """Stronger than any ink."""
    return 0.5 + 1.5 * rng.standard_normal(shape)


def no_pixels(rng, shape):
    """Nothing to be seen, which is no noise."""
    return np.zeros(shape)


def corrupted(rng, x, which, level=1.0, pixels=uniform_pixels):
    """Modalities, with modality which[n] of datum n corrupted; ``NOBODY`` for none.

    ``level`` is the probability that a pixel, or a label, is replaced: a number, or one a datum.
    M of [N, D_m], [N] int -> M of [N, D_m]
    """
    level = np.reshape(level, (-1, 1))                                   # [1 or N, 1]
    found = []
    for m, a in enumerate(x):
        if a.shape[1] == CLASSES:
            hit = rng.random((len(a), 1)) < level
            instead = np.eye(CLASSES)[(a.argmax(axis=1) + rng.integers(1, CLASSES, len(a)))
                                      % CLASSES]
        else:
            hit, instead = rng.random(a.shape) < level, pixels(rng, a.shape)
        found.append(np.where((which == m)[:, None] & hit, instead, a).astype(a.dtype))
    return tuple(found)


def one_or_none(rng, n, n_modalities):
    """With probability 1/2 a modality at random, else ``NOBODY``. -> [n] int"""
    return np.where(rng.random(n) < 0.5, rng.integers(n_modalities, size=n), NOBODY)


def clean_ones(which, n_modalities):
    """The modalities that are not corrupted. [N] int -> [M, N] bool"""
    return which != np.arange(n_modalities)[:, None]


def some_missing(rng, n_modalities, n):
    """Half the data complete; of the others, each modality kept by chance, and one at least."""
    present = rng.random((n_modalities, n)) < np.where(rng.random(n) < 0.5, 1, 0.5)
    present[rng.integers(n_modalities, size=n), np.arange(n)] = True
    return present


# -- Training ------------------------------------------------------------------------------------

def heard_alike(scores, present=None):
    """Weights of 1 whatever the scores: the plain product."""
    return 0 * scores


class Model(NamedTuple):
    weights: Callable
    prior: PriorExpert | None


MVAE, POE, GPOE, SCALED = "MVAE's", "PoE", "gPoE", "gPoE, scaled, prior"
MODELS = {MVAE: Model(heard_alike, PriorExpert()), POE: Model(heard_alike, None),
          GPOE: Model(softmax_weights, None), SCALED: Model(scaled_softmax_weights, PriorExpert())}


class Problem(NamedTuple):
    x: tuple                   # M of [N, D_m], clean
    targets: tuple
    log_likelihoods: tuple
    kappas: tuple
    missing: bool = False      # whether data lack modalities in training
    noisy: bool = True         # whether one is noise in training


def trained(settings, rng, params, model, problem, epochs, only_credibility=False):
    """Adam on the denoising bound, noise fresh in every batch, of half the data.

    beta rises over the first third of the epochs. With ``only_credibility`` everything else stays
    as it is.
    """
    params = harness.move(settings, params)
    learnt = params.credibility if only_credibility else params
    state, N, M = adam_init(learnt), len(problem.x[0]), len(problem.x)
    latent, dtype = params.encoders[0].mean.b.shape[0], problem.x[0].dtype
    n_batches = N // BATCH
    for epoch in range(epochs):
        order = rng.permutation(N)
        for batch in range(n_batches):
            rows = order[batch * BATCH:(batch + 1) * BATCH]
            which = one_or_none(rng, BATCH, M) if problem.noisy else np.full(BATCH, NOBODY)
            present = some_missing(rng, M, BATCH) if problem.missing else np.ones((M, BATCH), bool)
            x = corrupted(rng, tuple(a[rows] for a in problem.x), which)
            epsilon = rng.standard_normal((BATCH, latent)).astype(dtype)
            x, present, epsilon, targets = harness.move(
                settings, (x, present, epsilon, tuple(a[rows] for a in problem.targets)))
            tensors = tree.map(Tensor, learnt)
            current = params._replace(credibility=tensors) if only_credibility else tensors
            posterior = infer(current, x, present, model.prior, model.weights).posterior
            bound = denoising_elbo(
                current.decoders, targets, posterior, epsilon, problem.log_likelihoods,
                problem.kappas, beta=annealed(epoch, batch, n_batches, epochs // 3)).mean()
            downhill = tree.map(lambda g: -g, grad(bound, tensors))
            learnt, state = adam(learnt, downhill, state, learning_rate=RATE)
    return params._replace(credibility=learnt) if only_credibility else learnt


def annealed(epoch, batch, n_batches, n_epochs):
    """From 0 to 1 over so many epochs."""
    return min(1.0, (epoch * n_batches + batch + 1) / max(1, n_epochs * n_batches))


def inference_of(settings, params, model):
    """What a model makes of modalities [N, D_m] and presence [M, N] of the host."""
    def inference(x, present=None):
        return infer(params, *harness.move(settings, (x, present)), model.prior, model.weights)
    return inference


# -- Halves --------------------------------------------------------------------------------------

HALVES_LATENT, HALVES_HIDDEN = 8, (64,)


class Halves(NamedTuple):
    row: str
    seed: int = 0
    epochs: int = 60
    n_train: int = 1300


def halves(data, with_label=False):
    """-> [N, 32], [N, 32]; with the label, one in ten, as a third"""
    label = (np.eye(CLASSES)[data.label],) if with_label else ()
    return (data.image[:, :32], data.image[:, 32:], *label)


def from_halves(settings, case):
    """{(row, level, measure): number}, by the level of noise in one half of every digit; {}"""
    rng, start, training, noise = np.random.default_rng([settings.seed, case.seed, 1]).spawn(4)
    train, test = digits.shuffled(rng, case.n_train)
    model = MODELS[case.row]
    params = trained(settings, training,
                     init(start, (32, 32), (64,), HALVES_LATENT, HALVES_HIDDEN), model,
                     Problem(halves(train), (train.image,), (bernoulli_log_likelihood,), (1.0,)),
                     case.epochs)
    inference = inference_of(settings, params, model)
    classify = modalities.logistic_regression(
        to_numpy(inference(halves(train)).posterior.mean), train.label)
    x, which = halves(test), noise.integers(2, size=len(test.label))
    clean = clean_ones(which, 2)
    measures = {}
    for level in LEVELS:
        seen = corrupted(noise, x, which, level)
        for measure, present in (("mse", None), ("mse of the clean half", clean)):
            z = inference(seen, present).posterior.mean
            made = to_numpy(ops.sigmoid(decode(params.decoders[0], z)))
            measures[case.row, level, measure] = float(((made - test.image) ** 2).mean())
        found = inference(seen)
        read = classify(to_numpy(found.posterior.mean))
        measures[case.row, level, "accuracy"] = float((read == test.label).mean())
        measures[case.row, level, "weight"] = float(
            to_numpy(ops.exp(found.log_weight))[~clean].mean())
    return measures, {}


# -- Pairs and their label -----------------------------------------------------------------------

MODALITIES = ("image A", "image B", "label")
PAIRS_HIDDEN = ((128,), (64,))     # of encoders and decoders, of credibility
KAPPAS = (1.0, 1.0, 10.0)          # as MVAE weighs labels
LIKELIHOODS = (bernoulli_log_likelihood, bernoulli_log_likelihood, categorical_log_likelihood)
CLEAN, UPON = "MVAE, trained clean", "gPoE on its experts"
FROM_PRIOR = 1000                  # draws


class Pairs(NamedTuple):
    row: str
    seed: int = 0
    epochs: int = 20
    n_train: int = modalities.TRAIN
    n_test: int = modalities.TEST


def with_label(pairs):
    return pairs.a, pairs.b, np.eye(CLASSES, dtype=pairs.a.dtype)[pairs.label]


def from_pairs(settings, case):
    """{(row, condition, measure): number}, and what the figure shows.

    Of ``CLEAN`` two rows: MVAE, which never met noise, and the same encoders and decoders, frozen,
    with a credibility that did.
    """
    rng, start, training, again, test = np.random.default_rng(
        [settings.seed, case.seed, 3]).spawn(5)
    data = modalities.problem(rng, case.n_train, case.n_test)
    x = with_label(data.train)
    widths = tuple(a.shape[1] for a in x)
    params = tree.map(lambda p: p.astype("f"), init(start, widths, widths, modalities.LATENT,
                                                    *PAIRS_HIDDEN))
    problem = Problem(x, x, LIKELIHOODS, KAPPAS, missing=True, noisy=case.row != CLEAN)
    model = MODELS[MVAE if case.row == CLEAN else case.row]
    params = trained(settings, training, params, model, problem, case.epochs)
    rows = {case.row: (model, params)}
    if case.row == CLEAN:
        rows[UPON] = MODELS[SCALED], trained(
            settings, again, params, MODELS[SCALED], problem._replace(noisy=True),
            case.epochs, only_credibility=True)
    judged, seed = modalities.judges(data), test.integers(2 ** 32)
    measures, shown = {}, {}
    for row, (model, params) in rows.items():
        found, shown[row] = of_pairs(settings, np.random.default_rng(seed), params, model, data,
                                     judged)
        measures.update({(row, *key): number for key, number in found.items()})
    return measures, shown


def of_pairs(settings, rng, params, model, data, judged):
    inference = inference_of(settings, params, model)
    x, label, N = with_label(data.test), data.test.label, len(data.test.label)
    images_only = np.arange(3)[:, None] < np.full(N, 2)
    measures = {}

    def measure(condition, which, level=1.0, present=None):
        found = inference(corrupted(rng, x, np.full(N, which), level), present)
        read = to_numpy(decode(params.decoders[2], found.posterior.mean)).argmax(axis=-1)
        measures[condition, "error"] = float((read != label).mean())
        for name, alpha in zip(MODALITIES, to_numpy(ops.exp(found.log_weight))):
            measures[condition, f"weight of {name}"] = float(alpha.mean())

    for level in LEVELS:
        measure(level, 0, level, images_only)
    measure("image B alone", NOBODY, present=images_only & clean_ones(np.zeros(N), 3))
    for m, condition in ((NOBODY, "nothing"), *enumerate(MODALITIES)):
        measure(condition, m)
    codes = [inference(x, ~clean_ones(np.full(N, m), 3)).posterior.mean for m in range(3)]
    for m, z in enumerate(codes):
        for to in range(2):
            made = to_numpy(decode(params.decoders[to], z))
            measures[f"{MODALITIES[to]} from {MODALITIES[m]}", "coherence"] = float(
                (judged.of_images[to](made) == label).mean())
    z = harness.move(settings, rng.standard_normal((FROM_PRIOR, modalities.LATENT)).astype("f"))
    a, b, c = (to_numpy(decode(decoder, z)) for decoder in params.decoders)
    a, b, c = judged.of_images[0](a), judged.of_images[1](b), c.argmax(axis=-1)
    measures["all from the prior", "coherence"] = float(((a == b) & (b == c)).mean())
    return measures, pictures(params, x, label, codes, z)


def pictures(params, x, label, codes, z):
    """One digit of each, made from each modality alone; and drawn from the prior. {row: [10, 64]}
    """
    rows = modalities.one_of_each(label)

    def made(z, to):
        return to_numpy(ops.sigmoid(decode(params.decoders[to], z)))

    found = {"A": x[0][rows], "B": x[1][rows]}
    for name, of_modality in zip(("A", "B", "label"), codes):
        found.update({f"{to} from {name}": made(of_modality[rows], m)
                      for m, to in enumerate("AB")})
    return {**found, "A drawn": made(z[:10], 0), "B drawn": made(z[:10], 1)}
