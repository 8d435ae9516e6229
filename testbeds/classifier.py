"""A classifier: cross-entropy on (input, label), under the same engine, interventions and diagnostics as the agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Outcome, Part, descend
from core.randomness import Noise
from core.state import Batch, States, Tensors
from nets.mlp import MLP


@dataclass(frozen=True)
class ClassifierSettings:
    """Hyperparameters of a classifier."""

    learning_rate: float = option(1e-3, above=0, help="Adam's step size")
    adam_eps: float = option(1e-8, above=0, help="Adam's epsilon")
    weight_decay: float = option(0.0, low=0, help="decoupled (AdamW), on tensors with more than one axis")
    batch_size: int = option(256, low=1, help="samples per update")


class Classifier:
    """The learner; one part, `classifier`, a multi-layer perceptron. Batches hold obs [B, inputs] and label [B]."""

    Settings = ClassifierSettings

    def __init__(
        self,
        settings: ClassifierSettings,
        inputs: int,
        classes: int,
        net: NetSpec,
        interventions: Sequence[Intervention] = (),
    ) -> None:
        self.settings = settings
        self.interventions = tuple(interventions)
        self.classifier = Part(
            "classifier",
            lambda blueprint: MLP(inputs, classes, blueprint),
            net,
            self.classifier_loss,
            optim=Adam(lr=settings.learning_rate, eps=settings.adam_eps, decay=settings.weight_decay),
            logits=True,
            greedy=True,
            interventions=interventions,
        )
        self.parts = {"classifier": self.classifier}

    def noise(self, batch_size: int) -> dict[str, Noise]:
        return {}

    def classifier_loss(self, params: Tensors, s: States, b: Batch, noise: Tensors) -> Outcome:
        logits, feats = self.classifier(params, b["obs"])
        loss = F.cross_entropy(logits, b["label"])
        accuracy = (logits.argmax(-1) == b["label"]).float().mean()
        return Outcome(loss, feats, {"classifier/loss": loss, "classifier/accuracy": accuracy})

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        s, outcome = descend(self.classifier, s, b, noise)
        return s, outcome.info
