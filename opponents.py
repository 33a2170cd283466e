"""Who stands on the other side: bots, saved agents, own code, and the pool that picks among them.

Every opponent has a `name`, `reset(games)` and `act(observations, games)`, called once per game
frame with its own view of the game; without `games` they also take a single game's 18 numbers.
"""

import functools
import hashlib
import importlib.util
import sys
from functools import partial
from pathlib import Path

import numpy as np

from dreamer import Dreamer
from dribbler import Dribbler
from hockey_env import BasicOpponent
from machine import blamed, explained, warn
from utils import UserError

BOTS = ("weak", "strong", "random", "dribbler")
FOLDERS = (Path("checkpoints"), Path(__file__).with_name("checkpoints"))  # here, beside the code
IN_A_ROW = 16  # games against one snapshot until it is another's turn: one at a time is faster
FORGETTING = 0.05  # share of a new result in the running win rate against an opponent


class PerGame:
    """Plain players, one per game, each with `act(obs18)`, behind the batched interface."""

    def __init__(self, players, name="player"):
        self.players, self.name = list(players), name

    def reset(self, games=None):
        """Tells the players of these games (default: all) that a game starts."""
        games = range(len(self.players)) if games is None else games
        with blamed(f"The player '{self.name}'"):
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


class RandomPlayer:
    """Uniformly random actions, drawn anew each frame."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def act(self, observation):
        """18 numbers -> 4 numbers in [-1, 1)."""
        return self.generator.uniform(-1, 1, 4)


class AgentOpponent:
    """A trained agent as an opponent: one that holds its actions, or decides in every frame.

    It was trained to hold an action for `frame_skip` frames. To decide in every one of them it has
    as many memories of a game, which take turns: each sees every `frame_skip`-th frame.
    """

    def __init__(self, agent, games, name, deterministic=False, plan=False, holds=False):
        """Plays `agent` (its networks, with own memories) in so many games side by side."""
        self.agent, self.name, self.holds = agent.player(), name, holds
        self.decide = partial(self.agent.act, deterministic=deterministic, plan=plan)
        if self.agent.sizes != (18, 4) or self.agent.discrete:
            raise UserError(f"{name} was not trained for hockey: it has sizes {agent.sizes}.")
        self.frame_skip = agent.config.hockey.frame_skip  # asking a config takes its time
        self.agent.remember(self.frame_skip * games)
        self.frame = np.zeros(games, int)  # since the game's start
        self.action = np.zeros((games, 4), np.float32)

    def reset(self, games=None):
        """Forgets these games (default: all)."""
        games = slice(None) if games is None else games
        memories = np.arange(self.frame_skip * len(self.frame)).reshape(self.frame_skip, -1)
        self.agent.reset(memories[:, games].ravel())
        self.frame[games] = 0

    def act(self, observations, games=None):
        """Observations (n, 18) of these games (default: all), or (18,), -> actions."""
        observations = np.asarray(observations, np.float32)
        if observations.ndim == 1:
            return self.act(observations[None], [0])[0]
        games = np.arange(len(self.frame)) if games is None else np.asarray(games)
        turn = self.frame[games] % self.frame_skip
        decides = (turn == 0) | (not self.holds)
        if decides.any():
            memories = turn * len(self.frame) + games
            decided = self.decide(observations[decides], games=memories[decides])
            self.action[games[decides]] = decided
        self.frame[games] += 1
        return self.action[games]


def ask(player, observations, games=None):
    """Returns a player's actions (n, 4) in these games, or (4,) for a single game's (18,).

    Raises `UserError` with its name if it fails. So the game goes no further, and what the player
    did is never learned from.
    """
    name = f"The player '{getattr(player, 'name', type(player).__name__)}'"
    with blamed(name):  # somebody else's code raises almost anything
        actions = player.act(observations, *(() if games is None else (games,)))
        actions = np.asarray(actions, np.float32)
    expected = (4,) if games is None else (len(games), 4)
    if actions.shape != expected:
        raise UserError(f"{name} returned actions {actions.shape}, not {expected}.")
    if not abs(actions).max() <= 1 + 1e-5:  # also true for NaN
        wrong = actions[~(abs(actions) <= 1 + 1e-5)][0]
        raise UserError(f"{name} returned {wrong}; actions are within [-1, 1].")
    return actions


@functools.cache
def import_file(path):
    """Returns the module of a Python file, which runs once; its neighbours can be imported."""
    sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"own code {path}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with blamed(path.name):
        spec.loader.exec_module(module)
    return module


def own_class(spec):
    """Returns the class that "path.py:Class" means. Raises `UserError` if it is no player's.

    Naming a Python file is the user's decision to run it; all other files are data.
    """
    file, _, name = str(spec).rpartition(":")
    if not file or not Path(file).is_file():
        missing = "class named" if Path(spec).is_file() else f"file {file or spec}"
        raise UserError(f"{spec}: there is no {missing}; own code is path.py:Class.")
    found = getattr(import_file(Path(file).resolve()), name, None)
    if not isinstance(found, type):
        raise UserError(f"{file} has no class '{name}'.")
    if not callable(getattr(found, "act", None)):
        raise UserError(f"{spec} needs a method act(self, observation), which returns 4 numbers.")
    return found


def find_agent(name):
    """Returns the .safetensors file that `name` means: a path, or its name in checkpoints/.

    That is the folder checkpoints/ here, then the one beside the code. A folder means its
    best.safetensors, or else latest. Raises `UserError` if there is none.
    """
    inside = ("best.safetensors", "latest.safetensors")
    named = [path for folder in FOLDERS for path in (folder / f"{name}.safetensors", folder / name)]
    with explained(f"{name} can't be looked for", PermissionError):
        for path in (Path(name), *named):
            for file in (path, *(path / each for each in inside)):
                if file.is_file():
                    return file
    saved = {p.stem for folder in FOLDERS for p in folder.glob("*.safetensors")}
    saved |= {p.parent.name for f in FOLDERS for each in inside for p in f.glob(f"*/{each}")}
    known = f"checkpoints/ has {', '.join(sorted(saved))}" if saved else "checkpoints/ has none"
    raise UserError(
        f"There is no agent '{name}', neither as a path nor by name ({known}); the bots are"
        f" {', '.join(BOTS)}."
    )


def is_code(spec):
    """Says whether it is somebody's own code: "path.py:Class"."""
    return Path(spec).name.partition(":")[0].endswith(".py")


def check_name(run):
    """Raises `UserError` if another player is called as this new run would be."""
    files = (folder / f"{run}.safetensors" for folder in FOLDERS)
    if run in BOTS or is_code(run) or any(map(Path.exists, files)):
        raise UserError(f"run: {run} already means a bot, own code or an agent in checkpoints/.")


def find_player(name):
    """Returns a bot's name as it is, or the path of a saved agent or own code, or `UserError`."""
    return name if name in BOTS else Path(name) if is_code(name) else find_agent(name)


def fingerprint(spec):
    """Returns the SHA-256 of the file that a saved agent or own code comes from."""
    path = Path(spec.rpartition(":")[0]) if is_code(spec) else find_agent(spec)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_another_world(spec):
    """Returns the saved agent that `spec` means if hockey is not what it plays, else None."""
    player = find_player(spec)
    agent = None if player in BOTS or is_code(player) else Dreamer.load(player)
    return agent if agent and agent.config.environment != "hockey" else None


def called(player):
    """Returns what a player is called: a bot, a class, an agent's file, or its run."""
    path = Path(player)
    if is_code(path):
        return path.name.rpartition(":")[2]
    return path.absolute().parent.name if path.stem in ("best", "latest") else path.stem


def load(spec, games=1, seed=0, device="cpu", plan=False):
    """Returns the opponent that `spec` names: a bot, "path.py:Class", or a saved agent.

    It plays in `games` games side by side. An agent acts as it was evaluated in its run, by the
    mean of its policy or by samples, or it looks ahead (`plan`, of `Dreamer.act`).
    Raises `UserError` if there is no such opponent.
    """
    seeds = np.random.SeedSequence(seed).generate_state(games)
    if spec in BOTS:
        kinds = {"random": RandomPlayer, "dribbler": Dribbler}
        make = kinds.get(spec, partial(BasicOpponent, spec == "weak", True))
        return PerGame([make(int(s)) for s in seeds], spec)
    if is_code(spec):
        make = own_class(spec)
        with blamed(f"{spec}: {make.__name__}()"):
            return PerGame([make() for _ in range(games)], called(spec))
    path = find_agent(spec)
    agent = Dreamer.load(path, device)
    return AgentOpponent(agent, games, called(path), agent.is_deterministic, plan)


class OpponentPool:
    """Picks each game's opponent by the config's shares, and counts what was really played.

    Agents among them hold their actions in training: on equal terms with the learner, at half the
    cost. Whether quicker ones would harm it is open (docs/tried.md, "Deciding in every frame").
    Those of `files` play the mean of their policy; former selves play samples, as they learned.
    """

    def __init__(self, settings, games, device="cpu"):
        """`settings`: `config.opponents`, for so many games side by side."""
        self.settings, self.games, self.device = settings, games, device
        self.snapshots = {}  # path -> opponent, oldest first
        self.played = {}  # name -> games
        self.results = {}  # name -> running win rate of the agent against it; used of snapshots
        shares = np.array([settings[key] for key in ("weak", "strong", "snapshots", "files_share")])
        if shares.sum() <= 0 or (settings.files_share > 0 and not settings.files):
            raise UserError("opponents: some share must be above 0, and files_share needs files.")
        self.shares = shares / shares.sum()
        specs = dict.fromkeys(("weak", "strong", *settings.files))
        self.fixed = {spec: load(spec, games, device=device) for spec in specs}
        self.read = {spec: fingerprint(spec) for spec in specs if spec not in BOTS}
        names = [one.name for one in self.fixed.values()]
        for spec, one in self.fixed.items():
            if names.count(one.name) > 1 or one.name.startswith("snapshot"):
                one.name = spec  # who is counted apart has a name of his own
        self.start(0)

    def start(self, seed):
        """Starts the choice, bots and own code anew, and lets all agents forget their games.

        No file is read again here: somebody may have changed or deleted it.
        """
        self.generator = np.random.default_rng((seed, 1))  # the games draw by the seed itself
        for number, spec in enumerate(self.fixed):
            self.fixed[spec] = self.anew(spec, self.games, seed + 1 + number, holds=True)
        self.turn, self.games_left = None, 0  # the snapshot to play (a path), for so many games
        for snapshot in self.snapshots.values():
            snapshot.reset()

    def anew(self, spec, games, seed, holds=False):
        """Returns a bot, own code or an agent of `fixed` without a past, for so many games."""
        one = self.fixed[spec]
        if isinstance(one, AgentOpponent):
            return AgentOpponent(one.agent, games, one.name, deterministic=True, holds=holds)
        if spec in BOTS:
            return load(spec, games, seed)
        with blamed(spec):
            return PerGame([type(one.players[0])() for _ in range(games)], one.name)

    def add_snapshot(self, path):
        """Takes a saved agent into the pool; the oldest leaves when the pool is full."""
        agent, path = Dreamer.load(path, self.device), str(path)
        self.snapshots[path] = AgentOpponent(agent, self.games, called(path), holds=True)
        while len(self.snapshots) > self.settings.snapshots_kept:
            del self.snapshots[next(iter(self.snapshots))]

    def choose(self):
        """Returns the opponent of the next game."""
        shares = self.shares
        if not self.snapshots:  # until there is one, its share goes to the others
            shares = self.shares * (1, 1, 0, 1)
            shares = shares / shares.sum() if shares.sum() > 0 else np.array([0, 1, 0, 0])
        kind = self.generator.choice(4, p=shares)
        if kind < 2:
            return self.fixed[BOTS[kind]]
        if kind == 3:
            files = self.settings.files
            return self.fixed[files[int(self.generator.integers(len(files)))]]
        if self.games_left == 0 or self.turn not in self.snapshots:
            self.turn, self.games_left = self.next_snapshot(), IN_A_ROW
        self.games_left -= 1
        return self.snapshots[self.turn]

    def next_snapshot(self):
        """Returns the path of the snapshot whose turn it is, by the config's `choice`."""
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
        won, rate = (1 + int(winner)) / 2, self.results.get(name, 0.5)  # a draw is half a win
        self.results[name] = rate + FORGETTING * (won - rate)

    def metrics(self, gradient_step):
        """Returns the share of each kind of opponent in all games so far, and former selves' ages.

        An age is the number of gradient steps since the former self was that.
        """
        total, shares = max(1, sum(self.played.values())), {}
        for name, games in sorted(self.played.items()):
            is_snapshot = name.startswith("snapshot") and name not in self.fixed
            kind = "opponents/" + ("snapshots" if is_snapshot else name)
            shares[kind] = shares.get(kind, 0) + games / total
        return shares | {
            f"pool/{name}": gradient_step - int(one.name.removeprefix("snapshot_"))
            for name, one in self.former_selves().items()
        }

    def former_selves(self):
        """Returns the oldest, middle and newest snapshot by these names, once there are three."""
        ones, count = list(self.snapshots.values()), len(self.snapshots)
        chosen = {"oldest": 0, "middle": count // 2, "newest": count - 1} if count > 2 else {}
        return {name: ones[index] for name, index in chosen.items()}

    def rivals(self, games, seed):
        """Returns whom an evaluation of so many games asks for: bots, files and former selves."""
        rivals = {one.name: self.anew(spec, games, seed) for spec, one in self.fixed.items()}
        for name, one in self.former_selves().items():  # from memory: files may be deleted
            rivals[name] = AgentOpponent(one.agent, games, one.name, deterministic=True)
        return rivals

    def state(self):
        """Returns what `restore` needs; files that somebody deleted meanwhile are written again."""
        for path, one in self.snapshots.items():
            if not Path(path).exists():
                one.agent.save(path, **one.agent.counters)
        known = {"played": self.played, "results": self.results, "files": self.read}
        return {"snapshots": list(self.snapshots)} | known

    def restore(self, state):
        """Takes over what `state` returned; says whether one of the config's files has changed.

        Reads the snapshots' files that are still there.
        """
        for path in state["snapshots"]:
            if path in self.snapshots:
                continue
            if Path(path).exists():
                self.add_snapshot(path)
            else:
                warn(f"the snapshot {path} is gone; the run goes on without it")
        self.played, self.results = state["played"], state["results"]
        known = state.get("files", {}).items()
        changed = [spec for spec, before in known if self.read.get(spec, before) != before]
        for spec in changed:
            warn(f"{spec} has changed since the run was here; it goes on against the new one")
        return bool(changed)
