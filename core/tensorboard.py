"""The records as TensorBoard shows them: one curve per seed and one for all. Losing these files loses nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.event_file import EventFile
from core.randomness import host_generator
from core.statistics import bootstrap_interval, iqm
from core.storage import Storage


class Board:
    """One folder per seed with equal tags, so that seeds overlay, and one folder `aggregate`."""

    def __init__(
        self,
        folder: Path,
        seeds: Sequence[int],
        tasks: Sequence[str] = (),
        purge_step: int | None = None,
        spacing: float = 0,
        storage: Storage | None = None,
    ) -> None:
        """`purge_step`: what an earlier process drew from this step on is hidden. `tasks` get a chart with a band.

        spacing: env steps between points of a curve, at least; the records keep every number.
        """
        from torch.utils.tensorboard.summary import custom_scalars  # slow to import

        names = [*(f"seed_{seed}" for seed in seeds), "aggregate"]
        storage = storage or Storage()
        *self._seeds, self._aggregate = (EventFile(folder / name, storage, purge_step) for name in names)
        self._spacing, self._drawn = spacing, dict[str, float]()
        charts = {task: ["Margin", [f"evaluation/{task}/{name}" for name in ("iqm", "low", "high")]] for task in tasks}
        if charts:
            self._aggregate.add(custom_scalars({"IQM over seeds, 95% interval": charts}))

    def scalars(self, row: Mapping[str, Sequence[float]], step: int) -> None:
        """One value per seed of each tag, nan for a seed that has none; the mean of those that have one goes to
        `aggregate`."""
        row = {tag: values for tag, values in row.items() if self._is_due(tag, step)}
        for writer, values in zip(self._seeds, zip(*row.values(), strict=True), strict=bool(row)):
            mine = {tag: value for tag, value in zip(row, values, strict=True) if not math.isnan(value)}
            if mine:
                writer.numbers(mine, step)
        there = {tag: [value for value in values if not math.isnan(value)] for tag, values in row.items()}
        means = {tag: float(np.mean(values)) for tag, values in there.items() if values}
        if means:
            self._aggregate.numbers(means, step)

    def image(self, tag: str, matrices: Tensor, step: int) -> None:
        """One matrix per seed, entries between -1 (blue) over 0 (white) to 1 (red). [seeds, height, width]."""
        from torch.utils.tensorboard.summary import image

        for writer, matrix in zip(self._seeds, matrices.clamp(-1, 1), strict=True):
            if matrix.isnan().any():  # its network overflows
                continue
            colours = torch.stack([1 + matrix.clamp(max=0), 1 - matrix.abs(), 1 - matrix.clamp(min=0)])
            writer.add(image(tag, colours.repeat_interleave(4, 1).repeat_interleave(4, 2), dataformats="CHW"), step)

    def evaluation(self, task: str, returns: Sequence[float], step: int) -> None:
        """Mean return of each seed's episodes; `aggregate` gets their IQM with its 95% bootstrap interval."""
        if not self._is_due(f"evaluation/{task}", step):
            return
        self.scalars({f"evaluation/{task}/return": returns}, step)
        low, high = bootstrap_interval(np.array(returns), iqm, host_generator(0, "bootstrap", step))
        band = {"iqm": float(iqm(np.array(returns))), "low": low, "high": high}
        self._aggregate.numbers({f"evaluation/{task}/{name}": value for name, value in band.items()}, step)

    def close(self) -> None:
        for writer in (*self._seeds, self._aggregate):
            writer.close()

    def _is_due(self, tag: str, step: int) -> bool:
        if step < self._drawn.get(tag, -math.inf) + self._spacing:
            return False
        self._drawn[tag] = step
        return True
