"""Agents that are their own mirror image, before and after they learn."""

import numpy as np
import pytest
import torch
from conftest import make_batch
from tiny import run, tiny_config

import main
from dreamer import Dreamer
from hockey_wrapper import MIRROR
from symmetry import Symmetry, halves, join, signed
from utils import UserError

SIGNS = torch.tensor(MIRROR, dtype=torch.float32)
KINDS = [
    {},
    {"norm": "none", "activation": "ELU", "hidden_layers": 2},
    {"norm": "RMSNorm", "latent": "gaussian", "scalar": "normal", "observation_in_state": False},
]
SWITCHED = {"observation_scale": [2.0] * 18, "switches": [3], "critic_replay": 1}


def symmetric_agent(small_config, **settings):
    keys = {f"dreamer__{key}": value for key, value in (SWITCHED | settings).items()}
    agent = Dreamer(small_config(**keys), 18, 4)
    agent.symmetry = Symmetry(agent, MIRROR)
    return agent


def mirrored(batch):
    signs = {"observation": SIGNS[:18], "action": SIGNS[18:]}
    return {name: value * signs.get(name, 1.0) for name, value in batch.items()}


def test_a_mirror_is_a_signed_permutation():
    mirror = join(signed([1, -1]), halves(4))
    assert mirror.tolist() == [1, -2, 5, 6, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_mirrored_game_the_action_is_the_mirrored_one_however_much_it_has_learned(
    small_config, kind
):
    agent = symmetric_agent(small_config, actor_rate=0.01, slow_actor=1, **kind)
    for steps in (0, 20):
        for seed in range(steps):
            with agent.update(make_batch(seed=seed)):
                pass
        agent.reset()
        generator = np.random.default_rng(0)
        for _ in range(4):  # the states of both games are mirror images as well
            observation = generator.standard_normal(18).astype(np.float32)
            pair = np.stack([observation, observation * SIGNS[:18].numpy()])
            ours, theirs = agent.act(pair, deterministic=True)
            np.testing.assert_allclose(theirs, ours * SIGNS[18:].numpy(), atol=1e-5, rtol=1e-3)
        features = agent.rssm.features(agent.memory[:3])
        for head in (agent.reward, agent.critic):
            one, other = head.mean(head(features))
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        one, other = agent.continue_logit(features)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert np.abs(ours).min() > 1e-3  # in each number of its action it does something


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradients_are_the_means_of_those_of_a_batch_and_of_its_mirror_image(
    small_config, kind
):
    """The hidden halves change places, so the latent's random numbers have to as well."""
    agent = symmetric_agent(small_config, **kind)
    for seed in range(3):
        with agent.update(make_batch(seed=seed)):
            pass
    batch, noise = make_batch(seed=9), agent.rssm.posterior.noise(5, 4)
    swap = 2 if agent.rssm.prior.categorical else 8  # half of the variables, or of the numbers
    axis = -2 if agent.rssm.prior.categorical else -1
    found = agent.learn_world(batch, noise)[2]
    keep, agent.symmetry = agent.symmetry, None
    pairs = ((batch, noise), (mirrored(batch), noise.roll(swap, axis)))
    one, other = (agent.learn_world(*pair)[2] for pair in pairs)
    assert keep.images.keys() >= set(agent.parts["world_model"])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(one, other, strict=True))
    for mean, *two in zip(found, one, other, strict=True):
        torch.testing.assert_close(mean, sum(two) / 2, atol=1e-5, rtol=1e-3)


def test_an_agent_without_halves_is_refused(small_config):
    with pytest.raises(UserError, match=r"dreamer.latent_groups must be even, or hockey.mirror=f"):
        symmetric_agent(small_config, latent_groups=3)


def test_only_symmetric_weights_are_trained_on_symmetrically(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(gradient_steps=2, hockey__mirror="false")
    path = "checkpoints/tiny/latest.safetensors"
    with pytest.raises(UserError, match=r"init: .* not symmetric: hockey.mirror=false"):
        main.Training(tiny_config(run="on", init=path))
    with pytest.raises(UserError, match="not symmetric: hockey.mirror=false"):
        main.Training(tiny_config(resume="true"))
    main.Training(tiny_config(run="on", init=path, hockey__mirror="false"))
