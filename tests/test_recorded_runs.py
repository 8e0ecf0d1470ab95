"""Every recorded run of every paper, computed again."""
import importlib
from pathlib import Path

import pytest

from minimoe.cli import index
from minimoe.oracle.disagreements import disagreements
from minimoe.oracle.runs import read_run

RECORDED = Path(__file__).resolve().parents[1] / "reference_runs" / "recorded"
RUNS = [path for name in index.names() for path in sorted((RECORDED / name).glob("*.npz"))]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recorded_run_is_what_the_paper_computes(path, move):
    paper = importlib.import_module(f"minimoe.papers.{path.parent.name}")
    run = read_run(path, paper.RUN)
    assert disagreements(paper.oracle(move(run)), run) == []


@pytest.mark.parametrize("paper", index.names())
def test_every_paper_has_a_recorded_run(paper):
    assert paper in {path.parent.name for path in RUNS}
