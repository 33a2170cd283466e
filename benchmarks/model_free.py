"""Trains TD3 or SAC of stable-baselines3 on the same game, for comparison with `main.py`.

    python benchmarks/model_free.py td3 --minutes 30 [--seed 0] [hockey.reward=sparse ...]
    python evaluate.py --compare metrics/td3_seed0.csv metrics/hockey.csv

View, frame skip, reward, discount, threads and evaluations are those of hockey.yml and the keys
given; the opponents are both bots in turn, game by game; all else is the library's own. The CSV has
the columns of `main.py`. To install: pip install --no-deps stable-baselines3 cloudpickle.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import itertools
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from checkpoint import Metrics  # noqa: E402
from config import load_config  # noqa: E402
from hockey_env import BasicOpponent  # noqa: E402
from hockey_wrapper import HockeyGames  # noqa: E402
from machine import command, explained, parser_of, use_threads  # noqa: E402
from matches import play_games  # noqa: E402
from opponents import PerGame, load  # noqa: E402
from utils import UserError, seed_everything  # noqa: E402

MINUTES = 2.5  # of training between two evaluations


class BothBots:
    """The weak and the strong bot in turn, game by game."""

    def __init__(self, seed):
        bots = [BasicOpponent(weak=weak, seed=seed + weak) for weak in (False, True)]
        self.turns = itertools.cycle(bots)

    def reset(self):
        self.bot = next(self.turns)

    def act(self, observation):
        return self.bot.act(observation)


class HockeyWrapper(gymnasium.Env):
    """One game as a `gymnasium.Env` (18 -> 4 numbers) against an opponent with `act(obs18)`."""

    metadata = {"render_modes": []}

    def __init__(self, settings, opponent):
        """`settings`: `config.hockey`; `opponent`: anything with `act(obs18)`, maybe `reset()`."""
        player = PerGame([opponent])
        self.games = HockeyGames(settings, 1, lambda: player)
        self.observation_space = self.games.single_observation_space
        self.action_space = self.games.single_action_space

    def reset(self, *, seed=None, options=None):
        """Starts a game -> observation (18,), info."""
        super().reset(seed=seed)
        observations, info = self.games.reset(seed=seed)
        return observations[0], {"winner": int(info["winner"][0])}

    def step(self, action):
        """One decision (4,) -> observation, reward, terminated, truncated, info."""
        *results, info = self.games.step(np.asarray(action)[None])
        observation, reward, terminated, truncated = (result[0] for result in results)
        winner = {"winner": int(info["winner"][0])}
        return observation, float(reward), bool(terminated), bool(truncated), winner


def train(options, kind, noise):
    """Trains for so many minutes, evaluations not counted, and writes the CSV."""
    config = load_config("hockey.yml", [f"seed={options.seed}", *options.overrides])
    out = options.out or f"metrics/{options.algorithm}_seed{config.seed}.csv"
    if Path(out).exists():
        raise UserError(f"{out} exists: --out names another file.")
    use_threads(config.threads)
    seed_everything(config.seed)
    games = HockeyWrapper(config.hockey, BothBots(config.seed))
    shared = {"gamma": config.dreamer.discount, "seed": config.seed, "device": "cpu"}
    agent = kind("MlpPolicy", games, **shared, **noise)
    log = Metrics(out)
    began, evaluating, due = time.time(), 0.0, MINUTES

    def act(observations):
        return agent.predict(observations, deterministic=True)[0]

    def each_step(*_):
        nonlocal evaluating, due
        minutes = (time.time() - began - evaluating) / 60
        if minutes >= min(due, options.minutes):
            due, started = due + MINUTES, time.time()
            for bot in ("weak", "strong"):
                players = load(bot, config.evaluation_games, seed=agent.num_timesteps)
                games = config.evaluation_games, config.hockey, agent.num_timesteps
                result = play_games(act, players, *games)
                log.add(result.metrics(bot))
                print(f"{minutes:5.1f} min, {agent.num_timesteps:,} steps: {result}", flush=True)
            evaluating += time.time() - started
            log.started = time.time() - 60 * minutes  # the CSV's minutes are of training alone
            log.write(agent._n_updates, agent.num_timesteps)
        return minutes < options.minutes

    agent.learn(10**9, callback=each_step)


@command
def main():
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("algorithm", choices=("td3", "sac"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="the CSV (default: metrics/<algorithm>_seed<seed>.csv)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of hockey.yml")
    options = parser.parse_intermixed_args()
    needs = "stable-baselines3 is missing (pip install --no-deps stable-baselines3 cloudpickle)"
    with explained(needs, ImportError):
        import stable_baselines3
        from stable_baselines3.common.noise import NormalActionNoise
    noise = {"action_noise": NormalActionNoise([0.0] * 4, [0.1] * 4)}
    kind = getattr(stable_baselines3, options.algorithm.upper())
    train(options, kind, noise if options.algorithm == "td3" else {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
