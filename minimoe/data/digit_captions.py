"""Handwritten digits with captions of four words: "a bold seven forward".

The digits are those of ``minimoe.data.digits``. A caption is a filler that says nothing, how much
ink there is, the digit, and which way it leans. Ink and slant are measured on the image and cut
into thirds of the training images, so that one word in four must be read off the image as a whole
and two more from all of its strokes.
"""
from itertools import product
from typing import NamedTuple

import numpy as np

from minimoe.data.digits import shuffled

FILLERS = ("a", "the", "this", "one")
INK = ("thin", "plain", "bold")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SLANT = ("backward", "upright", "forward")
PLACES = (FILLERS, INK, DIGITS, SLANT)                  # of a caption, from left to right
VOCABULARY = tuple(word for words in PLACES for word in words)
FIRST = np.cumsum([0, *map(len, PLACES)])[:-1]          # id of the first word of each place
SIDE = 8


class Captioned(NamedTuple):
    image: np.ndarray   # [N, 64]   row after row, 0 for white to 1 for black
    label: np.ndarray   # [N] int   the digit
    ink: np.ndarray     # [N] int   0, 1, 2: place in INK
    slant: np.ndarray   # [N] int   place in SLANT


def captioned(rng, n_train=1437):
    """The digits in a random order with their attributes: so many to train by, the rest to test."""
    parts = shuffled(rng, n_train)
    cuts = [np.quantile(values, [1 / 3, 2 / 3]) for values in attributes(parts[0].image)]
    return [Captioned(*part, *(np.searchsorted(cut, values, side="right")
                               for cut, values in zip(cuts, attributes(part.image))))
            for part in parts]


def attributes(image):
    """Ink in all, and how far a stroke goes to the right per pixel upwards. [N, 64] -> [N], [N]

    The slant is -cov(x, y) / var(y) of columns x and rows y, counted downwards and weighted by ink.
    ValueError for an image without ink.
    """
    ink = image.sum(axis=1)
    if not (ink > 0).all():
        raise ValueError("attributes: an image without ink leans nowhere")
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    share = image / ink[:, None]                                       # [N, 64]
    x = x - (share @ x)[:, None]                                       # [N, 64]
    y = y - (share @ y)[:, None]
    variance = (share * y * y).sum(axis=1)
    return ink, -(share * x * y).sum(axis=1) / np.where(variance == 0, 1, variance)


def captions(rng, data):
    """A caption of each image, its filler drawn. -> [N, 4] int"""
    filler = rng.integers(len(FILLERS), size=len(data.label))
    return FIRST + np.stack([filler, data.ink, data.label, data.slant], axis=1)


def captions_of(digit):
    """Every caption that images of a digit can have. -> [36, 4] int"""
    ranges = (range(len(FILLERS)), range(len(INK)), [digit], range(len(SLANT)))
    return FIRST + np.array(list(product(*ranges)))


def spelled(caption):
    """[4] int -> str"""
    return " ".join(VOCABULARY[word] for word in caption)


def patches(image, height=2, width=2):
    """Squares of an image, row after row of them. [N, 64] -> [N, 64 / (h w), h w]"""
    N, rows, columns = len(image), SIDE // height, SIDE // width
    cut = image.reshape(N, rows, height, columns, width).swapaxes(2, 3)
    return cut.reshape(N, rows * columns, height * width)


def standardised(train, *others):
    """Each less the mean of ``train``, over its standard deviation: one number of each for all."""
    return [(part - train.mean()) / train.std() for part in (train, *others)]
