"""Intervals that stay valid however often one looks: an ablation may be watched, and stopped when it has shown enough.

Arms are compared run by run on pairs (same task, same seed). If two arms are alike, swapping them within a pair changes
nothing, so the difference D is as likely d as -d. For any lambda then

    prod_i exp(lambda D_i) / cosh(lambda D_i)

is a martingale that starts at 1 (de la Pena 1999), and so is a mixture M over a fixed set of lambdas: with probability
1 - alpha it never, at no number of pairs, exceeds 1 / alpha (Ville's inequality). The interval holds every shift delta
for which the mixture of D - delta is below 1 / alpha. Nothing is assumed about the spread or the tails of D, only that
it is symmetric around its center; with fewer than six pairs nothing can be excluded at 95 %. That all pairs share one
center is an assumption too. That 0 is excluded stands without either: it says that the arms are not alike, no more.

The choice of this martingale for ablations is ours.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

LAMBDAS = np.concatenate([-(2.0 ** np.arange(-4, 11)), 2.0 ** np.arange(-4, 11)])  # for scores of any usual scale


def evidence(differences: np.ndarray) -> float:
    """Logarithm of the mixture martingale against a center of 0. differences [pairs], in any order -> ()."""
    x = LAMBDAS[:, None] * np.asarray(differences, dtype=np.float64)
    log_cosh = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - math.log(2)
    return float(logsumexp((x - log_cosh).sum(1)) - math.log(len(LAMBDAS)))


def always_valid(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The confidence sequence at this number of pairs. [pairs] -> (low, high); infinite where nothing is excluded.

    Their mean is never excluded: around it the sum of lambda D is 0, and no cosh is below 1.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if not len(differences) or not np.isfinite(differences).all():
        return -math.inf, math.inf
    bound, center = -math.log(1 - level), float(np.mean(differences))

    def beyond(shift: float) -> float:
        return evidence(differences - shift) - bound

    return tuple(_edge(beyond, center, sign) for sign in (-1.0, 1.0))  # type: ignore[return-value]


def _edge(beyond, center: float, sign: float) -> float:
    """Where `beyond` turns positive, going from the center in one direction."""
    width = 1e-6
    while beyond(center + sign * width) < 0:
        width *= 2
        if width > 1e9:
            return sign * math.inf
    return float(brentq(beyond, center, center + sign * width, xtol=1e-9))
