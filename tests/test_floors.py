"""Who may import whom, and the other rules that a machine can hold, read from syntax trees.

A rule takes a file's path in the repository and its source, and yields what is wrong with it. Every
rule is shown sources that break it.
"""
import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (("backend", "tree"), ("autodiff",), ("ops",), ("routing", "nn", "densities", "optim"),
          ("papers", "data"), ("experiments", "oracle"), ("cli", "pytest_plugin"),
          ("__main__", "conformance"))
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
ELSEWHERE = {   # packages that are not Python's own, and the parts of minimoe that may import them
    "numpy": set(FLOOR) - {"papers"},
    "scipy": {"backend"}, "cupy": {"backend"}, "cupyx": {"backend"},
    "safetensors": {"data", "oracle"}, "babel": {"data"},
    "pytest": {"pytest_plugin", "conformance"},
    "?": {"conformance"},      # the module that a user names
    "matplotlib": {"experiments", "cli", "__main__"}, "tqdm": {"experiments", "cli", "__main__"}}
NOT_EMPTY = {"minimoe/__init__.py", "minimoe/ops/__init__.py", "minimoe/nn/__init__.py",
             "minimoe/oracle/__init__.py"}
JOURNAL = re.compile(r"\d+(?:\(\d+\))?:\d+-\d+, (?:\d{4})")      # volume(number):pages, year
VERSIONED = re.compile(r"arXiv:\d{4}\.\d{4,5}v\d+")
FIRST_ON_ARXIV = 2008      # from this year on, papers of machine learning are there


def sources():
    files = [path for place in ("minimoe", "tests", "reference_runs")
             for path in (ROOT / place).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(files)}


def papers(root=ROOT):
    return sorted(path.stem for path in (root / "minimoe" / "papers").glob("*.py")
                  if path.stem != "__init__")


# -- Reading -------------------------------------------------------------------------------------

def imports(source):
    """Every module that a source imports, or asks ``import_module`` for; dots of relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _last(node.func) in ("import_module", "__import__"):
            yield _beginning(node.args[0])


def _last(node):
    """The name at the end of ``a.b.c``."""
    return getattr(node, "attr", getattr(node, "id", None))


def _beginning(node):
    """What is known of a string: all of it, or an f-string's constant beginning."""
    part = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return part.value if isinstance(part, ast.Constant) else "?"


def part_of(name):
    """The part of minimoe that ``minimoe.part...`` or ``minimoe/part...`` is in."""
    return re.split(r"[./]", name)[1].removesuffix(".py")


# -- Rules ---------------------------------------------------------------------------------------

def has_a_floor(path, source):
    if path.startswith("minimoe/") and path != "minimoe/__init__.py" and part_of(path) not in FLOOR:
        yield f"{part_of(path)} is on no floor"


def imports_nothing_above_or_beside_it(path, source):
    if not path.startswith("minimoe/"):
        return
    here = "ops" if path == "minimoe/__init__.py" else part_of(path)      # it offers ops and below
    for name in imports(source):
        if name.startswith("."):
            yield f"imports {name}: imports are absolute"
        if name.split(".")[0] != "minimoe":
            continue
        there = part_of(name + ".")
        if there not in FLOOR:
            yield f"imports {name} from the package itself"
        elif FLOOR[there] > FLOOR.get(here, 0):
            yield f"imports {name}, from a floor above"
        elif FLOOR[there] == FLOOR.get(here, 0) and there != here:
            yield f"imports {name}, its neighbour"


def imports_only_libraries_of_its_floor(path, source):
    if not path.startswith("minimoe/") or path == "minimoe/__init__.py":
        return
    for name in imports(source):
        top = name.split(".")[0]
        if top not in {"", "minimoe"} | sys.stdlib_module_names and (
                part_of(path) not in ELSEWHERE.get(top, ())):
            yield f"imports {name}"


def papers_import_no_later_paper(path, source):
    if not path.startswith("minimoe/papers/") or path.endswith("__init__.py"):
        return
    for name in imports(source):
        if name.startswith("minimoe.papers."):
            cited = name.split(".")[2]
            if _year(cited) > _year(Path(path).stem):
                yield f"imports {cited}, a later paper"


def _year(paper):
    return int(paper.rpartition("_")[2])


def papers_are_named_and_dated(path, source):
    if path.startswith("minimoe/papers/") and not path.endswith("__init__.py"):
        if not re.fullmatch(r"[a-z0-9_]+_(19|20)\d\d", Path(path).stem):
            yield "is not named name_year.py"


def papers_name_no_array_library(path, source):
    if path.startswith("minimoe/papers/"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Name) and node.id in ("np", "numpy", "cupy", "scipy", "xp"):
                yield f"line {node.lineno} names {node.id}"


def papers_cite_with_a_version(path, source):
    """arXiv with its version, or, for papers before arXiv, a journal with volume and pages."""
    if not path.startswith("minimoe/papers/") or path.endswith("__init__.py"):
        return
    docstring = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    if not VERSIONED.search(docstring) and (
            _year(Path(path).stem) >= FIRST_ON_ARXIV or not JOURNAL.search(docstring)):
        yield "cites neither arXiv:NNNN.NNNNNvN nor, before arXiv, a journal's volume and pages"


def papers_have_an_oracle(path, source):
    if path.startswith("minimoe/papers/") and not path.endswith("__init__.py"):
        names = {name for node in ast.parse(source).body
                 for name in ([node.name] if isinstance(node, ast.FunctionDef) else
                              [target.id for target in node.targets
                               if isinstance(target, ast.Name)]
                              if isinstance(node, ast.Assign) else [])}
        if not names & {"oracle", "ORACLES"}:
            yield "has no function oracle(case), and no ORACLES"


def arxiv_is_never_cited_without_a_version(path, source):
    if not path.startswith("tests/"):
        for cited in re.findall(r"arXiv:\d{4}\.\d{4,5}(?!\d|v\d)", source):
            yield f"cites {cited} without its version"


def draws_come_from_a_generator(path, source):
    """``default_rng`` and ``Generator`` alone; in the library, a seed is turned into one above."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute) and _last(node.value) == "random" and _last(
                getattr(node.value, "value", None)) in ("np", "numpy", "cupy", "xp", "torch"):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module in ("numpy.random", "random"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in ("random", "numpy.random")]
        twin = path in ("tests/test_strict_cupy.py", "tests/strict_cupy/library.py")
        for name in names:
            if name not in ("default_rng", "Generator") and not twin:
                yield f"line {node.lineno} draws by {name}"
        if isinstance(node, ast.Call) and _last(node.func) == "default_rng":
            if not node.args:
                yield f"line {node.lineno} makes a generator without a seed"
            if path.startswith("minimoe/") and FLOOR[part_of(path)] < FLOOR["experiments"]:
                yield f"line {node.lineno} makes a generator: rng is passed in"


def recorders_import_no_minimoe(path, source):
    """But those that record no expected values: they hold others' to what the oracle has."""
    if path.startswith("reference_runs/"):
        holds = path.startswith(("reference_runs/third_party/", "reference_runs/derivations.py"))
        for name in imports(source):
            if name.split(".")[0] == "minimoe" and not (
                    holds and name.startswith("minimoe.oracle")):
                yield f"imports {name}, which it will judge"


def no_test_imports_torch_or_cupy(path, source):
    """The twin's own test asks for the twin by that name."""
    if path.startswith("tests/") and not path.startswith("tests/benchmarks/") and (
            path != "tests/test_strict_cupy.py"):
        for name in imports(source):
            if name.split(".")[0] in ("torch", "cupy", "cupyx"):
                yield f"imports {name}"


def nothing_is_unpickled(path, source):
    loads = {"np.load", "numpy.load"} | {"load" for name in imports(source) if name == "numpy.load"}
    for name in imports(source):
        if name.split(".")[0] in ("pickle", "cPickle", "joblib", "shelve", "dill"):
            yield f"imports {name}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            reads = ast.unparse(node.func) in loads or _last(node.func) == "read_array"
            allow = {k.arg: k.value for k in node.keywords}.get("allow_pickle")
            if ast.unparse(node.func) == "torch.load":
                yield f"line {node.lineno} calls torch.load"
            elif (reads or allow) and getattr(allow, "value", None) is not False:
                yield f"line {node.lineno} loads without allow_pickle=False"


def init_files_are_empty(path, source):
    if path.endswith("/__init__.py") and not path.startswith("tests/"):
        if path not in NOT_EMPTY and source.strip():
            yield "is not empty"


RULES = [has_a_floor, imports_nothing_above_or_beside_it, imports_only_libraries_of_its_floor,
         papers_import_no_later_paper, papers_are_named_and_dated, papers_name_no_array_library,
         papers_cite_with_a_version, papers_have_an_oracle, arxiv_is_never_cited_without_a_version,
         draws_come_from_a_generator, recorders_import_no_minimoe,
         no_test_imports_torch_or_cupy, nothing_is_unpickled, init_files_are_empty]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    found = [f"{path}: {fault}" for path, source in sources().items()
             for fault in rule(path, source)]
    assert found == []


def lacking(root):
    """What each paper still lacks beside its own file."""
    for paper in papers(root):
        if not (root / "minimoe" / "experiments" / f"{paper}.py").exists():
            yield f"{paper} has no experiment"
        if not (root / "reference_runs" / "papers" / f"{paper}.py").exists():
            yield f"{paper} has no recorder"
        if not list((root / "reference_runs" / "recorded" / paper).rglob("*.npz")):
            yield f"{paper} has no recorded run"
        if not (root / "tests" / "papers" / f"test_{paper}.py").exists():
            yield f"{paper} has no test file"


def test_every_paper_is_whole():
    assert papers() and list(lacking(ROOT)) == []


# -- Each rule catches what breaks it ------------------------------------------------------------

PAPER = "minimoe/papers/switch_2021.py"
PLANTED = [
    (has_a_floor, "minimoe/helpers.py", "", "helpers is on no floor"),
    (has_a_floor, "minimoe/losses/z_loss.py", "", "losses is on no floor"),
    (imports_nothing_above_or_beside_it, "minimoe/ops/softmax.py",
     "from minimoe.nn import linear", "from a floor above"),
    (imports_nothing_above_or_beside_it, "minimoe/autodiff/tensor.py",
     "from minimoe import ops, tree", "imports minimoe.ops, from a floor above"),
    (imports_nothing_above_or_beside_it, "minimoe/backend.py",
     "def f():\n    import minimoe.autodiff.tensor", "from a floor above"),
    (imports_nothing_above_or_beside_it, "minimoe/tree.py",
     "from minimoe.backend import is_array", "its neighbour"),
    (imports_nothing_above_or_beside_it, "minimoe/nn/layers.py", "from minimoe import routing",
     "its neighbour"),
    (imports_nothing_above_or_beside_it, "minimoe/routing/topk.py",
     "import minimoe.densities as d", "its neighbour"),
    (imports_nothing_above_or_beside_it, "minimoe/experiments/switch_2021.py",
     "from minimoe.oracle.runs import read_run", "its neighbour"),
    (imports_nothing_above_or_beside_it, PAPER,
     "from importlib import import_module\nimport_module('minimoe.experiments.harness')",
     "from a floor above"),
    (imports_nothing_above_or_beside_it, PAPER,
     "import importlib\nimportlib.import_module(f'minimoe.experiments.{name}')",
     "from a floor above"),
    (imports_nothing_above_or_beside_it, PAPER, "from minimoe import Tensor",
     "from the package itself"),
    (imports_nothing_above_or_beside_it, PAPER, "import minimoe", "from the package itself"),
    (imports_nothing_above_or_beside_it, PAPER, "from . import gshard_2020", "are absolute"),
    (imports_nothing_above_or_beside_it, PAPER, "from ..nn import linear", "are absolute"),
    (imports_nothing_above_or_beside_it, "minimoe/__init__.py", "from minimoe import nn",
     "from a floor above"),
    (imports_only_libraries_of_its_floor, PAPER, "import numpy as np", "imports numpy"),
    (imports_only_libraries_of_its_floor, PAPER, "from numpy import exp", "imports numpy.exp"),
    (imports_only_libraries_of_its_floor, "minimoe/nn/layers.py",
     "def f():\n    from scipy import special", "imports scipy.special"),
    (imports_only_libraries_of_its_floor, "minimoe/experiments/switch_2021.py", "import cupy",
     "imports cupy"),
    (imports_only_libraries_of_its_floor, "minimoe/ops/elementwise.py",
     "import importlib\nimportlib.import_module('cupyx.scipy.special')", "imports cupyx"),
    (imports_only_libraries_of_its_floor, "minimoe/oracle/vectors.py", "import torch",
     "imports torch"),
    (imports_only_libraries_of_its_floor, "minimoe/oracle/adapters.py",
     "import importlib\nimportlib.import_module(name)", "imports ?"),
    (imports_only_libraries_of_its_floor, "minimoe/oracle/check.py", "import pytest",
     "imports pytest"),
    (imports_only_libraries_of_its_floor, "minimoe/backend.py", "import torch.nn as nn",
     "imports torch.nn"),
    (imports_only_libraries_of_its_floor, "minimoe/optim.py", "import tqdm", "imports tqdm"),
    (papers_import_no_later_paper, "minimoe/papers/gshard_2020.py",
     "from minimoe.papers.switch_2021 import router_probs", "switch_2021, a later paper"),
    (papers_import_no_later_paper, "minimoe/papers/gshard_2020.py",
     "from minimoe.papers import switch_2021", "switch_2021, a later paper"),
    (papers_are_named_and_dated, "minimoe/papers/switch.py", "", "name_year"),
    (papers_are_named_and_dated, "minimoe/papers/Switch_21.py", "", "name_year"),
    (papers_name_no_array_library, PAPER, "def f(x):\n    return np.exp(x)", "line 2 names np"),
    (papers_name_no_array_library, PAPER, "xp = namespace(x)", "line 1 names xp"),
    (papers_cite_with_a_version, PAPER, '"""Switch.\n\narXiv:2101.03961, Section 2."""', "cites"),
    (papers_cite_with_a_version, PAPER, '"""JMLR 23(120):1-39, 2022."""', "cites"),
    (papers_cite_with_a_version, PAPER, "x = 'arXiv:2101.03961v3'", "cites"),
    (papers_cite_with_a_version, "minimoe/papers/local_experts_1991.py",
     '"""Neural Computation, 1991."""', "cites"),
    (papers_have_an_oracle, PAPER, "def route(x):\n    def oracle(case): pass", "no function"),
    (arxiv_is_never_cited_without_a_version, "minimoe/ops/activations.py",
     "# arXiv:1606.08415, Section 2", "without its version"),
    (draws_come_from_a_generator, PAPER, "def f():\n    return np.random.randn(3)",
     "line 2 draws by randn"),
    (draws_come_from_a_generator, "tests/test_nn.py", "numpy.random.seed(0)", "draws by seed"),
    (draws_come_from_a_generator, "tests/test_nn.py", "u = cupy.random.random(3)",
     "draws by random"),
    (draws_come_from_a_generator, "tests/test_nn.py", "from numpy.random import rand",
     "draws by numpy.random.rand"),
    (draws_come_from_a_generator, "minimoe/data/toys.py", "import random", "draws by random"),
    (draws_come_from_a_generator, "minimoe/experiments/switch_2021.py",
     "rng = np.random.default_rng()", "without a seed"),
    (draws_come_from_a_generator, "minimoe/data/toys.py", "rng = np.random.default_rng(0)",
     "rng is passed in"),
    (recorders_import_no_minimoe, "reference_runs/papers/switch_2021.py",
     "def f():\n    from minimoe.papers import switch_2021", "which it will judge"),
    (recorders_import_no_minimoe, "reference_runs/recorder.py", "import minimoe", "will judge"),
    (recorders_import_no_minimoe, "reference_runs/papers/switch_2021.py",
     "from minimoe import oracle", "which it will judge"),
    (recorders_import_no_minimoe, "reference_runs/third_party/fairscale.py",
     "from minimoe.papers import gshard_2020", "which it will judge"),
    (no_test_imports_torch_or_cupy, "tests/test_nn.py", "def f():\n    import torch",
     "imports torch"),
    (no_test_imports_torch_or_cupy, "tests/test_nn.py", "from cupy import array",
     "imports cupy.array"),
    (nothing_is_unpickled, "minimoe/oracle/runs.py", "np.load(path)", "allow_pickle=False"),
    (nothing_is_unpickled, "tests/test_nn.py", "with numpy.load(p, allow_pickle=True) as run: pass",
     "allow_pickle=False"),
    (nothing_is_unpickled, "tests/test_nn.py", "from numpy import load\nload(p)", "line 2 loads"),
    (nothing_is_unpickled, "tests/test_nn.py", "np.load(p, allow_pickle=allowed)",
     "allow_pickle=False"),
    (nothing_is_unpickled, "minimoe/oracle/runs.py", "np.lib.format.read_array(file)",
     "allow_pickle=False"),
    (nothing_is_unpickled, "tests/test_nn.py", "np.save(p, x, allow_pickle=True)",
     "allow_pickle=False"),
    (nothing_is_unpickled, "reference_runs/recorder.py", "torch.load(path)", "calls torch.load"),
    (nothing_is_unpickled, "minimoe/oracle/runs.py", "def f():\n    import pickle",
     "imports pickle"),
    (init_files_are_empty, "minimoe/papers/__init__.py", "from minimoe.papers import switch_2021",
     "is not empty"),
    (init_files_are_empty, "reference_runs/__init__.py", '"""Recorders."""', "is not empty"),
]


@pytest.mark.parametrize("rule, path, source, fault", PLANTED)
def test_a_rule_catches_what_breaks_it(rule, path, source, fault):
    found = list(rule(path, source))
    assert len(found) == 1 and fault in found[0]


def test_every_rule_has_been_broken():
    assert {rule for rule, *_ in PLANTED} == set(RULES)


@pytest.mark.parametrize("path, source", [
    ("minimoe/__init__.py", "from minimoe import ops\nfrom minimoe.autodiff.tensor import grad"),
    ("minimoe/ops/__init__.py", "from minimoe.ops.softmax import softmax"),
    ("minimoe/ops/softmax.py", "from minimoe.autodiff.tensor import op\nimport numpy\nimport math"),
    ("minimoe/routing/dispatch.py", "from minimoe import backend, ops, tree\n"
                                    "from minimoe.routing.topk import top_k"),
    ("minimoe/backend.py", "import importlib\nimportlib.import_module('cupy')"),
    ("minimoe/experiments/switch_2021.py", "from minimoe.experiments import harness\n"
                                           "rng = np.random.default_rng(settings.seed)"),
    ("minimoe/__main__.py", "import importlib\nimportlib.import_module(f'minimoe.papers.{name}')"),
    (PAPER, '"""Switch.\n\nJMLR 23(120):1-39, 2022.\narXiv:2101.03961v3."""\n'
            "from minimoe import ops\nfrom minimoe.papers.gshard_2020 import x\n"
            "def init(rng: 'np.random.Generator'): pass\ndef oracle(case): pass"),
    ("minimoe/papers/local_experts_1991.py",
     '"""Local experts.\n\nNeural Computation\n3(1):79-87, 1991."""\ndef oracle(case): pass'),
    ("reference_runs/papers/switch_2021.py", "import torch\nfrom reference_runs.recorder import x"),
    ("reference_runs/third_party/holding.py", "from minimoe import oracle"),
    ("tests/test_nn.py", "def f(rng: np.random.Generator):\n"
                         "    return np.load(p, allow_pickle=False), load(p)"),
])
def test_what_keeps_the_rules_passes(path, source):
    assert [fault for rule in RULES for fault in rule(path, source)] == []


def test_a_paper_that_is_not_whole(tmp_path):
    for place in ("minimoe/papers", "minimoe/experiments", "reference_runs/papers",
                  "reference_runs/recorded/switch_2021", "tests/papers"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "minimoe" / "papers" / "__init__.py").touch()
    (tmp_path / PAPER).touch()
    assert list(lacking(tmp_path)) == [f"switch_2021 has no {what}" for what in (
        "experiment", "recorder", "recorded run", "test file")]
    for made in ("minimoe/experiments/switch_2021.py", "reference_runs/papers/switch_2021.py",
                 "reference_runs/recorded/switch_2021/roomy.npz",
                 "tests/papers/test_switch_2021.py"):
        (tmp_path / made).touch()
    assert list(lacking(tmp_path)) == []
