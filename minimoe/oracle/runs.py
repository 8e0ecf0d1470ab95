"""A run as a file: what went in, the settings and what came out, in one ``.npz`` with flat keys.

    in.x  in.cotangent          inputs, with every random draw that was consumed
    param.w_gate                parameters, named as ``tree.named_leaves`` names them
    set.capacity                settings
    out.expert  out.grad.w_gate what was computed

Recorded runs and a user's own have this one format: ``numpy.savez(path, **{"in.x": x, ...})``
writes it. A file may come from anywhere, so nothing is unpickled, and no array is built before
its header has been held against the bytes that are there.
"""
import io
import math
import zipfile
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.backend import to_numpy

GROUPS = ("in", "param", "set", "out")   # of a key, in the order of Run's fields
KINDS = {"float": "f", "int": "iu", "bool": "b"}
NAMES = {"float": "float32 or float64", "int": "integers", "bool": "booleans"}
LARGEST = 2**30                          # bytes unpacked: a small file can claim any size


class Run(NamedTuple):
    inputs: dict     # arrays by name, here and in the next: "x", "w_gates.0"
    params: dict
    settings: dict   # Python numbers, or lists of them
    outputs: dict


class RunError(ValueError):
    """A run that cannot be used; each argument is one thing that is wrong, in one line."""

    def __str__(self):
        return "\n".join(self.args)


def read_run(path, schema):
    """The run in a file, checked against a paper's ``RUN``.

    ``schema`` gives each key of ``in``, ``param`` and ``set`` its shape in letters, which must
    mean one size throughout; ``int`` or ``bool`` before them for an input that is not of floats.
    A key with ``*`` stands for as many as are numbered from 0, and a shape that begins ``...`` has
    any number of leading axes. RunError, naming file and key, for what is missing, unknown, of
    another shape or kind, or not finite. Outputs are checked once they have been computed: see
    ``disagreements``.
    """
    arrays = read_arrays(path)
    problems = list(_problems(arrays, schema))
    if problems:
        raise RunError(*(f"{path}: {problem}" for problem in problems))
    run = Run({}, {}, {}, {})
    for key, array in arrays.items():
        group, _, name = key.partition(".")
        run[GROUPS.index(group)][name] = array.tolist() if group == "set" else array
    return run


def write_run(path, run):
    """Save a run; its outputs may be any tree."""
    arrays = {f"{group}.{name}": to_numpy(leaf)
              for group, part in zip(GROUPS, run)
              for name, leaf in tree.named_leaves(part).items()}
    with open(path, "wb") as file:   # a path given to savez would gain an ending
        np.savez(file, **arrays)


# -- The file ------------------------------------------------------------------------------------

def read_arrays(path):
    """Arrays by key: booleans, integers, float32 and float64, in native byte order.

    RunError for anything else, and for a file that is missing, damaged or not a ``.npz``.
    """
    try:
        with open(path, "rb") as file:
            return dict(_members(file))
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


def _members(file):
    """Key and array of each member of an open archive."""
    start = file.read(2)
    if not start:
        raise RunError("is empty")
    if start != b"PK":
        raise RunError("is not a .npz file, as numpy.savez writes it")
    with _reports_damage(""), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        size = sum(info.file_size for info in members)
        if size > LARGEST:
            raise RunError(f"unpacks to {size:,} bytes, more than {LARGEST:,}")
        seen = set()
        for info in members:
            key = info.filename.removesuffix(".npy")
            if key == info.filename or not key.isprintable():
                raise RunError(f"{info.filename!a} is not an array saved by numpy.savez")
            if key in seen:
                raise RunError(f"{key} is there twice")
            seen.add(key)
            with _reports_damage(f"{key} "):
                array = _read_array(archive.read(info))
            yield key, array


@contextmanager
def _reports_damage(where):
    """Turns whatever foreign bytes make zipfile, zlib or NumPy raise into a RunError."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{where}{error}") from None
    except Exception:
        raise RunError(f"{where}is truncated or damaged") from None


def _read_array(data):
    """The array in the bytes of a ``.npy`` file."""
    header = {(1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0}
    file = io.BytesIO(data)
    shape, _, dtype = header[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise RunError("holds pickled objects, which are never loaded")
    if dtype.kind not in "biuf" or dtype.kind == "f" and dtype.itemsize not in (4, 8):
        raise RunError(f"holds {dtype}; needs float32, float64, integers or booleans")
    claimed, there = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if claimed != there:
        raise RunError(f"has shape {shape}, which takes {claimed:,} bytes; it has {there:,}")
    file.seek(0)
    array = np.lib.format.read_array(file, allow_pickle=False)
    return array.astype(dtype.newbyteorder("="))


# -- Its keys ------------------------------------------------------------------------------------

def _problems(arrays, schema):
    """What is wrong with the keys of a run, their shapes, kinds and values."""
    shapes = {numbered: letters for key, letters in schema.items()
              for numbered in _numbered(key, arrays)}
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
