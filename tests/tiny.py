"""Tiny runs in the current folder: how to start, stop and crash them, and what comes of them."""

import contextlib
import csv
import os
import shutil
from pathlib import Path

import pytest
from conftest import read_once

import checkpoint
import hockey_env
import main
from environments import Collector
from machine import Stop

TINY = {
    "run": "tiny",
    "device": "cpu",
    "threads": 1,
    "gradient_steps": 12,
    "log_every": 2,
    "evaluate_every": 6,
    "evaluation_games": 2,
    "save_every": 4,
    "environments": 4,
    "warmup_rows": 120,
    "train_ratio": 1,
    "replay.rows": 800,
    "replay.batch_size": 4,
    "replay.batch_length": 4,
    "dreamer.hidden_size": 16,
    "dreamer.hidden_layers": 1,
    "dreamer.recurrent_size": 16,
    "dreamer.latent_groups": 4,
    "dreamer.latent_classes": 4,
    "dreamer.bins": 15,
    "dreamer.horizon": 3,
    "dreamer.world_model_head_start": 2,
    "dreamer.free_nats": 0.1,  # little enough for the prior to learn
    "dreamer.precision": "float32",
}
HOCKEY = {
    "hockey.frame_skip": 16,
    "hockey.both_views": True,
    "hockey.modes.normal": 0.5,
    "hockey.modes.shooting": 0.5,
    "opponents.weak": 0.2,
    "opponents.strong": 0.2,
    "opponents.files": "[random]",
    "opponents.files_share": 0.2,
    "opponents.snapshots": 0.4,
    "opponents.snapshot_every": 2,
    "opponents.snapshots_kept": 3,
}
STATE = Path("checkpoints/tiny/state.safetensors")
PREVIOUS = STATE.with_name("previous.safetensors")
TABLE, PAGE = Path("metrics/tiny.csv"), Path("plots/tiny.html")
EVENTS = (  # what can be interrupted
    (Collector, "collect"),
    (Collector, "start"),
    (main.Training, "evaluate"),
    (main.Training, "write_row"),
    (main.Training, "add_snapshot"),
    (main.Training, "save_agent"),
    (os, "replace"),
)


def arguments(config="hockey.yml", **overrides):
    """The command line of a tiny run; a keyword `dreamer__horizon=3` overrides a key."""
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    keys = TINY | (HOCKEY if config == "hockey.yml" else {}) | overrides
    return ["--config", config, *(f"{key}={value}" for key, value in keys.items())]


def tiny_config(**overrides):
    """The config of a tiny run."""
    _, name, *keys = arguments(**overrides)
    return read_once(name, *keys)


class Crash(BaseException):
    """The process dies here."""


def quicken(patch):
    """Lets games end after 101 frames and draws no page: both take longest in a tiny run."""

    def write_page(csv, page, config):
        checkpoint.write_atomically(page, lambda file: shutil.copy(csv, file))

    patch.setitem(hockey_env.MAX_TIMESTEPS, 0, 100)
    patch.setattr(main, "write_page", write_page)


def run(crash_after=None, stop_after=None, **overrides):
    """A run that crashes, or is asked to stop, after so many events -> how many there were."""
    stop, count = Stop(), 0
    stop.requested = stop_after == 0

    def counted(real):
        def call(*values, **options):
            nonlocal count
            result = real(*values, **options)
            count += 1
            if count == crash_after:
                raise Crash
            stop.requested |= count == stop_after
            return result

        return call

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
        for place, name in EVENTS:
            patch.setattr(place, name, counted(getattr(place, name)))
        main.main(tiny_config(**overrides), stop)
    return count


def numbers(path=TABLE):
    """The CSV as rows of texts, without the columns that tell the time."""
    if not path.exists():
        return []
    with open(path) as file:
        rows = list(csv.reader(file))
    timed = ("minutes", "time/", "speed/")
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith(timed)]
    return [[row[i] for i in kept] for row in rows]


def outcome():
    """All that a run has come to, but for times: what has to be the same after a resume."""
    tensors, metadata = checkpoint.load(STATE)
    kept = {name: metadata[name] for name in ("steps", "best", "evaluated", "pool")}
    agents = [path for path in STATE.parent.iterdir() if path not in (STATE, PREVIOUS)]
    found = {path.name: checkpoint.checksum(*checkpoint.load(path)) for path in agents}
    return found | kept | {"csv": numbers(), "state": checkpoint.checksum(tensors, {})}
