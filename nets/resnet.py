"""ResNet-18 with the stem for small images (He et al. 2016; the CIFAR form that the warm-start papers use)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from core.blueprint import LAST, Layer, NetSpec
from core.state import Tensors
from nets.activations import activation, halves
from nets.layers import initialise, normalisation, normalised, rectified, units

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels, stride of the first of two blocks


class Block(nn.Module):
    """act(norm(second(act(norm(first(x))))) + shortcut(x)). [B, c, H, W] -> [B, C, H / stride, W / stride].

    The units of `first` are read by `second` alone. Those of `second` join the residual stream, which is nobody's own:
    it has features of no layer.
    """

    def __init__(self, wide: int, channels: int, stride: int, sides: list[int], spec: NetSpec) -> None:
        super().__init__()
        shape, inner = (channels, *sides), halves(spec) * channels
        self.first = initialise(nn.Conv2d(wide, channels, 3, stride, padding=1), spec.init)
        self.norm, self.act = normalisation(channels, spec, image=True), activation(spec, shape)
        self.second = initialise(nn.Conv2d(inner, channels, 3, padding=1), spec.init)
        self.norm_second = normalisation(channels, spec, image=True)
        self.shortcut, self.norm_shortcut = None, None
        if stride != 1 or wide != channels:
            self.shortcut = initialise(nn.Conv2d(wide, channels, 1, stride), spec.init)
            self.norm_shortcut = normalisation(channels, spec, image=True)
        self.act_out = activation(spec, shape)

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        h = rectified(normalised(self.first(x), self.norm, f"{name}.norm", feats), self.act, name, feats)
        y = normalised(self.second(h), self.norm_second, f"{name}.norm_second", feats)
        if self.shortcut is not None:
            x = normalised(self.shortcut(x), cast(nn.Module, self.norm_shortcut), f"{name}.norm_shortcut", feats)
        return self.act_out(x + y)

    def layers(self, name: str, spec: NetSpec) -> list[Layer]:
        first, second = f"{name}.first", f"{name}.second"
        norm, norm_second, norm_shortcut = (
            f"{name}.{norm}" if spec.norm != "none" else "" for norm in ("norm", "norm_second", "norm_shortcut")
        )
        found = [Layer(first, "conv", "encoder", name, (second,), norm=norm, halves=halves(spec))]
        found += [Layer(norm, "norm", "encoder")] if norm else []
        found += [Layer(second, "conv", "encoder", norm=norm_second)]
        found += [Layer(norm_second, "norm", "encoder")] if norm else []
        if self.shortcut is not None:
            found += [Layer(f"{name}.shortcut", "conv", "encoder", norm=norm_shortcut)]
            found += [Layer(norm_shortcut, "norm", "encoder")] if norm else []
        return found


class ResNetEncoder(nn.Module):
    """A convolution, eight blocks, the mean over pixels. uint8 [B, C, H, W] -> [B, 512]. Pixels are divided by 255.

    Convolutions have biases, unlike the published ones: in front of a normalisation they do nothing, without one they
    are needed.
    """

    def __init__(self, seen_shape: tuple[int, ...], spec: NetSpec) -> None:
        super().__init__()
        channels, *sides = seen_shape
        self.spec, out = spec, units(STAGES[0][0], spec)
        self.stem = initialise(nn.Conv2d(channels, out, 3, padding=1), spec.init)
        self.norm, self.act = normalisation(out, spec, image=True), activation(spec, (out, *sides))
        self.blocks = nn.ModuleList()
        wide = halves(spec) * out
        for count, stride in STAGES:
            out = units(count, spec)
            for step in (stride, 1):
                sides = [-(-side // step) for side in sides]
                self.blocks.append(Block(wide, out, step, sides, spec))
                wide = halves(spec) * out
        self.n_out = wide

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensors]:
        x = (frames.float() / 255).contiguous(memory_format=torch.channels_last)
        feats: Tensors = {}
        x = self.act(normalised(self.stem(x), self.norm, "norm", feats))
        for i, block in enumerate(self.blocks):
            x = block(x, f"blocks.{i}", feats)
        feats[LAST] = x.mean((-2, -1))
        return feats[LAST], feats

    def chain(self, prefix: str, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them; nobody owns what the `readers` read."""
        norm = "norm" if self.spec.norm != "none" else ""
        layers = [Layer("stem", "conv", "encoder", norm=norm)]
        layers += [Layer(norm, "norm", "encoder")] if norm else []
        for i, block in enumerate(self.blocks):
            layers += cast(Block, block).layers(f"blocks.{i}", self.spec)
        return [layer.under(prefix) for layer in layers]
