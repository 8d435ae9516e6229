"""Cells as jobs of a Slurm cluster, by submitit (`pip install -e ".[slurm]"`).

    python ablate.py FILE launcher=slurm workers=8 launcher.timeout_min=240 launcher.slurm_partition=gpu

`launcher.KEY` are submitit's parameters: timeout_min, mem_gb, cpus_per_task, gpus_per_node, slurm_partition, slurm_qos
and so on. Ninety seconds before its time is over, or when it is pre-empted, a job lets its run save and queues itself
again. Jobs outlive the launcher: the same command finds them again, `scancel` ends them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

from core import files
from core.ablation import Cell
from core.launchers import WITHOUT_RESULT, numbers
from core.launchers.local import started
from core.options import one_line
from core.storage import Appending, Storage

DAY = 1_440  # minutes; submitit's own default would end a run after five
REQUEUES = 1_000  # a job may outlive its time as often
PAUSE = 1.0  # seconds between two looks at a run, inside its job


def make(out: Path, options: dict[str, str]) -> Slurm:
    try:
        import submitit
    except ImportError:
        raise ValueError('launcher=slurm needs submitit: pip install -e ".[slurm]"') from None
    try:
        executor = submitit.AutoExecutor(out / "logs" / "slurm", cluster="slurm", slurm_max_num_timeout=REQUEUES)
        executor.update_parameters(name=out.name, **{"timeout_min": DAY, **numbers(options)})
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise ValueError(f"launcher=slurm: {one_line(error)}") from error
    return Slurm(executor, out)


class Slurm:
    """Submits jobs, and remembers them in logs/slurm/jobs.jsonl."""

    workers, outlived = 1_000, True

    def __init__(self, executor, out: Path) -> None:
        self._executor = executor
        self._jobs = out / "logs" / "slurm" / "jobs.jsonl"
        self._queue = Queue()

    def start(self, cell: Cell, command: list[str], log: Path) -> SlurmJob:
        from submitit.core.utils import FailedJobError

        self._jobs.parent.mkdir(parents=True, exist_ok=True)
        with closing(Appending(self._jobs, Storage())) as jobs:  # opened first: what is submitted is not lost
            try:
                job = self._executor.submit(Run(command, log))
            except FailedJobError as error:
                raise ValueError(f"launcher=slurm: {one_line(error)}") from error
            jobs.append(f"{json.dumps({'cell': cell.name, 'job': job.job_id})}\n".encode())
        return SlurmJob(job, self._queue)

    def standing(self) -> dict[str, SlurmJob]:
        import submitit

        files.drop_half_line(self._jobs)
        latest = {row["cell"]: row["job"] for row in files.json_rows(self._jobs)}
        queued = self._queue.states()
        if queued is None:
            raise ValueError("launcher=slurm: squeue does not answer; jobs that are under way cannot be found")
        return {
            cell: SlurmJob(submitit.SlurmJob(self._jobs.parent, job_id), self._queue)
            for cell, job_id in latest.items()
            if job_id in queued
        }


class Queue:
    """What `squeue` says, asked at most once a second. (`sacct` would need accounting, which small clusters lack.)"""

    def __init__(self) -> None:
        self._asked = -PAUSE
        self._states: dict[str, str] | None = None

    def states(self, since: float = 0.0) -> dict[str, str] | None:
        """Job -> PENDING, RUNNING, ..., as it was at the moment `since` or later; jobs that have ended are missing.

        None: the controller does not answer. It has not lost the jobs.
        """
        if self._asked <= since or time.monotonic() - self._asked > PAUSE:
            done = subprocess.run(["squeue", "--me", "-h", "-o", "%i %T"], capture_output=True, text=True)
            answered = done.returncode == 0
            self._states = dict(line.split() for line in done.stdout.splitlines()) if answered else None
            self._asked = time.monotonic()
        return self._states


class SlurmJob:
    def __init__(self, job, queue: Queue) -> None:
        self._job, self._queue = job, queue
        self._submitted = time.monotonic()
        self._cause = ""

    def waiting(self) -> bool:
        return (self._queue.states(self._submitted) or {}).get(self._job.job_id) != "RUNNING"

    def code(self) -> int | None:
        states = self._queue.states(self._submitted)
        if states is None or self._job.job_id in states:
            return None
        if not self._job.paths.result_pickle.exists():
            self._cause = f"job {self._job.job_id} left the queue without a result; see {self._job.paths.stderr}"
            return WITHOUT_RESULT
        error = self._job.exception()
        if error is not None:
            self._cause = str(error).strip().splitlines()[-1]
            return WITHOUT_RESULT
        return self._job.result()

    def cause(self) -> str:
        return self._cause

    def stop(self) -> None:
        """Nothing: it outlives its launcher."""


class Run:
    """What a job does: start the command and wait for it. -> its exit code

    Told that its time is over (submitit calls `checkpoint`), it lets the run save, and is queued again as it is.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log

    def __call__(self) -> int:
        self._process = started(self.command, self.log)
        return self._ended()

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        self._process.send_signal(signal.SIGTERM)
        self._ended()
        return DelayedSubmission(Run(self.command, self.log))

    def _ended(self) -> int:
        while self._process.poll() is None:  # not wait(): a signal's handler asks too, and it holds a lock
            time.sleep(PAUSE)
        return self._process.returncode
