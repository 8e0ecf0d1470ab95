"""Seating and returning: by hand, in both forms, by gradient, and what must not matter."""
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minimoe import Tensor, check_vjp, pullback
from minimoe.backend import to_numpy
from minimoe.routing.dispatch import (
    Routing, combine, combine_einsum, dispatch, dispatch_einsum, gather, gather_back, packed_seats,
    padded_seats, seating)
from tests.routing.cases import assert_equal_with_gradients, cases, example

INDEXED, LITERAL = (dispatch, combine), (dispatch_einsum, combine_einsum)
FORMS = pytest.mark.parametrize("into, back", [INDEXED, LITERAL], ids=["indexed", "einsum"])


@FORMS
def test_a_token_turned_away_comes_back_as_zero(move, into, back):
    keep = move(np.array([[True], [True], [False]]))
    routing = Routing(move(np.zeros((3, 1), int)), move(np.arange(3)[:, None]), keep,
                      move(np.array([[2.], [3.], [5.]])))
    x = move(np.array([[1., 10], [2, 20], [7, 70]]))
    slots_in = into(x, routing, n_experts=2, capacity=2)
    assert to_numpy(slots_in).tolist() == [[[1, 10], [2, 20]], [[0, 0], [0, 0]]]
    assert to_numpy(back(slots_in, routing)).tolist() == [[2, 20], [6, 60], [0, 0]]


def test_seats_by_hand(move):
    # token 0 sits with experts 1 and 0; token 1 with expert 1 alone, in the second slot
    routing = Routing(move(np.array([[1, 0], [1, 0]])), move(np.array([[0, 0], [1, 1]])),
                      move(np.array([[True, True], [True, False]])), move(np.ones((2, 2))))
    padded = padded_seats(routing, n_experts=2, capacity=2)
    assert to_numpy(padded.choice).tolist() == [1, -1, 0, 2]
    assert to_numpy(padded.seat).tolist() == [[2, 0], [3, 0]]
    packed, ends = packed_seats(routing.expert, routing.keep, n_experts=3)
    assert to_numpy(packed.choice).tolist() == [1, 0, 2] and ends == [0, 1, 3, 3]
    assert to_numpy(packed.seat).tolist() == [[1, 0], [2, 0]]
    expected = np.zeros((2, 2, 2, 2))                                     # [T, K, E, C]
    expected[0, 0, 1, 0] = expected[0, 1, 0, 0] = expected[1, 0, 1, 1] = 1
    assert (to_numpy(seating(routing, 2, 2)) == expected).all()


def test_what_is_turned_away_or_sits_nowhere_is_not_looked_at(move):
    keep = move(np.array([[True], [False]]))
    routing = Routing(move(np.zeros((2, 1), int)), move(np.arange(2)[:, None]), keep,
                      move(np.array([[2.], [np.nan]])))
    slots_in = dispatch(move(np.array([[1.], [np.inf]])), routing, n_experts=2, capacity=2)
    assert to_numpy(slots_in).ravel().tolist() == [1, 0, 0, 0]
    seats, _ = packed_seats(routing.expert, keep, 2)
    assert to_numpy(gather(move(np.array([[1.], [np.inf]])), seats)).tolist() == [[1]]


@given(st.data())
def test_indexed_and_literal_forms_agree(move, data):
    case = data.draw(cases(move))
    T, E, C, D = case.T, case.E, case.C, 3
    assert_equal_with_gradients(
        [lambda x, into=into: into(x, case.routing, E, C) for into in (dispatch, dispatch_einsum)],
        [case.normal(T, D)], case.normal(E, C, D))
    assert_equal_with_gradients(
        [lambda y, gate, back=back: back(y, case.with_gate(gate))
         for back in (combine, combine_einsum)],
        [case.normal(E, C, D), case.routing.gate], case.normal(T, D))


@given(st.data())
def test_packed_rows_are_the_padded_ones_without_the_gaps(move, data):
    case = data.draw(cases(move))
    x = case.normal(case.T, 3)
    packed, ends = packed_seats(case.routing.expert, case.routing.keep, case.E)
    rows = to_numpy(gather(x, packed))
    slots_in = to_numpy(dispatch(x, case.routing, case.E, case.C))
    expert, keep = to_numpy(case.routing.expert), to_numpy(case.routing.keep)
    for e in range(case.E):
        mine = rows[ends[e]:ends[e + 1]]
        assert len(mine) == (keep & (expert == e)).sum()
        seated = slots_in[e][(slots_in[e] != 0).any(axis=-1)]
        assert sorted(mine.tolist()) == sorted(seated.tolist())
    alone = np.where(keep.any(axis=1, keepdims=True), to_numpy(x), 0) * keep.sum(axis=1)[:, None]
    ones = move(np.ones(expert.shape))
    np.testing.assert_allclose(to_numpy(gather_back(move(rows), ones, packed)), alone, rtol=1e-12)


@pytest.mark.parametrize("T, E, K, C", [(9, 4, 2, 3), (7, 3, 1, 2), (5, 4, 3, 5)])
def test_gradients(move, rng, T, E, K, C):
    case = example(move, T, E, K, C)
    x, y, gate = case.normal(T, 3), case.normal(E, C, 3), case.routing.gate
    for into, back in INDEXED, LITERAL:
        check_vjp(lambda x: into(x, case.routing, E, C), x, rng=rng)
        check_vjp(lambda y, gate: back(y, case.with_gate(gate)), y, gate, rng=rng)
    seats, _ = packed_seats(case.routing.expert, case.routing.keep, E)
    check_vjp(lambda x: gather(x, seats), x, rng=rng)
    check_vjp(lambda y, gate: gather_back(y, gate, seats), gather(x, seats), gate, rng=rng)


@pytest.mark.numpy_only("memory is traced where NumPy takes it")
def test_the_indexed_form_makes_no_array_of_tokens_experts_and_slots():
    T, E, C, D = 500, 50, 20, 4
    case = example(lambda x: x, T, E, 2, C)
    tensors = Tensor(case.normal(T, D)), Tensor(case.routing.gate)
    g = case.normal(T, D)

    def peak(into, back):
        tracemalloc.start()
        routing = case.with_gate(tensors[1])
        pullback(back(into(tensors[0], routing, E, C), routing), g, tensors)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak(*INDEXED) < T * E * C        # bytes: not even a boolean for each
    assert peak(*LITERAL) > T * E * C * 8
