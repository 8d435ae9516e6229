"""What a network is before it has numbers: the blueprint it is built from, and the map of layers it gives of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from core.options import option
from core.state import Tensors

Section = Literal["encoder", "trunk", "head"]
SECTIONS = ("encoder", "trunk", "head", "output")  # words that select layers
Kind = Literal["linear", "conv", "norm"]
Init = Literal["orthogonal", "orthogonal_1", "xavier", "he", "torch"]
Norm = Literal["none", "layer", "group", "batch"]
Activation = Literal["relu", "gelu", "crelu", "aid"]
LAST = "last"  # key of the features that output layers read, where they are no single layer's
PRE = ".pre"  # a layer's pre-activations are features too, under its key with this behind it


@dataclass(frozen=True)
class Layer:
    """A network's own map of itself, written by the network, never guessed."""

    name: str  # prefix of its parameters: "encoder.convs.0"
    kind: Kind
    section: Section
    feats: str = ""  # key of the post-activation features of its units; "" if it has none
    readers: tuple[str, ...] = ()  # layers whose input columns read these units
    output: bool = False  # its units are the network's outputs
    norm: str = ""  # the normalisation behind it, in front of any activation; "" if there is none
    halves: int = 1  # features per unit: 2 behind CReLU, first all positive parts, then all negative ones

    def under(self, prefix: str) -> Layer:
        """The same layer seen from a network that holds this one as `prefix`."""
        return replace(
            self,
            name=f"{prefix}.{self.name}",
            feats=f"{prefix}.{self.feats}" if self.feats else "",
            readers=tuple(f"{prefix}.{reader}" for reader in self.readers),
            norm=f"{prefix}.{self.norm}" if self.norm else "",
        )


@dataclass(frozen=True)
class NetSpec:
    """The blueprint of a network; interventions may edit it before birth."""

    width: int = option(256, low=1, high=1_000_000, help="units of a hidden layer")
    depth: int = option(2, low=0, high=1_000, help="hidden layers")
    init: Init = option("orthogonal", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")
    norm: Norm = option("none", help="between a layer and its activation")
    norm_axes: Literal["image", "channel"] = option("image", help="of a convolution: (C, H, W), or C at each pixel")
    activation: Activation = option("relu", help="of hidden layers")
    aid_keep: float = option(0.99, low=0, high=1, help="activation=aid: share of positive parts that pass")
    dropout: float = option(0.0, low=0, high=1, help="share of a dense layer's features that are zeroed in training")
    units: float = option(1.0, above=0, help="factor on the units of every hidden layer")
    auxiliary: int = option(0, low=0, help="linear heads on the last hidden layer, beside the output")

    def acting(self) -> NetSpec:
        """The blueprint of an actor beside critics of this one."""
        return self


class Network(Protocol):
    """What a Part asks of its module: a forward that returns (output, features), and a map of its layers."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensors]: ...

    def chains(self) -> list[list[Layer]]: ...  # forward order, one chain per path (an ensemble has several)
