"""Cases as test vectors for other languages: a manifest, and a file of each case.

    DIR/manifest.json                      what each file holds, and how near to it is right
    DIR/switch_2021/overflowing.json       a case: what goes in and every intermediate
    DIR/manifest.schema.json, DIR/case.schema.json

A case in JSON has its entry of the manifest with it and needs no other file. Numbers are written
with as many digits as give the same number back, and what JSON does not have as a string. An export
made twice is the same to the byte. Ids are never given to another case.
"""
import hashlib
import json
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np

from minimoe.oracle import index
from minimoe.oracle.cases import cases
from minimoe.oracle.files import METADATA, read_file
from minimoe.oracle.kinds import find_kind
from minimoe.oracle.report import compare, tolerances_of
from minimoe.oracle.schema import HERE, faults, read_schema
from minimoe.oracle.tolerances import EPS, MARGIN, coarser, errors
from minimoe.oracle.trace import computed, of_variant

SCHEMA = 1                       # version of the manifest and of the files
FORMATS = ("json", "npz", "safetensors")
MANIFEST = "manifest.json"
SCHEMAS = ("manifest.schema.json", "case.schema.json")
RULE = [
    "integers, booleans, shapes: equal",
    "floats: |got - want| <= c eps(dtype) scale, with the c and scale of their output, and the "
    "dtype computed in, or that of the output's own numbers where that holds less",
    "an output marked exact: equal to the last bit in float64 and float32",
    f"the choices of a token are judged where its margin, and what follows from them where every "
    f"margin, is at least {MARGIN:g} eps(dtype) of the largest score",
]
FLAGS = {   # of a case: the bugs that such cases catch
    "exact": "sums that are not exact where they can be: a router in lower precision, a lost bias",
    "drops": "who is turned away, and from which place on; counts taken after capacity, not before",
    "all dropped": "a division by the number of tokens kept; an output of a dropped token not zero",
    "padding": "padding that takes a seat, is counted in the balance loss, or has an output",
    "groups": "queues and losses that run through groups, or capacity that is not each group's",
    "k2": "gates normalised or not; the queue of second choices before or after all first ones",
    "k3": "code that was written for two choices",
    "k=E": "top-k of all experts, which is the dense mixture",
    "ties": "the order of equal scores: the lower index is first",
    "near ties": "scores that lower precision takes for equal",
    "degenerate": "sizes and inputs at the edge: divisions by zero, empty sums",
    "balanced": "gradients of losses at perfect balance: 0 / 0",
    "E=1": "axes of length one squeezed away; a softmax over one expert",
    "one expert": "axes of length one squeezed away; a softmax over one expert",
    "one datum": "axes of length one squeezed away; statistics of a single number",
    "one sample": "axes of length one squeezed away; weights of a single sample, which are 1",
    "missing": "what is not there and is counted all the same: a prior, a term of the bound",
    "T=E": "tokens taken for experts: shapes that fit by chance",
    "ignored": "what has no class, counted in a loss or in the number that it is divided by",
    "T=0": "an empty batch: means of nothing",
    "T=1": "axes of length one squeezed away; variances of a single number",
    "wide": "sizes that are powers of two or fit into a byte by chance",
    "E>256": "an expert's index or a count in eight bits, or in a float16 or bfloat16",
    "extreme": "exponentials that overflow, logarithms of zero",
    "every second": "a second expert left out by chance, or for its small gate",
    "evaluation": "what is for training alone: noise, a capacity, a draw",
    "second stage": "tokens placed again once their first choice is full",
}


class VectorsError(ValueError):
    """Vectors that cannot be written, and why."""


def vectors(keys, directory, format="json", track=iter):
    """Write the cases that any of ``keys`` fits, or all, and their manifest. -> manifest

    ``format`` is one of ``FORMATS``; ``track`` wraps the list of cases, to show how far it is.
    Every file is read back and compared. UnknownPaper or UnknownCase for a key, VectorsError for a
    directory that holds other files than those to be written, OSError where none can be.
    """
    if format not in FORMATS:
        raise VectorsError(f"format is one of {', '.join(FORMATS)}; got {format!r}")
    chosen = {case.id: case for key in keys or [""] for case in cases(key)}
    if not chosen:
        raise VectorsError(f"there are no cases of {', '.join(keys)}")
    directory = Path(directory)
    _check_directory(directory, {MANIFEST, *SCHEMAS, *(f"{id}.{format}" for id in chosen)})
    papers = {name: index.paper(name)
              for name in dict.fromkeys(case.paper for case in chosen.values())}
    manifest = {
        "schema": SCHEMA, "minimoe": version("minimoe"), "format": format, "rule": RULE,
        "eps": EPS, "flags": {}, "papers": {
            name: {"title": paper.title, "citation": paper.citation}
            for name, paper in papers.items()},
        "cases": [_write_case(case, papers[case.paper], directory, format)
                  for case in track(list(chosen.values()))]}
    used = dict.fromkeys(flag for entry in manifest["cases"] for flag in entry["flags"])
    manifest["flags"] = {flag: FLAGS.get(flag, flag) for flag in used}
    _hold_to_schema(manifest, "manifest")
    for name in SCHEMAS:
        (directory / name).write_bytes((HERE / name).read_bytes())
    (directory / MANIFEST).write_bytes(f"{json.dumps(manifest, indent=1)}\n".encode("ascii"))
    return manifest


def _check_directory(directory, to_be_written):
    if not directory.exists():
        return
    if not directory.is_dir():
        raise VectorsError(f"{directory} is a file; needs a directory")
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*")
             if not path.is_dir()}
    others = sorted(there - to_be_written)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise VectorsError(f"{directory} holds other files: {', '.join(others[:3])}{more}; "
                           f"needs a new or empty directory, or the same export")


def _hold_to_schema(value, name):
    found = list(faults(value, read_schema(name)))
    if found:
        raise VectorsError(f"the {name} does not fit its schema: {'; '.join(found[:3])}")


# -- A case --------------------------------------------------------------------------------------

def _write_case(case, paper, directory, format):
    """Write one file; its entry of the manifest."""
    run = case.run()
    want = computed(case, run)
    entry = _entry(case, run, want)
    settings = {f"set.{name}": value for name, value in run.settings.items()}
    arrays = {key: np.array(array, order="C") for key, array in [
        *((f"in.{name}", array) for name, array in run.inputs.items()),
        *((f"param.{name}", array) for name, array in run.params.items()), *settings.items(),
        *((f"out.{name}", array) for name, array in want.items())]}
    path = directory / f"{case.id}.{format}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "json":
        about = {"schema": SCHEMA, "minimoe": version("minimoe"), **entry, "title": paper.title,
                 "citation": paper.citation, "rule": RULE, "eps": EPS}
        value = {METADATA: about, **{key: settings.get(key, _in_json(array))
                                     for key, array in arrays.items()}}
        _hold_to_schema(value, "case")
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(part, allow_nan=False)}"
                           for key, part in value.items())
        path.write_bytes(f"{{\n{lines}\n}}\n".encode("ascii"))
    elif format == "npz":
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    else:
        path.write_bytes(_safetensors(arrays, case.id))
    _check_written(path, arrays)
    return {**entry, "file": f"{case.id}.{format}",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _entry(case, run, want):
    """What the manifest says of a case but for its file."""
    tolerances = tolerances_of(case, run, want)
    return {
        "id": case.id, "paper": case.paper, "kind": case.kind, "equations": _equations(case),
        "flags": list(case.tags), "guards": _guards(case, run, want, tolerances),
        "derivations": [{"by": f"minimoe {version('minimoe')}, NumPy, float64"},
                        *_derivations().get(case.id, [])],
        "sizes": dict(case.sizes), "settings": dict(run.settings),
        "tolerances": {name: tolerance._asdict() for name, tolerance in tolerances.items()}}


def _derivations():
    """By case: how else its numbers were derived, and how far from ours they are."""
    path = HERE / "derivations.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _in_json(array):
    flat = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        flat = [x if np.isfinite(x) else
                "NaN" if x != x else "Infinity" if x > 0 else "-Infinity" for x in flat]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": flat}


def _safetensors(arrays, id):
    """The bytes of a file; of its metadata one entry only, whose order cannot change."""
    try:
        from safetensors.numpy import save
    except ImportError:
        raise VectorsError("format safetensors needs the package: "
                           "pip install 'minimoe[checkpoints]'") from None
    unfit = [key for key, array in arrays.items() if not array.flags.c_contiguous]
    if unfit:   # of which it writes other numbers, and says nothing
        raise VectorsError(f"safetensors: {', '.join(unfit)}: needs contiguous arrays")
    return save(arrays, metadata={"id": id})


def _check_written(path, arrays):
    """The file reads back as it was meant; VectorsError otherwise."""
    read = read_file(path).arrays
    wrong = [key for key in arrays.keys() | read.keys() if key not in arrays or key not in read
             or arrays[key].shape != read[key].shape or arrays[key].dtype != read[key].dtype
             or arrays[key].tobytes() != read[key].tobytes()]
    if wrong:
        raise VectorsError(f"{path} does not read back as it was written: {', '.join(wrong)}")


# -- What it is about ----------------------------------------------------------------------------

def _equations(case):
    """What the papers' functions that the case's kind of run calls cite."""
    called = [(function.__module__.rpartition(".")[2], function.__name__)
              for function in _called(find_kind(case.paper, case.kind).outputs)]
    return [{"function": f"{paper}.{name}", "equation": _cited(paper)[name]}
            for paper, name in called if _cited(paper).get(name)]


@cache
def _cited(paper):
    return {function.name: function.equation for function in index.functions(paper)}


def _called(function):
    """A function and the papers' functions that it names, and that those name, in that order."""
    found, left = [], [function]
    while left:
        function = left.pop(0)
        if isinstance(function, partial):
            left = [function.func, *filter(callable, function.args), *left]
        elif (isinstance(function, FunctionType) and function not in found
                and function.__module__.startswith("minimoe.papers.")):
            found.append(function)
            names = function.__globals__
            left += [names[name] for name in _names(function.__code__) if name in names]
    return found


def _names(code):
    """The names in a function's code, and in that of functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _guards(case, run, want, tolerances):
    """The known bugs that a case tells from the paper."""
    from minimoe.oracle.known_bugs import KNOWN_BUGS

    kind, found = "/".join(filter(None, (case.paper, case.kind))), []
    for bug in KNOWN_BUGS:
        first = kind in bug.concerns and _first_told_apart(bug, case, run, want, tolerances)
        if first:
            found.append({"name": bug.name, "title": bug.title, "reported": list(bug.reported),
                          "first": first})
    return found


def _first_told_apart(bug, case, run, want, tolerances):
    """The first output that a bug makes another, or None."""
    try:
        wrong = of_variant(bug, case, run)
    except Exception:      # a bug that these sizes do not allow
        return None
    for name, array in want.items():
        other = wrong.get(name)
        if other is None or other.shape != array.shape:
            return name
        differs = (errors(other, array) > tolerances[name].allowed(coarser("float64", array))
                   if name in tolerances else other != array)
        if differs.any():
            break
    else:
        return None
    if array.dtype.kind == "f":
        return name
    first = compare(case, wrong).first_divergence   # slower; choices within rounding are no mistake
    return first and first.name
