"""Size and movement of weights: norms, distance from birth, growth, gradients, and what a step changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from core.diagnostics.aside import stepped
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


def _weighted(part: Part, s: State) -> list[str]:
    """Names of the layers with a matrix or kernel; normalisation layers have none."""
    weight = {layer.name: s.params.get(f"{layer.name}.weight") for layer in part.layers if layer.kind != "norm"}
    return [name for name, w in weight.items() if w is not None]


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


def weight_magnitude(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Mean |w| (`weight_magnitude`) and root mean square (`weight_rms`) of matrices and kernels, of the part and of
    each layer.

    Gains and shifts of normalisation layers are not among them: their mean |w| is `affine_magnitude`; nor are the
    sigmas of noisy layers. Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning" (weight
    magnitude, averaged over all weights).
    """
    kernels = {k: s.params[k].flatten() for k in part.matrices()}
    affine = [s.params[k].abs().flatten() for k in part.names() if k in part.norm_names()]
    pools = {"": torch.cat(list(kernels.values()))}
    pools |= {f"/{layer}": kernels[f"{layer}.weight"] for layer in _weighted(part, s)}
    result = {f"weight_magnitude{key}": w.abs().mean() for key, w in pools.items()}
    result |= {f"weight_rms{key}": w.square().mean().sqrt() for key, w in pools.items()}
    return result | ({"affine_magnitude": torch.cat(affine).mean()} if affine else {})


def growth(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """rho = ||W|| / ||W_0||, of all matrices and kernels together and of each layer; theta_0 as in
    distance_from_birth.

    `growth_balance` is max ln rho - min ln rho over the layers: 0 where all have grown alike. Source: Oh et al. 2025,
    "Soft Weight Rescaling", definition 2 (there pairwise, and not in logarithms).
    """
    layers = _weighted(part, s)

    def ratio(chosen: list[str]) -> Tensor:
        now, then = ({f"{k}.weight": tree[f"{k}.weight"] for k in chosen} for tree in (s.params, s.birth))
        return norm(now).clamp_min(1e-12) / norm(then).clamp_min(1e-12)

    rho = {layer: ratio([layer]) for layer in layers}
    logs = torch.stack(list(rho.values())).log()
    result = {"growth": ratio(layers), "growth_balance": logs.max() - logs.min()}
    return result | {f"growth/{layer}": value for layer, value in rho.items()}


def gradient_norm(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||g||_2 of loss and penalties on the observed batch, of the part and of each layer."""
    return _per_layer(part, "gradient_norm", lambda names: norm({k: step.grads[k] for k in names}))


def update_ratio(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """||delta theta||_2 / ||theta||_2 of the optimizer's step on the observed batch, of the part and of each layer.

    The step is computed on the side, with the moments of the moment, and thrown away. What interventions do after a
    step is not in it; where one of them takes the step in the optimizer's place (upgd), nothing is reported.
    """
    if part.optim.hold:
        return {}
    new, _ = stepped(part, s, step.grads)

    def measure(names: list[str]) -> Tensor:
        moved = norm({k: new[k] - s.params[k] for k in names})
        return moved / norm({k: s.params[k] for k in names}).clamp_min(1e-12)

    return _per_layer(part, "update_ratio", measure)
