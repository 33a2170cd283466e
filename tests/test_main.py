"""Whole runs, tiny ones: files, reproducibility, resuming, signals, and what a user gets wrong."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import main
from dreamer import Dreamer
from evaluate import Result
from utils import load_config, load_sealed, load_tensors

TINY = {
    "run": "tiny",
    "device": "cpu",
    "threads": 1,
    "gradient_steps": 6,
    "log_every": 2,
    "evaluate_every": 4,
    "evaluation_games": 4,
    "save_every": 3,
    "environments": 4,
    "warmup_rows": 300,
    "train_ratio": 8,
    "replay.rows": 4000,
    "replay.batch_size": 4,
    "replay.batch_length": 4,
    "dreamer.hidden_size": 16,
    "dreamer.hidden_layers": 1,
    "dreamer.recurrent_size": 16,
    "dreamer.latent_groups": 4,
    "dreamer.latent_classes": 4,
    "dreamer.bins": 15,
    "dreamer.horizon": 3,
    "dreamer.world_model_head_start": 2,
    "dreamer.precision": "float32",
}
HOCKEY = {"hockey.frame_skip": 4, "hockey.both_views": True, "opponents.snapshot_every": 3}
PIECES = [Path("checkpoints/tiny"), Path("metrics/tiny.csv"), Path("plots/tiny.html")]


def command(config="hockey.yml", **overrides):
    """The arguments of a tiny run; a keyword `dreamer__horizon=3` overrides a key."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    keys = TINY | (HOCKEY if config == "hockey.yml" else {}) | overrides
    return ["--config", config, *(f"{key}={value}" for key, value in keys.items())]


def train(**overrides):
    """A run in the current folder -> its CSV."""
    assert main.main(command(**overrides)) == 0
    return pandas.read_csv(f"metrics/{overrides.get('run', 'tiny')}.csv")


def built(**overrides):
    """The `Training` of a tiny hockey run, not yet run."""
    return main.Training(load_config("hockey.yml", command(**overrides)[2:]))


def refused(capsys, **overrides):
    """The one line with which a run is refused."""
    capsys.readouterr()
    assert main.main(command(**overrides)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("main.py: "), lines
    return lines[0]


def contents():
    """Every file below the current folder with its bytes."""
    return {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}


def without_time(table):
    timed = ("minutes", "time/", "speed/")
    return table[[column for column in table if not column.startswith(timed)]]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a tiny run has finished; not to be changed."""
    folder, before = tmp_path_factory.mktemp("finished"), os.getcwd()
    os.chdir(folder)
    try:
        train()
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The files of `finished`, in the current folder."""
    for path in finished.rglob("*"):
        target = tmp_path / path.relative_to(finished)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())


# ---------------------------------------------------------------------------- a whole run


def test_a_run_leaves_its_files(copied):
    assert all(path.exists() for path in PIECES)
    names = {path.name for path in PIECES[0].iterdir()}
    snapshots = {"snapshot_0000003.safetensors", "snapshot_0000006.safetensors"}
    agents = {"latest.safetensors", "best.safetensors"} | snapshots
    assert names == {"state.pt", "previous.pt"} | agents
    table = pandas.read_csv(PIECES[1])
    assert table["gradient_steps"].tolist() == [2, 4, 6]
    assert table["environment_steps"].is_monotonic_increasing and table["minutes"].iloc[0] > 0
    evaluated = table["evaluation/strong/games"].dropna()
    assert evaluated.tolist() == [4]
    shares = table[[f"evaluation/strong/{name}" for name in ("wins", "draws", "losses")]].dropna()
    assert shares.sum(axis=1).tolist() == [1]
    mix = table[[column for column in table if column.startswith("opponents/")]]
    assert np.allclose(mix.sum(axis=1), 1)
    assert "tiny" in PIECES[2].read_text()
    agent = Dreamer.load("checkpoints/tiny/latest.safetensors")
    assert agent.gradient_steps == 6
    assert agent.counters["environment_steps"] == table["environment_steps"].iloc[-1]


def test_the_progress_bar_does_not_fill_a_log_file(capsys):
    train(gradient_steps=40, log_every=1, evaluate_every=1000)
    assert 1 <= capsys.readouterr().err.count("\r") < 5


@pytest.mark.parametrize("train_ratio", [2, 8, 40])
def test_the_train_ratio_is_kept(train_ratio):
    table = train(train_ratio=train_ratio, evaluate_every=100, log_every=1)
    batch_rows, warmup_steps = 16, 150  # with both views a step makes two rows
    for row in table.itertuples():  # what the next step needs was collected during this one
        earned = (row.environment_steps - warmup_steps) * train_ratio
        assert earned >= (row.gradient_steps + 1) * batch_rows
        assert earned - 4 * train_ratio < (row.gradient_steps + 1) * batch_rows


def test_one_seed_gives_the_same_numbers_and_another_does_not(finished):
    expected = without_time(pandas.read_csv(finished / PIECES[1]))
    again, other = without_time(train()), without_time(train(run="other", seed=1))
    pandas.testing.assert_frame_equal(again, expected)
    assert not again["world_model/loss"].equals(other["world_model/loss"])


def test_the_replay_holds_rows_as_the_convention_says(tmp_path):
    train(warmup_rows=3000, replay__rows=20000, evaluate_every=100, hockey__reward="sparse")
    stored = load_tensors("checkpoints/tiny/state.pt")["replay"]
    rows = stored["rows"].numpy()
    assert rows.shape[1:] == (8, 18 + 4 + 3) and len(rows) < 20000 // 8
    observation, action = rows[..., :18], rows[..., 18:22]
    reward, first, terminal = np.moveaxis(rows[..., 22:], -1, 0)
    assert set(np.unique(first)) == set(np.unique(terminal)) == {0, 1}
    assert first[0].all() and not first[1].any()
    assert not action[first == 1].any() and not reward[first == 1].any()
    assert not terminal[first == 1].any()
    assert first[1:][terminal[:-1] == 1].all()
    assert np.array_equal(terminal == 1, abs(reward) == 10)
    assert abs(action).max() <= 1 and abs(action[first == 0]).mean() > 0.1
    start_x = observation[first == 1][:, [0, 6]]
    assert np.allclose(start_x, [-3, 3], atol=1e-5)
    lengths = np.diff(np.flatnonzero(first[:, 0]))
    assert len(lengths) > 2 and lengths.max() == 64  # 251 frames, four to a row, and the first
    ours, theirs = rows[:, :4], rows[:, 4:]
    assert np.array_equal(ours[..., 23:], theirs[..., 23:])
    assert np.array_equal(ours[..., 22], -theirs[..., 22])
    assert np.allclose(ours[..., 0], -theirs[..., 6], atol=1e-5)


def test_the_agent_forgets_each_game_at_its_end():
    training = built(warmup_rows=1)
    forgotten = 0
    for _ in range(140):
        starts_anew = training.done.copy()
        training.collect()
        if training.agent.memory is not None:
            used = training.agent.memory[0].any(-1).numpy()
            assert np.array_equal(used, ~starts_anew)
            forgotten += starts_anew.sum()
    assert forgotten >= 8


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_pendulum_trains(capsys):
    table = train(config="pendulum.yml", run="tiny")
    assert table["gradient_steps"].tolist() == [2, 4, 6]
    returns = table["evaluation/return"].dropna()
    assert len(returns) == 1 and -2000 < returns.iloc[0] < 0
    assert not [column for column in table if column.startswith("opponents")]
    assert Dreamer.load("checkpoints/tiny/latest.safetensors").sizes == (3, 1)
    more = train(config="pendulum.yml", resume="true", gradient_steps=8)
    assert more["gradient_steps"].tolist() == [2, 4, 6, 8]
    assert capsys.readouterr().out.count("start anew") == 1


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_forgetting_is_watched():
    table = train(evaluate_every=6, opponents__snapshot_every=1)
    for name, age in (("oldest", 5), ("middle", 2), ("newest", 0)):
        assert table[f"evaluation/{name}/games"].dropna().tolist() == [4]
        assert table[f"pool/{name}"].iloc[-1] == age


@pytest.mark.parametrize("theirs, score", [([1, 1, -1, 0], 0.75), ([1, 0, -1, -1], 0.5)])
def test_the_best_agent_is_the_one_with_the_best_worst_case(monkeypatch, theirs, score):
    training = built()
    winner = {"weak": [1, 1, 1, 1], "strong": [1, 1, 1, -1], "oldest": theirs}
    training.pool.rivals = lambda games, seed: {name: name for name in winner}

    def play_games(agent, rival, games, seed):
        return Result("?", np.array(winner[rival]), np.zeros(4, bool))

    monkeypatch.setattr(main, "play_games", play_games)
    metrics, found = training.judge(training.agent)
    assert found == score
    assert metrics["evaluation/oldest/losses"] == theirs.count(-1) / 4


def test_former_selves_are_played_from_memory():
    training = built(opponents__snapshot_every=1, evaluate_every=100)
    training.run()
    shutil.rmtree("checkpoints")
    metrics, _ = training.judge(training.agent)
    assert metrics["evaluation/oldest/games"] == 4


def test_an_evaluation_plays_as_many_episodes_as_the_config_says(monkeypatch):
    played = []
    monkeypatch.setattr(
        main, "evaluate_return", lambda agent, games, *_: played.append(games.num_envs) or -1.0
    )
    train(config="pendulum.yml", evaluation_games=3)
    assert played == [3]


# ---------------------------------------------------------------------------- the run's name


def test_the_name_of_a_run_that_exists_is_refused_and_nothing_changes(copied, capsys):
    before = contents()
    message = refused(capsys)
    assert "tiny" in message and "resume=true" in message and "overwrite=true" in message
    assert contents() == before


@pytest.mark.parametrize("left", range(3))
def test_a_single_file_of_the_name_is_enough_to_refuse(copied, capsys, left):
    for path in PIECES[:left] + PIECES[left + 1 :]:
        path.rename(f"{path}.away")
    refused(capsys)


def test_overwrite_starts_anew(copied):
    Path("checkpoints/tiny/old.safetensors").touch()
    table = train(overwrite="true", gradient_steps=2, save_every=2)
    assert table["gradient_steps"].tolist() == [2]
    assert not Path("checkpoints/tiny/old.safetensors").exists()


# ---------------------------------------------------------------------------- resuming


def test_resume_goes_on_with_everything(copied, capsys):
    before = pandas.read_csv(PIECES[1])
    replay = load_tensors("checkpoints/tiny/state.pt")["replay"]["rows"]
    table = train(resume="true", gradient_steps=10)
    assert "resumed" in capsys.readouterr().out
    assert table["gradient_steps"].tolist() == [2, 4, 6, 8, 10]
    pandas.testing.assert_frame_equal(table[: len(before)][before.columns], before)
    assert table["environment_steps"].is_monotonic_increasing
    assert table["minutes"].is_monotonic_increasing
    assert (table["speed/environment_steps_per_second"] > 0).all()
    rows = load_tensors("checkpoints/tiny/state.pt")["replay"]["rows"]
    assert len(rows) > len(replay) and torch.equal(rows[: len(replay)], replay)
    assert not rows[len(replay), :, -2].any()  # the games went on
    names = {path.name for path in PIECES[0].iterdir()}
    assert {"snapshot_0000003.safetensors", "snapshot_0000009.safetensors"} <= names


def test_resume_goes_on_with_the_random_numbers(copied):
    stored = load_tensors("checkpoints/tiny/state.pt")
    training = built(resume="true")
    assert torch.equal(torch.get_rng_state(), stored["random"]["torch"])
    assert training.random.bit_generator.state == stored["warmup"]
    assert training.pool.state()["generator"] != built(run="new").pool.state()["generator"]


def test_resume_goes_on_with_the_annealing(copied):
    training = built(resume="true", hockey__reward="pbrs", hockey__anneal=10000)
    assert training.games.steps == training.environment_steps > 0


def test_resume_of_a_run_that_is_done_changes_no_numbers(copied):
    before = Path("metrics/tiny.csv").read_bytes()
    train(resume="true")
    assert Path("metrics/tiny.csv").read_bytes() == before


def test_resume_without_a_checkpoint_starts_from_nothing():
    assert train(resume="true")["gradient_steps"].tolist() == [2, 4, 6]


def test_resume_of_a_run_killed_in_its_first_save_starts_from_nothing():
    Path("checkpoints/tiny").mkdir(parents=True)
    Path("checkpoints/tiny/.state.pt.part").write_bytes(b"half")
    assert train(resume="true")["gradient_steps"].tolist() == [2, 4, 6]


def test_resume_of_a_run_killed_between_two_renames_uses_the_one_before(copied, capsys):
    Path("checkpoints/tiny/state.pt").unlink()
    train(resume="true")
    assert "resumed from checkpoints/tiny/previous.pt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("dreamer.hidden_size", 16, 24),
        ("dreamer.latent_groups", 4, 5),
        ("dreamer.observation_in_state", True, False),
    ],
)
def test_resume_with_other_sizes_is_refused_naming_both(copied, capsys, key, old, new):
    before = contents()
    message = refused(capsys, resume="true", **{key: new})
    assert key in message and str(old) in message and str(new) in message
    assert contents() == before


def test_resume_with_another_number_of_games_is_refused(copied, capsys):
    assert "state.pt" in refused(capsys, resume="true", environments=2)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign"])
def test_damaged_checkpoints_are_refused_and_one_is_skipped(copied, capsys, damage):
    newest, before = Path("checkpoints/tiny/state.pt"), Path("checkpoints/tiny/previous.pt")
    whole = newest.read_bytes(), before.read_bytes()
    for path in (newest, before):
        path.write_bytes({"empty": b"", "cut": whole[0][:-1000]}.get(damage, b"hello"))
        if damage == "foreign":
            torch.save({"weight": torch.zeros(3)}, path)
    message = refused(capsys, resume="true")
    assert str(newest) in message and str(before) in message
    before.write_bytes(whole[1])
    train(resume="true")
    printed = capsys.readouterr().out
    assert f"{newest} is damaged" in printed and f"resumed from {before}" in printed
    assert load_sealed(newest)["agent"]["gradient_steps"] == 6


def test_a_checkpoint_of_another_run_is_refused_naming_both(copied, capsys):
    train(run="other")
    Path("checkpoints/other/state.pt").replace("checkpoints/tiny/state.pt")
    message = refused(capsys, resume="true")
    assert "other" in message and "tiny" in message


def test_resume_prints_what_changed(copied, capsys):
    train(resume="true", dreamer__entropy=0.25, gradient_steps=7)
    changes = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    assert len(changes) == 2 and "gradient_steps: 6 -> 7" in changes
    assert any(line.startswith("dreamer.entropy: ") and line.endswith("0.25") for line in changes)


def test_a_missing_snapshot_is_refused_in_one_sentence(copied, capsys):
    Path("checkpoints/tiny/snapshot_0000003.safetensors").unlink()
    assert "snapshot_0000003" in refused(capsys, resume="true")


# ---------------------------------------------------------------------------- what users get wrong


@pytest.mark.parametrize("folder", ["metrics", "plots", "checkpoints"])
def test_a_folder_that_can_not_be_written_is_refused(capsys, folder):
    Path(folder).write_text("a file where the folder should be")
    began = time.time()
    assert folder in refused(capsys, gradient_steps=100000)
    assert time.time() - began < 10  # at once, not after training


def test_a_read_only_folder_is_refused(capsys, monkeypatch):
    Path("metrics").mkdir()
    real = os.access  # root may write everywhere, so the refusal is made up
    monkeypatch.setattr(
        os, "access", lambda path, mode, **_: "metrics" not in str(path) and real(path, mode)
    )
    assert "metrics" in refused(capsys)


@pytest.mark.skipif(importlib.util.find_spec("hockey") is not None, reason="package is there")
def test_the_labs_package_is_asked_for(capsys):
    assert "pip install" in refused(capsys, hockey__game="hockey-env")


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"dreamer__hiden_size": 3}, "dreamer.hidden_size"),
        ({"config": "hokey.yml"}, "hokey.yml"),
        ({"device": "cuda:99"}, "device"),
        ({"opponents__weak": 0, "opponents__strong": 0, "opponents__snapshots": 0}, "opponents"),
        ({"opponents__files": "[gone.safetensors]"}, "gone.safetensors"),
        ({"hockey__modes__normal": 0}, "hockey.modes"),
        ({"dreamer__critic_replay": 0}, "critic_imagination"),
        ({"config": "pendulum.yml", "environment": "Nothing-v0"}, "Nothing"),
        ({"config": "pendulum.yml", "environment": "CartPole-v1"}, "CartPole-v1"),
        ({"config": "pendulum.yml", "environment": "nothing:Nothing-v0"}, "nothing"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(capsys, overrides, word):
    assert word in refused(capsys, **overrides)
    assert not contents()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs POSIX signals")
def test_a_replay_too_small_for_one_window_is_refused(capsys):
    def too_late(*_):
        raise TimeoutError("it went on for ever")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(8)
    try:
        assert "replay" in refused(capsys, replay__rows=24)  # 8 rings of 3 rows
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------- signals


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_leaves(name, tmp_path):
    arguments = command(gradient_steps=1000000, evaluate_every=1000000, save_every=1000000)
    program = [sys.executable, main.__file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen(program, cwd=tmp_path, env=environment, text=True, **pipes)
    try:
        began = time.time()
        while not PIECES[1].exists() and time.time() - began < 60 and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(getattr(signal, name))
        output, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == main.STOPPED and "Traceback" not in errors, errors
    assert "resume=true" in output
    state = load_tensors("checkpoints/tiny/state.pt")
    step = state["agent"]["gradient_steps"]
    assert 0 < step < 1000000
    table = train(resume="true", gradient_steps=step + 2)
    assert table["gradient_steps"].iloc[-1] in (step + 1, step + 2)
