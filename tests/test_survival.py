"""The long tests: processes killed, files damaged or malicious, disks full, configs made up."""

import contextlib
import os
import pickle
import random
import resource
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
from omegaconf import OmegaConf
from test_resume import STATE, arguments, empty_folder, numbers, run  # noqa: F401

import evaluate
import main
from dreamer import Dreamer
from utils import SCHEMA, UserError, flatten, load_config, load_sealed, one_line, save_sealed

pytestmark = pytest.mark.slow

LONG = {
    "gradient_steps": 250,
    "save_every": 1,
    "evaluate_every": 60,
    "opponents.snapshot_every": 40,
}
PREVIOUS = STATE.with_name("previous.pt")


def start(keys=LONG, **options):
    """A process that trains in this folder, from the moment at which its loop begins."""
    keys = arguments(**keys, resume="true")
    program = [sys.executable, "-u", main.__file__, "--config", "hockey.yml", *keys]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        program, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes, **options
    )
    for line in process.stdout:
        if line.startswith("files"):
            break
    return process


# ---------------------------------------------------------------------------- processes


def test_killed_at_twenty_moments(tmp_path, monkeypatch):
    longer = LONG | {"gradient_steps": 250}
    chance, half_written, steps = random.Random(0), 0, []
    for kill in range(20):
        process = start(longer)
        time.sleep(chance.uniform(0, 1.0))
        while kill % 2 and process.poll() is None and not any(STATE.parent.glob(".*.part")):
            time.sleep(0.0005)  # every other time, wait until something is being saved
        process.kill()
        assert process.communicate()[1].count("Traceback") == 0
        half_written += any(STATE.parent.glob(".*.part"))
        newest = main.load_newest([STATE, PREVIOUS])[1]
        steps.append(newest["agent"]["gradient_steps"])
        if kill == 10:
            shutil.copytree(tmp_path, tmp_path.with_name("mutant"))
    print("gradient steps at the kills:", steps, "of them while saving:", half_written)
    assert steps == sorted(steps) and half_written > 0
    run(**longer, resume="true")
    resumed = numbers()

    monkeypatch.chdir(tmp_path.with_name("mutant"))
    state = main.load_newest([STATE, PREVIOUS])[1]
    state["random"]["torch"] = torch.Generator().manual_seed(5).get_state()
    save_sealed(STATE, state)
    run(**longer, resume="true")
    mutant = numbers()

    run(**longer, overwrite="true")  # nothing stops this one
    assert resumed == numbers() and mutant != numbers()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_obeyed_within_fifteen_seconds(name):
    process = start()
    time.sleep(0.3)
    began = time.time()
    process.send_signal(getattr(signal, name))
    process.communicate(timeout=60)
    assert process.returncode == main.STOPPED and time.time() - began < 15
    assert load_sealed(STATE)


def test_the_second_interrupt_leaves_at_once_and_damages_nothing():
    for pause in (0.0, 0.005, 0.02, 0.05, 0.1):
        process = start()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=15)[1]
        assert process.returncode in (-signal.SIGINT, main.STOPPED) and "Traceback" not in errors
        assert main.load_newest([STATE, PREVIOUS])[2] == []
    run(**LONG, resume="true")
    resumed = numbers()
    run(**LONG, overwrite="true")
    assert resumed == numbers()


def test_a_full_disk_ends_in_one_sentence_and_the_checkpoint_stays_good():
    run(stop_after=60, **LONG)
    limit = os.path.getsize(STATE) + 2000  # what is larger can't be written
    process = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    errors = process.communicate(timeout=120)[1]
    sentences = [line for line in errors.splitlines() if "main.py: " in line]
    assert process.returncode == 2 and "Traceback" not in errors, errors
    assert len(sentences) == 1 and "Could not write" in sentences[0]
    run(**LONG, resume="true")
    resumed = numbers()
    run(**LONG, overwrite="true")
    assert resumed == numbers()


def test_folders_deleted_while_running_come_back():
    training = main.Training(load_config("hockey.yml", arguments()))
    real = training.train

    def train():
        real()
        if training.agent.gradient_steps == 13:
            for folder in ("checkpoints", "metrics", "plots"):
                shutil.rmtree(folder)
        training.should_stop = training.agent.gradient_steps == 20

    training.train = train
    training.run()
    run(resume="true")
    resumed = numbers()
    run(overwrite="true")
    assert resumed == numbers()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_flat_once_the_replay_is_full():
    keys = {"gradient_steps": 10**6, "train_ratio": 0.5, "evaluate_every": 10**6}
    keys |= {"opponents.snapshot_every": 100, "save_every": 100, "log_every": 100}
    training, sizes = main.Training(load_config("hockey.yml", arguments(**keys))), []
    real = training.collect

    def collect():
        real()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGESIZE") / 2**20)
        training.should_stop = training.environment_steps >= 20000

    training.collect = collect
    training.run()
    half = sizes[len(sizes) // 2 :]
    print(f"{min(half):.0f} to {max(half):.0f} MiB in {training.agent.gradient_steps} steps")
    assert max(half) < 1.05 * min(half)


@pytest.mark.parametrize("part", ["encoder", "actor", "slow_critic"])
def test_an_agent_that_went_wrong_is_never_saved(part):
    training = main.Training(load_config("hockey.yml", arguments()))
    real = training.train

    def train():
        real()
        if training.agent.gradient_steps == 10:
            with torch.no_grad():
                next(training.agent.networks[part].parameters()).view(-1)[0] = np.inf

    training.train = train
    with pytest.raises(UserError, match="not finite at .*gradient step 1[0-9]"):
        training.run()
    assert load_sealed(STATE)["agent"]["gradient_steps"] == 7
    for path in STATE.parent.glob("*.safetensors"):
        Dreamer.load(path).check_finite()
    run(resume="true")


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_game_that_went_wrong_is_named_and_not_learned_from(what):
    training = main.Training(load_config("hockey.yml", arguments()))
    real, rows = training.games.step, training.replay.filled

    def step(action):
        observation, reward, *others = real(action)
        (observation if what == "observation" else reward)[2] = np.nan
        return observation, reward, *others

    training.games.step = step
    with pytest.raises(UserError, match=f"the {what} is not finite at environment step 0"):
        training.run()
    assert training.replay.filled == rows


# ---------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, and what others left under its name."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(gradient_steps=12)
        run(gradient_steps=12, run="namesake")
        run(gradient_steps=12, run="larger", dreamer__hidden_size=24)
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
    before = load_sealed(PREVIOUS)
    chance, outcomes = random.Random(1), {"refused": 0, "the one before": 0}
    for number in range(100):
        for path, content in whole.items():
            path.write_bytes(content)
        if number % 10 == 0:
            foreign = ("namesake", "larger")[number // 10 % 2]
            shutil.copy(f"checkpoints/{foreign}/state.pt", STATE)
        else:
            STATE.write_bytes(damage(whole[STATE], chance))
        if number % 4 == 1:
            PREVIOUS.write_bytes(damage(whole[PREVIOUS], chance))
        if STATE.read_bytes() == whole[STATE]:
            continue
        try:
            training = main.Training(load_config("hockey.yml", arguments(resume="true")))
        except UserError as error:
            assert one_line(error) == str(error) and "tiny" in str(error)
            outcomes["refused"] += 1
            continue
        assert "damaged" in capsys.readouterr().out
        assert training.agent.gradient_steps == before["agent"]["gradient_steps"]
        for name, network in training.agent.networks.items():
            for key, value in network.state_dict().items():
                assert torch.equal(value, before["agent"]["networks"][name][key])
        outcomes["the one before"] += 1
    print(outcomes)
    assert outcomes["refused"] >= 10 and outcomes["the one before"] >= 50


def test_a_hundred_damaged_agents(finished, tmp_path):
    content = (finished / STATE).with_name("latest.safetensors").read_bytes()
    path, chance, refused = tmp_path / "agent.safetensors", random.Random(2), 0
    path.write_bytes(content)
    whole = Dreamer.load(path)
    for _ in range(100):
        path.write_bytes(damage(content, chance))
        try:
            agent = Dreamer.load(path)
        except UserError as error:
            assert one_line(error) == str(error)
            refused += 1
            continue
        assert agent.config == whole.config and agent.counters == whole.counters
        for name, network in agent.networks.items():
            for key, value in network.state_dict().items():
                assert torch.equal(value, whole.networks[name].state_dict()[key])
    assert refused >= 95


# ---------------------------------------------------------------------------- payloads


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_ten_payloads_are_refused_and_not_one_is_executed(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    raw, agent, good = (
        pickle.dumps(Payload()),
        Path("checkpoints/bad.safetensors"),
        load_sealed(STATE),
    )
    agent.write_bytes(raw)
    yaml = Path("bad.yml")
    yaml.write_text("run: !!python/object/apply:pathlib.Path.touch [executed]\n")
    python = Path("worse.yml")
    python.write_text("seed: !!python/object/new:os.system ['touch executed']\n")
    resume = ["--config", "hockey.yml", *arguments(resume="true")]
    fresh = ["--config", "hockey.yml", *arguments(run="fresh")]
    files = [f"opponents.files=[{agent}]", "opponents.files_share=0.5"]

    def stored(write):
        PREVIOUS.unlink(missing_ok=True)
        write()
        return main.main(resume)

    assert stored(lambda: STATE.write_bytes(raw)) == 2
    assert stored(lambda: torch.save({"agent": Payload()}, STATE)) == 2
    assert stored(lambda: save_sealed(STATE, {"agent": Payload()})) == 2
    assert stored(lambda: save_sealed(STATE, good | {"replay": Payload()})) == 2
    assert stored(lambda: save_sealed(STATE, good | {"config": Payload()})) == 2
    assert main.main([*fresh, *files]) == 2
    assert evaluate.main([str(agent)]) == 2
    assert evaluate.main([str(agent.with_name("larger")), "--against", str(agent)]) == 2
    assert main.main(["--config", str(yaml)]) == 2
    assert main.main(["--config", str(python)]) == 2
    assert main.main([*fresh, "seed=!!python/object/apply:pathlib.Path.touch [executed]"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("executed").exists()
    pickle.loads(raw)
    assert Path("executed").exists()  # the payload was a live one


# ---------------------------------------------------------------------------- configs

PLAIN = dict(flatten(OmegaConf.to_container(load_config("hockey.yml"))))


@st.composite
def mistakes(draw):
    """(key, value) that no config may have."""
    key = draw(st.sampled_from(sorted(SCHEMA)))
    if draw(st.booleans()):
        typo = draw(st.text("abcdefgh_", min_size=1, max_size=5))
        return (f"{key}{typo}", PLAIN[key]) if f"{key}{typo}" not in SCHEMA else (key, None)
    rule = SCHEMA[key]
    wrong = [None, {"a": 1}]
    if isinstance(rule, tuple):
        wrong += ["many", [1], True, float("nan"), float("inf"), rule[1] - draw(st.integers(1, 99))]
        wrong += [rule[2] + draw(st.integers(1, 99))] if rule[2] is not None else []
    elif isinstance(rule, set):
        wrong += [draw(st.text("xyz", min_size=1)), 1, [1]]
    elif rule is bool:
        wrong += ["maybe", 2, 0.5]
    elif rule is str:
        wrong += [3, 0.5, True, ["a"]]
    else:
        wrong += [3, "text", [{}]]
    return key, draw(st.sampled_from(wrong))


@settings(max_examples=200)
@given(mistakes())
def test_two_hundred_bad_configs_are_one_line_that_names_the_key(mistake):
    key, value = mistake
    config = OmegaConf.create()
    for known, good in PLAIN.items():
        OmegaConf.update(config, known, good, force_add=True)
    with contextlib.suppress(KeyError):
        config.pop(key)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    Path("made_up.yml").write_text(OmegaConf.to_yaml(config))
    began = time.time()
    with pytest.raises(UserError) as caught:
        load_config("made_up.yml")
    message = str(caught.value)
    assert time.time() - began < 2 and one_line(message) == message
    assert key in message, message
