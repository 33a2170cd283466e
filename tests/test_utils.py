"""Mathematics, seeds, clocks: against formulas, NumPy and published values."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matches import wilson_interval
from utils import (
    Every,
    UserError,
    check_finite,
    lambda_returns,
    one_line,
    seed_everything,
    shrink_to_quantile,
    symexp,
    symlog,
    two_hot,
    update_return_scale,
)

# ---------------------------------------------------------------------------- mathematics


@given(st.floats(-1e5, 1e5))
def test_symexp_inverts_symlog(number):
    x = torch.tensor(number, dtype=torch.float64)
    expected = math.copysign(math.log(1 + abs(number)), number)
    assert symlog(x).item() == pytest.approx(expected, abs=1e-12)
    assert symexp(symlog(x)).item() == pytest.approx(number, rel=1e-9, abs=1e-12)


BINS = symexp(torch.linspace(-3, 3, 9))


def dense_two_hot(values):
    indices, weights = two_hot(values, BINS)
    return torch.zeros(*values.shape, len(BINS)).scatter(-1, indices, weights)


@given(st.floats(float(BINS[0]), float(BINS[-1]), width=32))
def test_two_hot_round_trip_on_two_neighbours(number):
    weights = dense_two_hot(torch.tensor(number))
    used = weights.nonzero().flatten().tolist()
    assert weights.min() >= 0 and weights.sum().item() == pytest.approx(1)
    assert (weights * BINS).sum().item() == pytest.approx(number, rel=1e-4, abs=1e-4)
    assert len(used) == 1 or (len(used) == 2 and used[1] == used[0] + 1)
    assert BINS[used[0]] <= number + 1e-6 and BINS[used[-1]] >= number - 1e-6


def test_two_hot_clamps_and_keeps_shape():
    weights = dense_two_hot(torch.tensor([[-1e9, 1e9, float(BINS[4])]]))
    assert weights.shape == (1, 3, 9)
    assert torch.equal(weights[0], torch.eye(9)[[0, 8, 4]])


def naive_lambda_returns(rewards, discounts, values, return_lambda):
    """The double sum: n-step returns mixed with the weights (1 - lambda) lambda^(n-1)."""
    horizon = len(rewards)
    returns = np.zeros_like(rewards)
    for t in range(horizon):
        n_step = []
        for n in range(1, horizon - t + 1):
            total, product = 0.0, 1.0
            for k in range(n):
                total = total + product * rewards[t + k]
                product = product * discounts[t + k]
            n_step.append(total + product * values[t + n - 1])
        for n, value in enumerate(n_step[:-1]):
            returns[t] += (1 - return_lambda) * return_lambda**n * value
        returns[t] += return_lambda ** (len(n_step) - 1) * n_step[-1]
    return returns


@pytest.mark.parametrize("return_lambda", [0.0, 0.5, 0.95, 1.0])
def test_lambda_returns_are_the_naive_double_sum(return_lambda):
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=(2, 7, 5))
    discounts = generator.uniform(0, 1, (7, 5)) * (generator.uniform(size=(7, 5)) > 0.3)
    expected = naive_lambda_returns(rewards, discounts, values, return_lambda)
    tensors = (torch.from_numpy(x) for x in (rewards, discounts, values))
    assert np.allclose(lambda_returns(*tensors, return_lambda).numpy(), expected, atol=1e-12)


def test_return_scale_follows_the_percentiles():
    returns = torch.randn(6, 50)
    low, high = np.percentile(returns.numpy(), [5, 95])
    scale = torch.tensor(3.0)
    update_return_scale(scale, returns, decay=0.9)
    assert scale.item() == pytest.approx(0.9 * 3 + 0.1 * (high - low), rel=1e-5)
    update_return_scale(scale, returns, decay=0.0)
    assert scale.item() == pytest.approx(high - low, rel=1e-5)
    assert update_return_scale(scale, returns / 100, decay=0.0).item() == 1  # the divisor


def test_long_gradients_are_shrunk_to_a_quantile():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 1.0], [600.0, 800.0], [0.0, 0.0], [0.0, 2.0]])
    shrunk = shrink_to_quantile(gradient, 0.75)
    assert torch.allclose(shrunk.norm(dim=-1), torch.tensor([5.0, 1.0, 5.0, 0.0, 2.0]))
    assert torch.allclose(shrunk[2], torch.tensor([3.0, 4.0]))  # the direction stays
    assert torch.equal(shrink_to_quantile(gradient, 1.0), gradient)
    assert torch.equal(shrink_to_quantile(torch.zeros(3, 2), 0.5), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("wins", "games", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)],
)
def test_wilson_interval_against_published_values(wins, games, low, high):
    assert wilson_interval(wins / games, games) == pytest.approx((low, high), abs=2e-4)


def test_the_wilson_interval_stays_within_its_bounds():
    for games in range(1, 300):
        assert wilson_interval(0.0, games)[0] >= 0 and wilson_interval(1.0, games)[1] <= 1


# ---------------------------------------------------------------------------- errors


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "a b" and one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_the_first_number_that_is_not_finite_is_named(wrong):
    good = {"loss": torch.ones(2, 3), "steps": np.arange(3), "rate": 1e30}
    check_finite(good, "here")
    check_finite({}, "here")
    bad = torch.tensor([[0.0, wrong]])
    with pytest.raises(UserError, match="^norm is not finite at step 3;"):
        check_finite(good | {"norm": bad, "value": bad}, "at step 3")


# ---------------------------------------------------------------------------- seeds and clocks


def test_one_seed_sets_all_generators():
    def draw():
        return torch.rand(3).tolist(), np.random.randn(3).tolist(), random.random()

    seed_everything(4)
    np.random.randn()  # half of a pair is kept
    drawn = draw()
    seed_everything(5)
    assert not any(one == other for one, other in zip(draw(), drawn, strict=True))
    seed_everything(4)
    np.random.randn()
    assert draw() == drawn


@given(st.integers(1, 20), st.lists(st.integers(0, 7), max_size=40), st.integers(0, 50))
def test_every_is_true_once_per_multiple_passed(interval, jumps, start):
    is_time = Every(interval, start)
    step = start
    for jump in jumps:
        before, step = step, step + jump
        passed = any(n % interval == 0 for n in range(before + 1, step + 1))
        assert is_time(step) == passed
        assert not is_time(step)
