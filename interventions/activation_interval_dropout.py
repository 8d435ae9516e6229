"""Activation by interval-wise dropout (AID): a rectifier that is now and then the opposite rectifier.

Idea      Pull the network gently towards a linear one, which never loses plasticity: with a small probability a unit
          passes its negative part instead of its positive one.
Rule      training    m ~ Bernoulli(keep) for every unit and sample,   y = m max(x, 0) + (1 - m) min(x, 0)
          evaluation  y = keep * max(x, 0) + (1 - keep) * min(x, 0)
Source    Park et al. 2025, "Activation by Interval-wise Dropout" (secondary).
Choices   Training mode where gradient flows and nowhere else: acting, TD targets, diagnostics and events run as in
          evaluation (our inference). keep=1 is ReLU.
Effects   Function: changed at birth. Optimizer, target, copies: not involved.
Defaults  keep 0.99 (secondary: 0.99 to 0.999 in RL, 0.7 to 0.99 in supervised learning).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option


@dataclass(kw_only=True)
class ActivationIntervalDropout(Intervention):
    exclusive: ClassVar[str] = "sets the activation"

    keep: float = option(0.99, low=0, high=1, help="share of positive parts that pass")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, activation="aid", aid_keep=self.keep)
