"""What a run reports, as files that only grow.

    metrics.jsonl   one object per log: losses, diagnostics; a list holds one number per seed
    eval.csv        one row per evaluation episode
    ledger.jsonl    one object per application of an intervention
    timing.jsonl    rates and times

The first three hold no path and nothing read from a clock, so equal runs write equal bytes; a checkpoint notes their
lengths, and a resumed run first cuts them back to it. timing.jsonl is free to differ and is never cut.

Floats are written in the shortest form that reads back to the same bits. JSON has no nan and no infinities: they are
the strings "NaN", "Infinity" and "-Infinity", which float() reads.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import drop_half_line, sync, whole_lines
from core.storage import Appending, Storage

if TYPE_CHECKING:
    from core.evaluation import Result

METRICS, EVALUATIONS, LEDGER, TIMING = "metrics.jsonl", "eval.csv", "ledger.jsonl", "timing.jsonl"
EXACT = (METRICS, EVALUATIONS, LEDGER)
COLUMNS = ("step", "task", "seed", "episode", "return", "length", "updates", "network")


class Records:
    """The four files of one run folder, open for appending; every row is handed to the system at once."""

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        drop_half_line(folder / TIMING)
        self._files = {name: Appending(folder / name, storage or Storage()) for name in (*EXACT, TIMING)}
        self._head()
        sync(folder)

    def metrics(self, row: Mapping[str, Any]) -> None:
        self._append(METRICS, to_json(row))

    def event(self, row: Mapping[str, Any]) -> None:
        """One application of an intervention, as core.ledger describes it."""
        self._append(LEDGER, to_json(row))

    def timing(self, row: Mapping[str, Any]) -> None:
        self._append(TIMING, to_json(row))

    def evaluation(self, results: Iterable[Result], *, step: int, task: str, updates: int, network: str) -> None:
        """One row per episode. `network`: "params", or the role of the slow copy that played."""
        rows = [(step, task, r.seed, r.episode, float(r.score), r.length, updates, network) for r in results]
        self._append(EVALUATIONS, _csv(rows))

    def position(self) -> dict[str, int]:
        """Put everything on the disk. -> length in bytes of each file that is cut back on resume.

        Raises OSError where that cannot be done.
        """
        lengths = {name: file.sync() for name, file in self._files.items()}
        return {name: lengths[name] for name in EXACT}

    def truncate(self, position: Mapping[str, int], damaged: bool = False) -> None:
        """Cut each file back to a position; {} is the beginning.

        Raises ValueError if a file is shorter than that. Those that are `damaged` keep the whole lines up to there.
        """
        for name in EXACT:
            length = position.get(name, 0)
            self._files[name].truncate(whole_lines(self._files[name].path, length) if damaged else length)
        self._head()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it has been said
            self.position()
        for file in self._files.values():
            file.close()

    def _head(self) -> None:
        if self._files[EVALUATIONS].sync() == 0:
            self._append(EVALUATIONS, _csv([COLUMNS]))

    def _append(self, name: str, text: str) -> None:
        self._files[name].append(text.encode())


def to_json(row: Mapping[str, Any]) -> str:
    """One line of JSON. The row may hold tensors and arrays."""
    return json.dumps(_plain(row), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, numbers that JSON lacks as strings."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
