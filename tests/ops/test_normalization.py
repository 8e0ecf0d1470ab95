import numpy as np
import pytest

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy


def test_layer_norm_by_hand(move):
    # mean 3, variance (4 + 0 + 4) / 3; with epsilon 4/3 the root is 2
    y = ops.layer_norm(move(np.array([[1.0, 3.0, 5.0]])), move(np.array([1.0, 1.0, 2.0])),
                       move(np.array([0.0, 10.0, 0.0])), epsilon=4 / 3)
    assert to_numpy(y) == pytest.approx(np.array([[-1.0, 10.0, 2.0]]))


def test_rms_norm_by_hand(move):
    # mean square (9 + 16) / 2; with epsilon 3.5 the root is 4
    y = ops.rms_norm(move(np.array([[3.0, 4.0]])), move(np.array([1.0, 2.0])), epsilon=3.5)
    assert to_numpy(y) == pytest.approx(np.array([[0.75, 2.0]]))


def test_batch_norm_by_hand(move):
    # channel 0: mean 3, variance 8/3, with epsilon 4/3 a root of 2; channel 1 is constant
    x = move(np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]]))
    y = ops.batch_norm(x, move(np.array([2.0, 3.0])), move(np.array([1.0, 7.0])), epsilon=4 / 3)
    assert to_numpy(y) == pytest.approx(np.array([[-1.0, 7.0], [1.0, 7.0], [3.0, 7.0]]))


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3), (0, 3), (3,), (4, 0)])
def test_batch_norm_of_one_entry_is_refused(move, shape):
    with pytest.raises(ValueError, match="at least two entries"):
        ops.batch_norm(move(np.ones(shape)), *move((np.ones(shape[-1]), np.ones(shape[-1]))),
                       epsilon=1e-5)


def test_a_constant_row_becomes_the_shift_and_has_a_gradient(move):
    x = Tensor(move(np.full((2, 4), 7.0)))
    y = ops.layer_norm(x, move(np.ones(4)), move(np.arange(4.0)), epsilon=1e-5)
    assert (to_numpy(y.array) == np.arange(4.0)).all()
    g = np.array([[1.0, -1, 0, 0], [1, 1, 1, 1]])      # what is common to a row passes no gradient
    expected = g / np.sqrt(1e-5) * np.array([[1], [0]])
    assert to_numpy(pullback(y, move(g), x)) == pytest.approx(expected)
