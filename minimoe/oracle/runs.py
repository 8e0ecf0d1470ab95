"""A run as a file: what went in, the settings and what came out, under flat keys.

    in.x  in.cotangent          inputs, with every random draw that was consumed
    param.w_gate                parameters, named as ``tree.named_leaves`` names them
    set.capacity                settings
    out.expert  out.grad.w_gate what was computed

Recorded runs and a user's own are the same: ``numpy.savez(path, **{"in.x": x, ...})`` writes one,
and so does whatever writes safetensors or JSON: see ``files``.
"""
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.backend import to_numpy
from minimoe.oracle.files import RunError, read_file

GROUPS = ("in", "param", "set", "out")   # of a key, in the order of Run's fields
KINDS = {"float": "f", "int": "iu", "bool": "b"}
NAMES = {"float": "floats", "int": "integers", "bool": "booleans"}


class Run(NamedTuple):
    inputs: dict     # arrays by name, here and in the next: "x", "w_gates.0"
    params: dict
    settings: dict   # Python numbers, or lists of them
    outputs: dict


def kind_of(array):
    """What an array holds, in a word."""
    return {"b": "booleans", "i": "integers", "u": "integers", "f": "floats"}[array.dtype.kind]


def read_run(path, schema):
    """The run in a file, checked against a paper's ``RUN``.

    ``schema`` gives each key of ``in``, ``param`` and ``set`` its shape in letters, which must
    mean one size throughout; ``int`` or ``bool`` before them for an input that is not of floats.
    A key with ``*`` stands for as many as are numbered from 0, and a shape that begins ``...`` has
    any number of leading axes. RunError, naming file and key, for what is missing, unknown, of
    another shape or kind, or not finite. Outputs are checked once they have been computed: see
    ``disagreements``.
    """
    return as_run(read_file(path), path, schema)


def as_run(file, path, schema):
    """``read_run`` of an ArrayFile that has been read from ``path``."""
    arrays, dtypes = dict(file.arrays), file.dtypes
    shapes = {numbered: letters for key, letters in schema.items()
              for numbered in _numbered(key, arrays)}
    for key in shapes.keys() & arrays.keys():
        if (dtypes[key] == "" and arrays[key].dtype.kind == "i" and not key.startswith("set.")
                and not shapes[key].startswith(("int", "bool"))):
            arrays[key] = arrays[key].astype(np.float64)   # [1, 2] of JSON
    problems = list(_problems(arrays, shapes, schema))
    if problems:
        raise RunError(*(f"{path}: {problem}" for problem in problems))
    run = Run({}, {}, {}, {})
    for key, array in arrays.items():
        group, _, name = key.partition(".")
        run[GROUPS.index(group)][name] = array.tolist() if group == "set" else array
    return run


def read_arrays(path):
    """Whatever arrays are in a file, by key."""
    return read_file(path).arrays


def write_run(path, run):
    """Save a run; its outputs may be any tree."""
    arrays = {f"{group}.{name}": to_numpy(leaf)
              for group, part in zip(GROUPS, run)
              for name, leaf in tree.named_leaves(part).items()}
    with open(path, "wb") as file:   # a path given to savez would gain an ending
        np.savez(file, **arrays)


# -- Its keys ------------------------------------------------------------------------------------

def _problems(arrays, shapes, schema):
    """What is wrong with the keys of a run, their shapes, kinds and values."""
    sizes = {}   # of each letter, and the key that had it first
    for key, letters in shapes.items():
        if key not in arrays:
            yield f"{key} is missing"
        else:
            yield from _misfits(key, arrays[key], letters.split(), sizes)
    for key in arrays:
        if key.partition(".")[0] not in GROUPS:
            yield f"{key} is unknown; a key begins in., param., set. or out."
        elif key not in shapes and not key.startswith("out."):
            yield f"{key} is unknown; this paper's runs have {', '.join(schema)}"


def _numbered(key, arrays):
    """A key of a schema, or the keys numbered from 0 that one with ``*`` stands for."""
    before, star, after = key.partition("*")
    if not star:
        return [key]
    n = sum(k.startswith(before) and k.endswith(after)
            and k[len(before):len(k) - len(after)].isdecimal() for k in arrays)
    return [f"{before}{i}{after}" for i in range(max(n, 1))]


def _misfits(key, array, letters, sizes):
    """What is wrong with one array. ``sizes`` gains the letters that it is the first to have."""
    kind = letters.pop(0) if letters[:1] in (["int"], ["bool"]) else "float"
    misfit = f"{key}: shape {array.shape} does not fit {' '.join(letters) or 'a number'}"
    n_leading = 0
    if letters[:1] == ["..."]:
        letters = letters[1:]
        n_leading = max(array.ndim - len(letters), 0)
    if array.ndim != n_leading + len(letters):
        yield misfit
        return
    for letter, size in zip(letters, array.shape[n_leading:]):
        first, where = sizes.setdefault(letter, (size, key))
        if size != first:
            yield f"{misfit}: {letter} is {first} in {where}"
    if array.size == 0:
        yield f"{key}: shape {array.shape} holds nothing"
    if key.startswith(("in.", "param.")):
        if array.dtype.kind not in KINDS[kind]:
            yield f"{key}: needs {NAMES[kind]}; got {array.dtype}"
        elif not np.isfinite(array).all():
            yield f"{key}: holds NaN or infinity"
