"""Units that no longer take part: dormant and dead neurons.

A unit is a neuron of a dense layer or a channel of a convolution; h is its output after the activation. Output layers
have no units in this sense. ReDo recycles by the same `scores`, so measure and cure cannot disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.part import Part, Step
from core.state import State

THRESHOLDS = (0.0, 0.025, 0.1)


def activity(h: Tensor) -> Tensor:
    """Mean |h| of each unit over samples and pixels. [B, units, ...] -> [units]."""
    return h.abs().transpose(0, 1).flatten(1).mean(1)


def scores(h: Tensor) -> Tensor:
    """Activity of each unit relative to its layer's mean (Sokar et al. 2023, eq. 1). [B, units, ...] -> [units].

    1 on average; scaling a layer changes nothing. A layer that is silent altogether scores 0 throughout.
    """
    level = activity(h)
    return level / (level.mean() + 1e-9)


def dormant(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Share of units whose score is at most tau, for tau in {0, 0.025, 0.1}.

    `dormant@tau` pools over all units of the part (not the mean of layers); `dormant@tau/LAYER` is one layer's share.
    Source: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", definition 3.1.
    """
    found = {layer.name: scores(step.outcome.feats[layer.feats]) for layer in part.layers if layer.feats}
    if not found:
        return {}
    shares = {}
    for tau in THRESHOLDS:
        shares[f"dormant@{tau:g}"] = (torch.cat(list(found.values())) <= tau).float().mean()
        shares |= {f"dormant@{tau:g}/{name}": (score <= tau).float().mean() for name, score in found.items()}
    return shares


def dead(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Share of ReLU units that are zero on every sample and pixel, and so receive no gradient.

    `dead` pools over all units of the part, `dead/LAYER` is one layer's share. Falls as the batch grows: compare at one
    batch size. Source: Lyle et al. 2023; Dohare et al. 2024 (units with zero activation on all probe inputs).
    """
    found = {}
    for layer in part.layers:
        if layer.feats:
            h = step.outcome.feats[layer.feats]
            found[layer.name] = h.transpose(0, 1).flatten(1).amax(1) <= 0
    if not found:
        return {}
    pooled = torch.cat(list(found.values())).float().mean()
    return {"dead": pooled} | {f"dead/{name}": units.float().mean() for name, units in found.items()}
