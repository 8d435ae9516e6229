"""What a run prints and what is left of it when the machine, the disk or the world lets it down.

    python -m benchmarks.trouble [out=benchmarks/results/reliability/trouble.md]

Every case is `python train.py` in a process of its own on a disk of its own (a tmpfs, so this needs root). Whatever
happened, afterwards the same command is given again without the trouble: it must end in the digest of a run that had
none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = [
    "agent=sac",
    "env=toy/reach",
    "net.width=32",
    "agent.batch_size=32",
    "compile=false",
    "steps=1_500",
    "seeds=[0,1]",
]
RUN += ["warmup=100", "save_every=200", "log_every=100", "eval_every=500", "eval_episodes=1", "observe_every=500"]
BROKEN = """
import itertools, sys, time
import envs.toy, train
count, step = itertools.count(), envs.toy.Reach.step
def broken(self, action):
    if next(count) == 2_001:
        {what}
    return step(self, action)
envs.toy.Reach.step = broken
train.main(train.train)
"""


class Case:
    """One run folder on a small disk."""

    def __init__(self, disk: Path) -> None:
        self.disk, self.folder = disk, disk / "run"
        self.shown, self.code = "", 0

    def start(self, *more: str, script: str = "train.py") -> subprocess.Popen:
        command = [sys.executable, script, *RUN, *more, f"run_dir={self.folder}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def end(self, process: subprocess.Popen) -> None:
        out, err = process.communicate(timeout=500)
        self.shown, self.code = err, process.returncode

    def until(self, step: int) -> None:
        """Wait for the checkpoint of a step."""
        while not list((self.folder / "checkpoints").glob(f"{step:012d}*")):
            time.sleep(0.05)

    def told(self) -> list[str]:
        """What was printed, without the bar and what every run prints."""
        lines = re.split(r"[\r\n]+", re.sub(r"\S*env steps/s\S*", "", self.shown))
        routine = r"\s*$|.*\|.*|sac on |going on from|\S+ is finished|since step"
        kept = [line.strip().replace(str(self.disk), "DISK") for line in lines if not re.match(routine, line)]
        return list(dict.fromkeys(kept))

    def digest(self) -> str:
        command = [sys.executable, "-m", "core.run", "digest", str(self.folder)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@contextmanager
def disk(size: str = "64m") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def remount(case: Case, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(case.disk)], check=True)


def fill(case: Case) -> None:
    """Not one more byte fits."""
    with (case.disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def nothing(case: Case) -> None:
    case.end(case.start())


def full_for_a_while(case: Case) -> None:
    process = case.start()
    case.until(600)
    fill(case)
    time.sleep(8)
    (case.disk / "ballast").unlink()
    case.end(process)


def full_to_the_end(case: Case) -> None:
    process = case.start()
    case.until(600)
    fill(case)
    case.end(process)
    (case.disk / "ballast").unlink()


def read_only_from_the_beginning(case: Case) -> None:
    remount(case, "ro")
    case.end(case.start())
    remount(case, "rw")


def folder_moved_away(case: Case) -> None:
    process = case.start()
    case.until(600)
    case.folder.rename(case.disk / "away")
    case.end(process)
    (case.disk / "away").rename(case.folder)


def two_processes(case: Case) -> None:
    process = case.start()
    case.until(400)
    second = case.start()
    _, shown = second.communicate(timeout=100)
    case.end(process)
    case.shown, case.code = shown, second.returncode


def broken_world(what: str, *more: str) -> Callable[[Case], None]:
    def trouble(case: Case) -> None:
        script = case.disk / "script.py"
        script.write_text(BROKEN.format(what=what))
        case.end(case.start(*more, script=str(script)))

    return trouble


def told_to_stop(signal: int) -> Callable[[Case], None]:
    def trouble(case: Case) -> None:
        process = case.start()
        case.until(600)
        process.send_signal(signal)
        case.end(process)

    return trouble


CASES: dict[str, Callable[[Case], None]] = {
    "no trouble": nothing,
    "the disk is full for eight seconds": full_for_a_while,
    "the disk is full to the end": full_to_the_end,
    "the disk is read-only from the beginning": read_only_from_the_beginning,
    "the run folder is moved away": folder_moved_away,
    "a second process on the same folder": two_processes,
    "the environment raises an error": broken_world("raise RuntimeError('the simulator went away')"),
    "the environment hangs": broken_world("time.sleep(600)", "env_timeout=5"),
    "killed (SIGKILL)": told_to_stop(9),
    "told to stop (SIGTERM)": told_to_stop(15),
    "told to stop (SIGUSR1)": told_to_stop(10),
}


def main(out: Path) -> int:
    rows, sound, failed = [], "", False
    for name, trouble in CASES.items():
        with disk() as folder:
            case = Case(folder)
            trouble(case)
            told, code = case.told(), case.code
            nothing(case)
            sound = sound or case.digest()
            same = case.code == 0 and case.digest() == sound
        failed |= not same
        rows.append(
            f"| {name} | {'<br>'.join(told).replace('|', '/')} | {code} | {'the same bits' if same else 'DIFFERS'} |"
        )
        print(rows[-1], flush=True)
    head = ["| trouble | printed | exit code | the same command again ends in |", "| --- | --- | --- | --- |"]
    command = f"`python -m benchmarks.trouble`: `train.py {' '.join(RUN)}`"
    text = "\n".join(["# Trouble", "", f"{command}, each on a tmpfs of its own.", "", *head, *rows]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return int(failed)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    sys.exit(main(Path(given.get("out", ROOT / "benchmarks" / "results" / "reliability" / "trouble.md"))))
