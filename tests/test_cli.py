"""The command line: what it prints, to which stream, and its exit codes."""
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimoe import experiments, oracle, tree
from minimoe.__main__ import main
from minimoe.oracle import index
from minimoe.experiments import harness
from minimoe.oracle.runs import Run, read_arrays
from minimoe.papers import local_experts_1991
from tests.replay import RECORDED, RUNS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cli(capsys):
    """Runs one command; returns exit code, output and errors."""
    def run(*args):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit:   # argparse's way out
            code = exit.code
        return code, *capsys.readouterr()
    return run


# -- papers and show -----------------------------------------------------------------------------

def test_papers_gives_title_and_citation_of_each(cli):
    code, out, err = cli("papers")
    assert (code, err) == (0, "")
    assert out.startswith("local_experts_1991\n    Adaptive mixtures of local experts: ")
    assert "Neural Computation 3(1):79-87, 1991" in out
    assert "\nhierarchical_1994\n" in out


def test_papers_by_loss_lists_losses_of_every_paper_with_equation_file_and_line(cli):
    code, out, _ = cli("papers", "--by", "loss", "--json")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert {"cooperative_error", "mixture_error", "competitive_learning_log_likelihood"} <= set(
        found)
    assert not {"squared_errors", "responsibilities", "gate_logits"} & set(found)
    mixture = found["mixture_error"]
    assert (mixture["paper"], mixture["equation"]) == ("local_experts_1991", "Eq. (1.3)")
    line = Path(mixture["file"]).read_text().splitlines()[mixture["line"] - 1]
    assert line.startswith("def mixture_error(")


def test_papers_by_gate_and_by_capacity(cli):
    code, out, _ = cli("papers", "--by", "gate")
    assert code == 0 and " mixing_proportions " in out and "mixture_error" not in out
    code, out, _ = cli("papers", "--by", "capacity")
    assert code == 0 and " expert_capacity " in out and "mixing_proportions" not in out


def test_show_lists_what_cites_an_equation_in_the_order_of_the_file(cli):
    code, out, _ = cli("show", "local", "--json")
    names = [entry["name"] for entry in json.loads(out)]
    assert code == 0
    assert names.index("cooperative_error") < names.index("mixture_error") < names.index("blend")
    assert "squared_errors" not in names   # it cites nothing
    code, out, _ = cli("show", "local")
    assert out.startswith("local_experts_1991\n    Adaptive mixtures")
    assert "\nEq. (1.3)            mixture_error " in out


def test_show_lists_every_function_of_a_paper_whose_equations_have_no_numbers(cli, tmp_path,
                                                                              monkeypatch):
    (tmp_path / "bare_2000.py").write_text('"""Bare.\n\nCited."""\ndef gate():\n    """Half."""\n')
    monkeypatch.setattr(index, "PAPERS", tmp_path)
    code, out, _ = cli("show", "bare")
    assert code == 0 and out.endswith("bare_2000.py:4\n    Half.\n") and "\n--  " in out


@pytest.mark.parametrize("docstring, equation", [
    ("p, Eq. (4).", "Eq. (4)"),
    ("l. Eqs. (2.10)-(2.12)", "Eqs. (2.10)-(2.12)"),
    ("l. Eqs. (2), (3) and (A.14)", "Eqs. (2), (3) and (A.14)"),
    ("Seats. Algorithm 1, line 3; Appendix C.1", "Algorithm 1, Appendix C.1"),
    ("Jitter, Appendix B.", "Appendix B"),
    ("One.\n\nThe factor in Eq. (1.5), Figure 2, Table A.3.", "Eq. (1.5), Figure 2, Table A.3"),
    ("One, Eq. (1).\n\nSee Eq. (2).", "Eq. (1)"),
    ("A section of text with no number.", ""),
])
def test_what_a_docstring_cites(docstring, equation, tmp_path, monkeypatch):
    (tmp_path / "paper_2000.py").write_text(f'def f():\n    """{docstring}"""\n')
    monkeypatch.setattr(index, "PAPERS", tmp_path)
    assert index.functions("paper_2000")[0].equation == equation


# -- Names of papers -----------------------------------------------------------------------------

@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for name in ("switch_2021", "vmoe_2021", "mvae_2018", "mmvae_2019", "mmoe_2018",
                 "products_of_experts_1999", "generalized_poe_2022", "__init__", "helper"):
        (tmp_path / f"{name}.py").write_text(f'"""{name}.\n\nCited."""\n')
    monkeypatch.setattr(index, "PAPERS", tmp_path)


def test_papers_are_listed_oldest_first(shelf):
    assert index.names() == ["products_of_experts_1999", "mmoe_2018", "mvae_2018", "mmvae_2019",
                             "switch_2021", "vmoe_2021", "generalized_poe_2022"]


def test_an_index_of_what_no_paper_has_says_so(shelf, cli):
    assert cli("papers", "--by", "capacity") == (0, "none in the papers here\n", "")


@pytest.mark.parametrize("given, paper", [
    ("switch_2021", "switch_2021"), ("switch", "switch_2021"), ("s", "switch_2021"),
    ("poe", "generalized_poe_2022"), ("Products-of", "products_of_experts_1999"),
    ("experts", "products_of_experts_1999"), ("mmo", "mmoe_2018"),
])
def test_a_paper_goes_by_the_beginning_of_its_name_or_of_a_word(shelf, given, paper):
    assert index.find(given) == paper


@pytest.mark.parametrize("given, said", [
    ("mm", "'mm' may be any of: mmoe_2018, mmvae_2019"),
    ("2018", "'2018' may be any of: mmoe_2018, mvae_2018"),
    ("swich", "no paper is called 'swich'; near: switch_2021"),
    ("vmvae", "no paper is called 'vmvae'; near: mvae_2018, mmvae_2019, vmoe_2021"),
])
def test_a_name_of_no_paper_or_of_several_lists_those_near(shelf, cli, given, said):
    assert cli("show", given) == (2, "", f"minimoe: {said}\n")


def test_a_name_near_none_lists_them_all(shelf, cli):
    for given in ("", "zzz"):
        code, _, err = cli("show", given)
        assert code == 2 and all(name in err for name in index.names())
        assert len(err.splitlines()) == 1


# -- run -----------------------------------------------------------------------------------------

EXPERIMENT = """
from matplotlib.figure import Figure
from minimoe.experiments.harness import Claim, Result, progress

def run(settings):
    with progress(3, "starts") as bar:
        bar.update()
    holds = None if settings.quick else settings.seed == 0
    return Result("A title", [Claim("small", "0.1", f"seed {settings.seed}", holds)], [],
                  Figure(), {"backend": settings.backend})
"""


@pytest.fixture
def experiment(shelf, tmp_path, monkeypatch):
    """An experiment on vmoe_2021 whose one claim holds with seed 0."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "vmoe_2021.py").write_text(EXPERIMENT)
    monkeypatch.setattr(experiments, "__path__", [str(tmp_path / "experiments"),
                                                  *experiments.__path__])
    monkeypatch.delitem(sys.modules, "minimoe.experiments.vmoe_2021", raising=False)
    yield
    sys.modules.pop("minimoe.experiments.vmoe_2021", None)


def test_run_prints_claims_and_writes_figure_and_record(cli, experiment, tmp_path):
    out = tmp_path / "new" / "runs"
    code, said, err = cli("run", "vmoe", "--out", out)
    assert (code, err) == (0, "")
    assert said.startswith("A title\n") and "\nholds     small" in said and "seed 0" in said
    assert said.endswith(f"figure: {out}/vmoe_2021.png\nrecord: {out}/vmoe_2021.json\n")
    assert (out / "vmoe_2021.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "vmoe_2021.json").read_text())["met"] is True


def test_an_unmet_claim_ends_in_1_and_is_written_all_the_same(cli, experiment, tmp_path):
    code, said, _ = cli("run", "vmoe", "--seed", 5, "--out", tmp_path, "--json")
    record = json.loads(said)
    assert (code, record["met"], record["claims"][0]["measured"]) == (1, False, "seed 5")
    assert json.loads((tmp_path / "vmoe_2021.json").read_text()) == record


def test_a_quick_run_judges_nothing(cli, experiment, tmp_path):
    code, said, _ = cli("run", "vmoe", "--quick", "--seed", 5, "--out", tmp_path)
    assert code == 0 and "\nreported  small" in said


def test_no_gpu_is_one_line_and_leaves_nothing_behind(cli, experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)   # as good as not installed
    out = tmp_path / "runs"
    assert cli("run", "vmoe", "--backend", "cupy", "--out", out) == (
        2, "", "minimoe: --backend cupy: CuPy is not installed; "
               "install minimoe[cuda12] or minimoe[cuda13]\n")
    assert not out.exists()


def test_a_directory_that_cannot_be_written_is_one_line(cli, experiment, tmp_path):
    in_the_way = tmp_path / "runs"
    in_the_way.touch()
    assert cli("run", "vmoe", "--out", in_the_way) == (
        2, "", f"minimoe: --out {in_the_way}: File exists\n")
    assert cli("run", "vmoe", "--out", in_the_way / "deeper") == (
        2, "", f"minimoe: --out {in_the_way / 'deeper'}: Not a directory\n")
    (tmp_path / "vmoe_2021.png").mkdir()
    assert cli("run", "vmoe", "--out", tmp_path) == (
        2, "", f"minimoe: --out {tmp_path}: Is a directory\n")


def test_a_file_that_no_experiment_reads_is_one_line_and_leaves_nothing_behind(
        cli, experiment, tmp_path):
    out, data = tmp_path / "runs", tmp_path / "file"
    data.touch()
    assert cli("run", "vmoe", "--data", data, "--out", out) == (
        2, "", f"minimoe: --data {data}: the experiment of vmoe_2021 reads no file\n")
    assert not out.exists()


def test_an_experiment_is_given_the_file_that_it_reads(cli, experiment, tmp_path, monkeypatch):
    vmoe = importlib.import_module("minimoe.experiments.vmoe_2021")

    def run(settings):
        with harness.reading(), open(settings.data) as file:
            return vmoe.Result(file.read(), [], [], vmoe.Figure(), {"n": int(file.name[-1])})

    monkeypatch.setattr(vmoe, "DATA", "a title", raising=False)
    monkeypatch.setattr(vmoe, "run", run)
    good, bad, missing = (tmp_path / name for name in ("the 1", "x", "missing"))
    good.write_text("A title"), bad.write_text("")
    code, said, err = cli("run", "vmoe", "--data", good, "--out", tmp_path, "--json")
    record = json.loads(said)
    assert (code, record["title"], record["settings"]["data"]) == (0, "A title", str(good))
    assert record["command"].endswith(f" --data '{good}'")
    assert cli("run", "vmoe", "--data", missing, "--out", tmp_path / "runs") == (
        2, "", f"minimoe: --data {missing}: No such file or directory\n")
    assert not (tmp_path / "runs").exists()
    assert cli("run", "vmoe", "--data", bad, "--out", tmp_path) == (
        2, "", f"minimoe: --data {bad}: invalid literal for int() with base 10: 'x'\n")


def test_a_paper_without_an_experiment_is_one_line(cli, tmp_path, monkeypatch):
    (tmp_path / "unmade_2000.py").write_text('"""Unmade.\n\nCited."""\n')
    monkeypatch.setattr(index, "PAPERS", tmp_path)
    assert cli("run", "unmade") == (2, "", "minimoe: unmade_2000 has no experiment\n")


def test_a_terminal_gets_a_progress_bar_and_a_pipe_gets_none(experiment, tmp_path, capfd,
                                                             monkeypatch):
    arguments = ["run", "vmoe", "--out", str(tmp_path)]
    main(arguments)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(arguments)
    assert "starts" in capfd.readouterr().err


# -- compare -------------------------------------------------------------------------------------

@pytest.fixture
def recorded():
    """A recorded run that tests may change before they save it as their own."""
    return read_arrays(RECORDED / "local_experts_1991" / "roomy.npz")


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "mine.npz"


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_compare_agrees_with_a_recorded_run(cli, run):
    n = sum(key.startswith("out.") for key in read_arrays(run.path))
    code, out, err = cli("compare", run.name, run.path)
    assert (code, err) == (0, "") and out.startswith(f"agrees with {run.name} in float")
    assert out.count("\n  = ") == n and len(out.splitlines()) == n + 1


def test_compare_says_which_kinds_of_run_there_are(cli, mine):
    code, out, err = cli("compare", "switch", mine)
    assert (code, out) == (2, "")
    assert err.startswith("minimoe: switch_2021 has several kinds of run; there are: switch_2021/")
    code, out, err = cli("compare", "switch/nonsense", mine)
    assert (code, out) == (2, "")
    assert err.startswith("minimoe: no run is called switch_2021/nonsense; there are: switch_2021/")
    assert cli("compare", "local/nonsense", mine) == (
        2, "", "minimoe: no run is called local_experts_1991/nonsense; there is: "
               "local_experts_1991; for its cases: minimoe cases local_experts_1991\n")


def test_compare_names_the_places_where_a_run_disagrees(cli, recorded, mine):
    recorded["out.expert"][3] += 1
    recorded["out.o"][2, 1, 0] *= 1 + 1e-6
    np.savez(mine, **recorded)
    code, out, err = cli("compare", "local", mine)
    expert = recorded["out.expert"][3]
    assert (code, err) == (1, "")
    assert re.search(rf"\n  X o +differs first at \(2, 1, 0\): yours \S+, paper's \S+; "
                     rf"1 of {recorded['out.o'].size} places, up to ", out)
    assert re.search(rf"\n  . expert_index +differs first at \(3,\): yours {expert}, "
                     rf"paper's {expert - 1}; 1 of", out)
    assert "\nfirst divergence: o differs first at (2, 1, 0)" in out


def test_compare_prints_the_same_for_programs(cli, recorded, mine):
    recorded["out.expert"][3] += 1
    recorded["out.o"][2, 1, 0] = np.nan
    np.savez(mine, **recorded)
    code, out, _ = cli("compare", "local", mine, "--json")
    said = json.loads(out, parse_constant=pytest.fail)   # NaN is no JSON
    assert (code, said["ok"], said["first_divergence"]) == (1, False, "o")
    assert said["problems"] == ["o is nan in 1 places, first at (2, 1, 0)"]
    found = {finding["name"]: finding for finding in said["findings"]}
    assert (found["o"]["first"], found["o"]["got"]) == ([2, 1, 0], "nan")
    assert (found["expert_index"]["places"], found["expert_index"]["error"]) == (1, None)
    assert found["expert_index"]["got"] == found["expert_index"]["want"] + 1


def test_compare_takes_whichever_outputs_there_are(cli, recorded, mine):
    np.savez(mine, **{key: array for key, array in recorded.items()
                      if key not in ("out.o", "out.grad.mixture_error.w_gate")})
    code, out, _ = cli("compare", "local", mine)
    assert code == 0 and out.endswith("\n  not given: o\n")


def test_compare_holds_the_outputs_of_a_named_case_to_it(cli, tmp_path):
    case = oracle.case("local/roomy")
    want = oracle.trace(case)
    for ending, save in (("npz", lambda path, arrays: np.savez(path, **arrays)),
                         ("json", lambda path, arrays: path.write_text(json.dumps(
                             {name: array.tolist() for name, array in arrays.items()})))):
        path = tmp_path / f"mine.{ending}"
        save(path, {"in.x": case.run().inputs["x"], "out.p": want["p"],
                    "out.expert_index": want["expert_index"]})
        code, out, _ = cli("compare", "local/roomy", path)
        assert code == 0 and out.startswith("agrees with local_experts_1991/roomy in float64\n")
        save(path, {"out.p": want["p"], "out.expert_index": want["expert_index"] + 1})
        code, out, _ = cli("compare", "local/roomy", path, "--figure", tmp_path / "where.png")
        assert code == 1 and "first divergence: p agrees to 0 eps (of " in out
        assert (tmp_path / "where.png").stat().st_size > 10_000


def test_cases_lists_those_that_fit_and_says_what_goes_into_one(cli):
    code, out, _ = cli("cases", "switch", "--tags", "padding")
    assert code == 0 and out and all("padding" in line for line in out.splitlines() if "/" in line)
    code, out, _ = cli("cases", "local/roomy")
    assert code == 0 and re.search(r"\n    w_experts +float64 \[3, ", out)
    code, out, err = cli("cases", "local/rommy")
    assert (code, out) == (2, "") and "local_experts_1991/roomy" in err
    code, out, _ = cli("cases", "local/roomy", "--json")
    assert json.loads(out)[0]["id"] == "local_experts_1991/roomy"


def test_compare_adds_no_rounding_of_its_own_to_a_float32_run(cli, mine):
    arrays = read_arrays(RECORDED / "local_experts_1991" / "far_targets.npz")
    given = {key: array.astype("float32") for key, array in arrays.items()
             if not key.startswith("out.")}
    run = Run(*({key.partition(".")[2]: array.astype("float64") for key, array in given.items()
                 if key.startswith(f"{group}.")} for group in ("in", "param", "set", "out")))
    outputs = tree.named_leaves(local_experts_1991.oracle(run))
    rounded = {f"out.{name}": array.astype("float32") if array.dtype == float else array
               for name, array in outputs.items()}
    np.savez(mine, **given, **rounded)
    code, out, _ = cli("compare", "local", mine)
    assert code == 0 and out.count("\n  = ") == len(rounded)


@pytest.mark.parametrize("key, value, said", [
    ("in.nothing", np.zeros(3), "in.nothing is unknown; "),
    ("in.u", np.zeros((3, 1)), "in.u: shape (3, 1) does not fit N\n"),
    ("in.x", np.array([{}]), "in.x holds pickled objects"),
    ("param.w_gate", np.zeros((2, 2), complex), "param.w_gate holds "),
])
def test_compare_refuses_a_file_in_one_line(cli, recorded, mine, key, value, said):
    np.savez(mine, **recorded | {key: value})
    code, out, err = cli("compare", "local", mine)
    assert (code, out) == (2, "")
    assert err.startswith(f"minimoe: {mine}: {said}"[:-1]) and err.count("\n") == 1


def test_compare_names_an_output_that_it_cannot_use(cli, recorded, mine):
    np.savez(mine, **recorded | {"out.o": np.zeros(3), "out.nothing": np.zeros(3)})
    code, out, _ = cli("compare", "local", mine)
    assert code == 2 and out.startswith("cannot be held to local_experts_1991 in float64\n"
                                        "  problem: o: needs shape (")
    assert "\n  problem: nothing is not an intermediate of this case; there are: o, " in out


def test_compare_refuses_what_is_no_run_in_one_line(cli, mine, tmp_path):
    assert cli("compare", "local", mine) == (
        2, "", f"minimoe: {mine}: No such file or directory\n")
    assert cli("compare", "local", tmp_path) == (2, "", f"minimoe: {tmp_path}: Is a directory\n")
    mine.write_text("not a run")
    assert cli("compare", "local", mine) == (
        2, "", f"minimoe: {mine}: is not a .npz file, as numpy.savez writes it\n")
    mine.write_bytes((RECORDED / "local_experts_1991" / "roomy.npz").read_bytes()[:-9])
    assert cli("compare", "local", mine) == (
        2, "", f"minimoe: {mine}: is truncated or damaged\n")


def test_compare_passes_on_what_the_paper_refuses(cli, mine):
    run = read_arrays(sorted((RECORDED / "hierarchical_1994").glob("*.npz"))[0])
    np.savez(mine, **run | {"param.w_gates.0": np.zeros(3)})
    code, out, err = cli("compare", "hierarchical", mine)
    assert (code, out) == (2, "")
    assert err.startswith(f"minimoe: {mine}: hierarchical: gates of level 0 ")
    assert err.count("\n") == 1


def test_compare_does_not_stumble_over_numbers_that_overflow(cli, recorded, mine):
    recorded["in.d"][:] = 1e200
    np.savez(mine, **recorded)
    code, out, err = cli("compare", "local", mine)
    assert (code, err) == (1, "")
    assert "paper's inf" in out


# -- Manners -------------------------------------------------------------------------------------

def test_every_verb_has_help_with_an_example(cli):
    for verb in ("papers", "show", "run", "cases", "compare", "vectors"):
        code, out, _ = cli(verb, "--help")
        assert code == 0 and f"example: minimoe {verb}" in out


@pytest.mark.parametrize("args", [
    (), ("fly",), ("show",), ("papers", "--by", "colour"), ("run", "local", "--seed", "-1"),
    ("run", "local", "--seed", "x"), ("run", "local", "--backend", "torch"),
])
def test_a_request_that_cannot_be_read_ends_in_2(cli, args):
    code, out, err = cli(*args)
    assert (code, out) == (2, "") and err.startswith("usage: minimoe")


def test_help_loads_neither_matplotlib_nor_scipy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "minimoe", "--help"], cwd=ROOT,
        capture_output=True, text=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0]
              for line in done.stderr.splitlines()}
    assert done.stdout.startswith("usage: minimoe") and "numpy" in loaded
    assert not {"matplotlib", "scipy", "tqdm"} & loaded


def test_an_interrupt_is_one_line_and_130(cli, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt
    monkeypatch.setattr(index, "names", interrupt)
    assert cli("papers") == (130, "", "minimoe: interrupted\n")


def test_a_reader_that_has_had_enough_gets_no_complaint():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "minimoe", "papers"], cwd=ROOT, stdout=write,
                          stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "minimoe", "papers"], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (2, b"minimoe: No space left on device\n")
