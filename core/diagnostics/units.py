"""Units that no longer take part, or take part as straight lines: dormant, dead and linearised neurons.

A unit is a neuron of a dense layer or a channel of a convolution; a is its pre-activation (behind a normalisation, if
there is one), h its output after the activation. Output layers have no units in this sense. ReDo recycles by the same
`scores`, so measure and cure cannot disagree.

Each is reported for the part, pooled over all units (not the mean of layers), and as `NAME/LAYER` for each layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from core.blueprint import PRE
from core.part import Part, Step
from core.state import State, Tensors

THRESHOLDS = (0.0, 0.025, 0.1)
FLAT = 1e-3  # a GELU with less slope is as good as dead
STRAIGHT = 0.99  # share of the variance that a straight line explains


def magnitudes(h: Tensor, halves: int = 1) -> Tensor:
    """|h| of each unit on all samples and pixels; the two halves of CReLU are one unit. [B, f, ...] -> [units, N]."""
    return h.abs().unflatten(1, (halves, -1)).sum(1).transpose(0, 1).flatten(1)


def preactivations(part: Part, step: Step) -> Tensors:
    """a of each unit on all samples and pixels, [units, N] by layer; layers whose network shows none are left out."""
    feats = step.outcome.feats
    return {
        layer.name: feats[layer.feats + PRE].transpose(0, 1).flatten(1)
        for layer in part.layers
        if layer.feats + PRE in feats
    }


def averages(name: str, found: Tensors) -> Tensors:
    """Mean over all units of all layers under `name`, and of each layer's. found: [units] by layer."""
    if not found:
        return {}
    pooled = torch.cat(list(found.values())).float().mean()
    return {name: pooled} | {f"{name}/{layer}": units.float().mean() for layer, units in found.items()}


def scores(h: Tensor, halves: int = 1) -> Tensor:
    """Mean |h| of each unit relative to its layer's mean (Sokar et al. 2023, eq. 1). [B, f, ...] -> [units].

    1 on average; scaling a layer changes nothing. A layer that is silent altogether scores 0 throughout.
    """
    level = magnitudes(h, halves).mean(1)
    return level / (level.mean() + 1e-9)


def dormant(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Share of units whose score is at most tau, for tau in {0, 0.025, 0.1}.

    `dormant@tau` pools over all units of the part (not the mean of layers); `dormant@tau/LAYER` is one layer's share.
    Source: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", definition 3.1.
    """
    feats = step.outcome.feats
    found = {layer.name: scores(feats[layer.feats], layer.halves) for layer in part.layers if layer.feats}
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
    batch size. GELU is never quite zero: there the slope is below 1e-3 throughout (our inference). Source: Lyle et al.
    2023; Dohare et al. 2024 (units with zero activation on all probe inputs).
    """
    if part.spec.activation == "gelu":
        return averages("dead", {k: slope(a).abs().amax(1) < FLAT for k, a in preactivations(part, step).items()})
    found = {}
    for layer in part.layers:
        if layer.feats:
            found[layer.name] = magnitudes(step.outcome.feats[layer.feats], layer.halves).amax(1) <= 0
    return averages("dead", found)


def linearised(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Share of linearised ("zombie") units: alive, but a straight line on all the batch.

    ReLU: min a > 0 over all samples and pixels. CReLU and AID: the sign of a is constant, either one. GELU: alive, and
    a straight line through (a, h) leaves less than 1 % of the variance of h. Falls as the batch grows: compare at one
    batch size. Source: Lyle et al. 2024, "Disentangling the Causes of Plasticity Loss in Neural Networks", section 3.2
    (secondary); the criteria are our inference.
    """
    found = {}
    for name, a in preactivations(part, step).items():
        if part.spec.activation == "gelu":
            found[name] = (explained(a, F.gelu(a.double())) > STRAIGHT) & (slope(a).abs().amax(1) >= FLAT)
        elif part.spec.activation == "relu":
            found[name] = a.amin(1) > 0
        else:
            found[name] = (a.amin(1) > 0) | (a.amax(1) < 0)
    return averages("linearised", found)


def slope(a: Tensor) -> Tensor:
    """The derivative of GELU."""
    return torch.special.ndtr(a) + a * (-a.square() / 2).exp() / math.sqrt(2 * math.pi)


def explained(a: Tensor, h: Tensor) -> Tensor:
    """R^2 of each unit's h on a straight line in a; 1 where nothing varies. [units, N] -> [units]."""
    a, h = (x.double() - x.double().mean(1, keepdim=True) for x in (a, h))
    between, within = (a * h).sum(1).square(), a.square().sum(1) * h.square().sum(1)
    return torch.where(within > 0, between / within.clamp_min(1e-300), torch.ones_like(within))


def sign_entropy(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Mean over units of -p ln p - (1 - p) ln(1 - p), p the share of samples and pixels with a > 0; in nats.

    ln 2 where a unit splits its inputs in halves, 0 where it is dead or linearised. Our inference; listed as a metric
    in replications of AID (secondary).
    """
    found = {}
    for name, a in preactivations(part, step).items():
        p = (a > 0).double().mean(1)
        found[name] = torch.special.entr(p) + torch.special.entr(1 - p)
    return averages("sign_entropy", found)


def zero_gradient(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Share of parameters whose gradient (of loss and penalties) is exactly zero on the batch.

    Source: Lee et al. 2024, "Slow and Steady Wins the Race" (`zero_grad_ratio` of its code).
    """
    untouched = {name: (g == 0).flatten() for name, g in step.grads.items()}
    found = {}
    for layer in part.layers:
        own = [zeros for name, zeros in untouched.items() if name.startswith(layer.name + ".")]
        if own:
            found[layer.name] = torch.cat(own)
    pooled = torch.cat(list(untouched.values())).float().mean()
    return averages("zero_gradient", found) | {"zero_gradient": pooled}
