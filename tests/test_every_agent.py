"""Every intervention on every agent that is not in the table of tests/test_contract.py."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, batch_for, dqn, equal, named, run, sac
from test_contract import TABLE, make

from agents import IQL, DrQ, DrQV2
from core.diagnostics import TIERS
from core.engine import Engine
from core.spec import EnvSpec
from core.state import clone
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
