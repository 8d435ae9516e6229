"""Priorities of slots, sampled in proportion, without a Python loop.

Prioritised experience replay (Schaul et al. 2016) as Dopamine and BBF have it. One convention: a *priority* is what
sampling is proportional to, `(|error| + 1e-10) ** alpha`. Whoever trains hands over the bare error (of a cross-entropy
loss, the cross-entropy itself). The exponent is applied once, when the priority is stored, and never again: with
`alpha = 0.5` on a loss this is their "priority = sqrt(loss)". New slots get the largest priority ever stored, at least
1. Importance weights are `priority ** -beta`, divided by the largest of the batch.

The sums are a two-level tree: leaves, and sums of blocks of leaves which are always recomputed from the leaves. So
nothing drifts, and the whole structure is a function of the leaves.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64
SMALLEST_ERROR = 1e-10


class Priorities:
    """Priorities of `capacity` positions for n members; 0 means never to be sampled."""

    def __init__(self, members: int, capacity: int, alpha: float, beta: float, beta_final: float | None = None) -> None:
        self.alpha, self.beta, self.beta_final = alpha, beta, beta if beta_final is None else beta_final
        self._blocks = -(-capacity // BLOCK)
        self._leaves = np.zeros((members * self._blocks, BLOCK), np.float32)
        self._sums = np.zeros((members, self._blocks), np.float64)
        self.largest = np.ones(members, np.float64)  # ever stored

    @property
    def nbytes(self) -> int:
        return self._leaves.nbytes + self._sums.nbytes

    def get(self, member: np.ndarray | int, position: np.ndarray) -> np.ndarray:
        """Priorities, float32, of the shape of `position`."""
        return self._leaves.reshape(-1)[member * (self._blocks * BLOCK) + position]

    def set(self, member: np.ndarray | int, position: np.ndarray, priority: np.ndarray | float) -> None:
        """Store priorities as they are. Of equal positions the last one counts."""
        leaf = member * (self._blocks * BLOCK) + position
        self._leaves.reshape(-1)[leaf] = priority
        block = np.unique(leaf // BLOCK)
        self._sums.reshape(-1)[block] = self._leaves[block].cumsum(1, dtype=np.float64)[:, -1]

    def learn(self, member: np.ndarray, position: np.ndarray, error: np.ndarray) -> None:
        """Store what errors make of priorities. One that is not finite (of a diverged member) changes nothing."""
        known = np.isfinite(error)
        member, position = member[known], position[known]
        priority = (np.abs(error[known].astype(np.float64)) + SMALLEST_ERROR) ** self.alpha
        self.set(member, position, priority)
        np.maximum.at(self.largest, member, priority.astype(np.float32))

    def pick(self, member: int, fraction: np.ndarray) -> np.ndarray:
        """The positions at these fractions, in [0, 1), of a member's total. [k] -> [k]"""
        totals = self._sums[member].cumsum()
        target = fraction * totals[-1]
        block = np.minimum(totals.searchsorted(target, side="right"), self._blocks - 1)
        inside = target - np.where(block > 0, totals[block - 1], 0.0)
        leaves = self._leaves[member * self._blocks + block].cumsum(1, dtype=np.float64)
        return block * BLOCK + np.minimum((leaves <= inside[:, None]).sum(1), BLOCK - 1)

    def weights(self, priority: np.ndarray, progress: float = 0.0) -> np.ndarray:
        """Importance weights, at most 1. [n, B], share of the run that is over -> [n, B] float64"""
        beta = self.beta + progress * (self.beta_final - self.beta)
        weight = priority.astype(np.float64) ** -beta
        return weight / weight.max(1, keepdims=True)

    def clear(self) -> None:
        """Forget every priority; the largest ever stored stays."""
        self._leaves[:] = 0
        self._sums[:] = 0
