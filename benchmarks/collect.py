"""Measures acting and playing: game frames a second while collecting, seconds for an evaluation.

    python benchmarks/collect.py [--config hockey.yml] [key=value ...]

Collecting is one batched decision of the agent per step for all games side by side, against the
strong bot, with no training in between. The evaluation is 200 whole games. Medians over repeats.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dreamer import Dreamer  # noqa: E402
from evaluate import play_games  # noqa: E402
from hockey_wrapper import HockeyGames, OneOpponent  # noqa: E402
from opponents import load  # noqa: E402
from utils import UserError, load_config, pick_device, seed_everything  # noqa: E402


def frames_per_second(agent, config, decisions=200):
    """Game frames a second, over all games side by side."""
    count = config.environments
    games = HockeyGames(config.hockey, count, OneOpponent(load("strong", count)))
    observation, _ = games.reset(seed=0)
    start = time.perf_counter()
    for _ in range(decisions):
        observation, _, terminated, truncated, _ = games.step(agent.act(observation))
        agent.reset(terminated | truncated)
    return decisions * count * config.hockey.frame_skip / (time.perf_counter() - start)


def main():
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="hockey.yml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    try:
        config = load_config(options.config, options.overrides)
        device = pick_device(config.device)
    except UserError as error:
        print(f"collect.py: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(config.threads or torch.get_num_threads())
    seed_everything(0)
    agent = Dreamer(config, 18, 4, device)
    speeds = [frames_per_second(agent, config) for _ in range(options.repeats)]
    print(f"{device}, {torch.get_num_threads()} threads, {config.environments} games side by side")
    print(f"collecting: {statistics.median(speeds):,.0f} game frames/s")
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        play_games(agent, load("strong", 200), 200)
        seconds.append(time.perf_counter() - start)
    print(f"evaluation: {statistics.median(seconds):.1f} s for 200 games against the strong bot")
    return 0


if __name__ == "__main__":
    sys.exit(main())
