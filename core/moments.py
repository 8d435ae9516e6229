"""Mean and variance of all vectors seen so far, member by member, one at a time (Welford 1962).

A vector counts once its step has been taken, or the environment has failed in it; in SimBa's code (Lee et al. 2025)
already when the step is decided on. Networks learn of the moments with the next update, so a decision is standardised
by those of the step before, and the first one not at all; SimBa's by those of its own step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Moments:
    """Of n streams of vectors [d]; variance 1 until there are two."""

    def __init__(self, members: int, dim: int) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros((members, dim)), np.zeros((members, dim))  # sums of squared deviations

    def add(self, seen: np.ndarray) -> None:
        """One vector of each member. [n, d]"""
        self.count += 1
        off = seen - self.mean
        self.mean += off / self.count
        self.squares += off * (seen - self.mean)

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """-> obs_mean, obs_var [n, d] float32, the variance as of a population."""
        var = self.squares / self.count if self.count > 1 else np.ones_like(self.squares)
        values = {"obs_mean": self.mean, "obs_var": var}
        return {k: torch.from_numpy(v.astype(np.float32)).to(device, non_blocking=True) for k, v in values.items()}

    def tobytes(self) -> bytes:
        return self.count.to_bytes(8, "little") + self.mean.tobytes() + self.squares.tobytes()

    def state_dict(self) -> dict:
        return {"count": self.count, "mean": torch.from_numpy(self.mean), "squares": torch.from_numpy(self.squares)}

    def load_state_dict(self, saved: dict) -> None:
        self.count = saved["count"]
        self.mean[:], self.squares[:] = saved["mean"], saved["squares"]
