"""Exported vectors: what is written is what was computed, said once more by other readers."""
import argparse
import hashlib
import json
import sys
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors

from minimoe.cli import vectors as cli
from minimoe.oracle import cases, known_bugs, trace, vectors as module
from minimoe.oracle.cases import UnknownCase, case as find_case
from minimoe.oracle.files import read_file
from minimoe.oracle.schema import faults, read_schema
from minimoe.oracle.variants import Variant
from minimoe.oracle.vectors import FLAGS, FORMATS, VectorsError, vectors
from minimoe.papers import switch_2021

SOME = ["switch_2021/overflowing", "switch_2021/every_expert", "switch_2021/no_token",
        "switch_2021/exact_padding", "local_experts_1991/roomy"]


@pytest.fixture(autouse=True)
def no_known_bugs(monkeypatch):
    """What a case guards against takes longest, and has tests of its own."""
    monkeypatch.setattr(known_bugs, "KNOWN_BUGS", [])


@pytest.fixture
def some():
    known = {case.id for case in cases()}
    return [id for id in SOME if id in known]


def expected(case):
    """What a file of a case holds, by key."""
    run = case.run()
    groups = {"in": run.inputs, "param": run.params, "set": run.settings, "out": trace(case)}
    return {f"{group}.{name}": np.array(value)
            for group, part in groups.items() for name, value in part.items()}


def same(found, arrays):
    return found.keys() == arrays.keys() and all(
        found[key].dtype == array.dtype and found[key].shape == array.shape
        and found[key].tobytes() == array.tobytes() for key, array in arrays.items())


# -- What is written -----------------------------------------------------------------------------

@pytest.mark.parametrize("format", FORMATS)
def test_a_file_holds_what_goes_in_and_every_intermediate(tmp_path, some, format):
    manifest = vectors(some, tmp_path, format)
    assert [entry["id"] for entry in manifest["cases"]] == some
    for entry in manifest["cases"]:
        path = tmp_path / entry["file"]
        assert same(read_file(path).arrays, expected(find_case(entry["id"])))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(json.dumps(manifest))


def test_other_readers_find_the_same(tmp_path, some):
    vectors(some, tmp_path / "npz", "npz")
    vectors(some, tmp_path / "safetensors", "safetensors")
    for id in some:
        with np.load(tmp_path / "npz" / f"{id}.npz", allow_pickle=False) as file:
            assert same(dict(file), expected(find_case(id)))
        data = (tmp_path / "safetensors" / f"{id}.safetensors").read_bytes()
        assert same(load_safetensors(data), expected(find_case(id)))


def test_a_file_of_json_needs_no_other(tmp_path):
    vectors(["switch_2021/every_expert"], tmp_path)
    text = (tmp_path / "switch_2021" / "every_expert.json").read_text("ascii")
    file = json.loads(text, parse_constant=pytest.fail)
    about = file["__metadata__"]
    assert about["id"] == "switch_2021/every_expert" and "arXiv:2101.03961v3" in about["citation"]
    assert {"function": "switch_2021.router_probs", "equation": "Eq. (1)"} in about["equations"]
    assert about["flags"] == ["degenerate", "k=E"] and "k=E" in FLAGS
    assert file["set.k"] == 4
    # of the fourth choice of four there is no next
    assert file["out.margin"]["data"][3] == "Infinity"
    floats = [name.removeprefix("out.") for name, array in file.items()
              if name.startswith("out.") and array["dtype"] == "float64"]
    assert list(about["tolerances"]) == floats


def test_the_equations_are_those_of_what_a_kind_of_run_calls():
    """Of a partial, and through one, too."""
    paper = switch_2021.switch_ffn.__globals__
    called = module._called(partial(partial(paper["layer_oracle"]), paper["jitter"]))
    assert {"layer_oracle", "jitter", "switch_ffn", "mean_probability"} <= {
        function.__name__ for function in called}
    assert "distillation_loss" not in {function.__name__ for function in called}
    for kind in {(case.paper, case.kind): case for case in cases()}.values():
        assert all(entry["equation"] for entry in module._equations(kind))


def test_the_manifest_says_how_near_is_right(tmp_path):
    exact, other = vectors(["switch_2021/exact", "switch_2021/roomy"], tmp_path)["cases"]
    if exact["id"] != "switch_2021/exact":
        exact, other = other, exact
    assert exact["tolerances"]["logits"]["exact"] and not exact["tolerances"]["probs"]["exact"]
    assert not other["tolerances"]["logits"]["exact"]
    assert 8 <= other["tolerances"]["y"]["c"] <= 64


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_made_twice_is_the_same_to_the_byte(tmp_path, some, format):
    def written(directory):
        vectors(some, directory, format)
        return {path.relative_to(directory): path.read_bytes()
                for path in directory.rglob("*") if path.is_file()}

    first = written(tmp_path / "first")
    assert len(first) == len(some) + 3
    assert written(tmp_path / "second") == first
    assert written(tmp_path / "first") == first      # over itself


def test_all_cases_are_those_of_no_key(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_write_case", lambda case, *_: {
        "id": case.id, "flags": list(case.tags)})
    monkeypatch.setattr(module, "_hold_to_schema", lambda *_: None)
    tmp_path.joinpath("all").mkdir()
    manifest = vectors([], tmp_path / "all")
    assert [entry["id"] for entry in manifest["cases"]] == [case.id for case in cases()]


def test_of_each_flag_the_manifest_says_what_it_guards_against():
    unsaid = {tag for case in cases() for tag in case.tags} - FLAGS.keys()
    assert not unsaid


# -- What is refused -----------------------------------------------------------------------------

def refused(keys, directory, format="json"):
    with pytest.raises(VectorsError) as caught:
        vectors(keys, directory, format)
    return str(caught.value)


def test_a_directory_that_holds_other_files(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / name).touch()
    assert refused(["switch_2021/roomy"], tmp_path) == (
        f"{tmp_path} holds other files: a.txt, b.txt, c.txt and 1 more; needs a new or empty "
        f"directory, or the same export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "c.txt", "d.txt"]


def test_a_directory_that_holds_another_export(tmp_path):
    vectors(["switch_2021/exact"], tmp_path)
    assert refused(["switch_2021/roomy"], tmp_path).startswith(
        f"{tmp_path} holds other files: switch_2021/exact.json; ")


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    assert refused(["switch_2021/roomy"], tmp_path / "file") == (
        f"{tmp_path / 'file'} is a file; needs a directory")


def test_unknown_keys_and_formats(tmp_path):
    with pytest.raises(UnknownCase):
        vectors(["switch_2021/rooms"], tmp_path / "new")
    assert refused(["switch_2021/roomy"], tmp_path / "new", "pt") == (
        "format is one of json, npz, safetensors; got 'pt'")
    assert not (tmp_path / "new").exists()


def test_safetensors_of_arrays_that_are_not_contiguous():
    x = np.arange(6.0).reshape(2, 3)
    with pytest.raises(VectorsError, match="safetensors: b, c: needs contiguous arrays"):
        module._safetensors({"a": x, "b": x.T, "c": x[:, ::-1]}, "some/case")


def test_a_file_that_reads_back_as_something_else(tmp_path, monkeypatch):
    def save(arrays, metadata):
        """As the package does with what is not contiguous: the memory as it lies."""
        from safetensors.numpy import save
        return save({key: np.array(a.T.ravel().reshape(a.shape)) for key, a in arrays.items()})

    monkeypatch.setattr(module, "_safetensors", save)
    said = refused(["switch_2021/roomy"], tmp_path, "safetensors")
    assert "roomy.safetensors does not read back as it was written: " in said
    assert "out.y" in said and not (tmp_path / "manifest.json").exists()


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert "pip install 'minimoe[checkpoints]'" in refused(["switch_2021/roomy"], tmp_path,
                                                           "safetensors")


def test_a_paper_without_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cases", lambda key: [])
    assert refused(["switch"], tmp_path) == "there are no cases of switch"


def test_what_does_not_fit_its_schema_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setitem(FLAGS, "k=E", "")
    assert refused(["switch_2021/every_expert"], tmp_path) == (
        "the manifest does not fit its schema: /flags/k=E: needs a length from 1; got ''")
    assert not (tmp_path / "manifest.json").exists()


# -- Guards and derivations ----------------------------------------------------------------------

def guards(id, bug, monkeypatch, tmp_path):
    monkeypatch.setattr(known_bugs, "KNOWN_BUGS", [bug])
    entry, = vectors([id], tmp_path)["cases"]
    return entry["guards"]


def wrong(concerns="switch_2021/layer", **replaces):
    return Variant("Z1", "something wrong", (concerns,), replaces, ("somebody/something#1",))


def test_a_bug_that_a_case_tells_from_the_paper_is_named_with_its_first_output(
        monkeypatch, tmp_path):
    def without_E(paper):
        right = paper.load_balancing_loss
        return lambda probs, *rest: right(probs, *rest) / probs.shape[-1]

    assert guards("switch_2021/roomy", wrong(load_balancing_loss=without_E), monkeypatch,
                  tmp_path) == [{"name": "Z1", "title": "something wrong", "first": "aux_loss",
                                 "reported": ["somebody/something#1"]}]


@pytest.mark.parametrize("id, concerns", [
    ("switch_2021/one_expert", "switch_2021/layer"), ("switch_2021/roomy", "switch_2021/other")])
def test_a_bug_that_a_case_does_not_show_or_that_concerns_another_kind(
        monkeypatch, tmp_path, id, concerns):
    def times_one(paper):
        right = paper.load_balancing_loss
        factor = 2 if id == "switch_2021/roomy" else 1
        return lambda *args: right(*args) * factor

    assert guards(id, wrong(concerns, load_balancing_loss=times_one), monkeypatch, tmp_path) == []


def test_a_bug_that_crashes_and_one_that_loses_an_axis(monkeypatch, tmp_path):
    def crash(paper):
        return lambda *args: 1 / 0

    assert guards("switch_2021/roomy", wrong(load_balancing_loss=crash), monkeypatch,
                  tmp_path / "crash") == []
    bug = Variant("Z2", "half of it", ("switch_2021/layer",), {},
                  changes=lambda trace, run, paper: {"P": trace["P"][..., :2]})
    found, = guards("switch_2021/roomy", bug, monkeypatch, tmp_path / "axis")
    assert found["first"] == "P"


def test_a_choice_between_equals_is_not_taken_for_a_bug(monkeypatch, tmp_path):
    def highest_index(paper):
        right = paper.top_k

        def top_k(scores, k):
            return scores.shape[-1] - 1 - right(scores[:, ::-1], k)
        return top_k

    bug = wrong(top_k=highest_index)
    assert guards("switch_2021/ties_everywhere", bug, monkeypatch, tmp_path / "ties") == []


def test_other_derivations_follow_ours(monkeypatch, tmp_path):
    by_hand = {"by": "token by token, in torch", "agreement": 1.5}
    monkeypatch.setattr(module, "_derivations", lambda: {"switch_2021/roomy": [by_hand]})
    entry, = vectors(["switch_2021/roomy"], tmp_path)["cases"]
    ours, other = entry["derivations"]
    assert ours["by"].startswith("minimoe ") and other == by_hand


def test_derivations_are_of_cases_that_there_are():
    assert module._derivations().keys() <= {case.id for case in cases()}


# -- The schemas ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A manifest and a case, less its gradients, as JSON has them."""
    directory = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_bugs, "KNOWN_BUGS", [])
        vectors(["switch_2021/every_expert"], directory)
    case = json.loads((directory / "switch_2021" / "every_expert.json").read_text())
    return {"manifest": json.loads((directory / "manifest.json").read_text()),
            "case": {key: value for key, value in case.items() if "grad" not in key}}


def changed(value, path, new):
    """A copy with one place made another, or taken away."""
    value = json.loads(json.dumps(value))
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    if new is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


WRONG = [
    ("manifest", ("schema",), 2), ("manifest", ("schema",), True), ("manifest", ("schema",), None),
    ("manifest", ("minimoe",), "unknown"), ("manifest", ("format",), "csv"),
    ("manifest", ("extra",), 1), ("manifest", ("rule",), []), ("manifest", ("rule", 0), 1),
    ("manifest", ("eps", "float32"), 0), ("manifest", ("eps", "bfloat16"), None),
    ("manifest", ("flags", "k=E"), ""), ("manifest", ("papers", "switch_2021", "title"), None),
    ("manifest", ("cases",), []), ("manifest", ("cases", 0, "id"), "Switch"),
    ("manifest", ("cases", 0, "sha256"), "0"), ("manifest", ("cases", 0, "derivations"), []),
    ("manifest", ("cases", 0, "derivations", 0, "agreement"), -1),
    ("manifest", ("cases", 0, "sizes", "T"), 1.5), ("manifest", ("cases", 0, "sizes", "T"), -1),
    ("manifest", ("cases", 0, "settings", "k"), "4"),
    ("manifest", ("cases", 0, "tolerances", "y", "c"), "8"),
    ("manifest", ("cases", 0, "tolerances", "y", "exact"), 0),
    ("manifest", ("cases", 0, "file"), "../every_expert.json"),
    ("case", ("__metadata__",), None), ("case", ("__metadata__", "id"), None),
    ("case", ("y",), 1), ("case", ("out.y", "dtype"), "float8"), ("case", ("out.y", "shape"), 3),
    ("case", ("out.y", "shape", 0), -1), ("case", ("out.y", "data", 0), "nan"),
    ("case", ("out.y", "data", 0), [1]), ("case", ("out.y", "data"), None),
    ("case", ("set.k",), "4"), ("case", ("set.k",), {"k": 4}),
]


@pytest.mark.parametrize("name", ["manifest", "case"])
def test_an_export_fits_its_schema_as_others_read_it(exported, name):
    validators = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = read_schema(name)
    validators.Draft202012Validator.check_schema(schema)
    validator = validators.Draft202012Validator(schema)
    validator.validate(exported[name])
    for which, path, new in WRONG:
        if which == name:
            assert not validator.is_valid(changed(exported[name], path, new)), path


@pytest.mark.parametrize("name, path, new", WRONG)
def test_what_does_not_fit_a_schema_is_found(exported, name, path, new):
    assert list(faults(exported[name], read_schema(name))) == []
    said, = set(faults(changed(exported[name], path, new), read_schema(name)))
    there = "/".join(["", *map(str, path)])
    assert said.startswith(f"{there}: " if new is not None or said.startswith(there) else "/")


def test_a_schema_that_asks_for_what_is_not_built():
    with pytest.raises(ValueError, match="faults: a schema's keyword is one of .*; got oneOf"):
        list(faults(1, {"oneOf": []}))


def test_the_schemas_are_written_beside_the_manifest(tmp_path):
    vectors(["switch_2021/no_token"], tmp_path)
    for name in ("manifest", "case"):
        assert json.loads((tmp_path / f"{name}.schema.json").read_text()) == read_schema(name)


# -- The verb ------------------------------------------------------------------------------------

@pytest.fixture
def verb(capsys):
    """Runs the verb; what it prints."""
    def run(*given):
        parser = argparse.ArgumentParser()
        parser.add_argument("--json", action="store_true")
        cli.add_arguments(parser)
        assert cli.vectors(parser.parse_args([str(word) for word in given])) == 0
        return capsys.readouterr().out
    return run


def test_the_verb_says_what_it_wrote(verb, tmp_path):
    out = tmp_path / "out"
    assert verb("switch/no_token", "--out", out) == (
        f"1 case of switch_2021, as json\nmanifest: {out / 'manifest.json'}\n")
    assert json.loads(verb("switch/no_token", "--out", out, "--json")) == {
        "manifest": str(out / "manifest.json"), "format": "json", "cases": 1}


def test_the_verb_refuses_in_one_line(verb, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(VectorsError, match=f"^{tmp_path} holds other files: mine.txt; "):
        verb("switch/no_token", "--out", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(VectorsError, match=f"^--out {tmp_path / 'file' / 'new'}: Not a directory"):
        verb("switch/no_token", "--out", tmp_path / "file" / "new")
