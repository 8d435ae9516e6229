"""Dormancy-scaled perturbation: Shrink & Perturb, the harder the more units are dormant.

Idea      A network full of dormant units needs a strong push, a healthy one a gentle one.
Rule      keep = clip(1 - scale * share of dormant units, low, high);
          now and then   theta <- keep * theta + (1 - keep) * phi,   phi a fresh draw from the initialisers
Source    Xu et al. 2024, "DrM: Mastering Visual Reinforcement Learning through Dormant Ratio Minimization"; released
          code (verified): weights and biases of dense layers, convolutions left alone, the target with a draw of its
          own, the optimizer's state cleared.
Choices   Each part goes by its own dormant units; DrM takes the actor's for all. `features=pre` is DrM's score, before
          the activation (hidden layers; DrM counts its output layers too), `post` is ReDo's. The threshold counts
          scores below or equal (DrM: below). Gains, shifts and running statistics of normalisation are left alone.
          DrM's exploration by dormancy is not part of this.
Effects   Function: damped and perturbed. Target: the same rule with a draw of its own. Birth weights: kept.
Defaults  scale 2, keep between 0.2 and 0.9, threshold 0.025, every 40,000 updates, none with less than one
          interval left (DrM: every 100,000 agent steps, the length of an Atari-100k run).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from core.blueprint import PRE
from core.diagnostics.units import scores
from core.events import Context, redraw
from core.intervention import CopyRule, Intervention, OptimizerRule
from core.options import option
from core.part import Part
from core.state import State, Tensors


@dataclass(kw_only=True)
class DormancyScaledPerturbation(Intervention):
    scale: float = option(2.0, low=0, help="how much of the weights a share of dormant units costs")
    low: float = option(0.2, low=0, high=1, help="least factor of the trained weights")
    high: float = option(0.9, low=0, high=1, help="greatest factor of the trained weights")
    threshold: float = option(0.025, low=0, help="units with at most this score are dormant")
    features: Literal["pre", "post"] = option("pre", help="scores of what units hold before or after the activation")
    optimizer: OptimizerRule = option("all", help="moments: keep, renew those touched, or all of the part")
    target: CopyRule = option("own_draw", help="target network: keep, copy, same_draw or own_draw")
    slow: CopyRule = option("own_draw", help="the same for every other slow copy")

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low:g} given; expected at most high={self.high:g}")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not self._dense(part):
            chosen = f"[{','.join(self.where)}] holds no dense layer of part {part.name}"
            raise ValueError(f"where={chosen}; expected one, as in head or all")
        return {}

    def event(self, part: Part, s: State, ctx: Context) -> State:
        keep = min(max(1 - self.scale * self.dormant_share(part, ctx), self.low), self.high)
        return redraw(
            s,
            ctx,
            self._dense(part),
            keep=keep,
            noise=1 - keep,
            toward="fresh",
            rules={role: self.target if role == "target" else self.slow for role in s.copies},
            optimizer=self.optimizer,
            renew_birth=False,
        )

    def dormant_share(self, part: Part, ctx: Context) -> float:
        feats = ctx.step().outcome.feats
        suffix, dense = (PRE if self.features == "pre" else ""), [la for la in part.layers if la.kind == "linear"]
        found = [
            scores(feats[layer.feats + suffix], 1 if suffix else layer.halves) <= self.threshold
            for layer in dense
            if layer.feats
        ]
        return float(torch.cat(found).float().mean()) if found else 0.0

    def _dense(self, part: Part) -> list[str]:
        """Weights and biases of dense layers within `where`."""
        prefixes = tuple(f"{layer.name}." for layer in part.layers if layer.kind == "linear")
        return [k for k in part.names(self.where) if k.startswith(prefixes)]
