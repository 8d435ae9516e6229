"""How many directions the penultimate features span.

Phi [n, d] are the post-activation features that the output layers read, not centred; sigma its singular values,
computed in float64. One network may have several such layers (a pair of critics): each is reported under its layer's
name, and their mean without one. Take n >= d samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.part import Part, Step
from core.state import State

DELTA = 0.01


def srank(sigma: Tensor, delta: float = DELTA) -> Tensor:
    """Least k with sum_{i<=k} sigma_i >= (1 - delta) sum sigma_i (Kumar et al. 2021). sigma [d], descending -> ().

    Features that are zero throughout have rank 0.
    """
    return (sigma.cumsum(0) < (1 - delta) * sigma.sum()).sum() + (sigma.sum() > 0)


def effective_rank(sigma: Tensor) -> Tensor:
    """exp of the entropy of sigma / sum sigma (Roy & Vetterli 2007). sigma [d] -> ()."""
    p = sigma / sigma.sum().clamp_min(1e-300)
    return torch.special.entr(p).sum().exp()


def feature_ranks(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """`srank` (delta = 0.01) and `effective_rank` of the penultimate features."""
    outputs = {layer.name for layer in part.layers if layer.output}
    found = {}
    for layer in part.layers:
        if layer.feats and outputs & set(layer.readers):
            phi = step.outcome.feats[layer.feats].flatten(1).double()
            sigma = torch.linalg.svdvals(phi)
            found[layer.name] = {"srank": srank(sigma).double(), "effective_rank": effective_rank(sigma)}
    if not found:
        return {}
    result = {}
    for name in ("srank", "effective_rank"):
        result[name] = torch.stack([ranks[name] for ranks in found.values()]).mean()
        result |= {f"{name}/{layer}": ranks[name] for layer, ranks in found.items()}
    return result
