"""Whether everything in a run folder is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from core import checkpoint, files
from core.options import one_line
from core.run_folder import CONFIG, DONE, PROVENANCE, differing, read_config, read_summary


def problems(folder: Path) -> tuple[list[str], int]:
    """One line for each file that is not: checkpoints and summary by digest, configuration by checkpoint; and how many
    checkpoints were looked at, without what a run that goes on has dropped meanwhile.

    Of the wall clock, and not compared, are timing.jsonl and what TensorBoard draws. Raises ValueError where a run
    drops its checkpoints faster than they can be read.
    """
    lines, looked_at = _of_checkpoints(folder)
    lines += _unreadable(folder)
    if not looked_at:
        lines.append(f"{folder}: no checkpoint")
    if not lines:
        lines = list(_changed_settings(folder, checkpoint.checkpoints(folder)[-1]))
    return list(dict.fromkeys(lines)), looked_at  # two checkpoints share most chunks


def _of_checkpoints(folder: Path) -> tuple[list[str], int]:
    """The lines of those that stand when they have been read, and their number."""
    for _ in range(checkpoint.LOOKS):
        over = (folder / DONE).exists()  # if so, what is found now is all that there will be
        found = checkpoint.checkpoints(folder)
        lines, looked_at = list[str](), 0
        for path in reversed(found):  # the newest stands longest
            wrong = list(checkpoint.problems(path, over=over and path == found[-1], unreadable=True))
            if path.exists():
                lines, looked_at = wrong + lines, looked_at + 1
        if looked_at or not found:
            return lines, looked_at
    raise ValueError(checkpoint.MOVING.format(folder))


def _unreadable(folder: Path) -> Iterator[str]:
    starts = partial(files.read_json, kind=list)
    for read, path in ((read_config, folder), (starts, folder / PROVENANCE), (read_summary, folder)):
        try:
            read(path)
        except ValueError as error:
            yield str(error)


def _changed_settings(folder: Path, newest: Path) -> Iterator[str]:
    """Not told once a configuration was forced upon the folder: it may be newer than the checkpoint."""
    saved = checkpoint.load(newest)["config"]
    if any("forced" in start for start in files.read_json(folder / PROVENANCE, [], list)):
        return
    try:
        settings, now = yaml.safe_load(yaml.safe_dump(saved)), read_config(folder)
    except yaml.YAMLError as error:  # a forged one, whose digest agrees
        yield f"{newest}: its config is none ({one_line(error)}); remove this checkpoint"
        return
    try:
        with files.reading(folder / CONFIG):
            changed = differing(settings, now, ignore=now.keys() - settings.keys())
    except files.Damaged as error:
        yield str(error)
    else:
        yield from (f"{folder / CONFIG}: {line}" for line in changed)
