"""Files that survive: tensors in safetensors with a checksum, written whole or not at all; the CSV.

Both a run's state and a saved agent are one safetensors file: named tensors, and texts as metadata.
Whatever is read is data: nothing in a file is ever executed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import weakref
from pathlib import Path

import pandas
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from machine import blamed, explained, warn
from utils import UserError, check_finite, one_line

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

# what taking over numbers and texts of another origin raises if they don't fit
MISFITS = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)


@contextlib.contextmanager
def next_time():
    """Lets its block fail, with a warning, if somebody else holds the file that it writes."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        warn(f"{error}; is it open elsewhere? The next row tries again")


def write_atomically(path, write, previous=None):
    """Calls `write(temporary_path)`, flushes it to disk and renames it to `path`.

    So `path` is never half written. What it was before becomes `previous`, if that is given.
    Raises `UserError` if the disk, the folder or the file refuses.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"{path} is no file name.")
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors lets nobody else read its files
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _rename(path, previous)
        _rename(temporary, path)
    except BaseException as error:
        reason = one_line(error)
        with contextlib.suppress(OSError):
            reason = "the disk is full" if shutil.disk_usage(path.parent).free < 2**16 else reason
            temporary.unlink()
        # torch reports a full disk as RuntimeError, safetensors with an error of its own
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise UserError(f"Could not write {path}: {reason}") from error
        raise


def _rename(path, target):
    """Renames a file. On Windows nobody may have the target open, if only to look for viruses."""
    for pause in (0.05, 0.2, None):
        try:
            return os.replace(path, target)
        except PermissionError:
            if not pause:
                raise
            time.sleep(pause)


def check_writable(folder):
    """Makes the folder if need be. Raises `UserError` if nothing can be written there."""
    with explained(f"The folder {folder}/ can't be made", OSError):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"The folder {folder}/ is read-only: make it writable, or run elsewhere.")


def hold(path, what):
    """Locks a file until `os.close` of what it returns, or until the process ends, however it does.

    `UserError` on `what` if another process has it. Where files can't be locked, nothing happens.
    """
    with explained(f"{path} can't be opened", OSError):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if "fcntl" in globals():
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        os.close(file)
        raise UserError(f"{what} is taken: another process is training it just now.") from None
    except OSError:
        pass
    return file


def checksum(tensors, texts):
    """Returns the SHA-256 of named tensors and named texts, as hexadecimal text."""
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save(path, tensors, previous=None, **metadata):
    """Writes named tensors and what JSON can hold; see `write_atomically`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    texts["checksum"] = checksum(tensors, texts)
    write_atomically(path, lambda file: save_file(tensors, file, texts), previous)


def load(path):
    """Returns tensors (name -> tensor) and metadata as saved; `UserError` if one bit is not so."""
    try:
        open(path, "rb").close()  # safetensors tells no reasons
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
        if texts.pop("checksum", None) != checksum(tensors, texts):
            raise ValueError("its checksum does not fit its contents")
        if any("${" in text for text in texts.values()):  # OmegaConf would look for what it names
            raise ValueError("it refers to something that is not in it")
        return tensors, {key: json.loads(text) for key, text in texts.items()}
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        reason = one_line(error)[:200]
        raise UserError(f"{path} can't be read: it is damaged: {reason}.") from None


class RunFiles:
    """The files of a run: checkpoints/<run>/, metrics/<run>.csv and plots/<run>.html."""

    def __init__(self, run):
        self.run, self.folder = run, Path("checkpoints") / run
        self.newest = self.folder / "state.safetensors"
        self.previous = self.folder / "previous.safetensors"  # the checkpoint before that
        self.csv, self.page = Path("metrics") / f"{run}.csv", Path("plots") / f"{run}.html"

    def claim(self, resume, overwrite):
        """Returns whether the run starts from nothing; it is this process's now, or `UserError`."""
        own = [self.folder] if self.folder.exists() else []
        for folder in (self.folder.parent, self.csv.parent, self.page.parent, *own):
            check_writable(folder)
        lock = hold(self.folder.parent / f".{self.run}.lock", f"The run '{self.run}'")
        self.release = weakref.finalize(self, os.close, lock)
        for half_written in self.folder.glob(".*.part"):  # by a run that was killed
            half_written.unlink()
        can_resume = self.newest.exists() or self.previous.exists()
        if resume and can_resume:
            return False
        # a run killed before its first checkpoint leaves hidden files, or what `init` began with
        left = {path.name for path in self.folder.glob("[!.]*")} - {"snapshot_0000000.safetensors"}
        taken = [self.folder] if left else []
        taken += [path for path in (self.csv, self.page) if path.exists()]
        if taken and not overwrite:
            go_on = "add resume=true to go on with it, " if can_resume else "it can't go on: "
            raise UserError(
                f"The run '{self.run}' exists ({taken[0]}): {go_on}"
                "overwrite=true deletes it, run=another_name leaves it alone."
            )
        return True

    def clear(self):
        """Deletes an earlier run of this name. Raises `UserError` if somebody holds its files."""
        with blamed("overwrite=true"):
            for path in (self.csv, self.page, *self.folder.glob("*")):
                path.unlink(missing_ok=True)
        shutil.rmtree(self.csv.with_suffix(".tensorboard"), ignore_errors=True)

    def load(self):
        """Returns path, tensors, metadata of the newest checkpoint that is whole, or `UserError`.

        A damaged one is left as damaged.safetensors, and it is said.
        """
        complaints = []
        for path in filter(Path.exists, (self.newest, self.previous)):
            try:
                tensors, metadata = load(path)
            except UserError as error:
                if isinstance(error.__cause__, PermissionError):
                    raise
                complaints.append(str(error))
                continue
            if complaints:
                print(f"{complaints[0]} It is left as damaged.safetensors; {path} is used.")
                os.replace(self.newest, self.folder / "damaged.safetensors")
            return path, tensors, metadata
        raise UserError(" ".join(complaints) or f"There is no checkpoint {self.newest}.")


class Metrics:
    """Collects metrics between two rows of a CSV, which it keeps; `track` gets each row, too."""

    def __init__(self, path, track=lambda row: None):
        self.path, self.track, self.rows = Path(path), track, []  # rows: of the CSV, as dicts
        self.pending, self.seconds = {}, {}
        self.started = time.time()

    def restore(self, rows):
        """Goes on with the rows of a checkpoint, and cuts the CSV where they end."""
        self.rows = rows
        self.started -= 60 * rows[-1]["minutes"] if rows else 0
        with contextlib.suppress(PermissionError):
            self.path.unlink(missing_ok=True)
        self.save()

    def add(self, metrics):
        """Takes a dict of numbers or 0-d tensors; several values of a key are averaged."""
        for key, value in metrics.items():
            self.pending.setdefault(key, []).append(value)

    @contextlib.contextmanager
    def timed(self, name):
        """Adds the seconds of its block, less those of timed blocks in it, to time/<name>."""
        began, inside = time.time(), sum(self.seconds.values())
        yield
        inside = sum(self.seconds.values()) - inside
        self.seconds[name] = self.seconds.get(name, 0.0) + time.time() - began - inside

    def check(self, gradient_step):
        """Raises `UserError` with the first metric since the last row that is not finite."""
        found = []
        for key, values in self.pending.items():
            wrong = (~_stacked(values).isfinite()).nonzero()
            if len(wrong):
                of_each_step = key.startswith(("world_model/", "behavior/"))  # the last: of this
                later = len(values) - 1 - int(wrong[0]) if of_each_step else 0
                found.append((gradient_step - later, key))
        if found:
            step, key = min(found)
            check_finite({key: torch.nan}, f"at gradient step {step}")

    def write(self, gradient_steps, environment_steps):
        """Appends a row to the CSV; `UserError`, after that, if a metric is not finite."""
        axes = {"gradient_steps": gradient_steps, "environment_steps": environment_steps}
        row = axes | {"minutes": (time.time() - self.started) / 60}
        before = self.rows[-1] if self.rows else dict.fromkeys(row, 0)
        seconds = max(1e-9, 60 * (row["minutes"] - before["minutes"]))
        row |= {key: float(_stacked(values).mean()) for key, values in self.pending.items()}
        row |= {f"time/{name}": value for name, value in self.seconds.items()}
        for name, value in axes.items():
            row[f"speed/{name}_per_second"] = (value - before[name]) / seconds
        self.rows.append(row)
        self.save()
        self.check(gradient_steps)
        self.track(row)
        self.pending, self.seconds = {}, {}

    def save(self):
        """Writes the CSV, or says that it is held elsewhere."""
        if self.rows:
            table = pandas.DataFrame(self.rows)
            with next_time():
                write_atomically(self.path, lambda file: table.to_csv(file, index=False))


def _stacked(values):
    """Returns numbers or 0-d tensors as one float32 tensor (n,)."""
    return torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values])
