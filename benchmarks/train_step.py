"""Measures a gradient step and its parts: seconds, operations, and the share of the machine's rate.

    python benchmarks/train_step.py [--config benchmark.yml] [--compare other.yml] [key=value ...]

Seconds are medians over the repeats; with `--compare` both agents step in turns, so that a busy
machine slows both. "World model", "imagination" and "behavior" end in losses; "gradients" are the
backward passes of all three. Operations are those of matrix products, by PyTorch's own counter. The
rate of bfloat16 products is measured only where the device has instructions for them.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from buffer import ReplayBuffer  # noqa: E402
from config import load_config  # noqa: E402
from dreamer import Dreamer  # noqa: E402
from hockey_wrapper import MIRROR  # noqa: E402
from machine import (  # noqa: E402
    command,
    keep_freed_memory,
    multiplies_bfloat16,
    parser_of,
    pick_device,
    use_threads,
)
from symmetry import Symmetry  # noqa: E402
from utils import UserError, seed_everything  # noqa: E402

PARTS = {  # of a step, and the agent's methods that do it; with more threads two go on at a time
    "sample": (),
    "world model": ("world_model_loss",),
    "imagination": ("imagine",),
    "behavior": ("actor_loss", "replayed_returns", "critic_loss"),  # less imagination
    "gradients": ("gradients",),
    "optimizers": ("descend",),
    "whole step": (),
}


def wait(device):
    """Lets the device finish what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device, dtype, size=2048, repeats=3):
    """The machine's matrix-product rate in GFLOP/s: the median of a size^3 product."""
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


def peak_memory(device):
    """The most memory so far in MB: of the device's tensors, or of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Subject:
    """An agent with a replay of noise, and stop-watches at the seams of its step."""

    def __init__(self, config, device):
        self.config, self.device = config, device
        if config.environment != "hockey" and not config.wrappers.resize:
            raise UserError("train_step measures hockey and worlds with wrappers.resize.")
        rings = 2 * config.environments
        observation, action = ((64, 64, 3), 3) if config.wrappers.resize else (18, 4)
        self.agent = Dreamer(config, observation, action, device)
        if config.environment == "hockey" and config.hockey.mirror:
            self.agent.symmetry = Symmetry(self.agent, MIRROR)
        self.agent.gradient_steps = config.dreamer.world_model_head_start
        sizes = SimpleNamespace(rows=500 * rings, batch_length=config.replay.batch_length)
        self.replay = ReplayBuffer(sizes, rings, observation, action, device)
        for time_step in range(500):
            is_first = torch.full((rings,), float(time_step % 50 == 0))
            actions, ends = 2 * torch.rand(rings, action) - 1, torch.zeros(rings)
            is_image = self.agent.is_image
            seen = 255 * torch.rand(rings, *observation) if is_image else torch.randn(rings, 18)
            self.replay.add(seen, actions, torch.randn(rings), is_first, ends)
        self.seconds = {part: [] for part in PARTS}
        self.current = dict.fromkeys(PARTS, 0.0)
        self.gigaflop = self.operations()
        if device.type != "cuda":  # there a step is recorded as a whole
            self.watch()

    def now(self):
        """The time when the device has finished its work so far, in seconds."""
        wait(self.device)
        return time.perf_counter()

    def watch(self):
        """Puts stop-watches around the agent's methods; nothing in the agent knows of them."""

        def timed(part, function):
            def run(*arguments, **options):
                start = self.now()
                result = function(*arguments, **options)
                self.current[part] += self.now() - start
                return result

            return run

        for part, names in PARTS.items():
            for name in names:
                setattr(self.agent, name, timed(part, getattr(self.agent, name)))

    def step(self):
        """One gradient step, its parts noted."""
        self.current = dict.fromkeys(PARTS, 0.0)
        sizes = self.config.replay
        start = self.now()
        batch = self.replay.sample(sizes.batch_size, sizes.batch_length)
        self.current["sample"] = self.now() - start
        with self.agent.update(batch):
            pass
        self.current["behavior"] -= self.current["imagination"]
        self.current["whole step"] = self.now() - start
        for part in PARTS:
            self.seconds[part].append(self.current[part])

    def forget_last(self):
        """Takes the last step out of the notes."""
        for part in PARTS:
            self.seconds[part].pop()

    def operations(self):
        """Floating-point operations of one of the first steps, in GFLOP."""
        self.step()  # behavior is learned from the batch before
        counter, threads = FlopCounterMode(display=False), torch.get_num_threads()
        torch.set_num_threads(1)  # so that all is done in this thread: no other is counted
        with counter:
            self.step()
        torch.set_num_threads(threads)
        return counter.get_total_flops() / 1e9


def report(name, subject, rate):
    """Prints one subject's medians."""
    print(f"\n{name}")
    medians = {part: statistics.median(times) for part, times in subject.seconds.items()}
    for part, seconds in medians.items():
        if seconds:
            print(f"  {part:12} {1000 * seconds:8.1f} ms")
    reached = subject.gigaflop / medians["whole step"]
    share = f"{reached / rate:.0%} of the float32 rate"
    print(f"  {subject.gigaflop:.1f} GFLOP a step, {reached:.0f} GFLOP/s, {share}")
    print(f"  {1 / medians['whole step']:.2f} steps/s")
    return medians["whole step"]


@command
def main():
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="benchmark.yml")
    parser.add_argument("--compare", help="a second config, measured in turns with the first")
    parser.add_argument("--steps", type=int, default=20, help="measured steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both configs")
    options = parser.parse_intermixed_args()
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, not {options.steps}.")
    names = [name for name in (options.config, options.compare) if name]
    configs = [load_config(name, options.overrides) for name in names]
    device = pick_device(configs[0].device)
    use_threads(configs[0].threads)
    keep_freed_memory()
    seed_everything(0)
    subjects = [Subject(config, device) for config in configs]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rates = {torch.float32: []}
    if multiplies_bfloat16(device):  # elsewhere they are emulated, a minute each
        rates[torch.bfloat16] = []
    for turn in range(options.steps + 3):
        if turn % 5 == 0:  # a shared machine changes its speed, so both are measured side by side
            for dtype, measured in rates.items():
                measured.append(matrix_rate(device, dtype))
            for subject in subjects:  # the large products emptied the caches: this step won't count
                subject.step()
                subject.forget_last()
        for subject in subjects:
            if turn == 3:  # the first steps warm up
                subject.seconds = {part: [] for part in PARTS}
            subject.step()
    rates = {dtype: statistics.median(measured) for dtype, measured in rates.items()}
    print("matrix products: " + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in rates.items()))
    print(f"peak memory: {peak_memory(device):.0f} MB")
    totals = []
    for name, subject in zip(names, subjects, strict=True):
        precision = "bfloat16" if subject.agent.in_bfloat16 else "float32"
        totals.append(report(f"{name}, {precision}", subject, rates[torch.float32]))
    if len(totals) == 2:
        print(f"\n{names[0]} takes {totals[0] / totals[1]:.2f} times as long as {names[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
