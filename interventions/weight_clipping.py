"""Weight clipping: no weight leaves a box around zero.

Idea      Bounded weights keep gradients, activations and step sizes in the range in which the network was born.
Rule      after every update   w <- clip(w, -zeta s, zeta s),   s the bound of the layer's initialiser
Source    Elsayed et al. 2024, "Weight Clipping for Deep Continual and Reinforcement Learning"; released code
          (verified): s = 1 / sqrt(fan_in), PyTorch's uniform bound, for the weights and the bias of a layer.
Choices   The layer's own bound for its bias; gains and shifts of normalisation are left alone (the released code
          bounds a 1-D tensor by the matrix before it, which destroys a gain). `bound=birth` takes the largest absolute
          weight of the layer at birth, for initialisers with other bounds, such as orthogonal ones. The sigmas of noisy
          layers are not clipped (our choice).
Effects   Function: changes only where something is clipped. Optimizer: kept. Target and slow copies: follow, and stay
          in the box by themselves.
Defaults  zeta 2 with the bound at birth (our choice; the paper sweeps 1 to 5 with 1 / sqrt(fan_in)).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class WeightClipping(Intervention):
    exclusive: ClassVar[str] = "sets the norms of the weights"

    zeta: float = option(2.0, above=0, help="size of the box in bounds of the initialiser")
    bound: Literal["birth", "fan_in"] = option("birth", help="greatest weight at birth, or 1 / sqrt(fan_in)")
    output: bool = option(True, help="clip the output layer as well")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not self._clipped(part):
            raise ValueError(f"where=[{','.join(self.where)}] selects nothing to clip in part {part.name}")
        return {}

    def after_step(self, part: Part, s: State, step: Step) -> State:
        new: Tensors = {}
        for k, layer in self._clipped(part).items():
            weight = s.birth[f"{layer}.weight"]
            edge = self.zeta * (weight.abs().amax() if self.bound == "birth" else weight[0].numel() ** -0.5)
            new[k] = s.params[k].clamp(-edge, edge)
        return s._replace(params=s.params | new)

    def _clipped(self, part: Part) -> dict[str, str]:
        """Names of what is clipped, each with its layer."""
        layers = [la.name for la in part.layers if la.kind != "norm" and (self.output or not la.output)]
        owner = {f"{layer}.{kind}": layer for layer in layers for kind in ("weight", "bias")}
        return {k: owner[k] for k in part.names(self.where) if k in owner}
