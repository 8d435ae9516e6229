"""The pieces networks are made of: initialisers, normalisation, and the bookkeeping of layers and features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.blueprint import PRE, Kind, Layer, NetSpec, Section
from core.randomness import Noise
from core.state import Tensors
from nets.activations import halves

GROUP = 16  # channels that are normalised together
NORM_EPS = 1e-6  # as flax and the published Atari code have it; torch's default is 1e-5


def initialise(module: nn.Linear | nn.Conv2d, init: str, gain: float = math.sqrt(2)):
    """Draw a linear or convolution layer's weights; biases are zero except with torch's own initialiser.

    "orthogonal": gain as given (jaxrl's SAC uses sqrt 2 everywhere), "orthogonal_1": 1 in linear layers (DrQ-v2,
    SimBa); "xavier": Glorot uniform (Dopamine's Rainbow); "he": Kaiming normal; "torch": torch's default, Kaiming
    uniform with a = sqrt 5.
    """
    if init.startswith("orthogonal"):
        nn.init.orthogonal_(module.weight, 1.0 if init == "orthogonal_1" and isinstance(module, nn.Linear) else gain)
    elif init == "he":
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif init == "xavier":
        nn.init.xavier_uniform_(module.weight)
    if init != "torch" and module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class Output(nn.Linear):
    """A network's last layer. It multiplies in float32 whatever the precision of the hidden ones: values are compared
    with targets that differ by less than bfloat16 can tell."""

    def forward(self, x: Tensor) -> Tensor:
        return exact(x, self.weight, self.bias)


def outputs(x: Tensor, *layers: Output) -> Tensor:
    """What small last layers of equal size make of the same features, as one product. [B, d] -> [B, layers, units]"""
    weight, bias = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return exact(x, weight, bias).unflatten(-1, (len(layers), -1))


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map in float32, whatever the precision around it."""
    if not torch.is_autocast_enabled(x.device.type):  # to switch off what is off takes longer than a small product
        return F.linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), weight, bias)


def refuse_norms(spec: NetSpec, name: str) -> None:
    """Raises ValueError if a blueprint asks a network that has normalisation of its own for more."""
    if spec.norm != "none" or spec.dropout:
        raise ValueError(
            f"net: {name} has layer normalisation of its own and no dropout; "
            "leave out layer_norm, batch_norm, normalize_and_project and dropout"
        )


def units(count: int, spec: NetSpec) -> int:
    """Units of a hidden layer that the blueprint's factor makes of `count`."""
    return max(1, round(count * spec.units))


def normalisation(units: int, spec: NetSpec, *, image: bool = False) -> nn.Module:
    """What stands between a layer and its activation: nothing, or a normalisation.

    Layer normalisation of a convolution runs over (C, H, W) of a sample ("image"), or C at every pixel ("channel", as
    PLASTIC has it); group normalisation over (H, W) and GROUP channels (Wu & He 2018, table 3: no worse than 32
    groups). Of a linear layer both run over all units.
    """
    if spec.norm == "none":
        return nn.Identity()
    if spec.norm == "batch":
        return BatchNorm(units)
    if not image:
        return nn.LayerNorm(units, eps=NORM_EPS)
    if spec.norm == "group":
        return nn.GroupNorm(units // math.gcd(units, GROUP), units, eps=NORM_EPS)
    if spec.norm_axes == "image":
        return nn.GroupNorm(1, units, eps=NORM_EPS)
    return ChannelNorm(units, eps=NORM_EPS)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel. [B, C, H, W] -> the same."""

    def forward(self, x):
        return super().forward(x.movedim(-3, -1)).movedim(-1, -3)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015), as a function: running statistics are handed in and handed out.

    Training (the buffer `training_now` has an entry): the batch's statistics; evaluation: the running ones.
    """

    def __init__(self, units: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(units)), nn.Parameter(torch.zeros(units))
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_var", torch.ones(units))
        self.register_buffer("training_now", torch.empty(0), persistent=False)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.training_now: Tensor

    def training_inputs(self, batch_size: int) -> dict[str, Noise]:
        return {"training_now": Noise("uniform", (1,))}

    def statistics(self, x: Tensor) -> Tensors:
        """Running statistics after this batch; {} in evaluation."""
        if self.training_now.numel() == 0:
            return {}
        mean, var, count = self._moments(x)
        unbiased = var * (count / max(count - 1, 1))
        return {
            "running_mean": self.running_mean.lerp(mean, self.momentum).detach(),
            "running_var": self.running_var.lerp(unbiased, self.momentum).detach(),
        }

    def forward(self, x: Tensor) -> Tensor:
        if self.training_now.numel() == 0:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var, _ = self._moments(x)
        shape = (-1,) + (1,) * (x.ndim - 2)
        scale = self.weight * (var + self.eps).rsqrt()
        return x * scale.reshape(shape) + (self.bias - mean * scale).reshape(shape)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        axes = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(x, dim=axes, correction=0)
        return mean, var, x.numel() // x.shape[1]


class Standardise(nn.Module):
    """(x - mean) / sqrt(var + eps), by numbers that its agent keeps up to date. [B, d] -> the same."""

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.mean: Tensor
        self.var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * (self.var + self.eps).rsqrt()


def hidden(x: Tensor, i: int, layer: nn.Module, norm: nn.Module, act: nn.Module, feats: Tensors) -> Tensor:
    """Hidden layer i of a plain stack: layer -> normalisation -> activation. Writes its features."""
    return rectified(normalised(layer(x), norm, f"norms.{i}", feats), act, f"h{i}", feats)


def normalised(x: Tensor, norm: nn.Module, name: str, feats: Tensors) -> Tensor:
    """x behind the normalisation that the network holds under `name`. Writes what it has counted."""
    if isinstance(norm, nn.Identity):
        return x  # in bfloat16 too: what comes next would round it again
    if isinstance(norm, BatchNorm):
        feats |= {f"{name}.{statistic}": value for statistic, value in norm.statistics(x).items()}
    return norm(x.float() if x.dtype == torch.bfloat16 else x)


def rectified(x: Tensor, act: nn.Module, key: str, feats: Tensors) -> Tensor:
    """x behind its activation. Writes both as features of the layer with this key."""
    feats[key + PRE] = x
    feats[key] = x = act(x)
    return x


def hidden_chain(
    names: list[tuple[str, str, str]], kind: Kind, section: Section, readers: tuple[str, ...], spec: NetSpec
) -> list[Layer]:
    """Layers of a plain stack. names: (layer, norm, feature key) in forward order; `readers` read the last one."""
    chain = []
    for i, (layer, norm, feats) in enumerate(names):
        following = (names[i + 1][0],) if i + 1 < len(names) else readers
        norm = norm if spec.norm != "none" else ""
        chain.append(Layer(layer, kind, section, feats=feats, readers=following, norm=norm, halves=halves(spec)))
        if norm:
            chain.append(Layer(norm, "norm", section))
    return chain
