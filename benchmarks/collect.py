"""Measures acting and playing: how fast the agent collects, is evaluated and decides.

    python benchmarks/collect.py [--config hockey.yml] [--agent champion] [key=value ...]

Collecting (game frames a second) is one batched decision of the agent per step for all games side
by side, against the strong bot, with no training in between. The evaluation is 200 whole games.
Single decisions are those of one game, without and with a look ahead. Medians over repeats; the
agent is an untrained one unless a saved one is named.

Exit status: 0 it is done, 2 something to mend (one sentence says what).
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from config import load_config  # noqa: E402
from dreamer import Dreamer  # noqa: E402
from hockey_wrapper import HockeyGames  # noqa: E402
from machine import command, parser_of, pick_device, use_threads  # noqa: E402
from matches import play_match  # noqa: E402
from opponents import AgentOpponent, find_agent, load  # noqa: E402
from utils import seed_everything  # noqa: E402


def frames_per_second(agent, config, decisions=200):
    """Game frames a second, over all games side by side."""
    count = config.environments
    bot = load("strong", count)
    games = HockeyGames(config.hockey, count, lambda: bot)
    observation, _ = games.reset(seed=0)
    start = time.perf_counter()
    for _ in range(decisions):
        observation, _, terminated, truncated, _ = games.step(agent.act(observation))
        agent.reset(terminated | truncated)
    return decisions * count * config.hockey.frame_skip / (time.perf_counter() - start)


def milliseconds(agent, plan, decisions=500):
    """Of each of so many single decisions, but the first ones, which warm up."""
    player, seconds = agent.player(), []
    for observation in torch.randn(decisions + 20, 18).numpy():
        start = time.perf_counter()
        player.act(observation, deterministic=True, plan=plan)
        seconds.append(1000 * (time.perf_counter() - start))
    return seconds[20:]


@command
def main():
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("--config", default="hockey.yml")
    parser.add_argument("--agent", help="a saved one instead of an untrained one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    config = load_config(options.config, options.overrides)
    device = pick_device(config.device)
    seed_everything(0)
    if options.agent:
        agent = Dreamer.load(find_agent(options.agent), device)
    else:
        agent = Dreamer(config, 18, 4, device)
    use_threads(config.threads)
    speeds = [frames_per_second(agent, config) for _ in range(options.repeats)]
    print(f"{device}, {torch.get_num_threads()} threads, {config.environments} games side by side")
    print(f"collecting: {statistics.median(speeds):,.0f} game frames/s")
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        player = AgentOpponent(agent, 200, config.run, deterministic=True)
        play_match(player, load("strong", 200), 200)
        seconds.append(time.perf_counter() - start)
    print(f"evaluation: {statistics.median(seconds):.1f} s for 200 games against the strong bot")
    for plan in (False, True):
        times = milliseconds(agent, plan)
        text = f"{statistics.median(times):.1f} ms, at most {max(times):.1f} ms"
        print(f"a decision {'with' if plan else 'without'} a look ahead: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
