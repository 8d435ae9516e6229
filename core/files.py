"""Files that survive a power cut: written aside, synced, renamed into place."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from core.options import told

GLANCE = 1.0  # seconds for which somebody who looks whether a file is locked may keep it, at most


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes | memoryview | str) -> None:
    """Give `path` this content, whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(aside)
        os.replace(aside, path)
    except OSError as error:  # on a full disk the half that was written takes room
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        error.filename = str(path)  # what a person has named
        raise
    sync(path.parent)


def read_json(path: Path, default: Any = None, kind: type = dict) -> Any:
    """What a file of JSON holds; `default` without the file. Raises ValueError if it is damaged, or of another kind.

    kind: dict, or list for a list of them.
    """
    try:
        if not path.exists():
            return default
        found = json.loads(path.read_text())
        if not isinstance(found, kind):
            raise ValueError(f"holds a {type(found).__name__}")
        if isinstance(found, list) and not all(isinstance(entry, dict) for entry in found):
            raise ValueError("holds a list of something else")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged ({error}); remove it, and the same command goes on without") from error


class Damaged(ValueError):
    """A file holds what nobody has written there; the message names it."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, whatever a foreign or damaged file makes of its reader becomes one line that names it: Damaged."""
    try:
        yield
    except Damaged:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        raise Damaged(f"{path}: cannot be read ({told(error)})") from error


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of json lines, none without the file; a last line that a power cut left unfinished is no row.

    Raises ValueError, naming the file, for any other line that is no object.
    """
    rows: list[dict[str, Any]] = []
    with reading(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, 1):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} holds no row")
            rows.append(row)
    return rows


def drop_half_line(path: Path) -> None:
    """A process that was killed while it wrote may have left a line without its end."""
    if path.exists():
        os.truncate(path, whole_lines(path))


def whole_lines(path: Path, size: int | None = None) -> int:
    """How many bytes of a file, or of its first `size`, are lines with their ends."""
    return path.read_bytes()[:size].rfind(b"\n") + 1


def make_folder(path: Path) -> None:
    """Create a folder of an existing one, durably, unless it is there."""
    if not path.is_dir():
        path.mkdir()
        sync(path.parent)


def move_folder(aside: Path, path: Path) -> None:
    """Give a folder that was written aside its name, whole or not at all. Raises OSError if `path` holds something."""
    os.sync()  # everything in it, at once
    os.replace(aside, path)
    sync(path.parent)


def lock(file: TextIO) -> None:
    """Lock it for this process alone. Raises BlockingIOError if another one keeps it, and does not only look at it."""
    until = time.monotonic() + GLANCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(GLANCE / 50)


def sha256(path: Path, size: int | None = None) -> str:
    """Digest of a file, or of its first `size` bytes."""
    left = path.stat().st_size if size is None else size
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(left, 1 << 20)):
            found.update(block)
            left -= len(block)
    return found.hexdigest()
