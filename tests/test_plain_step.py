"""The gradient step against the same losses written plainly: row by row, PyTorch's distributions.

The step computes for all rows at once what does not depend on their order, looks two-hot targets
up, and keeps networks apart by `inputs`. Here nothing is clever; the networks' layers and the order
of random numbers are all that is shared. Both in float32: losses agree within 1e-5, gradients
within 1e-4 of their norm.
"""

import pytest
import torch
from conftest import make_batch
from torch.distributions import (
    Bernoulli,
    Independent,
    Normal,
    OneHotCategorical,
    TanhTransform,
    kl_divergence,
)

from dreamer import RETURN_LAMBDA, Dreamer

SETTINGS = {"bins": 21, "free_nats": 0.1, "critic_imagination": 0.3, "critic_replay": 0.7}
SETTINGS |= {"slow_actor": 0, "slow_critic": 0}  # they stay apart from what they follow
PARTS = ("world_model", "actor", "critic")


def make_agent(config, discrete=False):
    """An agent with weights that make every path count, and an optimizer that leaves them alone."""
    agent = Dreamer(config, 18, 4, "cpu", discrete)
    for parameter in agent.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    agent.optimizer.step = lambda: None
    agent.return_scale.fill_(2.0)
    return agent


def of_the_step(agent, *batches):
    """part -> (loss, gradients) as `update` computes them for the last of these batches."""
    found, differentiate = {}, agent.gradients

    def watch(part, loss):
        gradients = differentiate(part, loss)
        found[part] = loss.detach(), [gradient.clone() for gradient in gradients]
        return gradients

    agent.gradients = watch
    for batch in batches:
        with agent.update(batch):
            pass
    return found


def parameters(agent, part):
    return agent.parts[part]


# ---------------------------------------------------------------------------- plainly


def latent(statistics, uniform=None):
    """The distribution, and a straight-through sample by the inverse of its cumulative one."""
    uniform = torch.rand_like(statistics[..., :1]) if uniform is None else uniform
    index = (uniform > statistics.cumsum(-1)[..., :-1]).sum(-1)
    one_hot = torch.eye(statistics.shape[-1])[index]
    sample = (one_hot + statistics - statistics.detach()).flatten(-2)
    return Independent(OneHotCategorical(probs=statistics), 1), sample


def two_hot_loss(head, output, target):
    """Cross-entropy with the target spread over its two neighbouring bins, number by number."""
    losses = []
    for logits, y in zip(output.reshape(-1, len(head.bins)), target.reshape(-1), strict=True):
        y = y.clamp(head.bins[0], head.bins[-1])
        above = min(int((head.bins <= y).sum()), len(head.bins) - 1)
        low, high = head.bins[above - 1], head.bins[above]
        share = (y - low) / (high - low)
        log_p = logits.log_softmax(-1)
        losses.append(-(1 - share) * log_p[above - 1] - share * log_p[above])
    return torch.stack(losses).reshape(target.shape)


def expectation(head, output):
    return (output.softmax(-1) * head.bins).sum(-1)


def plain_world_model(agent, batch):
    """The loss, and the states (h, z, o), each (B, T, .)."""
    settings, total, states = agent.settings, 0.0, []
    windows, rows = batch["reward"].shape
    h, z, o, a = (torch.zeros(windows, size) for size in (32, 16, agent.rssm.carried, 4))
    for t in range(rows):
        first = batch["is_first"][:, t, None].bool()
        a = batch["action"][:, t]
        h, z, a, o = (torch.where(first, 0.0, part) for part in (h, z, a, o))
        before, target = o, agent.squash(batch["observation"][:, t])
        h = agent.rssm.recurrent(h, torch.cat([z, a, before], -1))
        posterior, z = latent(agent.rssm.posterior(h, agent.encoder(target)))
        prior = Independent(OneHotCategorical(probs=agent.rssm.prior(h)), 1)
        decoded = agent.rssm.decoder(torch.cat([h, z, before], -1))
        o = target[:, : agent.rssm.carried]
        feature = torch.cat([h, z, o], -1)
        mean = decoded + before if agent.rssm.carried else decoded
        likelihood = Normal(mean, 1.0).log_prob(target) - Normal(0.0, 1.0).log_prob(torch.zeros(1))
        known = torch.ones(windows)
        if agent.rssm.carried:
            known = (~first[:, 0]).float() * (t > 0)
        kl_dynamics = kl_divergence(detached(posterior), prior) * known
        kl_representation = kl_divergence(posterior, detached(prior)) * known
        over = Bernoulli(logits=agent.continues(feature)[:, 0])
        losses = (
            settings.reconstruction_weight * -likelihood.sum(-1) * known
            + two_hot_loss(agent.reward, agent.reward(feature), batch["reward"][:, t])
            - over.log_prob(1 - batch["is_terminal"][:, t])
            + settings.beta_dynamics * kl_dynamics.clamp(min=settings.free_nats)
            + settings.beta_representation * kl_representation.clamp(min=settings.free_nats)
        )
        total = total + losses.sum() / (windows * rows)
        states.append((h, z, o))
    return total, [torch.stack(part, 1).detach() for part in zip(*states, strict=True)]


def detached(distribution):
    return Independent(OneHotCategorical(probs=distribution.base_dist.probs.detach()), 1)


def plain_actor(agent, h, z, o, alive):
    """The actor's loss, and what the critic learns from: (state, R, weight) of each step."""
    settings = agent.settings
    through_dynamics = settings.actor_gradient == "dynamics"
    size, start = len(h), (h, z, o)
    chance = [
        (
            torch.rand(size, 1) if agent.discrete else torch.randn(size, 4),
            torch.rand(size, settings.latent_groups, 1),
        )
        for _ in range(settings.horizon)
    ]

    def shrink(gradient):
        lengths = gradient.norm(dim=-1, keepdim=True)
        limit = torch.quantile(lengths, 0.9)
        return torch.where(lengths > limit, gradient * limit / lengths, gradient)

    def imagine(h, z, o, turned=False):
        states, chosen = [torch.cat([h, z, o], -1)], []
        for t, (noise, luck) in enumerate(chance):
            policy = agent.actor(states[-1].detach() if not through_dynamics else states[-1])
            if agent.discrete:
                _, u = latent(policy.probs.unsqueeze(1), noise.unsqueeze(1))
                a = u * 1.0
            else:
                u = policy.mean + policy.stddev * noise
                a = torch.tanh(u)
            if turned and t == 0:
                a = torch.cat([a[:, :3], torch.where(a[:, 3:] > 0.5, -0.9, 0.9)], -1)
            elif through_dynamics:
                a.register_hook(shrink)
            chosen.append((policy, u))
            h = agent.rssm.recurrent(h, torch.cat([z, a, o], -1))
            _, z = latent(agent.rssm.prior(h), luck)
            if agent.rssm.carried:
                o = o + agent.rssm.decoder(torch.cat([h, z, o], -1))
            states.append(torch.cat([h, z, o], -1))
        return states, chosen

    def returns_of(states):
        rewards = [expectation(agent.reward, agent.reward(state)) for state in states]
        continues = [torch.sigmoid(agent.continues(state)[:, 0]) for state in states]
        values = [expectation(agent.slow_critic, agent.slow_critic(state)) for state in states]
        returns = [values[-1]]
        for t in reversed(range(1, settings.horizon + 1)):
            mixed = (1 - RETURN_LAMBDA) * values[t] + RETURN_LAMBDA * returns[0]
            returns.insert(0, rewards[t] + settings.discount * continues[t] * mixed)
        return returns[:-1], values, continues

    states, chosen = imagine(*start)
    returns, values, continues = returns_of(states)
    weights = [alive]
    for t in range(1, settings.horizon):
        weights.append((weights[-1] * settings.discount * continues[t]).detach())
    everything = torch.stack(returns).detach()
    spread = torch.quantile(everything, 0.95) - torch.quantile(everything, 0.05)
    scale = max(1.0, float(0.99 * 2.0 + 0.01 * spread))
    total = 0.0
    for (policy, u), state, value, weight in zip(
        chosen, returns, values[:-1], weights, strict=True
    ):
        entropy = policy.entropy()
        if not agent.discrete:
            entropy = entropy + TanhTransform().log_abs_det_jacobian(u, torch.tanh(u)).sum(-1)
        objective = state / scale
        if not through_dynamics:
            objective = policy.log_prob(u.detach()) * (state - value).detach() / scale
        total = total - (weight * (objective + settings.entropy * entropy)).sum()
    loss = total / (settings.horizon * len(alive))
    for _ in settings.switches if through_dynamics else ():
        (policy, u), (other, *_) = chosen[0], returns_of(imagine(*start, turned=True)[0])[0]
        is_on = torch.tanh(u[:, 3]) > 0.5
        on, off = (torch.where(is_on == side, returns[0], other).detach() for side in (True, False))
        p = 1 - Normal(policy.mean[:, 3], policy.stddev[:, 3]).cdf(torch.tensor(0.5).atanh())
        loss = loss - (alive * (p * on + (1 - p) * off - off)).mean() / scale
    learnt = [
        (s.detach(), r.detach(), w) for s, r, w in zip(states, returns, weights, strict=False)
    ]
    return loss, learnt


def plain_replay(agent, batch, states):
    """As `plain_actor`'s list, for what was really played."""
    settings, features = agent.settings, torch.cat(states, -1)
    values = expectation(agent.slow_critic, agent.slow_critic(features)).detach()  # (B, T)
    windows, rows = values.shape
    returns = values.clone()
    for b in range(windows):
        for t in reversed(range(rows - 1)):
            if batch["is_first"][b, t + 1]:
                continue  # the episode's last row: its value is all that is known
            mixed = (1 - RETURN_LAMBDA) * values[b, t + 1]
            mixed = mixed + RETURN_LAMBDA * returns[b, t + 1]
            going_on = 1 - batch["is_terminal"][b, t + 1]
            returns[b, t] = batch["reward"][b, t + 1] + settings.discount * going_on * mixed
    weights = batch["is_own"] * (1 - batch["is_terminal"])
    learnt = []
    for t in range(rows - 1):
        learnt.append(
            (features[:, t], returns[:, t], weights[:, t] * (1 - batch["is_first"][:, t + 1]))
        )
    return learnt


def plain_critic(agent, *sources):
    """The critic's loss: the mean of both, by their shares."""
    settings, total = agent.settings, 0.0
    shares = (settings.critic_imagination, settings.critic_replay)
    for share, source in zip(shares, sources, strict=True):
        losses = [
            (weight * two_hot_loss(agent.critic, agent.critic(state), target)).mean()
            for state, target, weight in source
        ]
        total = total + share * sum(losses) / len(losses)
    return total


def plainly(agent, batch, following):
    """part -> (loss, gradients), without `update`: behavior is learned from the batch before."""
    losses, (_, states) = {}, plain_world_model(agent, batch)
    losses["world_model"], _ = plain_world_model(agent, following)
    starts = [part.flatten(0, 1) for part in states]
    alive = (1 - batch["is_terminal"]).flatten()
    losses["actor"], imagined = plain_actor(agent, *starts, alive)
    losses["critic"] = plain_critic(agent, imagined, plain_replay(agent, batch, states))
    return {
        part: (loss.detach(), torch.autograd.grad(loss, parameters(agent, part)))
        for part, loss in losses.items()
    }


@pytest.mark.parametrize(("switches", "discrete"), [([], False), ([3], False), ([], True)])
@pytest.mark.parametrize("observation_in_state", [True, False])
@pytest.mark.parametrize("actor_gradient", ["dynamics", "reinforce"])
def test_the_step_is_the_plain_computation(
    small_config, actor_gradient, observation_in_state, switches, discrete
):
    settings = SETTINGS | {
        "switches": switches,
        "actor_gradient": actor_gradient,
        "observation_in_state": observation_in_state,
    }
    config = small_config(**{f"dreamer__{key}": v for key, v in settings.items()})
    agent = make_agent(config, discrete)
    batches = [make_batch(batch_size=6, length=7, seed=seed) for seed in (0, 1)]
    batches[0]["is_own"][2] = 0
    torch.manual_seed(5)
    expected = plainly(agent, *batches)
    agent.return_scale.fill_(2.0)
    torch.manual_seed(5)
    found = of_the_step(agent, *batches)
    for part in PARTS:
        (loss, gradients), (right, slopes) = found[part], expected[part]
        assert loss.item() == pytest.approx(right.item(), rel=1e-5), part
        for gradient, slope in zip(gradients, slopes, strict=True):
            assert slope.norm() > 0, part
            assert (gradient - slope).norm() < 1e-4 * slope.norm(), part
