"""Every recorded run of every paper, computed again."""
import pytest

from minimoe.oracle import index
from minimoe.oracle.disagreements import disagreements
from minimoe.oracle.kinds import kinds
from tests.replay import RUNS


@pytest.mark.parametrize("recorded", RUNS, ids=str)
def test_a_recorded_run_is_what_the_paper_computes(recorded, move):
    run, outputs = recorded.read()
    assert disagreements(outputs(move(run)), run) == []


@pytest.mark.parametrize("paper", index.names())
def test_every_kind_of_run_of_every_paper_is_recorded(paper):
    assert {run.kind for run in RUNS if run.paper == paper} == set(kinds(paper))
