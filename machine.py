"""What the computer offers (devices, cores, memory, signals, a command line); who is to blame."""

import argparse
import atexit
import collections
import contextlib
import ctypes
import functools
import os
import platform
import re
import signal
import sys
import traceback
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch.utils import _pytree as pytree
from tqdm import tqdm

from utils import UserError, one_line


def pick_device(name):
    """Returns the torch.device of the config's `device`; "auto" is CUDA if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = one_line(error).split(". ")[0]
        raise UserError(f"device: {name} can't be used here: {reason}") from None


def multiplies_bfloat16(device):
    """Says whether this device has instructions for bfloat16 products, twice as fast or more."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def check_memory(key, count, each, device):
    """Returns count * each bytes; raises `UserError`, naming the key, if twice that is not free."""
    free, total = free_memory(torch.device(device)), 2 * count * each
    if total > free:
        raise UserError(
            f"{key}: {count} of {each} bytes and a checkpoint's copy of them are {total / 1e9:.1f}"
            f" GB, {free / 1e9:.1f} GB are free; take at most {int(0.4 * free / each)}."
        )
    return count * each


def name_of(device):
    """Returns what computes: "AMD EPYC, AVX512 with bfloat16", or a GPU's name."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(": ")[1] for x in lines if x.startswith("model name")), name)
    bfloat16 = "with" if multiplies_bfloat16(device) else "without"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()} {bfloat16} bfloat16 products"


def warn(text):
    """Prints a line to stderr, above a progress bar if there is one."""
    tqdm.write(text, sys.stderr)


def progress_bar(done, total):
    """Returns the bar of all gradient steps; a log file gets a line a minute instead."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 60, "maxinterval": 60}
    return tqdm(total=total, initial=done, unit="step", desc="warm-up", **pace)


@contextlib.contextmanager
def explained(sentence, *errors):
    """Turns errors of these kinds in its block into a `UserError`: this sentence, then theirs."""
    try:
        yield
    except errors as error:
        raise UserError(f"{sentence}: {one_line(error)}") from None


@contextlib.contextmanager
def blamed(who):
    """Turns whatever somebody else's code raises in its block into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        _, ours, *theirs = traceback.extract_tb(error.__traceback__)
        others = ("<", "site-packages", ours.filename)
        theirs = [x for x in theirs if not any(other in x.filename for other in others)]
        place = [f" ({Path(x.filename).name}, line {x.lineno})" for x in theirs[-1:]]
        reason = f"{type(error).__name__}: {one_line(error).rstrip('.')}{''.join(place)}"
        raise UserError(f"{who} failed: {reason}.") from error


def close_last(environments, who):
    """Closes a vector environment, whose processes have ten seconds for it; what fails is said."""
    try:
        environments.close(timeout=10)
    except Exception as error:
        warn(f"{who} (close) failed: {type(error).__name__}: {one_line(error)}")
        environments.unwrapped.closed = True  # so that it does not try again


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


def free_memory(device):
    """Returns how many bytes a tensor on this device may take; infinite where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [float("inf")]
    with contextlib.suppress(OSError):  # Linux
        text = Path("/proc/meminfo").read_text()
        free.append(1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1]))
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        inner = Path("/sys/fs/cgroup", own.lstrip("/"))
        for group in (inner, *inner.parents):  # a container's or a job's limit
            with contextlib.suppress(OSError, ValueError):
                names = ("max", "current", "stat")
                limit, used, stat = ((group / f"memory.{name}").read_text() for name in names)
                cached = re.search(r"inactive_file (\d+)", stat)[1]
                free.append(int(limit) - int(used) + int(cached))
    return min(free)


def quiet_console():
    """Lets any console print any name, and hides warnings that a user can do nothing about."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    gymnasiums = ("precision lowered", "Overriding environment", "ERROR: ")
    for text in (*gymnasiums, "Mismatch dtype between input and weight"):  # RMSNorm in bfloat16
        warnings.filterwarnings("ignore", f".*{text}")


def parser_of(text):
    """Returns the parser of a command line whose help begins with this text, as it is written."""
    style = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=style)


def command(function):
    """Makes the function a command; its exit status is 2 after a `UserError`, 130 after Ctrl-C.

    What else the system denies, a file or memory, is told in its own words.
    """

    @functools.wraps(function)
    def call(*arguments):
        quiet_console()
        try:
            return function(*arguments)
        except (UserError, OSError, MemoryError) as error:
            name = Path(function.__code__.co_filename).name
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130

    return call


def cores():
    """Returns how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def close_at_exit(environments):
    """Ends processes of environments with this one: they heed no signal, so it would wait."""
    known = weakref.ref(environments)
    atexit.register(lambda: known() and known().close())


def make_ready(options):
    """Makes ready for games by a command line's options; `UserError` for an impossible one."""
    if not 0 <= options.seed < 2**31:
        raise UserError("--seed must be from 0 to 2147483647.")
    games = getattr(options, "games", None)
    if games is not None and not 1 <= games <= 100_000:
        raise UserError("--games must be from 1 to 100000.")
    torch.manual_seed(options.seed)  # of the plans
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other


def use_threads(count):
    """Lets PyTorch compute on so many CPU cores (0: on all), not on more than this process has."""
    cores = torch.get_num_threads()  # before the first call: all that it may use
    torch.set_num_threads(min(count or cores, cores))


@functools.cache
def _second_core():
    """Returns a thread; it takes over the number of cores when it first asks for it."""
    return ThreadPoolExecutor(1, initializer=torch.get_num_threads)


@contextlib.contextmanager
def side_by_side(function, device):
    """Calls a function that computes on `device` on other CPU cores, beside the caller's block.

    Both have half of the cores. On one core, and on other devices, whose work is queued anyway, the
    function comes first. Raises what it raises.
    """
    cores = torch.get_num_threads()
    if cores == 1 or device.type != "cpu":
        function()
        yield
        return
    _second_core().submit(torch.set_num_threads, cores // 2)
    call = _second_core().submit(function)
    torch.set_num_threads(cores // 2)
    try:
        yield
        call.result()
    finally:
        wait([call])
        torch.set_num_threads(cores)


def recorded(function, device):
    """Returns a function of tensors that a GPU does at once after its first calls: a CUDA graph.

    A step is thousands of small kernels, and to launch each takes longer than to compute it. So
    they are recorded, once for each structure of the arguments (dicts and sequences of tensors),
    and played again with other numbers. The results are overwritten by the next call. The function
    must never wait for the device, and all that it changes must stay where it is in memory.
    """
    if torch.device(device).type != "cuda":
        return function
    calls, recordings = collections.Counter(), {}

    def call(*arguments):
        tensors, structure = pytree.tree_flatten(arguments)
        key = str(structure)
        calls[key] += 1
        if calls[key] <= 3:  # libraries set themselves up
            return function(*arguments)
        if key not in recordings:
            ours, graph = [tensor.clone() for tensor in tensors], torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = function(*pytree.tree_unflatten(ours, structure))
            recordings[key] = ours, graph, results
        ours, graph, results = recordings[key]
        torch._foreach_copy_(ours, tensors)
        graph.replay()
        return results

    return call


STOPPED = 75  # exit status of a run that was: EX_TEMPFAIL of sysexits.h, try again later


class Stopped(Exception):
    """A signal came while something was going on that can be begun again."""


class Console:
    """A stream that goes on when its reader has left or its disk is full: then nobody reads it."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """Writes it at once; what can't be written is lost, and so is all that follows."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self.stream = open(os.devnull, "w")

    def flush(self):
        """Nothing is left to do."""


class Stop:
    """What signals ask for: `requested` turns true; a second Ctrl-C leaves at once."""

    def __init__(self):
        self.requested, self.process = False, os.getpid()

    def listen(self):
        """Listens to SIGINT, SIGTERM, SIGUSR1 and SIGBREAK, where the system has them.

        From here on, nobody has to listen to the process: see `Console`.
        """
        if not isinstance(sys.stdout, Console):
            sys.stdout, sys.stderr = Console(sys.stdout), Console(sys.stderr)
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self.request)

    def request(self, *_):
        """Handles a signal; processes of games get Ctrl-C as well, and leave it to the run."""
        if os.getpid() != self.process:
            return
        self.requested = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # not print: the signal may have come in the middle of one
        with contextlib.suppress(OSError):
            os.write(2, b"\nfinishing the step and saving ...\n")

    def check(self):
        """Raises `Stopped` once it is requested."""
        if self.requested:
            raise Stopped
