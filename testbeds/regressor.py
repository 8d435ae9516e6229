"""A regressor: the value losses of the agents on (input, number), so that what a loss does to a network is seen without
any bootstrapping (Lyle et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.part import Outcome, Part, descend
from core.randomness import Noise
from core.spec import EnvSpec
from core.state import Batch, States, Tensors, weights
from nets.predictor import Predictor
from nets.value import C51
from testbeds.optimizer import Training


class Regressor:
    """The learner; one part, `regressor`. Batches hold obs [B, *seen_shape] and target [B]."""

    Settings = Training

    def __init__(
        self,
        settings: Training,
        spec: EnvSpec,
        net: NetSpec,
        value,
        interventions: Sequence[Intervention] = (),
    ) -> None:
        if isinstance(value, C51):
            raise ValueError(
                "value: c51 given; it learns from distributions, and targets here are numbers; use hl_gauss"
            )
        self.settings, self.spec, self.value = settings, spec, value
        self.interventions = tuple(interventions)
        self.regressor = Part(
            "regressor",
            lambda blueprint: Predictor(spec.seen_shape, value.bins, blueprint),
            net,
            self.regressor_loss,
            optim=settings.optim(),
            logits=value.logits,
            decode=lambda out: value.decode(out)[..., None],
            interventions=interventions,
        )
        self.parts = {"regressor": self.regressor}
        self.acting_part = self.regressor

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return {}

    def regressor_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        out, feats = self.regressor(params, b["obs"])
        loss = self.value.loss(out, b["target"]).mean()
        predicted = self.value.decode(out)
        error = (predicted - b["target"]).square().mean()
        values = {"q": predicted, "target": b["target"]}
        return Outcome(loss, feats, {"regressor/squared_error": error}, values)

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, outcome = descend(self.regressor, s, b, noise)
        return s, outcome.info

    def score(self, s: States, b: Batch, role: str) -> Tensor:
        """Minus the squared error. -> [B]"""
        out, _ = self.regressor(weights(s["regressor"], role), b["obs"])
        return -(self.value.decode(out) - b["target"]).square()
