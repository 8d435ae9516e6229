"""Warm start: first a part of the data, perhaps with wrong labels, then all of it with the right ones.

A cold start is the same stream with a reset of everything at the change: interventions=[reset] with where=[all],
when.unit=tasks.

Source: Ash & Adams 2020 (half of the data, then all: verified in their code); Lee et al. 2024, "Slow and Steady" (10 %
with half of the labels wrong, equal updates per stage: verified in their code; a wrong label is always of another
class). How long the first stage may be before it costs (`first`) is asked by Shin et al. 2024, DASH. Score: accuracy on
the test images.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Stage, relabelled


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/warm_start."""

    share: float = option(0.5, above=0, high=1, help="data of the first stage")
    noise: float = option(0.0, low=0, high=1, help="labels of the first stage that are wrong")
    first: float = option(1.0, above=0, high=1, help="share of env.stage after which the first stage is over")

    def length(self, index: int) -> int:
        return max(1, round(self.first * self.stage)) if index == 0 else self.stage

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        count = max(1, round(self.share * len(labels)))
        arrived = (count, len(labels) - count) if index and count < len(labels) else (count,)
        if index == 0:
            inputs, labels = inputs[:count], labels[:count]
            labels = relabelled(labels, self.noise, self.classes, host_generator(seed, "testbed/noise"))
        return Stage(inputs, labels, self.found.test, self.found.test_labels, arrived)
