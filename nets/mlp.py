"""Multi-layer perceptrons and what is built from them: ensembles of critics, Gaussian actors, the temperature."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from core.blueprint import Layer, NetSpec, Section
from core.randomness import beside
from core.state import Tensors
from nets.activations import Dropout, activation, halves
from nets.layers import Output, Standardise, hidden, hidden_chain, initialise, normalisation, outputs, units
from nets.noisy import NoisyLinear
from nets.residual import Residual, ResidualTrunk


class Trunk(nn.Module):
    """Hidden layers: [linear, norm, activation, dropout] x depth. [B, n_in] -> [B, n_out].

    `noisy`: sigma_0 of noisy layers; 0 for plain ones.
    """

    def __init__(self, n_in: int, spec: NetSpec, noisy: float = 0.0) -> None:
        super().__init__()
        width = units(spec.width, spec)
        self.acts = nn.ModuleList(activation(spec, (width,)) for _ in range(spec.depth))
        widths = [n_in] + [halves(spec) * width] * spec.depth
        self.spec, self.n_out = spec, widths[-1]
        self.layers = nn.ModuleList(dense(a, width, spec, noisy) for a in widths[:-1])
        self.norms = nn.ModuleList(normalisation(width, spec) for _ in self.layers)
        self.drops = nn.ModuleList(Dropout((self.n_out,), spec.dropout) for _ in self.layers if spec.dropout)
        if spec.auxiliary:
            with beside():
                self.auxiliary = initialise(Output(self.n_out, spec.auxiliary), spec.init)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        feats: Tensors = {}
        for i, (layer, norm, act) in enumerate(zip(self.layers, self.norms, self.acts, strict=True)):
            x = hidden(x, i, layer, norm, act, feats)
            if self.drops:
                x = self.drops[i](x)
        if self.spec.auxiliary:
            feats["auxiliary"] = self.auxiliary(x)
        return x, feats

    def chain(self, prefix: str, section: Section, readers: tuple[str, ...]) -> list[Layer]:
        """Its layers as the network that holds it under `prefix` sees them."""
        names = [(f"{prefix}.layers.{i}", f"{prefix}.norms.{i}", f"{prefix}.h{i}") for i in range(self.spec.depth)]
        return hidden_chain(names, "linear", section, readers, self.spec)


def trunk(n_in: int, spec: NetSpec, noisy: float = 0.0) -> Trunk | ResidualTrunk:
    """The hidden layers a blueprint asks for."""
    if not isinstance(spec, Residual):
        return Trunk(n_in, spec, noisy)
    if noisy:
        raise ValueError("net: residual layers have no noise; use net=mlp, or agent.noisy=0")
    return spec.trunk(n_in)


def dense(n_in: int, n_out: int, spec: NetSpec, noisy: float = 0.0) -> nn.Linear:
    """A hidden layer as newly drawn; with noise if sigma_0 = `noisy` is not 0."""
    return NoisyLinear(n_in, n_out, noisy) if noisy else initialise(nn.Linear(n_in, n_out), spec.init)


class MLP(nn.Module):
    """Trunk and a linear head. [B, n_in] -> [B, n_out]."""

    def __init__(self, n_in: int, n_out: int, spec: NetSpec) -> None:
        super().__init__()
        self.trunk = trunk(n_in, spec)
        self.head = initialise(Output(self.trunk.n_out, n_out), spec.init)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        x, feats = self.trunk(x)
        return self.head(x), {f"trunk.{k}": v for k, v in feats.items()}

    def chains(self) -> list[list[Layer]]:
        return [[*self.trunk.chain("trunk", "trunk", ("head",)), Layer("head", "linear", "head", output=True)]]


class Critics(nn.Module):
    """Independent critics of (observation, action). [B, d], [B, a] -> [critics, B, bins]."""

    def __init__(
        self, count: int, obs_dim: int, action_dim: int, bins: int, spec: NetSpec, standardise: bool = False
    ) -> None:
        super().__init__()
        self.standardise = Standardise(obs_dim) if standardise else None
        self.q = nn.ModuleList(MLP(obs_dim + action_dim, bins, spec) for _ in range(count))

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensors]:
        x = torch.cat([self.standardise(obs) if self.standardise else obs, action], -1)
        if self.launches_cost(x) and len(self.q) > 1:
            return self._together(x)
        outs: list[Tensor] = []
        feats: Tensors = {}
        for i, q in enumerate(self.q):
            out, f = q(x)
            outs.append(out)
            feats |= {f"q.{i}.{k}": v for k, v in f.items()}
        return torch.stack(outs), feats

    @staticmethod
    def launches_cost(x: Tensor) -> bool:
        """Where fewer and larger kernels are faster: compiled on a GPU. On a CPU they only take longer to compile."""
        return x.is_cuda and torch.compiler.is_compiling()

    def _together(self, x: Tensor) -> tuple[Tensor, Tensors]:
        """The same as one network of batched products: half as many kernels for two critics."""
        every = [dict(q.named_parameters()) | dict(q.named_buffers()) for q in self.q]
        numbers = {k: torch.stack([each[k] for each in every]) for k in every[0]}
        outs, feats = vmap(lambda each: functional_call(self.q[0], each, (x,)))(numbers)
        return outs, {f"q.{i}.{k}": v[i] for i in range(len(self.q)) for k, v in feats.items()}

    def chains(self) -> list[list[Layer]]:
        return [
            [layer.under(f"q.{i}") for layer in chain]
            for i in range(len(self.q))
            for chain in cast(MLP, self.q[i]).chains()
        ]


class GaussianActor(nn.Module):
    """Mean and unsquashed log-deviation of a Gaussian. [B, d] -> [B, 2, a]."""

    def __init__(self, obs_dim: int, action_dim: int, spec: NetSpec, standardise: bool = False) -> None:
        super().__init__()
        self.standardise = Standardise(obs_dim) if standardise else None
        self.trunk = trunk(obs_dim, spec)
        self.mean = initialise(Output(self.trunk.n_out, action_dim), spec.init)
        self.log_std = initialise(Output(self.trunk.n_out, action_dim), spec.init, gain=1.0)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensors]:
        x, feats = self.trunk(self.standardise(obs) if self.standardise else obs)
        return outputs(x, self.mean, self.log_std), {f"trunk.{k}": v for k, v in feats.items()}

    def chains(self) -> list[list[Layer]]:
        heads = [Layer(name, "linear", "head", output=True) for name in ("mean", "log_std")]
        return [[*self.trunk.chain("trunk", "trunk", ("mean", "log_std")), *heads]]


class FixedDeviationActor(MLP):
    """Mean of a Gaussian, and log-deviations that do not depend on the state. [B, d] -> [B, 2, a]."""

    def __init__(self, obs_dim: int, action_dim: int, spec: NetSpec) -> None:
        super().__init__(obs_dim, action_dim, spec)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        mean, feats = super().forward(x)
        return torch.stack([mean, self.log_std.expand_as(mean)], dim=-2), feats


class Temperature(nn.Module):
    """SAC's entropy weight, trained as its logarithm. -> ()."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(initial).log())

    def forward(self) -> tuple[Tensor, Tensors]:
        return self.log.exp(), {}

    def chains(self) -> list[list[Layer]]:
        return []
