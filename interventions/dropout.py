"""Dropout: in training a share of the features of every dense hidden layer is silent.

Idea      No unit can rely on another, and what fits noise is harder to build.
Rule      training: each feature is 0 with probability `rate`, else divided by 1 - rate;   evaluation: as it is
Source    Srivastava et al. 2014; a baseline of Hare & Tortoise, DASH and AID.
Choices   Behind the activation of dense layers; convolutions have none, and a part without a dense hidden layer is
          refused. Training mode where gradient flows and nowhere else: acting, TD targets, diagnostics and events run
          as in evaluation (our inference; some RL agents keep dropout on in their targets).
Effects   Function: changed in training. Optimizer, target, copies: not involved.
Defaults  rate 0.1 (our choice; supervised baselines sweep 0.1 to 0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option
from core.part import Part
from core.state import Tensors


@dataclass(kw_only=True)
class Dropout(Intervention):
    rate: float = option(0.1, above=0, high=0.95, help="share of features that are silent in training")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, dropout=self.rate)

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not any(".drops." in name for name in part.noise(1)):  # networks call it so
            raise ValueError(
                f"rate={self.rate:g}: part {part.name} has no dense hidden layer for dropout to stand behind; set "
                "net.depth, or leave the part out of `on`"
            )
        return {}
