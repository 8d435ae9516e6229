"""What an event of an intervention works with: what it may ask for, and the one core of resets and of Shrink &
Perturb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.clock import Clock
from core.controls import Control
from core.intervention import CopyRule, OptimizerRule
from core.part import Part, Step, replant
from core.randomness import fork_torch
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
    # batch number k of this seed with its noise, of the event's own; so many samples, 0: as many as an update takes; or
    # with a third argument, true, chunk number k of the data, whole
    sample: Callable[..., tuple[Batch, Tensors]]
    shared: frozenset[str] = frozenset()  # of that noise, what does not lead with samples
    control: Control = "none"
    chunks: int = 0  # in which the data have come; 0 if they came otherwise

    def fresh(self, purpose: str = "params") -> Tensors:
        """A new draw from the initialisers, a function of (seed, intervention, part, purpose, time) alone.

        The control "birth" gets the weights at birth instead.
        """
        drawn = self.part.fresh(self.seed, self._stream(purpose), *self._time())
        drawn = {k: value.to(self.device) for k, value in drawn.items()}
        return drawn | self.states[self.part.name].birth if self.control == "birth" else drawn

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, a function of the same."""
        with fork_torch(self.seed, self._stream(purpose), *self._time()):
            return torch.randn(*shape).to(self.device)

    def _stream(self, purpose: str) -> str:
        return f"event/{self.instance}/{self.part.name}/{purpose}"

    def _time(self) -> tuple[int, ...]:
        return self.clock.updates, self.clock.agent_steps, self.clock.tasks

    def step(self, number: int = 0, size: int = 0, chunk: bool = False, gradients: bool = True) -> Step:
        """Loss, features and gradient of this part on a batch of its own, or on a chunk of the data, whole; the network
        runs as in evaluation."""
        at = (self.states, *self.sample(number, size, chunk))
        grads, outcome = self.part.gradient(*at, observing=True) if gradients else ({}, self.part.outcome(*at))
        return Step(*at[1:], outcome, grads, self.states, self.shared)


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
    renew_statistics: bool = False,
) -> State:
    """theta <- keep theta + noise phi on the named tensors: the one core of resets and of Shrink & Perturb.

    phi is a fresh draw or the birth weights. `rules` says for each slow copy: "keep" it, "copy" the new weights, or
    apply the rule to the copy's own values with the "same_draw" or its "own_draw". Where nothing is kept, or with
    `renew_statistics`, the running statistics of the layers concerned begin anew as well.
    """
    part = ctx.part
    prefixes = tuple({name.rpartition(".")[0] + "." for name in names})
    counted = [k for k in s.buffers if k.startswith(prefixes)] if renew_statistics or not keep else []

    def mix(theta: Tensors, phi: Tensors) -> Tensors:
        return {k: (keep * theta[k] if keep else 0.0) + noise * phi[k] for k in names}

    phi = ctx.fresh() if toward == "fresh" else s.birth
    new = mix(s.params, phi)
    buffers = {k: value for k, value in ctx.fresh().items() if k in counted} if counted else {}
    copies: dict[str, Tensors] = {}
    for role, rule in rules.items():
        if rule == "copy":
            copies[role] = {k: p.clone() for k, p in new.items()}
        elif rule == "same_draw":
            copies[role] = mix(s.copies[role], phi)
        elif rule == "own_draw":
            copies[role] = mix(s.copies[role], ctx.fresh(role) if toward == "fresh" else s.birth)
        if rule != "keep":
            copies[role] |= {k: value.clone() for k, value in buffers.items()}
    birth = {k: phi[k] for k in names} if renew_birth else None
    return replant(part, s, new, copies=copies, birth=birth, buffers=buffers, optimizer=optimizer)
