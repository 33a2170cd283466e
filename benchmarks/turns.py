"""Gradient steps of two copies of the code, in turns on the same CPU, each in its own process.

    python benchmarks/turns.py FOLDER [--config hockey.yml] [--turns 10] [--body 45] [key=value ...]

FOLDER holds another copy of this project, say of an earlier commit; each reads its own config of
that name. A turn is four gradient steps on random numbers of the one, then of the other, as a
shared machine changes its speed; the first two turns don't count. Printed: the medians in
milliseconds a step, and the quotient this : FOLDER, turn by turn.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import contextlib
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from config import load_config  # noqa: E402
from machine import command, parser_of  # noqa: E402
from utils import UserError  # noqa: E402

STEPS, WARM_UP = 4, 2  # a turn's steps, and turns
STEPPER = """
import os, sys, time
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the commands do
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import torch
from config import load_config
from machine import keep_freed_memory, use_threads
from train_step import Subject
config, body = load_config(sys.argv[2], sys.argv[5:]), float(sys.argv[3]) / 1000
use_threads(config.threads)
keep_freed_memory()
subject = Subject(config, torch.device("cpu"))
for _ in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(sys.argv[4])):
        sizes = config.replay
        with subject.agent.update(subject.replay.sample(sizes.batch_size, sizes.batch_length)):
            until = time.perf_counter() + body
            while time.perf_counter() < until:  # in the place of collecting
                pass
    print((time.perf_counter() - start) / int(sys.argv[4]), flush=True)
"""


@command
def main():
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", help="the other copy")
    parser.add_argument("--config", default="hockey.yml")
    parser.add_argument("--turns", type=int, default=10, help="measured ones")
    parser.add_argument("--body", type=float, default=0.0, help="milliseconds of the loop's body")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    if not Path(options.folder, "benchmarks/train_step.py").is_file():
        raise UserError(f"{options.folder} holds no copy of this project.")
    load_config(options.config, options.overrides)  # mistakes are told once, in a sentence
    pipes, seconds = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}, []
    asked = [options.config, str(options.body), str(STEPS), *options.overrides]
    folders = [str(ROOT), str(Path(options.folder).resolve())]
    run = [sys.executable, "-c", STEPPER]
    both = [subprocess.Popen([*run, x, *asked], cwd=x, **pipes) for x in folders]
    for _ in range(options.turns + WARM_UP):
        for process in both:
            with contextlib.suppress(BrokenPipeError):
                print("go", file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                raise UserError(f"{process.args[3]} can't do that step: what it said is above.")
            seconds.append(float(line))
    ours, theirs = (seconds[2 * WARM_UP + i :: 2] for i in (0, 1))
    shares = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    ours, theirs = (1000 * statistics.median(times) for times in (ours, theirs))
    print(f"this {ours:.0f} ms, {options.folder} {theirs:.0f} ms a step; quotient, median of")
    print(f"{len(shares)}: {statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
