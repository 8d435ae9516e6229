"""Aggregated scores, by Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice").

Scores are [runs, tasks], or [runs] for one task; axes in front are resamples, or the points of a curve. A statistic
maps [..., runs, tasks] to [...]. Definitions are those of the authors' library, rliable.
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


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over tasks of the mean over runs. [..., runs, tasks] or [runs] -> [...]."""
    return _runs_by_tasks(scores).mean((-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs. [..., runs, tasks] or [runs] -> [...]."""
    return np.median(_runs_by_tasks(scores).mean(-2), axis=-1)


def optimality_gap(scores: np.ndarray, goal: float = 1.0) -> np.ndarray:
    """How far runs fall short of `goal`, what is beyond it not counted. [..., runs, tasks] or [runs] -> [...]."""
    return goal - np.minimum(_runs_by_tasks(scores), goal).mean((-2, -1))


def improvement(scores: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Probability that a run is better than a run of `base` on the same task, ties count half, averaged over tasks.

    [..., runs, tasks], [..., other runs, tasks] -> [...]. The Mann-Whitney statistic over the number of pairs.
    """
    scores, base = _runs_by_tasks(scores), _runs_by_tasks(base)
    difference = scores[..., :, None, :] - base[..., None, :, :]
    return (0.5 * (np.sign(difference) + 1)).mean((-3, -2, -1))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs, all tasks together, that score above each threshold. [..., runs, tasks] -> [..., thresholds]."""
    flat = _runs_by_tasks(scores)
    return (flat[..., None] > thresholds).mean((-3, -2))


def bootstrap(scores: np.ndarray, statistic: Statistic, generator: np.random.Generator, reps: int = 2000) -> np.ndarray:
    """The statistic of stratified resamples: runs are drawn with replacement, within each task. -> [reps, ...]

    scores: [runs, tasks], [runs], or [points, runs, tasks]: all points of a curve are resampled together.
    """
    scores = _runs_by_tasks(scores)
    *_, runs, tasks = scores.shape
    drawn = generator.integers(runs, size=(reps, runs, tasks))
    resampled = scores[..., drawn, np.arange(tasks)]  # [..., reps, runs, tasks]
    return statistic(np.moveaxis(resampled, -3, 0))


def bootstrap_interval(
    scores: np.ndarray, statistic: Statistic, generator: np.random.Generator, reps: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic by stratified bootstrap. -> (low, high)

    scores: [runs, tasks] or [runs]. With few runs the interval is too narrow; with one it has no width.
    """
    low, high = interval(bootstrap(scores, statistic, generator, reps), level)
    return float(low), float(high)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis, nan where a value is not finite. [reps, ...] -> ([...], [...])."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    whole = np.isfinite(values).all(0)
    return np.where(whole, low, math.nan), np.where(whole, high, math.nan)


def improvement_interval(
    scores: np.ndarray, base: np.ndarray, generator: np.random.Generator, reps: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `improvement`; runs of both sides are resampled, each by itself. -> (low, high)"""
    ours = bootstrap(scores, lambda drawn: drawn, generator, reps)
    theirs = bootstrap(base, lambda drawn: drawn, generator, reps)
    low, high = interval(improvement(ours, theirs), level)
    return float(low), float(high)


def paired_interval(scores: np.ndarray, base: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean difference of runs that share a seed, and its interval: run k of task t against run k of task t.

    scores, base: [runs, tasks]. -> (mean, low, high). Student's, with a variance for each task and the degrees of
    freedom of Welch (1947) and Satterthwaite (1946); for one task it is `student_interval`. Few seeds are the rule,
    and a percentile bootstrap of three leaves the truth out in 25 of 100 cases. One seed alone has no interval.
    """
    from scipy import stats  # slow to import

    difference = _runs_by_tasks(scores) - _runs_by_tasks(base)
    runs, tasks = difference.shape
    center = float(mean(difference))
    if runs < 2:
        return center, -math.inf, math.inf
    spread = difference.var(0, ddof=1) / runs / tasks**2  # of each task's mean, as a part of the whole
    if not spread.any():
        return center, center, center
    freedom = spread.sum() ** 2 / (spread**2 / (runs - 1)).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(spread.sum()))
    return center, center - half, center + half


def student_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of at least two independent numbers. [n] -> (low, high)"""
    from scipy import stats  # slow to import

    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _runs_by_tasks(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    return scores[:, None] if scores.ndim == 1 else scores
