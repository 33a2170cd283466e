"""The notebook for the first hour: its cells run, one after the other, with a tiny run in them."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

from tiny import arguments

import evaluate
import hockey_env
import main
import play

SCRIPTS = {"main.py": main.command_line, "evaluate.py": evaluate.main, "play.py": play.main}
NOTEBOOK = Path(main.__file__).with_name("docs") / "first_hour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CELLS = [cell for cell in CELLS if cell["cell_type"] == "code"]


def shell(command):
    """What "!" means in a cell, in this process and with little to do."""
    python, script, *words = shlex.split(command.replace("{sys.executable}", "python"))
    words = re.sub(r"--games \d+", "--games 4", " ".join(words)).split()
    tiny = arguments(run="first_hour", gradient_steps=5, log_every=1)[2:]
    extra = tiny if script == "main.py" else []
    assert python == "python" and SCRIPTS[script]([*words, *extra]) == 0


def test_it_is_stored_without_outputs():
    assert len(CELLS) > 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.chdir(tmp_path / "docs")  # where Jupyter starts
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)
    monkeypatch.setattr("sys.path", list(sys.path))
    shown, module = [], ModuleType("IPython.display")
    module.display = shown.append
    module.Image = lambda data, width: data
    module.IFrame = lambda path, *_: tmp_path / "docs" / path
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    names = {"shell": shell}
    for cell in CELLS:
        text = "".join(cell["source"]).replace("\\\n", " ")
        exec(re.sub(r"^!(.*)", r"shell(r'''\1''')", text, flags=re.M), names)
    picture, table, curves, dream = shown
    assert picture[1:4] == b"PNG" and "evaluation/weak/wins" in table
    assert "first_hour" in curves.read_text()
    assert "first_hour" in dream.read_text()
    printed = capsys.readouterr().out
    for text in ("did you mean 'dreamer.horizon'?", "first_hour: 4 games", "champion: 4 games"):
        assert text in printed
