"""The pieces networks are made of: initialisers, normalisation, and the bookkeeping of layers and features."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn

from core.blueprint import Kind, Layer, NetSpec, Section

NORM_EPS = 1e-6  # as flax and the published Atari code have it; torch's default is 1e-5


def initialise(module: nn.Linear | nn.Conv2d, init: str, gain: float = math.sqrt(2)):
    """Draw a linear or convolution layer's weights; biases are zero except with torch's own initialiser.

    "orthogonal": gain as given (jaxrl's SAC uses sqrt 2 everywhere); "xavier": Glorot uniform (Dopamine's Rainbow);
    "torch": torch's default, Kaiming uniform with a = sqrt 5.
    """
    if init == "orthogonal":
        nn.init.orthogonal_(module.weight, gain)
        nn.init.zeros_(cast(Tensor, module.bias))
    elif init == "xavier":
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(cast(Tensor, module.bias))
    return module


def normalisation(units: int, spec: NetSpec, *, image: bool = False) -> nn.Module:
    """What stands between a layer and its activation: nothing, or layer normalisation.

    For a convolution the axes are (C, H, W) of a sample ("image"), or C at every pixel ("channel", as PLASTIC has it).
    """
    if spec.norm == "none":
        return nn.Identity()
    if not image:
        return nn.LayerNorm(units, eps=NORM_EPS)
    if spec.norm_axes == "image":
        return nn.GroupNorm(1, units, eps=NORM_EPS)
    return ChannelNorm(units, eps=NORM_EPS)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel. [B, C, H, W] -> the same."""

    def forward(self, x):
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


def hidden_chain(
    names: list[tuple[str, str, str]], kind: Kind, section: Section, readers: tuple[str, ...], spec: NetSpec
) -> list[Layer]:
    """Layers of a plain stack. names: (layer, norm, feature key) in forward order; `readers` read the last one."""
    chain = []
    for i, (layer, norm, feats) in enumerate(names):
        following = (names[i + 1][0],) if i + 1 < len(names) else readers
        chain.append(Layer(layer, kind, section, feats=feats, readers=following))
        if spec.norm != "none":
            chain.append(Layer(norm, "norm", section))
    return chain
