"""InFeR: auxiliary heads on the last hidden layer are held to a multiple of what they said at birth."""

from __future__ import annotations

import copy
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac
from torch import nn

from core.clock import Clock
from core.options import build
from core.part import Step
from core.state import member
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.dropout import Dropout
from interventions.infer import Infer
from interventions.l2 import L2
from interventions.reset import Reset
from nets import Vectors

LEARNERS = {
    "convolutions": (dqn, "q", FRAMES),
    "critic": (sac, "critic", CONTROL),
    "actor": (sac, "actor", CONTROL),
    "classifier": (classifier, "classifier", VECTOR),
}
every_learner = pytest.mark.parametrize(("learner", "part", "spec"), LEARNERS.values(), ids=LEARNERS)


def step(spec, count: int = 0) -> Step:
    """What a penalty has at hand of a made-up batch."""
    return Step(member(batch_for(spec, (0,), count), 0), {}, None, {}, {})


def moved(s):
    """The state with every weight away from birth."""
    g = torch.Generator().manual_seed(5)
    return s._replace(params={k: 1.2 * p + 0.1 * torch.randn(p.shape, generator=g) for k, p in s.params.items()})


def penalty_of(part, s, at: Step, params=None) -> torch.Tensor:
    return part.interventions[-1].penalty(part, s.params if params is None else params, s, at)


def slopes(part, s, at: Step):
    """Gradient of the penalty at the state's own weights."""
    return torch.func.grad(lambda p: penalty_of(part, s, at, p))(s.params)


def said(part, params, at: Step) -> torch.Tensor:
    """What the auxiliary heads say, by hand: their weights times the last hidden layer. -> [heads of all, B]"""
    feats = part(params, *part.inputs(at.batch))[1]
    heads = [k.removesuffix(".weight") for k in params if k.endswith("auxiliary.weight")]
    hidden = {head: f"{head.removesuffix('auxiliary')}h{part.spec.depth - 1}" for head in heads}
    return torch.cat([params[f"{k}.weight"] @ feats[hidden[k]].T + params[f"{k}.bias"][:, None] for k in heads])


# the number


class Paper:
    """Two networks of one weight each, with two and one auxiliary heads."""

    def names(self, where):
        return {"all": ["a", "b"], "second": ["b"]}[where[0]]

    def inputs(self, batch):
        return (batch["x"],)

    def __call__(self, numbers, x):
        two = torch.stack([numbers["a"] * x, numbers["a"] * x + numbers["shift"]], -1)
        feats = {"q.0.auxiliary": two, "q.0.h0": 1000 * x, "q.1.auxiliary": (numbers["b"] * x)[:, None]}
        return 7 * x, feats


@pytest.mark.parametrize(
    ("where", "distances"),
    # now a x = 4, 8 (where a is a constant 2, 4), a x + shift = 5, 9 (3, 5), b x = 2, 4; at birth 1, 2; 2, 3; -1, -2
    [("all", (1, 2, -1, 0, 5, 10)), ("second", (-1, -2, -3, -4, 5, 10))],
)
def test_it_is_the_weighted_mean_over_samples_and_heads_of_squared_distances_to_scaled_birth(where, distances):
    s = SimpleNamespace(
        params={"a": torch.tensor(2.0), "b": torch.tensor(1.0)},
        birth={"a": torch.tensor(1.0), "b": torch.tensor(-1.0)},
        buffers={"shift": torch.tensor(1.0)},
    )
    at = Step({"x": torch.tensor([1.0, 2.0])}, {}, None, {}, {})
    params = {"a": torch.tensor(4.0), "b": torch.tensor(2.0)}
    value = Infer(weight=0.5, scale=3.0, where=(where,)).penalty(Paper(), params, s, at)
    assert float(value) == pytest.approx(0.5 * sum(d * d for d in distances) / 6)


@every_learner
def test_it_is_torchs_squared_error_to_what_the_heads_said_at_birth(learner, part, spec):
    part = learner([Infer(weight=0.3, heads=4, scale=5.0)]).parts[part]
    s, at = moved(part.birth(0)), step(spec)
    now, born = said(part, s.params, at), said(part, s.birth, at)
    assert now.shape == (8 if part.name == "critic" else 4, 8)
    assert float(penalty_of(part, s, at)) == pytest.approx(0.3 * float(F.mse_loss(now, 5.0 * born)), rel=1e-5)


@every_learner
def test_a_newborn_is_held_to_the_multiple_less_one_and_with_scale_one_to_nothing(learner, part, spec):
    newborn = {scale: learner([Infer(weight=0.5, scale=scale)]).parts[part] for scale in (1.0, 4.0)}
    at, born = step(spec), newborn[4.0].birth(0)
    expected = 0.5 * 3.0**2 * float(said(newborn[4.0], born.params, at).square().mean())
    assert float(penalty_of(newborn[4.0], born, at)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-3
    assert float(penalty_of(newborn[1.0], born, at)) == 0
    assert all(torch.count_nonzero(g) == 0 for g in slopes(newborn[1.0], born, at).values())


class Reference(nn.Module):
    """The small classifier with its auxiliary heads, in torch's own modules."""

    def __init__(self, params):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head, self.heads = nn.Linear(16, 3), nn.Linear(16, 4)
        names = ("trunk.layers.0", "trunk.layers.1", "head", "trunk.auxiliary")
        for module, name in zip((self.body[0], self.body[2], self.head, self.heads), names, strict=True):
            module.weight.data, module.bias.data = params[f"{name}.weight"].clone(), params[f"{name}.bias"].clone()

    def forward(self, x):
        return self.head(self.body(x)), self.heads(self.body(x))


def test_six_updates_are_those_of_a_plain_loop_with_torchs_modules_and_torchs_adam():
    e = engine(classifier([Infer(weight=0.2, heads=4, scale=10.0)], learning_rate=1e-2))
    net = Reference(member(e.states, 0)["classifier"].params)
    born, adam = copy.deepcopy(net), torch.optim.Adam(net.parameters(), lr=1e-2)
    for count in range(6):
        batch = member(batch_for(VECTOR, (0,), count), 0)
        out, now = net(batch["obs"])
        loss = F.cross_entropy(out, batch["label"]) + 0.2 * F.mse_loss(now, 10.0 * born(batch["obs"])[1].detach())
        adam.zero_grad()
        loss.backward()
        adam.step()
    run(e, 6)
    mine = Reference(member(e.states, 0)["classifier"].params)
    assert largest_difference(net.state_dict(), mine.state_dict()) < 1e-5
    assert largest_difference(net.state_dict(), born.state_dict()) > 1e-2
    assert equal(born.state_dict(), Reference(member(e.states, 0)["classifier"].birth).state_dict())


def test_trained_on_nothing_else_the_heads_come_to_say_the_multiple_of_what_they_said():
    e = engine(dqn([Infer(weight=1.0, scale=3.0)], spec=VECTOR, learning_rate=1e-2))
    batch = batch_for(VECTOR, (0,))
    batch["weight"] = torch.zeros_like(batch["weight"])
    for _ in range(300):
        e.update(batch, Clock(steps=10**9))
    part, s = e.learner.q, member(e.states, 0)["q"]
    now, born = (said(part, p, Step(member(batch, 0), {}, None, {}, {})) for p in (s.params, s.birth))
    assert float((now - 3.0 * born).norm() / born.norm()) < 0.05


# the heads


@every_learner
@pytest.mark.parametrize("heads", [1, 6])
def test_the_network_gains_linear_heads_on_its_last_hidden_layer_and_nothing_else(learner, part, spec, heads):
    plain, more = learner().parts[part], learner([Infer(heads=heads)]).parts[part]
    shapes = [{k: tuple(x.shape) for k, x in p.net.named_parameters()} for p in (plain, more)]
    trunks = ["q.0.trunk", "q.1.trunk"] if part == "critic" else ["trunk"]
    gained = {f"{t}.auxiliary.{k}": shape for t in trunks for k, shape in (("weight", (heads, 16)), ("bias", (heads,)))}
    assert shapes[1] == shapes[0] | gained
    s, at = more.birth(0), step(spec)
    others = s.params | {k: p + 1 for k, p in s.params.items() if "auxiliary" in k}
    (out, feats), (same, moved_feats) = (more(p, *more.inputs(at.batch)) for p in (s.params, others))
    assert torch.equal(out, same) and out.shape == plain(plain.birth(0).params, *plain.inputs(at.batch))[0].shape
    changed = {k for k in feats if not torch.equal(feats[k], moved_feats[k])}
    assert changed == {f"{t}.auxiliary" for t in trunks}


def test_the_rest_of_the_blueprint_stays():
    spec = Vectors(width=24, depth=3, norm="layer", init="torch")
    edited = Infer(heads=7).build(spec, lambda _: 0)
    assert (edited.auxiliary, edited.width, edited.depth, edited.norm, edited.init) == (7, 24, 3, "layer", "torch")
    assert type(edited) is Vectors and spec.auxiliary == 0


def test_members_have_heads_and_targets_of_their_own():
    e = engine(dqn([Infer()], spec=VECTOR), (4, 5))
    s = e.states["q"]
    assert not torch.equal(*s.birth["trunk.auxiliary.weight"])
    run(e, 3)
    alone = engine(dqn([Infer()], spec=VECTOR), (5,))
    run(alone, 3)
    assert largest_difference(member(e.states, 1), member(alone.states, 0)) < 1e-6


# what is trained


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (("encoder",), ("encoder.",)),
        (("trunk.layers.0.weight", "trunk.auxiliary.*"), ("trunk.layers.0.weight", "trunk.auxiliary")),
        (("all",), ("encoder.", "trunk.")),
    ],
)
def test_gradient_flows_within_where_and_everything_else_is_a_constant(where, chosen):
    part = dqn([Infer(where=where, scale=3.0)]).q
    everywhere = dqn([Infer(scale=3.0)]).q
    s, at = moved(part.birth(0)), step(FRAMES)
    found, full = slopes(part, s, at), slopes(everywhere, s, at)
    assert float(penalty_of(part, s, at)) == float(penalty_of(everywhere, s, at))
    for k, slope in found.items():
        expected = full[k] if k.startswith(chosen) else torch.zeros_like(slope)
        assert (slope - expected).abs().max() < 1e-5 * full[k].abs().max().clamp_min(1e-6), k
        assert bool(slope.abs().sum()) == k.startswith(chosen), k


def test_the_penalty_joins_the_loss_of_its_part_alone():
    with_penalty = sac([Infer(weight=1.0, on=("actor",))])
    assert with_penalty.critic.spec.auxiliary == with_penalty.alpha.spec.auxiliary == 0
    part = classifier([Infer(weight=0.5, scale=3.0)]).classifier
    without = classifier([Infer(weight=0.0, scale=3.0)]).classifier
    s, batch = moved(part.birth(0)), member(batch_for(VECTOR, (0,)), 0)
    (more, _), (less, _) = (p.gradient({"classifier": s}, batch, {}) for p in (part, without))
    expected = slopes(part, s, step(VECTOR))
    assert all((more[k] - less[k] - expected[k]).abs().max() < 1e-5 for k in more)


def test_without_weight_heads_stay_as_they_were_born():
    e = engine(dqn([Infer(weight=0.0)], spec=VECTOR))
    run(e, 3)
    s = e.states["q"]
    stays = {k for k in s.params if torch.equal(s.params[k], s.birth[k])}
    assert stays == {"trunk.auxiliary.weight", "trunk.auxiliary.bias"}


def test_statistics_are_the_states_own_and_no_mask_is_drawn():
    part = classifier([BatchNorm(), Dropout(rate=0.5), Infer(scale=3.0)]).classifier
    s, at = moved(part.birth(0)), step(VECTOR)
    counted = s._replace(buffers={k: x + 0.5 for k, x in s.buffers.items()})
    found = []
    for c in (s, counted):
        now, born = (said(part, p | c.buffers, at) for p in (c.params, c.birth))
        found.append(float(penalty_of(part, c, at)))
        assert found[-1] == pytest.approx(0.1 * float(F.mse_loss(now, 3.0 * born)), rel=1e-5)
    assert abs(found[0] / found[1] - 1) > 0.01


# what is around


@pytest.mark.parametrize("renew", [True, False])
def test_a_reset_that_renews_birth_weights_gives_new_targets(renew):
    e = engine(dqn([Reset(when=When(at=(2,)), where=("all",), renew_birth=renew), Infer(scale=1.0)], spec=VECTOR))
    run(e, 2)
    s, at = member(e.states, 0)["q"], step(VECTOR)
    assert (float(penalty_of(e.learner.q, s, at)) == 0) == renew


def test_the_target_network_follows_and_is_not_held_itself():
    follows = engine(dqn([Infer()], spec=VECTOR))
    stays = engine(dqn([Infer()], spec=VECTOR, target="ema", tau=0.0))
    for e in (follows, stays):
        run(e, 3)
    assert equal(follows.states["q"].copies["target"], follows.states["q"].params)
    assert equal(stays.states["q"].copies["target"], stays.states["q"].birth)
    assert not equal(stays.states["q"].params, stays.states["q"].birth)


def test_a_part_has_one_set_of_auxiliary_heads():
    with pytest.raises(ValueError, match="each has the auxiliary heads"):
        engine(sac([Infer(), Infer(on=("critic",))]))
    engine(sac([Infer(on=("actor",)), L2(), Infer(on=("critic",))]))


def test_defaults_are_the_papers_and_options_have_limits():
    rule = build(Infer, {})
    assert (rule.weight, rule.heads, rule.scale) == (0.1, 10, 100.0)
    assert (build(Infer, {"weight": 0}).weight, build(Infer, {"heads": 1}).heads) == (0, 1)
    for key, wrong in (("weight", -1e-9), ("heads", 0)):
        with pytest.raises(ValueError, match=key):
            build(Infer, {key: wrong})


@pytest.mark.parametrize("learner", [dqn, sac, classifier], ids=["dqn", "sac", "classifier"])
def test_the_network_is_born_as_without_auxiliary_heads_and_no_two_heads_are_alike(learner):
    plain, with_heads = (engine(learner(i)).states for i in ([], [Infer()]))
    heads = []
    for part, s in with_heads.items():
        assert equal({k: s.params[k] for k in plain[part].params}, plain[part].params)
        heads += [p for k, p in s.params.items() if k.endswith("auxiliary.weight")]
    assert heads and all(not torch.equal(a, b) for a, b in combinations(heads, 2) if a.shape == b.shape)
