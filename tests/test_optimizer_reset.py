"""Optimizer reset: which slots start anew, what the next step looks like, and why stale moments overshoot."""

from __future__ import annotations

import math

import pytest
import torch
from learners import FRAMES, VECTOR, batch_for, dqn, engine, equal, run, sac

from core.clock import Clock
from core.optim import Adam
from core.options import build
from core.state import clone, member
from core.when import When
from interventions.optimizer_reset import OptimizerReset
from interventions.redo import ReDo

EVERY = When(every=1)
RENEWED = {"all": {"m", "v", "t"}, "count": {"t"}, "moments": {"m", "v"}}


def fire(e, update: int = 3) -> list[dict]:
    def no_sample(stream, count, size):
        raise AssertionError("an optimizer reset looks at no data")

    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), no_sample)


def aged(learner, seeds=(0,), updates: int = 3):
    """An engine some updates old; its events have not fired yet."""
    e = engine(learner, seeds)
    for count in range(updates):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def last_step(e, count: int = 3):
    """-> how far an update moves every weight, and its slots before and after it."""
    before = clone(member(e.states, 0)["q"])
    e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    after = member(e.states, 0)["q"]
    return {k: after.params[k] - before.params[k] for k in after.params}, before.optim, after.optim


# the event


@pytest.mark.parametrize("slots", RENEWED)
@pytest.mark.parametrize("where", [("all",), ("head",), ("encoder.convs.1.*",)])
def test_the_chosen_slots_of_the_chosen_tensors_start_anew_and_nothing_else_changes(slots, where):
    e = aged(dqn([OptimizerReset(slots=slots, where=where, when=EVERY)], FRAMES), seeds=(0, 1))
    before, chosen = clone(e.states["q"]), e.learner.q.names(where)
    rows = fire(e)
    after = e.states["q"]
    assert [row["seed"] for row in rows] == [0, 1] and all(row["touched"] for row in rows)
    for field in ("params", "birth", "copies", "buffers", "memory"):
        assert equal(getattr(before, field), getattr(after, field))
    for slot in ("m", "v", "t"):
        for k, value in after.optim[slot].items():
            assert torch.count_nonzero(before.optim[slot][k])
            renewed = slot in RENEWED[slots] and k in chosen
            assert torch.equal(value, torch.zeros_like(value) if renewed else before.optim[slot][k])


def test_step_counts_of_single_entries_start_anew_in_their_shape():
    redo = ReDo(steps="renew", when=When(every=100))
    e = aged(dqn([redo, OptimizerReset(slots="count", when=EVERY)], VECTOR))
    t = e.states["q"].optim["t"]["trunk.layers.0.weight"]
    assert t.shape == (1, 16, 5) and (t == 3).all()
    fire(e)
    assert not any(torch.count_nonzero(x) for x in e.states["q"].optim["t"].values())


@pytest.mark.parametrize("slots", RENEWED)
def test_where_nothing_would_change_nothing_is_selected(slots):
    reset = OptimizerReset(slots=slots, where=("output",))
    e = aged(dqn([reset], VECTOR))
    part, s = e.learner.q, member(e.states, 0)["q"]
    newborn = part.birth(0)
    assert reset.event(part, newborn, None) is newborn
    once = reset.event(part, s, None)
    assert once is not s and reset.event(part, once, None) is once
    slot = "t" if slots == "count" else "v"
    values = clone(once.optim[slot])
    values["value.bias"] += 1.0  # a single number that is not zero
    again = once._replace(optim=once.optim | {slot: values})
    assert not torch.count_nonzero(reset.event(part, again, None).optim[slot]["value.bias"])


def test_of_sac_the_named_part_starts_anew():
    e = aged(sac([OptimizerReset(on=("actor",), when=EVERY)]))
    before = clone(e.states)
    assert [row["part"] for row in fire(e)] == ["actor"]
    assert equal(before["critic"], e.states["critic"]) and equal(before["alpha"], e.states["alpha"])
    assert not any(torch.count_nonzero(x) for slot in e.states["actor"].optim.values() for x in slot.values())


# the next step


def test_the_first_step_after_a_full_reset_has_the_size_of_the_learning_rate():
    e = aged(dqn([OptimizerReset(when=EVERY)], VECTOR, learning_rate=1e-3, adam_eps=1e-12))
    fire(e)
    moved, _, after = last_step(e)
    for k, step in moved.items():
        alive = after["m"][k].abs() > 1e-6
        assert alive.any() and (step[alive].abs() - 1e-3).abs().max() < 1e-6
        assert float(after["t"][k]) == 1


def test_with_old_step_counts_the_first_step_is_three_times_the_learning_rate():
    e = aged(dqn([OptimizerReset(slots="moments", when=EVERY)], VECTOR, learning_rate=1e-3, adam_eps=1e-12))
    for t in e.states["q"].optim["t"].values():
        t.fill_(1e6)
    fire(e)
    moved, _, after = last_step(e)
    for k, step in moved.items():
        alive = after["m"][k].abs() > 1e-6
        assert (step[alive].abs() - 1e-3 * 0.1 / math.sqrt(0.001)).abs().max() < 1e-5


def test_with_a_new_step_count_old_moments_are_corrected_as_if_they_were_of_the_first_step():
    e = aged(dqn([OptimizerReset(slots="count", when=EVERY)], VECTOR, learning_rate=1e-3, adam_eps=1e-8))
    fire(e)
    moved, before, after = last_step(e)
    for k, step in moved.items():
        gradient = (after["m"][k] - 0.9 * before["m"][k]) / 0.1
        m = (0.9 * before["m"][k] + 0.1 * gradient) / 0.1
        v = (0.999 * before["v"][k] + 0.001 * gradient**2) / 0.001
        alive = before["m"][k].abs() > 1e-6
        assert torch.allclose(step[alive], (-1e-3 * m / (v.sqrt() + 1e-8))[alive], atol=1e-6)


# betas and epsilon


@pytest.mark.parametrize("setting", ["b1", "b2", "eps"])
def test_betas_and_epsilon_are_the_agents_unless_set(setting):
    agents = Adam(lr=0.5, b1=0.8, b2=0.95, eps=1e-4, decay=0.25, elementwise=True)
    assert OptimizerReset().tune(None, agents) == agents
    tuned = OptimizerReset(**{setting: 0.7}).tune(None, agents)
    assert {k: getattr(tuned, k) for k in ("b1", "b2", "eps")} == {"b1": 0.8, "b2": 0.95, "eps": 1e-4, setting: 0.7}
    assert (tuned.lr, tuned.decay, tuned.elementwise) == (0.5, 0.25, True)


def test_they_hold_for_the_whole_of_the_named_part_from_birth():
    learner = sac([OptimizerReset(b1=0.7, b2=0.8, eps=1e-3, on=("critic",), where=("output",))])
    assert (learner.critic.optim.b1, learner.critic.optim.b2, learner.critic.optim.eps) == (0.7, 0.8, 1e-3)
    assert (learner.actor.optim.b1, learner.actor.optim.b2, learner.actor.optim.eps) == (0.9, 0.999, 1e-8)
    e = engine(learner)
    run(e, 1)
    m, v = (e.states["critic"].optim[slot]["q.0.trunk.layers.0.weight"] for slot in ("m", "v"))
    assert torch.allclose(v * 0.3**2 / 0.2, m**2, rtol=1e-4, atol=1e-12)  # m = 0.3 g and v = 0.2 g^2


@pytest.mark.parametrize(
    "values", [{"slots": "m"}, {"b1": -0.1}, {"b2": 1.1}, {"eps": -1.0}], ids=lambda v: next(iter(v))
)
def test_settings_out_of_range_are_refused_by_name(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        build(OptimizerReset, values)


@pytest.mark.parametrize("setting", ["b1", "b2"])
def test_a_beta_of_one_never_learns_and_is_refused(setting):
    with pytest.raises(ValueError, match=setting):
        build(OptimizerReset, {setting: 1.0})


def largest_step(optim: Adam, gradients: list[float], old: float = 0.0) -> float:
    """In learning rates, over steps along these gradients; `old`: the gradient of a long life before them."""
    w = {"w": torch.zeros(1, dtype=torch.float64)}
    slots = optim.start(w)
    if old:
        slots = {"m": {"w": w["w"] + old}, "v": {"w": w["w"] + old**2}, "t": {"w": torch.tensor(1e6).double()}}
    steps = []
    for g in gradients:
        new, slots = optim.step(w, {"w": w["w"] * 0 + g}, slots)
        steps.append(float((new["w"] - w["w"]).abs()) / optim.lr)
        w = new
    return max(steps)


def test_a_thousandfold_gradient_overshoots_by_6_6_unless_betas_are_equal_or_adam_starts_anew():
    agents, jump = Adam(lr=0.1, eps=0.0), [1.0] * 60
    assert largest_step(agents, jump, old=1e-3) == pytest.approx(6.6, abs=0.05)
    equal_betas = OptimizerReset(b1=0.99, b2=0.99).tune(None, agents)
    assert largest_step(equal_betas, jump, old=1e-3) <= 1 + 1e-9
    assert largest_step(agents, jump) == pytest.approx(1.0)  # slots at zero, as after an event


@pytest.mark.parametrize("beta", [0.9, 0.99])
def test_equal_betas_bound_every_step_by_the_learning_rate_while_gradients_grow(beta):
    agents, growing = Adam(lr=0.1, eps=0.0), [1.3**i for i in range(60)]
    assert largest_step(OptimizerReset(b1=beta, b2=beta).tune(None, agents), growing, old=1.0) <= 1 + 1e-9
    assert largest_step(agents, growing, old=1.0) > 1.5
