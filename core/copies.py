"""Slow copies of a network, and how they follow it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.part import Part
from core.state import Batch, State, States, weights


def follow(part: Part, states: States, tau: float | Tensor, batch: Batch, role: str = "target") -> States:
    """Let a slow copy follow: copy <- copy + tau (params - copy). tau = 1 is a hard copy.

    That of a member which is not trained (the batch's `alive`) stays.
    """
    s = states[part.name]
    if "alive" in batch:
        tau = tau * batch["alive"].float()
    if part.fused and isinstance(tau, Tensor) and tau.device.type == "cpu" and not tau.any():
        return states  # to move by nothing is to read all weights for nothing; on a GPU, to ask is to wait
    lerp, fast = torch.Tensor.lerp_ if part.fused else torch.lerp, weights(s)
    slow = {k: lerp(c, fast[k], tau) for k, c in s.copies[role].items()}
    return states | {part.name: s._replace(copies=s.copies | {role: slow})}


def averaged(part: Part, s: State, role: str, momentum: float, where: Sequence[str] = ("all",)) -> State:
    """Let selected tensors of a slow copy average the network's: copy <- momentum copy + (1 - momentum) params.

    Their layers' buffers are averaged with them. All other tensors of the copy are the network's own, so that it can be
    played.
    """
    fast, slow = weights(s), s.copies[role]
    moved = {k: slow[k].lerp(fast[k], 1 - momentum) for k in (*part.names(where), *beside(part, s, where))}
    return s._replace(copies=s.copies | {role: fast | moved})


def beside(part: Part, s: State, where: Sequence[str]) -> list[str]:
    """Names of the buffers that go with the selected parameters: running statistics of their layers, and what an
    intervention carries in their place. With "all" it is every buffer, one that belongs to no layer too."""
    if "all" in where:
        return list(s.buffers)
    layers = tuple({name.rpartition(".")[0] + "." for name in part.names(where)})
    return [k for k in s.buffers if k.rpartition("/")[2].startswith(layers)]
