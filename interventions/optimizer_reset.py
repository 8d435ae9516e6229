"""Optimizer reset: Adam forgets the gradients of the past, the network stays.

Idea      At a change of targets Adam's second moment is out of date: if gradients grow a thousandfold, steps overshoot
          6.6 times the learning rate with betas (0.9, 0.999). Start Adam anew, or forget faster.
Rule      now and then   m <- 0, v <- 0, t <- 0;   and from birth on, other betas and another epsilon if set
Source    Lyle et al. 2023, "Understanding Plasticity in Neural Networks" (resetting alone did not remove plasticity
          loss; b2 0.9 and eps 1e-3 are secondary); Dohare et al. 2024 (equal betas 0.99, verified); Ellis et al. 2024,
          "Adam on Local Time" (the step count alone, secondary).
Choices   `slots`: all, the step count alone (Adam-Rel), or the moments alone (which makes the first steps about 3 times
          the learning rate: no bias correction). Betas and epsilon hold for the whole part, from birth.
Effects   Function: kept. Target, slow copies, birth weights: kept.
Defaults  all slots every 10,000 updates (our choice: the sources reset at target updates and task switches), betas and
          epsilon as the agent has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from core.events import Context
from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Part
from core.state import State

SLOTS = {"all": ("m", "v", "t"), "count": ("t",), "moments": ("m", "v")}


@dataclass(kw_only=True)
class OptimizerReset(Intervention):
    slots: Literal["all", "count", "moments"] = option("all", help="what starts anew: everything, t, or m and v")
    b1: float = option(0.0, low=0, high=0.9999, help="Adam's beta1; 0: the agent's")
    b2: float = option(0.0, low=0, high=0.9999, help="Adam's beta2; 0: the agent's")
    eps: float = option(0.0, low=0, help="Adam's epsilon; 0: the agent's")

    def tune(self, part: Part, optim: Adam) -> Adam:
        return replace(optim, b1=self.b1 or optim.b1, b2=self.b2 or optim.b2, eps=self.eps or optim.eps)

    def event(self, part: Part, s: State, ctx: Context) -> State:
        new, names = dict(s.optim), part.names(self.where)
        for slot in SLOTS[self.slots]:
            new[slot] = s.optim[slot] | {k: torch.zeros_like(s.optim[slot][k]) for k in names}
        stands = all(torch.equal(new[slot][k], s.optim[slot][k]) for slot in new for k in names)
        return s if stands else s._replace(optim=new)
