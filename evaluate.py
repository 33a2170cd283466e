"""Matches and their statistics: wins, draws, losses with Wilson intervals, by who started.

python evaluate.py checkpoints/hockey/best.safetensors --against weak strong --games 200
python evaluate.py --league checkpoints/a.safetensors checkpoints/b.safetensors weak strong
python evaluate.py --compare metrics/a_seed0.csv metrics/a_seed1.csv metrics/b_seed0.csv
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dreamer import Dreamer
from hockey_wrapper import HockeyGames, OneOpponent
from opponents import load
from plots import read_runs, write_comparison_page
from utils import UserError, check_writable, wilson_interval


@dataclass
class Result:
    """Games against one opponent; `winner` (n,): +1 we, -1 they, 0 draw; `we_started` (n,)."""

    opponent: str
    winner: np.ndarray
    we_started: np.ndarray

    def counts(self, chosen=slice(None)):
        """Wins, draws, losses among the chosen games (default: all)."""
        return tuple(int((self.winner[chosen] == value).sum()) for value in (1, 0, -1))

    def metrics(self, name=None):
        """Shares of wins, draws and losses, and the number of games, for the CSV.

        `name` is what to call the opponent there (default: its own name).
        """
        games = len(self.winner)
        shares = {result: count / games for result, count in self._named()}
        prefix = f"evaluation/{name or self.opponent}"
        return {f"{prefix}/{key}": value for key, value in (shares | {"games": games}).items()}

    def win_rate(self):
        """The share of games won; a draw is not a win."""
        return self.counts()[0] / len(self.winner)

    def standing(self):
        """Wins / losses, but at most 1: who wins as often as it loses holds its own."""
        wins, _, losses = self.counts()
        return min(1.0, wins / losses) if losses else 1.0

    def interval(self):
        """The 95% Wilson interval (low, high) of the win rate."""
        return wilson_interval(self.win_rate(), len(self.winner))

    def share(self):
        """The win rate with its interval, as "62% [52%, 71%]"."""
        low, high = self.interval()
        return f"{self.win_rate():.0%} [{low:.0%}, {high:.0%}]"

    def turned(self, opponent):
        """The same games as the other side saw them; `opponent`: our name."""
        return Result(opponent, -self.winner, ~self.we_started)

    def _named(self):
        return zip(("wins", "draws", "losses"), self.counts(), strict=True)

    def __str__(self):
        games, (wins, draws, losses) = len(self.winner), self.counts()
        low, high = self.interval()
        text = f"{self.opponent:>12}: {games} games, {wins} won, {draws} drawn, {losses} lost"
        text += f" | wins {wins / games:.1%} [{low:.1%}, {high:.1%}]"
        for name, chosen in (("we", self.we_started), ("they", ~self.we_started)):
            if chosen.any():
                text += f" | {name} start: {'/'.join(map(str, self.counts(chosen)))}"
        return text


def play_games(agent, opponent, games, seed=0, plan=False):
    """Plays `games` games side by side, deterministically, against an opponent made for that many.

    Both sides and both starts come up equally often if `games` is a multiple of four. The games
    are normal ones of the game and frame skip in the agent's own config; `plan`: it looks ahead
    (see `Dreamer.plan`). Returns a `Result`.
    """
    act = partial(agent.player().act, deterministic=True, plan=plan)
    return play(act, opponent, games, agent.config.hockey, seed)


def play(act, opponent, games, settings, seed=0):
    """As `play_games`, for any `act`: observations (games, 18) -> actions (games, 4).

    `settings`: the `config.hockey` whose game and frame skip are played.
    """
    table = HockeyGames(settings, games, OneOpponent(opponent), training=False)
    observation, _ = table.reset(seed=seed)
    winner = np.zeros(games, int)
    running = np.ones(games, bool)
    while running.any():
        observation, _, terminated, truncated, info = table.step(act(observation))
        ended = running & (terminated | truncated)
        winner[ended] = info["winner"][ended]
        running &= ~ended
    return Result(opponent.name, winner, table.we_start.copy())


def evaluate(agent, opponents, games, seed=0, plan=False):
    """One `Result` for each opponent named (see `opponents.load`)."""
    return [play_games(agent, load(name, games, seed), games, seed, plan) for name in opponents]


def evaluate_return(agent, environments, seed=0):
    """Mean return of one deterministic episode in each of a Gymnasium vector environment."""
    player = agent.player()
    observation, _ = environments.reset(seed=seed)
    total, running = np.zeros(len(observation)), np.ones(len(observation), bool)
    while running.any():
        action = player.act(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = environments.step(action)
        total += reward * running
        running &= ~(terminated | truncated)
    return float(total.mean())


def find_agent(name):
    """The .safetensors file that `name` means: a path, or what it is called in checkpoints/.

    A folder means its best.safetensors, or else latest. Raises `UserError` if there is none.
    """
    inside = ("best.safetensors", "latest.safetensors")
    for path in (Path(name), Path(f"checkpoints/{name}.safetensors"), Path("checkpoints") / name):
        for file in (path, *(path / each for each in inside)):
            if file.is_file():
                return file
    saved = {p.stem for p in Path("checkpoints").glob("*.safetensors")}
    saved |= {p.parent.name for each in inside for p in Path("checkpoints").glob(f"*/{each}")}
    known = f"checkpoints/ has {', '.join(sorted(saved))}" if saved else "checkpoints/ has none"
    raise UserError(f"There is no agent '{name}', neither as a path nor by name: {known}.")


def called(path):
    """What a bot or a saved agent is called in pictures: its file's name, or its run's."""
    path = Path(path)
    return path.parent.name if path.stem in ("best", "latest") else path.stem


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    agent = "a .safetensors file, or a folder with best.safetensors"
    parser.add_argument("checkpoint", nargs="?", help=agent)
    parser.add_argument("--against", nargs="+", default=["weak", "strong"], help="opponents")
    parser.add_argument("--league", nargs="*", metavar="PLAYER", help="instead: a round robin")
    parser.add_argument("--compare", nargs="+", metavar="CSV", help="instead: draw runs together")
    parser.add_argument("--page", help="of the league or comparison (default: plots/<which>.html)")
    parser.add_argument("--games", type=int, help="per opponent (200) or pair of the league (100)")
    parser.add_argument("--plan", action="store_true", help="agents look ahead before each action")
    parser.add_argument("--seed", type=int, default=0, help="of games and opponents")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    tasks = (options.checkpoint, options.league, options.compare)
    if sum(task is not None for task in tasks) != 1:
        parser.error("name a checkpoint, or all players after --league, or CSVs after --compare")
    if options.games is None:
        options.games = 200 if options.league is None else 100
    try:
        if options.games < 1 or options.seed < 0:
            raise UserError("--games must be at least 1 and --seed at least 0.")
        torch.manual_seed(options.seed)  # of the plans
        if options.league is not None:
            from league import report  # not above: it builds on this file

            page = options.page or "plots/league.html"
            report(options.league, options.games, options.seed, page, options.plan)
            return 0
        if options.compare is not None:
            page = Path(options.page or "plots/compare.html")
            runs = read_runs(options.compare)
            check_writable(page.parent)
            write_comparison_page(runs, page, "comparison")
            print(f"The page: {page}")
            return 0
        agent = Dreamer.load(find_agent(options.checkpoint))
        if agent.sizes != (18, 4):
            raise UserError(f"{options.checkpoint} was not trained for hockey.")
        for name in options.against:
            print(*evaluate(agent, [name], options.games, options.seed, options.plan), flush=True)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
