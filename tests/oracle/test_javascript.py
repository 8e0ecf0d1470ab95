"""The vectors serve another language: the Switch router and balance loss in plain JavaScript."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from minimoe.oracle import known_bugs
from minimoe.oracle.vectors import vectors

PROGRAM = Path(__file__).resolve().parents[1] / "javascript" / "switch_router.mjs"
NODE = shutil.which("node")
CASES = ["exact", "exact_padding", "overflowing", "two_choices_overflowing", "groups",
         "two_choices_in_groups", "padding_in_groups", "all_padding", "ties", "ties_everywhere",
         "near_ties", "every_expert", "no_token", "large_logits", "wide"]

pytestmark = pytest.mark.skipif(NODE is None, reason="node, which runs JavaScript, is not on PATH")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_bugs, "KNOWN_BUGS", [])
        vectors([f"switch_2021/{name}" for name in CASES], directory)
    return directory


def run(directory, *bug):
    found = subprocess.run([NODE, PROGRAM, directory, *bug], capture_output=True, text=True,
                           timeout=60)
    assert found.stderr == "" or found.returncode == 2
    return found.returncode, found.stdout.splitlines()


def test_javascript_computes_what_the_vectors_have(exported):
    code, lines = run(exported)
    assert lines == [f"{len(CASES)} cases, {9 * len(CASES)} checkpoints, 0 cases differ"]
    assert code == 0


@pytest.mark.parametrize("bug, case, checkpoint", [
    ("no-capacity", "overflowing", "keep"),
    ("ties-high", "ties", "expert_index"),
    ("loss-without-E", "exact", "aux_loss"),
    ("f-after-capacity", "overflowing", "f"),
    ("padding-counted", "exact_padding", "f"),
    ("softmax-over-tokens", "exact", "probs"),
    ("one-queue-for-all-groups", "groups", "position_in_expert"),
    ("second-choices-with-the-first", "two_choices_overflowing", "position_in_expert"),
])
def test_a_planted_bug_is_found_in_case_and_checkpoint(exported, bug, case, checkpoint):
    code, lines = run(exported, "--bug", bug)
    assert code == 1
    found = dict(re.match(r"(switch_2021/\w+): (\w+) ", line).groups() for line in lines[:-1])
    assert found[f"switch_2021/{case}"] == checkpoint and set(found.values()) == {checkpoint}


def test_a_file_that_is_not_the_one_of_the_manifest_is_found(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    path = copy / "switch_2021" / "exact.json"
    path.write_text(path.read_text().replace("0.125", "0.25", 1))
    assert run(copy) == (1, ["switch_2021/exact: the file is not the one of the manifest",
                             f"{len(CASES)} cases, {9 * len(CASES) - 9} checkpoints, "
                             f"1 cases differ"])


def test_where_there_is_nothing_to_check_it_says_so(exported, tmp_path):
    assert run(exported, "--bug", "none")[0] == 2
    vectors(["switch_2021/capacity"], tmp_path)
    assert run(tmp_path) == (2, [])
