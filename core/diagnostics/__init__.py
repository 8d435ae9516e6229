"""What is measured about a network, one function per quantity, in tiers by cost.

Each function is pure, (part, state, step) -> {name: number}, sees one seed, and says in its docstring whose definition
it is. The engine runs them on a batch of their own, from streams of their own: training never notices. A name that ends
in `_image` holds a matrix, for a log that can draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from core.diagnostics.churn import churn
from core.diagnostics.curvature import curvature
from core.diagnostics.optimizer import adam_health, effective_learning_rate
from core.diagnostics.preactivation import preactivation
from core.diagnostics.probe import trainability
from core.diagnostics.ranks import feature_ranks, mean_signature
from core.diagnostics.spectra import spectral_norm
from core.diagnostics.tangents import gradient_covariance, tangent_kernel
from core.diagnostics.units import dead, dormant, linearised, sign_entropy, zero_gradient
from core.diagnostics.values import target_scale, value_scale
from core.diagnostics.weights import (
    distance_from_birth,
    gradient_norm,
    growth,
    parameter_norm,
    update_ratio,
    weight_magnitude,
)
from core.gradients import NeedsGradient
from core.options import nearest
from core.part import Part, Step
from core.state import State

Diagnostic = Callable[[Part, State, Step], dict[str, Tensor]]


class Tier(NamedTuple):
    """Diagnostics that run together."""

    every: str  # the option that holds the updates between two observations
    batch: int  # samples they see
    gradients: bool  # whether they look at the batch's gradient, or only at what the loss returns
    diagnostics: tuple[Diagnostic, ...]


CHEAP = Tier(
    "observe_every",
    256,
    True,
    (
        dormant,
        dead,
        linearised,
        sign_entropy,
        zero_gradient,
        parameter_norm,
        weight_magnitude,
        distance_from_birth,
        growth,
        gradient_norm,
        update_ratio,
        adam_health,
        effective_learning_rate,
        target_scale,
        value_scale,
    ),
)
# For ranks at least as many samples as penultimate features; those of more features than 1,024 end there.
MIDDLE = Tier("rank_every", 1_024, False, (preactivation, churn, spectral_norm, mean_signature, feature_ranks))
DEAR = Tier("probe_every", 128, False, (gradient_covariance, tangent_kernel, curvature, trainability))
TIERS = (CHEAP, MIDDLE, DEAR)

IMAGE = "_image"  # how the names of matrices end
COMMON = {"dormant": "dormant@0.025"}  # the number that a bare name stands for, where it is another


def finite(step: Step) -> bool:
    """Whether gradients and features are numbers throughout; of a network that overflows nothing is measured."""
    return all(bool(t.isfinite().all()) for t in (*step.grads.values(), *step.outcome.feats.values()))


def measure(metric: str, part: Part, s: State, look: Callable[[Tier], Step]) -> float:
    """One number by its name, such as dead, dormant@0.1 or srank/trunk.layers.1. Raises ValueError if there is none.

    look(tier): what a batch shows, of the size that the tier is logged with. Cheap ones are looked through first, and
    nothing is computed beyond the function that has it. nan where the network overflows.
    """
    if not part.layers:
        raise ValueError(f"when.metric={metric} given; part {part.name} has no layers to measure, leave it out of `on`")
    name, known, unseen = COMMON.get(metric, metric), dict[str, Tensor](), ""
    for tier in TIERS:
        step = look(tier)
        if not finite(step):
            return math.nan
        for diagnostic in tier.diagnostics:
            try:
                known |= {k: v for k, v in diagnostic(part, s, step).items() if not k.endswith(IMAGE)}
            except NeedsGradient:
                unseen = " (what goes by gradients cannot be seen here)"
            if name in known:
                return float(known[name])
    near = nearest(metric, [*known, *COMMON])
    raise ValueError(f"when.metric={metric} given; part {part.name} has none of that name{unseen}, {near}")
