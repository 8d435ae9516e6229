"""Selective weight reinitialization: which entries of a tensor are least useful, what they become, and what stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.events import Context
from core.options import build
from core.state import clone, member
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.l2 import L2
from interventions.layer_norm import LayerNorm
from interventions.selective_weight_reinit import SelectiveWeightReinit, least
from nets import Nature, Vectors

SWR = "selective_weight_reinit"
EVERY = When(every=1)
LEARNERS = [
    (dqn, "q", FRAMES, Nature(width=40, units=0.125)),
    (sac, "critic", CONTROL, Vectors(width=6)),
    (classifier, "classifier", VECTOR, Vectors(width=6)),
]
every_learner = pytest.mark.parametrize(("make", "part", "spec", "net"), LEARNERS, ids=["dqn", "sac", "classifier"])


def aged(learner, seeds=(0,)):
    """An engine some updates old; its events have not fired yet."""
    e = engine(learner, seeds)
    for count in range(3):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def sampler(e):
    return lambda stream, count, size: batch_for(e.learner.spec, e.seeds, 500)


def fire(e) -> list[dict]:
    return e.intervene(Clock(steps=10**9, updates=3, last={"updates": 2}), ("updates",), sampler(e))


def filled(s):
    """A state whose numbers are all different and none is 0."""
    g = torch.Generator().manual_seed(1)

    def noise(tensors):
        return {k: 1 + torch.rand(x.shape, generator=g) for k, x in tensors.items()}

    slots = {slot: noise(old) for slot, old in s.optim.items()}
    return s._replace(params=noise(s.params), optim=slots, copies={role: noise(old) for role, old in s.copies.items()})


def applied(*others, grads=None, elementwise=False, **options):
    """The state before, after the event, and the entries that a sort of one's own would choose."""
    intervention = SelectiveWeightReinit(**{"rate": 0.1} | options)
    part = dqn([*others, intervention], VECTOR, net=Vectors(width=5)).q
    part.optim = replace(part.optim, elementwise=elementwise)
    s = filled(part.birth(0))
    ctx = Context(part, {"q": s}, Clock(steps=10, updates=3), 0, SWR, "cpu", None)
    grads = grads or {k: torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) for k, p in s.params.items()}
    ctx.step = lambda number=0: type("Step", (), {"grads": grads})
    new = intervention.event(part, s, ctx)
    chosen = {}
    for k in part.names(intervention.where):
        worth = s.params[k] * grads[k] if intervention.utility == "gradient" else s.params[k]
        order = np.argsort(np.abs(worth.numpy().ravel()))
        mask = np.zeros(worth.numel(), dtype=bool)
        mask[order[: max(1, round(intervention.rate * worth.numel()))]] = True
        chosen[k] = torch.tensor(mask).reshape(worth.shape)
    return s, new, chosen, ctx.fresh()


# which entries


@pytest.mark.parametrize(
    ("share", "entries"),
    [(0.01, [3]), (0.2, [3]), (0.29, [3]), (0.31, [3, 1]), (0.5, [3, 1]), (0.6, [3, 1, 0]), (1.0, [0, 1, 2, 3, 4])],
)
def test_a_share_of_the_entries_nearest_to_zero_is_chosen_and_at_least_one(share, entries):
    chosen = least(torch.tensor([-3.0, 2.0, 5.0, 0.5, -4.0]), share)
    assert chosen.dtype == torch.bool and chosen.nonzero().flatten().tolist() == sorted(entries)


@pytest.mark.parametrize("shape", [(1,), (7,), (4, 9), (3, 2, 4, 4)])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.37])
def test_the_choice_is_a_sorts(shape, share):
    utility = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    chosen, count = least(utility, share), max(1, round(share * utility.numel()))
    assert chosen.shape == shape and int(chosen.sum()) == count
    sizes = np.sort(np.abs(utility.numpy().ravel()))
    assert np.array_equal(np.sort(utility[chosen].abs().numpy()), sizes[:count])


def test_of_equal_entries_the_first_is_chosen():
    assert least(torch.ones(2, 3), 0.4).tolist() == [[True, True, False], [False, False, False]]


def test_a_lone_number_is_chosen():
    assert least(torch.tensor(3.0), 0.1).tolist() is True


def test_the_gradient_is_that_of_loss_and_penalties():
    weak, strong = (aged(classifier([L2(weight=w), SelectiveWeightReinit(rate=0.1, when=EVERY)])) for w in (0.0, 1e4))
    strong.load_state_dict(weak.state_dict())
    before = clone(weak.states["classifier"].params)
    fire(weak), fire(strong)
    gone = [{k: p != before[k] for k, p in e.states["classifier"].params.items()} for e in (weak, strong)]
    assert not equal(*gone)
    for k, p in before.items():  # where the penalty is all, the utility is theta squared
        if k.endswith("weight"):
            assert torch.equal(gone[1][k][0], least(p[0].square(), 0.1)), k


@pytest.mark.parametrize("utility", ["gradient", "magnitude"])
def test_the_utility_is_weight_times_gradient_or_the_weight_alone(utility):
    s, new, chosen, drawn = applied(utility=utility)
    for k, mask in chosen.items():
        assert 0 < mask.sum() < mask.numel() or mask.numel() == 1
        assert torch.equal(new.params[k], torch.where(mask, drawn[k], s.params[k])), k


def test_a_large_weight_without_a_gradient_goes_and_a_small_one_with_a_large_gradient_stays():
    ones = {k: torch.ones_like(p) for k, p in applied()[0].params.items()}
    ones["value.bias"], grads = torch.tensor([1.0]), ones
    grads["advantage.bias"] = torch.tensor([-2.0, 1e-3, 2.0])
    s, new, _, _ = applied(grads=grads)
    assert (new.params["advantage.bias"] == s.params["advantage.bias"]).tolist() == [True, False, True]


def test_by_magnitude_no_gradient_is_taken():
    part = dqn([SelectiveWeightReinit(utility="magnitude")], VECTOR).q
    s = part.birth(0)
    ctx = Context(part, {"q": s}, Clock(steps=10, updates=3), 0, SWR, "cpu", None)  # it has nothing to sample from
    assert part.interventions[0].event(part, s, ctx) is not s


# what they become


@pytest.mark.parametrize("toward", ["fresh", "birth", "zero"])
def test_they_become_a_new_draw_those_at_birth_or_zero(toward):
    s, new, chosen, drawn = applied(LayerNorm(), toward=toward)
    goal = {"fresh": drawn, "birth": s.birth, "zero": {k: torch.zeros_like(p) for k, p in s.params.items()}}[toward]
    for k, mask in chosen.items():
        assert torch.equal(new.params[k], torch.where(mask, goal[k], s.params[k]))
    assert equal((new.birth, new.copies, new.memory), (s.birth, s.copies, s.memory))


@pytest.mark.parametrize("where", [("output",), ("trunk",), ("trunk.layers.1.bias",)])
def test_only_tensors_in_where_are_touched(where):
    s, new, chosen, _ = applied(where=where)
    assert {k for k, p in s.params.items() if not torch.equal(p, new.params[k])} == set(chosen) < set(s.params)
    for slot in ("m", "v"):
        assert {k for k, x in s.optim[slot].items() if not torch.equal(x, new.optim[slot][k])} == set(chosen)


def test_without_a_change_the_state_is_the_very_same():
    part = dqn([SelectiveWeightReinit(utility="magnitude", toward="birth")], VECTOR).q
    s = part.birth(0)
    ctx = Context(part, {"q": s}, Clock(steps=10, updates=3), 0, SWR, "cpu", None)
    assert part.interventions[0].event(part, s, ctx) is s
    s.params["value.bias"].fill_(1.0)  # one entry of all
    new = part.interventions[0].event(part, s, ctx)
    assert new is not s and new.params["value.bias"] == s.birth["value.bias"]


@pytest.mark.parametrize("optimizer", ["keep", "touched"])
@pytest.mark.parametrize("elementwise", [False, True])
def test_moments_of_chosen_entries_start_at_zero_and_the_tensors_step_count_stays(optimizer, elementwise):
    s, new, chosen, _ = applied(optimizer=optimizer, elementwise=elementwise)
    for slot, old in s.optim.items():
        for k, x in old.items():
            zeroed = optimizer == "touched" and (slot != "t" or elementwise)
            assert torch.equal(new.optim[slot][k], torch.where(chosen[k], 0.0, x) if zeroed else x)


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        ({}, []),
        ({"target": "copy"}, ["target"]),
        ({"slow": "copy"}, ["tortoise"]),
        ({"target": "copy", "slow": "copy"}, ["target", "tortoise"]),
    ],
)
def test_slow_copies_get_the_new_entries_where_they_are_asked_to(options, copied):
    s, new, chosen, _ = applied(HareAndTortoise(), where=("trunk",), **options)
    assert set(s.copies) == {"target", "tortoise"}
    for role, old in s.copies.items():
        for k, x in old.items():
            mask = chosen[k] if role in copied and k in chosen else torch.tensor(False)
            assert torch.equal(new.copies[role][k], torch.where(mask, new.params[k], x))


# in training


@every_learner
def test_a_share_of_every_tensor_is_redrawn_by_the_gradient_of_the_batch(make, part, spec, net):
    intervention = SelectiveWeightReinit(rate=0.1, when=EVERY)
    e = aged(make([intervention], net=net), (0, 1))
    old, clock = clone(e.states), Clock(steps=10**9, updates=3)
    for i in range(2):
        ctx = e.context(intervention, e.learner.parts[part], i, member(old, i), clock, sampler(e))
        grads, drawn = ctx.step().grads, ctx.fresh()
        before = member(old, i)[part].params
        if i == 0:
            fire(e)
        after = member(e.states, i)[part].params
        for k, g in grads.items():
            redrawn = least(before[k] * g, 0.1)
            assert torch.equal(after[k], torch.where(redrawn, drawn[k], before[k]))
    weights = [k for k in e.states[part].params if k.endswith("weight")]
    changed = {k: e.states[part].params[k][0] != old[part].params[k][0] for k in weights}
    assert all(int(mask.sum()) <= max(1, round(0.1 * mask.numel())) for mask in changed.values())
    assert all(mask.any() for mask in changed.values())
    assert equal(e.states[part].copies, old[part].copies)


def test_events_come_when_they_are_due():
    e, plain = (engine(dqn(i, VECTOR)) for i in ([SelectiveWeightReinit(when=When(every=3))], []))
    clock, other = run(e, 2), run(plain, 2)
    assert equal(e.states["q"].params, plain.states["q"].params)
    run(e, 1, clock)
    run(plain, 1, other)
    assert not equal(e.states["q"].params, plain.states["q"].params)


def test_moments_of_a_lone_number_start_at_zero():
    e = aged(sac([SelectiveWeightReinit(on=("alpha",), utility="magnitude", toward="zero", when=EVERY)]))
    fire(e)
    s = member(e.states, 0)["alpha"]
    assert float(s.params["log"]) == 0.0
    assert float(s.optim["m"]["log"]) == float(s.optim["v"]["log"]) == 0.0 and float(s.optim["t"]["log"]) == 3


# settings


def test_defaults_are_as_described():
    d = SelectiveWeightReinit()
    assert (d.rate, d.utility, d.toward) == (1e-3, "gradient", "fresh")
    assert (d.optimizer, d.target, d.slow) == ("touched", "keep", "keep")


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.0}, {"rate": 1.5}, {"utility": "size"}, {"toward": "mean"}, {"optimizer": "all"}]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(SelectiveWeightReinit, wrong)
