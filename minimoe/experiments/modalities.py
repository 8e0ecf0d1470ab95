"""Two modalities of handwritten digits, and what experiments on them share.

Modality A is an image, B another image of the same digit in its second rendering
(``minimoe.data.digits``): all that a pair shares is the digit. What models make is judged by
logistic regressions, which have seen real images of the modality only. Models here have a
``decoders`` field, and are trained and judged in float32.
"""
from typing import NamedTuple

import numpy as np

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, value_and_grad
from minimoe.backend import to_numpy
from minimoe.data import digits
from minimoe.data.digits import Digits, Pairs
from minimoe.experiments import harness
from minimoe.optim import adam, adam_init, amsgrad, amsgrad_init
from minimoe.papers import mmvae_2019

WIDTHS = (64, 64)
HIDDEN = (128,)
LATENT = 10
TRAIN, TEST = 1300, 497    # images
ROUNDS = 3             # of pairing
BATCH = 100
EPOCHS = 30
RATE = 1e-3
FROM_PRIOR = 5000      # draws, by which joint coherence is judged


# -- Data ----------------------------------------------------------------------------------------

class Problem(NamedTuple):
    train: Pairs         # 3900
    test: Pairs          # 497
    images: Digits       # 1300, of which the training pairs are made


def problem(rng, n_train=TRAIN, n_test=TEST):
    """So many digits, split and paired, in float32; with fewer than there are, some are left out.
    """
    images, rest = digits.shuffled(rng, n_train)
    test = Digits(rest.image[:n_test], rest.label[:n_test])
    pairs = digits.pairs(rng, images, ROUNDS), digits.pairs(rng, test)
    return tree.map(lambda a: a.astype("f") if a.dtype == float else a, Problem(*pairs, images))


# -- Judges --------------------------------------------------------------------------------------

def logistic_regression(x, label, penalty=1e-3, steps=300):
    """Fitted to classes 0 to 9 by Adam, on inputs scaled to variance 1. -> [N, D] -> [N] int"""
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-2
    layer = nn.LinearParams(0 * x[:1].T + np.zeros(10, x.dtype), np.zeros(10, x.dtype))
    scaled, state = (x - mean) / deviation, adam_init(layer)

    def loss(layer):
        return (ops.cross_entropy(nn.linear(layer, scaled), label).mean()
                + penalty * ops.square(layer.w).sum())

    for _ in range(steps):
        layer, state = adam(layer, value_and_grad(loss, layer)[1], state, learning_rate=0.03)

    def classify(x):
        return nn.linear(layer, (to_numpy(x) - mean) / deviation).argmax(axis=-1)

    return classify


class Judges(NamedTuple):
    of_images: tuple     # for each modality, from what its decoder gives (logits) to classes
    accuracy: tuple      # on real images that none of them has seen


def judges(data):
    """One for each modality."""
    train = data.images.image, digits.second_rendering(data.images.image)
    classify = [logistic_regression(images, data.images.label) for images in train]
    accuracy = tuple(float((judge(images) == data.test.label).mean())
                     for judge, images in zip(classify, data.test))
    return Judges(tuple(_of_logits(judge) for judge in classify), accuracy)


def _of_logits(judge):
    return lambda logits: judge(ops.sigmoid(to_numpy(logits)))


# -- Training ------------------------------------------------------------------------------------

def train(settings, rng, params, x, step, epochs=EPOCHS):
    """Adam with AMSGrad at a rate of 1e-3, on batches of 100 in a random order.

    ``step(params, x, rng, epoch, batch, n_batches)``, of Tensors, gives the objective of a batch
    and its gradient uphill. Returns the parameters, of float32, and the mean objective of every
    epoch, a number for each datum.
    """
    params = harness.move(settings, tree.map(lambda p: p.astype("f"), params))
    state, history = amsgrad_init(params), []
    n_batches = len(x[0]) // BATCH
    for epoch in range(1, epochs + 1):
        order, climbed = rng.permutation(len(x[0])), 0.0
        for batch in range(n_batches):
            rows = order[batch * BATCH:(batch + 1) * BATCH]
            taken = harness.move(settings, tuple(a[rows] for a in x))
            value, uphill = step(tree.map(Tensor, params), taken, rng, epoch, batch, n_batches)
            params, state = amsgrad(params, tree.map(lambda g: -g, uphill), state,
                                    learning_rate=RATE)
            climbed += float(value)
        history.append(climbed / n_batches)
    return tree.map(to_numpy, params), np.array(history)


# -- Measures ------------------------------------------------------------------------------------

def coherences(decoders, codes, prior_draws, data, judged):
    """Cross and joint coherence, and how well a linear classifier reads each modality's codes.

    ``codes`` are, for each modality, latent variables [N, D] of the training and the test pairs.
    """
    label = data.test.label
    (_, a), (_, b) = codes
    found = {
        "a_to_b": mmvae_2019.cross_coherence(decoders[1], a, judged.of_images[1], label),
        "b_to_a": mmvae_2019.cross_coherence(decoders[0], b, judged.of_images[0], label),
        "joint": mmvae_2019.joint_coherence(decoders, prior_draws, judged.of_images)}
    for name, (train_codes, test_codes) in zip(("latent_a", "latent_b"), codes):
        classify = logistic_regression(train_codes, data.train.label)
        found[name] = mmvae_2019.latent_accuracy(classify, test_codes, label)
    return found


def over_seeds(cases, measures):
    """{row: {measure: [seeds]}}, of cases that have a row, and their numbers by measure."""
    return harness.by_row({("all", case.row, i): numbers for i, (case, numbers) in
                           enumerate(zip(cases, measures))})["all"]


def each(values, digits=2):
    """A number of every seed, in print."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


# -- Pictures ------------------------------------------------------------------------------------

def image_grid(rows, gap=1):
    """Rows of images [C, 64], 0 to 1, as one image whose gaps are NaN. -> [height, width]"""
    C = len(rows[0])
    grid = np.full((len(rows) * (8 + gap) - gap, C * (8 + gap) - gap), np.nan)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            grid[i * (8 + gap):i * (8 + gap) + 8, j * (8 + gap):j * (8 + gap) + 8] = (
                image.reshape(8, 8))
    return grid


def draw_images(axis, rows, labels=()):
    """Rows of images in a panel, black on white as digits are, each with a label on its left."""
    axis.imshow(image_grid(rows), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks([9 * i + 3.5 for i in range(len(labels))], labels)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def one_of_each(label, which=0):
    """The first place of every digit, from 0 to 9; or the second, for 1, and so on."""
    return np.array([np.flatnonzero(label == digit)[which] for digit in range(10)])
