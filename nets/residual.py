"""Residual hidden layers for vectors: SimBa (Lee et al. 2025) and BroNet (Nauman et al. 2024).

    SimBa:   linear -> N x [x + W2 relu(W1 layer norm(x))] -> layer norm,  W1 four times as wide (verified in its code;
             He's initialiser is flax's but for its truncation)
    BroNet:  linear, layer norm, relu -> N x [x + LN(W2 relu(LN(W1 x)))]   (verified in BRO's code)

BroNet's first rectifier stays one whatever the activation: the stream keeps its width. Both stand where plain layers
would, with a smaller actor beside large critics. What flows along the residual stream belongs to no single layer, so
only the units inside a block can be recycled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from core.blueprint import LAST, Init, Layer, NetSpec, Section
from core.options import option
from core.randomness import beside
from core.state import Tensors
from nets.activations import activation, halves
from nets.layers import NORM_EPS, Output, initialise, rectified, refuse_norms, units


@dataclass(frozen=True)
class Residual(NetSpec):
    """What the two have in common."""

    width: int = option(512, low=1, high=1_000_000, help="of the critics' residual stream")
    depth: int = option(2, low=0, high=1_000, help="residual blocks of the critics")
    actor_width: int = option(128, low=1, high=1_000_000, help="of the actor's residual stream")
    actor_depth: int = option(1, low=0, high=1_000, help="residual blocks of the actor")

    def acting(self) -> Residual:
        return replace(self, width=self.actor_width, depth=self.actor_depth)

    def trunk(self, n_in: int) -> ResidualTrunk:
        """New hidden layers of vectors [B, n_in]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Simba(Residual):
    """SimBa's residual blocks on vector observations."""

    init: Init = option("orthogonal_1", help="of the first and the last layers; the blocks' are He's")

    def trunk(self, n_in: int) -> ResidualTrunk:
        return ResidualTrunk(n_in, self, [SimbaBlock(self.width, self) for _ in range(self.depth)], norm_last=True)


@dataclass(frozen=True)
class Bro(Residual):
    """BroNet's residual blocks on vector observations."""

    actor_width: int = option(256, low=1, high=1_000_000, help="of the actor's residual stream")

    def trunk(self, n_in: int) -> ResidualTrunk:
        return ResidualTrunk(n_in, self, [BroBlock(self.width, self) for _ in range(self.depth)], norm_last=False)


class SimbaBlock(nn.Module):
    """x + W2 act(W1 norm(x)). [B, width] -> the same."""

    def __init__(self, width: int, spec: NetSpec) -> None:
        super().__init__()
        inside = units(4 * width, spec)
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPS)
        self.first = initialise(nn.Linear(width, inside), "he")
        self.act = activation(spec, (inside,))
        self.second = initialise(nn.Linear(halves(spec) * inside, width), "he")

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        return x + self.second(rectified(self.first(self.norm_in(x)), self.act, name, feats))

    def layers(self, name: str, section: Section, spec: NetSpec) -> list[Layer]:
        first = Layer(f"{name}.first", "linear", section, name, (f"{name}.second",), halves=halves(spec))
        return [Layer(f"{name}.norm_in", "norm", section), first, Layer(f"{name}.second", "linear", section)]


class BroBlock(nn.Module):
    """x + norm(W2 act(norm(W1 x))). [B, width] -> the same."""

    def __init__(self, width: int, spec: NetSpec) -> None:
        super().__init__()
        inside = units(width, spec)
        self.first, self.norm = initialise(nn.Linear(width, inside), spec.init), nn.LayerNorm(inside, eps=NORM_EPS)
        self.act = activation(spec, (inside,))
        self.second = initialise(nn.Linear(halves(spec) * inside, width), spec.init)
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, name: str, feats: Tensors) -> Tensor:
        return x + self.norm_out(self.second(rectified(self.norm(self.first(x)), self.act, name, feats)))

    def layers(self, name: str, section: Section, spec: NetSpec) -> list[Layer]:
        norm, reader = f"{name}.norm", (f"{name}.second",)
        first = Layer(f"{name}.first", "linear", section, name, reader, norm=norm, halves=halves(spec))
        second = Layer(f"{name}.second", "linear", section, norm=f"{name}.norm_out")
        return [first, Layer(norm, "norm", section), second, Layer(f"{name}.norm_out", "norm", section)]


class ResidualTrunk(nn.Module):
    """A linear layer and residual blocks. [B, n_in] -> [B, n_out].

    `norm_last`: normalise behind the blocks (SimBa), not behind the first layer with a rectifier (BRO).
    """

    def __init__(self, n_in: int, spec: Residual, blocks: list, norm_last: bool) -> None:
        super().__init__()
        refuse_norms(spec, type(spec).__name__.lower())
        self.spec, self.n_out, self.norm_last = spec, spec.width, norm_last
        self.first = initialise(nn.Linear(n_in, spec.width), spec.init)
        self.norm = nn.LayerNorm(spec.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(blocks)
        if spec.auxiliary:
            with beside():
                self.auxiliary = initialise(Output(self.n_out, spec.auxiliary), spec.init)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        feats: Tensors = {}
        x = self.first(x)
        x = x if self.norm_last else self.norm(x).relu()
        for i, block in enumerate(self.blocks):
            x = block(x, f"blocks.{i}", feats)
        feats[LAST] = x = self.norm(x) if self.norm_last else x
        if self.spec.auxiliary:
            feats["auxiliary"] = self.auxiliary(x)
        return x, feats

    def chain(self, prefix: str, section: Section, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them; nobody owns what the `readers` read."""
        norm = [Layer("norm", "norm", section)]
        first = Layer("first", "linear", section, norm="" if self.norm_last else "norm")
        blocks = [cast(SimbaBlock, b).layers(f"blocks.{i}", section, self.spec) for i, b in enumerate(self.blocks)]
        inner = [layer for block in blocks for layer in block]
        layers = [first, *inner, *norm] if self.norm_last else [first, *norm, *inner]
        return [layer.under(prefix) for layer in layers]
