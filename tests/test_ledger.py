"""The ledger: what an event did, counted and measured; and the event that claimed to act and did not."""

from __future__ import annotations

import json

import pytest
import torch
from learners import CONTROL, VECTOR, batch_for, dqn, engine, equal, named, sac

from core.clock import Clock
from core.intervention import Intervention
from core.ledger import NothingChanged, entry
from core.state import clone, member
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb

CLOCK = Clock(steps=1000, env_steps=84, agent_steps=42, updates=21, tasks=1, last={"updates": 20})


def newborn(*interventions):
    """A part and its state."""
    part = dqn([*interventions, HareAndTortoise()], VECTOR).q
    return part, part.birth(seed=0)


def row_of(old, new, part, intervention=None):
    (intervention,) = named([intervention or Reset(when=When(every=7, unit="agent_steps"))])
    return entry(intervention, part, 5, CLOCK, old, new)


def plus(tensors, **changes):
    """The same tensors, with `changes` added to the first numbers of some."""
    changed = clone(tensors)
    for name, numbers in changes.items():
        changed[name.replace("__", ".")].view(-1)[: len(numbers)] += torch.tensor(numbers)
    return changed


# one row


def test_a_row_says_when_what_where_whose_and_in_which_unit():
    part, old = newborn()
    row = row_of(old, old._replace(params=plus(old.params, value__bias=[1.0])), part)
    changes = row.pop("changes")
    assert row == {
        "step": 84,
        "updates": 21,
        "intervention": "reset",
        "part": "q",
        "seed": 5,
        "unit": "agent_steps",
        "touched": 1,
    }
    assert changes == {"params": {"tensors": 1, "entries": 1, "norm": 1.0}}


def test_tensors_entries_and_norm_are_counted_in_every_field_and_summed_in_touched():
    part, old = newborn()
    old.optim["t"]["value.bias"] += 4.0
    new = old._replace(
        params=plus(old.params, value__bias=[2.0], advantage__bias=[0.0, -3.0, 6.0]),  # sqrt(4 + 9 + 36)
        birth=plus(old.birth, advantage__bias=[3.0, 4.0]),
        copies=old.copies | {"tortoise": plus(old.copies["tortoise"], value__bias=[0.5])},
        optim=old.optim | {"t": plus(old.optim["t"], value__bias=[-4.0])},
        memory=old.memory | {"hare_and_tortoise": {}},
    )
    row = row_of(old, new, part)
    assert row["changes"] == {
        "params": {"tensors": 2, "entries": 3, "norm": 7.0},
        "birth": {"tensors": 1, "entries": 2, "norm": 5.0},
        "copies/tortoise": {"tensors": 1, "entries": 1, "norm": 0.5},
        "optim/t": {"tensors": 1, "entries": 1, "norm": 4.0},
    }
    assert row["touched"] == 3 + 2 + 1 + 1


def test_buffers_and_memories_are_compared_too():
    part, old = newborn()
    old = old._replace(buffers={"mean": torch.zeros(4)}, memory={"ages": {"h0": torch.zeros(4)}})
    new = old._replace(buffers={"mean": torch.tensor([0.0, 3.0, 4.0, 0.0])}, memory={"ages": {"h0": torch.ones(4)}})
    assert row_of(old, new, part)["changes"] == {
        "buffers": {"tensors": 1, "entries": 2, "norm": 5.0},
        "memory/ages": {"tensors": 1, "entries": 4, "norm": 2.0},
    }


def test_a_tensor_written_anew_with_the_same_numbers_is_not_counted():
    part, old = newborn()
    new = old._replace(params=plus(old.params, value__bias=[1.0]), birth=clone(old.birth))
    assert row_of(old, new, part)["changes"] == {"params": {"tensors": 1, "entries": 1, "norm": 1.0}}


def test_the_very_state_it_was_given_is_recorded_with_nothing_touched():
    part, old = newborn()
    row = row_of(old, old, part)
    assert row["touched"] == 0 and row["changes"] == {}


def test_an_equal_copy_is_an_error_that_names_intervention_part_and_update():
    part, old = newborn()
    with pytest.raises(NothingChanged, match="interventions.reset .* part q at update 21"):
        row_of(old, clone(old), part)


# rows of real events


def aged(learner, seeds=(0,), updates: int = 2):
    e = engine(learner, seeds)
    for count in range(updates):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def fire(e) -> list[dict]:
    return e.intervene(CLOCK, ("updates",), None)


def test_a_head_resets_row_equals_the_differences_taken_by_hand():
    e = aged(dqn([Reset(where=("head",), when=When(every=1))], VECTOR, target="ema", tau=0.1))
    before = clone(member(e.states, 0)["q"])
    (row,) = fire(e)
    after, changes = member(e.states, 0)["q"], row["changes"]
    fields = {
        "params": (before.params, after.params),
        "birth": (before.birth, after.birth),
        "copies/target": (before.copies["target"], after.copies["target"]),
        **{f"optim/{slot}": (before.optim[slot], after.optim[slot]) for slot in ("m", "v", "t")},
    }
    assert changes.keys() == fields.keys()
    for field, (old, new) in fields.items():
        differences = torch.cat([(new[k] - old[k]).flatten() for k in old]).double()
        assert changes[field]["entries"] == torch.count_nonzero(differences)
        assert changes[field]["norm"] == pytest.approx(float(differences.norm()), rel=1e-9)
        assert changes[field]["tensors"] == sum(not torch.equal(old[k], new[k]) for k in old)
    weights, biases = 16 * 3 + 16 * 1, 3 + 1
    assert changes["params"] | {"norm": 0} == {"tensors": 4, "entries": weights + biases, "norm": 0}
    assert changes["birth"] | {"norm": 0} == {"tensors": 2, "entries": weights, "norm": 0}  # biases are born zero
    assert changes["optim/t"] == {"tensors": 4, "entries": 4, "norm": 4.0}  # four step counts went from 2 to 0


def test_a_hares_restart_changes_parameters_alone():
    e = aged(dqn([HareAndTortoise(momentum=0.9, when=When(every=1))], VECTOR))
    before = clone(member(e.states, 0)["q"])
    (row,) = fire(e)
    gap = torch.cat([(before.params[k] - before.copies["tortoise"][k]).flatten() for k in before.params])
    assert row["changes"].keys() == {"params"}
    assert row["changes"]["params"]["norm"] == pytest.approx(float(gap.double().norm()), rel=1e-9)
    assert row["touched"] == row["changes"]["params"]["entries"] == torch.count_nonzero(gap)


def test_rows_are_plain_data_one_per_part_and_seed_in_the_order_of_the_list():
    interventions = [ShrinkAndPerturb(when=When(every=1)), Reset(when=When(every=1), on=("actor",))]
    rows = fire(aged(sac(interventions), seeds=(3, 4)))
    assert [(row["intervention"], row["part"], row["seed"]) for row in rows] == [
        ("shrink_and_perturb", "critic", 3),
        ("shrink_and_perturb", "critic", 4),
        ("shrink_and_perturb", "actor", 3),
        ("shrink_and_perturb", "actor", 4),
        ("reset", "actor", 3),
        ("reset", "actor", 4),
    ]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_part_the_event_does_not_affect_is_recorded_with_nothing_touched():
    e = aged(sac([HareAndTortoise(tortoise="target", when=When(every=1))]))
    before = clone(e.states["actor"])
    critic, actor = fire(e)
    assert critic["touched"] > 0
    assert (actor["part"], actor["touched"], actor["changes"]) == ("actor", 0, {})
    assert equal(e.states["actor"], before)


def test_an_event_that_changes_nothing_stops_the_run():
    class Idle(Intervention):
        def event(self, part, s, ctx):
            return clone(s)

    e = aged(dqn([Idle(when=When(every=1))], VECTOR))
    with pytest.raises(NothingChanged):
        fire(e)


@pytest.mark.parametrize(
    ("learner", "intervention"),
    [
        (sac, Reset(where=("all",), on=("*", "alpha"), when=When(every=1))),
        (dqn, Reset(where=("all",), toward="birth", when=When(every=1))),
        (dqn, HareAndTortoise(momentum=0.9, when=When(every=1))),
    ],
    ids=["a temperature at its initial value", "a network at birth", "a hare at its tortoise"],
)
def test_a_diverged_member_with_nothing_left_to_change_does_not_stop_its_neighbours(learner, intervention):
    spec = CONTROL if learner is sac else VECTOR
    e = engine(sac([intervention]) if learner is sac else dqn([intervention], VECTOR), (0, 1))
    for updates in range(1, 5):
        batch = batch_for(spec, e.seeds, updates)
        if updates == 2:
            batch["reward"][1] = torch.nan
        e.update(batch, Clock(steps=1000, updates=updates - 1))
        before = clone(member(e.states, 0))
        rows = e.intervene(Clock(steps=1000, updates=updates, last={"updates": updates - 1}), ("updates",), None)
        assert all(row["touched"] > 0 for row in rows if row["seed"] == 0)
        assert not equal(before, member(e.states, 0))
    assert e.diverged() == [False, True]
