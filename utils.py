"""What every other file needs and nothing of its own: mathematics, config, files, metrics.

The mathematics are pure functions of tensors. Whatever a user can get wrong (config, paths,
checkpoints) ends in a `UserError` whose message is one sentence; `main.py` prints just that.
"""

import contextlib
import ctypes
import difflib
import hashlib
import json
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pandas
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from yaml import YAMLError


class UserError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what is right."""


# ---------------------------------------------------------------------------- mathematics


def symlog(x):
    """sign(x) ln(1 + |x|), elementwise (DreamerV3, Robust predictions)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x):
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def two_hot(values, bins):
    """The two of the K ascending `bins` that enclose each value (...), and their weights.

    Returns indices (..., 2) and weights (..., 2) that sum to one and whose mean of the two bins is
    the value again; values beyond the outermost bins are clamped to them. It is the paper's
    two-hot vector without its K - 2 zeros (DreamerV3, Robust predictions).
    """
    values = values.clamp(bins[0], bins[-1])
    upper = torch.searchsorted(bins, values.contiguous(), right=True).clamp(1, len(bins) - 1)
    low, high = bins[upper - 1], bins[upper]
    share = (values - low) / (high - low)
    return torch.stack([upper - 1, upper], -1), torch.stack([1 - share, share], -1)


def lambda_returns(rewards, discounts, values, return_lambda):
    """R_t = r_{t+1} + d_{t+1} [(1-lambda) v_{t+1} + lambda R_{t+1}], R_H = v_H.

    DreamerV3, Critic learning. All three inputs are (H, N) and stand for the steps 1..H: reward
    on arrival, gamma times the continue probability, value of the state arrived at. Returns
    (H, N) for the steps 0..H-1.
    """
    returns, following = [], values[-1]
    for reward, discount, value in zip(
        reversed(rewards), reversed(discounts), reversed(values), strict=True
    ):
        following = reward + discount * ((1 - return_lambda) * value + return_lambda * following)
        returns.append(following)
    return torch.stack(returns[::-1])


def update_return_scale(scale, returns, decay):
    """Moves `scale` in place towards the 5%-95% range of `returns` -> what to divide returns by.

    DreamerV3, Actor learning: small returns are not blown up, so the divisor is at least one.
    """
    shares = torch.linspace(0.05, 0.95, 2, device=returns.device)
    low, high = torch.quantile(returns.detach().flatten(), shares)
    return scale.mul_(decay).add_((1 - decay) * (high - low)).clamp(min=1.0)


def shrink_to_quantile(gradient, share):
    """Shrinks the rows of a gradient (N, A) that are longer than this share of all rows."""
    length = gradient.norm(dim=-1, keepdim=True).float()  # (N, 1)
    shrink = torch.quantile(length, share, dim=0) / length.clamp(min=1e-20)
    return gradient * shrink.clamp(max=1.0).to(gradient.dtype)


def wilson_interval(share, games):
    """The 95% Wilson interval (low, high), within 0..1, of a share of so many games."""
    z = 1.96
    center = (share + z**2 / (2 * games)) / (1 + z**2 / games)
    margin = z * (share * (1 - share) / games + z**2 / (4 * games**2)) ** 0.5
    margin = margin / (1 + z**2 / games)
    low, high = center - margin, center + margin
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)  # rounding leaves it by 1e-17


# ---------------------------------------------------------------------------- config

SHARE, COUNT, POSITIVE = (float, 0, 1), (int, 1, None), (float, 1e-12, None)
NUMBER, FROM_ZERO = (float, 0, None), (int, 0, None)

SCHEMA = {  # key: kind, (int or float, smallest, largest), {allowed words}, or [rule of items]
    "run": str,
    "seed": (int, 0, 2**31 - 1),
    "device": str,
    "threads": FROM_ZERO,
    "resume": bool,
    "overwrite": bool,
    "gradient_steps": COUNT,
    "log_every": COUNT,
    "evaluate_every": COUNT,
    "evaluation_games": COUNT,
    "save_every": COUNT,
    "tracker": {"none", "tensorboard", "wandb"},
    "videos": bool,
    "environment": str,
    "environments": COUNT,
    "warmup_rows": COUNT,
    "train_ratio": POSITIVE,
    "hockey.game": {"built-in", "hockey-env"},
    "hockey.frame_skip": (int, 1, 50),
    "hockey.reward": {"sparse", "env", "pbrs"},
    "hockey.closeness": NUMBER,
    "hockey.chase": NUMBER,
    "hockey.attack": NUMBER,
    "hockey.anneal": FROM_ZERO,
    "hockey.modes.normal": SHARE,
    "hockey.modes.shooting": SHARE,
    "hockey.modes.defense": SHARE,
    "hockey.both_views": bool,
    "hockey.mirror": bool,
    "opponents.weak": SHARE,
    "opponents.strong": SHARE,
    "opponents.random": SHARE,
    "opponents.snapshots": SHARE,
    "opponents.files": [str],
    "opponents.files_share": SHARE,
    "opponents.snapshot_every": COUNT,
    "opponents.snapshots_kept": COUNT,
    "opponents.choice": {"uniform", "pfsp"},
    "replay.rows": COUNT,
    "replay.batch_size": COUNT,
    "replay.batch_length": (int, 2, None),
    "dreamer.hidden_size": COUNT,
    "dreamer.hidden_layers": (int, 1, 20),
    "dreamer.norm": {"LayerNorm", "RMSNorm", "none"},
    "dreamer.activation": {"SiLU", "ELU", "Tanh"},
    "dreamer.recurrent_size": COUNT,
    "dreamer.observation_scale": [POSITIVE],
    "dreamer.observation_in_state": bool,
    "dreamer.latent": {"categorical", "gaussian"},
    "dreamer.latent_groups": COUNT,
    "dreamer.latent_classes": COUNT,
    "dreamer.unimix": SHARE,
    "dreamer.scalar": {"twohot", "normal"},
    "dreamer.bins": (int, 2, None),
    "dreamer.bin_limit": (float, 0.1, 20),
    "dreamer.reconstruction_weight": NUMBER,
    "dreamer.free_nats": NUMBER,
    "dreamer.beta_dynamics": NUMBER,
    "dreamer.beta_representation": NUMBER,
    "dreamer.world_model_head_start": FROM_ZERO,
    "dreamer.imagination_starts": FROM_ZERO,
    "dreamer.precision": {"auto", "float32", "bfloat16"},
    "dreamer.horizon": (int, 1, 1000),
    "dreamer.gradient_quantile": SHARE,
    "dreamer.switches": [FROM_ZERO],
    "dreamer.discount": SHARE,
    "dreamer.return_lambda": SHARE,
    "dreamer.actor_gradient": {"dynamics", "reinforce"},
    "dreamer.entropy": NUMBER,
    "dreamer.std_min": POSITIVE,
    "dreamer.std_max": POSITIVE,
    "dreamer.return_scale_decay": SHARE,
    "dreamer.slow_actor": SHARE,
    "dreamer.slow_critic": SHARE,
    "dreamer.critic_imagination": NUMBER,
    "dreamer.critic_replay": NUMBER,
    "dreamer.final_rate": SHARE,
    "dreamer.world_model_rate": POSITIVE,
    "dreamer.actor_rate": POSITIVE,
    "dreamer.critic_rate": POSITIVE,
    "dreamer.gradient_clip": POSITIVE,
}
ONLY_HOCKEY = ("hockey.", "opponents.")


def find_config(name):
    """The path of a config given as a path or as a bare name from `configs/`."""
    here = Path(__file__).parent / "configs"
    for path in (Path(name), here / name, here / f"{name}.yml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in here.glob("*.yml")))
    raise UserError(f"There is no config '{name}', neither as a path nor in configs/ ({known}).")


def load_config(name, overrides=()):
    """Reads a YAML, applies `key=value` overrides, checks every key; a read-only DictConfig."""
    path = find_config(name)
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not readable as YAML: {one_line(error)}") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} must hold 'key: value' lines.")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"'{override}' on the command line must read key=value.")
        if key not in SCHEMA:
            raise UserError(f"'{key}' on the command line is no key;{nearest(key)}")
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{override}' is not understood: {one_line(error)}") from None
    return check_config(config, str(path))


def check_config(config, source):
    """Holds every key of `config` (DictConfig or dict) against SCHEMA; raises `UserError`."""
    try:
        plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {one_line(error)}") from None
    flat = dict(flatten(plain))
    check_value(f"{source}: environment", flat.get("environment", "hockey"), str)
    wanted = set(SCHEMA)
    if flat.get("environment", "hockey") != "hockey":
        wanted = {key for key in wanted if not key.startswith(ONLY_HOCKEY)}
    for key in flat:
        if key not in wanted:
            raise UserError(f"{source}: '{key}' is no key here;{nearest(key, wanted)}")
    for key in sorted(wanted - set(flat)):
        raise UserError(f"{source}: the key '{key}' is missing.")
    for key, value in flat.items():
        check_value(f"{source}: {key}", value, SCHEMA[key])
    if plain["dreamer"]["std_min"] > plain["dreamer"]["std_max"]:
        raise UserError(f"{source}: dreamer.std_min must not be above dreamer.std_max.")
    if plain["dreamer"]["critic_imagination"] == plain["dreamer"]["critic_replay"] == 0:
        raise UserError(
            f"{source}: dreamer.critic_imagination and dreamer.critic_replay must not both be 0."
        )
    if not plain["run"] or set(plain["run"]) & set('/\\:*?"<>|') or plain["run"][0] == ".":
        raise UserError(f"{source}: run must be a plain file name, not '{plain['run']}'.")
    checked = OmegaConf.create(plain)
    OmegaConf.set_readonly(checked, True)
    return checked


def check_value(where, value, rule):
    """Raises `UserError` unless `value` obeys the `rule` of SCHEMA."""
    if isinstance(rule, set):
        if value not in [*rule]:
            raise UserError(f"{where} must be one of {', '.join(sorted(rule))}, not '{value}'.")
        return
    if isinstance(rule, list):
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, not '{value}'.")
        for item in value:
            check_value(f"{where} (in the list)", item, rule[0])
        return
    kind, low, high = rule if isinstance(rule, tuple) else (rule, None, None)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{where} must be {words[kind]}, not '{value}'.")
    below = low is not None and not value >= low  # also true for NaN
    if below or (high is not None and not value <= high) or value in (np.inf, -np.inf):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{where} must be {bounds}, not {value}.")


def flatten(tree, prefix=""):
    """Yields ('a.b.c', value) for every leaf of nested dicts; an empty dict is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


RENAMED = {"dreamer.imagination_precision": "dreamer.precision"}  # formerly: today


def nearest(key, known=tuple(SCHEMA)):
    """' did you mean ...?', naming the known key that is most like `key`."""
    key = RENAMED.get(key, key)
    close = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.0)
    return f" did you mean '{close[0]}'?" if close else " no key is known."


def one_line(error):
    """The message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------------- seeds and time


def seed_everything(seed):
    """Seeds Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """The state of the three global generators, as tensors and numbers."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def restore_random_state(state):
    """Takes over what `random_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def pick_device(name):
    """The torch.device of the config's `device`; "auto" is CUDA if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error).split(". ")[0]
        raise UserError(f"device: {name} can't be used here: {reason}") from None


def multiplies_bfloat16(device):
    """Whether this device has instructions for bfloat16 matrix products, twice as fast or more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def keep_freed_memory():
    """Lets a Linux process keep freed memory for the next step instead of handing it back.

    A gradient step allocates some hundred MB anew; fetching their pages each time took 7% to 12%
    of it. By the GNU C library's mallopt(3); without that library, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def use_threads(count):
    """Lets PyTorch compute on so many CPU cores (0: on all), not on more than this process has."""
    cores = torch.get_num_threads()  # before the first call: all that it may use
    torch.set_num_threads(min(count or cores, cores))


class Beside:
    """Two things at a time: a thread and its caller, each with half of PyTorch's CPU cores.

    It pays for functions that hardly need Python's lock. On a single core, and on other devices,
    whose work is queued anyway, everything is done one after the other.
    """

    def __init__(self):
        self.thread = None  # an executor

    def __call__(self, functions, meanwhile, device):
        """Runs `functions`, which compute on `device` and don't need each other, in any order.

        The thread takes one after the other; so does the caller when it is done with `meanwhile`, a
        function or None. Both have as many cores, so that who takes which changes no number. Raises
        what one of them raised, when nothing runs any more.
        """
        cores, left = torch.get_num_threads(), iter(functions)

        def work():
            for function in left:  # two threads at one iterator: each takes what is next
                function()

        if cores == 1 or device.type != "cpu":
            work()
            if meanwhile:
                meanwhile()
            return
        if self.thread is None:  # it takes over the number of cores when it first asks for it
            self.thread = ThreadPoolExecutor(1, initializer=torch.get_num_threads)
        self.thread.submit(torch.set_num_threads, cores // 2)
        running = self.thread.submit(work)
        torch.set_num_threads(cores // 2)
        try:
            if meanwhile:
                meanwhile()
            work()
            running.result()
        finally:
            wait([running])
            torch.set_num_threads(cores)


class Every:
    """`should_save = Every(1000)`: `should_save(step)` is true once per 1000 steps passed."""

    def __init__(self, interval, start=0):
        self.interval = interval
        self.last = start // interval

    def __call__(self, step):
        passed, self.last = self.last, max(self.last, step // self.interval)
        return self.last > passed


# ---------------------------------------------------------------------------- files


def write_atomically(path, write, previous=None):
    """Calls `write(temporary_path)`, flushes it to disk and renames it to `path`.

    So `path` is never half written. What it was before becomes `previous`, if that is given.
    Raises `UserError` if the disk or folder refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException as error:
        reason = one_line(error)
        with contextlib.suppress(OSError):
            reason = "the disk is full" if shutil.disk_usage(path.parent).free < 2**16 else reason
            temporary.unlink()
        # torch reports a full disk as RuntimeError, safetensors with an error of its own
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise UserError(f"Could not write {path}: {reason}") from None
        raise


def flush_folder(folder):
    """Makes renames in it outlast a power cut, where the system can be asked for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(folder):
    """Makes the folder if need be. Raises `UserError` if nothing can be written there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder}/ can't be made: {one_line(error)}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"The folder {folder}/ is read-only: make it writable, or run elsewhere.")


def load_tensors(path):
    """What `torch.save` wrote, as data only: nothing in the file is ever executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything
        raise UserError(f"{path} can't be read: {one_line(error)[:200]}") from None


def file_digest(path, size):
    """SHA-256 of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0:
            part = file.read(min(size, 2**20))
            if not part:
                break
            digest.update(part)
            size -= len(part)
    return digest.digest()


def save_sealed(path, state, previous=None):
    """`torch.save`, atomically, with a SHA-256 of the file at its end; see `write_atomically`."""

    def write(file):
        torch.save(state, file)
        digest = file_digest(file, os.path.getsize(file))
        with open(file, "ab") as end:
            end.write(digest)

    write_atomically(path, write, previous)


def load_sealed(path):
    """What `save_sealed` wrote, as data only. Raises `UserError` if one bit of it is not so."""
    try:
        size = max(0, os.path.getsize(path) - 32)
        with open(path, "rb") as file:
            file.seek(size)
            is_whole = file.read() == file_digest(path, size)
    except OSError as error:
        raise UserError(f"{path} can't be read: {one_line(error)}") from None
    if not is_whole:
        raise UserError(f"{path} is damaged: its checksum does not fit its contents.")
    return load_tensors(path)


def load_newest(paths):
    """(path, state, complaints about those before it) of the first of these files that is whole."""
    complaints = []
    for path in filter(os.path.exists, paths):
        try:
            return path, load_sealed(path), complaints
        except UserError as error:
            complaints.append(str(error))
    raise UserError(" ".join(complaints) or f"There is no checkpoint {paths[0]}.")


def print_changes(before, after):
    """Prints each key of two nested dicts whose value differs, as "seed: 1 -> 2"."""
    before, after = dict(flatten(before)), dict(flatten(after))
    for key in sorted(before | after):
        if before.get(key) != after.get(key):
            print(f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}")


class Metrics:
    """Collects metrics between two logging points and keeps `metrics/<run>.csv` up to date."""

    def __init__(self, path):
        self.path = Path(path)
        self.rows = []  # what the CSV holds, as dicts
        self.pending, self.seconds = {}, {}

    def add(self, metrics):
        """Takes a dict of numbers or 0-d tensors; several values of a key are averaged."""
        for key, value in metrics.items():
            self.pending.setdefault(key, []).append(value)

    def add_time(self, name, began):
        """Adds the seconds since `began` to the metric time/<name>; these are summed up."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.time() - began

    def stacked(self, key):
        """All values of this metric since the last row, (n,)."""
        values = [torch.as_tensor(value, dtype=torch.float32) for value in self.pending[key]]
        # after a resume the earlier ones lie in memory, the later ones on the device
        return torch.stack([value.to(values[-1].device) for value in values])

    def check(self, gradient_step):
        """Raises `UserError` with the first metric since the last row that is not finite."""
        found = []
        for key in self.pending:
            wrong = (~self.stacked(key).isfinite()).nonzero()
            if len(wrong):  # there is one value per gradient step, the last one is of this step
                found.append((gradient_step + 1 - len(self.pending[key]) + int(wrong[0]), key))
        if found:
            step, key = min(found, key=lambda pair: pair[0])
            raise UserError(
                f"{key} is not finite at gradient step {step}: training has diverged; the last"
                " good checkpoint is kept: lower the learning rates, then resume=true."
            )

    def state(self):
        """All rows, and what the next one will hold."""
        pending = {key: self.stacked(key) for key in self.pending}
        return {"rows": self.rows, "pending": pending, "seconds": self.seconds}

    def restore_state(self, state):
        """Takes over what `state` returned, and cuts the CSV where it ends."""
        self.rows, self.seconds = state["rows"], state["seconds"]
        self.pending = {key: list(values.unbind()) for key, values in state["pending"].items()}
        if self.rows:
            self.save()
        else:
            self.path.unlink(missing_ok=True)

    def save(self):
        """Writes the CSV."""
        table = pandas.DataFrame(self.rows)
        write_atomically(self.path, lambda file: table.to_csv(file, index=False))

    def write(self, **axes):
        """Appends one row with the x axes (both steps, minutes), writes the CSV; returns the row.

        Raises `UserError`, after writing, if a metric is not finite.
        """
        row = dict(axes) | {key: float(self.stacked(key).mean()) for key in self.pending}
        row |= {f"time/{name}": value for name, value in self.seconds.items()}
        before = self.rows[-1] if self.rows else dict.fromkeys(axes, 0)
        seconds = max(1e-9, 60 * (axes["minutes"] - before["minutes"]))
        for name in ("gradient_steps", "environment_steps"):
            row[f"speed/{name}_per_second"] = (axes[name] - before[name]) / seconds
        self.rows.append(row)
        self.save()
        self.check(axes["gradient_steps"])
        self.pending, self.seconds = {}, {}
        return row


def open_tracker(config):
    """A function that sends a CSV row to TensorBoard or W&B as well, by the config's `tracker`."""
    if config.tracker == "none":
        return lambda row: None
    try:
        if config.tracker == "wandb":
            import wandb

            plain = OmegaConf.to_container(config)
            run = wandb.init(project="hockey", name=config.run, config=plain)
            return lambda row: run.log(row, step=row["gradient_steps"])
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(f"metrics/{config.run}.tensorboard")
    except ImportError as error:
        raise UserError(f"tracker: {config.tracker} needs: pip install {config.tracker}") from error

    def track(row):
        for key, value in row.items():
            writer.add_scalar(key, value, row["gradient_steps"])

    return track


def to_json(config):
    """A config (or part of one) as a JSON text."""
    return json.dumps(OmegaConf.to_container(config, resolve=True))
