"""The one replay of all agents: n members side by side, uniform or prioritised, exactly resumable.

Single frames are stored once (core/replay_ring.py); stacks, n-step returns and discounts are made when a batch is
sampled, so n and gamma may differ per sample and change over time. Which slots are sampled is a function of (seed,
stream, draw) and of the contents alone: member k of n draws what it would draw alone.

The window of k steps from slot t gives the return sum_{i<k} gamma^i r_{t+i} and bootstraps from slot t + k with
gamma^k. k is n, or less where the window is cut: at its first terminal (the discount is 0) or where the episode was
truncated (the discount is gamma^k, the next observation the one it ended in). A slot may be sampled if it is a step,
the frames of its stack are still there and its window up to slot t + k has been written. Others are redrawn.
(Differences to Dopamine and BBF: they reject windows that hold a truncation, BBF bootstraps from slot t + n - 1.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.moments import Moments
from core.priorities import Priorities
from core.replay_ring import CLOSING, STEP, TERMINAL, Ring
from core.replay_store import load_chunks, save_chunks
from core.replay_windows import Windows
from core.spec import EnvSpec
from core.state import Batch

HASHED = 1_000  # slots hashed together


class Replay:
    """What n members lived through. `capacity` is in slots per member: agent steps, and one more for each episode."""

    def __init__(
        self,
        spec: EnvSpec,
        seeds: Sequence[int],
        capacity: int,
        device: str = "cpu",
        prioritised: bool = False,
        alpha: float = 0.5,
        beta: float = 0.5,
        beta_final: float | None = None,
        standardise: bool = False,
    ) -> None:
        self.spec, self.seeds, self.device = spec, tuple(seeds), torch.device(device)
        self.ring = Ring(spec, len(self.seeds), capacity, device)
        self.priorities = Priorities(len(self.seeds), capacity, alpha, beta, beta_final) if prioritised else None
        self.moments = Moments(len(self.seeds), *spec.obs_shape) if standardise else None
        self._members = np.arange(len(self.seeds))
        self._files: list[dict] = []  # what is on disk
        self._unread: list[str] = []  # the same by name, the longest unread first
        self._digests: dict[tuple[int, int, int], bytes] = {}  # of slots first to last of a member

    def __len__(self) -> int:
        """Slots that every member holds, closing ones included."""
        return int((self.ring.count - self.ring.oldest).min())

    @property
    def nbytes(self) -> int:
        """Memory when full, host and device."""
        return self.ring.nbytes + (self.priorities.nbytes if self.priorities else 0)

    # writing

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminal: np.ndarray,
        ended: np.ndarray,
        next_obs: np.ndarray,
        failed: np.ndarray | None = None,
    ) -> None:
        """One step of every member. obs, next_obs [n, *obs_shape]; action [n, ...]; the others [n].

        obs: the single frame or vector the action was chosen on; terminal: nothing to bootstrap from (also a lost
        life); ended: the episode is over, and `next_obs` is what it ended in (read only then); failed: there was no
        step, the episode was over in `obs`.
        """
        cut = np.zeros(len(ended), bool) if failed is None else failed
        self._append(self._members, obs, action, reward, np.where(cut, CLOSING, np.where(terminal, TERMINAL, STEP)))
        if self.moments:
            self.moments.add(np.asarray(obs))
        over = np.flatnonzero(ended & ~cut)
        if over.size:
            self._close(over, next_obs)

    def truncate(self, obs: np.ndarray) -> None:
        """Close the episodes that were left unfinished (the world changes) in what they had come to. [n, *obs_shape]"""
        self._close(self.ring.unfinished(), obs)

    def clear(self) -> None:
        """Forget everything. Slot numbers go on; the next observation begins an episode."""
        self.ring.clear()
        if self.priorities:
            self.priorities.clear()

    def _append(self, member: np.ndarray, obs: np.ndarray, action, reward, kind) -> None:
        slot = self.ring.append(member, obs, action, reward, kind)
        if self.priorities:
            priority = np.where(np.equal(kind, CLOSING), 0.0, self.priorities.largest[member])
            self.priorities.set(member, slot % self.ring.capacity, priority)

    def _close(self, member: np.ndarray, obs: np.ndarray) -> None:
        if not len(member):
            return
        self._append(member, np.asarray(obs)[member], 0, 0.0, CLOSING)

    # sampling

    def sample(self, batch_size: int, draw: int, *window: Any, **options: Any) -> Batch:
        """Draw number `draw` of a stream; see `samples`."""
        return self.samples(batch_size, [draw], *window, **options)[0]

    def samples(
        self,
        batch_size: int,
        draws: Sequence[int],
        n_step: int | np.ndarray = 1,
        discount: float | np.ndarray = 0.99,
        stream: str = "replay",
        uniform: bool = False,
        progress: float = 0.0,
    ) -> list[Batch]:
        """Several draws of a stream, each what it would be alone. n_step, discount: one number, [n] or [n, B].
        uniform: despite priorities. progress: share of the run that is over.

        -> of each obs, next_obs [n, B, *seen_shape]; action [n, B, ...]; reward, discount, weight [n, B] float32;
        index [n, B] int64, absolute slot numbers; with `standardise` obs_mean, obs_var [n, d]. Raises ValueError if a
        member has nothing to sample.
        """
        ring, priorities = self.ring, None if uniform else self.priorities
        grid = (len(self.seeds), len(draws), batch_size)
        shape = grid if len(draws) > 1 else (len(self.seeds), batch_size)
        n_step, discount = _per_sample(n_step, grid, np.int64), _per_sample(discount, grid, np.float64)
        member, start, steps = Windows(ring, self.seeds, priorities).draw(stream, draws, batch_size, n_step)

        ahead, each = np.arange(steps.max()), np.arange(len(steps))
        rows = ring.rows(member[:, None], start[:, None] + ahead)
        gains = ring.reward[rows] * discount[:, None] ** ahead
        returns = gains.cumsum(1)[each, steps - 1]  # term by term: the same bits beside any neighbour
        terminal = ring.kind[rows[each, steps - 1]] == TERMINAL
        weight = np.ones(len(start))
        if priorities:
            priority = priorities.get(member, start % ring.capacity)
            weight = priorities.weights(priority.reshape(-1, batch_size), progress)

        def tensor(values: np.ndarray, dtype: str) -> Tensor:
            values = values.astype(dtype, copy=False).reshape(shape + values.shape[1:])
            return torch.from_numpy(values).to(self.device, non_blocking=True)

        found = {
            "obs": ring.stacks(member, start).view(*shape, *self.spec.seen_shape),
            "next_obs": ring.stacks(member, start + steps).view(*shape, *self.spec.seen_shape),
            "action": tensor(ring.action[rows[:, 0]], self.spec.action_dtype),
            "reward": tensor(returns, "float32"),
            "discount": tensor(np.where(terminal, 0.0, discount**steps), "float32"),
            "weight": tensor(weight.ravel(), "float32"),
            "index": tensor(start, "int64"),
        }
        moments = self.moments.tensors(self.device) if self.moments else {}
        if len(draws) == 1:
            return [found | moments]
        # copies: where a tensor begins decides the bits of a matrix product
        whole = partial(torch.clone, memory_format=torch.contiguous_format)
        return [{name: whole(value[:, i]) for name, value in found.items()} | moments for i in range(len(draws))]

    def update_priorities(self, index: Tensor, error: Tensor) -> None:
        """Remember how wrong the samples were. index, error [n, B]; the bare loss or TD error, see core/priorities.py.

        Uniform replay ignores it, and so it does slots that have been overwritten since.
        """
        if not self.priorities:
            return
        slot, member = index.cpu().numpy().ravel(), self._members.repeat(index.shape[1])
        live = slot >= self.ring.oldest[member]
        errors = error.detach().cpu().numpy().ravel()[live]
        self.priorities.learn(member[live], slot[live] % self.ring.capacity, errors)

    # persistence

    def save(self, folder: Path) -> dict:
        """Write what is new to chunks in `folder`. -> plain data for the checkpoint; "files" lists what it needs."""
        ring = self.ring
        self._files = save_chunks(ring, folder, self._files, self._unread)
        saved: dict[str, Any] = {"files": [dict(file) for file in self._files]}
        saved |= {"moments": self.moments.state_dict() if self.moments else None}
        saved |= {"count": ring.count.tolist(), "oldest": ring.oldest.tolist(), "priorities": None}
        if self.priorities:
            members = [torch.from_numpy(self._live(self.priorities, m)) for m in range(ring.members)]
            saved |= {"priorities": members, "largest_priority": self.priorities.largest.tolist()}
        return saved

    def load(self, folder: Path, saved: dict) -> None:
        """Bring back what `save` returned. Raises ValueError naming a file that is missing or damaged."""
        if self.priorities and saved["priorities"] is None:
            raise ValueError("the checkpoint's replay has no priorities; resume it with replay=uniform")
        if self.moments:
            self.moments.load_state_dict(saved["moments"])
        ring = self.ring
        ring.count[:], ring.first[:] = saved["count"], saved["oldest"]
        load_chunks(ring, folder, saved["files"])
        self._files, self._digests = [dict(file) for file in saved["files"]], {}
        if self.priorities:
            self.priorities.clear()
            self.priorities.largest[:] = saved["largest_priority"]
            for m, priorities in enumerate(saved["priorities"]):
                slot = np.arange(ring.oldest[m], ring.count[m])
                self.priorities.set(m, slot % ring.capacity, priorities.numpy()[len(priorities) - len(slot) :])

    def digest(self) -> str:
        """sha256 of all that is held, with counts and priorities; how it is cut on disk does not matter.

        Slots never change, so what was hashed before is not hashed again.
        """
        ring, known = self.ring, self._digests
        self._digests = {}
        total = hashlib.sha256(str((ring.count.tolist(), ring.oldest.tolist())).encode())
        total.update(self.moments.tobytes() if self.moments else b"")
        for m in range(ring.members):
            for first, last in ring.pieces(m, HASHED):
                piece = known.get((m, first, last)) or _hash(ring.read(m, first, last))
                self._digests[m, first, last] = piece
                total.update(piece)
            if self.priorities:
                total.update(self._live(self.priorities, m).tobytes() + self.priorities.largest[m].tobytes())
        return total.hexdigest()

    def _live(self, priorities: Priorities, member: int) -> np.ndarray:
        slot = np.arange(self.ring.oldest[member], self.ring.count[member])
        return priorities.get(member, slot % self.ring.capacity)


def _hash(fields: dict[str, np.ndarray]) -> bytes:
    return hashlib.sha256(b"".join(values.tobytes() for values in fields.values())).digest()


def _per_sample(value, shape: tuple[int, int, int], dtype: type) -> np.ndarray:
    """One number, [n] or [n, B] -> [n * k * B]."""
    if np.isscalar(value):
        return np.full(math.prod(shape), value, dtype)
    values: np.ndarray = np.empty(shape, dtype)
    values.transpose(1, 2, 0)[:] = np.transpose(value)
    return values.ravel()
