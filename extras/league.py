"""The league: everybody against everybody, rated as the tournament does, printed and drawn.

Bots and agents play on equal terms: each is asked in every frame of the built-in game, and agents
decide in each.
"""

import html
import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from checkpoint import check_writable
from extras.plots import RESULTS, aligned, fill_template, table_markup
from matches import play_match
from opponents import BOTS, called, find_player, load
from utils import UserError

NO_RATINGS = "There are no ratings without OpenSkill; it comes with: pip install openskill."
SUMMARY = (
    "games per pair, sides and starts in turn; won by the row's player against the column's, with"
    " the 95% Wilson interval, and won/drawn/lost. Rating: OpenSkill's Plackett-Luce, mu - 3 sigma,"
    " all games in random order. Hard counters: who wins more of the decided games."
)


@dataclass
class League:
    """What was played, and what it says about each player.

    `played`: (a, b) -> the `Result` of a against b, each pair once; here (b, a) joins. `ratings`:
    as by `rate`. `names`: the best first, by rating, or else by mean win rate.
    """

    played: dict
    ratings: dict | None

    def __post_init__(self):
        turned = {(two, one): result.turned(one) for (one, two), result in self.played.items()}
        self.played = self.played | turned
        self.names = list(dict.fromkeys(name for pair in self.played for name in pair))
        scores = {one: np.mean([r.win_rate() for r in self.results(one)]) for one in self.names}
        if self.ratings:
            scores = {name: rating.ordinal() for name, rating in self.ratings.items()}
        self.names.sort(key=scores.get, reverse=True)

    def results(self, name):
        return [self.played[name, other] for other in self.names if other != name]

    def worst_case(self, name):
        """Returns the `Result` with the lowest win rate; of equal ones, that with most losses."""
        return min(self.results(name), key=lambda one: (one.win_rate(), -one.counts()[2]))

    def hard_counters(self, name):
        """Returns the names of those against whom it wins less than half of the decided games."""
        return [one.opponent for one in self.results(name) if one.counts()[0] < one.counts()[2]]

    def matrix(self):
        """Returns rows of texts: how many games the row's player won against the column's."""
        rows = [("row against column", *map(str, range(1, len(self.names) + 1)))]
        for number, name in enumerate(self.names, 1):
            cells = [f"{result.share()}\n{result.tally()}" for result in self.results(name)]
            cells.insert(number - 1, "-")
            rows.append((f"{number} {name}", *cells))
        return rows

    def table(self):
        """Returns rows of texts: everybody's rating, worst case and hard counters."""
        rows = [("player", "rating", "worst case", "hard counters")]
        for number, name in enumerate(self.names, 1):
            worst, rating = self.worst_case(name), "-"
            if self.ratings:
                one = self.ratings[name]
                rating = f"{one.ordinal():.1f}\n= {one.mu:.1f} - 3 x {one.sigma:.1f}"
            case = f"{worst.share()}\nagainst {worst.opponent}"
            counters = ",\n".join(self.hard_counters(name)) or "none"
            rows.append((f"{number} {name}", rating, case, counters))
        return rows


def find_players(specs):
    """Returns name (of a run or file, or as here) -> bot or path; `UserError`: fewer than two."""
    found = {}  # bot or path -> as it is named here
    for spec in specs:
        player = find_player(spec)
        found[player if player in BOTS else player.resolve()] = spec
        load(player)
    if len(found) < 2:
        raise UserError("--league needs at least two players.")
    names = [called(player) for player in found]
    unique = (n if names.count(n) == 1 else s for n, s in zip(names, found.values(), strict=True))
    return dict(zip(unique, found, strict=True))


def play_league(players, games, seed=0, plan=False):
    """Returns the `League` of players (name -> bot or path); `games`: of a pair, a multiple of 4.

    Every pair starts from the same positions, so its games don't depend on who else takes part.
    """
    played = {}
    for pair in tqdm(list(combinations(players, 2)), "pairs", leave=False, disable=None):
        one, two = (load(players[name], games, seed + i, plan=plan) for i, name in enumerate(pair))
        two.name = pair[1]
        played[pair] = play_match(one, two, games, seed)
    return League(played, rate(played, seed))


def rate(played, seed=0):
    """Returns name -> rating by OpenSkill's Plackett-Luce, None where that is not installed.

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
    return ratings


def report(specs, games, seed, page, plan=False):
    """Plays, prints the league and draws its page. Raises `UserError` for what can't be played."""
    if games % 4:
        raise UserError(f"--games must be a multiple of 4, not {games}: 2 sides, 2 starts each.")
    players = find_players(specs)
    check_writable(Path(page).parent)
    league = play_league(players, games, seed, plan)
    text = f"{games} {SUMMARY}" + ("" if league.ratings else f" {NO_RATINGS}")
    print(aligned(league.matrix()), aligned(league.table()), text, sep="\n\n", flush=True)
    # bluer where more games are won: the share comes first
    blue = rf"<td style='background: color-mix(in srgb, {RESULTS['wins']}aa \1, transparent)'>\1"
    matrix = re.sub(r"<td>(\d+%)", blue, table_markup(league.matrix()))
    tables = matrix + table_markup(league.table())
    fill_template(page, {}, title="league", summary=html.escape(text), tables=tables)
    print(f"\nThe page: {page}")
