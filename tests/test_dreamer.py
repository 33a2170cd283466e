"""The agent: gradients, resets, playing against training, saving, and probes of known value."""

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_batch
from safetensors.torch import save_file

import checkpoint
import config
from buffer import ReplayBuffer
from dreamer import PLAYED, RETURN_LAMBDA, Dreamer
from networks import Actor, LatentHead
from utils import UserError, symlog

WORLD_MODEL = {"encoder", "rssm", "reward", "continues"}
BEHAVIOR = {"actor", "critic", "slow_actor", "slow_critic"}
GRADIENTS = pytest.mark.parametrize("actor_gradient", ["dynamics", "reinforce"])
CARRIED = pytest.mark.parametrize("observation_in_state", [True, False])
LATENTS = pytest.mark.parametrize("latent", ["categorical", "gaussian"])


@pytest.fixture
def make_agent(small_config):
    """make_agent(seed=..., horizon=3, ...): an agent; the keywords are keys of `dreamer`."""

    def make(seed=0, sizes=(18, 4), device="cpu", discrete=False, **settings):
        torch.manual_seed(seed)
        settings = {"free_nats": 0, "switches": [3] if sizes[1] == 4 else []} | settings
        config = small_config(**{f"dreamer__{key}": value for key, value in settings.items()})
        return Dreamer(config, *sizes, device, discrete)

    return make


@pytest.fixture
def no_noise(monkeypatch):
    """Latents are their modes, wherever they are sampled."""
    sample = LatentHead.sample
    monkeypatch.setattr(
        LatentHead,
        "sample",
        lambda head, statistics, noise=None, mode=True: sample(head, statistics, mode=True),
    )


def weights(agent):
    """Copies of all weights by name."""
    return {key: value.clone() for key, value in agent.named_parameters()}


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def keys_of(before, names):
    return {key for key in before if key.split(".")[0] in names}


def learn(agent, batch):
    """A gradient step -> its metrics."""
    with agent.update(batch) as metrics:
        pass
    return metrics


def states_of(agent, batch):
    """The posterior states (B, T, .) of a batch."""
    noise = agent.rssm.posterior.noise(*batch["reward"].T.shape)
    return agent.world_model_loss(batch, noise)[0]


def flat(state):
    return [part.flatten(0, 1) for part in state]


# ---------------------------------------------------------------------------- gradients


@GRADIENTS
@LATENTS
@CARRIED
@pytest.mark.parametrize("scalar", ["twohot", "normal"])
def test_a_step_moves_all_parameters_and_a_head_start_only_the_world_models(
    make_agent, actor_gradient, latent, observation_in_state, scalar
):
    agent = make_agent(
        actor_gradient=actor_gradient,
        latent=latent,
        observation_in_state=observation_in_state,
        scalar=scalar,
        world_model_head_start=2,
    )
    assert {name for name, _ in agent.named_children()} == WORLD_MODEL | BEHAVIOR
    batch, before = make_batch(), weights(agent)
    for _ in range(2):  # heads that start at zero pass no gradient on in their first step
        metrics = learn(agent, batch)
        assert not any(name.startswith("behavior") for name in metrics)
    between = weights(agent)
    assert changed(before, between) == keys_of(before, WORLD_MODEL)
    for _ in range(2):
        metrics = learn(agent, batch)
    assert changed(between, weights(agent)) == before.keys()
    assert {"behavior/actor_loss", "behavior/critic_loss"} <= metrics.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert all(math.isfinite(value) for value in metrics.values())
    assert agent.gradient_steps == 4


@GRADIENTS
def test_actor_and_critic_do_not_touch_each_other(make_agent, actor_gradient):
    after = []
    for actor_rate, critic_rate in ((1e-3, 1e-3), (1e-3, 1e-1), (1e-1, 1e-3)):
        agent = make_agent(
            actor_gradient=actor_gradient, world_model_head_start=2, world_model_rate=1e-2
        )
        agent.settings.actor_rate, agent.settings.critic_rate = actor_rate, critic_rate
        for _ in range(3):  # by now the reward is not zero
            learn(agent, make_batch())
        after.append(weights(agent))
    usual, fast_critic, fast_actor = after
    assert changed(usual, fast_critic) <= keys_of(usual, {"critic", "slow_critic"})
    assert changed(usual, fast_actor) == keys_of(usual, {"actor", "slow_actor"})
    assert changed(usual, fast_critic) >= {"critic.layers.2.bias"}


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_the_slow_copies_follow_by_their_share(make_agent, name):
    agent = make_agent(**{f"slow_{name}": 0.25})
    learn(agent, make_batch())
    before = weights(agent)
    learn(agent, make_batch())
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
    moved = []
    for free_nats in (0, 1000):
        agent = make_agent(
            free_nats=free_nats, beta_dynamics=1, beta_representation=1, world_model_head_start=9
        )
        before = weights(agent)
        learn(agent, make_batch())
        moved.append({key for key in changed(before, weights(agent)) if "rssm.prior" in key})
    assert moved[0] and not moved[1]


# ---------------------------------------------------------------------------- rows


@LATENTS
@CARRIED
def test_a_first_row_forgets_everything_before_it(
    make_agent, no_noise, latent, observation_in_state
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
    make_agent, no_noise, latent, observation_in_state
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
    assert np.array_equal(agent.memory[-1].numpy(), action)


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


def test_samples_differ_and_stay_within_bounds(make_agent, monkeypatch):
    monkeypatch.setattr(Actor, "STD_MIN", 1.0)
    agent = make_agent()
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
        learn(agent, batch)
    return agent, flat(states_of(agent, batch))


def imagined_losses(agent, state, alive):
    """Losses of actor and critic from imagination alone, their gradients, and the mean return."""
    torch.manual_seed(1)
    actor_loss, imagined, metrics = agent.actor_loss(state, alive)
    critic_loss, _ = agent.critic_loss(imagined, None)
    losses = {agent.actor: actor_loss, agent.critic: critic_loss}
    gradients = [torch.autograd.grad(loss, part.parameters()) for part, loss in losses.items()]
    gradients = [torch.cat([one.flatten() for one in part]) for part in gradients]
    return actor_loss.item(), critic_loss.item(), gradients, metrics["behavior/return"].item()


@GRADIENTS
def test_states_at_the_end_of_a_game_count_for_nothing(make_agent, actor_gradient):
    agent, state = prepared(make_agent, actor_gradient=actor_gradient)
    alive = (torch.arange(20) % 3 > 0).float()
    noise = (1 - alive)[:, None]
    other = [part + noise * torch.randn_like(part).clamp(-1, 1) for part in state]
    agent.return_scale.fill_(0.5)  # below one, so that it changes nothing
    usual, changed = (imagined_losses(agent, one, alive) for one in (state, other))
    assert usual[3] != changed[3]
    assert usual[:2] == pytest.approx(changed[:2], abs=1e-6)
    for left, right in zip(usual[2], changed[2], strict=True):
        assert torch.allclose(left, right, atol=1e-6) and left.abs().max() > 1e-4
    *_, gradients, _ = imagined_losses(agent, state, torch.zeros(20))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


@GRADIENTS
def test_imagination_after_a_predicted_end_weighs_nothing(make_agent, actor_gradient):
    agent, state = prepared(make_agent, actor_gradient=actor_gradient, switches=[])
    agent.return_scale.fill_(0.0)
    losses = {}
    for continues in (-60.0, 60.0):
        agent.continues[-1].bias.data.fill_(continues)
        for horizon in (1, 4):
            agent.settings.horizon = horizon
            found = imagined_losses(agent, state, torch.ones(20))
            losses[continues, horizon] = [horizon * loss for loss in found[:2]]
    assert losses[-60.0, 4] == pytest.approx(losses[-60.0, 1], rel=1e-4, abs=1e-6)
    assert losses[60.0, 4][1] > 2 * losses[60.0, 1][1]


@LATENTS
def test_a_switch_is_tried_both_ways_with_the_same_noise(make_agent, latent):
    agent, start = prepared(make_agent, latent=latent)
    count = len(start[0])
    noise = [(torch.randn(count, 4), agent.rssm.prior.noise(count)) for _ in range(3)]

    def gain():
        states, policies, samples = agent.imagine(start, noise, agent.actor)
        returns, *_ = agent.imagined_returns(states)
        return agent.switch_gain(3, start, noise, policies[0], samples[0], returns[0])

    assert gain().abs().mean() > 1e-4
    column = agent.rssm.prior.size + 3  # of what the world model is told: z, a, o
    agent.rssm.recurrent.inputs.weight.data[:, column] = 0
    assert gain().abs().max() < 1e-5


def test_a_switch_is_turned_on_where_that_pays(make_agent):
    agent, start = prepared(make_agent)
    count, feature = len(start[0]), torch.cat(start, -1)
    noise = [(torch.zeros(count, 4), agent.rssm.prior.noise(count))]  # as the policy's mean decides
    agent.imagined_returns = lambda *_: (torch.full((1, count), 2.0),)  # the other way
    for is_on in (True, False):
        bias = agent.actor.layers[-1].bias
        bias.data[3] = 1.0 if is_on else 0.0  # on above 0.55
        policy = agent.actor(feature)
        u = policy.base_dist.loc
        for returned in (1.0, 3.0):
            returns = torch.full((count,), returned)
            gain = agent.switch_gain(3, start, noise, policy, u, returns)
            (slope,) = torch.autograd.grad(gain.sum(), bias, retain_graph=True)
            should_be_on = is_on == (returned > 2)
            assert (slope[3] > 0) == should_be_on and slope[3] != 0
            assert slope[:3].abs().max() == 0


def test_a_switch_that_is_no_action_is_refused(make_agent):
    with pytest.raises(UserError, match="switches: actions are 0 to 3"):
        make_agent(switches=[4])


def test_a_switch_named_twice_counts_once(make_agent):
    after = []
    for switches in ([3], [3, 3]):
        agent = make_agent(switches=switches)
        torch.manual_seed(1)
        for _ in range(2):
            metrics = learn(agent, make_batch())
        after.append(weights(agent))
    assert "behavior/actor_loss" in metrics and not changed(*after)


def naive_replayed_return(agent, batch, values, game, t):
    """(R_t, weight) of one row, by the recursion as the paper writes it, row by row."""
    last = len(batch["reward"][game]) - 1
    discount, lam = agent.settings.discount, RETURN_LAMBDA
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
    agent = make_agent(critic_replay=1)
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
    agent = make_agent(critic_imagination=0, critic_replay=1, critic_rate=1e-2, slow_critic=1)
    batch = make_batch()
    batch["is_first"][:], batch["is_terminal"][:] = 0, 0
    batch["is_first"][:, 0] = 1
    batch["reward"][:] = 0
    batch["reward"][:, -1], batch["is_terminal"][:, -1] = 5, 1
    for _ in range(40):
        learn(agent, batch)
    features = torch.cat(states_of(agent, batch), -1)
    values = agent.critic.mean(agent.critic(features)).detach().mean(0)
    expected = 5 * agent.settings.discount ** np.array([3, 2, 1, 0])
    assert np.allclose(values[:4].numpy(), expected, atol=0.3)


def test_learning_rates_fall_to_their_final_share(make_agent, small_config):
    config = small_config(gradient_steps=4, dreamer__final_rate=0.1, dreamer__actor_rate=1e-2)
    agent = Dreamer(config, 18, 4)
    rates = []
    for _ in range(6):
        learn(agent, make_batch())
        groups = dict(zip(agent.parts, agent.optimizer.param_groups, strict=True))
        rates.append(float(groups["actor"]["lr"]))
    assert rates == pytest.approx([0.00775, 0.0055, 0.00325, 0.001, 0.001, 0.001])


@pytest.mark.parametrize(
    ("discrete", "actor_gradient", "latent", "scalar"),
    [
        (False, "dynamics", "categorical", "twohot"),
        (False, "reinforce", "gaussian", "normal"),
        (True, "reinforce", "categorical", "symlog"),
    ],
)
def test_a_step_never_waits_for_its_device(
    make_agent, monkeypatch, discrete, actor_gradient, latent, scalar
):
    """On the "meta" device tensors have shapes but no numbers: reading one, a shape that depends
    on one, or a tensor left on another device raises. So a GPU can record it.
    """
    optimizer = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *x, fused, **keys: optimizer(*x, **keys))
    monkeypatch.setattr(torch, "autocast", lambda *_, **keys: contextlib.nullcontext())
    agent = make_agent(
        device="meta",
        discrete=discrete,
        switches=[] if discrete else [3],
        actor_gradient=actor_gradient,
        latent=latent,
        scalar=scalar,
        critic_replay=1,
        horizon=2,
        imagination_starts=7,
        observation_scale=[1] * 18,
    )
    batch = {name: part.to("meta") for name, part in make_batch().items()}
    agent.optimizer.step = lambda: None  # PyTorch's own
    for _ in range(2):
        metrics = learn(agent, batch)
    assert all(value.device.type == "meta" for value in metrics.values())
    with pytest.raises(RuntimeError, match="meta"):
        metrics["world_model/loss"].item()


@pytest.mark.parametrize(("count", "expected"), [(0, 20), (7, 7), (1000, 20)])
def test_imagination_starts_from_as_many_states_as_the_config_says(make_agent, count, expected):
    agent, batch = make_agent(imagination_starts=count), make_batch()
    states = states_of(agent, batch)
    starts, alive = agent.choose_starts(states, 1 - batch["is_terminal"])
    assert {len(part) for part in (*starts, alive)} == {expected}
    rows = torch.cat([*flat(states), 1 - batch["is_terminal"].flatten()[:, None]], -1)
    chosen = torch.cat([*starts, alive[:, None]], -1)  # what belongs together stays together
    assert (chosen[:, None] == rows).all(-1).any(1).all()


# ---------------------------------------------------------------------------- one step


@GRADIENTS
def test_a_step_in_bfloat16_is_nearly_that_in_float32(make_agent, actor_gradient):
    """Metrics and gradients agree but for rounding; weights are float32 in any case."""
    found, gradients = [], []
    for precision in ("float32", "bfloat16"):
        agent = make_agent(
            precision=precision, actor_gradient=actor_gradient, critic_rate=1e-9, actor_rate=1e-9
        )
        for seed in range(3):  # heads that start at zero pass no gradient on in their first step
            torch.manual_seed(seed)
            metrics = learn(agent, make_batch(batch_size=20))
        assert {parameter.dtype for parameter in agent.parameters()} == {torch.float32}
        found.append({name: value.item() for name, value in metrics.items()})
        parts = agent.encoder, agent.rssm.recurrent, agent.rssm.prior, agent.reward
        gradients.append(
            [
                torch.cat([parameter.grad.flatten() for parameter in part.parameters()])
                for part in (*parts, agent.actor, agent.critic)
            ]
        )
    assert all(math.isfinite(value) for value in found[1].values()) and found[0] != found[1]
    for name in ("world_model/loss", "world_model/kl_dynamics", "behavior/entropy"):
        assert found[0][name] == pytest.approx(found[1][name], rel=0.02), name
    for exact, rounded in zip(*gradients, strict=True):
        assert torch.cosine_similarity(exact, rounded, 0) > 0.9
        assert (rounded != 0).float().mean() > 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_may_compute_in_bfloat16_but_no_distribution(make_agent, monkeypatch, precision):
    """All layers in the precision asked for, whatever a head says in float32."""
    agent, layers, said = make_agent(precision=precision, critic_replay=1), set(), set()
    for part in agent.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda part, inputs, output: layers.add(output.dtype))
    heads = (agent.rssm.prior, agent.rssm.posterior, agent.reward, agent.critic, agent.slow_critic)
    for head in heads:
        head.register_forward_hook(lambda head, inputs, output: said.add(output.dtype))
    agent.actor.register_forward_hook(lambda head, inputs, policy: said.add(policy.mean.dtype))
    continue_logit = agent.continue_logit

    def watched(features):
        said.add(continue_logit(features).dtype)
        return continue_logit(features)

    monkeypatch.setattr(agent, "continue_logit", watched)
    for _ in range(2):
        learn(agent, make_batch())
    assert layers == {getattr(torch, precision)}
    assert said == {torch.float32}


@pytest.mark.parametrize("threads", [1, 2])
def test_what_runs_beside_the_gradients_sees_weights_that_rest(make_agent, threads):
    torch.set_num_threads(threads)
    agent = make_agent()
    learn(agent, make_batch())
    before, played = weights(agent), []
    with agent.update(make_batch()):
        for _ in range(5):
            played.append(agent.player().act(observations(3), deterministic=True))
            assert not changed(before, weights(agent))
    assert all(np.allclose(action, played[0], atol=1e-6) for action in played)
    assert {key.split(".")[0] for key in changed(before, weights(agent))} >= {"encoder", *BEHAVIOR}
    assert torch.get_num_threads() == threads


def test_two_threads_learn_what_one_does(make_agent):
    """What runs side by side changes no number: neither needs noise or weights of the other."""
    after, metrics = [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        agent, actions = make_agent(), []
        for seed in range(3):
            torch.manual_seed(seed)
            with agent.update(make_batch(seed=seed)) as found:
                actions.append(agent.act(observations(3)))
            metrics.append(found)
        after.append((weights(agent), actions))
    (one, acted), (two, acted_as_well) = after
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert np.allclose(acted, acted_as_well, atol=1e-5)
    for early, late in zip(metrics[:3], metrics[3:], strict=True):
        assert early == {key: pytest.approx(float(value), abs=1e-4) for key, value in late.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_beside_the_step_leaves_the_agent_able_to_learn(make_agent, threads):
    torch.set_num_threads(threads)
    agent = make_agent()
    before = weights(agent)
    with pytest.raises(ZeroDivisionError), agent.update(make_batch()):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == threads and not changed(before, weights(agent))
    learn(agent, make_batch())
    assert changed(before, weights(agent))


# ---------------------------------------------------------------------------- saving


def test_a_loaded_agent_plays_the_same(make_agent, tmp_path):
    agent = make_agent()
    learn(agent, make_batch())
    agent.save(tmp_path / "folder" / "agent.safetensors", environment_steps=7)
    torch.manual_seed(5)
    loaded = Dreamer.load(tmp_path / "folder" / "agent.safetensors")
    assert not changed(weights(agent), weights(loaded))
    assert loaded.counters == {"gradient_steps": 1, "environment_steps": 7}
    assert loaded.gradient_steps == 1 and loaded.sizes == (18, 4)
    assert loaded.config.hockey == agent.config.hockey
    for seed in range(3):
        rows = observations(2, seed)
        for options in ({}, {"deterministic": True}, {"plan": True}):
            actions = []
            for one in (agent, loaded):
                torch.manual_seed(seed)
                actions.append(one.act(rows, **options))
            assert np.array_equal(*actions)


def refused(path):
    with pytest.raises(UserError) as caught:
        Dreamer.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_files_that_are_no_agent_are_refused_in_one_line(make_agent, tmp_path):
    path = tmp_path / "agent.safetensors"
    assert "No such file" in refused(path)
    refused(tmp_path)
    make_agent().save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "damaged" in refused(path)
    path.write_bytes(b"\x00" * 50 + whole[50:])
    refused(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "2"})
    refused(path)
    for metadata in ({}, {"format": 1}, {"format": 3}, {"format": "2"}):
        checkpoint.save(path, {"weight": torch.zeros(3)}, **metadata)
        assert "format" in refused(path)


@pytest.mark.parametrize(
    "config",
    [None, math.nan, "text", "a: [", [], {}, {"dreamer": 5}, {"dreamer": None}, {"dreamer": {}}],
)
def test_a_config_that_is_none_is_refused_in_one_line(make_agent, tmp_path, config):
    path, agent = tmp_path / "agent.safetensors", make_agent()
    agent.save(path)
    tensors, metadata = checkpoint.load(path)
    checkpoint.save(path, tensors, **metadata | {"config": config})
    assert "no saved agent" in refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [18, 5]},
        {"sizes": [18]},
        {"sizes": None},
        {"counters": {}},
        {"counters": None},
        {"hidden_size": 24},
        {"hidden_size": "wide"},
        {"norm": 3, "activation": "Nothing"},
        {"observation_in_state": False},
    ],
)
def test_files_with_other_contents_than_they_say_are_refused(make_agent, tmp_path, change):
    path = tmp_path / "agent.safetensors"
    make_agent().save(path)
    tensors, metadata = checkpoint.load(path)
    for key, value in change.items():
        (metadata if key in metadata else metadata["config"]["dreamer"])[key] = value
    checkpoint.save(path, tensors, **metadata)
    refused(path)


def test_weights_that_are_missing_are_noticed(make_agent, tmp_path):
    path = tmp_path / "agent.safetensors"
    make_agent().save(path)
    tensors, metadata = checkpoint.load(path)
    del tensors["critic.layers.0.bias"]
    checkpoint.save(path, tensors, **metadata)
    assert "critic.layers.0.bias" in refused(path)


def test_an_agent_outlives_the_keys_of_training(make_agent, tmp_path, monkeypatch):
    """It has the settings that decide play, reads no config, and takes what it does not know."""
    agent, path = make_agent(), tmp_path / "agent.safetensors"
    agent.save(path)
    tensors, metadata = checkpoint.load(path)
    assert metadata["format"] == 2 and metadata["config"]["dreamer"].keys() == set(PLAYED)
    world = {"environment", "environment_kwargs", "vectorization", "wrappers", "hockey"}
    assert metadata["config"].keys() == {"run", "evaluation_actions", "dreamer", *world}
    metadata["config"]["dreamer"]["a_key_of_yesterday"] = 3
    checkpoint.save(path, tensors, **metadata)
    monkeypatch.setattr(config, "COMPLETE", Path("nowhere.yml"))
    loaded = Dreamer.load(path)
    for options in ({}, {"plan": True}):
        actions = []
        for one in (agent, loaded):
            torch.manual_seed(3)
            actions.append(one.act(observations(2), **options))
        assert np.array_equal(*actions)


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
        learn(agent, make_batch(seed=seed))
    checkpoint.save(tmp_path / "state.safetensors", agent.state())
    other = make_agent(seed=9, actor_gradient=actor_gradient)
    other.restore(checkpoint.load(tmp_path / "state.safetensors")[0], 3)
    agent.seen = None  # a checkpoint is a barrier
    for one in (agent, other):
        torch.manual_seed(3)
        for seed in range(3, 6):
            learn(one, make_batch(seed=seed))
    left, right = agent.state(), other.state()
    assert left.keys() == right.keys() and not changed(left, right)
    assert sum(name.startswith("optimizer/") for name in left) > len(weights(agent))
    assert agent.gradient_steps == other.gradient_steps == 6


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer/0/exp_avg": torch.zeros(3)},
        {"optimizer/1/exp_avg_sq": torch.zeros(1, 7)},
        {"optimizer/2/step": torch.zeros(2)},
        {"optimizer/0/exp_avg": None},
        {"optimizer/0/step": None},
        {"optimizer/0/other": torch.zeros(3)},
        {"optimizer/9999/step": torch.zeros(())},
        {"optimizer/x/step": torch.zeros(())},
        {"optimizer/0": torch.zeros(())},
    ],
)
def test_moments_of_other_parameters_are_refused(make_agent, change):
    agent = make_agent()
    learn(agent, make_batch())
    wrong = {key: value for key, value in (agent.state() | change).items() if value is not None}
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError, RuntimeError)):
        make_agent().restore(wrong, 1)  # what `Training.restore` makes a sentence of
    make_agent().restore(agent.state(), 1)


# ---------------------------------------------------------------------------- probes


def slow(*values):
    """A set of parameters for the long tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


QUICK = {
    "world_model_rate": 1e-2,
    "actor_rate": 1e-2,
    "critic_rate": 1e-2,
    "slow_critic": 0.1,
    "entropy": 1e-4,
    "discount": 0.9,
}


def make_replay(rings, observation_size):
    """A replay of 2000 rows with one action."""
    return ReplayBuffer(SimpleNamespace(rows=2000, batch_length=6), rings, observation_size, 1)


@pytest.mark.parametrize("observation_in_state", [True, slow(False)])
def test_the_critic_finds_the_value_of_a_chain(make_agent, observation_in_state):
    """A -> B -> C, where 2 is paid and the game ends: v(A) = 2 gamma, v(B) = 2."""
    settings = QUICK | {"horizon": 1}  # so that v(A) has to come from v(B)
    agent = make_agent(sizes=(2, 1), observation_in_state=observation_in_state, **settings)
    replay = make_replay(4, 2)
    chain = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    for time in range(150):
        step = (time + torch.arange(4)) % 3
        action = torch.rand(4, 1) * 2 - 1
        replay.add(chain[step], action, 2.0 * (step == 2), step == 0, step == 2)
    for _ in range(100):
        learn(agent, replay.sample(32, 6))
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
    replay = make_replay(8, 1)
    for _ in range(125):
        sign, action = torch.randint(2, (8, 1)) * 2.0 - 1, torch.rand(8, 1) * 2 - 1
        ones, zeros = torch.ones(8), torch.zeros(8)
        replay.add(sign, 0 * action, zeros, ones, zeros)
        replay.add(0 * sign, action, 2 * sign * action, zeros, ones)
    return replay


@pytest.mark.parametrize(
    ("actor_gradient", "observation_in_state", "latent", "steps"),
    [
        ("dynamics", True, "categorical", (80, 80)),
        slow("reinforce", False, "categorical", (240, 120)),
        slow("dynamics", False, "gaussian", (240, 120)),
        slow("reinforce", True, "gaussian", (240, 120)),
        slow("dynamics", False, "categorical", (240, 120)),
        slow("reinforce", True, "categorical", (240, 120)),
    ],
)
def test_the_sign_that_pays_is_found_by_planning_and_then_by_the_actor(
    make_agent, actor_gradient, observation_in_state, latent, steps
):
    agent = make_agent(
        sizes=(1, 1),
        actor_gradient=actor_gradient,
        observation_in_state=observation_in_state,
        latent=latent,
        horizon=1,
        world_model_head_start=steps[0],
        **QUICK,
    )
    replay = signs_that_pay()
    for _ in range(steps[0]):
        learn(agent, replay.sample(64, 4))
    signs = np.repeat(np.array([[1.0], [-1.0]], np.float32), 50, 0)
    assert abs(agent.player().act(signs, deterministic=True)).max() < 0.2  # no actor yet
    planner = agent.player()
    actions = planner.act(signs, plan=True)
    assert actions.shape == (100, 1) and abs(actions).max() <= 1
    assert actions[:50].mean() > 0.3 and actions[50:].mean() < -0.3
    assert np.array_equal(planner.memory[-1].numpy(), actions)  # what it remembers to have done
    for _ in range(steps[1]):
        learn(agent, replay.sample(64, 4))
    actions = agent.player().act(signs, deterministic=True)
    assert actions[:50].min() > 0.4 and actions[50:].max() < -0.4


def test_a_plan_without_a_choice_is_the_policys_mean(make_agent):
    agent = make_agent()
    state = flat(states_of(agent, make_batch()))
    policy = agent.slow_actor(torch.cat(state, -1))
    with torch.no_grad():
        assert torch.equal(agent.plan(state, policy, candidates=1), torch.tanh(policy.mean))
