"""What the output of a value network means: a number, or a histogram over values.

A categorical loss does not care how large the targets' mean is (Farebrother et al. 2024; Lyle et al. 2024). Every value
object offers the same six functions to every agent:

    decode(out [..., bins]) -> value [...]
    backup(reward, discount, next_out [..., bins]) -> target      a number, or for C51 a distribution [..., bins]
    loss(out [..., bins], target) -> [...]                        per sample
    expected(target) -> [...]                                     the number a target stands for
    clipped(reward, discount, next_out) -> [...]                  how much of the target the support cannot hold
    mixture(out [k, ..., bins]) -> [..., bins]                    one output for k: its value is the mean of theirs

Bins are built on the output's device, in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.options import option


@dataclass(frozen=True)
class Scalar:
    """Regression: the output is the value."""

    # mse: squared error, without the half (jaxrl's SAC); huber: kappa = 1
    error: Literal["mse", "huber"] = option("huber", help="squared error, or Huber's with kappa = 1")

    bins = 1
    logits = False  # outputs are unnormalised log-probabilities of bins

    def decode(self, out: Tensor) -> Tensor:
        return out[..., 0]

    def backup(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        return reward + discount * self.decode(next_out)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        kind = F.mse_loss if self.error == "mse" else F.huber_loss
        return kind(self.decode(out), target, reduction="none")

    def expected(self, target: Tensor) -> Tensor:
        return target

    def clipped(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        """0: a number holds every target. -> [B]."""
        return torch.zeros_like(reward)

    def mixture(self, out: Tensor) -> Tensor:
        return out.mean(0)


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of the distribution of returns, by Huber quantile regression (Dabney et al. 2018), as BRO has them.

    Target quantiles are reward + discount * next quantiles. loss: sum over own quantiles i, mean over target ones j, of
    |tau_i - 1(u < 0)| huber(u),  u = target_j - out_i,  tau_i = (i + 1/2) / bins (verified in BRO's code; kappa = 1).
    """

    bins: int = option(100, low=2, high=100_000, help="quantiles")

    logits = False

    def decode(self, out: Tensor) -> Tensor:
        return out.mean(-1)

    def backup(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        return reward[..., None] + discount[..., None] * next_out

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        ahead = target[..., None, :] - out[..., :, None]  # [..., own, target]
        tau = (torch.arange(self.bins, device=out.device) + 0.5) / self.bins
        share = (tau[:, None] - (ahead < 0).to(out.dtype)).abs()
        return (share * F.huber_loss(ahead, torch.zeros_like(ahead), reduction="none")).mean(-1).sum(-1)

    def expected(self, target: Tensor) -> Tensor:
        return target.mean(-1)

    def clipped(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        """0: quantiles lie anywhere. -> [B]."""
        return torch.zeros_like(reward)

    def mixture(self, out: Tensor) -> Tensor:
        return out.mean(0)


@dataclass(frozen=True)
class Support:
    """A histogram over [low, high]: shared by the categorical value losses."""

    low: float = option(-10.0, low=-1e30, high=1e30, help="least value; what lies below is clipped")
    high: float = option(10.0, low=-1e30, high=1e30, help="greatest value; what lies above is clipped")
    bins: int = option(51, low=2, high=100_000, help="bins of the histogram")

    logits = True

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} must be below high={self.high}")

    @property
    def step(self) -> float:
        """Distance between neighbouring atoms."""
        return (self.high - self.low) / (self.bins - 1)

    def atoms(self, like: Tensor) -> Tensor:
        """The values the bins stand for. -> [bins]."""
        return torch.linspace(self.low, self.high, self.bins, device=like.device)

    def decode(self, out: Tensor) -> Tensor:
        return (out.softmax(-1) * self.atoms(out)).sum(-1)

    def mixture(self, out: Tensor) -> Tensor:
        """The mean of k distributions, as log-probabilities. [k, ..., bins] -> [..., bins]."""
        return out.log_softmax(-1).logsumexp(0) - math.log(len(out))

    def outside(self, value: Tensor) -> Tensor:
        """Which values the support does not hold. -> bool, the shape of value."""
        return (value < self.low) | (value > self.high)


@dataclass(frozen=True)
class Encoded(Support):
    """A histogram trained towards a number, which `encode` turns into a distribution."""

    def encode(self, target: Tensor) -> Tensor:
        """The distribution to be predicted for a target. [...] -> [..., bins]."""
        raise NotImplementedError

    def backup(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        return reward + discount * self.decode(next_out)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return -(self.encode(target) * out.log_softmax(-1)).sum(-1)

    def expected(self, target: Tensor) -> Tensor:
        return target

    def clipped(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        """1 where the target lies outside the support, else 0. -> [B]."""
        return self.outside(self.backup(reward, discount, next_out)).to(reward.dtype)


@dataclass(frozen=True)
class TwoHot(Encoded):
    """All mass on the two atoms around the target, so that the mean is exact (within the support)."""

    def encode(self, target: Tensor) -> Tensor:
        position = (target.clamp(self.low, self.high)[..., None] - self.atoms(target)) / self.step
        return (1 - position.abs()).clamp(0, 1)


@dataclass(frozen=True)
class HLGauss(Encoded):
    """A Gaussian's mass per bin around the target (Imani & White 2018; Farebrother et al. 2024).

    `low` and `high` are the outer edges; leave three sigma of room beyond the values that occur, or the mean is biased.
    """

    smooth: float = option(0.75, above=0, help="sigma in bin widths")

    @property
    def step(self) -> float:
        return (self.high - self.low) / self.bins

    def atoms(self, like: Tensor) -> Tensor:
        half = self.step / 2
        return torch.linspace(self.low + half, self.high - half, self.bins, device=like.device)

    def encode(self, target: Tensor) -> Tensor:
        edges = torch.linspace(self.low, self.high, self.bins + 1, device=target.device)
        sigma = self.smooth * self.step
        cdf = torch.erf((edges - target.clamp(self.low, self.high)[..., None]) / (math.sqrt(2) * sigma))
        return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])


@dataclass(frozen=True)
class C51(Support):
    """The distribution of returns (Bellemare et al. 2017): the target is a distribution, projected onto the atoms."""

    def backup(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        atoms = self.atoms(next_out)
        moved = (reward[..., None] + discount[..., None] * atoms).clamp(self.low, self.high)
        # weight[j, i]: the share of moved atom j's mass that falls to atom i
        weight = (1 - (moved[..., None] - atoms).abs() / self.step).clamp(0, 1)
        return (next_out.softmax(-1)[..., None] * weight).sum(-2)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return -(target * out.log_softmax(-1)).sum(-1)

    def expected(self, target: Tensor) -> Tensor:
        return (target * self.atoms(target)).sum(-1)

    def clipped(self, reward: Tensor, discount: Tensor, next_out: Tensor) -> Tensor:
        """The probability mass that is moved to the edges from outside. -> [B]."""
        moved = reward[..., None] + discount[..., None] * self.atoms(next_out)
        return (next_out.softmax(-1) * self.outside(moved)).sum(-1)


def least(value, out: Tensor) -> Tensor:
    """The output of the critic with the smallest value, sample by sample. [critics, B, bins] -> [B, bins]."""
    index = value.decode(out).argmin(0)
    return out.gather(0, index[None, :, None].expand(1, -1, out.shape[-1])).squeeze(0)
