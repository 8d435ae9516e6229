"""Parseval regularisation: a penalty that holds the rows of every weight matrix orthonormal.

Idea      Orthogonal layers pass gradients on without loss; keep the whole spectrum flat, not only its largest value.
Rule      loss + weight * sum over layers of ||W W^T - scale I||_F^2
Source    Cisse et al. 2017, "Parseval Networks"; Chung et al. 2024, "Parseval Regularization for Continual
          Reinforcement Learning"; coefficients and scale 1 verified in FIRE's code.
Choices   Kernels are read as (out, in * height * width). Where a layer has more outputs than inputs the penalty has no
          zero: its rows cannot all be orthogonal. `scale=2` fits networks born orthogonal with gain sqrt 2. Biases,
          gains and shifts are left alone; the output layer takes part unless `where` leaves it out.
Effects   Function: changes slowly. Optimizer: sees the penalty's gradient. Target and slow copies: follow.
Defaults  weight 1e-3, scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class Parseval(Intervention):
    weight: float = option(1e-3, low=0, help="coefficient")
    scale: float = option(1.0, above=0, help="squared length that rows are to have")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        part.matrices(self.where)  # nothing to regularise is an error now, not in an hour
        return {}

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        total: Tensor | float = 0.0
        for k in part.matrices(self.where):
            rows = params[k].flatten(1)
            identity = torch.eye(len(rows), device=rows.device)
            total = total + (rows @ rows.T - self.scale * identity).square().sum()
        return self.weight * total
