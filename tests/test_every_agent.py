"""Every intervention on every agent that is not in the table of tests/test_contract.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, equal, named, run, sac
from test_contract import TABLE, make

from agents import IQL, DrQ, DrQV2
from core.clock import Clock
from core.diagnostics import TIERS
from core.engine import Engine
from core.spec import EnvSpec
from core.state import clone, member
from nets import C51, Bro, Quantiles, Scalar, Simba, Vectors
from nets import DrQ as DrQNet
from nets.augmentation import Augmentation

PIXELS = EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3, repeat_first=True)
NET = DrQNet(width=16, channels=(4, 8), strides=(2, 2), bottleneck=8)
RAINBOW = {"noisy": 0.5, "streams": "separate", "augment": Augmentation(shift=2, intensity=0.05), "clip_norm": 10.0}
AGENTS = {
    "rainbow": (FRAMES, partial(dqn, value=C51(), **RAINBOW)),
    "drq_sac": (PIXELS, lambda i: DrQ(DrQ.Settings(batch_size=BATCH), PIXELS, NET, Scalar("mse"), i)),
    "drq_v2": (PIXELS, lambda i: DrQV2(DrQV2.Settings(batch_size=BATCH), PIXELS, NET, Scalar("mse"), i)),
    "simba": (CONTROL, partial(sac, net=Simba(width=16, actor_width=8), critics=1, order="actor_first")),
    "bro": (CONTROL, partial(sac, net=Bro(width=16, actor_width=8), value=Quantiles(4), target_value="mean")),
    "iql": (CONTROL, lambda i: IQL(IQL.Settings(batch_size=BATCH), CONTROL, Vectors(width=16), Scalar("mse"), i)),
}
HAVE_THEIR_OWN = ("layer_norm", "batch_norm", "normalize_and_project", "dropout")  # refused by residual networks


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", TABLE)
def test_it_trains_acts_and_stays_finite(name, agent):
    spec, build = AGENTS[agent]
    if agent in ("simba", "bro") and name in HAVE_THEIR_OWN:
        with pytest.raises(ValueError, match="has layer normalisation of its own and no dropout"):
            build(named([make(name)]))
        return
    e = Engine(build(named([make(name)])), (0, 1), BATCH, compile=False)
    before = clone(e.states)
    run(e, 6)
    assert not any(e.diverged()) and not equal(before, e.states)
    seen = batch_for(spec, (0, 1))["obs"][:, :2].numpy()
    for role in ("params", *e.learner.acting_part.copies):
        actions = torch.from_numpy(e.act(seen, e.learner.explore_eval, "act", 0, role))
        assert actions.shape[:2] == (2, 2) and torch.isfinite(actions.float()).all()


EVERY = AGENTS | {
    "dqn": (FRAMES, dqn),
    "sac": (CONTROL, partial(sac, standardise=True)),
    "dqn on vectors": (VECTOR, partial(dqn, spec=VECTOR)),
    "classifier": (VECTOR, classifier),
}


def batch_members(e, monkeypatch):
    """Eagerly, what the compiler makes one region of."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # gradients that vmap can take
    e._run = e._batched
    for part in e.learner.parts.values():
        part.fused = False


@pytest.mark.parametrize("batched", [False, True])
def test_behind_a_network_that_fails_no_other_steps(batched, monkeypatch):
    e = Engine(sac(), (0, 1), BATCH, compile=False)
    if batched:
        batch_members(e, monkeypatch)
    batch, before = batch_for(CONTROL, (0, 1)), clone(e.states)
    batch["reward"][0] = 1e30  # a number, but its square is none; the actor sees no reward
    info = e.update(batch, Clock(steps=10))
    assert e.diverged() == [True, False] and bool(info["actor/loss"].isfinite().all())
    assert equal(member(e.states, 0), member(before, 0)) and not equal(member(e.states, 1), member(before, 1))


BATCHED = [(agent, True) for agent, (spec, _) in EVERY.items() if not spec.is_image]  # convolutions go one by one


@pytest.mark.parametrize(("agent", "batched"), [(agent, False) for agent in EVERY] + BATCHED)
def test_a_frozen_member_stays_as_it_is_and_its_neighbour_learns(agent, batched, monkeypatch):
    spec, build = EVERY[agent]
    slow = named([make(name) for name in ("hare_and_tortoise", "continual_backprop", "l2")])
    e = Engine(build(slow), (0, 1), BATCH, compile=False)
    if batched:
        batch_members(e, monkeypatch)
    clock = Clock(steps=10**9)

    def moments(count):
        mean = torch.full((2, *spec.obs_shape), 0.1 * count)
        return {"obs_mean": mean, "obs_var": 1.0 + mean}

    for count in range(3):
        e.update(batch_for(spec, (0, 1), count) | moments(count), clock)
        clock.update()
    before = clone(e.states)
    spoilt = batch_for(spec, (0, 1), 3)
    for values in spoilt.values():
        if values.is_floating_point():
            values[0] = torch.nan  # the first network to step feels one of them
    for batch in (spoilt | moments(2), batch_for(spec, (0, 1), 4) | moments(4)):
        e.update(batch, clock)
        clock.update()
    assert e.diverged() == [True, False]
    assert equal(member(e.states, 0), member(before, 0))
    old, new = (member(tree, 1) for tree in (before, e.states))
    for name, part in e.learner.parts.items():
        assert not any(torch.equal(old[name].params[k], new[name].params[k]) for k in part.names(("output",)))


@pytest.mark.parametrize("agent", AGENTS)
def test_every_tier_of_diagnostics_observes_it(agent):
    """Batches are split on the way: noise of layers, wider here than a batch, is not."""
    spec, build = AGENTS[agent]
    e = Engine(build(named([])), (0, 1), BATCH, compile=False)
    clock = run(e, 2)
    for tier in TIERS:
        found = e.observe(batch_for(spec, (0, 1)), clock, tier)
        assert found and all(len(value) == 2 for value in found.values())
        assert any(value.isfinite().any() for value in found.values())
