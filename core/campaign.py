"""All cells of an ablation through a launcher: the finished are skipped, the broken go on, what dies is tried again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from core.ablation import Ablation, Cell
from core.cell_table import Table
from core.cells import STOPPED, Attempts, Progress, holder, progress
from core.launchers import STARTED, Job, Launcher
from core.signals import UNSAVED, Stop
from core.storage import Storage

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
TESTBEDS = [sys.executable, "-m", "testbeds"]
PAUSE = 1.0  # seconds between two looks at the jobs


class Campaign:
    """`workers` cells at a time, whoever has started them; one that died more than `retries` times is given up."""

    def __init__(self, ablation: Ablation, launcher: Launcher, workers: int, retries: int) -> None:
        self.ablation, self.launcher, self.workers, self.retries = ablation, launcher, workers, retries
        self.attempts = Attempts(ablation.out)
        names = {cell.name for cell in ablation.cells}
        self.jobs: dict[str, Job] = {name: job for name, job in launcher.standing().items() if name in names}
        self.known: dict[str, Progress] = {}  # of each cell's latest look, since its last start has ended
        self.died: dict[str, str] = {}  # cells that are to be tried again, or given up -> the last cause

    def run(self, stop: Stop, table: Table) -> None:
        """Until every cell is finished or given up, or `stop` is requested: then jobs save and end, or outlive this."""
        with self.attempts.noting(Storage(table.say)):
            while not stop.requested and self._go_on(table):
                time.sleep(PAUSE)
            for job in self.jobs.values():
                job.stop()
            while self.jobs and not self.launcher.outlived:
                time.sleep(PAUSE)
                self._collect()

    def _go_on(self, table: Table) -> bool:
        """Take note of what has ended, start what there is room for. -> whether something is left to do"""
        self._collect()
        standing = {cell.name: self._progress(cell) for cell in self.ablation.cells}
        table.show(standing, self.given_up)
        open_cells = [cell for cell in self.ablation.cells if self._is_open(cell, standing[cell.name])]
        busy = self.jobs.keys() | {name for name, p in standing.items() if p.status == "running"}
        for cell in open_cells[: max(0, self.workers - len(busy))]:
            self._start(cell)
        return bool(open_cells or busy)

    @property
    def given_up(self) -> dict[str, str]:
        """Cells that died too often -> the last cause."""
        failures = self.attempts.failures
        return {cell: causes[-1] for cell, causes in failures.items() if len(causes) > self.retries}

    @property
    def not_saved(self) -> dict[str, str]:
        """Once stopped: cells that have died, or that go on without this launcher -> what is known of it."""
        found: dict[str, str] = {}
        for cell in self.ablation.cells:
            if cell.name not in self.jobs and self._progress(cell).status == "running":
                found[cell.name] = f"still running ({holder(cell.folder)})"
            elif cell.name in self.died:
                found[cell.name] = f"died ({self.died[cell.name]})"
        return found

    def log(self, cell: Cell) -> Path:
        return self.ablation.out / "logs" / cell.arm / f"{cell.task.replace('/', '_')}.log"

    def _progress(self, cell: Cell) -> Progress:
        job = self.jobs.get(cell.name)
        ours = job is not None and not job.waiting()
        self.known[cell.name] = progress(cell, ours, self.known.get(cell.name))
        return self.known[cell.name]

    def _start(self, cell: Cell) -> None:
        """One that the disk does not let start has died."""
        try:
            self.jobs[cell.name] = self.launcher.start(cell, command(cell), self.log(cell))
            self.died.pop(cell.name, None)
        except OSError as error:
            self._note(cell, UNSAVED, f"cannot be started: {error}")

    def _is_open(self, cell: Cell, standing: Progress) -> bool:
        startable = standing.status in ("planned", "broken") and cell.name not in self.jobs
        return startable and cell.name not in self.given_up

    def _collect(self) -> None:
        """Take note of jobs that have ended."""
        for cell in self.ablation.cells:
            job = self.jobs.get(cell.name)
            code = job.code() if job else None
            if job and code is not None:
                del self.jobs[cell.name]
                self.known.pop(cell.name, None)
                died = code not in (0, *STOPPED)
                self._note(cell, code, (job.cause() or f"exit code {code}: {self._last_line(cell)}") if died else "")

    def _note(self, cell: Cell, code: int, cause: str) -> None:
        if cause:
            self.died[cell.name] = cause
        tried = len(self.attempts.failures.get(cell.name, [])) + bool(cause)
        self.attempts.add(cell, code, cause, given_up=bool(cause) and tried > self.retries)

    def _last_line(self, cell: Cell) -> str:
        try:
            text = self.log(cell).read_text(errors="replace")
        except OSError:
            return "no output"
        lines = [line for line in text.splitlines() if line.strip()]
        silent = not lines or lines[-1].startswith(STARTED)  # what stands before that is of an earlier start
        return "no output" if silent else lines[-1].split("\r")[-1][-200:]


def command(cell: Cell) -> list[str]:
    """What runs a cell."""
    return [*(TESTBEDS if cell.task.startswith("testbed/") else TRAIN), *cell.arguments]
