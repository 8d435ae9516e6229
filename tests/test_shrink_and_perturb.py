"""Shrink & Perturb: theta <- keep * theta + noise * phi, its published presets, and what goes with it."""

from __future__ import annotations

import math

import pytest
import torch
from learners import VECTOR, batch_for, dqn, engine, equal, run, sac
from torch.utils._pytree import tree_leaves

from core.clock import Clock
from core.events import Context
from core.state import State, clone, member
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import C51, Nature, Vectors

EVERY = When(every=1)


def aged(interventions, seeds=(0,), updates: int = 3, learner=dqn, **settings):
    """An engine some updates old, whose target lags behind; its events have not fired yet."""
    settings = {"spec": VECTOR, "target": "ema", "tau": 0.1} | settings if learner is dqn else settings
    e = engine(learner(interventions, **settings), seeds)
    for count in range(updates):
        e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def fire(e, update: int = 3) -> list[dict]:
    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), None)


def applied(intervention, others=(), **settings) -> tuple[State, State, Context]:
    """The state before, what the event makes of it, and the context whose draws it saw."""
    e = aged([*others, intervention], **settings)
    part, states = next(iter(e.learner.parts.values())), member(e.states, 0)
    ctx = Context(part, states, Clock(steps=10**9, updates=3), 0, intervention.name, "cpu", None)
    return states[part.name], intervention.event(part, states[part.name], ctx), ctx


def apart(a, b) -> float:
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def mixture(keep, theta, noise, phi):
    return {k: keep * theta[k] + noise * phi[k] for k in theta}


# the rule


def test_keep_one_and_noise_zero_changes_no_weight_bit_by_bit():
    for target in ("keep", "same_draw", "own_draw"):
        old, new, _ = applied(ShrinkAndPerturb(keep=1.0, noise=0.0, target=target, optimizer="keep"))
        assert equal(old, new)


def test_keep_zero_and_noise_one_is_the_draw():
    old, new, ctx = applied(ShrinkAndPerturb(keep=0.0, noise=1.0))
    assert equal(new.params, ctx.fresh())
    assert apart(new.params, old.params) > 0.1


def test_what_keeps_nothing_is_a_reset():
    nothing, reset = ShrinkAndPerturb(keep=0.0, noise=1.0), Reset(where=("all",), renew_birth=False)
    nothing.name = reset.name = "same_stream"
    assert equal(applied(nothing)[1], applied(reset)[1])


def test_keep_zero_and_noise_one_has_the_statistics_of_the_initialiser():
    intervention = ShrinkAndPerturb(keep=0.0, noise=1.0)
    _, new, _ = applied(intervention, value=C51(), net=Vectors(width=32, init="xavier"))
    for layer in ("trunk.layers.1", "advantage", "value"):
        weight = new.params[f"{layer}.weight"]
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / sum(weight.shape)), rel=0.05)
        assert torch.count_nonzero(new.params[f"{layer}.bias"]) == 0


def test_every_tensor_gains_shifts_and_biases_included_is_shrunk_and_perturbed():
    intervention = ShrinkAndPerturb(keep=0.7, noise=0.2)
    old, new, ctx = applied(intervention, [LayerNorm()])
    assert apart(new.params, mixture(0.7, old.params, 0.2, ctx.fresh())) < 1e-6
    gain, shift = "trunk.norms.0.weight", "trunk.norms.0.bias"
    assert apart({gain: new.params[gain]}, {gain: 0.7 * old.params[gain] + 0.2}) < 1e-6
    assert apart({shift: new.params[shift]}, {shift: 0.7 * old.params[shift]}) < 1e-6


def test_towards_birth_the_draw_is_the_weights_at_birth():
    old, new, _ = applied(ShrinkAndPerturb(keep=0.3, noise=0.6, toward="birth"))
    assert apart(new.params, mixture(0.3, old.params, 0.6, old.birth)) < 1e-6
    assert apart(old.params, old.birth) > 1e-4


def test_a_newborn_network_pulled_towards_birth_stays_when_the_factors_add_up_to_one():
    for keep in (0.5, 0.25):
        old, new, _ = applied(ShrinkAndPerturb(keep=keep, noise=1 - keep, toward="birth"), updates=0)
        assert equal(new, old)
    old, new, _ = applied(ShrinkAndPerturb(preset="hare_tortoise"), updates=0)
    assert apart(new.params, old.birth) < 1e-7


def test_birth_weights_stay():
    old, new, _ = applied(ShrinkAndPerturb())
    assert equal(old.birth, new.birth)


# presets

SOURCES = {  # keep, noise, towards, target
    "ash_adams": (0.4, 0.1, "fresh", None),  # supervised: no target
    "bbf": (0.5, 0.5, "fresh", "own_draw"),
    "sr_spr": (0.8, 0.2, "fresh", "own_draw"),
    "hare_tortoise": (0.2, 0.8, "birth", None),
}


@pytest.mark.parametrize("preset", SOURCES)
def test_a_preset_is_the_rule_of_its_source_and_rebuilds_the_optimizer(preset):
    keep, noise, toward, target = SOURCES[preset]
    old, new, ctx = applied(ShrinkAndPerturb(preset=preset, where=("head",)))
    head, rest = (
        {k for k in old.params if k.startswith(("advantage", "value")) == in_head} for in_head in (True, False)
    )
    phi = ctx.fresh() if toward == "fresh" else old.birth
    expected = mixture(keep, old.params, noise, phi)
    assert apart({k: new.params[k] for k in head}, expected) < 1e-6
    assert equal({k: new.params[k] for k in rest}, {k: old.params[k] for k in rest})
    assert all(torch.count_nonzero(old.optim["t"][k]) for k in old.params)
    assert not any(torch.count_nonzero(x) for slot in new.optim.values() for x in slot.values())
    if target == "own_draw":
        own = mixture(keep, old.copies["target"], noise, ctx.fresh("target"))
        assert apart({k: new.copies["target"][k] for k in head}, own) < 1e-6


def test_a_preset_overrides_the_single_settings_and_custom_does_not():
    chosen = ShrinkAndPerturb(preset="bbf", keep=0.9, noise=0.9, toward="birth", target="keep", optimizer="keep")
    assert (chosen.keep, chosen.noise, chosen.toward, chosen.target) == SOURCES["bbf"]
    assert chosen.optimizer == "all"
    free = ShrinkAndPerturb(keep=0.9, noise=0.1, toward="birth", target="keep", optimizer="keep")
    assert (free.keep, free.noise, free.toward, free.target, free.optimizer) == (0.9, 0.1, "birth", "keep", "keep")


def test_the_preset_of_hare_and_tortoise_leaves_the_tortoise_untouched():
    intervention = ShrinkAndPerturb(preset="hare_tortoise")
    old, new, _ = applied(intervention, [HareAndTortoise(momentum=0.9)])
    assert equal(old.copies["tortoise"], new.copies["tortoise"])


def test_bbf_perturbs_online_and_target_apart_and_restarts_adam():
    e = aged([ShrinkAndPerturb(preset="bbf", when=EVERY)], tau=1.0)
    assert equal(e.states["q"].params, e.states["q"].copies["target"])
    fire(e)
    s = e.states["q"]
    for k in (k for k in s.params if k.endswith("weight")):
        assert (s.params[k] - s.copies["target"][k]).abs().mean() > 0.05 * s.params[k].abs().mean()
    assert not any(torch.count_nonzero(t) for t in s.optim["t"].values())


# target and other slow copies


@pytest.mark.parametrize("role", ["target", "tortoise"])
@pytest.mark.parametrize("rule", ["keep", "copy", "same_draw", "own_draw"])
def test_each_slow_copy_follows_its_rule(role, rule):
    rules = {"target": rule, "slow": "keep"} if role == "target" else {"target": "keep", "slow": rule}
    intervention = ShrinkAndPerturb(keep=0.6, noise=0.3, **rules)
    old, new, ctx = applied(intervention, [HareAndTortoise(momentum=0.9)])
    other = "tortoise" if role == "target" else "target"
    expected = {
        "keep": old.copies[role],
        "copy": mixture(0.6, old.params, 0.3, ctx.fresh()),
        "same_draw": mixture(0.6, old.copies[role], 0.3, ctx.fresh()),
        "own_draw": mixture(0.6, old.copies[role], 0.3, ctx.fresh(role)),
    }[rule]
    assert apart(old.copies[role], old.params) > 1e-4
    assert apart(new.copies[role], expected) < 1e-6
    assert equal(new.copies[other], old.copies[other])
    assert apart(ctx.fresh(), ctx.fresh(role)) > 0.1


def test_by_default_the_target_takes_the_same_draw():
    old, new, ctx = applied(ShrinkAndPerturb(keep=0.6, noise=0.3))
    assert apart(new.copies["target"], mixture(0.6, old.copies["target"], 0.3, ctx.fresh())) < 1e-6


# moments


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
def test_moments_and_step_counts_are_kept_or_renewed_by_rule(optimizer):
    old, new, _ = applied(ShrinkAndPerturb(where=("head",), optimizer=optimizer))
    head = {k for k in old.params if k.startswith(("advantage", "value"))}
    renewed = {"keep": set(), "touched": head, "all": set(old.params)}[optimizer]
    for slot in ("m", "v", "t"):
        for k, before in old.optim[slot].items():
            assert torch.equal(new.optim[slot][k], torch.zeros_like(before) if k in renewed else before)
            assert torch.count_nonzero(before)


def test_by_default_the_moments_of_what_is_touched_start_anew():
    old, new, _ = applied(ShrinkAndPerturb(where=("trunk",)))
    for k, t in new.optim["t"].items():
        assert float(t) == (0 if k.startswith("trunk") else 3)


# where, whose and when


@pytest.mark.parametrize(
    ("where", "prefixes"),
    [
        (("encoder",), ("encoder",)),
        (("head",), ("trunk", "advantage", "value")),
        (("output",), ("advantage", "value")),
        (("encoder.convs.1.*",), ("encoder.convs.1.",)),
    ],
)
def test_only_what_is_named_changes_and_the_rest_stays_bit_by_bit(where, prefixes):
    old, new, _ = applied(
        ShrinkAndPerturb(where=where), spec=dqn().spec, updates=1, net=Nature(width=16, padding="valid")
    )
    for group, other in ((old.params, new.params), (old.copies["target"], new.copies["target"])):
        assert {k for k in group if not torch.equal(group[k], other[k])} == {
            k for k in group if k.startswith(prefixes) and (k.endswith("weight") or torch.count_nonzero(group[k]))
        }


def test_the_temperature_is_touched_only_when_named():
    for on, touched in ((("*",), ["critic", "actor"]), (("*", "alpha"), ["critic", "actor", "alpha"])):
        e = aged([ShrinkAndPerturb(keep=0.5, noise=0.2, on=on, when=EVERY)], learner=sac, initial_temperature=0.3)
        before = clone(e.states)
        assert [row["part"] for row in fire(e)] == touched
        assert equal(before["alpha"], e.states["alpha"]) == ("alpha" not in touched)
    mixed = 0.5 * float(before["alpha"].params["log"]) + 0.2 * math.log(0.3)
    assert float(e.states["alpha"].params["log"]) == pytest.approx(mixed, abs=1e-6)


def perturbed(seeds=(0,), update: int = 3):
    e = aged([ShrinkAndPerturb(when=EVERY)], seeds, updates=0)
    fire(e, update)
    return e.states["q"].params


def test_two_events_differ_the_same_seed_repeats_and_members_draw_apart():
    first = perturbed()
    torch.manual_seed(7)
    assert equal(first, perturbed())
    later, both = perturbed(update=4), perturbed(seeds=(0, 1))
    for k in (k for k in first if k.endswith("weight")):
        assert not torch.equal(first[k], later[k])
        assert torch.equal(both[k][0], first[k][0]) and not torch.equal(both[k][0], both[k][1])


@pytest.mark.parametrize("preset", ["custom", *SOURCES])
def test_the_storage_of_the_engine_never_moves(preset):
    e = aged([HareAndTortoise(momentum=0.9), ShrinkAndPerturb(preset=preset, when=EVERY)], seeds=(0, 1))
    pointers = [x.data_ptr() for x in tree_leaves(e.states)]
    fire(e)
    run(e, 1)
    assert [x.data_ptr() for x in tree_leaves(e.states)] == pointers
    assert len(set(pointers)) == len(pointers)


def test_defaults_are_as_described():
    d = ShrinkAndPerturb()
    assert (d.preset, d.keep, d.noise, d.toward, d.optimizer) == ("custom", 0.8, 0.2, "fresh", "touched")
    assert d.target == d.slow == "same_draw"
