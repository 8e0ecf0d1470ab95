import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy

MASK = np.array([[True, False, True], [False, False, True], [False] * 3, [True] * 3])
KEYS = [
    1, -1, np.int64(2), slice(None, None, -1), slice(3, 0, -2), ..., None, (..., 0), (0, ..., 1),
    (None, 2, None), (slice(1, 3), None, -1), (), (slice(0, 0),),
    np.array([2, 0, 2, 2]), np.array([[1], [-4]]), np.array(1), np.zeros(0, int),
    (np.array([0, 0, 3]), np.array([2, 2, -3])), (np.array([[0], [3]]), np.array([1, 1])),
    (slice(None), np.array([1, 1])), (..., np.array([0, 0, 1])), (None, np.array([3, 3])),
    (np.array([1, 1]), slice(1, 3)), (2, np.array([0, 0])),
    MASK, np.zeros((4, 3), bool), MASK[:, 0], (MASK[:, 0], 1), (slice(None), MASK[0]),
    (MASK, np.array([0, 1, 1, 0, 1, 0])), (MASK[:, 0], np.array([2, 2]))]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_getitem_reads_as_numpy_does_and_pays_every_reader_back(move, rng, key):
    x = rng.standard_normal((4, 3, 2))
    moved = tree.map(move, key)
    assert (to_numpy(ops.getitem(move(x), key=moved)) == x[key]).all()
    check_vjp(lambda x: ops.getitem(x, key=moved), move(x), rng=rng)


@pytest.mark.parametrize("key", [[0, 1], (slice(None), [0])])
def test_a_list_is_not_an_index(move, key):
    with pytest.raises(TypeError, match="getitem: a list is not an index"):
        ops.getitem(move(np.ones((2, 3))), key=key)


@pytest.mark.parametrize("shape", [6, -1, (3, 2), [3, 2], [1, -1]], ids=str)
def test_tensors_take_a_shape_and_an_order_of_axes_as_arrays_do(move, shape):
    x = np.arange(6.0).reshape(2, 3)
    assert Tensor(move(x)).reshape(shape).shape == x.reshape(shape).shape
    assert (to_numpy(Tensor(move(x)).transpose([1, 0]).array) == x.T).all()


@pytest.mark.parametrize("f", [
    lambda x, i: ops.take(x, i), lambda x, i: ops.take(x, i, axis=1),
    lambda x, i: ops.getitem(x, key=i), lambda x, i: ops.getitem(x, key=(..., i)),
    lambda x, i: ops.take_along_axis(x, i[None], axis=-1),
    lambda x, i: ops.scatter_add(x, i, x[:1]), lambda x, i: ops.scatter_add(x[0], i, x[0, :1])])
@pytest.mark.parametrize("past", [3, -4])
def test_an_index_past_an_end_is_an_error_on_either_library(move, f, past):
    with pytest.raises(IndexError, match=r"size 3|\[-3, 3\)"):
        f(move(np.ones((3, 3))), move(np.array([0, past, 1])))


@pytest.mark.parametrize("f", [ops.take, ops.take_along_axis])
@pytest.mark.parametrize("index, kind", [(np.array([True, False]), "bool"), (1, "int"),
                                         (np.array([0.0]), "float64")])
def test_an_index_must_be_an_integer_array(move, f, index, kind):
    with pytest.raises(TypeError, match=f"{f.__name__}: the index must be .*; got {kind}"):
        f(move(np.ones((2, 2))), move(index))


@st.composite
def places(draw):
    """A small number of rows, and indices among them: duplicates are likely."""
    N = draw(st.integers(1, 4))
    shape = draw(st.sampled_from([(5,), (2, 3), (0,), (1,), ()]))
    index = draw(st.lists(st.integers(-N, N - 1), min_size=int(np.prod(shape)),
                          max_size=int(np.prod(shape))))
    row = draw(st.sampled_from([(), (3,), (2, 2), (0,)]))
    return N, np.array(index, draw(st.sampled_from(["int64", "int32"]))).reshape(shape), row


@given(places=places())
def test_scatter_add_is_a_loop(move, rng, places):
    N, index, row = places
    target = np.array(rng.standard_normal((N, *row)))
    values = rng.standard_normal(index.shape + row)
    expected = target.copy()
    for place, value in zip(index.ravel(), np.reshape(values, (index.size, *row))):
        expected[place] += value
    before = target.copy()
    moved = move(target)
    y = ops.scatter_add(moved, move(index), move(np.array(values)))
    assert to_numpy(y) == pytest.approx(expected, rel=1e-13, abs=1e-13)
    assert (to_numpy(moved) == before).all()


@given(places=places(), axis=st.integers(-2, 1))
def test_take_and_scatter_add_are_adjoint(move, rng, places, axis):
    N, index, _ = places
    x = rng.standard_normal((2, N) if axis % 2 else (N, 2))
    taken = to_numpy(ops.take(move(x), move(index), axis=axis))
    assert (taken == np.take(x, index, axis=axis)).all()
    check_vjp(lambda x: ops.take(x, move(index), axis=axis), move(x), rng=rng)


def test_scatter_add_takes_the_wider_dtype(move):
    narrow, wide = move((np.zeros((3, 2), "float32"), np.ones((2, 2))))
    y = ops.scatter_add(narrow, move(np.array([1, 1])), wide)
    assert y.dtype == "float64" and to_numpy(y).tolist() == [[0, 0], [2, 2], [0, 0]]


def test_scatter_add_gives_each_value_the_cotangent_of_its_place(move):
    target, values = Tensor(move(np.zeros(3))), Tensor(move(np.array([1.0, 2.0, 4.0])))
    y = ops.scatter_add(target, move(np.array([2, 0, 2])), values)
    assert to_numpy(y.array).tolist() == [2, 0, 5]
    to_target, to_values = grad((y * move(np.array([1.0, 10.0, 100.0]))).sum(), (target, values))
    assert to_numpy(to_target).tolist() == [1, 10, 100]
    assert to_numpy(to_values).tolist() == [100, 1, 100]


@pytest.mark.parametrize("shape, axis", [((4, 1), 1), ((1, 6), 1), ((2, 3), 0), ((4, 7), -1)])
def test_take_along_axis_pays_duplicates_back_and_broadcasts(move, rng, shape, axis):
    x, index = rng.standard_normal((4, 3)), rng.integers(-3, 3, shape)
    taken = to_numpy(ops.take_along_axis(move(x), move(index), axis=axis))
    assert (taken == np.take_along_axis(x, index, axis=axis)).all()
    check_vjp(lambda x: ops.take_along_axis(x, move(index), axis=axis), move(x), rng=rng)


@pytest.mark.parametrize("sizes", [[1, 1], [4, -1], [2, 2, 2]])
def test_pieces_must_add_up(move, sizes):
    with pytest.raises(ValueError, match=r"split: sizes must add up to 3; got \["):
        ops.split(move(np.ones((2, 3))), sizes)


def test_every_axis_is_padded(move):
    with pytest.raises(ValueError, match="pad: needs a pair of widths for each of 2 axes; got"):
        ops.pad(move(np.ones((2, 3))), widths=((1, 1),))
