"""The optimizer's next step, taken on the side and thrown away."""

from __future__ import annotations

from core.gradients import shortened
from core.optim import Slots
from core.part import Part
from core.state import State, Tensors


def stepped(part: Part, s: State, grads: Tensors) -> tuple[Tensors, Slots]:
    """What training would make of these gradients, shortened as it shortens them. -> parameters, slots."""
    return part.optim.step(s.params, shortened(grads, part.optim.clip_norm), s.optim)
