"""What an ablation shows: aggregated scores of every arm with their intervals, and against the base arm."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from core.ablation import Ablation
from core.randomness import host_generator
from core.report.scores import Missing, Run, kept, matrix, reached
from core.report.sequential import always_valid
from core.statistics import (
    bootstrap,
    bootstrap_interval,
    improvement,
    improvement_interval,
    interval,
    iqm,
    mean,
    median,
    optimality_gap,
    paired_interval,
)

STATISTICS = {"IQM": iqm, "median": median, "mean": mean, "optimality gap": optimality_gap}


class NotYet(ValueError):
    """There is too little to report; more runs may change that."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Curve:
    """IQM over env steps, with a band."""

    steps: np.ndarray  # [points]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Row:
    """One arm of the table."""

    arm: str
    runs: int
    statuses: Counter[str]  # how many runs are what
    statistics: dict[str, Interval]
    improvement: Interval | None  # probability over the base arm; None for the base itself
    gain: Interval | None  # mean difference of runs that share a seed with one of the base arm
    watched: Interval | None  # the mean of these differences, with an interval that may be looked at while runs go on


def compare(ablation: Ablation, runs: list[Run], missing: Missing = "worst", reps: int = 2000) -> list[Row]:
    """The table: every arm at the last step that all runs have come to."""
    points = reached(runs, ablation.tasks)[-1:]
    if not len(points):
        raise NotYet(f"{ablation.out}: no run has been evaluated yet")
    every = {arm: matrix(runs, arm, ablation.tasks, points, missing)[0] for arm in ablation.arms}
    for arm, scores in every.items():
        if not len(scores):
            raise NotYet(f"missing=drop leaves no seed of arm {arm}; use missing=worst, or wait for its runs")
    base, rows = every[ablation.base], []
    for arm, scores in every.items():
        statuses = Counter(run.status for run in runs if run.arm == arm)
        found = {
            name: Interval(float(statistic(scores)), *bootstrap_interval(scores, statistic, _draws(name), reps))
            for name, statistic in STATISTICS.items()
        }
        better = gain = watched = None
        if arm != ablation.base:
            ends = improvement_interval(scores, base, _draws("improvement"), reps)
            better = Interval(float(improvement(scores, base)), *ends)
            gain = _gain(ablation, runs, arm, points, missing)
            pairs = _pairs(runs, arm, ablation.base)
            watched = Interval(float(np.mean(pairs)), *always_valid(pairs)) if len(pairs) else None
        rows.append(Row(arm, len(scores), statuses, found, better, gain, watched))
    return rows


def _gain(ablation: Ablation, runs: list[Run], arm: str, points: np.ndarray, missing: Missing) -> Interval | None:
    """Mean difference of the runs whose seed counts in both arms."""
    sides = [(name, kept(runs, name, ablation.tasks, missing)) for name in (arm, ablation.base)]
    shared = set.intersection(*(set(rows) for _, rows in sides))
    if not shared:
        return None
    ours, theirs = (
        matrix(runs, name, ablation.tasks, points, missing)[0, [row in shared for row in rows]] for name, rows in sides
    )
    return Interval(*paired_interval(ours, theirs))


def _pairs(runs: list[Run], arm: str, base: str) -> np.ndarray:
    """Differences of the last scores of two arms that share task and seed, where both cells have ended. -> [pairs]

    A run that is lost scores the worst of what either of the two ever scored, at most 0: what other runs do later
    changes no pair, and swapping the arms turns its sign and nothing else.
    """
    ended = {(run.arm, run.task, run.seed): run for run in runs if run.over}
    differences = []
    for (name, task, seed), ours in ended.items():
        theirs = ended.get((base, task, seed))
        if name == arm and theirs:
            scores = np.concatenate([ours.normalised, theirs.normalised])
            worst = scores[np.isfinite(scores)].min(initial=0.0)
            a, b = (run.normalised[-1] if run.status == "finished" else worst for run in (ours, theirs))
            differences.append(a - b)
    return np.array(differences)


def curve(
    ablation: Ablation, runs: list[Run], arm: str, tasks: tuple[str, ...], missing: Missing = "worst", reps: int = 2000
) -> Curve:
    """IQM of an arm on some tasks over env steps, as far as all runs on these tasks have come; empty before that."""
    points = reached(runs, tasks)
    if not len(points):
        nothing = np.array([])
        return Curve(points, nothing, nothing, nothing)
    scores = matrix(runs, arm, tasks, points, missing)
    low, high = interval(bootstrap(scores, iqm, _draws("curve"), reps))
    return Curve(points, iqm(scores), low, high)


def _draws(purpose: str) -> np.random.Generator:
    """The same resamples for every arm, and every time."""
    return host_generator(0, f"report/{purpose}")
