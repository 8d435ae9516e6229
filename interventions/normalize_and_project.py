"""Normalize-and-Project: layer normalisation everywhere, and weights held at their norm at birth.

Idea      Behind layer normalisation a layer's norm does not matter for what it computes, but a growing norm makes every
          step smaller: the learning rate decays unseen. Fix the norm.
Rule      layer -> LN -> activation in every hidden layer;   after every update   W <- ||W_0|| W / ||W||
Source    Lyle et al. 2024, "Normalization and effective learning rates in reinforcement learning" (secondary).
Choices   A bias in front of a normalisation is scaled with its weights, and so are running statistics of batch
          normalisation, where the network has that: the projection changes nothing but the step size (our choice). The
          output layer is left alone unless `output` (the sources differ). `gains=project` scales gain and shift of
          each normalisation, together, to their norm at birth. No learning-rate schedule makes up for the decay that
          is taken away.
Effects   Function: kept by the projection of hidden layers, up to the normalisations' epsilon. Not kept in IMPALA,
          whose stage convolutions and second convolution of a block have no normalisation behind them (they write into
          the residual stream), nor with `output` or `gains=project`. Optimizer: kept. Target and slow copies: follow;
          an average of projected weights is a little shorter than they are. A redrawn layer has its new norm.
Defaults  work as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from core.blueprint import Layer, NetSpec
from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors


@dataclass(kw_only=True)
class NormalizeAndProject(Intervention):
    exclusive: ClassVar[str] = "sets the norms of the weights"

    output: bool = option(False, help="hold the output layer as well")
    gains: Literal["keep", "project"] = option("keep", help="gain and shift of normalisation: as trained, or held")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        return replace(spec, norm="layer") if spec.norm == "none" else spec

    def remember(self, part: Part, params: Tensors) -> Tensors:
        if not self._held(part):
            raise ValueError(
                f"where=[{','.join(self.where)}] selects no weights to hold in part {part.name}; output layers take "
                "output=true, gains of normalisations gains=project"
            )
        return {}

    def after_step(self, part: Part, s: State, step: Step) -> State:
        names = set(part.names(self.where))
        new: Tensors = {}
        buffers: Tensors = {}
        for layer in self._held(part):
            weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
            together = [k for k in (weight, bias) if k in names] if layer.kind == "norm" else [weight]
            now = length(s.params, together)
            factor = torch.where(now > 0, length(s.birth, together) / now.clamp_min(1e-30), 1.0)
            for k in (weight, f"{weight}_sigma"):
                if k in s.params:
                    new[k] = s.params[k] * factor
            for k in (bias, f"{bias}_sigma"):
                if k in names and not layer.output:
                    new[k] = s.params[k] * factor
            for k, power in ((f"{layer.norm}.running_mean", 1), (f"{layer.norm}.running_var", 2)):
                if k in s.buffers:
                    buffers[k] = s.buffers[k] * factor**power
        return s._replace(params=s.params | new, buffers=s.buffers | buffers)

    def _held(self, part: Part) -> list[Layer]:
        """Layers whose norms are held."""
        names = set(part.names(self.where))

        def held(layer: Layer) -> bool:
            return self.output if layer.output else self.gains == "project" if layer.kind == "norm" else True

        return [layer for layer in part.layers if held(layer) and f"{layer.name}.weight" in names]


def length(tensors: Tensors, names: list[str]) -> torch.Tensor:
    """Euclidean norm of the named tensors together. -> ()"""
    return torch.stack([tensors[k].square().sum() for k in names]).sum().sqrt()
