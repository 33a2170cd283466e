"""NaturalDreamer's gradient step and ours on the same work, in turns on the same CPU.

    python benchmarks/natural_dreamer.py FOLDER [--steps 20] [key=value ...]
    python benchmarks/natural_dreamer.py FOLDER --images [--steps 5]

The first is the standard work, the second its own: CarRacing, as its config has it. FOLDER holds a
copy of github.com/InexperiencedMe/NaturalDreamer, of which nothing is part of this project. For the
standard work it gets what `configs/benchmark.yml` asks for: MLPs of the same sizes instead of its
convolutions, its continue head switched on, and windows of one row more, as it learns nothing from
the first one. With images it is left as it is, and `car-racing.yml` takes over its sizes. What is
left of difference: it has no norm layers, and normal distributions for reward and value. Each agent
has a process of its own.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import multiprocessing
import statistics
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(Path(__file__).resolve().parent))
from train_step import Subject, matrix_rate, peak_memory  # noqa: E402

from config import load_config  # noqa: E402
from machine import command, keep_freed_memory, parser_of, use_threads  # noqa: E402
from utils import UserError, one_line  # noqa: E402

THEIR_CONFIG = "configs/car-racing-v3.yml"
HEADS = ("priorNet", "posteriorNet", "reward", "continuation", "actor", "critic")
ITS_OWN = [  # sizes of its config, as ours are called; of 64 rows it learns from 63
    *("replay.batch_size=32", "replay.batch_length=63", "environments=2", "dreamer.horizon=15"),
    *("dreamer.recurrent_size=600", "dreamer.hidden_size=400", "dreamer.channels=16"),
    *("dreamer.latent_groups=16", "dreamer.latent_classes=16", "dreamer.imagination_starts=0"),
    *("dreamer.actor_gradient=reinforce", "dreamer.critic_replay=0", "threads=2"),
]


class AttributeDict(dict):
    """What the package attridict gives: nested dicts, read as attributes."""

    def __getattr__(self, key):
        try:
            value = self[key]
        except KeyError:
            raise AttributeError(key) from None
        return AttributeDict(value) if type(value) is dict else value


def ours(config, folder):
    """Our gradient step, as a function."""
    keep_freed_memory()
    return Subject(config, torch.device("cpu")).step


def their_settings(config, folder):
    """NaturalDreamer's own settings, with the sizes of our config."""
    settings = yaml.safe_load(Path(folder, THEIR_CONFIG).read_text())["dreamer"]
    wanted = config.dreamer
    if config.wrappers.resize:  # images: its own work
        return settings
    settings |= {
        "batchSize": config.replay.batch_size,
        "batchLength": config.replay.batch_length + 1,
        "imaginationHorizon": wanted.horizon,
        "recurrentSize": wanted.recurrent_size,
        "latentLength": wanted.latent_groups,
        "latentClasses": wanted.latent_classes,
        "encodedObsSize": wanted.hidden_size,
        "useContinuationPrediction": True,
    }
    settings["recurrentModel"]["hiddenSize"] = wanted.hidden_size
    for head in HEADS:
        settings[head] |= {"hiddenSize": wanted.hidden_size, "numLayers": wanted.hidden_layers}
    return settings


def theirs(config, folder):
    """NaturalDreamer's gradient step on the same work, as a function."""
    sys.modules["attridict"] = AttributeDict  # it pins an old PyYAML
    sys.modules.setdefault("imageio", types.ModuleType("imageio"))  # for its videos only
    for name in ("utils", "networks", "dreamer", "buffer"):  # ours of the same names
        sys.modules.pop(name, None)
    sys.path.insert(0, folder)
    import dreamer
    from utils import sequentialModel1D

    layers = [config.dreamer.hidden_size] * config.dreamer.hidden_layers

    class Encoder(torch.nn.Module):
        def __init__(self, shape, size, _):
            super().__init__()
            self.layers = sequentialModel1D(shape[0], layers, size, "Tanh")

        def forward(self, x):
            return self.layers(x)

    class Decoder(Encoder):
        def __init__(self, size, shape, _):
            super().__init__((size,), shape[0], _)

    def binary_cross_entropy(share, target):
        """What it means by `nn.BCELoss(share, target)`, which builds a module and fails."""
        return F.binary_cross_entropy(share, target.squeeze(-1))

    settings, shape, actions, rows = their_settings(config, folder), (18,), 4, 10_000
    if config.wrappers.resize:
        shape, actions, rows = (3, 64, 64), 3, 1_000
    else:
        dreamer.EncoderConv, dreamer.DecoderConv = Encoder, Decoder
        dreamer.nn.BCELoss = binary_cross_entropy
    low, high = [-1.0] * actions, [1.0] * actions
    agent = dreamer.Dreamer(shape, actions, low, high, "cpu", AttributeDict(settings))
    for row in range(rows):
        noise, action = np.random.rand(2, *shape), np.random.uniform(-1, 1, actions)
        agent.buffer.add(noise[0], action, np.random.randn(), noise[1], float(row % 50 == 49))

    def step():
        batch = agent.buffer.sample(settings["batchSize"], settings["batchLength"])
        states, _ = agent.worldModelTraining(batch)
        assert len(states) == config.replay.batch_size * config.replay.batch_length, len(states)
        agent.behaviorTraining(states)

    return step


def serve(pipe, make, config, folder):
    """Takes so many steps as each message says, answers with the last one's seconds.

    To a 0 it answers with the peak memory. Before all that it sends why it can't, or nothing.
    """
    use_threads(config.threads)
    try:
        step = make(config, folder)
    except Exception as error:  # whatever a folder that is no NaturalDreamer raises
        pipe.send(f"{type(error).__name__}: {one_line(error)}")
        return
    pipe.send("")
    while steps := pipe.recv():
        for _ in range(steps):
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
        pipe.send(seconds)
    pipe.send(peak_memory(torch.device("cpu")))


def compare(config, options):
    """Both agents' steps in turns; prints medians and their ratio."""
    context, pipes, seconds = multiprocessing.get_context("spawn"), {}, {}
    for make in (theirs, ours):
        pipes[make], far = context.Pipe()
        seconds[make] = []
        work = (far, make, config, options.folder)
        context.Process(target=serve, args=work, daemon=True).start()
        far.close()  # so that the end of the process is the end of the pipe
        if problem := pipes[make].recv():
            raise UserError(f"{options.folder} can't be used as NaturalDreamer: {problem}")
    use_threads(config.threads)
    rates = []
    for _ in range(options.steps + 3):
        rates.append(matrix_rate(torch.device("cpu"), torch.float32))
        for make, pipe in pipes.items():
            time.sleep(0.05)  # until the threads of the one before have stopped spinning
            pipe.send(2)  # whoever was before has emptied the caches: the first step won't count
            seconds[make].append(pipe.recv())
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"matrix products: float32 {statistics.median(rates[3:]):.0f} GFLOP/s")
    for make, pipe in pipes.items():
        pipe.send(0)
        median = 1000 * statistics.median(seconds[make][3:])  # the first ones warm up
        print(f"{make.__name__:7} {median:6.1f} ms a step, peak memory {pipe.recv():.0f} MB")
    ratios = [a / b for a, b in zip(seconds[theirs][3:], seconds[ours][3:], strict=True)]
    print(f"theirs takes {statistics.median(ratios):.2f} times as long")


@command
def main():
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", help="a copy of NaturalDreamer")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each")
    parser.add_argument("--images", action="store_true", help="CarRacing instead")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    name, sizes = ("car-racing.yml", ITS_OWN) if options.images else ("benchmark.yml", [])
    config = load_config(name, sizes + options.overrides)
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, not {options.steps}.")
    for name in ("dreamer.py", THEIR_CONFIG):
        if not Path(options.folder, name).is_file():
            raise UserError(f"{options.folder} holds no {name}: name a copy of NaturalDreamer.")
    compare(config, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
