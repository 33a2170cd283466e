"""The agent: world model, actor and critic, their losses, and how they are saved.

Owns the networks and trains them from batches of the replay; knows no game and no file but its
own. Equations are those of DreamerV3 (Hafner et al., arXiv 2301.04104), cited by section.

    o  observation            h  recurrent state          R  lambda-return
    a  action                 z  latent, a sample         v  value
    r  reward                 s = (h, z, o), a "feature"  gamma  discount per decision
    c  continue (0: a goal ended the game)                lambda  mixes lengths of return

The paper's state is (h, z). With `observation_in_state` it carries o as well, real or imagined,
and the decoder predicts the change of o; without it, o in the code below has no columns.

Sizes in shape comments: B windows of T rows, N imagined trajectories of H decisions, A action,
F feature.
"""

import copy
import hashlib
import json
import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from networks import Actor, LatentHead, RecurrentModel, ScalarHead, mlp
from utils import (
    RENAMED,
    Beside,
    UserError,
    check_config,
    lambda_returns,
    multiplies_bfloat16,
    one_line,
    shrink_to_quantile,
    symlog,
    to_json,
    update_return_scale,
    write_atomically,
)

# the settings that decide what the weights mean: no run goes on with others
SHAPES = (
    *("hidden_size", "hidden_layers", "norm", "activation", "recurrent_size", "observation_scale"),
    *("observation_in_state", "latent", "latent_groups", "latent_classes"),
    *("scalar", "bins", "bin_limit"),
)

SWITCH_ON = 0.5  # an action of `switches` is on above it, else off


def checksum(weights, metadata):
    """SHA-256 over named tensors and texts, as hexadecimal text."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def of_today(config):
    """The config (a dict) of a saved agent, with names and keys that have changed since."""
    settings = {
        RENAMED.get(f"dreamer.{key}", key).removeprefix("dreamer."): value
        for key, value in dict(config["dreamer"]).items()
    }
    return {"videos": False, **config, "dreamer": {"switches": []} | settings}


class Dreamer:
    """A DreamerV3 agent for flat observations and actions in [-1, 1]."""

    def __init__(self, config, observation_size, action_size, device="cpu"):
        """`config` is a whole run's config, of which `config.dreamer` is read here."""
        self.config, self.settings = config, config.dreamer
        self.sizes = (observation_size, action_size)
        self.device = torch.device(device)
        settings = self.settings
        self.posterior = LatentHead(settings)
        self.prior = LatentHead(settings)
        if settings.observation_scale and len(settings.observation_scale) != observation_size:
            raise UserError(f"dreamer.observation_scale needs {observation_size} numbers, or none.")
        if any(switch >= action_size for switch in settings.switches):
            raise UserError(
                f"dreamer.switches: there are actions 0 to {action_size - 1} only; [] for none."
            )
        scale = torch.tensor(list(settings.observation_scale), dtype=torch.float32)
        self.scale = scale.to(self.device)
        self.carried = observation_size if settings.observation_in_state else 0
        feature_size = settings.recurrent_size + self.prior.size + self.carried
        self.networks = {
            "encoder": mlp(observation_size, settings.hidden_size, settings),
            "recurrent": RecurrentModel(self.prior.size + action_size + self.carried, settings),
            "posterior": self.posterior,
            "prior": self.prior,
            "decoder": mlp(feature_size, observation_size, settings),
            "reward": ScalarHead(feature_size, settings),
            "continues": mlp(feature_size, 1, settings),
            "actor": Actor(feature_size, action_size, settings),
            "critic": ScalarHead(feature_size, settings),
        }
        for name in ("actor", "critic"):
            self.networks[f"slow_{name}"] = copy.deepcopy(self.networks[name])
        for name, network in self.networks.items():
            setattr(self, name, network.to(self.device))
        has_bfloat16 = settings.precision == "auto" and multiplies_bfloat16(self.device)
        self.in_bfloat16 = settings.precision == "bfloat16" or has_bfloat16
        self.return_scale = torch.zeros((), device=self.device)
        self.gradient_steps = 0
        self.world_model_parts = [
            name for name in self.networks if name.removeprefix("slow_") not in ("actor", "critic")
        ]
        self.optimizers = {
            "world_model": self._optimizer(self.world_model_parts, settings.world_model_rate),
            "actor": self._optimizer(["actor"], settings.actor_rate),
            "critic": self._optimizer(["critic"], settings.critic_rate),
        }
        self.memory = None
        self.beside = Beside()

    # ------------------------------------------------------------------------ playing

    def reset(self, games=None):
        """Forgets the games so far: all, or those of a boolean mask or an index array."""
        if games is None:
            self.memory = None
        elif self.memory is not None:
            for part in self.memory:
                part[games] = 0

    def remember(self, games):
        """Prepares a memory (h, z, last action) for so many games side by side."""
        widths = (self.settings.recurrent_size, self.prior.size, self.sizes[1], self.carried)
        self.memory = [torch.zeros(games, width, device=self.device) for width in widths]

    @torch.no_grad()
    def act(self, observation, deterministic=False, games=None, plan=False):
        """Actions in [-1, 1] for observations (n, O), or for a single one (O,), as NumPy float32.

        A sample of the policy, its mean (`deterministic`), or what looking ahead finds to be best
        (`plan`). Remembers h, z and the action of each game, so call it once per decision and
        `reset` when a game starts. `games` says which of the remembered games the rows belong to.
        Raises ValueError for a shape that does not fit.
        """
        observation = torch.from_numpy(np.asarray(observation, np.float32)).to(self.device)
        if observation.ndim not in (1, 2) or observation.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"observations must be ({self.sizes[0]},) or (n, {self.sizes[0]}),"
                f" not {tuple(observation.shape)}"
            )
        rows = observation.reshape(-1, self.sizes[0])
        games = slice(None) if games is None else torch.as_tensor(games)
        if self.memory is None:
            self.remember(len(rows))
        h, z, a, o = (part[games] for part in self.memory)
        if len(h) != len(rows):
            raise ValueError(f"{len(rows)} observations for {len(h)} games; call reset() between")
        h = self.recurrent(h, torch.cat([z, a, o], -1))
        o = self.squash(rows)
        z = self.posterior.sample(
            self.posterior(h, self.encoder(o)), deterministic=deterministic or plan
        )
        o = o[:, : self.carried]
        policy = self.slow_actor(torch.cat([h, z, o], -1))
        if plan:
            a = self.plan(h, z, o, policy)
        else:
            a = torch.tanh(policy.mean if deterministic else policy.sample())
        for part, value in zip(self.memory, (h, z, a, o), strict=True):
            part[games] = value
        return a.reshape(*observation.shape[:-1], -1).cpu().numpy()

    def plan(self, h, z, o, policy, candidates=8, futures=2, horizon=5):
        """The best of several first actions from states (n, .), judged in imagination -> (n, A).

        Candidates are the policy's mean and samples. Each is followed by means of the policy, in
        several futures; its worth is the mean of their rewards and of the value where they end.
        All candidates meet the same chance, so that luck decides nothing between them. Random
        shooting with a policy prior, as in TD-MPC (Hansen et al., arXiv 2203.04955), one decision
        deep.
        """
        games = len(h)
        samples = policy.sample((candidates - 1,))
        first = torch.tanh(torch.cat([policy.mean.unsqueeze(0), samples]))  # (candidates, n, A)
        h, z, o = (part.repeat(candidates, futures, 1) for part in (h, z, o))  # (., futures * n, .)
        a, worth, discount = first.repeat(1, futures, 1), 0.0, 1.0
        with self.autocast():
            for luck in self.prior.chance(horizon, futures * games):
                h = self.recurrent(h, torch.cat([z, a, o], -1))
                z = self.prior.sample(self.prior(h), luck)
                if self.carried:
                    o = self.decode(h, z, o)
                feature = torch.cat([h, z, o], -1)
                worth = worth + discount * self.reward.mean(self.reward(feature))
                going_on = torch.sigmoid(self.continue_logit(feature))
                discount = discount * self.settings.discount * going_on
                a = torch.tanh(self.slow_actor(feature).mean)
            worth = worth + discount * self.slow_critic.mean(self.slow_critic(feature))
        best = worth.unflatten(1, (futures, games)).mean(1).argmax(0)  # (n,)
        return first[best, torch.arange(games, device=self.device)]

    def player(self):
        """The same agent with the same networks, but with a memory of its own."""
        player = copy.copy(self)
        player.memory = None
        return player

    # ------------------------------------------------------------------------ learning

    def train_step(self, batch, meanwhile=None):
        """One gradient step on a batch (B, T) of the replay -> metrics as 0-d tensors.

        First the losses of all three parts, then their gradients, then their steps: all learn from
        the same weights. With two cores the gradients are computed beside each other and beside
        `meanwhile`, a function that leaves the weights alone (`main.py` collects).
        """
        self.gradient_steps += 1
        self.decay_rates()
        losses = {}
        with self.autocast():
            *state, losses["world_model"], metrics = self.observe(batch)
            if self.gradient_steps > self.settings.world_model_head_start:
                behavior, imagined = self.behavior_losses(batch, *state)
                losses, metrics = losses | behavior, metrics | imagined
        passes = [partial(self._backward, part, loss) for part, loss in losses.items()]
        self.beside(passes, meanwhile, self.device)
        for part in losses:
            name = "world_model/" if part == "world_model" else f"behavior/{part}_"
            metrics[f"{name}gradient_norm"] = self._descend(part)
        self._follow("actor")
        self._follow("critic")
        return metrics

    def behavior_losses(self, batch, *state):
        """The losses of actor and critic from states (h, z, o) (B, T, .), and their metrics."""
        starts = [part.flatten(0, 1) for part in (*state, 1 - batch["is_terminal"])]  # (B*T, .)
        count = self.settings.imagination_starts
        if 0 < count < len(starts[0]):
            chosen = torch.randint(len(starts[0]), (count,), device=self.device)
            starts = [part[chosen] for part in starts]  # (N, ...)
        actor, imagined, metrics = self.actor_loss(*starts)
        replayed = None
        if self.settings.critic_replay > 0:
            replayed = self.replayed_returns(batch, torch.cat(state, -1))
        critic, more = self.critic_loss(imagined, replayed)
        return {"actor": actor, "critic": critic}, metrics | more

    def autocast(self):
        """A context in which layers compute in bfloat16, if this agent does."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16)

    def decay_rates(self):
        """Learning rates fall linearly to `final_rate` of themselves at the run's last step."""
        settings, progress = self.settings, self.gradient_steps / self.config.gradient_steps
        share = 1 - (1 - settings.final_rate) * min(1.0, progress)
        for part, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = settings[f"{part}_rate"] * share

    def observe(self, batch):
        """The world model on a batch -> posterior states (h, z, o) (B, T, .), loss and metrics.

        batch: observation (B, T, O), action (B, T, A), reward, is_first, is_terminal (B, T), in
        the row convention of `buffer.py`. The states are detached; o is the carried observation.
        """
        target = self.squash(batch["observation"])  # (B, T, O)
        evidence = self.encoder(target).unbind(1)  # T x (B, hidden)
        keep = (1 - batch["is_first"]).unsqueeze(-1)  # (B, T, 1)
        o = target[..., : self.carried]
        previous_o = F.pad(o[:, :-1], (0, 0, 1, 0)) * keep
        inputs = torch.cat([batch["action"] * keep, previous_o], -1).unbind(1)
        h = target.new_zeros(len(target), self.settings.recurrent_size)
        z = target.new_zeros(len(target), self.posterior.size)
        states, latents, posteriors = [], [], []
        for t, kept in enumerate(keep.unbind(1)):
            h = self.recurrent(h * kept, torch.cat([z * kept, inputs[t]], -1))
            posteriors.append(self.posterior(h, evidence[t]))
            z = self.posterior.sample(posteriors[-1])
            states.append(h)
            latents.append(z)
        h, z, posterior = (torch.stack(x, 1) for x in (states, latents, posteriors))  # (B, T, .)

        feature = torch.cat([h, z, o], -1)  # (B, T, F)
        error = self.decode(h, z, previous_o) - target
        prior = self.prior(h)
        losses = {
            "reconstruction": 0.5 * error.square().sum(-1),
            "reward": self.reward.loss(self.reward(feature), batch["reward"]),
            "continue": F.binary_cross_entropy_with_logits(
                self.continue_logit(feature), 1 - batch["is_terminal"], reduction="none"
            ),
            "kl_dynamics": self.prior.divergence(posterior.detach(), prior),
            "kl_representation": self.prior.divergence(posterior, prior.detach()),
        }
        if self.carried:  # rows whose previous observation is unknown can't be asked for the change
            known = F.pad(keep[:, 1:, 0], (1, 0))  # (B, T)
            for name in ("reconstruction", "kl_dynamics", "kl_representation"):
                losses[name] = losses[name] * known
        metrics = {f"world_model/{name}": loss.detach().mean() for name, loss in losses.items()}
        loss = self.world_model_loss(losses)
        metrics |= {"world_model/loss": loss.detach()}
        return h.detach(), z.detach(), o, loss, metrics

    def world_model_loss(self, losses):
        """The weighted sum of the losses (B, T), averaged; KL below the free nats is free."""
        settings = self.settings
        weights = {
            "reconstruction": settings.reconstruction_weight,
            "reward": 1.0,
            "continue": 1.0,
            "kl_dynamics": settings.beta_dynamics,
            "kl_representation": settings.beta_representation,
        }
        total = 0.0
        for name, loss in losses.items():
            assert loss.ndim == 2, (name, loss.shape)  # (B, T)
            loss = loss.clamp(min=settings.free_nats) if name.startswith("kl") else loss
            total = total + weights[name] * loss.mean()
        return total

    def squash(self, observation):
        """The observation as the networks see it: divided by its scale, or else its symlog."""
        return observation / self.scale if len(self.scale) else symlog(observation)

    def decode(self, h, z, previous):
        """The squashed observation that (h, z) mean; previous: the one before it, if carried."""
        decoded = self.decoder(torch.cat([h, z, previous], -1))
        return previous + decoded if self.carried else decoded

    def continue_logit(self, features):
        """The log-odds (...) that no goal has ended the game on arrival in the states (..., F)."""
        return self.continues(features).squeeze(-1).float()

    def actor_loss(self, h, z, o, alive):
        """The actor's loss, in imagination from posterior states.

        h (N, R), z (N, Z), o (N, carried); alive (N,) is 0 at a game's end: not counted. Returns
        the loss, (states (H, N, F), their lambda-returns (H, N), weights (H, N)), and metrics.
        """
        settings, through_dynamics = self.settings, self.settings.actor_gradient == "dynamics"
        start, noise = (h, z, o), partial(torch.randn, len(h), self.sizes[1], device=h.device)
        chance = [(noise(), self.prior.chance(len(h))) for _ in range(settings.horizon)]
        states, policies, samples = self.imagine(*start, chance)
        with torch.set_grad_enabled(through_dynamics):
            returns, values, weights = self.imagined_returns(states, alive)
        scale = update_return_scale(self.return_scale, returns, settings.return_scale_decay)
        u, policy = torch.stack(samples), self.actor.stack(policies)
        entropy = self.actor.entropy(policy, u)  # (H, N)
        objective = returns / scale
        if not through_dynamics:
            objective = policy.log_prob(u.detach()) * (returns - values) / scale
        assert objective.shape == entropy.shape == weights.shape, objective.shape  # (H, N)
        actor_loss = -(weights * (objective + settings.entropy * entropy)).mean()
        for switch in set(settings.switches):
            first = policies[0], samples[0], returns[0].detach()
            gain = self.switch_gain(switch, start, chance, alive, *first) / scale
            actor_loss = actor_loss - (alive * gain).mean()
        metrics = {
            "behavior/actor_loss": actor_loss.detach(),
            "behavior/entropy": entropy.detach().mean(),
            "behavior/std": policy.base_dist.scale.detach().mean(),
            "behavior/return": returns.detach().mean(),
            "behavior/return_scale": self.return_scale.clone(),
        }
        return actor_loss, (states[:-1].detach(), returns.detach(), weights), metrics

    def imagine(self, h, z, o, chance, flip=None):
        """Trajectories from states (N, .) by the policy and the prior.

        chance: H pairs of random numbers, for the action (N, A) and for the latent; `flip`: number
        of a switch that is turned the other way at the first decision (without gradient only).
        Returns features (H+1, N, F) and, as lists over H, policies and their samples u (N, A).
        """
        shrink = partial(shrink_to_quantile, share=self.settings.gradient_quantile)
        through_dynamics = self.settings.actor_gradient == "dynamics" and torch.is_grad_enabled()
        layers = torch.bfloat16 if self.in_bfloat16 else torch.float32  # cast once for all of them
        features, policies, samples = [torch.cat([h, z, o], -1).to(layers)], [], []
        for t, (noise, luck) in enumerate(chance):
            policies.append(self.actor(features[-1]))
            normal = policies[-1].base_dist
            samples.append(normal.loc + normal.scale * noise)
            a = torch.tanh(samples[-1])
            if flip is not None and t == 0:  # to where nobody doubts whether it is on
                a[:, flip] = torch.where(a[:, flip] > SWITCH_ON, -0.9, 0.9)
            if through_dynamics:  # a few chaotic trajectories would drown all others
                a.register_hook(shrink)
            with torch.set_grad_enabled(through_dynamics):
                h = self.recurrent(h, torch.cat([z, a, o], -1))
                z = self.prior.sample(self.prior(h), luck)
                if self.carried:
                    o = self.decode(h, z, o)
                features.append(torch.cat([h, z, o], -1).to(layers))
        return torch.stack(features), policies, samples

    def switch_gain(self, switch, start, chance, alive, policy, u, returns):
        """p (R_on - R_off) (N,), p being the policy's probability that this action is on.

        An action that the game reads as on or off has no gradient but at its threshold, which the
        world model blurs. So the first decision is imagined the other way too, all else and chance
        alike; the gradient with respect to p is exact: the sum over all actions of Mean
        Actor-Critic (Allen et al., arXiv 1709.00503). u (N, A), returns (N,): as it was decided.
        """
        with torch.no_grad():
            states, *_ = self.imagine(*start, chance, flip=switch)
            flipped, *_ = self.imagined_returns(states, alive)
        gain = returns - flipped[0]
        gain = torch.where(torch.tanh(u[:, switch]) > SWITCH_ON, gain, -gain).detach()
        mean, std = policy.base_dist.loc[:, switch], policy.base_dist.scale[:, switch]
        return gain * torch.special.ndtr((mean - math.atanh(SWITCH_ON)) / std)

    def imagined_returns(self, states, alive):
        """Lambda-returns (H, N), values (H, N) and weights (H, N) of imagined states (H+1, N, F).

        s_0 --actor--> a_0 --prior--> s_1 --actor--> a_1 ... s_H
                                  r_1, c_1              r_H, c_H
        v_0                       v_1                   v_H
        R_0 = r_1 + gamma c_1 [(1-lambda) v_1 + lambda R_1]    weight of step 1: gamma c_1
        """
        rewards = self.reward.mean(self.reward(states[1:]))  # (H, N), on arrival
        continues = torch.sigmoid(self.continue_logit(states[1:]))  # (H, N)
        values = self.slow_critic.mean(self.slow_critic(states))  # (H+1, N)
        discounts = self.settings.discount * continues
        returns = lambda_returns(rewards, discounts, values[1:], self.settings.return_lambda)
        weights = torch.cat([alive.unsqueeze(0), discounts[:-1].detach()]).cumprod(0)
        return returns, values[:-1], weights

    @torch.no_grad()
    def replayed_returns(self, batch, features):
        """Lambda-returns of what was really played, for the posterior states (B, T, F).

        Row t's return starts with the reward of row t+1, so the last row has none, nor has an
        episode's last one: a goal ends it, after the time limit only its value is known. Returns
        (states, lambda-returns, weights) like `actor_loss`, here with H = T-1 and N = B.
        """
        values = self.slow_critic.mean(self.slow_critic(features)).T  # (T, B)
        names = ("reward", "is_first", "is_terminal")
        reward, first, terminal = (batch[name].T[1:] for name in names)  # (T-1, B), on arrival
        # before an episode's first row there is nothing to look forward to: R_t = v_t
        rewards = torch.where(first > 0, values[:-1], reward)
        discounts = self.settings.discount * (1 - terminal) * (1 - first)
        returns = lambda_returns(rewards, discounts, values[1:], self.settings.return_lambda)
        alive = 1 - batch["is_terminal"].T[:-1]
        weights = batch["is_own"].T[:-1] * alive * (1 - first)
        return features.transpose(0, 1)[:-1], returns, weights

    def critic_loss(self, imagined, replayed):
        """The critic's loss against the returns of imagined and of replayed states, and metrics.

        Both are (states (H, N, F), returns (H, N), weights (H, N)), or None if their share is 0.
        """
        settings, total = self.settings, 0.0
        shares = (settings.critic_imagination, settings.critic_replay)
        for share, source in zip(shares, (imagined, replayed), strict=True):
            if share > 0:
                features, returns, weights = source
                loss = self.critic.loss(self.critic(features), returns)
                assert loss.shape == weights.shape, loss.shape  # (H, N)
                total = total + share * (weights * loss).mean()
        metrics = {"behavior/critic_loss": total.detach()}
        if replayed:
            metrics["behavior/replayed_return"] = replayed[1].mean()
        return total, metrics

    def _parameters(self, names):
        """The parameters of the networks of these names, as a list."""
        return [parameter for name in names for parameter in self.networks[name].parameters()]

    def _optimizer(self, names, learning_rate):
        """Adam over the networks of these names."""
        return torch.optim.Adam(self._parameters(names), learning_rate, eps=1e-8, fused=True)

    @torch.no_grad()
    def _follow(self, name):
        """Moves the slow copy of a network a little towards it."""
        slow, fast = self._parameters([f"slow_{name}"]), self._parameters([name])
        torch._foreach_lerp_(slow, fast, self.settings[f"slow_{name}"])

    def _backward(self, part, loss):
        """The gradient of the loss with respect to `part`, into its parameters."""
        optimizer = self.optimizers[part]
        optimizer.zero_grad(set_to_none=True)
        # `inputs` keeps the gradient away from every other network that the loss runs through. To
        # free the graph here would take Python's lock hundreds of times; it goes with the loss.
        loss.backward(inputs=optimizer.param_groups[0]["params"], retain_graph=True)

    def _descend(self, part):
        """One optimizer step of `part` -> norm of its gradient, unclipped."""
        optimizer = self.optimizers[part]
        parameters = optimizer.param_groups[0]["params"]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        optimizer.step()
        return norm

    # ------------------------------------------------------------------------ saving

    def state(self):
        """Everything to go on with: weights, optimizers, return scale, memory, counter."""
        return {
            "networks": {name: part.state_dict() for name, part in self.networks.items()},
            "optimizers": {name: part.state_dict() for name, part in self.optimizers.items()},
            "return_scale": self.return_scale,
            "memory": self.memory,
            "gradient_steps": self.gradient_steps,
            "sizes": list(self.sizes),
            "settings": to_json(self.settings),
        }

    def restore_state(self, state):
        """Takes over what `state` returned. Raises `UserError` if the networks differ in size."""
        theirs, ours = json.loads(state["settings"]), json.loads(to_json(self.settings))
        theirs["sizes"], ours["sizes"] = list(state["sizes"]), list(self.sizes)
        for key in ("sizes", *SHAPES):
            if theirs.get(key) != ours[key]:
                name = "observation and action sizes" if key == "sizes" else f"dreamer.{key}"
                raise UserError(
                    f"{name}: the checkpoint has {theirs.get(key)}, this run {ours[key]}."
                )
        for name, part in self.networks.items():
            part.load_state_dict(state["networks"][name])
        for name, part in self.optimizers.items():
            part.load_state_dict(state["optimizers"][name])
        self.return_scale.copy_(state["return_scale"])
        memory = state["memory"]
        self.memory = memory and [part.to(self.device) for part in memory]
        self.gradient_steps = state["gradient_steps"]

    def check_finite(self):
        """Raises `UserError` with the first weight or optimizer state that is not finite."""
        tensors = {
            f"{name}.{key}": value
            for name, part in self.networks.items()
            for key, value in part.state_dict().items()
        }
        for name, optimizer in self.optimizers.items():
            for number, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name} optimizer, {key} {number}": v for key, v in state.items()}
        tensors["return_scale"] = self.return_scale
        finite = [tensor.isfinite().all().to(self.device) for tensor in tensors.values()]
        for name, is_finite in zip(tensors, torch.stack(finite).tolist(), strict=True):
            if not is_finite:
                raise UserError(
                    f"{name} is not finite at gradient step {self.gradient_steps}: training has"
                    " diverged; the last good checkpoint is kept: lower the learning rates, then"
                    " resume=true."
                )

    def save(self, path, **counters):
        """Writes weights, config and counters into one safetensors file that `load` reads."""
        weights = {
            f"{name}.{key}": value.contiguous().cpu()
            for name, part in self.networks.items()
            for key, value in part.state_dict().items()
        }
        counters = {"gradient_steps": self.gradient_steps, **counters}
        metadata = {
            "config": to_json(self.config),
            "sizes": json.dumps(self.sizes),
            "counters": json.dumps(counters),
        }
        metadata["checksum"] = checksum(weights, metadata)
        write_atomically(path, lambda file: save_file(weights, file, metadata))

    @classmethod
    def load(cls, path, device="cpu"):
        """The agent saved at `path`, ready to play. Raises `UserError` if it can't be read."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                weights = {key: file.get_tensor(key) for key in file.keys()}
            config = of_today(json.loads(metadata["config"]))
            sizes = json.loads(metadata["sizes"])
            counters = json.loads(metadata["counters"])
            expected = metadata.pop("checksum", None)  # earlier versions wrote none
            if expected not in (None, checksum(weights, metadata)):
                raise ValueError("its checksum does not fit its contents")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
            raise UserError(f"{path} is no saved agent: {one_line(reason)}") from None
        try:
            agent = cls(check_config(config, str(path)), *sizes, device=device)
        except (UserError, TypeError, RuntimeError) as error:
            raise UserError(f"{path} is no saved agent of this version: {error}") from None
        for name, part in agent.networks.items():
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            try:
                part.load_state_dict(own)
            except RuntimeError as error:
                raise UserError(f"{path} is damaged: {one_line(error)}") from None
        agent.gradient_steps = counters["gradient_steps"]
        agent.counters = counters
        return agent
