"""Hare & Tortoise: a fast network learns, a slow one averages it, and now and then the fast one restarts there.

Idea      The hare adapts and overfits; the tortoise integrates slowly and generalises. Restarting the hare at the
          tortoise keeps knowledge and restores plasticity.
Rule      every update   tortoise <- momentum * tortoise + (1 - momentum) * hare
          now and then   hare <- tortoise
Source    Lee et al. 2024, "Slow and Steady Wins the Race", section 4 and released supervised code (verified). The RL
          code is not public: the period and momentum here are our choice within the supervised range, period * (1 -
          momentum) in [0.2, 2]. With `tortoise=target` the agent's tau stands for 1 - momentum: at DrQ's 0.01 the range
          ends at 200 updates, and at the default period of 1,000 the tortoise has long caught up with the hare.
Choices   Buffers (running statistics) are averaged and restarted like the weights of their layer (verified). The
          optimizer's moments belong to the hare and are kept (verified). Outside `where` the tortoise has the hare's
          own. `tortoise=own` keeps a slow copy of its own; `tortoise=target` takes the agent's target network, which
          follows at the agent's tau (BBF and DrQ act with theirs). The released reset aliases the two networks'
          storage, so that the tortoise swallows the hare's next step whole; here values are copied. The tortoise is
          what is evaluated (agent.evaluate_with=params evaluates the hare).
Effects   Function: the hare's becomes the tortoise's. Target: kept. Birth weights: kept.
Defaults  momentum 0.999, every 1,000 updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from core.copies import averaged, beside
from core.events import Context
from core.intervention import Intervention, OptimizerRule
from core.options import option
from core.part import Part, Step, replant
from core.state import State, Tensors, weights


@dataclass(kw_only=True)
class HareAndTortoise(Intervention):
    momentum: float = option(0.999, low=0, high=1, help="share of the tortoise that stays in each update")
    tortoise: Literal["own", "target"] = option("own", help="a slow copy of its own, or the agent's target network")
    optimizer: OptimizerRule = option("keep", help="the hare's moments when it restarts: keep, touched or all")

    @property
    def role(self) -> str:
        return "tortoise" if self.tortoise == "own" else "target"

    @property
    def copies(self) -> tuple[str, ...]:
        return (self.role,) if self.tortoise == "own" else ()

    @property
    def evaluates(self) -> str:
        return self.role

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if self.tortoise == "target" and not part.averaged:
            raise ValueError(
                f"tortoise=target: the target of {part.name} is a hard copy, which would "
                "throw away what was learned since; set agent.target=ema, or tortoise=own"
            )
        return {}

    def after_step(self, part: Part, s: State, step: Step) -> State:
        if self.tortoise == "target":
            return s
        return averaged(part, s, self.role, self.momentum, self.where)

    def event(self, part: Part, s: State, ctx: Context) -> State:
        if self.role not in s.copies:
            return s  # a part without a target network has no tortoise to restart from
        hare, slow = weights(s), s.copies[self.role]
        names, buffers = part.names(self.where), beside(part, s, self.where)
        if all(torch.equal(slow[k], hare[k]) for k in (*names, *buffers)):
            return s  # the hare is where the tortoise is
        params, counted = ({k: slow[k] for k in chosen} for chosen in (names, buffers))
        return replant(part, s, params, buffers=counted, optimizer=self.optimizer)
