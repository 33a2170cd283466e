"""A run is not alone: another process, other programs that hold its files, memory that is taken."""

import multiprocessing
import os
from pathlib import Path

import pytest
from conftest import make_config
from tiny import PAGE, STATE, TABLE, arguments, numbers, quicken, run

import buffer
import checkpoint
import machine
import main
from buffer import ReplayBuffer
from checkpoint import RunFiles
from machine import free_memory
from utils import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quicken(monkeypatch)


# ---------------------------------------------------------------------------- two at once


def claim_and_wait(claimed):
    """What the other process does."""
    files = RunFiles("tiny")
    claimed.send(files.claim(True, False))
    claimed.recv()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_run_has_one_process_and_one_that_has_ended_or_was_killed_blocks_nobody():
    run(gradient_steps=1)
    run(gradient_steps=2, crash_after=5, resume="true")
    processes = multiprocessing.get_context("fork")
    claimed, end = processes.Pipe()
    other = processes.Process(target=claim_and_wait, args=(end,), daemon=True)
    other.start()
    end.close()
    try:
        assert claimed.recv() is False  # it is there, and goes on
        for resume, overwrite in ((True, False), (False, True)):
            with pytest.raises(UserError, match="'tiny' is taken: another process is training it"):
                RunFiles("tiny").claim(resume, overwrite)
        assert RunFiles("another").claim(True, False)
    finally:
        other.kill()
        other.join()
    assert not RunFiles("tiny").claim(True, False)
    assert not RunFiles("tiny").claim(True, False)  # again in the same process


# ---------------------------------------------------------------------------- memory


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    sentence = "1000000000 of 100 bytes and a checkpoint's copy of them are 200.0 GB, 4.0 GB are"
    monkeypatch.setattr(machine, "free_memory", lambda device: 4e9)
    monkeypatch.setattr(buffer.torch, "zeros", None)  # not even tried
    with pytest.raises(UserError, match=sentence):
        ReplayBuffer(make_config(replay__rows=10**9).replay, 1, 18, 4)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads Linux's /proc")
def test_the_free_memory_is_part_of_what_the_machine_has():
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1e7 < free_memory(buffer.torch.device("cpu")) < everything


# ---------------------------------------------------------------------------- files


def test_a_table_or_page_that_is_open_elsewhere_is_written_later(monkeypatch, capsys):
    real, refused = os.replace, []

    def replace(source, target):
        target = Path(target)
        if target.name in (TABLE.name, PAGE.name) and refused.count(target.name) < 6:
            refused.append(target.name)
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda _: None)
    run(gradient_steps=8, evaluate_every=100)
    assert refused.count(TABLE.name) == refused.count(PAGE.name) == 6  # three tries at each of two
    error = capsys.readouterr().err
    assert error.count("is it open elsewhere? The next row tries again") == 4
    assert [row[0] for row in numbers()[1:]] == ["2", "4", "6", "8"] and PAGE.exists()


def test_what_is_held_for_a_moment_is_waited_for(monkeypatch):
    real, refused = os.replace, []

    def replace(source, target):
        if refused.count(target) < 2:
            refused.append(target)
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(2):  # a virus scanner, say, reads every file that is new
        checkpoint.save("state.safetensors", {}, "previous.safetensors")
    assert len(refused) == 4 and Path("previous.safetensors").exists()


def test_overwriting_a_table_that_is_held_deletes_nothing(monkeypatch, capsys):
    files = RunFiles("tiny")
    for path in (files.newest, files.csv):
        path.parent.mkdir(parents=True)
        path.touch()

    def unlink(path, missing_ok):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    assert main.command_line(arguments(overwrite="true")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "overwrite=true failed: PermissionError" in line and str(TABLE) in line
    assert files.newest.exists() and files.csv.exists()


def test_a_checkpoint_that_cannot_be_written_still_ends_the_run(monkeypatch):
    def replace(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(UserError, match="Could not write agent"):
        checkpoint.save("agent.safetensors", {})


def test_a_missing_snapshot_is_said_and_left_out(capsys):
    run(gradient_steps=6, evaluation_games=1)
    gone = STATE.with_name("snapshot_0000004.safetensors")
    gone.unlink()
    run(gradient_steps=8, evaluation_games=1, resume="true")
    assert f"the snapshot {gone} is gone; the run goes on without it" in capsys.readouterr().err
    assert str(gone) not in checkpoint.load(STATE)[1]["pool"]["snapshots"]
