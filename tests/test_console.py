"""What a console shows: help with examples, any name in any encoding, no warnings of libraries."""

import io
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from tiny import arguments, quicken, run, tiny_config

import evaluate
import extras.tracker
import main
import play
from checkpoint import RunFiles
from machine import quiet_console
from utils import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)


@pytest.mark.parametrize("program", [main.command_line, evaluate.main, play.main])
def test_help_shows_an_example_and_the_exit_status(program, capsys):
    with pytest.raises(SystemExit):
        program(["--help"])
    shown = capsys.readouterr().out
    assert "\npython " in shown and "\nExit status: 0 " in shown


@pytest.mark.parametrize(
    ("program", "words"), [(evaluate.main, ["champion"]), (play.main, ["watch", "weak", "weak"])]
)
@pytest.mark.parametrize("seed", ["99999999999999999999", "-1"])
def test_a_seed_that_is_none_is_one_sentence(program, words, seed, capsys):
    assert program([*words, f"--seed={seed}"]) == 2
    assert capsys.readouterr().err.endswith("--seed must be from 0 to 2147483647.\n")


def test_a_name_that_the_console_cannot_show_is_no_traceback(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "cp1252", write_through=True))
    assert main.command_line(arguments(run="日本", gradient_steps=1)) == 0
    assert b"run           ??, seed 0" in raw.getvalue()
    assert Path("metrics/日本.csv").exists()


def test_warnings_of_gymnasium_are_not_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_console()
        gymnasium.spaces.Box(np.zeros(1, np.float64), np.full(1, 0.1), dtype=np.float32)
        for _ in range(2):
            gymnasium.register("Twice-v0", "nowhere:Nobody")
        warnings.warn("something else", stacklevel=1)
    assert [str(one.message) for one in shown] == ["something else"]


# ---------------------------------------------------------------------------- trackers


class Writer:
    """TensorBoard's, as far as it is used."""

    made = []

    def __init__(self, folder, purge_step=None):
        self.purge_step, self.steps = purge_step, []
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"events{len(self.made)}").touch()
        self.made.append(self)

    def close(self):
        pass

    def add_scalar(self, name, value, step):
        self.steps.append(step)


def test_tensorboard_forgets_what_came_after_the_checkpoint(monkeypatch):
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [])
    keys = {"tracker": "tensorboard", "evaluate_every": 100}
    run(**keys, gradient_steps=6)
    run(**keys, gradient_steps=8, resume="true")
    first, second = Writer.made
    assert (first.purge_step, sorted(set(first.steps))) == (1, [2, 4, 6])
    assert (second.purge_step, sorted(set(second.steps))) == (7, [8])
    folder = Path("metrics/tiny.tensorboard")
    assert len(list(folder.iterdir())) == 2
    RunFiles("tiny").clear()
    assert not folder.exists()


def test_wandb_goes_on_with_the_same_run_until_that_is_overwritten(monkeypatch):
    begun, ids = [], iter("abc")

    def init(**options):
        begun.append((options["id"], options["resume"], options["name"]))
        return SimpleNamespace(log=lambda row, step: None)

    util = SimpleNamespace(generate_id=lambda: next(ids))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, util=util))
    files = RunFiles("tiny")
    for _ in range(2):
        files.folder.mkdir(parents=True, exist_ok=True)
        for step in (0, 4):
            extras.tracker.open_tracker(tiny_config(tracker="wandb"))(step)({"gradient_steps": 5})
        files.clear()
    assert begun == [(name, "allow", "tiny") for name in "aabb"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        extras.tracker.open_tracker(tiny_config(tracker="wandb"))
