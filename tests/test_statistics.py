"""Aggregates and intervals, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from core.statistics import bootstrap_interval, iqm


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("runs", range(1, 14))
def test_iqm_is_scipys_trimmed_mean_over_all_runs_and_tasks(runs):
    one, many = generator(runs).normal(size=runs), generator(runs).normal(size=(runs, 5))
    assert iqm(one) == pytest.approx(stats.trim_mean(one, 0.25), abs=1e-12)
    assert iqm(many) == pytest.approx(stats.trim_mean(many, 0.25, axis=None), abs=1e-12)


def test_iqm_by_hand():
    assert iqm([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert iqm([3.0, 9.0, 6.0]) == 6.0  # a quarter of three is none


def test_iqm_of_many_resamples_is_the_iqm_of_each():
    samples = generator().normal(size=(7, 4, 3))
    assert iqm(samples) == pytest.approx([stats.trim_mean(sample, 0.25, axis=None) for sample in samples], abs=1e-12)


def test_a_nan_is_not_trimmed_away():
    assert np.isnan(iqm([1.0, 2.0, 3.0, 4.0, np.nan]))
    assert np.isnan(bootstrap_interval([1.0, 2.0, np.nan], iqm, generator())).all()


def test_the_same_generator_gives_the_same_interval_and_another_one_another():
    scores = generator().normal(size=(5, 3))
    first, again, other = (bootstrap_interval(scores, iqm, generator(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_interval_of_a_mean_is_scipys_percentile_bootstrap():
    scores = generator().exponential(size=30)
    ours = bootstrap_interval(scores, lambda x: x.mean((-2, -1)), generator(), reps=40_000)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=40_000, method="percentile", rng=generator(1))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_the_interval_of_an_iqm_is_scipys_percentile_bootstrap():
    scores = generator().exponential(size=20)
    ours = bootstrap_interval(scores, iqm, generator(), reps=20_000, level=0.8)
    theirs = stats.bootstrap(
        (scores,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=20_000,
        method="percentile",
        confidence_level=0.8,
        rng=generator(1),
    )
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_two_runs_resample_to_quarters():
    """Means of two draws from {0, 1}: 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""

    def mean(x):
        return x.mean((-2, -1))

    assert bootstrap_interval([0.0, 1.0], mean, generator(), level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], mean, generator(), level=0.4) == (0.5, 0.5)


def test_runs_are_resampled_within_tasks_not_across():
    easy_and_hard = np.array([[10.0, 0.0], [10.0, 0.0], [10.0, 0.0]])
    assert bootstrap_interval(easy_and_hard, lambda x: x.mean((-2, -1)), generator()) == (5.0, 5.0)


def test_tasks_are_resampled_independently_of_each_other():
    """If one draw of runs served both tasks, these means would all be 0."""
    opposite = np.array([[1.0, -1.0], [-1.0, 1.0]])
    low, high = bootstrap_interval(opposite, lambda x: x.mean((-2, -1)), generator())
    assert (low, high) == (-1.0, 1.0)
