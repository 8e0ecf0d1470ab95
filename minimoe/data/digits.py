"""Handwritten digits, 8 x 8 pixels, and a second modality made of them.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (CC BY 4.0): the 1,797 digits of 13 people that the set keeps for testing, each
pixel the number of black points, 0 to 16, in a square of 4 x 4. The file beside this one is
scikit-learn's copy, written by ``reference_runs/data/digits.py``; a pixel is one character there.
"""
from importlib import resources
from typing import NamedTuple

import numpy as np

LEVELS = 16


class Digits(NamedTuple):
    image: np.ndarray   # [N, 64]   row after row, 0 for white to 1 for black
    label: np.ndarray   # [N] int   the digit


class Pairs(NamedTuple):
    a: np.ndarray       # [N, 64]   an image
    b: np.ndarray       # [N, 64]   another of the same digit, seen in another way
    label: np.ndarray   # [N] int


def digits():
    """All 1,797, in the order of the file."""
    text = resources.files("minimoe.data").joinpath("digits.csv").read_text("ascii")
    rows = [line.split(",") for line in text.splitlines()[1:]]
    image = np.array([[int(level, LEVELS + 1) for level in pixels] for _, pixels in rows])
    return Digits(image / LEVELS, np.array([int(label) for label, _ in rows]))


def shuffled(rng, *sizes):
    """The digits in a random order, cut into parts of these sizes; the last gets the rest.

    ValueError for sizes that leave the last part empty.
    """
    image, label = digits()
    ends = np.cumsum(sizes)
    if len(sizes) and not (min(sizes) > 0 and ends[-1] < len(label)):
        raise ValueError(f"shuffled: needs sizes from 1 that leave some of {len(label)} digits; "
                         f"got {sizes}")
    order = np.split(rng.permutation(len(label)), ends)
    return [Digits(image[part], label[part]) for part in order]


def second_rendering(image):
    """The image mirrored at its diagonal, white on black: no pixel stays what it was. [N, 64]"""
    return 1 - image.reshape(-1, 8, 8).swapaxes(1, 2).reshape(-1, 64)


def pairs(rng, data, n_rounds=1):
    """Every image with ``n_rounds`` others of its digit, in their second rendering.

    A round permutes the images of each digit and pairs them with those as they were, so all that a
    pair shares is the digit (and now and then, by chance, the image itself).
    """
    first, second = [], []
    for _ in range(n_rounds):
        for digit in np.unique(data.label):
            of_digit = np.flatnonzero(data.label == digit)
            first.append(of_digit)
            second.append(rng.permutation(of_digit))
    first, second = np.concatenate(first), np.concatenate(second)
    return Pairs(data.image[first], second_rendering(data.image[second]), data.label[first])
