"""A Part is one network and how it is improved. `descend` takes a step; `follow` and `replant` move copies and weights.

One rule keeps losses short: gradient flows only through the argument `params`. Whatever is read from `states` is a
constant, so nothing is ever detached.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.blueprint import NetSpec
from core.intervention import Intervention, OptimizerRule
from core.optim import Adam
from core.randomness import fork_torch
from core.state import Batch, State, States, Tensors


class Outcome(NamedTuple):
    """What a loss returns."""

    loss: Tensor  # () the training loss, without penalties
    feats: Tensors  # post-activation features of the trained network, [B, units, ...]
    info: Tensors  # scalars for the log
    values: Tensors = {}  # per-sample numbers: "q", "target", "priority"
    buffers: Tensors = {}  # new values of the network's buffers


class Step(NamedTuple):
    """What one update has at hand, handed to penalties, after-step rules and diagnostics."""

    batch: Batch
    noise: Tensors
    outcome: Outcome
    grads: Tensors  # {} in a penalty


LossFn = Callable[[Tensors, States, Batch, Tensors], Outcome]
#                  params   all parts batch  noise


class Part:
    """One network: its blueprint, loss, optimizer, slow copies and the interventions that act on it."""

    def __init__(
        self,
        name: str,
        make: Callable[[NetSpec], nn.Module],
        spec: NetSpec,
        loss: LossFn,
        *,
        optim: Adam,
        copies: tuple[str, ...] = (),
        averaged: bool = True,  # the agent lets its copies follow as averages; else it copies now and then
        interventions: Sequence[Intervention] = (),
    ) -> None:
        self.name, self.loss, self.optim, self.averaged = name, loss, optim, averaged
        self.fused = False  # the engine's choice: step in place by torch's fused kernel (see `descend`)
        self.compiled_gradient = self.gradient  # the engine may put a compiled one here
        self.net = _drawing(make, spec)
        has_layers = bool(self.net.chains())
        self.interventions = tuple(i for i in interventions if _matches(name, has_layers, i.on))
        for intervention in self.interventions:
            spec = intervention.build(spec)
        self.spec, self._make = spec, make
        self.net = _drawing(make, spec)
        self.chains = tuple(tuple(chain) for chain in self.net.chains())
        self.layers = tuple(dict.fromkeys(layer for chain in self.chains for layer in chain))
        self.copies = tuple(dict.fromkeys([*copies, *(role for i in self.interventions for role in i.copies)]))
        for intervention in self.interventions:
            self.names(intervention.where)  # a pattern that matches nothing is an error now, not in an hour

    def __call__(self, params: Tensors, *inputs: Tensor, buffers: Tensors | None = None, **options):
        """Run the network with these numbers. -> (output, features); `options` go to its forward."""
        return functional_call(self.net, params | buffers if buffers else params, inputs, options)

    # names

    def names(self, where: Iterable[str] = ("all",)) -> list[str]:
        """Parameter names selected by sections, "output", "all" or patterns, in the network's order."""
        every = [name for name, _ in self.net.named_parameters()]
        chosen: set[str] = set()
        for word in where:
            found = self._select(word, every)
            if not found:
                sections = sorted({layer.section for layer in self.layers})
                raise ValueError(
                    f"where={word} matches no parameter of part {self.name}; "
                    f"it has {', '.join(['all', 'output', *sections])} and names such as {', '.join(every[:4])}"
                )
            chosen.update(found)
        return [name for name in every if name in chosen]

    def _select(self, word: str, every: list[str]) -> list[str]:
        if word == "all":
            return every
        if word in ("encoder", "trunk", "head", "output"):
            layers = [la for la in self.layers if (la.output if word == "output" else la.section == word)]
            prefixes = tuple(layer.name + "." for layer in layers)
            return [name for name in every if name.startswith(prefixes)]
        return fnmatch.filter(every, word)

    def norm_names(self) -> set[str]:
        """Names of the scales and shifts of normalisation layers."""
        prefixes = tuple(layer.name + "." for layer in self.layers if layer.kind == "norm")
        return {name for name, _ in self.net.named_parameters() if name.startswith(prefixes)}

    # birth

    def fresh(self, seed: int, stream: str, *counters: int) -> Tensors:
        """A new draw from the network's initialisers, on the CPU."""
        with fork_torch(seed, stream, *counters):
            net = self._make(self.spec)
        return {name: p.detach().clone() for name, p in net.named_parameters()}

    def birth(self, seed: int, device: torch.device | str = "cpu") -> State:
        """The state of a newborn network."""
        params = {k: p.to(device) for k, p in self.fresh(seed, f"birth/{self.name}").items()}
        with fork_torch(seed, f"birth/{self.name}"):
            buffers = {k: b.detach().clone().to(device) for k, b in self._make(self.spec).named_buffers()}
        copy = {k: p.clone() for k, p in params.items()}
        return State(
            params=params,
            birth={k: p.clone() for k, p in copy.items()},
            copies={role: {k: p.clone() for k, p in copy.items()} for role in self.copies},
            optim=self.optim.start(params),
            buffers=buffers,
            memory={i.name: i.remember(self, params) for i in self.interventions},
        )

    # training

    def gradient(self, states: States, batch: Batch, noise: Tensors) -> tuple[Tensors, Outcome]:
        """Gradient of loss plus penalties with respect to this part's parameters, and what the loss returned."""
        s = states[self.name]

        def objective(params: Tensors) -> tuple[Tensor, Outcome]:
            outcome = self.loss(params, states, batch, noise)
            step, total = Step(batch, noise, outcome, {}), outcome.loss
            for intervention in self.interventions:
                total = total + intervention.penalty(self, params, s, step)
            return total, outcome

        return torch.func.grad(objective, has_aux=True)(s.params)


def descend(part: Part, states: States, batch: Batch, noise: Tensors) -> tuple[States, Outcome]:
    """One optimizer step on one part. Every always-on intervention passes through these lines and no others.

    With `part.fused` the optimizer steps in place, and a step whose gradient is not finite is skipped; otherwise new
    values are returned and the engine holds back those of a diverging member.
    """
    s = states[part.name]
    grads, outcome = part.compiled_gradient(states, batch, noise)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads.values()]))
    outcome = outcome._replace(info=outcome.info | {f"{part.name}/grad_norm": norm})
    if part.fused:
        alive = batch["alive"].logical_and_(norm.isfinite())
        part.optim.step_(s.params, grads, s.optim, skip=(~alive).float())
    else:
        params, optim = part.optim.step(s.params, grads, s.optim)
        s = s._replace(params=params, optim=optim)
    if outcome.buffers:
        s = s._replace(buffers=s.buffers | outcome.buffers)
    step = Step(batch, noise, outcome, grads)
    for intervention in part.interventions:
        s = intervention.after_step(part, s, step)
    return states | {part.name: s}, outcome


def follow(part: Part, states: States, tau: float | Tensor, role: str = "target") -> States:
    """Let a slow copy follow: copy <- copy + tau (params - copy). tau = 1 is a hard copy."""
    s = states[part.name]
    lerp = torch.Tensor.lerp_ if part.fused else torch.lerp
    slow = {k: lerp(c, s.params[k], tau) for k, c in s.copies[role].items()}
    return states | {part.name: s._replace(copies=s.copies | {role: slow})}


def replant(
    part: Part,
    s: State,
    params: Tensors,
    *,
    copies: dict[str, Tensors] | None = None,
    birth: Tensors | None = None,
    optimizer: OptimizerRule = "touched",
) -> State:
    """Put new values in place and say what happens to everything around them.

    params, birth: new values by parameter name; copies: the same by role. What is not named stays. optimizer: "keep"
    the moments, renew those of the tensors "touched", or of "all".
    """
    slots = s.optim
    renewed = {"keep": {}, "touched": params, "all": s.params}[optimizer]
    if renewed:
        start = part.optim.start({k: s.params[k] for k in renewed})
        # a step count may be element-wise: start anew in the shape it has
        slots = {
            slot: old | {k: torch.zeros_like(old[k]) + start[slot][k] for k in renewed} for slot, old in slots.items()
        }
    slow = s.copies | {role: s.copies[role] | new for role, new in (copies or {}).items()}
    return s._replace(params=s.params | params, copies=slow, birth=s.birth | (birth or {}), optim=slots)


def check_parts(parts: dict[str, Part], interventions: Sequence[Intervention]) -> None:
    """Every intervention must act on some part, and every word of its `on` must match one."""
    for intervention in interventions:
        for word in intervention.on:
            if not any(_matches(p.name, bool(p.chains), (word,)) for p in parts.values()):
                raise ValueError(
                    f"interventions.{intervention.name}.on={word} matches no part; this agent has {', '.join(parts)}"
                )


def _matches(name: str, has_layers: bool, words: Iterable[str]) -> bool:
    return any(has_layers if word == "*" else fnmatch.fnmatch(name, word) for word in words)


def _drawing(make: Callable[[NetSpec], nn.Module], spec: NetSpec) -> Any:
    """The network without numbers: modules on the meta device, the numbers are in State."""
    with torch.device("meta"):
        return make(spec)
