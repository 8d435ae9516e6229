"""Evaluation: its own environments, its own random streams, the network the paper evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from core.engine import Engine
from core.signals import Stop

LANES = 10  # episodes of one seed played side by side


class Lane(Protocol):
    """n environments in lock-step, one per seed (envs.vector.Vector)."""

    observation: np.ndarray

    def reset(self) -> None: ...

    def step(self, actions: np.ndarray): ...


class Result(NamedTuple):
    """One finished evaluation episode."""

    seed: int
    episode: int
    score: float  # sum of raw rewards
    length: int  # agent steps


def evaluate(
    engine: Engine,
    lanes: Sequence[Lane],
    episodes: int,
    *,
    explore: Any,
    role: str,
    stream: str,
    stop: Stop | None = None,
) -> list[Result]:
    """Play `episodes` episodes with every member of the engine. -> results ordered by seed and episode; none at all if
    `stop` is requested before all are played

    Each lane is n environments, one per seed; lane l plays episodes l, l + lanes, ... of each seed. An episode that was
    cut because its environment failed has no score: the lane plays one more. `stream` names the random numbers of the
    policy.
    """
    wanted = [len(range(k, episodes, len(lanes))) for k in range(len(lanes))]
    for lane in lanes:
        lane.reset()
    results: list[Result] = []
    played = np.zeros((len(lanes), len(engine.seeds)), int)
    count = 0
    while any((played[k] < wanted[k]).any() for k in range(len(lanes))):
        if stop and stop.requested:
            return []
        seen = np.stack([lane.observation for lane in lanes], axis=1)
        actions = engine.act(seen, explore, f"{stream}/act", count, role)
        for k, lane in enumerate(lanes):
            if (played[k] >= wanted[k]).all():
                continue
            for done in lane.step(actions[:, k]).episodes:
                if done.whole and played[k, done.member] < wanted[k]:
                    number = k + int(played[k, done.member]) * len(lanes)
                    results.append(Result(engine.seeds[done.member], number, done.score, done.length))
                    played[k, done.member] += 1
        count += 1
    return sorted(results)


def mean_scores(results: Sequence[Result], seeds: Sequence[int]) -> list[float]:
    """Mean score of each seed's episodes, in the order of `seeds`."""
    return [float(np.mean([r.score for r in results if r.seed == seed])) for seed in seeds]
