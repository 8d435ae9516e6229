"""What follows a hidden layer: CReLU, activation by interval-wise dropout, dropout; in training and in evaluation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from agents.dqn import Exploration
from core.clock import Clock
from core.intervention import Intervention
from core.options import build
from core.recycle import columns
from core.state import member, weights
from core.when import When
from interventions.activation_interval_dropout import ActivationIntervalDropout
from interventions.crelu import CReLU
from interventions.dropout import Dropout
from nets import Nature, ResNet18, Vectors, activations
from nets.mlp import MLP

X = torch.tensor([[-2.0, 3.0], [0.5, -1.0]])
MASKS = [ActivationIntervalDropout(keep=0.6), Dropout(rate=0.5)]
MATCHES = ("output", "input", "parameters")
masking = pytest.mark.parametrize("masks", MASKS, ids=lambda i: type(i).__name__)


def spread(shape, samples: int = 1000) -> torch.Tensor:
    """Evenly spread numbers in (0, 1): the mean over them is the expectation. -> [samples, *shape]."""
    return ((torch.arange(samples) + 0.5) / samples).reshape(-1, *[1] * len(shape)).expand(samples, *shape)


def count(part) -> int:
    return sum(p.numel() for p in part.net.parameters())


def widths(part) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for name, p in part.net.named_parameters() if name.endswith("weight")]


def masks_of(part, offset: float = 0.0) -> dict[str, torch.Tensor]:
    """Made-up uniform numbers for every layer of a part that wants some."""
    return {
        k: (torch.arange(math.prod(n.shape)) * 0.618 + offset).remainder(1).reshape(n.shape)
        for k, n in part.noise(BATCH).items()
    }


# CReLU


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 2)])
def test_the_halves_of_crelu_add_to_the_magnitude_and_differ_by_the_input(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    positive, negative = activations.CReLU()(x).chunk(2, dim=1)
    assert positive.shape == negative.shape == shape
    assert torch.equal(positive + negative, x.abs()) and torch.equal(positive - negative, x)
    assert torch.equal(positive, F.relu(x))


def test_one_rectifier_of_every_pair_passes_the_gradient():
    weights_of_halves = torch.tensor([[2.0, 2.0, 5.0, 5.0]])
    slope = torch.func.grad(lambda x: (weights_of_halves * activations.CReLU()(x)).sum())(X)
    assert torch.equal(slope, torch.tensor([[-5.0, 2.0], [2.0, -5.0]]))


MLP_WIDTHS = {"output": [(8, 5), (8, 16), (3, 16), (1, 16)], "input": [(16, 5), (16, 32), (3, 32), (1, 32)]}
NATURE_WIDTHS = {  # 36 x 36 frames leave one pixel
    "output": [(16, 2, 8, 8), (32, 32, 4, 4), (32, 64, 3, 3), (8, 64), (3, 16), (1, 16)],
    "input": [(32, 2, 8, 8), (64, 64, 4, 4), (64, 128, 3, 3), (16, 128), (3, 32), (1, 32)],
}


@pytest.mark.parametrize("match", ["output", "input"])
@pytest.mark.parametrize(("spec", "expected"), [(VECTOR, MLP_WIDTHS), (FRAMES, NATURE_WIDTHS)])
def test_crelu_keeps_the_features_or_the_units(match, spec, expected):
    assert widths(dqn([CReLU(match=match)], spec).q) == expected[match]


NETWORKS = [
    (VECTOR, Vectors(width=64)),
    (VECTOR, Vectors(width=64, depth=1)),
    (VECTOR, Vectors(width=33, depth=3)),
    (VECTOR, Vectors(width=64, units=0.5)),
    (FRAMES, Nature(width=16, padding="valid")),
]


@pytest.mark.parametrize(("spec", "net"), NETWORKS)
def test_crelu_with_matched_parameters_has_as_many_as_can_be(spec, net):
    """The reference tries every factor; the units of all layers share one."""
    wanted, got = count(dqn([], spec, net=net).q), count(dqn([CReLU(match="parameters")], spec, net=net).q)
    factors = [net.units * (0.5 + i / 500) for i in range(251)]
    tried = [count(dqn([], spec, net=replace(net, activation="crelu", units=u)).q) for u in factors]
    assert abs(got - wanted) <= min(abs(found - wanted) for found in tried)


def test_crelu_multiplies_the_factor_on_the_units():
    spec = {match: dqn([CReLU(match=match)], VECTOR, net=Vectors(units=0.5)).q.spec for match in MATCHES}
    assert (spec["output"].units, spec["input"].units) == (0.25, 0.5)
    assert spec["parameters"].units == pytest.approx(0.5 * math.sqrt(0.5), abs=0.02)


def test_initialisers_see_the_doubled_inputs():
    p = dqn([CReLU(match="input")], VECTOR, net=Vectors(width=64, init="xavier")).q.birth(0).params
    bound = math.sqrt(6 / (128 + 64))
    assert 0.98 * bound < p["trunk.layers.1.weight"].abs().max() <= bound


@pytest.mark.parametrize("spec", [VECTOR, FRAMES])
def test_the_map_of_layers_knows_which_features_are_halves_of_a_unit(spec):
    part, obs = dqn([CReLU()], spec).q, member(batch_for(spec, (0,)), 0)["obs"]
    born = {k: p + 0.05 for k, p in part.birth(0).params.items()}  # a bias away from zero
    for layer in (layer for layer in part.layers if layer.readers):
        pairs = part(born, obs)[1][layer.feats].unflatten(1, (2, -1))
        assert layer.halves == 2 and pairs.shape[2] == len(born[f"{layer.name}.bias"])
        assert (pairs.sum(1).movedim(1, 0).flatten(1).amax(1) > 0).all()  # no pair is silent on all samples
        silent = dict(born)
        for k in ("weight", "bias"):
            silent[f"{layer.name}.{k}"] = born[f"{layer.name}.{k}"].clone()
            silent[f"{layer.name}.{k}"][1] = 0.0
        rewired = dict(silent)
        chosen = torch.arange(len(born[f"{layer.name}.bias"])) == 1
        for reader in (f"{name}.weight" for name in layer.readers):
            rewired[reader] = silent[reader].clone()
            rewired[reader][:, columns(chosen, layer, silent[reader])] = 9.0
        assert torch.equal(part(rewired, obs)[0], part(silent, obs)[0])
        assert not torch.equal(part(silent, obs)[0], part(born, obs)[0])


# AID


def test_aid_passes_the_positive_part_where_the_mask_is_drawn_and_else_the_negative_one():
    aid = activations.AID((2,), keep=0.7)
    aid.uniform = torch.tensor([[0.6, 0.8], [0.7, 0.69]])  # a number equal to keep is not below it
    assert torch.equal(aid(X), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(aid(-X), torch.tensor([[2.0, -3.0], [-0.5, 1.0]]))


def test_aid_in_evaluation_is_its_expectation_over_masks():
    aid = activations.AID((2, 2), keep=0.7)
    evaluated = aid(X)
    assert torch.allclose(evaluated, torch.tensor([[-0.6, 2.1], [0.35, -0.3]]))
    aid.uniform = spread((2, 2))
    assert torch.allclose(aid(X.expand(1000, 2, 2)).mean(0), evaluated, atol=1e-5)


def test_the_gradient_of_aid_is_the_mask_above_zero_and_its_opposite_below():
    aid = activations.AID((2,), keep=0.7)
    slope = torch.func.grad(lambda x: aid(x).sum())
    assert torch.allclose(slope(X), torch.tensor([[0.3, 0.7], [0.7, 0.3]]))
    aid.uniform = torch.tensor([[0.6, 0.6], [0.8, 0.8]])
    assert torch.equal(slope(X), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


@pytest.mark.parametrize("training", [True, False])
def test_aid_that_keeps_all_is_relu_and_so_is_its_gradient(training):
    x = torch.tensor([[-1.5, 0.0, 2.5]])  # black frames under a bias of zero are exactly zero
    aid = activations.AID((3,), keep=1.0)
    if training:
        aid.uniform = torch.tensor([[0.01, 0.5, 0.9999999]])
    assert torch.equal(aid(x), F.relu(x))
    assert torch.equal(*(torch.func.grad(lambda x, f=f: f(x).sum())(x) for f in (aid, F.relu)))


# dropout


def test_dropout_silences_features_below_the_rate_and_scales_up_the_rest():
    dropout = activations.Dropout((2,), rate=0.2)
    assert torch.equal(dropout(X), X)
    dropout.uniform = torch.tensor([[0.1, 0.2], [0.9, 0.19]])  # a number equal to the rate is not below it
    assert torch.allclose(dropout(X), torch.tensor([[0.0, 3.75], [0.625, 0.0]]))
    slope = torch.func.grad(lambda x: dropout(x).sum())(X)
    assert torch.allclose(slope, torch.tensor([[0.0, 1.25], [1.25, 0.0]]))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_the_mean_of_torchs_and_equals_it_under_its_mask(rate):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    dropout = activations.Dropout((32,), rate)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mask = F.dropout(torch.ones_like(x), rate) > 0
        torch.manual_seed(0)
        theirs = F.dropout(x, rate)
    dropout.uniform = torch.where(mask, 0.999, 0.001)
    assert torch.allclose(dropout(x), theirs, atol=1e-6)
    dropout.uniform = spread((32,))
    assert torch.allclose(dropout(x[:1].expand(1000, 32)).mean(0), x[0], atol=1e-5)


@pytest.mark.parametrize("crelu", [False, True])
def test_a_network_with_dropout_equals_one_written_by_hand(crelu):
    interventions = [CReLU(match="input")] * crelu + [Dropout(rate=0.25)]
    learner = classifier(interventions)
    part, obs = learner.classifier, member(batch_for(VECTOR, (0,)), 0)["obs"]
    params, masks, wide = part.birth(0).params, masks_of(part), 32 if crelu else 16
    assert {k: tuple(m.shape) for k, m in masks.items()} == {
        f"classifier/trunk.drops.{i}.uniform": (BATCH, wide) for i in range(2)
    }
    numbers = params | {k.removeprefix("classifier/"): m for k, m in masks.items()}
    out, feats = part(numbers, obs)
    h = obs
    for i in range(2):
        x = F.linear(h, params[f"trunk.layers.{i}.weight"], params[f"trunk.layers.{i}.bias"])
        x = torch.cat([F.relu(x), F.relu(-x)], -1) if crelu else F.relu(x)
        assert torch.allclose(feats[f"trunk.h{i}"], x, atol=1e-5)  # features are what stands before the mask
        h = x * (masks[f"classifier/trunk.drops.{i}.uniform"] >= 0.25) / 0.75
    assert torch.allclose(out, F.linear(h, params["head.weight"], params["head.bias"]), atol=1e-5)


def test_convolutions_have_aid_masks_and_no_dropout():
    aid, drop = (dqn([i]).q.noise(BATCH) for i in (ActivationIntervalDropout(), Dropout()))
    assert {k: n.shape[1:] for k, n in aid.items()} == {
        "q/encoder.acts.0.uniform": (32, 8, 8),
        "q/encoder.acts.1.uniform": (64, 3, 3),
        "q/encoder.acts.2.uniform": (64, 1, 1),
        "q/trunk.acts.0.uniform": (16,),
    }
    assert {k: n.shape for k, n in drop.items()} == {"q/trunk.drops.0.uniform": (BATCH, 16)}
    assert dqn([Dropout()]).q.birth(0).buffers == {} == dqn([ActivationIntervalDropout()]).q.birth(0).buffers


NOWHERE = [
    (lambda i: classifier(i, net=Vectors(width=16, depth=0)), "classifier"),
    (lambda i: dqn(i, net=Nature(width=16, depth=0)), "q"),
    (lambda i: dqn(i, net=ResNet18(units=1 / 16)), "q"),
    (lambda i: sac([replace(i[-1], on=("critic", "alpha"))]), "alpha"),
]


@pytest.mark.parametrize(("make", "part"), NOWHERE, ids=["dense", "convolutions", "residual", "temperature"])
def test_dropout_without_a_dense_layer_to_stand_behind_is_refused_in_one_line(make, part):
    with pytest.raises(ValueError, match=f"interventions.dropout.rate=0.3: part {part} has no dense hid") as caught:
        engine(make([Dropout(rate=0.3)]))
    assert "\n" not in str(caught.value)


def test_dropout_behind_the_dense_layers_of_a_residual_encoder_is_not_refused():
    part = dqn([ActivationIntervalDropout(), Dropout()], net=ResNet18(width=16, depth=1, units=1 / 16)).q
    part.birth(0)
    assert "q/trunk.drops.0.uniform" in part.noise(BATCH)


# training mode is where gradient flows, and nowhere else


@masking
@pytest.mark.parametrize(("make", "part", "spec"), [(dqn, "q", FRAMES), (sac, "critic", CONTROL)])
def test_masks_change_the_prediction_and_never_the_target(masks, make, part, spec):
    e = engine(make([masks]))
    states, net = member(e.states, 0), e.learner.parts[part]
    policy, batch = {k: torch.zeros(BATCH, 2) for k in ("critic", "actor")}, member(batch_for(spec, (0,)), 0)
    drawn = [net.gradient(states, batch, policy | noise) for noise in (masks_of(net), masks_of(net, 0.3), {})]
    for _, outcome in drawn:
        assert torch.equal(outcome.values["target"], drawn[0][1].values["target"])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(drawn[a][1].values["q"], drawn[b][1].values["q"])
        assert not equal(drawn[a][0], drawn[b][0])


@masking
def test_an_event_and_a_decision_see_the_network_in_evaluation(masks):
    seen = []

    class Looks(Intervention):
        def event(self, part, s, ctx):
            batch = ctx.sample(0, 0)[0]
            seen.append((ctx.step().outcome.feats["trunk.h0"], part(weights(s), batch["obs"])[1]["trunk.h0"]))
            return s

    e = engine(dqn([masks, Looks(when=When(every=2))], VECTOR))
    run(e, 2)
    assert len(seen) == 1 and torch.equal(*seen[0])
    obs = batch_for(VECTOR, (0,))["obs"]
    q = e.learner.q(weights(member(e.states, 0)["q"]), obs[0])[0][..., 0]
    assert (e.act(obs.numpy(), Exploration(0.0, False), "act", 0)[0] == q.argmax(-1).numpy()).all()


@masking
def test_members_and_updates_have_masks_of_their_own(masks):
    e = engine(classifier([masks], learning_rate=1e-30), seeds=(0, 1))
    for leaf in e.states["classifier"].params.values():
        leaf[1] = leaf[0]
    batch = {k: x[:1].expand(2, *x.shape[1:]) for k, x in batch_for(VECTOR, (0,)).items()}
    first, second, again = (e.update(batch, Clock(steps=10, updates=u))["classifier/loss"].clone() for u in (0, 1, 0))
    assert first[0] != first[1] and (first != second).all() and torch.equal(first, again)


# blueprint


def test_settings_arrive_in_the_blueprint_of_the_named_part_alone():
    learner = sac([ActivationIntervalDropout(keep=0.8, on=("critic",)), Dropout(rate=0.3, on=("actor",))])
    critic, actor = learner.critic.spec, learner.actor.spec
    assert (critic.activation, critic.aid_keep, critic.dropout) == ("aid", 0.8, 0.0)
    assert (actor.activation, actor.dropout) == ("relu", 0.3)
    assert isinstance(MLP(5, 3, critic).trunk.acts[0], activations.AID)
    assert (ActivationIntervalDropout().keep, Dropout().rate, CReLU().match) == (0.99, 0.1, "output")


def test_two_activations_on_one_part_are_refused():
    with pytest.raises(ValueError, match="crelu and activation_interval_dropout on q: each sets the activation"):
        engine(dqn([CReLU(), ActivationIntervalDropout()]))
    engine(sac([CReLU(on=("critic",)), ActivationIntervalDropout(on=("actor",))]))


@pytest.mark.parametrize(
    ("cls", "values"),
    [(Dropout, {"rate": 0.0}), (Dropout, {"rate": 0.96}), (CReLU, {"match": "units"})]
    + [(ActivationIntervalDropout, {"keep": value}) for value in (-0.1, 1.1)],
)
def test_settings_out_of_range_are_refused_by_name(cls, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        build(cls, values)
