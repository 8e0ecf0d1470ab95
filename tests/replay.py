"""The recorded runs of all papers, for the tests that compute them again.

    recorded/<paper>/<case>.npz             of a paper with one kind of run
    recorded/<paper>/<kind>/<case>.npz      of a paper with several
"""
from pathlib import Path
from typing import NamedTuple

from minimoe.oracle import index
from minimoe.oracle.kinds import find_kind
from minimoe.oracle.runs import read_run

RECORDED = Path(__file__).resolve().parents[1] / "reference_runs" / "recorded"


class Recorded(NamedTuple):
    paper: str
    kind: str       # empty where there is one
    path: Path

    def __str__(self):
        return self.path.relative_to(RECORDED).with_suffix("").as_posix()

    @property
    def name(self):
        """As the command line takes it."""
        return "/".join(filter(None, (self.paper, self.kind)))

    def read(self):
        """The run in the file, and the function that computes it again."""
        oracle = find_kind(self.paper, self.kind)
        return read_run(self.path, oracle.run), oracle.outputs


def recorded_runs(paper):
    """Every recorded run of a paper, those of one kind side by side."""
    found = sorted((RECORDED / paper).rglob("*.npz"))
    return [Recorded(paper, "/".join(path.relative_to(RECORDED / paper).parent.parts), path)
            for path in found]


RUNS = [run for paper in index.names() for run in recorded_runs(paper)]
