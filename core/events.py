"""What an event of an intervention works with: what it may ask for, and the one core of resets and of Shrink &
Perturb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from core.clock import Clock
from core.intervention import CopyRule, OptimizerRule
from core.part import Part, Step, replant
from core.state import Batch, State, States, Tensors


@dataclass
class Context:
    """What an event may ask for; one seed, one part, one moment."""

    part: Part
    states: States  # of this seed
    clock: Clock
    seed: int
    instance: str  # name of the intervention
    device: torch.device | str
    sample: Callable[[], tuple[Batch, Tensors]]  # a batch of this seed with its noise, from the event's own stream

    def fresh(self, purpose: str = "params") -> Tensors:
        """A new draw from the initialisers, a function of (seed, intervention, part, purpose, time) alone."""
        stream = f"event/{self.instance}/{self.part.name}/{purpose}"
        count = (self.clock.updates, self.clock.agent_steps, self.clock.tasks)
        return {k: p.to(self.device) for k, p in self.part.fresh(self.seed, stream, *count).items()}

    def step(self) -> Step:
        """Loss, features and gradient of this part on a batch of its own."""
        batch, noise = self.sample()
        grads, outcome = self.part.gradient(self.states, batch, noise)
        return Step(batch, noise, outcome, grads)


def redraw(
    s: State,
    ctx: Context,
    names: Sequence[str],
    *,
    keep: float,
    noise: float,
    toward: Literal["fresh", "birth"],
    rules: dict[str, CopyRule],
    optimizer: OptimizerRule,
    renew_birth: bool,
) -> State:
    """theta <- keep theta + noise phi on the named tensors: the one core of resets and of Shrink & Perturb.

    phi is a fresh draw or the birth weights. `rules` says for each slow copy: "keep" it, "copy" the new weights, or
    apply the rule to the copy's own values with the "same_draw" or its "own_draw".
    """
    part = ctx.part

    def mix(theta: Tensors, phi: Tensors) -> Tensors:
        return {k: (keep * theta[k] if keep else 0.0) + noise * phi[k] for k in names}

    phi = ctx.fresh() if toward == "fresh" else s.birth
    new = mix(s.params, phi)
    copies = {}
    for role, rule in rules.items():
        if rule == "copy":
            copies[role] = {k: p.clone() for k, p in new.items()}
        elif rule == "same_draw":
            copies[role] = mix(s.copies[role], phi)
        elif rule == "own_draw":
            copies[role] = mix(s.copies[role], ctx.fresh(role) if toward == "fresh" else s.birth)
    birth = {k: phi[k] for k in names} if renew_birth else None
    return replant(part, s, new, copies=copies, birth=birth, optimizer=optimizer)
