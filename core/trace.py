"""Two runs that should have been one: where is the first number in which they differ?

With `trace=true` a run writes trace.jsonl: for every step and every update a digest of each tensor, by seed, in the
order in which numbers depend on each other. `python -m core.run difference RUN other=OTHER` names the first that
differs, and its stage; without `other` it compares what one run did twice, before and after it was resumed.

    env         what the step showed: observation, action, reward, ends
    event       what an intervention left behind
    stream      random numbers of the update
    index       which samples the replay has drawn
    batch       what they hold
    loss, gradient      what the update reports
    moment, parameter, copy, buffer, memory     the learner after it
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
Digests = dict[str, list[str]]  # name -> one per seed


class Trace:
    """Digests of a run, as it goes."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        files.drop_half_line(folder / TRACE)
        self._file = Appending(folder / TRACE, storage)

    def step(self, number: int, action: np.ndarray, step: EnvStep) -> None:
        """Agent step `number` was taken. What is seen of it leads with [n]."""
        shown = {"action": action, "observation": step.next_obs, "reward": step.reward}
        shown |= {"terminal": step.terminal, "ended": step.ended, "failed": step.failed}
        self._row(f"step {number}", {"env": {name: digests(value) for name, value in shown.items()}})

    def event(self, updates: int, row: Mapping[str, Any], states: States) -> None:
        """An intervention was applied; row: of the ledger."""
        part = row["part"]
        stages = _learner({part: states[part]}).items()
        left = {f"{stage}, {name}": found for stage, digested in stages for name, found in digested.items()}
        self._row(f"after update {updates}, {row['intervention']} on {part} of seed {row['seed']}", {"event": left})

    def update(self, number: int, engine: Engine, batch: Batch, metrics: Tensors) -> None:
        """Update `number`, counted from 1, was made of this batch."""
        count = torch.full((), number, device=engine.device)
        noise = draw(engine.noise, engine.keys_of("update"), count)
        contents = {name: value for name, value in batch.items() if name != "index"}
        losses = {name: value for name, value in metrics.items() if not name.endswith("grad_norm")}
        norms = {name: value for name, value in metrics.items() if name.endswith("grad_norm")}
        index = {"index": batch["index"]} if "index" in batch else {}
        given = {"stream": noise, "index": index, "batch": contents, "loss": losses, "gradient": norms}
        stages = {stage: {name: digests(value) for name, value in found.items()} for stage, found in given.items()}
        self._row(f"update {number}", stages | _learner(engine.states))

    def close(self) -> None:
        self._file.close()

    def _row(self, name: str, stages: Mapping[str, Digests]) -> None:
        self._file.append(json.dumps({"at": name, **stages}).encode() + b"\n")


def digests(values: Tensor | np.ndarray) -> list[str]:
    """One per seed, eight characters each. [n, ...]"""
    return [digest(row)[:8] for row in torch.as_tensor(values)]


def _learner(states: States) -> dict[str, Digests]:
    stages: dict[str, Digests] = {stage: {} for stage in STAGES.values()}
    for part, s in states.items():
        for field, role, name, value in leaves(s):
            stages[STAGES[field]][f"{part}: {role} {name}" if role else f"{part}: {name}"] = digests(value)
    return stages


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


def _differing(one: dict[str, Digests], two: dict[str, Digests], seeds: list[int]) -> str:
    for stage in one:
        a, b = one[stage], two.get(stage, {})
        for name in [*a, *(name for name in b if name not in a)]:
            if name not in a or name not in b:
                return f"{stage}: {name} is in one of them alone"
            if a[name] != b[name]:
                if len(a[name]) != len(b[name]):
                    return f"{len(a[name])} seeds, and {len(b[name])}"
                differ = [str(s) for s, x, y in zip(seeds, a[name], b[name], strict=True) if x != y]
                return f"{stage}: {name} (of seed {', '.join(differ)})"
    return ""


def _read(folder: Path) -> Iterator[tuple[str, dict[str, Digests]]]:
    path = folder / TRACE
    if not path.exists():
        raise ValueError(f"{folder}: has no {TRACE}; run it with trace=true")
    with files.reading(path):
        for row in files.json_rows(path):
            yield row.pop("at"), row
