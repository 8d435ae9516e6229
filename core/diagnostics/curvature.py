"""How sharply a loss is curved: extreme eigenvalues of its Hessian, by Lanczos' method.

The Hessian is never formed: its products with vectors are derivatives of the gradient. They are taken backwards (H is
symmetric), over one graph for all products; forward derivatives do not know Huber's loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from core.diagnostics.spectra import eigenvalues
from core.part import Part, Step
from core.randomness import host_generator
from core.state import State, Tensors, weights

ITERATIONS = 30

Loss = Callable[[Tensors], Tensor]


def curvature(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Extreme eigenvalues of two Hessians on the batch: `_top` the most positive, `_magnitude` the largest |lambda|.

    `hessian_loss_top`, `hessian_loss_magnitude`: of the training loss, without penalties. `hessian_probe_top`,
    `hessian_probe_magnitude`: of mean (f - sg f + e)^2 over samples and the numbers f that the outputs stand for, e
    standard normal and the same at every call; it knows no targets, so networks whose losses differ can be compared.
    The batch is the observed one, small and new each time (sources keep 512 samples). 30 steps of Lanczos from a fixed
    start: a lower bound of the extreme eigenvalues, close where they stand apart.
    Source: Lyle et al. 2023, "Understanding Plasticity in Neural Networks" (secondary); Lee et al. 2024 (power
    iteration, largest |lambda|).
    """
    result = {}
    for name, loss in (("loss", training_loss(part, s, step)), ("probe", probe_loss(part, s, step))):
        values = lanczos(loss, s.params)
        result[f"hessian_{name}_top"] = values[-1]
        result[f"hessian_{name}_magnitude"] = values.abs().max()
    return result


def training_loss(part: Part, s: State, step: Step) -> Loss:
    """The part's loss on the batch, of its parameters alone."""
    return lambda params: part.loss(params | s.buffers, step.states, step.batch, step.noise).loss


def probe_loss(part: Part, s: State, step: Step) -> Loss:
    """mean (f(theta) - f(theta now) + e)^2."""
    inputs = part.inputs(step.batch)
    now = part.decode(part(weights(s), *inputs)[0])
    e = host_generator(0, "diagnostics/curvature/probe").standard_normal(tuple(now.shape), "float32")
    shift = torch.from_numpy(e).to(now) - now
    return lambda params: (part.decode(part(params | s.buffers, *inputs)[0]) + shift).square().mean()


def hessian_product(loss: Loss, params: Tensors) -> Callable[[Tensor], Tensor]:
    """v [P] -> H v [P], H the Hessian of `loss` at `params`."""
    back: Callable = vjp(grad(loss), params)[1]
    sizes = [p.numel() for p in params.values()]

    def product(v: Tensor) -> Tensor:
        pieces = zip(params.items(), v.split(sizes), strict=True)
        (h,) = back({k: piece.reshape(p.shape) for (k, p), piece in pieces})
        return torch.cat([h[k].flatten() for k in params])

    return product


def lanczos(loss: Loss, params: Tensors, iterations: int = ITERATIONS) -> Tensor:
    """Ritz values of the Hessian, ascending, float64 [at most iterations].

    Every new vector is orthogonalised against all earlier ones, twice. It ends where the directions that can be
    reached are exhausted: then the Ritz values are eigenvalues.
    """
    size, like = sum(p.numel() for p in params.values()), next(iter(params.values()))
    product, basis = hessian_product(loss, params), like.new_zeros(min(iterations, size), size)
    start = host_generator(0, "diagnostics/curvature/start").standard_normal(size, "float32")
    v = torch.from_numpy(start).to(like)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for i in range(len(basis)):
        basis[i] = v / v.norm()
        v = product(basis[i])
        scale = v.norm()
        diagonal.append(v @ basis[i])
        for _ in range(2):
            v = v - basis[: i + 1].T @ (basis[: i + 1] @ v)
        beside.append(v.norm())
        if not beside[-1] > 1e-5 * scale:  # nothing but rounding is left
            break
    k = len(diagonal)
    t = torch.zeros(k, k, dtype=torch.float64)
    for i in range(k):
        t[i, i] = float(diagonal[i])
        if i + 1 < k:
            t[i, i + 1] = t[i + 1, i] = float(beside[i])
    return eigenvalues(t)
