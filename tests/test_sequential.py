"""Always-valid intervals: right under continuous peeking, and narrow enough to be of use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.report.sequential import LAMBDAS, always_valid, evidence


def test_the_evidence_is_the_mixture_of_products():
    d = np.array([0.3, -0.1, 0.5])
    by_hand = np.mean([np.prod([math.exp(x * v) / math.cosh(x * v) for v in d]) for x in LAMBDAS if abs(x) < 500])
    small = [x for x in LAMBDAS if abs(x) < 500]
    mixed = (math.exp(evidence(d)) * len(LAMBDAS) - _share_of_large(d)) / len(small)
    assert mixed == pytest.approx(by_hand)


def _share_of_large(d: np.ndarray) -> float:
    """Beyond 500 a factor is 2 for the sign's own side and 0 for the other, up to 1e-40."""
    return sum(np.prod(np.where(np.sign(x) == np.sign(d), 2.0, 0.0)) for x in LAMBDAS if abs(x) >= 500)


def test_the_evidence_is_one_in_expectation_over_signs():
    magnitudes = np.array([0.2, 1.5, 0.01, 3.0])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    assert np.mean([math.exp(evidence(s * magnitudes)) for s in signs]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["normal", "skewed runs", "heavy tails"])
def test_peeking_after_every_pair_raises_a_false_alarm_in_at_most_a_twentieth_of_all_ablations(name):
    g = np.random.default_rng(0)
    draw = {
        "normal": lambda shape: g.normal(size=shape),
        "skewed runs": lambda shape: g.exponential(size=shape) ** 2,
        "heavy tails": lambda shape: g.standard_cauchy(size=shape),
    }[name]
    ablations, pairs = 400, 40
    differences = draw((ablations, pairs)) - draw((ablations, pairs))
    alarms = sum(any(evidence(row[:n]) >= math.log(20) for n in range(1, pairs + 1)) for row in differences)
    assert alarms / ablations <= 0.05


def test_the_interval_holds_what_the_evidence_does_not_exclude():
    d = np.random.default_rng(1).normal(0.4, 0.2, size=12)
    low, high = always_valid(d)
    assert 0 < low < 0.4 < high < 1
    for edge, outward in ((low, -1), (high, 1)):
        assert evidence(d - edge) == pytest.approx(math.log(20), abs=1e-4)
        assert evidence(d - edge - outward * 0.01) > math.log(20) > evidence(d - edge + outward * 0.01)


def test_the_interval_moves_and_scales_with_the_data():
    d = np.random.default_rng(2).normal(size=15)
    low, high = always_valid(d)
    assert always_valid(d + 3) == pytest.approx((low + 3, high + 3), abs=1e-6)
    assert always_valid(-d) == pytest.approx((-high, -low), abs=1e-6)


@pytest.mark.parametrize("ties, others", [(13, 8), (11, 10)])
def test_ties_beside_differences_of_one_sign_leave_an_interval_with_a_width(ties, others):
    """The median, 0, is excluded itself."""
    d = np.array([0.0] * ties + [0.3] * others)
    low, high = always_valid(d)
    assert evidence(d) > math.log(20) and 0 < low < 0.3 / 2 < high < 0.3
    assert always_valid(-d) == pytest.approx((-high, -low), abs=1e-6)


def test_few_pairs_exclude_nothing_and_a_clear_difference_shows_after_ten():
    assert always_valid(np.full(5, 1.0)) == (-math.inf, math.inf)
    assert always_valid(np.array([])) == (-math.inf, math.inf)
    low, high = always_valid(np.random.default_rng(3).normal(0.5, 0.1, size=10))
    assert 0.2 < low < 0.5 < high < 0.8
