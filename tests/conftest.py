"""Fixtures that every test may ask for. Warnings and floating-point errors are failures."""
import numpy as np
import pytest

from minimoe import tree
from minimoe.backend import is_array


@pytest.fixture(autouse=True)
def floating_point_errors_are_failures():
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy"])
def move(request):
    """Moves every array of a tree to the library under test: NumPy, then the strict CuPy twin."""
    return lambda tree_: tree.map(lambda x: np.asarray(x) if is_array(x) else x, tree_)
