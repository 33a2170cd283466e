"""Hockey on all CPU cores: the games in some processes (halls), for `vectorization: async`.

Each hall is a `HockeyGames` with opponents of its own, and to Gymnasium's `AsyncVectorEnv` a single
environment. A GPU learns faster than one process can play.
"""

import signal
from functools import partial

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from hockey_wrapper import SPACES, HockeyGames
from machine import blamed, close_at_exit, close_last, cores
from opponents import OpponentPool
from utils import seed_everything


class Hall(gymnasium.Env):
    """Some of the games with a pool of their own, as one environment in a process of its own.

    What one environment has no place for (a reward per game, ...) is in its info.
    """

    def __init__(self, config, games, pool):
        """`pool`: the state of the pool to begin with."""
        self.config, self.games, self.pool = config, games, pool
        self.observation_space, self.action_space = (batch_space(x, games) for x in SPACES)

    def reset(self, *, seed=None, options=None):
        """Starts all games, and everything random in this process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which ends its halls
        torch.set_num_threads(1)
        seed_everything(seed)
        self.opponents = OpponentPool(self.config.opponents, self.games)
        self.follow(self.pool)
        self.opponents.start(seed)
        self.table = HockeyGames(self.config.hockey, self.games, self.opponents.choose)
        return self.table.reset(seed=seed)

    def step(self, actions):
        """One decision (games, 4) in every game."""
        observations, rewards, terminated, truncated, info = self.table.step(actions)
        info |= {"reward": rewards, "terminated": terminated, "truncated": truncated}
        return observations, 0.0, False, False, info

    def follow(self, pool):
        """Takes over the state of the pool, with snapshots that are new."""
        self.opponents.restore(pool)


class HockeyHalls(VectorEnv):
    """Many games side by side as `HockeyGames`, in training, spread over the CPU cores."""

    def __init__(self, config, num_envs, pool):
        """`pool` learns the results; the halls hear of them when it has a new snapshot."""
        halls = next(n for n in range(min(cores(), num_envs), 0, -1) if num_envs % n == 0)
        hall = partial(Hall, config, num_envs // halls, pool.state())
        self.halls = AsyncVectorEnv([hall] * halls, autoreset_mode=AutoresetMode.DISABLED)
        self.num_envs, self.pool, self.known = num_envs, pool, list(pool.snapshots)
        self.single_observation_space, self.single_action_space = SPACES
        self.observation_space, self.action_space = (batch_space(x, num_envs) for x in SPACES)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        close_at_exit(self.halls)

    def reset(self, *, seed=None, options=None):
        """Starts all games -> observations (n, 18), info. Seed and cores determine all."""
        with blamed("A process of games"):
            observations, info = self.halls.reset(seed=seed)
        return observations.reshape(-1, 18), self._of_games(info)

    def step(self, actions):
        """One decision (n, 4) in every game; returns what `HockeyGames.step` does."""
        with blamed("A process of games"):
            if list(self.pool.snapshots) != self.known:
                self.known = list(self.pool.snapshots)
                self.halls.call("follow", self.pool.state())
            shape = self.halls.action_space.shape
            observations, *_, info = self.halls.step(actions.reshape(shape))
        info = self._of_games(info)
        results = (info.pop(name) for name in ("reward", "terminated", "truncated"))
        return observations.reshape(-1, 18), *results, info

    @staticmethod
    def _of_games(info):
        """Returns the halls' info with one entry per game."""
        names = (name for name in info if not name.startswith("_"))
        return {name: np.concatenate(list(info[name])) for name in names}

    def close_extras(self, **options):
        """Ends the processes."""
        close_last(self.halls, "The games' processes")
