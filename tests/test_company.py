"""A run is not alone: another process, other programs that hold its files, memory that is taken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_config
from tiny import PAGE, STATE, TABLE, arguments, numbers, run

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


# ---------------------------------------------------------------------------- two at once


def test_a_run_has_one_process_and_a_killed_one_blocks_nobody():
    program = "from checkpoint import RunFiles; files = RunFiles('tiny'); files.claim(True, False)"
    other = subprocess.Popen(
        [sys.executable, "-uc", f"{program}; print(1); input()"],
        env=os.environ | {"PYTHONPATH": str(Path(main.__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline().split() == [b"1"]
        for resume, overwrite in ((True, False), (False, True)):
            with pytest.raises(UserError, match="'tiny' is taken: another process is training it"):
                RunFiles("tiny").claim(resume, overwrite)
        assert RunFiles("another").claim(True, False)
    finally:
        other.kill()
        other.communicate()
    assert RunFiles("tiny").claim(True, False)
    assert RunFiles("tiny").claim(True, False)  # again in the same process


def test_a_run_that_has_ended_leaves_its_name_to_others():
    run(gradient_steps=1)
    run(gradient_steps=2, crash_after=5, resume="true")
    program = "from checkpoint import RunFiles; RunFiles('tiny').claim(True, False)"
    path = os.environ | {"PYTHONPATH": str(Path(main.__file__).parent)}
    assert subprocess.run([sys.executable, "-c", program], env=path).returncode == 0


# ---------------------------------------------------------------------------- memory


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    sentence = "replay.rows: 1000000000 of 100 bytes are 100.0 GB, 4.0 GB are free; take at most"
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
    assert main.command_line(arguments(gradient_steps=8)) == 0
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
    run(gradient_steps=8)
    gone = STATE.with_name("snapshot_0000006.safetensors")
    gone.unlink()
    assert main.command_line(arguments(gradient_steps=10, resume="true")) == 0
    assert f"the snapshot {gone} is gone; the run goes on without it" in capsys.readouterr().err
    assert str(gone) not in checkpoint.load(STATE)[1]["pool"]["snapshots"]
