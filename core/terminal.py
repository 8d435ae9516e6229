"""A terminal that may be gone: what it cannot take is dropped, and training goes on.

Standard output and error are often files on the disk that fills up, a pipe whose reader has died, a connection that
was closed. Python would end the run with its next line.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


class Terminal:
    """A text stream whose `write` and `flush` never fail; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._forget()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._forget()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _forget(self) -> None:
        """Drop what waits to be written; it would fail again, at the latest when the process ends."""
        encoding, errors = self._stream.encoding, self._stream.errors
        self._stream = os.fdopen(self._stream.fileno(), "w", 1, encoding, errors, closefd=False)


def forgiving() -> None:
    """Let this process outlive its terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Terminal):
            setattr(sys, name, Terminal(stream))
