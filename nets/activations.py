"""What follows a hidden layer: activations and dropout.

Random masks enter as the buffer `uniform`, drawn anew for every update; an empty one means evaluation. So a network
holds no generator, and one compiled update serves all seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.blueprint import NetSpec
from core.randomness import Noise


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class CReLU(nn.Module):
    """[ReLU(x), ReLU(-x)] along the units (Shang et al. 2016): of each pair one passes the gradient.

    [B, units, ...] -> [B, 2 units, ...].
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x), F.relu(-x)], dim=1)


class Masked(nn.Module):
    """Has one uniform number per sample and feature in training."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("uniform", torch.empty(0), persistent=False)
        self.uniform: Tensor

    def training_inputs(self, batch_size: int) -> dict[str, Noise]:
        return {"uniform": Noise("uniform", (batch_size, *self.shape))}

    @property
    def evaluating(self) -> bool:
        return self.uniform.numel() == 0


class AID(Masked):
    """Activation by interval-wise dropout: the positive part with probability `keep`, else the negative part.

    In evaluation their expectation: keep x above 0, (1 - keep) x below.
    """

    def __init__(self, shape: Sequence[int], keep: float) -> None:
        super().__init__(shape)
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        if self.evaluating:
            return torch.where(x > 0, self.keep * x, (1 - self.keep) * x)
        return torch.where(self.uniform < self.keep, F.relu(x), -F.relu(-x))


class Dropout(Masked):
    """Zeroes a share of the features in training and scales up the rest (Srivastava et al. 2014)."""

    def __init__(self, shape: Sequence[int], rate: float) -> None:
        super().__init__(shape)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x if self.evaluating else x * (self.uniform >= self.rate) / (1 - self.rate)


def halves(spec: NetSpec) -> int:
    """Features per unit behind the blueprint's activation."""
    return 2 if spec.activation == "crelu" else 1


def activation(spec: NetSpec, shape: Sequence[int]) -> nn.Module:
    """What the blueprint asks for, behind a layer with outputs of this shape."""
    if spec.activation == "aid":
        return AID(shape, spec.aid_keep)
    return {"relu": ReLU, "gelu": nn.GELU, "crelu": CReLU}[spec.activation]()
