"""Every combination of settings with every seed: runs of `main.py`, and one page of them all.

python sweep.py --config hockey.yml --seeds 0 1 2 dreamer.horizon=3,6 dreamer.unimix=0,0.01
python sweep.py ... --parallel 2                              so many runs at the same time
python sweep.py ... --slurm time=240 partition=gpu gpus=1     on a cluster, by submitit

The same command again goes on with what is missing, and repeats nothing. Exit status: 0 all runs
are done, 2 something to mend (a sentence says what), 75 stopped: the same command goes on.
"""

import installed  # noqa: F401  before all others

# isort: split
import functools
import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError, safe_open

from checkpoint import RunFiles, check_writable
from config import changes, load_config, plain
from extras import plots
from extras.cluster import submit
from machine import STOPPED, Stop, command, explained, parser_of
from utils import UserError

MAIN = Path(__file__).resolve().parent / "main.py"
tell = functools.partial(print, flush=True)  # what is going on
HOW = ("run", "seed", "threads", "device")  # keys that no run is named after


class Run:
    """A combination with a seed; its `process` is here, or a job in the queue of a cluster."""

    def __init__(self, label, arguments):
        """`label`: the combination in words; `arguments`: the command line of `main.py`."""
        self.label, self.arguments, self.process = label, arguments, None
        self.config = load_config(arguments[1], arguments[2:])
        self.name, self.files = self.config.run, RunFiles(self.config.run)
        self.log = self.files.csv.with_suffix(".log")

    def is_done(self):
        """Says whether nothing is left to do. Raises `UserError` if it had other settings."""
        try:
            with safe_open(self.files.newest, "pt") as file:
                texts = file.metadata()
            names = ("config", "steps", "evaluated")
            theirs, (_, step), evaluated = (json.loads(texts[name]) for name in names)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return False  # none yet, or damaged: main.py takes the one before it
        for key, old, new in changes(theirs, self.config):
            if key not in (*HOW, "gradient_steps"):
                raise UserError(
                    f"The run '{self.name}' exists with another {key} ({old}, not {new}):"
                    " run=another_name leaves it alone."
                )
        return self.config.gradient_steps <= step == evaluated and self.files.csv.exists()

    def start(self):
        """Starts it as a process, which Ctrl-C does not reach."""
        check_writable(self.log.parent)
        command = [sys.executable, str(MAIN), *self.arguments]
        with open(self.log, "w") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, start_new_session=True, **streams)
        tell(f"{self.name}: started")

    def last_words(self):
        """Returns the sentence that it ended with."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        sentences = re.findall("^main.py: .*", text, re.M) or text.strip().splitlines()
        return (sentences or ["it said nothing"])[-1]


def plan(options):
    """Returns the runs and the name of their page. Raises `UserError` for what can't be run."""
    if options.parallel is not None and options.parallel < 1:
        raise UserError("--parallel must be at least 1.")
    base, swept = load_config(options.config), {}
    for text in options.overrides:
        key, _, values = text.partition("=")
        if key in ("seed", "resume", "overwrite"):
            raise UserError(f"'{text}' can't be chosen here: --seeds and the sweep itself do.")
        with explained(f"'{text}' is not understood", yaml.YAMLError):
            swept[key] = plain(yaml.compose(f"[{values}]", yaml.BaseLoader)) or [""]
    cores, runs = torch.get_num_threads() // (options.parallel or 1), {}
    names = {key: key.split(".")[-1] for key, values in swept.items() if len(values) > 1}
    for *values, seed in itertools.product(*swept.values(), options.seeds):
        chosen = dict(zip(swept, values, strict=True)) | {"seed": seed}
        keys = [f"{key}={value}" for key, value in chosen.items()]
        config = load_config(options.config, keys)
        if "threads" not in swept and not options.slurm:
            keys.append(f"threads={max(1, min(config.threads or cores, cores))}")
        keys += [f"run={name_of(base, config)}", "resume=true"]
        label = " ".join(f"{name}={chosen[key]}" for key, name in names.items()).replace("'", "")
        run = Run(label or config.run, ["--config", options.config, *keys])
        if run.name in runs:
            advice = "take each seed once, and vary more than threads or device"
            raise UserError(f"Two runs would be called {run.name}: {advice}.")
        runs[run.name] = run
    return list(runs.values()), "_".join([config.run, *(names.values() or ["seeds"])])


def name_of(base, config):
    """Returns the name of a run: what is different from its config file, and its seed."""
    parts = [config.run]
    for key, _, value in changes(base, config):
        if key not in HOW:
            text = str(value).removesuffix(".0").replace(" ", "")
            parts.append(f"{key.split('.')[-1]}={text}")
    name = "_".join(parts)
    if (plain_name := re.sub(r"[^\w.,=+\[\]-]", "", name, flags=re.A)[:150]) != name:
        name = f"{plain_name or 'run'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}_seed{config.seed}"


def follow(runs, parallel, stop):
    """Runs them, so many at once, until `stop` asks all to save and leave -> the exit status."""
    waiting = [run for run in runs if not run.process]
    running, told, ended = [run for run in runs if run.process], set(), []
    while running or (waiting and not stop.requested):
        while waiting and len(running) < parallel and not stop.requested:
            waiting[0].start()
            running.append(waiting.pop(0))
        time.sleep(0.2)
        for run in list(running):
            if stop.requested and run not in told:
                told.add(run)
                run.process.terminate()
            status = run.process.poll()
            if status is not None:
                status = STOPPED if status == -signal.SIGTERM else status  # before it could listen
                words = {0: "done", STOPPED: "stopped"}.get(status) or run.last_words()
                ended.append(status)
                running.remove(run)
                stop.requested |= status == STOPPED  # by somebody else, who means all of them
                tell(f"{run.name}: {words} ({len(ended)} of {len(runs)})")
    return STOPPED if STOPPED in ended or waiting else 2 * any(ended)


def report(runs, name, about):
    """Prints and draws what the runs have come to; `about`: the page's first line."""
    found = [(run.label, run.config.seed, plots.read_evaluations(run.files.csv)) for run in runs]
    plots.report(found, f"plots/{name}.html", name, about)


@command
def main(arguments=None):
    """Does what the command line asks for; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="hockey.yml", help="a path, or a name in configs/")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--parallel", type=int, help="runs at the same time (1; on a cluster: all)")
    parser.add_argument("--slurm", nargs="+", metavar="key=value", help="options of sbatch")
    parser.add_argument("overrides", nargs="*", metavar="key=value,value", help="config keys")
    options, stop = parser.parse_intermixed_args(arguments), Stop()
    options.overrides += [text for text in options.seeds if "=" in text]  # they may follow
    options.seeds = [text for text in options.seeds if "=" not in text] or ["0"]
    try:
        runs, name = plan(options)
        missing = [run for run in runs if not run.is_done()]
        tell(f"{len(runs)} runs, {len(runs) - len(missing)} of them done")
        if options.slurm and missing:
            submit(missing, name, options.slurm, options.parallel)
        else:
            stop.listen()
        status = follow(missing, options.parallel or 1, stop)
        done = [run for run in runs if run.is_done()]
        if done and status != STOPPED:
            report(done, name, " ".join([options.config, *options.overrides]))
    except KeyboardInterrupt:
        what = "the jobs stay in the queue" if options.slurm else "nothing has begun"
        print(f"{what}; the same command goes on", file=sys.stderr)
        return STOPPED
    if status == STOPPED:
        print("stopped and saved; the same command goes on", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
