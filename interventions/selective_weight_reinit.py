"""Selective weight reinitialization: at all times the least useful single weights are drawn again.

Idea      Units are a coarse unit of renewal: in small networks, and behind layer normalisation, resetting a whole one
          breaks more than it gives. Renew single weights.
Rule      utility |theta g| (g the gradient of a batch) or |theta|; in every tensor the share `rate` of the entries with
          the lowest utility   <- fresh draw
Source    Hernandez-Garcia et al. 2025, "Reinitializing weights vs units for maintaining plasticity in neural
          networks" (secondary: the paper's summary; gradient utility with redrawn weights held up there, redrawing to
          the mean did not).
Choices   The gradient is that of loss and penalties, the network as in evaluation. A share per tensor, drawn without
          accumulating fractions: at least one entry. Biases and the gains and shifts of normalisation are tensors like
          others. Moments of redrawn entries start at 0; Adam's step count stays. Not `soft_weight_rescaling`, which
          goes by the same initials.
Effects   Function: nearly kept, as the weights that matter least are taken. Target: kept; slow copies: kept. Birth
          weights: kept.
Defaults  0.1 % of each tensor by gradient utility, every 1,000 updates (our choice for RL).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.events import Context
from core.intervention import Intervention
from core.options import option
from core.part import Part
from core.state import State


@dataclass(kw_only=True)
class SelectiveWeightReinit(Intervention):
    rate: float = option(1e-3, above=0, high=1, help="share of each tensor's entries, at least one")
    utility: Literal["gradient", "magnitude"] = option("gradient", help="|weight x gradient|, or |weight|")
    toward: Literal["fresh", "birth", "zero"] = option("fresh", help="a new draw, the weights at birth, or 0")
    optimizer: Literal["keep", "touched"] = option("touched", help="moments of redrawn entries: keep, or start at 0")
    target: Literal["keep", "copy"] = option("keep", help="target network: keep, or copy the new entries")
    slow: Literal["keep", "copy"] = option("keep", help="the same for every other slow copy")

    def event(self, part: Part, s: State, ctx: Context) -> State:
        names = part.names(self.where)
        by_gradient = self.utility == "gradient"
        grads = ctx.step().grads if by_gradient else {}
        drawn = ctx.fresh() if self.toward == "fresh" else s.birth
        lowest, new = {}, {}
        for k in names:
            p = s.params[k]
            lowest[k] = least(p * grads[k] if by_gradient else p, self.rate)
            new[k] = torch.where(lowest[k], 0.0 if self.toward == "zero" else drawn[k], p)
        if all(torch.equal(new[k], s.params[k]) for k in names):
            return s  # everything chosen is what it would become
        optim, copies = dict(s.optim), dict(s.copies)
        if self.optimizer == "touched":
            for slot, old in s.optim.items():
                if slot != "t" or part.optim.elementwise:  # else one step count for all entries of a tensor
                    optim[slot] = old | {k: old[k].masked_fill(lowest[k], 0.0) for k in names}
        for role, old in s.copies.items():
            if (self.target if role == "target" else self.slow) == "copy":
                copies[role] = old | {k: torch.where(lowest[k], new[k], old[k]) for k in names}
        return s._replace(params=s.params | new, optim=optim, copies=copies)


def least(utility: Tensor, share: float) -> Tensor:
    """The share of entries with the least absolute value, at least one. -> bool, same shape"""
    count = max(1, round(share * utility.numel()))
    indices = utility.abs().flatten().argsort(stable=True)[:count]
    return torch.zeros_like(utility, dtype=torch.bool).flatten().index_fill(0, indices, True).view_as(utility)
