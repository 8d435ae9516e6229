"""EMA: the average of the weights over time is evaluated, and nothing else changes.

Idea      The average of a trajectory often generalises better than its end. The baseline that shows what Hare &
          Tortoise gains by restarting, beyond averaging.
Rule      every update   average <- momentum * average + (1 - momentum) * theta
Source    Baseline of Lee et al. 2024, "Slow and Steady Wins the Race" (momentum verified in the released code).
Choices   Buffers (running statistics) are averaged like the weights of their layer; outside `where` the average has the
          network's own. The average is evaluated (agent.evaluate_with=params evaluates theta).
Effects   Function of what is trained: none. Optimizer, target, birth weights: not involved.
Defaults  momentum 0.999.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.copies import averaged
from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State

ROLE = "average"


@dataclass(kw_only=True)
class EMA(Intervention):
    momentum: float = option(0.999, low=0, high=1, help="share of the average that stays in each update")

    @property
    def copies(self) -> tuple[str, ...]:
        return (ROLE,)

    @property
    def evaluates(self) -> str:
        return ROLE

    def after_step(self, part: Part, s: State, step: Step) -> State:
        return averaged(part, s, ROLE, self.momentum, self.where)
