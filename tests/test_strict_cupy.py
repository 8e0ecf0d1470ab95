"""The strict twin refuses what CuPy refuses and differs where CuPy differs: its negative controls.

One test for each thing that makes code which is right on NumPy wrong, or slow, on CuPy.
"""
import copy

import numpy as np
import pytest

from minimoe.autodiff.tensor import Tensor
from tests.conftest import missing_move
from tests.strict_cupy import host_syncs
from tests.strict_cupy.array import ndarray
from tests.strict_cupy.recorded import RECORD


@pytest.fixture
def x(cupy):
    return cupy.asarray(np.arange(6.0).reshape(2, 3))


# Nothing crosses unasked.

@pytest.mark.parametrize("cross", [
    lambda x: np.asarray(x), lambda x: np.exp(x), lambda x: np.sum(x), lambda x: np.add(x, x),
    lambda x: np.array([x, x]), lambda x: np.add.reduce(x), lambda x: np.multiply(2.0, x),
    lambda x: x + np.ones(3), lambda x: np.ones(3) + x, lambda x: np.ones(3) @ x.T,
    lambda x: x @ np.ones(3), lambda x: x == np.ones(3), lambda x: np.ones(3) < x,
    lambda x: np.array(2.0) * x, lambda x: x * np.array(2.0),
    lambda x: x + [1.0, 2.0, 3.0], lambda x: (1.0, 2.0, 3.0) * x, lambda x: x == None,  # noqa: E711
    lambda x: x + "1", lambda x: x * {}, lambda x: x[[0]], lambda x: x[np.array([0])],
    lambda x: x[np.ones((2, 3), bool)], lambda x: x["0"], lambda x: x[(0, 1), :],
    lambda x: range(x[0, 0]), lambda x: [1, 2][x[0, 0].astype(int)], lambda x: np.zeros(3)[x[0]],
], ids=range(28))
def test_an_implicit_conversion_is_refused(x, cross):
    with pytest.raises(TypeError):
        cross(x)


@pytest.mark.parametrize("call", [
    lambda cupy, x: cupy.exp(np.ones(3)), lambda cupy, x: cupy.exp([1.0]),
    lambda cupy, x: cupy.sum(np.ones(3)), lambda cupy, x: cupy.sum([1.0, 2.0]),
    lambda cupy, x: cupy.concatenate([x, np.ones((1, 3))]), lambda cupy, x: cupy.stack([]),
    lambda cupy, x: cupy.where(x > 1, [1.0], x), lambda cupy, x: cupy.where(x > 1, np.ones(3), x),
    lambda cupy, x: cupy.einsum("ij,j->i", x, [1.0, 2.0, 3.0]),
    lambda cupy, x: cupy.take(x, [0]), lambda cupy, x: cupy.take(x, np.array([0])),
    lambda cupy, x: cupy.maximum(x, (1.0, 2.0, 3.0)), lambda cupy, x: cupy.exp(None),
    lambda cupy, x: cupy.add.at(x, 0, [1.0]), lambda cupy, x: cupy.add.at(x, 0, np.ones(3)),
    lambda cupy, x: cupy.add(x, range(3)),
    lambda cupy, x: cupy.add(x, object()), lambda cupy, x: cupy.add(x, x, out=np.ones((2, 3))),
], ids=range(18))
def test_a_function_takes_neither_lists_nor_numpy_arrays(cupy, x, call):
    with pytest.raises(TypeError):
        call(cupy, x)


@pytest.mark.parametrize("value", [np.ones(3), [1.0, 2.0, 3.0], "1", None, np.array(1.0)])
def test_only_its_own_arrays_and_scalars_are_assigned(x, value):
    with pytest.raises(TypeError):
        x[0] = value


def test_crossings_are_explicit_and_copy(cupy):
    host = np.ones(3)
    x = cupy.asarray(host)
    host[0] = 5
    assert x.tolist() == [1, 1, 1]
    for back in (cupy.asnumpy(x), x.get()):
        back[0] = 7
        assert type(back) is np.ndarray and x.tolist() == [1, 1, 1]
    assert cupy.asnumpy([1, 2]).tolist() == [1, 2]
    assert cupy.array([[1, 2], [x[0].astype(int), 4]]).tolist() == [[1, 2], [1, 4]]
    assert cupy.asarray(2.5).dtype == "float64" and cupy.asarray(x) + 0 is not x


@pytest.mark.parametrize("host", [
    np.zeros(2, object), np.array(["a"]), np.zeros(2, "g"), np.array([], "datetime64[s]")])
def test_unsupported_dtypes_are_refused(cupy, host):
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cupy.asarray(host)


# What is not in CuPy is not here.

@pytest.mark.parametrize("name", [
    "errstate", "einsum_path", "vecdot", "matvec", "insert", "block", "geomspace", "nditer",
    "ndenumerate", "longdouble", "testing_nothing", "_core"])
def test_missing_functions_are_missing(cupy, name):
    assert not hasattr(cupy, name)


@pytest.mark.parametrize("name", ["multi_dot", "vector_norm", "svdvals", "diagonal"])
def test_missing_linear_algebra_is_missing(cupy, name):
    assert not hasattr(cupy.linalg, name)


def test_missing_methods_are_missing(x):
    for name in ("itemset", "newbyteorder", "setflags", "resize", "ctypes", "__index__",
                 "__array_interface__", "__contains__"):
        assert not hasattr(x, name), name


def test_the_twin_has_no_operator_that_cupy_lacks():
    beyond = set(vars(ndarray)) - set(RECORD["cupy.ndarray"])
    assert beyond <= {"__slots__", "_host", "__getattr__", "__firstlineno__",
                      "__static_attributes__"}


@pytest.mark.parametrize("call", [
    lambda cupy, x: cupy.argsort(x, stable=True), lambda cupy, x: cupy.sum(x, where=x > 1),
    lambda cupy, x: cupy.exp(x, where=x > 1), lambda cupy, x: cupy.max(x, initial=0),
    lambda cupy, x: cupy.mean(x, where=x > 1), lambda cupy, x: cupy.clip(x, min=0, max=1),
    lambda cupy, x: cupy.take(x, x, mode="clip"), lambda cupy, x: x.sum(initial=0),
    lambda cupy, x: x.copy(deep=True), lambda cupy, x: x.item(0), lambda cupy, x: x.take(),
    lambda cupy, x: cupy.einsum("ij->i", x, casting="no"), lambda cupy, x: cupy.exp(),
    lambda cupy, x: cupy.linalg.cholesky(x, upper=True)], ids=range(14))
def test_missing_parameters_are_refused(cupy, x, call):
    with pytest.raises(TypeError):
        call(cupy, x)


def test_sorting_is_stable_and_knows_no_other_kind(cupy):
    ties = cupy.asarray(np.tile([1, 0], 50))
    first_of_each = np.concatenate([np.arange(1, 100, 2), np.arange(0, 100, 2)])
    assert ties.argsort().tolist() == first_of_each.tolist()
    assert cupy.argsort(ties, kind="stable").tolist() == first_of_each.tolist()
    for sort in (cupy.argsort, cupy.sort, ndarray.__getattr__(ties, "sort")):
        with pytest.raises((TypeError, ValueError)):
            sort(ties, kind="quicksort")
    ties.sort()
    assert ties.tolist() == [0] * 50 + [1] * 50
    with pytest.raises(NotImplementedError):
        cupy.lexsort(cupy.zeros((2, 2, 2)))


def test_ufunc_methods_are_few(cupy, x):
    assert cupy.add.reduce(x).tolist() == [3, 5, 7]
    assert cupy.multiply.accumulate(x, axis=1).tolist() == [[0, 0, 0], [3, 12, 60]]
    assert cupy.add.reduceat(x, cupy.asarray([0, 2, 1]), axis=1).tolist() == [[1, 2, 3], [7, 5, 9]]
    lost = cupy.add.reduceat(cupy.asarray([1e16, 1.0]), cupy.asarray([0, 1]))
    assert lost.tolist() == [1e16, 0]       # a difference of running sums
    for missing in (lambda: cupy.maximum.reduce(x), lambda: cupy.logaddexp.reduce(x),
                    lambda: cupy.multiply.at(x, 0, 1), lambda: cupy.maximum.accumulate(x),
                    lambda: cupy.multiply.reduceat(x, cupy.asarray([0]))):
        with pytest.raises(NotImplementedError):
            missing()
    assert not hasattr(cupy.add, "resolve_dtypes")


def test_a_ufunc_takes_only_the_dtypes_of_its_loops(cupy, x):
    import cupyx.scipy.special as special
    for missing in (lambda: special.ndtr(x + 1j), lambda: special.erf(1j),
                    lambda: cupy.logaddexp(x, 1j), lambda: cupy.bitwise_and(x, 1)):
        with pytest.raises(TypeError, match="no loop"):
            missing()
    assert float(special.ndtr(0.0)) == 0.5 and special.erf(x).dtype == "float64"


@pytest.mark.parametrize("ufunc, dtype", [
    ("add", "complex128"), ("add", "int16"), ("subtract", "float64"), ("maximum", "float16")])
def test_at_takes_only_the_dtypes_that_have_atomics(cupy, ufunc, dtype):
    with pytest.raises(TypeError, match="does not support"):
        getattr(cupy, ufunc).at(cupy.zeros(3, dtype), cupy.asarray([0]), 1)


def test_draws_are_not_made_on_the_device(cupy):
    with pytest.raises(AttributeError):
        cupy.random.standard_normal(3)


def test_floating_point_state_is_unknown_but_for_linear_algebra(cupy):
    import cupyx
    with pytest.raises(NotImplementedError):
        cupyx.errstate(divide="ignore")


def test_linear_algebra_fails_in_silence_unless_asked(cupy):
    import cupyx
    indefinite, singular = cupy.asarray(-np.eye(2)), cupy.zeros((2, 2))
    b = cupy.ones((2, 1))
    for fail in (lambda: cupy.linalg.cholesky(indefinite), lambda: cupy.linalg.inv(singular),
                 lambda: cupy.linalg.solve(singular, b)):
        assert bool(cupy.isnan(fail()).all())
        with cupyx.errstate(linalg="raise"), pytest.raises(np.linalg.LinAlgError):
            fail()
    assert cupy.linalg.solve(cupy.asarray(np.eye(2)), b).tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="do not broadcast"):
        cupy.linalg.solve(cupy.ones((3, 2, 2)), b)


def test_what_it_does_not_imitate_it_says(cupy, x):
    for missing in (lambda: x.flat, lambda: x.data, lambda: cupy.put, lambda: cupy.fuse):
        with pytest.raises(NotImplementedError, match="does not imitate"):
            missing()


# What CuPy does otherwise.

def test_scalars_are_arrays_without_axes(cupy, x):
    for scalar in (x.sum(), x[0, 1], x.max(), cupy.mean(x), cupy.array_equal(x, x),
                   cupy.allclose(x, x), cupy.exp(1.0), x.argmax(), cupy.isfinite(x).all()):
        assert isinstance(scalar, ndarray) and scalar.shape == ()
    assert not isinstance(cupy.result_type(x), ndarray)


def test_an_index_past_the_end_wraps(cupy, x):
    past = cupy.asarray([2, -4])
    assert x[:, cupy.asarray([3, -4])].tolist() == [[0, 2], [3, 5]]
    assert x[past].tolist() == x[cupy.asarray([0, 0])].tolist()
    assert x[cupy.asarray(5)].tolist() == [3, 4, 5]
    assert x[None, ..., cupy.asarray([3])].tolist() == [[[0], [3]]]
    assert cupy.take(x, past, axis=0).tolist() == x[past].tolist() == x.take(past, 0).tolist()
    assert cupy.take_along_axis(x, cupy.asarray([[3], [4]]), axis=1).tolist() == [[0], [4]]
    cupy.put_along_axis(x, cupy.asarray([[3], [4]]), -1.0, axis=1)
    assert x.tolist() == [[-1, 1, 2], [3, -1, 5]]
    x[past] = 7.0
    cupy.add.at(x, (cupy.asarray([2, 2]), 0), 1.0)
    assert x.tolist() == [[9, 7, 7], [3, -1, 5]]
    with pytest.raises(IndexError):
        x[2]
    with pytest.raises(IndexError, match="integer or boolean"):
        x[x]
    with pytest.raises(IndexError):
        x[cupy.asarray([0]), cupy.asarray([0]), cupy.asarray([0])]


def test_of_duplicate_writes_any_may_win(cupy):
    winners = set()
    for _ in range(20):
        x = cupy.zeros(2)
        x[cupy.asarray([1, 1, 1])] = cupy.asarray([1.0, 2.0, 3.0])
        winners.add(float(x[1]))
    assert winners == {1, 2, 3}


def test_atomic_adds_are_complete_but_in_no_order(cupy):
    values = np.array([1e16, 1.0, -1e16, 1.0])
    sums = set()
    for _ in range(40):
        x = cupy.zeros((2, 1))
        cupy.add.at(x, cupy.zeros(4, int), cupy.asarray(values)[:, None])
        sums.add(float(x[0, 0]))
    assert len(sums) > 1
    counts = cupy.zeros(3, int)
    cupy.add.at(counts, cupy.asarray([0, 2, 2, 2]), 1)
    assert counts.tolist() == [1, 0, 3]


def test_untouched_memory_is_not_zero(cupy, x):
    assert bool(cupy.isnan(cupy.empty(3)).all() & cupy.isnan(cupy.empty_like(x)).all())
    assert cupy.empty(3, int).shape == ndarray(3).shape == (3,)


@pytest.mark.parametrize("wait, causes", [
    (lambda cupy, x: float(x.sum()), ["float"]), (lambda cupy, x: int(x.sum()), ["int"]),
    (lambda cupy, x: complex(x.sum()), ["complex"]), (lambda cupy, x: bool(x.sum()), ["bool"]),
    (lambda cupy, x: x.sum().item(), ["item"]), (lambda cupy, x: x.tolist(), ["tolist"]),
    (lambda cupy, x: repr(x), ["repr"]), (lambda cupy, x: f"{x.sum():.1f}", ["format"]),
    (lambda cupy, x: x.get(), ["get"]), (lambda cupy, x: cupy.asnumpy(x), ["asnumpy"]),
    (lambda cupy, x: x[x > 1], ["boolean mask"]), (lambda cupy, x: x.nonzero(), ["nonzero"]),
    (lambda cupy, x: x.__setitem__(x > 1, 0.0), ["boolean mask"]),
    (lambda cupy, x: cupy.where(x > 1), ["where"]), (lambda cupy, x: cupy.unique(x), ["unique"]),
    (lambda cupy, x: cupy.repeat(x, cupy.asarray([1, 2]), axis=0), ["repeat"]),
    (lambda cupy, x: 2.0 in x[0], ["bool", "bool", "bool"]),
    (lambda cupy, x: cupy.where(x > 1, x, 0).sum() + x[0, 1] * x[:, None].mean(), []),
    (lambda cupy, x: (len(x), x.shape, x.dtype, x.repeat(2), list(x)), [])], ids=range(19))
def test_waits_for_the_device_are_counted(cupy, x, wait, causes):
    with host_syncs() as counted:
        wait(cupy, x)
    assert counted == causes


# What both do.

def test_operators_are_numpys(cupy, rng):
    a, b = rng.standard_normal((3, 3)), rng.integers(1, 5, (3, 3))
    x, n = cupy.asarray(a), cupy.asarray(b)
    for f in (lambda a, b: a + b - 2 * a / b, lambda a, b: 1 - a, lambda a, b: 2.0 ** a,
              lambda a, b: a @ b, lambda a, b: b // 2 % 3, lambda a, b: -abs(+a),
              lambda a, b: (a > 0) & ~(b < 3) | (a == b) ^ (a != 1), lambda a, b: b << 2 >> 1,
              lambda a, b: (a <= 0) | (b >= 2), lambda a, b: np.float32(2) * a.astype("float32"),
              lambda a, b: np.float64(2) / b, lambda a, b: a.T[::-1, None].real,
              lambda a, b: (a + 1j * b).imag, lambda a, b: a.mean(axis=(0, 1), keepdims=True),
              lambda a, b: a.reshape(-1, 1).swapaxes(0, 1), lambda a, b: a.view("int64"),
              lambda a, b: 7 // b + 7 % b + 2 * b):
        expected, got = f(a, b), f(x, n)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(cupy.asnumpy(got), expected)


def test_views_share_memory_and_copies_do_not(x):
    x[0][1:] = 9.0
    x.T[0] -= 1
    x.reshape(-1)[3] *= 10
    assert x.tolist() == [[-1, 9, 9], [20, 4, 5]]
    for other in (copy.copy(x), copy.deepcopy(x), x.copy(), x[x > -9], x.astype(float)):
        other[...] = 0
    assert x.tolist() == [[-1, 9, 9], [20, 4, 5]]


def test_an_output_array_is_the_result(cupy, x):
    out = cupy.zeros((2, 3))
    assert cupy.exp(x, out=out) is out and bool((out == cupy.exp(x)).all())


def test_operators_are_left_to_whoever_asks_for_them(x):
    for result in (x * Tensor(x), Tensor(x) - x, x @ Tensor(x.T), x ** Tensor(x + 1)):
        assert isinstance(result, Tensor) and isinstance(result.array, ndarray)
    assert isinstance(x < Tensor(x), ndarray)


def test_the_twin_is_gone_after_the_test(request):
    import sys
    from tests.strict_cupy import MODULES
    assert sys.modules.get("cupy") is not MODULES["cupy"]


def test_get_array_module(cupy, x):
    assert cupy.get_array_module(x, 1.0) is cupy and cupy.get_array_module(1.0) is np
    assert cupy.is_available() and cupy.cuda.is_available()


# The rule that algorithm tests run on both libraries.

def test_an_algorithm_test_without_move_is_refused_unless_excused(request):
    here = request.path.relative_to(request.path.parent)
    ops = here.with_name("ops") / "test_x.py"
    assert missing_move(here, ["rng"], []) is None
    assert missing_move(ops, ["rng", "move"], []) is None
    assert missing_move(ops, ["rng"], [("messages only",)]) is None
    assert "takes the fixture move" in missing_move(ops, ["rng"], [])
    assert "needs its reason" in missing_move(ops, ["rng"], [()])
    assert "needs its reason" in missing_move(ops, ["rng"], [(" ",)])
