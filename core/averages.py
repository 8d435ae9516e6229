"""What happened since the last log, per seed: means of what updates report, and the latest finished episodes."""

from __future__ import annotations

from typing import Any

import torch

from core.spec import Episode
from core.state import Tensors, shaped


class Averages:
    """Sums that stay on the device until the log asks. Part of a checkpoint, so that a resumed run logs the same
    rows."""

    def __init__(self, members: int) -> None:
        self._sums: Tensors = {}
        self._count = 0
        self._returns: list[list[float]] = [[] for _ in range(members)]
        self.latest: list[float | None] = [None] * members  # return of each member's latest training episode
        self.diverged: list[int] = []  # seeds already reported as diverged

    def add(self, metrics: Tensors) -> None:
        """Take in one update's report, leaves [n]."""
        for name in metrics:
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(metrics[name])
        torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        self._count += 1

    def add_episode(self, episode: Episode) -> None:
        self._returns[episode.member].append(float(episode.score))
        self.latest[episode.member] = float(episode.score)

    def take(self) -> dict[str, Any]:
        """Means since the last call, one number per seed, and begin anew. Waits for the device."""
        row: dict[str, Any] = {name: (total / self._count).tolist() for name, total in self._sums.items()}
        if any(self._returns):
            row["train/return"] = [sum(r) / len(r) if r else float("nan") for r in self._returns]
        self._sums, self._count = {}, 0
        self._returns = [[] for _ in self._returns]
        return row

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": dict(self._sums),
            "count": self._count,
            "returns": [list(r) for r in self._returns],
            "latest": list(self.latest),
            "diverged": list(self.diverged),
        }

    def load_state_dict(self, saved: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Raises ValueError for what are not the averages of so many members."""
        members = len(self._returns)
        self._sums = {str(name): shaped(total, [members], name).to(device) for name, total in saved["sums"].items()}
        self._count = int(saved["count"])
        self._returns = [[float(score) for score in saved["returns"][member]] for member in range(members)]
        latest = [saved["latest"][member] for member in range(members)]
        self.latest = [None if score is None else float(score) for score in latest]
        self.diverged = [int(seed) for seed in saved["diverged"]]
