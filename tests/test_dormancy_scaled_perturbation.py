"""Dormancy-scaled perturbation: how many units are dormant, how much of the weights stays, and what goes with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.events import Context
from core.options import build
from core.part import Outcome, Step
from core.state import clone, member
from core.when import When
from interventions.crelu import CReLU
from interventions.dormancy_scaled_perturbation import DormancyScaledPerturbation
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from nets import Nature, Vectors

DRM = "dormancy_scaled_perturbation"
EVERY = When(every=1)
IMAGES = Nature(width=40, units=0.125)
LEARNERS = [
    (dqn, "q", FRAMES, IMAGES),
    (sac, "critic", CONTROL, Vectors(width=6)),
    (classifier, "classifier", VECTOR, Vectors(width=6)),
]
every_learner = pytest.mark.parametrize(("make", "part", "spec", "net"), LEARNERS, ids=["dqn", "sac", "classifier"])


def filled(s):
    """A state whose numbers are all different and none is 0."""
    g = torch.Generator().manual_seed(1)

    def noise(tensors):
        return {k: 1 + torch.rand(x.shape, generator=g) for k, x in tensors.items()}

    slots = {slot: noise(old) for slot, old in s.optim.items()}
    return s._replace(params=noise(s.params), optim=slots, copies={role: noise(old) for role, old in s.copies.items()})


def applied(part, feats):
    """The state before, after an event with these features, and the context whose draws it saw."""
    s = filled(part.birth(0))
    ctx = Context(part, {part.name: s}, Clock(steps=10, updates=3), 0, DRM, "cpu", None)
    ctx.step = lambda number=0: Step({}, {}, Outcome(torch.zeros(()), feats, {}), {})
    intervention = next(i for i in part.interventions if isinstance(i, DormancyScaledPerturbation))
    return s, intervention.event(part, s, ctx), ctx


def features(dormant: int, units: int = 4) -> dict[str, torch.Tensor]:
    """Two hidden layers of which so many units together hold nothing before the activation; behind it all are equal."""
    levels = torch.ones(2 * units)
    levels[:dormant] = 0.0
    pre = {f"trunk.h{i}.pre": torch.stack([levels, -levels])[:, units * i : units * (i + 1)] for i in range(2)}
    return pre | {f"trunk.h{i}": torch.ones(2, units) for i in range(2)}


def kept(s, new, ctx) -> float:
    """The factor of the trained weights that explains every tensor that moved."""
    drawn = ctx.fresh()
    moved = [k for k, p in s.params.items() if not torch.equal(p, new.params[k])]
    factors = torch.cat([((new.params[k] - drawn[k]) / (s.params[k] - drawn[k])).flatten() for k in moved])
    assert factors.max() - factors.min() < 1e-5
    return float(factors.mean())


# how many are dormant


@pytest.mark.parametrize(
    ("dormant", "options", "keep"),
    [
        (0, {}, 0.9),  # 1 is too much
        (1, {}, 0.75),
        (2, {}, 0.5),
        (3, {}, 0.25),
        (4, {}, 0.2),  # 0 is too little
        (7, {}, 0.2),
        (3, {"scale": 1.0}, 0.625),
        (3, {"low": 0.4}, 0.4),
        (1, {"high": 0.6}, 0.6),
        (1, {"scale": 0.0, "high": 1.0, "low": 0.5}, 1.0),
        (6, {"low": 0.0, "high": 0.0}, 0.0),
        (4, {"low": 0.0}, 0.0),
    ],
)
def test_what_is_kept_falls_with_the_share_of_dormant_units_between_its_limits(dormant, options, keep):
    part = classifier([DormancyScaledPerturbation(**options)], net=Vectors(width=4)).classifier
    s, new, ctx = applied(part, features(dormant))
    if keep == 1:
        assert equal(new.params, s.params)
    else:
        assert kept(s, new, ctx) == pytest.approx(keep, abs=1e-5)
    drawn = ctx.fresh()
    for k, p in s.params.items():
        assert torch.allclose(new.params[k], keep * p + (1 - keep) * drawn[k], atol=1e-6)
    assert equal((new.birth, new.buffers), (s.birth, s.buffers))


@pytest.mark.parametrize(
    ("threshold", "share"), [(0.0, 1 / 8), (0.24, 1 / 8), (0.25, 2 / 8), (0.5, 3 / 8), (1.0, 7 / 8)]
)
def test_units_at_or_below_the_threshold_are_dormant_in_their_own_layer(threshold, share):
    intervention = DormancyScaledPerturbation(threshold=threshold)
    part = classifier([intervention], net=Vectors(width=4)).classifier
    first = torch.tensor([[2.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 12.0]])  # scores 1/2, 1/4, 0, 13/4
    feats = {"trunk.h0.pre": first, "trunk.h1.pre": 100 * torch.ones(2, 4)}  # scores 1
    _, _, ctx = applied(part, features(0) | feats)
    ctx.step = lambda number=0: Step({}, {}, Outcome(torch.zeros(()), feats, {}), {})
    assert intervention.dormant_share(part, ctx) == pytest.approx(share)


@pytest.mark.parametrize(("where", "share"), [("pre", 3 / 8), ("post", 1 / 8)])
def test_scores_are_of_what_units_hold_before_or_after_the_activation(where, share):
    part = classifier([DormancyScaledPerturbation(features=where, scale=1.0)], net=Vectors(width=4)).classifier
    feats = features(3)
    feats["trunk.h1"] = torch.tensor([[1.0, 1.0, 0.0, 1.0]] * 2)
    assert kept(*applied(part, feats)) == pytest.approx(1 - share, abs=1e-5)


@pytest.mark.parametrize(("where", "share"), [("pre", 0.5), ("post", 0.25)])
def test_with_crelu_there_is_one_score_for_each_unit(where, share):
    intervention = DormancyScaledPerturbation(features=where, scale=1.0)
    part = classifier([CReLU(match="input"), intervention], net=Vectors(width=2)).classifier
    feats = {"trunk.h0.pre": torch.tensor([[0.0, -2.0]]), "trunk.h1.pre": torch.tensor([[-1.0, 0.0]])}
    feats |= {"trunk.h0": torch.tensor([[0.0, 1.0, 1.0, 0.0]]), "trunk.h1": torch.tensor([[3.0, 0.0, 1.0, 0.0]])}
    assert kept(*applied(part, feats)) == pytest.approx(1 - share, abs=1e-5)


def test_convolutions_count_for_nothing():
    part = dqn([DormancyScaledPerturbation(scale=0.5)], net=IMAGES).q
    feats = {f"encoder.h{i}.pre": torch.zeros(2, 4, 3, 3) for i in range(3)}
    feats["trunk.h0.pre"] = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])
    assert kept(*applied(part, feats)) == pytest.approx(0.9, abs=1e-5)


def test_without_hidden_layers_nobody_is_dormant():
    part = classifier([DormancyScaledPerturbation()], net=Vectors(depth=0)).classifier
    assert kept(*applied(part, {})) == pytest.approx(0.9, abs=1e-5)


@every_learner
@pytest.mark.parametrize("features", ["pre", "post"])
def test_in_training_the_share_is_that_of_numpy_on_one_batch(make, part, spec, net, features):
    intervention = DormancyScaledPerturbation(
        threshold=0.9, low=0.0, high=1.0, scale=0.7, features=features, when=EVERY
    )
    e = engine(make([intervention], net=net), (0, 1))
    run_without_events(e, 3)
    old, clock, net_ = clone(e.states), Clock(steps=10**9, updates=3, last={"updates": 2}), e.learner.parts[part]

    def sample(stream, count, size):
        return batch_for(spec, e.seeds, 500)

    contexts = [e.context(intervention, net_, i, member(old, i), clock, sample) for i in range(2)]
    e.intervene(clock, ("updates",), sample)
    for i, ctx in enumerate(contexts):
        dormant, feats = [], ctx.step().outcome.feats
        for layer in (la for la in net_.layers if la.kind == "linear" and not la.output):
            h = np.abs(feats[layer.feats + (".pre" if features == "pre" else "")].numpy()).mean(0)
            dormant += list(h / h.mean() <= 0.9)
        keep, drawn = 1 - 0.7 * np.mean(dormant), ctx.fresh()
        assert 0 < np.mean(dormant) < 1
        before, after = member(old, i)[part].params, member(e.states, i)[part].params
        for k, p in before.items():
            expected = p if "convs" in k else keep * p + (1 - keep) * drawn[k]
            assert torch.allclose(after[k], expected, atol=1e-6)
    weights = [k for k in before if k.endswith("weight") and "convs" not in k]
    assert not any(torch.equal(contexts[0].fresh()[k], contexts[1].fresh()[k]) for k in weights)


def run_without_events(e, updates: int) -> None:
    for count in range(updates):
        e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))


def test_each_part_goes_by_its_own_dormant_units():
    e = engine(sac([DormancyScaledPerturbation(when=EVERY)], net=Vectors(width=4)))
    e.states["actor"].params["trunk.layers.0.weight"].zero_()
    e.states["actor"].params["trunk.layers.1.weight"].zero_()  # all eight hold their bias alone, which is 0
    old = clone(member(e.states, 0))
    clock = Clock(steps=10**9, updates=3, last={"updates": 2})
    e.intervene(clock, ("updates",), lambda stream, count, size: batch_for(CONTROL, e.seeds, 500))
    for name, keep in (("actor", 0.2), ("critic", 0.9)):
        part, new = e.learner.parts[name], member(e.states, 0)[name]
        ctx = Context(part, old, clock, 0, DRM, "cpu", None)
        assert kept(old[name], new, ctx) == pytest.approx(keep, abs=1e-4)


# which weights


def differing(a, b) -> set[str]:
    return {k for k in a if not torch.equal(a[k], b[k])}


def dense(*layers: str) -> set[str]:
    return {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (("all",), dense("trunk.layers.0", "advantage", "value")),
        (("output",), dense("advantage", "value")),
        (("head",), dense("trunk.layers.0", "advantage", "value")),
        (("encoder", "value.weight"), {"value.weight"}),
    ],
)
def test_weights_and_biases_of_dense_layers_in_where_move_and_nothing_else(where, names):
    part = dqn([LayerNorm(), DormancyScaledPerturbation(where=where, optimizer="touched")], net=IMAGES).q
    s, new, _ = applied(part, {"trunk.h0.pre": torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])})
    assert differing(s.params, new.params) == names
    for slot, old in s.optim.items():
        assert differing(old, new.optim[slot]) == names
    assert differing(s.copies["target"], new.copies["target"]) == names


@pytest.mark.parametrize("where", [("encoder",), ("trunk.norms.*",), ("encoder.convs.0.weight", "encoder.norms.*")])
def test_a_selection_without_a_dense_layer_is_refused_at_birth(where):
    part = dqn([LayerNorm(), DormancyScaledPerturbation(where=where)], net=IMAGES).q
    with pytest.raises(ValueError, match=r"where=\[.*\] holds no dense layer of part q; expected one"):
        part.birth(0)


# what goes with it


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
def test_moments_and_step_counts_are_kept_or_renewed_by_rule(optimizer):
    part = dqn([DormancyScaledPerturbation(optimizer=optimizer)], net=IMAGES).q
    s, new, _ = applied(part, {"trunk.h0.pre": torch.ones(1, 5)})
    names = dense("trunk.layers.0", "advantage", "value")
    renewed = {"keep": set(), "touched": names, "all": set(s.params)}[optimizer]
    for slot, old in s.optim.items():
        for k, x in old.items():
            assert torch.equal(new.optim[slot][k], torch.zeros_like(x) if k in renewed else x)


@pytest.mark.parametrize("role", ["target", "tortoise"])
@pytest.mark.parametrize("rule", ["keep", "copy", "same_draw", "own_draw"])
def test_each_slow_copy_follows_its_rule(role, rule):
    rules = {"target": rule, "slow": "keep"} if role == "target" else {"target": "keep", "slow": rule}
    part = dqn([HareAndTortoise(), DormancyScaledPerturbation(**rules)], VECTOR, net=Vectors(width=4)).q
    s, new, ctx = applied(part, features(2))
    draw = {"same_draw": ctx.fresh(), "own_draw": ctx.fresh(role)}
    for k, x in s.copies[role].items():
        mixed = 0.5 * x + 0.5 * draw[rule][k] if rule in draw else x
        assert torch.allclose(new.copies[role][k], new.params[k] if rule == "copy" else mixed, atol=1e-6)
    other = "tortoise" if role == "target" else "target"
    assert equal(s.copies[other], new.copies[other])
    assert not torch.equal(ctx.fresh(role)["value.weight"], ctx.fresh()["value.weight"])


# settings


def test_defaults_are_the_released_codes():
    d = DormancyScaledPerturbation()
    assert (d.scale, d.low, d.high, d.threshold, d.features) == (2.0, 0.2, 0.9, 0.025, "pre")
    assert (d.optimizer, d.target, d.slow) == ("all", "own_draw", "own_draw")


@pytest.mark.parametrize(
    "wrong",
    [{"low": 0.95}, {"high": 0.1}, {"scale": -1.0}, {"high": 1.2}, {"threshold": -0.1}, {"features": "both"}],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(DormancyScaledPerturbation, wrong)


def test_equal_limits_are_fine_and_events_come_when_they_are_due():
    intervention = DormancyScaledPerturbation(low=0.5, high=0.5, when=When(every=3))
    e, plain = engine(dqn([intervention], VECTOR)), engine(dqn([], VECTOR))
    clock, other = run(e, 2), run(plain, 2)
    assert equal(e.states["q"].params, plain.states["q"].params)
    run(e, 1, clock)
    run(plain, 1, other)
    assert not equal(e.states["q"].params, plain.states["q"].params)
