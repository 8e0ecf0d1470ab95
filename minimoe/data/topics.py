"""Words whose meaning hangs on the topic: a task that experts can divide by topic or by word.

There are 16 topics and 32 words, and each topic has its own permutation of the words. Topic and
word are uniform; the target is what the permutation makes of the word, with probability 0.9, or
any word.
"""
from typing import NamedTuple

import numpy as np

TOPICS, WORDS, CERTAINTY = 16, 32, 0.9


class Examples(NamedTuple):
    topic: np.ndarray     # [T] int
    word: np.ndarray      # [T] int
    target: np.ndarray    # [T] int


def meanings(rng):
    """A permutation of the words for each topic. [16, 32] int"""
    return rng.permuted(np.tile(np.arange(WORDS), (TOPICS, 1)), axis=1)


def examples(rng, meanings, n):
    """Topics, words and targets, ``n`` of each. -> Examples"""
    topic, word, anything = rng.integers([[TOPICS], [WORDS], [WORDS]], size=(3, n))    # [T]
    meant = rng.random(n) < CERTAINTY
    return Examples(topic, word, np.where(meant, meanings[topic, word], anything))


def best_perplexity():
    """Of whoever knows the permutations: exp of the entropy of the target."""
    other = (1 - CERTAINTY) / WORDS
    meant = CERTAINTY + other
    return float(np.exp(-meant * np.log(meant) - (WORDS - 1) * other * np.log(other)))
