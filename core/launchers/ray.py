"""Cells as tasks of a Ray cluster (`pip install -e ".[ray]"`).

    python ablate.py FILE launcher=ray workers=8 launcher.num_gpus=0.5 launcher.num_cpus=4

`launcher.KEY` are resources of a task; `launcher.address` is the cluster's (default: the one this machine belongs to,
else RAY_ADDRESS). When a node dies, its cells are started again elsewhere and go on from their checkpoints. Tasks end
with the launcher: it tells them to save.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

from core.ablation import Cell
from core.launchers import STARTED, WITHOUT_RESULT, numbers

SETTINGS = ("address", "num_cpus", "num_gpus", "memory", "accelerator_type")


def make(out: Path, options: dict[str, str]) -> Ray:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError('launcher=ray needs ray: pip install -e ".[ray]"') from None
    for name in options:
        if name not in SETTINGS:
            raise ValueError(f"launcher.{name}: no such setting; expected {', '.join(SETTINGS)}")
    address = options.pop("address", "auto")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(f"launcher=ray: {str(error).splitlines()[0]} (start one: ray start --head)") from error
    return Ray(ray, numbers(options))


class Ray:
    workers, outlived = 1_000, False

    def __init__(self, ray, resources: dict[str, Any]) -> None:
        self._ray, self._resources = ray, resources

    def start(self, cell: Cell, command: list[str], log: Path) -> Task:
        def run(command: list[str], log: str, started: str, started_at: str) -> int:
            """On the node, where Ray may not know this project's modules; it needs nothing but the standard library."""
            import contextlib
            import os
            import signal
            import subprocess
            import time
            from pathlib import Path

            Path(log).parent.mkdir(parents=True, exist_ok=True)
            with Path(log).open("ab", buffering=0) as file:
                with contextlib.suppress(OSError):  # as core.launchers.local has it
                    file.write(f"{chr(10) if file.tell() else ''}{started}{time.ctime()}\n".encode())
                process = subprocess.Popen(command, stdout=file, stderr=file, cwd=started_at, start_new_session=True)
            parent = os.getppid()
            try:
                while process.poll() is None:
                    time.sleep(0.5)
                    if os.getppid() != parent:  # the node has died, and leaves this worker behind
                        break
            except KeyboardInterrupt:  # the task is cancelled
                pass
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    process.wait()
            return process.returncode

        # a task that dies is not tried again by Ray: the launcher counts, and says why
        task = self._ray.remote(run).options(max_retries=0, name=cell.name, **self._resources)
        return Task(self._ray, task.remote(command, str(log.absolute()), STARTED, os.getcwd()), log)

    def standing(self) -> dict[str, Task]:
        return {}


class Task:
    def __init__(self, ray, reference, log: Path) -> None:
        self._ray, self._reference, self._log = ray, reference, log
        self._cause = ""
        self._before = log.stat().st_mtime if log.exists() else 0.0

    def waiting(self) -> bool:
        return not self._log.exists() or self._log.stat().st_mtime == self._before

    def code(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return self._ray.get(self._reference)
        except Exception as error:  # whatever Ray raises for a worker or node that is gone
            if isinstance(error, self._ray.exceptions.TaskCancelledError) and self.waiting():
                return 128 + signal.SIGTERM  # told to stop before it had begun
            self._cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            return WITHOUT_RESULT

    def cause(self) -> str:
        return self._cause

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=False)
