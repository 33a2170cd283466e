"""The two-player game as one player sees it: opponent, frame skip, reward, many games at once.

`HockeyGames` plays many games side by side (Gymnasium's vector interface), so that the agent and
each opponent decide for all of them in one batched call. Who the opponents are is left to
`opponents.py`.
"""

import importlib

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import hockey_env
from machine import explained
from opponents import ask
from utils import UserError

GOAL_REWARD = 10.0
# A flip of the table in y changes the signs of y, angle, y velocity, spin; y force and torque
MIRROR = [1, -1, -1, 1, -1, -1] * 2 + [1, -1, 1, -1, 1, 1] + [1, -1, -1, 1]
SPACES = (  # of observations and actions
    gymnasium.spaces.Box(-np.inf, np.inf, (18,), np.float32),
    gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32),
)
MODES = ("NORMAL", "TRAIN_SHOOTING", "TRAIN_DEFENSE")


def load_game(game):
    """Returns the module with `HockeyEnv` and `Mode`: "built-in" or the lab's, "hockey-env"."""
    if game == "built-in":
        return hockey_env
    needs = (
        "hockey.game is hockey-env, which is not installed (pip install box2d pygame-ce, then"
        " pip install --no-deps git+https://github.com/martius-lab/hockey-env.git)"
    )
    with explained(needs, ImportError):
        return importlib.import_module("hockey.hockey_env")


class HockeyGames(VectorEnv):
    """Many games side by side, 18 -> 4 numbers each, against opponents chosen game by game.

    Autoreset mode in training, NEXT_STEP: the step after a game's end ignores the action and starts
    the next game, with reward 0, so every step yields exactly one replay row per game. Otherwise,
    DISABLED: a game that has ended rests until `reset`. Our side and who starts alternate from game
    to game and over the games side by side: four in a row are balanced. A goal terminates, the time
    limit truncates.
    """

    def __init__(self, settings, num_envs, choose, training=True):
        """`settings`: `config.hockey`; `choose`: returns the next game's opponent, who has
        `reset(games)` and `act(observations, games)`, called once per game frame; `training`: with
        the config's modes and shaping (otherwise: normal games, the reward is +-10 for goals).
        """
        self.num_envs = num_envs
        self.module = load_game(settings.game)
        self.choose_opponent = choose
        self.frame_skip, self.closeness = settings.frame_skip, settings.closeness
        self.reward_kind = settings.reward if training else "sparse"
        autoreset = AutoresetMode.NEXT_STEP if training else AutoresetMode.DISABLED
        self.metadata = {"autoreset_mode": autoreset}
        modes = settings.modes
        weights = np.array([modes.normal, modes.shooting, modes.defense] if training else [1, 0, 0])
        if weights.sum() == 0:
            raise UserError("hockey.modes: at least one share must be above 0.")
        self.mode_shares = weights / weights.sum()
        self.single_observation_space, self.single_action_space = SPACES
        self.observation_space, self.action_space = (batch_space(x, num_envs) for x in SPACES)
        self.rewards = np.zeros((2, num_envs), np.float32)  # of the last step, both views
        self.tables = [{} for _ in range(num_envs)]  # per game: mode -> HockeyEnv
        self.games_started = np.arange(num_envs)  # staggers sides and starts
        self.current = [None] * num_envs  # the HockeyEnv being played
        self.playing_against = [None] * num_envs
        self.views = np.zeros((2, num_envs, 18), np.float32)  # ours, the opponent's
        self.side = np.zeros(num_envs, int)  # 0: we are player one
        self.we_start = np.zeros(num_envs, bool)
        self.winner = np.zeros(num_envs, int)  # of the last step: +1 we, -1 they, 0 nobody (yet)
        self.terminated, self.truncated = np.zeros((2, num_envs), bool)

    def reset(self, *, seed=None, options=None):
        """Starts all games -> observations (n, 18), info. The seed decides all but opponents."""
        super().reset(seed=seed)
        if seed is not None:
            self.games_started = np.arange(self.num_envs)
        self._start(np.arange(self.num_envs))
        return self.views[0].copy(), self._info(np.zeros((self.num_envs, 4), np.float32))

    def step(self, actions):
        """One decision (n, 4) in every game, held for `frame_skip` frames.

        Returns observations (n, 18), rewards, terminated, truncated (n,) and an info with
        `winner`, `opponent_observation`, `opponent_action` (its mean over the frames) and
        `opponent_reward`. Raises ValueError for actions that are not (n, 4) finite numbers.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, 4) or not np.isfinite(actions).all():
            raise ValueError(f"actions must be ({self.num_envs}, 4) finite numbers")
        finished = self.terminated | self.truncated
        self.rewards = np.zeros((2, self.num_envs), np.float32)
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            self._start(np.flatnonzero(finished))
        their_actions, sums = np.zeros((2, self.num_envs, 4), np.float32)
        frames = np.zeros((self.num_envs, 1), np.float32)
        for _ in range(self.frame_skip):
            games = np.flatnonzero(~(self.terminated | self.truncated | finished))
            for opponent, against in self._by_opponent(games):
                their_actions[against] = ask(opponent, self.views[1, against], against)
            for game in games:
                self._play_frame(game, actions[game], their_actions[game])
            sums[games] += their_actions[games]
            frames[games] += 1
        ends = self.terminated.copy(), self.truncated.copy()
        return self.views[0].copy(), self.rewards[0], *ends, self._info(sums / frames.clip(1))

    def _start(self, games):
        """Starts the next game at each of these tables."""
        for game in games:
            count = self.games_started[game]
            self.games_started[game] += 1
            self.side[game], self.we_start[game] = count % 2, (count // 2) % 2 == 0
            mode = MODES[self.np_random.choice(3, p=self.mode_shares)]
            if mode not in self.tables[game]:  # made when it is needed
                self.tables[game][mode] = self.module.HockeyEnv(mode=self.module.Mode[mode])
            self.current[game] = env = self.tables[game][mode]
            one_starts = bool(self.we_start[game] == (self.side[game] == 0))
            seed = int(self.np_random.integers(2**31))
            observation, _ = env.reset(seed=seed, one_starting=one_starts)
            self.views[:, game] = self._both_views(game, observation)
            self.playing_against[game] = self.choose_opponent()
        self.winner[games] = 0
        self.terminated[games] = self.truncated[games] = False
        for opponent, theirs in self._by_opponent(games):
            opponent.reset(theirs)

    def _by_opponent(self, games):
        """Yields (opponent, its games among these), in the order of first appearance."""
        groups = {}
        for game in games:
            opponent = self.playing_against[game]
            groups.setdefault(id(opponent), (opponent, []))[1].append(game)
        yield from groups.values()

    def _play_frame(self, game, our_action, their_action):
        """Plays one frame of one game: moves it, adds up rewards, notes its end."""
        env, one = self.current[game], self.side[game] == 0
        pair = (our_action, their_action) if one else (their_action, our_action)
        observation, _, terminated, truncated, info = env.step(np.concatenate(pair))
        self.views[0, game], self.views[1, game] = self._both_views(game, observation)
        winner = int(info["winner"]) * (1 if one else -1)
        reward = [GOAL_REWARD * winner, -GOAL_REWARD * winner]
        if self.reward_kind == "env":
            for number, part in enumerate((info, env.get_info_agent_two())):
                view = number if one else 1 - number
                reward[view] += self.closeness * part["reward_closeness_to_puck"]
        self.rewards[:, game] += np.float32(reward)
        self.winner[game], self.terminated[game] = winner, winner != 0
        self.truncated[game] = (terminated or truncated) and winner == 0

    def _both_views(self, game, observation):
        """Returns the observations of us and of the opponent (2, 18), from player one's."""
        views = (observation, self.current[game].obs_agent_two())
        return views if self.side[game] == 0 else views[::-1]

    def _info(self, opponent_actions):
        """Returns what the vector interface gives beside the agent's own row."""
        return {
            "winner": self.winner.copy(),
            "opponent": [opponent.name for opponent in self.playing_against],
            "opponent_observation": self.views[1].copy(),
            "opponent_action": opponent_actions,
            "opponent_reward": self.rewards[1],
        }
