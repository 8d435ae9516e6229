"""Reset: parts of a network, or all of it, begin life again; the replay buffer remembers.

Idea      An agent that has overfitted early data cannot learn from later data; a newborn network on the same buffer
          can.
Rule      now and then   theta[where] <- phi,   phi a fresh draw from the initialisers (or the birth weights)
Source    Nikishin et al. 2022, "The Primacy Bias in Deep Reinforcement Learning", section 4; D'Oro et al. 2023
          (SR-SAC).
Choices   `where`: head is DrQ's and PLASTIC's scope, output is SPR's last layer, all is SAC's (with on=["*",alpha], so
          that the temperature is born again too). `toward`: fresh draws (rl_with_resets) by default; birth returns to
          theta_0, as SR-SAC's released code does. `optimizer`: moments and step counts of the touched tensors start
          anew; "all" rebuilds the part's optimizer, as PLASTIC does. `target`: the new weights are copied into the
          target; a slow copy of hare_and_tortoise follows the same way, or it would bring the old weights back (our
          inference).
Effects   Function: lost where it acts. theta_0 becomes the new draw (`renew_birth`), which is what l2_init then pulls
          to.
Defaults  the head every 40,000 updates (PLASTIC's DrQ), none with less than one interval left; PLASTIC itself leaves
          out only one at the very end (`when.skip_last=false`). SAC as published: on=["*",alpha], where=[all],
          when.every=200_000, when.unit=env_steps. At replay ratio 1 resets cost more than they bring; at 8 and more
          they pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.events import Context, redraw
from core.intervention import CopyRule, Intervention, OptimizerRule
from core.options import option
from core.part import Part
from core.state import State


@dataclass(kw_only=True)
class Reset(Intervention):
    where: tuple[str, ...] = option(("head",), help="parameters: all, encoder, trunk, head, output or name patterns")
    toward: Literal["fresh", "birth"] = option("fresh", help="a new draw, or the weights at birth")
    optimizer: OptimizerRule = option("touched", help="moments: keep, renew those touched, or all of the part")
    target: CopyRule = option("copy", help="target network: keep, copy the new weights, or redraw with its own_draw")
    slow: CopyRule = option("copy", help="the same for every other slow copy")
    renew_birth: bool = option(True, help="birth weights become the new draw")

    def event(self, part: Part, s: State, ctx: Context) -> State:
        return redraw(
            s,
            ctx,
            part.names(self.where),
            keep=0.0,
            noise=1.0,
            toward=self.toward,
            rules={role: self.target if role == "target" else self.slow for role in s.copies},
            optimizer=self.optimizer,
            renew_birth=self.renew_birth,
        )
