"""Every array-library name and parameter that minimoe uses is in both NumPy and CuPy.

Read from the syntax trees, and held to the recorded namespace of CuPy: a name that only NumPy has
would fail on a GPU alone, where no test runs.
"""
import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import scipy.special

from tests.strict_cupy.recorded import RECORD, UFUNC_METHODS, parameters, signature

PACKAGE = Path(__file__).resolve().parents[1] / "minimoe"
NUMPY_ONLY = ("__main__.py", "cli", "data", "oracle")          # see no CuPy array
BOTH = ("autodiff/check.py", "backend.py", "experiments")      # have NumPy arrays of their own too
HERE = {"cupy": np, "cupy.linalg": np.linalg, "cupyx.scipy.special": scipy.special}
MADE_BY = {"namespace": "cupy", "special": "cupyx.scipy.special"}
BY_CONVENTION = {"xp": "cupy", "cupy": "cupy"}
CUPY_ALONE = {"asnumpy", "cuda"}


def sources(*left_out):
    return [path for path in sorted(PACKAGE.rglob("*.py"))
            if not {path.relative_to(PACKAGE).as_posix(), path.relative_to(PACKAGE).parts[0]}
            & set(left_out)]


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def complaints(source, methods=True):
    """What a file asks of an array library that NumPy or CuPy has not: "line 3: xp.vecdot".

    ``methods`` are those of arrays, where every array may be CuPy's.
    """
    tree = ast.parse(source)
    libraries, modules = dict(BY_CONVENTION), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and place(node.value, {}):
            libraries.update({target.id: place(node.value, {}) for target in node.targets
                              if isinstance(target, ast.Name)})
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    modules -= {"cupy"}
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            call = called.get(id(node))
            fault = misnamed(node, call, libraries)
            if methods and not place(node.value, libraries):
                fault = fault or unlike_an_array(node, call, modules)
            if fault:
                yield f"line {node.lineno}: {ast.unparse(node)}: {fault}"


def place(node, libraries):
    """The module that an expression stands for, by CuPy's name of it; None for anything else."""
    if isinstance(node, ast.Name):
        return libraries.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return MADE_BY.get(node.func.id)
    if isinstance(node, ast.Attribute) and place(node.value, libraries):
        inside = f"{place(node.value, libraries)}.{node.attr}"
        return inside if inside in HERE else None
    return None


def misnamed(node, call, libraries):
    """What is wrong with ``<library>.name``, called or not; None if nothing is."""
    owner = place(node.value, libraries)
    if node.attr.startswith("__"):
        return None
    if owner:
        entry = RECORD[owner].get(node.attr)
        if entry is None:
            return "not in CuPy"
        if not hasattr(HERE[owner], node.attr) and node.attr not in CUPY_ALONE:
            return "not in NumPy"
        return call and misfit(entry, call)
    if isinstance(node.value, ast.Attribute) and place(node.value.value, libraries):
        ufunc = RECORD[place(node.value.value, libraries)].get(node.value.attr)
        if isinstance(ufunc, dict) and "loops" in ufunc:
            if node.attr not in ufunc["methods"].split():
                return "not a method of CuPy's ufunc"
            return call and misfit(UFUNC_METHODS[node.attr], call)
    return None


def unlike_an_array(node, call, modules):
    """What is wrong with ``<array>.name``, called or not; None if nothing is."""
    of_module = isinstance(node.value, ast.Name) and node.value.id in modules
    if node.attr in dir(np.ndarray) and not of_module and not of_python(node, call):
        entry = RECORD["cupy.ndarray"].get(node.attr)
        if entry is None:
            return "not an attribute of CuPy's arrays"
        return call and misfit(entry, call)
    return None


def misfit(entry, call):
    """Why CuPy's parameters do not take the arguments of a call; None if they do."""
    if isinstance(entry, dict) and "loops" not in entry:
        return None                              # a class: the constructors of dtypes
    return refusal(signature(parameters(entry)), call)


def refusal(expected, call, *before):
    """Why a signature does not take the arguments of a call, after ``before``; None if it does."""
    given = [None for a in call.args if not isinstance(a, ast.Starred)]
    named = {k.arg: None for k in call.keywords if k.arg}
    unpacks = len(given) < len(call.args) or len(named) < len(call.keywords)
    try:
        (expected.bind_partial if unpacks else expected.bind)(*before, *given, **named)
    except TypeError as error:
        return str(error)
    return None


def of_python(node, call):
    """Whether the call could be of a list's, a dictionary's or a string's method of that name."""
    methods = [getattr(kind, node.attr) for kind in (list, dict, str) if hasattr(kind, node.attr)]
    return call is not None and any(
        refusal(inspect.signature(method), call, "self") is None for method in methods)


@pytest.mark.parametrize("path", sources(*NUMPY_ONLY), ids=name)
def test_every_array_name_is_in_numpy_and_in_cupy(path):
    methods = path in sources(*BOTH)
    assert list(complaints(path.read_text(), methods)) == []


@pytest.mark.parametrize("path", sources(*NUMPY_ONLY, *BOTH), ids=name)
def test_the_algorithm_floors_import_no_array_library(path):
    assert imported(path.read_text()) & {"numpy", "scipy", "cupy", "cupyx"} == set()


def imported(source):
    """The packages that a file imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("line, fault", [
    ("xp.vecdot(a, b)", "not in CuPy"), ("xp.einsum_path('ij->i', a)", "not in CuPy"),
    ("xp.errstate(all='ignore')", "not in CuPy"), ("xp.asnumpy(a, nothing=1)", "unexpected"),
    ("xp.float128", "not in CuPy"), ("xp.scatter_add", "not in CuPy"),
    ("xp.linalg.svdvals(a)", "not in CuPy"), ("xp.linalg.solve(a)", "missing"),
    ("xp.asfarray(a)", "not in NumPy"), ("xp.argsort(a, stable=True)", "unexpected"),
    ("xp.sum(a, where=a > 0)", "unexpected"), ("xp.clip(a, min=0)", "missing"),
    ("xp.exp(a, where=a > 0)", "unexpected"), ("xp.exp()", "missing"),
    ("xp.take(a, i, 0, None, 'clip')", "too many"), ("xp.max(*a, initial=0)", "unexpected"),
    ("namespace(a).vecdot(a)", "not in CuPy"),
    ("lib = namespace(a)\nlib.unstack(a)", "not in CuPy"),
    ("special(a).log_ndtri(a)", "not in CuPy"), ("sp = special(a)\nsp.betaln(a)", "missing"),
    ("xp.maximum.reduce(a)", "not a method"), ("xp.add.at(a, i, b, 1)", "too many"),
    ("a.resize(3)", "not an attribute"), ("a.ctypes", "not an attribute"),
    ("a.sum(where=b)", "unexpected"), ("a.argsort(order='x')", "unexpected"),
    ("f(a).T.max(initial=0)", "unexpected"), ("a.item(0)", "too many"),
    ("a.sort(order='x')", "unexpected")])
def test_a_wrong_name_or_parameter_is_seen(line, fault):
    found = list(complaints(f"import numpy\n{line}\n"))
    assert len(found) == 1 and fault in found[0]


def test_methods_are_passed_over_where_arrays_may_be_numpys():
    assert list(complaints("a.max(initial=0)", methods=False)) == []
    assert len(list(complaints("xp.max(a, initial=0)", methods=False))) == 1


@pytest.mark.parametrize("line", [
    "xp.argsort(a, axis=-1, kind='stable')", "xp.einsum(s, *operands, optimize=True)",
    "xp.pad(a, w, constant_values=0)", "xp.stack(a, axis=0)", "xp.add.at(a, i, b)",
    "xp.where(a > 0, a, xp.inf)", "xp.linalg.solve(a, b)", "special(a).ndtr(a)", "xp.float32(1)",
    "xp.exp(a, out=b)", "xp.zeros(shape, **settings)", "a.sum(axis=0, keepdims=True)",
    "a.reshape(-1, 2).T[0]", "numpy.vecdot(a, b)", "numpy.sum(a, where=b)", "self.resized(3)",
    "xp.cuda.is_available()", "'a.b'.partition('.')",
    "names.sort(key=len)", "settings.copy()", "a.sort(axis=0)"])
def test_what_both_libraries_have_is_allowed(line):
    assert list(complaints(f"import numpy\n{line}\n")) == []


def test_imports_are_seen():
    source = "import numpy as np\ndef f():\n    from scipy.special import erf\n    import os.path\n"
    assert imported(source) == {"numpy", "scipy", "os"}


def test_the_files_are_found():
    assert {"autodiff/tensor.py", "backend.py", "ops/shaping.py"} <= set(map(name, sources()))
    left = set(map(name, sources("oracle", "backend.py")))
    assert left and not left & {"backend.py", "oracle/runs.py"}


def test_the_record_is_of_the_version_that_is_supported():
    assert RECORD["versions"]["cupy"].startswith("14.")
    assert len(RECORD["cupy"]) > 400 and len(RECORD["cupy.ndarray"]) > 100
