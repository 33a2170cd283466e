"""Whole runs, tiny ones: files, reproducibility, resuming, signals, and what a user gets wrong."""

import contextlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from tiny import PAGE, PREVIOUS, STATE, TABLE, arguments, numbers, quicken, tiny_config

import checkpoint
import hockey_env
import main
from dreamer import Dreamer
from environments import Collector
from machine import Stop
from utils import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered")
PIECES = [STATE.parent, TABLE, PAGE]
ROWS = [2, 4, 6, 8, 10, 12]
SHORT = {"gradient_steps": 2, "evaluate_every": 100, "evaluation_games": 1}


def train(**overrides):
    """A run in the current folder -> its CSV."""
    assert main.command_line(arguments(**overrides)) == 0
    return pandas.read_csv(f"metrics/{overrides.get('run', 'tiny')}.csv")


def refused(capsys, **overrides):
    """The one line with which a run is refused."""
    capsys.readouterr()
    assert main.command_line(arguments(**overrides)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("main.py: "), lines
    return lines[0]


def contents():
    """Every file below the current folder with its bytes, but for locks."""
    files = (path for path in Path(".").rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a tiny run has finished, with a page of its own; not to be changed."""
    folder, umask = tmp_path_factory.mktemp("finished"), os.umask(0o022)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)
        train()
    os.umask(umask)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """The files of `finished`, in the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)


# ---------------------------------------------------------------------------- a whole run


def test_a_run_leaves_its_files(copied):
    assert all(path.exists() for path in PIECES)
    snapshots = {f"snapshot_{step:07d}.safetensors" for step in ROWS}
    agents = {"latest.safetensors", "best.safetensors"} | snapshots
    assert {path.name for path in STATE.parent.iterdir()} == {STATE.name, PREVIOUS.name} | agents
    table = pandas.read_csv(TABLE)
    assert table["gradient_steps"].tolist() == ROWS
    assert table["environment_steps"].is_monotonic_increasing and table["minutes"].iloc[0] > 0
    evaluated = table.dropna(subset="evaluation/strong/games")
    assert evaluated["gradient_steps"].tolist() == [6, 12]
    assert evaluated["evaluation/strong/games"].tolist() == [2, 2]
    shares = evaluated[[f"evaluation/strong/{name}" for name in ("wins", "draws", "losses")]]
    assert shares.sum(axis=1).tolist() == [1, 1]
    mix = table[[column for column in table if column.startswith("opponents/")]]
    assert np.allclose(mix.sum(axis=1), 1)
    for name, age in (("oldest", 6), ("middle", 4), ("newest", 2)):  # forgetting is watched
        assert evaluated[f"evaluation/{name}/games"].iloc[-1] == 2
        assert evaluated[f"pool/{name}"].iloc[-1] == age
    assert "tiny" in PAGE.read_text()
    agent = Dreamer.load(STATE.with_name("latest.safetensors"))
    assert agent.gradient_steps == 12
    assert agent.counters["environment_steps"] == table["environment_steps"].iloc[-1]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
def test_others_may_read_the_files(finished):
    paths = [path for path in finished.rglob("*") if path.is_file()]
    assert len(paths) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o644}


def test_a_short_run_is_evaluated_at_its_last_step():
    table = train(**SHORT, opponents__snapshot_every=100)
    assert table["evaluation/weak/games"].tolist() == [1]
    assert Dreamer.load(STATE.with_name("best.safetensors")).gradient_steps == 2


@pytest.mark.parametrize("name", ["weak", "mine.py", "former2"])
def test_a_run_has_a_name_that_no_other_player_has(name, capsys):
    assert main.command_line(arguments(run=name)) == 2
    assert f"run: {name} already means" in capsys.readouterr().err


def test_the_progress_bar_does_not_fill_a_log_file(capsys):
    rare = {"evaluate_every": 1000, "opponents__snapshot_every": 1000, "save_every": 1000}
    train(**rare, gradient_steps=10, log_every=10, evaluation_games=1)
    assert 1 <= capsys.readouterr().err.count("\r") < 5


@pytest.mark.parametrize(("train_ratio", "both_views"), [(2, False), (40, True)])
def test_the_train_ratio_is_kept(train_ratio, both_views):
    overrides = SHORT | {"hockey__both_views": both_views, "gradient_steps": 7}
    table = train(train_ratio=train_ratio, log_every=1, save_every=100, **overrides)
    batch_rows, warmup_steps = 16, 60 if both_views else 120  # with both views, two rows a step
    for row in table[:-1].itertuples():  # what the next step needs was collected during this one
        earned = (row.environment_steps - warmup_steps) * train_ratio
        assert earned >= row.gradient_steps * batch_rows
        assert earned - 4 * train_ratio < row.gradient_steps * batch_rows


def test_one_seed_gives_the_same_numbers_and_another_does_not():
    for run, seed in (("one", 5), ("two", 5), ("three", 6)):
        train(**SHORT, run=run, seed=seed)
    one, two, three = (numbers(Path(f"metrics/{name}.csv")) for name in ("one", "two", "three"))
    assert one == two and len(one) == 2
    column = one[0].index("world_model/loss")
    assert one[1][column] != three[1][column]


def test_the_replay_holds_rows_as_the_convention_says():
    train(
        **SHORT,
        warmup_rows=900,
        replay__rows=20000,
        hockey__reward="sparse",
        hockey__frame_skip=4,
        hockey__modes__shooting=0,
    )
    rows = checkpoint.load(STATE)[0]["replay/rows"].numpy()
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
    assert len(lengths) > 2 and lengths.max() == 27  # 101 frames, four to a row, and the first
    ours, theirs = rows[:, :4], rows[:, 4:]
    assert np.array_equal(ours[..., 23:], theirs[..., 23:])
    assert np.array_equal(ours[..., 22], -theirs[..., 22])
    assert np.allclose(ours[..., 0], -theirs[..., 6], atol=1e-5)


def test_the_agent_forgets_each_game_at_its_end():
    run = main.Training(tiny_config(warmup_rows=1))
    forgotten = 0
    for _ in range(30):
        starts_anew = run.play.is_first.copy()
        run.play.collect()
        if run.agent.memory is not None:
            used = run.agent.memory[0].any(-1).numpy()
            assert np.array_equal(used, ~starts_anew)
            forgotten += starts_anew.sum()
    assert forgotten >= 8


def test_pendulum_trains():
    table = train(config="pendulum.yml", run="tiny", gradient_steps=4, evaluation_games=3)
    assert table["gradient_steps"].tolist() == [2, 4]
    (score,) = table["evaluation/return"].dropna()
    assert -2000 < score < 0 and checkpoint.load(STATE)[1]["best"] == pytest.approx(score)
    assert not [column for column in table if column.startswith(("opponents", "pool"))]
    assert Dreamer.load(STATE.with_name("latest.safetensors")).sizes == (3, 1)


@pytest.mark.parametrize(
    ("keys", "times"),
    [({"save_every": 2}, 2), ({"save_every": 5}, 0), ({"wrappers.time_limit": 3}, 0)],
)
def test_episodes_longer_than_from_checkpoint_to_checkpoint_are_told(keys, times, capfd):
    options = {"save_every": 2, "gradient_steps": 4, "evaluation_games": 1} | keys
    train(config="pendulum.yml", run="tiny", **options)
    assert capfd.readouterr().err.count("save_every: no episode has ended") == times


@pytest.mark.parametrize(("scores", "best"), [([0.3, 0.5], 4), ([0.5, 0.3], 2), ([0.5, 0.5], 2)])
def test_the_agent_with_the_best_score_is_kept(monkeypatch, scores, best):
    found = iter(scores)
    monkeypatch.setattr(main, "evaluate", lambda *_: ({}, next(found), {}))
    training = main.Training(tiny_config())
    for training.agent.gradient_steps in (2, 4):
        training.evaluate(Stop())
    training.save()
    assert Dreamer.load(STATE.with_name("best.safetensors")).gradient_steps == best
    assert checkpoint.load(STATE)[1]["best"] == max(scores)


def test_the_best_score_is_forgotten_where_it_means_something_else(monkeypatch, capsys):
    monkeypatch.setattr(main, "evaluate", lambda *_: ({}, 0.9, {}))
    bot = Path("bot.py")
    bot.write_text("class Bot:\n    def act(self, observation):\n        return [0, 0, 0, 0]\n")
    met = {"opponents.files": "[bot.py:Bot]"}
    run = main.Training(tiny_config(**met))
    run.agent.gradient_steps = 2
    run.evaluate(Stop())
    run.save()
    run.files.release()
    others = ({"opponents.files": "[random,weak]"}, {"evaluation_actions": "sample"})
    for keys in ({}, *others, {"wrappers.time_limit": 9}):
        again = main.Training(tiny_config(resume="true", **(met | keys)))
        assert again.best == (-np.inf if keys else 0.9)
        again.files.release()
    bot.write_text(bot.read_text().replace("0]", "1]"))
    assert main.Training(tiny_config(resume="true", **met)).best == -np.inf
    assert "bot.py:Bot has changed since the run was here" in capsys.readouterr().err


def test_former_selves_are_played_from_memory():
    run = main.Training(tiny_config())
    for run.agent.gradient_steps in (1, 2, 3):
        run.add_snapshot()
    shutil.rmtree("checkpoints")
    run.evaluate(Stop())
    assert run.log.rows[-1]["evaluation/oldest/games"] == 2


# ---------------------------------------------------------------------------- another's weights


def test_a_run_starts_with_the_weights_of_another_and_plays_against_it(finished):
    agent = finished / STATE.with_name("best.safetensors")
    run = main.Training(
        tiny_config(
            init=agent, seed=7, opponents__weak=0, opponents__strong=0, opponents__files_share=0
        )
    )
    expected = Dreamer.load(agent).state_dict()
    for tensors in (run.agent.state_dict(), checkpoint.load(STATE)[0]):
        assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    assert run.agent.gradient_steps == 0 and run.pool.choose().name == "snapshot_0000000"
    again = main.Training(tiny_config(init="gone", seed=7, resume="true"))
    assert [one.name for one in again.pool.snapshots.values()] == ["snapshot_0000000"]


@pytest.mark.parametrize(
    "change",
    [
        {"dreamer__hidden_size": 24},
        {"dreamer__activation": "ELU"},
        {"dreamer__observation_scale": "[]"},
    ],
)
def test_weights_that_do_not_fit_are_refused(finished, capsys, change):
    agent = finished / STATE.with_name("best.safetensors")
    assert "init" in refused(capsys, init=agent, **SHORT, **change)
    assert not contents()


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


def test_what_a_killed_run_left_half_written_is_gone(copied):
    left = STATE.with_name(".best.safetensors.part")
    left.touch()
    train(resume="true")
    assert not left.exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_overwrite_starts_anew(copied, is_link):
    STATE.with_name("old.safetensors").touch()
    if is_link:
        STATE.parent.rename("elsewhere")
        STATE.parent.symlink_to(Path("elsewhere").resolve())
    table = train(overwrite="true", **SHORT)
    assert table["gradient_steps"].tolist() == [2]
    assert not STATE.with_name("old.safetensors").exists()


# ---------------------------------------------------------------------------- resuming


def test_resume_goes_on_with_everything(copied, capsys):
    before = pandas.read_csv(TABLE)
    replay = checkpoint.load(STATE)[0]["replay/rows"]
    table = train(resume="true", gradient_steps=14, dreamer__entropy=0.25)
    printed = capsys.readouterr().out
    changes = [line for line in printed.splitlines() if " -> " in line]
    assert f"resumed from {STATE} at 12 gradient steps" in printed
    assert len(changes) == 2 and "gradient_steps: 12 -> 14" in changes
    assert any(line.startswith("dreamer.entropy: ") and line.endswith("0.25") for line in changes)
    assert table["gradient_steps"].tolist() == [*ROWS, 14]
    pandas.testing.assert_frame_equal(table[: len(before)][before.columns], before)
    assert table["environment_steps"].is_monotonic_increasing
    assert table["minutes"].is_monotonic_increasing
    assert (table["speed/environment_steps_per_second"] > 0).all()
    rows = checkpoint.load(STATE)[0]["replay/rows"]
    assert len(rows) > len(replay) and torch.equal(rows[: len(replay)], replay)
    names = {path.name for path in STATE.parent.iterdir()}
    assert {"snapshot_0000002.safetensors", "snapshot_0000014.safetensors"} <= names


def test_resume_of_a_run_that_is_done_changes_no_numbers(copied):
    before = TABLE.read_bytes()
    train(resume="true")
    assert TABLE.read_bytes() == before


def test_resume_without_a_checkpoint_starts_from_nothing():
    STATE.parent.mkdir(parents=True)
    STATE.with_name(f".{STATE.name}.part").write_bytes(b"half")  # killed in its first save
    assert train(resume="true", **SHORT)["gradient_steps"].tolist() == [2]


def test_resume_of_a_run_killed_between_two_renames_uses_the_one_before(copied, capsys):
    STATE.unlink()
    train(resume="true", gradient_steps=9, evaluation_games=1)
    assert f"resumed from {PREVIOUS} at 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("dreamer.hidden_size", 16, 24),
        ("dreamer.latent_groups", 4, 6),
        ("dreamer.latent", "categorical", "gaussian"),
        ("dreamer.bin_limit", 5.0, 4.0),
        ("dreamer.observation_in_state", True, False),
    ],
)
def test_resume_with_other_sizes_is_refused_naming_both(copied, capsys, key, old, new):
    before = contents()
    message = refused(capsys, resume="true", **{key: new})
    assert key in message and str(old) in message and str(new) in message
    assert contents() == before


@pytest.mark.parametrize("overrides", [{"environments": 2}, {"hockey__both_views": "false"}])
def test_resume_with_another_number_of_rings_is_refused(copied, capsys, overrides):
    message = refused(capsys, resume="true", **overrides)
    assert str(STATE) in message and "its replay is" in message


def test_resume_in_another_environment_is_refused(copied, capsys):
    message = refused(capsys, config="pendulum.yml", run="tiny", resume="true")
    assert str(STATE) in message


def test_damaged_checkpoints_are_refused_and_one_is_skipped(copied, capsys):
    whole = STATE.read_bytes(), PREVIOUS.read_bytes()
    for damaged in (b"", b"hello", whole[0][:-1000]):
        for path in (STATE, PREVIOUS):
            path.write_bytes(damaged)
        message = refused(capsys, resume="true")
        assert str(STATE) in message and str(PREVIOUS) in message
    PREVIOUS.write_bytes(whole[1])
    train(resume="true", gradient_steps=9, evaluation_games=1)
    printed = capsys.readouterr().out
    assert f"{STATE} can't be read: it is damaged" in printed
    assert f"resumed from {PREVIOUS}" in printed
    assert STATE.with_name("damaged.safetensors").read_bytes() == damaged
    assert checkpoint.load(STATE)[1]["steps"][1] == 9


@pytest.mark.parametrize("key", ["config", "steps", "pool"])
def test_a_checkpoint_with_a_part_that_is_none_is_refused(copied, capsys, key):
    tensors, metadata = checkpoint.load(STATE)
    PREVIOUS.unlink()
    for wrong in (None, 3, [], {}, "text", {"run": "tiny"}):
        checkpoint.save(STATE, tensors, **metadata | {key: wrong})
        assert str(STATE) in refused(capsys, resume="true")


def test_a_checkpoint_with_a_config_that_is_no_yaml_is_refused(copied, capsys):
    tensors, metadata = checkpoint.load(STATE)
    checkpoint.save(STATE, tensors, **metadata | {"config": "a: ["})
    assert str(STATE) in refused(capsys, resume="true")


def test_an_agent_is_no_checkpoint(copied, capsys):
    shutil.copy(STATE.with_name("latest.safetensors"), STATE)
    assert str(STATE) in refused(capsys, resume="true")


def test_a_checkpoint_of_another_run_is_refused_naming_both(copied, capsys):
    train(run="other", **SHORT)
    Path("checkpoints/other/state.safetensors").replace(STATE)
    message = refused(capsys, resume="true")
    assert "other" in message and "tiny" in message


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
        ({"init": "gone.safetensors"}, "gone.safetensors"),
        ({"hockey__modes__normal": 0, "hockey__modes__shooting": 0}, "hockey.modes"),
        ({"dreamer__critic_replay": 0}, "critic_imagination"),
        ({"dreamer__observation_scale": "[1, 2]"}, "observation_scale"),
        ({"replay__rows": 24}, "replay"),  # 8 rings of 3 rows
        ({"tracker": "tensorboard"}, "pip install"),
        ({"config": "pendulum.yml", "environment": "Nothing-v0"}, "Nothing"),
        ({"config": "pendulum.yml", "environment": "FrozenLake-v1"}, "flat Box"),
        ({"config": "pendulum.yml", "environment": "nothing:Nothing-v0"}, "nothing"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(capsys, monkeypatch, overrides, word):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were missing
    if "opponents__weak" in overrides:
        overrides = overrides | {"opponents__files_share": 0}
    assert word in refused(capsys, **overrides)
    assert not contents()


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_game_that_went_wrong_is_named_and_not_learned_from(what):
    training = main.Training(tiny_config())
    games, rows = training.play.environments, training.replay.filled
    real = games.step

    def step(action):
        observation, reward, *others = real(action)
        (observation if what == "observation" else reward)[2] = np.nan
        return observation, reward, *others

    games.step = step
    with pytest.raises(UserError, match=f"the {what} is not finite at environment step 0"):
        training.play.collect()
    assert training.replay.filled == rows


def test_an_action_that_went_wrong_is_named_and_not_played(monkeypatch):
    training = main.Training(tiny_config(warmup_rows=1))
    training.play.collect()
    monkeypatch.setattr(training.agent, "act", lambda rows: np.full((len(rows), 4), np.nan))
    with pytest.raises(UserError, match="the agent's action is not finite at environment step 4"):
        training.play.collect()


# ---------------------------------------------------------------------------- signals


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_signal_ends_in_a_checkpoint_and_a_status(monkeypatch, capfd):
    real, signals = Collector.collect, []

    def collect(play):
        real(play)
        if signals and play.agent.gradient_steps == signals[0][0]:
            os.kill(os.getpid(), getattr(signal, signals.pop()[1]))  # a second one would kill

    monkeypatch.setattr(Collector, "collect", collect)
    for step, name in ((3, "SIGINT"), (5, "SIGTERM"), (7, "SIGUSR1")):
        signals.append((step, name))
        assert main.command_line(arguments(resume="true")) == main.STOPPED == 75
        printed = capfd.readouterr()
        assert "resume=true" in printed.out and "saving" in printed.err
        assert checkpoint.load(STATE)[1]["steps"][1] == step
    table = train(resume="true", gradient_steps=8, evaluation_games=1)
    assert table["gradient_steps"].tolist() == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk")
def test_a_run_that_nobody_listens_to_goes_on(monkeypatch):
    full = {name: open("/dev/full", "w") for name in ("stdout", "stderr")}
    with monkeypatch.context() as patch:
        for name, stream in full.items():
            patch.setattr(sys, name, stream)
        assert main.command_line(arguments(**SHORT)) == 0
    for stream in full.values():  # what they hold can't be written at their end either
        with contextlib.suppress(OSError):
            stream.close()
    assert checkpoint.load(STATE)[1]["steps"][1] == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_process_obeys_a_signal(name, tmp_path):
    command = arguments(gradient_steps=1000000, evaluate_every=1000000, save_every=1000000)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [sys.executable, main.__file__, *command]
    run = subprocess.Popen(program, cwd=tmp_path, env=environment, text=True, **pipes)
    try:
        began = time.time()
        while not TABLE.exists() and time.time() - began < 60 and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(getattr(signal, name))
        output, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == main.STOPPED and "Traceback" not in errors, errors
    assert "resume=true" in output
    step = checkpoint.load(STATE)[1]["steps"][1]
    assert 0 < step < 1000000
    table = train(resume="true", gradient_steps=step + 2, evaluation_games=1)
    assert table["gradient_steps"].iloc[-1] == step + 2
