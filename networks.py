"""The neural networks of the agent, and nothing else: no losses over batches, no optimizers.

Every network is a plain MLP but the recurrent model, and those that see or paint images. A *head*
turns the MLP's last numbers into a distribution: `LatentHead` (prior and posterior), `ScalarHead`
(reward and value), `Actor`. `RSSM` puts those of the world model's state together. Layers may
compute in bfloat16 (under autocast), distributions are float32 in any case.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Independent, Normal, OneHotCategorical, kl_divergence

from utils import symexp, symlog, two_hot

# to look at numbers is to wait for the device
torch.distributions.Distribution.set_default_validate_args(False)


def activate(size, config):
    """What follows a hidden layer's matrix: norm layer and activation, by config."""
    norm = nn.Identity() if config.norm == "none" else getattr(nn, config.norm)(size)
    return nn.Sequential(norm, getattr(nn, config.activation)())


def mlp(input_size, output_size, config, output_scale=1.0):
    """`hidden_layers` x (Linear, norm, activation), then a Linear shrunk by `output_scale`."""
    layers, width = [], input_size
    for _ in range(config.hidden_layers):
        layers += [nn.Linear(width, config.hidden_size), activate(config.hidden_size, config)]
        width = config.hidden_size
    output = nn.Linear(width, output_size)
    with torch.no_grad():
        output.weight.mul_(output_scale)
        output.bias.zero_()
    return nn.Sequential(*layers, output)


class EachPixel(nn.Sequential):
    """Layers that work on the channels of each pixel of (N, C, H, W)."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def stages(shape, config):
    """Returns the shapes (C, H, W) of an image (H, W, C): itself, and after each convolution.

    Each halves the sides, until the shorter one is 4 to 7, and doubles the channels.
    """
    height, width, channels = shape
    found = [(channels, height, width)]
    while min(height, width) >= 8:
        height, width = height // 2, width // 2
        found.append((config.channels * 2 ** (len(found) - 1), height, width))
    return found


class ImageEncoder(nn.Sequential):
    """Convolutions over a flat image (..., C*H*W), then a matrix -> (..., output_size)."""

    def __init__(self, shape, output_size, config):
        sizes, layers = stages(shape, config), [nn.Unflatten(-1, stages(shape, config)[0])]
        for (inputs, *_), (outputs, *_) in itertools.pairwise(sizes):
            norm = EachPixel(activate(outputs, config))
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), norm]
        super().__init__(*layers, nn.Flatten(), nn.Linear(math.prod(sizes[-1]), output_size))

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class ImageDecoder(nn.Sequential):
    """The mirror of `ImageEncoder`: (..., input_size) -> a flat image (..., C*H*W) within 0..1."""

    def __init__(self, input_size, shape, config):
        sizes = stages(shape, config)[::-1]
        layers = [nn.Linear(input_size, math.prod(sizes[0])), nn.Unflatten(-1, sizes[0])]
        for (inputs, *_), (outputs, *sides) in itertools.pairwise(sizes):
            odd = [side % 2 for side in sides]  # the convolution has dropped a row or column
            transposed = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, output_padding=odd)
            layers += [EachPixel(activate(inputs, config)), transposed]
        super().__init__(*layers, nn.Flatten())

    def forward(self, x):
        output = super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return torch.sigmoid(output.float())


def one_hot(probabilities, noise=None):
    """Returns one-hot vectors (..., C): samples by uniform noise (..., 1), or without it the modes.

    The gradient goes straight through to the probabilities (..., C).
    """
    if noise is None:
        index = probabilities.argmax(-1, keepdim=True)
    else:  # looked up in the cumulative distribution
        cumulative = probabilities.detach().cumsum(-1)[..., :-1]
        index = (noise > cumulative).sum(-1, keepdim=True)
    vectors = probabilities.new_zeros(*index.shape[:-1], probabilities.shape[-1])
    vectors.scatter_(-1, index, 1.0)
    if probabilities.requires_grad:
        vectors = vectors + probabilities - probabilities.detach()
    return vectors


class RecurrentModel(nn.Module):
    """h_t = f(h_{t-1}, x), x = (z_{t-1}, a_{t-1}, ...): a GRU with normalised gates."""

    def __init__(self, input_size, config):
        super().__init__()
        size = config.recurrent_size
        self.inputs = nn.Linear(input_size, config.hidden_size)
        self.activate = activate(config.hidden_size, config)
        self.gates = nn.Linear(config.hidden_size + size, 3 * size)
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(3 * size)

    def forward(self, h, x):
        """(N, R), (N, input_size) -> (N, R)."""
        x = self.activate(self.inputs(x))
        gates = self.norm(self.gates(torch.cat([x, h.to(x.dtype)], -1)))
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)  # the -1 lets h last longer at first (DreamerV2)
        return h + update * (candidate - h)


class LatentHead(nn.Module):
    """The distribution of the latent z: the prior given h, or the posterior given h and evidence.

    What it predicts ("statistics") is one tensor: (..., G, C) probabilities of G categorical
    variables, or (..., 2, G*C) mean and standard deviation. A sample is flat: (..., G*C).
    """

    def __init__(self, config):
        super().__init__()
        self.categorical = config.latent == "categorical"
        self.groups, self.classes = config.latent_groups, config.latent_classes
        self.size = self.groups * self.classes
        self.unimix = config.unimix
        self.first = nn.Linear(config.recurrent_size, config.hidden_size)
        outputs = self.size if self.categorical else 2 * self.size
        # `first` is the first of the hidden layers; the rest of the MLP starts with its norm.
        self.rest = mlp(config.recurrent_size, outputs, config)[1:]

    def forward(self, h, evidence=None):
        """h (..., R), evidence (..., hidden) added to the first layer -> statistics."""
        hidden = self.first(h)
        hidden = self.rest(hidden if evidence is None else hidden + evidence).float()
        if self.categorical:
            logits = hidden.unflatten(-1, (self.groups, self.classes))
            return (1 - self.unimix) * F.softmax(logits, -1) + self.unimix / self.classes
        mean, std = hidden.unflatten(-1, (2, self.size)).unbind(-2)
        return torch.stack([mean, F.softplus(std) + 0.1], -2)

    def noise(self, *size):
        """Returns random numbers for samples: (*size, G, 1) or (*size, G*C)."""
        device = self.first.weight.device
        if self.categorical:  # one uniform number per variable
            return torch.rand(*size, self.groups, 1, device=device)
        return torch.randn(*size, self.size, device=device)

    def sample(self, statistics, noise=None, mode=False):
        """Returns a sample with (straight-through) gradient, or the mode: (..., G*C).

        `noise`: what `noise()` returned for the leading dimensions, or the last of them; without
        it, new random numbers (and not the mode, as with an actor).
        """
        if noise is None and not mode:
            noise = self.noise(*statistics.shape[:-2])
        if not self.categorical:
            mean, std = statistics.unbind(-2)
            return mean if mode else mean + std * noise
        return one_hot(statistics, None if mode else noise).flatten(-2)

    def divergence(self, left, right):
        """Returns KL[left, right] (...) of two statistics, in nats, summed over the variables."""
        if self.categorical:
            ratio = (left + 1e-12) / (right + 1e-12)  # so that 0 ln 0 = 0
            return (left * ratio.log()).sum((-2, -1))
        left, right = (Normal(*x.unbind(-2)) for x in (left, right))
        return kl_divergence(left, right).sum(-1)


class RSSM(nn.Module):
    """The recurrent state-space model: how the state s = (h, z, o) goes on, and what it looks like.

    h (..., R) is deterministic, z (..., G*C) a sample of the prior or posterior (PlaNet, Hafner et
    al., arXiv 1811.04551). With `observation_in_state` there is the observation o (..., O) as well,
    of which the decoder predicts the change; without, o has no columns (see `dreamer.py`).
    """

    def __init__(self, observation_size, action_size, config):
        super().__init__()
        self.carried = observation_size if config.observation_in_state else 0
        self.posterior, self.prior = LatentHead(config), LatentHead(config)
        self.sizes = (config.recurrent_size, self.prior.size, self.carried)
        self.recurrent = RecurrentModel(self.prior.size + action_size + self.carried, config)
        decoder = mlp if isinstance(observation_size, int) else ImageDecoder
        self.decoder = decoder(sum(self.sizes), observation_size, config)

    def initial(self, count):
        """Returns the state before the first observation: zeros."""
        device = self.posterior.first.weight.device
        return tuple(torch.zeros(count, size, device=device) for size in self.sizes)

    def step(self, state, action, embedding=None, is_first=None, noise=None, mode=False):
        """Returns the state after an action (N, A), and the statistics of what z was drawn from.

        With an embedding of the new observation, its evidence (N, hidden) and what is carried of it
        (N, carried), z is of the posterior; without one, in imagination, of the prior. Where
        `is_first` (N, 1) is 1 a game starts: state and action before it are zeroed. `noise`: as in
        `LatentHead.sample`; `mode`: the most likely z.
        """
        h, z, o = state
        if is_first is not None:
            h, z, o, action = (part * (1 - is_first) for part in (h, z, o, action))
        h = self.recurrent(h, torch.cat([z, action, o], -1))
        if embedding is None:
            statistics = self.prior(h)
            z = self.prior.sample(statistics, noise, mode)
            o = self.decode(h, z, o) if self.carried else o
        else:
            evidence, o = embedding
            statistics = self.posterior(h, evidence)
            z = self.posterior.sample(statistics, noise, mode)
        return (h, z, o), statistics

    def decode(self, h, z, previous):
        """Returns the squashed observation of (h, z); previous: the one before, if carried."""
        decoded = self.decoder(torch.cat([h, z, previous], -1))
        return previous + decoded if self.carried else decoded

    @staticmethod
    def features(state):
        """Returns what actor, critic and heads see of a state: (..., F)."""
        return torch.cat(state, -1)


class ScalarHead(nn.Module):
    """A distribution over a scalar (reward, value): two-hot over symexp-spaced bins, or Normal.

    The bins are b_k = symexp(linspace(-limit, limit, K)); the prediction is the mean over them
    (DreamerV3, Robust predictions). The Normal is of the scalar, or ("symlog") of its symlog.
    The last layer starts at zero, so the prediction does too.
    """

    def __init__(self, input_size, config):
        super().__init__()
        self.two_hot, self.symlog = config.scalar == "twohot", config.scalar == "symlog"
        bins = symexp(torch.linspace(-config.bin_limit, config.bin_limit, config.bins))
        self.register_buffer("bins", bins, persistent=False)
        self.layers = mlp(input_size, config.bins if self.two_hot else 1, config, output_scale=0.0)

    def forward(self, features):
        """features (..., F) -> logits (..., K), or the mean (..., 1)."""
        return self.layers(features).float()

    def mean(self, output):
        """Returns the predicted scalar (...) for an output of `forward`."""
        if self.two_hot:
            weighted = F.softmax(output, -1) * self.bins
            return (weighted + weighted.flip(-1)).sum(-1) / 2  # so that large bins cancel exactly
        return symexp(output.squeeze(-1)) if self.symlog else output.squeeze(-1)

    def loss(self, output, target):
        """Returns -ln p(target) (...) for an output of `forward` and a target (...)."""
        if self.two_hot:
            indices, weights = two_hot(target, self.bins)
            return -(weights * F.log_softmax(output, -1).gather(-1, indices)).sum(-1)
        target = symlog(target) if self.symlog else target
        return -Normal(output.squeeze(-1), 1.0).log_prob(target)


class Actor(nn.Module):
    """The policy over numbers: actions tanh(u), where u is Gaussian with a bounded deviation.

    The squashed Gaussian of SAC (Haarnoja et al., arXiv 1812.05905, appendix C). What `forward`
    returns is the distribution of u, a sample is one of u.
    """

    action = staticmethod(torch.tanh)  # what a sample means, within [-1, 1]
    STD_MIN, STD_MAX = 0.1, 1.0  # of u: with 7, |action| is about 1 always, and nothing is learned

    def __init__(self, input_size, action_size, config):
        super().__init__()
        self.layers = mlp(input_size, 2 * action_size, config, output_scale=0.01)

    def forward(self, features):
        """features (..., F) -> Independent Normal of u over (..., A)."""
        mean, std = self.layers(features).float().chunk(2, -1)
        std = self.STD_MIN + (self.STD_MAX - self.STD_MIN) * torch.sigmoid(std)
        return Independent(Normal(mean, std), 1)

    def noise(self, *size):
        """Returns random numbers for samples: (*size, A)."""
        output = self.layers[-1]
        return torch.randn(*size, output.out_features // 2, device=output.weight.device)

    @staticmethod
    def sample(policy, noise=None):
        """Returns a sample (..., A) with gradient, by `noise()`; without noise, the mean."""
        mean, std = policy.base_dist.loc, policy.base_dist.scale
        return mean if noise is None else mean + std * noise

    @staticmethod
    def stack(policies):
        """Returns H distributions of u (N, A) as a single one (H, N, A)."""
        means, stds = zip(*((p.base_dist.loc, p.base_dist.scale) for p in policies), strict=True)
        return Independent(Normal(torch.stack(means), torch.stack(stds)), 1)

    @staticmethod
    def entropy(policy, u):
        """Returns the entropy of tanh(u) (...): exact for u (..., A), by one sample for the tanh.

        H[tanh u] = H[u] + E ln(1 - tanh(u)^2): it falls without bound as actions saturate.
        """
        squashing = 2 * (math.log(2) - u - F.softplus(-2 * u))  # ln(1 - tanh(u)^2), stably
        return policy.entropy() + squashing.sum(-1)

    @staticmethod
    def metrics(policy):
        """Returns how wide the policy still is: the mean deviation of u."""
        return {"behavior/std": policy.base_dist.scale.detach().mean()}


class DiscreteActor(nn.Module):
    """The policy over n choices: actions are one-hot vectors (..., n). Methods as `Actor`'s.

    Every choice keeps its part of `unimix` (DreamerV3, Actor learning).
    """

    action = staticmethod(lambda sample: sample)

    def __init__(self, input_size, action_size, config):
        super().__init__()
        self.unimix = config.unimix
        self.layers = mlp(input_size, action_size, config, output_scale=0.01)

    def forward(self, features):
        """features (..., F) -> OneHotCategorical over (..., A)."""
        logits = self.layers(features).float()
        probs = (1 - self.unimix) * F.softmax(logits, -1) + self.unimix / logits.shape[-1]
        return OneHotCategorical(probs)

    def noise(self, *size):
        """Returns uniform random numbers for samples: (*size, 1)."""
        return torch.rand(*size, 1, device=self.layers[-1].weight.device)

    @staticmethod
    def sample(policy, noise=None):
        """Returns a choice (..., A) with straight-through gradient; without noise, the mode."""
        return one_hot(policy.probs, noise)

    @staticmethod
    def stack(policies):
        """Returns H distributions over (N, A) as a single one (H, N, A)."""
        return OneHotCategorical(torch.stack([policy.probs for policy in policies]))

    @staticmethod
    def entropy(policy, sample):
        """Returns the entropy (...), exact."""
        return policy.entropy()

    @staticmethod
    def metrics(policy):
        """Returns how sure the policy is: the mean probability of the most likely choice."""
        return {"behavior/sureness": policy.probs.detach().amax(-1).mean()}
