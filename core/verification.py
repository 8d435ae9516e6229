"""Whether everything in a run folder is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from core import checkpoint, files
from core.run_folder import CONFIG, DONE, PROVENANCE, differing, read_config, read_summary


def problems(folder: Path) -> list[str]:
    """One line for each file that is not: checkpoints and summary by digest, configuration by checkpoint.

    Of the wall clock, and not compared, are timing.jsonl and what TensorBoard draws.
    """
    found, over = checkpoint.checkpoints(folder), (folder / DONE).exists()
    lines: list[str] = []
    for path in found:
        lines += checkpoint.problems(path, over=over and path == found[-1], unreadable=True)
    lines += _unreadable(folder)
    if not found:
        lines.append(f"{folder}: no checkpoint")
    if not lines:
        lines = list(_changed_settings(folder, checkpoint.load(found[-1])["config"]))
    return list(dict.fromkeys(lines))  # two checkpoints share most chunks


def _unreadable(folder: Path) -> Iterator[str]:
    starts = partial(files.read_json, kind=list)
    for read, path in ((read_config, folder), (starts, folder / PROVENANCE), (read_summary, folder)):
        try:
            read(path)
        except ValueError as error:
            yield str(error)


def _changed_settings(folder: Path, saved: dict[str, Any]) -> Iterator[str]:
    """Not told once a configuration was forced upon the folder: it may be newer than the checkpoint."""
    if any("forced" in start for start in files.read_json(folder / PROVENANCE, [], list)):
        return
    settings, now = yaml.safe_load(yaml.safe_dump(saved)), read_config(folder)
    try:
        with files.reading(folder / CONFIG):
            changed = differing(settings, now, ignore=now.keys() - settings.keys())
    except files.Damaged as error:
        yield str(error)
    else:
        yield from (f"{folder / CONFIG}: {line}" for line in changed)
