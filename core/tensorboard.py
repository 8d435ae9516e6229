"""The records as TensorBoard shows them: one curve per seed and one for all. Losing these files loses nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.randomness import host_generator
from core.statistics import bootstrap_interval, iqm


class Board:
    """One folder per seed with equal tags, so that seeds overlay, and one folder `aggregate`."""

    def __init__(
        self, folder: Path, seeds: Sequence[int], tasks: Sequence[str] = (), purge_step: int | None = None
    ) -> None:
        """`purge_step`: what an earlier process drew from this step on is hidden. `tasks` get a chart with a band."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        names = [*(f"seed_{seed}" for seed in seeds), "aggregate"]
        *self._seeds, self._aggregate = (SummaryWriter(folder / name, purge_step=purge_step) for name in names)
        charts = {task: ["Margin", [f"evaluation/{task}/{name}" for name in ("iqm", "low", "high")]] for task in tasks}
        if charts:
            self._aggregate.add_custom_scalars({"IQM over seeds, 95% interval": charts})

    def scalar(self, tag: str, values: Sequence[float], step: int) -> None:
        """One value per seed, nan for a seed that has none; the mean of those that have one goes to `aggregate`."""
        drawn = [(writer, value) for writer, value in zip(self._seeds, values, strict=True) if not math.isnan(value)]
        for writer, value in drawn:
            writer.add_scalar(tag, value, step)
        if drawn:
            self._aggregate.add_scalar(tag, float(np.mean([value for _, value in drawn])), step)

    def image(self, tag: str, matrices: Tensor, step: int) -> None:
        """One matrix per seed, entries between -1 (blue) over 0 (white) to 1 (red). [seeds, height, width]."""
        for writer, matrix in zip(self._seeds, matrices.clamp(-1, 1), strict=True):
            if matrix.isnan().any():  # its network overflows
                continue
            colours = torch.stack([1 + matrix.clamp(max=0), 1 - matrix.abs(), 1 - matrix.clamp(min=0)])
            writer.add_image(tag, colours.repeat_interleave(4, 1).repeat_interleave(4, 2), step)

    def evaluation(self, task: str, returns: Sequence[float], step: int) -> None:
        """Mean return of each seed's episodes; `aggregate` gets their IQM with its 95% bootstrap interval."""
        self.scalar(f"evaluation/{task}/return", returns, step)
        low, high = bootstrap_interval(np.array(returns), iqm, host_generator(0, "bootstrap", step))
        for name, value in (("iqm", float(iqm(np.array(returns)))), ("low", low), ("high", high)):
            self._aggregate.add_scalar(f"evaluation/{task}/{name}", value, step)

    def flush(self) -> None:
        for writer in (*self._seeds, self._aggregate):
            writer.flush()

    def close(self) -> None:
        for writer in (*self._seeds, self._aggregate):
            writer.close()
