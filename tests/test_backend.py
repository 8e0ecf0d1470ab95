import sys

import numpy as np
import pytest
import scipy.special

from minimoe import backend
from minimoe.autodiff.tensor import Tensor
from minimoe.backend import (
    BackendError, check_index, identity, is_array, mover, namespace, scatter_add, solve, special,
    to_cupy, to_numpy)
from tests.conftest import libraries
from tests.strict_cupy import host_syncs


class Foreign:
    """An array of a third library: NumPy could read it, and must not be let to."""
    dtype, shape = np.dtype(float), ()

    def __array__(self, dtype=None, copy=None):
        return np.ones(3)


# Which library

def test_the_library_is_that_of_the_arrays(cupy):
    x, y = np.ones(2), cupy.ones(2)
    for numbers in ((), (1, 2.0, True, 1j), (np.float32(1), np.int64(2))):
        assert namespace(*numbers) is np
        assert namespace(x, *numbers) is np
        assert namespace(*numbers, y, y) is cupy


def test_numpy_serves_where_cupy_was_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert namespace(np.ones(2), np.int8(1), 1) is np
    assert is_array(np.ones(2)) and not is_array(1.0)
    with pytest.raises(TypeError, match="got builtins.list"):
        namespace([1.0])


def test_a_mixture_is_refused(cupy):
    for arrays in ((np.ones(2), cupy.ones(2)), (cupy.ones(2), 1.0, np.ones(()))):
        with pytest.raises(TypeError, match="NumPy and CuPy arrays in one call; move them with"):
            namespace(*arrays)


@pytest.mark.parametrize("thing, kind", [
    ([1.0], "builtins.list"), (None, "builtins.NoneType"), ("1", "builtins.str"),
    (Foreign(), "tests.test_backend.Foreign"),
    (Tensor(np.ones(2)), "minimoe.autodiff.tensor.Tensor")])
def test_what_is_no_array_is_refused(cupy, thing, kind):
    for arrays in ((thing,), (np.ones(2), thing), (cupy.ones(2), thing)):
        with pytest.raises(TypeError, match=f"needs NumPy or CuPy arrays, or numbers; got {kind}"):
            namespace(*arrays)
    with pytest.raises(TypeError, match=f"got {kind}"):
        to_numpy(thing)
    assert not is_array(thing)


def test_arrays_and_array_scalars_are_arrays(cupy):
    assert is_array(np.ones(2)) and is_array(np.float64(1)) and is_array(cupy.ones(()))
    assert not is_array(1.0)


# Crossings

def test_arrays_cross_both_ways_unchanged(cupy):
    x = np.array([[1.5, -0.0, np.inf], [np.nan, 5e-324, 2]])
    there = to_cupy(x)
    assert isinstance(there, cupy.ndarray) and to_cupy(there).dtype == x.dtype
    assert to_numpy(there).tobytes() == x.tobytes()
    assert to_numpy(x) is x
    assert to_numpy(2.0).shape == ()


def test_a_backend_is_chosen_by_name(cupy):
    assert mover("numpy") is to_numpy and mover("cupy") is to_cupy
    with pytest.raises(ValueError, match="mover: a backend is numpy or cupy; got torch"):
        mover("torch")


def test_cupy_without_a_gpu_is_no_backend(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="finds no usable GPU"):
        mover("cupy")


def test_cupy_that_is_not_installed_is_no_backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"not installed; install minimoe\[cuda12\]"):
        mover("cupy")


def test_a_gpu_joins_the_libraries_under_test(cupy, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert libraries() == ["numpy", "strict_cupy", "cupy"]
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    assert libraries() == ["numpy", "strict_cupy"]


def test_special_functions_come_from_the_library_of_the_arrays(move):
    x = move(np.array([-1.0, 0.5]))
    np.testing.assert_array_equal(
        to_numpy(special(x).ndtr(x)), scipy.special.ndtr(np.array([-1.0, 0.5])))


# Indices

@pytest.mark.parametrize("shape, key", [
    ((3,), np.array([0, 2, -3])), ((3, 2), (slice(None), np.array([-2, 1]))),
    ((3, 2, 4), (..., np.array([3]))), ((3, 2, 4), (np.array([2]), ..., np.array([-4]))),
    ((3, 2), (None, np.array([2]), None, np.array([1]))), ((3, 2), (0, np.array([1]))),
    ((3, 2, 4), (np.ones((3, 2), bool), np.array([3] * 6))), ((0,), np.zeros(0, int)),
    ((3,), np.array(2)), ((3,), slice(1, 9)), ((3,), np.ones(3, bool)), ((2,), 1)])
def test_indices_within_bounds_pass(move, shape, key):
    x = move(np.zeros(shape))
    np.zeros(shape)[key]       # NumPy agrees
    check_index(x, move(key))


@pytest.mark.parametrize("shape, key, axis", [
    ((3,), np.array([0, 3]), 0), ((3,), np.array([-4]), 0), ((3, 2), np.array([3]), 0),
    ((4, 2), (..., np.array([2])), 1),
    ((2, 4), (None, np.array([2])), 0), ((0,), np.array([0]), 0),
    ((3, 4, 2), (np.ones((3, 4), bool), np.array([2] * 12)), 2),
    ((2, 4, 3), (np.array([0]), ..., np.array([3])), 2)])
def test_indices_past_an_end_are_refused_on_both_libraries(move, shape, key, axis):
    x, there = move(np.zeros(shape)), move(key)
    with pytest.raises(IndexError, match=f"axis {axis}"):
        check_index(x, there)
        x[there]       # NumPy refuses here, CuPy was refused above
    with pytest.raises(IndexError):
        scatter_add(x, there, 1.0)


def test_bounds_cost_one_wait_per_integer_array(cupy):
    x, i = cupy.zeros((3, 2)), cupy.asarray([1, 1])
    with host_syncs() as syncs:
        check_index(x, (i, i))
        check_index(x, (slice(None), 1))
    assert syncs == ["bool", "bool"]
    with host_syncs() as syncs:
        check_index(np.zeros(3), np.array([0]))
    assert syncs == []


# Scatter-add

@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, key", [
    ((3,), np.array([0, 2, 2, -1])), ((3, 2), np.array([[0, 2], [2, -1]])),
    ((3, 2), (slice(None), np.array([1, 1, 0]))), ((3, 2), (np.array([0, 0]), np.array([1, 1]))),
    ((3, 2), np.zeros(0, int)), ((0, 2), np.zeros(0, int)), ((3, 0), np.array([1, 1])),
    ((3, 2), np.array([True, False, True])), ((3, 2), np.array([2, 2, 2], "uint8"))])
def test_scatter_add_pays_every_duplicate(move, rng, dtype, shape, key):
    start = rng.integers(-4, 4, shape).astype(dtype)
    values = rng.integers(-4, 4, start[key].shape).astype(dtype)
    expected = start.copy()
    np.add.at(expected, key, values)
    target = move(start.copy())
    assert scatter_add(target, move(key), move(values)) is target
    assert target.dtype == dtype
    np.testing.assert_array_equal(to_numpy(target), expected)


def test_scatter_add_broadcasts_its_values(move):
    target = move(np.zeros((3, 2)))
    scatter_add(target, move(np.array([1, 1])), 2.0)
    scatter_add(target, move(np.array([0, 1])), move(np.array([1.0, 3.0])))
    assert to_numpy(target).tolist() == [[1, 3], [5, 7], [0, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("shape, key", [
    ((4, 3), np.arange(300) % 7 % 4), ((4,), np.arange(300) % 4),
    ((4, 3), (..., np.zeros(50, int))), ((4, 1), np.zeros(129, int))])
def test_scatter_add_gives_the_same_bits_again(move, rng, dtype, shape, key):
    values = rng.standard_normal(np.zeros(shape)[key].shape).astype(dtype)
    first, second = (to_numpy(scatter_add(move(np.zeros(shape, dtype)), move(key), move(values)))
                     for _ in range(2))
    assert first.tobytes() == second.tobytes()
    expected = np.zeros(shape, dtype)
    np.add.at(expected, key, values)
    np.testing.assert_allclose(first, expected, rtol=0, atol=300 * np.finfo(dtype).eps)


def test_a_spoilt_value_spoils_its_own_target_alone(move):
    target = move(np.zeros((4, 2)))
    values = np.array([[1.0, np.nan], [2, 1], [np.inf, 1], [4, 1]])
    scatter_add(target, move(np.array([1, 2, 1, 2])), move(values))
    np.testing.assert_array_equal(to_numpy(target), [[0, 0], [np.inf, np.nan], [6, 2], [0, 0]])


def test_scatter_add_refuses_a_mixture(cupy):
    for target, index, values in ((np.zeros(3), np.array([0]), cupy.ones(1)),
                                  (cupy.zeros((3, 2)), np.array([0]), cupy.ones((1, 2))),
                                  (cupy.zeros(3), cupy.asarray([0]), np.ones(1))):
        with pytest.raises(TypeError, match="NumPy and CuPy arrays in one call"):
            scatter_add(target, index, values)


# Linear algebra

def test_systems_are_solved_in_batches(move, rng):
    a, x = rng.standard_normal((4, 3, 3)), rng.standard_normal((4, 3, 2))
    np.testing.assert_allclose(to_numpy(solve(move(a), move(a @ x))), x, rtol=1e-10)


def test_one_singular_system_in_a_batch_is_an_error(move):
    a = np.stack([np.eye(2), np.ones((2, 2))])
    with pytest.raises(ValueError, match="solve: the systems must be regular"):
        solve(move(a), move(np.ones((2, 2, 1))))


def test_identity_is_in_the_library_and_dtype_of_another_array(move):
    like = move(np.ones(1, "float32"))
    assert type(identity(2, like)) is type(like) and identity(2, like).dtype == "float32"
    assert to_numpy(identity(2, like)).tolist() == [[1, 0], [0, 1]]


def test_every_seam_stands_in_the_table():
    names = [name for name, thing in vars(backend).items()
             if getattr(thing, "__module__", None) == "minimoe.backend" and callable(thing)
             and not name.startswith("_") and name not in ("namespace", "is_array", "BackendError")]
    table = backend.__doc__.partition("\n\n    ")[2].partition("\n\nSorting")[0]
    assert all(name in table for name in names), names
