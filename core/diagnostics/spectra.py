"""Singular values of the weights, and how much a chain of layers can stretch its input."""

from __future__ import annotations

import torch
from torch import Tensor

from core.blueprint import Layer
from core.part import Part, Step
from core.state import State, Tensors


def spectral_norm(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Largest singular value sigma_max of each layer's weight as a matrix [out, rest], exact, in float64.

    `spectral_norm/LAYER` of each layer, `spectral_norm` the largest of them. `lipschitz_bound/OUTPUT` is the product of
    sigma_max along the chain of layers that ends in the layer OUTPUT, and `lipschitz_bound` the largest of these: a
    bound on how much the outputs of that layer can change with inputs, for dense layers and activations of slope at
    most 1; a dueling network adds two of them up, and may change by more.
    Normalisation layers are left out, and a kernel as a matrix is not the convolution it stands for: with either, the
    number follows the growth of weights and bounds nothing (our inference). Sources: Miyato et al. 2018; Lyle et al.
    2023 (secondary).
    """
    largest: Tensors = {}
    for layer in part.layers:
        weight = s.params.get(f"{layer.name}.weight")
        if layer.kind != "norm" and weight is not None:
            largest[layer.name] = top_singular_value(weight.flatten(1))
    bounds = {
        end.name: torch.stack([largest[layer.name] for layer in path]).prod()
        for chain in part.chains
        for end, path in _paths([layer for layer in chain if layer.name in largest])
    }
    result = {"spectral_norm": torch.stack(list(largest.values())).max()}
    if bounds:
        result["lipschitz_bound"] = torch.stack(list(bounds.values())).max()
    result |= {f"spectral_norm/{name}": value for name, value in largest.items()}
    return result | {f"lipschitz_bound/{name}": value for name, value in bounds.items()}


def top_singular_value(w: Tensor) -> Tensor:
    """sigma_max of a matrix, in float64: the root of the top eigenvalue of its smaller Gram matrix. -> ()."""
    w = w.double() if w.shape[0] <= w.shape[1] else w.double().T
    return eigenvalues(w @ w.T)[-1].clamp_min(0).sqrt()


def eigenvalues(k: Tensor) -> Tensor:
    """Of a symmetric matrix, ascending; nan if it holds anything but finite numbers. [n, n] -> [n]."""
    return torch.linalg.eigvalsh(k) if bool(k.isfinite().all()) else k.new_full((len(k),), torch.nan)


def _paths(chain: list[Layer]) -> list[tuple[Layer, list[Layer]]]:
    """Each output layer of a chain with the layers on the way to it; output layers stand side by side."""
    hidden = [layer for layer in chain if not layer.output]
    return [(layer, [*hidden, layer]) for layer in chain if layer.output]
