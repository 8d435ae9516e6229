"""ReDo: units that have fallen silent begin life again.

Idea      A dormant unit neither contributes nor learns. Give it newborn incoming weights and no say in what follows:
          the network's function hardly changes, and the unit can find something to do.
Rule      score_i = E|h_i| / mean_j E|h_j|, h after the activation; now and then, for every unit with score <=
          threshold:   incoming weights <- fresh draw, outgoing weights <- 0
Source    Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", algorithm 1; Dopamine's
          released code (verified), whose class defaults (0, every 200,000 updates) are not the paper's.
Choices   Outgoing columns are those of the unit's own channel at every pixel where an image is flattened: Dopamine's
          mask does not line up with the channels there. Biases of the layers that read the unit stay: zeroing them
          makes new dormant units. Gain and shift of the unit's normalisation begin again with it. Moments of the
          recycled entries, biases included, start at 0 (Dopamine leaves those of biases). Adam's step count stays
          (Dopamine); `steps=renew` gives every entry a count of its own, so that a recycled weight's first step has
          the size of the learning rate. A unit takes part if its layer and all its readers are in `where`; the
          network's outputs are no units in this sense.
Effects   Function: kept at threshold 0 without normalisation behind the layer, nearly kept otherwise. Target: kept
          (verified); other slow copies: kept. Birth weights: kept.
Defaults  threshold 0.1 every 1,000 updates (the paper's at replay ratio 1; 0.025 at 0.25), scores from two batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.diagnostics.units import scores
from core.events import Context
from core.options import option
from core.part import Part
from core.recycle import Recycling, recyclable
from core.state import State


@dataclass(kw_only=True)
class ReDo(Recycling):
    threshold: float = option(0.1, low=0, help="units with at most this score are dormant")
    batches: int = option(2, low=1, help="batches the scores are taken from")

    def event(self, part: Part, s: State, ctx: Context) -> State:
        steps = [ctx.step(k) for k in range(self.batches)]
        dormant = {}
        for layer in recyclable(part, self.where):
            h = torch.cat([step.outcome.feats[layer.feats] for step in steps])
            dormant[layer.name] = scores(h, layer.halves) <= self.threshold
        return self.recycled(s, ctx, dormant)
