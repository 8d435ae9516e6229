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

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.blueprint import Kind, Layer, NetSpec, Section
from core.clock import Clock
from core.engine import Engine
from core.intervention import Intervention
from core.optim import Adam
from core.part import Outcome, Part
from core.randomness import fork_torch
from core.state import Batch, States, Tensors, write

BESIDE = ("build", "forward", "draws", "carry", "penalty", "after_step")  # what cannot be done from outside
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq", "t": "step"}  # ours and torch.optim's
NAME = "module"
WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class Plastic:
    """A module under interventions. `seed` names their random streams; training's generators are not touched.

    example: an input, to see which layer feeds which: linear and convolution layers one after the other, whatever
    activations, pooling and normalisation lie between. Raises ValueError for other networks and interventions.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Adam,
        interventions: Sequence[Intervention],
        *,
        example: Tensor,
        seed: int = 0,
    ) -> None:
        for intervention in interventions:
            intervention.name = intervention.name or type(intervention).__module__.rpartition(".")[2]
            inside = [method for method in BESIDE if intervention.overrides(method)]
            if inside:
                raise ValueError(
                    f"{intervention.name}: works inside the update ({inside[0]}); only events come from outside"
                )
        group = cast(dict[str, Any], optimizer.param_groups[0])
        self.module, self.optimizer, self.clock = module, optimizer, Clock(steps=2**62)
        layers = chain_of(module, example)
        optim = Adam(lr=group["lr"], b1=group["betas"][0], b2=group["betas"][1], eps=group["eps"])
        with fork_torch(seed, "adapter"):  # nothing here moves the caller's generator
            self.part = Part(
                NAME,
                lambda blueprint: Traced(module, layers),
                NetSpec(),
                self._features,
                optim=optim,
                interventions=interventions,
            )
        for intervention in interventions:
            if intervention.tune(self.part, optim) != optim:
                raise ValueError(f"{intervention.name}: wants other settings of the optimizer than yours has")
        self.parts, self.interventions = {NAME: self.part}, tuple(interventions)
        self.engine = Engine(self, (seed,), len(example), str(example.device), compile=False)
        state = self.engine.states[NAME]
        write({k: state.birth[k][0] for k in state.birth}, self._parameters())  # theta_0 is what it holds now

    def step(self, inputs: Tensor) -> list[dict]:
        """To be called after every `optimizer.step()`, with that step's inputs. -> ledger rows of what happened."""
        self.clock.update()
        if not any(intervention.when.due(self.clock) for intervention in self.interventions):
            return []
        self._exchange(read=True)
        rows = self.engine.intervene(self.clock, ("updates",), lambda stream, count: {"obs": inputs[None]})
        self._exchange(read=False)
        return rows

    # what the engine asks of a learner

    def noise(self, batch_size: int) -> dict:
        return {}

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]:
        raise NotImplementedError("training is the caller's")

    def _features(self, params: Tensors, states: States, b: Batch, noise: Tensors) -> Outcome:
        out, feats = self.part(params, b["obs"])
        return Outcome(0 * out.sum(), feats, {})

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


class Traced(nn.Module):
    """A newborn copy of a module that also returns what each layer hands to the next."""

    def __init__(self, module: nn.Module, layers: list[Layer]) -> None:
        super().__init__()
        self.module, self.layers = copy.deepcopy(module).eval(), layers
        for child in self.module.modules():
            if callable(begin := getattr(child, "reset_parameters", None)):
                begin()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        feats: Tensors = {}
        modules: dict[str, Any] = dict(self.named_modules())

        def keep(layer: Layer):
            def hook(reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                units = modules[layer.name].weight.shape[0]
                feats[layer.feats] = inputs[0].reshape(len(inputs[0]), units, -1)

            return hook

        hooks = [
            modules[layer.readers[0]].register_forward_pre_hook(keep(layer)) for layer in self.layers if layer.readers
        ]
        try:
            return self.module(x), feats
        finally:
            for hook in hooks:
                hook.remove()

    def chains(self) -> list[list[Layer]]:
        return [self.layers]


def chain_of(module: nn.Module, example: Tensor) -> list[Layer]:
    """The map of a module's layers, in the order in which `example` runs through them."""
    order: list[tuple[str, nn.Module]] = []

    def note(name: str):
        return lambda layer, inputs, output: order.append((f"module.{name}", layer))

    found = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, WEIGHTED + NORMS)]
    hooks = [layer.register_forward_hook(note(name)) for name, layer in found]
    with torch.no_grad():
        module(example)
    for hook in hooks:
        hook.remove()
    weighted = [i for i, (_, layer) in enumerate(order) if isinstance(layer, WEIGHTED)]
    layers = []
    for i, j in zip(weighted, [*weighted[1:], None], strict=True):
        (name, layer), norm = order[i], order[i + 1][0] if i + 1 < (j or len(order)) else ""
        kind: Kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
        if j is None:
            layers.append(Layer(name, kind, "head", output=True, norm=norm))
            continue
        reader, reading = order[j]
        units, inputs = (cast(Tensor, m.weight).shape[k] for m, k in ((layer, 0), (reading, 1)))
        if inputs % units:
            raise ValueError(f"{reader} has {inputs} inputs and {name} before it {units} units; expected a plain chain")
        section: Section = "encoder" if kind == "conv" else "trunk"
        layers.append(Layer(name, kind, section, feats=name, readers=(reader,), norm=norm))
        layers += [Layer(norm, "norm", section)] if norm else []
    return layers
