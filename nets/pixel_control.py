"""Networks of actor-critic agents that see frames (Yarats et al. 2021): one encoder, and a bottleneck for each part.

    critics:  frames -> encoder -> [linear, layer norm, tanh] -> with the action -> as many critics as wanted
    actor:    frames -> encoder -> [linear, layer norm, tanh] -> its own layers

The encoder belongs to the critics and learns from their loss alone. The actor carries a copy of it as buffers, numbers
that no optimizer and no reset touches, which its agent renews after every step of the critics.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from core.blueprint import Layer
from core.state import Tensors
from nets.body import DrQ
from nets.layers import NORM_EPS, initialise
from nets.mlp import MLP, Critics, GaussianActor


class Bottleneck(nn.Module):
    """What remains of an encoder's features: tanh(layer norm(linear)). [B, n_in] -> [B, n_out].

    Orthogonal rows are born with length 1, as in DrQ-v2 and, nearly, in jaxrl (flax's own initialiser): the norm takes
    any other away, but the longer the rows, the slower Adam turns them.
    """

    def __init__(self, n_in: int, spec: DrQ) -> None:
        super().__init__()
        self.linear = initialise(nn.Linear(n_in, spec.bottleneck), spec.init, gain=1.0)
        self.norm = nn.LayerNorm(spec.bottleneck, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.float() if x.dtype == torch.bfloat16 else x).tanh()

    def chain(self, prefix: str) -> list[Layer]:
        """Its layers; what reads them mixes them with the action, so none has units of its own."""
        linear = Layer(f"{prefix}.linear", "linear", "head", norm=f"{prefix}.norm")
        return [linear, Layer(f"{prefix}.norm", "norm", "head")]


class PixelCritics(nn.Module):
    """Independent critics behind one encoder and one bottleneck. [B, C, H, W], [B, a] -> [critics, B, bins].

    Instead of frames it takes what the encoder has made of them, [B, features]; that is what it gives without an
    action.
    """

    def __init__(self, count: int, seen_shape: tuple[int, ...], action_dim: int, bins: int, spec: DrQ) -> None:
        super().__init__()
        self.encoder = spec.encoder(seen_shape)
        self.bottleneck = Bottleneck(self.encoder.n_out, spec)
        self.critics = Critics(count, spec.bottleneck, action_dim, bins, spec)

    def forward(self, seen: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensors]:
        seen, feats = _encoded(self.encoder, seen)
        if action is None:
            return seen, feats
        out, f = self.critics(self.bottleneck(seen), action)
        return out, feats | {f"critics.{k}": v for k, v in f.items()}

    def chains(self) -> list[list[Layer]]:
        before = [*self.encoder.chain("encoder", ("bottleneck.linear",)), *self.bottleneck.chain("bottleneck")]
        return [[*before, *_head(chain, "critics")] for chain in self.critics.chains()]


class PixelActor(nn.Module):
    """A policy's own network behind a bottleneck, behind an encoder that it carries but does not train.

    `encoder`: the blueprint of the critics'; `policy`: what reads the bottleneck.
    """

    def __init__(self, encoder: DrQ, policy: GaussianActor | MLP, seen_shape: tuple[int, ...], spec: DrQ) -> None:
        super().__init__()
        self.encoder = encoder.encoder(seen_shape)
        _carry(self.encoder)
        self.bottleneck = Bottleneck(self.encoder.n_out, spec)
        self.policy = policy

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensors]:
        seen, _ = _encoded(self.encoder, seen)
        out, feats = self.policy(self.bottleneck(seen))
        return out, {f"policy.{k}": v for k, v in feats.items()}

    def chains(self) -> list[list[Layer]]:
        return [[*self.bottleneck.chain("bottleneck"), *_head(chain, "policy")] for chain in self.policy.chains()]


def _encoded(encoder: nn.Module, seen: Tensor) -> tuple[Tensor, Tensors]:
    if seen.ndim == 2:
        return seen, {}
    x, feats = encoder(seen)
    return x, {f"encoder.{k}": v for k, v in feats.items()}


def _carry(module: nn.Module) -> None:
    """Turn a module's parameters into buffers of the same names."""
    for inner in module.modules():
        for name, parameter in list(inner.named_parameters(recurse=False)):
            delattr(inner, name)
            inner.register_buffer(name, parameter.data)


def _head(chain: list[Layer], prefix: str) -> list[Layer]:
    """Everything behind the convolutions is "the head", as DrQ's resets have it."""
    return [replace(layer.under(prefix), section="head") for layer in chain]
