"""The agent: world model, actor and critic, how they act, what they learn from, how they are saved.

Trains its networks from batches of the replay; knows no game, and no file but its own. Equations
are those of DreamerV3 (Hafner et al., arXiv 2301.04104), cited by section.

    o  observation            h  recurrent state          R  lambda-return
    a  action                 z  latent, a sample         v  value
    r  reward                 s = (h, z, o), a state      gamma  discount per decision
    c  continue (0: a goal ended the game)                lambda  mixes lengths of return

The paper's state is (h, z). With `observation_in_state` it carries o as well, real or imagined,
and the decoder predicts the change of o; without it, o in the code below has no columns.

Sizes in shape comments: B windows of T rows, N imagined trajectories of H decisions, A action,
R recurrent state, Z latent, F feature (all of a state in one tensor).
"""

import contextlib
import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

import checkpoint
import utils
from machine import explained, multiplies_bfloat16, recorded, side_by_side
from networks import RSSM, Actor, DiscreteActor, ImageEncoder, ScalarHead, mlp
from utils import UserError, symexp, symlog

FORMAT = 2  # of saved agents: one more whenever the same tensors or settings mean something else
# the settings that decide what weights mean: no run goes on with others; a saved agent has PLAYED
SHAPES = (
    *("hidden_size", "hidden_layers", "norm", "activation", "recurrent_size", "observation_scale"),
    *("observation_in_state", "channels", "latent", "latent_groups", "latent_classes"),
    *("scalar", "bins", "bin_limit"),
)
PLAYED = (*SHAPES, "unimix", "discount", "dreams_end")
UNSAVED = {"switches": (), "precision": "auto", "dreams_end": True}  # if a saved agent lacks them
SAVED = ("run", "environment", "environment_kwargs", "vectorization", "wrappers", "hockey")
SAVED += ("evaluation_actions", "dreamer")  # what is saved of a config
SWITCH_ON = 0.5  # an action of `switches` is on above it, else off
RETURN_LAMBDA = 0.95  # of the lambda-return, as in all three papers
RETURN_SCALE_DECAY = 0.99  # per gradient step, of the running 5%..95% range of the returns
LONGEST_GRADIENTS = 0.9  # longer gradients of imagined actions shrink to this quantile of them
GRADIENT_CLIP = 100.0  # largest gradient norm of each of the three parts


class Dreamer(nn.Module):
    """A DreamerV3 agent: observations flat or images; actions in [-1, 1], or one-hot choices."""

    def __init__(self, config, observation_size, action_size, device="cpu", discrete=False):
        """`config` is a whole run's config; to play, what a saved agent has of it is enough.

        `observation_size`: how many numbers, or the (H, W, C) of images of bytes; `discrete`: an
        action is one of `action_size` choices, not so many numbers.
        """
        super().__init__()
        self.config = config
        self.settings = settings = SimpleNamespace(**{**UNSAVED, **config.dreamer})  # asked often
        self.is_image = not isinstance(observation_size, int)
        observation_size = tuple(observation_size) if self.is_image else observation_size
        self.sizes, self.discrete = (observation_size, action_size), discrete
        self.device = torch.device(device)
        scale = torch.tensor(list(settings.observation_scale), dtype=torch.float32)
        if self.is_image and (len(scale) or settings.observation_in_state):
            raise UserError("Images need dreamer.observation_in_state=false, observation_scale=[].")
        if len(scale) not in (0, observation_size):
            raise UserError(f"dreamer.observation_scale needs {observation_size} numbers, or [].")
        if discrete and settings.switches:
            raise UserError("dreamer.switches must be [] where actions are choices.")
        if any(switch >= action_size for switch in settings.switches):
            raise UserError(f"dreamer.switches: actions are 0 to {action_size - 1}; [] for none.")
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("return_scale", torch.zeros(()))
        encoder = ImageEncoder if self.is_image else mlp
        self.encoder = encoder(observation_size, settings.hidden_size, settings)
        self.rssm = RSSM(observation_size, action_size, settings)
        feature_size = sum(self.rssm.sizes)
        self.reward = ScalarHead(feature_size, settings)
        self.continues = mlp(feature_size, 1, settings)
        self.actor = (DiscreteActor if discrete else Actor)(feature_size, action_size, settings)
        self.critic = ScalarHead(feature_size, settings)
        self.slow_actor, self.slow_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.to(self.device)
        world_model = nn.ModuleList([self.encoder, self.rssm, self.reward, self.continues])
        self.parts = {"world_model": world_model, "actor": self.actor, "critic": self.critic}
        self.parts = {name: list(part.parameters()) for name, part in self.parts.items()}
        rate = torch.zeros((), device=self.device)  # a tensor, so that a GPU reads it
        groups = [{"params": part, "lr": rate.clone()} for part in self.parts.values()]
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=self.device.type == "cuda")
        for name in ("learn_world", "learn_behavior", "move"):
            setattr(self, name, recorded(getattr(self, name), self.device))
        is_auto = settings.precision == "auto" and multiplies_bfloat16(self.device)
        self.in_bfloat16 = settings.precision == "bfloat16" or is_auto
        self.is_deterministic = config.get("evaluation_actions") != "sample"  # when it is measured
        self.symmetry = None  # of its weights, in a symmetric game (`symmetry.py`)
        self.teachers = None  # whom the actor learns from instead of from dreams (`teachers.py`)
        self.gradient_steps = 0
        self.seen = None  # the last batch and the posterior states of its rows
        self.memory = None  # (h, z, o, last action) of each game that is being played

    # ------------------------------------------------------------------------ playing

    def reset(self, games=None):
        """Forgets the games so far: all, or those of a boolean mask or an index array."""
        if games is None:
            self.memory = None
        for part in self.memory or ():
            part[games] = 0

    def remember(self, games):
        """Prepares a memory (h, z, o, last action) for so many games side by side."""
        action = torch.zeros(games, self.sizes[1], device=self.device)
        self.memory = [*self.rssm.initial(games), action]

    @torch.no_grad()
    def act(self, observation, deterministic=False, games=None, plan=False):
        """Actions in [-1, 1] for observations (n, O), or for a single one (O,), as NumPy float32.

        Images are (n, H, W, C) or (H, W, C), choices one-hot vectors. A sample of the policy, its
        mean or mode (`deterministic`), or what looking ahead finds to be best (`plan`). Remembers
        state and action of each game, so call it once per decision and `reset` when a game starts.
        `games` says which of the remembered games the rows belong to. Raises ValueError for a shape
        that does not fit.
        """
        observation = torch.from_numpy(np.asarray(observation, np.float32)).to(self.device)
        shape = self.sizes[0] if self.is_image else (self.sizes[0],)
        before = observation.shape[: -len(shape)]  # () or (n,)
        if len(before) > 1 or observation.shape != (*before, *shape):
            raise ValueError(
                f"observations must be {shape} or {('n', *shape)}, not {tuple(observation.shape)}"
            )
        rows = observation.reshape(-1, *shape)
        games = slice(None) if games is None else torch.as_tensor(games)
        if self.memory is None:
            self.remember(len(rows))
        *state, action = (part[games] for part in self.memory)
        if len(action) != len(rows):
            raise ValueError(f"{len(rows)} observations for {len(action)} games; reset() between")
        state, _ = self.rssm.step(state, action, self.embed(rows), mode=deterministic or plan)
        policy = self.slow_actor(self.rssm.features(state))
        if plan:
            action = self.plan(state, policy)
        else:
            noise = None if deterministic else self.actor.noise(len(rows))
            action = self.actor.action(self.actor.sample(policy, noise))
        for part, value in zip(self.memory, (*state, action), strict=True):
            part[games] = value
        return action.reshape(*before, -1).cpu().numpy()

    def plan(self, state, policy, candidates=8, futures=2, horizon=5):
        """The best of several first actions from n states, judged in imagination -> (n, A).

        Candidates are the policy's mode and samples. Each is followed by modes of the policy, in
        several futures; its worth is the mean of their lambda-returns. All candidates meet the same
        noise, so that luck decides nothing between them. Random shooting with a policy prior, as in
        TD-MPC (Hansen et al., arXiv 2203.04955), one decision deep.
        """
        games, actor = len(state[0]), self.slow_actor
        samples = actor.sample(policy, actor.noise(candidates - 1, games))
        samples = torch.cat([actor.sample(policy).unsqueeze(0), samples])
        first = actor.action(samples)  # (candidates, n, A)
        state = [part.repeat(candidates, futures, 1) for part in state]  # (., futures * n, .)
        noise = [(None, latent) for latent in self.rssm.prior.noise(horizon, futures * games)]
        with self.autocast():
            features, *_ = self.imagine(state, noise, actor, lambda _: first.repeat(1, futures, 1))
            returns, *_ = self.imagined_returns(features)
        best = returns[0].unflatten(1, (futures, games)).mean(1).argmax(0)  # (n,)
        return first[best, torch.arange(games, device=self.device)]

    def player(self):
        """Returns the same agent with the same networks, but with a memory of its own."""
        player = copy.copy(self)
        player.memory = None
        return player

    # ------------------------------------------------------------------------ learning

    @contextlib.contextmanager
    def update(self, batch):
        """One gradient step on a batch (B, T) of the replay; yields its metrics as 0-d tensors.

        The world model learns from this batch. Beside it, on the other half of the CPU cores, actor
        and critic learn from the states it saw in the batch before; then the body of the `with`
        runs, which must leave the weights alone, as collecting does. Then all take their steps.
        """
        self.gradient_steps += 1
        before, losses, gradients, metrics, behavior = self.seen, [], {}, {}, {}
        noise = self.rssm.posterior.noise(*batch["reward"].T.shape)  # random only in this thread

        def learn_world():
            states, loss, gradients["world_model"], found = self.learn_world(batch, noise)
            self.seen = [part.clone() for part in states], batch
            losses.append(loss)  # keeps its graph: to free it here would take Python's lock often
            metrics.update(found)

        with side_by_side(learn_world, self.device):
            if before and self.gradient_steps > self.settings.world_model_head_start:
                loss, learned, behavior = self.learn_behavior(*before)
                losses.append(loss)
                gradients |= learned
            yield metrics
        for name, value in (metrics | behavior | self.descend(gradients)).items():
            metrics[name] = torch.as_tensor(value).clone()  # a GPU's next step writes over it

    def learn_world(self, batch, noise):
        """Differentiates `world_model_loss` -> its states, the loss, its gradients, metrics."""
        with self.autocast():
            states, loss, metrics = self.world_model_loss(batch, noise)
        return states, loss, self.gradients("world_model", loss), metrics

    def learn_behavior(self, states, batch):
        """Differentiates the losses of actor and critic -> losses, gradients by part, metrics.

        `states`: (h, z, o) (B, T, .) of a batch, as `world_model_loss` returns them.
        """
        with self.autocast():
            if self.teachers:
                actor_loss, imagined, metrics = self.teachers.loss(states, batch)
            else:
                starts = self.choose_starts(states, 1 - batch["is_terminal"])
                actor_loss, imagined, metrics = self.actor_loss(*starts)
            replayed = self.replayed_returns(batch, self.rssm.features(states))
            critic_loss, found = self.critic_loss(imagined, replayed)
        losses = {"actor": actor_loss, "critic": critic_loss}
        gradients = {part: self.gradients(part, loss) for part, loss in losses.items()}
        return losses, gradients, metrics | found

    def autocast(self):
        """A context in which layers compute in bfloat16, if this agent does."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bfloat16)

    def world_model_loss(self, batch, noise):
        """The world model on a batch -> posterior states (h, z, o) (B, T, .), loss and metrics.

        batch: observation (B, T, O), action (B, T, A), reward, is_first, is_terminal (B, T), rows
        as in `buffer.py`; noise (T, B, .) for z. The states are detached. World model learning.
        """
        settings, target = self.settings, self.squash(batch["observation"])  # (B, T, O)
        inputs = [batch["action"], self.encoder(target), target[..., : self.rssm.carried]]
        inputs.append(batch["is_first"].unsqueeze(-1))
        state, states, posteriors = self.rssm.initial(len(target)), [], []
        rows = zip(*(x.unbind(1) for x in inputs), noise, strict=True)
        for action, evidence, o, is_first, for_z in rows:
            state, posterior = self.rssm.step(state, action, (evidence, o), is_first, for_z)
            states.append(state)
            posteriors.append(posterior)
        h, z, o = (torch.stack(part, 1) for part in zip(*states, strict=True))  # (B, T, .)
        posterior, prior = torch.stack(posteriors, 1), self.rssm.prior(h)

        keep = 1 - batch["is_first"]  # (B, T)
        previous = F.pad(o[:, :-1], (0, 0, 1, 0)) * keep.unsqueeze(-1)  # (B, T, carried)
        feature = self.rssm.features((h, z, o))  # (B, T, F)
        losses = {  # (B, T) each
            "reconstruction": 0.5 * (self.rssm.decode(h, z, previous) - target).square().sum(-1),
            "reward": self.reward.loss(self.reward(feature), batch["reward"]),
            "continue": F.binary_cross_entropy_with_logits(
                self.continue_logit(feature), 1 - batch["is_terminal"], reduction="none"
            ),
            "kl_dynamics": self.rssm.prior.divergence(posterior.detach(), prior),
            "kl_representation": self.rssm.prior.divergence(posterior, prior.detach()),
        }
        weights = {
            "reconstruction": settings.reconstruction_weight,
            "reward": 1.0,
            "continue": 1.0,
            "kl_dynamics": settings.beta_dynamics,
            "kl_representation": settings.beta_representation,
        }
        if self.rssm.carried:  # without the previous observation there is no change: not counted
            known = F.pad(keep[:, 1:], (1, 0))  # (B, T)
            for name in ("reconstruction", "kl_dynamics", "kl_representation"):
                losses[name] = losses[name] * known
        metrics = {f"world_model/{name}": loss.detach().mean() for name, loss in losses.items()}
        for name in ("kl_dynamics", "kl_representation"):
            losses[name] = losses[name].clamp(min=settings.free_nats)
        assert all(loss.shape == keep.shape for loss in losses.values())  # (B, T)
        loss = sum(weights[name] * loss.mean() for name, loss in losses.items())
        metrics["world_model/loss"] = loss.detach()
        return [part.detach() for part in (h, z, o)], loss, metrics

    def squash(self, observation):
        """Returns the observation as the networks see it: divided by its scale, or its symlog.

        Images (..., H, W, C) of bytes are flat then, channels first: (..., C*H*W) within 0..1.
        """
        if self.is_image:
            return observation.movedim(-1, -3).flatten(-3).float() / 255
        return observation / self.scale if len(self.scale) else symlog(observation)

    def unsquash(self, observation):
        """Returns the inverse of `squash`: metres, radians, ..."""
        if self.is_image:
            height, width, channels = self.sizes[0]
            return 255 * observation.unflatten(-1, (channels, height, width)).movedim(-3, -1)
        return observation * self.scale if len(self.scale) else symexp(observation)

    def embed(self, observation):
        """Returns what `RSSM.step` needs of observations (..., O): evidence and what is carried."""
        squashed = self.squash(observation)
        return self.encoder(squashed), squashed[..., : self.rssm.carried]

    def continue_logit(self, features):
        """Returns the log-odds (...) that no goal has ended the game on arrival at (..., F)."""
        return self.continues(features).squeeze(-1).float()

    def choose_starts(self, state, alive):
        """Returns the states (N, .) and alive (N,) that imagination starts from, of (B, T, .)."""
        starts = [part.flatten(0, 1) for part in (*state, alive)]  # (B*T, ...)
        count = self.settings.imagination_starts
        if 0 < count < len(starts[0]):
            chosen = torch.randint(len(starts[0]), (count,), device=self.device)
            starts = [part[chosen] for part in starts]
        return starts[:-1], starts[-1]

    def imagine(self, state, noise, actor, first=None):
        """Trajectories from states (N, .) by the policy and the prior.

        s_0 --actor--> a_0 --prior--> s_1 --actor--> a_1 --prior--> s_2 ... s_H

        noise: H pairs of random numbers, for the action (None: its mean or mode) and for the
        latent; `first`: turns the first decision into another one (without gradient only).
        Returns features (H+1, N, F) and, as lists over H, policies and their samples (N, A).
        """
        through_dynamics = torch.is_grad_enabled() and self.settings.actor_gradient == "dynamics"
        layers = torch.bfloat16 if self.in_bfloat16 else torch.float32  # cast once for all of them
        features, policies, samples = [self.rssm.features(state).to(layers)], [], []
        for t, (action_noise, latent_noise) in enumerate(noise):
            policies.append(actor(features[-1]))
            samples.append(actor.sample(policies[-1], action_noise))
            action = actor.action(samples[-1])
            if first and t == 0:
                action = first(action)
            if through_dynamics:  # a few chaotic trajectories would drown all others
                action.register_hook(partial(utils.shrink_to_quantile, share=LONGEST_GRADIENTS))
            with torch.set_grad_enabled(through_dynamics):
                state, _ = self.rssm.step(state, action, noise=latent_noise)
                features.append(self.rssm.features(state).to(layers))
        return torch.stack(features), policies, samples

    def imagined_returns(self, features):
        """Lambda-returns, values and discounts, (H, N) each, of imagined features (H+1, N, F).

        s_0 --actor--> a_0 --prior--> s_1 --actor--> a_1 ... s_H
                                  r_1, c_1              r_H, c_H
        v_0                       v_1                   v_H
        R_0 = r_1 + gamma c_1 [(1-lambda) v_1 + lambda R_1]
        """
        rewards = self.reward.mean(self.reward(features[1:]))  # (H, N), on arrival
        continues = torch.sigmoid(self.continue_logit(features[1:]))  # (H, N)
        if not self.settings.dreams_end:
            continues = torch.ones_like(continues)
        values = self.slow_critic.mean(self.slow_critic(features))  # (H+1, N)
        discounts = self.settings.discount * continues
        returns = utils.lambda_returns(rewards, discounts, values[1:], RETURN_LAMBDA)
        return returns, values[:-1], discounts

    def actor_loss(self, start, alive):
        """The actor's loss, in imagination from posterior states (h, z, o) (N, .).

        alive (N,) is 0 at a game's end: not counted. Returns the loss, (features (H, N, F), their
        lambda-returns (H, N), weights (H, N)), and metrics. Actor learning; through the dynamics
        as in DreamerV1 (Hafner et al., arXiv 1912.01603).
        """
        settings, through_dynamics = self.settings, self.settings.actor_gradient == "dynamics"
        sources, count = (self.actor.noise, self.rssm.prior.noise), len(alive)
        noise = [[draw(count) for draw in sources] for _ in range(settings.horizon)]
        features, policies, samples = self.imagine(start, noise, self.actor)
        with torch.set_grad_enabled(through_dynamics):
            returns, values, discounts = self.imagined_returns(features)
        weights = torch.cat([alive.unsqueeze(0), discounts[:-1].detach()]).cumprod(0)  # (H, N)
        scale = utils.update_return_scale(self.return_scale, returns, RETURN_SCALE_DECAY)
        scale = scale if settings.scale_returns else torch.ones_like(scale)
        sample, policy = torch.stack(samples), self.actor.stack(policies)
        entropy = self.actor.entropy(policy, sample)  # (H, N)
        objective = returns / scale
        if not through_dynamics:
            objective = policy.log_prob(sample.detach()) * (returns - values) / scale
        assert objective.shape == entropy.shape == weights.shape, objective.shape  # (H, N)
        loss = -(weights * (objective + settings.entropy * entropy)).mean()
        for switch in set(settings.switches) if through_dynamics else ():
            first = policies[0], samples[0], returns[0].detach()
            gain = self.switch_gain(switch, start, noise, *first) / scale
            loss = loss - (alive * gain).mean()
        metrics = {
            "behavior/actor_loss": loss.detach(),
            "behavior/entropy": entropy.detach().mean(),
            **self.actor.metrics(policy),
            "behavior/return": returns.detach().mean(),
            "behavior/return_scale": self.return_scale.clone(),
        }
        return loss, (features[:-1].detach(), returns.detach(), weights), metrics

    def switch_gain(self, switch, start, noise, policy, u, returns):
        """p (R_on - R_off) (N,), p being the policy's probability that this action is on.

        An action that the game reads as on or off has no gradient but at its threshold, which the
        world model blurs. So the first decision is imagined the other way too, all else and noise
        alike; the gradient with respect to p is exact: the sum over all actions of Mean
        Actor-Critic (Allen et al., arXiv 1709.00503). u (N, A), returns (N,): as it was decided.
        """

        def turned(action):  # to where nobody doubts whether it is on
            action[:, switch] = 0.9 - 1.8 * (action[:, switch] > SWITCH_ON)
            return action

        with torch.no_grad():
            flipped, *_ = self.imagined_returns(self.imagine(start, noise, self.actor, turned)[0])
        gain = returns - flipped[0]
        gain = torch.where(torch.tanh(u[:, switch]) > SWITCH_ON, gain, -gain).detach()
        mean, std = policy.base_dist.loc[:, switch], policy.base_dist.scale[:, switch]
        return gain * torch.special.ndtr((mean - math.atanh(SWITCH_ON)) / std)

    @torch.no_grad()
    def replayed_returns(self, batch, features):
        """Lambda-returns of what was really played, for the posterior states (B, T, F).

        Row t's return starts with the reward of row t+1, so the last row has none, nor has an
        episode's last one: a goal ends it, after the time limit only its value is known. Returns
        (features, lambda-returns, weights) like `actor_loss`, here with H = T-1 and N = B.
        """
        if self.settings.critic_replay == 0:
            return None
        values = self.slow_critic.mean(self.slow_critic(features)).T  # (T, B)
        names = ("reward", "is_first", "is_terminal")
        reward, first, terminal = (batch[name].T[1:] for name in names)  # (T-1, B), on arrival
        # before an episode's first row there is nothing to look forward to: R_t = v_t
        rewards = torch.where(first > 0, values[:-1], reward)
        discounts = self.settings.discount * (1 - terminal) * (1 - first)
        returns = utils.lambda_returns(rewards, discounts, values[1:], RETURN_LAMBDA)
        weights = batch["is_own"].T[:-1] * (1 - batch["is_terminal"].T[:-1]) * (1 - first)
        return features.transpose(0, 1)[:-1], returns, weights

    def critic_loss(self, imagined, replayed):
        """The critic's loss against the returns of imagined and of replayed states, and metrics.

        Both are (features (H, N, F), returns (H, N), weights (H, N)), or None if their share is 0.
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

    def gradients(self, part, loss):
        """Returns the gradients of the loss with respect to the parameters of `part` alone."""
        # without `retain_graph` the graph would be freed at once, not with the loss
        found = torch.autograd.grad(loss, self.parts[part], retain_graph=True)
        if self.symmetry:
            return self.symmetry.mean(self.parts[part], found)
        # fused Adam pairs numbers as they lie in memory; those of convolutions may lie otherwise
        return [gradient.contiguous() for gradient in found]

    def descend(self, gradients):
        """Takes one optimizer step of the parts that have gradients -> metrics: their norms.

        Learning rates fall linearly to `final_rate` of themselves at the run's last step.
        """
        progress = min(1.0, self.gradient_steps / self.config.gradient_steps)
        share = 1 - (1 - self.settings.final_rate) * progress
        for part, group in zip(self.parts, self.optimizer.param_groups, strict=True):
            group["lr"].fill_(share * getattr(self.settings, f"{part}_rate"))
        return self.move(gradients)

    def move(self, gradients):
        """Moves the weights of parts that have gradients, and the slow copies after them."""
        metrics = {}
        self.optimizer.zero_grad()
        for part, found in gradients.items():
            for parameter, gradient in zip(self.parts[part], found, strict=True):
                parameter.grad = gradient
            name = "world_model/" if part == "world_model" else f"behavior/{part}_"
            norm = nn.utils.clip_grad_norm_(self.parts[part], GRADIENT_CLIP)
            metrics[f"{name}gradient_norm"] = norm
        self.optimizer.step()
        with torch.no_grad():  # the slow copies follow a little
            for name, slow in (("actor", self.slow_actor), ("critic", self.slow_critic)):
                share = getattr(self.settings, f"slow_{name}")
                torch._foreach_lerp_(list(slow.parameters()), self.parts[name], share)
        return metrics

    # ------------------------------------------------------------------------ saving

    def state(self):
        """Returns all tensors that training goes on from, by name: weights, optimizer."""
        moments = {
            f"optimizer/{number}/{key}": value
            for number, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        return self.state_dict() | moments

    def restore(self, tensors, gradient_steps):
        """Takes over what `state` returned. Raises RuntimeError or ValueError if it doesn't fit."""
        self.gradient_steps = gradient_steps
        self.load_state_dict({key: v for key, v in tensors.items() if "/" not in key})
        states = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, number, key = name.split("/")
                states.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
        for parameter, found in self.optimizer.state.items():
            expected = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            if {key: value.shape for key, value in found.items()} != expected:
                raise ValueError("its optimizer's moments are of other parameters")

    def load_state_dict(self, *arguments, **options):
        """Takes over weights. Raises ValueError unless they are as symmetric as the agent."""
        super().load_state_dict(*arguments, **options)
        if self.symmetry:
            self.symmetry.check()

    def check_settings(self, theirs):
        """Raises ValueError unless weights with these settings (`config.dreamer`) mean the same."""
        for key in SHAPES:
            ours = getattr(self.settings, key)
            if theirs.get(key, ours) != ours:
                raise ValueError(f"its dreamer.{key} is {theirs[key]}, not {ours}")

    def save(self, path, **counters):
        """Writes weights, counters and what decides play into one file that `load` reads."""
        config = OmegaConf.to_container(self.config)
        config["dreamer"] = {key: v for key, v in config["dreamer"].items() if key in PLAYED}
        checkpoint.save(
            path,
            self.state_dict(),
            format=FORMAT,
            config={key: config[key] for key in SAVED if key in config},
            sizes=self.sizes,
            discrete=self.discrete,
            counters={"gradient_steps": self.gradient_steps, **counters},
        )

    @classmethod
    def load(cls, path, device="cpu"):
        """Returns the agent saved at `path`, ready to play. Raises `UserError` if it can't be."""
        tensors, metadata = checkpoint.load(path)
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is no agent of this version (format {FORMAT}).")
        with explained(f"{path} is no saved agent", *checkpoint.MISFITS):
            config, discrete = OmegaConf.create(dict(metadata["config"])), metadata.get("discrete")
            agent = cls(config, *metadata["sizes"], device, bool(discrete))
            agent.load_state_dict(tensors)
            agent.counters = metadata["counters"]
            agent.gradient_steps = agent.counters["gradient_steps"]
        return agent
