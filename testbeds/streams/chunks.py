"""Chunks: the data arrive in equal parts; a stage holds all that have come, or the newest alone.

Source: Shin et al. 2024, DASH (50 chunks, all kept, each stage until 99.9 % are right, updates counted: verified in
their code), Lee et al. 2024 (10 chunks, fewer and fewer wrong labels; here noise falls linearly to 0), PLASTIC's input
plasticity.
Score: accuracy on the test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Stage, relabelled


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/chunks."""

    chunks: int = option(10, low=1, help="equal parts of the training data")
    keep: Literal["all", "last"] = option("all", help="what a stage holds: all parts so far, or the newest")
    noise: float = option(0.0, low=0, high=1, help="wrong labels in the first stage; none in the last")

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        if self.chunks > len(labels):
            raise ValueError(f"env.chunks: {self.chunks} given; there are {len(labels)} images")
        index = min(index, self.chunks - 1)
        bounds = [len(labels) * i // self.chunks for i in range(0 if self.keep == "all" else index, index + 2)]
        mine = slice(bounds[0], bounds[-1])
        arrived = tuple(end - start for start, end in pairwise(bounds))
        share = self.noise * (1 - index / max(1, self.chunks - 1))
        wrong = relabelled(labels[mine], share, self.classes, host_generator(seed, "testbed/noise", index))
        return Stage(inputs[mine], wrong, self.found.test, self.found.test_labels, arrived)
