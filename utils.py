"""What every other file may need: mathematics as pure functions, seeds, clocks, errors.

Whatever a user can get wrong ends in a `UserError` whose message is one sentence; the command lines
print just that.
"""

import random

import numpy as np
import torch


class UserError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what is right."""


def one_line(error):
    """Returns the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_finite(numbers, where):
    """Raises `UserError` with the first of these (name -> tensor) that is not finite `where`."""
    finite = [torch.as_tensor(value).isfinite().all() for value in numbers.values()]
    if finite and not torch.stack([one.to(finite[-1].device) for one in finite]).all():
        name = next(name for name, is_finite in zip(numbers, finite, strict=True) if not is_finite)
        raise UserError(
            f"{name} is not finite {where}; the last good checkpoint is kept. If it is the agent"
            " that went wrong, training has diverged: lower the learning rates, then resume=true."
        )


# ---------------------------------------------------------------------------- mathematics


def symlog(x):
    """Returns sign(x) ln(1 + |x|), elementwise (DreamerV3, Robust predictions)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x):
    """Returns the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def two_hot(values, bins):
    """Returns the two of the K ascending `bins` that enclose each value (...), and their weights.

    They are indices (..., 2) and weights (..., 2) that sum to one and whose mean of the two bins is
    the value again; values beyond the outermost bins are clamped to them. It is the paper's
    two-hot vector without its K - 2 zeros (DreamerV3, Robust predictions).
    """
    values = values.clamp(bins[0], bins[-1])
    upper = torch.searchsorted(bins, values.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[upper - 1], bins[upper]
    share = (values - low) / (high - low)
    return torch.stack([upper - 1, upper], -1), torch.stack([1 - share, share], -1)


def lambda_returns(rewards, discounts, values, return_lambda):
    """R_t = r_{t+1} + d_{t+1} [(1-lambda) v_{t+1} + lambda R_{t+1}], R_H = v_H.

    DreamerV3, Critic learning. All three inputs are (H, N) and stand for the steps 1..H: reward
    on arrival, gamma times the continue probability, value of the state arrived at. Returns
    (H, N) for the steps 0..H-1.
    """
    returns, following = [], values[-1]
    backwards = (numbers.flip(0) for numbers in (rewards, discounts, values))
    for reward, discount, value in zip(*backwards, strict=True):
        following = reward + discount * ((1 - return_lambda) * value + return_lambda * following)
        returns.append(following)
    return torch.stack(returns[::-1])


def update_return_scale(scale, returns, decay):
    """Moves `scale` in place towards the 5%-95% range of `returns` -> what to divide returns by.

    DreamerV3, Actor learning: small returns are not blown up, so the divisor is at least one.
    """
    shares = torch.linspace(0.05, 0.95, 2, device=returns.device)
    low, high = torch.quantile(returns.detach().flatten(), shares)
    return scale.mul_(decay).add_((1 - decay) * (high - low)).clamp(min=1.0)


def shrink_to_quantile(gradient, share):
    """Shrinks the rows of a gradient (N, A) that are longer than this share of all rows."""
    length = gradient.norm(dim=-1, keepdim=True).float()  # (N, 1)
    shrink = torch.quantile(length, share, dim=0) / length.clamp(min=1e-20)
    return gradient * shrink.clamp(max=1.0).to(gradient.dtype)


# ---------------------------------------------------------------------------- seeds and clocks


def seed_everything(seed):
    """Seeds Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Every:
    """`is_time = Every(1000)`: `is_time(step)` is true once per 1000 steps passed."""

    def __init__(self, interval, start=0):
        self.interval, self.last = interval, start // interval

    def __call__(self, step):
        passed, self.last = self.last, max(self.last, step // self.interval)
        return self.last > passed
