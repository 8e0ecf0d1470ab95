import numpy as np
import pytest

from minimoe import ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy
from tests.ops.primitives import leaves_inputs_alone_in_float32

SHAPES = [((4, 3), (5, 3), (5, 2), (4, 5)),
          ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 5), (3, 4, 6)),
          ((1, 1), (1, 1), (1, 1), (1, 1))]


def draws(rng, shapes, move):
    return [move(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("shapes", SHAPES)
def test_attention_is_what_it_is_made_of(shapes, rng, move):
    for n in (3, 4):                                       # without and with a bias
        tensors = [Tensor(a) for a in draws(rng, shapes[:n], move)]
        fused, composed = ops.attention(*tensors), ops.attention_composed(*tensors)
        g = move(rng.standard_normal(fused.shape))
        for a, b in zip([fused.array, *pullback(fused, g, tensors)],
                        [composed.array, *pullback(composed, g, tensors)]):
            assert a.shape == b.shape
            assert float(abs(a - b).max()) <= 1e-12 * max(float(abs(b).max()), 1e-3)


@pytest.mark.parametrize("shapes", SHAPES)
def test_gradient(shapes, rng, move):
    arrays = draws(rng, shapes, move)
    check_vjp(ops.attention, *arrays[:3], rng=rng)
    check_vjp(ops.attention, *arrays, rng=rng)
    check_vjp(ops.attention_composed, *arrays, rng=rng)


def test_gradient_with_hidden_keys(rng, move):
    query, key, value, bias = draws(rng, SHAPES[1], move)
    hidden = rng.random(bias.shape) < 0.5
    hidden[1, 1, 0], hidden[1, 2] = False, True            # one query reads nothing
    hidden = move(hidden)

    def hiding(query, key, value, bias):
        return ops.attention(query, key, value, ops.where(hidden, -np.inf, bias))

    check_vjp(hiding, query, key, value, bias, rng=rng)
    y = to_numpy(hiding(query, key, value, bias))
    assert (y[:, 1, 2] == 0).all() and (y[:, 1, 1] != 0).all()


def test_by_hand(move):
    # W = 4, so logits are halved: 2 log 3 / 2 = log 3 for the first key, 0 for the second
    query, key = np.array([[2.0, 0, 0, 0]]), np.array([[np.log(3), 0, 0, 0], [0, 0, 0, 0]])
    value = np.array([[1.0, 0.0], [5.0, 4.0]])
    query, key, value = move((query, key, value))
    # 3/4 [1, 0] + 1/4 [5, 4]; with log 9 more on the second key, 1/4 and 3/4
    assert to_numpy(ops.attention(query, key, value))[0].tolist() == pytest.approx([2, 1])
    bias = move(np.array([[0.0, np.log(9)]]))
    assert to_numpy(ops.attention(query, key, value, bias))[0].tolist() == pytest.approx([4, 3])


def test_logits_beyond_the_range_of_exp(move):
    query, key = move((np.array([[1e3]]), np.array([[1e3], [-1e3], [1e3]])))
    value = move(np.array([[1.0], [5.0], [2.0]]))
    assert to_numpy(ops.attention(query, key, value)).tolist() == [[1.5]]


def test_inputs_are_left_alone_and_float32_stays(rng, move):
    arrays = tree.map(lambda a: a.astype(np.float32), draws(rng, SHAPES[1], move))
    leaves_inputs_alone_in_float32(ops.attention, arrays, rng, move)
