"""Random labels: every stage draws a share of the labels anew; nothing can be learned but by heart.

Source: Zhang et al. 2017; Lyle et al. 2023, 2024 (share epsilon of the labels, CIFAR-10; secondary), Kumar et al. 2023
(1,200 images, all labels, 400 epochs of batches of 16: verified in their code). The labels that are not drawn anew stay
those of the stage before. Score: accuracy on the training images at the end of the stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Score, Stage


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/random_labels."""

    share: float = option(1.0, above=0, high=1, help="epsilon: labels drawn anew in every stage")
    score: Score = option("train", help="what is reported: mean accuracy while learning, or on which data at the end")

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        for stage in range(index + 1) if self.share < 1 else [index]:
            generator = host_generator(seed, "testbed/labels", stage)
            again = generator.permutation(len(labels))[: round(self.share * len(labels))]
            labels = labels.copy()
            labels[again] = generator.integers(0, self.classes, len(again))
        return Stage(inputs, labels.astype(np.int64), self.found.test, self.found.test_labels)
