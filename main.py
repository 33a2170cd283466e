"""Training: collect -> train -> evaluate -> save, from one YAML.

python main.py --config hockey.yml run=mine seed=3      a new run: other keys than the config's
python main.py --config hockey.yml run=mine resume=true

configs/hockey.yml has all keys, and says what each may be.
Exit status: 0 the run is done, 2 something to mend (one sentence says what), 75 a signal stopped it
and everything is saved: the same command with resume=true goes on.
"""

import installed  # noqa: F401  before all others

# isort: split
import contextlib
import sys
import time

import numpy as np
import torch
from omegaconf import OmegaConf

import checkpoint
import machine
from buffer import ReplayBuffer
from config import changes, load_config
from dreamer import Dreamer
from environments import Collector, make_environments, sizes_of
from extras.film import check_recorder, film_agent
from extras.plots import write_page
from extras.tracker import open_tracker
from hockey_wrapper import MIRROR
from machine import STOPPED, explained
from matches import evaluate
from opponents import OpponentPool, check_name, find_agent
from symmetry import Symmetry
from teachers import Teachers
from utils import Every, UserError, check_finite, one_line, seed_everything


def main(config, stop):
    """Trains until the gradient steps are done or a signal has come; returns whether they are."""
    run, latest = Training(config), {}
    agent, play, replay, log = run.agent, run.play, run.replay, run.log
    is_time_to_evaluate = Every(config.evaluate_every, run.evaluated)
    is_time_for_snapshot = Every(config.opponents.snapshot_every, agent.gradient_steps)
    is_time_to_log = Every(config.log_every, agent.gradient_steps)
    is_time_to_save = Every(config.save_every, agent.gradient_steps)
    with run.ending(), machine.progress_bar(agent.gradient_steps, config.gradient_steps) as bar:
        while not play.is_enough() and not stop.requested:
            play.collect()  # the warm-up

        while agent.gradient_steps < config.gradient_steps and not stop.requested:
            batch = replay.sample(config.replay.batch_size, config.replay.batch_length)
            with log.timed("train"), agent.update(batch) as metrics:  # losses and gradients
                while not play.is_enough():
                    play.collect()  # beside them: what the next step needs; then the step
            log.add(metrics)
            step = agent.gradient_steps
            if is_time_to_evaluate(step) or step == config.gradient_steps:
                latest = run.evaluate(stop)
            if is_time_for_snapshot(step):
                run.add_snapshot()
            if is_time_to_log(step):
                run.write_row()
            if is_time_to_save(step):
                run.save()
            is_early = step <= config.dreamer.world_model_head_start
            bar.set_description("world model only" if is_early else config.run, refresh=False)
            bar.set_postfix(environment=f"{play.steps:,}", **latest, refresh=False)
            bar.update(1)

        if run.evaluated < agent.gradient_steps >= config.gradient_steps and not stop.requested:
            latest = run.evaluate(stop)  # a signal had broken it off
        run.save()
    return run.report(latest)


class Training:
    """A run: the objects it is made of, and the single things that the loop does with them."""

    def __init__(self, config):
        """Builds all objects from the config and goes on from a checkpoint if `resume` says so."""
        seed_everything(config.seed)
        machine.use_threads(config.threads)
        machine.keep_freed_memory()
        self.config, self.files = config, checkpoint.RunFiles(config.run)
        is_new = self.files.claim(config.resume, config.overwrite)
        if is_new:
            check_name(config.run)
        device, self.pool = machine.pick_device(config.device), None
        if config.environment == "hockey":
            self.pool = OpponentPool(config.opponents, config.environments, device)
        environments = make_environments(config, config.environments, self.pool)
        environments.reset(seed=config.seed)  # what fails does so before anything is deleted
        sizes, discrete = sizes_of(environments)
        with explained("dreamer: networks of this size can't be made", RuntimeError):
            self.agent = Dreamer(config, *sizes, device, discrete)
        own = config.environments  # rings of the replay
        rings = 2 * own if self.pool and config.hockey.both_views else own
        if self.pool and config.hockey.mirror:
            self.agent.symmetry = Symmetry(self.agent, MIRROR)
        self.agent.teachers = Teachers(config.teachers, self.agent) if config.teachers else None
        self.replay = ReplayBuffer(config.replay, rings, *self.agent.sizes, device, own)
        self.log, track_from = checkpoint.Metrics(self.files.csv), open_tracker(config)
        self.play = Collector(config, environments, self.pool, self.agent, self.replay, self.log)
        self.best, self.evaluated = -np.inf, 0  # score of best.safetensors; step last evaluated
        self.saved = None  # how far the run was at its last checkpoint
        self.draws = self.pool or "rgb_array" in environments.metadata.get("render_modes", ())
        if config.videos:
            check_recorder("videos/game.mp4")
            if not self.draws:
                raise UserError(f"videos: {config.environment} can't draw itself (rgb_array).")
        self.describe()
        if is_new:
            if config.init:
                self.take_weights(find_agent(config.init))
            self.files.clear()
            if config.init:
                self.add_snapshot()
            self.save()
        else:
            self.restore()
        self.log.track = track_from(self.agent.gradient_steps)

    def take_weights(self, path):
        """Takes over the weights of a saved agent. Raises `UserError` if they don't fit."""
        with explained(f"init: {path} does not fit this config", ValueError, RuntimeError):
            theirs = Dreamer.load(path)
            self.agent.check_settings(theirs.config.dreamer)
            self.agent.load_state_dict(theirs.state_dict())

    def check(self):
        """Raises `UserError` if numbers went wrong; it waits for the device, so not every step."""
        self.log.check(self.agent.gradient_steps)
        check_finite(self.agent.state(), self.play.where())

    def evaluate(self, stop):
        """Plays evaluation games, keeps the best agent -> what to show; after a signal: nothing."""
        self.check()
        try:
            with self.log.timed("evaluate"):
                metrics, score, shown = evaluate(self.agent, self.config, self.pool, stop)
        except machine.Stopped:
            return {}
        self.log.add(metrics)
        self.evaluated = self.agent.gradient_steps
        if score > self.best:
            self.best = score
            self.save_agent("best")
            if self.config.videos:
                film_agent(self.agent, f"videos/{self.config.run}_{self.evaluated}.mp4")
        self.write_row()
        return shown

    def write_row(self):
        """Writes a row of the CSV if there is anything new, and the page once a minute."""
        if self.log.pending:
            self.log.add({"world_model/free_nats": self.config.dreamer.free_nats})
            if self.pool:
                self.log.add(self.pool.metrics(self.agent.gradient_steps))
            self.log.write(self.agent.gradient_steps, self.play.steps)
            if not self.files.page.exists() or time.time() - self.files.page.stat().st_mtime > 60:
                self.write_page()

    def write_page(self):
        """Draws the page of the CSV anew, if there is one and nobody holds the page."""
        if self.files.csv.exists():
            with checkpoint.next_time():
                write_page(self.files.csv, self.files.page, self.config)

    def save_agent(self, name):
        """Saves the agent alone, ready to play, as checkpoints/<run>/<name>.safetensors."""
        path = self.files.folder / f"{name}.safetensors"
        self.agent.save(path, environment_steps=self.play.steps)
        return path

    def add_snapshot(self):
        """Lets a frozen copy of the agent join the pool of opponents."""
        if self.pool:
            self.check()
            self.pool.add_snapshot(self.save_agent(f"snapshot_{self.agent.gradient_steps:07d}"))

    def save(self):
        """Saves everything that `resume=true` needs, and the agent alone; starts all games anew."""
        progress = {"steps": [self.play.steps, self.agent.gradient_steps]}
        progress["evaluated"] = self.evaluated
        if progress == self.saved:
            return
        self.check()
        self.write_row()
        checkpoint.save(
            self.files.newest,
            self.agent.state() | self.replay.state(),
            self.files.previous,
            config=OmegaConf.to_container(self.config),
            **progress,
            best=float(self.best),
            pool=self.pool and self.pool.state(),
            rows=self.log.rows,
        )
        self.saved = progress
        self.go_on()

    def go_on(self):
        """Goes on from a checkpoint, just written or just read: all games start anew."""
        self.save_agent("latest")
        self.write_page()
        self.agent.seen = None  # as in the agent of a resumed run
        self.play.start()

    def restore(self):
        """Goes on from what `save` wrote. Raises `UserError` if that does not fit."""
        path, tensors, metadata = self.files.load()
        with explained(f"{path} does not fit this run", *checkpoint.MISFITS):
            theirs, ours = OmegaConf.create(dict(metadata["config"])), self.config
            for key in ("run", "environment"):
                if theirs[key] != ours[key]:
                    raise ValueError(f"its {key} is {theirs[key]}, not {ours[key]}")
            self.agent.check_settings(theirs.dreamer)
            self.saved = {key: metadata[key] for key in ("steps", "evaluated")}
            (self.play.steps, gradient_steps), self.evaluated = self.saved.values()
            self.agent.restore(tensors, gradient_steps)
            self.replay.restore(tensors)
            self.best = metadata["best"]
            if self.pool and self.pool.restore(metadata["pool"]):
                self.best = -np.inf  # somebody is another player now
            self.log.restore(metadata["rows"])
        print(f"resumed from {path} at {gradient_steps} gradient steps")
        for key, old, new in changes(theirs, ours):
            print(f"{key}: {old} -> {new}")
            is_world = key.startswith("wrappers.") or key in ("hockey.game", "environment_kwargs")
            if is_world or key in ("opponents.files", "evaluation_actions"):
                self.best = -np.inf  # the score is another one from here on
        self.go_on()

    @contextlib.contextmanager
    def ending(self):
        """Lets go of environments and files in the end; says what is saved if something breaks."""
        try:
            yield
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            saved = f"saved up to gradient step {self.saved['steps'][1]}, where resume=true goes on"
            raise UserError(f"{one_line(error)} The run is {saved}.") from error
        finally:
            self.play.environments.close()
            self.files.release()

    def describe(self):
        """Prints what is about to run: device, sizes, memory, files."""
        config, replay = self.config, self.replay
        precision = "bfloat16" if self.agent.in_bfloat16 else "float32"
        device = f"{machine.name_of(self.agent.device)}; {torch.get_num_threads()} CPU threads"
        print(f"device        {device}, layers in {precision}")
        for name, network in self.agent.named_children():
            count = sum(parameter.numel() for parameter in network.parameters())
            print(f"{name:13} {count:,} parameters")
        print(f"replay        {replay.length * replay.rings:,} rows, {replay.bytes / 1e9:.2f} GB")
        print(f"run           {config.run}, seed {config.seed}")
        print(f"files         {self.files.csv}  {self.files.page}  {self.files.folder}/")

    def report(self, latest):
        """Prints how the run ended and what to do next; returns whether its steps are done."""
        step = self.agent.gradient_steps
        is_done = step >= self.config.gradient_steps and step == self.evaluated
        reached = ", ".join(f"{name} {value}" for name, value in latest.items())
        if is_done:
            what = "play.py watch" if self.draws else "evaluate.py"
            then = f'python {what} "{self.files.folder}"'
            print(f"done: {reached or 'nothing new'}; curves: {self.files.page}; next: {then}")
        else:
            print(f"saved; the same command with resume=true goes on ({self.files.folder})")
        return is_done


@machine.command
def command_line(arguments=None):
    """Runs what the command line says; returns the exit status."""
    parser = machine.parser_of(__doc__)
    parser.add_argument("--config", default="hockey.yml", help="a path, or a name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a config key")
    options, stop = parser.parse_intermixed_args(arguments), machine.Stop()
    config = load_config(options.config, options.overrides)
    stop.listen()
    return 0 if main(config, stop) else STOPPED


if __name__ == "__main__":
    sys.exit(command_line())
