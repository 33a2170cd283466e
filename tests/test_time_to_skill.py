"""Tests of the time to skill: first times, and the runs themselves."""

import importlib.util
import time
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

FAKE = """
import pathlib, signal, sys, time
config = open(sys.argv[2]).read()
run = next(line[5:] for line in config.splitlines() if line.startswith("run: "))
if "seed: 7" in config:
    sys.exit("main.py: the device is gone.")
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
pathlib.Path("metrics").mkdir(exist_ok=True)
axes = "gradient_steps,environment_steps,minutes"
names = [f"evaluation/{bot}/{value}" for bot in ("weak", "strong") for value in ("wins", "games")]
table = ",".join([axes, *names]) + "\\n500,1000,0.5,0.9,200,0.85,200\\n"
pathlib.Path(f"metrics/{run}.csv").write_text(table)
time.sleep(60)
"""


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


def test_read_prints_every_evaluation_and_draws(tmp_path, capsys):
    log(tmp_path / "a.csv", [0.25, 0.5], [0.1, 0.8], games=100)
    assert run("--read", "a.csv", "--out", "here/page.html") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a" and len(lines) == 1 + 2 + 4 + 1
    low, high = wilson_interval(0.25, 100)
    assert f"weak 25.0% [{low:.1%}, {high:.1%}]" in lines[1] and lines[1].endswith("100 games")
    assert lines[3].startswith("  first time >= 50% wins against both bots: 5.0 minutes, 1,000")
    assert lines[6] == "  first time >= 95% wins against both bots: not reached"
    assert "<b>100</b> games" in (tmp_path / "here/page.html").read_text()


def test_what_a_user_gets_wrong_is_one_sentence(tmp_path, capsys):
    axes = "gradient_steps,environment_steps,minutes"
    (tmp_path / "none.csv").write_text(f"{axes}\n1,2,3\n")
    (tmp_path / "other.csv").write_text(
        f"{axes},evaluation/me/wins,evaluation/me/games\n1,2,3,1,4\n"
    )
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "hockey.yml").write_text("run: x\n")
    assert "no file nowhere.csv" in refused(capsys, "--read", "nowhere.csv")
    assert "none.csv holds no evaluations" in refused(capsys, "--read", "none.csv")
    assert "other was not evaluated against weak" in refused(capsys, "--read", "other.csv")
    assert "can't be read" in refused(capsys, "--read", "binary.csv")
    assert "no config 'nowhere.yml'" in refused(capsys, "nowhere.yml")
    assert "replay.rows" in refused(capsys, ROOT / "configs/hockey.yml", "replay.rows=many")
    assert "'seed=3' can't be chosen" in refused(capsys, "hockey.yml", "seed=3")
    assert "not about hockey" in refused(capsys, "pendulum.yml")
    assert "same name" in refused(capsys, "hockey.yml", ROOT / "configs/hockey.yml")
    assert "--minutes" in refused(capsys, "benchmark.yml", "--minutes", 0)
    assert not (tmp_path / "runs").exists()


def test_runs_are_stopped_when_their_time_is_over(tmp_path, capsys, monkeypatch):
    (tmp_path / "main.py").write_text(FAKE)
    monkeypatch.setattr(time_to_skill, "ROOT", tmp_path)
    began = time.time()
    options = ("--seeds", 0, 1, 7, "--parallel", 3, "--minutes", 0.05, "--folder", "here")
    assert run("benchmark.yml", *options, "evaluation_games=400") == 2
    assert time.time() - began < 30
    printed = capsys.readouterr()
    assert "benchmark, seed 7 failed (status 1): main.py: the device is gone." in printed.err
    assert printed.out.count("first time >= 80% wins against both bots: 0.5 minutes") == 2
    [folder] = (tmp_path / "here").iterdir()
    assert "evaluation_games: 400" in (folder / "benchmark_seed1.yml").read_text()
    page = (tmp_path / "plots/time_to_skill.html").read_text()
    assert page.count("<td>benchmark, seed") == 2 and "first ≥ 80%" in page


@pytest.mark.slow
def test_a_real_run(tmp_path, capsys):
    sizes = "hidden_size=16 hidden_layers=1 recurrent_size=16 latent_groups=4 latent_classes=4"
    tiny = [f"dreamer.{size}" for size in sizes.split()]
    tiny += "threads=1 device=cpu gradient_steps=2 evaluate_every=2 log_every=1".split()
    tiny += "environments=4 warmup_rows=200 replay.rows=2000 replay.batch_size=2".split()
    assert run("hockey.yml", "--minutes", 5, *tiny) == 0, capsys.readouterr().err
    assert "2 gradient steps" in capsys.readouterr().out
    [csv] = tmp_path.glob("runs/time_to_skill/*/metrics/hockey_seed0.csv")
    assert (pd.read_csv(csv)["evaluation/strong/games"].dropna() == 200).all()
    assert not (tmp_path / "checkpoints").exists()
