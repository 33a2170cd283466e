"""The networks' heads against torch.distributions and hand-written formulas."""

import pytest
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from networks import RSSM, Actor, LatentHead, RecurrentModel, ScalarHead, mlp
from utils import symexp

LATENTS = pytest.mark.parametrize("latent", ["categorical", "gaussian"])


def latent_head(small_config, latent, **overrides):
    return LatentHead(small_config(dreamer__latent=latent, **overrides).dreamer)


def statistics(head, *shape):
    """What the head predicts for loud random input."""
    return head(10 * torch.randn(*shape, 32), 10 * torch.randn(*shape, 32))


def reference(head, values):
    """The torch distribution with these statistics."""
    if head.categorical:
        return Independent(OneHotCategorical(probs=values), 1)
    return Independent(Normal(*values.unbind(-2)), 1)


@LATENTS
def test_divergence_is_that_of_torch(small_config, latent):
    head = latent_head(small_config, latent)
    left, right = statistics(head, 3, 5), statistics(head, 3, 5)
    expected = kl_divergence(reference(head, left), reference(head, right))
    assert expected.shape == (3, 5) and expected.min() > 0.01
    assert torch.allclose(head.divergence(left, right), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(head.divergence(left, left), torch.zeros(3, 5), atol=1e-6)


def test_divergence_of_impossible_classes_is_finite(small_config):
    head = latent_head(small_config, "categorical", dreamer__unimix=0)
    logits = torch.tensor([[0.0, -200.0, 1.0, -200.0]] * 4, requires_grad=True)
    left, right = logits.softmax(-1), logits.flip(0, 1).softmax(-1)
    assert left.min() == 0
    assert head.divergence(left, left).item() == pytest.approx(0, abs=1e-6)
    head.divergence(left, right).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("unimix", [0.0, 0.01, 0.5, 1.0])
def test_categorical_statistics_are_probabilities_with_a_floor(small_config, unimix):
    head = latent_head(small_config, "categorical", dreamer__unimix=unimix)
    probabilities = statistics(head, 200)
    assert probabilities.shape == (200, 4, 4)
    assert torch.allclose(probabilities.sum(-1), torch.ones(200, 4), atol=1e-5)
    assert probabilities.min() >= unimix / 4 - 1e-6
    assert probabilities.max() <= 1 - unimix + unimix / 4 + 1e-6
    if unimix < 1:
        assert probabilities.max() > 0.3


def test_gaussian_statistics_have_a_positive_std(small_config):
    mean, std = statistics(latent_head(small_config, "gaussian"), 200).unbind(-2)
    assert mean.shape == std.shape == (200, 16) and std.min() >= 0.1


def test_categorical_samples_are_one_hot_and_as_frequent_as_probable(small_config):
    head = latent_head(small_config, "categorical")
    values = statistics(head, 1).detach()
    samples = head.sample(values.expand(20000, 4, 4)).unflatten(-1, (4, 4))
    assert torch.allclose(samples.max(-1).values, torch.ones(20000, 4), atol=1e-5)
    assert torch.allclose(samples.sum(-1), torch.ones(20000, 4), atol=1e-5)
    probabilities = values[0]
    error = (probabilities * (1 - probabilities) / 20000).sqrt()
    assert ((samples.mean(0) - probabilities).abs() <= 5 * error + 1e-4).all()
    mode = head.sample(values, mode=True).unflatten(-1, (4, 4))
    assert torch.equal(mode.argmax(-1), values.argmax(-1))


def test_gaussian_samples_have_mean_and_std(small_config):
    head = latent_head(small_config, "gaussian")
    values = statistics(head, 1).detach()
    samples = head.sample(values.expand(20000, 2, 16))
    mean, std = values[0]
    assert ((samples.mean(0) - mean).abs() <= 5 * std / 20000**0.5).all()
    assert torch.allclose(samples.std(0), std, rtol=0.05)
    assert torch.equal(head.sample(values, mode=True)[0], mean)


def test_the_straight_through_gradient_is_that_of_the_probabilities(small_config):
    head = latent_head(small_config, "categorical")
    logits = torch.randn(6, 4, 4, requires_grad=True)
    weight = torch.randn(6, 16)
    (sampled,) = torch.autograd.grad((weight * head.sample(logits.softmax(-1))).sum(), logits)
    expected = (weight * logits.softmax(-1).flatten(-2)).sum()
    (expected,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(sampled, expected, atol=1e-6) and expected.abs().max() > 0.01


def test_the_gaussian_gradient_is_reparametrised(small_config):
    head = latent_head(small_config, "gaussian")
    values = torch.rand(6, 2, 16, requires_grad=True)
    torch.manual_seed(1)
    sample = head.sample(values)
    noise = ((sample - values[:, 0]) / values[:, 1]).detach()
    (gradient,) = torch.autograd.grad(sample.sum(), values)
    assert torch.allclose(gradient, torch.stack([torch.ones(6, 16), noise], 1), atol=1e-4)


@LATENTS
def test_prior_and_posterior_both_listen(small_config, latent):
    head = latent_head(small_config, latent)
    h, evidence = torch.randn(2, 3, 32)
    assert not torch.allclose(head(h), head(h + 1))
    assert not torch.allclose(head(h, evidence), head(h))
    assert head.sample(head(h)).shape == (3, head.size)


def scalar_head(small_config, scalar, bins=21, limit=3.0):
    config = small_config(dreamer__scalar=scalar, dreamer__bins=bins, dreamer__bin_limit=limit)
    return ScalarHead(8, config.dreamer)


@pytest.mark.parametrize("size", [(21, 3.0), (63, 20.0), (64, 20.0), (255, 20.0)])
@pytest.mark.parametrize("scalar", ["twohot", "normal"])
def test_a_new_scalar_head_predicts_zero(small_config, scalar, size):
    head = scalar_head(small_config, scalar, *size)
    assert torch.allclose(head.mean(head(torch.randn(5, 3, 8))), torch.zeros(5, 3), atol=1e-5)


def test_two_hot_mean_and_loss_by_hand(small_config):
    head = scalar_head(small_config, "twohot")
    assert torch.allclose(head.bins, symexp(torch.linspace(-3, 3, 21)))
    logits = torch.randn(4, 21)
    probabilities = Categorical(logits=logits).probs
    by_hand = [sum(p * b for p, b in zip(row, head.bins, strict=True)) for row in probabilities]
    assert torch.allclose(head.mean(logits), torch.stack(by_hand), atol=1e-5)
    low, high = head.bins[12], head.bins[13]
    targets = torch.stack([low, high, 0.75 * low + 0.25 * high, torch.tensor(1e6)])
    log = probabilities.log()
    expected = [-log[0, 12], -log[1, 13], -0.75 * log[2, 12] - 0.25 * log[2, 13], -log[3, 20]]
    assert torch.allclose(head.loss(logits, targets), torch.stack(expected), atol=1e-4)


def test_normal_mean_and_loss_are_those_of_torch(small_config):
    head = scalar_head(small_config, "normal")
    output, target = torch.randn(4, 3, 1), torch.randn(4, 3)
    assert torch.equal(head.mean(output), output[..., 0])
    expected = -Independent(Normal(output, 1.0), 1).log_prob(target.unsqueeze(-1))
    assert torch.allclose(head.loss(output, target), expected)


def test_the_actor_keeps_its_bounds(small_config):
    actor = Actor(8, 3, small_config().dreamer)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(50)
    policy = actor(10 * torch.randn(500, 8))
    assert policy.mean.shape == (500, 3)
    assert policy.stddev.min() >= Actor.STD_MIN - 1e-6
    assert policy.stddev.max() <= Actor.STD_MAX + 1e-6
    assert policy.stddev.std() > 0.05


def test_the_actors_entropy_is_that_of_the_squashed_actions(small_config):
    actor = Actor(8, 3, small_config().dreamer)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(3)
    policy = actor(3 * torch.randn(6, 8))
    u = policy.sample((20000,))
    squash = TanhTransform(cache_size=1)  # remembers u, so that no inverse of tanh is needed
    expected = -TransformedDistribution(policy, squash).log_prob(squash(u)).mean(0)
    assert torch.allclose(actor.entropy(policy, u).mean(0), expected, atol=0.03)
    assert actor.entropy(policy, torch.full((6, 3), 30.0)).isfinite().all()


def kinds(module):
    return {type(part) for part in module.modules()}


def test_norm_and_activation_are_what_the_config_says(small_config):
    norms = {"LayerNorm": nn.LayerNorm, "RMSNorm": nn.RMSNorm}
    for norm in ("LayerNorm", "RMSNorm", "none"):
        for activation in ("SiLU", "ELU", "Tanh"):
            config = small_config(dreamer__norm=norm, dreamer__activation=activation).dreamer
            networks = [mlp(3, 2, config), LatentHead(config), Actor(3, 2, config)]
            for network in networks:
                assert getattr(nn, activation) in kinds(network)
                expected = {norms[norm]} if norm in norms else set()
                assert kinds(network) & {nn.LayerNorm, nn.RMSNorm} == expected
            recurrent = kinds(RecurrentModel(3, config))
            assert bool(recurrent & {nn.LayerNorm, nn.RMSNorm}) == (norm != "none")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sizes_are_what_the_config_says(small_config, layers):
    config = small_config(dreamer__hidden_layers=layers, dreamer__hidden_size=24).dreamer
    for network, extra in ((mlp(3, 2, config), 0), (LatentHead(config), 0)):
        linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
        assert len(linear) == layers + 1 + extra
        assert all(part.out_features == 24 for part in linear[:-1])
    recurrent = RecurrentModel(5, config)
    assert recurrent(torch.zeros(7, 32), torch.randn(7, 5)).shape == (7, 32)


def test_the_recurrent_state_stays_bounded_and_remembers(small_config):
    recurrent = RecurrentModel(5, small_config().dreamer)
    h = torch.randn(7, 32).clamp(-1, 1)
    following = recurrent(h, 100 * torch.randn(7, 5))
    assert following.abs().max() <= 1
    assert not torch.allclose(recurrent(h, torch.zeros(7, 5)), recurrent(-h, torch.zeros(7, 5)))


@LATENTS
def test_samples_may_meet_the_same_noise(small_config, latent):
    head = latent_head(small_config, latent)
    rows = statistics(head, 5).expand(6, -1, -1, -1)
    alike, free = head.sample(rows, head.noise(5)), head.sample(rows)
    assert torch.equal(alike, alike[:1].expand_as(alike))
    assert not torch.equal(free, free[:1].expand_as(free))


# ---------------------------------------------------------------------------- the RSSM's step

CARRIED = pytest.mark.parametrize("observation_in_state", [True, False])


@pytest.fixture
def make_rssm(small_config):
    """make_rssm(latent=..., ...): an RSSM with loud weights, for 6 -> 2 numbers."""

    def make(**settings):
        config = small_config(**{f"dreamer__{key}": value for key, value in settings.items()})
        rssm = RSSM(6, 2, config.dreamer)
        for parameter in rssm.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return rssm

    return make


def random_step(rssm, count=5):
    """A state, an action and the embedding of an observation."""
    state = tuple(torch.randn(count, size) for size in rssm.sizes)
    embedding = torch.randn(count, 32), torch.randn(count, rssm.carried)
    return state, torch.rand(count, 2) * 2 - 1, embedding


@LATENTS
@CARRIED
def test_a_step_with_an_embedding_draws_from_the_posterior(make_rssm, latent, observation_in_state):
    rssm = make_rssm(latent=latent, observation_in_state=observation_in_state)
    (h, z, o), action, (evidence, seen) = random_step(rssm)
    noise = rssm.prior.noise(5)
    found, statistics = rssm.step((h, z, o), action, (evidence, seen), noise=noise)
    following = rssm.recurrent(h, torch.cat([z, action, o], -1))
    assert torch.equal(statistics, rssm.posterior(following, evidence))
    expected = (following, rssm.posterior.sample(statistics, noise), seen)
    assert all(map(torch.equal, found, expected))
    assert seen.shape[-1] == (6 if observation_in_state else 0)
    assert not torch.equal(statistics, rssm.step((h, z, o), action, (-evidence, seen))[1])


@LATENTS
@CARRIED
def test_a_step_without_an_embedding_draws_from_the_prior(make_rssm, latent, observation_in_state):
    rssm = make_rssm(latent=latent, observation_in_state=observation_in_state)
    (h, z, o), action, _ = random_step(rssm)
    noise = rssm.prior.noise(5)
    found, statistics = rssm.step((h, z, o), action, noise=noise)
    following = rssm.recurrent(h, torch.cat([z, action, o], -1))
    latent = rssm.prior.sample(statistics, noise)
    assert torch.equal(statistics, rssm.prior(following))
    assert torch.equal(found[0], following) and torch.equal(found[1], latent)
    if observation_in_state:  # what is imagined to be seen: the change that is decoded
        decoded = rssm.decoder(torch.cat([following, latent, o], -1))
        assert torch.equal(found[2], o + decoded)
        assert torch.equal(found[2], rssm.decode(following, latent, o))
    else:
        assert found[2].shape == (5, 0)
        decoded = rssm.decoder(torch.cat([following, latent], -1))
        assert torch.equal(rssm.decode(following, latent, o), decoded)
    mode, _ = rssm.step((h, z, o), action, mode=True)
    assert torch.equal(mode[1], rssm.prior.sample(statistics, mode=True))


@CARRIED
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_first_row_zeroes_state_and_action(make_rssm, observation_in_state, is_seen):
    rssm = make_rssm(observation_in_state=observation_in_state)
    state, action, embedding = random_step(rssm)
    embedding = embedding if is_seen else None
    is_first = torch.tensor([1.0, 0, 1, 0, 0])[:, None]

    def step(state, action, is_first=None):
        following, statistics = rssm.step(state, action, embedding, is_first, mode=True)
        return torch.cat([*following, statistics.flatten(1)], -1)

    fresh = step(rssm.initial(5), torch.zeros(5, 2))
    usual = step(state, action)
    mixed = step(state, action, is_first)
    assert torch.allclose(mixed, torch.where(is_first > 0, fresh, usual), atol=1e-6)
    assert not torch.allclose(fresh, usual, atol=1e-2)
    assert torch.equal(step(state, action, torch.zeros(5, 1)), usual)
    assert [part.shape for part in rssm.initial(3)] == [(3, size) for size in rssm.sizes]


@LATENTS
def test_the_gradient_of_a_step_reaches_state_and_action(make_rssm, latent):
    rssm = make_rssm(latent=latent)
    state, action, _ = random_step(rssm)
    inputs = [part.requires_grad_() for part in (*state, action)]
    following, _ = rssm.step(state, action)
    gradients = torch.autograd.grad(rssm.features(following).square().sum(), inputs)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients)
