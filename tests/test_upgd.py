"""UPGD: against a short loop of one's own, over several updates; what gates a step, and what lies outside `where`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.options import build
from core.part import Step
from core.randomness import draw
from core.state import State, clone, member
from interventions.optimizer_reset import OptimizerReset
from interventions.upgd import UPGD
from interventions.weight_decay import WeightDecay

LEARNERS = [(dqn, "q", FRAMES), (sac, "critic", CONTROL), (classifier, "classifier", VECTOR)]
BETAS, EPS = (0.9, 0.999), 1e-5


def noise_of(e, update: int):
    """The numbers an engine of one seed draws in an update."""
    return member(draw(e.noise, e._keys, torch.tensor(update + 1)), 0)


class Loop:
    """UPGD as one would write it: a list of tensors, a gradient for each."""

    def __init__(self, params, names, lr, variant="adam", beta=0.999, sigma=1e-3, decay=1e-3):
        self.w, self.names, self.lr, self.variant = clone(params), names, lr, variant
        self.beta, self.sigma, self.decay, self.t = beta, sigma, decay, 0
        self.u, self.m, self.v = ({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(3))

    def step(self, grads, xi):
        self.t += 1
        for k, g in grads.items():
            self.u[k] = self.beta * self.u[k] - (1 - self.beta) * g * self.w[k]
            self.m[k] = BETAS[0] * self.m[k] + (1 - BETAS[0]) * g
            self.v[k] = BETAS[1] * self.v[k] + (1 - BETAS[1]) * g**2
        top = max(max(float(self.u[k].max()) for k in self.names), 1e-8)
        for k, g in grads.items():
            adam = self.m[k] / (1 - BETAS[0] ** self.t) / ((self.v[k] / (1 - BETAS[1] ** self.t)).sqrt() + EPS)
            if k not in self.names:
                self.w[k] = self.w[k] - self.lr * adam
                continue
            useless = 1 - 1 / (1 + torch.exp(-self.u[k] / (1 - self.beta**self.t) / top))
            rate, way = (2 * self.lr, adam) if self.variant == "adam" else (self.lr, g)
            self.w[k] = self.w[k] * (1 - self.lr * self.decay) - rate * useless * (way + self.sigma * xi[k])


@pytest.mark.parametrize("variant", ["adam", "sgd"])
@pytest.mark.parametrize("where", ["all", "output"])
@pytest.mark.parametrize(("make", "part", "spec"), LEARNERS)
def test_several_updates_equal_a_loop_of_ones_own(make, part, spec, where, variant):
    settings = {"beta": 0.9, "noise": 0.5, "decay": 0.3}  # large enough to show
    learner = make([UPGD(variant=variant, where=(where,), on=(part,), **settings)], learning_rate=1e-2)
    learner.parts[part].optim = replace(learner.parts[part].optim, eps=EPS)
    e, net = engine(learner), learner.parts[part]
    names = net.names((where,))
    loop = Loop(member(e.states, 0)[part].params, names, 1e-2, variant, 0.9, 0.5, 0.3)
    start = clone(loop.w)
    for count in range(4):
        noise, batch = noise_of(e, count), batch_for(spec, (0,), count)
        grads, _ = net.gradient(member(e.states, 0), member(batch, 0), noise)
        e.update(batch, Clock(steps=10, updates=count))
        loop.step(grads, {k: noise[f"{part}/upgd/{k}"] for k in names})
        now = member(e.states, 0)[part]
        for k in loop.w:
            assert (now.params[k] - loop.w[k]).abs().max() < 2e-5, k
    memory = now.memory["upgd"]
    assert set(memory) == {"count", *(f"utility/{k}" for k in names)} and float(memory["count"]) == 4
    assert all(torch.allclose(memory[f"utility/{k}"], loop.u[k], atol=1e-6) for k in names)
    assert any((now.params[k] - start[k]).abs().max() > 1e-2 for k in names)


# hand-made numbers


def one_step(upgd: UPGD, w, g, xi=None, memory=None, lr=0.1):
    """The new weights and memory of a part with one tensor."""

    class OneTensor:
        name, optim = "p", type("Optim", (), {"lr": lr, "direction": staticmethod(lambda k, slots: slots["way"][k])})

        def names(self, where=("all",)):
            return ["w"]

    upgd.name = "upgd"
    w, g = torch.tensor(w), torch.tensor(g)
    memory = memory or {"count": torch.tensor(0.0), "utility/w": torch.zeros_like(w)}
    s = State({"w": w}, {}, {}, {"way": {"w": g.sign()}}, {}, {"upgd": memory, "other": {}})
    noise = {} if xi is None else {"p/upgd/w": torch.tensor(xi)}
    new = upgd.after_step(OneTensor(), s, Step({}, noise, None, {"w": g}))
    assert new.memory.keys() == {"upgd", "other"} and new.optim is s.optim
    return new.params["w"], new.memory["upgd"]


def test_without_utility_and_noise_the_step_is_half_of_sgds_and_all_of_adams():
    w, g = [0.0, 0.0], [2.0, -4.0]  # weights of zero have no utility
    assert torch.allclose(one_step(UPGD(variant="sgd", noise=0.0), w, g)[0], torch.tensor([-0.1, 0.2]))
    assert torch.allclose(one_step(UPGD(variant="adam", noise=0.0), w, g)[0], torch.tensor([-0.1, 0.1]))


def test_the_gate_closes_with_utility_relative_to_the_greatest():
    w, g = [1.0, -0.5, 1.0, 1.0], [-2.0, 2.0, 2.0, 0.0]
    new, memory = one_step(UPGD(variant="sgd", beta=0.5, noise=0.0, decay=0.0), w, g, lr=1.0)
    assert torch.allclose(memory["utility/w"], torch.tensor([1.0, 0.5, -1.0, 0.0]))  # half of - g w

    def useless(u):  # corrected for the start: twice the average, over the greatest one, which is not corrected
        return 1 - 1 / (1 + math.exp(-2 * u))

    expected = [1 + 2 * useless(1.0), -0.5 - 2 * useless(0.5), 1 - 2 * useless(-1.0), 1.0]
    assert torch.allclose(new, torch.tensor(expected))


def test_the_most_useful_weight_takes_the_smallest_step():
    new, memory = one_step(UPGD(variant="sgd", beta=0.5, noise=0.0, decay=0.0), [3.0, 1.0, 0.0, -1.0], [-1.0] * 4)
    steps = (new - torch.tensor([3.0, 1.0, 0.0, -1.0])).abs()
    assert int(steps.argmin()) == int(memory["utility/w"].argmax()) == 0
    assert (steps.diff() > 0).all()  # the less useful, the further


def test_where_all_utility_is_negative_harmful_weights_move_more_and_none_less_than_half():
    """The greatest utility is kept positive: else the gate would turn around."""
    new, _ = one_step(UPGD(variant="sgd", noise=0.0, decay=0.0), [1.0, 2.0], [1.0, 1.0], lr=0.1)
    assert torch.allclose(new, torch.tensor([0.9, 1.9]))  # gates fully open
    tiny = {"count": torch.tensor(0.0), "utility/w": torch.tensor([-4e-9, 0.0])}
    new, _ = one_step(UPGD(variant="sgd", beta=0.5, noise=0.0, decay=0.0), [0.0, 0.0], [1.0, 1.0], memory=tiny)
    gate = 1 / (1 + math.exp(-0.4))  # -2e-9 of average, corrected, over 1e-8
    assert torch.allclose(new, torch.tensor([-0.1 * gate, -0.05]))


@pytest.mark.parametrize(("variant", "rate"), [("adam", 0.2), ("sgd", 0.1)])
def test_noise_goes_through_the_same_gate_and_decay_does_not(variant, rate):
    settings = {"variant": variant, "decay": 0.5, "beta": 0.0}
    w, g = [2.0, -1.0], [-1.0, 0.0]
    quiet, memory = one_step(UPGD(noise=0.0, **settings), w, g)
    noisy, _ = one_step(UPGD(noise=0.25, **settings), w, g, xi=[4.0, 4.0])
    gates = torch.tensor([1 - 1 / (1 + math.exp(-1)), 0.5])
    assert torch.allclose(noisy - quiet, -rate * gates * 0.25 * 4.0)
    assert torch.allclose(quiet, torch.tensor([2.0, -1.0]) * 0.95 - rate * gates * torch.tensor([-1.0, 0.0]))
    assert torch.equal(memory["utility/w"], torch.tensor([2.0, 0.0])) and float(memory["count"]) == 1


def test_the_correction_for_the_start_counts_updates():
    old = {"count": torch.tensor(2.0), "utility/w": torch.tensor([0.8, 0.4])}
    new, memory = one_step(UPGD(variant="sgd", beta=0.5, noise=0.0, decay=0.0), [0.0, 0.0], [1.0, 1.0], memory=old)
    corrected = torch.tensor([0.4, 0.2]) / (1 - 0.5**3)
    assert torch.allclose(new, -0.1 * (1 - torch.sigmoid(corrected / 0.4))) and float(memory["count"]) == 3


# in the optimizer's place


def test_adams_moments_go_on_and_its_step_is_not_taken():
    plain, upgd = engine(dqn(spec=VECTOR)), engine(dqn([UPGD(noise=0.0, variant="sgd", decay=0.0)], VECTOR))
    batch = batch_for(VECTOR, (0,))
    for e in (plain, upgd):
        e.update(batch, Clock(steps=10))
    assert equal(plain.states["q"].optim, upgd.states["q"].optim)
    assert not equal(plain.states["q"].params, upgd.states["q"].params)
    assert equal(upgd.states["q"].params, upgd.states["q"].copies["target"])
    assert equal(upgd.states["q"].birth, engine(dqn(spec=VECTOR)).states["q"].params)


@pytest.mark.parametrize("others", [[], [OptimizerReset(b1=0.5)]], ids=["adam", "other betas"])
def test_outside_where_weights_take_adams_own_step(others):
    plain = engine(dqn(others, VECTOR, learning_rate=1e-2))
    upgd = engine(dqn([*others, UPGD(where=("output",))], VECTOR, learning_rate=1e-2))
    for e in (plain, upgd):
        e.update(batch_for(VECTOR, (0,)), Clock(steps=10))
    a, b = (member(e.states, 0)["q"].params for e in (plain, upgd))
    for k in a:
        same = torch.allclose(a[k], b[k], atol=1e-6)
        assert same != k.startswith(("advantage", "value")), k


@pytest.mark.parametrize("order", [1, -1])
def test_another_decay_of_the_same_weights_is_refused(order):
    with pytest.raises(ValueError, match="upgd.decay=0.001: part q already decays its weights by 0.5"):
        dqn([UPGD()], VECTOR, weight_decay=0.5)
    with pytest.raises(ValueError, match="decay"):
        dqn([UPGD(), WeightDecay(weight=0.5)][::order], VECTOR)


def test_draws_are_one_normal_number_per_selected_weight_and_none_without_noise():
    part = dqn([UPGD(where=("output",))], VECTOR).q
    (upgd,) = part.interventions
    shapes = {k: tuple(p.shape) for k, p in part.net.named_parameters()}
    assert {k: n.shape for k, n in upgd.draws(part).items()} == {k: shapes[k] for k in part.names(("output",))}
    assert all(n.kind == "normal" for n in upgd.draws(part).values())
    assert UPGD(noise=0.0).draws(part) == {} and not dqn([UPGD(noise=0.0)], VECTOR).q.noise(8)


def test_seeds_perturb_apart_and_each_as_it_would_alone():
    def perturbed(seeds):
        e = engine(dqn([UPGD(noise=10.0)], VECTOR), seeds)
        run(e, 2)
        return e.states["q"].params["trunk.layers.1.weight"]

    both = perturbed((4, 5))
    assert not torch.equal(both[0], both[1])
    assert torch.allclose(both[1], perturbed((5,))[0], atol=1e-6) and torch.equal(perturbed((5,)), perturbed((5,)))


def test_a_member_whose_gradient_is_not_finite_keeps_its_utility():
    e = engine(dqn([UPGD()], VECTOR), (0, 1))
    run(e, 1)
    before, batch = clone(e.states), batch_for(VECTOR, (0, 1), 1)
    batch["reward"][0] = math.nan
    e.update(batch, Clock(steps=10, updates=1))
    assert equal(member(e.states, 0), member(before, 0)) and not equal(member(e.states, 1), member(before, 1))


def test_defaults_refusals_and_exclusion():
    assert (UPGD().variant, UPGD().beta, UPGD().noise, UPGD().decay) == ("adam", 0.999, 1e-3, 1e-3)
    for values in ({"variant": "rmsprop"}, {"beta": 1.0}, {"noise": -1.0}, {"decay": -1.0}):
        with pytest.raises(ValueError, match=next(iter(values))):
            build(UPGD, values)
    first, second = UPGD(), UPGD()
    second.name = "second"
    with pytest.raises(ValueError, match="upgd and second on q: each takes the optimizer's place"):
        engine(dqn([first, second], VECTOR))
