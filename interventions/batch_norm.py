"""Batch normalisation between every layer and its activation.

Idea      Pre-activations are centred and scaled over the batch, so that no unit drifts away from where its activation
          bends.
Rule      linear or convolution -> BN (gain, shift) -> ReLU, in every hidden layer; training: the batch's moments,
          which also update running ones (momentum 0.1); evaluation: the running moments.
Source    Ioffe & Szegedy 2015; a part of the supervised testbeds' networks (ResNet-18, CNN-BN), and an arm of Lyle et
          al. 2024, where it interferes with value-based RL (secondary).
Choices   The batch's moments where gradient flows, running ones everywhere else: acting, TD targets, diagnostics,
          events. Slow copies have running moments of their own, averaged or copied like weights. A full reset begins
          them anew.
Effects   Function: changed at birth. Optimizer, target, copies: see above.
Defaults  work as they are; in RL expect harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from core.blueprint import NetSpec
from core.intervention import Intervention


@dataclass(kw_only=True)
class BatchNorm(Intervention):
    exclusive: ClassVar[str] = "normalises every hidden layer"

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, norm="batch")
