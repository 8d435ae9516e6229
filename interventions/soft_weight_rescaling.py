"""Soft weight rescaling: every step pulls each layer's norm a little towards its norm at birth.

Idea      Weights grow, and large weights learn slowly. In a network of layers and ReLUs a factor on a layer only
          scales the output, so norms can be given back without changing what the network has learned.
Rule      after every update, for every layer in forward order, with n its norm at birth and lambda the rate:
            c = (lambda n + (1 - lambda) ||W||) / ||W||,   W <- c W,   b <- C b,   C the product of the c so far
          so that ||W|| is averaged towards n, from above and from below.
Source    Oh et al. 2025, "Soft Weight Rescaling for Recovering Plasticity" (arXiv 2507.04683), theorem 1 and algorithm
          1 (read in the text; no official code).
Choices   A normalisation's gain and shift are a layer too, and erase the scales before them: C starts anew there. That
          is `biases=exact`: f' = C f. Algorithm 1 as printed carries the scale of the layer before the last
          normalisation into its shift, and forgets it before: `biases=paper`, not proportional where there is
          normalisation. Running statistics of batch normalisation are scaled with their inputs (our inference). Output
          layers that read the same features (V and A, an actor's mean and log-deviation) are one layer, with one c
          (our choice: the paper's networks have one output layer). Gain and shift behind a layer without units of its
          own are left alone, as nothing later could make up for their scale: in front of the tanh of the pixel agents'
          bottleneck, and where ResNet and BroNet write into their residual streams (our choice). `keep_output` divides
          the output layer by C instead, so that the function does not change at all: shrinking values would fight with
          TD targets, which are not shrunk (our choice for value networks). Tensors of norm 0 are skipped. Not
          `selective_weight_reinit`, which goes by the same initials.
Effects   Function, with where=[all]: scaled by one positive number, or kept (`keep_output`), up to the normalisations'
          epsilon. Only roughly so with GELU, on which a factor is more than a factor, and where layers write into a
          residual stream without a normalisation (IMPALA, SimBa, vision transformers, ResNet with net.norm=none). V
          and A with hidden layers of their own (agent.streams=separate) are scaled by a number each, and a deviation
          that belongs to no layer (IQL's) is not scaled; `keep_output` keeps both. Optimizer: kept. Target and slow
          copies: follow. A redrawn layer has its new norm as n if the reset renews birth weights.
Defaults  1e-4 for hidden layers and 1e-4 for the output layer (the paper's for an MLP; 1e-3 for convolutions); sweep
          1e-4 to 1e-2 in RL, where nothing is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from core.blueprint import Layer
from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class SoftWeightRescaling(Intervention):
    exclusive: ClassVar[str] = "sets the norms of the weights"

    rate: float = option(1e-4, low=0, high=1, help="lambda of hidden layers: 0 does nothing, 1 pins norms to birth")
    output_rate: float = option(1e-4, low=0, high=1, help="lambda of the output layer")
    biases: Literal["exact", "paper"] = option("exact", help="proportional with normalisation, or as printed")
    keep_output: bool = option(False, help="undo all scales in the output layer: the function stays")

    def after_step(self, part: Part, s: State, step: Step) -> State:
        new: Tensors = {}
        buffers: Tensors = {}
        for chain in part.chains:
            self._rescale(chain, set(part.names(self.where)), s, new, buffers)
        return s._replace(params=s.params | new, buffers=s.buffers | buffers)

    def _rescale(self, chain: tuple[Layer, ...], names: set[str], s: State, new: Tensors, buffers: Tensors) -> None:
        """Write the new weights of one chain of layers into `new`, and running statistics into `buffers`."""
        last_norm = [-1, *(i for i, layer in enumerate(chain) if layer.kind == "norm")][-1]
        left_alone = [layer.norm for layer in chain if layer.norm and not layer.feats]
        outputs = [f"{layer.name}.weight" for layer in chain if layer.output and f"{layer.name}.weight" in names]
        one = scale = s.params[f"{chain[0].name}.weight"].new_ones(())
        for i, layer in enumerate(chain):
            weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
            chosen = weight in names and layer.name not in left_alone
            factor = one
            if chosen:
                together, rate = (outputs, self.output_rate) if layer.output else ([weight], self.rate)
                factor = self._factor(s, together, rate)
            if self.biases == "paper":
                here = factor * scale if i >= last_norm else factor
            else:
                here = factor if layer.kind == "norm" else factor * scale
            if layer.output and self.keep_output:
                factor, here = 1 / scale, one
            if chosen:
                for k, by in ((weight, factor), (bias, here), (f"{weight}_sigma", factor), (f"{bias}_sigma", here)):
                    if k in names:
                        new[k] = by * s.params[k]
                if layer.kind != "norm" and layer.norm:
                    for k, power in (("running_mean", 1), ("running_var", 2)):
                        if f"{layer.norm}.{k}" in s.buffers:
                            buffers[f"{layer.norm}.{k}"] = s.buffers[f"{layer.norm}.{k}"] * here**power
            if not layer.output:  # several output layers read the same features
                scale = here

    def _factor(self, s: State, weights: list[str], rate: float) -> Tensor:
        now, birth = length(s.params, weights), length(s.birth, weights)
        return torch.where(now > 0, 1 - rate * (1 - birth / now.clamp_min(1e-30)), 1.0)


def length(tensors: Tensors, names: list[str]) -> Tensor:
    """Euclidean norm of the named tensors together. -> ()"""
    norms = [tensors[k].norm() for k in names]
    return torch.stack(norms).norm() if len(norms) > 1 else norms[0]
