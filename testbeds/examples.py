"""The data of one stage and one seed, on the device, and how batches are taken from it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from core.randomness import host_generator
from core.state import Batch
from testbeds.streams.stage import Stage

PIECE = 1_024  # examples that are measured at once


class Examples:
    """Bytes become numbers in [0, 1]; with `flat` an image is one vector of pixels."""

    def __init__(self, stage: Stage, seed: int, name: str, flat: bool, device: str) -> None:
        self._seed, self._name, self._flat = seed, name, flat
        self._inputs, self._targets, self._test_inputs, self._test_targets = (
            torch.from_numpy(np.array(part)).to(device) for part in stage[:4]
        )
        self._ends = list(accumulate(stage.arrived, initial=0))  # of the chunks that have come
        self._order = (-1, np.array([], np.int64))  # of the epoch with this number

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def seen(self) -> tuple[int, ...]:
        """Shape of one input as the learner sees it."""
        return tuple(self._seen(self._inputs[:1]).shape[1:])

    def per_epoch(self, size: int) -> int:
        """Batches of an epoch; what is left over comes first in another epoch's order."""
        return max(1, len(self) // size)

    def in_turn(self, update: int, size: int) -> np.ndarray:
        """Rows of the batch of this update, counted from the stage's start: epochs without replacement. [size]"""
        epoch, batch = divmod(update, self.per_epoch(size))
        if self._order[0] != epoch:
            order = host_generator(self._seed, f"testbed/order/{self._name}", epoch).permutation(len(self))
            self._order = (epoch, order)
        return np.resize(self._order[1], max(size, len(self)))[batch * size : (batch + 1) * size]

    def anywhere(self, stream: str, count: int, size: int) -> np.ndarray:
        """Rows drawn uniformly. [size]"""
        return host_generator(self._seed, stream, count).integers(len(self), size=size)

    @property
    def chunks(self) -> int:
        """In how many parts these examples have come; 0 if they come otherwise."""
        return len(self._ends) - 1

    def chunk(self, number: int) -> np.ndarray:
        """Rows of the chunk that came as this one, counted from zero."""
        return np.arange(self._ends[number], self._ends[number + 1])

    def batch(self, rows: np.ndarray) -> Batch:
        """obs [B, ...], and label or target [B]."""
        index = torch.from_numpy(rows).to(self._targets.device, non_blocking=True)
        return self._batch(self._inputs[index], self._targets[index])

    def train(self, most: int) -> Iterator[Batch]:
        """The training data, or about so many of them from first to last, piece by piece."""
        step = -(-len(self) // most)
        return self._pieces(self._inputs[::step], self._targets[::step])

    def test(self) -> Iterator[Batch]:
        return self._pieces(self._test_inputs, self._test_targets)

    def _pieces(self, inputs: Tensor, targets: Tensor) -> Iterator[Batch]:
        for start in range(0, len(targets), PIECE):
            yield self._batch(inputs[start : start + PIECE], targets[start : start + PIECE])

    def _batch(self, inputs: Tensor, targets: Tensor) -> Batch:
        return {"obs": self._seen(inputs), "target" if targets.is_floating_point() else "label": targets}

    def _seen(self, inputs: Tensor) -> Tensor:
        if not self._flat:
            return inputs
        return inputs.flatten(1).float() / 255 if inputs.dtype == torch.uint8 else inputs
