"""What stands before the outputs of value networks and supervised ones, and the blueprints that `net=` chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from core.blueprint import Activation, Init, Layer, NetSpec, Norm, Section
from core.options import option
from core.state import Tensors
from nets.conv import NATURE, ConvEncoder
from nets.conv_stack import SMALL, VGG_16, ConvStack
from nets.impala import ImpalaEncoder
from nets.mlp import trunk
from nets.resnet import ResNetEncoder
from nets.vit import ViTEncoder

Encoder = ConvEncoder | ImpalaEncoder | ConvStack | ResNetEncoder | ViTEncoder


@dataclass(frozen=True)
class Vectors(NetSpec):
    """Hidden layers on vector observations."""


@dataclass(frozen=True)
class Frames(NetSpec):
    """An encoder of stacked frames, then hidden layers."""

    width: int = option(512, low=1, high=1_000_000, help="units of a hidden layer")
    depth: int = option(1, low=0, high=1_000, help="hidden layers after the convolutions")
    init: Init = option("xavier", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")

    def encoder(self, seen_shape: tuple[int, ...]) -> Encoder:
        """A new encoder of frames [stack, H, W]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Nature(Frames):
    """The Nature DQN's convolutions, then hidden layers. Defaults as Dopamine's Atari-100k agents."""

    padding: Literal["same", "valid"] = option("same", help="of the convolutions: 7,744 features or 3,136")

    def encoder(self, seen_shape: tuple[int, ...]) -> ConvEncoder:
        return ConvEncoder(seen_shape, NATURE, self.padding, self)


@dataclass(frozen=True)
class DrQ(Frames):
    """DrQ's 3 x 3 convolutions, a bottleneck, then hidden layers. Defaults as the reset papers (jaxrl) have them."""

    width: int = option(256, low=1, high=1_000_000, help="units of a hidden layer")
    depth: int = option(2, low=0, high=1_000, help="hidden layers behind the bottleneck")
    init: Init = option("orthogonal", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")
    channels: tuple[int, ...] = option((32, 64, 128, 256), low=1, high=1_000_000, help="of the convolutions")
    strides: tuple[int, ...] = option((2, 2, 2, 2), low=1, help="of the convolutions")
    padding: Literal["same", "valid"] = option("same", help="of the convolutions")
    centred: bool = option(False, help="pixels between -1/2 and 1/2 instead of 0 and 1")
    bottleneck: int = option(50, low=1, high=1_000_000, help="numbers that remain of the frames")

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"strides: {len(self.strides)} given; expected one for each of {len(self.channels)} channels"
            )

    def encoder(self, seen_shape: tuple[int, ...]) -> ConvEncoder:
        plan = [(count, 3, stride) for count, stride in zip(self.channels, self.strides, strict=True)]
        return ConvEncoder(seen_shape, plan, self.padding, self, self.centred)


@dataclass(frozen=True)
class Impala(Frames):
    """IMPALA's residual convolutions, then hidden layers. Widths and depths are BBF's; its scaling of the last features
    to [0, 1] is not here."""

    width: int = option(2048, low=1, high=1_000_000, help="units of a hidden layer")
    scale: int = option(4, low=1, high=1_000, help="factor on the channels 16, 32, 32 of the stages")
    blocks: int = option(2, low=0, high=1_000, help="residual blocks per stage")

    def encoder(self, seen_shape: tuple[int, ...]) -> ImpalaEncoder:
        return ImpalaEncoder(seen_shape, self.scale, self.blocks, self)


@dataclass(frozen=True)
class CNN(Frames):
    """Two convolutions of 5 x 5 with pools, then hidden layers: the small network of Kumar et al. 2023."""

    width: int = option(100, low=1, high=1_000_000, help="units of a hidden layer")
    depth: int = option(2, low=0, high=1_000, help="hidden layers after the convolutions")
    init: Init = option("torch", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")

    def encoder(self, seen_shape: tuple[int, ...]) -> ConvStack:
        return ConvStack(seen_shape, SMALL, 5, self)


@dataclass(frozen=True)
class VGG16(Frames):
    """VGG-16 (Simonyan & Zisserman 2015), for images of any size. Glorot's weights would lose the signal on the way."""

    width: int = option(4096, low=1, high=1_000_000, help="units of a hidden layer")
    depth: int = option(2, low=0, high=1_000, help="hidden layers after the convolutions")
    init: Init = option("orthogonal", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")

    def encoder(self, seen_shape: tuple[int, ...]) -> ConvStack:
        return ConvStack(seen_shape, VGG_16, 3, self)


@dataclass(frozen=True)
class ResNet18(Frames):
    """ResNet-18 with the stem for small images; batch normalisation as published, or net.norm=layer | group | none."""

    depth: int = option(0, low=0, high=1_000, help="hidden layers after the mean over pixels")
    init: Init = option("orthogonal", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")
    norm: Norm = option("batch", help="between a layer and its activation")

    def encoder(self, seen_shape: tuple[int, ...]) -> ResNetEncoder:
        return ResNetEncoder(seen_shape, self)


@dataclass(frozen=True)
class ViT(Frames):
    """A vision transformer of the Tiny size; patch=4 for images of 32 x 32."""

    depth: int = option(0, low=0, high=1_000, help="hidden layers after the mean over patches")
    init: Init = option("xavier", help="orthogonal (_1: gain 1 in linear layers), Glorot, He, torch's own")
    activation: Activation = option("gelu", help="of hidden layers")
    patch: int = option(4, low=1, high=1_000, help="side of a patch, pixels")
    dim: int = option(192, low=1, high=1_000_000, help="of the residual stream")
    blocks: int = option(12, low=0, high=1_000, help="attention and two dense layers each")
    heads: int = option(3, low=1, high=1_000, help="of the attention")

    def encoder(self, seen_shape: tuple[int, ...]) -> ViTEncoder:
        return ViTEncoder(seen_shape, self.patch, self.dim, self.blocks, self.heads, self)


class Body(nn.Module):
    """What stands before the outputs: an encoder where there are frames, and hidden layers."""

    def __init__(self, seen_shape: tuple[int, ...], spec: NetSpec, noisy: float = 0.0) -> None:
        super().__init__()
        image = len(seen_shape) > 1
        if isinstance(spec, DrQ):
            raise ValueError("net: drq is made for an actor and critics that share it; use net=nature or impala")
        if image != isinstance(spec, Frames):
            fitting = "nature, impala, cnn, vgg16, resnet18 or vit" if image else "mlp"
            raise ValueError(f"net: observations of shape {seen_shape} do not fit; use net={fitting}")
        self.encoder = spec.encoder(seen_shape) if isinstance(spec, Frames) else None
        self.n_encoded = self.encoder.n_out if self.encoder else seen_shape[0]
        self.trunk = trunk(self.n_encoded, spec, noisy)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """[B, *seen_shape] -> [B, n_encoded] and the encoder's features; vectors as they are."""
        if not self.encoder:
            return x, {}
        x, feats = self.encoder(x)
        return x, {f"encoder.{k}": v for k, v in feats.items()}

    def features(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """[B, *seen_shape] -> last hidden layer [B, trunk.n_out], features of every layer."""
        x, feats = self.encoded(x)
        x, f = self.trunk(x)
        return x, feats | {f"trunk.{k}": v for k, v in f.items()}

    def chain(self, heads: tuple[str, ...]) -> list[Layer]:
        """Its layers, and the linear heads that read them."""
        return self.paths({"trunk": heads})[0]

    def paths(self, heads: dict[str, tuple[str, ...]]) -> list[list[Layer]]:
        """Through the encoder and each of these trunks, by name, to the linear heads that read it."""
        # with an encoder, everything after the convolutions is "the head", as DrQ and PLASTIC reset it
        section: Section = "head" if self.encoder else "trunk"
        hidden = [getattr(self, trunk).chain(trunk, section, mine) for trunk, mine in heads.items()]
        encoder: list[Layer] = []
        if self.encoder:
            firsts = [(chain[0].name,) if chain else mine for chain, mine in zip(hidden, heads.values(), strict=True)]
            encoder = self.encoder.chain("encoder", tuple(name for names in firsts for name in names))
        last = [[Layer(name, "linear", "head", output=True) for name in mine] for mine in heads.values()]
        return [[*encoder, *chain, *output] for chain, output in zip(hidden, last, strict=True)]
