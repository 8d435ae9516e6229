"""Many members decide side by side: each as it would alone, but for rounding."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from learners import BATCH, CONTROL, VECTOR, batch_for, dqn, named, run, sac
from test_every_agent import EVERY
from torch.testing import assert_close

from core import decisions
from core.clock import Clock
from core.engine import Engine
from core.randomness import draw_on_host
from interventions.hare_and_tortoise import HareAndTortoise
from nets import C51

EPISODES, SEEDS = 3, tuple(range(decisions.MANY))
DENSE = [name for name, (spec, _) in EVERY.items() if not spec.is_image and name not in ("sac", "classifier")]
AGENTS = {name: EVERY[name] for name in DENSE} | {"sac": (CONTROL, sac)}
AGENTS |= {"noisy dqn": (VECTOR, partial(dqn, spec=VECTOR, noisy=0.5, value=C51()))}


@pytest.mark.parametrize("name", AGENTS)
def test_side_by_side_every_agent_decides_as_its_members_do_alone(name):
    spec, build = AGENTS[name]
    e = Engine(build(named([HareAndTortoise()])), SEEDS[:3], BATCH, compile=False)
    run(e, 2)
    seen = batch_for(spec, SEEDS[:3])["obs"][:, :EPISODES]
    noise = draw_on_host(e.learner.act_noise(EPISODES), e.seeds, "act", 0)
    alone = decisions.decisions(e.learner, e.states, e._members, together=False)
    together = decisions._side_by_side(e.learner, e.states)
    for explore in (e.learner.explore(Clock(steps=10)), e.learner.explore_eval):
        for role in ("params", *e.learner.acting_part.copies):
            expected = alone(seen, explore, noise, role)
            assert_close(together(seen, explore, noise, role), expected)
            assert not torch.equal(expected[0], expected[1])  # they have something of their own to say


@pytest.mark.parametrize("build", [sac, dqn, partial(dqn, spec=VECTOR)])
def test_members_of_a_process_decide_as_in_a_process_of_their_own(build):
    learner = build()
    spec = learner.spec
    seen = batch_for(spec, SEEDS)["obs"][:, :EPISODES].numpy()
    explore = learner.explore(Clock(steps=10))
    together = Engine(learner, SEEDS, BATCH).act(seen, explore, "act", 5)
    for i, seed in enumerate(SEEDS):
        alone = Engine(build(), (seed,), BATCH).act(seen[i : i + 1], explore, "act", 5)
        assert_close(together[i], alone[0])


@pytest.mark.parametrize(("seeds", "compile", "ways"), [(8, True, "side"), (7, True, "one"), (8, False, "one")])
def test_who_decides_side_by_side(seeds, compile, ways, monkeypatch):
    asked = []
    monkeypatch.setattr(
        decisions, "vmap", lambda function: lambda *inputs: asked.append("side") or torch.zeros(seeds, 1, 2)
    )
    e = Engine(sac(), range(seeds), BATCH, compile=compile)
    assert e.act(batch_for(CONTROL, range(seeds))["obs"][:, :1].numpy(), 0.0, "act", 0).shape == (seeds, 1, 2)
    assert (asked or ["one"]) == [ways]


def test_what_is_decided_follows_the_weights_that_are_written():
    e = Engine(sac(), SEEDS, BATCH)
    seen = batch_for(CONTROL, SEEDS)["obs"][:, :1].numpy()
    before = e.act(seen, 0.0, "act", 0)
    for tensor in e.states["actor"].params.values():
        tensor[2].zero_()
    after = e.act(seen, 0.0, "act", 0)
    assert (after[2] == 0).all() and (before[2] != 0).any()
    assert (after[[0, 1, 3]] == before[[0, 1, 3]]).all()
