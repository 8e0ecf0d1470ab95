"""Choosing, queueing, seating and returning: by hand, by loops, by gradient, and in both forms."""
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import Tensor, check_vjp, ops, pullback
from minimoe.backend import to_numpy
from minimoe.routing import experts
from minimoe.routing.dispatch import (
    Routing, combine, combine_einsum, dispatch, dispatch_einsum, gather, gather_back, packed_seats,
    padded_seats)
from minimoe.routing.topk import counts_in_groups, queues, slots, slots_in_groups, top_k

few_values = st.sampled_from([-np.inf, -1.0, 0.0, 1.0])     # ties are likely
scores = st.tuples(st.integers(0, 8), st.integers(1, 5)).flatmap(
    lambda shape: arrays(float, shape, elements=few_values))


def route(move, rng, T, E, K, capacity):
    """A routing of random tokens, some turned away, with gates that are not probabilities."""
    expert = top_k(move(rng.standard_normal((T, E))), K)
    slot = slots(expert, E)
    return Routing(expert, slot, slot < capacity, move(rng.standard_normal((T, K))))


# -- by hand -------------------------------------------------------------------------------------

def test_equals_go_to_the_lower_index(move):
    chosen = top_k(move(np.array([[1., 3, 3, 2], [0, 0, 0, 0], [-np.inf, 5, -np.inf, -np.inf]])), 3)
    assert to_numpy(chosen).tolist() == [[1, 2, 3], [0, 1, 2], [1, 0, 2]]


def test_first_choices_queue_before_second(move):
    expert = move(np.array([[0, 1], [1, 0], [0, 2]]))
    # expert 0: first choices of tokens 0 and 2, then the second choice of token 1
    assert to_numpy(slots(expert, 3)).tolist() == [[0, 1], [0, 2], [1, 0]]


def test_the_queue_follows_a_given_order(move):
    expert, order = move(np.array([[0], [0], [1], [0]])), move(np.array([3, 2, 1, 0]))
    assert to_numpy(slots(expert, 2, order)).ravel().tolist() == [2, 1, 0, 0]


def test_groups_queue_apart(move):
    expert, used = move(np.array([[0], [1], [0], [0], [0], [1]])), move(np.arange(6)[:, None] != 3)
    assert to_numpy(queues(expert, 2, 2)).ravel().tolist() == [0, 1, 0, 2, 2, 3]
    assert to_numpy(slots_in_groups(expert, 2, 2)).ravel().tolist() == [0, 0, 1, 0, 1, 0]
    assert to_numpy(slots_in_groups(expert, 2, 2, used)).ravel().tolist() == [0, 0, 1, 0, 0, 0]
    assert to_numpy(counts_in_groups(expert, 2, 2)).tolist() == [[2, 1], [2, 1]]
    assert to_numpy(counts_in_groups(expert, 2, 2, used)).tolist() == [[2, 1], [1, 1]]
    with pytest.raises(ValueError, match="queues: .* groups that divides 6 tokens; got 4"):
        queues(expert, 2, 4)


@pytest.mark.parametrize("k", [0, 4])
def test_more_choices_than_experts_are_refused(move, k):
    with pytest.raises(ValueError, match=f"top_k: k must be between 1 and 3 experts; got {k}"):
        top_k(move(np.zeros((2, 3))), k)


def test_a_token_turned_away_comes_back_as_zero(move):
    keep = move(np.array([[True], [True], [False]]))
    routing = Routing(move(np.zeros((3, 1), int)), move(np.arange(3)[:, None]), keep,
                      move(np.array([[2.], [3.], [5.]])))
    x = move(np.array([[1., 10], [2, 20], [np.inf, np.nan]]))
    slots_in = dispatch(x, routing, n_experts=2, capacity=2)
    assert to_numpy(slots_in).tolist() == [[[1, 10], [2, 20]], [[0, 0], [0, 0]]]
    assert to_numpy(combine(slots_in, routing)).tolist() == [[2, 20], [6, 60], [0, 0]]
    assert to_numpy(padded_seats(routing, 2, 2).choice).tolist() == [0, 1, -1, -1]


# -- properties ----------------------------------------------------------------------------------

@given(scores, st.data())
def test_top_k_is_a_stable_sort(move, scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    expected = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    assert (to_numpy(top_k(move(scores), k)) == expected).all()


@given(scores, st.data())
def test_places_are_those_of_a_queue_served_one_by_one(move, scores, data):
    T, E = scores.shape
    expert = to_numpy(top_k(move(scores), data.draw(st.integers(1, E))))
    order = np.array(data.draw(st.permutations(range(T))), dtype=int)
    waiting = [0] * E
    place = np.empty_like(expert)
    for k in range(expert.shape[1]):
        for t in order:
            place[t, k] = waiting[expert[t, k]]
            waiting[expert[t, k]] += 1
    assert (to_numpy(slots(move(expert), E, move(order))) == place).all()


SIZES = [(7, 3, 1, 2), (9, 4, 2, 3), (6, 3, 3, 1), (5, 4, 2, 0), (1, 6, 2, 1), (0, 3, 2, 2)]


@pytest.mark.parametrize("T, E, K, C", SIZES)
def test_indexed_and_literal_forms_agree(move, rng, T, E, K, C):
    routing = route(move, rng, T, E, K, C)
    x, g = move(rng.standard_normal((T, 5))), move(rng.standard_normal((T, 5)))
    w = move(rng.standard_normal((E, 5, 5)))
    results = []
    for into, back in [(lambda x, r: dispatch(x, r, E, C), combine),
                       (lambda x, r: dispatch_einsum(x, r, E, C), combine_einsum)]:
        tensors = Tensor(x), Tensor(routing.gate)
        traced = routing._replace(gate=tensors[1])
        y = back(ops.matmul(into(tensors[0], traced), w), traced)
        results.append([y.array, *pullback(y, g, tensors)])
    for indexed, literal in zip(*results):
        np.testing.assert_allclose(to_numpy(indexed), to_numpy(literal), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("T, E, K, C", SIZES)
def test_ragged_rows_agree_with_padded_slots(move, rng, T, E, K, C):
    routing = route(move, rng, T, E, K, C)
    x, g = move(rng.standard_normal((T, 5))), move(rng.standard_normal((T, 5)))
    weights = move([rng.standard_normal((E, 5, 6)), rng.standard_normal((E, 6, 5))])
    rows, ends = packed_seats(routing.expert, routing.keep, E)

    def slotted(x, gate, w_in, w_out):
        hidden = ops.relu(experts.expert_matmul(dispatch(x, routing, E, C), w_in))
        return combine(experts.expert_matmul(hidden, w_out), routing._replace(gate=gate))

    def ragged(x, gate, w_in, w_out):
        hidden = ops.relu(experts.ragged_matmul(gather(x, rows), w_in, ends=ends))
        return gather_back(experts.ragged_matmul(hidden, w_out, ends=ends), gate, rows)

    def fused(x, gate, w_in, w_out):
        return experts.expert_feed_forward(x, routing._replace(gate=gate), w_in, w_out)

    results = []
    for layer in slotted, ragged, fused:
        tensors = [Tensor(a) for a in (x, routing.gate, *weights)]
        y = layer(*tensors)
        results.append([y.array, *pullback(y, g, tensors)])
    for expected, one, other in zip(*results):
        np.testing.assert_allclose(to_numpy(one), to_numpy(expected), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(to_numpy(other), to_numpy(expected), rtol=1e-12, atol=1e-13)


# -- gradients -----------------------------------------------------------------------------------

def test_gradients(move, rng):
    E, C = 4, 3
    routing = route(move, rng, 9, E, 2, C)
    assert not to_numpy(routing.keep).all()
    rows, ends = packed_seats(routing.expert, routing.keep, E)

    def slotted(x, gate, w):
        y = experts.expert_matmul(dispatch(x, routing, E, C), w)
        return combine(y, routing._replace(gate=gate))

    def ragged(x, gate, w):
        y = experts.ragged_matmul(gather(x, rows), w, ends=ends)
        return gather_back(y, gate, rows)

    x, w = move(rng.standard_normal((9, 5))), move(rng.standard_normal((E, 5, 6)))
    check_vjp(slotted, x, routing.gate, w, rng=rng)
    check_vjp(ragged, x, routing.gate, w, rng=rng)
    check_vjp(lambda x, w_in, w_out: experts.relu_feed_forward(x, w_in, w_out, ends=ends),
              gather(x, rows), w, move(rng.standard_normal((E, 6, 5))), rng=rng)
