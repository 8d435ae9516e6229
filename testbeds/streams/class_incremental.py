"""Class-incremental: every stage adds classes; what has come stays, and only its classes are tested.

Source: Dohare et al. 2024 (CIFAR-100, five classes at a time; verified in their code). The order of the classes is the
seed's. Score: accuracy on the test images. Where we differ: loss and predictions are over all classes of the data, also
those that have not come yet; theirs leave these out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import OfImages, Stage


@dataclass(frozen=True)
class Settings(OfImages):
    """Settings of env=testbed/class_incremental."""

    added: int = option(2, low=1, help="classes that come with every stage")

    def at(self, seed: int, index: int) -> Stage:
        inputs, labels = self.training(seed)
        order = host_generator(seed, "testbed/classes").permutation(self.classes)
        known = order[: (index + 1) * self.added]
        mine, test = (np.isin(y, known) for y in (labels, self.found.test_labels))
        return Stage(inputs[mine], labels[mine], self.found.test[test], self.found.test_labels[test])
