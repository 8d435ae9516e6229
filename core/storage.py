"""A disk that fails for a while: what cannot be written waits, and is said once.

A full disk, a folder that has become read-only, a network mount that is away: training does not depend on them. Rows
wait in memory, checkpoints are tried again when the next is due.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Storage:
    """Says what is not being written when that begins, and when it is over."""

    def __init__(self, say: Callable[[str], object] | None = None) -> None:
        self.say = say or partial(print, file=sys.stderr)
        self.ending = False  # what cannot be written now is not tried again
        self._failing: set[str] = set()

    def failed(self, what: str, error: OSError) -> None:
        """what: "metrics.jsonl", "the checkpoint", ..."""
        if what not in self._failing:
            self._failing.add(what)
            where = f" ({error.filename})" if error.filename else ""
            hope = "" if self.ending else "; training goes on, and tries again"
            self.say(f"{what} cannot be written: {error.strerror or error}{where}{hope}")

    def works(self, what: str) -> None:
        """It was written; the end of a failure is said."""
        if what in self._failing:
            self._failing.remove(what)
            self.say(f"{what} is written again")

    def attempt(self, what: str, write: Callable[[], T]) -> T | None:
        """-> what `write` returns; None, after a line, if the disk refuses."""
        try:
            done = write()
        except OSError as error:
            self.failed(what, error)
            return None
        self.works(what)
        return done


class Appending:
    """A file that only grows. What cannot be written now waits in memory and goes first the next time."""

    def __init__(self, path: Path, storage: Storage, called: str = "") -> None:
        """called: what a person knows it by, if not by its name. Raises OSError if the file cannot be opened."""
        self.path, self._storage, self._called = path, storage, called or path.name
        self._waiting = bytearray()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, data: bytes) -> None:
        self._waiting += data
        try:
            self._write()
        except OSError as error:
            self._storage.failed(self._called, error)
        else:
            self._storage.works(self._called)

    def sync(self) -> int:
        """Put all of it on the disk. -> its length in bytes. Raises OSError where that cannot be done."""
        self._write()
        os.fsync(self._file)
        return os.fstat(self._file).st_size

    def truncate(self, length: int) -> None:
        """Cut it back. Raises ValueError if it is shorter than that."""
        if os.fstat(self._file).st_size < length:
            raise ValueError(f"{self.path}: shorter than the {length} bytes that the checkpoint knows of")
        os.truncate(self._file, length)

    def close(self) -> None:
        os.close(self._file)

    def _write(self) -> None:
        """Each byte once, also where the disk takes a part of them."""
        while self._waiting:
            try:
                del self._waiting[: os.write(self._file, self._waiting)]
            except OSError:
                self._open_again()  # a mount that was away and is back has forgotten the file
                del self._waiting[: os.write(self._file, self._waiting)]

    def _open_again(self) -> None:
        lost, self._file = self._file, os.open(self.path, os.O_WRONLY | os.O_APPEND)
        with contextlib.suppress(OSError):  # a dead mount; the number is free again all the same
            os.close(lost)
