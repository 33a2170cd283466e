"""Matches and their statistics: wins, draws, losses with Wilson intervals, by who started.

python evaluate.py checkpoints/hockey/best.safetensors --against weak strong --games 200
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamer import Dreamer
from hockey_wrapper import HockeyGames, OneOpponent
from opponents import load
from utils import UserError, wilson_interval


@dataclass
class Result:
    """Games against one opponent; `winner` (n,): +1 we, -1 they, 0 draw; `we_started` (n,)."""

    opponent: str
    winner: np.ndarray
    we_started: np.ndarray

    def counts(self, chosen=slice(None)):
        """Wins, draws, losses among the chosen games (default: all)."""
        return tuple(int((self.winner[chosen] == value).sum()) for value in (1, 0, -1))

    def metrics(self):
        """Shares of wins, draws and losses, and the number of games, for the CSV."""
        games = len(self.winner)
        shares = {name: count / games for name, count in self._named()}
        return {
            f"evaluation/{self.opponent}/{k}": v for k, v in (shares | {"games": games}).items()
        }

    def win_rate(self):
        """The share of games won; a draw is not a win."""
        return self.counts()[0] / len(self.winner)

    def _named(self):
        return zip(("wins", "draws", "losses"), self.counts(), strict=True)

    def __str__(self):
        games, (wins, draws, losses) = len(self.winner), self.counts()
        low, high = wilson_interval(wins / games, games)
        text = f"{self.opponent:>12}: {games} games, {wins} won, {draws} drawn, {losses} lost"
        text += f" | wins {wins / games:.1%} [{low:.1%}, {high:.1%}]"
        for name, chosen in (("we", self.we_started), ("they", ~self.we_started)):
            if chosen.any():
                text += f" | {name} start: {'/'.join(map(str, self.counts(chosen)))}"
        return text


def play_games(agent, opponent, games, seed=0):
    """Plays `games` games side by side, deterministically, against an opponent made for that many.

    Both sides and both starts come up equally often if `games` is a multiple of four. The games
    are normal ones of the game and frame skip in the agent's own config. Returns a `Result`.
    """
    table = HockeyGames(agent.config.hockey, games, OneOpponent(opponent), training=False)
    player = agent.player()
    observation, _ = table.reset(seed=seed)
    winner = np.zeros(games, int)
    running = np.ones(games, bool)
    while running.any():
        actions = player.act(observation, deterministic=True)
        observation, _, terminated, truncated, info = table.step(actions)
        ended = running & (terminated | truncated)
        winner[ended] = info["winner"][ended]
        running &= ~ended
    return Result(opponent.name, winner, table.we_start.copy())


def evaluate(agent, opponents, games, seed=0):
    """One `Result` for each opponent named (see `opponents.load`)."""
    return [play_games(agent, load(name, games, seed), games, seed) for name in opponents]


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


def find_agent(path):
    """The .safetensors file at `path`, or best (else latest) in a run's folder of that name."""
    names = ("best.safetensors", "latest.safetensors")
    inside = [Path(path) / name for name in names if (Path(path) / name).is_file()]
    return inside[0] if inside else Path(path)


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a .safetensors file, or a folder with best.safetensors")
    parser.add_argument("--against", nargs="+", default=["weak", "strong"], help="opponents")
    parser.add_argument("--games", type=int, default=200, help="games per opponent")
    parser.add_argument("--seed", type=int, default=0, help="of games and opponents")
    options = parser.parse_args(arguments)
    try:
        if options.games < 1 or options.seed < 0:
            raise UserError("--games must be at least 1 and --seed at least 0.")
        agent = Dreamer.load(find_agent(options.checkpoint))
        if agent.sizes != (18, 4):
            raise UserError(f"{options.checkpoint} was not trained for hockey.")
        for name in options.against:
            print(*evaluate(agent, [name], options.games, options.seed), flush=True)
    except UserError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
