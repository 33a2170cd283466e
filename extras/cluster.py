"""Runs in the queue of a SLURM cluster, by submitit: one array of jobs, requeued on preemption.

Submitit writes its jobs as pickles of its own; nothing that it wrote is read here.
"""

import contextlib
import functools
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from machine import explained, warn
from utils import UserError, one_line

JOBS = Path("runs/slurm")  # submitit's files, and the number of each run's job
ROOT = Path(__file__).resolve().parent.parent


class Job:
    """What submitit calls on a cluster: a run, and again after a preemption or a time limit."""

    def __init__(self, arguments):
        self.arguments = arguments

    def __call__(self):
        """Runs `main.py`. Submitit's signal stops it and, when all is saved, is submitit's."""
        import main

        requeue, asked = signal.getsignal(signal.SIGUSR2), []

        def stop(*_):
            asked.append(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR1)

        signal.signal(signal.SIGUSR2, stop)
        status = main.command_line(self.arguments)
        if status == main.STOPPED and asked:
            requeue(signal.SIGUSR2)
        sys.exit(status)  # after a SIGTERM the cluster knows whether it comes back

    def checkpoint(self):
        """Returns what submitit requeues: the same, which goes on from the run's checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Queued:
    """A job in the queue of a cluster, as if it were a process."""

    def __init__(self, run, number):
        self.run, self.number = run, number
        run.log = JOBS / f"{number}_0_log.out"

    def poll(self):
        """Returns None while it is in the queue, else the exit status."""
        if self.number in queue(time.time() // 10):
            return None
        return 0 if self.run.is_done() else 2


@functools.lru_cache(1)
def queue(moment):
    """Returns the numbers of the jobs in the queue; it is asked once a moment."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    while (answer := subprocess.run(command, capture_output=True, text=True)).returncode:
        warn(f"squeue: {one_line(answer.stderr)}; asked again in 10 s")
        time.sleep(10)  # the cluster has other things to do
    return answer.stdout.split()


def submit(runs, name, settings, parallel):
    """Puts runs that are not there into the queue, or `UserError`; `settings`: of sbatch."""
    settings = dict(text.partition("=")[::2] for text in settings)
    for key in settings:
        if "." in key:
            raise UserError(f"--slurm: {key} is no option of sbatch; keys of the config go before.")
    if not settings.get("time", "").isdecimal():
        raise UserError("--slurm needs time=MINUTES, a whole number: the limit of a job.")
    with explained("--slurm needs submitit (pip install submitit)", ImportError):
        import submitit
    with explained("--slurm", RuntimeError):
        executor = submitit.SlurmExecutor(JOBS, max_num_timeout=10**6)
    executor.update_parameters(
        job_name=name,
        time=int(settings.pop("time")),
        array_parallelism=parallel or len(runs),
        stderr_to_stdout=True,
        additional_parameters=settings,
        setup=[
            f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH",
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",  # srun would take one
        ],
    )
    there, notes = queue(None), {run: JOBS / f"{run.name}.job" for run in runs}
    for run, note in notes.items():
        if note.exists() and note.read_text() in there:
            run.process = Queued(run, note.read_text())
    new = [run for run in runs if not run.process]
    with explained("--slurm", submitit.core.utils.FailedJobError, OSError):
        with executor.batch() if new else contextlib.nullcontext():
            jobs = [executor.submit(Job(run.arguments)) for run in new]
    for run, job in zip(new, jobs, strict=True):
        notes[run].write_text(job.job_id)
        run.process = Queued(run, job.job_id)
