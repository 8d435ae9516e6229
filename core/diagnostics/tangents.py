"""Which inputs can be moved apart from which: the empirical neural tangent kernel, and the covariance of gradients.

Both are Gram matrices of per-sample gradients, J J^T with one row per sample, summed up in float64 over blocks of
parameters. Samples go one after the other: `vmap` does not know the memory format of the convolutions. Few suffice, the
first `SAMPLES` of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import grad

from core.diagnostics.ranks import condition, effective_rank
from core.diagnostics.spectra import eigenvalues
from core.part import Part, Step
from core.randomness import host_generator
from core.state import State, Tensors

SAMPLES = 64
BLOCK = 1 << 18  # parameters whose inner products are computed at once
TOP = 1e-3  # eigenvalues above this share of the greatest count

Single = Callable[[Tensors, Tensors], Tensor]  # (parameters, one sample with a batch axis of 1) -> a number


def tangent_kernel(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Statistics of the empirical NTK of `entk`, all of Kn = D^-1/2 K D^-1/2, D the diagonal of K, and its picture.

    `entk_rank` effective rank (Roy & Vetterli 2007) of Kn's eigenvalues lambda; `entk_condition` lambda_1 / lambda_n,
    lambda_n taken as no less than n eps lambda_1 of float64; `entk_above_1e-3` number of lambda > 1e-3 lambda_1;
    `entk_top_share` lambda_1 / sum lambda; `entk_off_diagonal` mean off-diagonal entry: 0 where nothing generalises, 1
    where all inputs can only be moved together. `entk_image` is Kn, its samples put in `order`, for logs that can draw.
    Source: Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks" (64 samples, heat maps;
    secondary); the numbers are our inference.
    """
    kn = normalised(entk(part, s, step))
    values = spectrum(kn)
    first = order(kn)
    return {
        "entk_rank": effective_rank(values),
        "entk_condition": condition(values, len(values), torch.finfo(values.dtype).eps),
        "entk_above_1e-3": (values > TOP * values[0]).sum().double(),
        "entk_top_share": values[0] / values.sum().clamp_min(1e-300),
        "entk_off_diagonal": off_diagonal(kn).mean(),
        "entk_image": kn[first][:, first],
    }


def gradient_covariance(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """How the samples' loss gradients agree: C_ij = cos(grad loss(x_i), grad loss(x_j)), targets frozen; 64 samples.

    `gradient_cosine` mean off-diagonal entry; `gradient_cosine_negative` share of them below 0, which is interference;
    `gradient_cosine_rank` effective rank of C: near 1 all samples pull in one direction. Source: Lyle et al. 2023,
    "Understanding Plasticity in Neural Networks" (secondary).
    """
    c = normalised(loss_gram(part, s, step))
    return {
        "gradient_cosine": off_diagonal(c).mean(),
        "gradient_cosine_negative": (off_diagonal(c) < 0).double().mean(),
        "gradient_cosine_rank": effective_rank(spectrum(c)),
    }


def entk(part: Part, s: State, step: Step) -> Tensor:
    """K[i, j] = <grad f(x_i), grad f(x_j)>, [n, n] float64; f is one fixed random sum, with signs +1 and -1, of the
    numbers that the outputs stand for (values of all actions, of both critics; the mean action; logits)."""
    columns = {str(i): x[:SAMPLES] for i, x in enumerate(part.inputs(step.batch))}

    def f(params: Tensors, sample: Tensors) -> Tensor:
        numbers = part.decode(part(params | s.buffers, *sample.values())[0])[0]
        return (numbers * signs(len(numbers)).to(numbers)).sum()

    return gram(f, s.params, columns)


def loss_gram(part: Part, s: State, step: Step) -> Tensor:
    """<grad loss(x_i), grad loss(x_j)> of the samples' own losses, without penalties. [n, n] float64."""
    columns = {("batch", k): t for k, t in step.batch.items()} | {("noise", k): t for k, t in step.noise.items()}
    single = {key: t for key, t in columns.items() if t.ndim == 0 or key in {("noise", k) for k in step.shared}}

    def loss(params: Tensors, sample: Mapping) -> Tensor:
        both = {**single, **sample}
        batch, noise = ({k: t for (kind, k), t in both.items() if kind == wanted} for wanted in ("batch", "noise"))
        return part.loss(params | s.buffers, step.states, batch, noise).loss

    return gram(loss, s.params, {key: t[:SAMPLES] for key, t in columns.items() if key not in single})


def signs(count: int) -> Tensor:
    """The same random +1 and -1 in every run. -> [count]."""
    return torch.from_numpy(host_generator(0, "diagnostics/entk").choice([-1.0, 1.0], count))


def gram(f: Single, params: Tensors, columns: Mapping) -> Tensor:
    """Inner products of the gradients of f at single samples. columns: leaves [n, ...] -> [n, n] float64."""
    n = len(next(iter(columns.values())))
    gradients = [grad(f)(params, {k: t[i : i + 1] for k, t in columns.items()}) for i in range(n)]
    k = torch.zeros(n, n, dtype=torch.float64, device=next(iter(params.values())).device)
    for name, p in params.items():
        for start in range(0, p.numel(), BLOCK):
            j = torch.stack([g[name].flatten()[start : start + BLOCK] for g in gradients]).double()
            k += j @ j.T
    return k


def normalised(k: Tensor) -> Tensor:
    """Cosines: D^-1/2 K D^-1/2. A sample without gradient has cosine 0 with all, itself included. [n, n] -> [n, n]."""
    scale = k.diagonal().clamp_min(1e-300).rsqrt() * (k.diagonal() > 0)
    return k * scale * scale[:, None]


def spectrum(k: Tensor) -> Tensor:
    """Eigenvalues of a symmetric positive semidefinite matrix, descending. [n, n] -> [n]."""
    return eigenvalues(k).flip(0).clamp_min(0)


def off_diagonal(k: Tensor) -> Tensor:
    """[n, n] -> [n (n - 1)]; a single 0 where n = 1."""
    mask = ~torch.eye(len(k), dtype=torch.bool, device=k.device)
    return k[mask] if len(k) > 1 else k.new_zeros(1)


def order(k: Tensor) -> Tensor:
    """The samples in the order of a hierarchical clustering (average linkage on 1 - cosine), alike beside alike.

    [n, n] -> [n] int64. To follow one set of samples through training, keep the order of the first matrix.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage  # slow to import

    distance = (1 - normalised(k)).clamp_min(0)
    if len(k) < 3 or not bool(k.isfinite().all()):
        return torch.arange(len(k))
    i, j = torch.triu_indices(len(k), len(k), 1).unbind(0)
    return torch.from_numpy(leaves_list(linkage(distance.cpu()[i, j].numpy(), "average"))).long()
