"""Tests of the time to skill: first times, and how they are shown."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from extras.plots import read_runs
from matches import wilson_interval

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location(
    "time_to_skill", ROOT / "benchmarks" / "time_to_skill.py"
)
time_to_skill = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(time_to_skill)


def log(path, weak, strong, games=200, every=500):
    """Make up the CSV of a run with these shares of wins; every second row has no evaluation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.arange(1, len(weak) + 1) * every
    frame = pd.DataFrame({"gradient_steps": steps, "environment_steps": 256.0 * steps})
    frame["minutes"] = steps / 200
    for bot, wins in (("weak", weak), ("strong", strong)):
        frame[f"evaluation/{bot}/wins"] = np.float32(wins)
        frame[f"evaluation/{bot}/games"] = games
    between = frame[["gradient_steps", "environment_steps", "minutes"]] + 1
    frame = pd.concat([frame, between]).sort_values("gradient_steps")
    frame.to_csv(path, index=False)
    return path


def run(*arguments):
    return time_to_skill.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    """The sentence with which a command is refused."""
    capsys.readouterr()
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("time_to_skill.py: ")
    return lines[0]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_first_times_need_both_bots_in_one_evaluation(tmp_path):
    path = log(tmp_path / "a.csv", [0.6, 0.4, 0.9, 0.7], [0.4, 0.6, 0.9, 0.99])
    [(_, _, frame)] = read_runs([path])
    assert len(frame) == 4
    third = "7.5 minutes, 1,500 gradient steps, 384,000 environment steps"
    assert time_to_skill.first_time(frame, 0.5) == third
    assert time_to_skill.first_time(frame, 0.9) == third  # although the CSV's floats are below
    assert time_to_skill.first_time(frame, 0.95) == "not reached"


def test_it_prints_every_evaluation_and_draws(tmp_path, capsys):
    log(tmp_path / "a.csv", [0.25, 0.5], [0.1, 0.8], games=100)
    assert run("a.csv", "--out", "here/page.html") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a" and len(lines) == 1 + 2 + 4 + 1
    low, high = wilson_interval(0.25, 100)
    assert f"weak 25.0% ({low:.1%} to {high:.1%}, 100 games) | strong 10.0%" in lines[1]
    assert lines[3].startswith("  first time >= 50% wins against both bots: 5.0 minutes, 1,000")
    assert lines[6] == "  first time >= 95% wins against both bots: not reached"
    page = (tmp_path / "here/page.html").read_text()
    assert "<b>100</b> games" in page and "first ≥ 80%" in page


def test_what_a_user_gets_wrong_is_one_sentence(tmp_path, capsys):
    axes = "gradient_steps,environment_steps,minutes"
    (tmp_path / "none.csv").write_text(f"{axes}\n1,2,3\n")
    (tmp_path / "other.csv").write_text(
        f"{axes},evaluation/me/wins,evaluation/me/games\n1,2,3,1,4\n"
    )
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    assert "no file nowhere.csv" in refused(capsys, "nowhere.csv")
    assert "none.csv holds no evaluations" in refused(capsys, "none.csv")
    assert "other was not evaluated against weak" in refused(capsys, "other.csv")
    assert "can't be read" in refused(capsys, "binary.csv")
