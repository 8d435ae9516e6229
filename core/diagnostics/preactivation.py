"""Where the pre-activations of units lie: units whose inputs hardly ever change sign are on their way to dead or
linear."""

from __future__ import annotations

import torch
from torch import Tensor

from core.diagnostics.units import preactivations
from core.part import Part, Step
from core.state import State, Tensors


def preactivation(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """How units are spread: mu and v are a unit's mean and variance over samples and pixels of the batch.

    `preactivation_mean_abs` mean of |mu| over units; `preactivation_mean_sd` deviation of mu over units;
    `preactivation_variance` median of v; `preactivation_one_sided` share of units with |mu| > 2 sqrt v, nearly constant
    in sign. Pooled over all units of the part, and of each layer. Source: Lyle et al. 2024, "Disentangling the Causes
    of Plasticity Loss in Neural Networks" (histograms of unit means, secondary); the numbers are our inference.
    """
    found = {name: moments(a) for name, a in preactivations(part, step).items()}
    if not found:
        return {}
    pools = {"": tuple(torch.cat(column) for column in zip(*found.values(), strict=True))}
    pools |= {f"/{name}": column for name, column in found.items()}
    result: Tensors = {}
    for key, (mu, v) in pools.items():
        result |= {
            f"preactivation_mean_abs{key}": mu.abs().mean(),
            f"preactivation_mean_sd{key}": mu.std(correction=0),
            f"preactivation_variance{key}": v.median(),
            f"preactivation_one_sided{key}": (mu.abs() > 2 * v.sqrt()).double().mean(),
        }
    return result


def moments(a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each unit, in float64. [units, N] -> [units], [units]."""
    v, mu = torch.var_mean(a.double(), dim=1, correction=0)
    return mu, v
