"""Where the replay keeps what happened: for each of n members a ring of slots, each written once and never changed.

A *slot* is one observation with the action chosen on it and what followed. An episode of T steps takes T + 1 slots: the
last, *closing*, slot holds only the observation the episode ended in, so that a truncated window can bootstrap from it.
A lost life is a terminal step without a closing slot. Slots carry absolute numbers that grow for ever, also across
`clear`; slot s of a member lies at position s modulo capacity. Members end their episodes at different times, so each
has its own count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.spec import EnvSpec

STEP, TERMINAL, CLOSING = 0, 1, 2  # kinds of slots


class Ring:
    """Slots of n members: observations on `device`, the rest on the host. Arrays are flat, [n * capacity, ...]."""

    def __init__(self, spec: EnvSpec, members: int, capacity: int, device: str = "cpu") -> None:
        self.members, self.capacity = members, capacity
        self.stack = spec.stack if spec.is_image else 1
        self.repeat_first = spec.repeat_first
        rows = members * capacity
        shape = (rows + 1, math.prod(spec.obs_shape))  # the last row stays zero: the frame before the first
        # untouched pages cost nothing
        self.obs = torch.empty(shape, dtype=getattr(torch, spec.obs_dtype), device=device)
        self.obs[rows] = 0
        action_dtype = np.min_scalar_type(spec.num_actions - 1) if spec.is_discrete else np.float32
        self.action = np.zeros((rows, *spec.action_shape), action_dtype)
        self.reward = np.zeros(rows, np.float32)
        self.kind = np.zeros(rows, np.uint8)
        self.age = np.zeros(rows, np.uint8)  # steps since the episode's or life's first slot, at most stack - 1
        self.count = np.zeros(members, np.int64)  # slots written so far
        self.first = np.zeros(members, np.int64)  # slots before it were cleared

    @property
    def oldest(self) -> np.ndarray:
        """The first slot that each member still holds. [n]"""
        return np.maximum(self.first, self.count - self.capacity)

    @property
    def nbytes(self) -> int:
        arrays = (self.action, self.reward, self.kind, self.age)
        return self.obs.nbytes + sum(array.nbytes for array in arrays)

    def rows(self, member: np.ndarray | int, slot: np.ndarray) -> np.ndarray:
        """Where slots lie in the flat arrays."""
        return slot % self.capacity + member * self.capacity

    def append(self, member: np.ndarray, obs: np.ndarray, action, reward, kind) -> np.ndarray:
        """Write one slot for each of the given members (each at most once). -> their numbers."""
        slot = self.count[member]
        row, before = self.rows(member, slot), self.rows(member, slot - 1)
        begins = (slot == self.first[member]) | (self.kind[before] != STEP)
        self.age[row] = np.where(begins, 0, np.minimum(self.age[before] + 1, self.stack - 1))
        self.action[row], self.reward[row], self.kind[row] = action, reward, kind
        self._put(row, np.asarray(obs))
        self.count[member] += 1
        return slot

    def unfinished(self) -> np.ndarray:
        """Members whose last slot is a step into the unknown: its episode goes on."""
        last = self.rows(np.arange(self.members), self.count - 1)
        return np.flatnonzero((self.count > self.first) & (self.kind[last] == STEP))

    def clear(self) -> None:
        self.first = self.count.copy()

    def stacks(self, member: np.ndarray, slot: np.ndarray) -> Tensor:
        """What the agent saw at these slots; before the first frame of an episode or life stands what the spec says.

        member, slot: broadcastable. -> [*slot.shape, stack, values of one observation] on the device
        """
        rows = self.rows(member, slot)[..., None]
        if self.stack > 1:
            back = np.arange(self.stack - 1, -1, -1)
            age = self.age[rows]
            earlier = self.rows(member[..., None], slot[..., None] - np.minimum(back, age))
            rows = earlier if self.repeat_first else np.where(back <= age, earlier, len(self.obs) - 1)
        frames = torch.index_select(self.obs, 0, torch.from_numpy(rows.ravel()).to(self.obs.device, non_blocking=True))
        return frames.view(*rows.shape, -1)

    def read(self, member: int, first: int, last: int) -> dict[str, np.ndarray]:
        """The contents of slots first to last, by field, in a fixed order; [slots, ...]."""
        rows = self.rows(member, np.arange(first, last + 1))
        obs = torch.index_select(self.obs, 0, torch.from_numpy(rows).to(self.obs.device)).cpu().numpy()
        return {"obs": obs} | {name: getattr(self, name)[rows] for name in ("action", "reward", "kind", "age")}

    def pieces(self, member: int, size: int) -> Iterator[tuple[int, int]]:
        """First and last slots of what a member holds, cut at the multiples of `size`."""
        first, count = int(self.oldest[member]), int(self.count[member])
        while first < count:
            last = min((first // size + 1) * size, count) - 1
            yield first, last
            first = last + 1

    def restore(self, member: int, first: int, fields: dict[str, np.ndarray]) -> None:
        """Put back what `read` returned, as far as the ring still holds it; `count` must be set before."""
        skip = max(0, int(self.oldest[member]) - first)
        fields = {name: values[skip:] for name, values in fields.items()}
        if not len(fields["kind"]):
            return
        rows = self.rows(member, first + skip + np.arange(len(fields["kind"])))
        self._put(rows, fields.pop("obs"))
        for name, values in fields.items():
            getattr(self, name)[rows] = values

    def _put(self, rows: np.ndarray, obs: np.ndarray) -> None:
        dtype, device = self.obs.dtype, self.obs.device
        new = torch.from_numpy(obs.reshape(len(rows), -1).copy()).to(device, dtype)
        self.obs.index_copy_(0, torch.from_numpy(rows).to(device), new)
