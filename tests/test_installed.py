"""The first words: what is missing, what the scripts say of themselves."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [ROOT / f"{name}.py" for name in ("main", "evaluate", "play")]
REQUIRED = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("line", REQUIRED)
def test_a_package_that_is_missing_is_one_sentence(line, monkeypatch, capsys):
    names = {"box2d": "Box2D", "pygame-ce": "pygame"}
    package = line.partition("=")[0].rstrip(">")
    monkeypatch.setitem(sys.modules, names.get(package, package), None)  # as if it were missing
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "installed.py"))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert f"{package} can't be imported here" in error and "-r requirements.txt" in error


def test_nothing_is_said_where_all_is_there(capsys):
    runpy.run_path(str(ROOT / "installed.py"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_without_any_package_a_script_answers_in_one_sentence(script):
    command = [sys.executable, "-S", str(script)]  # without site-packages
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"{script.name}: torch can't be imported here")


@pytest.mark.parametrize(
    "script", [*SCRIPTS, *(ROOT / "benchmarks").glob("*.py")], ids=lambda path: path.stem
)
def test_help_has_an_example_and_the_exit_status(script):
    text = script.read_text(encoding="utf-8")
    help_text = ast.get_docstring(ast.parse(text))
    assert f"python {script.relative_to(ROOT).as_posix()} " in help_text.replace("\n", " ")
    assert "Exit status: 0 " in help_text
    assert "parser_of(__doc__)" in text


def test_the_changes_and_the_citation_name_the_same_version():
    citation, changes = ((ROOT / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md"))
    version = citation.partition('\nversion: "')[2].partition('"')[0]
    assert version and version == changes.partition("\n## ")[2].partition("\n")[0]
