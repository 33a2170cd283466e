"""Measures the game's speed, and the ratio to the lab's `hockey` package if that is installed.

    python benchmarks/game.py

Both games play in turns, so that a busy machine slows both; each number is the median over the
repeats, in steps a second on one core.

Exit status: 0 it is done.
"""

import importlib
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import hockey_env  # noqa: E402
from machine import parser_of  # noqa: E402


def scripted_actions(env, module):
    """Returns a function that gives both scripted players' actions for player one's observation."""
    one, two = module.BasicOpponent(weak=False), module.BasicOpponent(weak=False)
    return lambda observation: np.hstack([one.act(observation), two.act(env.obs_agent_two())])


def random_actions(env, module):
    """Returns a function that gives random actions, drawn beforehand."""
    actions = iter(np.random.default_rng(0).uniform(-1, 1, (1_000_000, 8)))
    return lambda observation: next(actions)


def steps_per_second(module, players, steps):
    """Returns the speed of one game with resets, `players` being one of the functions above."""
    env = module.HockeyEnv()
    observation, _ = env.reset(seed=0)
    act = players(env, module)
    start = time.perf_counter()
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(act(observation))
        if terminated or truncated:
            observation, _ = env.reset()
    return steps / (time.perf_counter() - start)


def main():
    """Prints one line for each kind of players."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each game")
    arguments = parser.parse_args()
    modules = [hockey_env]
    try:
        modules.append(importlib.import_module("hockey.hockey_env"))
    except ImportError:
        print("The lab's package `hockey` is not installed, so this game is measured alone.")
    for name, players in (("scripted", scripted_actions), ("random", random_actions)):
        speeds = {module: [] for module in modules}
        for _ in range(arguments.repeats):
            for module in modules:
                speeds[module].append(steps_per_second(module, players, arguments.steps))
        ours, *others = (statistics.median(speeds[module]) for module in modules)
        line = f"{name:8} players: {ours:8,.0f} steps/s"
        for other in others:
            line += f", the lab's game {other:8,.0f} steps/s, ratio {ours / other:.2f}"
        print(line)


if __name__ == "__main__":
    main()
