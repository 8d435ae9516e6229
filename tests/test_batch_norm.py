"""Batch normalisation: as torch's own in training and in evaluation, and where its running statistics live."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac
from torch import nn

from core.clock import Clock
from core.intervention import Intervention
from core.state import clone, member, weights
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.dormancy_scaled_perturbation import DormancyScaledPerturbation
from interventions.fire import FIRE
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import Vectors, layers

COUNTED = {"running_mean", "running_var"}
DENSE = {f"trunk.norms.{i}.{what}" for i in range(2) for what in COUNTED}
NETWORKS = [(dqn, "q", FRAMES), (sac, "critic", CONTROL), (sac, "actor", CONTROL), (classifier, "classifier", VECTOR)]
every_network = pytest.mark.parametrize(("make", "part", "spec"), NETWORKS)


def pair(shape):
    """Ours and torch's with the same numbers, and an input."""
    g = torch.Generator().manual_seed(0)
    ours, theirs = layers.BatchNorm(shape[1]), (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1])
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = torch.rand(shape[1], generator=g) + 0.5
        getattr(ours, name).data, getattr(theirs, name).data = value, value.clone()
    return ours, theirs, 3 * torch.randn(shape, generator=g) + 2


def training_mode(part) -> dict[str, torch.Tensor]:
    """Noise with which a part's norms run in training mode."""
    return {k: torch.full(noise.shape, 0.5) for k, noise in part.noise(BATCH).items()}


def gradient(e, part: str, spec, noise=None):
    noise = training_mode(e.learner.parts[part]) if noise is None else noise
    noise = {"critic": torch.zeros(BATCH, 2), "actor": torch.zeros(BATCH, 2)} | noise
    return e.learner.parts[part].gradient(member(e.states, 0), member(batch_for(spec, (0,)), 0), noise)


# against torch's


@pytest.mark.parametrize("shape", [(8, 3), (2, 3), (8, 3, 5, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_statistics_equal_those_of_torchs_module(shape, training):
    ours, theirs, x = pair(shape)
    theirs.train(training)
    if training:
        ours.training_now = torch.tensor([0.5])
    counted = ours.statistics(x)
    target = torch.linspace(-1, 1, x.numel()).reshape(shape)
    found = []
    for module in (ours, theirs):
        mine = x.clone().requires_grad_()
        out = module(mine)
        (out * target).sum().backward()
        found.append((out, mine.grad, module.weight.grad, module.bias.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=2e-4)
    assert set(counted) == (COUNTED if training else set())
    for name, value in counted.items():
        assert torch.allclose(value, getattr(theirs, name), atol=1e-5) and not value.requires_grad


def test_hand_made_moments():
    norm, x = layers.BatchNorm(1, momentum=0.25, eps=0.0), torch.tensor([[1.0], [3.0]])
    assert torch.equal(norm(x), x)  # running mean 0, variance 1
    norm.training_now = torch.tensor([0.5])
    assert torch.allclose(norm(x), torch.tensor([[-1.0], [1.0]]))
    counted = norm.statistics(x)
    assert float(counted["running_mean"]) == 0.25 * 2.0
    assert float(counted["running_var"]) == 0.75 * 1.0 + 0.25 * 2.0  # the unbiased variance
    assert float(norm.statistics(x[:1])["running_var"]) == 0.75  # one sample: no variance, and no division by zero


def test_momentum_and_epsilon_are_torchs():
    ours, theirs = layers.BatchNorm(3), nn.BatchNorm1d(3)
    assert (ours.momentum, ours.eps) == (theirs.momentum, theirs.eps)


def torch_network(params, buffers, training: bool) -> nn.Sequential:
    """The same classifier in torch's own words."""
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16))
    net.extend([nn.ReLU(), nn.Linear(16, 3)])
    names = {"0": "trunk.layers.0", "1": "trunk.norms.0", "3": "trunk.layers.1", "4": "trunk.norms.1", "6": "head"}
    ours = params | buffers
    net.load_state_dict(
        {
            k: torch.tensor(0) if k.endswith("tracked") else ours[f"{names[k[0]]}.{k[2:]}"].clone()
            for k in net.state_dict()
        }
    )
    return net.train(training)


def test_a_classifier_trains_as_the_same_network_of_torchs_modules():
    # a large epsilon: biases in front of a norm have no gradient but rounding errors
    e = engine(classifier([BatchNorm()], learning_rate=1e-2, adam_eps=1e-3))
    s = member(e.states, 0)["classifier"]
    net = torch_network(s.params, s.buffers, training=True)
    adam = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-3)
    for count in range(4):
        batch = batch_for(VECTOR, (0,), count)
        e.update(batch, Clock(steps=10, updates=count))
        adam.zero_grad()
        F.cross_entropy(net(batch["obs"][0]), batch["label"][0]).backward()
        adam.step()
    s = member(e.states, 0)["classifier"]
    same = torch_network(s.params, s.buffers, training=False)
    for k, value in net.state_dict().items():
        assert k.endswith("tracked") or torch.allclose(same.state_dict()[k], value, atol=1e-5), k
    obs = batch_for(VECTOR, (0,), 9)["obs"][0]
    assert torch.allclose(e.learner.classifier(weights(s), obs)[0], same(obs), atol=1e-5)


# in the network


def test_every_hidden_layer_has_one_before_its_activation_and_the_output_has_none():
    part = dqn([BatchNorm()]).q
    names = {k.rpartition(".")[0] for k in part.names() if ".norms." in k}
    assert names == {"trunk.norms.0", *(f"encoder.norms.{i}" for i in range(3))}
    assert part.norm_names() == {f"{name}.{what}" for name in names for what in ("weight", "bias")}
    assert set(part.birth(0).buffers) == {f"{name}.{what}" for name in names for what in COUNTED}
    s, obs = part.birth(0), member(batch_for(FRAMES, (0,)), 0)["obs"]
    training = {k.removeprefix("q/"): value for k, value in training_mode(part).items()}
    feats = part(s.params | s.buffers | training, obs)[1]
    for i in range(3):
        before, after = feats[f"encoder.h{i}.pre"], feats[f"encoder.h{i}"]
        assert before.mean((0, 2, 3)).abs().max() < 1e-4 and torch.equal(after, F.relu(before))


def test_members_of_a_critic_ensemble_count_for_themselves():
    e = engine(sac([BatchNorm()]))
    run(e, 1)
    buffers = member(e.states, 0)["critic"].buffers
    assert set(buffers) == {f"q.{i}.{k}" for i in range(2) for k in DENSE}
    assert not torch.equal(buffers["q.0.trunk.norms.0.running_mean"], buffers["q.1.trunk.norms.0.running_mean"])


@every_network
def test_an_update_moves_the_running_statistics_a_tenth_of_the_way(make, part, spec):
    e = engine(make([BatchNorm()]))
    buffers = gradient(e, part, spec)[1].buffers
    born = clone(member(e.states, 0))[part]
    assert set(buffers) == set(born.buffers) and buffers
    net, batch = e.learner.parts[part], member(batch_for(spec, (0,)), 0)
    inputs = (batch["obs"], batch["action"]) if part == "critic" else (batch["obs"],)
    first = next(k for k in buffers if k.endswith("norms.0.running_mean"))
    seen = {}
    hooked = net.net.get_submodule(first.removesuffix(".running_mean"))
    handle = hooked.register_forward_pre_hook(lambda module, x: seen.update(x=x[0]))
    net(weights(born), *inputs)
    handle.remove()
    axes = (0, 2, 3) if seen["x"].ndim == 4 else (0,)
    assert torch.allclose(buffers[first], 0.1 * seen["x"].mean(axes), atol=1e-5)
    variance = 0.9 + 0.1 * seen["x"].var(axes)
    assert torch.allclose(buffers[first.replace("mean", "var")], variance, atol=1e-5)


def test_running_statistics_do_not_leak_into_the_gradient_of_evaluation():
    e = engine(classifier([BatchNorm()]))
    grads, outcome = gradient(e, "classifier", VECTOR, noise={})
    assert outcome.buffers == {}
    s, batch = member(e.states, 0)["classifier"], member(batch_for(VECTOR, (0,)), 0)
    net = torch_network(s.params, s.buffers, training=False)
    F.cross_entropy(net(batch["obs"]), batch["label"]).backward()
    assert torch.allclose(grads["head.weight"], net[6].weight.grad, atol=1e-6)
    assert torch.allclose(grads["trunk.layers.0.weight"], net[0].weight.grad, atol=1e-6)


# the batch's statistics where gradient flows, running ones elsewhere


@pytest.mark.parametrize(("make", "part", "spec"), NETWORKS[:2])
def test_the_target_and_the_choice_of_the_next_action_use_running_statistics(make, part, spec):
    e = engine(make([BatchNorm()]))
    run(e, 1)
    trained, evaluated = gradient(e, part, spec)[1], gradient(e, part, spec, noise={})[1]
    assert torch.equal(trained.values["target"], evaluated.values["target"])
    assert not torch.allclose(trained.values["q"], evaluated.values["q"])


@pytest.mark.parametrize(("make", "spec"), [(dqn, FRAMES), (sac, CONTROL)])
def test_a_decision_does_not_depend_on_who_else_decides(make, spec):
    e = engine(make([BatchNorm()]))
    run(e, 2)
    obs = batch_for(spec, (0,))["obs"].numpy()
    before = clone(e.states)
    together = e.act(obs, e.learner.explore_eval, "act", 0)
    alone = [e.act(obs[:, i : i + 1], e.learner.explore_eval, "act", 0)[0, 0] for i in range(BATCH)]
    assert abs(together[0] - alone).max() < 1e-5 and equal(before, e.states)


def test_events_use_running_statistics_and_leave_them():
    seen = []

    class Looks(Intervention):
        def event(self, part, s, ctx):
            batch = ctx.sample(0, 0)[0]
            seen.append((ctx.step().outcome.feats["trunk.h1"], part(weights(s), batch["obs"])[1]["trunk.h1"]))
            return s

    with_event, without = (engine(dqn(i, VECTOR)) for i in ([BatchNorm(), Looks(when=When(every=1))], [BatchNorm()]))
    run(with_event, 2)
    run(without, 2)
    assert len(seen) == 2 and torch.equal(*seen[1])
    assert equal(with_event.states["q"].buffers, without.states["q"].buffers)


# copies and resets


@pytest.mark.parametrize("settings", [{"target": "ema", "tau": 0.25}, {"target": "copy"}])
def test_slow_copies_have_running_statistics_that_follow_like_weights(settings):
    e = engine(dqn([BatchNorm(), HareAndTortoise(momentum=0.9)], VECTOR, **settings))
    s = e.states["q"]
    born = clone(s.buffers)
    assert set(s.buffers) == DENSE and set(s.copies["target"]) == {*s.params, *DENSE}
    run(e, 1)
    for k in DENSE:
        share = settings.get("tau", 1.0)
        assert torch.allclose(s.copies["target"][k], born[k].lerp(s.buffers[k], share), atol=1e-6)
        assert torch.allclose(s.copies["tortoise"][k], born[k].lerp(s.buffers[k], 0.1), atol=1e-6)
        assert not torch.equal(s.buffers[k], born[k])


RESETS = [
    (Reset(where=("all",), when=When(every=2)), {"trunk.norms.0", "trunk.norms.1"}),
    (Reset(where=("trunk.norms.1.*",), when=When(every=2)), {"trunk.norms.1"}),
    (Reset(where=("all",), target="keep", when=When(every=2)), {"trunk.norms.0", "trunk.norms.1"}),
    (Reset(where=("output",), when=When(every=2)), set()),
    (ShrinkAndPerturb(where=("all",), when=When(every=2)), set()),
    (ShrinkAndPerturb(preset="hare_tortoise", when=When(every=2)), set()),
    (ShrinkAndPerturb(preset="ash_adams", when=When(every=2)), {"trunk.norms.0", "trunk.norms.1"}),
    (ShrinkAndPerturb(statistics="renew", where=("trunk.norms.1.*",), when=When(every=2)), {"trunk.norms.1"}),
    (ShrinkAndPerturb(statistics="renew", target="keep", when=When(every=2)), {"trunk.norms.0", "trunk.norms.1"}),
    (DormancyScaledPerturbation(low=0.0, scale=1e3, threshold=1e3, when=When(every=2)), set()),
    (FIRE(dense="birth", when=When(every=2)), set()),
]


@pytest.mark.parametrize(("event", "renewed"), RESETS)
def test_a_full_reset_begins_running_statistics_anew_and_a_partial_one_does_not(event, renewed):
    e = engine(dqn([BatchNorm(), event], VECTOR, target="ema"))
    run(e, 1)
    s = member(e.states, 0)["q"]
    old = clone(s)
    clock = Clock(steps=10**9, updates=2, last={"updates": 1})
    assert e.intervene(clock, ("updates",), lambda stream, count, size: batch_for(VECTOR, (0,), 9))
    for k in DENSE:
        newborn = torch.full((16,), float(k.endswith("var")))
        anew = k.rpartition(".")[0] in renewed
        assert torch.equal(s.buffers[k], newborn if anew else old.buffers[k])
        follows = anew and event.target != "keep"
        assert torch.equal(s.copies["target"][k], newborn if follows else old.copies["target"][k])


def test_members_have_statistics_of_their_own_and_as_they_would_alone():
    both, alone = engine(classifier([BatchNorm()]), (0, 1)), engine(classifier([BatchNorm()]), (1,))
    run(both, 3)
    run(alone, 3)
    buffers = both.states["classifier"].buffers
    assert all(not torch.equal(x[0], x[1]) for x in buffers.values())
    assert all(torch.allclose(x[1], alone.states["classifier"].buffers[k][0], atol=1e-6) for k, x in buffers.items())


def test_two_normalisations_on_one_part_are_refused():
    with pytest.raises(ValueError, match="layer_norm and batch_norm on q: each normalises every hidden layer"):
        engine(dqn([LayerNorm(), BatchNorm()]))
    learner = sac([LayerNorm(on=("actor",)), BatchNorm(on=("critic",))], net=Vectors(width=16))
    assert (learner.actor.spec.norm, learner.critic.spec.norm) == ("layer", "batch")
