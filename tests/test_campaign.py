"""How a launcher behaves beside others' cells, how it stops its own, and what it says of them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ablate
from core import campaign, cells, storage
from core.ablation import read
from core.cells import Attempts
from core.launchers import local

FILE = """
tasks: [toy/chain]
seeds: [0]
settings: {agent: dqn, steps: 400, warmup: 40, compile: false, eval_every: 200, eval_episodes: 2, agent.batch_size: 8}
arms: {base: [], ln: [layer_norm]}
"""
STOPPING = """
import signal, sys, time
from pathlib import Path

def told(*_):
    Path("told", me).touch()
    for _ in range(100):  # a grace period
        if Path("told", other).exists():
            print("told in time")
            sys.exit(CODE)
        time.sleep(0.05)
    print("the other was not told in time")
    sys.exit(1)

me, other = ("ln", "base") if "/ln/" in sys.argv[-1] else ("base", "ln")
signal.signal(signal.SIGTERM, told)
Path("ready", me).touch()
while True:
    time.sleep(0.05)
"""
DYING = """
import sys
from pathlib import Path

count = Path("told", sys.argv[-1].replace("/", "_"))
count.touch()
start = len(count.read_text())
count.write_text("." * (start + 1))
print(end=("boom", "", "bang")[start])
sys.exit(6 + start)
"""
Launch = Callable[..., list[str]]


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys) -> Launch:
    """Launch cells that are this program, and tell the launcher to stop at a look. -> what it says"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "PAUSE", 0.05)
    Path("small.yaml").write_text(FILE)
    for folder in ("ready", "told"):
        Path(folder).mkdir()

    def launched(program: str, now: Callable[[], bool], workers: int = 2) -> list[str]:
        def show(*_):
            if now():
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(campaign, "TRAIN", [sys.executable, "-c", program])
        monkeypatch.setattr(ablate.Table, "show", show)
        assert ablate.main(["small.yaml", "out=out", f"workers={workers}"]) == 128 + signal.SIGTERM
        return capsys.readouterr().err.splitlines()

    return launched


@contextmanager
def held() -> Iterator[None]:
    """As if a launcher that was killed had left a process in the first cell's folder."""
    folder = read(Path("small.yaml"), Path("out")).cells[0].folder
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere")
        lock.flush()
        yield


def third_look() -> Callable[[], bool]:
    looks = iter((False, False, True))
    return lambda: next(looks)


def both_ready() -> bool:
    return len(list(Path("ready").iterdir())) == 2


def written(log: Path) -> list[str]:
    """The lines of a cell's log, but for the times of its starts."""
    lines = log.read_text().splitlines()
    return ["=== started" if line.startswith("=== started ") else line for line in lines if line]


def test_a_log_keeps_the_output_of_every_start_and_the_cause_is_of_the_last(launch, monkeypatch):
    monkeypatch.setattr(campaign, "TRAIN", [sys.executable, "-c", DYING])
    assert ablate.main(["small.yaml", "out=out", "retries=2"]) == 1
    assert written(Path("out/logs/ln/toy_chain.log")) == ["=== started", "boom", *["=== started"] * 2, "bang"]
    rows = [json.loads(line) for line in Path("out/attempts.jsonl").read_text().splitlines()]
    causes = [row["cause"] for row in rows if row["cell"] == "ln on toy/chain"]
    assert causes == ["exit code 6: boom", "exit code 7: no output", "exit code 8: bang"]


def ends() -> list[int]:
    return [json.loads(line)["code"] for line in Path("out/attempts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("workers", "started"), [(1, False), (2, True)])
def test_a_cell_that_another_process_holds_is_one_of_the_workers(launch, workers, started):
    with held():
        launch("", third_look(), workers)
    assert Path("out/logs/ln").exists() == started


def test_a_cell_that_another_process_holds_is_named_by_a_launcher_that_stops(launch):
    with held():
        shown = launch("", third_look(), 1)
    assert shown == [
        "base on toy/chain: still running (process 7 on elsewhere)",
        "SIGTERM: stopped; the same command goes on",
    ]


def test_a_disk_that_is_away_for_a_look_starts_nothing_beside_another_process(launch, monkeypatch):
    looks = iter(range(10))

    def away(folder):
        raise OSError(errno.ESTALE, "Stale file handle")

    def now() -> bool:
        look = next(looks)
        monkeypatch.setattr(cells, "held", away if look < 3 else seen)
        return look == 4

    seen = cells.held
    with held():
        shown = launch("", now, 2)
    assert not Path("out/logs/base").exists() and shown[0].startswith("base on toy/chain: still running (process 7")


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    assert cells.holder(tmp_path) == "another process"


def test_every_job_is_told_to_stop_before_one_is_waited_for(launch):
    shown = launch(STOPPING.replace("CODE", "143"), both_ready)
    assert [written(log) for log in Path("out/logs").rglob("*.log")] == [["=== started", "told in time"]] * 2
    assert shown == ["SIGTERM: every cell has saved; the same command goes on"]
    assert ends() == [143, 143]


def test_a_job_that_could_not_save_its_end_is_named(launch):
    shown = launch(STOPPING.replace("CODE", "5"), both_ready)
    assert shown == [
        "base on toy/chain: died (exit code 5: told in time)",
        "ln on toy/chain: died (exit code 5: told in time)",
        "SIGTERM: stopped; the same command goes on",
    ]
    assert ends() == [5, 5]


@pytest.fixture
def refusals(monkeypatch) -> dict[str, int]:
    """How often a full disk refuses files, by the ends of their names."""
    left: dict[str, int] = {}
    write, popen = os.write, local.started

    def refuse(path: str) -> None:
        for name in left:
            if path.endswith(name) and left[name]:
                left[name] -= 1
                raise OSError(errno.ENOSPC, "No space left on device", path)

    def written(file: int, data: bytes) -> int:
        refuse(os.readlink(f"/proc/self/fd/{file}"))
        return write(file, data)

    def started(command: list[str], log: Path) -> Any:
        refuse(str(log))
        return popen(command, log)

    monkeypatch.setattr(storage.os, "write", written)
    monkeypatch.setattr(local, "started", started)
    return left


@pytest.mark.parametrize("times", [2, 4])  # writing is tried twice for every end
def test_an_end_that_a_full_disk_does_not_take_is_noted_once_there_is_room(launch, refusals, times):
    refusals["attempts.jsonl"] = times
    shown = launch(STOPPING.replace("CODE", "5"), both_ready)
    assert shown[0].startswith("attempts.jsonl cannot be written: No space left on device")
    assert shown[1] == "attempts.jsonl is written again" and shown[-1] == "SIGTERM: stopped; the same command goes on"
    assert ends() == [5, 5]


def test_a_cell_that_a_full_disk_does_not_let_start_has_died_and_the_others_go_on(launch, refusals):
    refusals["base/toy_chain.log"] = 3

    def given_up() -> bool:
        noted = Path("out/attempts.jsonl")
        return noted.exists() and len(noted.read_text().splitlines()) == 3

    shown = launch("import time; time.sleep(60)", given_up)
    assert shown[0].startswith("base on toy/chain: died (cannot be started: [Errno 28] No space left on device: ")
    assert shown[1:] == ["SIGTERM: stopped; the same command goes on"]
    assert ends() == [5, 5, 5, -signal.SIGTERM] and list(Attempts(Path("out")).failures) == ["base on toy/chain"]
    assert Attempts(Path("out")).given_up == {"base on toy/chain"}


def test_a_job_that_was_told_before_it_could_hear_has_not_died(launch):
    shown = launch("import time; time.sleep(60)", third_look())
    assert ends() == [-signal.SIGTERM] * 2 and not Attempts(Path("out")).failures
    assert shown == ["SIGTERM: every cell has saved; the same command goes on"]
