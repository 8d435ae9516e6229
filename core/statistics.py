"""Aggregated scores, by Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice").

Scores are [runs, tasks], or [runs] for one task. A statistic maps [..., runs, tasks] to [...].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: the mean of what is left when a quarter of all runs is dropped from either end.

    scores: [..., runs, tasks] or [runs] -> [...]. As scipy.stats.trim_mean(x, 0.25) over runs and tasks together; a nan
    among the scores gives nan.
    """
    scores = _runs_by_tasks(scores)
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # nan sorts last
    cut = flat.shape[-1] // 4
    return np.where(np.isnan(flat[..., -1]), np.nan, flat[..., cut : flat.shape[-1] - cut].mean(-1))


def bootstrap_interval(
    scores: np.ndarray, statistic: Statistic, generator: np.random.Generator, reps: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic by stratified bootstrap: runs are resampled within each task. -> (low, high)

    scores: [runs, tasks] or [runs]. With few runs the interval is too narrow; with one it has no width.
    """
    scores = _runs_by_tasks(scores)
    runs, tasks = scores.shape
    drawn = generator.integers(runs, size=(reps, runs, tasks))
    values = statistic(scores[drawn, np.arange(tasks)])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail]) if np.isfinite(values).all() else (math.nan, math.nan)
    return float(low), float(high)


def _runs_by_tasks(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    return scores[:, None] if scores.ndim == 1 else scores
