"""Slowly changing regression: bits in, a fixed network of threshold units to be imitated; some bits change from stage
to stage, the others with every example.

    y = sum_i v_i [w_i . x + b_i > tau_i],   w, b, v of -1 and +1,   tau_i = beta (m + 1) - (m - sum_j w_ij + b_i) / 2

Source: Dohare et al. 2024 (m = 20 bits of which 15 are slow, 100 units, beta 0.7, a learner of five hidden units, one
example at a time, stages of 10,000: verified in their code). Their default draws all slow bits anew; `flip=one` turns a
single one round, as the paper says. Each example is seen once with agent.batch_size=1 and env.stage=env.examples, as
published; the defaults, 500 batches of 128, go over them six times. Score: minus the squared error, online.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.options import option
from core.randomness import host_generator
from testbeds.streams.stage import Score, Stage, Stream

BITS, SLOW, UNITS, BETA = 20, 15, 100, 0.7
TESTED = 1_000  # examples


@dataclass(frozen=True)
class Settings(Stream):
    """Settings of env=testbed/slow_regression."""

    flip: Literal["all", "one"] = option("all", help="slow bits at a change: all drawn anew, or one turned round")
    examples: int = option(10_000, low=1, help="examples of a stage, seen in turn")
    score: Score = option("online", help="what is reported: mean error while learning, or on which data at the end")

    def at(self, seed: int, index: int) -> Stage:
        slow, generator = self.slow(seed, index), host_generator(seed, "testbed/bits", index)
        bits = generator.integers(0, 2, (self.examples + TESTED, BITS)).astype(np.float32)
        bits[:, :SLOW] = slow
        targets = imitated(seed, bits)
        return Stage(bits[: self.examples], targets[: self.examples], bits[self.examples :], targets[self.examples :])

    def slow(self, seed: int, index: int) -> np.ndarray:
        """The slow bits of a stage. [SLOW]"""
        if self.flip == "all":
            return host_generator(seed, "testbed/slow", index).integers(0, 2, SLOW).astype(np.float32)
        bits = host_generator(seed, "testbed/slow", 0).integers(0, 2, SLOW).astype(np.float32)
        for stage in range(1, index + 1):
            turned = host_generator(seed, "testbed/turned", stage).integers(SLOW)
            bits[turned] = 1 - bits[turned]
        return bits


def imitated(seed: int, bits: np.ndarray) -> np.ndarray:
    """What this seed's network of threshold units says. [N, BITS] -> [N] float32"""
    generator = host_generator(seed, "testbed/units")
    w, b, v = (generator.choice([-1.0, 1.0], shape) for shape in ((UNITS, BITS), UNITS, UNITS))
    tau = BETA * (BITS + 1) - (BITS - w.sum(1) + b) / 2
    return ((bits @ w.T + b > tau) @ v).astype(np.float32)
