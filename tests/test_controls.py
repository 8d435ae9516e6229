"""Matched controls: of an event, one side is kept."""

from __future__ import annotations

import pytest
import torch
from learners import VECTOR, batch_for, dqn, engine, equal, run

from core.clock import Clock
from core.state import clone
from core.when import When
from interventions.continual_backprop import ContinualBackprop
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb

EVERY = When(every=3)


def controlled(control: str, kind=ShrinkAndPerturb, **settings):
    """-> (state before, state after) an event of three-update-old members, and its ledger rows."""
    e = engine(dqn([kind(when=EVERY, control=control, **settings)], spec=VECTOR), seeds=(0, 1))
    run(e, 2)
    before = clone(e.states["q"])
    clock = Clock(steps=10**9, updates=3, last={"updates": 2})
    rows = e.intervene(clock, ("updates",), lambda stream, count, size: batch_for(VECTOR, e.seeds, 10**6 + count))
    return before, e.states["q"], rows


def test_optimizer_only_changes_the_slots_as_the_event_does_and_nothing_else():
    before, after, _ = controlled("optimizer_only")
    _, event, _ = controlled("none")
    assert equal(after.optim, event.optim) and not equal(after.optim, before.optim)
    assert equal(before._replace(optim=after.optim), after)


def test_target_only_changes_the_copies_as_the_event_does_and_nothing_else():
    before, after, _ = controlled("target_only")
    _, event, _ = controlled("none")
    assert equal(after.copies, event.copies) and not equal(after.copies, before.copies)
    assert equal(before._replace(copies=after.copies), after)


def test_the_same_norm_moves_every_tensor_as_far_in_another_direction():
    before, after, _ = controlled("same_norm")
    _, event, _ = controlled("none")
    assert equal(after.optim, event.optim)
    for old, new, wanted in (
        (before.params, after.params, event.params),
        (before.copies["target"], after.copies["target"], event.copies["target"]),
    ):
        for k in old:
            for i in range(2):
                far, here = wanted[k][i] - old[k][i], new[k][i] - old[k][i]
                assert float(here.norm()) == pytest.approx(float(far.norm()), rel=1e-4)
                if far.numel() > 50:
                    assert abs(torch.nn.functional.cosine_similarity(far.flatten(), here.flatten(), 0)) < 0.5


def test_what_a_reset_makes_equal_is_equal_under_the_same_norm_too():
    """A target that takes the new weights takes the moved ones, and so do the weights at birth: no second shock."""
    before, event, _ = controlled("none", kind=Reset, where=("all",))
    assert equal(event.params, event.copies["target"]) and equal(event.params, event.birth)
    before, after, _ = controlled("same_norm", kind=Reset, where=("all",))
    assert equal(after.params, after.copies["target"]) and equal(after.params, after.birth)
    assert not equal(after.params, event.params)


def test_birth_that_the_event_leaves_stays_under_the_same_norm():
    before, after, _ = controlled("same_norm")
    assert equal(before.birth, after.birth)


def test_the_target_goes_the_way_of_the_weights_under_the_same_norm():
    before, after, _ = controlled("same_norm")
    k = "trunk.layers.0.weight"
    here, there = after.params[k] - before.params[k], after.copies["target"][k] - before.copies["target"][k]
    for i in range(2):
        assert torch.nn.functional.cosine_similarity(here[i].flatten(), there[i].flatten(), 0) > 0.999


def test_tensors_that_the_event_leaves_stay_under_the_same_norm():
    before, after, _ = controlled("same_norm", where=("output",))
    for k in before.params:
        assert torch.equal(before.params[k], after.params[k]) == (not k.startswith(("advantage", "value")))


def test_directions_differ_between_seeds_and_repeat():
    _, one, _ = controlled("same_norm", kind=Reset, where=("all",))
    _, two, _ = controlled("same_norm", kind=Reset, where=("all",))
    assert equal(one, two)
    k = "advantage.weight"
    assert not torch.equal(one.params[k][0], one.params[k][1])


def test_birth_takes_the_birth_weights_for_fresh_draws():
    before, after, _ = controlled("birth", kind=Reset, where=("all",))
    assert equal(after.params, before.birth) and not equal(after.params, before.params)


def test_identity_computes_everything_and_changes_nothing_but_the_ledger():
    before, after, rows = controlled("identity")
    assert equal(before, after)
    assert [row["seed"] for row in rows] == [0, 1] and all(row["touched"] == 0 for row in rows)


@pytest.mark.parametrize("control", ["optimizer_only", "target_only", "same_norm", "birth", "identity"])
def test_an_event_that_selects_nothing_stays_one(control):
    before, after, rows = controlled(control, kind=ContinualBackprop, rate=0.0)
    assert equal(before, after) and all(row["touched"] == 0 for row in rows)


@pytest.mark.parametrize("control", ["optimizer_only", "target_only"])
def test_a_control_that_keeps_what_the_event_never_touches_is_refused(control):
    with pytest.raises(ValueError, match=f"control={control}: the event leaves the .* of part q as they are"):
        controlled(control, kind=HareAndTortoise, momentum=0.5)  # moments and target are kept
