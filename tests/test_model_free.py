"""The comparison with stable-baselines3: whom it plays against, and what it writes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.model_free import BothBots

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "model_free.py"


def test_both_bots_play_in_turn():
    bots = BothBots(seed=0)
    kinds = []
    for _ in range(4):
        bots.reset()
        kinds.append(bots.bot.weak)
        assert np.shape(bots.act(np.zeros(18))) == (4,)
    assert kinds == [False, True, False, True]


@pytest.mark.parametrize("algorithm", ["td3", pytest.param("sac", marks=pytest.mark.slow)])
def test_a_short_run_writes_the_columns_of_main(algorithm, tmp_path):
    pytest.importorskip("stable_baselines3")
    keys = ["threads=1", "evaluation_games=4", "hockey.frame_skip=16"]
    command = [sys.executable, SCRIPT, algorithm, "--minutes", "0.03", "--out", tmp_path / "a.csv"]
    done = subprocess.run([*command, *keys], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "a.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["minutes"]) >= 0.03
    assert float(rows[-1]["environment_steps"]) > 0
    assert {f"evaluation/{bot}/wins" for bot in ("weak", "strong")} <= set(rows[0])


def test_a_wrong_key_is_one_sentence(tmp_path):
    pytest.importorskip("stable_baselines3")
    command = [sys.executable, SCRIPT, "td3", "hockey.frame_skips=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "frame_skip" in done.stderr and "Traceback" not in done.stderr
