"""Training: reads one YAML, builds every object, then collect -> train -> evaluate -> save.

python main.py --config hockey.yml [key=value ...]

Exit status: 0 the run is done, 2 something to mend (one sentence says what), 75 a signal stopped it
and everything is saved: the same command with resume=true goes on.
"""

import os

# waiting threads soon sleep, so that company on a core does not bring two threads to a standstill
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from buffer import ReplayBuffer
from dreamer import Dreamer
from evaluate import evaluate_return, play_games
from hockey_wrapper import MIRROR_ACTION, MIRROR_OBSERVATION, HockeyGames
from opponents import BOTS, OpponentPool
from plots import write_page
from utils import (
    Every,
    Metrics,
    UserError,
    check_writable,
    keep_freed_memory,
    load_config,
    load_newest,
    one_line,
    open_tracker,
    pick_device,
    print_changes,
    random_state,
    restore_random_state,
    save_sealed,
    seed_everything,
    to_json,
    use_threads,
)

SEEN = ("observation", "done", "episode_return", "episode_length")  # one entry per game
STOPPED = 75  # exit status, EX_TEMPFAIL of sysexits.h: try again later


class Stopped(Exception):
    """A signal came while something was going on that can be begun again."""


class Interruptible:
    """An agent for evaluations, which may take minutes: raises `Stopped` once a signal has come."""

    def __init__(self, agent, training):
        self.agent, self.training, self.config = agent, training, agent.config

    def player(self):
        """The same agent with a memory of its own."""
        return Interruptible(self.agent.player(), self.training)

    def act(self, *arguments, **options):
        """As `Dreamer.act`."""
        if self.training.should_stop:
            raise Stopped
        return self.agent.act(*arguments, **options)


def make_environment(config, count, pool):
    """`count` games side by side: hockey against the pool, or any Gymnasium id with flat Boxes."""
    if config.environment == "hockey":
        return HockeyGames(config.hockey, count, pool, config.dreamer.discount)
    try:
        environment = gymnasium.make_vec(
            config.environment,
            count,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
            wrappers=[lambda env: gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)],
        )
    except (gymnasium.error.Error, AssertionError, ImportError, TypeError) as error:
        reason = one_line(error)
        raise UserError(f"environment: {config.environment} can't be used: {reason}") from None
    if len(environment.single_observation_space.shape or ()) != 1:
        raise UserError(f"environment: {config.environment} has no flat Box observations.")
    return environment


def open_videos(config):
    """A function that films an agent into a path, if the config's `videos` says so."""
    if not config.videos:
        return lambda agent, path: None
    if config.environment != "hockey":
        raise UserError("videos: only hockey can be filmed.")
    from play import check_recorder, film_agent  # here, so that training draws nothing

    check_writable("videos")
    check_recorder("videos/game.mp4")
    return film_agent


class Training:
    """One run: everything it is made of, and the loop."""

    def __init__(self, config):
        """Builds all objects from the config and goes on from a checkpoint if `resume` says so."""
        seed_everything(config.seed)
        use_threads(config.threads)
        keep_freed_memory()
        self.config = config
        self.device = pick_device(config.device)
        self.folder = Path("checkpoints") / config.run
        self.checkpoints = [self.folder / "state.pt", self.folder / "previous.pt"]
        self.csv, self.page = Path(f"metrics/{config.run}.csv"), Path(f"plots/{config.run}.html")
        is_new = self.check_name()

        self.is_hockey = config.environment == "hockey"
        self.pool = None
        if self.is_hockey:
            self.pool = OpponentPool(
                config.opponents, config.environments, config.seed, self.device
            )
        self.games = make_environment(config, config.environments, self.pool)
        sizes = [
            self.games.single_observation_space.shape[0],
            self.games.single_action_space.shape[0],
        ]
        self.views = 2 if self.is_hockey and config.hockey.both_views else 1
        self.agent = Dreamer(config, *sizes, self.device)
        self.replay = self.make_replay(sizes)
        self.mirror = None
        if self.is_hockey and config.hockey.mirror:
            self.mirror = torch.from_numpy(np.concatenate([MIRROR_OBSERVATION, MIRROR_ACTION]))
        self.metrics = Metrics(self.csv)
        self.environment_steps = 0
        self.started, self.minutes_before = time.time(), 0.0
        self.page_written = 0.0
        self.random = np.random.default_rng(config.seed)  # of the warm-up actions
        self.best = -np.inf  # score of best.safetensors
        self.latest = {}  # win rates of the last evaluation
        self.due = []  # what is still to be done at this gradient step, in this order
        self.should_stop = False  # set by a signal
        self.is_saved = False
        self.track = open_tracker(config)
        self.film = open_videos(config)
        if is_new:
            self.clear()
            self.start_games()
        else:
            self.restore()

    def make_replay(self, sizes):
        """The empty replay: one ring per game and view. Raises `UserError` if it is too small."""
        config, rings = self.config, self.views * self.config.environments
        rows, window = config.replay.rows, config.replay.batch_length
        replay = ReplayBuffer(rows, rings, *sizes, self.device, config.seed, config.environments)
        if replay.length < window:
            raise UserError(
                f"replay.rows: {rows} rows in {rings} rings are fewer than one window of {window}"
                f" each; take at least {window * rings}."
            )
        return replay

    def check_name(self):
        """Whether the run starts from nothing. Raises `UserError` if its name is taken."""
        config = self.config
        can_resume = any(path.exists() for path in self.checkpoints)
        for folder in (self.folder.parent, self.csv.parent, self.page.parent):
            check_writable(folder)
        if config.resume and can_resume:
            return False
        # a folder without a visible file is that of a run killed before its first checkpoint
        taken = [self.folder] if any(self.folder.glob("[!.]*")) else []
        taken += [path for path in (self.csv, self.page) if path.exists()]
        if taken and not config.overwrite:
            go_on = "add resume=true to go on with it, " if can_resume else "it can't go on: "
            raise UserError(
                f"The run '{config.run}' exists ({taken[0]}): {go_on}"
                "overwrite=true deletes it, run=another_name leaves it alone."
            )
        return True

    def clear(self):
        """Deletes an earlier run of this name, now that the new one is known to start."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in (self.csv, self.page):
            path.unlink(missing_ok=True)

    def run(self):
        """Collect -> train -> evaluate -> save, until the gradient steps are done or a signal.

        One thing at a time: wherever a checkpoint is written, the next thing to do is known.
        """
        config, agent = self.config, self.agent
        every = {"evaluate": config.evaluate_every}
        if self.is_hockey:  # after the evaluation, which asks how it does against former selves
            every |= {"add_snapshot": config.opponents.snapshot_every}
        every |= {"log": config.log_every, "save": config.save_every}
        is_time_to = {name: Every(steps, agent.gradient_steps) for name, steps in every.items()}
        done, total = agent.gradient_steps, config.gradient_steps
        # a log file gets a line a minute instead of an animation
        pace = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
        with tqdm(total=total, initial=done, unit="step", desc="warm-up", **pace) as self.bar:
            if not self.is_saved:  # from here on the run can be resumed
                self.save()
            while not self.should_stop and not self.is_done():
                self.advance(is_time_to)
            if not self.is_saved:
                self.save()

    def advance(self, is_time_to):
        """The next thing: what is due after the last gradient step, or another one, or collect."""
        try:
            if self.due:
                getattr(self, self.due.pop(0))()
            elif self.should_train():
                self.train()
                step = self.agent.gradient_steps
                self.due = [name for name, is_time in is_time_to.items() if is_time(step)]
            else:
                self.collect()
        except (RuntimeError, ValueError):
            self.check_agent()  # PyTorch fails in many ways when numbers went wrong: names them
            raise

    def is_done(self):
        """Whether all gradient steps are done, and what follows the last one."""
        return self.agent.gradient_steps >= self.config.gradient_steps and not self.due

    def should_train(self):
        """Whether `train_ratio` allows a gradient step now."""
        config, step = self.config, self.agent.gradient_steps
        warmup_steps = config.warmup_rows / self.views
        earned = (self.environment_steps - warmup_steps) * config.train_ratio
        batch_rows = config.replay.batch_size * config.replay.batch_length
        is_due = earned >= (step + 1) * batch_rows
        return is_due and self.replay.filled >= config.replay.batch_length

    def start_games(self):
        """Starts all games anew and writes their first rows."""
        self.agent.reset()
        seed = self.config.seed + self.environment_steps  # other games after each resume
        self.observation, info = self.games.reset(seed=seed)
        count = self.config.environments
        self.done = np.ones(count, bool)
        self.episode_return, self.episode_length = np.zeros(count), np.zeros(count, int)
        actions = np.zeros((count, *self.games.single_action_space.shape), np.float32)
        self.store(actions, np.zeros(count), np.zeros(count, bool), info)
        self.done = np.zeros(count, bool)

    def collect(self):
        """One decision in every game; the rows that come of it go into the replay."""
        began, self.is_saved = time.time(), False
        if self.environment_steps * self.views < self.config.warmup_rows:
            action = self.random.uniform(-1, 1, self.games.action_space.shape)
        else:
            action = self.agent.act(self.observation)
        self.check_numbers("the agent's action", action)
        is_first = self.done  # the step after an episode's end only starts the next one
        self.observation, reward, terminated, truncated, info = self.games.step(action)
        self.store(np.where(is_first[:, None], 0, action), reward, terminated, info)
        self.done = terminated | truncated
        self.environment_steps += len(action)
        self.agent.reset(is_first)
        self.count_episodes(reward, info)
        self.metrics.add_time("collect", began)

    def store(self, action, reward, terminated, info):
        """Writes one row per game, and one per game as the opponent saw it."""
        self.check_numbers("the observation", self.observation)
        self.check_numbers("the reward", reward)
        columns = [self.observation, action, reward, self.done, terminated]
        if self.views == 2:
            names = ("observation", "action", "reward")
            theirs = [info[f"opponent_{name}"] for name in names] + [self.done, terminated]
            columns = [np.concatenate(pair) for pair in zip(columns, theirs, strict=True)]
        self.replay.add(*columns)

    def check_numbers(self, name, numbers):
        """Raises `UserError` if one of them is not finite."""
        if not np.isfinite(numbers).all():
            raise UserError(
                f"{name} is not finite at environment step {self.environment_steps}, gradient step"
                f" {self.agent.gradient_steps}; the last good checkpoint is kept."
            )

    def count_episodes(self, reward, info):
        """Statistics of the training games that have just ended."""
        self.episode_return += reward
        self.episode_length += 1
        for game in np.flatnonzero(self.done):
            self.metrics.add(
                {
                    "train/episode_return": self.episode_return[game],
                    "train/episode_length": self.episode_length[game],
                }
            )
            if self.is_hockey:
                winner = info["winner"][game]
                self.pool.record(info["opponent"][game], winner)
                outcomes = {"wins": 1, "draws": 0, "losses": -1}
                self.metrics.add({f"train/{k}": winner == value for k, value in outcomes.items()})
        self.episode_return[self.done], self.episode_length[self.done] = 0, 0

    def train(self):
        """One gradient step, and meanwhile the decisions that have to come before the next one."""
        began, self.is_saved = time.time(), False
        sizes = self.config.replay
        batch = self.replay.sample(sizes.batch_size, sizes.batch_length, self.mirror)

        def meanwhile():
            nonlocal began
            start = time.time()
            while not self.should_train():
                self.collect()
            began += time.time() - start  # this was collecting

        self.metrics.add(self.agent.train_step(batch, meanwhile))
        self.metrics.add_time("train", began)
        self.bar.update(1)

    def evaluate(self):
        """Plays evaluation games; the agent with the best worst case is kept as best."""
        began, agent = time.time(), Interruptible(self.agent, self)
        self.check_agent()
        try:
            metrics, score = self.judge(agent)
        except Stopped:  # once more after the resume
            self.due.insert(0, "evaluate")
            return
        self.metrics.add(metrics)
        if score > self.best:
            self.best = score
            self.save_agent("best")
            self.film(self.agent, f"videos/{self.config.run}_{self.agent.gradient_steps}.mp4")
        self.metrics.add_time("evaluate", began)

    def judge(self, agent):
        """One evaluation -> its metrics, and the score by which the best agent is kept.

        In hockey that is the worst case: the lowest win rate against a bot or standing against a
        former self.
        """
        if self.is_hockey:
            games, seed = self.config.evaluation_games, self.agent.gradient_steps
            metrics, scores, self.latest = {}, [], {}
            for name, rival in self.pool.rivals(games, seed).items():
                result = play_games(agent, rival, games, seed)
                metrics |= result.metrics(name)
                if name in BOTS:
                    scores.append(result.win_rate())
                    self.latest[name] = f"{result.win_rate():.0%}"
                else:
                    scores.append(result.standing())
            score = min(scores)
        else:
            episodes = make_environment(self.config, self.config.evaluation_games, None)
            score = evaluate_return(agent, episodes, self.agent.gradient_steps)
            metrics = {"evaluation/return": score}
            self.latest = {"return": f"{score:.1f}"}
        return metrics, score

    def check_agent(self):
        """Raises `UserError` if numbers went wrong: no such agent is evaluated or saved.

        This waits for the device, so it is not asked at every step.
        """
        self.metrics.check(self.agent.gradient_steps)
        self.agent.check_finite()

    def log(self):
        """Writes a row of the CSV and the page, and shows the rates."""
        self.metrics.add({"world_model/free_nats": self.config.dreamer.free_nats})
        if self.is_hockey:
            self.metrics.add(self.pool.mix() | self.pool.ages(self.agent.gradient_steps))
        row = self.metrics.write(
            gradient_steps=self.agent.gradient_steps,
            environment_steps=self.environment_steps,
            minutes=self.minutes(),
        )
        self.track(row)
        self.bar.set_description(self.config.run, refresh=False)
        rate = f"{row['speed/environment_steps_per_second']:.0f}/s"
        steps = f"{self.environment_steps} ({rate})"
        self.bar.set_postfix(environment=steps, **self.latest, refresh=False)
        if time.time() - self.page_written > 60:  # it takes about a second
            self.write_page()

    def write_page(self):
        """Draws the run's page anew."""
        if not self.csv.exists():  # somebody deleted it
            self.metrics.save()
        write_page(self.csv, self.page)
        self.page_written = time.time()

    def minutes(self):
        """Minutes of training so far, over all resumes."""
        return self.minutes_before + (time.time() - self.started) / 60

    def save_agent(self, name):
        """Saves the agent alone, ready to play, as checkpoints/<run>/<name>.safetensors."""
        path = self.folder / f"{name}.safetensors"
        self.agent.save(path, environment_steps=self.environment_steps)
        return path

    def add_snapshot(self):
        """A frozen copy of the agent joins the pool of opponents."""
        self.check_agent()
        self.pool.add_snapshot(self.save_agent(f"snapshot_{self.agent.gradient_steps:07d}"))

    def save(self):
        """Saves everything that `resume=true` needs, and the agent alone."""
        self.check_agent()
        playing = self.games.playing_against if self.is_hockey else ()
        state = {
            "config": to_json(self.config),
            "agent": self.agent.state(),
            "replay": self.replay.state(),
            "pool": self.pool.state(playing) if self.pool else None,
            "games": self.games.state() if self.is_hockey else None,
            "views": {name: torch.from_numpy(getattr(self, name)) for name in SEEN},
            "metrics": self.metrics.state(),
            "due": self.due,
            "environment_steps": self.environment_steps,
            "minutes": self.minutes(),
            "best": self.best,
            "random": random_state(),
            "warmup": self.random.bit_generator.state,
        }
        if self.pool:
            self.pool.keep_files(playing)
        newest, before = self.checkpoints
        save_sealed(newest, state, before)
        self.is_saved = True
        self.save_agent("latest")
        if self.metrics.rows:
            self.write_page()

    def restore(self):
        """Goes on from what `save` wrote. Raises `UserError` if that does not fit."""
        path, state, complaints = load_newest(self.checkpoints)
        try:
            config = json.loads(state["config"])
            if config["run"] != self.config.run:
                raise ValueError(f"it is of the run {config['run']}, not {self.config.run}")
            self.agent.restore_state(state["agent"])
            self.replay.restore_state(state["replay"])
            self.environment_steps, self.due = state["environment_steps"], state["due"]
            self.minutes_before, self.best = state["minutes"], state["best"]
            self.random.bit_generator.state = state["warmup"]
            self.restore_games(state)
            restore_random_state(state["random"])
            self.metrics.restore_state(state["metrics"])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} does not fit this run: {one_line(error)}") from None
        for complaint in complaints:
            print(f"{complaint} It is left as damaged.pt; the one before it is used.")
            os.replace(self.checkpoints[0], self.folder / "damaged.pt")
        print(f"resumed from {path} at {self.agent.gradient_steps} gradient steps")
        ours = json.loads(to_json(self.config))
        print_changes(config, ours | {key: config[key] for key in ("resume", "overwrite")})
        self.is_saved = True

    def restore_games(self, state):
        """Goes on with the games in progress, or starts them anew where there is no way to."""
        playing = self.pool.restore_state(state["pool"]) if self.pool else ()
        if self.is_hockey:
            self.games.steps = self.environment_steps
        if state["games"] is None or not (self.is_hockey and self.games.has_snapshots()):
            print("The games start anew: they have no snapshots, so this resume is not exact.")
            self.start_games()
            return
        self.games.restore_state(state["games"], playing)
        for name, values in state["views"].items():
            setattr(self, name, values.numpy())

    def describe(self):
        """Prints what is about to run: device, sizes, memory, files."""
        config, replay = self.config, self.replay
        print(f"device        {self.device}, {torch.get_num_threads()} threads")
        for name, network in self.agent.networks.items():
            count = sum(parameter.numel() for parameter in network.parameters())
            print(f"{name:13} {count:,} parameters")
        gigabytes = replay.rows.numel() * 4 / 1e9
        print(f"replay        {replay.length * replay.rows.shape[1]:,} rows, {gigabytes:.2f} GB")
        print(f"run           {config.run}, seed {config.seed}")
        print(f"files         {self.csv}  {self.page}  {self.folder}/")


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Trains a DreamerV3 agent.")
    parser.add_argument("--config", default="hockey.yml", help="a path, or a name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a config key")
    options = parser.parse_args(arguments)
    try:
        training = Training(load_config(options.config, options.overrides))
        training.describe()

        def stop(*_):
            training.should_stop = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C leaves at once
            # not print: the signal may have come in the middle of one
            os.write(2, b"\nfinishing the step and saving ...\n")

        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), stop)
        training.run()
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    if not training.is_done():
        print(f"saved; the same command with resume=true goes on ({training.folder})")
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
