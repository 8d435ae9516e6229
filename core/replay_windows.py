"""Which windows of the replay a draw takes: a function of (seed, stream, draw) and of what is held, of nothing else.

A window is a start, an absolute slot number, and how many steps it has. Several draws may be made at once: each takes
what it would take alone, and together they cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.priorities import Priorities
from core.randomness import host_generator
from core.replay_ring import CLOSING, TERMINAL, Ring

TRIES = 32  # redraws before every slot is looked at; a healthy ring needs one or none


class Windows:
    """Those that may be sampled. Each of n members makes k draws of B windows; arrays are flat, [n * k * B]."""

    def __init__(self, ring: Ring, seeds: Sequence[int], priorities: Priorities | None) -> None:
        self.ring, self.seeds, self.priorities = ring, tuple(seeds), priorities

    def draw(
        self, stream: str, draws: Sequence[int], batch_size: int, n_step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> members, starts and steps. Raises ValueError if a member has nothing to sample."""
        generators = [host_generator(seed, stream, number) for seed in self.seeds for number in draws]
        group = np.arange(len(generators)).repeat(batch_size)  # which generator
        member = group // len(draws)
        fraction = np.stack([g.random(batch_size) for g in generators])
        if self.priorities:  # stratified: one from each of B equal shares of the mass
            fraction = (np.arange(batch_size) + fraction) / batch_size
        start = self._pick(member, fraction.ravel())
        steps, valid = self._steps(member, start, n_step)
        for _ in range(TRIES):
            bad = np.flatnonzero(~valid)
            if not bad.size:
                return member, start, steps
            counts = np.bincount(group[bad], minlength=len(generators))
            again = np.concatenate([g.random(count) for g, count in zip(generators, counts, strict=True)])
            start[bad] = self._pick(member[bad], again)
            steps[bad], valid[bad] = self._steps(member[bad], start[bad], n_step[bad])
        for i in np.flatnonzero(~valid):
            start[i], steps[i] = self._search(member[i], n_step[i], generators[group[i]].random())
        return member, start, steps

    def _pick(self, member: np.ndarray, fraction: np.ndarray) -> np.ndarray:
        """The slots at these fractions of what the members hold, or of their priorities. member ascends."""
        ring = self.ring
        if not self.priorities:
            oldest = ring.oldest[member]
            return oldest + (fraction * (ring.count[member] - oldest)).astype(np.int64)
        parts = np.split(fraction, np.searchsorted(member, np.arange(1, len(self.seeds))))
        position = np.concatenate([self.priorities.pick(m, part) for m, part in enumerate(parts)])
        newest = ring.count[member] - 1
        return newest - (newest - position) % ring.capacity

    def _steps(self, member: np.ndarray, start: np.ndarray, n_step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many steps each window has, and whether it may be sampled."""
        ring = self.ring
        rows = ring.rows(member[:, None], start[:, None] + np.arange(n_step.max(initial=1) + 1))
        kind = ring.kind[rows]
        stops = (kind[:, :-1] == TERMINAL) | (kind[:, 1:] == CLOSING)
        stops |= np.arange(1, rows.shape[1]) >= n_step[:, None]
        steps = stops.argmax(1) + 1
        whole = (start - ring.age[rows[:, 0]] >= ring.oldest[member]) & (start + steps < ring.count[member])
        return steps, whole & (kind[:, 0] != CLOSING)

    def _search(self, member: int, n_step: int, fraction: float) -> tuple[int, int]:
        """The start at this fraction of all valid ones: the same distribution as redrawing, without end."""
        slot = np.arange(self.ring.oldest[member], self.ring.count[member])
        steps, valid = self._steps(np.full_like(slot, member), slot, np.full_like(slot, n_step))
        if not valid.any():
            raise ValueError(
                f"replay: seed {self.seeds[member]} holds {len(slot)} slots and no complete window of {n_step} steps; "
                f"raise warmup (or the replay's capacity)"
            )
        slot, steps = slot[valid], steps[valid]
        mass = self.priorities.get(member, slot % self.ring.capacity) if self.priorities else np.ones(len(slot))
        total = mass.cumsum(dtype=np.float64)
        i = min(total.searchsorted(fraction * total[-1], side="right"), len(slot) - 1)
        return slot[i], steps[i]
