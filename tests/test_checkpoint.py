"""Files: written whole or not at all, opened only as they were written; the CSV."""

import json
import os
import pickle
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import checkpoint
from checkpoint import Metrics, RunFiles, hold, write_atomically
from utils import UserError

TENSORS = {
    "weight": torch.randn(3, 2),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "nothing": torch.zeros(0, 4),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(path):
    """The one line with which a file is refused."""
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------- writing


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("disk full")])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda file: Path(file).write_text("old"))

    def fail(file):
        Path(file).write_text("half")
        raise error

    with pytest.raises(UserError, match="file.*disk full"):
        write_atomically(path, fail, path.with_name("previous"))
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        Path(file).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "metrics").write_text("")
    with pytest.raises(UserError, match="metrics"):
        write_atomically(tmp_path / "metrics" / "run.csv", lambda file: None)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(umask, mode):
    before = os.umask(umask)
    try:
        checkpoint.save("state.safetensors", TENSORS)
        write_atomically("text", lambda file: file.write_text("text"))
    finally:
        assert os.umask(before) == umask
    for path in ("state.safetensors", "text"):
        assert stat.S_IMODE(os.stat(path).st_mode) == mode


# ---------------------------------------------------------------------------- reading


def test_what_was_saved_comes_back():
    metadata = {"steps": [1, 2], "best": float("-inf"), "text": "ä\n", "none": None}
    checkpoint.save("a.safetensors", TENSORS, **metadata)
    tensors, found = checkpoint.load("a.safetensors")
    assert found == metadata and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype


def test_a_file_says_nothing_that_only_the_reader_knows():
    checkpoint.save("a.safetensors", TENSORS, config={"run": "${oc.env:HOME}"})
    assert "refers to something" in refused("a.safetensors")


def test_what_was_read_does_not_change_with_the_file():
    path = Path("a.safetensors")
    checkpoint.save(path, TENSORS)
    tensors, _ = checkpoint.load(path)
    with open(path, "r+b") as file:  # in place, as cp does; shorter, it would kill the process
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["weight"], TENSORS["weight"])


def test_a_file_opens_only_as_it_was_written():
    path, before = Path("state.safetensors"), Path("previous.safetensors")
    checkpoint.save(path, {"a": torch.ones(2)}, before, step=1)
    assert checkpoint.load(path)[1] == {"step": 1} and not before.exists()
    checkpoint.save(path, {"a": torch.zeros(2)}, before, step=2)
    assert checkpoint.load(path)[1] == {"step": 2} and checkpoint.load(before)[1] == {"step": 1}
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0, 5):
            changed = bytes([whole[position] ^ 1 << bit])
            path.write_bytes(whole[:position] + changed + whole[position + 1 :])
            assert "damaged" in refused(path)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert "damaged" in refused(path)


@pytest.mark.parametrize("change", ["value", "shape", "dtype", "name", "text", "key", "none"])
def test_the_checksum_covers_all_there_is(change):
    tensors, texts = {"a": torch.ones(4)}, {"step": "1"}
    texts["checksum"] = checkpoint.checksum(tensors, texts)
    save_file(tensors, "a.safetensors", texts)
    assert checkpoint.load("a.safetensors")[1] == {"step": 1}
    if change in ("value", "shape", "dtype"):
        tensors["a"] = {
            "value": tensors["a"] * 2,
            "shape": tensors["a"].reshape(2, 2),
            "dtype": tensors["a"].view(torch.int32),
        }[change]
    elif change == "name":
        tensors["b"] = tensors.pop("a")
    else:
        new = {"text": {"step": "2"}, "key": {"stop": "1"}, "none": {}}[change]
        texts = new | {"checksum": texts["checksum"]}
    save_file(tensors, "a.safetensors", texts)
    assert "checksum" in refused("a.safetensors")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_other_files_are_refused_and_nothing_is_executed(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"agent": Payload(mark)}, "zip.safetensors")
    Path("raw.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    Path("empty.safetensors").write_bytes(b"")
    Path("text.safetensors").write_text("hello")
    save_file({"a": torch.zeros(2)}, "foreign.safetensors")
    Path("folder.safetensors").mkdir()
    for name in ("zip", "raw", "empty", "text", "foreign"):
        assert "damaged" in refused(f"{name}.safetensors")
    assert "Is a directory" in refused("folder.safetensors")
    assert "No such file" in refused("missing.safetensors")
    assert not mark.exists()
    pickle.loads(Path("raw.safetensors").read_bytes())
    assert mark.exists()  # the payload was a live one


# ---------------------------------------------------------------------------- a run's files


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(monkeypatch):
    files = RunFiles("mine")
    for path in (files.newest, files.previous):
        checkpoint.save(path, {"a": torch.zeros(2)})

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(UserError, match="state.safetensors can't be read: Permission denied"):
        files.load()
    assert files.newest.exists()


def test_the_name_of_a_run_belongs_to_it():
    files = RunFiles("mine")
    assert files.claim(resume=False, overwrite=False) and files.claim(True, False)
    for path in (files.folder / "latest.safetensors", files.csv, files.page):
        path.parent.mkdir(exist_ok=True)
        path.touch()
        for resume in (False, True):  # there is nothing to go on with
            with pytest.raises(UserError, match="'mine' exists.*overwrite=true"):
                files.claim(resume, overwrite=False)
        assert files.claim(resume=False, overwrite=True) and path.exists()
        files.clear()
        assert not path.exists()
    for path in (files.newest, files.previous):
        checkpoint.save(path, TENSORS)
        assert not files.claim(resume=True, overwrite=True)
        with pytest.raises(UserError, match="resume=true"):
            files.claim(resume=False, overwrite=False)
        files.clear()


def test_the_newest_checkpoint_that_is_whole_is_loaded(capsys):
    files = RunFiles("mine")
    with pytest.raises(UserError, match="There is no checkpoint"):
        files.load()
    for step in (1, 2):
        checkpoint.save(files.newest, TENSORS, files.previous, step=step)
    assert files.load()[0] == files.newest and files.load()[2] == {"step": 2}
    damaged = files.newest.read_bytes()[:-1]
    files.newest.write_bytes(damaged)
    path, _, metadata = files.load()
    assert path == files.previous and metadata == {"step": 1}
    left = files.newest.with_name("damaged.safetensors")
    assert left.read_bytes() == damaged and not files.newest.exists()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and all(
        str(name) in said for name in (files.newest, path, left.name)
    )
    assert files.load()[0] == files.previous and not capsys.readouterr().out
    files.previous.write_bytes(damaged)
    with pytest.raises(UserError, match="previous.*damaged"):
        files.load()


# ---------------------------------------------------------------------------- the CSV


def test_metrics_average_and_keep_the_csv(tmp_path):
    seen = []
    metrics = Metrics(tmp_path / "run.csv", seen.append)
    metrics.started -= 120
    metrics.add({"loss": torch.tensor(1.0), "wins": True})
    metrics.add({"loss": 3.0, "wins": False})
    metrics.write(gradient_steps=10, environment_steps=40)
    (row,) = metrics.rows
    assert seen == [row] and row["loss"] == 2 and row["wins"] == 0.5
    assert row["speed/environment_steps_per_second"] == pytest.approx(40 / 120, rel=0.05)
    metrics.started -= 60
    metrics.write(gradient_steps=20, environment_steps=40)
    row = metrics.rows[-1]
    assert "loss" not in row and row["minutes"] == pytest.approx(3, rel=0.05)
    assert row["speed/gradient_steps_per_second"] == pytest.approx(10 / 60, rel=0.05)
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[0].startswith("gradient_steps,environment_steps,minutes")


def test_time_is_counted_once(monkeypatch):
    now = iter([100.0, 0.0, 1.0, 3.0, 10.0, 20.0, 21.0])  # of each call of the clock
    monkeypatch.setattr(checkpoint.time, "time", lambda: next(now))
    metrics = Metrics("run.csv")
    with metrics.timed("train"), metrics.timed("collect"):
        pass
    assert metrics.seconds == {"collect": 2.0, "train": 8.0}
    with metrics.timed("train"):
        pass
    assert metrics.seconds == {"collect": 2.0, "train": 9.0}


def test_a_metric_that_is_not_finite_stops_after_the_csv_is_written(tmp_path):
    metrics = Metrics(tmp_path / "run.csv")
    metrics.add({"loss": torch.tensor(float("nan"))})
    with pytest.raises(UserError, match="loss is not finite at gradient step 7"):
        metrics.write(gradient_steps=7, environment_steps=1)
    assert (tmp_path / "run.csv").exists()


def test_the_first_metric_that_went_wrong_is_named_with_its_step(tmp_path):
    metrics, bad = Metrics(tmp_path / "run.csv"), float("nan")
    for norm, loss in ((1.0, 1.0), (1.0, float("inf")), (bad, bad)):
        metrics.add({"behavior/norm": norm, "world_model/loss": torch.tensor(loss)})
    with pytest.raises(UserError, match="loss is not finite at gradient step 99"):
        metrics.check(100)


def test_what_has_no_value_at_each_step_is_said_of_the_step_that_noticed(tmp_path):
    metrics = Metrics(tmp_path / "run.csv")
    metrics.add({"train/episode_return": float("inf")})
    for _ in range(300):
        metrics.add({"train/episode_return": 1.0})
    with pytest.raises(UserError, match="episode_return is not finite at gradient step 100"):
        metrics.check(100)


def test_a_lock_that_can_not_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="can't be opened"):
        hold(tmp_path, "The run")  # a folder


def test_metrics_go_on_from_the_rows_of_a_checkpoint(tmp_path):
    one = Metrics(tmp_path / "run.csv")
    one.started -= 600
    for step in (1, 2, 3):
        one.add({"loss": step / 3})
        one.write(step, 2 * step)
        if step == 2:
            rows, before = json.loads(json.dumps(one.rows)), (tmp_path / "run.csv").read_bytes()
    two = Metrics(tmp_path / "run.csv")
    two.restore(rows)
    assert (tmp_path / "run.csv").read_bytes() == before  # cut where the checkpoint was
    two.add({"loss": 3 / 3})
    two.write(3, 6)
    assert two.rows[-1]["loss"] == one.rows[-1]["loss"] and two.rows[-1]["minutes"] >= 10
    two.restore([])
    assert not (tmp_path / "run.csv").exists()
