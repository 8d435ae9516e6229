"""Whether a network can still learn: a clone and a newborn are trained towards the same random targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import grad_and_value

from core.gradients import shortened
from core.part import Part, Step
from core.randomness import key
from core.state import State, Tensors, clone, weights

STEPS = 100
SAMPLES = 32
RATES = (1.0, 10.0)  # learning rates, as factors on the part's own
OFFSETS = (0.0, 10.0)  # of the targets, whose amplitude is 1
FREQUENCY = 1e5


def trainability(
    part: Part,
    s: State,
    step: Step,
    *,
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
    offsets: Sequence[float] = OFFSETS,
) -> dict[str, Tensor]:
    """How much faster than a newborn network a clone learns, against the same targets.

    Both regress g(x) = a + offset + sin(1e5 f(x; omega)) on the batch's first 32 samples for 100 steps of Adam with the
    part's settings and a fresh state. f are the numbers that the outputs stand for, omega another newborn network, a
    each network's own mean prediction before the first step.

    `trainability@lrFx@offsetC`, for a factor F on the learning rate and an offset C of the targets: the area above the
    clone's learning curve less that of the newborn, each curve a mean over steps in units of its first loss. 0: as
    trainable as a newborn; -1: it learns nothing and the newborn all at once. `trainability` is their mean. Slopes
    degrade before plateaus do, and a network that begins far off is not blamed for that; our inference.
    `plasticity@lrFx@offsetC`: P(clone) - P(newborn), P = Var g - mean loss over the steps (Lyle et al. 2023,
    "Understanding Plasticity in Neural Networks"; there 2,000 steps and ten functions, without offset; secondary).
    Offsets: Lyle et al. 2024. Interventions on the loss and after steps take no part. Both see the same inputs: by
    the clone's moments of observations, through the encoder it carries. Batch normalisation runs as in evaluation, each
    by running statistics of its own, those of a newborn being 0 and 1.
    """
    inputs = tuple(x[:SAMPLES] for x in part.inputs(step.batch))
    device = inputs[0].device
    births = (part.birth(key(0, f"diagnostics/probe/{who}"), device) for who in ("newborn", "target"))
    fresh, omega = (born._replace(buffers=born.buffers | given(part, s)) for born in births)
    wave = (FREQUENCY * predict(part, weights(omega), inputs).double()).sin().float()
    areas, plasticity = {}, {}
    for factor in rates:
        for offset in offsets:
            setting = f"@lr{factor:g}x@offset{offset:g}"
            mine, newborns = (learning_curve(part, x, inputs, wave + offset, factor, steps) for x in (s, fresh))
            areas[f"trainability{setting}"] = relative(newborns) - relative(mine)
            plasticity[f"plasticity{setting}"] = newborns.mean() - mine.mean()
    return {"trainability": torch.stack(list(areas.values())).mean()} | areas | plasticity


def relative(curve: Tensor) -> Tensor:
    """Mean of a learning curve in units of its first loss. [steps] -> ()."""
    return (curve / curve[0].clamp_min(1e-12)).mean()


def learning_curve(
    part: Part, s: State, inputs: tuple[Tensor, ...], wave: Tensor, factor: float = 1.0, steps: int = STEPS
) -> Tensor:
    """Squared error before each of `steps` steps towards the state's own mean prediction plus `wave`. -> [steps]."""
    optim = replace(part.optim, lr=factor * part.optim.lr, hold=False)
    params = clone(s.params)
    slots = optim.start(params)
    target = wave + predict(part, weights(s), inputs).mean(0)

    def loss(params: Tensors) -> Tensor:
        return (predict(part, params | s.buffers, inputs) - target).square().mean()

    losses, alive = [], torch.ones((), dtype=torch.bool, device=wave.device)
    for _ in range(steps):
        grads, value = grad_and_value(loss)(params)
        optim.step_(params, shortened(grads, optim.clip_norm), slots, alive)
        losses.append(value)
    return torch.stack(losses)


def given(part: Part, s: State) -> Tensors:
    """The buffers that say what a network is shown: neither a trained layer's own nor an intervention's."""
    own = tuple({f"{name.rpartition('.')[0]}." for name in part.shapes})
    return {k: value for k, value in s.buffers.items() if "/" not in k and not k.startswith(own)}


def predict(part: Part, numbers: Tensors, inputs: tuple[Tensor, ...]) -> Tensor:
    """What the outputs stand for. -> [B, numbers]."""
    return part.decode(part(numbers, *inputs)[0])
