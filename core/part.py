"""A Part is one network and how it is improved. `descend` takes a step; `replant` puts new weights in place.

Two rules keep losses short. Gradient flows only through the argument `params`: whatever is read from `states` is a
constant, so no target is ever detached. And `params` is the network in training: it brings the masks of dropout and the
like, and sums up batch statistics; `weights(s)` and slow copies run as in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from core.blueprint import PRE, NetSpec
from core.functional import Functional
from core.gradients import gradient, joint_norm, shortened
from core.intervention import Intervention, OptimizerRule
from core.optim import Adam
from core.randomness import Noise, fork_torch
from core.selection import matches, named, select
from core.state import Batch, State, States, Tensors, where


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
    states: States = {}  # of all parts; its own may have taken their step when after-step rules look
    shared: frozenset[str] = frozenset()  # the noise that does not lead with samples


Output = tuple[Tensor, Tensors]  # of a network: its output, its features
LossFn = Callable[[Tensors, States, Batch, Tensors], Outcome]
#                  params   all parts batch  noise


def observations(batch: Batch) -> tuple[Tensor, ...]:
    """What most networks take from a batch."""
    return (batch["obs"],)


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
        inputs: Callable[[Batch], tuple[Tensor, ...]] = observations,  # what the network takes from a batch
        logits: bool = False,  # its outputs are unnormalised log-probabilities along the last axis
        decode: Callable[[Tensor], Tensor] = lambda out: out,  # what its outputs stand for, as [B, numbers]
        greedy: bool = False,  # of these numbers the largest is chosen
        copies: tuple[str, ...] = (),
        averaged: bool = True,  # the agent lets its copies follow as averages; else it copies now and then
        interventions: Sequence[Intervention] = (),
    ) -> None:
        self.name, self.loss, self.inputs, self.logits = name, loss, inputs, logits
        self.decode, self.greedy, self.averaged = decode, greedy, averaged
        self.fused = False  # the engine's choice: step in place by torch's fused kernel (see `descend`)
        self.half = ""  # the engine's choice: the kind of device on which hidden layers multiply in bfloat16
        self.compiled_gradient = self.gradient  # the engine may put a compiled one here
        has_layers = bool(_drawing(make, spec).chains())
        self.interventions = tuple(i for i in interventions if matches(name, has_layers, i.on))
        for intervention in self.interventions:
            spec = intervention.build(spec, lambda edited: sum(p.numel() for p in _drawing(make, edited).parameters()))
        self.spec, self._make = spec, make
        self.net = _drawing(make, spec)
        self.shapes = {name: p.shape for name, p in self.net.named_parameters()}
        self._function = Functional(self.net)
        self.chains = tuple(tuple(chain) for chain in self.net.chains())
        self.layers = tuple(dict.fromkeys(layer for chain in self.chains for layer in chain))
        self._selected: dict[str, list[str]] = {}  # parameter names by word of `where`
        self.copies = tuple(dict.fromkeys([*copies, *(role for i in self.interventions for role in i.copies)]))
        for intervention in self.interventions:
            with named(intervention):
                self.names(intervention.where)  # a pattern that matches nothing is an error now, not in an hour
                optim = intervention.tune(self, optim)
        self.optim = optim
        self._wrapping = [i for i in self.interventions if i.overrides("forward")]
        self._masks = frozenset(self._layer_noise(1))

    def __call__(self, numbers: Tensors, *inputs: Tensor) -> Output:
        """Run the network on these numbers, buffers included. -> (output, features)"""

        def run(numbers: Tensors) -> Output:
            own = {k: value for k, value in numbers.items() if "/" not in k}  # the others belong to interventions
            deciding = not is_compiling() and torch.is_inference_mode_enabled()
            if deciding or not self.half:  # to round the weights takes longer than a decision
                return self._function(own, inputs)
            with torch.autocast(self.half, torch.bfloat16):
                out, feats = self._function(own, inputs)
            return out, {k: h.float() for k, h in feats.items()}

        for intervention in self._wrapping:
            run = partial(intervention.forward, self, run)
        return run(numbers)

    # names

    def names(self, where: Iterable[str] = ("all",)) -> list[str]:
        """Parameter names by sections (of a part without layers: all of it), "output", "all" or patterns, in order."""
        every = list(self.shapes)
        chosen: set[str] = set()
        for word in where:
            if word not in self._selected:  # the compiler can look up what a pattern matches, not find it
                self._selected[word] = select(word, every, self.layers)
            found = self._selected[word]
            if not found:
                sections = sorted({layer.section for layer in self.layers})
                raise ValueError(
                    f"where={word} matches no parameter of part {self.name}; "
                    f"it has {', '.join(['all', 'output', *sections])} and names such as {', '.join(every[:4])}"
                )
            chosen.update(found)
        return [name for name in every if name in chosen]

    def matrices(self, where: Iterable[str] = ("all",)) -> list[str]:
        """Names of selected matrices and kernels, but no sigmas of noise. Raises ValueError if there is none."""
        chosen = [k for k in self.names(where) if len(self.shapes[k]) > 1 and not k.endswith("_sigma")]
        if not chosen:
            raise ValueError(
                f"where=[{','.join(where)}] selects only biases, gains and shifts of part {self.name}; "
                "expected a matrix or kernel among them, or leave the part out of `on`"
            )
        return chosen

    def norm_names(self) -> set[str]:
        """Names of the scales and shifts of normalisation layers."""
        prefixes = tuple(layer.name + "." for layer in self.layers if layer.kind == "norm")
        return {name for name in self.shapes if name.startswith(prefixes)}

    # birth

    def fresh(self, seed: int, stream: str, *counters: int) -> Tensors:
        """A new draw from the network's initialisers, on the CPU: parameters, and buffers as a newborn has them."""
        with fork_torch(seed, stream, *counters):
            net = self._make(self.spec)
        return {name: value.detach().clone() for name, value in net.state_dict().items()}

    def birth(self, seed: int, device: torch.device | str = "cpu") -> State:
        """The state of a newborn network."""
        drawn = {k: value.to(device) for k, value in self.fresh(seed, f"birth/{self.name}").items()}
        params = {k: drawn[k] for k in self.names()}
        memory = {}
        for intervention in self.interventions:
            with named(intervention):
                carried = intervention.carry(self, params)
                memory[intervention.name] = intervention.remember(self, params) | intervention.when.memory(params)
            drawn |= {f"{intervention.name}/{k}": value.clone() for k, value in carried.items()}
        buffers = {k: value for k, value in drawn.items() if k not in params}
        return State(
            params=params,
            birth={k: p.clone() for k, p in params.items()},
            copies={role: {k: value.clone() for k, value in drawn.items()} for role in self.copies},
            optim=self.optim.start(params),
            buffers=buffers,
            memory=memory,
        )

    # training

    def noise(self, batch_size: int) -> dict[str, Noise]:
        """Random numbers one update takes beside those of the loss: "PART/LAYER.BUFFER", "PART/INTERVENTION/NAME"."""
        found = {f"{self.name}/{key}": noise for key, noise in self._layer_noise(batch_size).items()}
        for intervention in self.interventions:
            for key, noise in intervention.draws(self).items():
                found[f"{self.name}/{intervention.name}/{key}"] = noise
        return found

    def _layer_noise(self, batch_size: int) -> dict[str, Noise]:
        return {
            f"{path}.{buffer}": noise
            for path, module in self.net.named_modules()
            if hasattr(module, "training_inputs")
            for buffer, noise in module.training_inputs(batch_size).items()
        }

    def gradient(
        self, states: States, batch: Batch, noise: Tensors, observing: bool = False
    ) -> tuple[Tensors, Outcome]:
        """Gradient of loss plus penalties with respect to this part's parameters, and what the loss returned.

        Without the noise of its layers the network runs as in evaluation. Pre-activations are among the features only
        with `observing`: an update need not write them to memory.
        """
        return gradient(self._objective(states, batch, noise, observing), states[self.name].params)

    def outcome(self, states: States, batch: Batch, noise: Tensors) -> Outcome:
        """What the loss returns, pre-activations among the features; a third of the gradient's time."""
        with torch.no_grad():
            return self._objective(states, batch, noise, observing=True)(states[self.name].params)[1]

    def _objective(
        self, states: States, batch: Batch, noise: Tensors, observing: bool
    ) -> Callable[[Tensors], tuple[Tensor, Outcome]]:
        """Loss plus penalties as a function of the parameters alone, with what the loss returned."""
        s, prefix = states[self.name], f"{self.name}/"
        drawn = {key.removeprefix(prefix): value for key, value in noise.items() if key.startswith(prefix)}
        masks = {key: value for key, value in drawn.items() if key in self._masks}

        def objective(params: Tensors) -> tuple[Tensor, Outcome]:
            outcome = self.loss(params | s.buffers | masks, states, batch, noise)
            buffers = {k: outcome.feats[k] for k in s.buffers if masks and k in outcome.feats}
            feats = {k: h for k, h in outcome.feats.items() if observing or not k.endswith(PRE)}
            outcome = outcome._replace(feats=feats, buffers=outcome.buffers | buffers)
            step, total = Step(batch, noise, outcome, {}, states), outcome.loss
            for intervention in self.interventions:
                total = total + intervention.penalty(self, params, s, step)
            return total, outcome

        return objective


def descend(part: Part, states: States, batch: Batch, noise: Tensors) -> tuple[States, Outcome]:
    """One optimizer step on one part. Every always-on intervention passes through these lines and no others.

    Nothing changes where the batch's `alive` is false, and it becomes so, for the rest of the update, where loss or
    gradient is not finite. With `part.fused` the optimizer steps in place; otherwise new values are returned.
    """
    s = states[part.name]
    grads, outcome = part.compiled_gradient(states, batch, noise)
    norm = joint_norm(grads)
    outcome = outcome._replace(info={f"{part.name}/loss": outcome.loss, f"{part.name}/grad_norm": norm} | outcome.info)
    grads = shortened(grads, part.optim.clip_norm, norm)
    sound = torch.maximum(norm, outcome.loss.abs()) < math.inf  # a number that is none is not less
    alive = batch["alive"].logical_and_(sound) if "alive" in batch else None
    if part.fused:
        part.optim.step_(s.params, grads, s.optim, alive)
    else:
        params, optim = part.optim.step(s.params, grads, s.optim, alive)
        s = s._replace(params=params, optim=optim)
    step = Step(batch, noise, outcome, grads, states)
    new = s._replace(buffers=s.buffers | outcome.buffers) if outcome.buffers else s
    for intervention in part.interventions:
        new = intervention.after_step(part, new, step)
    if alive is not None and new is not s:
        new = where(alive, new, s)
    return states | {part.name: new}, outcome


def replant(
    part: Part,
    s: State,
    params: Tensors,
    *,
    copies: dict[str, Tensors] | None = None,
    birth: Tensors | None = None,
    buffers: Tensors | None = None,
    optimizer: OptimizerRule = "touched",
) -> State:
    """Put new values in place and say what happens to everything around them.

    params, birth, buffers: new values by name; copies: the same by role. What is not named stays. optimizer: "keep"
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
    return s._replace(
        params=s.params | params,
        copies=slow,
        birth=s.birth | (birth or {}),
        buffers=s.buffers | (buffers or {}),
        optim=slots,
    )


def _drawing(make: Callable[[NetSpec], nn.Module], spec: NetSpec) -> Any:
    """The network without numbers: modules on the meta device, the numbers are in State."""
    with torch.device("meta"):
        return make(spec)
