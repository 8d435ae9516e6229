"""Aggregates and intervals, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

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
    profile,
    student_interval,
)


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


def test_mean_median_and_optimality_gap_by_hand():
    scores = np.array([[0.0, 1.0, 4.0], [1.0, 2.0, 0.0]])  # means of the tasks: 0.5, 1.5, 2
    assert mean(scores) == pytest.approx(4 / 3) and median(scores) == 1.5
    assert optimality_gap(scores) == pytest.approx(1 - (0 + 1 + 1 + 1 + 1 + 0) / 6)
    assert optimality_gap(scores, goal=2.0) == pytest.approx(2 - (0 + 1 + 2 + 1 + 2 + 0) / 6)


def test_the_probability_of_improvement_is_mann_whitneys_statistic_over_all_pairs():
    ours, theirs = generator(1).integers(5, size=(6, 3)), generator(2).integers(5, size=(4, 3))  # with ties
    wanted = [stats.mannwhitneyu(ours[:, t], theirs[:, t]).statistic / 24 for t in range(3)]
    assert improvement(ours, theirs) == pytest.approx(np.mean(wanted))
    assert improvement(ours, ours) == 0.5
    assert improvement([2.0, 3.0], [1.0, 0.0]) == 1.0


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    scores = np.array([[0.0, 0.5], [0.5, 1.0]])
    assert profile(scores, np.array([-1.0, 0.0, 0.5, 1.0])).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_the_points_of_a_curve_are_resampled_together():
    """At every point the same runs are drawn: a resample of a curve is a curve of one resample."""
    ends = generator(3).normal(size=(4, 5, 3))
    curve = np.stack([ends[0], 2 * ends[0] + 1])
    values = bootstrap(curve, iqm, generator(), reps=50)
    assert values.shape == (50, 2)
    assert values[:, 1] == pytest.approx(2 * values[:, 0] + 1)
    assert values[:, 0] == pytest.approx(bootstrap(ends[0], iqm, generator(), reps=50))


def test_an_interval_has_no_ends_where_a_resample_is_not_finite():
    low, high = interval(np.array([[1.0, np.nan], [2.0, 3.0]]), level=0.5)
    assert np.isfinite([low[0], high[0]]).all() and np.isnan([low[1], high[1]]).all()


def test_pairs_cancel_what_a_seed_brings_to_both_arms():
    luck = generator(4).normal(size=(8, 3)) * 10
    gain = generator(5).normal(1.0, 0.1, size=(8, 3))
    value, low, high = paired_interval(luck + gain, luck)
    assert value == pytest.approx(gain.mean()) and 0.9 < low < value < high < 1.1
    unpaired_low, unpaired_high = improvement_interval(luck + gain, luck, generator())
    assert unpaired_low < 0.5 < unpaired_high  # without pairs the difference drowns


def test_the_interval_of_pairs_is_students_on_one_task_and_welchs_on_two():
    rows = generator(7).normal(0.3, [0.1, 2.0], size=(4, 2))
    nothing = np.zeros((4, 2))
    assert paired_interval(rows[:, :1], nothing[:, :1])[1:] == pytest.approx(student_interval(rows[:, 0]))
    welch = stats.ttest_ind(rows[:, 0], -rows[:, 1], equal_var=False).confidence_interval()
    assert paired_interval(rows, nothing) == pytest.approx((rows.mean(), welch.low / 2, welch.high / 2))
    assert paired_interval(rows[:1], nothing[:1]) == (pytest.approx(rows[0].mean()), -math.inf, math.inf)
    assert paired_interval(nothing + 0.5, nothing) == (0.5, 0.5, 0.5)


def test_two_thousand_resamples_of_a_benchmark_curve():
    curve = generator(6).normal(size=(20, 5, 26))
    low, high = interval(bootstrap(curve, iqm, generator()))
    assert low.shape == high.shape == (20,)
    assert ((low < iqm(curve)) & (iqm(curve) < high)).all()
