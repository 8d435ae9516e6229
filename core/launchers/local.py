"""Cells as processes of this machine."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

from core.ablation import Cell
from core.launchers import STARTED


def make(out: Path, options: dict[str, str]) -> Local:
    if options:
        raise ValueError(f"launcher.{min(options)}: launcher=local has no settings; use workers=N")
    return Local()


class Local:
    """Processes in sessions of their own: Ctrl-C at the terminal reaches the launcher alone."""

    workers, outlived = 1, False

    def start(self, cell: Cell, command: list[str], log: Path) -> Process:
        return Process(started(command, log))

    def standing(self) -> dict[str, Process]:
        return {}  # they are found by the locks of their run folders


class Process:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def waiting(self) -> bool:
        return False

    def code(self) -> int | None:
        return self._process.poll()

    def cause(self) -> str:
        return ""

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)


def started(command: list[str], log: Path) -> subprocess.Popen:
    """The command as a process that writes to the end of `log`, behind a line that says when it began."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):  # a full disk keeps no cell from its start
            new_line = "\n" if file.tell() else ""  # what was killed may have left half a line
            file.write(f"{new_line}{STARTED}{time.ctime()}\n".encode())
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
