"""What it costs that every update is judged, and that a seed with a number that is not finite is frozen in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from types import FunctionType

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from agents import DQN, SAC
from benchmarks import cases
from benchmarks.timing import WARM_UP, settle
from core import engine
from core.clock import Clock
from core.engine import Engine
from core.faults import Watch
from core.randomness import draw
from core.state import Batch, States, Tensors

BIRTHS = 15  # pairs of engines: where their numbers lie in memory is worth two per cent either way


def _judged_sound(tensors: Tensors, lead: int = 0) -> Tensor:
    return next(iter(tensors.values())).new_ones((), dtype=torch.bool)


class Unguarded(Engine):
    """The same update without verdicts; the fused kernel of convolutional agents takes one in any case."""

    def _batched(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        new, info = vmap(self.learner.update)(states, batch, draw(self.noise, self._keys, count))
        engine._write_trained(states, new)
        return info

    _by_member = FunctionType(Engine._by_member.__code__, vars(engine) | {"_finite": _judged_sound})  # type: ignore[assignment]


def guards(blocks: int, seconds: float) -> list[list[str]]:
    """Compiled updates of one seed with verdicts and without, call by call in random order: medians, and the median
    ratio of neighbours; of several pairs of engines the middle one, and the least and the greatest. DQN has the
    optimizer's own verdict on both sides."""
    rows = [["update", "without guards, ms", "with guards, ms", "ratio"]]
    for name, learner in {"SAC": cases.sac(), "DQN, Nature": cases.dqn()}.items():
        pairs = [_pair(learner, blocks * seconds) for _ in range(BIRTHS)]
        without, guarded, ratio = (statistics.median(found) for found in zip(*pairs, strict=True))
        ratios = [ratio for _, _, ratio in pairs]
        spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        rows.append([name, f"{1_000 * without:.3f}", f"{1_000 * guarded:.3f}", spread])
    return rows


def _pair(learner: DQN | SAC, seconds: float) -> tuple[float, float, float]:
    """-> seconds without, with, and the ratio, of two new engines that are called for so long."""
    updates = [_update(kind, learner) for kind in (Unguarded, Engine)]
    took: list[list[float]] = [[], []]
    for update in updates * WARM_UP:
        update()
    order, end = np.random.default_rng(0), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for which in order.permutation(2):
            settle()
            began = time.perf_counter()
            updates[which]()
            settle()
            took[which].append(time.perf_counter() - began)
    without, guarded = (np.array(times) for times in took)
    return float(np.median(without)), float(np.median(guarded)), float(np.median(guarded / without))


def _update(kind: type[Engine], learner: DQN | SAC) -> Callable[[], object]:
    made = kind(learner, [0], learner.settings.batch_size)
    batch, clock, watch = cases.batch_for(learner, 1), Clock(steps=10**9), Watch(made)

    def update() -> object:
        info = made.update(batch, clock)
        clock.update()
        return watch.look(batch, clock.updates, 0) if kind is Engine else info

    return update
