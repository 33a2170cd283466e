"""The replay: windows, rings, wrap-around, saving."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from buffer import ReplayBuffer
from utils import UserError

sizes = st.tuples(st.integers(1, 4), st.integers(3, 12), st.integers(1, 40), st.integers(1, 3))


def empty_buffer(rows, rings, window=1, **options):
    """A buffer for observations of two numbers and actions of one."""
    return ReplayBuffer(SimpleNamespace(rows=rows, batch_length=window), rings, 2, 1, **options)


def filled_buffer(rings, length, steps, **options):
    """A buffer whose observation is (time, ring), whose action is -time, whose flags tell time."""
    buffer = empty_buffer(rings * length, rings, **options)
    for time in range(steps):
        times = torch.full((rings,), float(time))
        observation = torch.stack([times, torch.arange(rings).float()], 1)
        buffer.add(observation, -times, 2 * times, times % 3 == 0, times % 5 == 0)
    return buffer


@given(sizes)
def test_windows_are_consecutive_rows_of_one_ring(case):
    rings, length, steps, window = case
    buffer = filled_buffer(rings, length, steps)
    assert buffer.filled == min(steps, length)
    if steps < window:
        with pytest.raises(ValueError, match=f"{window} rows"):
            buffer.sample(4, window)
        return
    batch = buffer.sample(64, window)
    time, ring = batch["observation"].unbind(-1)
    assert time.shape == (64, window)
    assert torch.equal(time, time[:, :1] + torch.arange(window))
    assert torch.equal(ring, ring[:, :1].expand_as(ring))
    assert time.min() >= max(0, steps - length) and time.max() < steps
    assert torch.equal(batch["action"].squeeze(-1), -time)
    assert torch.equal(batch["reward"], 2 * time)
    assert torch.equal(batch["is_first"], (time % 3 == 0).float())
    assert torch.equal(batch["is_terminal"], (time % 5 == 0).float())
    assert batch["is_own"].shape == time.shape and batch["is_own"].min() == 1


@pytest.mark.parametrize("steps", [5, 8, 9, 21])
def test_every_window_comes_up_equally_often(steps):
    rings, length, window, draws = 3, 8, 3, 6000
    buffer = filled_buffer(rings, length, steps)
    first = buffer.sample(draws, window)["observation"][:, 0]
    oldest, starts = max(0, steps - length), min(steps, length) - window + 1
    cells = (first[:, 0] - oldest) * rings + first[:, 1]
    counts = torch.bincount(cells.long(), minlength=starts * rings).double()
    assert len(counts) == starts * rings
    expected = draws / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_the_capacity_never_grows():
    buffer = filled_buffer(3, 4, 0)
    storage = buffer.rows.data_ptr(), buffer.rows.shape
    for _ in range(30):
        buffer.add(torch.ones(3, 2), torch.ones(3), torch.ones(3), torch.ones(3), torch.ones(3))
    assert (buffer.rows.data_ptr(), buffer.rows.shape) == storage
    assert buffer.filled == 4
    assert empty_buffer(14, 3).rows.shape[:2] == (4, 3)  # never more than asked for


def test_a_ring_shorter_than_a_window_is_refused():
    assert empty_buffer(30, 3, window=10).length == 10
    with pytest.raises(UserError, match="replay.rows.* at least 30"):
        empty_buffer(29, 3, window=10)


def test_only_the_first_rings_are_the_agents_own():
    batch = filled_buffer(4, 10, 10, own=3).sample(300, 2)
    ring = batch["observation"][..., 1]
    assert torch.equal(batch["is_own"], (ring < 3).float()) and len(ring.unique()) == 4


def test_rows_that_do_not_fit_are_refused():
    buffer = filled_buffer(3, 4, 2)
    with pytest.raises((ValueError, RuntimeError)):
        buffer.add(torch.ones(3, 5), torch.ones(3), torch.ones(3), torch.ones(3), torch.ones(3))


@given(sizes)
def test_one_seed_gives_the_same_windows(case):
    rings, length, steps, window = case
    buffer = filled_buffer(rings, length, steps)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(buffer.sample(64, min(window, buffer.filled))["observation"])
    assert torch.equal(batches[0], batches[1])
    assert buffer.filled <= window or not torch.equal(batches[0], batches[2])


@given(sizes)
def test_a_restored_buffer_goes_on_in_the_same_way(case):
    rings, length, steps, window = case
    buffer, other = filled_buffer(rings, length, steps), filled_buffer(rings, length, 0)
    state = buffer.state()
    assert state["replay/rows"][:, 0, 0].tolist() == list(
        range(max(0, steps - length), steps)
    )  # oldest first
    other.restore({name: tensor.clone() for name, tensor in state.items()})
    assert other.filled == buffer.filled
    for _ in range(3):
        row = (torch.ones(rings, 2), *torch.ones(4, rings))
        buffer.add(*row)
        other.add(*row)
        assert torch.equal(*(one.state()["replay/rows"] for one in (buffer, other)))
        batches = []
        for one in (buffer, other):
            torch.manual_seed(3)
            batches.append(one.sample(8, min(window, one.filled)))
        assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


@pytest.mark.parametrize("steps", [3, 8, 13])
def test_a_restored_buffer_may_be_larger(steps):
    larger = filled_buffer(2, 20, 0)
    larger.restore(filled_buffer(2, 8, steps).state())
    assert larger.filled == min(steps, 8)
    for time in range(steps, steps + 3):
        times = torch.full((2,), float(time))
        larger.add(torch.stack([times, torch.arange(2.0)], 1), -times, times, times, times)
    time = larger.sample(200, 3)["observation"][..., 0]
    assert torch.equal(time, time[:, :1] + torch.arange(3))


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4, 4), (2, 5, 5)])
def test_a_stored_buffer_that_does_not_fit_is_refused(shape):
    rings, length, steps = shape
    with pytest.raises(ValueError, match="its replay is"):
        filled_buffer(2, 4, 1).restore(filled_buffer(rings, length, steps).state())
