"""Hockey's games in processes: what comes of them is what comes of games in turn."""

import contextlib

import numpy as np
import pytest
from conftest import make_config

import halls
import hockey_env
from dreamer import Dreamer
from environments import make_environments
from opponents import OpponentPool
from utils import UserError


def random_actions(count, steps):
    return np.random.default_rng(0).uniform(-1, 1, (steps, count, 4)).astype(np.float32)


def make_halls(count, monkeypatch, cores=2, **opponents):
    """Games in so many processes, and their pool."""
    monkeypatch.setattr(halls, "cores", lambda: cores)
    keys = {f"opponents__{key}": value for key, value in opponents.items()}
    config = make_config(vectorization="async", hockey__frame_skip=16, **keys)
    pool = OpponentPool(config.opponents, count)
    return make_environments(config, count, pool), pool


def test_games_in_processes_are_like_any(monkeypatch):
    rows = []
    for _ in range(2):
        games, _ = make_halls(6, monkeypatch, cores=4)
        assert len(games.unwrapped.halls.processes) == 3  # each has as many games
        with contextlib.closing(games):
            observation, info = games.reset(seed=3)
            assert observation.shape == (6, 18) and np.isfinite(observation).all()
            for action in random_actions(6, 40):
                step = games.step(action)
                rows.append((*step[:4], step[4]["winner"], step[4]["opponent_action"]))
                assert set(step[4]["opponent"]) <= {"weak", "strong"}
    first, again = rows[:40], rows[40:]
    for one, other in zip(first, again, strict=True):
        assert all(map(np.array_equal, one, other))
    ends = np.array([row[2] | row[3] for row in first])
    winners, goals = (np.array([row[i] for row in first]) for i in (4, 2))
    assert ends.sum() >= 6 and ((winners != 0) == goals).all()
    assert not (ends[1:] & ends[:-1]).any()  # the step after an end only starts the next game


def test_a_new_snapshot_is_met_in_all_processes(monkeypatch, tmp_path):
    monkeypatch.setitem(hockey_env.MAX_TIMESTEPS, 0, 40)
    games, pool = make_halls(4, monkeypatch, weak=0.5, strong=0, snapshots=0.5)
    with contextlib.closing(games):
        games.reset(seed=0)
        met = set(games.step(random_actions(4, 1)[0])[4]["opponent"])
        assert met == {"weak"}
        path = tmp_path / "snapshot_0000007.safetensors"
        Dreamer(make_config(), 18, 4).save(path)
        pool.add_snapshot(path)
        names = [games.step(action)[4]["opponent"] for action in random_actions(4, 30)]
    assert all("snapshot_0000007" in of_game for of_game in zip(*names, strict=True))
    assert {name for row in names for name in row} == {"weak", "snapshot_0000007"}


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_an_opponent_that_fails_in_a_process_is_named(monkeypatch, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Lost:\n    def act(self, observation):\n        return 1 / 0\n")
    spec = f"{path}:Lost"
    games, _ = make_halls(2, monkeypatch, files=f"[{spec}]", files_share=1, weak=0, strong=0)
    with contextlib.closing(games), pytest.raises(UserError, match="'Lost' failed: ZeroDivision"):
        games.reset(seed=0)
        games.step(random_actions(2, 1)[0])


@pytest.mark.parametrize("resets", [False, True])
def test_a_process_that_dies_is_one_sentence_and_the_others_end(resets, monkeypatch):
    games, _ = make_halls(2, monkeypatch)
    games.reset(seed=0)
    processes = games.unwrapped.halls.processes
    processes[1].kill()
    processes[1].join()
    with pytest.raises(UserError, match="games failed: (Broken|EOF|Connection).*Error"):
        for action in random_actions(2, 2):
            games.reset(seed=1) if resets else games.step(action)
    games.close()
    processes[0].join(timeout=30)
    assert not any(process.is_alive() for process in processes)
