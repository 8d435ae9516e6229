"""Scale of what a value network is asked to predict, and of what it predicts."""

from __future__ import annotations

from torch import Tensor

from core.part import Part, Step
from core.state import State


def target_scale(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Mean, deviation, least and greatest TD target of the batch, and |mean| / deviation.

    `target_clipped`: the share of targets outside a categorical support (of a distribution: the mean probability mass
    that is moved to its edges), 0 for a value that is a number. A mean that is large against the spread is one of the
    causes of plasticity loss (Lyle et al. 2024); a ratio above 10 is a warning sign (our inference). Parts
    without targets report nothing.
    """
    if "target" not in step.outcome.values:
        return {}
    target = step.outcome.values["target"]
    mean, spread = target.mean(), target.std()
    clipped = {"target_clipped": step.outcome.values["clipped"].mean()} if "clipped" in step.outcome.values else {}
    return clipped | {
        "target_mean": mean,
        "target_std": spread,
        "target_min": target.min(),
        "target_max": target.max(),
        "target_mean_over_std": mean.abs() / spread.clamp_min(1e-12),
    }


def value_scale(part: Part, s: State, step: Step) -> dict[str, Tensor]:
    """Mean and deviation of the predicted values of the batch's state-action pairs; of several critics, the first's."""
    if "q" not in step.outcome.values:
        return {}
    q = step.outcome.values["q"]
    return {"q_mean": q.mean(), "q_std": q.std()}
