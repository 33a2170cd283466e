"""Other people's environments: any Box of finite bounds, and each of their mistakes a sentence."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given
from hypothesis import strategies as st
from tiny import STATE, TABLE, arguments, quicken, tiny_config

import checkpoint
import evaluate
import main
import matches
from environments import UnitActions, make_environments
from utils import UserError, one_line


class Strict(gymnasium.Env):
    """Asserts that each action is a member of its Box; what else it does is told by keywords."""

    opened = closed = total = 0  # of all of them

    def __init__(
        self, space=None, observation=0.5, reward=1.0, length=5, fails="", sight=(2,), after=0
    ):
        self.action_space = Box(-1.3, 0.7, (2, 2), np.float64) if space is None else space
        self.observation_space = sight if isinstance(sight, gymnasium.Space) else Box(-1, 1, sight)
        self.numbers, self.length = (observation, reward), length
        self.fails, self.after = fails, after
        self.fail("constructor")
        type(self).opened += 1

    def fail(self, where):
        if where == self.fails and self.total >= self.after:
            raise RuntimeError("the puck\nis gone")

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.fail("reset")
        self.time = 0
        return np.full(2, 0.5, np.float32), {}

    def step(self, action):
        self.fail("step")
        assert self.action_space.contains(action), (action, action.dtype)
        self.time += 1
        type(self).total += 1
        observation, reward = self.numbers if self.total > self.after else (0.5, 1.0)
        return np.full(2, observation), reward, self.time == self.length, False, {}

    def close(self):
        type(self).closed += 1


@pytest.fixture(autouse=True)
def register(tmp_path, monkeypatch):
    """register(**keywords): Strict-v0 is now a Strict with these."""
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)
    for count in ("opened", "closed", "total"):
        monkeypatch.setattr(Strict, count, 0)

    def call(**keywords):
        gymnasium.registry.pop("Strict-v0", None)
        gymnasium.register("Strict-v0", Strict, kwargs=keywords, disable_env_checker=True)

    call()
    return call


def config(**overrides):
    keys = {"environment": "Strict-v0", "run": "tiny", "gradient_steps": 4} | overrides
    return tiny_config(config="pendulum.yml", **keys)


def train(**overrides):
    """The exit status of a tiny run of Strict-v0."""
    keys = {"environment": "Strict-v0", "run": "tiny", "gradient_steps": 4} | overrides
    return main.command_line(arguments("pendulum.yml", **keys))


# ---------------------------------------------------------------------------- Boxes


@given(st.data())
def test_actions_are_members_of_any_finite_box(data):
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64", "int8", "uint8"]))
    shape = data.draw(st.sampled_from([(), (3,), (2, 2)]))
    ends = data.draw(st.lists(st.floats(0, 99), min_size=2, max_size=2))
    low, high = np.sort(ends).astype(dtype)
    env = UnitActions(Strict(Box(low, high, shape, dtype)))
    env.reset()
    size = int(np.prod(shape))
    assert env.action_space == Box(-1, 1, (size,), np.float32)
    for value in (-1, 1, data.draw(st.floats(-1, 1, width=32))):
        env.step(np.full(size, value, np.float32))
    assert (env.action(-np.ones(size)) == low).all() and (env.action(np.ones(size)) == high).all()


def test_a_strict_environment_trains_and_is_closed_and_its_agent_is_evaluated(capsys, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that the user can do nothing about
        assert train() == 0
    assert Strict.opened == Strict.closed > 8
    agent = str(STATE.with_name("latest.safetensors"))
    capsys.readouterr()
    assert evaluate.main([agent, "--games", "3"]) == 0
    assert capsys.readouterr().out == "Strict-v0: 3 episodes, mean return 5.0 [5.0, 5.0]\n"
    monkeypatch.setattr(evaluate, "episode_returns", lambda *_: np.array([0.0, 2.0, 4.0]))
    assert evaluate.main([agent, "--games", "3"]) == 0
    assert "mean return 2.0 [-0.3, 4.3]\n" in capsys.readouterr().out  # 1.96 * sqrt(4) / sqrt(3)
    assert evaluate.main([agent, "--against", "weak"]) == 2
    assert "--against has nobody there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "space",
    [Box(-np.inf, np.inf, (2,)), Box(0, np.inf, (2,)), Dict(a=Box(-1, 1, (2,)))],
)
def test_other_actions_are_one_sentence(register, space):
    register(space=space)
    with pytest.raises(UserError, match="environment: Strict-v0: actions .*") as caught:
        make_environments(config(), 2)
    assert "class" not in str(caught.value) and one_line(caught.value) == str(caught.value)


@pytest.mark.parametrize("sight", [(2, 2), (), Discrete(3), Dict(a=Box(-1, 1, (2,)))])
def test_other_observations_are_one_sentence(register, sight):
    register(sight=sight)
    with pytest.raises(UserError, match="Strict-v0: observations must be a flat Box or images"):
        make_environments(config(), 2)


@pytest.mark.parametrize(
    ("what", "number"), [("observation", 1e300), ("reward", -1e39), ("reward", np.nan)]
)
def test_a_number_that_float32_cannot_hold_is_the_environments_fault(
    register, what, number, capsys
):
    register(**{what: number}, sight=Box(-np.inf, np.inf, (2,), np.float64), after=170)
    assert train(save_every=1) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"environment: Strict-v0 gave the {what} {number}" in error
    assert "diverged" not in error and "saved up to gradient step" in error


def test_a_reward_beyond_the_largest_bin_is_said_once(register, capsys):
    register(reward=5000.0)
    assert train() == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "largest bin" in line]
    assert said == [
        "a reward of 5000 counts as that of the largest bin, 2980: raise dreamer.bin_limit"
    ]


# ---------------------------------------------------------------------------- what fails in them


@pytest.mark.parametrize("where", ["constructor", "reset", "step"])
def test_an_environment_that_fails_is_named_and_nothing_is_deleted(register, where, capsys):
    assert train() == 0
    before = TABLE.read_bytes(), STATE.read_bytes()
    register(fails=where)
    assert train(resume="true", gradient_steps=8) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "main.py: environment: Strict-v0" in error
    assert "failed: RuntimeError: the puck is gone (test_environments.py, line" in error
    if where != "step":
        assert train(overwrite="true") == 2
        assert (TABLE.read_bytes(), STATE.read_bytes()) == before


def test_a_run_is_saved_up_to_the_failure(register, capsys):
    register(fails="step", after=170)
    assert train(save_every=1, gradient_steps=100) == 2
    step = checkpoint.load(STATE)[1]["steps"][1]
    assert 0 < step < 100
    end = f"The run is saved up to gradient step {step}, where resume=true goes on."
    assert capsys.readouterr().err.splitlines()[-1].endswith(end)
    register()
    assert train(resume="true", gradient_steps=step + 1) == 0


def test_an_evaluation_ends_whatever_the_environment_does(register, monkeypatch, capsys):
    register(length=-1)
    monkeypatch.setattr(matches, "LONGEST_EPISODE", 30)
    worlds = make_environments(config(), 3)
    returns = matches.episode_returns(lambda rows: np.zeros((len(rows), 4), np.float32), worlds)
    assert returns.tolist() == [30, 30, 30]
    assert Strict.closed == Strict.opened == 3
    said = "3 of 3 evaluation episodes did not end within 30 steps; their returns are those so far"
    assert capsys.readouterr().err.strip() == said
