"""A mixture of Markov chains: several "languages", each with its own table of next symbols.

A token is a language, the symbol before it, and the symbol that its language puts there. Which
language it is decides everything, so experts that specialise gain, and the best loss that any model
can reach is known: the entropy of the tables.

    N languages    V symbols    T tokens
"""
from typing import NamedTuple

import numpy as np


class Tokens(NamedTuple):
    language: np.ndarray    # [T] int
    previous: np.ndarray    # [T] int
    following: np.ndarray   # [T] int   to be predicted


def chains(rng, n_languages=8, n_symbols=32, concentration=0.1):
    """The next symbol's probabilities, each row from a symmetric Dirichlet. -> [N, V, V]"""
    return rng.dirichlet(np.full(n_symbols, concentration), (n_languages, n_symbols))


def tokens(rng, tables, n_tokens):
    """Language and symbol before uniform, the next symbol from its table. [N, V, V] -> Tokens"""
    N, V, _ = tables.shape
    language, previous = rng.integers(N, size=n_tokens), rng.integers(V, size=n_tokens)
    rows = tables.cumsum(axis=-1)[language, previous]                  # [T, V]
    u = rng.random(n_tokens) * rows[:, -1]            # a row may miss 1 by rounding
    return Tokens(language, previous, (rows <= u[:, None]).sum(axis=-1))


def entropy(tables):
    """Mean entropy of the next symbol, in nats: the loss that no model can go below."""
    return -(tables * np.log(np.where(tables > 0, tables, 1))).sum(axis=-1).mean()
