"""Fixtures and rules of every test. Warnings and floating-point errors are failures.

Algorithm tests take ``move`` and so run twice: on NumPy and on a strict twin of CuPy (and a third
time on CuPy itself, where there is a GPU). A test that cannot is marked, with the reason:

    @pytest.mark.numpy_only("the message is about NumPy's own subclass")
"""
import importlib.util
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from minimoe import tree
from minimoe.backend import BackendError, is_array, mover
from tests import strict_cupy

TESTS = Path(__file__).resolve().parent
ON_BOTH_LIBRARIES = ("autodiff", "ops", "papers", "routing", "test_densities.py", "test_nn.py",
                     "test_optim.py", "nn")

# the same examples for everybody; new ones with ``pytest --hypothesis-profile=explore``
for name, derandomize in [("minimoe", True), ("explore", False)]:
    hypothesis.settings.register_profile(
        name, deadline=None, derandomize=derandomize,
        # ``move`` and ``rng`` may be shared by all examples of one test: neither is changed by them
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
hypothesis.settings.load_profile("minimoe")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "numpy_only(reason): an algorithm test that does not run on the twin of CuPy")


@pytest.fixture(autouse=True)
def floating_point_errors_are_failures():
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture(autouse=True)
def algorithm_tests_run_on_both_libraries(request):
    reasons = [mark.args for mark in request.node.iter_markers("numpy_only")]
    complaint = missing_move(request.node.path.relative_to(TESTS), request.fixturenames, reasons)
    if complaint:
        pytest.fail(complaint, pytrace=False)


def missing_move(path, fixtures, reasons):
    """What is wrong with a test file's test that does not run on both libraries, or None."""
    if path.parts[0] not in ON_BOTH_LIBRARIES or "move" in fixtures:
        return None
    if not reasons:
        return "an algorithm test takes the fixture move, or is marked numpy_only with a reason"
    if not all(len(args) == 1 and args[0].strip() for args in reasons):
        return "numpy_only needs its reason, in words"
    return None


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def libraries():
    """NumPy, the strict twin of CuPy, and CuPy itself where it finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return ["numpy", "strict_cupy"]
    try:
        mover("cupy")
    except BackendError:
        return ["numpy", "strict_cupy"]
    return ["numpy", "strict_cupy", "cupy"]


@pytest.fixture
def cupy(monkeypatch):
    """The strict twin, which whoever asks for cupy is given until the end of the test."""
    return strict_cupy.install(monkeypatch)


@pytest.fixture(params=libraries())
def move(request):
    """Moves every array of a tree to the library under test."""
    if request.param == "strict_cupy":
        request.getfixturevalue("cupy")
    to_library = mover("numpy" if request.param == "numpy" else "cupy")
    return lambda arrays: tree.map(lambda x: to_library(x) if is_array(x) else x, arrays)


@pytest.fixture
def draw(rng, move):
    """Standard normal arrays of the library under test."""
    return lambda *shape: move(rng.standard_normal(shape))
