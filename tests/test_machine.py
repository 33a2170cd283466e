"""Devices, cores, memory, signals."""

import os
import signal
import sys
import time

import pytest
import torch

from machine import (
    Stop,
    Stopped,
    keep_freed_memory,
    multiplies_bfloat16,
    pick_device,
    side_by_side,
    use_threads,
)
from utils import UserError

CPU = torch.device("cpu")


def test_an_unknown_device_is_refused():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda")
    for name in ("tpu9", "cuda:99", "meta", "hpu"):
        with pytest.raises(UserError, match=name):
            pick_device(name)


def test_bfloat16_is_not_guessed_on_unknown_devices():
    assert multiplies_bfloat16(CPU) in (True, False)
    assert not multiplies_bfloat16(torch.device("meta"))


@pytest.mark.parametrize("platform", [sys.platform, "win32", "darwin"])
def test_keeping_memory_harms_nowhere(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    keep_freed_memory()
    assert torch.ones(10**6).sum() == 10**6


@pytest.mark.parametrize(("asked", "used"), [(0, 3), (1, 1), (2, 2), (3, 3), (64, 3)])
def test_no_more_threads_than_cores(asked, used):
    torch.set_num_threads(3)
    use_threads(asked)
    assert torch.get_num_threads() == used


# ---------------------------------------------------------------------------- side by side


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_is_done_once_and_the_numbers_are_those_of_one_thread(threads, device):
    torch.set_num_threads(threads)
    (a, b), found = torch.randn(2, 100, 100), []
    for _ in range(3):  # the thread is used again
        found.clear()
        with side_by_side(lambda: found.append(a @ b), device):
            product = b @ a
        (other,) = found
        assert torch.get_num_threads() == threads
        assert torch.allclose(product, b @ a, atol=1e-4)
        assert torch.allclose(other, a @ b, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["function", "block"])
def test_no_error_passes_and_nothing_is_left_running(threads, where):
    torch.set_num_threads(threads)
    ended = []

    def slow():
        time.sleep(0.05)
        ended.append(1)

    def wrong():
        raise KeyError(where)

    function, block = (slow, wrong) if where == "block" else (wrong, slow)
    with pytest.raises(KeyError, match=where), side_by_side(function, CPU):
        block()
    assert len(ended) == (threads == 2 or where == "block")
    assert torch.get_num_threads() == threads
    with side_by_side(slow, CPU):  # works as before
        slow()
    assert len(ended) == 2 + (threads == 2 or where == "block")


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_the_function_comes_first_where_there_is_no_core_to_spare(device):
    torch.set_num_threads(1 if device == CPU else 2)
    order = []
    with side_by_side(lambda: order.append(1), device):
        order.append(2)
    assert order == [1, 2]


# ---------------------------------------------------------------------------- signals


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_noted_and_the_second_interrupt_leaves(name, capfd):
    stop = Stop()
    stop.check()
    stop.listen()
    assert not stop.requested
    os.kill(os.getpid(), getattr(signal, name))
    assert stop.requested and "saving" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    with pytest.raises(Stopped):
        stop.check()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_process_of_its_games_leaves_signals_to_the_run(capfd):
    stop = Stop()
    stop.process += 1  # as if this were a child of the one that listens
    stop.request()
    assert not stop.requested and capfd.readouterr().err == ""
