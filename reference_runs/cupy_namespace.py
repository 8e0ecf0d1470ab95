"""Record what CuPy offers: its names, and the parameters each callable takes.

    pip install cupy-cuda12x==14.2.0        # in an environment of its own; no GPU is needed
    python -m reference_runs.cupy_namespace

The tests hold every array-library call of minimoe to this record, and the strict twin of CuPy
refuses what is not in it; neither needs CuPy. Parameters are written ``a, axis=, *, dtype=``:
a name followed by ``=`` may be left out. A ufunc has its loops (``dd->d``) and those of its
methods (``at``, ``reduce``, ``accumulate``, ``reduceat``) that it really has.
"""
import ast
import inspect
import json
import platform
import re
import textwrap
from pathlib import Path

import cupy
import cupyx
import cupyx.scipy.special
import numpy

RECORDED = Path(__file__).resolve().parent / "recorded" / "cupy_namespace.json"
PLACES = {"cupy": cupy, "cupy.ndarray": cupy.ndarray, "cupy.linalg": cupy.linalg,
          "cupyx": cupyx, "cupyx.scipy.special": cupyx.scipy.special}
UFUNC_METHODS = {"at": 3, "reduce": 1, "accumulate": 1, "reduceat": 2}   # and how many arguments


class Pretender:
    """Has every method and lets it be called: enough to learn whether a ufunc's method exists."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: self


def entry(thing):
    """What is recorded of one name: parameters, a ufunc's loops, or its kind."""
    if isinstance(thing, cupy.ufunc):
        return {"inputs": thing.nin, "loops": " ".join(thing.types),
                "methods": " ".join(name for name in UFUNC_METHODS if has_method(thing, name))}
    if inspect.ismodule(thing):
        return {"kind": "module"}
    if inspect.isclass(thing):
        return {"kind": "class"}
    if callable(thing):
        return parameters(thing)
    return {"kind": "value"}


def has_method(ufunc, name):
    try:
        getattr(ufunc, name)(*[Pretender()] * UFUNC_METHODS[name])
    except NotImplementedError:
        return False
    return True


def parameters(function):
    """The parameters of a Python function, or of a compiled one by the first line of its help."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        first = (function.__doc__ or "").strip().partition("\n")[0]
        inside = re.search(r"\((.*)\)", first)
        words = inside[1].split(", ") if inside else ["*args", "**kwargs"]
        return joined(from_help(word) for word in words if word)
    words, kinds = [], [p.kind for p in signature.parameters.values()]
    for i, p in enumerate(signature.parameters.values()):
        if p.kind == p.VAR_POSITIONAL:
            words.append("*" + p.name)
        elif p.kind == p.VAR_KEYWORD:
            names = keywords_read(function)
            words += ["*"] * (bool(names) and p.VAR_POSITIONAL not in kinds)
            words += [f"{name}=" for name in names] or ["**" + p.name]
        else:
            if p.kind == p.KEYWORD_ONLY and not {p.KEYWORD_ONLY, p.VAR_POSITIONAL} & {*kinds[:i]}:
                words.append("*")
            words.append(p.name + "=" * (p.default is not p.empty))
        if p.kind == p.POSITIONAL_ONLY and kinds[i + 1:i + 2] != [p.POSITIONAL_ONLY]:
            words.append("/")
    return joined(words)


def joined(words):
    return ", ".join(word for word in words if word != "self")


def from_help(word):
    """``int axis=-1`` as ``axis=``."""
    name, equals, _ = word.partition("=")
    return name.split()[-1] + equals


def keywords_read(function):
    """The names that a Python function takes out of its ``**kwargs``."""
    if not inspect.isfunction(function):
        return []
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = [node.args[0].value for node in ast.walk(tree)
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and node.func.attr in ("pop", "get")
             and getattr(node.func.value, "id", None) == "kwargs"]
    return sorted(set(found))


def names(place):
    """The public names of a module; of the array class its operators too."""
    return [name for name in sorted(dir(place)) if name != "annotations"
            and (not name.startswith("_") or place is cupy.ndarray and name.endswith("__"))]


def record():
    versions = {"cupy": cupy.__version__, "numpy": numpy.__version__,
                "python": platform.python_version()}
    sections = [f'"versions": {json.dumps(versions)}']
    for title, place in PLACES.items():
        lines = [f"{json.dumps(name)}: {json.dumps(entry(getattr(place, name)))}"
                 for name in names(place)]
        sections.append(f'"{title}": {{\n' + ",\n".join(lines) + "\n}")
    RECORDED.write_text("{\n" + ",\n".join(sections) + "\n}\n")
    print(f"recorded CuPy {cupy.__version__}: {RECORDED.stat().st_size:,} bytes")


if __name__ == "__main__":
    record()
