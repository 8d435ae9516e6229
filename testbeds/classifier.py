"""A classifier: cross-entropy on (input, label), under the same engine, interventions and diagnostics as the agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option
from core.part import Outcome, Part, descend
from core.randomness import Noise
from core.spec import EnvSpec
from core.state import Batch, States, Tensors, weights
from nets.augmentation import Augmentation
from nets.predictor import Predictor
from testbeds.optimizer import Training


@dataclass(frozen=True)
class ClassifierSettings(Training):
    """Hyperparameters of a classifier."""

    smoothing: float = option(0.0, low=0, high=1, help="label smoothing")
    augment: Augmentation = option(Augmentation())


class Classifier:
    """The learner; one part, `classifier`. Batches hold obs [B, *seen_shape] and label [B]; `spec.num_actions` are the
    classes."""

    Settings = ClassifierSettings

    def __init__(
        self,
        settings: ClassifierSettings,
        spec: EnvSpec,
        net: NetSpec,
        value: object = None,
        interventions: Sequence[Intervention] = (),
    ) -> None:
        settings.augment.check("net=mlp", spec.is_image, agent=False)
        self.settings, self.spec = settings, spec
        self.interventions = tuple(interventions)
        self.classifier = Part(
            "classifier",
            lambda blueprint: Predictor(spec.seen_shape, spec.num_actions, blueprint),
            net,
            self.classifier_loss,
            optim=settings.optim(),
            logits=True,
            greedy=True,
            interventions=interventions,
        )
        self.parts = {"classifier": self.classifier}
        self.acting_part = self.classifier

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return self.settings.augment.noise(batch_size, ("obs",))

    def classifier_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        b = self.settings.augment(b, noise, ("obs",))
        logits, feats = self.classifier(params, b["obs"])
        loss = F.cross_entropy(logits, b["label"], label_smoothing=self.settings.smoothing)
        accuracy = (logits.argmax(-1) == b["label"]).float().mean()
        return Outcome(loss, feats, {"classifier/accuracy": accuracy})

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, outcome = descend(self.classifier, s, b, noise)
        return s, outcome.info

    def score(self, s: States, b: Batch, role: str) -> Tensor:
        """1 where the network is right, else 0. -> [B]"""
        logits, _ = self.classifier(weights(s["classifier"], role), b["obs"])
        return (logits.argmax(-1) == b["label"]).float()
