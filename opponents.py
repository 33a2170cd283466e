"""Who stands on the other side: scripted bots, saved agents, and the pool that picks among them.

Every opponent has `reset(games)` and `act(observations, games)`, called once per game frame with
its own view of the game; without `games` they also take a single game's 18 numbers.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from dreamer import Dreamer
from hockey_env import BasicOpponent
from hockey_wrapper import PerGame
from utils import UserError

BOTS = ("weak", "strong", "random")
IN_A_ROW = 16  # games against one snapshot until it is another's turn: one at a time is faster


class RandomPlayer:
    """Uniformly random actions, drawn anew each frame."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def act(self, observation):
        """18 numbers -> 4 numbers in [-1, 1)."""
        return self.generator.uniform(-1, 1, 4)

    def state(self):
        """Its generator's state."""
        return self.generator.bit_generator.state

    def restore_state(self, state):
        """Takes over what `state` returned."""
        self.generator.bit_generator.state = state


class AgentOpponent:
    """A trained agent as an opponent: keeps its frame skip and its memory of each game."""

    def __init__(self, agent, games, name, deterministic=False, plan=False):
        """Plays `agent` (its networks, with an own memory) in so many games side by side."""
        self.agent, self.name = agent.player(), name
        self.decide = partial(self.agent.act, deterministic=deterministic, plan=plan)
        if self.agent.sizes != (18, 4):
            raise UserError(f"{name} was not trained for hockey: it has sizes {agent.sizes}.")
        self.agent.remember(games)
        self.frame_skip = agent.config.hockey.frame_skip  # asking a config takes its time
        self.frame = np.zeros(games, int)  # since the game's start
        self.action = np.zeros((games, 4), np.float32)

    def reset(self, games=None):
        """Forgets these games (default: all)."""
        games = slice(None) if games is None else games
        self.agent.reset(games)
        self.frame[games] = 0

    def act(self, observations, games=None):
        """Observations (n, 18) of these games (default: all), or (18,), -> actions."""
        observations = np.asarray(observations, np.float32)
        if observations.ndim == 1:
            return self.act(observations[None], [0])[0]
        games = np.arange(len(self.frame)) if games is None else np.asarray(games)
        decides = self.frame[games] % self.frame_skip == 0
        if decides.any():
            chosen = games[decides]
            self.action[chosen] = self.decide(observations[decides], games=chosen)
        self.frame[games] += 1
        return self.action[games]

    def state(self):
        """Where it is in each game."""
        return {
            "frame": self.frame.tolist(),
            "action": torch.from_numpy(self.action),
            "memory": self.agent.memory,
        }

    def restore_state(self, state):
        """Takes over what `state` returned."""
        self.frame[:] = state["frame"]
        self.action[:] = state["action"].numpy()
        for part, value in zip(self.agent.memory, state["memory"], strict=True):
            part.copy_(value)


def load(spec, games=1, seed=0, deterministic=True, device="cpu", plan=False):
    """The opponent that `spec` names: weak, strong, random, or the path of a saved agent.

    It plays in `games` games side by side; `deterministic` and `plan` are those of `Dreamer.act`.
    Raises `UserError` if there is no such opponent.
    """
    spec = str(spec)
    seeds = np.random.SeedSequence(seed).generate_state(games)
    if spec == "random":
        return PerGame([RandomPlayer(int(s)) for s in seeds], spec)
    if spec in BOTS:
        weak = spec == "weak"
        return PerGame([BasicOpponent(weak=weak, seed=int(s)) for s in seeds], spec)
    if Path(spec).suffix != ".safetensors":
        raise UserError(f"'{spec}' is no opponent: name {', '.join(BOTS)} or a .safetensors file.")
    return AgentOpponent(Dreamer.load(spec, device), games, Path(spec).stem, deterministic, plan)


class OpponentPool:
    """Picks each game's opponent by the config's shares, and counts what was really played."""

    def __init__(self, settings, games, seed, device="cpu"):
        """`settings`: `config.opponents`, for so many games side by side."""
        self.settings, self.games, self.device = settings, games, device
        self.generator = np.random.default_rng(seed)
        self.bots = {name: self._load("bot", name, seed + 1 + i) for i, name in enumerate(BOTS)}
        self.files = {path: self._load("file", path, seed) for path in settings.files}
        self.snapshots = {}  # path -> opponent, oldest first
        self.turn, self.games_left = None, 0  # the snapshot to play (a path), for so many games
        self.played = {}  # name -> games
        self.results = {}  # name of a snapshot -> running win rate of the agent against it
        shares = np.array([settings[key] for key in (*BOTS, "snapshots", "files_share")])
        if shares.sum() <= 0 or (settings.files_share > 0 and not self.files):
            raise UserError("opponents: some share must be above 0, and files_share needs files.")
        self.shares = shares / shares.sum()

    def _load(self, kind, name, seed=0):
        """A player for all games; a checkpoint knows it by its key (kind, name or path)."""
        plays_best = kind != "snapshot"
        opponent = load(name, self.games, seed, deterministic=plays_best, device=self.device)
        opponent.key = (kind, name)
        return opponent

    def add_snapshot(self, path):
        """Takes a saved agent into the pool; the oldest leaves when the pool is full."""
        self.snapshots[str(path)] = self._load("snapshot", str(path))
        while len(self.snapshots) > self.settings.snapshots_kept:
            del self.snapshots[next(iter(self.snapshots))]

    def choose(self):
        """The opponent of the next game."""
        shares = self.shares
        if not self.snapshots:  # until there is one, its share goes to the others
            shares = np.where(np.arange(5) == 3, 0, shares)
            shares = shares / shares.sum() if shares.sum() > 0 else np.eye(5)[1]
        kind = self.generator.choice(5, p=shares)
        if kind < 3:
            return self.bots[BOTS[kind]]
        if kind == 4:
            files = self.settings.files
            return self.files[files[int(self.generator.integers(len(files)))]]
        if self.games_left == 0 or self.turn not in self.snapshots:
            self.turn, self.games_left = self.next_snapshot(), IN_A_ROW
        self.games_left -= 1
        return self.snapshots[self.turn]

    def next_snapshot(self):
        """The path of the snapshot whose turn it is, by the config's `choice`."""
        weights = np.ones(len(self.snapshots))
        if self.settings.choice == "pfsp":
            names = [one.name for one in self.snapshots.values()]
            rates = np.array([self.results.get(name, 0.5) for name in names])
            weights = rates * (1 - rates) + 0.01  # nobody is forgotten for good
        chosen = self.generator.choice(len(weights), p=weights / weights.sum())
        return list(self.snapshots)[chosen]

    def record(self, name, winner):
        """Counts a finished game against the opponent of this name; `winner`: +1 we, -1, 0."""
        self.played[name] = self.played.get(name, 0) + 1
        won = {1: 1.0, 0: 0.5, -1: 0.0}[int(winner)]
        rate = self.results.get(name, 0.5)
        self.results[name] = rate + 0.05 * (won - rate)

    def mix(self):
        """Metrics: the share of each kind of opponent in all games played so far."""
        total = max(1, sum(self.played.values()))
        own = sum(n for name, n in self.played.items() if name.startswith("snapshot"))
        mix = {"snapshots": own} if own else {}
        mix |= {name: n for name, n in self.played.items() if not name.startswith("snapshot")}
        return {f"opponents/{name}": number / total for name, number in sorted(mix.items())}

    def former_selves(self):
        """The oldest, middle and newest snapshot by these names, once there are three."""
        ones, count = list(self.snapshots.values()), len(self.snapshots)
        chosen = {"oldest": 0, "middle": count // 2, "newest": count - 1} if count > 2 else {}
        return {name: ones[index] for name, index in chosen.items()}

    def rivals(self, games, seed):
        """Whom an evaluation of so many games asks for: both bots and former selves, by name."""
        rivals = {name: load(name, games, seed) for name in ("weak", "strong")}
        for name, one in self.former_selves().items():  # from memory: files may be deleted
            rivals[name] = AgentOpponent(one.agent, games, one.name, deterministic=True)
        return rivals

    def ages(self, gradient_step):
        """Metrics: how many gradient steps ago the former selves were that."""
        return {
            f"pool/{name}": gradient_step - int(one.name.removeprefix("snapshot_"))
            for name, one in self.former_selves().items()
        }

    def members(self):
        """All opponents that can be chosen."""
        return [*self.bots.values(), *self.files.values(), *self.snapshots.values()]

    def keep_files(self, playing=()):
        """Writes again what somebody deleted meanwhile: a resume needs all snapshots' files."""
        for one in (*self.snapshots.values(), *playing):
            kind, path = one.key
            if kind == "snapshot" and not Path(path).exists():
                one.agent.save(path, **one.agent.counters)

    def state(self, playing=()):
        """What `restore_state` needs to go on; `playing`: the opponent in each game now."""
        return {
            "opponents": {one.key: one.state() for one in (*self.members(), *playing)},
            "playing": [one.key for one in playing],
            "snapshots": list(self.snapshots),
            "played": self.played,
            "results": self.results,
            "turn": [self.turn, self.games_left],
            "generator": self.generator.bit_generator.state,
        }

    def restore_state(self, state):
        """Takes over what `state` returned -> who plays in each game; reads their files again."""
        for path in state["snapshots"]:
            self.add_snapshot(path)
        opponents = {one.key: one for one in self.members()}
        for key in state["playing"]:
            if key not in opponents:  # a snapshot that left the pool during its game
                opponents[key] = self._load(*key)
        for key, opponent in opponents.items():
            if key in state["opponents"]:
                opponent.restore_state(state["opponents"][key])
        self.played, self.results = state["played"], state["results"]
        self.turn, self.games_left = state.get("turn", (None, 0))  # earlier versions had no turns
        self.generator.bit_generator.state = state["generator"]
        return [opponents[key] for key in state["playing"]]
