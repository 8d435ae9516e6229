"""Layer normalisation between every layer and its activation.

Idea      Normalised pre-activations cannot drift, so units neither die nor turn linear, and a layer's weight norm no
          longer sets the scale of what follows.
Rule      linear or convolution -> LN (gain, shift) -> ReLU, in every hidden layer; the output layer has none.
Source    Ba et al. 2016; Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks"; placement
          before the nonlinearity verified in L2_Init's code, critic-only use in RLPD's.
Choices   For a convolution the axes are (C, H, W) of a sample (`axes=image`, as Hare & Tortoise's code has it) or the
          channels of each pixel (`axes=channel`, as PLASTIC's and DASH's). Gain and shift are trained. eps = 1e-6.
Combines  with `l2` (which leaves gain and shift out). `on=[critic]` is the choice of RLPD.
Effects   Function: changed at birth. Optimizer, target, copies: not involved.
Defaults  work as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option


@dataclass(kw_only=True)
class LayerNorm(Intervention):
    exclusive: ClassVar[str] = "normalises every hidden layer"

    axes: Literal["image", "channel"] = option("image", help="of a convolution's output: (C, H, W), or C at each pixel")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, norm="layer", norm_axes=self.axes)
