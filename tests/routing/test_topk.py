"""Choosing and queueing: by hand, against a sort, and against a queue served one by one."""
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minimoe import Tensor
from minimoe.backend import to_numpy
from minimoe.routing.topk import (
    choice_margin, counts_in_groups, group, queues, slots, slots_in_groups, top_k)
from tests.routing.cases import score_tables


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


def test_even_the_last_first_choice_goes_before_a_second_choice_of_the_first_token(move):
    expert, order = move(np.array([[1, 0], [2, 0], [0, 1]])), move(np.array([1, 0, 2]))
    # expert 0: token 2; then, in the given order, the second choices of tokens 1 and 0
    assert to_numpy(slots(expert, 3, order)).tolist() == [[0, 2], [0, 1], [0, 1]]


def test_choices_are_grouped_in_their_order(move):
    choice, counts = group(move(np.array([2, 0, 2, 1, 0])), 4)
    assert to_numpy(choice).tolist() == [1, 4, 3, 0, 2]
    assert to_numpy(counts).tolist() == [2, 1, 2, 0]


def test_groups_queue_apart(move):
    expert, used = move(np.array([[0], [1], [0], [0], [0], [1]])), move(np.arange(6)[:, None] != 3)
    assert to_numpy(queues(expert, 2, 2)).ravel().tolist() == [0, 1, 0, 2, 2, 3]
    assert to_numpy(slots_in_groups(expert, 2, 2)).ravel().tolist() == [0, 0, 1, 0, 1, 0]
    assert to_numpy(slots_in_groups(expert, 2, 2, used)).ravel().tolist() == [0, 0, 1, 0, 0, 0]
    assert to_numpy(counts_in_groups(expert, 2, 2)).tolist() == [[2, 1], [2, 1]]
    assert to_numpy(counts_in_groups(expert, 2, 2, used)).tolist() == [[2, 1], [1, 1]]
    with pytest.raises(ValueError, match="queues: .* groups that divides 6 tokens; got 4"):
        queues(expert, 2, 4)


def test_margins_by_hand(move):
    scores = move(np.array([[1., 4, 2], [3, 3, -1], [0, 5, 0]]))
    # 4 leads 2, 2 leads 1, and nothing is left; equals are 0 apart
    for given_scores in scores, Tensor(scores):
        found = choice_margin(given_scores, top_k(scores, 3))
        assert to_numpy(found).tolist() == [[2, 1, np.inf], [0, 4, np.inf], [5, 0, np.inf]]
    assert to_numpy(scores).tolist() == [[1, 4, 2], [3, 3, -1], [0, 5, 0]]
    # a choice that is not the best is behind
    assert to_numpy(choice_margin(scores, move(np.array([[2], [0], [0]])))).tolist() == [
        [-2], [0], [-5]]


@given(score_tables.filter(lambda scores: np.isfinite(scores).all()), st.data())
def test_margins_are_gaps_of_sorted_scores(move, scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    descending = -np.sort(-scores, axis=-1)
    ends = np.concatenate([descending[:, 1:], np.full((len(scores), 1), -np.inf)], axis=1)
    found = choice_margin(move(scores), top_k(move(scores), k))
    assert (to_numpy(found) == (descending - ends)[:, :k]).all()


@pytest.mark.parametrize("E", [257, 2 ** 16 - 1, 2 ** 16, 2 ** 16 + 1])
def test_experts_beyond_what_a_byte_or_two_can_hold(move, E):
    scores = np.zeros((3, E))
    scores[:, [E - 1, 0]] = 2, 1
    expert = top_k(move(scores), 2)
    assert to_numpy(expert).tolist() == [[E - 1, 0]] * 3
    assert to_numpy(slots(expert, E)).tolist() == [[0, 0], [1, 1], [2, 2]]
    used = move(np.array([[False], [True], [True]]))       # who is not has a queue of its own
    assert to_numpy(slots_in_groups(expert, E, 1, used)).tolist() == [[0, 0], [0, 0], [1, 1]]
    counts = to_numpy(counts_in_groups(expert, E, 1, used))[0]
    assert counts[[0, E - 1]].tolist() == [2, 2] and counts.sum() == 4


@pytest.mark.parametrize("T, E, k", [(0, 1, 1), (0, 300, 2), (2, 1, 1), (2, 3, 3)])
def test_no_token_one_expert_and_every_expert(move, T, E, k):
    expert = top_k(move(np.zeros((T, E))), k)
    assert to_numpy(expert).tolist() == [list(range(k))] * T
    assert to_numpy(slots(expert, E)).tolist() == [[t] * k for t in range(T)]
    found = to_numpy(choice_margin(move(np.zeros((T, E))), expert))
    assert found.tolist() == [[0] * (k - 1) + [np.inf if k == E else 0]] * T


@pytest.mark.parametrize("k", [0, 4])
def test_more_choices_than_experts_are_refused(move, k):
    with pytest.raises(ValueError, match=f"top_k: k must be between 1 and 3 experts; got {k}"):
        top_k(move(np.zeros((2, 3))), k)


def test_scores_are_left_alone_and_choices_are_integers(move):
    scores = move(np.array([[1., 2], [3, 1]]))
    for given_scores in scores, Tensor(scores):
        assert top_k(given_scores, 2).dtype.kind == "i"
    assert to_numpy(scores).tolist() == [[1, 2], [3, 1]]
    assert slots(top_k(scores, 2), 2).dtype.kind == "i"


@given(score_tables, st.data())
def test_top_k_is_a_stable_sort(move, scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    expected = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    assert (to_numpy(top_k(move(scores), k)) == expected).all()


@given(score_tables, st.data())
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
    in_turn = to_numpy(slots(move(expert), E, move(np.arange(T))))
    assert (to_numpy(slots(move(expert), E)) == in_turn).all()


@given(score_tables, st.integers(1, 3), st.data())
def test_a_group_queues_as_it_would_alone(move, scores, n_groups, data):
    shuffled = data.draw(st.permutations(range(n_groups * len(scores))))
    scores = np.tile(scores, (n_groups, 1))[np.array(shuffled, dtype=int)]
    E = scores.shape[1]
    expert = top_k(move(scores), data.draw(st.integers(1, E)))
    S = len(scores) // n_groups
    places, counts = slots_in_groups(expert, E, n_groups), counts_in_groups(expert, E, n_groups)
    for g in range(n_groups):
        alone = expert[g * S:(g + 1) * S]
        assert (to_numpy(places[g * S:(g + 1) * S]) == to_numpy(slots(alone, E))).all()
        assert (to_numpy(counts[g]) == np.bincount(to_numpy(alone).ravel(), minlength=E)).all()


@pytest.mark.numpy_only("memory is traced where NumPy takes it")
def test_queueing_makes_nothing_as_wide_as_there_are_experts(rng):
    T, K, E = 1000, 2, 5000
    expert = rng.integers(0, E, (T, K))
    tracemalloc.start()
    slots(expert, E)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < T * K * E / 20       # bytes: far from even a boolean for each choice and expert
