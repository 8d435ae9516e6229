"""Checkpoints: whole or not there, whatever happens to the process, the power or the disk."""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_replay import FakeReplay

from core import checkpoint, files
from core.digest import digest

RECORD = "metrics.jsonl"
REST = {name: {} for name in checkpoint.ENTRIES if name != "replay"}


class Run:
    """A run whose every number is a function of its step: what a checkpoint must hold is known."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step, self.replay = folder, 0, FakeReplay(capacity=20)

    def go(self, steps: int = 7) -> None:
        for _ in range(steps):
            self.step += 1
            self.replay.add(self.step)
            with (self.folder / RECORD).open("a") as file:
                file.write(f"{self.step}\n")

    def state(self) -> dict:
        weights = torch.full((5,), float(self.step))
        records = {RECORD: (self.folder / RECORD).stat().st_size}
        return REST | {"w": weights, "clock": {"step": self.step}, "records": records}

    def save(self) -> Path:
        return checkpoint.save(self.folder, self.step, self.state(), self.replay)


def check(folder: Path, path: Path) -> int:
    """The checkpoint holds exactly what a run at its step holds. -> the step"""
    state, step = checkpoint.load(path), checkpoint.step(path)
    assert state["w"].tolist() == [float(step)] * 5 and state["clock"] == {"step": step}
    lines = (folder / RECORD).read_bytes()[: state["records"][RECORD]].split()
    assert lines == [str(i).encode() for i in range(1, step + 1)]
    replay = FakeReplay()
    replay.load(folder / "replay", state["replay"])
    assert replay.held == list(range(1, step + 1))[-20:]
    assert state["replay"]["digest"] == replay.digest()
    return step


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints at steps 7 and 14."""
    run = Run(tmp_path)
    for _ in range(2):
        run.go()
        run.save()
    return run


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.checkpoints(folder)]


def quiet(line: str) -> None:
    pytest.fail(f"nothing is damaged, but: {line}")


# what is saved


def test_tensors_and_plain_data_come_back_as_they_were(tmp_path):
    state = REST | {
        "half": torch.randn(3, dtype=torch.bfloat16),
        "view": torch.arange(1_000_000)[10:14],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "plain": {"list": [1, 2.5, None], "tuple": ("a", "b"), "deep": [{"x": True}], 3: float("inf"), "big": 2**100},
    }
    path = checkpoint.save(tmp_path, 5, state, FakeReplay())
    assert checkpoint.newest(tmp_path) == path == tmp_path / "checkpoints" / "000000000005"
    loaded = checkpoint.load(path)
    loaded.pop("replay")
    assert digest(loaded) == digest(state)
    assert type(loaded["plain"]["tuple"]) is tuple
    assert (path / "state.pt").stat().st_size < 10_000  # the view's storage of 8 MB stayed behind


@pytest.mark.parametrize("value", [torch.zeros(1).numpy(), torch.zeros(1).numpy()[0], {1}, torch.Size([2]), b""])
def test_what_could_not_be_loaded_again_is_refused_by_name_before_anything_is_published(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a .*; a checkpoint holds tensors and plain data only"):
        checkpoint.save(tmp_path, 1, {"a": [0, value]}, FakeReplay())
    assert checkpoint.newest(tmp_path) is None


def test_the_manifest_lists_every_file_with_its_size_and_sha256(run):
    manifest = json.loads((run.folder / "checkpoints" / "000000000014" / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"]) == (4, 14)
    listed = {entry["path"]: entry for entry in manifest["files"] + manifest["records"]}
    chunks = {f"replay/{path.name}" for path in (run.folder / "replay").iterdir()}
    assert set(listed) == {"checkpoints/000000000014/state.pt", RECORD} | chunks and len(chunks) == 3
    for path, entry in listed.items():
        content = (run.folder / path).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


# what is kept


def test_the_two_newest_are_kept_and_the_chunks_they_need_and_nothing_else(run):
    for _ in range(3):
        run.go()
        run.save()
    assert names(run.folder) == ["000000000028", "000000000035"]
    assert sorted(os.listdir(run.folder / "checkpoints")) == names(run.folder)
    oldest = 28 - 20  # the ring of the older checkpoint holds numbers 9 ... 28, in chunks from a multiple of 4 on
    assert min(os.listdir(run.folder / "replay")) == f"replay-{oldest:06d}"
    for path in checkpoint.checkpoints(run.folder):
        check(run.folder, path)


def test_the_same_state_is_not_saved_twice_unless_it_is_damaged(run):
    """It would drop the one before: a run that is told to stop right after a save has two."""
    assert run.save().name == "000000000014" and names(run.folder) == ["000000000007", "000000000014"]
    with (run.folder / "checkpoints" / "000000000014" / "manifest.json").open("r+b") as file:
        file.write(b"?")
    assert run.save().name == "000000000014-1"
    check(run.folder, checkpoint.newest(run.folder, quiet))


def test_another_state_of_the_same_step_is_the_newer_one(run):
    updates = run.state() | {"clock": {"step": 14, "updates": 1}}
    second = checkpoint.save(run.folder, run.step, updates, run.replay)
    assert second.name == "000000000014-1" and checkpoint.step(second) == 14
    assert checkpoint.newest(run.folder, quiet) == second
    run.go()
    run.save()
    assert names(run.folder) == ["000000000014-1", "000000000021"]


def test_a_new_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path, quiet) is None


# damage


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["checkpoints/000000000014/state.pt", "replay/replay-000008"])
def test_a_flipped_byte_is_told_in_one_line_with_the_file_and_the_previous_checkpoint_is_used(run, place):
    size = (run.folder / place).stat().st_size
    for at in {0, 1, size // 2, size - 1}:
        flip(run.folder / place, at)
        lines: list[str] = []
        path = checkpoint.newest(run.folder, lines.append)
        assert path is not None and check(run.folder, path) == 7
        assert lines == [f"checkpoint 000000000014 is damaged and not used: {place}: its content has changed"]
        flip(run.folder / place, at)
    assert checkpoint.newest(run.folder, quiet).name == "000000000014"


def test_no_flipped_byte_of_a_manifest_leads_astray(run):
    manifest = run.folder / "checkpoints/000000000014/manifest.json"
    for at in range(0, manifest.stat().st_size, 3):
        flip(manifest, at)
        lines: list[str] = []
        assert check(run.folder, checkpoint.newest(run.folder, lines.append)) == 7
        (line,) = lines
        assert "is damaged and not used: checkpoints/000000000014/manifest.json: " in line and line.isprintable()
        flip(manifest, at)


@pytest.mark.parametrize("place", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("left", [0, 1, 100, 100_000])
def test_a_torn_or_padded_file_is_not_used(run, place, left):
    path = run.folder / "checkpoints/000000000014" / place
    os.truncate(path, left)
    lines: list[str] = []
    assert check(run.folder, checkpoint.newest(run.folder, lines.append)) == 7
    assert len(lines) == 1 and f"checkpoints/000000000014/{place}: " in lines[0]


def test_damaged_or_lost_records_lead_back_to_the_checkpoint_before_them(run):
    flip(run.folder / RECORD, (run.folder / RECORD).stat().st_size - 1)
    assert checkpoint.newest(run.folder, lambda line: None).name == "000000000007"


def test_if_no_checkpoint_is_whole_the_run_does_not_silently_start_anew(run):
    (run.folder / "replay" / "replay-000000").unlink()
    lines: list[str] = []
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        checkpoint.newest(run.folder, lines.append)
    assert len(lines) == 2 and all("replay/replay-000000: cannot be read (No such file" in line for line in lines)


def test_a_format_of_the_future_is_named(run):
    manifest = run.folder / "checkpoints/000000000014/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 4', '"format": 5'))
    assert list(checkpoint.problems(manifest.parent)) == [
        "checkpoints/000000000014/manifest.json: in format 5; this version reads format 4"
    ]


def test_after_damage_the_run_goes_on_from_the_one_before_and_saves_again(run):
    flip(run.folder / "replay" / "replay-000008", 0)
    last = checkpoint.newest(run.folder, lambda line: None)
    checkpoint.tidy(run.folder, last)
    assert names(run.folder) == ["000000000007"] and os.listdir(run.folder / "replay") == ["replay-000000"]
    run.save()
    assert check(run.folder, checkpoint.newest(run.folder, quiet)) == 14


# a disk that cannot be read for a while


@contextlib.contextmanager
def failing(place: str, number: int) -> Iterator[None]:
    """Inside, this file of the run cannot be read; nor does the error name it, as one of a later read does not."""
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(place):
            raise OSError(number, os.strerror(number))
        return opened(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        yield


PLACES = ["checkpoints/000000000014/state.pt", "checkpoints/000000000014/manifest.json", "replay/replay-000008", RECORD]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_cannot_be_read_now_is_named_and_not_taken_for_damaged(run, place, number):
    with failing(place, number), pytest.raises(OSError) as raised:
        checkpoint.newest(run.folder, quiet)
    told = f"{os.strerror(number)}; try again; remove this file only if it is lost for good"
    assert (raised.value.errno, raised.value.strerror) == (number, told)
    assert raised.value.filename == str(run.folder / place)
    assert check(run.folder, checkpoint.newest(run.folder, quiet)) == 14


def test_while_a_manifest_cannot_be_read_no_chunk_that_it_lists_is_removed(run):
    for _ in range(3):
        run.go()
        run.save()
    first, last = checkpoint.checkpoints(run.folder)
    with failing("000000000028/manifest.json", errno.EIO):
        checkpoint.tidy(run.folder, last)
    assert check(run.folder, first) == 28  # by chunks that the newer one does not list
    flip(first / "manifest.json", 0)
    checkpoint.tidy(run.folder, last)
    assert min(os.listdir(run.folder / "replay")) == "replay-000016"


# a run that goes on while it is looked at


@contextlib.contextmanager
def going_on(run: Run, saves: list[int]) -> Iterator[None]:
    """Inside, before the k-th reading of a file for its digest the run has saved so often once more."""
    left, read = iter(saves), files.sha256

    def later(path, size=None):
        with pytest.MonkeyPatch.context() as quietly:
            quietly.setattr(files, "sha256", read)
            for _ in range(next(left, 0)):
                run.go()
                run.save()
        return read(path, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sha256", later)
        yield


@pytest.mark.parametrize("saves", [[2], [1, 2], [0, 2], [1, 1], [2, 2]])
def test_a_checkpoint_that_its_run_drops_while_it_is_read_is_not_damaged(run, saves):
    with going_on(run, saves):
        newest = checkpoint.newest(run.folder, quiet)
    assert check(run.folder, newest) == int(names(run.folder)[-1])


def test_one_that_is_dropped_between_look_and_use_is_looked_for_again(run):
    times = iter([2, 0])

    def read(path: Path) -> int:
        for _ in range(next(times)):
            run.go()
            run.save()
        return check(run.folder, path)

    last, step = checkpoint.of_newest(run.folder, read)
    assert (last.name, step) == ("000000000028", 28)


def test_a_run_that_drops_them_faster_than_they_are_read_is_told_of_as_such(run):
    with going_on(run, [2] * 100), pytest.raises(ValueError, match="saved anew before its checkpoints could be read"):
        checkpoint.newest(run.folder, quiet)


def test_what_goes_wrong_with_a_checkpoint_that_stands_is_raised_at_once(run):
    looked = []

    def wrong(path: Path) -> None:
        looked.append(path.name)
        raise ValueError("holds no state")

    with pytest.raises(ValueError, match="holds no state"):
        checkpoint.of_newest(run.folder, wrong)
    assert looked == ["000000000014"]


def test_a_really_damaged_one_is_told_of_while_its_run_goes_on(run):
    flip(run.folder / "checkpoints/000000000014/state.pt", 0)
    lines: list[str] = []
    with going_on(run, [0, 2]):
        assert check(run.folder, checkpoint.newest(run.folder, lines.append)) == 28
    assert len(lines) == 1 and "000000000014 is damaged and not used" in lines[0]


# crashes


class PowerCut(BaseException):
    """From here on nothing happens any more."""


class Power:
    """Fails at the k-th operation on files and at every later one; what was not synced by then is half lost."""

    OPERATIONS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.left, self.unsynced = fails_at, set()
        originals = {name: getattr(os, name) for name in self.OPERATIONS}
        write_bytes = Path.write_bytes

        def operation(name):
            def act(target, *args, **kwargs):
                self.spend()
                done = originals[name](target, *args, **kwargs)
                if name == "fsync":
                    self.unsynced.discard(os.fstat(target).st_ino)
                return done

            return act

        def write(path, content):
            write_bytes(path, content)
            self.unsynced.add(path.stat().st_ino)
            self.spend()

        for name in self.OPERATIONS:
            patch.setattr(os, name, operation(name))
        patch.setattr(Path, "write_bytes", write)

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerCut

    def lose_unsynced(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self.unsynced:
                os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("saves_before", [0, 1, 2, 3])
def test_a_power_cut_at_any_operation_leaves_the_old_or_the_new_checkpoint_whole(tmp_path, saves_before):
    before = Run(tmp_path / "before")
    before.folder.mkdir()
    for _ in range(saves_before):
        before.go()
        before.save()
    before.go()
    outcomes, k, finished = [], 0, False
    while not finished:
        run = copy.deepcopy(before)
        run.folder = shutil.copytree(before.folder, tmp_path / str(k))
        with pytest.MonkeyPatch.context() as patch:
            power = Power(patch, fails_at=k)
            try:
                run.save()
                finished = True
            except PowerCut:
                pass
        power.lose_unsynced(run.folder)

        path = checkpoint.newest(run.folder, quiet)
        outcomes.append(0 if path is None else check(run.folder, path))
        assert all(not list(checkpoint.problems(path)) for path in checkpoint.checkpoints(run.folder))
        checkpoint.tidy(run.folder, path)
        run.save()  # whatever lies about is not in the way
        assert check(run.folder, checkpoint.newest(run.folder, quiet)) == run.step
        assert not list((run.folder / "checkpoints").glob(".*"))
        k += 1
    old, new = 7 * saves_before, 7 * (saves_before + 1)
    turn = outcomes.index(new)
    assert outcomes == [old] * turn + [new] * (len(outcomes) - turn)
    assert turn > 8 and len(outcomes) > turn + 1  # cuts before and after the moment of publication


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    moments = random.Random(0)
    for trial in range(10):
        run = Run(tmp_path / str(trial))
        run.folder.mkdir()
        run.go()
        run.save()
        child = os.fork()
        if child == 0:
            while True:
                run.go(1)
                run.save()
        time.sleep(moments.uniform(0.02, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert check(run.folder, checkpoint.newest(run.folder, quiet)) >= 7
