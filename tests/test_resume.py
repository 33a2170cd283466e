"""Runs that are stopped or killed: what comes after is what would have come anyway.

Here the process "dies" of an exception, at one of its events; test_survival.py kills real ones.
"""

import importlib.util
import itertools
import shutil
from pathlib import Path

import pytest
from tiny import PREVIOUS, STATE, outcome, quicken, run, tiny_config

import checkpoint
import main
from dreamer import Dreamer
from machine import Stop

pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered")
PENDULUM = {"config": "pendulum.yml", "run": "tiny", "environments": 3}
PENDULUM |= {"wrappers__time_limit": 30}
HAS_LAB = importlib.util.find_spec("hockey") is not None
LAB = {"hockey__game": "hockey-env", "opponents__files_share": 0}


def slow(*values):
    """A set of parameters for the long tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(**overrides): (outcome, number of events) of a run that nothing stopped."""
    known = {}

    def find(**overrides):
        key = tuple(overrides.items())
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
                events = run(**overrides)
                known[key] = outcome(), events
        return known[key]

    return find


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)


# ---------------------------------------------------------------------------- killed


@pytest.mark.parametrize(
    "share", [0.57, *map(slow, (0.93, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.7, 0.8, 0.99))]
)
def test_a_resumed_run_is_the_run_that_nothing_stopped(uninterrupted, share):
    expected, events = uninterrupted()
    assert run(crash_after=int(share * events)) == int(share * events)
    run(resume="true")
    assert outcome() == expected


@pytest.mark.parametrize("share", [0.6, slow(0.3), slow(0.9)])
def test_so_it_is_in_any_gymnasium_environment(uninterrupted, share):
    expected, events = uninterrupted(**PENDULUM)
    run(**PENDULUM, crash_after=int(share * events))
    run(**PENDULUM, resume="true")
    assert outcome() == expected


def test_so_it_is_with_games_in_processes(uninterrupted):
    keys = {"vectorization": "async", "gradient_steps": 6}
    expected, events = uninterrupted(**keys)
    run(**keys, crash_after=int(0.8 * events))
    assert checkpoint.load(STATE)[1]["steps"][1] == 4
    run(**keys, resume="true")
    assert outcome() == expected


@pytest.mark.skipif(not HAS_LAB, reason="the lab's package is not installed")
@pytest.mark.parametrize("share", [0.6, slow(0.3), slow(0.9)])
def test_so_it_is_in_the_labs_game(uninterrupted, share):
    expected, events = uninterrupted(**LAB)
    run(**LAB, crash_after=int(share * events))
    run(**LAB, resume="true")
    assert outcome() == expected


@pytest.mark.slow
def test_a_run_killed_again_and_again_is_the_run_that_nothing_stopped(uninterrupted):
    for crash in range(20, 50, 3):
        run(crash_after=crash, resume="true")
    run(resume="true")
    assert outcome() == uninterrupted()[0]


@pytest.mark.slow
def test_a_run_may_die_at_any_event_of_a_checkpoint(uninterrupted):
    """Between the state, the one before, the latest agent, the page: nothing is lost or stale."""
    expected, events = uninterrupted()
    wrong = []
    for number in itertools.chain(range(1, 8), range(events - 20, events + 1)):
        shutil.rmtree("checkpoints", ignore_errors=True)
        run(crash_after=number, overwrite="true")
        run(resume="true")
        wrong += [number] if outcome() != expected else []
    assert not wrong, events


def test_a_run_that_dies_before_its_latest_agent_is_written(uninterrupted, monkeypatch):
    expected, _ = uninterrupted()
    real = main.Training.save_agent

    def save_agent(training, name):
        if name == "latest" and training.agent.gradient_steps == training.config.gradient_steps:
            raise KeyboardInterrupt
        return real(training, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main.Training, "save_agent", save_agent)
        run()
    run(resume="true")
    assert outcome() == expected


def test_a_run_with_init_may_die_at_any_event_before_its_first_checkpoint(tmp_path):
    """What it leaves then, at most the agent that it began with, is in nobody's way."""
    keys = {"init": tmp_path / "other.safetensors"}
    main.Training(tiny_config(run="other")).agent.save(keys["init"])
    main.Training(tiny_config(**keys))
    expected, is_saved, events = outcome(), False, 0
    while not is_saved:
        shutil.rmtree("checkpoints")
        events += 1
        run(**keys, crash_after=events)
        is_saved = STATE.exists()
        main.Training(tiny_config(**keys, resume="true"))
        assert outcome() == expected, events
    assert events > 2


# ---------------------------------------------------------------------------- stopped


@pytest.mark.parametrize("share", [0.57, *map(slow, (0.0, 0.05, 0.3, 0.9))])
def test_a_stop_is_a_checkpoint_of_its_own(uninterrupted, tmp_path, monkeypatch, share):
    """Two runs stopped at the same point are equal, and neither loses anything."""
    events, outcomes = uninterrupted()[1], []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        run(stop_after=int(share * events))
        _, metadata = checkpoint.load(STATE)
        environment_steps, gradient_steps = metadata["steps"]
        assert Dreamer.load(STATE.with_name("latest.safetensors")).gradient_steps == gradient_steps
        assert share == 0 or environment_steps > 0
        assert gradient_steps == 0 or metadata["rows"][-1]["gradient_steps"] == gradient_steps
        stopped = outcome()
        if name == "two":  # after the stop, dying changes nothing
            run(resume="true", crash_after=5)
        run(resume="true")
        outcomes.append((stopped, outcome()))
    assert outcomes[0] == outcomes[1]
    csv = outcomes[0][1]["csv"]
    assert csv[: len(stopped["csv"])] == stopped["csv"] or len(csv[0]) > len(stopped["csv"][0])
    evaluated = [row[0] for row in csv[1:] if row[csv[0].index("evaluation/strong/games")]]
    assert evaluated == ["6", "12"] and outcomes[0][1]["steps"][1] == 12


@pytest.mark.slow
def test_a_run_stopped_again_and_again_arrives():
    for _ in range(40):
        run(stop_after=9, resume="true")
    run(resume="true")
    assert outcome()["steps"][1] == 12


@pytest.mark.parametrize(("step", "steps"), [slow(6, ["7", "12"]), (12, ["6", "12"])])
def test_an_evaluation_that_was_broken_off_is_done_after_the_resume(monkeypatch, step, steps):
    real = main.Training.evaluate

    def evaluate(training, stop):
        stop.requested = training.agent.gradient_steps == step  # the signal comes now
        return real(training, stop)

    with monkeypatch.context() as patch:
        patch.setattr(main.Training, "evaluate", evaluate)
        assert not main.main(tiny_config(), Stop())
    state = checkpoint.load(STATE)[1]
    assert state["steps"][1] == step and state["evaluated"] < step
    assert main.main(tiny_config(resume="true"), Stop())
    resumed, csv = outcome(), outcome()["csv"]
    evaluated = [row[0] for row in csv[1:] if row[csv[0].index("evaluation/strong/games")]]
    assert evaluated == steps and resumed["evaluated"] == 12 and resumed["best"] >= 0
    assert str(Dreamer.load(STATE.with_name("best.safetensors")).gradient_steps) in steps
    assert main.main(tiny_config(resume="true"), Stop())  # there is nothing left to do
    assert outcome() == resumed


# ---------------------------------------------------------------------------- forgetting


@pytest.fixture(scope="module")
def half(uninterrupted, tmp_path_factory):
    """(folder, metadata and tensors at the start) of a run that died after its half."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        quicken(patch)
        run(stop_after=0)
        start = checkpoint.load(STATE)
        shutil.rmtree("checkpoints")
        shutil.rmtree("metrics", ignore_errors=True)
        shutil.rmtree("plots", ignore_errors=True)
        run(crash_after=int(0.8 * uninterrupted()[1]))
    return folder, *start


def equal(left, right):
    return right is not None and left.shape == right.shape and bool((left == right).all())


def forgotten(half, part):
    """Replaces a part of the state by what it was at the start; returns the changed state."""
    _, first, first_metadata = half
    tensors, metadata = checkpoint.load(STATE)
    chosen = [name for name in tensors if name.startswith(part)]
    assert chosen or part in metadata or part in metadata["pool"] or part == "nothing"
    assert not chosen or any(not equal(tensors[name], first.get(name)) for name in chosen)
    for name in chosen:
        del tensors[name]
        if name in first:
            tensors[name] = first[name]
    for mine, theirs in ((metadata, first_metadata), (metadata["pool"], first_metadata["pool"])):
        if part in mine and not chosen:
            assert mine[part] != theirs[part]
            mine[part] = theirs[part]
    return tensors, metadata


@pytest.mark.parametrize(
    "part",
    [
        "nothing",
        "best",
        *map(slow, ("optimizer", "encoder", "rssm.prior", "critic", "slow_actor", "return_scale")),
        *map(slow, ("replay", "evaluated", "rows", "results", "played", "snapshots")),
    ],
)
def test_a_resume_that_forgets_one_part_is_noticed(uninterrupted, half, tmp_path, part):
    """So the comparison with the run that nothing stopped sees every part of a checkpoint."""
    shutil.copytree(half[0], tmp_path, dirs_exist_ok=True)
    tensors, metadata = forgotten(half, part)
    checkpoint.save(STATE, tensors, **metadata)
    run(resume="true")
    assert (outcome() == uninterrupted()[0]) == (part == "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("counter", [0, 1])
def test_a_resume_that_forgets_a_counter_is_noticed(uninterrupted, half, tmp_path, counter):
    shutil.copytree(half[0], tmp_path, dirs_exist_ok=True)
    tensors, metadata = checkpoint.load(STATE)
    metadata["steps"][counter] -= 4
    checkpoint.save(STATE, tensors, **metadata)
    run(resume="true")
    assert outcome() != uninterrupted()[0]


# ---------------------------------------------------------------------------- rows


def test_a_resumed_run_may_have_another_train_ratio():
    run(gradient_steps=4, train_ratio=1)  # 16 replayed rows a step, for 16 of the agent's own
    for train_ratio, collected in ((4, 4), (0.5, 32)):
        before = checkpoint.load(STATE)[1]["steps"]
        run(resume="true", gradient_steps=before[1] + 3, train_ratio=train_ratio)
        after = checkpoint.load(STATE)[1]["steps"]
        assert after[0] - before[0] == pytest.approx(3 * collected, abs=4)


def test_the_replay_goes_on_where_the_checkpoint_ends():
    run(crash_after=80)
    before, metadata = checkpoint.load(STATE)
    run(resume="true", gradient_steps=metadata["steps"][1] + 1)
    rows, old = checkpoint.load(STATE)[0]["replay/rows"], before["replay/rows"]
    assert len(rows) > len(old) and (rows[: len(old)] == old).all()
    assert rows[len(old), :, -2].all() and not rows[len(old) + 1, :, -2].any()  # games start anew
    assert not rows[len(old), :, 18:23].any()  # without an action, without a reward
    assert PREVIOUS.exists() and not list(Path("checkpoints/tiny").glob(".*"))
