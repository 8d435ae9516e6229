"""Our statistics beside rliable's, on matrices of the size of a benchmark. Needs the extra `stats`; skipped without."""

from __future__ import annotations

import numpy as np
import pytest

from core.statistics import (
    bootstrap_interval,
    improvement,
    improvement_interval,
    iqm,
    mean,
    median,
    optimality_gap,
    profile,
)

metrics = pytest.importorskip("rliable.metrics")
library = pytest.importorskip("rliable.library")

PAIRS = {
    "iqm": (iqm, metrics.aggregate_iqm),
    "median": (median, metrics.aggregate_median),
    "mean": (mean, metrics.aggregate_mean),
    "optimality_gap": (optimality_gap, metrics.aggregate_optimality_gap),
}


def scores(seed: int, runs: int = 5, tasks: int = 26) -> np.ndarray:
    """Long-tailed, as human-normalised scores are. [runs, tasks]"""
    g = np.random.default_rng(seed)
    return g.lognormal(mean=g.normal(size=tasks), sigma=0.5, size=(runs, tasks))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(5))
def test_point_estimates_are_rliables(name, seed):
    ours, theirs = PAIRS[name]
    assert float(ours(scores(seed))) == pytest.approx(float(theirs(scores(seed))), abs=1e-9)


def test_the_probability_of_improvement_and_the_profile_are_rliables():
    x, y = scores(1), scores(2)
    assert float(improvement(x, y)) == pytest.approx(float(metrics.probability_of_improvement(x, y)), abs=1e-9)
    taus = np.linspace(0, 8, 81)
    theirs, _ = library.create_performance_profile({"x": x}, taus, reps=10)
    assert profile(x, taus) == pytest.approx(theirs["x"], abs=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_interval_ends_are_rliables_up_to_resampling(name):
    """Ends of two thousand resamples scatter; ours and theirs lie within four deviations of that scatter."""
    ours, theirs = PAIRS[name]
    x = scores(3)
    _, found = library.get_interval_estimates({"x": x}, lambda z: np.array([theirs(z)]), reps=2000)
    ends = [bootstrap_interval(x, ours, np.random.default_rng(k)) for k in range(30)]
    center, spread = np.mean(ends, axis=0), np.std(ends, axis=0)
    assert (np.abs(found["x"][:, 0] - center) < 4 * spread).all()


def test_the_interval_of_the_probability_of_improvement_is_rliables_up_to_resampling():
    x, y = scores(4, runs=4, tasks=6), scores(5, runs=4, tasks=6)
    _, found = library.get_interval_estimates(
        {"pair": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=500
    )
    ends = [improvement_interval(x, y, np.random.default_rng(k), reps=500) for k in range(30)]
    center, spread = np.mean(ends, axis=0), np.std(ends, axis=0)
    assert (np.abs(found["pair"][:, 0] - center) < 4 * spread + 1e-9).all()
