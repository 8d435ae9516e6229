"""L2 Init, also called regenerative regularisation: a penalty on the distance from the weights at birth.

Idea      Newborn weights learn well; stay near them, rather than near zero.
Rule      loss + weight / 2 * ||theta - theta_0||^2        (gradient: weight * (theta - theta_0))
Source    Kumar, Marklund & Van Roy 2023, "Maintaining Plasticity via Regenerative Regularization", section 3.
Choices   The paper prints no half, the authors' code has it, and all tuned coefficients are the code's: we keep the
          half. Weights and biases; gains and shifts of normalisation are left out (both verified in the code). theta_0
          of a tensor that a reset redrew is the new draw, as long as that reset renews birth weights.
Effects   Function: changes slowly. Optimizer: sees the penalty's gradient. Target and copies: not regularised; they
          follow.
Defaults  1e-3: between the paper's best on permuted MNIST (1e-2) and what deeper networks bear (1e-5); sweep it in RL.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class L2Init(Intervention):
    weight: float = option(1e-3, low=0, help="coefficient of half the squared distance")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not self._names(part):
            chosen = f"[{','.join(self.where)}] selects only gains and shifts of part {part.name}"
            raise ValueError(f"where={chosen}; expected a weight or bias among them")
        return {}

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        names = self._names(part)
        return 0.5 * self.weight * sum((params[k] - s.birth[k]).square().sum() for k in names)

    def _names(self, part: Part) -> list[str]:
        norms = part.norm_names()
        return [k for k in part.names(self.where) if k not in norms]
