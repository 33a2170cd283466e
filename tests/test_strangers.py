"""Strangers: the rebuilt actor is the trained one, its frames, the commands, refusals."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import make_config

from benchmarks.strangers import (
    NET_ARCH,
    EitherBot,
    Stranger,
    actor_of,
    main,
    make_actor,
    save_stranger,
    summary,
    train,
)
from dreamer import Dreamer
from evaluate import Result
from opponents import AgentOpponent
from utils import wilson_interval

ABOUT = {"algorithm": "sac", "net_arch": [8], "frame_skip": 3, "steps": 64, "seed": 0}
needs_stable_baselines3 = pytest.mark.skipif(
    find_spec("stable_baselines3") is None, reason="stable-baselines3 is not installed"
)


def observations(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 18)).astype(np.float32)


@pytest.fixture
def saved(tmp_path):
    """saved(**changes): the path of a small untrained stranger with changes to what it says."""

    def save(actor=None, **changes):
        path = tmp_path / "strangers" / "sac_seed0.safetensors"
        save_stranger(path, actor or make_actor(ABOUT["net_arch"]), ABOUT | changes)
        return path

    return save


@pytest.fixture
def champion(tmp_path):
    path = tmp_path / "champion.safetensors"
    Dreamer(make_config(), 18, 4).save(path)
    return path


# ---------------------------------------------------------------------------- training


@needs_stable_baselines3
@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_the_rebuilt_actor_decides_as_the_trained_model(algorithm, tmp_path):
    settings = make_config(hockey__frame_skip=10).hockey
    model = train(algorithm, 64, seed=0, settings=settings)
    assert model.num_timesteps == 64 and model._n_updates > 0
    save_stranger(tmp_path / "one", actor_of(model), ABOUT | {"net_arch": NET_ARCH})
    rows = 3 * observations(50)
    expected, _ = model.predict(rows, deterministic=True)
    actions = Stranger(tmp_path / "one").act(rows)
    assert np.abs(actions - expected).max() < 1e-6
    assert np.ptp(expected, axis=0).min() > 1e-3 and np.abs(expected).max() <= 1


@needs_stable_baselines3
def test_train_saves_and_overwrites_nothing(tmp_path, capsys):
    arguments = ["train", "--algorithm", "td3", "--steps", "16", "--folder", str(tmp_path)]
    assert main(arguments) == 0
    assert "16 steps" in capsys.readouterr().out
    path = tmp_path / "td3_seed0.safetensors"
    stranger = Stranger(path)
    assert stranger.about["algorithm"] == "td3" and stranger.about["steps"] == 16
    assert stranger.config.hockey.frame_skip == stranger.about["frame_skip"]
    before = path.read_bytes()
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err and path.read_bytes() == before


def test_either_bot_plays_whole_games_as_weak_and_as_strong():
    player, drawn = EitherBot(seed=0), []
    for row in observations(100):
        player.reset()
        drawn.append(player.bot.weak)
        assert player.act(row).shape == (4,) and player.bot.weak == drawn[-1]
    assert 30 < sum(drawn) < 70


# ---------------------------------------------------------------------------- playing


def test_a_stranger_keeps_its_frame_skip(saved):
    stranger = Stranger(saved(frame_skip=3))
    opponent = AgentOpponent(stranger, 2, "stranger", deterministic=True)
    for frame in range(7):
        rows = observations(2, frame)
        if frame % 3 == 0:
            expected = stranger.act(rows)
        assert np.array_equal(opponent.act(rows), expected)
    opponent.reset([1])
    actions = opponent.act(observations(2, 9))
    assert np.array_equal(actions[0], expected[0]) and not np.array_equal(actions[1], expected[1])


def test_play_shows_the_stranger_and_then_the_champion(saved, champion, capsys):
    folder = saved(frame_skip=10).parent
    assert main(["play", str(champion), "--folder", str(folder), "--games", "4"]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "sac_seed0 (sac, 64 steps, seed 0)"
    names = ["stranger against weak", "stranger against strong", "champion against stranger"]
    assert [line.split(":")[0].strip() for line in lines] == names
    assert all(line.endswith("started 2 of 4 games") for line in lines)


def test_the_summary_by_hand():
    winner, we_started = np.array([1, 1, 1, 0, -1, 0]), np.array([True, False] * 3)
    text = summary(Result("one", winner, we_started))
    low, high = wilson_interval(0.75, 4)
    assert text == (
        f"3 won, 2 drawn, 1 lost | 75.0% [{low:.1%}, {high:.1%}] of 4 decided"
        " | started 3 of 6 games"
    )
    assert "none decided" in summary(Result("one", np.zeros(4), np.ones(4, bool)))


# ---------------------------------------------------------------------------- refusals


def refused(arguments, capsys):
    """The one sentence on standard error of a command that ends with status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("strangers.py: ") and error.count("\n") == 1
    return error


def test_training_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    command = ["train", "--folder", tmp_path]
    assert "'ppo'" in refused([*command, "--algorithm", "sac", "ppo"], capsys)
    assert "--steps" in refused([*command, "--steps", 0], capsys)
    assert "--seed" in refused([*command, "--seed", -1], capsys)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert "pip install stable-baselines3" in refused(command, capsys)
    assert not list(tmp_path.iterdir())


def test_playing_is_refused_in_one_sentence(saved, champion, tmp_path, capsys):
    folder = saved().parent
    assert "nobody" in refused(["play", "nobody.safetensors", "--folder", folder], capsys)
    assert "--games" in refused(["play", champion, "--folder", folder, "--games", 6], capsys)
    assert "missing" in refused(["play", champion, "--folder", tmp_path / "missing"], capsys)


def not_finite():
    actor = make_actor(ABOUT["net_arch"])
    torch.nn.init.constant_(actor[0].bias, np.nan)
    return actor


@pytest.mark.parametrize(
    "changes",
    [
        {"net_arch": [16]},
        {"net_arch": [8, 8]},
        {"net_arch": "wide"},
        {"frame_skip": 0},
        {"frame_skip": None},
        {"actor": not_finite()},
    ],
)
def test_damaged_strangers_are_refused_in_one_sentence(changes, saved, champion, capsys):
    path = saved(**changes)
    assert str(path) in refused(["play", champion, "--folder", path.parent], capsys)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x80\x04K\x01."])
def test_other_files_are_refused_in_one_sentence(content, saved, champion, capsys):
    path = saved()
    path.write_bytes(content)
    assert f"{path} is no stranger" in refused(["play", champion, "--folder", path.parent], capsys)


def test_an_agent_is_no_stranger(champion, tmp_path, capsys):
    assert "is no stranger" in refused(["play", champion, "--folder", tmp_path], capsys)
