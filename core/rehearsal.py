"""Every event is rehearsed once before a run begins, so that what can never work is said at once, not at the event.

On a copy of the first member that has been shaken a little (a newborn is its own birth, its own target and has taken no
step) and a batch of zeros. Nothing of the run is touched: all random numbers are functions of streams and counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.clock import Clock
from core.controls import controlled
from core.diagnostics import measure
from core.ledger import NothingChanged, entry
from core.selection import named
from core.state import Batch, State, States, clone, member
from core.when import happenings

if TYPE_CHECKING:
    from core.engine import Engine
    from core.intervention import Intervention
    from core.part import Part
    from core.spec import EnvSpec
    from core.when import When

SHAKE = 0.01


def rehearse(engine: Engine, batch: Batch, clock: Clock | None = None, cleared: bool = False) -> None:
    """batch: leaves [1, B, ...]. clock: of the run, at its start. cleared: every task begins with an empty replay.

    Raises ValueError, one line: a metric that a part does not have, a control of something the event never touches, an
    event that fails, one that looks at data where the run has none.
    """
    for intervention in engine.learner.interventions:
        if intervention.overrides("event"):
            for part in engine.learner.parts.values():
                if intervention in part.interventions:
                    with named(intervention):
                        looked = _rehearse(engine, intervention, part, batch)
                        if clock and (looked or intervention.when.metric):
                            window = getattr(getattr(engine.learner, "settings", None), "n_step", 0) + 1
                            _check_data(intervention.when, clock, window, cleared)
            if intervention.when.yoke:
                _check_yoke(engine, intervention)


def blank(spec: EnvSpec, size: int) -> Batch:
    """A batch of one member without contents. Leaves [1, size, ...]."""
    lead = (1, size)
    seen = torch.zeros(*lead, *spec.seen_shape, dtype=getattr(torch, spec.obs_dtype))
    action = torch.zeros(*lead, *spec.action_shape, dtype=getattr(torch, spec.action_dtype))
    ones = torch.ones(lead)
    return {"obs": seen, "next_obs": seen, "action": action, "reward": ones, "discount": ones, "weight": ones}


def _check_data(when: When, clock: Clock, window: int, cleared: bool) -> None:
    """Events that look at data are not due in the steps before a first sample is whole. window: agent steps it takes.

    Those counted in updates come after the warm-up, and those in tasks with the data of the task before.
    """
    if when.yoke or when.unit not in ("agent_steps", "env_steps"):
        return
    for task in range(clock.total("tasks") if cleared else 1):
        begin = task * clock.task_length
        early = replace(clock, env_steps=begin, agent_steps=begin // clock.action_repeat, last={})
        end = early.now(when.unit) + window * (clock.action_repeat if when.unit == "env_steps" else 1)
        way_out = f"of task {task}; let it come then, or take stream.replay=keep" if task else "yet; let it begin then"
        for _ in range(1, window):
            early.step()
            if when.due(early):
                now = f"{early.now(when.unit)} {when.unit}"
                raise ValueError(f"when: it looks at data at {now}, and before {end} there may be none {way_out}")


def _rehearse(engine: Engine, intervention: Intervention, part: Part, batch: Batch) -> bool:
    """-> whether the event looks at data"""
    states, looks = shaken(member(engine.states, 0)), []
    clock, old = Clock(steps=2**62, updates=1), states[part.name]

    def sample(stream: str, count: int, size: int) -> Batch:
        looks.append(stream)
        return batch

    ctx = engine.context(intervention, part, 0, states, clock, sample)
    if intervention.when.metric:
        measure(intervention.when.metric, part, old, lambda tier: ctx.step())
    new = intervention.event(part, old, ctx)
    if new is old:
        return bool(looks)  # nothing met its criterion here
    kept = controlled(intervention.control, old, new, ctx)
    try:
        entry(intervention, part, engine.seeds[0], clock, old, kept)
    except NothingChanged as error:
        raise ValueError(f"where=[{','.join(intervention.where)}]: {error}") from error
    if intervention.control != "none":
        ctx.control = "none"
        if _same(kept, intervention.event(part, old, ctx)):
            raise ValueError(
                f"control={intervention.control}: on part {part.name} it does all that the event does, so there is "
                "nothing to compare; leave it out"
            )
    return bool(looks)


def _check_yoke(engine: Engine, intervention: Intervention) -> None:
    """Some part that it acts on must be one that the other run's acted on."""
    there = {part for part, _ in happenings(intervention.when.yoke, intervention.name).updates}
    here = {part.name for part in engine.learner.parts.values() if intervention in part.interventions}
    if not there & here:
        acted, acts = (", ".join(sorted(parts)) for parts in (there, here))
        raise ValueError(
            f"interventions.{intervention.name}.when.yoke={intervention.when.yoke}: it acted on {acted} there, "
            f"and acts on {acts} here; expected a run of the same agent"
        )


def shaken(states: States) -> States:
    """A copy that looks as if it had been trained: everything has moved, and moved its own way."""
    generator = torch.Generator().manual_seed(0)

    def moved(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value + SHAKE * torch.randn(value.shape, generator=generator).to(value)

    def one(s: State) -> State:
        params = {k: moved(v) for k, v in s.params.items()}
        copies = {role: {k: moved(v) if k in params else v for k, v in tree.items()} for role, tree in s.copies.items()}
        optim = {
            "m": {k: moved(v) for k, v in s.optim["m"].items()},
            "v": {k: v + SHAKE for k, v in s.optim["v"].items()},
            "t": {k: v + 3 for k, v in s.optim["t"].items()},
        }
        return s._replace(params=params, copies=copies, optim=optim)

    return {name: one(s) for name, s in clone(states).items()}


def _same(a: State, b: State) -> bool:
    leaves = torch.utils._pytree.tree_leaves
    return all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))
