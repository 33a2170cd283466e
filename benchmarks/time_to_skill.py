"""Runs configs from zero for so many minutes and tells how soon they beat both bots.

    python benchmarks/time_to_skill.py hockey.yml [other.yml ...] --seeds 0 1 --minutes 60 \
        [--parallel 2] [key=value ...]
    python benchmarks/time_to_skill.py --read metrics/a.csv metrics/b.csv

Every run is a process of `main.py` with at least 200 games against each bot in an evaluation, in
a fresh folder, where its CSV, checkpoints and output stay. The minutes are those of the clock, with
the start of the program and the evaluations. A run ends sooner if its `gradient_steps` are done;
the learning rates fall over those, so they should fit the minutes.
Printed and drawn: every evaluation with 95% Wilson intervals, and the first one in which the wins
against both bots reached 50, 80, 90 and 95%; luck in a single evaluation counts.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import argparse
import signal
import subprocess
import sys
import time
from argparse import RawDescriptionHelpFormatter as AS_WRITTEN
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from checkpoint import check_writable  # noqa: E402
from config import load_config  # noqa: E402
from extras.plots import (  # noqa: E402
    read_evaluations,
    read_runs,
    run_name,
    write_comparison_page,
)
from matches import wilson_interval  # noqa: E402
from utils import UserError  # noqa: E402

BOTS, GAMES = ("weak", "strong"), 200
STOPPED = 75  # the exit status of main.py after a signal, all saved
SHARES = (0.5, 0.8, 0.9, 0.95)  # of games won, the skills asked for
OURS = {"run": "named after the config", "seed": "--seeds", "resume": "false", "overwrite": "false"}


class Run:
    """One process of `main.py`, from zero, in a folder that it may share with others."""

    def __init__(self, name, overrides, seed, folder):
        """Reads and completes the config; nothing is written yet."""
        for override in overrides:
            key = override.partition("=")[0]
            if key in OURS:
                raise UserError(f"'{override}' can't be chosen here: {key} is {OURS[key]}.")
        label = Path(name).stem
        self.name, stem = run_name(label, seed), f"{label}_seed{seed}"
        ours = [f"run={stem}", f"seed={seed}", "resume=false", "overwrite=false"]
        self.config = OmegaConf.to_container(load_config(name, [*overrides, *ours]))
        if self.config["environment"] != "hockey":
            raise UserError(f"{name} is not about hockey, so there are no bots to win against.")
        self.config["evaluation_games"] = max(GAMES, self.config["evaluation_games"])
        files = self.config["opponents"]["files"]
        self.config["opponents"]["files"] = [str(Path(file).absolute()) for file in files]
        self.folder, self.stem = folder, stem
        self.csv, self.log = folder / f"metrics/{stem}.csv", folder / f"{stem}.log"
        self.points, self.process, self.is_stopping = 0, None, False

    def start(self):
        """Starts the process; Ctrl-C does not reach it but through `stop`."""
        path = self.folder / f"{self.stem}.yml"
        OmegaConf.save(OmegaConf.create(self.config), path)
        self.began = time.time()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "main.py"), "--config", path.name],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
            )
        tell(f"{self.name}: started, {self.csv}")

    def watch(self, minutes):
        """Stops the run when its time is over -> whether it is still there."""
        is_there = self.process.poll() is None
        if time.time() - self.began > 60 * minutes:
            self.stop()
        if not is_there:
            tell(f"{self.name}: ended after {(time.time() - self.began) / 60:.1f} minutes")
        return is_there

    def stop(self):
        """Asks the run once to save and leave."""
        if not self.is_stopping:
            self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
        self.is_stopping = True

    def has_news(self):
        """Prints the evaluations since the last call -> whether there were any."""
        try:
            new = read_evaluations(self.csv)[self.points :]
        except UserError:
            return False  # none yet
        for _, point in new.iterrows():
            tell(f"{self.name}: {sentence(point)}")
        self.points += len(new)
        return len(new) > 0

    def problem(self):
        """What went wrong, in a sentence, or None."""
        if self.process is None:
            return f"{self.name} was not started."
        if self.process.returncode not in (0, STOPPED):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
            last = lines[-1] if lines else "it said nothing"
            return f"{self.name} failed (status {self.process.returncode}): {last}"
        return None if self.points else f"{self.name} ended before its first evaluation."


def tell(text):
    """Shows what is going on."""
    print(text, file=sys.stderr, flush=True)


def train(runs, minutes, parallel, show):
    """Runs all, at most `parallel` at once, `minutes` each; calls `show` after evaluations.

    Ctrl-C stops those under way as if their time were over, and starts no other.
    """
    waiting, running = list(runs), []

    def stop(*_):
        nonlocal minutes
        minutes = 0
        waiting.clear()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C leaves at once
        tell("\nthe runs are saving ...")

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                waiting[0].start()
                running.append(waiting.pop(0))
            time.sleep(1)
            present = [run for run in running if run.watch(minutes)]
            if any([run.has_news() for run in running]):
                show()
            running = present
    finally:
        for run in running:
            run.stop()


def position(point):
    """When an evaluation was, in words."""
    return (
        f"{point['minutes']:.1f} minutes, {point['gradient_steps']:,.0f} gradient steps,"
        f" {point['environment_steps']:,.0f} environment steps"
    )


def wins(point, bot):
    """The share of games won in an evaluation, with its interval."""
    share, games = (point[f"evaluation/{bot}/{value}"] for value in ("wins", "games"))
    low, high = wilson_interval(share, games)
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"


def sentence(point):
    """One evaluation in a line, as wide as any other."""
    parts = [
        f"{point['minutes']:6.1f} minutes {point['gradient_steps']:9,.0f} gradient steps"
        f" {point['environment_steps']:11,.0f} environment steps"
    ]
    parts += [f"{bot} {wins(point, bot):24}" for bot in BOTS]
    return " | ".join([*parts, f"{point['evaluation/weak/games']:.0f} games"])


def first_time(frame, share):
    """When an evaluation had at least this share of wins against both bots, in words."""
    reached = frame[(frame[[f"evaluation/{bot}/wins" for bot in BOTS]] >= share).all(axis=1)]
    return position(reached.iloc[0]) if len(reached) else "not reached"


def report(runs):
    """Prints all evaluations and first times."""
    for label, seed, frame in runs:
        print(run_name(label, seed))
        for _, point in frame.iterrows():
            print(f"  {sentence(point)}")
        for share in SHARES:
            text = first_time(frame, share)
            print(f"  first time >= {share:.0%} wins against both bots: {text}")


def draw(runs, page):
    """Writes the page: wins of all runs over time, and their first times in a table."""
    table = [["wins against both", *(f"first ≥ {share:.0%}" for share in SHARES)]]
    for label, seed, frame in runs:
        times = (first_time(frame, share).replace(", ", "\n") for share in SHARES)
        table.append([run_name(label, seed), *times])
    write_comparison_page(runs, page, "Time to skill", table)


def checked(runs):
    """The runs, if all of them played against both bots; else raises `UserError`."""
    for label, seed, frame in runs:
        for bot in BOTS:
            if f"evaluation/{bot}/wins" not in frame:
                raise UserError(f"{run_name(label, seed)} was not evaluated against {bot}.")
    return runs


def run_all(options, page):
    """Trains every config with every seed and reports -> the exit status."""
    overrides = [text for text in options.configs if "=" in text]
    names = [text for text in options.configs if "=" not in text] or ["hockey.yml"]
    if len({Path(name).stem for name in names}) < len(names):
        raise UserError("Two of the configs have the same name: rename one of them.")
    if options.minutes <= 0 or options.parallel < 1:
        raise UserError("--minutes must be above 0 and --parallel at least 1.")
    folder = Path(options.folder).absolute() / time.strftime("%Y-%m-%d_%H-%M-%S")
    seeds = dict.fromkeys(options.seeds)
    runs = [Run(name, overrides, seed, folder) for name in names for seed in seeds]
    check_writable(folder)

    def results():
        return checked(read_runs([run.csv for run in runs if run.points]))

    train(
        runs,
        options.minutes,
        options.parallel,
        lambda: draw(results(), page),
    )
    problems = [run.problem() for run in runs if run.problem()]
    if any(run.points for run in runs):
        report(results())
        print(f"page: {page}, files of the runs: {folder}")
    for problem in problems:
        tell(f"time_to_skill.py: {problem}")
    return 2 if problems else 0


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=AS_WRITTEN)
    parser.add_argument("configs", nargs="*", help="configs and key=value (default: hockey.yml)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=60, help="of each run")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", default="runs/time_to_skill", help="of the runs' files")
    parser.add_argument("--out", default="plots/time_to_skill.html", help="the page")
    parser.add_argument("--read", nargs="+", metavar="CSV", help="draw runs that exist instead")
    options = parser.parse_intermixed_args(arguments)
    page = Path(options.out)
    try:
        check_writable(page.parent)
        if not options.read:
            return run_all(options, page)
        if options.configs:
            raise UserError("--read runs nothing, so it takes no configs and no key=value.")
        runs = checked(read_runs(options.read))
        draw(runs, page)
        report(runs)
        print(f"page: {page}")
    except UserError as error:
        tell(f"time_to_skill.py: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
