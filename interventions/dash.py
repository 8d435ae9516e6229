"""DASH: weights shrink unless the loss wants them to grow.

Idea      What was learned on old data is feature and memorised noise at once. Weights that point where the negative
          gradient points are features: keep them. Shrink the others, so that the network forgets the noise.
Rule      G <- (1 - alpha) G + alpha (-gradient), batch by batch, from G = 0;   now and then, with the cosine taken
            dense layers    per output row       W[o] <- clip(cos(G[o], W[o]), keep, 1) W[o]
            convolutions    per kernel           W[o, i] <- clip(cos(G[o, i], W[o, i]), keep, 1) W[o, i]
            biases          of a whole layer     b <- clip(cos(G_b, b), keep, 1) b
Source    Shin et al. 2024, "DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of
          Plasticity"; the rule and its direction verified in the released code (aligned weights shrink less; one
          summary in circulation says the opposite of itself).
Choices   G comes from `batches` batches drawn uniformly from all there is. That is our choice: in RL nothing is
          published (mark results as new). As published one batch is one whole chunk of data, in order of arrival, so
          that the newest has weight alpha: `chunks=true`, on supervised streams whose data arrive in chunks.
          docs/findings.md and docs/testbeds.md have uniform batches. The gradient is that of loss and penalties, the
          network as in evaluation (verified for the loss). Normalisation is left alone. On wide dense layers hardly
          any cosine is above `keep`, and DASH shrinks nearly everything by it (our inference).
Effects   Function: damped. Optimizer: its moments are kept (verified for SGD's momentum). Target and slow copies: kept;
          `target=copy` gives them the new weights. Birth weights: kept. No noise is added.
Defaults  keep 0.3, alpha 0.3 (the released ones), 8 batches, every 40,000 updates, none with less than one interval
          left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.events import Context
from core.intervention import Intervention, OptimizerRule
from core.options import option
from core.part import Part, replant
from core.state import State, Tensors


@dataclass(kw_only=True)
class DASH(Intervention):
    keep: float = option(0.3, low=0, high=1, help="least factor: that of weights that do not follow the gradient")
    alpha: float = option(0.3, above=0, high=1, help="share of the newest batch in the gradient's average")
    batches: int = option(8, low=1, help="batches the gradient is averaged over")
    chunks: bool = option(False, help="supervised: over the chunks that have come, each whole, instead of `batches`")
    optimizer: OptimizerRule = option("keep", help="moments: keep, renew those touched, or all of the part")
    target: Literal["keep", "copy"] = option("keep", help="target network: keep, or copy the new weights")
    slow: Literal["keep", "copy"] = option("keep", help="the same for every other slow copy")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not self._names(part):
            chosen = f"[{','.join(self.where)}] selects only gains and shifts of part {part.name}"
            raise ValueError(f"where={chosen}; expected a weight or bias among them")
        return {}

    def event(self, part: Part, s: State, ctx: Context) -> State:
        names = self._names(part)
        follow = {k: torch.zeros_like(s.params[k]) for k in names}
        if self.chunks and not ctx.chunks:
            raise ValueError("chunks=true: no data arrive in chunks here; expected env=testbed/chunks or warm_start")
        for number in range(ctx.chunks if self.chunks else self.batches):
            grads = ctx.step(number, chunk=self.chunks).grads
            follow = {k: g.lerp(-grads[k], self.alpha) for k, g in follow.items()}
        new = {k: shrunk(s.params[k], follow[k], self.keep) for k in names}
        if all(torch.equal(new[k], s.params[k]) for k in names):
            return s
        rules = {role: self.target if role == "target" else self.slow for role in s.copies}
        copies = {role: new for role, rule in rules.items() if rule == "copy"}
        return replant(part, s, new, copies=copies, optimizer=self.optimizer)

    def _names(self, part: Part) -> list[str]:
        norms = part.norm_names()
        return [k for k in part.names(self.where) if k not in norms]


def shrunk(weight: Tensor, follow: Tensor, keep: float) -> Tensor:
    """A tensor of weights, each of its vectors times the clipped cosine with the same vector of `follow`."""
    kernels = weight.ndim > 2
    axes = tuple(range(2 if kernels else weight.ndim - 1, weight.ndim))  # of one vector
    along = (weight * follow).sum(axes, keepdim=True)
    lengths = weight.square().sum(axes, keepdim=True).sqrt() * follow.square().sum(axes, keepdim=True).sqrt()
    return weight * (along / lengths.clamp_min(1e-30)).clamp(keep, 1)
