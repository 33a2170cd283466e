"""Opponents that our agent never met in training: SAC and TD3 of stable-baselines3.

    python benchmarks/strangers.py train --algorithm sac td3 --steps 300000 --seed 0
    python benchmarks/strangers.py play checkpoints/champion.safetensors --games 200

A stranger learns on `HockeyWrapper` with the frame skip and reward of `configs/hockey.yml`, against
the weak or the strong bot. All that is kept of it is its deterministic actor, as plain tensors in
`strangers/<algorithm>_seed<seed>.safetensors` with a little JSON, so nothing is ever unpickled, and
`play` does without stable-baselines3.
"""

import argparse
import json
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dreamer import Dreamer  # noqa: E402
from evaluate import find_agent, play_games  # noqa: E402
from hockey_env import BasicOpponent  # noqa: E402
from hockey_wrapper import HockeyWrapper  # noqa: E402
from opponents import AgentOpponent, load  # noqa: E402
from utils import (  # noqa: E402
    UserError,
    check_writable,
    load_config,
    one_line,
    wilson_interval,
    write_atomically,
)

ALGORITHMS = ("sac", "td3")
NET_ARCH = [256, 256]  # SAC's default, for both: TD3's [400, 300] takes longer
GAMES = 8  # side by side; one round of them is 8 environment steps ...
GRADIENT_STEPS = 4  # ... and 4 gradient steps: they take nearly all the time, the games very little


# ---------------------------------------------------------------------------- training


class EitherBot:
    """The weak or the strong bot, drawn anew for each game, so neither is tied to side or start."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)
        self.bots = [BasicOpponent(weak=weak, seed=seed) for weak in (True, False)]
        self.reset()

    def reset(self):
        """Draws the bot of the next game."""
        self.bot = self.bots[self.generator.integers(2)]

    def act(self, observation):
        """18 numbers -> 4 numbers."""
        return self.bot.act(observation)


def train(algorithm, steps, seed, settings):
    """A model of stable-baselines3 after at least so many environment steps (decisions).

    `settings`: `config.hockey`. Its defaults, but for NET_ARCH and the rate of gradient steps;
    a 30th of all steps is random play (100 steps would be less than one game); the replay forgets
    nothing; TD3 explores with the noise of its paper (by default it has none).
    """
    try:
        from stable_baselines3 import SAC, TD3
        from stable_baselines3.common.noise import NormalActionNoise
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError:
        raise UserError("Training needs stable-baselines3: pip install stable-baselines3") from None
    seeds = np.random.SeedSequence(seed).generate_state(GAMES)
    bots = [EitherBot(int(s)) for s in seeds]
    games = DummyVecEnv([partial(HockeyWrapper, settings, bot) for bot in bots])
    noise = {"action_noise": NormalActionNoise(np.zeros(4), np.full(4, 0.1))}
    model = {"sac": SAC, "td3": TD3}[algorithm](
        "MlpPolicy",
        games,
        seed=seed,
        device="cpu",  # the budget is meant for one CPU thread
        buffer_size=steps,
        learning_starts=steps // 30,
        train_freq=1,
        gradient_steps=GRADIENT_STEPS,
        policy_kwargs={"net_arch": NET_ARCH},
        **(noise if algorithm == "td3" else {}),
    )
    with tqdm(total=steps, desc=algorithm, unit=" steps") as bar:
        model.learn(steps, callback=lambda *_: bar.update(GAMES) or True)
    return model


def train_and_save(options):
    """The command `train`: one file for each algorithm."""
    folder, ending = Path(options.folder), f"_seed{options.seed}.safetensors"
    paths = {name: folder / f"{name}{ending}" for name in options.algorithm}
    for name, path in paths.items():
        if name not in ALGORITHMS:
            raise UserError(f"--algorithm: '{name}' is unknown; there are {', '.join(ALGORITHMS)}.")
        if path.exists():
            raise UserError(f"{path} exists already: delete it, or take another --seed.")
    if options.steps < 1 or not 0 <= options.seed < 2**32:
        raise UserError("--steps must be at least 1 and --seed from 0 to 4294967295.")
    check_writable(folder)
    config = load_config("hockey.yml")
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    for name, path in paths.items():
        start = time.perf_counter()
        model = train(name, options.steps, options.seed, config.hockey)
        seconds, steps = time.perf_counter() - start, model.num_timesteps
        about = {
            "algorithm": name,
            "net_arch": NET_ARCH,
            "frame_skip": config.hockey.frame_skip,
            "steps": steps,
            "seed": options.seed,
        }
        save_stranger(path, actor_of(model), about)
        print(f"{path}: {steps} steps, {seconds / 60:.1f} minutes, {steps / seconds:.0f} steps/s")


# ---------------------------------------------------------------------------- files


def make_actor(net_arch):
    """The deterministic actor of SAC and of TD3: (n, 18) -> (n, 4) in [-1, 1]."""
    widths = [18, *net_arch]
    hidden = [(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
    return nn.Sequential(*sum(hidden, ()), nn.Linear(widths[-1], 4), nn.Tanh())


def actor_of(model):
    """`make_actor` with the weights of a model of stable-baselines3, without SAC's deviation."""
    weights = model.policy.actor.state_dict()
    weights = [value for key, value in weights.items() if not key.startswith("log_std")]
    actor = make_actor(NET_ARCH)
    actor.load_state_dict(dict(zip(actor.state_dict(), weights, strict=True)))
    return actor


def save_stranger(path, actor, about):
    """Writes the actor's tensors, and `about` it (see `train_and_save`) as JSON."""
    metadata = {"stranger": json.dumps(about)}
    write_atomically(path, lambda file: save_file(actor.state_dict(), file, metadata))


class Stranger:
    """An actor with all that `AgentOpponent` and `play_games` ask of an agent; it has no memory."""

    sizes = (18, 4)

    def __init__(self, path):
        """Reads what `save_stranger` wrote. Raises `UserError` if that can't be done."""
        try:
            with safe_open(path, "pt") as file:
                self.about = json.loads((file.metadata() or {})["stranger"])
                weights = {key: file.get_tensor(key).float() for key in file.keys()}
            with torch.device("meta"):  # takes no memory until the weights are known to fit
                self.actor = make_actor(self.about["net_arch"])
            self.actor.load_state_dict(weights, assign=True)
            if not all(value.isfinite().all() for value in weights.values()):
                raise ValueError("some weights are not finite")
            self.name = "{algorithm}, {steps} steps, seed {seed}".format(**self.about)
            frame_skip = f"hockey.frame_skip={int(self.about['frame_skip'])}"
            self.config = load_config("hockey.yml", [frame_skip])
        except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no stranger: {one_line(error)}") from None
        except (RuntimeError, UserError) as error:
            raise UserError(f"{path} is damaged: {one_line(error)}") from None

    def player(self):
        """Itself, as it has no memory."""
        return self

    def remember(self, games):
        """Nothing: it decides by the observation alone."""

    def reset(self, games=None):
        """Nothing to forget."""

    @torch.no_grad()
    def act(self, observations, deterministic=True, games=None, plan=False):
        """Observations (n, 18) -> actions (n, 4), always the deterministic ones: no model."""
        return self.actor(torch.from_numpy(np.asarray(observations, np.float32))).numpy()


# ---------------------------------------------------------------------------- playing


def summary(result):
    """One line: won, drawn and lost, the share of the decided games, and who started how often."""
    wins, draws, losses = result.counts()
    text = f"{wins} won, {draws} drawn, {losses} lost | "
    if decided := wins + losses:
        low, high = wilson_interval(wins / decided, decided)
        text += f"{wins / decided:.1%} [{low:.1%}, {high:.1%}] of {decided} decided"
    else:
        text += "none decided"
    return f"{text} | started {result.we_started.sum()} of {len(result.we_started)} games"


def play(options):
    """The command `play`: each stranger against the bots, then the champion against it."""
    games, seed = options.games, options.seed
    if games < 4 or games % 4 or seed < 0:
        raise UserError("--games must be a multiple of 4, to balance starts; --seed at least 0.")
    champion = Dreamer.load(find_agent(options.champion))
    if champion.sizes != (18, 4):
        raise UserError(f"{options.champion} was not trained for hockey.")
    paths = sorted(Path(options.folder).glob("*.safetensors"))
    if not paths:
        raise UserError(
            f"{options.folder}/ holds no strangers: python benchmarks/strangers.py train"
        )
    torch.set_num_threads(1)
    for path, stranger in [(path, Stranger(path)) for path in paths]:
        print(f"{path.stem} ({stranger.name})")
        for bot in ("weak", "strong"):
            result = play_games(stranger, load(bot, games, seed), games, seed)
            print(f"  stranger against {bot}: {summary(result)}", flush=True)
        opponent = AgentOpponent(stranger, games, path.stem, deterministic=True)
        result = play_games(champion, opponent, games, seed, options.plan)
        print(f"  {Path(options.champion).stem} against stranger: {summary(result)}", flush=True)


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train strangers and save them")
    training.add_argument("--algorithm", nargs="+", default=ALGORITHMS, help="sac, td3")
    training.add_argument("--steps", type=int, default=300_000, help="environment steps of each")
    playing = commands.add_parser("play", help="play an agent against all saved strangers")
    playing.add_argument("champion", help="a .safetensors file, or a folder with best.safetensors")
    playing.add_argument("--games", type=int, default=200, help="games of each pair")
    playing.add_argument("--plan", action="store_true", help="the champion looks ahead")
    for command, function in ((training, train_and_save), (playing, play)):
        command.add_argument("--folder", default="strangers", help="where the strangers are saved")
        command.add_argument("--seed", type=int, default=0, help="of everything random")
        command.set_defaults(function=function)
    options = parser.parse_args(arguments)
    try:
        options.function(options)
    except UserError as error:
        print(f"strangers.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
