"""Where the cells of an ablation run: processes of this machine, jobs of a Slurm cluster, tasks of a Ray cluster.

A launcher only starts the same command again: a run goes on from its newest checkpoint by itself, wherever it is
started. The run folders must be on a file system that all machines see under the same name, and so must the code.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from core.ablation import Cell
from core.options import nearest

NAMES = ("local", "slurm", "ray")
WITHOUT_RESULT = 1  # exit code of a job that is gone and left none
STARTED = "=== started "  # and the time: the line of a cell's log behind which the output of one start stands


class Job(Protocol):
    """One start of one cell."""

    def waiting(self) -> bool:
        """Whether it has not begun yet."""
        ...

    def code(self) -> int | None:
        """The run's exit code; None as long as it waits or runs."""
        ...

    def cause(self) -> str:
        """Why there is no exit code of the run itself; "" if there is one."""
        ...

    def stop(self) -> None:
        """Tell the run to save and end; `code` knows when it has."""
        ...


class Launcher(Protocol):
    """Starts jobs."""

    workers: int  # at a time, unless the command says otherwise
    outlived: bool  # its jobs go on without it

    def start(self, cell: Cell, command: list[str], log: Path) -> Job: ...

    def standing(self) -> dict[str, Job]:
        """Jobs that an earlier launch has left waiting or running, by the cell's name."""
        ...


def launcher(name: str, out: Path, options: dict[str, str]) -> Launcher:
    """The launcher of that name. Raises ValueError, one line, for what is unknown or not installed."""
    if name not in NAMES:
        raise ValueError(f"launcher: {name} given; {nearest(name, NAMES)}")
    make: Callable[[Path, dict[str, str]], Launcher] = import_module(f"core.launchers.{name}").make
    return make(out, options)


def numbers(options: dict[str, str]) -> dict[str, int | float | str]:
    """Values as the libraries want them."""

    def value(text: str) -> int | float | str:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return text

    return {name: value(text) for name, text in options.items()}
