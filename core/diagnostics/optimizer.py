"""Whether the optimizer is in good health: the size of its steps, and what they mean for weights of this size.

The step is computed on the side, on the observed batch and with the moments of the moment, and thrown away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.diagnostics.aside import stepped
from core.diagnostics.weights import norm
from core.optim import SGD
from core.part import Part, Step
from core.state import State, Tensors


def adam_health(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """What Adam's next step is made of: u = m_hat / (sqrt v_hat + eps), the update in learning rates, without decay.

    `adam_mean_update` mean |u| over all entries; `adam_max_update` max |u|, which should stay about 1: spikes up to 6.6
    tell of second moments gone stale (Lyle et al. 2023, secondary); `adam_below_eps` the share of entries with
    sqrt v_hat < eps, where Adam is no longer blind to the gradient's scale. Gradient descent reports none of them.
    """
    if isinstance(part.optim, SGD):
        return {}
    _, slots = stepped(part, s, step.grads)
    u = torch.cat([part.optim.direction(k, slots).abs().flatten() for k in s.params])
    root = torch.cat([(slots["v"][k] / (1 - part.optim.b2 ** slots["t"][k])).sqrt().flatten() for k in s.params])
    return {
        "adam_mean_update": u.mean(),
        "adam_max_update": u.max(),
        "adam_below_eps": (root < part.optim.eps).float().mean(),
    }


def effective_learning_rate(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """lr ||g|| / ||W||^2 of all matrices and kernels together, and of each layer.

    Where a normalisation makes a layer blind to the scale of its weights, growing weights learn ever more slowly.
    Source: van Laarhoven 2017; Lyle et al. 2024, "Normalization and effective learning rates" (secondary).
    """

    def rate(names: list[str]) -> Tensor:
        g, w = norm(_chosen(step.grads, names)), norm(_chosen(s.params, names))
        return part.optim.lr * g / w.square().clamp_min(1e-12)

    kernels = part.matrices()
    layers = [layer.name for layer in part.layers if f"{layer.name}.weight" in kernels]
    result = {"effective_learning_rate": rate(kernels)}
    return result | {f"effective_learning_rate/{name}": rate([f"{name}.weight"]) for name in layers}


def _chosen(tensors: Tensors, names: list[str]) -> Tensors:
    return {k: tensors[k] for k in names}
