"""Tells how soon runs that exist beat both bots.

    python benchmarks/time_to_skill.py metrics/a_seed0.csv metrics/a_seed1.csv metrics/b.csv

`sweep.py` makes such runs; at least 200 games against each bot in an evaluation say something. The
minutes are those of the CSV, evaluations included. Printed and drawn: every evaluation with 95%
Wilson intervals, and the first one in which the wins against both bots reached 50, 80, 90 and 95%;
luck in a single evaluation counts.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from extras.plots import (  # noqa: E402
    compared,
    in_words,
    read_runs,
    results,
    run_name,
    write_comparison_page,
)
from machine import command, parser_of  # noqa: E402
from utils import UserError  # noqa: E402

BOTS = ("weak", "strong")
SHARES = (0.5, 0.8, 0.9, 0.95)  # of games won, the skills asked for


def position(point):
    """When an evaluation was, in words."""
    return (
        f"{point.minutes:.1f} minutes, {point.gradient_steps:,.0f} gradient steps,"
        f" {point.environment_steps:,.0f} environment steps"
    )


def first_time(frame, share):
    """When an evaluation had at least this share of wins against both bots, in words."""
    reached = frame[(frame[[f"evaluation/{bot}/wins" for bot in BOTS]] >= share).all(axis=1)]
    return position(reached.iloc[0]) if len(reached) else "not reached"


def report(runs):
    """Prints all evaluations and first times."""
    for label, seed, frame in runs:
        print(run_name(label, seed))
        points = [results(frame, f"evaluation/{bot}/wins").itertuples() for bot in BOTS]
        for weak, strong in zip(*points, strict=True):
            print(f"  {position(weak)} | weak {in_words(weak)} | strong {in_words(strong)}")
        for share in SHARES:
            text = first_time(frame, share)
            print(f"  first time >= {share:.0%} wins against both bots: {text}")


def draw(runs, page):
    """Writes the page: wins of all runs over time, and their first times in a table."""
    table = [["wins against both", *(f"first ≥ {share:.0%}" for share in SHARES)]]
    for label, seed, frame in runs:
        times = (first_time(frame, share).replace(", ", "\n") for share in SHARES)
        table.append([run_name(label, seed), *times])
    write_comparison_page(compared(runs), page, "Time to skill", table)


@command
def main(arguments=None):
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("csv", nargs="+")
    parser.add_argument("--out", default="plots/time_to_skill.html", help="the page")
    options = parser.parse_args(arguments)
    runs = read_runs(options.csv)
    for label, seed, frame in runs:
        for bot in BOTS:
            if f"evaluation/{bot}/wins" not in frame:
                raise UserError(f"{run_name(label, seed)} was not evaluated against {bot}.")
    draw(runs, options.out)
    report(runs)
    print(f"page: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
