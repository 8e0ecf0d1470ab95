"""Cases: what goes into a paper, ready to be held against, as the foot of its file lists it.

A paper's ``CASES`` names each: the kind of run, the sizes of its letters and its settings, tags,
and perhaps a function that changes what was drawn:

    "overflowing": ("layer", dict(T=16, D=8, E=4, H=8, capacity=2, k=1), "drops")

Every draw comes from a seed that is the case's own name. Floats are rounded to eight significant
bits, so that float64, float32 and bfloat16 hold one and the same case; with the tag ``exact`` they
are multiples of 1/8 (parameters 1/16) small enough that sums of products are exact, too.
"""
import difflib
import fnmatch
import re
import zlib
from typing import Callable, NamedTuple

import numpy as np

from minimoe.oracle import index
from minimoe.oracle.kinds import find_kind, module_of
from minimoe.oracle.runs import Run

BITS = 8                  # significant, as many as a bfloat16 has
UNIFORM = 256             # a draw from [0, 1) is a multiple of 1 / 256
TERM = re.compile(r"(\d*)([A-Za-z]\w*)|(\d+)")


class UnknownCase(LookupError):
    """No case answers to a name."""


class Case(NamedTuple):
    """One case. ``run()`` draws its arrays, in float64, anew at each call."""
    id: str                      # "switch_2021/overflowing"; never reused
    paper: str
    kind: str                    # of run; empty where the paper has one
    sizes: dict                  # of the letters in the kind's shapes
    settings: dict
    tags: tuple
    change: Callable | None      # (arrays by key, generator): alters what was drawn

    def run(self):
        """Inputs, parameters and settings; no outputs. -> Run"""
        return _draw(self)

    def __str__(self):
        return self.id


def cases(pattern="", tags=""):
    """Every case that a pattern fits and that has all tags. -> list of Case

    A pattern is a paper, or how its name begins, and perhaps a case after a slash, in which ``*``
    stands for anything: "gshard", "switch_2021/over*". ``tags`` are separated by commas.
    UnknownPaper or UnknownCase, naming those near, where a pattern fits nothing.
    """
    paper, _, name = pattern.partition("/")
    found = [case for paper in ([index.find(paper)] if paper not in ("", "*") else index.names())
             for case in _cases_of(paper)]
    if name:
        chosen = [case for case in found
                  if fnmatch.fnmatchcase(case.id.partition("/")[2], name)]
        if not chosen:
            names = [case.id for case in found]
            near = difflib.get_close_matches(f"{names[0].partition('/')[0]}/{name}", names, n=5,
                                             cutoff=0.4) if names else []
            raise UnknownCase(f"no case is called {pattern!r}; "
                              f"{'near' if near else 'there are'}: {', '.join(near or names)}")
        found = chosen
    wanted = {tag.strip() for tag in tags.split(",")} - {""}
    return [case for case in found if wanted <= set(case.tags)]


def case(key):
    """The one case of a name: a paper's, as far as it tells, a slash and the case's own.

    UnknownCase where there is none, or more than one.
    """
    if isinstance(key, Case):
        return key
    if "/" not in key:
        listed = ", ".join(c.id for c in cases(key))
        raise UnknownCase(f"{key!r} names a paper; its cases: {listed or 'none'}")
    found = cases(key)
    if len(found) > 1:
        raise UnknownCase(f"{key!r} may be any of: {', '.join(c.id for c in found)}")
    return found[0]


def _cases_of(paper):
    for name, entry in getattr(module_of(paper), "CASES", {}).items():
        kind, given, tags, change = (*entry, *("", None)[len(entry) - 2:])
        schema = find_kind(paper, kind).run
        settings = {key: value for key, value in given.items() if f"set.{key}" in schema}
        sizes = {key: size for key, size in given.items() if key not in settings}
        yield Case(f"{paper}/{name}", paper, kind, sizes, settings,
                   tuple(tag.strip() for tag in tags.split(",") if tag.strip()), change)


# -- Drawing -------------------------------------------------------------------------------------

def _draw(case):
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    exact, arrays = "exact" in case.tags, {}
    for key, letters in find_kind(case.paper, case.kind).run.items():
        if not key.startswith("set."):
            for numbered in _numbered(key, case):
                arrays[numbered] = _drawn(rng, numbered, letters.split(), case, exact)
    if case.change:
        case.change(arrays, rng)
    run = Run({}, {}, dict(case.settings), {})
    for key, array in arrays.items():
        group, _, name = key.partition(".")
        part = run.inputs if group == "in" else run.params
        part[name] = rounded(array) if array.dtype.kind == "f" else array
    return run


def _numbered(key, case):
    """A key, or the keys numbered from 0 that one with ``*`` stands for."""
    if "*" not in key:
        return [key]
    name = "n_" + key.partition(".")[2].replace(".*", "")
    return [key.replace("*", str(i)) for i in range(_given(case, name))]


def _given(case, name):
    if name not in case.sizes:
        raise ValueError(f"{case.id}: needs a size for {name}")
    return case.sizes[name]


def _drawn(rng, key, letters, case, exact):
    kind = letters.pop(0) if letters[:1] in (["int"], ["bool"]) else "float"
    shape = tuple(_size(case, letter) for letter in letters if letter != "...")
    if kind == "bool":
        return np.ones(shape, bool)
    if kind == "int":
        return np.zeros(shape, int)
    words = key.split(".")[1:]
    if any(word in ("u", "draw", "draws") or word.startswith("u_") for word in words):
        return rng.integers(UNIFORM, size=shape) / UNIFORM
    if words[-1] == "gumbel":
        return -np.log(-np.log((rng.integers(UNIFORM, size=shape) + 0.5) / UNIFORM))
    if exact and key.startswith("param."):
        return rng.integers(-8, 9, size=shape) / 16
    if exact:
        return rng.integers(-16, 17, size=shape) / 8
    scale = shape[-2]**-0.5 if key.startswith("param.") and len(shape) > 1 and shape[-2] else 1.0
    return scale * rng.standard_normal(shape)


def _size(case, letter):
    """The size that a letter, or a sum such as 2C+Z, stands for."""
    if letter in case.sizes:
        return case.sizes[letter]
    total = 0
    for term in letter.split("+"):
        times, name, number = TERM.fullmatch(term).groups()
        total += int(number) if number else int(times or 1) * _given(case, name)
    return total


def rounded(x, bits=BITS):
    """The nearest numbers of so many significant bits; of two as near, that with an even last bit.

    Any shape, float64 -> the same
    """
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits))
