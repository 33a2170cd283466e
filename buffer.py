"""Replay: rings of rows, all games in step; sequences come out. Knows nothing of agents or games.

A row is (observation, the action that led to it, reward on arrival, is_first, is_terminal).
Each game (and each player's view of it) has its own ring, all written at the same head:

    time    0    1    2    3    4    5    6    7
    ring 0  o    o    o    o |  F    o    o    o      F = is_first: an episode starts
    ring 1  o    F    o    o |  o    o    T    F      T = is_terminal: it ended with a goal
                           head
            newest ------> | oldest ----------->      a window [t, t+L) never spans the head
"""

import math

import torch

from machine import check_memory
from utils import UserError


class ReplayBuffer:
    """Rows of `rings` parallel streams, in one preallocated float32 tensor; images are bytes."""

    def __init__(self, settings, rings, observation_size, action_size, device="cpu", own=None):
        """Holds `settings.rows` rows in all, on `device`; `settings`: `config.replay`.

        `observation_size`: how many numbers, or the (H, W, C) of images. The first `own` rings
        (default: all) are the agent's own play, the others its opponents'. Raises `UserError` if a
        ring would be shorter than a window, or the memory does not suffice.
        """
        rows, window = settings.rows, settings.batch_length
        if rows // rings < window:
            raise UserError(
                f"replay.rows: {rows} rows in {rings} rings are fewer than one window of {window}"
                f" each; take at least {window * rings}."
            )
        self.is_image = not isinstance(observation_size, int)
        self.sizes = [0 if self.is_image else observation_size, action_size, 1, 1, 1]
        each = 4 * sum(self.sizes) + (math.prod(observation_size) if self.is_image else 0)
        self.bytes = check_memory("replay.rows", rows, each, device)
        self.rings, self.own, self.length = rings, rings if own is None else own, rows // rings
        self.rows = torch.zeros(self.length, rings, sum(self.sizes), device=device)
        shape = observation_size if self.is_image else (0,)
        self.images = torch.zeros(self.length, rings, *shape, dtype=torch.uint8, device=device)
        self.head = self.filled = 0

    def add(self, observation, action, reward, is_first, is_terminal):
        """Writes one row per ring; each argument is (rings, ...) in the order of the rings."""
        parts = [action, reward, is_first, is_terminal]
        if self.is_image:
            self.images[self.head] = torch.as_tensor(observation).to(self.images.device)
        else:
            parts.insert(0, observation)
        columns = [torch.as_tensor(x, dtype=torch.float32).reshape(self.rings, -1) for x in parts]
        self.rows[self.head] = torch.cat(columns, 1).to(self.rows.device)  # (rings, row)
        self.head = (self.head + 1) % self.length
        self.filled = min(self.filled + 1, self.length)

    def sample(self, batch_size, batch_length):
        """Returns a batch (B, T, ...) of windows, their starts uniform over all but the head's.

        Random numbers are PyTorch's. Raises ValueError while there are too few rows.
        """
        if self.filled < batch_length:
            raise ValueError(f"{batch_length} rows per ring are needed, {self.filled} are there.")
        starts = torch.randint(self.filled - batch_length + 1, (batch_size, 1))
        rings = torch.randint(self.rings, (batch_size, 1))
        oldest = self.head if self.filled == self.length else 0
        times = (oldest + starts + torch.arange(batch_length)) % self.length  # (B, T)
        where = tuple(index.to(self.rows.device) for index in (times, rings))
        observation, action, reward, is_first, is_terminal = self.rows[where].split(self.sizes, -1)
        return {
            "observation": self.images[where] if self.is_image else observation,  # (B, T, ...)
            "action": action,  # (B, T, action)
            "reward": reward.squeeze(-1),  # (B, T)
            "is_first": is_first.squeeze(-1),  # (B, T)
            "is_terminal": is_terminal.squeeze(-1),  # (B, T)
            "is_own": (where[1] < self.own).float().expand_as(where[0]),  # (B, T)
        }

    def state(self):
        """Returns all rows and images by name, (filled, rings, ...), the oldest first."""
        rows, images = self.rows[: self.filled], self.images[: self.filled]
        if self.filled == self.length:
            rows, images = rows.roll(-self.head, 0), images.roll(-self.head, 0)
        return {"replay/rows": rows, "replay/images": images}

    def restore(self, tensors):
        """Takes over what `state` returned; raises ValueError or KeyError if it does not fit."""
        rows, images = tensors["replay/rows"], tensors["replay/images"]
        filled, rings, width = rows.shape
        is_fit = (rings, width) == tuple(self.rows.shape[1:]) and filled <= self.length
        if not is_fit or images.shape != (filled, *self.images.shape[1:]):
            ours = tuple(self.rows.shape)
            raise ValueError(f"its replay is {(filled, rings, width)}, not {ours}, or other images")
        self.rows[:filled], self.images[: len(images)] = rows, images
        self.filled, self.head = filled, filled % self.length
