"""How supervised learners are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.optim import SGD, Adam
from core.options import option


@dataclass(frozen=True)
class Training:
    """Settings that all supervised learners share."""

    optimizer: Literal["adam", "sgd"] = option("adam", help="Adam, or gradient descent with momentum")
    learning_rate: float = option(1e-3, above=0, help="step size")
    momentum: float = option(0.9, low=0, high=1, help="of both optimizers; Adam's beta 1")
    adam_eps: float = option(1e-8, above=0, help="Adam's epsilon")
    weight_decay: float = option(0.0, low=0, help="decoupled, on tensors with more than one axis")
    batch_size: int = option(128, low=1, high=65_536, help="samples per update")
    evaluate_with: str = option("auto", help="weights that are evaluated; auto: a tortoise's, else params")

    def __post_init__(self) -> None:
        if self.optimizer == "sgd" and self.adam_eps != Training.adam_eps:
            raise ValueError(f"adam_eps={self.adam_eps:g} given; optimizer=sgd has none; leave it out")

    def optim(self) -> Adam:
        """The optimizer these settings describe."""
        make = {"adam": Adam, "sgd": SGD}[self.optimizer]
        return make(lr=self.learning_rate, b1=self.momentum, eps=self.adam_eps, decay=self.weight_decay)
