"""Supervised learners on changing data: where the field found plasticity loss, and an answer takes minutes."""

from testbeds.classifier import Classifier

__all__ = ["Classifier"]
