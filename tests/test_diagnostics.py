"""Diagnostics on planted units, hand-made features and weights, NumPy's SVD and torch.optim's step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learners import FRAMES, VECTOR, batch_for, dqn, equal, sac
from torch.utils._pytree import tree_map

from core.diagnostics import (
    CHEAP,
    MIDDLE,
    dead,
    distance_from_birth,
    dormant,
    feature_ranks,
    gradient_norm,
    parameter_norm,
    target_scale,
    update_ratio,
    value_scale,
)
from core.diagnostics.ranks import effective_rank, srank
from core.diagnostics.units import activity, scores
from core.part import Outcome, Step, descend
from core.state import clone, member
from interventions.l2 import L2
from nets import Nature, Vectors

ALL = (*CHEAP, *MIDDLE)
CONVS = {"encoder.convs.0": 32, "encoder.convs.1": 64, "encoder.convs.2": 64}


def observe(agent, states, part="q", seed=0):
    """(part, its state, a step) as diagnostics receive them."""
    spec = agent.spec
    batch = member(batch_for(spec, (0,), seed), 0) | {"alive": torch.tensor(True), "update": torch.tensor(1)}
    g = torch.Generator().manual_seed(seed)
    noise = {k: torch.randn(n.shape, generator=g) for k, n in agent.noise(8).items()}
    grads, outcome = agent.parts[part].gradient(states, batch, noise)
    return agent.parts[part], states[part], Step(batch, noise, outcome, grads)


def born(agent):
    return {name: part.birth(0) for name, part in agent.parts.items()}


def shown(feats=None, **values):
    """A step of hand-made features or values."""
    return Step({}, {}, Outcome(torch.zeros(()), feats or {}, {}, values), {})


def lively(agent, silent: dict[str, int]):
    """States in which every unit is active on every input, but for the first few of the layers in `silent`."""
    states = born(agent)
    params = dict(states["q"].params)
    for layer in agent.q.layers:
        if layer.feats:
            fan_in = params[f"{layer.name}.weight"][0].numel()
            params[f"{layer.name}.weight"] = params[f"{layer.name}.weight"] * 0 + 0.1 / fan_in
            bias = torch.ones_like(params[f"{layer.name}.bias"])
            bias[: silent.get(layer.name, 0)] = -1e3
            params[f"{layer.name}.bias"] = bias
    states["q"] = states["q"]._replace(params=params)
    return states


# units


def test_planted_silent_units_are_dead_and_dormant_at_zero_and_no_others():
    agent = dqn()
    planted = {"encoder.convs.0": 8, "encoder.convs.2": 1, "trunk.layers.0": 4}
    part, s, step = observe(agent, lively(agent, planted))
    widths = CONVS | {"trunk.layers.0": 16}
    found = dormant(part, s, step) | dead(part, s, step)
    for name in ("dead", "dormant@0", "dormant@0.025", "dormant@0.1"):
        for layer, width in widths.items():
            assert found[f"{name}/{layer}"].item() == pytest.approx(planted.get(layer, 0) / width)
        assert found[name].item() == pytest.approx(13 / 176), "pooled over units, not the mean of layers"
    assert set(found) == {
        f"{name}{layer}"
        for name in ("dead", "dormant@0", "dormant@0.025", "dormant@0.1")
        for layer in ("", *(f"/{k}" for k in widths))
    }


def test_a_score_is_a_units_mean_activity_over_samples_and_pixels_relative_to_its_layer():
    h = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    level = [
        np.mean([abs(float(h[b, c, y, x])) for b in range(4) for y in range(5) for x in range(2)]) for c in range(3)
    ]
    np.testing.assert_allclose(activity(h).numpy(), level, rtol=1e-5)
    np.testing.assert_allclose(scores(h).numpy(), np.array(level) / np.mean(level), rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 7), (16, 7, 3, 3)])
def test_scores_are_1_on_average_and_blind_to_the_layers_scale(shape):
    h = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).relu()
    assert scores(h).mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(scores(1000 * h), scores(h))
    torch.testing.assert_close(scores(1e-3 * h), scores(h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores(torch.ones(shape)), torch.ones(7))
    assert torch.equal(scores(torch.zeros(shape)), torch.zeros(7))


def test_each_threshold_counts_the_units_at_or_below_it():
    agent = dqn(spec=VECTOR)
    level = torch.ones(16)
    level[:3] = torch.tensor([0.0, 0.01, 0.05])
    feats = {"trunk.h0": level.expand(8, 16), "trunk.h1": torch.ones(8, 16)}
    found = dormant(agent.q, born(agent)["q"], shown(feats))
    for tau, count in (("0", 1), ("0.025", 2), ("0.1", 3)):
        assert found[f"dormant@{tau}/trunk.layers.0"].item() == pytest.approx(count / 16)
        assert found[f"dormant@{tau}/trunk.layers.1"] == 0
        assert found[f"dormant@{tau}"].item() == pytest.approx(count / 32)


def test_a_unit_that_speaks_once_at_one_pixel_is_not_dead():
    agent = dqn()
    feats = {layer.feats: torch.zeros(8, 16) for layer in agent.q.layers if layer.feats}
    feats["encoder.h0"] = torch.zeros(8, 32, 4, 4)
    feats["encoder.h0"][5, 3, 1, 2] = 1e-6
    found = dead(agent.q, born(agent)["q"], shown(feats))
    assert found["dead/encoder.convs.0"].item() == pytest.approx(31 / 32)
    assert found["dead/trunk.layers.0"] == 1


# weights


def total(*tensors) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors))


def layer_tensors(tree, layer):
    return tree[f"{layer}.weight"], tree[f"{layer}.bias"]


LAYERS = ("trunk.layers.0", "trunk.norms.0", "trunk.layers.1", "trunk.norms.1", "advantage", "value")


def moved_learner():
    """A dueling network with norms, some steps old, whose every tensor has left its birth value."""
    agent = dqn(spec=VECTOR, net=Vectors(width=16, norm="layer"), learning_rate=0.01)
    states = born(agent)
    for i in range(3):
        _, _, step = observe(agent, states, seed=i)
        states, _ = descend(agent.q, states, step.batch, {})
    return agent, states


def assert_per_layer(found, name, expected, rel=1e-4):
    """The number of the whole part, expected(""), and that of each of its layers."""
    assert set(found) == {name, *(f"{name}/{layer}" for layer in LAYERS)}
    for key, value in found.items():
        assert value.item() == pytest.approx(expected(key.removeprefix(name).removeprefix("/")), rel=rel), key


def chosen(tree, layer):
    return layer_tensors(tree, layer) if layer else tuple(tree.values())


def test_the_parameter_norm_is_that_of_all_entries_and_of_each_layers_weight_and_bias():
    agent, states = moved_learner()
    part, s, step = observe(agent, states)
    assert_per_layer(parameter_norm(part, s, step), "parameter_norm", lambda layer: total(*chosen(s.params, layer)))


def test_the_distance_from_birth_is_relative_to_the_birth_weights():
    agent, states = moved_learner()
    part, s, step = observe(agent, states)
    assert all(not torch.equal(p, s.birth[k]) for k, p in s.params.items())

    def expected(layer):
        moved = [p - b for p, b in zip(chosen(s.params, layer), chosen(s.birth, layer), strict=True)]
        return total(*moved) / total(*chosen(s.birth, layer))

    assert_per_layer(distance_from_birth(part, s, step), "distance_from_birth", expected)


def test_a_newborn_is_at_distance_0_and_thrice_its_weights_are_at_distance_2():
    agent = dqn(spec=VECTOR)
    states = born(agent)
    part, s, step = observe(agent, states)
    assert not any(distance_from_birth(part, s, step).values())
    s = s._replace(params={k: 3 * p for k, p in s.params.items()})
    assert all(v.item() == pytest.approx(2, rel=1e-5) for v in distance_from_birth(part, s, step).values())


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_the_gradient_norm_is_that_of_loss_and_penalties(weight):
    agent = dqn([L2(weight=weight)] if weight else [], spec=VECTOR, double=False)
    states = born(agent)
    part, s, step = observe(agent, states)
    params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
    loss = agent.q_loss(params, states, step.batch, {}).loss
    if weight:
        loss = loss + part.interventions[0].penalty(part, params, s, step)
    loss.backward()
    found = gradient_norm(part, s, step)
    assert found["gradient_norm"].item() == pytest.approx(total(*(p.grad for p in params.values())), rel=1e-4)
    for layer in ("trunk.layers.0", "trunk.layers.1", "advantage", "value"):
        grads = [p.grad for k, p in params.items() if k.startswith(layer + ".")]
        assert found[f"gradient_norm/{layer}"].item() == pytest.approx(total(*grads), rel=1e-4)


def test_the_update_ratio_is_that_of_an_actual_optimizer_step():
    agent, states = moved_learner()
    part, s, step = observe(agent, states, seed=9)
    params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=part.optim.lr, eps=part.optim.eps)
    for k, p in params.items():
        slots = {"step": s.optim["t"][k], "exp_avg": s.optim["m"][k], "exp_avg_sq": s.optim["v"][k]}
        optimizer.state[p] = {name: x.clone() for name, x in slots.items()}
        p.grad = step.grads[k]
    optimizer.step()

    def expected(layer):
        after, before = chosen(params, layer), chosen(s.params, layer)
        return total(*(a.detach() - b for a, b in zip(after, before, strict=True))) / total(*before)

    # differences of single-precision weights carry their rounding
    assert_per_layer(update_ratio(part, s, step), "update_ratio", expected, rel=1e-3)


# ranks


def test_the_identity_has_full_rank():
    for d in (1, 4, 32):
        sigma = torch.ones(d).double()
        assert srank(sigma) == d and effective_rank(sigma).item() == pytest.approx(d)


def test_a_matrix_of_rank_one_has_rank_one():
    sigma = torch.linalg.svdvals(torch.outer(torch.arange(1, 9), torch.ones(5)).double())
    assert srank(sigma) == 1 and effective_rank(sigma).item() == pytest.approx(1, abs=1e-6)


def test_ranks_by_hand():
    sigma = torch.tensor([90.0, 9.5, 0.4, 0.1]).double()  # shares 0.9, 0.995, 0.999, 1
    assert srank(sigma) == 2 and srank(sigma, delta=0.2) == 1 and srank(sigma, delta=0.002) == 3
    p = sigma.numpy() / 100
    assert effective_rank(sigma).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_ranks_are_blind_to_scale(scale):
    sigma = torch.linspace(5, 0.1, 20).double()
    assert srank(scale * sigma) == srank(sigma)
    assert effective_rank(scale * sigma).item() == pytest.approx(effective_rank(sigma).item())


def test_zero_features_have_at_most_one_direction():
    assert srank(torch.zeros(6).double()) <= 1
    assert effective_rank(torch.zeros(6).double()) <= 1


def rank_by_numpy(phi):
    sigma = np.linalg.svd(phi.double().numpy(), compute_uv=False)
    share = np.cumsum(sigma) / sigma.sum()
    p = sigma[sigma > 0] / sigma.sum()
    return next(k for k, x in enumerate(share, 1) if x >= 0.99), math.exp(-(p * np.log(p)).sum())


def test_feature_ranks_are_those_of_what_each_critics_output_layer_reads():
    agent = sac()
    states = born(agent)
    part, s, step = observe(agent, states, part="critic")
    found = feature_ranks(part, s, step)
    x = torch.cat([step.batch["obs"], step.batch["action"]], 1)
    by_hand = []
    for i in (0, 1):
        h = x
        for j in (0, 1):
            w, b = layer_tensors(s.params, f"q.{i}.trunk.layers.{j}")
            h = (h @ w.T + b).relu()
        by_hand.append(rank_by_numpy(h))
        assert found[f"srank/q.{i}.trunk.layers.1"] == by_hand[i][0]
        assert found[f"effective_rank/q.{i}.trunk.layers.1"].item() == pytest.approx(by_hand[i][1], rel=1e-4)
    assert found["srank"].item() == pytest.approx((by_hand[0][0] + by_hand[1][0]) / 2)
    assert found["effective_rank"].item() == pytest.approx((by_hand[0][1] + by_hand[1][1]) / 2, rel=1e-4)
    assert len(found) == 6


def test_feature_ranks_are_of_the_last_hidden_layer_alone():
    agent = dqn(spec=VECTOR)
    feats = {"trunk.h0": torch.ones(32, 16), "trunk.h1": 3 * torch.eye(16).repeat(2, 1)}
    found = feature_ranks(agent.q, born(agent)["q"], shown(feats))
    assert found["srank"] == found["srank/trunk.layers.1"] == 16
    assert found["effective_rank"].item() == pytest.approx(16)
    assert len(found) == 4


# values


def test_target_statistics_by_hand():
    agent = dqn(spec=VECTOR)
    y = torch.tensor([1.0, 2.0, 3.0, -10.0])
    found = target_scale(agent.q, born(agent)["q"], shown(target=y))
    spread = math.sqrt(sum((v + 1) ** 2 for v in y.tolist()) / 3)
    expected = {
        "target_mean": -1.0,
        "target_std": spread,
        "target_min": -10.0,
        "target_max": 3.0,
        "target_mean_over_std": 1 / spread,
    }
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected)


def test_target_and_value_statistics_are_those_of_the_loss():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    out = agent.q(s.params, step.batch["obs"])[0][..., 0]
    q = out[torch.arange(8), step.batch["action"]].numpy()
    found = value_scale(part, s, step)
    assert found["q_mean"].item() == pytest.approx(q.mean(), rel=1e-4)
    assert found["q_std"].item() == pytest.approx(q.std(ddof=1), rel=1e-4)
    assert target_scale(part, s, step)["target_mean"].item() == pytest.approx(
        step.outcome.values["target"].numpy().mean(), rel=1e-4
    )


def test_parts_without_targets_report_none():
    agent = sac()
    part, s, step = observe(agent, born(agent), part="actor")
    assert target_scale(part, s, step) == {} and value_scale(part, s, step) == {}


# everywhere


LEARNERS = {"dqn frames": (dqn, "q"), "dqn vectors": (lambda: dqn(spec=VECTOR), "q")}
LEARNERS |= {f"sac {part}": (sac, part) for part in ("critic", "actor")}


@pytest.mark.parametrize("diagnostic", ALL, ids=lambda d: d.__name__)
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("silent", ["none", "first layer", "every hidden layer", "all weights"])
def test_every_diagnostic_is_finite_even_where_layers_are_wholly_silent(diagnostic, learner, silent):
    make, part = LEARNERS[learner]
    agent = make()
    states = born(agent)
    hidden = [layer.name for layer in agent.parts[part].layers if layer.feats]
    chosen = {"none": [], "first layer": hidden[:1], "every hidden layer": hidden}.get(silent, hidden)
    params = dict(states[part].params)
    for name in chosen:
        params[f"{name}.weight"] = torch.zeros_like(params[f"{name}.weight"])
        params[f"{name}.bias"] = params[f"{name}.bias"] * 0 - 1e3
    if silent == "all weights":
        params = {k: torch.zeros_like(p) for k, p in params.items()}
        states[part] = states[part]._replace(birth=params)
    states[part] = states[part]._replace(params=params)
    found = diagnostic(*observe(agent, states, part))
    assert all(v.shape == () and v.isfinite() for v in found.values())
    if silent != "none" and diagnostic in (dormant, dead):
        assert all(found[f"{'dead' if diagnostic is dead else 'dormant@0'}/{name}"] == 1 for name in chosen)


@pytest.mark.parametrize("diagnostic", ALL, ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    "spec, net", [(VECTOR, Vectors(depth=0)), (FRAMES, Nature(depth=0, padding="valid"))], ids=["vectors", "frames"]
)
def test_every_diagnostic_takes_a_network_without_dense_hidden_layers(diagnostic, spec, net):
    agent = dqn(spec=spec, net=net)
    found = diagnostic(*observe(agent, born(agent)))
    assert all(v.shape == () and v.isfinite() for v in found.values())


@pytest.mark.parametrize("diagnostic", ALL, ids=lambda d: d.__name__)
def test_no_diagnostic_changes_anything(diagnostic):
    agent, states = moved_learner()
    part, s, step = observe(agent, states)
    before, seen = clone(s), tree_map(torch.clone, step)
    random_state = torch.get_rng_state()
    first = diagnostic(part, s, step)
    assert equal(first, diagnostic(part, s, step))
    assert equal(s, before) and equal(step, seen)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_tiers_hold_every_diagnostic_once():
    assert len(set(ALL)) == len(ALL) == 9
