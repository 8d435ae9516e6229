"""What every intervention owes every agent: one table, one suite. A new file in interventions/ fails here until it has
a row."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from learners import (
    CONTROL,
    FRAMES,
    VECTOR,
    batch_for,
    classifier,
    dqn,
    engine,
    equal,
    largest_difference,
    run,
    sac,
)
from torch.utils._pytree import tree_leaves

from core import rooms
from core.clock import Clock
from core.engine import Engine
from core.intervention import Intervention
from core.part import Step
from core.state import clone, member
from core.when import When
from nets import Impala

WHEN = {"when": When(every=3)}
TABLE: dict[str, dict] = {  # settings with which it acts on a network of sixteen units within three updates
    "activation_interval_dropout": {"keep": 0.9},
    "batch_norm": {},
    "continual_backprop": {"rate": 0.2, "maturity": 1} | WHEN,
    "crelu": {},
    "dash": {"batches": 2} | WHEN,
    "dormancy_scaled_perturbation": {"optimizer": "touched"} | WHEN,
    "dropout": {"rate": 0.3},
    "ema": {"momentum": 0.9},
    "fire": WHEN,
    "hare_and_tortoise": {"momentum": 0.9} | WHEN,
    "infer": {"weight": 1e-3},
    "l2": {"weight": 1e-2},
    "l2_init": {"weight": 1e-2},
    "layer_norm": {},
    "normalize_and_project": {"output": True, "gains": "project"},
    "optimizer_reset": {"b2": 0.99} | WHEN,
    "parseval": {"weight": 1e-2},
    "plasticity_injection": WHEN,
    "redo": WHEN,
    "reset": WHEN,
    "selective_weight_reinit": {"rate": 0.1} | WHEN,
    "self_distillation": {"momentum": 0.9},
    "self_normalized_resets": {"gaps": 1, "percentile": 0.5} | WHEN,
    "shrink_and_perturb": WHEN,
    "soft_weight_rescaling": {"rate": 0.1, "output_rate": 0.1},
    "spectral_regularization": {"weight": 1e-2},
    "upgd": {},
    "weight_clipping": {"zeta": 0.9},
    "weight_decay": {"weight": 1.0},
}
EVENTS = [name for name in TABLE if rooms.intervention(name)().overrides("event")]
DRAW_NOTHING = ["fire", "hare_and_tortoise", "optimizer_reset"]  # events that would do the same at any other time
COUNTS = ("continual_backprop", "self_normalized_resets")  # after a step these write to their memory alone
RESIDUAL = Impala(width=64, scale=1, blocks=1, units=0.25)
LEARNERS = {"dqn": dqn, "residual": partial(dqn, net=RESIDUAL), "sac": sac, "classifier": classifier}
SPECS = {"dqn": FRAMES, "residual": FRAMES, "sac": CONTROL, "classifier": VECTOR}
SOME = {  # a part, and some of its parameters: two layers in a row, so that units can be recycled there
    "dqn": ("q", ("head",)),
    "residual": ("q", ("head",)),
    "sac": ("critic", ("q.0.*",)),
    "classifier": ("classifier", ("trunk.layers.1.*", "trunk.norms.1.*", "head")),
}

every_row = pytest.mark.parametrize("name", TABLE)
every_learner = pytest.mark.parametrize("learner", LEARNERS)


def make(name: str, **options) -> Intervention:
    return rooms.intervention(name)(**TABLE[name] | options)


def build(learner: str, name: str, seeds=(0,), compile=False, **options):
    return engine(LEARNERS[learner]([make(name, **options)]), seeds, compile=compile)


def some(learner: str, e_name: str) -> tuple[str, tuple[str, ...]]:
    """A part and a selection of its parameters; patterns for normalisation only where there is any."""
    part, where = SOME[learner]
    normalised = e_name in ("batch_norm", "layer_norm", "normalize_and_project")
    return part, tuple(word for word in where if normalised or "norms" not in word)


def silence(e) -> None:
    """Kill the first unit of every hidden layer."""
    for part in e.learner.parts.values():
        for layer in part.layers:
            if layer.readers:
                e.states[part.name].params[f"{layer.name}.bias"][:, 0] = -1e3


def trained(learner: str, name: str, seeds=(0,), **options):
    """An engine after two updates, with a unit in every layer that fell silent after the first."""
    e = build(learner, name, seeds, **options)
    clock = run(e, 1)
    silence(e)
    run(e, 1, clock)
    return e


def sampler(learner: str, seeds):
    return lambda stream, count, size: batch_for(SPECS[learner], seeds, 10**6 + count)


def fire(learner: str, e, at: int = 3) -> list[dict]:
    """Apply the events that are due after update `at`, without training."""
    clock = Clock(steps=10**9, updates=at, last={"updates": at - 1})
    return e.intervene(clock, ("updates",), sampler(learner, e.seeds))


def test_every_file_has_a_row_and_every_row_a_file():
    files = {path.stem for path in Path("interventions").glob("*.py")} - {"__init__"}
    assert files == set(TABLE)


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
    part, where = some(learner, name)
    e = trained(learner, name, on=(part,), where=where)
    before = clone(e.states)
    fire(learner, e)
    chosen = set(e.learner.parts[part].names(where))
    for other, state in e.states.items():
        if other != part:
            assert equal(state, before[other])
    old, new = before[part], e.states[part]
    groups = [(old.params, new.params), (old.birth, new.birth), (old.buffers, new.buffers)]
    groups += [(old.copies[role], new.copies[role]) for role in old.copies]
    groups += [(old.optim[slot], new.optim[slot]) for slot in old.optim]
    changed = {k for a, b in groups for k in a if not torch.equal(a[k], b[k])}
    own = {k for k in changed if k.startswith(f"{name}/")}  # what it carries beside the network
    assert changed and changed - own <= chosen


@every_row
@every_learner
def test_penalties_and_after_steps_touch_nothing_outside_where(name, learner):
    part_name, where = some(learner, name)
    e = build(learner, name, on=(part_name,), where=where)
    run(e, 2)
    part, states = e.learner.parts[part_name], member(e.states, 0)
    batch = member(batch_for(SPECS[learner], (0,), 5), 0)
    noise = {k: torch.full(declared.shape, 0.5) for k, declared in e.noise.items()}
    intervention, s = e.learner.interventions[0], states[part_name]
    grads, outcome = part.gradient(states, batch, noise)
    step = Step(batch, noise, outcome, grads, states)

    moved = {k: p * 1.5 + 0.1 for k, p in s.params.items()}  # away from birth, so that no penalty is flat
    away = s._replace(params=moved)

    def penalty(p):
        return torch.as_tensor(intervention.penalty(part, p, away, step)) + 0 * sum(x.sum() for x in p.values())

    slopes = torch.func.grad(penalty)(moved)
    after = intervention.after_step(part, away, step)
    outside = {k: moved[k] - part.optim.lr * part.optim.direction(k, s.optim) for k in moved}  # Adam's own step
    still = outside if part.optim.hold else moved
    chosen = set(part.names(where))
    touched = {k for k, g in slopes.items() if g.abs().sum() > 0}
    touched |= {k for k in moved if not torch.equal(after.params[k], still[k])}
    for role, copy in s.copies.items():  # an average has the network's own outside
        now = after.copies[role]
        touched |= {k for k in copy if not torch.equal(now[k], copy[k]) and (k in chosen or k not in moved)}
        assert all(torch.equal(now[k], copy[k]) or torch.equal(now[k], moved[k]) for k in moved.keys() - chosen)
    assert touched - set(s.buffers) <= chosen
    acts = any(intervention.overrides(method) for method in ("penalty", "after_step"))
    assert bool(touched) == (acts and name not in COUNTS)


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


@pytest.mark.parametrize("name", EVENTS)
@every_learner
def test_events_repeat_with_the_seed_and_draw_anew_each_time(name, learner):
    a, b, later = (trained(learner, name, seeds=(0, 1)) for _ in range(3))
    rows = fire(learner, a, 3)
    fire(learner, b, 3)
    assert equal(a.states, b.states)
    assert rows and all(row["touched"] > 0 for row in rows)
    fire(learner, later, 6)
    assert equal(a.states, later.states) == (name in DRAW_NOTHING)


@pytest.mark.parametrize("name", EVENTS)
@every_learner
def test_every_application_is_written_to_the_ledger(name, learner):
    e = trained(learner, name, seeds=(3, 4))
    rows = fire(learner, e)
    with_layers = [p.name for p in e.learner.parts.values() if p.layers]
    assert [(row["part"], row["seed"]) for row in rows] == [(p, s) for p in with_layers for s in (3, 4)]
    for row in rows:
        assert row["intervention"] == name and row["updates"] == 3 and row["touched"] > 0
        assert all(math.isfinite(c["norm"]) and c["norm"] > 0 for c in row["changes"].values())


def compatible(names: Sequence[str], build: Callable[[Sequence[str]], Engine]) -> list[str]:
    """Of these as many as are not refused together, the first come first."""
    chosen: list[str] = []
    for name in names:
        with suppress(ValueError):
            build([*chosen, name])
            chosen.append(name)
    return chosen


REFUSED = 6  # at most: of the groups of which only one can be had
LARGEST = {"dqn": ("q",), "residual": ("q",), "sac": ("critic",), "classifier": ("classifier",)}
ORDERS = {  # names, and whether every part has them: compiling takes a time that grows faster than the update
    "first": (list(TABLE), False),
    "last": (list(reversed(TABLE)), True),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "learner, order",
    [
        ("dqn", "first"),
        *[pytest.param(learner, "first", marks=pytest.mark.slow) for learner in ("sac", "classifier")],
        *[
            pytest.param(learner, "last", marks=pytest.mark.slow)
            for learner in ("dqn", "residual", "sac", "classifier")
        ],
    ],
)
def test_all_compatible_interventions_together_compile_and_equal_the_eager_run(learner, order):
    names, everywhere = ORDERS[order]
    where = {} if everywhere else {"on": LARGEST[learner]}
    settings = {"critics": 1} if learner == "sac" and not everywhere else {}

    def together(names: Sequence[str], compile: bool = False) -> Engine:
        chosen = [make(name, **where) for name in names]
        return engine(LEARNERS[learner](chosen, **settings), (0, 1), compile=compile)

    chosen = compatible(names, together)
    assert len(chosen) >= len(names) - REFUSED
    eager, compiled = together(chosen), together(chosen, compile=True)
    before = [x.data_ptr() for x in tree_leaves(compiled.states)]
    run(eager, 4)
    run(compiled, 4)
    assert largest_difference(eager.states, compiled.states) < 1e-4
    assert [x.data_ptr() for x in tree_leaves(compiled.states)] == before


ROUNDING = {"batch_norm": 1e-2}  # a bias before it has no gradient but rounding's own, and Adam makes steps of it


@pytest.mark.slow
@every_row
@every_learner
def test_each_intervention_compiles_and_equals_the_eager_run(name, learner):
    eager, compiled = build(learner, name, (0, 1)), build(learner, name, (0, 1), compile=True)
    before = [x.data_ptr() for x in tree_leaves(compiled.states)]
    run(eager, 4)
    run(compiled, 4)
    assert largest_difference(eager.states, compiled.states) < ROUNDING.get(name, 1e-4)
    assert [x.data_ptr() for x in tree_leaves(compiled.states)] == before
