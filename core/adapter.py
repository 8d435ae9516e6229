"""Interventions for anybody's training loop: a plain `nn.Module` and a `torch.optim.Adam`.

    plastic = Plastic(net, optimizer, [ReDo(when=When(every=1_000))], example=x)
    for x, y in data:
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        for row in plastic.step(x):  # one per event
            print(row["intervention"], row["touched"])

For interventions that act by events: they see the module as a `Part`, change a copy of its numbers, and the result is
written back in place, optimizer state included. What has to be built into a network or into its loss is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.blueprint import NetSpec
from core.clock import Clock
from core.engine import Engine
from core.gradients import NeedsGradient
from core.intervention import Intervention
from core.optim import Adam
from core.part import Outcome, Part
from core.randomness import fork_torch
from core.rehearsal import rehearse
from core.state import Batch, States, Tensors, write
from core.traced import Initialise, Traced, chain_of

BESIDE = ("build", "forward", "draws", "carry", "penalty", "after_step")  # what cannot be done from outside
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq", "t": "step"}  # ours and torch.optim's
NAME = "module"


class Unknown(dict):
    """The gradient of a loss that only the caller knows: whoever looks at it is told so."""

    def values(self):
        return ()  # none that could be infinite

    def __getitem__(self, name):
        raise NeedsGradient("event goes by the gradient of your loss, which cannot be seen from outside the update")

    def items(self):
        return self[""]

    def __iter__(self):
        return self[""]


class Seen(Part):
    """A network of which only activations are known."""

    def gradient(
        self, states: States, batch: Batch, noise: Tensors, observing: bool = False
    ) -> tuple[Tensors, Outcome]:
        return Unknown(), self.outcome(states, batch, noise)


class Plastic:
    """A module under interventions. `seed` names their random streams; training's generators are not touched.

    example: an input, to see which layer feeds which: linear and convolution layers one after the other, whatever
    activations, pooling and normalisation lie between. initialise: how a module of this kind is drawn, as you did it,
    e.g. `lambda net: net.apply(orthogonal)`; without it, fresh weights are torch's own. Parameters that do not require
    a gradient are treated as the others: leave them out by `where`. Raises ValueError for other networks, optimizers,
    schedules and interventions: each event is rehearsed here.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Adam,
        interventions: Sequence[Intervention],
        *,
        example: Tensor,
        seed: int = 0,
        initialise: Initialise | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        for intervention in interventions:
            intervention.name = intervention.name or type(intervention).__module__.rpartition(".")[2]
            inside = [method for method in BESIDE if intervention.overrides(method)]
            if inside:
                raise ValueError(
                    f"{intervention.name}: works inside the update ({inside[0]}); only events come from outside"
                )
            if not intervention.when or intervention.when.unit != "updates":
                raise ValueError(f"{intervention.name}: expected a schedule in updates, as in when=When(every=1_000)")
        group = cast(dict[str, Any], optimizer.param_groups[0])
        self.module, self.optimizer, self.clock = module, optimizer, Clock(steps=2**62)
        layers = chain_of(module, example)
        optim = Adam(lr=group["lr"], b1=group["betas"][0], b2=group["betas"][1], eps=group["eps"])
        with fork_torch(seed, "adapter"):  # nothing here moves the caller's generator
            self.part = Seen(
                NAME,
                lambda blueprint: Traced(module, layers, initialise),
                NetSpec(),
                self._features,
                optim=optim,
                interventions=interventions,
            )
        for intervention in interventions:
            wish = intervention.tune(self.part, optim)
            if wish != optim:
                other = [f"{key}={value}" for key, value in vars(wish).items() if value != getattr(optim, key)]
                raise ValueError(
                    f"{intervention.name}: its settings ask for an Adam with {', '.join(other)}, which yours is "
                    "not; choose settings that leave the optimizer's alone"
                )
        self.parts: dict[str, Part] = {NAME: self.part}
        self.interventions = tuple(interventions)
        self.engine = Engine(self, (seed,), len(example), str(example.device), compile=False)
        state = self.engine.states[NAME]
        write({k: state.birth[k][0] for k in state.birth}, self._parameters())  # theta_0 is what it holds now
        rehearse(self.engine, {"obs": example[None]})

    def step(self, inputs: Tensor) -> list[dict]:
        """To be called after every `optimizer.step()`, with that step's inputs. -> ledger rows of what happened."""
        self.clock.update()
        if not any(intervention.when.due(self.clock) for intervention in self.interventions):
            return []
        self._exchange(read=True)
        rows = self.engine.intervene(self.clock, ("updates",), lambda stream, count, size: {"obs": inputs[None]})
        self._exchange(read=False)
        return rows

    # what the engine asks of a learner

    def noise(self, batch_size: int) -> dict:
        return {}

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        raise NotImplementedError("training is the caller's")

    def _features(self, params: Tensors, states: States, b: Batch, noise: Tensors) -> Outcome:
        _, feats = self.part(params, b["obs"])
        return Outcome(torch.zeros(()), feats, {})

    # numbers

    def _parameters(self) -> Tensors:
        return {f"module.{name}": p.detach() for name, p in self.module.named_parameters()}

    def _exchange(self, read: bool) -> None:
        """Copy the numbers of module and optimizer into the engine, or back."""
        state = self.engine.states[NAME]
        pairs = [(p, state.params[name][0]) for name, p in self._parameters().items()]
        pairs += [(b, state.buffers[f"module.{name}"][0]) for name, b in self.module.named_buffers()]
        for name, p in self.module.named_parameters():
            for slot, entry in SLOTS.items():
                if p in self.optimizer.state:
                    pairs.append((self.optimizer.state[p][entry], state.optim[slot][f"module.{name}"][0]))
        for theirs, ours in pairs:
            source, goal = (theirs, ours) if read else (ours, theirs)
            goal.copy_(source)


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise ValueError(f"optimizer: {type(optimizer).__name__} given; expected torch.optim.Adam or AdamW")
    if any(group["amsgrad"] for group in optimizer.param_groups):
        raise ValueError("optimizer: amsgrad keeps a maximum that no event would reset; expected amsgrad=False")
