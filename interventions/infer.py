"""InFeR: auxiliary heads must go on predicting what they predicted at birth.

Idea      Features collapse when nothing asks for them. Keep asking for what the newborn network could express: random
          linear functions of its features, scaled up.
Rule      loss + weight * mean over samples and heads of (g_i(x; theta) - scale * g_i(x; theta_0))^2,   g_i linear heads
          on the last hidden layer
Source    Lyle et al. 2022, "Understanding and Preventing Capacity Loss in Reinforcement Learning" (secondary: 10 heads,
          scale 100, weight 0.1).
Choices   Mean over heads and samples. theta_0 are the birth weights, heads included; a reset that renews them (of
          `all`, or of a pattern that names `*auxiliary*`) gives new targets. Running statistics of batch_norm are
          today's in both. The heads are drawn beside the network, which is born as without them. Within `where`
          gradient flows, the other parameters are constants of the penalty; the heads are in none of the sections.
Effects   Function: the penalty changes features. Optimizer: sees its gradient. Target and slow copies: follow. One
          forward pass more with theta and one with theta_0.
Defaults  10 heads, scale 100, weight 0.1 (the paper's, for Atari).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class Infer(Intervention):
    exclusive: ClassVar[str] = "has the auxiliary heads"

    weight: float = option(0.1, low=0, help="coefficient")
    heads: int = option(10, low=1, help="auxiliary linear heads")
    scale: float = option(100.0, help="factor on what the heads said at birth")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, auxiliary=self.heads)

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        trained = s.params | {k: params[k] for k in part.names(self.where)}
        now, born = self._said(part, trained, s, step), self._said(part, s.birth, s, step)
        return self.weight * (now - self.scale * born).square().mean()

    def _said(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor:
        """What the auxiliary heads say on the batch. -> [B, heads]"""
        feats = part(params | s.buffers, *part.inputs(step.batch))[1]
        return torch.cat([h for k, h in feats.items() if k.endswith("auxiliary")], -1)
