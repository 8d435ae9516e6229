"""An update on a GPU as one recorded graph: replaying it takes one launch instead of hundreds.

The first calls run as they are, for libraries choose their algorithms in them and the compiler compiles. Then the graph
is recorded, and from there on replayed. Batch and count are copied into places of their own before, from the first call
on, so that what was compiled for them fits when it is recorded; what the update reports is copied out afterwards,
because the next replay writes over it. Whatever the function reads beside them must
stay where it is, and it may neither wait for the host nor decide anything there (engine.py: storage never moves).
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from core.state import Batch, States, Tensors, write

Update = Callable[[States, Batch, Tensor], Tensors]
WARM_UP = 3  # calls


class Captured:
    """The function as a graph. Its states must be the same tensors in every call."""

    def __init__(self, function: Update) -> None:
        self.function = function
        self._calls = 0

    def __call__(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        given = {"batch": batch, "count": count}
        if not self._calls:
            self._given = tree_map(torch.clone, given)
        write(self._given, given)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self.function(states, self._given["batch"], self._given["count"])
        if self._calls == WARM_UP + 1:
            self._record(states)
        self._graph.replay()
        return self._copies()

    def _record(self, states: States) -> None:
        """Nothing is computed here, only written down. What is reported together is kept as one tensor."""
        self._graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # what is freed of other graphs or kernels while this one is recorded would spoil it
        try:
            with torch.cuda.graph(self._graph):
                report = self.function(states, self._given["batch"], self._given["count"])
                alike: dict[tuple, list[str]] = {}
                for name, value in report.items():
                    alike.setdefault((value.shape, value.dtype), []).append(name)
                self._report = [(names, torch.stack([report[name] for name in names])) for names in alike.values()]
        finally:
            gc.enable()

    def _copies(self) -> Tensors:
        return {name: row for names, rows in self._report for name, row in zip(names, rows.clone(), strict=True)}
