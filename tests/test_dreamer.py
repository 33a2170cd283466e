"""The agent: gradients, resets, playing against training, saving, and probes of known value."""

import contextlib
import math

import numpy as np
import pytest
import torch
from conftest import make_batch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from buffer import ReplayBuffer
from dreamer import Dreamer
from networks import LatentHead
from utils import UserError, load_tensors, symlog

WORLD_MODEL = {"encoder", "recurrent", "posterior", "prior", "decoder", "reward", "continues"}
BEHAVIOR = {"actor", "critic", "slow_actor", "slow_critic"}
GRADIENTS = pytest.mark.parametrize("actor_gradient", ["dynamics", "reinforce"])
CARRIED = pytest.mark.parametrize("observation_in_state", [True, False])
LATENTS = pytest.mark.parametrize("latent", ["categorical", "gaussian"])


@pytest.fixture
def make_agent(small_config):
    """make_agent(seed=..., horizon=3, ...): an agent; the keywords are keys of `dreamer`."""

    def make(seed=0, sizes=(18, 4), device="cpu", **settings):
        torch.manual_seed(seed)
        settings = {"free_nats": 0, "switches": [3] if sizes[1] == 4 else []} | settings
        config = small_config(**{f"dreamer__{key}": value for key, value in settings.items()})
        return Dreamer(config, *sizes, device)

    return make


@pytest.fixture
def no_chance(monkeypatch):
    """Latents are their modes, wherever they are sampled."""
    sample = LatentHead.sample

    def mode(head, statistics, deterministic=True):
        return sample(head, statistics, deterministic=True)

    monkeypatch.setattr(LatentHead, "sample", mode)


def weights(agent):
    return {
        f"{name}.{key}": value.clone()
        for name, network in agent.networks.items()
        for key, value in network.state_dict().items()
    }


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def keys_of(before, names):
    return {key for key in before if key.split(".")[0] in names}


def same(left, right):
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    return left == right


def learn(agent, **losses):
    """A step of each named part on its loss -> norms of the gradients."""
    for part, loss in losses.items():
        agent._backward(part, loss)
    return {f"behavior/{part}_gradient_norm": agent._descend(part) for part in losses}


def train_behavior(agent, *starts):
    """Actor and critic, from imagination alone -> metrics."""
    actor, imagined, metrics = agent.actor_loss(*starts)
    critic, more = agent.critic_loss(imagined, imagined)
    norms = learn(agent, actor=actor, critic=critic)
    agent._follow("actor")
    agent._follow("critic")
    return metrics | more | norms


def train_world_model(agent, batch):
    """The world model alone -> posterior states (B, T, .) and metrics."""
    *state, loss, metrics = agent.observe(batch)
    learn(agent, world_model=loss)
    return *state, metrics


def states_of(agent, batch):
    """The posterior states (B, T, .) of a batch, from which the world model has learned."""
    *state, _ = train_world_model(agent, batch)
    return state


def flat(state):
    return [part.flatten(0, 1) for part in state]


# ---------------------------------------------------------------------------- gradients


@GRADIENTS
@LATENTS
@CARRIED
@pytest.mark.parametrize("scalar", ["twohot", "normal"])
def test_each_step_moves_its_own_parameters_all_of_them_and_no_others(
    make_agent, actor_gradient, latent, observation_in_state, scalar
):
    agent = make_agent(
        actor_gradient=actor_gradient,
        latent=latent,
        observation_in_state=observation_in_state,
        scalar=scalar,
        imagination_starts=0,
    )
    assert set(agent.networks) == WORLD_MODEL | BEHAVIOR
    batch = make_batch()
    for _ in range(2):  # heads that start at zero pass no gradient on in their first step
        agent.train_step(batch)
    before = weights(agent)
    *state, metrics = train_world_model(agent, batch)
    between = weights(agent)
    assert changed(before, between) == keys_of(before, WORLD_MODEL)
    assert all(not part.requires_grad for part in state)
    metrics |= train_behavior(agent, *flat(state), 1 - batch["is_terminal"].flatten())
    assert changed(between, weights(agent)) == keys_of(before, BEHAVIOR)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert all(math.isfinite(value) for value in metrics.values())


@GRADIENTS
def test_actor_and_critic_do_not_touch_each_other(make_agent, actor_gradient):
    after = []
    for actor_rate, critic_rate in ((1e-3, 1e-3), (1e-3, 1e-1), (1e-1, 1e-3)):
        agent = make_agent(
            actor_gradient=actor_gradient, actor_rate=actor_rate, critic_rate=critic_rate
        )
        state = states_of(agent, make_batch())
        state = states_of(agent, make_batch())  # by now the reward is not zero
        torch.manual_seed(1)
        train_behavior(agent, *flat(state), torch.ones(20))
        after.append(weights(agent))
    usual, fast_critic, fast_actor = after
    assert changed(usual, fast_critic) <= keys_of(usual, {"critic", "slow_critic"})
    assert changed(usual, fast_actor) == keys_of(usual, {"actor", "slow_actor"})
    assert changed(usual, fast_critic) >= {"critic.layers.2.bias"}


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_the_slow_copies_follow_by_their_share(make_agent, name):
    agent = make_agent(**{f"slow_{name}": 0.25})
    state = states_of(agent, make_batch())
    before = weights(agent)
    train_behavior(agent, *flat(state), torch.ones(20))
    after = weights(agent)
    for key in keys_of(before, {f"slow_{name}"}):
        fast = after[key.removeprefix("slow_")]
        assert torch.allclose(after[key], 0.75 * before[key] + 0.25 * fast, atol=1e-7)
    assert f"slow_{name}.layers.2.bias" in changed(before, after)


def test_the_slow_actor_is_the_one_that_plays(make_agent):
    agent = make_agent()
    rows = observations(3)
    before = agent.player().act(rows, deterministic=True)
    torch.nn.init.normal_(agent.actor.layers[-1].weight)
    assert np.array_equal(before, agent.player().act(rows, deterministic=True))
    torch.nn.init.normal_(agent.slow_actor.layers[-1].weight)
    assert not np.allclose(before, agent.player().act(rows, deterministic=True))


def test_free_nats_cost_nothing(make_agent):
    agent = make_agent(free_nats=1000, beta_dynamics=1, beta_representation=1)
    before = weights(agent)
    train_world_model(agent, make_batch())
    assert not changed(before, weights(agent)) & keys_of(before, {"prior"})


# ---------------------------------------------------------------------------- rows


@LATENTS
@CARRIED
def test_a_first_row_forgets_everything_before_it(
    make_agent, no_chance, latent, observation_in_state
):
    settings = {"latent": latent, "observation_in_state": observation_in_state}
    batch, other = make_batch(seed=1), make_batch(seed=2)
    batch["is_first"][:] = 0
    batch["is_first"][:, 2] = 1
    mixed = {key: torch.cat([other[key][:, :2], batch[key][:, 2:]], 1) for key in batch}
    mixed["action"][:, 2] = 5.0  # the action into a first row has no meaning
    left = torch.cat(states_of(make_agent(**settings), batch), -1)
    right = torch.cat(states_of(make_agent(**settings), mixed), -1)
    assert torch.allclose(left[:, 2:], right[:, 2:], atol=1e-6)
    assert not torch.allclose(left[:, :2], right[:, :2], atol=1e-2)
    batch["is_first"][:, 2] = 0
    unbroken = torch.cat(states_of(make_agent(**settings), batch), -1)
    assert not torch.allclose(unbroken[:, 2:], left[:, 2:], atol=1e-3)


@LATENTS
@CARRIED
def test_acting_and_training_see_the_same_states(
    make_agent, no_chance, latent, observation_in_state
):
    agent = make_agent(latent=latent, observation_in_state=observation_in_state)
    games, length = 3, 6
    batch = make_batch(games, length)
    batch["is_first"][:] = 0
    batch["is_first"][:, 0] = 1
    batch["is_first"][1, 3] = 1  # one game starts anew on the way
    remembered, action = [], np.zeros((games, 4), np.float32)
    for t in range(length):
        first = batch["is_first"][:, t].bool()
        if t > 0:
            agent.reset(first.numpy())
        batch["action"][:, t] = torch.from_numpy(action) * ~first[:, None]
        action = agent.act(batch["observation"][:, t].numpy())
        remembered.append([part.clone() for part in agent.memory[:2]])
    h, z, *_ = states_of(agent, batch)
    for t, (played_h, played_z) in enumerate(remembered):
        assert torch.allclose(h[:, t], played_h, atol=1e-5)
        assert torch.allclose(z[:, t], played_z, atol=1e-5)
    assert np.array_equal(agent.memory[2].numpy(), action)


def observations(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 18)).astype(np.float32)


def test_acting_alone_in_a_batch_and_in_part_of_the_games(make_agent):
    agent = make_agent()
    rows, following = observations(4), observations(4, 1)

    def play(player, *arguments, **options):
        return player.act(*arguments, deterministic=True, **options)

    first, second = play(agent, rows), play(agent, following)
    assert first.shape == (4, 4) and first.dtype == np.float32 and abs(first).max() <= 1
    assert not np.allclose(first, second)
    single = agent.player()
    assert np.allclose(play(single, rows[1]), first[1], atol=1e-6)
    assert play(single, following[1]).shape == (4,)
    single.reset()
    assert np.allclose(play(single, rows[2]), first[2], atol=1e-6)

    part = agent.player()
    part.remember(4)
    assert np.allclose(play(part, rows[[3, 1]], games=np.array([3, 1])), first[[3, 1]], atol=1e-6)
    assert np.allclose(play(part, rows[[0, 2]], games=np.array([0, 2])), first[[0, 2]], atol=1e-6)
    part.reset(np.array([False, True, False, True]))
    mixed = play(part, np.stack([following[0], rows[1], following[2], rows[3]]))
    assert np.allclose(mixed, [second[0], first[1], second[2], first[3]], atol=1e-6)
    part.reset([0, 2])
    assert np.allclose(play(part, rows)[[0, 2]], first[[0, 2]], atol=1e-6)


def test_samples_differ_and_stay_within_bounds(make_agent):
    agent = make_agent(std_min=1.0, std_max=1.0)
    rows = np.repeat(observations(1), 300, 0)
    actions = agent.act(rows)
    assert 0.9 < abs(actions).max() <= 1 and actions.std(0).min() > 0.3
    agent.reset()
    assert np.ptp(agent.act(rows, deterministic=True), 0).max() < 1e-5


@pytest.mark.parametrize("shape", [(), (17,), (19,), (2, 17), (2, 3, 18), (0,), (3, 18)])
def test_observations_that_do_not_fit_are_refused(make_agent, shape):
    agent = make_agent()
    agent.act(observations(2))
    with pytest.raises(ValueError, match="observations"):
        agent.act(np.zeros(shape, np.float32))


def test_observations_are_squashed_by_their_scale_or_symlog(make_agent):
    scale = [0.5 + number for number in range(18)]
    rows = 3 * observations(5)

    def act(rows, **settings):
        return make_agent(**settings).act(rows, deterministic=True)

    units = act(rows, observation_scale=[1] * 18)
    assert np.allclose(act(rows * np.array(scale), observation_scale=scale), units, atol=1e-5)
    squashed = symlog(torch.from_numpy(rows)).numpy()
    expected = act(squashed, observation_scale=[1] * 18)
    assert np.allclose(act(rows, observation_scale=[]), expected, atol=1e-5)
    assert not np.allclose(expected, units, atol=1e-5)
    with pytest.raises(UserError, match="observation_scale"):
        make_agent(observation_scale=[1, 2])


# ---------------------------------------------------------------------------- imagination


def prepared(make_agent, **settings):
    """An agent whose rewards and values are not zero any more, and some states."""
    agent = make_agent(world_model_rate=1e-2, **settings)
    batch = make_batch()
    batch["is_terminal"][:] = 0
    for _ in range(5):
        agent.train_step(batch)
    return agent, flat(states_of(agent, batch))


@GRADIENTS
def test_states_at_the_end_of_a_game_count_for_nothing(make_agent, actor_gradient):
    alive = (torch.arange(20) % 3 > 0).float()
    after = []
    for noise in (0.0, 1.0):
        agent, state = prepared(make_agent, actor_gradient=actor_gradient)
        noise = noise * (1 - alive)[:, None]
        state = [part + noise * torch.randn_like(part).clamp(-1, 1) for part in state]
        torch.manual_seed(1)
        metrics = train_behavior(agent, *state, alive)
        assert metrics["behavior/return_scale"] < 1  # so that it changes nothing
        after.append((weights(agent), metrics["behavior/return"]))
    (left, left_return), (right, right_return) = after
    assert left_return != right_return
    for key in keys_of(left, BEHAVIOR):
        assert torch.allclose(left[key], right[key], atol=1e-6), key
    agent, state = prepared(make_agent, actor_gradient=actor_gradient)
    metrics = train_behavior(agent, *state, torch.zeros(20))
    assert metrics["behavior/actor_gradient_norm"] == 0 == metrics["behavior/critic_gradient_norm"]


@GRADIENTS
def test_imagination_after_a_predicted_end_weighs_nothing(make_agent, actor_gradient):
    losses = {}
    for continues in (-60.0, 60.0):
        for horizon in (1, 4):
            agent, state = prepared(make_agent, actor_gradient=actor_gradient, switches=[])
            agent.settings = agent.settings.copy()
            OmegaConf.set_readonly(agent.settings, False)
            agent.settings.horizon = horizon
            with torch.no_grad():
                agent.networks["continues"][-1].bias.fill_(continues)
            torch.manual_seed(1)
            metrics = train_behavior(agent, *state, torch.ones(20))
            names = ("behavior/actor_loss", "behavior/critic_loss")
            losses[continues, horizon] = [horizon * metrics[name].item() for name in names]
    assert losses[-60.0, 4] == pytest.approx(losses[-60.0, 1], rel=1e-4, abs=1e-6)
    assert losses[60.0, 4][1] > 2 * losses[60.0, 1][1]


@LATENTS
def test_a_switch_is_tried_both_ways_in_the_same_chance(make_agent, latent):
    agent, (h, z, o) = prepared(make_agent, latent=latent)
    alive, start = torch.ones(len(h)), (h, z, o)
    chance = [(torch.randn(len(h), 4), agent.prior.chance(len(h))) for _ in range(3)]

    def gain():
        states, policies, samples = agent.imagine(*start, chance)
        returns, *_ = agent.imagined_returns(states, alive)
        return agent.switch_gain(3, start, chance, alive, policies[0], samples[0], returns[0])

    assert gain().abs().mean() > 1e-4
    column = agent.prior.size + 3  # of what the world model is told: z, a, o
    agent.recurrent.inputs.weight.data[:, column] = 0
    assert gain().abs().max() < 1e-5


def test_a_switch_is_turned_on_where_that_pays(make_agent):
    agent, (h, z, o) = prepared(make_agent)
    feature = torch.cat([h, z, o], -1)
    chance = [(torch.zeros(len(h), 4), agent.prior.chance(len(h)))]  # as the policy's mean decides
    for is_on in (True, False):
        bias = agent.actor.layers[-1].bias
        bias.data[3] = 1.0 if is_on else 0.0  # on above 0.55
        policy = agent.actor(feature)
        u = policy.base_dist.loc
        agent.imagined_returns = lambda *_: (torch.full((1, len(h)), 2.0),)  # the other way
        for returned in (1.0, 3.0):
            returns = torch.full((len(h),), returned)
            gain = agent.switch_gain(3, (h, z, o), chance, torch.ones(len(h)), policy, u, returns)
            (slope,) = torch.autograd.grad(gain.sum(), bias, retain_graph=True)
            should_be_on = is_on == (returned > 2)
            assert (slope[3] > 0) == should_be_on and slope[3] != 0
            assert slope[:3].abs().max() == 0


def test_a_switch_that_is_no_action_is_refused(make_agent):
    with pytest.raises(UserError, match="switches: there are actions 0 to 3 only"):
        make_agent(switches=[4])


def test_a_switch_named_twice_counts_once(make_agent):
    after = []
    for switches in ([3], [3, 3]):
        agent = make_agent(switches=switches)
        torch.manual_seed(1)
        agent.train_step(make_batch())
        after.append(weights(agent))
    assert not changed(*after)


def naive_replayed_return(agent, batch, values, game, t):
    """(R_t, weight) of one row, by the recursion as the paper writes it, row by row."""
    last = len(batch["reward"][game]) - 1
    discount, lam = agent.settings.discount, agent.settings.return_lambda
    if t == last or batch["is_first"][game, t + 1]:
        return values[game, t], 0.0
    if batch["is_terminal"][game, t]:
        return None, 0.0
    reward = batch["reward"][game, t + 1]
    if batch["is_terminal"][game, t + 1]:
        return reward, 1.0
    following, _ = naive_replayed_return(agent, batch, values, game, t + 1)
    mixed = (1 - lam) * values[game, t + 1] + lam * following
    return reward + discount * mixed, 1.0


def test_replayed_returns_are_the_rewards_that_really_followed(make_agent):
    agent = make_agent()
    torch.nn.init.normal_(agent.slow_critic.layers[-1].weight)
    batch = make_batch(batch_size=40, length=7)
    batch["is_terminal"][:, :-1] *= batch["is_first"][:, 1:]  # the row after a goal is a first one
    batch["is_own"][::3] = 0
    features = torch.cat(states_of(agent, batch), -1)
    values = agent.slow_critic.mean(agent.slow_critic(features)).detach()
    states, returns, weight = agent.replayed_returns(batch, features)
    assert torch.equal(states, features[:, :-1].transpose(0, 1))
    assert weight[:, ::3].sum() == 0 and returns.shape == weight.shape == (6, 40)
    counted = 0
    for game in range(40):
        for t in range(6):
            expected, counts = naive_replayed_return(agent, batch, values, game, t)
            assert weight[t, game] == (counts if game % 3 else 0), (game, t)
            if counts:
                assert returns[t, game].item() == pytest.approx(expected.item(), abs=1e-5)
                counted += 1
    assert counted > 100


def test_the_critic_learns_from_the_replay(make_agent):
    agent = make_agent(critic_imagination=0, critic_replay=1, critic_rate=3e-3, slow_critic=1)
    batch = make_batch()
    batch["is_first"][:], batch["is_terminal"][:] = 0, 0
    batch["is_first"][:, 0] = 1
    batch["reward"][:] = 0
    batch["reward"][:, -1], batch["is_terminal"][:, -1] = 5, 1
    for _ in range(200):
        agent.train_step(batch)
    features = torch.cat(states_of(agent, batch), -1)
    values = agent.critic.mean(agent.critic(features)).detach().mean(0)
    expected = 5 * agent.settings.discount ** np.array([3, 2, 1, 0])
    assert np.allclose(values[:4].numpy(), expected, atol=0.5)


def test_learning_rates_fall_to_their_final_share(make_agent, small_config):
    config = small_config(gradient_steps=4, dreamer__final_rate=0.1, dreamer__actor_rate=1e-2)
    agent = Dreamer(config, 18, 4)
    rates = []
    for _ in range(6):
        agent.train_step(make_batch())
        rates.append(agent.optimizers["actor"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.00775, 0.0055, 0.00325, 0.001, 0.001, 0.001])


@GRADIENTS
@LATENTS
@pytest.mark.parametrize("scalar", ["twohot", "normal"])
def test_a_step_never_waits_for_its_device(make_agent, monkeypatch, actor_gradient, latent, scalar):
    """On the "meta" device tensors have shapes but no numbers: reading one, a shape that depends
    on one, or a tensor left on another device raises. So nothing stalls a GPU's queue.
    """
    optimizer = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *x, fused, **keys: optimizer(*x, **keys))
    monkeypatch.setattr(torch, "autocast", lambda *_, **keys: contextlib.nullcontext())
    agent = make_agent(
        device="meta",
        actor_gradient=actor_gradient,
        latent=latent,
        scalar=scalar,
        critic_replay=1,
        imagination_starts=7,
        observation_scale=[1] * 18,
    )
    batch = {name: part.to("meta") for name, part in make_batch().items()}
    for _ in range(2):
        metrics = agent.train_step(batch)
    assert all(value.device.type == "meta" for value in metrics.values())
    with pytest.raises(RuntimeError, match="meta"):
        metrics["world_model/loss"].item()


def test_the_world_model_has_a_head_start(make_agent):
    agent = make_agent(world_model_head_start=2)
    before = weights(agent)
    for _ in range(2):
        assert not any(name.startswith("behavior") for name in agent.train_step(make_batch()))
    assert changed(before, weights(agent)) <= keys_of(before, WORLD_MODEL)
    assert "behavior/actor_loss" in agent.train_step(make_batch())
    assert changed(before, weights(agent)) & keys_of(before, {"actor"})


def test_train_step_starts_from_as_many_states_as_the_config_says(make_agent, monkeypatch):
    for count, expected in ((0, 20), (7, 7), (1000, 20)):
        agent = make_agent(imagination_starts=count)
        seen = []
        original = agent.actor_loss
        monkeypatch.setattr(
            agent, "actor_loss", lambda *x, seen=seen, f=original: seen.append(x) or f(*x)
        )
        agent.train_step(make_batch())
        assert {len(part) for part in seen[0]} == {expected}
        assert agent.gradient_steps == 1


# ---------------------------------------------------------------------------- saving


def test_a_loaded_agent_plays_the_same(make_agent, tmp_path):
    agent = make_agent()
    agent.train_step(make_batch())
    agent.save(tmp_path / "folder" / "agent.safetensors", environment_steps=7)
    torch.manual_seed(5)
    loaded = Dreamer.load(tmp_path / "folder" / "agent.safetensors")
    assert not changed(weights(agent), weights(loaded))
    assert loaded.counters == {"gradient_steps": 1, "environment_steps": 7}
    assert loaded.gradient_steps == 1 and loaded.config == agent.config
    for seed in range(3):
        rows = observations(2, seed)
        torch.manual_seed(seed)
        action = agent.act(rows)
        torch.manual_seed(seed)
        assert np.array_equal(action, loaded.act(rows))


def refused(path):
    with pytest.raises(UserError) as caught:
        Dreamer.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_files_that_are_no_agent_are_refused_in_one_line(make_agent, tmp_path):
    path = tmp_path / "agent.safetensors"
    assert "no such file" in refused(path)
    refused(tmp_path)
    agent = make_agent()
    agent.save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path)
    path.write_bytes(b"\x00" * 50 + whole[50:])
    refused(path)
    save_file({"weight": torch.zeros(3)}, path)
    refused(path)
    save_file({"weight": torch.zeros(3)}, path, {"config": "{}", "sizes": "[1, 2]"})
    refused(path)
    save_file({"a": torch.zeros(3)}, path, {"config": "{}", "sizes": "[1, 2]", "counters": "{}"})
    refused(path)


def test_an_agent_of_an_older_version_is_read(make_agent, tmp_path, monkeypatch):
    agent, path = make_agent(), tmp_path / "agent.safetensors"
    older = OmegaConf.to_container(agent.config)
    older["dreamer"]["imagination_precision"] = older["dreamer"].pop("precision")
    del older["videos"]
    monkeypatch.setattr(agent, "config", OmegaConf.create(older))
    agent.save(path)
    loaded = Dreamer.load(path)
    assert loaded.settings.precision == "float32" and loaded.config.videos is False
    assert not changed(weights(agent), weights(loaded))


@pytest.mark.parametrize("config", ["null", "[]", '{"dreamer": 5}', '{"dreamer": null}', "nan"])
def test_a_config_that_is_none_is_refused_in_one_line(make_agent, tmp_path, config):
    path = tmp_path / "agent.safetensors"
    weights = {"weight": torch.zeros(3)}
    save_file(weights, path, {"config": config, "sizes": "[18, 4]", "counters": "{}"})
    refused(path)


def test_files_with_other_sizes_than_they_say_are_refused(make_agent, tmp_path):
    path = tmp_path / "agent.safetensors"
    agent = make_agent(hidden_size=32)
    agent.config = make_agent(hidden_size=24).config
    agent.save(path)
    assert "damaged" in refused(path)
    agent = make_agent()
    del agent.networks["prior"]
    agent.save(path)
    assert "damaged" in refused(path)


def test_a_failed_save_is_one_line_and_leaves_no_trace(make_agent, tmp_path):
    resource = pytest.importorskip("resource")
    agent, path = make_agent(), tmp_path / "agent.safetensors"
    agent.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as if the disk were full
        with pytest.raises(UserError, match="agent.safetensors"):
            agent.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@GRADIENTS
def test_training_goes_on_bit_for_bit(make_agent, tmp_path, actor_gradient):
    agent = make_agent(actor_gradient=actor_gradient)
    for seed in range(3):
        agent.train_step(make_batch(seed=seed))
    torch.save(agent.state(), tmp_path / "state.pt")
    other = make_agent(seed=9, actor_gradient=actor_gradient)
    other.restore_state(load_tensors(tmp_path / "state.pt"))
    for one in (agent, other):
        torch.manual_seed(3)
        for seed in range(3, 6):
            one.train_step(make_batch(seed=seed))
    assert same(agent.state(), other.state())
    assert agent.gradient_steps == other.gradient_steps == 6
    agent.train_step(make_batch(seed=7))
    assert not same(agent.state(), other.state())


@GRADIENTS
def test_a_step_in_bfloat16_is_nearly_that_in_float32(make_agent, actor_gradient):
    found = []
    for precision in ("float32", "bfloat16"):
        agent = make_agent(precision=precision, actor_gradient=actor_gradient)
        for seed in range(3):
            torch.manual_seed(seed)
            metrics = agent.train_step(make_batch(seed=seed))
        assert all(math.isfinite(value) for value in metrics.values())
        kinds = {
            parameter.dtype for part in agent.networks.values() for parameter in part.parameters()
        }
        assert kinds == {torch.float32}
        found.append({name: value.item() for name, value in metrics.items()})
    for name in ("world_model/loss", "world_model/kl_dynamics", "behavior/entropy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=0.02), name
    assert found[0] != found[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_may_compute_in_bfloat16_but_no_distribution(make_agent, monkeypatch, precision):
    """All layers in the precision asked for, whatever a head says in float32."""
    agent, layers, said = make_agent(precision=precision, critic_replay=1), set(), set()
    for network in agent.networks.values():
        for part in network.modules():
            if isinstance(part, torch.nn.Linear):
                part.register_forward_hook(lambda part, inputs, output: layers.add(output.dtype))
    for head in (agent.prior, agent.posterior, agent.reward, agent.critic, agent.slow_critic):
        head.register_forward_hook(lambda head, inputs, output: said.add(output.dtype))
    agent.actor.register_forward_hook(lambda head, inputs, policy: said.add(policy.mean.dtype))
    continue_logit = agent.continue_logit

    def watched(features):
        said.add(continue_logit(features).dtype)
        return continue_logit(features)

    monkeypatch.setattr(agent, "continue_logit", watched)
    agent.train_step(make_batch())
    assert layers == {getattr(torch, precision)}
    assert said == {torch.float32}


@pytest.mark.parametrize("threads", [1, 2])
def test_all_three_parts_learn_from_the_same_weights(make_agent, monkeypatch, threads):
    """Nothing changes before all losses and gradients are there."""
    torch.set_num_threads(threads)
    agent, seen = make_agent(precision="bfloat16"), []
    before, backward = weights(agent), agent._backward
    monkeypatch.setattr(agent, "_backward", lambda *x: backward(*x) or seen.append(weights(agent)))
    agent.train_step(make_batch(), lambda: seen.append(weights(agent)))
    assert len(seen) == 4 and not any(changed(before, now) for now in seen)
    after = {key.split(".")[0] for key in changed(before, weights(agent))}
    assert after >= {"encoder", *BEHAVIOR}
    assert torch.get_num_threads() == threads


@GRADIENTS
def test_a_step_in_bfloat16_has_the_gradients_of_one_in_float32(make_agent, actor_gradient):
    """But for rounding."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        agent = make_agent(
            precision=precision, actor_gradient=actor_gradient, critic_rate=1e-9, actor_rate=1e-9
        )
        for seed in range(3):  # heads that start at zero pass no gradient on in their first step
            torch.manual_seed(seed)
            agent.train_step(make_batch(batch_size=20, length=5))
        gradients.append(
            {
                part: torch.cat([p.grad.flatten() for p in agent._parameters([part])])
                for part in ("encoder", "recurrent", "prior", "reward", "actor", "critic")
            }
        )
    for part, gradient in gradients[0].items():
        cosine = torch.cosine_similarity(gradient, gradients[1][part], 0)
        assert cosine > 0.9 and (gradients[1][part] != 0).float().mean() > 0.9, (part, cosine)


def test_two_threads_learn_what_one_does(make_agent):
    """What runs beside each other changes no number: neither needs luck or weights of the other."""
    after, metrics = [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        agent, rows, actions = make_agent(), observations(3), []

        def meanwhile(agent=agent, rows=rows, actions=actions):
            actions.append(agent.act(rows))

        for seed in range(4):
            torch.manual_seed(seed)
            metrics.append(agent.train_step(make_batch(seed=seed), meanwhile))
        assert len(actions) == 4
        after.append((weights(agent), actions))
    (one, acted), (two, acted_as_well) = after
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert np.allclose(acted, acted_as_well, atol=1e-5)
    for early, late in zip(metrics[:4], metrics[4:], strict=True):
        assert early == {key: pytest.approx(float(value), abs=1e-4) for key, value in late.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_beside_the_step_leaves_the_agent_able_to_learn(make_agent, threads):
    torch.set_num_threads(threads)
    agent = make_agent()
    with pytest.raises(ZeroDivisionError):
        agent.train_step(make_batch(), lambda: 1 / 0)
    assert torch.get_num_threads() == threads
    agent.train_step(make_batch())


def test_a_state_is_a_copy_of_its_moment(make_agent):
    agent = make_agent()
    agent.train_step(make_batch())
    other = make_agent(seed=1)
    other.restore_state(agent.state())
    before = weights(other)
    agent.train_step(make_batch())
    assert not changed(before, weights(other))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 24),
        ("hidden_layers", 2),
        ("recurrent_size", 24),
        ("latent_groups", 5),
        ("latent_classes", 5),
        ("latent", "gaussian"),
        ("scalar", "normal"),
        ("bins", 21),
        ("bin_limit", 4.0),
        ("norm", "none"),
        ("observation_in_state", False),
    ],
)
def test_a_state_of_other_sizes_is_refused_naming_both(make_agent, key, value):
    agent, other = make_agent(), make_agent(**{key: value})
    before = weights(other)
    with pytest.raises(UserError) as caught:
        other.restore_state(agent.state())
    message = str(caught.value)
    assert f"dreamer.{key}" in message and "\n" not in message
    assert str(value) in message and str(agent.settings[key]) in message
    assert not changed(before, weights(other))


def test_a_state_of_another_game_is_refused(make_agent):
    with pytest.raises(UserError, match=r"\[18, 4\].*\[3, 1\]"):
        make_agent(sizes=(3, 1)).restore_state(make_agent().state())


# ---------------------------------------------------------------------------- probes

QUICK = {
    "world_model_rate": 5e-3,
    "actor_rate": 3e-3,
    "critic_rate": 3e-3,
    "slow_critic": 0.1,
    "entropy": 1e-4,
    "discount": 0.9,
}


@CARRIED
def test_the_critic_finds_the_value_of_a_chain(make_agent, observation_in_state):
    """A -> B -> C, where 2 is paid and the game ends: v(A) = 2 gamma, v(B) = 2."""
    settings = QUICK | {"horizon": 1}  # so that v(A) has to come from v(B)
    agent = make_agent(sizes=(2, 1), observation_in_state=observation_in_state, **settings)
    replay = ReplayBuffer(600, 4, 2, 1)
    chain = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for time in range(150):
        step = (time + torch.arange(4)) % 3
        action = torch.rand(4, 1) * 2 - 1
        replay.add(chain[step], action, 2.0 * (step == 2), step == 0, step == 2)
    for _ in range(250):
        agent.train_step(replay.sample(8, 6))
    batch = replay.sample(16, 6)
    is_known = batch["is_first"].cumsum(1) > 0  # the window has seen a start
    feature = torch.cat(states_of(agent, batch), -1)
    with torch.no_grad():
        values = agent.critic.mean(agent.critic(feature))
    for row, expected in ((0, 1.8), (1, 2.0)):
        is_here = is_known & (batch["observation"] - chain[row]).abs().sum(-1).lt(1e-3)
        assert is_here.sum() > 5
        assert values[is_here].mean().item() == pytest.approx(expected, abs=0.15)


def signs_that_pay():
    """A replay of one-decision games: the observation +-1 times the action is paid, twice."""
    replay = ReplayBuffer(2000, 8, 1, 1)
    for _ in range(125):
        sign, action = torch.randint(2, (8, 1)) * 2.0 - 1, torch.rand(8, 1) * 2 - 1
        ones, zeros = torch.ones(8), torch.zeros(8)
        replay.add(sign, 0 * action, zeros, ones, zeros)
        replay.add(0 * sign, action, 2 * sign * action, zeros, ones)
    return replay


@GRADIENTS
@CARRIED
def test_the_actor_finds_the_sign_that_pays(make_agent, actor_gradient, observation_in_state):
    agent = make_agent(
        sizes=(1, 1),
        actor_gradient=actor_gradient,
        observation_in_state=observation_in_state,
        horizon=1,
        world_model_head_start=300,
        **QUICK,
    )
    replay = signs_that_pay()
    for _ in range(420):
        agent.train_step(replay.sample(16, 4))
    agent.reset()
    actions = agent.act(np.array([[1.0], [-1.0]], np.float32), deterministic=True).flatten()
    assert actions[0] > 0.4 and actions[1] < -0.4


@CARRIED
@LATENTS
def test_planning_finds_the_sign_that_pays_without_an_actor(
    make_agent, latent, observation_in_state
):
    settings = {"latent": latent, "observation_in_state": observation_in_state} | QUICK
    agent = make_agent(sizes=(1, 1), world_model_head_start=1000, **settings)
    replay = signs_that_pay()
    for _ in range(300):
        agent.train_step(replay.sample(16, 4))
    signs = np.repeat(np.array([[1.0], [-1.0]], np.float32), 50, 0)
    means, plans = agent.player(), agent.player()
    assert abs(means.act(signs, deterministic=True)).max() < 0.2
    actions = plans.act(signs, plan=True)
    assert actions.shape == (100, 1) and abs(actions).max() <= 1
    assert actions[:50].mean() > 0.3 and actions[50:].mean() < -0.3
    assert np.array_equal(plans.memory[2].numpy(), actions)  # what it remembers to have done


def test_a_plan_without_a_choice_is_the_policys_mean(make_agent):
    agent = make_agent()
    h, z, o = flat(states_of(agent, make_batch()))
    policy = agent.slow_actor(torch.cat([h, z, o], -1))
    with torch.no_grad():
        assert torch.equal(agent.plan(h, z, o, policy, candidates=1), torch.tanh(policy.mean))


@LATENTS
def test_samples_may_meet_the_same_chance(make_agent, latent):
    head = make_agent(latent=latent).prior
    rows = head(torch.randn(5, 32)).expand(6, -1, -1, -1)
    alike, free = head.sample(rows, head.chance(5)), head.sample(rows)
    assert torch.equal(alike, alike[:1].expand_as(alike))
    assert not torch.equal(free, free[:1].expand_as(free))
