"""Learning from other agents by imitation: what several agree on can be better than each of them.

The student plays, and its actor learns what its teachers would have done, on the average, where it
was: DAgger (Ross et al., arXiv 1011.0686) and policy distillation (Rusu et al., arXiv 1511.06295).
World model and critic learn as ever. So agents that beat different others become one.
"""

import torch

from dreamer import Dreamer
from opponents import find_agent
from utils import UserError

CONTEXT = 8  # rows after which what lies before a window hardly changes a teacher's action
LARGEST = 0.96  # tanh(mean) of a teacher that still tells its mean, 1.95


class Teachers:
    """Saved agents of the student's world, and the loss of an actor that is to act as they do."""

    def __init__(self, names, student):
        """Reads the agents. Raises `UserError` if the student can't learn from one of them."""
        self.student = student
        self.agents = [Dreamer.load(find_agent(name), student.device) for name in names]
        for name, agent in zip(names, self.agents, strict=True):
            theirs, ours = ((one.config.environment, *one.sizes) for one in (agent, student))
            if theirs != ours:
                what = "environment, observations, actions"
                raise UserError(f"teachers: {name} was trained in {theirs}, not {ours} ({what}).")
        if student.discrete:
            raise UserError("teachers need actions that are numbers, not choices.")
        if student.settings.critic_imagination:
            raise UserError("teachers need dreamer.critic_imagination=0: nothing is imagined.")
        if student.config.replay.batch_length <= CONTEXT:
            raise UserError(f"teachers need replay.batch_length above {CONTEXT}.")

    @torch.no_grad()
    def policy(self, batch):
        """Returns the means over all teachers of tanh(mean) and of the deviation, (B, T, A)."""
        actions, deviations = [], []
        for agent in self.agents:
            state, features = agent.rssm.initial(len(batch["reward"])), []
            inputs = [batch["action"], *agent.embed(batch["observation"])]
            inputs = (part.unbind(1) for part in (*inputs, batch["is_first"].unsqueeze(-1)))
            for action, evidence, o, is_first in zip(*inputs, strict=True):
                state, _ = agent.rssm.step(state, action, (evidence, o), is_first, mode=True)
                features.append(agent.rssm.features(state))
            policy = agent.slow_actor(torch.stack(features, 1)).base_dist
            actions.append(torch.tanh(policy.loc))
            deviations.append(policy.scale)
        return torch.stack(actions).mean(0), torch.stack(deviations).mean(0)

    def loss(self, states, batch):
        """The student's loss in posterior states (h, z, o) (B, T, .) of a batch: see `actor_loss`.

        The squared errors of tanh(mean) and of the deviation, and a tenth of the mean's, which has
        a slope where the tanh has none. Nothing is imagined.
        """
        student = self.student
        action, deviation = self.policy(batch)
        policy = student.actor(student.rssm.features(states)).base_dist
        error = (torch.tanh(policy.loc) - action).square().sum(-1)  # (B, T)
        mean = torch.atanh(action.clamp(-LARGEST, LARGEST))
        slope = (policy.loc.clamp(-2, 2) - mean).square().sum(-1)
        width = (policy.scale - deviation).square().sum(-1)
        is_known = batch["is_first"].cumsum(1) > 0  # the game's start is in the window
        is_known[:, CONTEXT:] = True
        weights = is_known * batch["is_own"]
        total = weights.sum().clamp(min=1)
        loss = (weights * (error + 0.1 * slope + width)).sum() / total
        error = (weights * error.detach()).sum() / total
        return loss, None, {"behavior/actor_loss": loss.detach(), "behavior/imitation_error": error}
