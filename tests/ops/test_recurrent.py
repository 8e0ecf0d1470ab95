import numpy as np
import pytest

from minimoe import ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy
from tests.ops.primitives import leaves_inputs_alone_in_float32

SHAPES = [(5, 3, 4), (1, 1, 1), (7, 2, 1), (2, 1, 6)]      # S, B, H


def draws(rng, S, B, H, move):
    return [move(rng.standard_normal(shape))
            for shape in [(S, B, 4 * H), (B, H), (B, H), (H, 4 * H)]]


@pytest.mark.parametrize("S, B, H", SHAPES)
def test_recurrence_is_what_it_is_made_of(S, B, H, rng, move):
    tensors = [Tensor(a) for a in draws(rng, S, B, H, move)]
    fused = ops.lstm_recurrence(*tensors)
    composed = ops.lstm_recurrence_composed(*tensors)
    assert fused.shape == (S + 1, B, H)
    g = move(rng.standard_normal(fused.shape))
    for a, b in zip([fused.array, *pullback(fused, g, tensors)],
                    [composed.array, *pullback(composed, g, tensors)]):
        assert a.shape == b.shape
        assert float(abs(a - b).max()) <= 1e-12 * float(abs(b).max())


@pytest.mark.parametrize("S, B, H", SHAPES)
def test_gradient(S, B, H, rng, move):
    arrays = draws(rng, S, B, H, move)
    check_vjp(ops.lstm_recurrence, *arrays, rng=rng)
    check_vjp(ops.lstm_recurrence_composed, *arrays, rng=rng)


def test_one_start_for_every_sequence(rng, move):
    z, _, _, w_hidden = draws(rng, 3, 2, 4, move)
    start, number = move((rng.standard_normal(4), np.array(0.3)))
    check_vjp(ops.lstm_recurrence, z, start, number, w_hidden, rng=rng)


def test_by_hand(move):
    # no recurrent weights; log 3 through a sigmoid is 3/4, atanh(1/2) through tanh 1/2
    gates = [np.log(3), np.log(3), np.arctanh(0.5), np.log(3)]
    z, w_hidden = move((np.array([[gates], [gates]]), np.zeros((1, 4))))
    # c_1 = 3/4 2 + 3/4 1/2 = 15/8, c_2 = 3/4 15/8 + 3/8 = 57/32, h = 3/4 tanh(c)
    expected = [0.75 * np.tanh(15 / 8), 0.75 * np.tanh(57 / 32), 57 / 32]
    states = ops.lstm_recurrence(z, 0.0, 2.0, w_hidden)
    assert to_numpy(states).ravel().tolist() == pytest.approx(expected, rel=1e-14)


def test_saturated_gates_are_finite(move):
    z, w_hidden = move((np.full((3, 1, 4), 1e4) * [1, -1, 1, -1], np.zeros((1, 4))))
    z = Tensor(z)
    states = ops.lstm_recurrence(z, 0.0, 0.0, w_hidden)
    assert to_numpy(states.array).ravel().tolist() == [0, 0, 0, 1]
    flow = pullback(states, move(np.ones((4, 1, 1))), z)
    assert (to_numpy(flow) == 0).all()


def test_inputs_are_left_alone_and_float32_stays(rng, move):
    arrays = tree.map(lambda a: a.astype(np.float32), draws(rng, 4, 2, 3, move))
    leaves_inputs_alone_in_float32(ops.lstm_recurrence, arrays, rng, move)


@pytest.mark.parametrize("z, w_hidden", [((3, 2, 4), (2, 8)), ((3, 2, 1), (2, 8)),
                                         ((3, 8), (2, 8)), ((3, 2, 8), (2, 4))])
def test_shapes_that_do_not_fit_are_refused(z, w_hidden, move):
    with pytest.raises(ValueError, match="lstm_recurrence: needs z"):
        ops.lstm_recurrence(move(np.ones(z)), 0.0, 0.0, move(np.ones(w_hidden)))
