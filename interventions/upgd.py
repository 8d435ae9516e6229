"""UPGD: useful weights are protected, useless ones perturbed.

Idea      Forgetting comes from moving weights that matter, lost plasticity from weights that no longer matter standing
          still. Gate every weight's step by its utility, and let noise through the same gate.
Rule      u <- beta u - (1 - beta) g * w,   s = sigmoid(u / (1 - beta^t) / M),   M = max(max of all u, 1e-8)
            adam   w <- (1 - lr decay) w - 2 lr (1 - s) (m / (sqrt v + eps) + noise * xi)      m, v corrected for start
            sgd    w <- (1 - lr decay) w -   lr (1 - s) (g + noise * xi)                        xi ~ N(0, 1)
Source    Elsayed & Mahmood 2024, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning";
          released code (verified), the adaptive variant from its RL part.
Choices   Takes the optimizer's place: Adam's moments go on, its step is not taken. The maximum is over the parameters
          of one part within `where`, and kept positive: it starts below 0 in the released code and then turns the gate
          around. Outside `where` weights take Adam's plain step. One normal number per weight and update: on a CPU this
          costs more than the step itself.
Effects   Function: every step. Target and slow copies: follow. Birth weights: kept.
Defaults  beta 0.999, noise 0.001, decay 0.001 (the paper's RL settings; with betas 0.9 and 0.999, eps 1e-5 there).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Part, Step
from core.randomness import Noise
from core.state import State, Tensors


@dataclass(kw_only=True)
class UPGD(Intervention):
    exclusive: ClassVar[str] = "takes the optimizer's place"

    variant: Literal["adam", "sgd"] = option("adam", help="steps along Adam's direction, or along the gradient")
    beta: float = option(0.999, low=0, high=0.999999, help="of the average of utility")
    noise: float = option(1e-3, low=0, help="deviation of the noise, in units of the direction")
    decay: float = option(1e-3, low=0, help="decoupled weight decay")

    def tune(self, part: Part, optim: Adam) -> Adam:
        if optim.decay:
            raise ValueError(
                f"decay={self.decay:g}: part {part.name} already decays its weights by {optim.decay:g}; "
                "set agent.weight_decay=0 and drop weight_decay"
            )
        return replace(optim, hold=True)

    def draws(self, part: Part) -> dict[str, Noise]:
        return {k: Noise("normal", tuple(part.shapes[k])) for k in part.names(self.where)} if self.noise else {}

    def remember(self, part: Part, params: Tensors) -> Tensors:
        count = next(iter(params.values())).new_zeros(())
        return {"count": count, **{f"utility/{k}": torch.zeros_like(params[k]) for k in part.names(self.where)}}

    def after_step(self, part: Part, s: State, step: Step) -> State:
        memory, names = s.memory[self.name], part.names(self.where)
        count = memory["count"] + 1
        utility = {k: self.beta * memory[f"utility/{k}"] - (1 - self.beta) * step.grads[k] * s.params[k] for k in names}
        greatest = torch.stack([u.amax() for u in utility.values()]).amax().clamp_min(1e-8)
        lr, new = part.optim.lr, {}
        for k in part.names():
            if k not in utility:
                new[k] = s.params[k] - lr * part.optim.direction(k, s.optim)
                continue
            gate = 1 - torch.sigmoid(utility[k] / (1 - self.beta**count) / greatest)
            rate, way = (2 * lr, part.optim.direction(k, s.optim)) if self.variant == "adam" else (lr, step.grads[k])
            if self.noise:
                way = way + self.noise * self._drawn(part, step, k)
            new[k] = (1 - lr * self.decay) * s.params[k] - rate * gate * way
        learned = {"count": count, **{f"utility/{k}": u for k, u in utility.items()}}
        return s._replace(params=new, memory=s.memory | {self.name: memory | learned})

    def _drawn(self, part: Part, step: Step, name: str) -> Tensor:
        return step.noise[f"{part.name}/{self.name}/{name}"]
