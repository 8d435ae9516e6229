"""Run every cell of an ablation: each arm on each task, all seeds in one process.

    python ablate.py docs/ablation.yaml [size=NAME] [out=runs/ablation] [workers=2] [retries=2]

Finished cells are skipped, broken ones go on where they were, what dies is tried again; the same command again goes on.
Then: python report.py OUT
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from core import files
from core.ablation import Ablation, Cell, read
from core.cells import Attempts, Progress, check, progress
from core.signals import Stop

TRAIN = [sys.executable, str(Path(__file__).with_name("train.py"))]
PAUSE = 1.0  # seconds between two looks at the processes
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGUSR1)  # exit codes of a run that was told to stop


class Local:
    """Cells as processes of this machine, `workers` at a time."""

    def __init__(self, ablation: Ablation, workers: int, retries: int) -> None:
        self.ablation, self.workers, self.retries = ablation, workers, retries
        self.attempts = Attempts(ablation.out)
        self.attempts.forget()
        self.running: dict[str, subprocess.Popen] = {}

    def run(self, stop: Stop, table: Table) -> None:
        """Until every cell is finished or given up, or `stop` is requested."""
        while not stop.requested:
            self._collect()
            standing = {cell.name: progress(cell, cell.name in self.running) for cell in self.ablation.cells}
            table.show(standing, self.given_up)
            open_cells = [cell for cell in self.ablation.cells if self._is_open(cell, standing[cell.name])]
            if not open_cells and not self.running and not any(p.status == "running" for p in standing.values()):
                return
            for cell in open_cells[: self.workers - len(self.running)]:
                self._start(cell)
            time.sleep(PAUSE)
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            process.wait()

    @property
    def given_up(self) -> dict[str, str]:
        """Cells that died too often -> the last cause."""
        failures = self.attempts.failures
        return {cell: causes[-1] for cell, causes in failures.items() if len(causes) > self.retries}

    def _is_open(self, cell: Cell, standing: Progress) -> bool:
        startable = standing.status in ("planned", "broken") and cell.name not in self.running
        return startable and cell.name not in self.given_up

    def _start(self, cell: Cell) -> None:
        log = self.log(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.running[cell.name] = subprocess.Popen(
                [*TRAIN, *cell.arguments], stdout=file, stderr=file, start_new_session=True
            )

    def _collect(self) -> None:
        """Take note of processes that have ended."""
        for cell in self.ablation.cells:
            process = self.running.get(cell.name)
            if process is not None and process.poll() is not None:
                del self.running[cell.name]
                code = process.returncode
                if code not in STOPPED:
                    self.attempts.add(cell, code, "" if code == 0 else f"exit code {code}: {self._last_line(cell)}")

    def log(self, cell: Cell) -> Path:
        return self.ablation.out / "logs" / cell.arm / f"{cell.task.replace('/', '_')}.log"

    def _last_line(self, cell: Cell) -> str:
        lines = [line for line in self.log(cell).read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].split("\r")[-1][-200:] if lines else "no output"


class Table:
    """What a person sees: a line per cell that has changed its state, and how far all of them are."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.before: dict[str, str] = {}
        self.live = sys.stderr.isatty()
        self.lines = 0

    def show(self, standing: dict[str, Progress], given_up: dict[str, str]) -> None:
        states = {name: "failed" if name in given_up else p.status for name, p in standing.items()}
        if self.live:
            self._redraw(standing, states, given_up)
            return
        for name, state in states.items():
            if self.before.get(name, "planned") != state:
                why = f": {given_up[name]}" if name in given_up else ""
                print(f"{name}: {state}{why}   ({self._counts(states)})", file=sys.stderr, flush=True)
        self.before = states

    def _redraw(self, standing: dict[str, Progress], states: dict[str, str], given_up: dict[str, str]) -> None:
        width = max(map(len, states))
        rows = []
        for name, state in states.items():
            left = standing[name].seconds_left
            more = (
                f", {left / 60:.0f} min left" if left is not None else f": {given_up[name]}" if name in given_up else ""
            )
            rows.append(f"{name:<{width}}  {state:<9} {standing[name].share:4.0%}{more}")
        rows.append(self._counts(states))
        print(f"\033[{self.lines}A\033[J" * bool(self.lines) + "\n".join(rows), file=sys.stderr, flush=True)
        self.lines = len(rows)

    def _counts(self, states: dict[str, str]) -> str:
        kinds = ("planned", "running", "broken", "finished", "diverged", "failed")
        counts = {kind: sum(state == kind for state in states.values()) for kind in kinds}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def main(argv: list[str]) -> int:
    """-> exit code: 0 all cells finished, 1 some were given up, 2 a mistake in the command or the file."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    try:
        for argument in argv[1:]:
            if "=" not in argument:
                raise ValueError(f"{argument}: expected OPTION=VALUE")
        options = dict(argument.split("=", 1) for argument in argv[1:])
        unknown = options.keys() - {"size", "out", "workers", "retries"}
        if unknown:
            raise ValueError(f"{min(unknown)}: no such option; expected size, out, workers or retries")
        numbers = {
            name: _count(name, options.get(name, default)) for name, default in (("workers", "1"), ("retries", "2"))
        }
        out = Path(options["out"]) if "out" in options else None
        ablation = read(Path(argv[0]), out, options.get("size", ""))
        for cell in ablation.cells:
            check(cell)
        ablation.out.mkdir(parents=True, exist_ok=True)
        files.write(ablation.out / "ablation.yaml", yaml.safe_dump(ablation.tree, sort_keys=False))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    launcher, table = Local(ablation, **numbers), Table(ablation)
    with Stop() as stop:
        launcher.run(stop, table)
    if stop.requested:
        print(f"{stop.requested}: every cell has saved; the same command goes on", file=sys.stderr)
        return stop.exit_code
    for name, cause in launcher.given_up.items():
        print(f"{name}: given up ({cause})", file=sys.stderr)
    print(f"python report.py {ablation.out}")
    return 1 if launcher.given_up else 0


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or (name == "workers" and int(text) < 1):
        raise ValueError(f"{name}: {text} given; expected a whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
