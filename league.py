"""The league: everybody against everybody, rated as the tournament does, printed and drawn.

Bots and agents play on equal terms: each is asked for every frame of the built-in game and holds
its action for its own frame skip. How a single match is played is left to `evaluate.py`, how the
page looks to `plots.py`.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluate import find_agent, play
from opponents import BOTS, AgentOpponent, load
from plots import write_league
from utils import UserError, check_writable, load_config

NO_RATINGS = "There are no ratings without OpenSkill; it comes with: pip install openskill"
SUMMARY = (  # of the page
    "games per pair, sides and starts in turn; 95% Wilson intervals; a draw is no win. Point at a"
    " cell for its counts. Rating: OpenSkill, mu - 3 sigma. Hard counters: who wins more of the"
    " decided games."
)


@dataclass
class League:
    """What was played, and what it says about each player.

    `played`: (a, b) -> the `Result` of a against b, each pair once. `ratings`: name -> OpenSkill's
    (mu, sigma), or None where that is not installed.
    """

    played: dict
    ratings: dict | None

    def __post_init__(self):
        everybody = dict.fromkeys(name for pair in self.played for name in pair)
        self.names = list(everybody)
        rates = {one: np.mean([r.win_rate() for r in self.results(one)]) for one in everybody}
        self.names.sort(key=rates.get, reverse=True)  # the best mean win rate first

    def result(self, name, opponent):
        """The `Result` of one player against another."""
        if (name, opponent) in self.played:
            return self.played[name, opponent]
        return self.played[opponent, name].turned(opponent)

    def results(self, name):
        """One `Result` against each of the others."""
        return [self.result(name, other) for other in self.names if other != name]

    def rating(self, name):
        """What the tournament sorts by: mu - 3 sigma."""
        mu, sigma = self.ratings[name]
        return mu - 3 * sigma

    def worst_case(self, name):
        """The `Result` with the lowest win rate; of equal ones, that with the most losses."""
        return min(self.results(name), key=lambda one: (one.win_rate(), -one.counts()[2]))

    def hard_counters(self, name):
        """The names of those against whom it wins less than half of the decided games."""
        counts = {result.opponent: result.counts() for result in self.results(name)}
        return [opponent for opponent, (wins, _, losses) in counts.items() if wins < losses]

    def __str__(self):
        return "\n\n".join((self._matrix(), self._ratings(), self._worst_cases()))

    def _padded(self, name):
        return f"{name:<{max(map(len, self.names))}} "

    def _matrix(self):
        lines = ["Games won by the row against the column [95% interval], won/drawn/lost:"]
        heads = "".join(f"{number:>18}" for number in range(1, len(self.names) + 1))
        lines.append("    " + self._padded("") + heads)
        for number, name in enumerate(self.names, 1):
            rates, counts = f"{number:>3} {self._padded(name)}", "    " + self._padded("")
            for other in self.names:
                result = None if other == name else self.result(name, other)
                rates += f"{result.share() if result else '-':>18}"
                counts += f"{'/'.join(map(str, result.counts())) if result else '':>18}"
            lines += [rates, counts.rstrip()]
        return "\n".join(lines)

    def _ratings(self):
        if self.ratings is None:
            return NO_RATINGS
        lines = ["Rating (OpenSkill Plackett-Luce, mu - 3 sigma, all games in random order):"]
        for name in sorted(self.names, key=self.rating, reverse=True):
            mu, sigma = self.ratings[name]
            rating = f"{self.rating(name):6.2f} = {mu:.2f} - 3 x {sigma:.2f}"
            lines.append(f"    {self._padded(name)} {rating}")
        return "\n".join(lines)

    def _worst_cases(self):
        lines = ["Worst case; hard counters (who win most of the decided games):"]
        for name in self.names:
            worst, counters = self.worst_case(name), self.hard_counters(name) or ["none"]
            text = f"{worst.share()} against {worst.opponent}; {', '.join(counters)}"
            lines.append(f"    {self._padded(name)} {text}")
        return "\n".join(lines)


def find_players(specs):
    """The named players (bots, .safetensors files, folders of runs), as `opponents.load` does.

    An agent is called by its file, with as many folders in front as tell it from the others.
    Raises `UserError` if one can't play, if one comes twice, or if there are fewer than two.
    """
    players, places = [], []
    for spec in specs:
        path = spec if spec in BOTS else find_agent(spec)
        players.append(load(path))
        place = (spec,) if spec in BOTS else path.resolve().with_suffix("").parts
        if place in places:
            raise UserError(f"--league names '{spec}' twice: name every player once.")
        places.append(place)
    if len(players) < 2:
        raise UserError("--league needs at least two players.")
    for player, place in zip(players, places, strict=True):
        depth = 1
        while sum(other[-depth:] == place[-depth:] for other in places) > 1:
            depth += 1
        player.name = "/".join(place[-depth:])
    return players


def seat(player, games, seed, plan=False):
    """The same player anew, without memories, for so many games side by side."""
    if isinstance(player, AgentOpponent):
        return AgentOpponent(player.agent, games, player.name, deterministic=True, plan=plan)
    return load(player.name, games, seed)


def play_league(players, games, seed=0, plan=False):
    """Lets every pair play so many games, a multiple of four: a `League`.

    Every pair starts from the same positions, so its games don't depend on who else takes part.
    `plan`: agents look ahead.
    """
    settings = load_config("hockey.yml", ["hockey.frame_skip=1", "hockey.game=built-in"]).hockey
    played = {}
    pairs = list(combinations(players, 2))
    for one, two in tqdm(pairs, "pairs", leave=False, disable=None):
        act = seat(one, games, seed, plan).act
        opponent = seat(two, games, seed + 1, plan)
        played[one.name, two.name] = play(act, opponent, games, settings, seed)
    return League(played, rate(played, seed))


def rate(played, seed=0):
    """Name -> (mu, sigma) by OpenSkill's Plackett-Luce, or None where that is not installed.

    As the tournament server `comprl` does, with the defaults, but game by game (there, the scores
    of four games make one match); in random order, as every match moves both players.
    """
    try:
        from openskill.models import PlackettLuce
    except ImportError:
        return None
    model = PlackettLuce()
    ratings = {name: model.rating() for pair in played for name in pair}
    games = [(pair, int(one)) for pair, result in played.items() for one in result.winner]
    for game in np.random.default_rng(seed).permutation(len(games)):
        (one, two), winner = games[game]
        teams, ranks = [[ratings[one]], [ratings[two]]], [-winner, winner]  # the lower rank won
        [[ratings[one]], [ratings[two]]] = model.rate(teams, ranks=ranks)
    return {name: (rating.mu, rating.sigma) for name, rating in ratings.items()}


def report(specs, games, seed, page, plan=False):
    """Plays, prints the league and draws its page. Raises `UserError` for what can't be played."""
    if games % 4:
        raise UserError(
            f"--games must be a multiple of 4, not {games}: only then both sides and both starts"
            " come up equally often."
        )
    players = find_players(specs)
    check_writable(Path(page).parent)
    league = play_league(players, games, seed, plan)
    print(league, flush=True)
    write_league(league, page, f"{games} {SUMMARY}" + ("" if league.ratings else f" {NO_RATINGS}"))
    print(f"\nThe page: {page}")
