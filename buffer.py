"""Replay: rings of rows, all games in step; sequences come out. Knows nothing of agents or games.

A row is (observation, the action that led to it, reward on arrival, is_first, is_terminal).
Each game (and each player's view of it) has its own ring, all written at the same head:

    time    0    1    2    3    4    5    6    7
    ring 0  o    o    o    o |  F    o    o    o      F = is_first: an episode starts
    ring 1  o    F    o    o |  o    o    T    F      T = is_terminal: it ended with a goal
                           head
            newest ------> | oldest ----------->      a window [t, t+L) never spans the head
"""

import torch


class ReplayBuffer:
    """Rows of `rings` parallel streams in one preallocated float32 tensor (length, rings, row)."""

    def __init__(
        self, rows, rings, observation_size, action_size, device="cpu", seed=0, own_rings=None
    ):
        """Holds `rows` rows in all, on `device`. `seed` is that of the sampling.

        The first `own_rings` (default: all) are the agent's own play, the others its opponents'.
        """
        self.sizes = [observation_size, action_size, 1, 1, 1]
        self.length = max(1, rows // rings)
        self.own_rings = rings if own_rings is None else own_rings
        self.rows = torch.zeros(self.length, rings, sum(self.sizes), device=device)
        self.head = 0
        self.filled = 0
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        """How many rows can be sampled."""
        return self.filled * self.rows.shape[1]

    def add(self, observation, action, reward, is_first, is_terminal):
        """Writes one row per ring; each argument is (rings, ...) in the order of the rings."""
        parts = (observation, action, reward, is_first, is_terminal)
        columns = [torch.as_tensor(part, dtype=torch.float32) for part in parts]
        columns = [part.reshape(self.rows.shape[1], -1) for part in columns]
        self.rows[self.head] = torch.cat(columns, 1).to(self.rows.device)  # (rings, row)
        self.head = (self.head + 1) % self.length
        self.filled = min(self.filled + 1, self.length)

    def sample(self, batch_size, batch_length, mirror=None):
        """A batch (B, T, ...) of windows, their starts uniform over all that do not span the head.

        `mirror`: signs (observation + action,) of a symmetry of the game; it is applied to half
        of the windows, drawn at random. Raises ValueError while there are too few rows.
        """
        if self.filled < batch_length:
            raise ValueError(f"{batch_length} rows per ring are needed, {self.filled} are there.")
        draw = {"generator": self.generator}
        starts = torch.randint(self.filled - batch_length + 1, (batch_size, 1), **draw)
        rings = torch.randint(self.rows.shape[1], (batch_size, 1), **draw)
        oldest = self.head if self.filled == self.length else 0
        times = (oldest + starts + torch.arange(batch_length)) % self.length  # (B, T)
        device = self.rows.device
        rows = self.rows[times.to(device), rings.to(device)]  # (B, T, row)
        if mirror is not None:
            flipped = torch.randint(2, (batch_size, 1, 1), **draw).bool().to(device)
            signs = torch.cat([mirror, mirror.new_ones(3)]).to(device)
            rows = torch.where(flipped, rows * signs, rows)
        observation, action, reward, is_first, is_terminal = rows.split(self.sizes, -1)
        return {
            "observation": observation,  # (B, T, observation)
            "action": action,  # (B, T, action)
            "reward": reward.squeeze(-1),  # (B, T)
            "is_first": is_first.squeeze(-1),  # (B, T)
            "is_terminal": is_terminal.squeeze(-1),  # (B, T)
            "is_own": (rings < self.own_rings).float().expand_as(times).to(device),  # (B, T)
        }

    def state(self):
        """Everything needed to go on later, the rows oldest first."""
        is_full = self.filled == self.length
        rows = self.rows.roll(-self.head, 0) if is_full else self.rows
        return {
            "rows": rows[: self.filled].cpu(),
            "generator": self.generator.get_state(),
        }

    def restore_state(self, state):
        """Takes over what `state` returned; raises ValueError if it does not fit."""
        filled, rings, width = state["rows"].shape
        if (rings, width) != tuple(self.rows.shape[1:]) or filled > self.length:
            raise ValueError(
                f"the stored replay is {filled} x {rings} x {width} numbers, the config's holds"
                f" {self.length} x {self.rows.shape[1]} x {self.rows.shape[2]}"
            )
        self.rows[:filled] = state["rows"]
        self.filled, self.head = filled, filled % self.length
        self.generator.set_state(state["generator"])
