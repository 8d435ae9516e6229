"""Large target means: regression on c + f(image), c growing from stage to stage and f a fixed random network's output.

    f(x) = standardised sin(frequency * w2 . relu(W1 x)), drawn anew in every stage

The mean of a value function grows like 1 / (1 - gamma) while its differences stay small; a network that regresses on it
spends its features on the mean (Lyle et al. 2024, "Disentangling the causes of plasticity loss", section 5: secondary;
sizes here are our choice). Score: minus the squared error on the training images at the end of the stage, as a share of
the variance that can be explained (0: all is explained, -1: nothing).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Score, Stage

HIDDEN = 128


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/large_means."""

    offsets: tuple[float, ...] = option((0.0, 10.0, 100.0), help="c of each stage; the last one stays")
    frequency: float = option(1.0, above=0, help="how fast targets vary with the image")
    score: Score = option("train", help="what is reported: mean error while learning, or on which data at the end")

    classes = 0

    def __post_init__(self) -> None:
        if not self.offsets:
            raise ValueError("offsets: none given; expected one for each stage, as in offsets=[0,10,100]")

    def at(self, seed: int, index: int) -> Stage:
        inputs, _ = self.training(seed)
        generator = host_generator(seed, "testbed/function", index)
        pixels = inputs[0].size
        first = generator.standard_normal((pixels, HIDDEN)) / np.sqrt(pixels)
        second = generator.standard_normal(HIDDEN) / np.sqrt(HIDDEN)

        def f(images: np.ndarray) -> np.ndarray:
            hidden = np.maximum(images.reshape(len(images), -1) / 255.0 @ first, 0)
            return np.sin(self.frequency * 2 * np.pi * (hidden @ second))

        y, test = f(inputs), f(self.found.test)
        c = self.offsets[min(index, len(self.offsets) - 1)]
        standard = [(c + (part - y.mean()) / y.std()).astype(np.float32) for part in (y, test)]
        return Stage(inputs, standard[0], self.found.test, standard[1])
