"""The long tests: processes killed, files damaged or malicious, disks full, configs made up."""

import contextlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_config import RULES, wrong_texts
from tiny import PAGE, PREVIOUS, STATE, arguments, outcome, run, tiny_config

import checkpoint
import evaluate
import main
from config import load_config
from dreamer import Dreamer
from environments import Collector
from machine import Stop
from utils import UserError, check_finite, one_line

resource = pytest.importorskip("resource", reason="needs POSIX signals and limits")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*precision lowered")]

LONG = {
    "gradient_steps": 90,
    "save_every": 1,
    "evaluate_every": 30,
    "opponents__snapshot_every": 20,
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def start(keys=LONG, **options):
    """A process that trains in this folder, from the moment at which its loop begins."""
    program = [sys.executable, "-u", main.__file__, *arguments(**keys, resume="true")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        program, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes, **options
    )
    for line in process.stdout:
        if line.startswith("files"):
            break
    return process


def wait_for_saves(process, count):
    """Waits until so many checkpoints have been written: machines differ in speed."""
    seen = set()
    while len(seen) <= count and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # between two renames
            seen.add(STATE.stat().st_mtime_ns)
        time.sleep(0.001)


def newest():
    """The metadata of the newest checkpoint that is whole; nothing is moved."""
    for path in (STATE, PREVIOUS):
        if path.exists():
            return checkpoint.load(path)[1]
    raise AssertionError("there is no checkpoint")


def unstopped(**overrides):
    """The outcome of the same run, which nothing stops."""
    run(**overrides, overwrite="true")
    return outcome()


# ---------------------------------------------------------------------------- processes


@pytest.mark.parametrize(
    "keys", [LONG, LONG | {"config": "pendulum.yml", "run": "tiny"}], ids=["hockey", "pendulum"]
)
def test_killed_at_twenty_moments(tmp_path, monkeypatch, keys):
    chance, half_written, steps = random.Random(0), 0, []
    other = tmp_path.with_name(f"{tmp_path.name}_mutant")
    for kill in range(20):
        process = start(keys)
        wait_for_saves(process, chance.randint(0, 6))
        time.sleep(chance.uniform(0, 0.2))
        while kill % 2 and process.poll() is None and not any(STATE.parent.glob(".*.part")):
            time.sleep(0.0005)  # every other time, wait until something is being saved
        process.kill()
        assert process.communicate()[1].count("Traceback") == 0
        half_written += any(STATE.parent.glob(".*.part"))
        steps.append(newest()["steps"][1])
        if kill == 10:
            shutil.copytree(tmp_path, other)
    print("gradient steps at the kills:", steps, "of them while saving:", half_written)
    assert steps == sorted(steps) and half_written > 0 and steps[-1] > 20
    run(**keys, resume="true")
    resumed = outcome()

    monkeypatch.chdir(other)
    tensors, metadata = checkpoint.load(STATE if STATE.exists() else PREVIOUS)
    tensors["reward.layers.2.bias"][0] += 1e-3  # symmetric in any case
    checkpoint.save(STATE, tensors, **metadata)
    run(**keys, resume="true")
    mutant = outcome()

    expected = unstopped(**keys)
    assert resumed == expected and mutant != expected


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_obeyed_within_fifteen_seconds(name):
    process = start()
    wait_for_saves(process, 2)
    began = time.time()
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == main.STOPPED and time.time() - began < 15
    assert newest()["steps"][0] > 0


def test_the_second_interrupt_leaves_at_once_and_damages_nothing():
    for pause in (0.0, 0.005, 0.02, 0.05, 0.1):
        process = start()
        wait_for_saves(process, 2)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=15)[1]
        assert process.returncode in (-signal.SIGINT, main.STOPPED) and "Traceback" not in errors
        newest()
    run(**LONG, resume="true")
    assert outcome()["steps"][1] == 90


def test_a_full_disk_ends_in_one_sentence_and_the_checkpoint_stays_good():
    keys = LONG | {"gradient_steps": 40}
    run(crash_after=60, **keys)
    limit = os.path.getsize(STATE) + 2000  # what is larger can't be written
    process = start(
        keys, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    errors = process.communicate(timeout=120)[1]
    sentences = [line for line in errors.splitlines() if "main.py: " in line]
    assert process.returncode == 2 and "Traceback" not in errors, errors
    assert len(sentences) == 1 and "Could not write" in sentences[0]
    run(**keys, resume="true")
    assert outcome() == unstopped(**keys)


def after(step, action, place=Collector, name="collect"):
    """A context in which `action(self)` happens once, when so many gradient steps are begun."""
    real, done = getattr(place, name), []

    def call(self, *values):
        result = real(self, *values)
        if self.agent.gradient_steps >= step and not done:
            done.append(action(self))
        return result

    patch = pytest.MonkeyPatch()
    patch.setattr(place, name, call)
    return patch


def test_folders_deleted_while_running_come_back():
    def delete(_):
        for folder in ("checkpoints", "metrics", "plots"):
            shutil.rmtree(folder)

    patch = after(6, delete)
    run()
    patch.undo()
    found, expected = outcome(), unstopped()
    assert expected.keys() - found.keys() == {"snapshot_0000002.safetensors"}  # nobody needs it
    del expected["snapshot_0000002.safetensors"]
    assert found == expected and PAGE.exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat_once_the_replay_is_full(monkeypatch):
    keys = {"gradient_steps": 10**6, "train_ratio": 0.5, "evaluate_every": 10**6}
    keys |= {"opponents__snapshot_every": 100, "save_every": 100, "log_every": 100}
    stop, sizes, real = Stop(), [], Collector.collect

    def collect(play):
        real(play)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGESIZE") / 2**20)
        stop.requested = play.steps >= 30000

    monkeypatch.setattr(Collector, "collect", collect)
    main.main(tiny_config(**keys), stop)
    half = sizes[len(sizes) // 2 :]
    print(f"{min(half):.0f} to {max(half):.0f} MiB in {newest()['steps']} steps")
    assert max(half) < 1.05 * min(half)


@pytest.mark.parametrize("part", ["encoder", "actor", "slow_critic"])
def test_an_agent_that_went_wrong_is_never_saved(part):
    def spoil(play):
        with torch.no_grad():
            next(getattr(play.agent, part).parameters()).view(-1)[0] = np.inf

    patch = after(10, spoil)
    with pytest.raises(UserError, match="not finite at .*step 1[0-9]"):
        main.main(tiny_config(), Stop())
    patch.undo()
    assert newest()["steps"][1] == 8
    for path in STATE.parent.glob("*.safetensors"):
        check_finite(checkpoint.load(path)[0], path)
    run(resume="true")
    resumed = outcome()
    assert resumed == unstopped()


# ---------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, and what others left under its name."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run()
        run(run="namesake")
        run(run="larger", dreamer__hidden_size=24)
    return folder


def damage(content, chance):
    """The bytes with a few bits flipped, a part missing, a part zeroed, or the end cut off."""
    content, kind = bytearray(content), chance.randrange(4)
    place = chance.randrange(len(content))
    if kind == 0:
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del content[place : place + chance.randint(1, 1000)]
    elif kind == 2:
        content[place : place + 64] = bytes(64 - max(0, place + 64 - len(content)))
    else:
        del content[place:]
    return bytes(content)


def test_a_hundred_damaged_checkpoints(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    paths = [STATE, PREVIOUS, *STATE.parent.glob("snapshot*.safetensors")]
    whole = {path: path.read_bytes() for path in paths}
    before, metadata = checkpoint.load(PREVIOUS)
    chance, outcomes = random.Random(1), {"refused": 0, "the one before": 0}
    for number in range(100):
        for path, content in whole.items():
            path.write_bytes(content)
        if number % 10 == 0:
            foreign = ("namesake", "larger")[number // 10 % 2]
            shutil.copy(f"checkpoints/{foreign}/state.safetensors", STATE)
        else:
            STATE.write_bytes(damage(whole[STATE], chance))
        if number % 4 == 1:
            PREVIOUS.write_bytes(damage(whole[PREVIOUS], chance))
        if STATE.read_bytes() == whole[STATE]:
            continue
        try:
            training = main.Training(tiny_config(resume="true"))
        except UserError as error:
            assert one_line(error) == str(error) and "tiny" in str(error)
            outcomes["refused"] += 1
            continue
        assert "damaged" in capsys.readouterr().out
        assert [training.play.steps, training.agent.gradient_steps] == metadata["steps"]
        state = training.agent.state()
        assert all(torch.equal(value, before[key]) for key, value in state.items())
        outcomes["the one before"] += 1
    print(outcomes)
    assert outcomes["refused"] >= 10 and outcomes["the one before"] >= 50


def test_a_hundred_damaged_agents(finished, tmp_path):
    content = (finished / STATE).with_name("latest.safetensors").read_bytes()
    path, chance, refused = tmp_path / "agent.safetensors", random.Random(2), 0
    for _ in range(100):
        damaged = damage(content, chance)
        path.write_bytes(damaged)
        if damaged == content:
            continue
        with pytest.raises(UserError) as caught:
            Dreamer.load(path)
        assert one_line(caught.value) == str(caught.value)
        refused += 1
    assert refused >= 95


# ---------------------------------------------------------------------------- payloads


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_ten_payloads_are_refused_and_not_one_is_executed(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    raw, agent = pickle.dumps(Payload()), Path("checkpoints/bad.safetensors")
    tensors, metadata = checkpoint.load(STATE)
    tensors = {name: value.clone() for name, value in tensors.items()}  # the file goes
    pickled = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    agent.write_bytes(raw)
    yaml = Path("bad.yml")
    yaml.write_text("run: !!python/object/apply:pathlib.Path.touch [executed]\n")
    python = Path("worse.yml")
    python.write_text("seed: !!python/object/new:os.system ['touch executed']\n")
    resume, fresh = arguments(resume="true"), arguments(run="fresh", opponents__files="[]")
    files = [f"opponents.files=[{agent}]", "opponents.files_share=0.5"]

    def stored(write):
        PREVIOUS.unlink(missing_ok=True)
        write()
        return main.command_line(resume)

    assert stored(lambda: STATE.write_bytes(raw)) == 2
    assert stored(lambda: torch.save({"agent": Payload()}, STATE)) == 2
    assert stored(lambda: save_file(tensors | {"replay/rows": pickled}, STATE)) == 2
    for change in ({"replay/rows": pickled}, {"return_scale": pickled}):
        assert stored(lambda c=change: checkpoint.save(STATE, tensors | c, **metadata)) == 2
    text = raw.decode("latin-1")
    for key in ("steps", "pool"):
        changed = metadata | {key: text}
        assert stored(lambda c=changed: checkpoint.save(STATE, tensors, **c)) == 2
    assert main.command_line([*fresh, *files]) == 2
    assert evaluate.main([str(agent)]) == 2
    assert evaluate.main([str(agent.with_name("larger")), "--against", str(agent)]) == 2
    assert main.command_line(["--config", str(yaml)]) == 2
    assert main.command_line(["--config", str(python)]) == 2
    assert main.command_line([*fresh, "seed=!!python/object/apply:os.system [touch executed]"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("executed").exists()
    pickle.loads(raw)
    assert Path("executed").exists()  # the payload was a live one


# ---------------------------------------------------------------------------- configs


@st.composite
def mistakes(draw):
    """(key, value) that no config may have."""
    key = draw(st.sampled_from(sorted(RULES)))
    if draw(st.booleans()):
        typo = key + draw(st.text("abcdefgh_", min_size=1, max_size=5))
        if typo not in RULES:
            return typo, "3"
    wrong = draw(st.sampled_from([*wrong_texts(*RULES[key]), {"a": "1"}]))
    return key, wrong


def as_yaml(key, value):
    """A config with just this key."""
    *groups, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(groups)]
    value = f"'{value}'" if isinstance(value, str) else str(value)
    return "\n".join(["base: hockey.yml", *lines, f"{'  ' * len(groups)}{last}: {value}"])


@settings(max_examples=200)
@given(mistakes())
def test_two_hundred_bad_configs_are_one_line_that_names_the_key(mistake):
    key, value = mistake
    Path("made_up.yml").write_text(as_yaml(key, value))
    began = time.time()
    with pytest.raises(UserError) as caught:
        load_config("made_up.yml")
    message = str(caught.value)
    assert time.time() - began < 2 and one_line(message) == message
    assert key in message and "made_up.yml" in message, message
