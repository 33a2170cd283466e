"""Worlds other than hockey: choices and images, how they are made, what is refused."""

import numpy as np
import pytest
import torch
from conftest import make_config
from tiny import STATE, numbers, outcome, run, tiny_config
from torch.distributions import Categorical

from buffer import ReplayBuffer
from dreamer import Dreamer
from environments import make_environments, playable, random_actions, sizes_of
from networks import DiscreteActor
from utils import UserError

CARTPOLE = {"config": "cartpole.yml", "run": "tiny", "environments": 3}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------- choices


def make_actor(scale=3.0):
    """A policy over five choices with opinions."""
    actor = DiscreteActor(8, 5, make_config(dreamer__unimix=0.1).dreamer)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(scale)
        actor.layers[-1].weight.mul_(100)
    return actor


def test_samples_are_one_hot_and_as_frequent_as_the_policy_says():
    actor = make_actor()
    policy = actor(torch.randn(4, 8))
    assert policy.probs.shape == (4, 5) and policy.probs.min() >= 0.1 / 5 - 1e-6
    assert policy.probs.max() > 0.5  # it has opinions
    sample = actor.sample(policy, actor.noise(20000, 4))
    assert sample.shape == (20000, 4, 5)
    assert torch.equal(sample.detach().round().sum(-1), torch.ones(20000, 4))
    assert torch.allclose(sample.mean(0), policy.probs, atol=0.02)
    assert torch.equal(actor.mode(policy).argmax(-1), policy.probs.argmax(-1))
    assert torch.equal(actor.action(sample), sample)


def test_log_probabilities_and_entropy_are_those_of_pytorch():
    actor = make_actor()
    policies = [actor(torch.randn(4, 8)) for _ in range(3)]
    policy, oracle = actor.stack(policies), Categorical(torch.stack([p.probs for p in policies]))
    index = oracle.sample()
    one_hot = torch.eye(5)[index]
    assert torch.allclose(policy.log_prob(one_hot), oracle.log_prob(index), atol=1e-6)
    assert torch.allclose(actor.entropy(policy, one_hot), oracle.entropy(), atol=1e-6)


def test_the_gradient_of_a_sample_is_that_of_its_probabilities():
    actor, worth = make_actor(), torch.randn(4, 5)
    policy = actor(torch.randn(4, 8))
    found = torch.autograd.grad(
        (worth * actor.sample(policy, actor.noise(4))).sum(),
        actor.layers[-1].bias,
        retain_graph=True,
    )
    expected = torch.autograd.grad((worth * policy.probs).sum(), actor.layers[-1].bias)
    assert torch.allclose(found[0], expected[0]) and expected[0].norm() > 0


@pytest.mark.parametrize("actor_gradient", ["dynamics", "reinforce"])
def test_the_choice_that_pays_is_found(actor_gradient):
    """One-decision games: the observation 0, 1 or 2 is the number of the choice that is paid."""
    settings = {"horizon": 1, "actor_gradient": actor_gradient, "world_model_head_start": 100}
    settings |= {"actor_rate": 3e-3, "world_model_rate": 3e-3, "critic_rate": 3e-3, "entropy": 1e-3}
    agent = Dreamer(
        make_config(**{f"dreamer__{k}": v for k, v in settings.items()}), 3, 3, "cpu", True
    )
    replay = ReplayBuffer(make_config(replay__rows=2000).replay, 8, 3, 3)
    eye, ones, zeros = torch.eye(3), torch.ones(8), torch.zeros(8)
    for _ in range(125):
        right, choice = torch.randint(3, (2, 8))
        replay.add(eye[right], torch.zeros(8, 3), zeros, ones, zeros)
        replay.add(torch.zeros(8, 3), eye[choice], 2.0 * (choice == right), zeros, ones)
    for _ in range(350):
        with agent.update(replay.sample(16, 4)):
            pass
    signs = np.repeat(np.eye(3, dtype=np.float32), 20, 0)
    expected = np.arange(60) // 20
    for options in ({"deterministic": True}, {"plan": True}):
        action = agent.player().act(signs, **options)
        assert action.shape == (60, 3) and (action.sum(-1) == 1).all()
        assert (action.argmax(-1) == expected).mean() > 0.95, options
    assert (agent.player().act(signs).argmax(-1) == expected).mean() > 0.7


def test_choices_reach_the_environment_by_number():
    environments = make_environments(tiny_config(**CARTPOLE), 3)
    assert sizes_of(environments) == ((4, 2), True)
    actions = random_actions(environments)
    assert actions.shape == (3, 2) and (actions.sum(-1) == 1).all()
    assert np.array_equal(playable(environments, np.eye(2)[[1, 0, 1]]), [1, 0, 1])
    counts = sum(random_actions(environments) for _ in range(1000)).sum(0)
    assert abs(counts[0] / counts.sum() - 0.5) < 0.05


def test_cartpole_trains_and_its_agent_is_rebuilt_from_its_file():
    run(**CARTPOLE)
    agent = Dreamer.load(STATE.with_name("latest.safetensors"))
    assert agent.sizes == (4, 2) and agent.discrete
    assert set(np.unique(agent.act(np.zeros((5, 4))))) == {0, 1}
    assert "evaluation/return" in numbers()[0]


def test_a_resumed_run_of_choices_is_the_run_that_nothing_stopped(tmp_path, monkeypatch):
    events = run(**CARTPOLE)
    expected = outcome()
    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    run(**CARTPOLE, crash_after=int(0.6 * events))
    run(**CARTPOLE, resume="true")
    assert outcome() == expected


def test_switches_are_refused_where_actions_are_choices():
    with pytest.raises(UserError, match="switches must be"):
        Dreamer(make_config(dreamer__switches=[0]), 4, 2, "cpu", True)
