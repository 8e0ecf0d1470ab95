"""Every case and every invariant that a module's functions are to be held to.

    MINIMOE_TARGET=package.module pytest --pyargs minimoe.conformance

The module names its functions by the kind of run that each implements, as ``minimoe cases`` does,
and perhaps says what they take:

    TARGETS = {"switch_2021/layer": my_switch, "mvae_2018/product": my_product}
    ADAPTER = "torch"       # default numpy
    GRADIENTS = True        # default False
"""
import importlib
import os
import sys

import pytest

from minimoe.oracle import index
from minimoe.oracle.cases import cases
from minimoe.oracle.invariants import BROKEN, HOLDS, invariants
from minimoe.oracle.kinds import find_kind
from minimoe.pytest_plugin import parametrize


class Target:
    """A user's module, and what it says of itself."""

    def __init__(self):
        name = os.environ.get("MINIMOE_TARGET")
        if not name:
            _refuse("set MINIMOE_TARGET to the module that is to be held to the papers")
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            _refuse(f"MINIMOE_TARGET={name}: {error}")
        finally:
            sys.path.remove(os.getcwd())
        self.functions = getattr(module, "TARGETS", None)
        if not isinstance(self.functions, dict) or not self.functions:
            _refuse(f"{name} needs TARGETS, a dict of functions by kind of run")
        self.adapter = getattr(module, "ADAPTER", "numpy")
        self.gradients = getattr(module, "GRADIENTS", False)

    def cases(self, kind):
        """The cases of a kind of run."""
        paper, _, inner = kind.partition("/")
        try:
            find_kind(index.find(paper), inner)
            return [case for case in cases(paper) if case.kind == inner]
        except LookupError as error:
            _refuse(f"TARGETS: {error}")


def _refuse(said):
    pytest.fail(said, pytrace=False)


def pytest_generate_tests(metafunc):
    target = Target()
    by_kind = {kind: target.cases(kind) for kind in target.functions}
    if "moe_case" in metafunc.fixturenames:
        parametrize(metafunc, [case for found in by_kind.values() for case in found])
    else:
        tokens = {kind: next((case for case in found if "drops" not in case.tags), None)
                  for kind, found in by_kind.items()}
        metafunc.parametrize("kind, case", [
            pytest.param(kind, case, id=kind) for kind, case in tokens.items()
            if case and "in.x" in find_kind(case.paper, case.kind).run])
        metafunc.parametrize("invariant", HOLDS)


@pytest.fixture(scope="module")
def target():
    return Target()


@pytest.fixture(scope="module")
def found(target):
    """Invariants by kind of run, each asked once."""
    known = {}

    def ask(kind, case, dtype):
        if kind not in known:
            known[kind] = {invariant.name: invariant for invariant in invariants(
                target.functions[kind], case, target.adapter, dtype)}
        return known[kind]
    return ask


def test_case(moe_case, target):
    function = next(function for kind, function in target.functions.items()
                    if moe_case.case in target.cases(kind))
    moe_case.check(function, target.adapter, target.gradients)


def test_invariant(kind, case, invariant, found, pytestconfig):
    outcome = found(kind, case, pytestconfig.getoption("--minimoe-dtype"))[invariant]
    if case.paper not in outcome.papers and outcome.papers != ("every paper",):
        pytest.skip(f"not asked of {case.paper}")
    if outcome.status == BROKEN:
        pytest.fail(f"{outcome.says}: {outcome.detail}", pytrace=False)
    if outcome.status != "holds":
        pytest.skip(outcome.detail)
