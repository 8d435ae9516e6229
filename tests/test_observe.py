"""The engine runs tiers of diagnostics on its members."""

from __future__ import annotations

import math

import pytest
import torch
from learners import VECTOR, batch_for, dqn, engine, equal, sac

from core.clock import Clock
from core.diagnostics import CHEAP, DEAR, MIDDLE, TIERS, trainability
from core.state import clone, member

QUICK = DEAR._replace(diagnostics=tuple(d for d in DEAR.diagnostics if d is not trainability))
CLOCK = Clock(steps=100)


def observe(e, tier):
    return e.observe(batch_for(e.learner.spec, e.seeds), CLOCK, tier)


@pytest.mark.parametrize("tier", [CHEAP, MIDDLE, QUICK], ids=lambda tier: tier.every)
def test_each_member_is_measured_as_if_it_were_alone_and_nothing_changes(tier):
    together = engine(sac(), (0, 1))
    before = clone(together.states)
    found = observe(together, tier)
    assert equal(together.states, before)
    for i in (0, 1):
        alone = observe(engine(sac(), (i,)), tier)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(found[name][i], value[0], rtol=1e-3, atol=1e-5), name


def test_numbers_have_one_entry_per_member_and_the_kernel_is_a_matrix():
    found = observe(engine(dqn(spec=VECTOR), (0, 1, 2)), QUICK)
    assert found.pop("q/entk_image").shape == (3, 8, 8)
    assert {value.shape for value in found.values()} == {torch.Size([3])}


@pytest.mark.parametrize("tier", [CHEAP, MIDDLE, QUICK], ids=lambda tier: tier.every)
def test_of_a_member_that_overflows_nothing_is_measured_and_its_neighbour_is_as_before(tier):
    e = engine(dqn(spec=VECTOR), (0, 1))
    healthy = observe(e, tier)
    for name, weight in member(e.states, 0)["q"].params.items():
        weight.fill_(math.inf if name.startswith("trunk") else 1.0)
    found = observe(e, tier)
    assert found.keys() == healthy.keys()
    for name, value in found.items():
        assert value[0].isnan().all() and torch.equal(value[1], healthy[name][1]), name


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.every)
def test_a_tier_is_given_the_gradients_it_looks_at(tier):
    seen = []
    spy = tier._replace(diagnostics=(lambda part, s, step: seen.append(step) or {},))
    e = engine(dqn(spec=VECTOR), (0,))
    observe(e, spy)
    assert set(seen[0].grads) == (set(e.states["q"].params) if tier.gradients else set())


@pytest.mark.parametrize("tier", [MIDDLE, QUICK], ids=lambda tier: tier.every)
def test_what_a_tier_without_gradients_finds_does_not_depend_on_them(tier):
    e = engine(sac(), (0,))
    assert equal(observe(e, tier), observe(e, tier._replace(gradients=True)))
