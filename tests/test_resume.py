"""Runs that are stopped, killed or damaged: what comes after is what would have come anyway."""

import copy
import csv
from pathlib import Path

import pytest
import torch

import hockey_env
import main
from utils import load_config, load_sealed, save_sealed

TINY = {
    "run": "tiny",
    "device": "cpu",
    "threads": 1,
    "gradient_steps": 30,
    "log_every": 3,
    "evaluate_every": 11,
    "evaluation_games": 4,
    "save_every": 7,
    "environments": 4,
    "warmup_rows": 200,
    "train_ratio": 3,
    "replay.rows": 600,
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
    "hockey.frame_skip": 16,  # a game takes 16 decisions
    "hockey.both_views": True,
    "hockey.modes.normal": 0.5,
    "hockey.modes.shooting": 0.5,
    "opponents.weak": 0.2,
    "opponents.strong": 0.2,
    "opponents.random": 0.2,
    "opponents.snapshots": 0.4,
    "opponents.snapshot_every": 4,
    "opponents.snapshots_kept": 1,
}
STATE = Path("checkpoints/tiny/state.pt")
TABLE = Path("metrics/tiny.csv")


def arguments(**overrides):
    """The key=value arguments of a tiny run."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    return [f"{key}={value}" for key, value in (TINY | overrides).items()]


def numbers(path=TABLE):
    """The CSV as text, without the columns that tell the time."""
    with open(path) as file:
        rows = list(csv.reader(file))
    timed = ("minutes", "time/", "speed/")
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith(timed)]
    return [[row[i] for i in kept] for row in rows]


def run(stop_after=None, crash_after=None, **overrides):
    """A run in this folder, asked to stop, or crashing, after so many of its actions."""
    training = main.Training(load_config("hockey.yml", arguments(**overrides)))
    count = 0

    def counted(action):
        def act():
            nonlocal count
            action()
            count += 1
            if count == crash_after:
                raise KeyboardInterrupt
            training.should_stop |= count == stop_after

        return act

    for name in ("collect", "train", "log"):
        setattr(training, name, counted(getattr(training, name)))
    training.should_stop = stop_after == 0
    try:
        training.run()
    except KeyboardInterrupt:
        training.bar.close()
    return count


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(numbers, actions, replay's rows) of a run that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
        actions = run()
        return numbers(), actions, load_sealed(STATE)["replay"]["rows"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- exact resume


def slow(*values):
    """A set of parameters for the long tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("how", "share"),
    [
        ("stop_after", 0.05),
        ("stop_after", 0.57),
        ("crash_after", 0.8),
        *(slow("stop_after", share) for share in (0.1, 0.3, 0.9, 0.99)),
        *(slow("crash_after", share) for share in (0.05, 0.3, 0.57)),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted, how, share):
    expected, actions, rows = uninterrupted
    run(**{how: int(share * actions)})
    run(resume="true")
    assert numbers() == expected
    assert torch.equal(load_sealed(STATE)["replay"]["rows"], rows)


@pytest.mark.slow
def test_a_run_stopped_again_and_again_is_the_uninterrupted_one(uninterrupted):
    for _ in range(40):
        run(stop_after=7, resume="true")
    run(resume="true")
    assert numbers() == uninterrupted[0]


def test_an_evaluation_that_was_broken_off_is_done_after_the_resume(uninterrupted, monkeypatch):
    training = main.Training(load_config("hockey.yml", arguments()))
    real = training.judge

    def judge(agent):
        training.should_stop = True  # the signal comes now
        return real(agent)

    training.judge = judge
    training.run()
    assert load_sealed(STATE)["due"] == ["evaluate"]
    run(resume="true")
    assert numbers() == uninterrupted[0]


def test_games_without_snapshots_start_anew_and_it_is_said(uninterrupted, monkeypatch, capsys):
    monkeypatch.delattr(hockey_env.HockeyEnv, "get_snapshot")  # as in the lab's package
    run(stop_after=40)
    filled = len(load_sealed(STATE)["replay"]["rows"])
    run(resume="true")
    assert "start anew" in capsys.readouterr().out
    assert load_sealed(STATE)["replay"]["rows"][filled, :, -2].all()
    assert len(numbers()) == len(uninterrupted[0])


PARTS = [  # where the checkpoint holds what must not be forgotten
    ("random", "torch"),
    ("pool", "opponents", ("bot", "weak")),
]
MORE_PARTS = [
    ("replay", "generator"),
    ("pool", "generator"),
    ("pool", "opponents", ("bot", "strong")),
    ("pool", "opponents", ("bot", "random")),
    ("pool", "played"),
    ("games", "generator"),
    ("games", "games_started"),
    ("games", "games"),
    ("agent", "memory"),
    ("agent", "optimizers"),
    ("views", "episode_return"),
    ("metrics", "pending"),
]


@pytest.mark.parametrize("part", [*PARTS, *map(slow, MORE_PARTS)], ids=str)
def test_a_resume_that_forgets_one_part_is_noticed(uninterrupted, part):
    run(stop_after=0)
    forgotten = load_sealed(STATE)
    run(stop_after=int(0.5 * uninterrupted[1]), resume="true")
    state = load_sealed(STATE)
    target = state
    for key in part[:-1]:
        target, forgotten = target[key], forgotten[key]
    assert target[part[-1]] is not None
    target[part[-1]] = copy.deepcopy(forgotten[part[-1]])
    save_sealed(STATE, state)
    run(resume="true")
    assert numbers() != uninterrupted[0]


def test_a_resume_in_the_warm_up_that_forgets_its_generator_is_noticed(uninterrupted):
    run(stop_after=0)
    forgotten = load_sealed(STATE)["warmup"]
    run(stop_after=5, resume="true")
    save_sealed(STATE, load_sealed(STATE) | {"warmup": forgotten})
    run(resume="true")
    assert numbers() != uninterrupted[0]
