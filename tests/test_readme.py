"""What the README shows is what happens."""
import re
import shlex
from pathlib import Path

import pytest

from minimoe.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def rounded(text):
    """Numbers to five digits, measured tolerances left out: the last digits are the processor's."""
    text = re.sub(r" \(of [\d.]+\)", "", text)
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.5g}", text)


def test_its_python_runs_and_its_commands_print_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reference_runs").symlink_to(ROOT / "reference_runs")
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})
    capsys.readouterr()
    sessions = blocks("console")
    for session in sessions:
        command, _, shown = session.partition("\n")
        main(shlex.split(command.removeprefix("$ minimoe ")))
        assert rounded(capsys.readouterr().out) == rounded(shown)
    assert sessions


def test_continuous_integration_runs_its_test_command():
    command, = re.findall(r"^    (python3 -m venv .*-m pytest)$", README, re.MULTILINE)
    assert f"\n{command} || exit 1\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("path", re.findall(r"\]\(([^#].*?)\)|`((?:minimoe|reference_runs)/\S*)`",
                                            README))
def test_the_files_it_names_are_there(path):
    assert (ROOT / "".join(path)).exists()
