"""Microseconds per batch drawn from a replay of 100,000 frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.cases import CONTROL, FRAMES
from benchmarks.timing import interleaved
from core.replay import Replay
from core.spec import EnvSpec

FRAMES_HELD = 100_000


def filled(spec: EnvSpec, device: str, prioritised: bool = False) -> Replay:
    """A replay that holds as many steps as it can, in episodes of 1,000."""
    replay, rng = Replay(spec, (0,), FRAMES_HELD, device, prioritised), np.random.default_rng(0)
    table = rng.integers(0, 255, (64, 1, *spec.obs_shape)).astype(spec.obs_dtype)
    action = np.zeros((1, *spec.action_shape), spec.action_dtype)
    no, yes = np.zeros(1, bool), np.ones(1, bool)
    for step in range(FRAMES_HELD):
        ended = yes if step % 1_000 == 999 else no
        reward = np.float32([step % 3])
        replay.add(table[step % 64], action, reward, no, ended, table[(step + 1) % 64])
    return replay


def replay(blocks: int, seconds: float, device: str = "cpu") -> list[list[str]]:
    """Draws of one batch: frames 84 x 84 stored once, stacks of 4 made when drawn."""
    uniform, prioritised, vectors = filled(FRAMES, device), filled(FRAMES, device, True), filled(CONTROL, device)
    counter = iter(range(10**9))
    draws: dict[str, Callable[[], object]] = {}
    for n in (1, 3, 10):
        draws[f"frames, uniform, n={n}, batch 32"] = lambda n=n: uniform.sample(32, next(counter), n)
    draws["frames, prioritised, n=1, batch 32"] = lambda: prioritised.sample(32, next(counter))

    def learned() -> None:
        batch = prioritised.sample(32, next(counter), 10)
        prioritised.update_priorities(batch["index"], batch["reward"].abs() + 0.1)

    draws["frames, prioritised and learned, n=10, batch 32"] = learned
    draws["vectors, uniform, batch 256"] = lambda: vectors.sample(256, next(counter))
    found = interleaved(draws, blocks, seconds)
    base = found["frames, uniform, n=1, batch 32"].us
    rows = [["draw", "us", "time / uniform n=1"]]
    rows += [[name, f"{t.us:.0f}", f"{t.us / base:.2f}"] for name, t in found.items()]
    rows += [["memory of 100,000 frames, MB", f"{uniform.nbytes / 1e6:.0f}", ""]]
    return rows
