"""Plain stacks of convolutions with max-pools between: the small networks of the supervised papers, and VGG-16."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.blueprint import Layer, NetSpec
from core.state import Tensors
from nets.activations import activation, halves
from nets.layers import hidden, hidden_chain, initialise, normalisation, units

POOL = 0  # in a plan: halve the sides
SMALL = (16, POOL, 16, POOL)
VGG_16 = (64, 64, POOL, 128, 128, POOL, *(256, 256, 256, POOL), *(512, 512, 512, POOL), *(512, 512, 512, POOL))


class ConvStack(nn.Module):
    """uint8 [B, C, H, W] -> [B, features]. Each number of `plan` is a convolution with so many channels that keeps the
    sides; a pool that would leave nothing is left out. Pixels are divided by 255."""

    def __init__(self, seen_shape: tuple[int, ...], plan: Sequence[int], kernel: int, spec: NetSpec) -> None:
        super().__init__()
        channels, *sides = seen_shape
        self.spec = spec
        self.pooled: list[bool] = []  # behind each convolution
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for count in plan:
            if count == POOL:
                self.pooled[-1] = min(sides) > 1
                sides = [side // 2 if min(sides) > 1 else side for side in sides]
                continue
            out = units(count, spec)
            self.convs.append(initialise(nn.Conv2d(channels, out, kernel, padding=kernel // 2), spec.init))
            self.norms.append(normalisation(out, spec, image=True))
            self.acts.append(activation(spec, (out, *sides)))
            self.pooled.append(False)
            channels = halves(spec) * out
        self.n_out = channels * math.prod(sides)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensors]:
        x = (frames.float() / 255).contiguous(memory_format=torch.channels_last)
        feats: Tensors = {}
        for i, (conv, norm, act, pooled) in enumerate(zip(self.convs, self.norms, self.acts, self.pooled, strict=True)):
            x = hidden(x, i, conv, norm, act, feats)
            x = F.max_pool2d(x, 2) if pooled else x
        return x.flatten(-3), feats

    def chain(self, prefix: str, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them."""
        names = [(f"{prefix}.convs.{i}", f"{prefix}.norms.{i}", f"{prefix}.h{i}") for i in range(len(self.convs))]
        return hidden_chain(names, "conv", "encoder", readers, self.spec)
