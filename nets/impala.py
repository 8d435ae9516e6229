"""The residual encoder of IMPALA (Espeholt et al. 2018, figure 3, right), widened as in BBF (Schwarzer et al. 2023)."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.blueprint import Layer, NetSpec
from core.state import Tensors
from nets.activations import activation, halves
from nets.layers import initialise, normalisation, normalised, rectified, units

CHANNELS = (16, 32, 32)  # of the three stages, before widening


class Block(nn.Module):
    """x + second(act(norm(first(act(norm(x)))))). [B, C, H, W] -> the same.

    The units of `first` are read by `second` alone. Those of `second` join the residual stream, which is nobody's own:
    it has features of no layer.
    """

    def __init__(self, channels: int, sides: list[int], spec: NetSpec) -> None:
        super().__init__()
        shape, wide = (channels, *sides), halves(spec) * channels
        self.norm_in, self.act_in = normalisation(channels, spec, image=True), activation(spec, shape)
        self.first = initialise(nn.Conv2d(wide, channels, 3, padding=1), spec.init)
        self.norm, self.act = normalisation(channels, spec, image=True), activation(spec, shape)
        self.second = initialise(nn.Conv2d(wide, channels, 3, padding=1), spec.init)

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        h = self.first(self.act_in(normalised(x, self.norm_in, f"{name}.norm_in", feats)))
        return x + self.second(rectified(normalised(h, self.norm, f"{name}.norm", feats), self.act, name, feats))

    def layers(self, name: str, spec: NetSpec) -> list[Layer]:
        norms = [Layer(f"{name}.{norm}", "norm", "encoder") for norm in ("norm_in", "norm") if spec.norm != "none"]
        norm = f"{name}.norm" if norms else ""
        first, second = f"{name}.first", f"{name}.second"
        middle = Layer(first, "conv", "encoder", name, (second,), norm=norm, halves=halves(spec))
        return [*norms[:1], middle, *norms[1:], Layer(second, "conv", "encoder")]


class Stage(nn.Module):
    """A convolution, a max-pool of stride 2 and residual blocks. [B, c, H, W] -> [B, C, H / 2 rounded up, ...]."""

    def __init__(self, c: int, channels: int, sides: list[int], blocks: int, spec: NetSpec) -> None:
        super().__init__()
        self.conv = initialise(nn.Conv2d(c, channels, 3, padding=1), spec.init)
        self.sides = [math.ceil(side / 2) for side in sides]
        self.padding = [side % 2 for side in sides]  # windows of 3 as flax's SAME lays them
        self.blocks = nn.ModuleList(Block(channels, self.sides, spec) for _ in range(blocks))

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        x = F.max_pool2d(self.conv(x), 3, 2, self.padding, ceil_mode=True)
        for i, block in enumerate(self.blocks):
            x = block(x, f"{name}.blocks.{i}", feats)
        return x

    def layers(self, name: str, spec: NetSpec) -> list[Layer]:
        blocks = [cast(Block, b).layers(f"{name}.blocks.{i}", spec) for i, b in enumerate(self.blocks)]
        return [Layer(f"{name}.conv", "conv", "encoder"), *(layer for block in blocks for layer in block)]


class ImpalaEncoder(nn.Module):
    """Three stages, then a rectifier. uint8 [B, stack, H, W] -> [B, features]; 84 -> 42 -> 21 -> 11.

    15 convolutions at two blocks per stage. Normalisation, where there is one, stands before every rectifier. Pixels
    are divided by 255.
    """

    def __init__(self, seen_shape: tuple[int, ...], scale: int, blocks: int, spec: NetSpec) -> None:
        super().__init__()
        channels, *sides = seen_shape
        self.spec, self.stages = spec, nn.ModuleList()
        for count in CHANNELS:
            out = units(scale * count, spec)
            stage = Stage(channels, out, sides, blocks, spec)
            self.stages.append(stage)
            channels, sides = out, stage.sides
        self.norm, self.act = normalisation(channels, spec, image=True), activation(spec, (channels, *sides))
        self.n_out = halves(spec) * channels * math.prod(sides)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensors]:
        x = (frames.float() / 255).contiguous(memory_format=torch.channels_last)
        feats: Tensors = {}
        for i, stage in enumerate(self.stages):
            x = stage(x, f"stages.{i}", feats)
        return self.act(normalised(x, self.norm, "norm", feats)).flatten(-3), feats

    def chain(self, prefix: str, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them; nobody owns what the `readers` read."""
        stages = [cast(Stage, s).layers(f"stages.{i}", self.spec) for i, s in enumerate(self.stages)]
        layers = [layer.under(prefix) for stage in stages for layer in stage]
        return layers + [Layer(f"{prefix}.norm", "norm", "encoder") for _ in range(self.spec.norm != "none")]
