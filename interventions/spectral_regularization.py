"""Spectral regularisation: a penalty that holds the largest singular value of every layer near 1.

Idea      A network whose layers neither stretch nor squash keeps gradients diverse. The largest singular value is what
          grows; hold it, and leave the rest free.
Rule      loss + weight * sum over layers of (sigma_max(W)^k - 1)^2 + ||b||^(2k)
Source    Lewandowski et al. 2024, "Learning Continually by Spectral Regularization" (secondary: formula, k = 2, one
          power iteration per step; the reshaping of kernels and the coefficient are our inference).
Choices   sigma_max by one step of power iteration per update on a vector that is kept; gradient through u^T W v alone.
          Kernels are read as (out, in * height * width). A normalisation's gain is a diagonal matrix: its largest
          absolute entry is held near 1, its shift is a bias. After a redraw the vector is the old matrix's and finds
          the new value within some tens of updates. Not spectral normalisation, which divides by sigma.
Effects   Function: changes slowly. Optimizer: sees the penalty's gradient. Target and slow copies: follow.
Defaults  weight 1e-4, k 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors

WARM_UP = 100  # power iterations at birth: within about 1 % of the largest value of a random matrix


@dataclass(kw_only=True)
class SpectralRegularization(Intervention):
    weight: float = option(1e-4, low=0, help="coefficient")
    power: int = option(2, low=1, help="k: exponent of the singular value, and half that of the bias norm")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        vectors = {}
        for k in part.matrices(self.where):
            matrix = params[k].flatten(1)
            u = torch.ones_like(matrix[:, 0])
            for _ in range(WARM_UP):
                u = advance(matrix, u)
            vectors[k] = u
        return vectors

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        total: Tensor | float = 0.0
        gains = {f"{layer.name}.weight" for layer in part.layers if layer.kind == "norm"}
        vectors = s.memory[self.name]
        for k in (k for k in part.names(self.where) if not k.endswith("_sigma")):
            if k in vectors:
                u = vectors[k]
                v = F.normalize(s.params[k].flatten(1).T @ u, dim=0)
                total = total + ((u @ params[k].flatten(1) @ v) ** self.power - 1).square()
            elif k in gains:
                total = total + (params[k].abs().amax() ** self.power - 1).square()
            else:
                total = total + params[k].square().sum() ** self.power
        return self.weight * total

    def after_step(self, part: Part, s: State, step: Step) -> State:
        memory = s.memory[self.name]
        advanced = {k: advance(s.params[k].flatten(1), memory[k]) for k in part.matrices(self.where)}
        return s._replace(memory=s.memory | {self.name: memory | advanced})


def advance(matrix: Tensor, u: Tensor) -> Tensor:
    """One power iteration towards the first left singular vector. [out, in], [out] -> [out]"""
    return F.normalize(matrix @ F.normalize(matrix.T @ u, dim=0), dim=0)
