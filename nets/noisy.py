"""Noisy layers (Fortunato et al. 2018): exploration by learned noise on weights and biases.

    w = mu + sigma * f(e_out) f(e_in)^T,   b = mu_b + sigma_b * f(e_out),   f(x) = sign(x) sqrt |x|,   e ~ N(0, 1)

Factorised, one draw per pass (section 3.2). mu ~ U(-1/sqrt n_in, 1/sqrt n_in), which is torch's own initialiser; sigma
begins at sigma_0 / sqrt n_in, where BBF, SPR and PLASTIC take sigma_0 = 0.5, Dopamine and DQN Zoo 0.1 (verified;
PLASTIC's sigma_b at sigma_0 / sqrt n_out).
A pass of few samples, such as a decision, is made without the drawn matrix, from products with mu and sigma.
Without noise at hand a layer is the plain one of its means: so the networks of a run are evaluated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.randomness import Noise
from core.state import Tensors
from nets.layers import exact

FEW = 16  # samples; forward alone, so many rows are multiplied twice in less time than the matrix takes to be drawn


class NoisyLinear(nn.Linear):
    """[B, n_in] -> [B, n_out]; the draw is read from the buffers `noise_in` and `noise_out`."""

    def __init__(self, n_in: int, n_out: int, sigma: float) -> None:
        super().__init__(n_in, n_out)
        self.weight_sigma = nn.Parameter(torch.full((n_out, n_in), sigma / math.sqrt(n_in)))
        self.bias_sigma = nn.Parameter(torch.full((n_out,), sigma / math.sqrt(n_in)))
        self.register_buffer("noise_in", torch.empty(0), persistent=False)
        self.register_buffer("noise_out", torch.empty(0), persistent=False)
        self.noise_in: Tensor
        self.noise_out: Tensor

    def training_inputs(self, batch_size: int) -> dict[str, Noise]:
        lengths = {"noise_in": self.in_features, "noise_out": self.out_features}
        return {name: Noise("normal", (length,), shared=True) for name, length in lengths.items()}

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of this pass."""
        column, row = self._factors()
        return self.weight + self.weight_sigma * column[:, None] * row, self.bias + self.bias_sigma * column

    def forward(self, x: Tensor) -> Tensor:
        if self.noise_in.numel() == 0:
            return self.product(x, self.weight, self.bias)
        if len(x) > FEW:
            return self.product(x, *self.drawn())
        column, row = self._factors()
        return self.product(x, self.weight, self.bias) + column * self.product(
            x * row, self.weight_sigma, self.bias_sigma
        )

    def product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """f(e_out) and f(e_in)."""
        column, row = (noise.sign() * noise.abs().sqrt() for noise in (self.noise_out, self.noise_in))
        return column, row


class NoisyOutput(NoisyLinear):
    """A noisy last layer. It multiplies in float32 whatever the precision of the hidden ones."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return exact(x, weight, bias)


def noise_of(net: nn.Module) -> dict[str, Noise]:
    """What a pass through a network's noisy layers takes, by buffer; {} if it has none."""
    return {
        f"{path}.{buffer}": noise
        for path, module in net.named_modules()
        if isinstance(module, NoisyLinear)
        for buffer, noise in module.training_inputs(1).items()
    }


def with_noise(numbers: Tensors, noise: Tensors, which: str) -> Tensors:
    """A network's numbers, with those of a declared draw that stand under `which`/."""
    return numbers | {k.removeprefix(f"{which}/"): v for k, v in noise.items() if k.startswith(f"{which}/")}
