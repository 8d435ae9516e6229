"""Weight decay: every step shrinks the weights a little, beside the gradient.

Idea      Keep weights from growing, without Adam rescaling the pull as it does with a penalty in the loss.
Rule      theta <- (1 - learning rate * weight) * theta, then Adam's step        (AdamW)
Source    Loshchilov & Hutter 2019; in RL: BBF (weight 0.1) and SimBa (0.01), both verified in the code.
Choices   Matrices and kernels only: every 1-D tensor (biases, gains, shifts) is left out, as BBF masks them (verified).
          It replaces `agent.weight_decay`; both at once are refused. `l2` is the coupled sister.
Effects   Function: changes slowly. Optimizer: its moments do not see the decay. Target and slow copies: follow.
Defaults  1e-2 (SimBa's); 0.1 is BBF's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Part


@dataclass(kw_only=True)
class WeightDecay(Intervention):
    weight: float = option(1e-2, low=0, help="decay per unit of learning rate")

    def tune(self, part: Part, optim: Adam) -> Adam:
        if optim.decay:
            raise ValueError(
                f"weight={self.weight:g}: part {part.name} already decays its weights by {optim.decay:g}; "
                "set agent.weight_decay=0, or drop one of two"
            )
        if optim.hold:
            raise ValueError(
                f"weight={self.weight:g}: upgd decays the weights of part {part.name} itself; set its decay"
            )
        return replace(optim, decay=self.weight, decays=frozenset(part.matrices(self.where)))
