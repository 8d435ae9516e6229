"""Size and movement of weights: norms, distance from birth, gradients, and what a step changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.part import Part, Step
from core.state import State, Tensors


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm of all entries together. -> ()."""
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()


def _per_layer(part: Part, name: str, measure: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
    """`measure` on all parameters, and on each layer's weight and bias together."""
    result = {name: measure(part.names())}
    for layer in part.layers:
        result[f"{name}/{layer.name}"] = measure([k for k in part.names() if k.startswith(layer.name + ".")])
    return result


def parameter_norm(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||theta||_2, of the part and of each layer (weight and bias together; normalisation layers apart)."""
    return _per_layer(part, "parameter_norm", lambda names: norm({k: s.params[k] for k in names}))


def distance_from_birth(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||theta - theta_0||_2 / ||theta_0||_2, of the part and of each layer. theta_0 is renewed by resets that say
    so."""

    def measure(names: list[str]) -> Tensor:
        moved = norm({k: s.params[k] - s.birth[k] for k in names})
        return moved / norm({k: s.birth[k] for k in names}).clamp_min(1e-12)

    return _per_layer(part, "distance_from_birth", measure)


def gradient_norm(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||g||_2 of loss and penalties on the observed batch, of the part and of each layer."""
    return _per_layer(part, "gradient_norm", lambda names: norm({k: step.grads[k] for k in names}))


def update_ratio(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||delta theta||_2 / ||theta||_2 of the optimizer's step on the observed batch, of the part and of each layer.

    The step is computed on the side, with the moments of the moment, and thrown away. What interventions do after a
    step is not in it.
    """
    new, _ = part.optim.step(s.params, step.grads, s.optim)

    def measure(names: list[str]) -> Tensor:
        moved = norm({k: new[k] - s.params[k] for k in names})
        return moved / norm({k: s.params[k] for k in names}).clamp_min(1e-12)

    return _per_layer(part, "update_ratio", measure)
