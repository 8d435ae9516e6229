"""How far the cells of an ablation are, read from their folders; and which attempts to run them there have been."""

from __future__ import annotations

import fcntl
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any, Literal, NamedTuple

from core import files
from core.ablation import Ablation, Cell
from core.checkpoint import checkpoints, step
from core.config import WITHOUT_EFFECT, resolved
from core.run_folder import CONFIG, DONE, LOCK, differing, read_config
from core.signals import SIGNALS
from core.storage import Appending, Storage

LAUNCHER = ".launcher"  # locked by whoever is at work on an ablation
# exit codes of a run that was told to stop, once it can hear and before: no failure
STOPPED = (*(128 + number for number in SIGNALS), -SIGTERM)
Status = Literal["planned", "broken", "running", "finished", "diverged"]


class Progress(NamedTuple):
    """Where a cell stands."""

    status: Status
    share: float  # of its env steps that are done, 0 to 1
    seconds_left: float | None  # while it is running


def progress(cell: Cell, ours: bool = False) -> Progress:
    """Read a cell's folder; nothing is written. ours: the caller has it running."""
    folder, steps = cell.folder, cell.config.steps
    if (folder / DONE).exists():
        diverged = files.read_json(folder / DONE).get("diverged", [])
        return Progress("diverged" if diverged else "finished", 1.0, None)
    if ours or held(folder):
        row = _last_row(folder / "timing.jsonl")
        done, speed = row.get("step", 0), row.get("env_steps_per_second", 0.0)
        return Progress("running", done / steps, (steps - done) / speed if speed else None)
    saved = checkpoints(folder)
    if not (folder / CONFIG).exists():
        return Progress("planned", 0.0, None)
    return Progress("broken", step(saved[-1]) / steps if saved else 0.0, None)


def check(cell: Cell) -> None:
    """Raises ValueError if the cell's folder holds a run of another configuration."""
    if (cell.folder / CONFIG).exists():
        changed = differing(read_config(cell.folder), resolved(cell.config), WITHOUT_EFFECT)
        if changed:
            raise ValueError(
                f"{cell.name}: {cell.folder} holds a run of another configuration ({changed[0]}); choose another out="
            )


def held(folder: Path) -> bool:
    """Whether a process is in this run folder, wherever it was started."""
    return _locked(folder / LOCK)


def given_up(ablation: Ablation) -> set[str]:
    """Names of the cells that have died and that nobody runs, nor a launcher will."""
    failures = Attempts(ablation.out).failures
    if not failures or _locked(ablation.out / LAUNCHER):
        return set()
    dead = (cell for cell in ablation.cells if cell.name in failures)
    return {cell.name for cell in dead if progress(cell).status in ("planned", "broken")}


def over(ablation: Ablation) -> bool:
    """Whether nothing will change any more, unless the ablation is started again."""
    lost = given_up(ablation)
    return all(cell.name in lost or progress(cell).status in ("finished", "diverged") for cell in ablation.cells)


def _locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def holder(folder: Path) -> str:
    """Who is in this run folder, as it has written there."""
    return (folder / LOCK).read_text() or "another process"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Inside, no other launcher is at work on this ablation. Raises ValueError if one is."""
    with (out / LAUNCHER).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{out}: another launcher is at work there; stop it first, or choose another out="
            ) from error
        yield


class Attempts:
    """How starts of cells ended, a line of attempts.jsonl for every end that the launcher saw; they survive it. Cells
    that were told to stop have no cause."""

    def __init__(self, out: Path) -> None:
        self.path = out / "attempts.jsonl"
        self.failures: dict[str, list[str]] = defaultdict(list)  # cell -> causes, since its last success
        with files.reading(self.path):
            for row in files.json_rows(self.path):
                self._count(row)

    @contextmanager
    def noting(self, storage: Storage) -> Iterator[None]:
        """Inside, ends are written down too, and what had been given up is tried again. Raises OSError."""
        self.failures.clear()
        files.drop_half_line(self.path)
        self._file = Appending(self.path, storage)
        try:
            yield
        finally:
            self._file.append(b"")  # a line that has waited is tried once more
            self._file.close()

    def add(self, cell: Cell, code: int, cause: str) -> None:
        """Note an end, within `noting`. A line that the disk refuses waits for the next one."""
        row = {"cell": cell.name, "ended": round(time.time()), "code": code, "cause": cause}
        self._file.append(f"{json.dumps(row)}\n".encode())
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        if row["code"] == 0:
            self.failures.pop(row["cell"], None)
        elif row["code"] not in STOPPED:
            self.failures[row["cell"]].append(row["cause"])


def _last_row(path: Path) -> dict[str, Any]:
    rows = files.json_rows(path)
    return rows[-1] if rows else {}
