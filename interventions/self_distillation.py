"""Self-distillation: the network is pulled towards what its own average says.

Idea      An average of the weights is a steadier teacher than the network of the moment. The baseline that shows what
          Hare & Tortoise gains by restarting, beyond having a teacher.
Rule      teacher <- momentum * teacher + (1 - momentum) * theta in every update;
          loss + weight * KL(softmax(teacher(x) / tau) || softmax(theta(x) / tau)), mean over samples
Source    Baseline of Lee et al. 2024, "Slow and Steady Wins the Race" (weight 1, tau 1, momentum 0.999 verified in the
          released code, whose mean is over samples and classes: weight=1/classes is the same).
Choices   Outputs that are no logits (scalar values, policies) are pulled by half the squared difference instead (our
          choice). Buffers are averaged like the weights of their layer. The teacher is not evaluated unless
          agent.evaluate_with=teacher. Within `where` gradient flows, the other parameters are constants of the penalty,
          and the teacher has the network's own.
Effects   Function: changes slowly. Optimizer: sees the penalty's gradient. Target: follows. Two forward passes more.
Defaults  weight 1, tau 1, momentum 0.999.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.copies import averaged
from core.intervention import Intervention
from core.options import option
from core.part import Part, Step
from core.state import State, Tensors

ROLE = "teacher"


@dataclass(kw_only=True)
class SelfDistillation(Intervention):
    weight: float = option(1.0, low=0, help="coefficient")
    tau: float = option(1.0, above=0, help="temperature of both softmaxes")
    momentum: float = option(0.999, low=0, high=1, help="share of the teacher that stays in each update")

    @property
    def copies(self) -> tuple[str, ...]:
        return (ROLE,)

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        inputs = part.inputs(step.batch)
        trained = s.params | {k: params[k] for k in part.names(self.where)} | s.buffers
        student, teacher = part(trained, *inputs)[0], part(s.copies[ROLE], *inputs)[0]
        if not part.logits:
            return self.weight * 0.5 * (student - teacher).square().mean()
        wanted, given = (teacher / self.tau).log_softmax(-1), (student / self.tau).log_softmax(-1)
        return self.weight * (wanted.exp() * (wanted - given)).sum(-1).mean()

    def after_step(self, part: Part, s: State, step: Step) -> State:
        return averaged(part, s, ROLE, self.momentum, self.where)
