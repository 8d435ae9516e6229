"""SAC's descendants by hand: residual trunks, quantile critics, random subsets, running moments of observations."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import BATCH, CONTROL, VECTOR, batch_for, dqn, engine, equal, largest_difference, sac
from scipy import stats
from scipy.optimize import minimize
from torch import nn
from torch.utils._pytree import tree_map

import train
from agents import SAC
from core import checkpoint
from core.agent_session import AgentSession
from core.clock import Clock
from core.config import clock_of, load
from core.events import Context
from core.moments import Moments
from core.part import descend
from core.randomness import draw
from core.recycle import recyclable, recycle
from core.replay import Replay
from core.run import main as run_command
from core.spec import EnvSpec
from core.state import member, weights
from core.when import When
from interventions.activation_interval_dropout import ActivationIntervalDropout
from interventions.batch_norm import BatchNorm
from interventions.crelu import CReLU
from interventions.dropout import Dropout
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from interventions.normalize_and_project import NormalizeAndProject
from interventions.redo import ReDo
from interventions.reset import Reset
from nets import C51, VALUES, Bro, HLGauss, Quantiles, Scalar, Simba, TwoHot, Vectors
from nets.mlp import MLP, Critics, GaussianActor

WALKER = EnvSpec("dmc/walker-walk", (24,), "float32", action_dim=6)
SIMBA = Simba(width=12, depth=2, actor_width=6, actor_depth=1)
BRO = Bro(width=12, depth=2, actor_width=6, actor_depth=1)
either = pytest.mark.parametrize("spec", [SIMBA, BRO], ids=["simba", "bro"])
VARIANTS = {"plain": {}, "crelu": {"activation": "crelu"}, "units": {"units": 1.75}, "shallow": {"depth": 0}}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every parameter moved, so that no bias is 0 and no gain 1."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=g)
    return net


def arrays(net: nn.Module) -> dict[str, np.ndarray]:
    return {k: p.detach().double().numpy() for k, p in net.named_parameters()}


# plain trunks, in numpy


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name, x):
    off = x - x.mean(-1, keepdims=True)
    return off / np.sqrt((off**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def crelu(x):
    return np.concatenate([relu(x), relu(-x)], -1)


def plain_simba(p, x, depth, act=relu):
    x = linear(p, "trunk.first", x)
    for i in range(depth):
        block = f"trunk.blocks.{i}"
        x = x + linear(p, f"{block}.second", act(linear(p, f"{block}.first", norm(p, f"{block}.norm_in", x))))
    return linear(p, "head", norm(p, "trunk.norm", x))


def plain_bro(p, x, depth, act=relu):
    x = relu(norm(p, "trunk.norm", linear(p, "trunk.first", x)))
    for i in range(depth):
        block = f"trunk.blocks.{i}"
        inside = act(norm(p, f"{block}.norm", linear(p, f"{block}.first", x)))
        x = x + norm(p, f"{block}.norm_out", linear(p, f"{block}.second", inside))
    return linear(p, "head", x)


def plain(spec, p, x):
    forward = plain_simba if isinstance(spec, Simba) else plain_bro
    return forward(p, x, spec.depth, crelu if spec.activation == "crelu" else relu)


def built(spec, n_in: int = 7, n_out: int = 3):
    """A shaken network in double precision, and inputs for it."""
    net = shaken(MLP(n_in, n_out, spec)).double()
    return net, torch.randn(5, n_in, generator=torch.Generator().manual_seed(1)).double()


# trunks: what they compute


@either
@every_variant
def test_a_residual_network_is_the_one_written_by_hand(spec, options):
    spec = replace(spec, **options)
    net, x = built(spec)
    np.testing.assert_allclose(net(x)[0].detach().numpy(), plain(spec, arrays(net), x.numpy()), rtol=0, atol=1e-12)


@either
def test_an_actor_beside_large_critics_is_small_and_an_mlps_is_not(spec):
    acting = spec.acting()
    assert (acting.width, acting.depth) == (spec.actor_width, spec.actor_depth) == (6, 1)
    assert replace(acting, width=spec.width, depth=spec.depth) == spec
    assert Vectors(width=33).acting() == Vectors(width=33)
    agent = sac(net=spec)
    assert agent.critic.shapes["q.0.trunk.first.weight"] == (12, 7)
    assert agent.actor.shapes["trunk.first.weight"] == (6, 5)
    count = {
        name: sum("blocks" in layer.name and layer.kind == "linear" for layer in part.layers)
        for name, part in agent.parts.items()
    }
    assert count == {"critic": 2 * 2 * 2, "actor": 2, "alpha": 0}


@either
def test_critics_and_actor_put_the_trunk_between_their_inputs_and_heads(spec):
    critics, actor = shaken(Critics(3, 5, 2, 4, spec)).double(), shaken(GaussianActor(5, 2, spec.acting())).double()
    obs, action = torch.randn(6, 5).double(), torch.randn(6, 2).double()
    out = critics(obs, action)[0].detach().numpy()
    x = np.concatenate([obs, action], 1)
    for i in range(3):
        p = {k.removeprefix(f"q.{i}."): v for k, v in arrays(critics).items() if k.startswith(f"q.{i}.")}
        np.testing.assert_allclose(out[i], plain(spec, p, x), atol=1e-12)
    out = actor(obs)[0].detach().numpy()
    for j, head in enumerate(("mean", "log_std")):
        p = {k.replace(head, "head"): v for k, v in arrays(actor).items()}
        np.testing.assert_allclose(out[:, j], plain(spec.acting(), p, obs.numpy()), atol=1e-12)


def test_a_networks_value_does_not_depend_on_how_large_simbas_stream_has_grown():
    """Its last normalisation is behind the blocks; BRO's stream is read as it is."""
    outs = {}
    for spec in (SIMBA, BRO):
        net, x = built(spec)
        for block in net.trunk.blocks:
            for p in (block.second if spec is SIMBA else block.norm_out).parameters():
                p.data.zero_()
        before = net(x)[0]
        stream = net.trunk.first if spec is SIMBA else net.trunk.norm
        for p in stream.parameters():
            p.data *= 1e3
        outs[type(spec)] = (net(x)[0] - before).abs().max().item()
    assert outs[Simba] < 1e-2 < 1e2 < outs[Bro]


@either
def test_blocks_without_their_last_layer_are_the_identity(spec):
    net, x = built(spec)
    for block in net.trunk.blocks:
        last = block.second if isinstance(spec, Simba) else block.norm_out
        for p in last.parameters():
            p.data.zero_()
    without = replace(spec, depth=0)
    np.testing.assert_allclose(net(x)[0].detach().numpy(), plain(without, arrays(net), x.numpy()), atol=1e-12)


# trunks: their size and their birth


def sizes(name: str, *arguments: str) -> dict[str, int]:
    config = load([f"agent={name}", "env=dmc/walker-walk", *arguments])
    agent = SAC(config.agent, WALKER, config.net, config.value, config.interventions)
    return {part.name: sum(math.prod(shape) for shape in part.shapes.values()) for part in agent.parts.values()}


def test_simba_has_the_published_number_of_parameters_on_walker():
    critic = 30 * 512 + 512  # 24 observations and 6 actions
    critic += 2 * (2 * 512 + (512 * 2048 + 2048) + (2048 * 512 + 512))
    critic += 2 * 512 + 512 * 1 + 1
    actor = (24 * 128 + 128) + (2 * 128 + (128 * 512 + 512) + (512 * 128 + 128)) + 2 * 128 + 2 * (128 * 6 + 6)
    assert (critic, actor) == (4_218_881, 136_972)
    assert sizes("simba") == {"critic": critic, "actor": actor, "alpha": 1}


def test_bro_has_the_published_number_of_parameters_on_walker():
    critic = (30 * 512 + 512) + 2 * 512
    critic += 2 * ((512 * 512 + 512) + 2 * 512 + (512 * 512 + 512) + 2 * 512)
    critic += 512 * 100 + 100
    actor = (24 * 256 + 256) + 2 * 256 + 2 * ((256 * 256 + 256) + 2 * 256) + 2 * (256 * 6 + 6)
    assert (critic, actor) == (1_122_916, 142_604)
    assert sizes("bro") == {"critic": 2 * critic, "actor": actor, "alpha": 1}


def test_rlpd_has_ten_critics_of_the_published_size_on_walker():
    critic = (30 * 256 + 256) + (256 * 256 + 256) + (256 + 1)
    actor = (24 * 256 + 256) + (256 * 256 + 256) + 2 * (256 * 6 + 6)
    assert sizes("rlpd") == {"critic": 10 * critic, "actor": actor, "alpha": 1}
    critic += 2 * 2 * 256  # layer normalisation, as published
    assert sizes("rlpd", "interventions=[critic_norm]") == {"critic": 10 * critic, "actor": actor, "alpha": 1}


def check_orthogonal(weight: torch.Tensor, gain: float):
    w = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)).double(), rtol=0, atol=1e-5)


def newborn(spec, value=None):
    agent = sac(net=spec, value=value or Quantiles(5))
    return {name: agent.parts[name].birth(3).params for name in ("critic", "actor")}


def test_simba_is_born_orthogonal_with_gain_1_and_he_in_its_blocks():
    born = newborn(Simba(width=64, depth=2, actor_width=48))
    for params in born.values():
        for k, p in params.items():
            if k.endswith("weight") and p.ndim > 1:
                if "blocks" in k:
                    drawn = (p / math.sqrt(2 / p.shape[1])).flatten()  # Kaiming: variance 2 / inputs, Gaussian
                    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
                    assert drawn.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * drawn.numel()))
                else:
                    check_orthogonal(p, 1.0)
    assert born["critic"]["q.0.trunk.blocks.0.first.weight"].shape == (256, 64)


def test_bro_is_born_orthogonal_with_gain_sqrt_2():
    for params in newborn(Bro(width=64, depth=2, actor_width=48)).values():
        for k, p in params.items():
            if k.endswith("weight") and p.ndim > 1:
                check_orthogonal(p, 1.0 if k.startswith("log_std") else math.sqrt(2))


@either
def test_biases_are_born_zero_and_gains_one(spec):
    for params in newborn(spec).values():
        seen = Counter()
        for k, p in params.items():
            if p.ndim == 1:
                value = 0.0 if k.endswith("bias") else 1.0
                assert (p == value).all(), k
                seen[value] += 1
        assert seen[0.0] > seen[1.0] > 0


@either
def test_critics_of_a_pair_are_born_apart(spec):
    params = newborn(spec)["critic"]
    for k, p in params.items():
        if k.startswith("q.0.") and p.ndim > 1:
            assert not torch.equal(p, params[k.replace("q.0.", "q.1.")]), k


# trunks: the map of layers


def layers_of(net):
    return [layer for chain in net.chains() for layer in chain]


@either
def test_every_parameter_belongs_to_one_layer_of_the_kind_it_is_said_to_have(spec):
    net = MLP(7, 3, spec)
    kinds = {"linear": nn.Linear, "norm": nn.LayerNorm}
    owners = Counter(
        name for layer in layers_of(net) for name, _ in net.named_parameters() if name.startswith(layer.name + ".")
    )
    assert owners == {name: 1 for name, _ in net.named_parameters()}
    for layer in layers_of(net):
        assert isinstance(net.get_submodule(layer.name), kinds[layer.kind])
        assert layer.section == ("head" if layer.name == "head" else "trunk")
        if layer.norm:
            assert isinstance(net.get_submodule(layer.norm), nn.LayerNorm)


@either
def test_the_map_is_in_the_order_of_the_forward_pass(spec):
    net, x = built(spec)
    names, called = {net.get_submodule(layer.name): layer.name for layer in layers_of(net)}, []
    for module in names:
        module.register_forward_hook(lambda m, *_: called.append(names[m]))
    net(x)
    assert called == [layer.name for layer in layers_of(net)]


@either
def test_only_units_inside_blocks_can_be_recycled(spec):
    part = sac(net=spec).critic
    assert [layer.name for layer in recyclable(part, ("all",))] == [
        f"q.{i}.trunk.blocks.{j}.first" for i in range(2) for j in range(2)
    ]
    _, feats = part(weights(part.birth(0)), torch.randn(4, 5), torch.randn(4, 2))
    for layer in recyclable(part, ("all",)):
        assert feats[layer.feats].shape == (4, len(part.net.get_submodule(layer.name).weight))


@either
def test_a_unit_acts_through_its_readers_columns_and_through_nothing_else(spec):
    for options in ({}, {"activation": "crelu"}):
        intact, x = built(replace(spec, **options))
        before, seen = intact(x)
        for layer in (la for la in layers_of(intact) if la.feats):
            net, own = deepcopy(intact), layer.norm or layer.name
            shift = net.get_submodule(own).bias.data
            shift[2] += 20.0  # it speaks, whatever it said before
            after, moved = net(x)
            difference = (moved[layer.feats] - seen[layer.feats]).abs().amax(0)
            features = [2] if layer.halves == 1 else [2, len(shift) + 2]
            assert set(difference.nonzero().flatten().tolist()) <= set(features) and difference.any()
            assert (before - after).abs().max() > 1e-6
            (reader,) = layer.readers
            net.get_submodule(reader).weight.data[:, features] = 0
            without = net(x)[0]
            shift[2] += 1.0
            assert torch.equal(without, net(x)[0])


def recycled(spec, chosen_unit: int = 2):
    """A shaken network of one part before and after its unit inside the first block begins again, and the inputs."""
    part = sac(net=spec, critics=1, value=Scalar("mse")).critic
    s = double(part.birth(0))
    g = torch.Generator().manual_seed(2)
    s = s._replace(params={k: p + 0.3 * torch.randn(p.shape, generator=g).double() for k, p in s.params.items()})
    layer = recyclable(part, ("all",))[0]
    mask = torch.zeros(len(s.params[f"{layer.name}.weight"]), dtype=torch.bool)
    mask[chosen_unit] = True
    ctx = Context(part, {"critic": s}, Clock(steps=10), 0, "redo", "cpu", None)
    new = recycle(s, ctx, {layer.name: mask})
    obs, action = torch.randn(6, 5, generator=g).double(), torch.randn(6, 2, generator=g).double()
    return part, s, new, ctx.fresh(), (obs, action)


def bare(params):
    return {k.removeprefix("q.0."): p.double().numpy().copy() for k, p in params.items()}


@pytest.mark.parametrize("options", [{}, {"activation": "crelu"}, {"units": 0.5}], ids=["plain", "crelu", "units"])
def test_a_simba_with_a_recycled_unit_is_the_one_without_that_unit(options):
    spec = replace(SIMBA, **options)
    part, s, new, _, inputs = recycled(spec)
    p, count = bare(s.params), len(s.params["q.0.trunk.blocks.0.first.bias"])
    for k in ("weight", "bias"):
        p[f"trunk.blocks.0.first.{k}"] = np.delete(p[f"trunk.blocks.0.first.{k}"], 2, axis=0)
    columns = [2, 2 + count] if spec.activation == "crelu" else [2]
    p["trunk.blocks.0.second.weight"] = np.delete(p["trunk.blocks.0.second.weight"], columns, axis=1)
    wanted = plain(spec, p, np.concatenate(inputs, 1))
    np.testing.assert_allclose(part(weights(new), *inputs)[0][0].numpy(), wanted, atol=1e-12)
    assert np.abs(part(weights(s), *inputs)[0][0].numpy() - wanted).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"activation": "crelu"}], ids=["plain", "crelu"])
def test_in_bro_a_recycled_unit_is_read_by_nothing_but_the_normalisation_it_shares(options):
    """The others are normalised together with it, as behind every layer normalisation."""
    spec = replace(BRO, **options)
    part, s, new, fresh, inputs = recycled(spec)
    p, block, count = bare(s.params), "trunk.blocks.0", len(s.params["q.0.trunk.blocks.0.first.bias"])
    for k in ("first.weight", "first.bias", "norm.weight", "norm.bias"):
        p[f"{block}.{k}"][2] = fresh[f"q.0.{block}.{k}"].numpy()[2]
    assert p[f"{block}.norm.weight"][2] == 1 and p[f"{block}.norm.bias"][2] == 0
    x = np.concatenate(inputs, 1)
    columns = [2, 2 + count] if spec.activation == "crelu" else [2]
    p[f"{block}.second.weight"][:, columns] = 0.0
    said = part(weights(new), *inputs)[0][0].numpy()
    np.testing.assert_allclose(said, plain(spec, p, x), atol=1e-12)
    p[f"{block}.norm.bias"][2] += 5.0  # whatever it says: nobody hears it
    np.testing.assert_allclose(said, plain(spec, p, x), atol=1e-12)


def test_redo_on_silent_units_of_simba_keeps_its_function():
    redo = ReDo(threshold=0.0, batches=1, when=When(every=1))
    e = engine(sac([redo], net=SIMBA))
    for count in range(3):
        e.update(batch_for(CONTROL, e.seeds, count), Clock(steps=10**9, updates=count))
    for name in ("critic", "actor"):
        for layer in recyclable(e.learner.parts[name], ("all",)):
            e.states[name].params[f"{layer.name}.bias"][:, 0] = -1e3
    b = member(batch_for(CONTROL, e.seeds, 50), 0)
    critic, actor = e.learner.critic, e.learner.actor

    def said():
        s = member(e.states, 0)
        return critic(weights(s["critic"]), b["obs"], b["action"])[0], actor(weights(s["actor"]), b["obs"])[0]

    before, old = said(), tree_map(torch.clone, e.states)
    clock = Clock(steps=10**9, updates=3, last={"updates": 2})
    rows = e.intervene(clock, ("updates",), lambda stream, count, size: batch_for(CONTROL, e.seeds, 50))
    assert {row["part"] for row in rows} == {"critic", "actor"} and all(row["touched"] > 0 for row in rows)
    assert not equal(old["critic"].params, e.states["critic"].params)
    assert largest_difference(before, said()) < 1e-6


# trunks: what can be asked of them


@either
@pytest.mark.parametrize(
    "intervention", [LayerNorm, BatchNorm, NormalizeAndProject, Dropout], ids=["layer", "batch", "nap", "dropout"]
)
@pytest.mark.parametrize("on", [("critic",), ("actor",)], ids=["critic", "actor"])
def test_normalisations_of_others_and_dropout_are_refused_in_one_line(spec, intervention, on):
    name = type(spec).__name__.lower()
    with pytest.raises(ValueError, match=f"net: {name} has layer normalisation of its own and no dropout") as caught:
        sac([intervention(on=on)], net=spec)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in ("leave out", "layer_norm", "batch_norm", "dropout"))


@either
@pytest.mark.parametrize("match", ["output", "input", "parameters"])
def test_crelu_matches_what_it_promises_inside_the_blocks(spec, match):
    def count(part):
        return sum(math.prod(shape) for shape in part.shapes.values())

    relu_part, part = sac(net=spec).critic, sac([CReLU(match=match)], net=spec).critic
    inside = 4 * 12 if isinstance(spec, Simba) else 12
    first, second = (part.shapes[f"q.0.trunk.blocks.0.{k}.weight"] for k in ("first", "second"))
    assert second[1] == 2 * first[0] and second[0] == first[1] == 12
    if match == "parameters":
        one = 2 * 2 * (12 + 1 + 2 * 12 + 2 * isinstance(spec, Bro))  # a unit in each block of both critics
        assert abs(count(part) - count(relu_part)) <= one / 2
    else:
        assert first[0] == (inside // 2 if match == "output" else inside)


@either
def test_aid_masks_the_units_inside_blocks_in_training_alone(spec):
    agent = sac([ActivationIntervalDropout()], net=spec)
    noise = agent.critic.noise(BATCH)
    inside = 4 * 12 if isinstance(spec, Simba) else 12
    assert {k: n.shape for k, n in noise.items()} == {
        f"critic/q.{i}.trunk.blocks.{j}.act.uniform": (BATCH, inside) for i in range(2) for j in range(2)
    }
    e = engine(agent)
    before = tree_map(torch.clone, e.states["critic"].params)
    e.update(batch_for(CONTROL, (0,)), Clock(steps=10))
    assert not equal(before, e.states["critic"].params) and e.alive.all()


@either
def test_dqn_learns_from_vectors_with_residual_layers_but_not_with_noisy_ones(spec):
    e = engine(dqn(spec=VECTOR, net=spec))
    e.update(batch_for(VECTOR, (0,)), Clock(steps=10))
    assert e.alive.all()
    with pytest.raises(ValueError, match="net: residual layers have no noise; use net=mlp, or agent.noisy=0"):
        dqn(spec=VECTOR, net=spec, noisy=0.5)


# quantiles


def test_quantile_hubers_loss_has_these_numbers():
    """Two quantiles, tau = 1/4 and 3/4; the second target is far from both."""
    out, target = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 5.0]])
    first = (0.25 * 0.5 + 0.25 * 4.5) / 2  # u = 1 and 5
    second = (0.25 * 0.5 + 0.75 * 2.5) / 2  # u = -1 and 3
    assert Quantiles(2).loss(out, target).tolist() == pytest.approx([first + second])
    assert first + second == 1.625
    assert Quantiles(2).loss(out, out.clone()).tolist() == pytest.approx([(0.25 * 1.5 + 0.25 * 1.5) / 2])
    one = Quantiles(1)  # tau = 1/2: half of Huber's loss
    u = torch.tensor([[-3.0], [-0.5], [0.0], [0.5], [3.0]])
    assert one.loss(torch.zeros(5, 1), u).tolist() == pytest.approx([1.25, 0.0625, 0.0, 0.0625, 1.25])


def test_the_loss_is_a_sum_over_own_quantiles_of_the_mean_over_targets():
    g = torch.Generator().manual_seed(0)
    out, target = 2 * torch.randn(3, 4, 7, generator=g), 2 * torch.randn(3, 4, 5, generator=g)
    loss = Quantiles(7).loss(out, target)
    assert loss.shape == (3, 4)
    for where in itertools.product(range(3), range(4)):
        total = 0.0
        for i, own in enumerate(out[where].tolist()):
            for other in target[where].tolist():
                u, tau = other - own, (2 * i + 1) / 14
                huber = u * u / 2 if abs(u) <= 1 else abs(u) - 0.5
                total += abs(tau - (u < 0)) * huber / 5
        assert loss[where].item() == pytest.approx(total, rel=1e-5)


def minimiser(sample: np.ndarray, bins: int) -> np.ndarray:
    """The quantiles that fit a sample best."""
    target, value = torch.from_numpy(sample).double()[None], Quantiles(bins)

    def objective(x):
        out = torch.tensor(x, requires_grad=True)
        loss = value.loss(out[None], target)[0]
        loss.backward()
        return loss.item(), out.grad.numpy()

    start = np.full(bins, sample.mean())
    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-9}).x


def test_the_best_quantiles_of_five_numbers_are_these():
    """tau = 1/6, 1/2, 5/6; 4/6 of a number above pulls against 5/6 of one below: Huber lets go at 8/10."""
    best = minimiser(np.array([300.0, 0.0, 400.0, 100.0, 200.0]), bins=3)
    assert best == pytest.approx([0.8, 200.0, 399.2], abs=1e-4)


def test_the_best_quantiles_of_a_sample_are_its_own_within_hubers_kappa():
    sample = 10.0 * np.random.default_rng(0).permutation(101) ** 1.3
    best, taus = minimiser(sample, bins=10), (np.arange(10) + 0.5) / 10
    assert np.abs(best - np.quantile(sample, taus, method="inverted_cdf")).max() <= 1.0 + 1e-6
    assert (np.diff(best) > 0).all()


def test_a_quantile_target_is_shifted_and_scaled_quantile_by_quantile():
    value, g = Quantiles(4), torch.Generator().manual_seed(0)
    reward, discount, out = torch.randn(3, generator=g), torch.tensor([0.99, 0.0, 0.5]), torch.randn(3, 4, generator=g)
    target = value.backup(reward, discount, out)
    for b, j in itertools.product(range(3), range(4)):
        assert target[b, j].item() == pytest.approx(reward[b].item() + discount[b].item() * out[b, j].item(), abs=1e-6)
    torch.testing.assert_close(value.expected(target), reward + discount * value.decode(out))
    assert value.clipped(reward, discount, out).tolist() == [0, 0, 0]
    assert not Quantiles.logits and Quantiles().bins == 100


def test_the_quantile_losss_gradient_is_bounded_by_the_share_and_kappa():
    out = torch.tensor([[-50.0, 0.0, 50.0]], requires_grad=True)
    Quantiles(3).loss(out, torch.tensor([[1e6, 2e6, 3e6]])).sum().backward()
    assert out.grad[0].tolist() == pytest.approx([-1 / 6, -1 / 2, -5 / 6])


# one distribution for several

MIXED = {name: VALUES[name]() for name in VALUES} | {"fine": HLGauss(-2.0, 3.0, 31), "coarse": TwoHot(-1.0, 5.0, 2)}
every_value = pytest.mark.parametrize("value", MIXED.values(), ids=MIXED)


@every_value
def test_a_mixtures_value_is_the_mean_of_the_values(value):
    for shape in ((1, 6), (2, 6), (5, 3, 4)):
        out = 3 * torch.randn(*shape, value.bins, generator=torch.Generator().manual_seed(len(shape))).double()
        mixed = value.mixture(out)
        assert mixed.shape == (*shape[1:], value.bins)
        torch.testing.assert_close(value.decode(mixed), value.decode(out).mean(0), rtol=0, atol=1e-6)


@every_value
def test_a_mixture_is_a_distribution(value):
    out = 3 * torch.randn(4, 6, value.bins, generator=torch.Generator().manual_seed(0)).double()
    if value.logits:
        mixed = value.mixture(out)
        torch.testing.assert_close(mixed.exp().sum(-1), torch.ones(6).double())  # not only after a softmax
        torch.testing.assert_close(mixed.softmax(-1), out.softmax(-1).mean(0))
        far = value.mixture(torch.stack([1e4 * out[0], -1e4 * out[1]]).float())
        assert far.isfinite().all() and (far.exp().sum(-1) - 1).abs().max() < 1e-4
    elif value.bins > 1:
        mixed = value.mixture(out.sort(-1).values)  # quantiles that do not cross are averaged into such
        assert (mixed.diff(dim=-1) >= 0).all()


@every_value
def test_a_mixture_of_one_or_of_equals_is_that_one(value):
    out = torch.randn(6, value.bins, generator=torch.Generator().manual_seed(0)).double()
    for k in (1, 3):
        mixed = value.mixture(out.expand(k, *out.shape))
        own = out.log_softmax(-1) if value.logits else out
        torch.testing.assert_close(mixed, own)


def test_a_c51_target_of_a_mixture_is_the_mixture_of_the_targets():
    value, g = C51(-2.0, 2.0, 11), torch.Generator().manual_seed(0)
    out, reward, discount = torch.randn(3, 4, 11, generator=g), torch.randn(4, generator=g), torch.full((4,), 0.9)
    mean = torch.stack([value.backup(reward, discount, one) for one in out]).mean(0)
    torch.testing.assert_close(value.backup(reward, discount, value.mixture(out)), mean)


# SAC in plain torch


class PlainSAC:
    """SAC with all its options, written anew: dictionaries of leaves, torch's AdamW, in double precision."""

    def __init__(self, agent, states):
        self.o, self.value, self.net = agent.settings, agent.value, agent.critic.spec
        leaves = double(tree_map(torch.clone, {name: s.params for name, s in states.items()}))
        self.p = {name: {k: v.requires_grad_() for k, v in tensors.items()} for name, tensors in leaves.items()}
        self.target = double(tree_map(torch.clone, states["critic"].copies["target"]))
        self.optim = {
            "critic": self.adamw(self.p["critic"]),
            "actor": self.adamw(self.p["actor"]),
            "alpha": torch.optim.Adam(
                self.p["alpha"].values(), lr=self.o.learning_rate, betas=(self.o.temperature_b1, 0.999)
            ),
        }

    def adamw(self, params):
        everything = self.o.decays == "all"
        groups = [
            {"params": [p for p in params.values() if everything or p.ndim == 2], "weight_decay": self.o.weight_decay},
            {"params": [p for p in params.values() if not everything and p.ndim != 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.o.learning_rate)

    def trunk(self, p, prefix, x, depth):
        def lin(name, x):
            return x @ p[f"{prefix}{name}.weight"].T + p[f"{prefix}{name}.bias"]

        def norm(name, x):
            off = x - x.mean(-1, keepdim=True)
            off = off / (off.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            return off * p[f"{prefix}{name}.weight"] + p[f"{prefix}{name}.bias"]

        if isinstance(self.net, Simba):
            x = lin("first", x)
            for i in range(depth):
                inside = lin(f"blocks.{i}.first", norm(f"blocks.{i}.norm_in", x)).clamp(min=0)
                x = x + lin(f"blocks.{i}.second", inside)
            return norm("norm", x)
        if isinstance(self.net, Bro):
            x = norm("norm", lin("first", x)).clamp(min=0)
            for i in range(depth):
                inside = norm(f"blocks.{i}.norm", lin(f"blocks.{i}.first", x)).clamp(min=0)
                x = x + norm(f"blocks.{i}.norm_out", lin(f"blocks.{i}.second", inside))
            return x
        for i in range(depth):
            x = lin(f"layers.{i}", x).clamp(min=0)
        return x

    def critic(self, p, obs, action):
        """-> [critics, B, bins]"""
        x, outs = torch.cat([self.seen(obs), action], 1), []
        for i in range(self.o.critics):
            h = self.trunk(p, f"q.{i}.trunk.", x, self.net.depth)
            outs.append(h @ p[f"q.{i}.head.weight"].T + p[f"q.{i}.head.bias"])
        return torch.stack(outs)

    def policy(self, obs, noise):
        p = self.p["actor"]
        h = self.trunk(p, "trunk.", self.seen(obs), getattr(self.net, "actor_depth", self.net.depth))
        mean, raw = (h @ p[f"{k}.weight"].T + p[f"{k}.bias"] for k in ("mean", "log_std"))
        std = torch.exp(-10 + 6 * (1 + torch.tanh(raw)))
        u = mean + std * noise
        log_cosh = torch.logaddexp(u, -u) - math.log(2)  # d tanh(u) / du = 1 / cosh(u)^2
        log_prob = torch.distributions.Normal(mean, std).log_prob(u) + 2 * log_cosh
        return torch.tanh(u), log_prob.sum(1)

    def seen(self, obs):
        return (obs - self.mean) / torch.sqrt(self.var + 1e-8) if self.o.standardise else obs

    def step(self, name, loss):
        self.optim[name].zero_grad()
        loss.backward()
        self.optim[name].step()

    def update(self, b, noise):
        if self.o.standardise:
            self.mean, self.var = b["obs_mean"], b["obs_var"]
        halves = [self.update_critic, self.update_policy]
        found = {}
        for half in reversed(halves) if self.o.order == "actor_first" else halves:
            found |= half(b, noise)
        return found

    def update_critic(self, b, noise):
        n, quantiles = len(b["reward"]), isinstance(self.value, Quantiles)
        with torch.no_grad():
            alpha = self.p["alpha"]["log"].exp()
            action, log_prob = self.policy(b["next_obs"], noise["critic"])
            every = self.critic(self.target, b["next_obs"], action)
            if self.o.subset:  # those with the least random numbers
                drawn = sorted(range(self.o.critics), key=lambda i: float(noise["subset"][i]))
                every = every[drawn[: self.o.subset]]
            if self.o.target_value == "mean":
                joined = every.mean(0)
            else:  # of each sample the critic that expects the least
                joined = torch.stack([min(every[:, i], key=lambda out: float(out.mean())) for i in range(n)])
            y = b["reward"][:, None] + b["discount"][:, None] * (joined - alpha * log_prob[:, None])
        out, bins = self.critic(self.p["critic"], b["obs"], b["action"]), self.value.bins
        if quantiles:
            u = y[None, :, None, :] - out[..., None]
            huber = torch.where(u.abs() <= 1, u**2 / 2, u.abs() - 0.5)
            tau = ((torch.arange(bins) + 0.5) / bins).double()[:, None]  # rounded to single precision
            error = (torch.where(u < 0, 1 - tau, tau) * huber).sum(2).mean(2)
        else:
            error = ((out - y) ** 2)[..., 0]
        loss = sum((b["weight"] * one).mean() for one in error)
        self.step("critic", loss)
        with torch.no_grad():
            for k, p in self.p["critic"].items():
                self.target[k] = (1 - self.o.tau) * self.target[k] + self.o.tau * p
        return {"critic/loss": loss.item(), "priority": error.mean(0).detach()}

    def update_policy(self, b, noise):
        alpha = self.p["alpha"]["log"]
        action, log_prob = self.policy(b["obs"], noise["actor"])
        q = self.critic(self.p["critic"], b["obs"], action).mean(2)
        q = q.mean(0) if self.o.actor_value == "mean" else q.min(0).values
        loss = (alpha.exp().detach() * log_prob - q).mean()
        self.step("actor", loss)
        self.step("alpha", alpha.exp() * (-log_prob.mean().detach() - self.o.target_entropy * 2))
        return {"actor/loss": loss.item(), "alpha": alpha.item()}


PUBLISHED_BRO = {"target_value": "mean", "actor_value": "mean", "temperature_b1": 0.5, "decays": "all"}
PUBLISHED_SIMBA = {"critics": 1, "order": "actor_first", "decays": "all", "standardise": True, "weight_decay": 0.01}
OPTIONS = {
    "target of means": {"target_value": "mean", "critics": 3},
    "actor of means": {"actor_value": "mean", "critics": 3},
    "subset": {"critics": 5, "subset": 2, "actor_value": "mean"},
    "subset of means": {"critics": 4, "subset": 3, "target_value": "mean"},
    "actor first": {"order": "actor_first"},
    "matrices decay": {"weight_decay": 0.3},
    "all decays": {"weight_decay": 0.3, "decays": "all"},
    "impatient temperature": {"temperature_b1": 0.5},
    "standardised": {"standardise": True},
    "quantiles": {"value": Quantiles(5)},
    "quantiles of means": {"value": Quantiles(5), "target_value": "mean", "actor_value": "mean"},
    "quantiles of a subset": {"value": Quantiles(4), "critics": 4, "subset": 2, "order": "actor_first"},
    "simba": {"net": SIMBA, "learning_rate": 1e-4, "initial_temperature": 0.01, **PUBLISHED_SIMBA},
    "bro": {"net": BRO, "value": Quantiles(6), "weight_decay": 1e-4, **PUBLISHED_BRO},
    "all at once": {
        "net": BRO, "value": Quantiles(3), "critics": 4, "subset": 2, "standardise": True, "order": "actor_first",
        "weight_decay": 0.1, **PUBLISHED_BRO,
    },
}  # fmt: skip
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def prepared(seeds, count):
    """A batch with importance weights that are not 1 and moments that move; leaves [n, B, ...]."""
    b = batch_for(CONTROL, seeds, count)
    g = torch.Generator().manual_seed(count)
    moments = {"obs_mean": torch.randn(1, 5, generator=g), "obs_var": 0.1 + 2 * torch.rand(1, 5, generator=g)}
    b["weight"] = torch.linspace(0.2, 1.0, BATCH).expand(len(seeds), -1).clone()
    b["reward"] = 2 * b["reward"]
    return b | {k: v * torch.arange(1, len(seeds) + 1)[:, None] for k, v in moments.items()}


def noise_of(e, count):
    """What the engine draws for update number `count`."""
    return draw(e.noise, e._keys, torch.tensor(count))


def aged(e):
    """The engine's states with biases, gains and targets moved away from those of a newborn."""
    g = torch.Generator().manual_seed(7)
    for s in e.states.values():
        for tensors in (s.params, *s.copies.values()):
            for k, p in tensors.items():
                if k != "log" and not k.startswith("standardise"):
                    p += 0.1 * torch.randn(p.shape, generator=g)
    return e


def same_numbers(s, reference, atol):
    for name, tensors in reference.p.items():
        for k, p in tensors.items():
            torch.testing.assert_close(
                s[name].params[k].double(), p.detach(), rtol=0, atol=atol, msg=lambda m, k=k: f"{k}: {m}"
            )
    for k, p in reference.target.items():
        if not k.startswith("standardise"):
            torch.testing.assert_close(s["critic"].copies["target"][k].double(), p, rtol=0, atol=atol)


@every_option
def test_sacs_updates_with_each_option_are_those_of_a_plain_implementation(options):
    """By values and in double precision, with the random numbers of the engine."""
    options = {"initial_temperature": 0.7, "tau": 0.05, **options}
    e, agent = aged(engine(sac(**options))), sac(**options)
    s = double(member(tree_map(torch.clone, e.states), 0))
    reference = PlainSAC(agent, s)
    for count in range(1, 5):
        b, noise = double(member(prepared((0,), count), 0)), double(member(noise_of(e, count), 0))
        wanted = reference.update(b, noise)
        s, info = agent.update(s, b, noise)
        for k in ("critic/loss", "actor/loss"):
            assert info[k].item() == pytest.approx(wanted[k], rel=1e-9)
        torch.testing.assert_close(info["priority"], wanted["priority"])
        same_numbers(s, reference, atol=1e-9)
        for name in ("critic", "actor", "alpha"):  # Adam hides a gradient's scale
            for k, p in reference.p[name].items():
                moment = reference.optim[name].state[p]["exp_avg"]
                torch.testing.assert_close(s[name].optim["m"][k], moment, rtol=1e-6, atol=1e-10)


@every_option
def test_the_engine_makes_these_updates_for_each_of_its_seeds(options):
    """In place and in single precision: the path that an eager run takes."""
    options = {"initial_temperature": 0.7, "tau": 0.05, **options}
    seeds = (3, 8)
    e = aged(engine(sac(**options), seeds))
    references = [PlainSAC(e.learner, member(e.states, i)) for i in range(2)]
    for count in range(1, 4):
        b, noise = prepared(seeds, count), noise_of(e, count)
        for i, reference in enumerate(references):
            reference.update(double(member(b, i)), double(member(noise, i)))
        e.update(b, Clock(steps=10**9, updates=count - 1))
    for i, reference in enumerate(references):
        same_numbers(member(e.states, i), reference, atol=1e-5)


def test_each_option_makes_a_difference():
    """Else the tests above would prove nothing."""
    base = {"critics": 4, "weight_decay": 0.3, "learning_rate": 3e-3}
    changes = [
        {}, {"target_value": "mean"}, {"actor_value": "mean"}, {"subset": 2}, {"order": "actor_first"},
        {"decays": "all"}, {"temperature_b1": 0.5}, {"standardise": True},
    ]  # fmt: skip
    ends = []
    for change in changes:
        e = aged(engine(sac(**base, **change)))
        for count in range(3):
            e.update(prepared((0,), count), Clock(steps=10**9, updates=count))
        ends.append({name: s.params for name, s in e.states.items()})
    for a, b in itertools.combinations(ends, 2):
        assert max(largest_difference(a[name], b[name]) for name in a) > 1e-5


@pytest.mark.slow
def test_the_compiled_update_is_the_eager_one():
    """Of all options at once: the whole update of two seeds as one region."""
    options = OPTIONS["all at once"] | {"net": Bro(width=6, depth=1, actor_width=4), "critics": 2, "subset": 1}
    ends = []
    for compile in (False, True):
        e = aged(engine(sac(**options), (3, 8), compile=compile))
        for count in range(2):
            e.update(prepared(e.seeds, count), Clock(steps=10**9, updates=count))
        ends.append(e.states)
    for name in ends[0]:
        assert largest_difference(ends[0][name], ends[1][name]) < 1e-5


# who moves first


def test_with_the_actor_first_the_actor_sees_the_old_critic_and_the_critic_the_new_policy():
    first, last = sac(order="actor_first"), sac()
    e = aged(engine(sac()))
    s, b = double(member(tree_map(torch.clone, e.states), 0)), double(member(prepared((0,), 1), 0))
    noise = double(member(noise_of(e, 1), 0))
    _, acting_first = first.update(s, b, noise)
    assert acting_first["actor/loss"] == first.actor_loss(s["actor"].params, s, b, noise).loss
    moved, _ = first.update_policy(s, b, noise)
    assert not equal(moved["alpha"].params, s["alpha"].params)
    assert acting_first["critic/loss"] == first.critic_loss(s["critic"].params, moved, b, noise).loss
    _, acting_last = last.update(s, b, noise)
    assert acting_last["critic/loss"] == last.critic_loss(s["critic"].params, s, b, noise).loss
    assert acting_last["actor/loss"] != acting_first["actor/loss"]


# random subsets of critics


def critics_in_targets(agent, seeds, updates, next_value):
    """Which critics entered the target of each update: target critic i says 2^i whatever it sees. -> [n][updates]"""
    e = engine(agent, seeds)
    for k, p in e.states["critic"].copies["target"].items():
        p.zero_()
        if k.endswith("head.bias"):
            p += 2.0 ** int(k.split(".")[1])
    e.states["alpha"].params["log"].fill_(-100.0)
    b = batch_for(CONTROL, seeds)
    b |= {"reward": torch.zeros(len(seeds), BATCH), "discount": torch.ones(len(seeds), BATCH)}
    found = [[] for _ in seeds]
    with torch.no_grad():
        for count in range(1, updates + 1):
            noise = noise_of(e, count)
            for i in range(len(seeds)):
                s = member(e.states, i)
                target = agent.critic_loss(s["critic"].params, s, member(b, i), member(noise, i)).values["target"]
                assert (target == target[0]).all()  # one subset for the whole batch
                found[i].append(next_value(target[0].item()))
    return found


def bits(number: float, subset: int) -> tuple[int, ...]:
    total = round(number * subset)
    return tuple(i for i in range(total.bit_length()) if total >> i & 1)


def test_subsets_have_their_size_occur_alike_and_are_each_seeds_own():
    agent, updates = sac(critics=5, subset=2, target_value="mean"), 400
    both = critics_in_targets(agent, (0, 1), updates, lambda value: bits(value, 2))
    subsets = list(itertools.combinations(range(5), 2))
    for mine in both:
        counts = Counter(mine)
        assert set(counts) == set(subsets)
        assert stats.chisquare([counts[one] for one in subsets]).pvalue > 1e-3
        repeats = sum(a == b for a, b in itertools.pairwise(mine))
        assert stats.binomtest(repeats, updates - 1, 1 / 10).pvalue > 1e-3  # drawn anew for every update
    agreeing = sum(a == b for a, b in zip(*both, strict=True))
    assert stats.binomtest(agreeing, updates, 1 / 10).pvalue > 1e-3
    alone = critics_in_targets(agent, (1,), 20, lambda value: bits(value, 2))
    assert alone[0] == both[1][:20]


def test_the_least_of_a_subset_is_taken_and_all_critics_learn_from_it():
    agent = sac(critics=4, subset=2)
    (found,) = critics_in_targets(agent, (0,), 300, lambda value: round(math.log2(value)))
    counts = [Counter(found)[i] for i in range(4)]
    assert counts[3] == 0  # the best of four is never the worst of two
    assert stats.chisquare(counts[:3], [150, 100, 50]).pvalue > 1e-3
    e = engine(agent)
    before = tree_map(torch.clone, e.states["critic"].params)
    e.update(batch_for(CONTROL, (0,)), Clock(steps=10))
    for k, p in e.states["critic"].params.items():
        if k.endswith("head.weight"):
            assert not torch.equal(p, before[k])


def test_a_subset_of_all_is_all_of_them():
    some, every = sac(critics=3, subset=3), sac(critics=3)
    e = aged(engine(some))
    s, b, noise = member(e.states, 0), member(prepared((0,), 1), 0), member(noise_of(e, 1), 0)
    a, b = (agent.critic_loss(s["critic"].params, s, b, noise).loss for agent in (some, every))
    assert a == b
    assert "subset" not in every.noise(BATCH)


def test_more_critics_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match="agent.subset: 3 given; expected at most critics=2"):
        sac(subset=3)


# decay


@pytest.mark.parametrize("fused", [False, True], ids=["by values", "in place"])
@pytest.mark.parametrize("decays", ["matrices", "all"])
@either
def test_what_decays_does_so_as_in_torchs_adamw(spec, decays, fused):
    """Large decay, and every bias, gain and shift away from 0 and 1."""
    agent = sac(net=spec, weight_decay=2.0, decays=decays, learning_rate=1e-3)
    s = member(aged(engine(agent)).states, 0)
    for part in agent.parts.values():
        part.fused = fused
    b, noise = member(prepared((0,), 1), 0) | {"alive": torch.tensor(True)}, member(noise_of(engine(sac()), 1), 0)
    for name in ("critic", "actor", "alpha"):
        old, before = tree_map(torch.clone, s), s[name].params
        grads, _ = agent.parts[name].gradient(s, b, noise)
        leaves = {k: p.detach().clone().requires_grad_() for k, p in before.items()}
        for k, leaf in leaves.items():
            leaf.grad = grads[k]
        rate = {k: 0.0 if name == "alpha" or (decays == "matrices" and p.ndim < 2) else 2.0 for k, p in leaves.items()}
        groups = [{"params": [leaf], "weight_decay": rate[k]} for k, leaf in leaves.items()]
        torch.optim.AdamW(groups, lr=1e-3).step()
        new, _ = descend(agent.parts[name], tree_map(torch.clone, s), b, noise)
        for k, leaf in leaves.items():
            torch.testing.assert_close(new[name].params[k], leaf.detach(), rtol=0, atol=1e-6)
            pulled = 1e-3 * 2.0 * old[name].params[k].abs().max()
            assert name == "alpha" or pulled > 1e-5  # or it could not be seen
    assert agent.alpha.optim.decay == 0


def test_the_temperature_forgets_by_its_own_beta():
    agent = sac(temperature_b1=0.5)
    assert (agent.alpha.optim.b1, agent.critic.optim.b1, agent.actor.optim.b1) == (0.5, 0.9, 0.9)
    assert sac().alpha.optim.b1 == 0.9


# moments of observations


def test_moments_are_numpys_of_all_that_was_seen():
    seen = np.random.default_rng(0).normal(3, [0.1, 1, 10], (200, 2, 3)).astype(np.float32)
    moments = Moments(2, 3)
    for i, row in enumerate(seen):
        moments.add(row)
        if i in (1, 2, 50, 199):
            found, past = moments.tensors(), seen[: i + 1].astype(np.float64)
            np.testing.assert_allclose(found["obs_mean"].numpy(), past.mean(0), rtol=1e-6)
            np.testing.assert_allclose(found["obs_var"].numpy(), past.var(0), rtol=1e-5)
            assert found["obs_mean"].dtype == found["obs_var"].dtype == torch.float32


def test_one_observation_has_no_variance_and_a_constant_stays_zero():
    moments = Moments(1, 2)
    assert moments.tensors()["obs_mean"].tolist() == [[0, 0]] and moments.tensors()["obs_var"].tolist() == [[1, 1]]
    moments.add(np.array([[5.0, 7.0]], np.float32))
    assert moments.tensors()["obs_mean"].tolist() == [[5, 7]] and moments.tensors()["obs_var"].tolist() == [[1, 1]]
    for other in (3.0, 4.0):
        moments.add(np.array([[other, 0.1]], np.float32))
    np.testing.assert_allclose(moments.tensors()["obs_mean"].numpy(), [[4.0, 2.4]], rtol=1e-6)
    np.testing.assert_allclose(moments.tensors()["obs_var"].numpy(), [[2 / 3, 2 * 2.3**2]], rtol=1e-6)
    constant = Moments(1, 1)
    for _ in range(1000):
        constant.add(np.full((1, 1), 0.1, np.float32))
    assert constant.tensors()["obs_mean"].item() == np.float32(0.1) and constant.tensors()["obs_var"].item() == 0


def test_a_large_mean_does_not_eat_the_variance():
    seen = 1e6 + np.random.default_rng(0).integers(-2, 3, (1000, 1, 1)).astype(np.float32)
    moments = Moments(1, 1)
    for row in seen:
        moments.add(row)
    assert moments.tensors()["obs_var"].item() == pytest.approx(seen.astype(np.float64).var(), rel=1e-5)


def filled(steps: int, standardise: bool = True, replay: Replay | None = None, start: int = 0):
    """A small replay of two seeds that overwrites; what it was given."""
    if replay is None:
        replay = Replay(CONTROL, (0, 1), capacity=16, standardise=standardise)
    g, shown = np.random.default_rng(start), []
    for i in range(start, start + steps):
        obs, action = g.normal(i, 1, (2, 5)).astype(np.float32), g.uniform(-1, 1, (2, 2)).astype(np.float32)
        ended = np.array([i % 7 == 6, i % 5 == 4])
        replay.add(obs, action, np.ones(2, np.float32), np.zeros(2, bool), ended, g.normal(0, 1, (2, 5)))
        shown.append(obs)
    return replay, np.stack(shown).astype(np.float64)


def check_moments(batch, shown):
    np.testing.assert_allclose(batch["obs_mean"].numpy(), shown.mean(0), rtol=1e-5)
    np.testing.assert_allclose(batch["obs_var"].numpy(), shown.var(0), rtol=1e-5)


def test_the_replay_remembers_the_moments_of_what_it_has_overwritten():
    replay, shown = filled(100)
    for stream in ("replay", "observe"):
        check_moments(replay.sample(4, 0, stream=stream), shown)
    replay.truncate(np.zeros((2, 5), np.float32))
    replay.clear()
    replay, more = filled(20, replay=replay, start=100)  # another task
    check_moments(replay.sample(4, 1), np.concatenate([shown, more]))
    plain, _ = filled(20, standardise=False)
    assert plain.moments is None and not {"obs_mean", "obs_var"} & plain.sample(4, 0).keys()


def test_moments_survive_saving_and_loading_bit_by_bit(tmp_path):
    replay, _ = filled(37)
    saved = replay.save(tmp_path)
    again = Replay(CONTROL, (0, 1), capacity=16, standardise=True)
    again.load(tmp_path, saved)
    for one in (replay, again):
        filled(23, replay=one, start=37)
    a, b = replay.sample(4, 5), again.sample(4, 5)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again.moments.count == 60


def test_standardised_networks_see_what_was_subtracted_and_divided():
    spec = Vectors(width=8)
    pair = [shaken(Critics(2, 5, 2, 1, spec, standardise)).double() for standardise in (True, False)]
    obs, action = 100 + 7 * torch.randn(6, 5).double(), torch.randn(6, 2).double()
    mean, var = torch.full((5,), 99.0).double(), torch.tensor([49.0, 1.0, 0.25, 0.0, 4.0]).double()
    pair[1].load_state_dict(pair[0].q.state_dict(prefix="q."))
    pair[0].standardise.mean.copy_(mean), pair[0].standardise.var.copy_(var)
    by_hand = (obs - mean) / torch.sqrt(var + 1e-8)
    torch.testing.assert_close(pair[0](obs, action)[0], pair[1](by_hand, action)[0])  # actions as they are
    actors = [shaken(GaussianActor(5, 2, spec, standardise)).double() for standardise in (True, False)]
    actors[1].load_state_dict(actors[0].state_dict(), strict=False)
    actors[0].standardise.mean.copy_(mean), actors[0].standardise.var.copy_(var)
    torch.testing.assert_close(actors[0](obs)[0], actors[1](by_hand)[0])
    names = {"standardise.mean", "standardise.var"}
    assert names <= set(dict(actors[0].named_buffers())) and not names & set(dict(actors[0].named_parameters()))


def moments_in(states) -> list[tuple[str, dict]]:
    """The moments every network and slow copy holds, with whose they are."""
    found = []
    for name, s in states.items():
        for role, tensors in {"params": s.buffers, **s.copies}.items():
            held = {k: v for k, v in tensors.items() if k.startswith("standardise.")}
            if held:
                found.append((f"{name}/{role}", held))
    return found


def test_every_network_and_slow_copy_has_the_latest_moments_even_those_of_a_newborn():
    tortoise, reset = HareAndTortoise(momentum=0.5, when=When(every=2)), Reset(on=("*", "alpha"), where=("all",))
    e = engine(sac([tortoise, reset], standardise=True), (0, 1))
    reset.when = When(every=3)
    born = {where for where, _ in moments_in(e.states)}
    assert born == {"critic/params", "critic/target", "critic/tortoise", "actor/params", "actor/tortoise"}
    clock = Clock(steps=10**9)
    for count in range(6):
        b = prepared(e.seeds, count)
        e.update(b, clock)
        clock.update()
        rows = e.intervene(clock, ("updates",), lambda stream, count, size: prepared(e.seeds, 99))
        assert bool(rows) == (count % 2 == 1 or count % 3 == 2)
        for where, held in moments_in(e.states):
            assert torch.equal(held["standardise.mean"], b["obs_mean"]), (where, count)
            assert torch.equal(held["standardise.var"], b["obs_var"]), (where, count)
    assert not torch.equal(b["obs_mean"][0], b["obs_mean"][1])  # each seed has its own


def test_a_member_that_has_diverged_keeps_its_moments():
    e = engine(sac(standardise=True), (0, 1))
    e.update(prepared(e.seeds, 0), Clock(steps=10**9))
    bad = prepared(e.seeds, 1)
    bad["reward"][0] = torch.nan
    e.update(bad, Clock(steps=10**9, updates=1))
    assert e.diverged() == [True, False]
    before, later = tree_map(torch.clone, e.states), prepared(e.seeds, 2)
    e.update(later, Clock(steps=10**9, updates=2))
    for (where, old), (_, new) in zip(moments_in(before), moments_in(e.states), strict=True):
        assert torch.equal(old["standardise.mean"][0], new["standardise.mean"][0]), where
        assert torch.equal(new["standardise.mean"][1], later["obs_mean"][1]), where


def test_acting_standardises_as_training_does():
    e = engine(sac(standardise=True))
    e.update(prepared((0,), 3), Clock(steps=10**9))
    obs = torch.randn(1, 4, 5)
    s = member(e.states, 0)["actor"]
    blind = sac()
    x = (obs[0] - s.buffers["standardise.mean"]) / torch.sqrt(s.buffers["standardise.var"] + 1e-8)
    mean, _, _ = blind.gaussian(s.params, x)
    action = e.act(obs.numpy(), 0.0, "act", 0)
    np.testing.assert_allclose(action[0], mean.tanh().detach().numpy(), atol=1e-5)


# a whole run with moments

RUN = ["agent=sac", "agent.standardise=true", "agent.order=actor_first", "agent.critics=3", "agent.subset=2"]
RUN += ["agent.actor_value=mean", "agent.weight_decay=0.01", "agent.decays=all", "agent.temperature_b1=0.5"]
RUN += ["env=toy/reach", "net=simba", "net.width=8", "net.actor_width=8", "net.depth=1", "agent.batch_size=8"]
RUN += ["steps=80", "warmup=20", "replay_ratio=2", "replay.capacity=30", "seeds=[0,1]", "compile=false"]
RUN += ["interventions=[full_reset,hare_and_tortoise]", "interventions.full_reset.when.every=25"]
RUN += ["interventions.hare_and_tortoise.when.every=17", "eval_every=40", "eval_episodes=1", "log_every=20"]
RUN += ["save_every=15", "observe_every=0", "rank_every=0", "probe_every=0"]


def digests(folder, capsys) -> dict[str, str]:
    capsys.readouterr()
    assert run_command(["digest", str(folder)]) == 0
    return dict(line.split() for line in capsys.readouterr().out.splitlines())


def played(folder, stop: int = 0) -> list[np.ndarray]:
    """Run, or until `stop` env steps. -> observations that were acted on"""
    run, shown = AgentSession(load([*RUN, f"run_dir={folder}"])), []
    step = run.envs.step

    def noted(action):
        shown.append(run.envs.frame.copy())
        return step(action)

    run.envs.step, turn = noted, run.progress.step

    def watch():
        turn()
        if stop and run.clock.env_steps >= stop:
            os.kill(os.getpid(), signal.SIGTERM)

    run.progress.step = watch
    with run:
        train.loop(run.config, run)
    return shown


def test_a_run_that_standardises_goes_on_as_if_uninterrupted_and_knows_all_it_has_seen(tmp_path, capsys):
    shown = np.stack(played(tmp_path / "whole")).astype(np.float64)
    assert len(shown) == 80
    pieces = [np.stack(played(tmp_path / "broken", stop)) for stop in (11, 33, 57)] + [
        np.stack(played(tmp_path / "broken"))
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), shown)
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "whole", capsys)
    whole, broken = (checkpoint.load(checkpoint.newest(tmp_path / name)) for name in ("whole", "broken"))
    for saved in (whole, broken):
        moments = saved["replay"]["moments"]
        assert moments["count"] == 80
        np.testing.assert_allclose(moments["mean"].numpy(), shown.mean(0), atol=1e-12)
        np.testing.assert_allclose(moments["squares"].numpy() / 80, shown.var(0), atol=1e-12)
    assert torch.equal(whole["replay"]["moments"]["squares"], broken["replay"]["moments"]["squares"])
    found = 0
    for fields in whole["states"].values():  # networks hold them too, two resets and several restarts later
        for tensors in (fields["buffers"], *fields["copies"].values()):
            for k, numpys in (("standardise.mean", shown.mean(0)), ("standardise.var", shown.var(0))):
                if k in tensors:
                    found += 1
                    np.testing.assert_allclose(tensors[k].numpy(), numpys, rtol=1e-5, atol=1e-6)
    assert found == 2 * 5
    ledger = (tmp_path / "whole" / "ledger.jsonl").read_text()
    assert ledger.count('"full_reset"') == 2 * 3 * 2 and '"hare_and_tortoise"' in ledger


# published numbers


def test_simba_is_configured_as_published():
    config = load(["agent=simba", "env=dmc/walker-walk"])
    o, net = config.agent, config.net
    assert config.agent_kind == "sac" and type(net) is Simba and config.value == Scalar("mse")
    assert (net.width, net.depth, net.actor_width, net.actor_depth, net.init) == (512, 2, 128, 1, "orthogonal_1")
    assert (o.learning_rate, o.weight_decay, o.decays) == (1e-4, 0.01, "all")
    assert (o.critics, o.order, o.initial_temperature, o.temperature_b1) == (1, "actor_first", 0.01, 0.9)
    assert (o.standardise, o.batch_size, o.tau, o.target_entropy) == (True, 256, 0.005, -0.5)
    assert (o.n_step, o.subset) == (1, 0) and config.interventions == ()
    assert o.discount == pytest.approx(min(max((500 / 5 - 1) / (500 / 5), 0.95), 0.995)) == 0.99
    assert (config.replay_ratio, config.warmup, config.env_options["action_repeat"]) == (2, 5_000, 2)
    assert config.replay.capacity == 1_000_000


def test_bro_is_configured_as_published():
    config = load(["agent=bro", "env=dmc/walker-walk"])
    o, net = config.agent, config.net
    assert config.agent_kind == "sac" and type(net) is Bro and config.value == Quantiles(100)
    assert (net.width, net.depth, net.actor_width, net.actor_depth, net.init) == (512, 2, 256, 1, "orthogonal")
    assert (o.learning_rate, o.weight_decay, o.decays) == (3e-4, 1e-4, "all")
    assert (o.critics, o.target_value, o.actor_value, o.order) == (2, "mean", "mean", "critic_first")
    assert (o.initial_temperature, o.temperature_b1, o.target_entropy) == (1.0, 0.5, -0.5)
    assert (o.batch_size, o.discount, o.tau, o.standardise) == (128, 0.99, 0.005, False)
    assert (config.replay_ratio, config.warmup, config.env_options["action_repeat"]) == (10, 2_500, 1)


def test_bros_resets_fall_on_the_published_steps():
    """As the comment of its configuration says how to have them."""
    steps = [15_001, 50_001, 250_001, 500_001, 750_001]
    given = ["interventions=[full_reset]", f"interventions.full_reset.when.at={steps}".replace(" ", "")]
    given += ["interventions.full_reset.toward=birth", "interventions.full_reset.renew_birth=false"]
    (reset,) = load(["agent=bro", "env=dmc/walker-walk", "steps=1_000_000", *given]).interventions
    assert (reset.on, reset.where, reset.optimizer) == (("*", "alpha"), ("all",), "touched")
    assert (reset.toward, reset.renew_birth) == ("birth", False)
    for step in steps:
        for now in (step - 1, step, step + 1):
            clock = Clock(
                steps=1_000_000, env_steps=now, agent_steps=now, updates=10 * now, last={"env_steps": now - 1}
            )
            assert reset.when.due(clock) == (now == step)


def test_rlpd_is_configured_as_published():
    config = load(["agent=rlpd", "env=dmc/walker-walk", "interventions=[critic_norm]"])
    o, net = config.agent, config.net
    assert config.agent_kind == "sac" and type(net) is Vectors and config.value == Scalar("mse")
    assert (net.width, net.depth, net.init, o.learning_rate, o.weight_decay) == (256, 2, "xavier", 3e-4, 0.0)
    assert (o.critics, o.subset, o.target_value, o.actor_value) == (10, 2, "min", "mean")
    assert (o.batch_size, o.discount, o.tau, o.initial_temperature, o.target_entropy) == (256, 0.99, 0.005, 1.0, -0.5)
    assert (config.replay_ratio, config.warmup, config.offline.share) == (20, 5_000, 0.5)
    agent = SAC(o, WALKER, net, config.value, config.interventions)
    assert sum(layer.kind == "norm" for layer in agent.critic.layers) == 10 * 2
    assert not any(layer.kind == "norm" for layer in agent.actor.layers)


def due(when: When, env_steps: int) -> bool:
    return when.due(Clock(steps=500_000, env_steps=env_steps, last={"env_steps": env_steps - 1}))


def test_sr_sac_is_configured_as_published():
    config = load(["agent=sr_sac", "env=dmc/walker-walk", "interventions=[full_reset]"])
    o, net, (reset,) = config.agent, config.net, config.interventions
    assert config.agent_kind == "sac" and type(net) is Vectors and config.value == Scalar("mse")
    assert o == SAC.Settings() and (o.learning_rate, o.batch_size, o.critics, o.tau) == (3e-4, 256, 2, 0.005)
    assert (net.width, net.depth, net.init) == (256, 2, "orthogonal")
    assert (config.replay_ratio, config.warmup) == (32, 10_000)
    assert (reset.when.every, reset.when.unit, reset.on, reset.where) == (80_000, "env_steps", ("*", "alpha"), ("all",))
    assert reset.when.every * config.replay_ratio == 2_560_000
    assert [now for now in range(1, 500_001) if due(reset.when, now)] == [80_000 * k for k in range(1, 6)]


def test_sr_sacs_resets_can_fall_where_its_other_code_has_them():
    """high_replay_ratio_continuous_control resets where it evaluates, every 5,000 env steps, as soon as there have been
    more than 2,560,000 updates since the last reset; it makes 32 at each step from the 10,000th on."""
    steps, updates = [], 0
    for step in range(1, 500_001):
        updates += 32 * (step >= 10_000)
        if step % 5_000 == 0 and updates > 2_560_000:
            steps, updates = [*steps, step], 0
    assert steps == [90_000, 175_000, 260_000, 345_000, 430_000]
    given = ["interventions=[full_reset]", f"interventions.full_reset.when.at={steps}".replace(" ", "")]
    config = load(["agent=sr_sac", "env=dmc/walker-walk", "steps=500_000", *given])
    assert [now for now in range(1, 500_001) if due(config.interventions[0].when, now)] == steps
    made = [clock_of(config, action_repeat=1).updates_within(step) for step in (0, *steps)]
    assert np.diff(made).tolist() == [2_560_000, *[32 * 85_000] * 4]  # at first theirs has 32 more: step 10,000 learns


def test_a_full_reset_leaves_nothing_but_data():
    """Weights, targets, moments of Adam and temperature are new; the next reset draws others."""
    reset = Reset(on=("*", "alpha"), where=("all",), when=When(every=2))
    e = engine(sac([reset], initial_temperature=0.3))
    clock, drawn = Clock(steps=10**9), []
    for count in range(4):
        e.update(prepared((0,), count), clock)
        clock.update()
        if e.intervene(clock, ("updates",), lambda stream, count, size: prepared((0,), 9)):
            s = member(tree_map(torch.clone, e.states), 0)
            assert s["alpha"].params["log"].exp().item() == pytest.approx(0.3)
            assert equal(s["critic"].params, s["critic"].copies["target"])
            for state in s.values():
                assert all(not t.any() for slot in state.optim.values() for t in slot.values())
            drawn.append(s["critic"].params)
    assert len(drawn) == 2 and not torch.equal(drawn[0]["q.0.head.weight"], drawn[1]["q.0.head.weight"])
