"""Transitions from elsewhere: an npz file that training batches are mixed with, and such a file made of a run's replay.

The file holds arrays of equal length, in the order in which things happened, of all its episodes one after the other:
observations [T, d], actions [T, a] (in [-1, 1], as agents decide: -1 and 1 are the ends of what the environment takes),
rewards [T], next_observations [T, d], terminals [T] (nothing to bootstrap from), ends [T] (the next row begins an
episode).
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from core import assemble, checkpoint
from core.files import write
from core.randomness import host_generator
from core.replay import Replay
from core.replay_ring import CLOSING, TERMINAL, Ring
from core.run_folder import config_of
from core.spec import EnvSpec
from core.state import Batch

ROUNDING = 1e-6  # by which actions may lie beyond their range
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "ends")


class OfflineData:
    """A file of transitions; every member draws from all of it, by a stream of its own."""

    def __init__(self, path: str, spec: EnvSpec, seeds: Sequence[int], device: str = "cpu") -> None:
        """Raises ValueError, one line, for a file that is not there, not whole, or not of this environment."""
        if spec.is_image:
            raise ValueError(f"offline.data: env={spec.name} shows frames; expected an environment of vectors")
        self.spec, self.seeds, self.device = spec, tuple(seeds), torch.device(device)
        obs, action, reward, next_obs, terminal, ends = _read(path)
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        wanted = {"observations": spec.obs_shape, "next_observations": spec.obs_shape, "actions": spec.action_shape}
        for name, array in zip(FIELDS, (obs, action, reward, next_obs, terminal, ends), strict=True):
            if array.shape[1:] != wanted.get(name, ()):
                raise ValueError(
                    f"offline.data: {path} has {name} of shape {array.shape[1:]}; expected {wanted.get(name, ())}"
                )
            if array.dtype.kind not in "biuf":
                raise ValueError(f"offline.data: {path} has {name} of type {array.dtype}; expected numbers")
            if not np.isfinite(array.astype(np.float32)).all():
                raise ValueError(f"offline.data: {path} has {name} that are not finite")
        if spec.is_discrete and not ((action >= 0) & (action < spec.num_actions)).all():
            raise ValueError(f"offline.data: {path} has actions beyond the {spec.num_actions} of {spec.name}")
        if not spec.is_discrete and (np.abs(action) > 1 + ROUNDING).any():
            raise ValueError(f"offline.data: {path} has actions beyond [-1, 1]; stretch the range of each to that")
        self.obs, self.next_obs = obs.astype(spec.obs_dtype), next_obs.astype(spec.obs_dtype)
        self.action, self.reward = action.astype(spec.action_dtype), reward.astype(np.float32)
        self.terminal, self.ends = terminal.astype(bool), ends.astype(bool) | terminal.astype(bool)
        self.ends[-1] = True

    def __len__(self) -> int:
        return len(self.reward)

    def sample(
        self, batch_size: int, draw: int, n_step: int = 1, discount: float = 0.99, stream: str = "offline"
    ) -> Batch:
        """Draw number `draw` of a stream, uniform over all steps; what Replay.sample gives, with the index -1.

        A window of n steps is cut where its episode ends, and bootstraps there unless that was a terminal.
        """
        shape = (len(self.seeds), batch_size)
        generators = [host_generator(seed, stream, draw) for seed in self.seeds]
        first = np.stack([g.integers(len(self), size=batch_size) for g in generators])
        last, returns, factor = first.copy(), np.zeros(shape), np.ones(shape)
        going = np.ones(shape, bool)
        for _ in range(n_step):
            returns += np.where(going, factor * self.reward[last], 0.0)
            factor = np.where(going, factor * discount, factor)
            going &= ~self.ends[last]
            last = last + going
        last -= going  # the window's last step
        fields = {
            "obs": self.obs[first],
            "next_obs": self.next_obs[last],
            "action": self.action[first],
            "reward": returns.astype(np.float32),
            "discount": np.where(self.terminal[last], 0.0, factor).astype(np.float32),
            "weight": np.ones(shape, np.float32),
            "index": np.full(shape, -1, np.int64),
        }
        return {name: torch.from_numpy(value).to(self.device, non_blocking=True) for name, value in fields.items()}


def mixed(batches: Sequence[Batch]) -> Batch:
    """Side by side along the samples; what only the first one has stays as it is."""
    first, *others = batches
    return first | {name: torch.cat([batch[name] for batch in batches], dim=1) for other in others for name in other}


def export(run_dir: Path, file: Path) -> dict[str, np.ndarray]:
    """Write what a run's replay holds, as of its newest checkpoint. -> the file's arrays

    Raises ValueError if there is no checkpoint, or it does not fit, or if the run saw frames.
    """
    _, replay = checkpoint.of_newest(run_dir, partial(_restored, run_dir))
    found = transitions(replay.ring)
    content = io.BytesIO()
    np.savez_compressed(content, **found)  # type: ignore[arg-type]
    write(file, content.getvalue())
    return found


def _restored(run_dir: Path, saved: Path) -> Replay:
    """The replay of a run as it was saved in this checkpoint."""
    config = config_of(run_dir)
    env = assemble.environments(config, config.tasks[-1])()
    env.close()
    if env.spec.is_image:
        raise ValueError(f"{run_dir}: its replay holds frames; only vectors can be exported")
    replay = Replay(env.spec, config.seeds, **assemble.replay_options(config, env.spec))
    state = checkpoint.load(saved)["replay"]
    with checkpoint.fitting(saved):
        replay.load(run_dir / "replay", state)
    return replay


def transitions(ring: Ring) -> dict[str, np.ndarray]:
    """What a replay holds, member after member, by the names of the file."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    for member in range(ring.members):
        slots = ring.read(member, int(ring.oldest[member]), int(ring.count[member]) - 1)
        kind, follows = slots["kind"][:-1], slots["kind"][1:]  # the last slot may be a step into the unknown
        step = kind != CLOSING
        obs = slots["obs"].reshape(len(slots["kind"]), -1)
        ends = follows == CLOSING
        ends[np.flatnonzero(step)[-1:]] = True
        columns = (obs[:-1], slots["action"][:-1], slots["reward"][:-1], obs[1:], kind == TERMINAL, ends)
        for name, column in zip(FIELDS, columns, strict=True):
            found[name].append(column[step])
    return {name: np.concatenate(columns) for name, columns in found.items()}


def _read(path: str) -> list[np.ndarray]:
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            missing = [name for name in FIELDS if name not in file]
            if missing:
                raise ValueError(f"offline.data: {path} has no {', '.join(missing)}; expected {', '.join(FIELDS)}")
            arrays = [file[name] for name in FIELDS]
    except FileNotFoundError as error:
        raise ValueError(f"offline.data: {path} is not there; python -m core.run export RUN_DIR writes one") from error
    except (OSError, EOFError, ValueError, TypeError, NotImplementedError, BadZipFile, zlib.error) as error:
        text = str(error)
        raise ValueError(text if text.startswith("offline.data") else f"offline.data: {path} is no npz file") from error
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f"offline.data: {path} has arrays of lengths {lengths}; expected equal ones")
    return arrays
