"""The only place that knows the seed axis, the compiler and the device.

Agents and interventions are written for one seed. The engine stacks n of them and chooses how to run an update:

* *batched*: the whole update of all members as one compiled region (`vmap` inside). Measured best for dense networks:
  matrix products of all members become one.
* *by member*: one member after the other on views into the stack, the optimizer in place by torch's fused kernel; with
  the compiler, the gradient of each part is the compiled region. Measured best for convolutions, and for all eager
  runs.

On a GPU what is compiled is also recorded, the whole update as one graph (core/captured.py).

Numbers are float32. With precision `bfloat16` the hidden layers multiply in it: weights, optimizer, losses and output
layers stay float32. With `tf32` a GPU's products drop 13 bits of the mantissa on the way in.

Storage never moves: new values are written with `copy_` into the tensors the engine was born with, so nothing that
holds one (a compiled region, a captured graph, an acting copy) goes stale at a reset.

A member whose loss or gradient is not finite is frozen at once, on the device (`alive`); its neighbours' bits do not
change. Each network is judged before it steps: those before it in the update's order have taken theirs. The host learns
of it when it asks (`diverged`). What a world shows is judged before it is stored (envs/vector.py, core/offline.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from core.captured import Captured
from core.clock import Clock, Unit
from core.compiling import compiled
from core.controls import controlled
from core.decisions import decisions
from core.diagnostics import Tier, finite, measure
from core.events import Context
from core.intervention import Intervention
from core.ledger import entry
from core.part import Part, Step
from core.randomness import Noise, draw, draw_on_host, keys_tensor
from core.selection import check_parts
from core.state import Batch, State, States, Tensors, check_same_tree, clone, member, shaped, stack, write

Precision = Literal["float32", "tf32", "bfloat16"]
Sample = Callable[[str, int, int], Batch]  # (stream, count, samples; 0: as many as an update takes) -> [n, B, ...]


class Learner(Protocol):
    """What the engine asks of an agent or a testbed; everything for one seed. One whose parts carry each other's
    weights also has `tied(states, newborn) -> States`: called at birth and after events, it makes them agree. An update
    changes nothing where the batch's `alive` is false (`descend` and `follow` see to that), and `descend` makes it so
    where loss or gradient is not finite."""

    parts: dict[str, Part]
    interventions: tuple[Intervention, ...]

    def noise(self, batch_size: int) -> dict[str, Noise]: ...

    def update(self, s: States, b: Batch, noise: Tensors) -> tuple[States, Tensors]: ...


class Agent(Learner, Protocol):
    """A learner that also decides."""

    def act_noise(self, episodes: int) -> dict[str, Noise]: ...

    def act(self, s: States, obs: Tensor, explore: Any, noise: Tensors, role: str) -> Tensor: ...


class Engine:
    """n learners, side by side."""

    def __init__(
        self,
        learner: Learner,
        seeds: Sequence[int],
        batch_size: int,
        device: str = "cpu",
        compile: bool = True,
        precision: Precision = "float32",
    ) -> None:
        self.learner, self.seeds, self.device = learner, tuple(seeds), torch.device(device)
        check_parts(learner.parts, learner.interventions)
        if self.device.index:
            torch.cuda.set_device(self.device)  # streams, events and graphs are made on the current one
        births = [{name: part.birth(seed, device) for name, part in learner.parts.items()} for seed in seeds]
        self.states: States = stack(births)
        self._members = [member(self.states, i) for i in range(len(seeds))]  # views; the storage never moves
        for newborn in self._members:
            self._tie(newborn, newborn=True)
        self.alive = torch.ones(len(seeds), dtype=torch.bool, device=device)
        self.awake = torch.ones_like(self.alive)  # a member that rests is not trained; whoever sets it wakes it up
        self.chunks = 0  # in which the data have come, the streams "chunk/NUMBER"; whoever has such data says so
        self.loss_noise = learner.noise(batch_size)  # of losses alone: what the networks take in evaluation
        self._shared = frozenset(name for name, noise in self.loss_noise.items() if noise.shared)
        self.noise = dict(self.loss_noise)
        for part in learner.parts.values():
            self.noise |= part.noise(batch_size)
        self._keys = self.keys_of("update")

        parts = learner.parts.values()
        self.convolutional = any(layer.kind == "conv" for part in parts for layer in part.layers)
        self.compiled = compile
        self.batched = compile and not self.convolutional
        for part in parts:
            part.fused = not self.batched
            part.half = self.device.type if precision == "bfloat16" else ""
            if compile and not self.batched:
                part.compiled_gradient = compiled(part.gradient, self.device)
        self._decide = decisions(cast(Agent, learner), self.states, self._members, together=self.batched)
        run = compiled(self._batched, self.device) if self.batched else self._by_member
        self._run = Captured(run) if compile and self.device.type == "cuda" else run

    # updates

    def update(self, batch: Batch, clock: Clock) -> Tensors:
        """One update of every member. batch: leaves [n, B, ...] -> what the update reports, leaves [n, ...]."""
        n = len(self.seeds)
        counts = self._counts(clock, clock.updates + 1)
        return self._run(self.states, batch | {k: c.expand(n) for k, c in counts.items()}, counts["update"])

    def _batched(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        noise = draw(self.noise, self._keys, count)
        trained = self.alive & self.awake
        new, info = vmap(self.learner.update)(states, batch | {"alive": trained}, noise)
        _write_trained(states, new)
        self.alive.logical_and_(trained | ~self.awake)
        return info

    def _by_member(self, states: States, batch: Batch, count: Tensor) -> Tensors:
        noise = draw(self.noise, self._keys, count)
        trained = self.alive & self.awake
        infos = []
        for i, mine in enumerate(self._members):
            new, info = self.learner.update(mine, member(batch | {"alive": trained}, i), member(noise, i))
            _write_trained(mine, new)
            infos.append(info)
        self.alive.logical_and_(trained | ~self.awake)
        return tree_map(lambda *rows: torch.stack(rows), *infos)

    # acting

    def act(self, obs: np.ndarray, explore: Any, stream: str, count: int, role: str = "params") -> np.ndarray:
        """Actions for E episodes of each member. obs [n, E, *seen_shape] -> [n, E, *action_shape].

        explore: what the agent's `explore(clock)` or `explore_eval` gave.
        """
        drawn = draw_on_host(cast(Agent, self.learner).act_noise(obs.shape[1]), self.seeds, stream, count)
        noise = {name: tensor.to(self.device, non_blocking=True) for name, tensor in drawn.items()}
        # a copy: NumPy's arrays start at any multiple of 16 bytes, and the bits of a matrix product depend on where
        seen = torch.tensor(obs, device=self.device)
        with torch.inference_mode():
            return self._decide(seen, explore, noise, role).cpu().numpy()

    # events

    def intervene(self, clock: Clock, units: Sequence[Unit], sample: Sample) -> list[dict]:
        """Apply the events that are due, in the order of the list; eager, seed by seed. -> ledger rows."""
        rows = []
        for intervention in self.learner.interventions:
            if not (
                intervention.overrides("event") and intervention.when.unit in units and intervention.when.due(clock)
            ):
                continue
            for part in self.learner.parts.values():
                if intervention in part.interventions:
                    members = (self.alive & self.awake).nonzero().flatten().tolist()  # others are not touched
                    for i in members:
                        rows += self._event(intervention, part, i, clock, sample)
        return rows

    def _event(self, intervention: Intervention, part: Part, i: int, clock: Clock, sample: Sample) -> list[dict]:
        """The row of an event; none if its condition does not hold."""
        states, when = self._members[i], intervention.when
        old, seed = states[part.name], self.seeds[i]
        if when.yoke and not when.yoked(intervention.name, part.name, seed, i, clock):
            return []
        ctx = self.context(intervention, part, i, states, clock, sample)
        found = {}
        if when.metric:

            def look(tier: Tier) -> Step:
                return ctx.step(size=tier.batch, gradients=tier.gradients)

            found = {when.metric: measure(when.metric, part, old, look)}
            happens, memory = when.judge(found[when.metric], old.memory[intervention.name], clock)
            write({k: old.memory[intervention.name][k] for k in memory}, memory)
            if not happens:
                return []
        new = controlled(intervention.control, old, intervention.event(part, old, ctx), ctx)
        row = entry(intervention, part, seed, clock, old, new)
        if new is not old:
            write(old, clone(new))
            self._tie(states)
        return [row | found]

    def _tie(self, states: States, newborn: bool = False) -> None:
        if hasattr(self.learner, "tied"):
            for name, state in self.learner.tied(states, newborn).items():
                write(states[name], state)

    def context(
        self, intervention: Intervention, part: Part, i: int, states: States, clock: Clock, sample: Sample
    ) -> Context:
        stream, counts = f"event/{intervention.name}/{part.name}", self._counts(clock, clock.updates)

        def draw_batch(number: int, size: int, chunk: bool = False) -> tuple[Batch, Tensors]:
            name = f"{stream}/{number}" if number else stream
            batch = sample(f"chunk/{number}" if chunk else name, clock.updates, size)
            samples = next(iter(batch.values())).shape[1]
            noise = draw(self.learner.noise(samples), self.keys_of(name), counts["update"])
            return member(batch, i) | counts, member(noise, i)

        control = intervention.control
        where = (self.seeds[i], intervention.name, self.device)
        return Context(part, states, clock, *where, draw_batch, self._shared, control, self.chunks)

    # observation

    def observe(self, batch: Batch, clock: Clock, tier: Tier) -> Tensors:
        """Run a tier of diagnostics on a batch; nothing of training is touched.

        -> {"part/name": [n], or [n, height, width] for a matrix} on the host; nan for a member that overflows.
        """
        n, counts = len(self.seeds), self._counts(clock, clock.updates)
        size = next(iter(batch.values())).shape[1]
        noise = draw(
            self.learner.noise(size), self.keys_of("observe"), counts["update"]
        )  # without masks: as in evaluation
        found: list[Tensors] = []
        for i in range(n):
            mine: Tensors = {}
            states = self._members[i]
            seen = member(batch, i) | counts
            for part in self.learner.parts.values():
                if not part.layers:
                    continue
                at = (states, seen, member(noise, i))
                grads, outcome = part.gradient(*at, observing=True) if tier.gradients else ({}, part.outcome(*at))
                step = Step(seen, member(noise, i), outcome, grads, states, self._shared)
                for diagnostic in tier.diagnostics if finite(step) else ():
                    values = diagnostic(part, states[part.name], step)
                    mine |= {f"{part.name}/{name}": value.float().cpu() for name, value in values.items()}
            found.append(mine)
        known = {name: torch.full_like(value, torch.nan) for mine in found for name, value in mine.items()}
        return {name: torch.stack([mine.get(name, nothing) for mine in found]) for name, nothing in known.items()}

    def diverged(self) -> list[bool]:
        """Which members have been frozen. Waits for the device."""
        return (~self.alive).tolist()

    # persistence

    def state_dict(self) -> dict:
        states = {name: state._asdict() for name, state in self.states.items()}
        return {"states": states, "alive": self.alive, "awake": self.awake}

    def load_state_dict(self, saved: dict) -> None:
        """Write saved numbers into this engine's storage. Names and shapes must agree."""
        states = {name: State(**fields) for name, fields in saved["states"].items()}
        check_same_tree(self.states, states)
        write(self.states, tree_map(lambda leaf: leaf.to(self.device), states))
        self.alive.copy_(shaped(saved["alive"], self.alive.shape, "alive"))
        self.awake.copy_(shaped(saved["awake"], self.awake.shape, "awake"))

    def _counts(self, clock: Clock, updates: int) -> Batch:
        """Where the run is, for losses that depend on it: numbers on the device, without waiting for it."""
        counts = {"update": updates, "step": clock.agent_steps}
        return {name: torch.full((), count, device=self.device) for name, count in counts.items()}

    def keys_of(self, stream: str) -> dict[str, Tensor]:
        return {name: keys_tensor(self.seeds, f"{stream}/{name}").to(self.device) for name in self.noise}


def _write_trained(states: States, new: States) -> None:
    """Write what an update can change: all but the birth weights."""
    for name, state in states.items():
        for field in State._fields:
            if field != "birth":
                write(getattr(state, field), getattr(new[name], field))
