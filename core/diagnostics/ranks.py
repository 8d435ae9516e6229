"""How many directions the penultimate features span.

Phi [n, d] are the post-activation features that the output layers read; sigma its singular values, computed in float64
on the CPU. One network may have several such layers (a pair of critics): each is reported under its layer's name, and
their mean without one. Take n >= d samples: no rank is above n.

Phi is not centred, unless a name ends in `_centred`: then each feature's mean over the batch is subtracted first. Where
features share a large constant part, which acts as a bias, the one collapses and the other does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.blueprint import LAST
from core.part import Part, Step
from core.state import State

DELTA = 0.01  # srank and pca_rank: the share that may be left out
EPSILON = 0.01  # feature_rank: what counts as more than nothing
PRECISION = torch.finfo(torch.float32).eps  # of the features; their singular values are computed more exactly


def srank(sigma: Tensor, delta: float = DELTA) -> Tensor:
    """Least k with sum_{i<=k} sigma_i >= (1 - delta) sum sigma_i (Kumar et al. 2021). sigma [d], descending -> ().

    Features that are zero throughout have rank 0.
    """
    return (sigma.cumsum(0) < (1 - delta) * sigma.sum()).sum() + (sigma.sum() > 0)


def effective_rank(sigma: Tensor) -> Tensor:
    """exp of the entropy of sigma / sum sigma (Roy & Vetterli 2007). sigma [d] -> ().

    Features that are zero throughout have rank 1, as those of one direction.
    """
    p = sigma / sigma.sum().clamp_min(1e-300)
    return torch.special.entr(p).sum().exp()


def feature_rank(sigma: Tensor, n: int, epsilon: float = EPSILON) -> Tensor:
    """Number of singular values of Phi / sqrt n above epsilon (Lyle et al. 2022, secondary). sigma [q] -> ().

    Not relative to sigma_1: the only one of these that falls where features collapse to zero. epsilon is our inference.
    """
    return (sigma / n**0.5 > epsilon).sum()


def matrix_rank(sigma: Tensor, size: int) -> Tensor:
    """Number of singular values above size eps sigma_1; size = max(n, d), eps of the features' float32. -> ()."""
    return (sigma > size * PRECISION * sigma[0]).sum()


def stable_rank(sigma: Tensor) -> Tensor:
    """||Phi||_F^2 / sigma_1^2. Features that are zero throughout have rank 0. -> ()."""
    return sigma.square().sum() / sigma[0].square().clamp_min(1e-300)


def pca_rank(sigma: Tensor, delta: float = DELTA) -> Tensor:
    """Least k with sum_{i<=k} sigma_i^2 >= (1 - delta) sum sigma_i^2 (`approximate_rank` of Dohare et al. 2024)."""
    return srank(sigma.square(), delta)


def condition(sigma: Tensor, size: int, eps: float = PRECISION) -> Tensor:
    """sigma_1 / sigma_q, the least taken as no less than size eps sigma_1; 1 where all are zero. -> ()."""
    return _ratio(sigma[0], sigma[-1].clamp_min(size * eps * sigma[0]))


def top_ratio(sigma: Tensor, size: int) -> Tensor:
    """sigma_1 / sigma_2, with the same floor: how much the first direction (often a bias) outweighs all others."""
    return _ratio(sigma[0], sigma[min(1, len(sigma) - 1)].clamp_min(size * PRECISION * sigma[0]))


def family(phi: Tensor) -> dict[str, Tensor]:
    """All ranks of features [n, d], float64."""
    sigma, (n, d) = torch.linalg.svdvals(phi), phi.shape
    size = max(n, d)
    return {
        "srank": srank(sigma).double(),
        "effective_rank": effective_rank(sigma),
        "feature_rank": feature_rank(sigma, n).double(),
        "matrix_rank": matrix_rank(sigma, size).double(),
        "stable_rank": stable_rank(sigma),
        "pca_rank": pca_rank(sigma).double(),
        "condition": condition(sigma, size),
        "sigma_1_over_sigma_2": top_ratio(sigma, size),
    }


def feature_ranks(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Ranks of the penultimate features, each also as `NAME_centred`.

    `srank` (Kumar et al. 2021, delta = 0.01); `effective_rank` (Roy & Vetterli 2007); `feature_rank` (Lyle et al. 2022,
    epsilon = 0.01 on Phi / sqrt n); `matrix_rank` (numerical, at float32 precision); `stable_rank`
    (||Phi||_F^2 / sigma_1^2); `pca_rank` (99 % of the squared singular values); `condition` (sigma_1 / sigma_q);
    `sigma_1_over_sigma_2`.
    """

    def both(phi: Tensor) -> dict[str, Tensor]:
        centred = family(phi - phi.mean(0))
        return family(phi) | {f"{name}_centred": value for name, value in centred.items()}

    return _of_penultimate(part, step, both)


def mean_signature(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Whether the penultimate features have become one constant direction, as large mean targets make them.

    `log10_sigma_1` of Phi / sqrt n; `cos_v1_mean` |cos| of the angle between the first right singular vector of Phi and
    the mean feature; `output_bias_norm` ||b|| of the output layers. Where the targets' mean is large, sigma_1 grows by
    orders of magnitude and all features lean towards v_1, while the bias, which could do it alone, stays small. Source:
    Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks" (secondary).
    """

    def signature(phi: Tensor) -> dict[str, Tensor]:
        wide, mean = phi.shape[1] > phi.shape[0], phi.mean(0)
        values, vectors = torch.linalg.eigh((phi @ phi.T if wide else phi.T @ phi) / len(phi))
        v = phi.T @ vectors[:, -1] if wide else vectors[:, -1]
        cosine = (v @ mean).abs() / (v.norm() * mean.norm()).clamp_min(1e-300)
        return {"log10_sigma_1": values[-1].clamp_min(1e-24).sqrt().log10(), "cos_v1_mean": cosine}

    found = _of_penultimate(part, step, signature)
    bias = [s.params[k].flatten() for k in (f"{la.name}.bias" for la in part.layers if la.output) if k in s.params]
    return found | ({"output_bias_norm": torch.cat(bias).norm()} if bias else {})


def penultimate(part: Part, step: Step) -> Iterator[tuple[str, Tensor]]:
    """Layers that output layers read, with their features [n, d] in float64 on the CPU, where SVDs do not fail.

    Where no single layer makes them (behind residual sums) they go by the name of what the network shows as `LAST`.
    """
    outputs = {layer.name for layer in part.layers if layer.output}
    read = {layer.name: layer.feats for layer in part.layers if layer.feats and outputs & set(layer.readers)}
    last = {key: key for key in step.outcome.feats if key.rpartition(".")[2] == LAST}
    for name, key in (read or last).items():
        yield name, step.outcome.feats[key].flatten(1).double().cpu()


def _of_penultimate(part: Part, step: Step, measure: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`measure` of each such layer under its name, and the mean of all without one."""
    found = {name: measure(phi) for name, phi in penultimate(part, step)}
    result = {}
    for name in next(iter(found.values()), {}):
        result[name] = torch.stack([values[name] for values in found.values()]).mean()
        result |= {f"{name}/{layer}": values[name] for layer, values in found.items()}
    return result


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b.clamp_min(1e-300), torch.ones_like(a))
