"""Checkpoints: everything a run needs to go on, in a form that a power cut cannot spoil.

    checkpoints/000000010000/state.pt        nested dicts of tensors and plain data (torch.load(weights_only=True))
    checkpoints/000000010000/manifest.json   size and sha256 of every file that belongs to it, and of itself
    replay/...                               chunks of replay, shared by all checkpoints, never changed once written

A checkpoint is written aside, synced and renamed, so it exists whole or not at all. The two newest are kept. Another
state of the same step gets the name 000000010000-1; the same state is not written twice. Paths in a manifest are
relative to the run folder; of the records, which go on growing, it knows the first bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from core import files
from core.options import one_line, told
from core.packing import packed
from core.replay_store import Replay, prune

T = TypeVar("T")
FORMAT = 4
KEPT = 2
LOOKS = 3  # at a run that drops its checkpoints while they are read
MOVING = "{}: saved anew before its checkpoints could be read; try again, or when the run has ended"
CHECKPOINTS, REPLAY, STATE, MANIFEST = "checkpoints", "replay", "state.pt", "manifest.json"
GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)  # no such file; others may pass
ENTRIES = ("states", "engine", "clock", "pending", "replay", "records", "config")  # in the state of every kind of run


def save(folder: Path, step: int, state: dict, replay: Replay) -> Path:
    """Publish a checkpoint of the run in `folder` and drop what no kept one needs. -> its folder

    state: tensors and plain data, on any device; state["records"], if there, maps record files to lengths in bytes.
    Raises TypeError, naming the entry, if something in it could not be loaded again; OSError where it cannot be
    written, and all that was there before stands.
    """
    home = folder / CHECKPOINTS
    for needed in (home, folder / REPLAY):
        files.make_folder(needed)
    saved = replay.save(folder / REPLAY)
    state = state | {"replay": saved | {"digest": replay.digest()}}
    content = packed(state, "state")
    if twin := _twin(folder, step, content):
        return twin

    published = _unused(home, step)
    chunks = [(f"{REPLAY}/{chunk['file']}", chunk["sha256"]) for chunk in saved["files"]]
    with _aside(home) as aside:
        files.write(aside / STATE, content)
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": [
                _file(f"{CHECKPOINTS}/{published.name}/{STATE}", aside / STATE),
                *({"path": path, "bytes": (folder / path).stat().st_size, "sha256": sha} for path, sha in chunks),
            ],
            "records": [_file(name, folder / name, length) for name, length in state.get("records", {}).items()],
        }
        files.write(aside / MANIFEST, _text(manifest))
        os.rename(aside, published)
    files.sync(home)
    tidy(folder, published)
    return published


def newest(folder: Path, report: Callable[[str], None] | None = None, records: bool = True) -> Path | None:
    """The newest checkpoint that is whole, or None if there is none at all. records: as those must be that it knows.

    Each damaged one that it passes over gets a line, on stderr unless `report` takes it; what a run that goes on drops
    meanwhile is not damaged. Raises ValueError if there are checkpoints and none is whole; OSError where the disk does
    not let one be read now.
    """
    report = report or partial(print, file=sys.stderr)
    for _ in range(LOOKS):
        found, gone = checkpoints(folder), False
        for checkpoint in reversed(found):
            problem = next(problems(checkpoint, records), None)
            if problem is None:
                return checkpoint
            gone = not checkpoint.exists()
            if gone:
                break  # its run goes on, and has dropped it: there are newer ones
            report(f"checkpoint {checkpoint.name} is damaged and not used: {problem}")
        if not gone:
            break
    else:
        raise ValueError(MOVING.format(folder))
    if any(next(problems(each, records=False), None) is None for each in found):
        raise ValueError(f"run_dir: only records in {folder} have changed; resume=force goes on with them as they are")
    if found:
        raise ValueError(f"run_dir: no checkpoint in {folder} is whole; restore its files, or choose another folder")
    return None


def of_newest(folder: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """The newest whole checkpoint, and what `read` makes of it; of a newer one if its run has dropped it by then.

    Raises ValueError if there is none yet, or none is whole; and what `read` raises.
    """
    for _ in range(LOOKS):
        last = newest(folder)
        if last is None:
            raise ValueError(f"{folder}: no checkpoint yet")
        try:
            return last, read(last)
        except (OSError, ValueError):
            if last.exists():
                raise
    raise ValueError(MOVING.format(folder))


def load(checkpoint: Path) -> dict:
    """The state that was saved, on the CPU. Raises ValueError, one line, for a file that holds no state of a run."""
    path = checkpoint / STATE
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of a stranger's pickle
            state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # whatever such a file makes of its reader; nothing of it has been run
        raise ValueError(f"{path}: holds something else than tensors and plain data; remove this checkpoint") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__} and no state; remove this checkpoint")
    missing = [name for name in ENTRIES if not isinstance(state.get(name), dict)]
    if missing:
        raise ValueError(f"{path}: holds no {' and no '.join(missing)}; remove this checkpoint")
    known = [_entry(entry) for entry in _manifest(checkpoint)["records"]]
    if state["records"] != {name: size for name, size, _ in known}:
        raise ValueError(f"{path}: knows other records than its {MANIFEST}; remove this checkpoint")
    return state


@contextlib.contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Inside, whatever an entry of another kind makes of those who read this state becomes one line: ValueError."""
    try:
        yield
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        advice = "go on with the version that wrote it, or remove this checkpoint"
        raise ValueError(f"{checkpoint / STATE}: does not fit this version ({told(error)}); {advice}") from error
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {one_line(error)}") from error


def checkpoints(folder: Path) -> list[Path]:
    """Every published checkpoint, oldest first."""
    home = folder / CHECKPOINTS
    found = [path for path in home.iterdir() if re.fullmatch(r"\d{12}(-\d+)?", path.name)] if home.is_dir() else []
    return sorted(found, key=_order)


def problems(checkpoint: Path, records: bool = True, over: bool = False, unreadable: bool = False) -> Iterator[str]:
    """One line for each file of a checkpoint that is not as it was written.

    records: those too that it knows of. over: it is the end of its run, and they have not grown since. unreadable: one
    that the disk does not let be read counts too; else that raises OSError, as it may pass and is no damage.
    """
    folder, name = checkpoint.parents[1], f"{CHECKPOINTS}/{checkpoint.name}/{MANIFEST}"
    try:
        manifest = _manifest(checkpoint)
        if manifest["format"] != FORMAT:
            yield f"{name}: in format {manifest['format']}; this version reads format {FORMAT}"
            return
        if manifest["step"] != step(checkpoint):
            yield f"{name}: of step {manifest['step']}"
        expected = [(*_entry(entry), True) for entry in manifest["files"]]
        known = [(*_entry(entry), over) for entry in manifest["records"]]
    except OSError as error:
        yield _unread(error, folder, name, unreadable)
        return
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        yield f"{name}: cannot be read ({told(error)})"
        return
    for path, size, sha, whole in expected + (known if records else []):
        try:
            length = (folder / path).stat().st_size
            if length < size or (whole and length > size):
                yield f"{path}: {length} bytes long, {size} expected"
            elif files.sha256(folder / path, size) != sha:
                yield f"{path}: its content has changed"
        except OSError as error:
            yield _unread(error, folder, path, unreadable)
        except ValueError as error:  # no name that a file can have
            yield f"{path!r}: cannot be read ({error})"


def tidy(folder: Path, last: Path | None) -> None:
    """Keep `last` and the checkpoint before it; remove all others, and chunks of replay that neither lists."""
    found = checkpoints(folder)
    kept = [path for path in found if last and _order(path) <= _order(last)][-KEPT:]
    for path in found:
        if path not in kept:
            os.rename(path, path.with_name(f".{path.name}"))  # it goes as it came: whole
    if (folder / CHECKPOINTS).is_dir():
        files.sync(folder / CHECKPOINTS)
        for aside in (folder / CHECKPOINTS).glob(".*"):
            shutil.rmtree(aside, ignore_errors=True)

    needed = set()
    for path in kept:
        try:
            needed |= {Path(entry["path"]).name for entry in _manifest(path)["files"]}
        except OSError as error:
            if error.errno not in GONE:
                return  # which chunks it lists cannot be read now; all stay
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # it is damaged
    prune(folder / REPLAY, keep=needed)


def step(checkpoint: Path) -> int:
    """Env steps of the run when it was saved."""
    return _order(checkpoint)[0]


def _unread(error: OSError, folder: Path, path: str, unreadable: bool) -> str:
    """A line about a file that is not there, or `unreadable`. Raises OSError, naming it, where the error may pass."""
    if unreadable or error.errno in GONE:
        return f"{path}: cannot be read ({error.strerror})"
    line = f"{error.strerror}; try again; remove this file only if it is lost for good"
    raise OSError(error.errno, line, str(folder / path)) from error


@contextlib.contextmanager
def _aside(home: Path) -> Iterator[Path]:
    """A folder for a checkpoint that is being written; gone if it cannot be."""
    aside = home / ".writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _text(manifest: dict[str, Any]) -> bytes:
    """What is said, with its digest."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    return json.dumps(said | {"sha256": digest}, indent=1).encode()


def _manifest(checkpoint: Path) -> dict[str, Any]:
    """What a manifest says. Raises ValueError unless it is written as `save` writes it, to the last white space."""
    content = (checkpoint / MANIFEST).read_bytes()
    manifest = json.loads(content)
    if manifest["format"] == FORMAT and _text(manifest) != content:
        raise ValueError("its content has changed")
    return manifest


def _entry(entry: dict[str, Any]) -> tuple[str, int, str]:
    if entry["bytes"] < 0:
        raise ValueError(f"{entry['bytes']} bytes")
    return str(entry["path"]), int(entry["bytes"]), str(entry["sha256"])


def _file(path: str, file: Path, length: int | None = None) -> dict[str, Any]:
    size = file.stat().st_size if length is None else length
    return {"path": path, "bytes": size, "sha256": files.sha256(file, size)}


def _order(checkpoint: Path) -> tuple[int, ...]:
    """Step, and which of that step."""
    return tuple(map(int, checkpoint.name.split("-")))


def _twin(folder: Path, step: int, content: memoryview) -> Path | None:
    """The newest checkpoint, if it is whole and of this very state: a second one would drop the one before."""
    last = next(reversed(checkpoints(folder)), None)
    with contextlib.suppress(OSError):
        if last and _order(last)[0] == step and (last / STATE).read_bytes() == content:
            return None if next(problems(last, records=False), "") else last
    return None


def _unused(home: Path, step: int) -> Path:
    name, again = f"{step:012d}", 0
    while (home / name).exists():
        again += 1
        name = f"{step:012d}-{again}"
    return home / name
