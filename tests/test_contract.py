"""What every intervention owes every agent: one table, one suite. A new file in interventions/ fails here until it has
a row."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, batch_for, dqn, engine, equal, largest_difference, run, sac
from torch.utils._pytree import tree_leaves, tree_map

from core.clock import Clock
from core.intervention import Intervention, When
from core.part import Step
from core.state import clone, member
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.l2 import L2
from interventions.l2_init import L2Init
from interventions.layer_norm import LayerNorm
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb

EVERY_THREE = When(every=3)
TABLE: dict[str, Callable[..., Intervention]] = {
    "hare_and_tortoise": lambda **o: HareAndTortoise(**{"momentum": 0.9, "when": EVERY_THREE} | o),
    "l2": lambda **o: L2(**{"weight": 1e-2} | o),
    "l2_init": lambda **o: L2Init(**{"weight": 1e-2} | o),
    "layer_norm": lambda **o: LayerNorm(**o),
    "reset": lambda **o: Reset(**{"when": EVERY_THREE} | o),
    "shrink_and_perturb": lambda **o: ShrinkAndPerturb(**{"when": EVERY_THREE} | o),
}
DRAWS = ("reset", "shrink_and_perturb")  # their events draw new weights
EVENTS = ("hare_and_tortoise", *DRAWS)
LEARNERS = {"dqn": dqn, "sac": sac}
SPECS = {"dqn": FRAMES, "sac": CONTROL}

every_row = pytest.mark.parametrize("name", TABLE)
every_learner = pytest.mark.parametrize("learner", LEARNERS)


def build(learner: str, name: str, seeds=(0,), compile=False, **options):
    return engine(LEARNERS[learner]([TABLE[name](**options)]), seeds, compile=compile)


def sampler(learner: str, seeds):
    return lambda stream, count: batch_for(SPECS[learner], seeds, 10**6 + count)


def fire(learner: str, e, at: int = 3) -> list[dict]:
    """Apply the events that are due after update `at`, without training."""
    clock = Clock(steps=10**9, updates=at, last={"updates": at - 1})
    return e.intervene(clock, ("updates",), sampler(learner, e.seeds))


def test_every_file_has_a_row_and_every_row_a_file():
    files = {path.stem for path in Path("interventions").glob("*.py")} - {"__init__"}
    assert files == set(TABLE)


def test_the_lists_of_events_are_true():
    for name, make in TABLE.items():
        assert make().acts_at("event") == (name in EVENTS)


@every_row
@every_learner
def test_numbers_stay_finite_and_storage_stays_put(name, learner):
    e = build(learner, name, seeds=(0, 1))
    before = [(x.data_ptr(), x.shape, x.dtype) for x in tree_leaves(e.states)]
    run(e, 7)
    assert [(x.data_ptr(), x.shape, x.dtype) for x in tree_leaves(e.states)] == before
    assert all(x.isfinite().all() for x in tree_leaves(e.states))
    assert e.diverged() == [False, False]


@every_row
@every_learner
def test_three_seeds_equal_three_single_runs(name, learner):
    together = build(learner, name, seeds=(0, 1, 2))
    run(together, 7)
    for k in range(3):
        alone = build(learner, name, seeds=(k,))
        run(alone, 7)
        assert largest_difference(member(together.states, k), member(alone.states, 0)) < 1e-6


@every_row
@every_learner
def test_a_resumed_run_equals_the_uninterrupted_one(name, learner):
    whole = build(learner, name, seeds=(0, 1))
    run(whole, 9)
    first = build(learner, name, seeds=(0, 1))
    clock = run(first, 4)
    file = io.BytesIO()
    torch.save({"engine": first.state_dict(), "clock": clock.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, later = build(learner, name, seeds=(0, 1)), Clock(steps=10**9)
    second.load_state_dict(saved["engine"])
    later.load_state_dict(saved["clock"])
    run(second, 5, later)
    assert equal(whole.states, second.states)


@pytest.mark.parametrize("name", EVENTS)
@every_learner
def test_an_event_touches_nothing_outside_on_and_where(name, learner):
    part, where = {"dqn": ("q", "head"), "sac": ("critic", "head")}[learner]
    e = build(learner, name, on=(part,), where=(where,))
    run(e, 2)
    before = clone(e.states)
    fire(learner, e)
    chosen = set(e.learner.parts[part].names((where,)))
    for other, state in e.states.items():
        if other != part:
            assert equal(state, before[other])
    old, new = before[part], e.states[part]
    groups = [(old.params, new.params), (old.birth, new.birth)]
    groups += [(old.copies[role], new.copies[role]) for role in old.copies]
    groups += [(old.optim[slot], new.optim[slot]) for slot in old.optim]
    changed = {k for a, b in groups for k in a if not torch.equal(a[k], b[k])}
    assert changed and changed <= chosen


@every_row
@every_learner
def test_penalties_and_after_steps_touch_nothing_outside_where(name, learner):
    part_name, where = {"dqn": ("q", "head"), "sac": ("critic", "head")}[learner]
    e = build(learner, name, where=(where,))
    run(e, 2)
    part, states = e.learner.parts[part_name], member(e.states, 0)
    batch = member(batch_for(SPECS[learner], (0,), 5), 0)
    noise = {k: torch.zeros(BATCH, 2) for k in e.noise}
    intervention, s = e.learner.interventions[0], states[part_name]
    grads, outcome = part.gradient(states, batch, noise)
    step = Step(batch, noise, outcome, grads)

    moved = {k: p * 1.5 + 0.1 for k, p in s.params.items()}  # away from birth, so that no penalty is flat

    def penalty(p):
        return torch.as_tensor(intervention.penalty(part, p, s, step)) + 0 * sum(x.sum() for x in p.values())

    slopes = torch.func.grad(penalty)(moved)
    after = intervention.after_step(part, s._replace(params=moved), step)
    chosen = set(part.names((where,)))
    touched = {k for k, g in slopes.items() if g.abs().sum() > 0}
    touched |= {k for k in moved if not torch.equal(after.params[k], moved[k])}
    for role, copy in s.copies.items():
        touched |= {k for k in copy if not torch.equal(after.copies[role][k], copy[k])}
    assert touched <= chosen
    assert bool(touched) == (name in ("l2", "l2_init", "hare_and_tortoise"))


@every_row
@every_learner
def test_every_tensor_moves_again_after_an_event(name, learner):
    e = build(learner, name)
    clock = run(e, 6)  # an event falls on the sixth update
    before = clone({k: s.params for k, s in e.states.items()})
    for _ in range(4):  # a unit may sleep for one batch
        e.update(batch_for(SPECS[learner], e.seeds, 50 + clock.updates), clock)
        clock.update()
    for part, params in before.items():
        for k, old in params.items():
            assert not torch.equal(old, e.states[part].params[k]), f"{part}.{k} is stuck"


@pytest.mark.parametrize("name", DRAWS)
@every_learner
def test_events_differ_from_each_other_and_repeat_with_the_seed(name, learner):
    a, b = build(learner, name, seeds=(0, 1)), build(learner, name, seeds=(0, 1))
    rows = fire(learner, a, 3)
    fire(learner, b, 3)
    assert equal(a.states, b.states)
    assert rows and all(row["touched"] > 0 for row in rows)
    first = clone(a.states)
    fire(learner, b, 6)
    part = next(iter(first))
    weight = next(k for k in first[part].params if k.endswith("weight") and ("head" in k or "advantage" in k))
    assert not torch.equal(first[part].params[weight], b.states[part].params[weight])
    assert not torch.equal(first[part].params[weight][0], first[part].params[weight][1])


@pytest.mark.parametrize("name", EVENTS)
@every_learner
def test_every_application_is_written_to_the_ledger(name, learner):
    e = build(learner, name, seeds=(3, 4))
    run(e, 2)
    rows = fire(learner, e)
    with_layers = [p.name for p in e.learner.parts.values() if p.layers]
    assert [(row["part"], row["seed"]) for row in rows] == [(p, s) for p in with_layers for s in (3, 4)]
    for row in rows:
        assert row["intervention"] == name and row["updates"] == 3 and row["touched"] > 0
        assert all(math.isfinite(c["norm"]) and c["norm"] > 0 for c in row["changes"].values())


@every_learner
def test_all_compatible_interventions_together_compile_and_equal_the_eager_run(learner):
    def everything():
        return LEARNERS[learner]([TABLE[name]() for name in TABLE])

    eager, compiled = engine(everything(), (0, 1)), engine(everything(), (0, 1), compile=True)
    run(eager, 4)
    run(compiled, 4)
    assert largest_difference(eager.states, compiled.states) < 1e-4
    assert [x.data_ptr() for x in tree_leaves(compiled.states)] == [
        x.data_ptr() for x in tree_leaves(tree_map(lambda x: x, compiled.states))
    ]


@pytest.mark.slow
@every_row
@every_learner
def test_each_intervention_compiles_and_equals_the_eager_run(name, learner):
    eager, compiled = build(learner, name, (0, 1)), build(learner, name, (0, 1), compile=True)
    before = [x.data_ptr() for x in tree_leaves(compiled.states)]
    run(eager, 4)
    run(compiled, 4)
    assert largest_difference(eager.states, compiled.states) < 1e-4
    assert [x.data_ptr() for x in tree_leaves(compiled.states)] == before
