"""A disk that fails for a while: training goes on, no row is lost or doubled, what was good stays."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from core import checkpoint, run_folder, storage
from core.agent_session import AgentSession
from core.config import load
from core.run import main as run_command
from core.signals import UNSAVED
from core.storage import Appending, Storage

SAC = ["agent=sac", "env=toy/reach", "net.width=16", "agent.batch_size=8", "steps=80", "warmup=20", "compile=false"]
SAC += ["eval_every=20", "eval_episodes=1", "save_every=20", "log_every=10", "observe_every=10", "rank_every=0"]
SAC += ["replay.capacity=80"]
RECORDS = ("metrics.jsonl", "eval.csv", "ledger.jsonl")
NO_DISK = "a tmpfs cannot be mounted here (only root may); the tests above play a full disk without one"
FULL = OSError(errno.ENOSPC, "No space left on device")


def playing(folder: Path, at_step=lambda step: None) -> AgentSession:
    run = AgentSession(load([*SAC, f"run_dir={folder}"]))
    turn = run.progress.step

    def step() -> None:
        turn()
        at_step(run.clock.env_steps)

    run.progress.step = step
    with run:
        train.loop(run.config, run)
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    playing(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RECORDS}


class Disk:
    """os.write and os.open, as a disk that is full between two moments; `room` bytes of a write still fit."""

    def __init__(self, monkeypatch, room: int = 0) -> None:
        self.full, self._room, self._write, self._open = False, room, os.write, os.open
        monkeypatch.setattr(storage.os, "write", self.write)
        monkeypatch.setattr("core.files.sync", self.sync)
        self._sync = os.fsync

    def write(self, file: int, data: bytes) -> int:
        if not self.full:
            return self._write(file, data)
        if self._room:
            fits, self._room = bytes(data)[: self._room], 0
            return self._write(file, fits)
        raise FULL

    def sync(self, path: Path) -> None:
        if self.full:
            raise FULL
        file = self._open(path, os.O_RDONLY)
        os.fsync(file)
        os.close(file)


@pytest.mark.parametrize("room", [0, 5])
def test_rows_wait_for_a_full_disk_and_none_is_lost(room, tmp_path, monkeypatch, undisturbed, capsys):
    disk = Disk(monkeypatch, room)

    def at_step(step: int) -> None:
        disk.full = 35 <= step < 55

    run = playing(tmp_path / "run", at_step)
    assert run.exit_code == 0
    assert contents(tmp_path / "run") == contents(undisturbed)
    shown = capsys.readouterr().err
    lines = [line for line in shown.splitlines() if "No space left" in line]
    assert len(lines) == len({line.partition(" cannot")[0] for line in lines})  # each is said once
    for name in ("metrics.jsonl", "the checkpoint"):
        assert f"{name} cannot be written: No space left on device" in shown and f"{name} is written again" in shown
    assert run_command(["verify", str(tmp_path / "run")]) == 0
    curves = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "seed_0")).Reload()
    assert [event.step for event in curves.Scalars("critic/loss")] == list(range(30, 81, 10))


def test_a_disk_that_stays_full_leaves_the_last_checkpoint_and_an_exit_code(tmp_path, monkeypatch, undisturbed, capsys):
    with monkeypatch.context() as full:
        disk = Disk(full)

        def at_step(step: int) -> None:
            disk.full = step >= 35

        run = playing(tmp_path / "run", at_step)
        assert run.exit_code == UNSAVED and not run.finished
        assert "step 80 is not saved; the same command goes on from what was saved before" in capsys.readouterr().err
    assert [checkpoint.step(path) for path in checkpoint.checkpoints(tmp_path / "run")] == [20]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")) and not list((tmp_path / "run").rglob("*.tmp"))
    playing(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(undisturbed)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason=NO_DISK)
def test_a_real_disk_that_is_full_for_a_while(tmp_path, undisturbed, capsys):
    """Full from the middle of the run; then there is room again and the same command ends in the same records."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip(NO_DISK)
    try:
        ballast = disk / "ballast"

        def at_step(step: int) -> None:
            if step == 35:
                with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
            if step == 62:
                ballast.unlink()

        run = playing(disk / "run", at_step)
        assert run.exit_code == 0 and contents(disk / "run") == contents(undisturbed)
        assert "No space left on device" in capsys.readouterr().err
        assert run_command(["verify", str(disk / "run")]) == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_folder_that_vanishes_is_told_and_the_run_goes_on(tmp_path, capsys):
    def at_step(step: int) -> None:
        if step == 35:
            (tmp_path / "run").rename(tmp_path / "away")

    run = playing(tmp_path / "run", at_step)
    assert run.exit_code == UNSAVED
    assert "the checkpoint cannot be written: No such file or directory" in capsys.readouterr().err
    assert run_command(["verify", str(tmp_path / "away")]) == 0


def test_a_file_whose_mount_came_back_is_opened_again(tmp_path):
    told: list[str] = []
    file = Appending(tmp_path / "rows", Storage(told.append))
    file.append(b"one\n")
    stale, file._file = file._file, os.open(tmp_path, os.O_RDONLY)  # a handle that the system no longer honours
    os.close(stale)
    file.append(b"two\n")
    assert (tmp_path / "rows").read_bytes() == b"one\ntwo\n" and told == []


def test_a_dead_mount_that_complains_when_its_files_are_closed_mixes_up_none(tmp_path, monkeypatch):
    """The number of the file that was closed is given to the next one that is opened."""
    told: list[str] = []
    rows, others = (Appending(tmp_path / name, Storage(told.append)) for name in ("rows", "others"))
    dead, write, close = {rows._file, others._file}, os.write, os.close

    def refuse(file: int, data: bytes) -> int:
        if file in dead:
            dead.remove(file)
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return write(file, data)

    def complain(file: int) -> None:
        close(file)
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(storage.os, "write", refuse)
    monkeypatch.setattr(storage.os, "close", complain)
    for line in (b"one\n", b"two\n"):
        rows.append(line)
        others.append(line.upper())
    assert (tmp_path / "rows").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "others").read_bytes() == b"ONE\nTWO\n" and told == []


def test_a_summary_that_cannot_be_written_is_told_and_the_same_command_writes_it(tmp_path, monkeypatch, capsys):
    wholly = run_folder.files.write

    def write(path: Path, content) -> None:
        if path.name == "done.json":
            raise FULL
        wholly(path, content)

    with monkeypatch.context() as full:
        full.setattr(run_folder.files, "write", write)
        assert playing(tmp_path).exit_code == UNSAVED
    shown = capsys.readouterr().err
    assert "the summary cannot be written: No space left on device\n" in shown  # and no promise to try again
    assert not (tmp_path / "done.json").exists()
    rows = contents(tmp_path)
    assert playing(tmp_path).exit_code == 0 and (tmp_path / "done.json").exists() and contents(tmp_path) == rows
