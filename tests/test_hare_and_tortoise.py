"""Hare & Tortoise: the slow average, the restart of the fast network, and what other events do to the pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import VECTOR, batch_for, dqn, engine, equal, largest_difference, run, sac
from torch.utils._pytree import tree_leaves

from agents.dqn import Exploration
from core.assemble import evaluated_role
from core.clock import Clock
from core.events import Context
from core.state import clone, member
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb

NEVER = When()


def at(*updates: int) -> When:
    return When(at=updates)


def race(*interventions, **settings):
    return engine(dqn(interventions, **{"spec": VECTOR} | settings))


def step(e, update: int) -> None:
    """One optimizer step, the `update`-th counted from zero, without events."""
    e.update(batch_for(e.learner.spec, e.seeds, update), Clock(steps=10**9, updates=update))


def fire(e, update: int) -> list[dict]:
    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), None)


def trained(s):
    """All that plain training moves."""
    return s.params, s.optim, s.copies["target"]


# the average


def test_with_momentum_one_the_tortoise_never_moves():
    e = race(HareAndTortoise(momentum=1.0, when=NEVER))
    run(e, 4)
    s = e.states["q"]
    assert equal(s.copies["tortoise"], s.birth)
    assert not equal(s.params, s.birth)


def test_with_momentum_one_the_hare_restarts_at_its_birth():
    e = race(HareAndTortoise(momentum=1.0, when=at(4)))
    run(e, 4)
    assert equal(e.states["q"].params, e.states["q"].birth)


def test_the_tortoise_is_the_exponential_average_of_all_hares():
    e = race(HareAndTortoise(momentum=0.9, when=NEVER))
    average = clone(e.states["q"].params)
    for update in range(6):
        step(e, update)
        average = {k: 0.9 * t + 0.1 * e.states["q"].params[k] for k, t in average.items()}
    assert largest_difference(e.states["q"].copies["tortoise"], average) < 1e-6
    assert largest_difference(average, e.states["q"].params) > 1e-5


def test_without_an_event_the_hare_runs_as_in_plain_training():
    for momentum in (0.0, 0.9, 1.0):
        with_tortoise, plain = race(HareAndTortoise(momentum=momentum, when=NEVER)), race()
        run(with_tortoise, 6)
        run(plain, 6)
        assert equal(trained(with_tortoise.states["q"]), trained(plain.states["q"]))


def test_with_momentum_zero_the_tortoise_is_the_hare():
    e = race(HareAndTortoise(momentum=0.0, when=NEVER))
    run(e, 3)
    assert equal(e.states["q"].copies["tortoise"], e.states["q"].params)


def test_with_momentum_zero_a_restart_changes_nothing():
    e = race(HareAndTortoise(momentum=0.0, when=NEVER))
    run(e, 3)
    part, states = e.learner.q, member(e.states, 0)
    ctx = Context(part, states, Clock(steps=10, updates=3), 0, "hare_and_tortoise", "cpu", None)
    assert equal(part.interventions[0].event(part, states["q"], ctx), states["q"])


def test_with_momentum_zero_and_a_restart_after_every_update_training_is_plain():
    restarting, plain = race(HareAndTortoise(momentum=0.0, when=When(every=1))), race()
    run(restarting, 5)
    run(plain, 5)
    assert equal(trained(restarting.states["q"]), trained(plain.states["q"]))


# the restart


def restarted(*others, momentum: float = 0.9, **settings):
    """Three updates, then the hare starts again from the tortoise. -> engine, the state before"""
    e = race(HareAndTortoise(momentum=momentum, when=at(3), **settings), *others)
    for update in range(3):
        step(e, update)
    before = clone(e.states["q"])
    fire(e, 3)
    return e, before


def test_right_after_the_restart_hare_and_tortoise_are_equal_in_storage_of_their_own():
    e, before = restarted()
    s = e.states["q"]
    assert equal(s.params, s.copies["tortoise"]) and equal(s.copies["tortoise"], before.copies["tortoise"])
    assert not equal(s.params, before.params)
    pointers = [x.data_ptr() for x in tree_leaves((s.params, s.copies))]
    assert len(set(pointers)) == len(pointers)


def test_the_first_update_after_the_restart_moves_the_tortoise_by_its_share_only():
    e, _ = restarted(momentum=0.9)
    tortoise = clone(e.states["q"].copies["tortoise"])
    step(e, 3)
    hare, moved = e.states["q"].params, e.states["q"].copies["tortoise"]
    for k in hare:
        assert not torch.equal(hare[k], tortoise[k])
        share = (1 - 0.9) * (hare[k] - tortoise[k])
        assert (moved[k] - tortoise[k] - share).abs().max() < 1e-7
        assert torch.equal(moved[k], tortoise[k].lerp(hare[k], 1 - 0.9))


def test_the_restart_leaves_target_birth_and_by_default_the_moments_alone():
    e, before = restarted()
    s = e.states["q"]
    assert equal((s.copies["target"], s.birth, s.optim), (before.copies["target"], before.birth, before.optim))
    step(e, 3)
    assert all(float(t) == 4 for t in s.optim["t"].values())


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
def test_the_moments_of_the_hare_are_kept_or_renewed_by_rule(optimizer):
    e, before = restarted(optimizer=optimizer, where=("head",))
    for slot, tensors in e.states["q"].optim.items():
        for k, x in tensors.items():
            head = k.startswith(("advantage", "value"))
            renewed = {"keep": False, "touched": head, "all": True}[optimizer]
            assert torch.equal(x, torch.zeros_like(x) if renewed else before.optim[slot][k])


def test_only_what_is_named_races():
    e, before = restarted(where=("head",))
    s = e.states["q"]
    for k in s.params:
        if k.startswith(("advantage", "value")):
            assert torch.equal(s.params[k], s.copies["tortoise"][k])
            assert not torch.equal(s.copies["tortoise"][k], s.birth[k])
        else:
            assert torch.equal(s.params[k], before.params[k])


@pytest.mark.parametrize("where", ["all", "trunk", "trunk.norms.1.*", "head"])
def test_running_statistics_race_with_their_layer_alone(where):
    e, before = restarted(BatchNorm(), where=(where,))
    s, part = e.states["q"], e.learner.q
    racing = {k.rpartition(".")[0] for k in part.names((where,))}
    for k, x in s.buffers.items():
        assert torch.equal(x, s.copies["tortoise"][k])
        assert torch.equal(x, before.buffers[k]) != (k.rpartition(".")[0] in racing), k


def test_restarts_come_at_every_multiple_of_the_period():
    e = race(HareAndTortoise(momentum=0.9, when=When(every=3)))
    clock, equal_after = Clock(steps=10**9), []
    for update in range(1, 8):
        run(e, 1, clock)
        if equal(e.states["q"].params, e.states["q"].copies["tortoise"]):
            equal_after.append(update)
    assert equal_after == [3, 6]


def test_the_storage_of_the_engine_never_moves():
    for tortoise in ("own", "target"):
        e = race(HareAndTortoise(tortoise=tortoise, optimizer="all", when=When(every=1)), target="ema")
        pointers = [x.data_ptr() for x in tree_leaves(e.states)]
        run(e, 3)
        assert [x.data_ptr() for x in tree_leaves(e.states)] == pointers
        assert len(set(pointers)) == len(pointers)


def test_each_network_has_a_tortoise_and_the_temperature_only_when_named():
    e = engine(sac([HareAndTortoise(momentum=0.5, when=at(2))]))
    run(e, 2)
    for name in ("critic", "actor"):
        assert equal(e.states[name].params, e.states[name].copies["tortoise"])
    assert e.states["alpha"].copies == {}
    named = engine(sac([HareAndTortoise(momentum=0.5, on=("*", "alpha"), when=at(2))]))
    run(named, 2)
    assert equal(named.states["alpha"].params, named.states["alpha"].copies["tortoise"])
    assert not equal(named.states["alpha"].params, named.states["alpha"].birth)


def test_the_tortoise_can_act():
    e, _ = restarted()
    step(e, 3)
    obs = batch_for(VECTOR, (0,), 9)["obs"].numpy()
    for role, weights in (("tortoise", "copies"), ("params", "params")):
        chosen = getattr(e.states["q"], weights)
        params = {k: p[0] for k, p in (chosen[role] if weights == "copies" else chosen).items()}
        expected = e.learner.q(params, torch.from_numpy(obs[0]))[0][..., 0].argmax(-1)
        assert np.array_equal(e.act(obs, Exploration(0.0, False), "eval", 0, role)[0], expected.numpy())


# the target network as the tortoise


def test_the_tortoise_may_be_the_target_network():
    e = race(HareAndTortoise(tortoise="target", momentum=0.5, when=at(3)), target="ema", tau=0.1)
    plain = race(target="ema", tau=0.1)
    assert set(e.states["q"].copies) == {"target"}
    for update in range(3):
        step(e, update)
        step(plain, update)
    assert equal(e.states, plain.states | {"q": plain.states["q"]._replace(memory=e.states["q"].memory)})
    target = clone(e.states["q"].copies["target"])
    fire(e, 3)
    s = e.states["q"]
    assert equal(s.params, target) and equal(s.copies["target"], target)
    assert not equal(s.params, plain.states["q"].params)
    step(e, 3)
    for k in target:  # it follows at the agent's tau, not at the momentum
        assert torch.equal(s.copies["target"][k], target[k].lerp(s.params[k], 0.1))


def test_a_part_without_target_network_has_no_tortoise_there():
    e = engine(sac([HareAndTortoise(tortoise="target", when=at(2))]))
    for update in range(2):
        step(e, update)
    before = clone(e.states)
    assert [(row["part"], row["touched"] > 0) for row in fire(e, 2)] == [("critic", True), ("actor", False)]
    assert equal(e.states["actor"], before["actor"])
    assert equal(e.states["critic"].params, before["critic"].copies["target"])


# together with resets


def raced_and_reset(event):
    """A head is born again at update 2, the hare restarts at update 3. -> states after the two events"""
    e = race(event, HareAndTortoise(momentum=0.9, when=at(3)))
    old = e.states["q"]
    for update in range(2):
        step(e, update)
    before = clone(old)
    fire(e, 2)
    reset = clone(e.states["q"])
    step(e, 2)
    fire(e, 3)
    return before, reset, e.states["q"]


HEAD = ("advantage.weight", "value.weight")


def test_a_head_reset_renews_the_tortoises_head_so_that_the_next_restart_does_not_undo_it():
    before, reset, after = raced_and_reset(Reset(where=("head",), when=at(2)))
    for k in HEAD:
        assert torch.equal(reset.copies["tortoise"][k], reset.params[k])
        new, old = ((after.params[k] - s.params[k]).norm() for s in (reset, before))
        assert new < 0.01 * old
    trunk = "trunk.layers.0.weight"
    assert torch.equal(reset.copies["tortoise"][trunk], before.copies["tortoise"][trunk])


def test_a_head_reset_that_spares_the_tortoise_is_undone_by_the_next_restart():
    before, reset, after = raced_and_reset(Reset(where=("head",), slow="keep", when=at(2)))
    for k in HEAD:
        assert torch.equal(reset.copies["tortoise"][k], before.copies["tortoise"][k])
        new, old = ((after.params[k] - s.params[k]).norm() for s in (reset, before))
        assert old < 0.2 * new


def test_shrink_and_perturb_moves_the_tortoise_as_it_moves_the_hare():
    before, perturbed, _ = raced_and_reset(ShrinkAndPerturb(keep=0.5, noise=0.5, when=at(2)))
    for k in before.params:
        gap = before.params[k] - before.copies["tortoise"][k]
        assert (perturbed.params[k] - perturbed.copies["tortoise"][k] - 0.5 * gap).abs().max() < 1e-6


def test_events_due_together_happen_in_the_order_of_the_list():
    reset, hare = Reset(where=("head",), slow="keep", when=at(2)), HareAndTortoise(momentum=0.9, when=at(2))
    for order, undone in (((reset, hare), True), ((hare, reset), False)):
        e = race(*order)
        for update in range(2):
            step(e, update)
        rows = fire(e, 2)
        assert [row["intervention"] for row in rows] == [intervention.name for intervention in order]
        same = torch.equal(*(x["value.weight"] for x in (e.states["q"].params, e.states["q"].copies["tortoise"])))
        assert same == undone


def test_a_target_that_is_a_hard_copy_cannot_be_the_tortoise():
    with pytest.raises(ValueError, match="tortoise=target.*hard copy.*agent.target=ema"):
        engine(dqn([HareAndTortoise(tortoise="target", when=When(every=1))], VECTOR, target="copy"))


def test_the_tortoise_is_evaluated_unless_the_agent_says_otherwise():
    hare_and_tortoise = HareAndTortoise(when=When(every=1))
    assert evaluated_role(dqn([hare_and_tortoise], VECTOR)) == "tortoise"
    assert evaluated_role(dqn([hare_and_tortoise], VECTOR, evaluate_with="params")) == "params"
    assert evaluated_role(dqn([], VECTOR)) == "params"
    assert evaluated_role(sac([HareAndTortoise(on=("critic",), when=When(every=1))])) == "params"
    with pytest.raises(ValueError, match="evaluate_with"):
        evaluated_role(dqn([], VECTOR, evaluate_with="tortoise"))


def test_defaults_are_as_described():
    d = HareAndTortoise()
    assert (d.momentum, d.tortoise, d.optimizer) == (0.999, "own", "keep")
