"""The plugin of pytest and the conformance of a module, as their users run them."""
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parents[2]
SHIFTED = """
import pytest

def layer(c):
    return {"logits": c.x @ c.w_router + %s}
"""
MARKED = SHIFTED + """
@pytest.mark.minimoe("switch_2021/over*", "switch_2021/roomy")
def test_layer(moe_case):
    assert moe_case.report(layer).dtype == moe_case.dtype
    moe_case.check(layer)
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs pytest as another process, on these files. -> pytester's result"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*args, **files):
        pytester.makepyfile(**files)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)
    return run


def test_a_marked_test_runs_once_for_each_case(run):
    done = run("-v", test_mine=MARKED % 0)
    done.assert_outcomes(passed=2)
    done.stdout.fnmatch_lines(["*test_layer?switch_2021/overflowing? PASSED*",
                               "*test_layer?switch_2021/roomy? PASSED*"])


def test_it_fails_with_the_report(run):
    done = run(test_mine=MARKED % 1e-12)
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(["parts from switch_2021/overflowing in float64",
                               "*X logits*differs first at (0, 0): yours*"])


def test_the_dtype_is_an_option(run):
    done = run("--minimoe-dtype", "float32", test_mine=MARKED % "1e-12 * c.x.dtype.type(1)")
    done.assert_outcomes(passed=2)
    assert run("--minimoe-dtype", "int8", test_mine=MARKED % 0).ret == 4


def test_known_failures_are_listed_and_one_that_passes_is_a_failure(run, pytester):
    pytester.maketxtfile(known="# slots\nswitch_2021/over*   # issue 12\n")
    run("--minimoe-xfails", "known.txt", test_mine=MARKED % 1).assert_outcomes(
        xfailed=1, failed=1)
    run("--minimoe-xfails", "known.txt", test_mine=MARKED % 0).assert_outcomes(
        failed=1, passed=1)
    done = run("--minimoe-xfails", "nothing.txt", test_mine=MARKED % 0)
    done.stderr.fnmatch_lines(["ERROR: --minimoe-xfails nothing.txt: No such file or directory"])


def test_what_fits_no_case_and_what_lacks_the_mark_is_said(run):
    done = run(test_mine="import pytest\n@pytest.mark.minimoe('switch_2021/nonsense')\n"
                         "def test_it(moe_case): pass")
    assert done.ret != 0 and "no case is called 'switch_2021/nonsense'" in done.stdout.str()
    done = run(test_mine="def test_it(moe_case): pass")
    done.stdout.fnmatch_lines(["moe_case: mark the test with @pytest.mark.minimoe(PATTERN)"])


def test_the_plugin_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, minimoe.pytest_plugin\n"
                               "print(*{m.partition('.')[0] for m in sys.modules})"],
        cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "scipy", "matplotlib", "tqdm"} & set(done.stdout.split())


TARGETS = SHIFTED + """
from tests.oracle.independent import switch
TARGETS = {"switch_2021/layer": %s}
"""


def test_the_battery_runs_against_a_module(run, monkeypatch):
    monkeypatch.setenv("MINIMOE_TARGET", "theirs")
    good = run("--pyargs", "minimoe.conformance", theirs=TARGETS % (0, "switch")).parseoutcomes()
    assert good["passed"] > 30 and "failed" not in good
    bad = run("--pyargs", "minimoe.conformance", theirs=TARGETS % (1, "layer")).parseoutcomes()
    assert bad["failed"] > 30


@pytest.mark.parametrize("target, said", [
    ("", "set MINIMOE_TARGET to the module that is to be held to the papers"),
    ("nowhere", "MINIMOE_TARGET=nowhere: No module named 'nowhere'"),
    ("empty", "empty needs TARGETS, a dict of functions by kind of run"),
    ("wrong", "TARGETS: no run is called switch_2021/nonsense; there are: *"),
])
def test_a_target_that_cannot_be_used_is_said(run, monkeypatch, target, said):
    monkeypatch.setenv("MINIMOE_TARGET", target)
    done = run("--pyargs", "minimoe.conformance", empty="",
               wrong="TARGETS = {'switch_2021/nonsense': print}")
    done.stdout.fnmatch_lines([said])
