"""Sweeps: names, processes that stop and go on, a cluster's jobs, the page of what came of them."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_plots import read_page
from tiny import TINY

import sweep
from config import COMPLETE, read_yaml
from extras import cluster

SMALL = TINY | {
    "run": "small",
    "environments": 2,
    "evaluation_games": 2,
    "warmup_rows": 20,
    "train_ratio": 8,
    "wrappers.time_limit": 10,
    "gradient_steps": 8,
    "evaluate_every": 4,
    "save_every": 8,
}
FAKE = """
import pathlib, signal, sys, time
run = next(text[4:] for text in sys.argv if text.startswith("run="))
with open("started.txt", "a") as file:
    file.write(run + "\\n")
if "seed=7" in sys.argv:
    sys.exit("main.py: the device is gone.\\nand more")
if "seed=8" in sys.argv and run not in open("started.txt").read().split()[:-1]:
    sys.exit(75)
if "seed=9" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    pathlib.Path("listening").touch()
    time.sleep(60)
pathlib.Path(run).touch()
"""
PREEMPTED = """
import pathlib, signal
from gymnasium.envs.classic_control import PendulumEnv

class World(PendulumEnv):
    def step(self, action):
        once = pathlib.Path("preempted")
        if pathlib.Path("metrics/small_seed1.csv").exists() and not once.exists():
            once.touch()
            signal.raise_signal(signal.SIGUSR2)  # as the cluster does
        return super().step(action)
"""


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """The current folder, with a config small.yml."""
    monkeypatch.chdir(tmp_path)
    config = OmegaConf.create({"base": "pendulum.yml"})
    for key, value in SMALL.items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, "small.yml")
    return tmp_path


@pytest.fixture
def fake(small, monkeypatch):
    """A main.py whose runs leave a file of their name; seeds 7, 8 and 9 have trouble."""
    (small / "fake.py").write_text(FAKE)
    monkeypatch.setattr(sweep, "MAIN", small / "fake.py")
    monkeypatch.setattr(sweep.Run, "is_done", lambda run: Path(run.name).exists())
    reported = []
    monkeypatch.setattr(sweep, "report", lambda runs, *names: reported.append((len(runs), *names)))
    return reported


def command(*more, config="small.yml"):
    return sweep.main(["--config", str(config), *map(str, more)])


def rewrite(old, new):
    Path("small.yml").write_text(Path("small.yml").read_text().replace(old, new))


def names(*more, config="small.yml"):
    """The runs of a sweep, name -> run."""
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.Run, "is_done", lambda run: plans.append(run) or True)
        patch.setattr(sweep, "report", lambda *_: None)
        assert command(*more, config=config) == 0
    return {run.name: run for run in plans}


def started():
    return Path("started.txt").read_text().split()


# ---------------------------------------------------------------------------- names


def test_a_name_is_what_differs_from_the_config_and_the_seed():
    runs = names("--seeds", 0, 3, "dreamer.horizon=3,6", "dreamer.switches=[],[0]")
    stems = ["small", "small_switches=[0]", "small_horizon=6", "small_horizon=6_switches=[0]"]
    assert list(runs) == [f"{stem}_seed{seed}" for stem in stems for seed in (0, 3)]
    run = runs["small_horizon=6_switches=[0]_seed3"]
    assert run.config.dreamer.horizon == 6 and list(run.config.dreamer.switches) == [0]
    assert run.config.seed == 3 and run.config.resume and run.label == "horizon=6 switches=[0]"
    # so what two sweeps have in common is one run
    assert "small_seed0" in names("dreamer.unimix=0,0.01")


def test_names_are_as_long_as_names_may_be_and_apart():
    files = [f"[{letter * 300}/x.safetensors]" for letter in "ab"]
    runs = names(f"opponents.files={','.join(files)}", "run=" + "y" * 120)
    assert len(runs) == 2 and all(len(name) <= 200 and "/" not in name for name in runs)


def test_no_two_keys_have_the_same_short_name():
    short = [key.split(".")[-1] for key in read_yaml(COMPLETE)]
    assert len(set(short)) == len(short)


def test_cores_are_shared_unless_the_command_says_so(monkeypatch):
    monkeypatch.setattr(sweep.torch, "get_num_threads", lambda: 8)
    for parallel, key, expected in ((1, 2, 2), (8, 2, 1), (2, 0, 4)):
        (Path("other.yml")).write_text(f"base: hockey.yml\nthreads: {key}\n")
        read = names("--parallel", parallel, config="other.yml")["hockey_seed0"].config
        assert read.threads == expected
    assert names("--parallel", 8, "threads=5")["small_seed0"].config.threads == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dreamer.horizn=3,6"], "did you mean 'dreamer.horizon'"),
        (["dreamer.horizon=3,x"], "must be a whole number"),
        (["dreamer.horizon"], "must be a whole number"),
        (["dreamer.horizon=3],[6"], "not understood"),
        (["seed=1,2"], "'seed=1,2' can't be chosen"),
        (["threads=1,2"], "Two runs would be called small_seed0"),
        (["--seeds", "one"], "seed must be a whole number"),
        (["--parallel", "0"], "--parallel"),
        (["--config", "nowhere.yml"], "no config 'nowhere.yml'"),
        (["--slurm", "partition=x"], "time=MINUTES"),
        (["--slurm", "time=5", "dreamer.horizon=3"], "dreamer.horizon is no option of sbatch"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(capsys, arguments, words):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("sweep.py: ") and error.count("\n") == 1
    assert not Path("checkpoints").exists()


# ---------------------------------------------------------------------------- processes


def test_a_failure_is_told_and_the_others_go_on(fake, capsys):
    assert command("--seeds", 7, 0, 1, "--parallel", 2) == 2
    assert "small_seed7: main.py: the device is gone. (" in capsys.readouterr().out
    assert sorted(started()) == ["small_seed0", "small_seed1", "small_seed7"]
    assert fake == [(2, "small_seeds", "small.yml")]
    assert command("--seeds", 0, 1) == 0 and len(started()) == 3  # both are done


def test_a_run_that_is_stopped_stops_the_sweep_and_the_command_goes_on(fake, capsys):
    assert command("--seeds", 8, 0, 1) == 75
    assert started() == ["small_seed8"] and not fake
    assert "the same command goes on" in capsys.readouterr().err
    assert command("--seeds", 8, 0, 1) == 0
    assert started() == ["small_seed8", "small_seed8", "small_seed0", "small_seed1"]


def test_a_signal_stops_all_and_starts_no_more(fake):
    def kill():
        while not Path("listening").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill).start()
    assert command("--seeds", 9, 0, "--parallel", 1) == 75
    assert started() == ["small_seed9"]


# ---------------------------------------------------------------------------- whole runs


def forbid(patch):
    """No process is started any more."""
    patch.setattr(sweep.Run, "start", lambda run: pytest.fail("it starts a run"))
    patch.setattr(sweep, "submit", lambda *_: pytest.fail("it submits runs"))


def test_a_sweep_here_and_on_a_cluster(monkeypatch, capsys):
    """Seed 0 as a process; seed 1 by submitit, in this one, is preempted and comes back."""
    submitit = pytest.importorskip("submitit")
    from submitit.core.submission import process_job
    from submitit.local import local

    for name, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "1", "FOLDER": "?"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    waiting, ended = [], []

    class Local(submitit.LocalExecutor):
        def _submit_command(self, text):
            program = "import importlib.util as known; assert known.find_spec('extras.cluster')"
            lines = [*self.parameters["setup"], shlex.join([sys.executable, "-c", program])]
            subprocess.run(["bash", "-c", " && ".join(lines)], check=True)  # what a node does first
            waiting.append("1")
            return submitit.LocalJob(self.folder, "1", tasks=[0])

    def queue(moment):
        while waiting:  # the job's turn
            with pytest.raises(SystemExit) as caught:
                process_job(cluster.JOBS)
            ended.append(caught.value.code)
            if ended[-1] != local.LOCAL_REQUEUE_RETURN_CODE:
                waiting.clear()
        return []

    Path("world.py").write_text(PREEMPTED)
    rewrite("base: pendulum.yml", "base: pendulum.yml\nenvironment: world:World")
    monkeypatch.setattr(submitit, "SlurmExecutor", Local)
    monkeypatch.setattr(cluster, "queue", queue)
    assert command() == 0, capsys.readouterr()
    rewrite("save_every: 8", "save_every: 9")
    with pytest.MonkeyPatch.context() as patch:  # what is done had another config
        forbid(patch)
        assert command() == 2
        assert "exists with another save_every (8, not 9)" in capsys.readouterr().err
    rewrite("save_every: 9", "save_every: 8")
    assert command("--seeds", 0, 1, "--slurm", "time=5") == 0, capsys.readouterr()
    assert ended == [local.LOCAL_REQUEUE_RETURN_CODE, 0]
    assert "resumed from checkpoints/small_seed1" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch)
        assert command("--seeds", 0, 1) == 0
    printed = capsys.readouterr().out
    assert "2 runs, 2 of them done" in printed and re.search(r"small +2 +-?\d", printed)
    page, data = read_page(Path("plots/small_seeds.html"))
    assert list(data["axes"]) == ["minutes", "environment_steps", "gradient_steps"]
    (panel,) = data["groups"]["evaluation"]
    lines = [line["name"] for line in panel["traces"] if line["name"]]
    assert lines == ["small, seed 0", "small, seed 1", "small, mean of 2 seeds"]
    assert "<th>return</th>" in page and "small.yml<br>" in page


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sinfo"), reason="SLURM is not installed")
def test_a_real_slurm_requeues_a_job_which_goes_on(small, capsys):
    if subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("SLURM does not run")

    def requeue():
        while not Path("metrics/small_seed1.csv").exists():
            time.sleep(0.05)
        number = Path("runs/slurm/small_seed1.job").read_text()
        subprocess.run(["scontrol", "requeue", number], check=True)

    rewrite("gradient_steps: 8", "gradient_steps: 60")
    threading.Thread(target=requeue).start()
    assert command("--seeds", 0, 1, "--slurm", "time=5", "cpus-per-task=1") == 0, (
        capsys.readouterr()
    )
    (log,) = Path("runs/slurm").glob("*_1_0_log.out")
    assert "resumed from checkpoints/small_seed1" in log.read_text()
    assert "small_seed1: done (2 of 2)" in capsys.readouterr().out
