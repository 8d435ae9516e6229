"""FIRE: at a boundary every weight matrix becomes the orthogonal matrix nearest to it.

Idea      Plasticity is lost in the spectrum: a few directions grow, the others vanish. Flatten it and keep the
          directions that were learned.
Rule      now and then   W <- sqrt(out / in) / k^2 * NewtonSchulz(W / ||W||_F)   for every k x k kernel tap by tap;
          NewtonSchulz: ten times   X <- 1.5 X - 0.5 X X^T X
Source    Released code of FIRE (github.com/isaac7778/FIRE, verified): iteration, coefficients and scales; its DQN
          experiments do this to convolutions and return dense layers to birth.
Choices   `dense` says what dense layers do: fire, birth as in the released RL code, or keep. Biases (but for those of
          dense layers that go back to birth), gains, shifts and running statistics are left alone. Ten iterations
          bring singular values above a thirtieth of ||W||_F within 2 % of 1; smaller ones stay below (as published).
          The target gets the new weights, moments of what is touched start anew (our choice).
Effects   Function: changed; directions of the features stay. Target and slow copies: copy the new weights. Birth
          weights: kept.
Defaults  all layers every 40,000 updates, none with less than one interval left (our choice).
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

ITERATIONS = 10


@dataclass(kw_only=True)
class FIRE(Intervention):
    dense: Literal["fire", "birth", "keep"] = option("fire", help="dense layers: as all, back to birth, or as they are")
    optimizer: OptimizerRule = option("touched", help="moments: keep, renew those touched, or all of the part")
    target: Literal["keep", "copy"] = option("copy", help="target network: keep, or copy the new weights")
    slow: Literal["keep", "copy"] = option("copy", help="the same for every other slow copy")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if all(params[k].ndim == 2 for k in part.matrices(self.where)) and self.dense == "keep":
            raise ValueError(f"dense=keep: part {part.name} has only dense layers there; nothing would happen")
        return {}

    def event(self, part: Part, s: State, ctx: Context) -> State:
        names = set(part.names(self.where))
        new: Tensors = {}
        for k in part.matrices(self.where):
            if s.params[k].ndim > 2 or self.dense == "fire":
                new[k] = orthogonal(s.params[k])
            elif self.dense == "birth":
                new |= {name: s.birth[name] for name in {k, f"{k.removesuffix('weight')}bias"} & names}
        if all(torch.equal(value, s.params[k]) for k, value in new.items()):
            return s
        rules = {role: self.target if role == "target" else self.slow for role in s.copies}
        copies = {role: new for role, rule in rules.items() if rule == "copy"}
        return replant(part, s, new, copies=copies, optimizer=self.optimizer)


def orthogonal(weight: Tensor) -> Tensor:
    """Every tap of a kernel, or the matrix itself, as a multiple of the nearest orthogonal matrix. [out, in, ...]"""
    taps = weight.flatten(2).movedim(-1, 0) if weight.ndim > 2 else weight[None]  # [taps, out, in]
    x = taps / taps.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
    for _ in range(ITERATIONS):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    x = x * ((weight.shape[0] / weight.shape[1]) ** 0.5 / len(taps))
    return x.movedim(0, -1).reshape(weight.shape) if weight.ndim > 2 else x[0]
