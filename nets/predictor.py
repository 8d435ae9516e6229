"""The network of supervised learners."""

from __future__ import annotations

from torch import Tensor

from core.blueprint import Layer, NetSpec
from core.state import Tensors
from nets.body import Body
from nets.layers import Output, initialise


class Predictor(Body):
    """One linear head, of a supervised learner. [B, *seen_shape] -> [B, outputs]."""

    def __init__(self, seen_shape: tuple[int, ...], outputs: int, spec: NetSpec) -> None:
        super().__init__(seen_shape, spec)
        self.head = initialise(Output(self.trunk.n_out, outputs), spec.init)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        x, feats = self.features(x)
        return self.head(x), feats

    def chains(self) -> list[list[Layer]]:
        return [self.chain(("head",))]
