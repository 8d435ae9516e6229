"""Shifted labels: in every stage each class moves on by one, y <- (y + stage) mod classes.

Source: Lee et al. 2023, PLASTIC (label plasticity on CIFAR-10, 100 stages of 500 updates: verified in their code).
Score: online accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.options import option
from testbeds.streams.stage import OfImages, Score, Stage


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/shifted_labels."""

    score: Score = option("online", help="what is reported: mean accuracy while learning, or on which data at the end")

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        moved, test = ((y + index) % self.classes for y in (labels, self.found.test_labels))
        return Stage(inputs, moved, self.found.test, test)
