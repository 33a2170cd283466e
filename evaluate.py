"""The command line of measuring: a player against others, a league, runs drawn together.

python evaluate.py checkpoints/hockey/best.safetensors --against weak strong --games 200
python evaluate.py mine.py:MyBot
python evaluate.py --league checkpoints/a.safetensors checkpoints/b.safetensors weak strong
python evaluate.py --compare metrics/a_seed0.csv metrics/a_seed1.csv metrics/b.csv --out wins.svg

Exit status: 0 it is done, 2 something to mend (one sentence says what), 130 Ctrl-C.
"""

import installed  # noqa: F401  before all others

# isort: split
import sys
from functools import partial

from environments import worlds_of
from extras import league, plots
from machine import command, make_ready, parser_of
from matches import episode_returns, play_match
from opponents import BOTS, load, of_another_world
from utils import UserError


def evaluate(options):
    """Prints one line for each opponent of the player, or the return where there are none."""
    games, seed = options.games or 200, options.seed
    if agent := of_another_world(options.player):
        name = agent.config.environment
        if options.against:
            raise UserError(f"{options.player} plays {name}: --against has nobody there.")
        act = partial(agent.player().act, deterministic=agent.is_deterministic, plan=options.plan)
        returns = episode_returns(act, worlds_of(agent, games), seed)
        mean, interval = returns.mean(), ""
        if games > 1:
            margin = 1.96 * returns.std(ddof=1) / games**0.5
            interval = f" [{mean - margin:.1f}, {mean + margin:.1f}]"
        print(f"{name}: {games} episodes, mean return {mean:.1f}{interval}")
        return
    for name in options.against or BOTS[:2]:
        player = load(options.player, games, seed + 1, plan=options.plan)
        print(play_match(player, load(name, games, seed), games, seed), flush=True)


@command
def main(arguments=None):
    """Does what the command line asks for; returns the exit status."""
    parser = parser_of(__doc__)
    player = "a path, a name in checkpoints/, a bot, path.py:Class"
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("player", nargs="?", help=player)
    asked.add_argument("--league", nargs="*", metavar="PLAYER", help="instead: a round robin")
    asked.add_argument("--compare", nargs="+", metavar="CSV", help="instead: draw runs together")
    parser.add_argument("--against", nargs="+", help="opponents (weak strong)")
    parser.add_argument("--page", help="of the league or comparison (default: plots/<which>.html)")
    parser.add_argument("--out", help="of the comparison: a figure as well, .svg, .pdf or .png")
    parser.add_argument("--games", type=int, help="per opponent (200) or pair of the league (100)")
    parser.add_argument("--plan", action="store_true", help="agents look ahead before each action")
    parser.add_argument("--seed", type=int, default=0, help="of games and opponents")
    options = parser.parse_args(arguments)
    make_ready(options)
    fitting = {"player": "against games plan", "league": "page games plan", "compare": "page out"}
    chosen = next(name for name in fitting if getattr(options, name) is not None)
    for name in ("against", "page", "out", "games", "plan"):
        if getattr(options, name) and name not in fitting[chosen].split():
            raise UserError(f"--{name} says nothing about a {chosen}: leave it out.")
    page = options.page or f"plots/{chosen}.html"
    if chosen == "player":
        evaluate(options)
    elif chosen == "league":
        league.report(options.league, options.games or 100, options.seed, page, options.plan)
    else:
        points = plots.report(plots.read_runs(options.compare), page)
        if options.out:
            plots.write_figure(points, options.out)
            print(f"The figure: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
