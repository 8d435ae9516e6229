"""Run a script in a process that SIGKILL ends just before one of its operations on files.

    python -m benchmarks.die_at PHASE COUNT NOTE train.py ARGUMENTS        or ... NOTE -m testbeds ARGUMENTS

PHASE is "saving" (a checkpoint, the summary of a finished run) or "entering" (the folder, back to its newest
checkpoint). Operations in that phase are counted from the process's start; before number COUNT a line about it goes
to NOTE, and the process dies. Content that was about to be written is left half written. A process that finds NOTE
there already runs undisturbed; ablate.py hands the order on to its cells, and the first to come so far dies.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core import campaign
from core.run_folder import RunFolder

OPERATIONS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "truncate")
PHASES = {"saving": ("save", "finish"), "entering": ("__init__", "resume")}  # methods of a run folder


class Order:
    """To die before operation number `count` in a phase."""

    def __init__(self, phase: str, count: int, note: Path) -> None:
        self.phase, self.left, self.note = phase, count, note
        self.due = False  # whether the process is in that phase

    def give(self) -> None:
        """From here on operations are counted."""
        for name in OPERATIONS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        Path.write_bytes = self._half_written(Path.write_bytes)  # type: ignore[method-assign]
        for name in PHASES[self.phase]:
            setattr(RunFolder, name, self._within(getattr(RunFolder, name)))

    def _counted(self, name: str, act: Callable) -> Callable:
        def counted(target: Any, *arguments: Any, **options: Any) -> Any:
            if self._is_now():
                self._die(f"{name} {_named(target)}")
            return act(target, *arguments, **options)

        return counted

    def _half_written(self, write: Callable) -> Callable:
        def half_written(path: Path, content: bytes) -> int:
            if self._is_now():
                write(path, content[: len(content) // 2])
                self._die(f"half of {path.name}")
            return write(path, content)

        return half_written

    def _within(self, method: Callable) -> Callable:
        def within(*arguments: Any, **options: Any) -> Any:
            with self._counting():
                return method(*arguments, **options)

        return within

    @contextmanager
    def _counting(self):
        self.due = True
        try:
            yield
        finally:
            self.due = False

    def _is_now(self) -> bool:
        self.left -= self.due
        return self.due and self.left == 0

    def _die(self, what: str) -> None:
        self.due = False
        try:
            note = os.open(self.note, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return  # somebody else was first
        os.write(note, what.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def _named(target: Any) -> str:
    """A file's own name, also of an open one."""
    path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
    return Path(path).name


def main(argv: list[str]) -> None:
    phase, count, note, *command = argv
    if not Path(note).exists():
        Order(phase, int(count), Path(note)).give()
    campaign.TRAIN[1:1] = campaign.TESTBEDS[1:1] = ["-m", "benchmarks.die_at", phase, count, note]
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
