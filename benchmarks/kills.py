"""Kill a run again and again, start the same command again each time, and compare it with an uninterrupted one.

    python -m benchmarks.kills FOLDER kills=20 agent=dqn env=atari/pong seeds=[0] steps=3_000 save_every=200

All other arguments are train.py's. SIGKILL falls at random moments, on average as far apart as spreads the kills over
the whole run; if the run ends first, the rest of the kills is tried on a fresh one. Prints the env steps that the kills
left in the folder, one line per component with the two hashes, and exits with 1 if any differs.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

TRAIN = [sys.executable, "train.py"]
START = 15.0  # seconds until a started run takes its first step, about


def start(folder: Path, arguments: list[str]) -> subprocess.Popen:
    command = [*TRAIN, *arguments, f"run_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path, arguments: list[str]) -> None:
    process = start(folder, arguments)
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run failed: {errors.decode()[-2000:]}")


def digest(folder: Path) -> dict[str, str]:
    command = [sys.executable, "-m", "core.run", "digest", str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split() for line in lines)


def kill_and_restart(folder: Path, arguments: list[str], kills: int, apart: float, rng: random.Random) -> list[int]:
    """-> for each kill that hit a running process, the env step its folder could go back to."""
    steps: list[int] = []
    while len(steps) < kills:
        process = start(folder, arguments)
        try:
            process.wait(timeout=rng.uniform(1.0, 2 * apart))
            return steps  # it ended first: the run is complete
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            saved = sorted((folder / "checkpoints").glob("[0-9]*")) if folder.exists() else []
            steps.append(int(saved[-1].name.partition("-")[0]) if saved else 0)
    return steps


def main() -> int:
    folder, *rest = sys.argv[1:]
    kills = next((int(a.partition("=")[2]) for a in rest if a.startswith("kills=")), 20)
    arguments = [a for a in rest if not a.startswith("kills=")]
    root, rng = Path(folder), random.Random(0)
    began = time.monotonic()
    finish(root / "whole", arguments)
    seconds = time.monotonic() - began
    wanted = digest(root / "whole")
    print(f"uninterrupted: {seconds:.0f} s", flush=True)

    done, attempt, same = 0, 0, True
    while done < kills:
        broken = root / f"killed-{attempt}"
        steps = kill_and_restart(broken, arguments, kills - done, START + seconds / kills, rng)
        finish(broken, arguments)
        found = digest(broken)
        done, attempt = done + len(steps), attempt + 1
        print(f"attempt {attempt}: {len(steps)} kills, at {steps}", flush=True)
        for component, value in wanted.items():
            equal = found.get(component) == value
            same &= equal
            verdict = "equal" if equal else "DIFFERS"
            print(f"  {component:<12} {value[:16]} {found.get(component, 'missing')[:16]} {verdict}")
    print(f"{done} kills, {'all digests equal' if same else 'digests differ'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
