"""Can it still learn? The probe's learning curves against a loop with torch.optim.AdamW."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import BATCH, FRAMES, VECTOR, batch_for, classifier, dqn, equal, sac
from test_diagnostics import born, observe

from core.diagnostics.probe import learning_curve, predict, relative, trainability
from core.randomness import key
from core.state import clone, member, weights
from interventions.l2 import L2
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import TwoHot, Vectors

ONE = {"rates": (1.0,), "offsets": (0.0,)}


def newborn(part, who="newborn"):
    return part.birth(key(0, f"diagnostics/probe/{who}"))


def waves(part, inputs):
    """sin(1e5 f), f what the network of the targets says."""
    f = part.decode(part(weights(newborn(part, "target")), *inputs)[0])
    return torch.from_numpy(np.sin(1e5 * f.double().numpy())).float()


def curve_by_torch(part, s, inputs, wave, factor, steps):
    """The same regression with torch's optimizer."""
    params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": part.optim.decay},
        {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=factor * part.optim.lr, betas=(part.optim.b1, part.optim.b2), eps=part.optim.eps
    )
    predicted = lambda: part.decode(part(params | s.buffers, *inputs)[0])  # noqa: E731
    target, losses = predicted().detach().mean(0) + wave, []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((predicted() - target) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def trained(agent, name):
    """Its state a little away from birth: other weights, moments and statistics."""
    states, g = born(agent), torch.Generator().manual_seed(3)
    s = clone(states[name])
    s.params.update({k: 1.2 * p + 0.05 * torch.randn(p.shape, generator=g) for k, p in s.params.items()})
    s.buffers.update({k: b + 0.25 for k, b in s.buffers.items() if b.is_floating_point()})
    s.optim["t"].update({k: t + 100 for k, t in s.optim["t"].items()})
    s.optim["m"].update({k: m + 10 for k, m in s.optim["m"].items()})
    return observe(agent, states | {name: s}, name)


LEARNERS = {
    "q": lambda: trained(dqn(spec=VECTOR, learning_rate=0.01), "q"),
    "q, decayed": lambda: trained(dqn(spec=VECTOR, learning_rate=0.01, weight_decay=3.0), "q"),
    "two-hot": lambda: trained(dqn(spec=VECTOR, value=TwoHot(-2, 2, 5), learning_rate=0.01), "q"),
    "frames": lambda: trained(dqn(spec=FRAMES), "q"),
    "batch norm": lambda: trained(dqn(spec=VECTOR, net=Vectors(width=8, norm="batch"), learning_rate=0.01), "q"),
    "critic": lambda: trained(sac(learning_rate=0.01), "critic"),
    "actor": lambda: trained(sac(learning_rate=0.01), "actor"),
    "classifier": lambda: trained(classifier(learning_rate=0.01), "classifier"),
}


@pytest.mark.parametrize("learner", LEARNERS)
def test_areas_are_those_of_curves_by_torchs_adam_on_the_same_targets(learner):
    part, s, step = LEARNERS[learner]()
    inputs = part.inputs(step.batch)
    wave, areas, found = waves(part, inputs), [], trainability(part, s, step, steps=5, offsets=(0.0, 3.0))
    for factor in (1, 10):
        for offset in (0, 3):
            mine, newborns = (curve_by_torch(part, x, inputs, wave + offset, factor, 5) for x in (s, newborn(part)))
            at = f"@lr{factor}x@offset{offset}"
            areas.append((newborns / newborns[0]).mean() - (mine / mine[0]).mean())
            assert found[f"trainability{at}"].item() == pytest.approx(areas[-1], abs=2e-4)
            level = newborns.mean() + mine.mean()
            assert found[f"plasticity{at}"].item() == pytest.approx(newborns.mean() - mine.mean(), abs=2e-4 * level)
    assert found["trainability"].item() == pytest.approx(np.mean(areas), abs=2e-4)
    assert max(map(abs, areas)) > 2e-3, "there is something to see"


def test_a_newborn_is_exactly_as_trainable_as_itself():
    for agent, name in ((dqn(), "q"), (dqn(spec=VECTOR), "q"), (sac(), "actor")):
        part, _, step = observe(agent, born(agent), name)
        assert not any(trainability(part, newborn(part), step, steps=3).values())


def test_another_newborn_is_hardly_different():
    agent = dqn(spec=VECTOR, learning_rate=0.01)
    part, s, step = observe(agent, born(agent))
    found = trainability(part, s, step, steps=40)
    assert any(found.values()) and abs(found["trainability"].item()) < 0.2


@pytest.mark.parametrize("layers", [("trunk.layers.0",), ("trunk.layers.0", "trunk.layers.1")], ids=["first", "all"])
def test_a_network_with_dead_layers_is_below_a_newborn(layers):
    agent = dqn(spec=VECTOR, learning_rate=0.01)
    states = born(agent)
    dead = {f"{name}.bias": states["q"].params[f"{name}.bias"] - 1e3 for name in layers}
    states["q"] = states["q"]._replace(params=states["q"].params | dead)
    found = trainability(*observe(agent, states), steps=40)
    assert found["trainability"] < -0.4 and all(value < 0 for value in found.values())


def test_nothing_of_the_network_and_of_torchs_generator_is_touched_and_neither_matters():
    part, s, step = LEARNERS["batch norm"]()
    before, seen, random_state = clone(s), clone(step.batch), torch.get_rng_state()
    found = trainability(part, s, step, steps=3)
    assert equal(s, before) and equal(step.batch, seen) and torch.equal(torch.get_rng_state(), random_state)
    torch.randn(100)
    fresh_moments = s._replace(optim=part.optim.start(s.params))
    assert equal(trainability(part, fresh_moments, step, steps=3), found)


def test_what_interventions_do_to_losses_and_steps_takes_no_part():
    plain, treated = dqn(spec=VECTOR), dqn([L2(weight=100.0), ShrinkAndPerturb()], spec=VECTOR)
    a, b = (trainability(*observe(agent, born(agent)), steps=3) for agent in (plain, treated))
    assert equal(a, b)


@pytest.mark.parametrize("change", [{"elementwise": True}, {"hold": True}], ids=str)
def test_step_counts_of_entries_and_weights_moved_by_an_intervention_make_no_difference(change):
    part, s, step = LEARNERS["q"]()
    usual = trainability(part, s, step, steps=4)
    part.optim = replace(part.optim, **change)
    other = trainability(part, s, step, steps=4)
    assert {k: v.item() for k, v in other.items()} == pytest.approx({k: v.item() for k, v in usual.items()}, abs=1e-3)
    assert other["trainability@lr10x@offset0"] < -0.1, "both learn"


def test_rates_and_offsets_are_in_the_names():
    part, s, step = LEARNERS["q"]()
    usual = trainability(part, s, step, steps=1)
    settings = [f"@lr{r}x@offset{o}" for r in (1, 10) for o in (0, 10)]
    assert set(usual) == {"trainability"} | {f"{k}{at}" for k in ("trainability", "plasticity") for at in settings}
    chosen = trainability(part, s, step, steps=3, rates=(0.5, 3.0), offsets=(2.5,))
    names = {f"{k}@lr{r}x@offset2.5" for k in ("trainability", "plasticity") for r in ("0.5", "3")}
    assert set(chosen) == {"trainability"} | names
    found = [chosen[f"trainability@lr{r}x@offset2.5"].item() for r in ("0.5", "3")]
    assert chosen["trainability"].item() == pytest.approx(np.mean(found)) and found[0] != found[1]


def test_before_the_first_step_all_are_equal_and_the_error_is_the_spread_and_the_wave():
    part, s, step = LEARNERS["q"]()
    assert all(v == 0 for k, v in trainability(part, s, step, steps=1).items() if k.startswith("train"))
    (inputs,), wave = part.inputs(step.batch), torch.full((BATCH, 3), 4.0)
    first = learning_curve(part, s, (inputs,), wave, steps=1)
    spread = predict(part, s.params, (inputs,)).double().numpy().var(0).mean()
    assert first.shape == (1,) and first.item() == pytest.approx(16 + spread, rel=1e-5)


def test_more_steps_go_on_where_fewer_ended_and_100_are_usual():
    part, s, step = LEARNERS["q"]()
    inputs = part.inputs(step.batch)
    wave = waves(part, inputs)
    long = learning_curve(part, s, inputs, wave)
    assert len(long) == 100 and torch.equal(learning_curve(part, s, inputs, wave, 1.0, 7), long[:7])
    assert long[-1] < 0.5 * long[0]
    faster = learning_curve(part, s, inputs, wave, factor=3.0, steps=7)
    assert faster[0] == long[0] and faster[6] < long[6]
    usual, same = trainability(part, s, step, **ONE), trainability(part, s, step, steps=100, **ONE)
    assert equal(usual, same) and not equal(usual, trainability(part, s, step, steps=99, **ONE))


def test_the_first_32_samples_are_learned():
    part, s, step = LEARNERS["q"]()
    obs = torch.cat([member(batch_for(VECTOR, (0,), i), 0)["obs"] for i in range(5)])

    def found(obs):
        return trainability(part, s, step._replace(batch={"obs": obs}), steps=3, **ONE)

    assert len(obs) == 40 and equal(found(obs), found(obs[:32]))
    assert not equal(found(obs), found(obs[:31]))


def test_a_curves_area_is_in_units_of_its_first_loss():
    assert relative(torch.tensor([4.0, 2.0, 0.0])).item() == 0.5
    assert relative(torch.tensor([0.5, 0.25])).item() == 0.75
    assert relative(torch.zeros(3)) == 0
