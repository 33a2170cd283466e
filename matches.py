"""Matches and their statistics: wins, draws, losses with Wilson intervals, by who started.

Games are played side by side until the last one has ended.
"""

import contextlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from omegaconf import OmegaConf

from config import COMPLETE, load_config
from environments import make_environments, playable
from hockey_wrapper import HockeyGames
from machine import warn
from opponents import BOTS, AgentOpponent, ask

LONGEST_EPISODE = 10_000  # steps of an evaluation's episode: it ends there whatever happens


def wilson_interval(share, games):
    """Returns the 95% Wilson interval (low, high), within 0..1, of a share of so many games."""
    z, whole = 1.96, 1 + 1.96**2 / games
    center = (share + z**2 / (2 * games)) / whole
    margin = z * (share * (1 - share) / games + z**2 / (4 * games**2)) ** 0.5 / whole
    return np.maximum(center - margin, 0), np.minimum(center + margin, 1)  # but for rounding


@dataclass
class Result:
    """Games against one opponent; `winner` (n,): +1 we, -1 they, 0 draw; `we_started` (n,)."""

    opponent: str
    winner: np.ndarray
    we_started: np.ndarray

    def counts(self, chosen=slice(None)):
        """Returns wins, draws, losses among the chosen games (default: all)."""
        return tuple(int((self.winner[chosen] == value).sum()) for value in (1, 0, -1))

    def tally(self, chosen=slice(None)):
        """Returns the counts as "62/8/30"."""
        return "/".join(map(str, self.counts(chosen)))

    def metrics(self, name):
        """Returns shares of wins, draws, losses, and games, for the CSV; `name`: the opponent's."""
        games, group = len(self.winner), f"evaluation/{name}"
        outcomes = zip(("wins", "draws", "losses"), self.counts(), strict=True)
        shares = {f"{group}/{outcome}": count / games for outcome, count in outcomes}
        return shares | {f"{group}/games": games}

    def win_rate(self):
        """Returns the share of games won; a draw is not a win."""
        return self.counts()[0] / len(self.winner)

    def standing(self):
        """Returns wins / losses, but at most 1: who wins as often as it loses holds its own."""
        wins, _, losses = self.counts()
        return min(1.0, wins / losses) if losses else 1.0

    def interval(self):
        """Returns the 95% Wilson interval (low, high) of the win rate."""
        return wilson_interval(self.win_rate(), len(self.winner))

    def share(self, digits=0):
        """Returns the win rate with its interval, as "62% [52%, 71%]"."""
        rate, low, high = (f"{x:.{digits}%}" for x in (self.win_rate(), *self.interval()))
        return f"{rate} [{low}, {high}]"

    def turned(self, opponent):
        """Returns the same games as the other side saw them; `opponent`: our name."""
        return Result(opponent, -self.winner, ~self.we_started)

    def __str__(self):
        games = len(self.winner)
        wins, draws, losses = (f"{count:{len(str(games))}}" for count in self.counts())
        text = f"{self.opponent:>12}: {games} games, {wins} won, {draws} drawn, {losses} lost"
        text += f" | wins {self.share(1):>22}"
        for name, chosen in (("we", self.we_started), ("they", ~self.we_started)):
            if chosen.any():
                text += f" | {name} start: {self.tally(chosen)}"
        return text


def play_games(act, opponent, games, settings, seed=0):
    """Plays so many normal games side by side against an opponent made for that many -> `Result`.

    `act`: observations (n, 18) -> actions (n, 4), asked once per decision; `settings`:
    `config.hockey`. If `games` is a multiple of four, both sides and starts come up equally often.
    """
    table = HockeyGames(settings, games, lambda: opponent, training=False)
    observations, _ = table.reset(seed=seed)
    while not (table.terminated | table.truncated).all():  # who has ended rests
        observations, *_ = table.step(act(observations))
    return Result(opponent.name, table.winner, table.we_start)


def play_match(one, two, games, seed=0):
    """Plays so many games of two players made for that many -> a `Result` of the first.

    They are on equal terms: each is asked for every frame of the built-in game. The same seed means
    the same positions for all pairs.
    """
    settings = load_config(COMPLETE, ["hockey.frame_skip=1", "hockey.game=built-in"]).hockey
    one.reset()  # the other one's games begin at the table
    return play_games(partial(ask, one, games=range(games)), two, games, settings, seed)


def episode_returns(act, environments, seed=0):
    """Returns the returns (n,) of one episode in each of a Gymnasium vector environment.

    `act`: observations (n, O) -> actions (n, A), asked once per step. It closes the environments.
    An episode that does not end counts up to `LONGEST_EPISODE`, which is said.
    """
    with contextlib.closing(environments):
        observations, _ = environments.reset(seed=seed)
        total, running, step = np.zeros(len(observations)), np.ones(len(observations), bool), 0
        while running.any() and step < LONGEST_EPISODE:
            action = playable(environments, act(observations))
            observations, reward, terminated, truncated, _ = environments.step(action)
            total += reward * running
            running &= ~(terminated | truncated)
            step += 1
    if running.any():
        warn(
            f"{running.sum()} of {len(running)} evaluation episodes did not end within"
            f" {LONGEST_EPISODE:,} steps; their returns are those so far"
        )
    return total


def evaluate(agent, config, pool, stop):
    """Returns an evaluation's metrics, the score by which the best is kept, and what to show.

    In hockey, where the agent decides every frame as in any match, the score is the worst case: the
    lowest win rate against a bot or standing against any other. Elsewhere it is the mean
    return. Raises `Stopped` once `stop` is requested.
    """
    games, seed = config.evaluation_games, agent.gradient_steps

    def checked(act, observations):
        stop.check()
        return act(observations)

    if pool is None:
        total, most = 0.0, config.environments if config.vectorization == "async" else games
        for first in range(0, games, most):  # never more processes at a time than in training
            player, count = agent.player(), min(most, games - first)
            act = partial(checked, partial(player.act, deterministic=agent.is_deterministic))
            total += episode_returns(act, make_environments(config, count), seed + first).sum()
        score = float(total / games)
        return {"evaluation/return": score}, score, {"return": f"{score:.1f}"}
    settings = OmegaConf.merge(config.hockey, {"frame_skip": 1})
    metrics, scores, shown = {}, [], {}
    for name, rival in pool.rivals(games, seed).items():
        act = partial(checked, AgentOpponent(agent, games, config.run, agent.is_deterministic).act)
        result = play_games(act, rival, games, settings, seed)
        metrics |= result.metrics(name)
        scores.append(result.win_rate() if name in BOTS else result.standing())
        if name in BOTS:
            shown[name] = f"{result.win_rate():.0%}"
    return metrics, min(scores), shown
