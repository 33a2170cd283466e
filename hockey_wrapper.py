"""The two-player game as one player sees it: opponent, frame skip, reward, many games at once.

`HockeyGames` plays many games side by side (Gymnasium's vector interface), so that the agent and
each opponent decide for all of them in one batched call. `HockeyWrapper` is one such game as a
plain `gymnasium.Env`. Who the opponents are is left to `opponents.py`.
"""

import importlib

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

import hockey_env
from utils import UserError, one_line

GOAL_REWARD = 10.0
THEIR_GOAL = np.array([255 / 60, 0], np.float32)  # metres from the centre, in one's own view
# A flip of the table in y changes these signs: y, angle, y velocity, spin; y force and torque.
MIRROR_OBSERVATION = np.array([1, -1, -1, 1, -1, -1] * 2 + [1, -1, 1, -1, 1, 1], np.float32)
MIRROR_ACTION = np.array([1, -1, -1, 1], np.float32)
MODES = ("NORMAL", "TRAIN_SHOOTING", "TRAIN_DEFENSE")
KEPT = ("games_started", "views", "side", "we_start", "winner", "terminated", "truncated")


def load_game(game):
    """The module with `HockeyEnv` and `Mode`: ours ("built-in") or the lab's ("hockey-env")."""
    if game == "built-in":
        return hockey_env
    try:
        return importlib.import_module("hockey.hockey_env")
    except ImportError:
        raise UserError(
            "hockey.game is hockey-env, which is not installed: pip install box2d pygame-ce, then"
            " pip install --no-deps git+https://github.com/martius-lab/hockey-env.git"
        ) from None


def potential(observations, chase, attack):
    """Phi = -chase * dist(player, puck) - attack * dist(puck, their goal), (..., 18) -> (...)."""
    puck = observations[..., 12:14]
    to_puck = np.linalg.norm(puck - observations[..., 0:2], axis=-1)
    return -chase * to_puck - attack * np.linalg.norm(puck - THEIR_GOAL, axis=-1)


class PerGame:
    """Plain players, one per game, each with `act(obs18)`, behind the batched interface."""

    def __init__(self, players, name="player"):
        self.players, self.name = list(players), name

    def reset(self, games=None):
        """Tells the players of these games (default: all) that a game starts."""
        games = range(len(self.players)) if games is None else games
        for game in games:
            getattr(self.players[game], "reset", lambda: None)()

    def act(self, observations, games=None):
        """Observations (n, 18) of these games (default: the first n), or (18,), -> actions."""
        observations = np.asarray(observations)
        if observations.ndim == 1:
            return np.asarray(self.players[0].act(observations), np.float32)
        games = range(len(observations)) if games is None else games
        pairs = zip(games, observations, strict=True)
        return np.array([self.players[game].act(row) for game, row in pairs], np.float32)

    def state(self):
        """What each player remembers."""
        return [player.state() for player in self.players]

    def restore_state(self, state):
        """Takes over what `state` returned."""
        for player, part in zip(self.players, state, strict=True):
            player.restore_state(part)


class OneOpponent:
    """A pool of just one opponent, for evaluation and for `HockeyWrapper`."""

    def __init__(self, opponent):
        self.opponent = opponent

    def choose(self):
        """The opponent of the next game."""
        return self.opponent


class HockeyGames(VectorEnv):
    """Many games side by side, 18 -> 4 numbers each, against opponents chosen game by game.

    Autoreset mode in training, NEXT_STEP: the step after a game's end ignores the action and starts
    the next game, with reward 0, so every step yields exactly one replay row per game. Otherwise,
    DISABLED: a game that has ended rests until `reset`. Our side and who starts alternate from game
    to game and over the games side by side: four in a row are balanced. A goal terminates, the time
    limit truncates.
    """

    def __init__(self, settings, num_envs, opponents, discount=1.0, training=True):
        """`settings`: `config.hockey`; `opponents`: has `choose()`, whose result has `reset(games)`
        and `act(observations, games)`, called once per game frame; `training`: with the config's
        modes and shaping (otherwise: normal games, the reward is +-10 for goals).
        """
        self.num_envs = num_envs
        self.module = load_game(settings.game)
        self.settings, self.opponents, self.discount = settings, opponents, discount
        self.frame_skip, self.closeness = settings.frame_skip, settings.closeness  # asked often
        self.reward_kind = settings.reward if training else "sparse"
        autoreset = AutoresetMode.NEXT_STEP if training else AutoresetMode.DISABLED
        self.metadata = {"autoreset_mode": autoreset}
        modes = settings.modes
        weights = np.array([modes.normal, modes.shooting, modes.defense], float)
        if training and not weights.sum() > 0:
            raise UserError("hockey.modes: at least one share must be above 0.")
        self.mode_shares = weights / weights.sum() if training else np.array([1.0, 0.0, 0.0])
        high = np.full(18, np.inf, np.float32)
        self.single_observation_space = gymnasium.spaces.Box(-high, high)
        self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.tables = [{} for _ in range(num_envs)]  # per game: mode -> HockeyEnv, made when needed
        self.games_started = np.arange(num_envs)  # staggers sides and starts
        self.current = [None] * num_envs  # the HockeyEnv being played
        self.playing_against = [None] * num_envs
        self.views = np.zeros((2, num_envs, 18), np.float32)  # ours, the opponent's
        self.side = np.zeros(num_envs, int)  # 0: we are player one
        self.we_start = np.zeros(num_envs, bool)
        self.winner = np.zeros(num_envs, int)  # of the last step: +1 we, -1 they, 0 nobody (yet)
        self.terminated = np.zeros(num_envs, bool)
        self.truncated = np.zeros(num_envs, bool)
        self.steps = 0  # environment steps, for the annealing of the potential

    def reset(self, *, seed=None, options=None):
        """Starts all games -> observations (n, 18), info. One seed determines everything."""
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
        before = self._potentials()
        self.rewards = np.zeros((2, self.num_envs), np.float32)
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            self._start(np.flatnonzero(finished))
        theirs = np.zeros((self.num_envs, 4), np.float32)
        frames = np.zeros((self.num_envs, 1), np.float32)
        for _ in range(self.frame_skip):
            games = np.flatnonzero(~(self.terminated | self.truncated | finished))
            if len(games) == 0:
                break
            their_actions = self._opponents_act(games)
            for game, action in zip(games, their_actions, strict=True):
                self._play_frame(game, actions[game], action)
            theirs[games] += their_actions
            frames[games] += 1
        self.steps += self.num_envs
        if self.reward_kind == "pbrs":
            after = self._potentials() * ~self.terminated  # the potential of the end is zero
            self.rewards += (self.discount * after - before) * ~finished
        info = self._info(theirs / frames.clip(1))
        return self.views[0].copy(), self.rewards[0], *self._ends(), info

    def _start(self, games):
        """Starts the next game at each of these tables."""
        if len(games) == 0:
            return
        for game in games:
            count = self.games_started[game]
            self.games_started[game] += 1
            self.side[game], self.we_start[game] = count % 2, (count // 2) % 2 == 0
            mode = MODES[self.np_random.choice(3, p=self.mode_shares)]
            self.current[game] = env = self._table(game, mode)
            one_starts = bool(self.we_start[game] == (self.side[game] == 0))
            seed = int(self.np_random.integers(2**31))
            observation, _ = env.reset(seed=seed, one_starting=one_starts)
            self.views[:, game] = self._both_views(game, observation)
            self.playing_against[game] = self.opponents.choose()
        self.winner[games] = 0
        self.terminated[games] = self.truncated[games] = False
        for opponent, theirs in self._by_opponent(games):
            opponent.reset(theirs)

    def _table(self, game, mode):
        """The `HockeyEnv` of this game for a mode, made when it is needed."""
        if mode not in self.tables[game]:
            self.tables[game][mode] = self.module.HockeyEnv(mode=self.module.Mode[mode])
        return self.tables[game][mode]

    def _by_opponent(self, games):
        """Yields (opponent, its games among these), in the order of first appearance."""
        groups = {}
        for game in games:
            opponent = self.playing_against[game]
            groups.setdefault(id(opponent), (opponent, []))[1].append(game)
        yield from groups.values()

    def _opponents_act(self, games):
        """One frame's actions (len(games), 4) of the opponents in these games."""
        actions = np.zeros((self.num_envs, 4), np.float32)
        for opponent, theirs in self._by_opponent(games):
            actions[theirs] = self._checked(opponent, theirs)
        return actions[games]

    def _checked(self, opponent, games):
        """Its actions in these games. Raises `UserError`, with its name, if they can't be played.

        So the game goes no further, and what the opponent did is never learned from.
        """
        name = getattr(opponent, "name", type(opponent).__name__)
        try:
            actions = np.asarray(opponent.act(self.views[1, games], games), np.float32)
        except UserError:
            raise
        except Exception as error:  # somebody else's code raises almost anything
            kind = type(error).__name__
            raise UserError(f"The opponent '{name}' failed: {kind}: {one_line(error)}") from error
        if actions.shape != (len(games), 4):
            raise UserError(
                f"The opponent '{name}' returned actions {actions.shape}, not ({len(games)}, 4)."
            )
        if not abs(actions).max() <= 1 + 1e-5:  # also true for NaN
            wrong = actions[~(abs(actions) <= 1 + 1e-5)][0]
            raise UserError(f"The opponent '{name}' returned {wrong}; actions are within [-1, 1].")
        return actions

    def _play_frame(self, game, our_action, their_action):
        """One frame of one game: moves it, adds up rewards, notes its end."""
        env, one = self.current[game], self.side[game] == 0
        pair = (our_action, their_action) if one else (their_action, our_action)
        observation, _, terminated, truncated, info = env.step(np.concatenate(pair))
        self.views[:, game] = self._both_views(game, observation)
        winner = int(info["winner"]) * (1 if one else -1)
        self.rewards[:, game] += GOAL_REWARD * winner, -GOAL_REWARD * winner
        if self.reward_kind == "env":
            closeness = [
                part["reward_closeness_to_puck"] for part in (info, env.get_info_agent_two())
            ]
            closeness = np.array(closeness if one else closeness[::-1])
            self.rewards[:, game] += self.closeness * closeness
        self.winner[game] = winner
        self.terminated[game] = winner != 0
        self.truncated[game] = (terminated or truncated) and winner == 0

    def _both_views(self, game, observation):
        """(2, 18): the observation of us and of the opponent, from player one's."""
        views = (observation, self.current[game].obs_agent_two())
        return views if self.side[game] == 0 else views[::-1]

    def _potentials(self):
        """Phi of both views (2, n); it fades over `anneal` environment steps."""
        settings = self.settings
        if self.reward_kind != "pbrs":
            return np.zeros((2, self.num_envs), np.float32)
        fading = max(0.0, 1 - self.steps / settings.anneal) if settings.anneal else 1.0
        return fading * potential(self.views, settings.chase, settings.attack)

    def _ends(self):
        """Copies of `terminated` and `truncated`."""
        return self.terminated.copy(), self.truncated.copy()

    def has_snapshots(self):
        """Whether games in progress can be saved: ours can, the lab's package can't."""
        return hasattr(self.module.HockeyEnv, "get_snapshot")

    def state(self):
        """The games in progress, without who plays them; None if the game has no snapshots."""
        if not self.has_snapshots():
            return None
        return {name: getattr(self, name).tolist() for name in KEPT} | {
            "games": [env.get_snapshot() for env in self.current],
            "generator": self.np_random.bit_generator.state,
            "steps": self.steps,
        }

    def restore_state(self, state, opponents):
        """Goes on with what `state` returned, against these opponents, one per game."""
        for name in KEPT:
            getattr(self, name)[:] = state[name]
        for game, snapshot in enumerate(state["games"]):
            mode = self.module.Mode(snapshot["mode"]).name
            self.current[game] = self._table(game, mode)
            self.current[game].restore_snapshot(snapshot)
        self.playing_against = list(opponents)
        self.np_random.bit_generator.state = state["generator"]
        self.steps = state["steps"]

    def _info(self, opponent_actions):
        """What the vector interface returns beside the agent's own row."""
        return {
            "winner": self.winner.copy(),
            "opponent": [opponent.name for opponent in self.playing_against],
            "opponent_observation": self.views[1].copy(),
            "opponent_action": opponent_actions,
            "opponent_reward": getattr(self, "rewards", np.zeros((2, self.num_envs)))[1],
        }


class HockeyWrapper(gymnasium.Env):
    """One game as a `gymnasium.Env` (18 -> 4 numbers) against an opponent with `act(obs18)`."""

    metadata = {"render_modes": []}

    def __init__(self, settings, opponent, discount=1.0):
        """`settings`: `config.hockey`; `opponent`: anything with `act(obs18)`, maybe `reset()`."""
        opponents = OneOpponent(PerGame([opponent]))
        self.games = HockeyGames(settings, 1, opponents, discount)
        self.observation_space = self.games.single_observation_space
        self.action_space = self.games.single_action_space

    def reset(self, *, seed=None, options=None):
        """Starts a game -> observation (18,), info."""
        super().reset(seed=seed)
        observations, info = self.games.reset(seed=seed)
        return observations[0], {"winner": int(info["winner"][0])}

    def step(self, action):
        """One decision (4,) -> observation, reward, terminated, truncated, info."""
        *results, info = self.games.step(np.asarray(action)[None])
        observation, reward, terminated, truncated = (result[0] for result in results)
        winner = {"winner": int(info["winner"][0])}
        return observation, float(reward), bool(terminated), bool(truncated), winner
