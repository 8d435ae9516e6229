"""The gradient of an objective, by whichever of torch's two ways is the cheaper; their bits are the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from core.state import Tensors

Aux = TypeVar("Aux")


class NeedsGradient(ValueError):
    """Somebody looked at gradients where there are none."""


def gradient(objective: Callable[[Tensors], tuple[Tensor, Aux]], params: Tensors) -> tuple[Tensors, Aux]:
    """-> (gradient with respect to `params`, zeros for what the objective does not use; what it returned beside).

    The compiler wants a function (`torch.func.grad`, which composes with `vmap`); called eagerly, plain autograd costs
    half as much per operation.
    """
    if torch.compiler.is_compiling():
        return torch.func.grad(objective, has_aux=True)(params)
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    with torch.enable_grad():
        total, aux = objective(leaves)
    grads = torch.autograd.grad(total, tuple(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), tree_map(torch.detach, aux)


def joint_norm(grads: Tensors) -> Tensor:
    """Euclidean norm of all gradients together. -> ().

    By a chain of `hypot`: of a stack of norms the compiler makes a parallel region with a barrier for each of them.
    """
    return functools.reduce(torch.hypot, map(torch.linalg.vector_norm, grads.values()))


def shortened(grads: Tensors, longest: float, norm: Tensor | None = None) -> Tensors:
    """Gradients scaled down to joint length `longest` if longer (Pascanu et al. 2013); 0: as given. norm: if known."""
    if not longest:
        return grads
    factor = (longest / ((joint_norm(grads) if norm is None else norm) + 1e-6)).clamp(max=1.0)
    return {k: g * factor for k, g in grads.items()}
