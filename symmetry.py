"""Agents that are their own mirror image: in a mirrored game they do the mirrored action.

Flipped in y, hockey is the same game: some numbers of observation and action change their signs.
A network is as symmetric as the game if each of its matrices W is P W Q, where Q mirrors what goes
in and P what comes out. Here observations and actions change signs, and of all that is hidden (h,
z, layers) the two halves change places. Weights that begin like that, and whose gradients are the
mean of themselves and their mirror image, stay like that. How networks are computed and agents are
saved stays as it is. Weight sharing for the symmetries of a Markov decision process: MDP
homomorphic networks (van der Pol et al., arXiv 2006.16908).

A mirror is a signed permutation and its own inverse: whole numbers, of which [-1, 3, 2] turns
(a, b, c) into (-a, c, b).
"""

import torch

from utils import UserError


def signed(signs):
    """Returns the mirror that only changes signs, given as 1 and -1."""
    return torch.tensor(signs) * torch.arange(1, len(signs) + 1)


def halves(size):
    """Returns the mirror that lets the two halves change places."""
    return torch.arange(1, size + 1).roll(size // 2)


def join(*mirrors):
    """Returns the mirror of several vectors in one."""
    joined, size = [], 0
    for mirror in mirrors:
        joined.append(mirror + size * mirror.sign())
        size += len(mirror)
    return torch.cat(joined)


class Symmetry:
    """Where the mirror image of each weight of an agent is, and with what sign."""

    def __init__(self, agent, signs):
        """Makes the agent's weights symmetric, and notes how they stay so.

        `signs`: what of observation and action changes its sign, (O + A,) of 1 and -1. Raises
        `UserError` for an agent whose hidden vectors have no two halves.
        """
        settings, rssm, actions = agent.settings, agent.rssm, agent.sizes[1]
        for key in ("hidden_size", "recurrent_size", "latent_groups"):
            if getattr(settings, key) % 2:
                raise UserError(f"dreamer.{key} must be even, or hockey.mirror=false.")
        observation, action = signed(signs[:-actions]), signed(signs[-actions:])
        (h, z), o = map(halves, rssm.sizes[:2]), observation[: rssm.carried]
        hidden, features, gates = halves(settings.hidden_size), join(h, z, o), join(h, h, h)
        self.images = {}  # parameter -> (where its numbers' images are, their signs)
        self._tie(agent.encoder, observation, hidden)
        self._tie(rssm.recurrent.inputs, join(z, action, o), hidden)
        self._tie(rssm.recurrent.activate, hidden, hidden)
        self._tie(rssm.recurrent.gates, join(hidden, h), gates)
        self._tie(rssm.recurrent.norm, gates, gates)
        for head in (rssm.posterior, rssm.prior):
            self._tie(head, h, z if settings.latent == "categorical" else join(z, z))
        self._tie(rssm.decoder, features, observation)
        self._tie(agent.actor, features, join(action, signed([1] * actions)))  # means, deviations
        for head in (agent.reward, agent.continues, agent.critic):  # the same in the mirror
            self._tie(head, features, None)
        for parameter, mean in zip(self.images, self.mean(self.images, self.images), strict=True):
            parameter.data.copy_(mean)
        agent.slow_actor.load_state_dict(agent.actor.state_dict())
        agent.slow_critic.load_state_dict(agent.critic.state_dict())

    def _tie(self, network, inputs, outputs):
        """Notes where the images of a network's weights are, layer by layer.

        Its inputs and outputs are mirrored by these; outputs None: they stay as they are.
        """
        layers = [layer for layer in network.modules() if hasattr(layer, "weight")]
        for layer in layers:
            size = len(layer.weight)
            rows = halves(size) if layer is not layers[-1] else outputs
            rows = signed([1] * size) if rows is None else rows
            for parameter in layer.parameters():
                index, sign = rows.abs() - 1, rows.sign()
                if parameter.dim() == 2:
                    index = index[:, None] * len(inputs) + inputs.abs() - 1
                    sign = sign[:, None] * inputs.sign()
                device = parameter.device
                self.images[parameter] = index.to(device), sign.to(device, parameter.dtype)
            inputs = rows

    @torch.no_grad()
    def mean(self, parameters, values):
        """Returns the means of the values of these parameters and of their mirror images."""
        means = []
        for parameter, value in zip(parameters, values, strict=True):
            index, sign = self.images[parameter]
            means.append(value.take(index).mul_(sign).add_(value).div_(2))
        return means

    def check(self):
        """Raises ValueError if the weights are not symmetric (but for rounding)."""
        pairs = zip(self.images, self.mean(self.images, self.images), strict=True)
        if not all(torch.allclose(*pair, atol=1e-4) for pair in pairs):
            raise ValueError("its weights are not symmetric: hockey.mirror=false trains it on")
