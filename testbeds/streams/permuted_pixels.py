"""Permuted pixels: every stage shows the same images, their pixels in another order. Stage 0 permutes too.

Source: Goodfellow et al. 2013; Dohare et al. 2024 (online accuracy, 60,000 examples a stage, batches of one), Kumar et
al. 2023 (10,000 images, batches of 16, 625 updates a stage): verified in their code. Score: online accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Score, Stage


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/permuted_pixels."""

    score: Score = option("online", help="what is reported: mean accuracy while learning, or on which data at the end")

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        shape = inputs.shape[1:]
        order = host_generator(seed, "testbed/pixels", index).permutation(inputs[0].size)

        def permuted(images):
            return images.reshape(len(images), -1)[:, order].reshape(-1, *shape)

        return Stage(permuted(inputs), labels, permuted(self.found.test), self.found.test_labels)
