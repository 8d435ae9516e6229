"""A world that does not answer: the run ends with a line instead of standing still for days."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from core.signals import ENVIRONMENT

TICK = 1.0  # seconds
FAILURES = (Exception, SystemExit)  # whatever a simulator raises; some leave the process themselves


class EnvironmentFailed(Exception):
    """An environment cannot go on; the message is the line that the user sees.

    `undone`: what had been begun of a step of training is undone, so that the run can be saved as it was before.
    `restart`: with on_failure=restart the run would have gone on.
    """

    def __init__(self, message: str, undone: bool, restart: bool = False) -> None:
        super().__init__(message)
        self.undone, self.restart = undone, restart


class Watchdog:
    """Inside its block something must be over within `limit` seconds, or the process ends (exit code 4).

    Time is counted in ticks of a thread, so that a process which was stopped and goes on has not aged. A simulator that
    holds Python's lock while it hangs stops the ticks too, and is not noticed.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._ticks = limit, 0.0
        self._watching = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.waiting_for: Callable[[], str] = str

    def __enter__(self) -> None:
        self._ticks, self._watching = 0.0, True
        if self._limit and not self._thread:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._watching = False

    def close(self) -> None:
        self._over.set()

    def _run(self) -> None:
        tick = min(TICK, self._limit / 4)
        while not self._over.wait(tick):
            self._ticks += tick
            if self._watching and self._ticks > self._limit:
                line = f"{self.waiting_for()}: no answer for {self._limit:g} seconds (env_timeout)"
                try:
                    print(f"\n{line}; the same command goes on from what was saved before", file=sys.stderr, flush=True)
                finally:
                    os._exit(ENVIRONMENT)
