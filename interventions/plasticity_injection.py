"""Plasticity injection: a newborn head takes over learning, and the output does not change.

Idea      Is learning held back by the head's lost plasticity? Freeze the head, add a newborn one, and subtract the same
          newborn one frozen: the output is what it was, the trainable parameters are as many as before, and newborn.
Rule      Q = h_theta(z) + h_theta'1(z) - h_theta'2(z),   theta'2 = theta'1 at injection;   only theta'1 is trained
Source    Nikishin et al. 2023, "Deep Reinforcement Learning with Plasticity Injection"; torch port by Klein (verified).
Choices   `where` is the head. Gradient flows through all three heads into what lies before them (verified). Adam's
          moments of the head are kept: resetting them hurt in the paper (secondary). Slow copies freeze their own old
          head and get the same newborn one; then they follow, frozen heads included. A second injection freezes theta'1
          and begins again: up to `injections` times; later events select nothing. The birth weights of the head become
          theta'1. A later reset renews the head that learns, and the frozen ones stay. Every forward pass runs 1 + 2 *
          injections times, before the first injection too.
Effects   Function: kept, up to rounding. Target and slow copies: the same injection, functions kept.
Defaults  one injection; every 50,000 updates, the first of which counts. The paper injects once, a quarter into a long
          run; a condition (when.metric) suits as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.events import Context
from core.intervention import Intervention, OptimizerRule
from core.options import option
from core.part import Output, Part, replant
from core.state import State, Tensors


@dataclass(kw_only=True)
class PlasticityInjection(Intervention):
    where: tuple[str, ...] = option(("head",), help="the head: all, encoder, trunk, head, output or name patterns")
    injections: int = option(1, low=1, help="how often it can happen; every one costs two forward passes")
    optimizer: OptimizerRule = option("keep", help="moments of the head: keep, renew those touched, or all of the part")
    renew_birth: bool = option(True, help="birth weights of the head become the newborn ones")

    def carry(self, part: Part, params: Tensors) -> Tensors:
        prefixes = tuple({f"{k.rpartition('.')[0]}.running_" for k in part.names(self.where)})
        if any(name.startswith(prefixes) for name, _ in part.net.named_buffers()):
            raise ValueError(
                f"where=[{','.join(self.where)}] has batch normalisation in part {part.name}, whose running statistics "
                "frozen heads would share; use layer_norm"
            )
        carried: Tensors = {}
        for i in range(self.injections):
            carried[f"{i}/done"] = next(iter(params.values())).new_zeros(())
            for k in part.names(self.where):
                carried |= {f"{i}/frozen/{k}": params[k], f"{i}/newborn/{k}": params[k]}
        return carried

    def forward(self, part: Part, run: Callable[[Tensors], Output], numbers: Tensors) -> Output:
        out, feats = run(numbers)
        for i in range(self.injections):
            frozen, newborn = (
                run(numbers | {k: numbers[f"{self.name}/{i}/{role}/{k}"] for k in part.names(self.where)})[0]
                for role in ("frozen", "newborn")
            )
            out = out + numbers[f"{self.name}/{i}/done"] * (frozen - newborn)
        return out, feats

    def event(self, part: Part, s: State, ctx: Context) -> State:
        free = [i for i in range(self.injections) if not s.buffers[f"{self.name}/{i}/done"]]
        if not free:
            return s
        slot, names = f"{self.name}/{free[0]}", part.names(self.where)
        drawn = ctx.fresh()
        newborn = {k: drawn[k] for k in names}

        def injected(head: Tensors) -> Tensors:
            """What the slot holds for a network with this head."""
            held = {f"{slot}/frozen/{k}": head[k] for k in names}
            held |= {f"{slot}/newborn/{k}": newborn[k] for k in names}
            return held | {f"{slot}/done": torch.ones_like(s.buffers[f"{slot}/done"])}

        return replant(
            part,
            s,
            newborn,
            copies={role: newborn | injected(copy) for role, copy in s.copies.items()},
            birth=newborn if self.renew_birth else None,
            buffers=injected(s.params),
            optimizer=self.optimizer,
        )
