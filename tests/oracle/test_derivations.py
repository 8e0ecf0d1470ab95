"""Every case is derived a second time, by what is not minimoe."""
import json

import numpy as np
import pytest

from minimoe.oracle import cases
from minimoe.oracle.schema import HERE
from minimoe.oracle.tolerances import MOST, Tolerance
from reference_runs.derivations import compared

DERIVED = json.loads((HERE / "derivations.json").read_text(encoding="ascii"))
WITHOUT = {}   # a case: why it is derived only once


@pytest.mark.parametrize("paper", sorted({case.paper for case in cases()}))
def test_every_case_is_derived_twice(paper):
    once = {case.id for case in cases(paper)} - DERIVED.keys()
    assert once == {id for id in WITHOUT if id.startswith(f"{paper}/")}


def test_the_derivations_agree():
    for id, entries in DERIVED.items():
        for entry in entries:
            assert entry.keys() == {"by", "agreement"}, id
            assert entry["by"] and 0 <= entry["agreement"] <= MOST, id


# -- The comparison ------------------------------------------------------------------------------

WANT = {"expert_index": np.array([[0], [1]]), "keep": np.array([[True], [False]]),
        "y": np.array([1.0, -2.0])}
TOLERANCE = {"y": Tolerance(8.0, 2.0)}


def test_what_agrees():
    near = {**WANT, "y": WANT["y"] + np.array([0.0, 2.0**-50])}
    assert compared(near, WANT, TOLERANCE) == (2.0, [])     # of eps = 2^-52 and a scale of 2


@pytest.mark.parametrize("changes, fault", [
    ({"expert_index": np.array([[0], [2]])}, "expert_index: [0 2], minimoe's [0 1]"),
    ({"expert_index": np.array([[0.0], [1.0]])}, "expert_index: [0. 1.], minimoe's [0 1]"),
    ({"keep": np.array([[True], [True]])}, "keep: [ True  True], minimoe's [ True False]"),
    ({"y": np.array([1.0, -2.0 - 2.0**-47])}, "y: 16 eps, of 8"),
    ({"y": np.array([np.nan, -2.0])}, "y: inf eps, of 8"),
    ({"y": np.array([[1.0, -2.0]])}, "y: shape (1, 2), minimoe's (2,)"),
    ({"z": np.zeros(2)}, "z is no output of the paper"),
])
def test_what_does_not(changes, fault):
    assert compared({**WANT, **changes}, WANT, TOLERANCE)[1] == [fault]


def test_an_output_that_was_not_derived():
    assert compared({}, {"y": WANT["y"]}, TOLERANCE)[1] == ["y is not derived"]


def test_what_must_be_equal():
    got = {"logits": np.array([1.0, 1 + 2.0**-52])}
    exact = {"logits": Tolerance(8.0, 1.0, exact=True)}
    assert compared(got, {"logits": np.ones(2)}, exact)[1] == [
        "logits: 1 eps, of 8, must be equal"]


def test_what_the_paper_has_in_float32():
    got, want = np.array([1 + 2.0**-22]), np.ones(1, np.float32)
    assert compared({"y": got}, {"y": want}, {"y": Tolerance(8.0, 1.0)}) == (2.0, [])
