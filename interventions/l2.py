"""L2 regularisation: a penalty on the size of the weights, in the loss.

Idea      Keep weights from growing: large weights mean small relative updates and saturated units.
Rule      loss + weight / 2 * sum over matrices and kernels of ||W||^2        (gradient: weight * W)
Source    Lyle et al. 2024 use it coupled, 1e-5 to 1e-6 (secondary); Kumar et al. 2023, with the half (verified in
          code).
Choices   In the loss, hence preconditioned by Adam ("coupled"); decoupled decay is `agent.weight_decay`. Biases, gains
          and shifts are left out (every 1-D tensor, as BBF masks them: verified; that Lyle et al. do so is our
          inference).
Effects   Function: changes slowly. Optimizer: sees the penalty's gradient. Target and copies: follow.
Defaults  1e-5, with `layer_norm`. Strong coefficients slow learning: even 1e-7 interferes on Atari (secondary).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class L2(Intervention):
    weight: float = option(1e-5, low=0, help="coefficient of half the squared norm")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        part.matrices(self.where)  # nothing to regularise is an error now, not in an hour
        return {}

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        return 0.5 * self.weight * sum(params[k].square().sum() for k in part.matrices(self.where))
