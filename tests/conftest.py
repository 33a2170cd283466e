"""Shared fixtures: one thread, small configs, made-up batches."""

import functools
import os
import signal

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests everywhere: on the processor
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["GOMP_SPINCOUNT"] = "1000"  # as in main.py: tests of two threads share their cores

import hypothesis
import numpy as np
import pytest
import torch

from config import load_config

torch.set_num_threads(1)
hypothesis.settings.register_profile("small", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.load_profile("small")

SMALL = {
    "threads": 1,
    "device": "cpu",
    "environments": 4,
    "replay.rows": 2000,
    "replay.batch_size": 4,
    "replay.batch_length": 5,
    "dreamer.hidden_size": 32,
    "dreamer.hidden_layers": 1,
    "dreamer.recurrent_size": 32,
    "dreamer.latent_groups": 4,
    "dreamer.latent_classes": 4,
    "dreamer.horizon": 4,
    "dreamer.world_model_head_start": 0,
    "dreamer.observation_scale": [],
    "dreamer.switches": [],
    "dreamer.precision": "float32",
    "dreamer.critic_imagination": 1,
    "dreamer.critic_replay": 0,
    "dreamer.final_rate": 1,
    "dreamer.entropy": 5e-4,
    "dreamer.actor_rate": 1e-3,
    "hockey.both_views": True,
    "hockey.closeness": 1,
    "train_ratio": 32,
}


def make_config(name="hockey.yml", /, **overrides):
    """A small config; a keyword `dreamer__horizon=3` (or `seed=1`) overrides a key."""
    keys = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
    return read_once(name, *(f"{key}={value}" for key, value in keys.items()))


@functools.cache
def read_once(name, *overrides):
    """The config; it is read-only, so tests may share it."""
    return load_config(name, overrides)


@pytest.fixture
def small_config():
    """`make_config`, the function."""
    return make_config


def make_batch(batch_size=4, length=5, observation_size=18, action_size=4, seed=0):
    """A replay batch (B, T, ...) of noise with some first and terminal rows."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, length)
    is_first = (torch.rand(shape, generator=generator) < 0.2).float()
    return {
        "observation": torch.randn(*shape, observation_size, generator=generator),
        "action": torch.rand(*shape, action_size, generator=generator) * 2 - 1,
        "reward": torch.randn(shape, generator=generator),
        "is_first": is_first,
        "is_terminal": (torch.rand(shape, generator=generator) < 0.2).float() * (1 - is_first),
        "is_own": torch.ones(shape),
    }


@pytest.fixture(autouse=True)
def same_seed_and_signals():
    """Every test starts with the same generators and leaves the signals as they were."""
    torch.manual_seed(0)
    np.random.seed(0)
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGBREAK")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {one: signal.getsignal(one) for one in known}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for one, handler in handlers.items():
        signal.signal(one, handler)
