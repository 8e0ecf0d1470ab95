"""Products of experts: padded, packed, in one primitive, and token by token; all the same."""
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minimoe import Tensor, check_vjp, ops, pullback
from minimoe.backend import to_numpy
from minimoe.routing.dispatch import Routing, combine, dispatch, gather, gather_back, packed_seats
from minimoe.routing.experts import (
    expert_feed_forward, expert_intermediates, expert_matmul, ragged_matmul, relu_feed_forward)
from tests.ops.primitives import leaves_inputs_alone_in_float32
from tests.routing.cases import assert_equal_with_gradients, cases, example


def one_by_one(case, x, gate, w_in, w_out):
    """The layer as it is defined: each token, each choice kept."""
    expert, keep = to_numpy(case.routing.expert), to_numpy(case.routing.keep)
    rows = []
    for t in range(case.T):
        y = 0 * (x[t] @ w_in[0] @ w_out[0])                               # a zero, recorded
        for k in np.flatnonzero(keep[t]):
            e = int(expert[t, k])
            y = y + gate[t, int(k)] * (ops.relu(x[t] @ w_in[e]) @ w_out[e])
        rows.append(y)
    return ops.stack(rows)


def padded(case, x, gate, w_in, w_out):
    hidden = ops.relu(expert_matmul(dispatch(x, case.routing, case.E, case.C), w_in))
    return combine(expert_matmul(hidden, w_out), case.with_gate(gate))


def packed(case, x, gate, w_in, w_out):
    seats, ends = packed_seats(case.routing.expert, case.routing.keep, case.E)
    y = relu_feed_forward(gather(x, seats), w_in, w_out, ends=ends)
    return gather_back(y, gate, seats)


def in_one(case, x, gate, w_in, w_out):
    return expert_feed_forward(x, case.with_gate(gate), w_in, w_out)


def arguments(case, D=3, H=4, O=2):
    """Tokens, gates, weights; and a cotangent."""
    return ([case.normal(case.T, D), case.routing.gate, case.normal(case.E, D, H),
             case.normal(case.E, H, O)], case.normal(case.T, O))


# -- by hand -------------------------------------------------------------------------------------

def test_layer_by_hand(move):
    keep = move(np.array([[True], [True], [False]]))
    routing = Routing(move(np.array([[1], [0], [1]])), None, keep,
                      move(np.array([[2.], [3.], [np.nan]])))
    x = move(np.array([[1., 2], [3, 4], [np.inf, np.nan]]))               # the last is turned away
    w_in = move(np.array([[[1., 0], [0, 1]], [[1, -1], [1, 1]]]))
    w_out = move(np.array([[[1.], [10]], [[1], [10]]]))
    # token 0: relu([1 + 2, -1 + 2]) = [3, 1], times [1, 10] is 13, twice; token 1: 3 * (3 + 40)
    assert to_numpy(expert_feed_forward(x, routing, w_in, w_out)).tolist() == [[26], [129], [0]]


def test_hidden_units_below_zero_are_off_and_carry_no_gradient(move):
    routing = Routing(move(np.array([[0]])), None, move(np.array([[True]])), move(np.array([[2.]])))
    tensors = [Tensor(move(np.array(a))) for a in ([[1., 1]], [[[1., -3], [1, 1]]], [[[5.], [7]]])]
    y = expert_feed_forward(tensors[0], routing, *tensors[1:])            # hidden [2, -2]
    flows = pullback(y, move(np.array([[1.]])), tensors)
    assert [to_numpy(a).tolist() for a in [y.array, *flows]] == [
        [[20]], [[10, 10]], [[[10, 0], [10, 0]]], [[[4], [0]]]]


def test_intermediates_by_hand(move):
    routing = Routing(move(np.array([[1, 0]])), None, move(np.array([[True, False]])), None)
    x = move(np.array([[1., 2]]))
    w_in = move(np.array([[[5., 5], [5, 5]], [[1, -1], [1, 0]]]))
    w_out = move(np.array([[[7.], [7]], [[2], [10]]]))
    # expert 1: [1 + 2, -1], of which [3, 0] is left; expert 0 turned the token away
    found = expert_intermediates(x, routing, w_in, w_out)
    assert [to_numpy(a).tolist() for a in found] == [
        [[[1, 2], [0, 0]]], [[[3, 0], [0, 0]]], [[[6], [0]]]]
    inputs, hidden, _ = expert_intermediates(x, routing, w_in, w_out, lambda h: h + 1)
    assert to_numpy(hidden).tolist() == [[[4, 0], [0, 0]]]    # what was turned away stays 0


# -- properties ----------------------------------------------------------------------------------

def from_intermediates(case, x, gate, w_in, w_out):
    *_, outputs = expert_intermediates(x, case.routing, w_in, w_out)
    return ops.einsum("tk,tkd->td", gate, outputs)


@given(st.data())
def test_all_layers_are_one(move, data):
    case = data.draw(cases(move))
    tensors, g = arguments(case)
    forms = [padded, packed, in_one, from_intermediates] + [one_by_one] * (case.T > 0)
    assert_equal_with_gradients(
        [lambda *a, form=form: form(case, *a) for form in forms], tensors, g)


@pytest.mark.parametrize("T, E, K, capacity", [
    (4, 1, 1, 2), (5, 300, 2, 1), (3, 300, 300, 2), (2, 257, 1, 5)])
def test_one_expert_very_many_and_all_of_them(move, T, E, K, capacity):
    case = example(move, T, E, K, capacity)
    values, g = arguments(case)
    forms = [padded, packed, in_one, from_intermediates, one_by_one]
    assert_equal_with_gradients([lambda *a, form=form: form(case, *a) for form in forms], values, g)


@pytest.mark.parametrize("T, capacity", [(0, 2), (6, 0)], ids=["empty batch", "all turned away"])
@pytest.mark.parametrize("layer", [padded, packed, in_one, from_intermediates])
def test_nobody_seated_gives_zeros(move, layer, T, capacity):
    case = example(move, T, 3, 2, capacity)
    values, g = arguments(case)
    tensors = [Tensor(a) for a in values]
    y = layer(case, *tensors)
    assert y.shape == g.shape
    for a in [y.array, *pullback(y, g, tensors)]:
        assert not to_numpy(a).any()


def test_an_expert_that_a_token_has_twice_counts_twice(move):
    routing = Routing(move(np.array([[0, 0], [0, 1]])), None, move(np.ones((2, 2), bool)),
                      move(np.array([[1., 10], [100, 1000]])))
    ones = move(np.ones((2, 1, 1)))
    y = expert_feed_forward(move(np.array([[1.], [2]])), routing, ones, ones)
    assert to_numpy(y).tolist() == [[11], [2200]]


# -- gradients -----------------------------------------------------------------------------------

@pytest.mark.parametrize("T, E, K, C", [(9, 4, 2, 3), (7, 3, 1, 2), (5, 4, 3, 5), (2, 4, 1, 1)])
def test_gradients(move, rng, T, E, K, C):
    case = example(move, T, E, K, C)
    (x, gate, w_in, w_out), _ = arguments(case)
    seats, ends = packed_seats(case.routing.expert, case.routing.keep, E)
    check_vjp(expert_matmul, case.normal(E, C, 3), w_in, rng=rng)
    check_vjp(lambda rows, w: ragged_matmul(rows, w, ends=ends), gather(x, seats), w_in, rng=rng)
    check_vjp(lambda *a: in_one(case, *a), x, gate, w_in, w_out, rng=rng)


@pytest.mark.parametrize("K", [1, 2])
def test_inputs_are_left_alone_and_float32_stays(move, rng, K):
    case = example(move, 9, 4, K, 3)
    values = move([to_numpy(a).astype("float32") for a in arguments(case)[0]])
    leaves_inputs_alone_in_float32(lambda *a: in_one(case, *a), values, rng, move)


def test_gates_that_lie_in_memory_by_column(move):
    case = example(move, 6, 3, 2, 6)
    values, g = arguments(case)
    by_column = move(np.asfortranarray(to_numpy(values[1])))
    flows = []
    for gate in values[1], by_column:
        tensors = [Tensor(a) for a in (values[0], gate, *values[2:])]
        flows.append(pullback(in_one(case, *tensors), g, tensors))
    for flow, expected in zip(*flows):
        assert (to_numpy(flow) == to_numpy(expected)).all()


@pytest.mark.numpy_only("memory is traced where NumPy takes it")
def test_memory_follows_the_tokens_not_experts_times_slots():
    """Beside the gradients: the hidden layer, one expert's share of its cotangent, and tokens."""
    D, H, E = 8, 64, 16

    def peak(T):
        case = example(lambda x: x, T, E, 1, T)
        tensors = [Tensor(a) for a in arguments(case, D, H, D)[0]]
        g = case.normal(T, D)
        tracemalloc.start()
        pullback(in_one(case, *tensors), g, tensors)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    more = (peak(8000) - peak(4000)) / (4000 * H * 8)       # in hidden layers of 4000 tokens
    assert 1 < more < 2
