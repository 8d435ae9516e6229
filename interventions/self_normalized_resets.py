"""Self-normalized resets: a unit begins life again when it has been silent for longer than it ever is.

Idea      Some units fire often, others rarely and rightly so. Judge each by its own record: silence that its own
          inter-firing times make unlikely is death.
Rule      gap = samples between two firings (h > 0); a unit whose silence reaches the `percentile` quantile of its own
          gaps, and at least one batch, begins again:   incoming weights <- fresh draw, outgoing weights <- 0
Source    Farias & Jozefiak 2024, "Self-Normalized Resets for Plasticity in Continual Learning"; released code
          (verified) for gaps counted in samples and thresholds between one batch and a maximum.
Choices   Gaps are tallied in bins that double in width, so that a quantile costs 32 numbers per unit; the threshold is
          the upper edge of its bin. The record is that of the unit's whole life; the released code takes it anew every
          few tasks, and doubles a threshold where the new one would be larger. No unit is judged before `gaps`
          firings. Outgoing weights and Adam's moments as in `redo` (our inference). A channel fires on a sample if it
          does at any pixel, a unit of CReLU if one of its halves does, a unit of GELU or AID if what it says is
          positive. Judged when `when` comes, while gaps are counted in every update.
Effects   Function: behind a rectifier a silent unit says nothing, so it is kept, except for what it would have said to
          rare inputs; with GELU and AID the negative numbers it says are lost. Target and other slow copies: kept.
          Birth weights: kept.
Defaults  percentile 0.98, judged every 100 updates; rare features want a higher percentile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.events import Context
from core.options import option
from core.part import Part, Step
from core.recycle import Recycling, recyclable
from core.state import State, Tensors

BINS = 32  # of gaps: 1, 2, 3-4, 5-8, ... samples


@dataclass(kw_only=True)
class SelfNormalizedResets(Recycling):
    percentile: float = option(0.98, above=0, high=1, help="quantile of a unit's gaps that its silence must reach")
    gaps: int = option(100, low=1, help="firings before a unit is judged")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        super().remember(part, params)
        memory: Tensors = {"batch": next(iter(params.values())).new_zeros(())}
        for layer in recyclable(part, self.where):
            units = params[f"{layer.name}.weight"]
            memory[f"silent/{layer.name}"] = units.new_zeros(len(units))
            memory[f"tally/{layer.name}"] = units.new_zeros(len(units), BINS)
        return memory

    def after_step(self, part: Part, s: State, step: Step) -> State:
        memory = s.memory[self.name]
        new: Tensors = {}
        for layer in recyclable(part, self.where):
            h = step.outcome.feats[layer.feats]
            fired = firing(h, layer.halves)
            gaps, silent = gaps_of(fired, memory[f"silent/{layer.name}"])
            bins = gaps.clamp_min(1).log2().ceil().clamp_max(BINS - 1).long()
            new[f"silent/{layer.name}"] = silent
            new[f"tally/{layer.name}"] = memory[f"tally/{layer.name}"].scatter_add(1, bins, fired.float())
            new["batch"] = torch.full_like(memory["batch"], len(h))
        return s._replace(memory=s.memory | {self.name: memory | new})

    def event(self, part: Part, s: State, ctx: Context) -> State:
        memory, chosen = s.memory[self.name], {}
        for layer in recyclable(part, self.where):
            tally, silent = memory[f"tally/{layer.name}"], memory[f"silent/{layer.name}"]
            threshold = quantile(tally, self.percentile).maximum(memory["batch"])
            chosen[layer.name] = (tally.sum(1) >= self.gaps) & (silent >= threshold)
        new = self.recycled(s, ctx, chosen)
        if new is s:
            return s
        begun = {}
        for name, units in chosen.items():
            begun[f"silent/{name}"] = memory[f"silent/{name}"].masked_fill(units, 0.0)
            begun[f"tally/{name}"] = memory[f"tally/{name}"].masked_fill(units[:, None], 0.0)
        return new._replace(memory=s.memory | {self.name: memory | begun})


def firing(h: Tensor, halves: int = 1) -> Tensor:
    """Whether a unit has h > 0, at any pixel and in either of its halves. [B, f, ...] -> bool [units, B]"""
    fired = (h > 0).unflatten(1, (halves, -1)).transpose(0, 2)  # [units, halves, B, ...]
    return fired.any(1).flatten(1).unflatten(1, (len(h), -1)).any(2)


def gaps_of(fired: Tensor, silent: Tensor) -> tuple[Tensor, Tensor]:
    """Samples since the last firing, at each sample, and at the end. fired [units, B], silent [units] before them.

    -> gaps [units, B], of meaning where `fired`; silent [units] after them.
    """
    position = torch.arange(fired.shape[1], device=fired.device, dtype=silent.dtype)
    latest = torch.where(fired, position, -1.0 - silent[:, None]).cummax(1).values
    before = torch.cat([-1.0 - silent[:, None], latest[:, :-1]], 1)
    return position - before, fired.shape[1] - 1 - latest[:, -1]


def quantile(tally: Tensor, share: float) -> Tensor:
    """The upper edge of the bin in which a share of each unit's gaps is reached. [units, bins] -> [units]"""
    reached = tally.cumsum(1) >= share * tally.sum(1, keepdim=True)
    return 2.0 ** reached.float().argmax(1)
