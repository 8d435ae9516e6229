"""A vision transformer for small images (Dosovitskiy et al. 2021; the Tiny size of Touvron et al. 2021).

    patches -> linear + position -> N x [x + attention(LN x);  x + W2 act(W1 LN x)] -> LN -> mean over patches

Pre-normalised, GELU, no dropout and no class token (the mean over patches does as well: Beyer et al. 2022). The
residual stream belongs to no single layer, so the units that can be recycled are those inside a block, one unit over
all patches.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.blueprint import LAST, Layer, NetSpec
from core.state import Tensors
from nets.activations import activation, halves
from nets.layers import NORM_EPS, initialise, rectified, refuse_norms, units


class Attention(nn.Module):
    """Self-attention of several heads. [B, N, d] -> the same."""

    def __init__(self, dim: int, heads: int, init: str) -> None:
        super().__init__()
        self.heads = heads
        self.mix_in, self.mix_out = (initialise(nn.Linear(dim, n), init) for n in (3 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mix_in(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        return self.mix_out(F.scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """x + attention(LN x), then x + W2 act(W1 LN x). [B, N, d] -> the same."""

    def __init__(self, dim: int, heads: int, count: int, spec: NetSpec) -> None:
        super().__init__()
        inside = units(4 * dim, spec)
        self.norm_in, self.norm = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = Attention(dim, heads, spec.init)
        self.first = initialise(nn.Linear(dim, inside), spec.init)
        self.act = activation(spec, (inside, count))
        self.second = initialise(nn.Linear(halves(spec) * inside, dim), spec.init)

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        x = x + self.attention(self.norm_in(x))
        inside = self.first(self.norm(x)).transpose(-2, -1)  # [B, units, N]: units first, as everywhere
        return x + self.second(rectified(inside, self.act, name, feats).transpose(-2, -1))

    def layers(self, name: str, spec: NetSpec) -> list[Layer]:
        first, second = f"{name}.first", f"{name}.second"
        return [
            Layer(f"{name}.norm_in", "norm", "encoder"),
            Layer(f"{name}.attention.mix_in", "linear", "encoder"),
            Layer(f"{name}.attention.mix_out", "linear", "encoder"),
            Layer(f"{name}.norm", "norm", "encoder"),
            Layer(first, "linear", "encoder", name, (second,), halves=halves(spec)),
            Layer(second, "linear", "encoder"),
        ]


class ViTEncoder(nn.Module):
    """uint8 [B, C, H, W] -> [B, dim]. Pixels are divided by 255; sides must hold whole patches."""

    def __init__(
        self, seen_shape: tuple[int, ...], patch: int, dim: int, blocks: int, heads: int, spec: NetSpec
    ) -> None:
        super().__init__()
        channels, *sides = seen_shape
        if any(side % patch for side in sides):
            raise ValueError(f"net.patch: {patch} given; images of {tuple(sides)} do not hold whole patches of it")
        if dim % heads:
            raise ValueError(f"net.heads: {heads} given; expected a divisor of dim={dim}")
        refuse_norms(spec, "vit")
        self.spec, self.n_out = spec, dim
        count = (sides[0] // patch) * (sides[1] // patch)
        self.patches = initialise(nn.Conv2d(channels, dim, patch, patch), spec.init)
        self.position = initialise(nn.Linear(count, dim), spec.init)  # of a patch's number, one-hot
        self.blocks = nn.ModuleList(Block(dim, heads, count, spec) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensors]:
        x = self.patches(frames.float() / 255).flatten(-2).transpose(-2, -1)
        x = x + self.position(torch.eye(x.shape[-2], device=x.device))
        feats: Tensors = {}
        for i, block in enumerate(self.blocks):
            x = block(x, f"blocks.{i}", feats)
        feats[LAST] = self.norm(x).mean(-2)
        return feats[LAST], feats

    def chain(self, prefix: str, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them; nobody owns what the `readers` read."""
        layers = [Layer("patches", "conv", "encoder"), Layer("position", "linear", "encoder")]
        for i, block in enumerate(self.blocks):
            layers += cast(Block, block).layers(f"blocks.{i}", self.spec)
        return [layer.under(prefix) for layer in [*layers, Layer("norm", "norm", "encoder")]]
