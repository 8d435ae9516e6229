"""Encoders of stacked frames: convolutions in a row."""

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

# channels, kernel, stride of the Nature DQN (Mnih et al. 2015)
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))


class ConvEncoder(nn.Module):
    """Convolutions of (channels, kernel, stride) in a row. uint8 [B, stack, H, W] -> [B, features].

    padding "same" (flax, Dopamine) or "valid" (most PyTorch code): the Nature DQN's three make 84 -> 21 -> 11 -> 11,
    7,744 features, or 84 -> 20 -> 9 -> 7, 3,136 features. Pixels are divided by 255, and lie around 0 if `centred`.
    """

    def __init__(
        self,
        seen_shape: tuple[int, ...],
        plan: Sequence[tuple[int, int, int]],
        padding: str,
        spec: NetSpec,
        centred: bool = False,
    ) -> None:
        super().__init__()
        channels, *sides = seen_shape
        self.spec, self.pads, self.middle = spec, [], 0.5 if centred else 0.0
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for count, kernel, stride in plan:
            out = units(count, spec)
            pads = [_same_padding(side, kernel, stride) if padding == "same" else (0, 0) for side in sides]
            sides = [(side + sum(pad) - kernel) // stride + 1 for side, pad in zip(sides, pads, strict=True)]
            if min(sides) < 1:
                raise ValueError(f"net: frames of {seen_shape[1:]} are too small for its {len(plan)} convolutions")
            self.pads.append((*pads[1], *pads[0]))  # F.pad wants the last axis first
            self.convs.append(initialise(nn.Conv2d(channels, out, kernel, stride), spec.init))
            self.norms.append(normalisation(out, spec, image=True))
            self.acts.append(activation(spec, (out, *sides)))
            channels = halves(spec) * out
        self.n_out = channels * math.prod(sides)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensors]:
        x = frames.float() / 255
        x = (x - self.middle if self.middle else x).contiguous(memory_format=torch.channels_last)
        feats: Tensors = {}
        for i, (conv, norm, act, pad) in enumerate(zip(self.convs, self.norms, self.acts, self.pads, strict=True)):
            x = hidden(F.pad(x, pad) if any(pad) else x, i, conv, norm, act, feats)
        return x.flatten(-3), feats

    def chain(self, prefix: str, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them."""
        names = [(f"{prefix}.convs.{i}", f"{prefix}.norms.{i}", f"{prefix}.h{i}") for i in range(len(self.convs))]
        return hidden_chain(names, "conv", "encoder", readers, self.spec)


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis so that it comes out at ceil(side / stride), as TensorFlow and flax do it."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
