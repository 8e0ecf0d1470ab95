"""The record of what third-party packages were found to do: of cases that there are, all read."""
from pathlib import Path

import numpy as np
import pytest

from minimoe import oracle
from minimoe.oracle.kinds import kinds
from minimoe.papers import switch_2021 as switch
from reference_runs.third_party import holding
from reference_runs.third_party.holding import Check, Reading

ENTRIES = holding.read()
IDS = [f"{e['package']} {e['version']}, {e['what']}, {e['paper']}" for e in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_an_entry_is_of_cases_as_they_are(entry):
    assert set(entry["kinds"]) <= set(kinds(entry["paper"]))
    for key, found in entry["cases"].items():
        case = oracle.case(key)
        assert case.paper == entry["paper"] and case.kind in entry["kinds"]
        assert found["sha256"] == holding.digest(case), f"{key} has changed: hold it again"


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_every_difference_was_read_and_every_reading_is_of_one(entry):
    differ = [(at, name) for found in entry["cases"].values()
              for at, names in found["differ"].items() for name in names or [""]]
    assert {at for at, _ in differ} == {reading["at"] for reading in entry["readings"]}
    for reading in entry["readings"]:
        assert ".py: " in reading["source"] and reading["why"]
        assert not reading["name"] or (reading["at"], reading["name"]) in differ
    assert set(entry["given"]) >= {at for at, _ in differ} and len(entry["given"]) > 0


def test_what_the_issue_names_is_in_it():
    held = {(entry["package"], entry["version"].partition(".")[0]) for entry in ENTRIES}
    assert {("transformers", "4"), ("transformers", "5"), ("fairscale", "0"), ("deepspeed", "0"),
            ("mixture-of-experts", "0"), ("st-moe-pytorch", "0"), ("deepctr-torch", "0"),
            ("torch-rechub", "0"), ("multivae", "1"), ("scikit-learn", "1")} <= held


def test_the_readme_has_the_table():
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    assert holding.table(ENTRIES) in readme


# -- The checker, on a package of our own --------------------------------------------------------

def layer(case, give_back=False):
    """The Switch layer; with a defect, a dropped token is its gate times itself."""
    params = switch.SwitchParams(case.w_router, case.w_in, case.w_out)
    out = switch.switch_ffn(params, case.x, case.capacity, case.k, case.n_groups, case.used)
    kept = out.routing.keep.any(axis=-1, keepdims=True)
    y = np.where(kept, out.y, out.routing.gate[:, :1] * case.x) if give_back else out.y
    return {"keep": out.routing.keep, "y": y, "aux_loss": out.aux_loss}


def wrong_layer(case):
    return layer(case, give_back=True)


def two_cases(case):
    return case.id in ("switch_2021/roomy", "switch_2021/overflowing")


def held(fn, *readings):
    return holding.held(Check("numpy", "a layer", "switch_2021", {"layer": fn}, readings,
                              two_cases, "float64", "numpy"))


READ = Reading("y", "layer.py: forward", "what is dropped comes back", "R2")


def test_a_layer_that_is_right_agrees():
    entry = held(layer)
    assert holding.outcome(entry).startswith("agrees in all, to ")
    assert entry["given"] == ["keep", "y", "aux_loss"] and entry["package"] == "numpy"


def test_a_defect_is_counted_and_called_by_its_name():
    agrees, differs = holding.outcome(held(wrong_layer, READ)).split("<br>")
    assert agrees.startswith("agrees in 1, to ")
    assert differs == ("known bug **R2** at `y` in 1: what is dropped comes back "
                       "(layer.py: forward)")


@pytest.mark.parametrize("fn, readings, said", [
    (wrong_layer, (), "differs at y, which nobody has read"),
    (layer, (READ,), "does not differ at y"),
    (wrong_layer, (READ._replace(name="R1"),), "y is not called R1, but R2, a dropped token is"),
    (lambda case: {"y": [1.0]}, (), "y: needs a NumPy array"),
    (lambda case: 1 / 0, (), "raised ZeroDivisionError"),
])
def test_what_is_not_recorded(fn, readings, said):
    with pytest.raises(ValueError, match=said):
        held(fn, *readings)


def test_a_check_without_a_case_that_fits_is_an_error():
    with pytest.raises(ValueError, match="a kind of a layer has no case that fits"):
        holding.held(Check("numpy", "a layer", "switch_2021", {"layer": layer, "attention": layer},
                           fits=two_cases))


def test_table_by_hand():
    other = READ._replace(name="", why="another reason")
    counted = Reading("f", "f.py: f", "all count", "all")
    entry = {"package": "p", "version": "1.2", "what": "Layer", "paper": "switch_2021",
             "kinds": ["layer", "pseudocode"], "dtype": "float32",
             "readings": [reading._asdict() for reading in (
                 READ, other, counted, counted._replace(at="P"))],
             "cases": {"a": {"differ": {}, "problems": [], "error": 0.25},
                       "b": {"differ": {"y": ["R2"], "f": ["all"], "P": ["all"]}, "problems": [],
                             "error": 9.0},
                       "c": {"differ": {"y": [], "f": []}, "problems": [], "error": 0.0}}}
    assert holding.table([entry]).splitlines()[2] == (
        "| p 1.2 | Layer | `switch_2021/layer`, `pseudocode` | 3 "
        "| agrees in 1, to 0.2 eps of float32"
        "<br>known bug **R2** at `y` in 1: what is dropped comes back (layer.py: forward)"
        "<br>differs at `y` in 1: another reason"
        "<br>convention at `f` in 2 (called so in 1) and `P` in 1: all count (f.py: f) |")


def test_the_record_keeps_what_other_versions_gave(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "RECORDED", tmp_path / "recorded.json")
    entry = held(layer)
    of_others = [{**entry, "version": version} for version in ("10.0", "9.0")]
    holding.write([*of_others, {**entry, "what": "no longer held"}])
    holding.write([entry])
    assert [(found["version"], found["what"]) for found in holding.read()] == [
        (entry["version"], "a layer"), ("9.0", "a layer"), ("10.0", "a layer")]
