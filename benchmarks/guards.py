"""What it costs that every update is judged, and that a seed with a number that is not finite is frozen in it."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from agents import DQN, SAC
from benchmarks import cases
from benchmarks.timing import interleaved
from core import engine
from core.clock import Clock
from core.engine import Engine
from core.faults import Watch
from core.state import State, Tensors, write


def _judged_sound(tensors: Tensors, lead: int = 0) -> Tensor:
    return next(iter(tensors.values())).new_ones((), dtype=torch.bool)


def _write_all(state: State, new: State, alive: Tensor) -> None:
    for field in State._fields:
        if field != "birth":
            write(getattr(state, field), getattr(new, field))


class Unguarded(Engine):
    """The same update, line by line, with other words for "is it finite?" and "write where it was"."""

    _words = vars(engine) | {"_finite": _judged_sound, "_write_trained": _write_all}
    _batched = FunctionType(Engine._batched.__code__, _words)  # type: ignore[assignment]
    _by_member = FunctionType(Engine._by_member.__code__, _words)  # type: ignore[assignment]


def guards(blocks: int, seconds: float) -> list[list[str]]:
    """Compiled updates of one seed, as they are, and with each number taken as finite and all results written.

    Lower quartiles of many short blocks: what is looked for is small, and others on the machine only ever add.
    """
    rows = [["update", "without guards, ms", "with guards, ms", "ratio"]]
    for name, learner in {"SAC": cases.sac(), "DQN, Nature": cases.dqn()}.items():
        updates = {"without": _update(Unguarded, learner), "with": _update(Engine, learner)}
        found = interleaved(updates, 30 * blocks, seconds / 30)
        without, guarded = 1_000 * found["without"].low, 1_000 * found["with"].low
        rows.append([name, f"{without:.3f}", f"{guarded:.3f}", f"{guarded / without:.3f}"])
    return rows


def _update(kind: type[Engine], learner: DQN | SAC) -> Callable[[], object]:
    made = kind(learner, [0], learner.settings.batch_size)
    batch, clock, watch = cases.batch_for(learner, 1), Clock(steps=10**9), Watch(made)

    def update() -> object:
        info = made.update(batch, clock)
        clock.update()
        return watch.look(batch, clock.updates, 0) if kind is Engine else info

    return update
