"""Commands that are killed, and how: at a moment, before an operation on files, shortly after a save has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import checkpoint

OPERATIONS = {"saving": 60, "entering": 16}  # the last one that is aimed at, counted from the process's start
WATCHED, AFTER = 3, 0.01  # saves to wait for, at most; seconds from the beginning of the last, at most
WITHIN = 0.2, 0.7  # shares of an undisturbed run's time between which moments fall: it begins with imports


@dataclass(frozen=True)
class Workload:
    """A command that is to survive kills."""

    name: str
    command: tuple[str, ...]
    place: str = "run_dir"  # its option for the folder

    def __call__(self, folder: Path, *order: str) -> list[str]:
        """The command for a folder, or what dies by an order of benchmarks.die_at."""
        head = [sys.executable, "-m", "benchmarks.die_at", *order] if order else [sys.executable]
        return [*head, *self.command[1:], f"{self.place}={folder}"]


class Victim:
    """The processes at work on a folder. They are known by its name, which stands on their command lines."""

    def __init__(self, work: Workload, folder: Path, runs: Sequence[Path]) -> None:
        self.work, self.folder, self.runs = work, folder, runs
        self.process: subprocess.Popen | None = None

    def start(self, *order: str) -> None:
        with self.folder.with_suffix(".log").open("a") as log:
            command = self.work(self.folder, *order)
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def code(self) -> int | None:
        """Exit code of what was started; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def others(self) -> list[int]:
        """Process ids beside that of what was started: cells, which may outlive their launcher."""
        found, own = [], self.process.pid if self.process and self.code() is None else None
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().decode(errors="replace").split("\0")
                if any("=" in word and str(self.folder) in word for word in words):
                    found.append(int(path.parent.name))
        return [process for process in found if process != own]

    def kill(self, who: str) -> str:
        """SIGKILL for the "launcher", one "cell" or "all". -> who it was"""
        others = self.others()
        if who == "cell" and others:
            kill_group(others[0])
            return who
        if self.process and self.code() is None:
            kill_group(self.process.pid)
            self.process.wait()
        while who != "launcher" and (others := self.others()):
            for process in others:
                kill_group(process)
            time.sleep(0.01)
        return who if self.work.place == "out" else ""

    def saving(self) -> bool:
        return any((run / "checkpoints" / ".writing").exists() for run in self.runs)

    def left_behind(self) -> set[tuple[Path, int]]:
        """What lies there of saves that were cut off, each with its time."""
        patterns = ("checkpoints/.*", "replay/*.tmp")
        paths = [path for run in self.runs for pattern in patterns for path in run.glob(pattern)]
        return {(path, path.stat().st_mtime_ns) for path in paths if path.exists()}


def kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def strike(victim: Victim, aim: str, rng: np.random.Generator, seconds: float) -> tuple[str, bool] | None:
    """Start the command unless it runs, and kill it. -> (when, whether for certain within saving); None: it ended."""
    who = str(rng.choice(["all", "launcher", "cell"])) if victim.work.place == "out" and aim != "watch" else "all"
    if aim in OPERATIONS:
        count, note = int(rng.integers(1, OPERATIONS[aim] + 1)), victim.folder.with_suffix(".note")
        note.unlink(missing_ok=True)
        victim.start(aim, str(count), str(note))
        while victim.code() is None and not note.exists():
            time.sleep(0.01)
        if not note.exists():
            return None
        time.sleep(0.2)  # until it is dead and has been noticed
        killed = victim.kill("all") if who != "cell" else "cell"
        return f"{aim} call {count}: {note.read_text()} {killed}".strip(), aim == "saving"
    if victim.process is None or victim.code() is not None:
        victim.start()
    until, delay = seconds * rng.uniform(*WITHIN), rng.uniform(0, AFTER)
    began, saves, was = time.monotonic(), int(rng.integers(1, WATCHED + 1)), victim.saving()  # an older half lies there
    while victim.code() is None:
        if aim == "watch":
            now = victim.saving()
            saves, was = saves - (now and not was), now
            if not saves:
                time.sleep(delay)
                break
        elif time.monotonic() - began >= until:
            break
        time.sleep(0.0005)
    else:
        return None
    moment, killed = time.monotonic() - began, victim.kill(who)
    seen = f"{1000 * delay:.1f} ms into a save, " if aim == "watch" else ""
    return f"{seen}{moment:.2f} s {killed}".strip(), False


def resumed_from(victim: Victim) -> tuple[str, str]:
    """-> (step that each run goes back to, what is wrong with its newest checkpoint)."""
    steps, wrong = [], []
    for run in victim.runs:
        if victim.others() or (victim.process and victim.code() is None):  # it may be moving on
            last = next(reversed(checkpoint.checkpoints(run)), None)
        else:
            try:
                last = checkpoint.newest(run, wrong.append)
            except ValueError as error:
                last = wrong.append(str(error))
        steps.append(checkpoint.step(last) if last else 0)
    return "+".join(map(str, steps)), "; ".join(wrong)
