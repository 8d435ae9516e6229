"""Two runs that should have been one: where is the first number in which they differ?

With `trace=true` a run writes trace.jsonl: for every step and every update a digest of each tensor, by seed, in the
order in which numbers depend on each other. `python -m core.run difference RUN other=OTHER` names the first that
differs, and its stage; without `other` it compares what one run did twice, before and after it was resumed.

    birth       the learner as it was born
    env         what the step showed: observation, action, reward, ends
    event       what an intervention left behind
    stream      random numbers of the update
    index       which samples the replay has drawn
    batch       what they hold
    loss, gradient      what the update reports of a part of the learner
    moment, parameter, buffer, copy, memory     that part after it; then the next part, in the order of the update
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import files
from core.digest import digest
from core.engine import Engine
from core.randomness import draw
from core.run_folder import read_config
from core.spec import EnvStep
from core.state import Batch, States, Tensors, leaves
from core.storage import Appending, Storage

TRACE = "trace.jsonl"
STAGES = {"optim": "moment", "params": "parameter", "copies": "copy", "buffers": "buffer", "memory": "memory"}
Seen = list[tuple[str, str, list[str]]]  # stage, name, a digest per seed


class Trace:
    """Digests of a run, as it goes."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        files.drop_half_line(folder / TRACE)
        self._file = Appending(folder / TRACE, storage)

    def birth(self, states: States) -> None:
        """Nothing has been learned yet."""
        self._row("birth", _learner(states))

    def begin(self, observation: np.ndarray) -> None:
        """No step has been taken yet. [n, ...]"""
        self._row("step 0", _seen("env", {"observation": observation}))

    def step(self, number: int, action: np.ndarray, step: EnvStep) -> None:
        """Agent step `number` was taken. What is seen of it leads with [n]."""
        shown = {"action": action, "observation": step.next_obs, "reward": step.reward}
        shown |= {"terminal": step.terminal, "ended": step.ended, "failed": step.failed}
        self._row(f"step {number}", _seen("env", shown))

    def event(self, updates: int, row: Mapping[str, Any], states: States) -> None:
        """An intervention was applied; row: of the ledger."""
        part = row["part"]
        left = [("event", f"{stage}, {name}", found) for stage, name, found in _learner({part: states[part]})]
        self._row(f"after update {updates}, {row['intervention']} on {part} of seed {row['seed']}", left)

    def update(self, number: int, engine: Engine, batch: Batch, metrics: Tensors) -> None:
        """Update `number`, counted from 1, was made of this batch. metrics: "PART/NAME", in the order of the update."""
        count = torch.full((), number, device=engine.device)
        seen = _seen("stream", draw(engine.noise, engine.keys_of("update"), count))
        seen += _seen("index", {name: value for name, value in batch.items() if name == "index"})
        seen += _seen("batch", {name: value for name, value in batch.items() if name != "index"})
        for part in dict.fromkeys([*(name.partition("/")[0] for name in metrics), *engine.states]):
            reported = {name: value for name, value in metrics.items() if name.partition("/")[0] == part}
            norm = {name: reported.pop(name) for name in [f"{part}/grad_norm"] if name in reported}
            seen += _seen("loss", reported) + _seen("gradient", norm)
            seen += _learner({part: engine.states[part]} if part in engine.states else {})
        self._row(f"update {number}", seen)

    def close(self) -> None:
        self._file.close()

    def _row(self, name: str, seen: Seen) -> None:
        self._file.append(json.dumps({"at": name, "seen": seen}).encode() + b"\n")


def digests(values: Tensor | np.ndarray) -> list[str]:
    """One per seed, eight characters each. [n, ...]"""
    return [digest(row)[:8] for row in torch.as_tensor(values)]


def _seen(stage: str, values: Mapping[str, Tensor | np.ndarray]) -> Seen:
    return [(stage, name, digests(value)) for name, value in values.items()]


def _learner(states: States) -> Seen:
    return [
        (STAGES[field], f"{part}: {role} {name}" if role else f"{part}: {name}", digests(value))
        for part, s in states.items()
        for field, role, name, value in leaves(s)
    ]


def difference(folder: Path, other: Path | None = None) -> tuple[str, int, int]:
    """-> (the first difference, in a line, or ""; how many steps, updates and events were compared; how many are in one
    of two runs alone).

    Raises ValueError where nothing can be compared.
    """
    mine, alone = list(_read(folder)), 0
    if other is None:
        known: dict[str, Any] = {}
        pairs = []
        for name, row in mine:
            pairs += [(name, known[name], row)] if name in known else []
            known[name] = row
    else:
        theirs = dict(_read(other))  # of what was done twice, what counted in the end
        pairs = [(name, row, theirs[name]) for name, row in dict(mine).items() if name in theirs]
        alone = len(dict(mine).keys() ^ theirs.keys())
    if not pairs:
        raise ValueError(
            f"{folder}: {'nothing was done twice' if other is None else f'no step in common with {other}'}"
        )
    seeds = read_config(folder)["seeds"]
    for name, one, two in pairs:
        if found := _differing(one, two, seeds):
            return f"{name}: {found}", len(pairs), alone
    return "", len(pairs), alone


def _differing(one: Seen, two: Seen, seeds: list[int]) -> str:
    mine, theirs = ({(stage, name): found for stage, name, found in seen} for seen in (one, two))
    for stage, name in [*mine, *(at for at in theirs if at not in mine)]:
        if (stage, name) not in mine or (stage, name) not in theirs:
            return f"{stage}: {name} is in one of them alone"
        a, b = mine[stage, name], theirs[stage, name]
        if len(a) != len(b):
            return f"{len(a)} seeds, and {len(b)}"
        if differ := [str(seed) for seed, x, y in zip(seeds, a, b, strict=True) if x != y]:
            return f"{stage}: {name} (of seed {', '.join(differ)})"
    return ""


def _read(folder: Path) -> Iterator[tuple[str, Seen]]:
    path = folder / TRACE
    if not path.exists():
        raise ValueError(f"{folder}: has no {TRACE}; run it with trace=true")
    with files.reading(path):
        for row in files.json_rows(path):
            yield row["at"], row["seen"]
