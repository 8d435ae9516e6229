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
from core.records import TIMING
from core.run_folder import CONFIG, DONE, LOCK, differing, read_config
from core.signals import SIGNALS
from core.storage import Appending, Storage

# exit codes of a run that was told to stop, once it can hear and before: no failure
STOPPED = (*(128 + number for number in SIGNALS), -SIGTERM)
Status = Literal["planned", "broken", "running", "finished", "diverged"]


class Progress(NamedTuple):
    """Where a cell stands."""

    status: Status
    share: float  # of its env steps that are done, 0 to 1
    seconds_left: float | None  # while it is running


def progress(cell: Cell, ours: bool = False, known: Progress | None = None) -> Progress:
    """Read a cell's folder; nothing is written. ours: the caller has it running.

    known: of an earlier look; it stands while the disk does not let the folder be read. Without it such a cell is
    broken: who starts it again is told what is wrong.
    """
    try:
        return _progress(cell, ours)
    except OSError:
        return known or Progress("broken", 0.0, None)


def _progress(cell: Cell, ours: bool) -> Progress:
    folder, steps = cell.folder, cell.config.steps
    try:
        done = files.read_json(folder / DONE)
    except ValueError:  # who starts it again is told what is wrong
        return Progress("broken", 0.0, None)
    if done is not None:
        return Progress("diverged" if done.get("diverged") else "finished", 1.0, None)
    saved = checkpoints(folder)
    share = step(saved[-1]) / steps if saved else 0.0
    if ours or held(folder):
        try:
            return Progress("running", *_pace(folder / TIMING, steps))
        except (ValueError, OverflowError):  # no row of a run
            return Progress("running", share, None)
    return Progress("broken" if (folder / CONFIG).exists() else "planned", share, None)


def check(cell: Cell) -> None:
    """Raises ValueError if the cell's folder holds a run of another configuration."""
    if (cell.folder / CONFIG).exists():
        changed = differing(read_config(cell.folder), resolved(cell.config), WITHOUT_EFFECT)
        if changed:
            raise ValueError(
                f"{cell.name}: {cell.folder} holds a run of another configuration ({changed[0]}); choose another out="
            )


def held(folder: Path) -> bool:
    """Whether a process is in this run folder, wherever it was started. Others may look at the same time."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def given_up(ablation: Ablation) -> set[str]:
    """Names of the cells that died too often, and that nobody has started again."""
    names = Attempts(ablation.out).given_up
    dead = [cell for cell in ablation.cells if cell.name in names]
    return {cell.name for cell in dead if progress(cell).status in ("planned", "broken")}


def over(ablation: Ablation) -> bool:
    """Whether nothing will change any more, unless the ablation is started again."""
    lost = given_up(ablation)
    return all(cell.name in lost or progress(cell).status in ("finished", "diverged") for cell in ablation.cells)


def holder(folder: Path) -> str:
    """Who is in this run folder, as it has written there, if that can be read."""
    try:
        return (folder / LOCK).read_text() or "another process"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Inside, no other launcher is at work on this ablation. Raises ValueError if one is."""
    with (out / ".launcher").open("a+") as lock:
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
        self.given_up: set[str] = set()  # cells that will not be tried again unless somebody starts a launcher
        with files.reading(self.path):
            for row in files.json_rows(self.path):
                self._count(row)

    @contextmanager
    def noting(self, storage: Storage) -> Iterator[None]:
        """Inside, ends are written down too, and what had been given up is tried again. Raises OSError."""
        self.failures.clear()
        files.drop_half_line(self.path)
        self._file = Appending(self.path, storage)
        if self.given_up:
            self._write({"again": sorted(self.given_up)})
        try:
            yield
        finally:
            self._file.append(b"")  # a line that has waited is tried once more
            self._file.close()

    def add(self, cell: Cell, code: int, cause: str, given_up: bool = False) -> None:
        """Note an end, within `noting`. A line that the disk refuses waits for the next one. given_up: it was the last
        one."""
        row = {"cell": cell.name, "ended": round(time.time()), "code": code, "cause": cause}
        self._write(row | {"given_up": True} if given_up else row)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.append(f"{json.dumps(row)}\n".encode())
        self._count(row)

    def _count(self, row: dict[str, Any]) -> None:
        if "again" in row:
            self.given_up.clear()
            return
        if row.get("given_up"):
            self.given_up.add(row["cell"])
        if row["code"] == 0:
            self.failures.pop(row["cell"], None)
        elif row["code"] not in STOPPED:
            self.failures[row["cell"]].append(row["cause"])


def _pace(path: Path, steps: int) -> tuple[float, float | None]:
    """Share of the steps and seconds left, by the last row of timing.jsonl. Raises ValueError for what is no row."""
    with files.reading(path):
        row = (files.json_rows(path) or [{}])[-1]
        done, speed = row.get("step", 0), row.get("env_steps_per_second", 0.0)
        return done / steps, (steps - done) / speed if speed else None
