"""The network of value-based agents: action values from a plain or dueling head."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from core.blueprint import Layer, NetSpec
from core.state import Tensors
from nets.body import Body
from nets.layers import Output, initialise
from nets.mlp import trunk
from nets.noisy import NoisyOutput


class QNetwork(Body):
    """Action values. [B, *seen_shape] -> [B, actions, bins].

    Dueling (Wang et al. 2016): out = V + A - mean over actions of A, per bin, before any softmax. The two streams share
    their hidden layers, as in Dopamine, or each has its own, as in the paper, Rainbow and PLASTIC. `noisy`: sigma_0 of
    noisy layers behind the encoder; 0 for plain ones. `encoder_gradient`: factor on the gradient that enters the
    encoder; the paper scales the two streams' sum by 1 / sqrt 2 (section 4.2).
    """

    def __init__(
        self,
        seen_shape: tuple[int, ...],
        actions: int,
        bins: int,
        dueling: bool,
        spec: NetSpec,
        *,
        streams: Literal["shared", "separate"] = "shared",
        noisy: float = 0.0,
        encoder_gradient: float = 1.0,
    ) -> None:
        super().__init__(seen_shape, spec, noisy)

        def head(n_out: int) -> Output | NoisyOutput:
            n_in = self.trunk.n_out
            return NoisyOutput(n_in, n_out, noisy) if noisy else initialise(Output(n_in, n_out), spec.init)

        self.shape, self.encoder_gradient = (actions, bins), encoder_gradient
        self.advantage = head(actions * bins)
        self.value = head(bins) if dueling else None
        separate = dueling and streams == "separate"
        self.value_trunk = trunk(self.n_encoded, replace(spec, auxiliary=0), noisy) if separate else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        x, feats = self.encoded(x)
        if self.encoder_gradient != 1:
            x = self.encoder_gradient * x + (1 - self.encoder_gradient) * x.detach()
        hidden, f = self.trunk(x)
        feats |= {f"trunk.{k}": v for k, v in f.items()}
        out = self.advantage(hidden).unflatten(-1, self.shape)
        if self.value_trunk:
            hidden, f = self.value_trunk(x)
            feats |= {f"value_trunk.{k}": v for k, v in f.items()}
        if self.value:
            out = out - out.mean(-2, keepdim=True) + self.value(hidden).unsqueeze(-2)
        return out, feats

    def chains(self) -> list[list[Layer]]:
        if self.value_trunk:
            return self.paths({"trunk": ("advantage",), "value_trunk": ("value",)})
        return [self.chain(("advantage", "value") if self.value else ("advantage",))]
