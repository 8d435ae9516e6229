"""The network of value-based agents: action values from a plain or dueling head."""

from __future__ import annotations

from torch import Tensor

from core.blueprint import Layer, NetSpec
from core.state import Tensors
from nets.body import Body
from nets.layers import Output, initialise


class QNetwork(Body):
    """Action values. [B, *seen_shape] -> [B, actions, bins].

    Dueling (Wang et al. 2016): out = V + A - mean over actions of A, per bin, before any softmax; both streams are
    linear heads on the shared hidden layer, as in Dopamine.
    """

    def __init__(self, seen_shape: tuple[int, ...], actions: int, bins: int, dueling: bool, spec: NetSpec) -> None:
        super().__init__(seen_shape, spec)
        self.shape = (actions, bins)
        self.advantage = initialise(Output(self.trunk.n_out, actions * bins), spec.init)
        self.value = initialise(Output(self.trunk.n_out, bins), spec.init) if dueling else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        x, feats = self.features(x)
        out = self.advantage(x).unflatten(-1, self.shape)
        if self.value:
            out = out - out.mean(-2, keepdim=True) + self.value(x).unsqueeze(-2)
        return out, feats

    def chains(self) -> list[list[Layer]]:
        return [self.chain(("advantage", "value") if self.value else ("advantage",))]
