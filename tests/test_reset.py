"""Reset: what is born again, what stays bit by bit, and what happens to moments, target and birth weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learners import BATCH, VECTOR, batch_for, dqn, engine, equal, run, sac
from torch.utils._pytree import tree_leaves

from core.clock import Clock
from core.state import clone, member
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from interventions.reset import Reset
from nets import C51, Nature

EVERY = When(every=1)


def aged(learner, seeds=(0,), updates: int = 3):
    """An engine some updates old; its events have not fired yet."""
    e = engine(learner, seeds)
    for count in range(updates):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def fire(e, update: int = 3) -> list[dict]:
    def no_sample(stream, count, size):
        raise AssertionError("a reset looks at no data")

    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), no_sample)


def before_and_after(learner, part: str, update: int = 3):
    """The state of a part, three updates old, before and after the event."""
    e = aged(learner)
    before = clone(member(e.states, 0))[part]
    fire(e, update)
    return before, member(e.states, 0)[part]


def of(layers) -> set[str]:
    return {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}


def differing(a, b) -> set[str]:
    return {k for k in a if not torch.equal(a[k], b[k])}


def outside(s, names):
    """Everything of a state but the named tensors."""
    groups = [s.params, s.birth, *s.copies.values(), *s.optim.values()]
    return [{k: x for k, x in group.items() if k not in names} for group in groups]


CONVS = [f"encoder.convs.{i}" for i in range(3)]
CRITIC_TRUNKS = [f"q.{i}.trunk.layers.{j}" for i in range(2) for j in range(2)]
SCOPES = [
    ("dqn", ("head",), of(["trunk.layers.0", "advantage", "value"])),
    ("dqn", ("output",), of(["advantage", "value"])),
    ("dqn", ("encoder",), of(CONVS)),
    ("dqn", ("all",), of([*CONVS, "trunk.layers.0", "advantage", "value"])),
    ("dqn", ("encoder.convs.1.*",), of(["encoder.convs.1"])),
    ("dqn", ("encoder.convs.0.weight", "output"), {"encoder.convs.0.weight"} | of(["advantage", "value"])),
    ("sac", ("head",), of(["q.0.head", "q.1.head"])),
    ("sac", ("output",), of(["q.0.head", "q.1.head"])),
    ("sac", ("trunk",), of(CRITIC_TRUNKS)),
    ("sac", ("all",), of([*CRITIC_TRUNKS, "q.0.head", "q.1.head"])),
    ("sac", ("q.1.*",), of([*CRITIC_TRUNKS[2:], "q.1.head"])),
]


@pytest.mark.parametrize(("agent", "where", "chosen"), SCOPES, ids=lambda x: str(x) if isinstance(x, tuple) else "")
def test_a_scope_is_born_again_and_everything_else_stays_bit_by_bit(agent, where, chosen):
    make, part = {"dqn": (dqn, "q"), "sac": (sac, "critic")}[agent]
    e = aged(make([Reset(where=where, on=(part,), when=EVERY)]), updates=1)
    before = clone(member(e.states, 0))
    fire(e)
    after = member(e.states, 0)
    old, new = before[part], after[part]
    assert differing(old.params, new.params) == chosen
    for k in chosen:
        if k.endswith("bias"):
            assert torch.count_nonzero(new.params[k]) == 0
        else:
            assert (new.params[k] - new.params[k].mean()).abs().max() > 0
        assert not any(torch.count_nonzero(slot[k]) for slot in new.optim.values())
    assert equal(outside(old, chosen), outside(new, chosen))
    assert all(equal(before[name], after[name]) for name in before if name != part)


# weights


def test_fresh_weights_differ_from_those_before_and_from_birth():
    old, new = before_and_after(dqn([Reset(where=("all",), when=EVERY)]), "q")
    for k in (k for k in new.params if k.endswith("weight")):
        for other in (old.params[k], old.birth[k]):
            ratio = (new.params[k] - other).norm() / other.norm()
            assert float(ratio) == pytest.approx(math.sqrt(2), rel=0.3)  # as independent draws of one size are apart


def test_birth_weights_come_back_bit_by_bit():
    old, new = before_and_after(dqn([Reset(where=("head",), toward="birth", when=EVERY)]), "q")
    for k in new.params:
        assert torch.equal(new.params[k], (old.params if k.startswith("encoder") else old.birth)[k])
    assert equal(new.birth, old.birth)
    assert differing(old.params, new.params)


def test_a_full_reset_towards_birth_makes_a_newborn_agent_that_lives_the_same_life_again():
    e = aged(dqn([Reset(where=("all",), toward="birth", when=EVERY)], VECTOR), seeds=(0, 1))
    young, newborn = clone(e.states), engine(dqn(spec=VECTOR), (0, 1)).states
    fire(e)
    for field in ("params", "birth", "copies", "optim"):
        assert equal(getattr(e.states["q"], field), getattr(newborn["q"], field))
    for count in range(3):
        e.update(batch_for(VECTOR, e.seeds, count), Clock(steps=10**9, updates=count))
    assert equal(e.states, young)


def test_a_full_reset_of_sac_renews_optimizers_target_and_named_temperature():
    e = aged(sac([Reset(where=("all",), on=("*", "alpha"), when=EVERY)], initial_temperature=0.3))
    old_log = float(e.states["alpha"].params["log"])
    fire(e)
    for s in e.states.values():
        assert not any(torch.count_nonzero(x) for slot in s.optim.values() for x in slot.values())
    assert equal(e.states["critic"].copies["target"], e.states["critic"].params)
    assert float(e.states["alpha"].params["log"]) == pytest.approx(math.log(0.3)) != old_log


def test_the_temperature_is_touched_only_when_named():
    e = aged(sac([Reset(where=("all",), when=EVERY)]))
    before = clone(e.states)
    assert [row["part"] for row in fire(e)] == ["critic", "actor"]
    assert equal(before["alpha"], e.states["alpha"])
    assert not equal(before["critic"].params, e.states["critic"].params)
    assert not equal(before["actor"].params, e.states["actor"].params)


def test_a_reset_head_has_the_statistics_of_the_xavier_initialiser():
    learner = dqn([Reset(where=("head",), when=EVERY)], value=C51(), net=Nature(width=32, padding="valid"))
    _, new = before_and_after(learner, "q")
    for layer in ("trunk.layers.0", "advantage", "value"):
        weight = new.params[f"{layer}.weight"]
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert abs(float(weight.mean())) < 0.05 * bound
        assert torch.count_nonzero(new.params[f"{layer}.bias"]) == 0


def test_a_reset_hidden_layer_of_sac_is_root_two_times_an_orthogonal_matrix():
    _, new = before_and_after(sac([Reset(where=("all",), when=EVERY)]), "critic")
    for i in range(2):
        weight = new.params[f"q.{i}.trunk.layers.1.weight"]
        assert (weight @ weight.T - 2 * torch.eye(16)).abs().max() < 1e-5
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / 16), rel=0.05)


def test_gains_and_shifts_of_the_heads_norms_are_reset_with_it():
    old, new = before_and_after(dqn([LayerNorm(), Reset(where=("head",), when=EVERY)]), "q")
    assert not torch.equal(old.params["trunk.norms.0.weight"], torch.ones(16))
    assert torch.equal(new.params["trunk.norms.0.weight"], torch.ones(16))
    assert torch.equal(new.params["trunk.norms.0.bias"], torch.zeros(16))
    assert torch.equal(new.params["encoder.norms.2.weight"], old.params["encoder.norms.2.weight"])


# randomness


def redrawn(seeds=(0,), update: int = 3, name: str = "", learner=dqn, part: str = "q"):
    reset = Reset(where=("all",), when=EVERY)
    reset.name = name
    e = engine(learner([reset]), seeds)
    fire(e, update)
    return e.states[part].params


def test_two_resets_differ_and_the_same_seed_repeats():
    first, again, later = redrawn(), redrawn(), redrawn(update=4)
    assert equal(first, again)
    weights = {k for k in first if k.endswith("weight")}
    assert differing(first, later) == weights
    assert differing(first, redrawn(name="another")) == weights


def test_members_draw_apart_and_each_as_it_would_alone():
    both = redrawn(seeds=(4, 5))
    assert all(not torch.equal(p[0], p[1]) for k, p in both.items() if k.endswith("weight"))
    alone = redrawn(seeds=(5,))
    assert equal({k: p[1] for k, p in both.items()}, {k: p[0] for k, p in alone.items()})


def test_the_critics_of_an_ensemble_draw_apart():
    drawn = redrawn(learner=sac, part="critic")
    assert not torch.equal(drawn["q.0.head.weight"], drawn["q.1.head.weight"])
    assert not torch.equal(drawn["q.0.trunk.layers.0.weight"], drawn["q.1.trunk.layers.0.weight"])


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(1)
    first, state, host = redrawn(), torch.get_rng_state(), np.random.get_state()[1].copy()
    redrawn()
    assert torch.equal(state, torch.get_rng_state()) and (host == np.random.get_state()[1]).all()
    torch.manual_seed(2)
    assert equal(first, redrawn())


# moments


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
def test_moments_and_step_counts_are_kept_or_renewed_by_rule(optimizer):
    learner = sac([Reset(where=("head",), on=("critic",), optimizer=optimizer, when=EVERY)])
    e = aged(learner)
    before = clone(member(e.states, 0))
    fire(e)
    old, new = before["critic"].optim, member(e.states, 0)["critic"].optim
    head = of(["q.0.head", "q.1.head"])
    renewed = {"keep": set(), "touched": head, "all": set(old["m"])}[optimizer]
    for slot in ("m", "v", "t"):
        for k in old[slot]:
            assert torch.equal(new[slot][k], torch.zeros_like(old[slot][k]) if k in renewed else old[slot][k])
            assert torch.count_nonzero(old[slot][k])
    assert all(float(t) == 3 for t in old["t"].values())
    assert equal(before["actor"].optim, member(e.states, 0)["actor"].optim)


def test_the_next_step_of_a_reset_tensor_is_a_first_step_of_adam_and_the_others_go_on_counting():
    e = aged(dqn([Reset(where=("output",), when=EVERY)], VECTOR, learning_rate=1e-3, adam_eps=1e-12))
    fire(e)
    before = clone(member(e.states, 0))["q"]
    e.update(batch_for(VECTOR, (0,), 3), Clock(steps=10**9, updates=3))
    after = member(e.states, 0)["q"]
    for k, t in after.optim["t"].items():
        assert float(t) == (1 if k.startswith(("advantage", "value")) else 4)
    step = (after.params["advantage.weight"] - before.params["advantage.weight"]).abs()
    assert (step[after.optim["m"]["advantage.weight"] != 0] - 1e-3).abs().max() < 1e-6  # |m / sqrt v| is one


# target and other slow copies


@pytest.mark.parametrize("role", ["target", "tortoise"])
@pytest.mark.parametrize("rule", ["keep", "copy", "same_draw", "own_draw"])
def test_each_slow_copy_follows_its_rule_and_keeps_its_own_encoder(role, rule):
    rules = {"target": rule, "slow": "keep"} if role == "target" else {"target": "keep", "slow": rule}
    interventions = [HareAndTortoise(momentum=0.9), Reset(where=("head",), when=EVERY, **rules)]
    old, new = before_and_after(dqn(interventions, target="ema", tau=0.1), "q")
    other = "tortoise" if role == "target" else "target"
    assert equal(old.copies[other], new.copies[other])
    for k in new.params:
        assert not torch.equal(old.copies[role][k], old.params[k])
        if k.startswith("encoder") or rule == "keep":
            assert torch.equal(new.copies[role][k], old.copies[role][k])
        elif rule in ("copy", "same_draw"):
            assert torch.equal(new.copies[role][k], new.params[k])
        elif k.endswith("weight"):
            assert not torch.equal(new.copies[role][k], new.params[k])
            assert not torch.equal(new.copies[role][k], old.copies[role][k])


def test_by_default_target_and_slow_copies_receive_the_new_weights():
    learner = dqn([HareAndTortoise(momentum=0.9), Reset(where=("all",), when=EVERY)], target="ema")
    _, new = before_and_after(learner, "q")
    assert equal(new.copies["target"], new.params) and equal(new.copies["tortoise"], new.params)


# birth weights


@pytest.mark.parametrize("renew", [True, False])
def test_the_birth_weights_of_what_was_redrawn_are_renewed_or_not(renew):
    old, new = before_and_after(dqn([Reset(where=("head",), renew_birth=renew, when=EVERY)]), "q")
    for k in new.birth:
        redrawn_birth = renew and not k.startswith("encoder")
        assert torch.equal(new.birth[k], new.params[k] if redrawn_birth else old.birth[k])


# the life around it


def test_the_first_loss_after_a_reset_is_finite_and_larger():
    learner = dqn([Reset(where=("head",), when=EVERY)], VECTOR, learning_rate=1e-2)
    e, batch = engine(learner), batch_for(VECTOR, (0,))
    batch["discount"] = torch.zeros(1, BATCH)  # rewards are to be learned by heart
    clock = Clock(steps=10**9)
    losses = [float(e.update(batch, clock)["q/loss"]) for _ in range(60)]
    fire(e)
    after = float(e.update(batch, clock)["q/loss"])
    assert losses[-1] < 0.2 * losses[0]
    assert math.isfinite(after) and after > 2 * losses[-1]


@pytest.mark.parametrize(("steps", "every"), [(12, 3), (10, 5), (9, 9), (10, 1), (4, 5)])
@pytest.mark.parametrize("unit", ["updates", "agent_steps", "env_steps"])
def test_with_the_last_one_suppressed_a_run_of_n_steps_has_the_floor_of_n_minus_one_over_t_resets(steps, every, unit):
    e = engine(dqn([Reset(when=When(every=every, unit=unit, skip_last=True), where=("output",))], VECTOR))
    clock, resets = Clock(steps=steps), 0
    while clock.running:
        clock.step()
        resets += len(e.intervene(clock, ("agent_steps", "env_steps"), None))
        clock.update()
        resets += len(e.intervene(clock, ("updates",), None))
    assert resets == (steps - 1) // every


def test_no_reset_comes_with_less_than_one_interval_left():
    when, clock, at = When(every=20, skip_last=True), Clock(steps=110), []
    while clock.running:
        clock.step()
        clock.update()
        at += [clock.updates] * when.due(clock)
    assert at == [20, 40, 60, 80]


@pytest.mark.parametrize("toward", ["fresh", "birth"])
@pytest.mark.parametrize("rule", ["keep", "copy", "same_draw", "own_draw"])
def test_the_storage_of_the_engine_never_moves(toward, rule):
    reset = Reset(where=("all",), toward=toward, target=rule, slow=rule, optimizer="all", when=EVERY)
    e = aged(dqn([HareAndTortoise(momentum=0.9), reset], VECTOR), seeds=(0, 1))
    pointers = [x.data_ptr() for x in tree_leaves(e.states)]
    fire(e)
    run(e, 1)
    assert [x.data_ptr() for x in tree_leaves(e.states)] == pointers
    assert len(set(pointers)) == len(pointers)


def test_defaults_are_as_described():
    d = Reset()
    assert (d.where, d.toward, d.optimizer, d.renew_birth) == (("head",), "fresh", "touched", True)
    assert d.target == d.slow == "copy"
