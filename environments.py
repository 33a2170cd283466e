"""The worlds an agent is trained in, hockey or any Gymnasium id, and how it plays there."""

import importlib
import sys
import warnings
from functools import partial

import gymnasium
import numpy as np
import yaml
from gymnasium import wrappers
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from omegaconf import OmegaConf

from halls import HockeyHalls
from hockey_wrapper import HockeyGames
from machine import blamed, close_at_exit, close_last, warn
from utils import UserError, check_finite, one_line, seed_everything


def make_environments(config, count, pool=None, render_mode=None):
    """Returns `count` environments side by side as a Gymnasium `VectorEnv`.

    Hockey is played against the opponents of `pool`. Spaces are as `wrap` has them; the step after
    an episode's end starts the next one. `render_mode`: what `render` returns, not in hockey.
    Raises `UserError` if there are none such.
    """
    if config.environment == "hockey":
        if config.vectorization == "async":
            return RecordEpisodeStatistics(HockeyHalls(config, count, pool))
        return RecordEpisodeStatistics(HockeyGames(config.hockey, count, pool.choose))
    module, _, name = config.environment.partition(":")
    is_class = bool(module) and name.isidentifier()  # not an id, which ends in -v0
    who = f"environment: {config.environment}"
    if "" not in sys.path:
        sys.path.append("")  # modules in the current folder, wherever the code is
    with warnings.catch_warnings(action="ignore", category=UserWarning), blamed(who):
        if is_class:  # a saved agent names its world: nothing else is called for it
            found = getattr(importlib.import_module(module), name)
            if not (isinstance(found, type) and issubclass(found, gymnasium.Env)):
                raise UserError(f"{who} is no class of gymnasium.Env.")
        environments = gymnasium.make_vec(
            EnvSpec(name, config.environment) if is_class else config.environment,
            count,
            vectorization_mode=config.vectorization,
            vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
            wrappers=[partial(wrap, settings=config.wrappers, name=who)],
            **keywords(config, render_mode),
        )
    if config.vectorization == "async":
        close_at_exit(environments)
    return Worlds(environments, who)


class UnitActions(gymnasium.ActionWrapper):
    """An environment whose actions are a Box of finite bounds, played by flat ones in [-1, 1].

    What it gets is a member of its own Box: of its shape, its dtype, and within the bounds.
    """

    def __init__(self, env, name="environment"):
        """Raises `UserError`, with this name, for other actions."""
        super().__init__(env)
        self.box = box = env.action_space
        if not isinstance(box, Box) or 0 in box.shape:
            raise UserError(f"{name}: actions must be Discrete or a Box, not {one_line(box)}.")
        if not (np.isfinite(box.low) & np.isfinite(box.high)).all():
            raise UserError(f"{name}: actions need finite bounds, {one_line(box)} has none.")
        self.action_space = Box(-1.0, 1.0, (int(np.prod(box.shape)),), np.float32)

    def action(self, action):
        """(A,) in [-1, 1] -> a member of the Box."""
        share = (np.clip(action.astype(float), -1, 1).reshape(self.box.shape) + 1) / 2
        scaled = (1 - share) * self.box.low + share * self.box.high
        if np.issubdtype(self.box.dtype, np.integer):
            scaled = np.rint(scaled)
        return np.clip(scaled, self.box.low, self.box.high).astype(self.box.dtype)


class Worlds(RecordEpisodeStatistics):
    """Somebody's environments side by side: whatever fails in them is a sentence."""

    def __init__(self, environments, name):
        super().__init__(environments)
        self.name = name

    def reset(self, **options):
        """Starts all episodes -> observations, info. Raises `UserError` with the name."""
        with blamed(f"{self.name} (reset)"):
            observations, info = super().reset(**options)
        return self.checked("observation", observations), info

    def step(self, actions):
        """One step in each -> observations, rewards, ...; `UserError` with the name."""
        with blamed(f"{self.name} (step)"), np.errstate(over="ignore"):
            observations, rewards, *rest = super().step(actions)
        observations = self.checked("observation", observations)
        return observations, self.checked("reward", rewards), *rest

    def render(self):
        """Returns pictures (H, W, 3) of each. Raises `UserError` with the name."""
        with blamed(f"{self.name} (render)"):
            pictures = super().render()
        for picture in pictures:
            if np.shape(picture)[2:] != (3,) or 0 in np.shape(picture):
                raise UserError(f"{self.name} (render) gave no picture (H, W, 3).")
        return pictures

    def close(self):
        """Ends them; what fails in that is said."""
        close_last(self.env, self.name)

    def checked(self, name, numbers):
        """Returns the numbers as float32, images as they are; `UserError` if one is too large."""
        if numbers.dtype == np.uint8:
            return numbers
        with np.errstate(over="ignore"):
            held = np.asarray(numbers, np.float32)
        if not np.isfinite(held).all():
            wrong = np.asarray(numbers)[~np.isfinite(held)][0]
            raise UserError(f"{self.name} gave the {name} {wrong}, which float32 can't hold.")
        return held


def keywords(config, render_mode=None):
    """Returns what `gymnasium.make` gets beside the id. Raises `UserError` for no key=value."""
    found = {}
    for text in config.environment_kwargs:
        try:
            key, value = text.split("=", 1)
            found[key.strip()] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            raise UserError(f"environment_kwargs: '{text}' must read key=value.") from None
    if config.wrappers.time_limit:
        found["max_episode_steps"] = config.wrappers.time_limit
    return found | ({"render_mode": render_mode} if render_mode else {})


def wrap(env, settings, name):
    """Returns the environment in Gymnasium's wrappers, with spaces that an agent can take.

    `settings`: `config.wrappers`. Observations are flat or images of bytes (H, W, C), actions
    within [-1, 1] or choices. Raises `UserError` for any other spaces.
    """
    if settings.action_repeat > 1:
        env = wrappers.RepeatAction(env, settings.action_repeat)
    if settings.flatten:
        env = wrappers.FlattenObservation(env)
    space = env.observation_space
    if isinstance(space, Box) and len(space.shape) == 3 and space.dtype == bool:
        pixels = Box(0, 255, space.shape, np.uint8)
        env = wrappers.TransformObservation(env, lambda image: 255 * image.astype(np.uint8), pixels)
    if settings.grayscale:
        env = wrappers.GrayscaleObservation(env, keep_dim=True)
    if settings.resize:
        env = wrappers.ResizeObservation(env, (settings.resize, settings.resize))
        if len(env.observation_space.shape) == 2:  # it has dropped the only channel
            env = wrappers.ReshapeObservation(env, (settings.resize, settings.resize, 1))
    seen = env.observation_space
    is_image = isinstance(seen, Box) and len(seen.shape) == 3 and seen.dtype == np.uint8
    is_image = is_image and seen.shape[-1] <= min(seen.shape)  # the channels come last
    if not is_image and (not isinstance(seen, Box) or len(seen.shape) != 1 or 0 in seen.shape):
        raise UserError(
            f"{name}: observations must be a flat Box or images (H, W, C) of uint8,"
            f" not {one_line(seen)}; wrappers.flatten=true makes one row of numbers of many others."
        )
    return env if isinstance(env.action_space, Discrete) else UnitActions(env, name)


def worlds_of(agent, count, render_mode=None):
    """Returns `count` environments of the kind that the agent was trained in, in one process.

    Raises `UserError` if they are other ones now.
    """
    config = OmegaConf.merge(agent.config, {"vectorization": "sync"})
    worlds = make_environments(config, count, render_mode=render_mode)
    sizes, discrete = sizes_of(worlds)
    now, then = (*sizes, discrete), (*agent.sizes, agent.discrete)
    if now != then:
        what = "sizes of observation and action, discrete"
        raise UserError(f"{config.environment} has changed: {what}: {now}; the agent's: {then}.")
    return worlds


def sizes_of(environments):
    """Returns what an agent must know: ((O numbers or (H, W, C), A), are actions choices)."""
    seen, played = environments.single_observation_space.shape, environments.single_action_space
    discrete = isinstance(played, Discrete)
    observation_size = seen if len(seen) == 3 else seen[0]
    return (observation_size, int(played.n) if discrete else played.shape[0]), discrete


def random_actions(environments):
    """Returns uniformly random actions (n, A), as an agent plays them: choices are one-hot."""
    space, count = environments.single_action_space, environments.num_envs
    if isinstance(space, Discrete):
        return np.eye(space.n, dtype=np.float32)[np.random.randint(space.n, size=count)]
    return np.random.uniform(-1, 1, environments.action_space.shape).astype(np.float32)


def playable(environments, action):
    """Returns an agent's actions (n, A) as the environments take them: choices by number."""
    space = environments.single_action_space
    return action.argmax(-1) + space.start if isinstance(space, Discrete) else action


class Collector:
    """Plays all environments side by side, one decision after the other, and fills the replay."""

    def __init__(self, config, environments, pool, agent, replay, log):
        """`pool`: hockey's opponents, or None; `log`: gets the statistics of finished episodes."""
        self.config, self.environments, self.pool = config, environments, pool
        self.agent, self.replay, self.log = agent, replay, log
        self.steps = 0  # decisions so far, over all environments
        self.has_ended = True  # an episode, since all started anew
        # how many make `warmup_rows`: two views of a game make two rows
        self.warmup_steps = config.warmup_rows * config.environments / replay.rings
        settings = config.dreamer  # a larger reward than the largest bin counts as that
        self.largest = np.expm1(settings.bin_limit) if settings.scalar == "twohot" else np.inf

    def start(self):
        """Starts everything random anew: the same after a checkpoint and after a resume from it.

        So a run that was killed and resumed is the run that never was, and nothing of games,
        memories and generators is saved. Unfinished games end as if their time were up.
        """
        step, every = self.agent.gradient_steps, self.config.save_every
        if not self.has_ended and step >= self.since[1] + every:
            warn(
                "save_every: no episode has ended between two checkpoints, where all start anew:"
                " what comes later in one is never seen. Take a larger number."
            )
        self.has_ended = False
        parts = (self.config.seed, self.steps)
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0] // 2)
        seed_everything(seed)
        if self.pool:
            self.pool.start(seed)
        count = self.config.environments
        self.environments.close()
        self.environments = make_environments(self.config, count, self.pool)
        self.agent.reset()
        self.observation, info = self.environments.reset(seed=seed)
        action, nothing = np.zeros((count, self.agent.sizes[1]), np.float32), np.zeros(count)
        self.is_first = np.ones(count, bool)
        self._store(action, nothing, nothing, info)
        self.is_first = np.zeros(count, bool)
        # `train_ratio` counts from here, so that a resumed run may have another one
        self.since = max(self.steps, self.warmup_steps), self.agent.gradient_steps

    def is_enough(self):
        """Returns whether `train_ratio` allows the next gradient step, and the replay has rows."""
        config, (steps, gradient_steps) = self.config, self.since
        earned = (self.steps - steps) * config.train_ratio
        batch_rows = config.replay.batch_size * config.replay.batch_length
        is_earned = earned >= (self.agent.gradient_steps - gradient_steps) * batch_rows
        return is_earned and self.replay.filled >= config.replay.batch_length

    def collect(self):
        """Takes one decision in every environment; the rows that come of it go into the replay."""
        with self.log.timed("collect"):
            if self.steps < self.warmup_steps and not self.config.init:
                action = random_actions(self.environments)
            else:
                action = self.agent.act(self.observation)
            check_finite({"the agent's action": action}, self.where())
            is_first = self.is_first  # the step after an episode's end only starts the next one
            step = self.environments.step(playable(self.environments, action))
            self.observation, reward, terminated, truncated, info = step
            self._store(np.where(is_first[:, None], 0, action), reward, terminated, info)
            self.is_first = terminated | truncated
            self.has_ended |= self.is_first.any()
            self.steps += len(action)
            self.agent.reset(is_first)
            self._count_episodes(info)

    def _store(self, action, reward, terminated, info):
        """Writes one row per game, and one per game as the opponent saw it."""
        numbers = {"the observation": self.observation, "the reward": reward}
        check_finite(numbers, self.where())
        if abs(reward).max() > self.largest:
            largest, self.largest = self.largest, np.inf  # this is said once
            warn(
                f"a reward of {abs(reward).max():g} counts as that of the largest bin,"
                f" {largest:.4g}: raise dreamer.bin_limit"
            )
        columns = [self.observation, action, reward, self.is_first, terminated]
        if self.replay.rings > len(reward):
            names = ("observation", "action", "reward")
            theirs = [info[f"opponent_{name}"] for name in names] + [self.is_first, terminated]
            columns = [np.concatenate(pair) for pair in zip(columns, theirs, strict=True)]
        self.replay.add(*columns)

    def _count_episodes(self, info):
        """Notes statistics of the episodes that have just ended."""
        for game in np.flatnonzero(self.is_first):
            episode = info["episode"]
            metrics = {"episode_return": episode["r"][game], "episode_length": episode["l"][game]}
            if self.pool:
                winner = info["winner"][game]
                self.pool.record(info["opponent"][game], winner)
                outcomes = {"wins": 1, "draws": 0, "losses": -1}
                metrics |= {name: winner == value for name, value in outcomes.items()}
            self.log.add({f"train/{name}": value for name, value in metrics.items()})

    def where(self):
        """Returns the steps in words."""
        return f"at environment step {self.steps}, gradient step {self.agent.gradient_steps}"
