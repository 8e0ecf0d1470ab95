"""What training a restricted Boltzmann machine costs, beside scikit-learn on the same machine.

    python -m tests.benchmarks.rbm [seconds for each comparison]

An epoch of the 1,797 digits, 64 visible and 256 hidden units, float32, by persistent chains, which
is all that ``BernoulliRBM`` has. For each batch of N, both compute p(h | v) of the data, v of N
chains from p(v | h), p(h | v) of those and a sample of it, and step along the difference: as many
products of matrices, as many sigmoids and 320 N draws each. scikit-learn draws them from its own
generator as doubles, ``persistent_gradient`` takes single ones. Turns as in ``engine``.
"""
import sys

import numpy as np

from minimoe import tree
from minimoe.data.digits import digits
from minimoe.papers.products_of_experts_1999 import RBMParams, persistent_gradient
from tests.benchmarks.engine import load, race

HIDDEN, RATE = 256, 0.05
EPOCHS = 4          # in a run, so that what comes before the first hardly counts
BATCHES = {10: "scikit-learn's default", 100: "the paper's"}


def learn(v, size):
    """As ``BernoulliRBM.fit``: from N(0, 0.01^2), all biases at 0, in the order of the file."""
    rng = np.random.default_rng(0)
    D = v.shape[1]
    params = tree.map(lambda p: p.astype(v.dtype), RBMParams(
        0.01 * rng.standard_normal((D, HIDDEN)), np.zeros(D), np.zeros(HIDDEN)))
    h = np.zeros((size, HIDDEN), v.dtype)
    for _ in range(EPOCHS):
        for start in range(0, len(v), size):
            gradient, h = persistent_gradient(
                params, v[start:start + size], h, rng.random((size, D), dtype=v.dtype),
                rng.random((size, HIDDEN), dtype=v.dtype))
            for p, g in zip(params, gradient):
                p += RATE * g              # in place, as there
    return params


def main(seconds=20.0):
    scikit_learn = load("sklearn.neural_network")
    v = digits().image.astype("float32")
    for size, whose in BATCHES.items():
        theirs = scikit_learn and scikit_learn.BernoulliRBM(
            HIDDEN, learning_rate=RATE, batch_size=size, n_iter=EPOCHS, random_state=0)
        best = race(seconds, {"minimoe": lambda: learn(v, size),
                              "scikit-learn": theirs and (lambda: theirs.fit(v))})
        line = f"RBM 64-256, batches of {size} ({whose}): {best['minimoe'] * 1e3 / EPOCHS:6.2f} ms"
        if theirs:
            line += (f" an epoch, {best['minimoe'] / best['scikit-learn']:.2f} x scikit-learn "
                     f"({best['scikit-learn'] * 1e3 / EPOCHS:.2f} ms; target 0.5)")
        print(line, flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
