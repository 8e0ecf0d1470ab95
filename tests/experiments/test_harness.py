"""Tables and claims in print, and the record of a run."""
import json
import os
import select
import sys
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure

from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Outcome, Result, Settings, Table

TABLE = Table("Two systems", ("system", "epochs"), [("a", "7 (1)"), ("longer", "1124 (23)")],
              "note")
HOLDS = Claim("Mixtures learn faster than networks of as many weights.", "0.51", "0.45", True)
UNMET = Claim("More experts learn faster.", "1083 against 1124 epochs", "716 against 679", False)
REPORTED = Claim("At another scale.", "not given", "661", None)


def outcome(*claims, quick=False, details=None):
    figure, axes = harness.panels(["first", "second"], columns=2, size=(4, 2), title="Both")
    axes[0].plot([0, 1], [1, 0])
    result = Result("A paper (1991)", list(claims), [TABLE], figure, details or {})
    return Outcome("local_experts_1991", Settings(seed=3, quick=quick), result, 1.25)


def test_a_table_in_print():
    assert harness.format_table(TABLE, width=80) == (
        "Two systems\n"
        "\n"
        "system     epochs\n"
        "------  ---------\n"
        "a           7 (1)\n"
        "longer  1124 (23)\n"
        "note")


def test_claims_in_print_are_wrapped_side_by_side():
    printed = harness.format_claims([HOLDS, UNMET, REPORTED], width=64)
    assert printed == (
        "          claim                 paper            measured here\n"
        "--------  --------------------  ---------------  ---------------\n"
        "holds     Mixtures learn        0.51             0.45\n"
        "          faster than networks\n"
        "          of as many weights.\n"
        "\n"
        "UNMET     More experts learn    1083 against     716 against 679\n"
        "          faster.               1124 epochs\n"
        "\n"
        "reported  At another scale.     not given        661")


@pytest.mark.parametrize("columns, width", [(1, 60), (80, 80), (300, 120)])
def test_a_terminal_of_any_width_gets_its_text(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert harness.text(outcome(HOLDS)) == harness.text(outcome(HOLDS), width=width)


def test_the_whole_text_keeps_to_the_width_and_counts_the_claims():
    printed = harness.text(outcome(HOLDS, UNMET, REPORTED), width=70)
    assert max(map(len, printed.splitlines())) <= 70
    assert printed.startswith("A paper (1991)\n==============\n\nTwo systems\n")
    assert printed.endswith("\n\n1 of 2 claims hold. 1.2 s on numpy.")
    quick = harness.text(outcome(REPORTED, quick=True), width=70).replace("\n", " ")
    assert "No claim was judged: a quick run only shows that everything works." in quick


@pytest.mark.parametrize("claims, met", [
    ([], True), ([REPORTED], True), ([HOLDS, REPORTED], True), ([HOLDS, UNMET], False)])
def test_only_a_judged_claim_that_fails_is_unmet(claims, met):
    assert harness.met(outcome(*claims)) is met


@pytest.mark.parametrize("quick, verdicts", [(False, [True, False, None]), (True, [None] * 3)])
def test_a_quick_run_judges_no_claim(monkeypatch, quick, verdicts):
    experiment = ModuleType("minimoe.experiments.made_up")
    experiment.run = lambda settings: outcome(HOLDS, UNMET, REPORTED).result
    monkeypatch.setitem(sys.modules, experiment.__name__, experiment)
    conducted = harness.conduct("made_up", Settings(quick=quick))
    assert [claim.holds for claim in conducted.result.claims] == verdicts


def test_spread_is_mean_and_sample_deviation():
    assert harness.spread([1, 2, 3]) == "2 (1)"
    assert harness.spread([0.5, 0.5], 2) == "0.50 (0.00)"
    assert harness.spread([4]) == "4 (--)"
    assert harness.spread([]) == "--"


def test_ranged_is_mean_and_range():
    assert harness.ranged(np.array([1, 3.5, 2]), 2) == "2.17 [1.00, 3.50]"


def test_runs_by_row_are_arrays_over_seeds():
    runs = {("text", (0, 1), 0): {"loss": 1.5}, ("text", (0, 1), 1): {"loss": 2.5},
            ("chains", "all", 0): {"loss": 3.0, "experts": 4}}
    found = harness.by_row(runs)
    assert found["text"][0, 1]["loss"].tolist() == [1.5, 2.5]
    assert found["chains"]["all"]["experts"].tolist() == [4]
    assert harness.means(found["text"], "loss") == {(0, 1): 2.0}


def test_the_record_says_what_was_run_with_what_and_what_was_found(tmp_path):
    details = {"epochs": np.array([679.0, np.nan]), 0.3: {"in_use": np.int64(2)}, "l": -np.inf}
    run = outcome(HOLDS, REPORTED, quick=True, details=details)
    figure, record = harness.write(run, tmp_path / "new" / "runs")
    assert (figure.name, record.name) == ("local_experts_1991.png", "local_experts_1991.json")
    read = json.loads(record.read_text(), parse_constant=pytest.fail)   # no NaN, no Infinity
    assert read == harness.as_record(run)
    assert read["command"] == "minimoe run local_experts_1991 --seed 3 --backend numpy --quick"
    assert read["settings"] == {"seed": 3, "quick": True, "backend": "numpy", "data": None}
    assert read["details"] == {"epochs": [679.0, None], "0.3": {"in_use": 2}, "l": None}
    assert read["claims"][0] == HOLDS._asdict() and read["met"] is True
    assert read["tables"][0]["rows"] == [["a", "7 (1)"], ["longer", "1124 (23)"]]
    assert read["versions"]["numpy"] == np.__version__
    assert read["device"].startswith("cpu") and read["seconds"] == 1.25


def test_the_same_figure_is_the_same_file(tmp_path):
    first, _ = harness.write(outcome(HOLDS), tmp_path / "first")
    second, _ = harness.write(outcome(HOLDS), tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_panels_are_lettered():
    figure, axes = harness.panels(["who", "when", "why"], columns=2, size=(4, 4), title="All")
    assert isinstance(figure, Figure)
    assert [axis.get_title(loc="left") for axis in axes[:3]] == ["A.  who", "B.  when", "C.  why"]


def test_no_bar_in_a_pipe(capfd):
    with harness.progress(2, "label") as bar:
        bar.update()
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal_that_does_not_know_its_size(monkeypatch):
    reader, terminal = os.openpty()   # 0 rows and 0 columns
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with harness.progress(2, "label"):
            shown, _, _ = select.select([reader], [], [], 5)
            assert shown and b"label" in os.read(reader, 1000)
    os.close(reader)


# -- Many runs at once ---------------------------------------------------------------------------

def square(settings, case):
    if case < 0:
        raise ValueError(f"square: needs a positive number; got {case}")
    return case**2 + settings.seed, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def test_cases_run_in_processes_of_one_thread_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(harness, "_processors", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    results = harness.in_parallel(Settings(seed=1), square, [3, 1, 2], "squares")
    assert [value for value, *_ in results] == [10, 2, 5]
    assert {threads for *_, threads in results} == {"1"}
    assert os.getpid() not in {process for _, process, _ in results}
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_gpu_and_a_single_case_get_no_processes():
    for settings, cases in (Settings(backend="cupy"), [1, 2]), (Settings(), [1]):
        results = harness.in_parallel(settings, square, cases, "squares")
        assert {process for _, process, _ in results} == {os.getpid()}


def test_a_case_that_fails_ends_them_all_with_its_error(monkeypatch):
    monkeypatch.setattr(harness, "_processors", lambda: 2)
    with pytest.raises(ValueError, match="square: needs a positive number; got -1"):
        harness.in_parallel(Settings(), square, [-1, 2, 3], "squares")
