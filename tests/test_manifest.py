"""Every recorded run is accounted for: files and manifest match one to one."""
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from reference_runs.recorder import KINDS

REFERENCE_RUNS = Path(__file__).resolve().parents[1] / "reference_runs"
LARGEST = 20_000_000                       # bytes, all recorded files together
NOT_RUNS = {"cupy_namespace.json"}
NAMES = re.compile(r"(in|param|set|out)\.[\w.]+")
SAYS_MORE = {"authors": {"repository", "commit", "entry"},
             "third-party": {"repository", "commit", "entry"},
             "torch": {"of"}, "transcription": {"of"}}


def faults(folder):
    """What is wrong with ``manifest.json`` and the files below ``recorded``."""
    recorded = folder / "recorded"
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.relative_to(recorded).as_posix(): path
             for path in sorted(recorded.rglob("*")) if path.is_file()}
    beside = {name: sha256 for entry in manifest.values()
              for name, sha256 in entry.get("beside", {}).items()}
    known = {f"{case}.npz" for case in manifest} | beside.keys() | NOT_RUNS
    for name in sorted(files.keys() - known):
        yield f"{name} is not in the manifest"
    for name, sha256 in beside.items():
        if name not in files:
            yield f"{name} was not recorded"
        elif hashlib.sha256(files[name].read_bytes()).hexdigest() != sha256:
            yield f"{name}: the file's hash is another"
    for case, entry in manifest.items():
        if f"{case}.npz" not in files:
            yield f"{case} was not recorded"
        else:
            for fault in (*misrecorded(files[f"{case}.npz"], entry), *unexplained(entry)):
                yield f"{case}: {fault}"
    if list(manifest) != sorted(manifest):
        yield "the manifest is not sorted"
    size = sum(path.stat().st_size for path in files.values())
    if size > LARGEST:
        yield f"recorded files take {size:,} bytes"


def misrecorded(path, entry):
    """Where a file is another than its entry says."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        yield "the file's hash is another"
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as run:
            arrays = {key: f"{a.dtype}{list(a.shape)}" for key, a in run.items()}
    except Exception as error:       # whatever a damaged file makes zipfile or NumPy raise
        yield f"cannot be read: {error}"
        return
    for key in sorted(arrays.keys() | entry["arrays"].keys()):
        there, said = arrays.get(key, "nothing"), entry["arrays"].get(key, "nothing")
        if there != said:
            yield f"{key} is {there}, the manifest says {said}"
        if not NAMES.fullmatch(key):
            yield f"{key} is in no group"


def unexplained(entry):
    """What an entry does not say of where its numbers come from, or should not say."""
    if entry.keys() - {"beside"} != {"sha256", "source", "seed", "versions", "arrays"}:
        yield f"says {', '.join(sorted(entry))}"
    kind = entry["source"].get("kind")
    if kind not in KINDS:
        yield f"has a source of kind {kind}"
    elif not SAYS_MORE[kind] <= entry["source"].keys():
        yield f"does not say {', '.join(sorted(SAYS_MORE[kind] - entry['source'].keys()))}"
    if not isinstance(entry["seed"], int | None):      # none where nothing is drawn
        yield f"has the seed {entry['seed']}"
    if not {"python", "numpy"} < entry["versions"].keys():
        yield "does not say all versions"


def test_recorded_files_and_manifest_match():
    assert list(faults(REFERENCE_RUNS)) == []


def test_every_kind_of_source_says_more():
    assert set(SAYS_MORE) == set(KINDS)


# -- Each fault is seen --------------------------------------------------------------------------

def good(folder):
    """One recorded run with a file beside it, and its manifest."""
    path = folder / "recorded" / "switch_2021" / "roomy.npz"
    path.parent.mkdir(parents=True)
    path.with_name("config.json").write_bytes(b"{}")
    np.savez(path, **{"in.x": np.ones((2, 3)), "out.expert": np.array([0, 1])})
    write(folder, {"switch_2021/roomy": {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "seed": 0,
        "source": {"kind": "transcription", "of": "arXiv:2101.03961v3"},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "arrays": {"in.x": "float64[2, 3]", "out.expert": "int64[2]"},
        "beside": {"switch_2021/config.json": hashlib.sha256(b"{}").hexdigest()}}})
    return path


def write(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest))


def entry_with(**changes):
    def change(folder, path):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["switch_2021/roomy"].update(changes)
        write(folder, manifest)
    return change


def file_with(**arrays):
    def change(folder, path):
        np.savez(path, **{key.replace("__", "."): a for key, a in arrays.items()})
    return change


def more_entries(folder, path):
    manifest = json.loads((folder / "manifest.json").read_text())
    write(folder, {**manifest, "gshard_2020/lost": manifest["switch_2021/roomy"]})


ONES, EXPERTS = np.ones((2, 3)), np.array([0, 1])
PLANTED = [
    (lambda folder, path: path.with_name("stray.npz").touch(),
     ["switch_2021/stray.npz is not in the manifest"]),
    (lambda folder, path: path.with_name("notes.txt").touch(),
     ["switch_2021/notes.txt is not in the manifest"]),
    (lambda folder, path: path.with_name("config.json").write_bytes(b"[]"),
     ["switch_2021/config.json: the file's hash is another"]),
    (lambda folder, path: path.with_name("config.json").unlink(),
     ["switch_2021/config.json was not recorded"]),
    (more_entries, ["gshard_2020/lost was not recorded", "the manifest is not sorted"]),
    (file_with(in__x=ONES + 1, out__expert=EXPERTS), ["the file's hash is another"]),
    (file_with(in__x=ONES[:1], out__expert=EXPERTS),
     ["hash", "in.x is float64[1, 3], the manifest says float64[2, 3]"]),
    (file_with(in__x=ONES.astype("float32"), out__expert=EXPERTS),
     ["hash", "in.x is float32[2, 3], the manifest says float64[2, 3]"]),
    (file_with(in__x=ONES), ["hash", "out.expert is nothing, the manifest says int64[2]"]),
    (file_with(in__x=ONES, out__expert=EXPERTS, in__u=ONES),
     ["hash", "in.u is float64[2, 3], the manifest says nothing"]),
    (file_with(in__x=ONES, out__expert=EXPERTS, x=ONES),
     ["hash", "x is float64[2, 3], the manifest says nothing", "x is in no group"]),
    (file_with(in__x=np.array([{}]), out__expert=EXPERTS),
     ["hash", "cannot be read: Object arrays cannot be loaded when allow_pickle=False"]),
    (lambda folder, path: path.write_bytes(path.read_bytes()[:100]), ["hash", "cannot be read: "]),
    (entry_with(sha256="0" * 64), ["the file's hash is another"]),
    (entry_with(source={"of": "arXiv:2101.03961v3"}), ["has a source of kind None"]),
    (entry_with(source={"kind": "folklore"}), ["has a source of kind folklore"]),
    (entry_with(source={"kind": "transcription"}), ["does not say of"]),
    (entry_with(source={"kind": "authors", "commit": "abc"}),
     ["does not say entry, repository"]),
    (entry_with(seed="today"), ["has the seed today"]),
    (entry_with(versions={"python": "3.11.7"}), ["does not say all versions"]),
    (entry_with(recorded_at="2024-01-01"),
     ["says arrays, beside, recorded_at, seed, sha256, source, versions"]),
]


def test_a_good_manifest_has_no_fault(tmp_path):
    good(tmp_path)
    assert list(faults(tmp_path)) == []


@pytest.mark.parametrize("change, expected", PLANTED)
def test_a_fault_is_seen(tmp_path, change, expected):
    path = good(tmp_path)
    change(tmp_path, path)
    found = list(faults(tmp_path))
    assert len(found) == len(expected)
    assert all(part in fault for part, fault in zip(expected, found))


def test_files_that_are_too_large_are_seen(tmp_path, monkeypatch):
    size = good(tmp_path).stat().st_size + len("{}")
    monkeypatch.setattr("tests.test_manifest.LARGEST", size - 1)
    assert list(faults(tmp_path)) == [f"recorded files take {size:,} bytes"]
