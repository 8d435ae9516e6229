"""What it costs that every update is judged, and that a seed with a number that is not finite is frozen in it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from agents import DQN, SAC
from benchmarks import cases
from benchmarks.timing import WARM_UP, settle
from core import engine
from core.clock import Clock
from core.engine import Engine
from core.faults import Watch
from core.randomness import draw
from core.state import Batch, States, Tensors, member

BIRTHS = 16  # pairs of engines, each kind born first in half: where their numbers lie in memory is worth two per cent


class Unguarded(Engine):
    """The same update without verdicts: a batch that names nobody alive is not judged."""

    def _batched(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        new, info = vmap(self.learner.update)(states, batch, draw(self.noise, self._keys, count))
        engine._write_trained(states, new)
        return info

    def _by_member(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        noise = draw(self.noise, self._keys, count)
        infos = []
        for i, mine in enumerate(self._members):
            new, info = self.learner.update(mine, member(batch, i), member(noise, i))
            engine._write_trained(mine, new)
            infos.append(info)
        return tree_map(lambda *rows: torch.stack(rows), *infos)


def guards(blocks: int, seconds: float) -> list[list[str]]:
    """Compiled updates of one seed with verdicts and without, call by call in random order: medians, and the median
    ratio of neighbours; of many pairs of engines the mean, with its standard error."""
    rows = [["update", "without guards, ms", "with guards, ms", "ratio"]]
    for name, learner in {"SAC": cases.sac(), "DQN, Nature": cases.dqn()}.items():
        pairs = [_pair(learner, blocks * seconds, birth % 2) for birth in range(BIRTHS)]
        without, guarded, ratio = (statistics.fmean(found) for found in zip(*pairs, strict=True))
        error = statistics.stdev(found for _, _, found in pairs) / math.sqrt(BIRTHS)
        rows.append([name, f"{1_000 * without:.3f}", f"{1_000 * guarded:.3f}", f"{ratio:.4f} ± {error:.4f}"])
    return rows


def _pair(learner: DQN | SAC, seconds: float, first: int) -> tuple[float, float, float]:
    """-> seconds without, with, and the ratio, of two new engines that are called for so long; one is born first."""
    kinds = (Unguarded, Engine)
    born = {kind: _update(kind, learner) for kind in (kinds[first], kinds[1 - first])}
    updates = [born[kind] for kind in kinds]
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
