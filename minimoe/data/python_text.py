"""The reference text that every CPython carries: the topics of its ``help``.

Read from the standard library when asked for, and never copied. It differs a little between
versions of Python, so what is measured on it may be compared only within one version.
"""
from typing import NamedTuple

import numpy as np


class Text(NamedTuple):
    symbols: str          # each character that occurs, in order
    train: np.ndarray     # [N] int   indices into ``symbols``
    test: np.ndarray      # [M] int   the last tenth of the text


def python_text():
    """Every topic in order of its name; what does not print is a space, and spaces do not repeat.

    ModuleNotFoundError where a Python was stripped of its ``pydoc_data``.
    """
    from pydoc_data.topics import topics
    text = " ".join(topics[name] for name in sorted(topics))
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    symbols = "".join(sorted(set(text)))
    place = {symbol: i for i, symbol in enumerate(symbols)}
    index = np.array([place[c] for c in text])
    end = len(index) * 9 // 10
    return Text(symbols, index[:end], index[end:])
