"""All cells of an ablation through a launcher: the finished are skipped, the broken go on, what dies is tried again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from core.ablation import Ablation, Cell
from core.cell_table import Table
from core.cells import Attempts, Progress, progress
from core.launchers import Job, Launcher
from core.signals import Stop

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
TESTBEDS = [sys.executable, "-m", "testbeds"]
PAUSE = 1.0  # seconds between two looks at the jobs


class Campaign:
    """`workers` jobs at a time; a cell that died more than `retries` times is given up."""

    def __init__(self, ablation: Ablation, launcher: Launcher, workers: int, retries: int) -> None:
        self.ablation, self.launcher, self.workers, self.retries = ablation, launcher, workers, retries
        self.attempts = Attempts(ablation.out)
        self.attempts.forget()
        names = {cell.name for cell in ablation.cells}
        self.jobs: dict[str, Job] = {name: job for name, job in launcher.standing().items() if name in names}

    def run(self, stop: Stop, table: Table) -> None:
        """Until every cell is finished or given up, or `stop` is requested."""
        while not stop.requested:
            self._collect()
            standing = {cell.name: self._progress(cell) for cell in self.ablation.cells}
            table.show(standing, self.given_up)
            open_cells = [cell for cell in self.ablation.cells if self._is_open(cell, standing[cell.name])]
            if not open_cells and not self.jobs and not any(p.status == "running" for p in standing.values()):
                return
            for cell in open_cells[: max(0, self.workers - len(self.jobs))]:
                self.jobs[cell.name] = self.launcher.start(cell, command(cell), self.log(cell))
            time.sleep(PAUSE)
        for job in self.jobs.values():
            job.stop()

    @property
    def given_up(self) -> dict[str, str]:
        """Cells that died too often -> the last cause."""
        failures = self.attempts.failures
        return {cell: causes[-1] for cell, causes in failures.items() if len(causes) > self.retries}

    def log(self, cell: Cell) -> Path:
        return self.ablation.out / "logs" / cell.arm / f"{cell.task.replace('/', '_')}.log"

    def _progress(self, cell: Cell) -> Progress:
        job = self.jobs.get(cell.name)
        return progress(cell, ours=job is not None and not job.waiting())

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
                cause = job.cause() or f"exit code {code}: {self._last_line(cell)}"
                self.attempts.add(cell, code, cause if code else "")

    def _last_line(self, cell: Cell) -> str:
        log = self.log(cell)
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
        return lines[-1].split("\r")[-1][-200:] if lines else "no output"


def command(cell: Cell) -> list[str]:
    """What runs a cell."""
    return [*(TESTBEDS if cell.task.startswith("testbed/") else TRAIN), *cell.arguments]
