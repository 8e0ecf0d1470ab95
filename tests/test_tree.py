from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import tree


class Expert(NamedTuple):
    w: object
    b: object


trees = st.recursive(
    st.none() | st.integers(),
    lambda parts: (st.lists(parts, max_size=3) | st.lists(parts, max_size=3).map(tuple)
                   | st.dictionaries(st.sampled_from("abc"), parts)
                   | st.builds(Expert, parts, parts)),
    max_leaves=8)


def test_names_are_fields_keys_and_places_joined_by_dots():
    model = {"gate": 1, "experts": [Expert(2, 3), Expert(4, None)], "pair": (5, 6)}
    assert tree.named_leaves(model) == {
        "gate": 1, "experts.0.w": 2, "experts.0.b": 3, "experts.1.w": 4, "pair.0": 5, "pair.1": 6}


def test_a_lone_leaf_has_no_name_and_none_has_no_leaf():
    assert tree.named_leaves(7) == {"": 7}
    assert tree.named_leaves(None) == {}


@given(trees)
def test_map_keeps_the_shape_and_the_order_of_the_leaves(t):
    doubled = tree.map(lambda x: 2 * x, t)
    assert list(tree.named_leaves(doubled)) == list(tree.named_leaves(t))
    assert tree.leaves(doubled) == [2 * x for x in tree.leaves(t)]
    assert tree.map(lambda x: x, t) == t
    assert type(tree.map(lambda x: x, t)) is type(t)


@given(trees)
def test_map_takes_the_leaves_of_several_trees_together(t):
    assert tree.map(lambda x, y, z: (x, y, z) == (x, x, x), t, t, t) == tree.map(
        lambda x: True, t)


def test_what_is_mapped_is_not_changed():
    model = {"w": [1, 2]}
    tree.map(lambda x: x + 1, model)
    assert model == {"w": [1, 2]}


def test_a_dictionary_is_matched_by_key_not_by_order():
    assert tree.map(lambda x, y: x - y, {"a": 1, "b": 2}, {"b": 2, "a": 1}) == {"a": 0, "b": 0}


@pytest.mark.parametrize("first, second, message", [
    ({"a": {"b": 1}}, {"a": {"c": 1}}, "at a: dict of b and dict of c"),
    ([1, 2], [1], "at the top: list of 0, 1 and list of 0"),
    ((1, [2]), (1, 2), r"at 1: list of 0 and a leaf \(int\)"),
    ([1], (1,), "at the top: list of 0 and tuple of 0"),
    (Expert(1, 2), {"w": 1, "b": 2}, "at the top: Expert of w, b and dict of w, b"),
    ({}, {"a": 1}, "at the top: dict of nothing and dict of a"),
    ({"a": None}, {"a": 1}, r"at a: None and a leaf \(int\)"),
    ({"a": 1}, {"a": None}, r"at a: a leaf \(int\) and None"),
    ({"a": 1}, {"a": [1]}, r"at a: a leaf \(int\) and list of 0"),
])
def test_trees_of_different_shapes_are_refused_by_place(first, second, message):
    with pytest.raises(ValueError, match=f"tree.map: the trees differ {message}"):
        tree.map(lambda x, y: x, first, second)
