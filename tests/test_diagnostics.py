"""Diagnostics on planted units, hand-made features and weights, NumPy's SVD and torch.optim's step."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learners import FRAMES, VECTOR, batch_for, classifier, dqn, equal, sac
from torch.utils._pytree import tree_map

from core import randomness
from core.blueprint import PRE
from core.diagnostics import (
    CHEAP,
    DEAR,
    IMAGE,
    TIERS,
    adam_health,
    churn,
    dead,
    distance_from_birth,
    dormant,
    effective_learning_rate,
    feature_ranks,
    gradient_norm,
    growth,
    linearised,
    mean_signature,
    measure,
    parameter_norm,
    preactivation,
    sign_entropy,
    spectral_norm,
    target_scale,
    trainability,
    update_ratio,
    value_scale,
    weight_magnitude,
    zero_gradient,
)
from core.diagnostics.churn import differences
from core.diagnostics.ranks import family
from core.diagnostics.spectra import top_singular_value
from core.diagnostics.units import magnitudes, scores, slope
from core.optim import SGD
from core.part import Outcome, Step, descend
from core.state import clone, member, weights
from interventions.l2 import L2
from nets import C51, Bro, HLGauss, Nature, Simba, TwoHot, Vectors


def short_trainability(part, s, step):
    return trainability(part, s, step, steps=2)


TIERED = [diagnostic for tier in TIERS for diagnostic in tier.diagnostics]
ALL = [short_trainability if d is trainability else d for d in TIERED]
CONVS = {"encoder.convs.0": 32, "encoder.convs.1": 64, "encoder.convs.2": 64}


def observe(agent, states, part="q", seed=0):
    """(part, its state, a step) as diagnostics receive them."""
    spec = agent.spec
    batch = member(batch_for(spec, (0,), seed), 0) | {"alive": torch.tensor(True), "update": torch.tensor(1)}
    g = torch.Generator().manual_seed(seed)
    noise = {k: torch.randn(n.shape, generator=g) for k, n in agent.noise(8).items()}
    grads, outcome = agent.parts[part].gradient(states, batch, noise, observing=True)
    shared = frozenset(k for k, n in agent.noise(8).items() if n.shared)
    return agent.parts[part], states[part], Step(batch, noise, outcome, grads, states, shared)


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
    np.testing.assert_allclose(magnitudes(h).mean(1).numpy(), level, rtol=1e-5)
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


def pre(**layers):
    """A step that shows these pre-activations, [B, units]; the features are their positive parts."""
    shown_pre = {f"trunk.{k}{PRE}": a for k, a in layers.items()}
    return shown(shown_pre | {f"trunk.{k}": a.relu() for k, a in layers.items()})


def planted():
    """Two layers of 16 units on 8 samples. Of the first, 3 are always positive, 2 never, the others half the time."""
    a = torch.tensor([1.0, -1.0]).repeat(4)[:, None].repeat(1, 16)
    a[:, :3], a[:, 3:5] = 0.5, -0.5
    return pre(h0=a, h1=torch.tensor([1.0, -1.0]).repeat(4)[:, None].repeat(1, 16))


def test_always_positive_units_are_linearised_and_never_positive_ones_are_dead():
    agent = dqn(spec=VECTOR)
    found = linearised(agent.q, born(agent)["q"], planted()) | dead(agent.q, born(agent)["q"], planted())
    assert found["linearised/trunk.layers.0"].item() == pytest.approx(3 / 16)
    assert found["dead/trunk.layers.0"].item() == pytest.approx(2 / 16)
    assert found["linearised"].item() == pytest.approx(3 / 32) and found["dead"].item() == pytest.approx(2 / 32)
    assert found["linearised/trunk.layers.1"] == found["dead/trunk.layers.1"] == 0


def test_behind_crelu_a_constant_sign_of_either_kind_is_linear_and_nothing_is_dead():
    agent = dqn(spec=VECTOR, net=Vectors(width=16, activation="crelu"))
    a = planted().outcome.feats["trunk.h0" + PRE]
    step = pre(h0=a, h1=a)
    feats = {
        k: torch.cat([f, step.outcome.feats[k + PRE].neg().relu()], 1)
        for k, f in step.outcome.feats.items()
        if PRE not in k
    }
    step = shown(step.outcome.feats | feats)
    assert linearised(agent.q, born(agent)["q"], step)["linearised"].item() == pytest.approx(5 / 16)
    assert dead(agent.q, born(agent)["q"], step)["dead"] == 0


@pytest.mark.parametrize("bias, shares", [(1e3, (1, 0)), (-1e3, (0, 1)), (0, (0, 0))])
def test_a_large_bias_makes_a_unit_linear_or_dead_and_normal_pre_activations_do_neither(bias, shares):
    agent = dqn(spec=VECTOR)
    a = torch.randn(512, 16, generator=torch.Generator().manual_seed(0)) + bias
    step = pre(h0=a, h1=a)
    found = linearised(agent.q, born(agent)["q"], step) | dead(agent.q, born(agent)["q"], step)
    assert (found["linearised"], found["dead"]) == shares


def test_sign_entropy_is_ln_2_at_one_half_and_0_for_constant_signs():
    agent = dqn(spec=VECTOR)
    found = sign_entropy(agent.q, born(agent)["q"], planted())
    assert found["sign_entropy/trunk.layers.1"].item() == pytest.approx(math.log(2))
    assert found["sign_entropy/trunk.layers.0"].item() == pytest.approx(11 / 16 * math.log(2))
    quarter = pre(h0=torch.tensor([1.0, -1, -1, -1]).repeat(2)[:, None].repeat(1, 16), h1=torch.ones(8, 16))
    p = 0.25
    by_hand = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = sign_entropy(agent.q, born(agent)["q"], quarter)
    assert found["sign_entropy"].item() == pytest.approx(by_hand / 2)


def test_exactly_zero_gradients_are_counted_over_parameters_not_tensors():
    agent = dqn(spec=VECTOR, dueling=False)
    part, s, step = observe(agent, born(agent))
    grads = {k: torch.ones_like(p) for k, p in s.params.items()}
    grads["trunk.layers.0.weight"][:4] = 0  # 4 of 16 rows of 5
    grads["trunk.layers.1.bias"][0] = 1e-30
    found = zero_gradient(part, s, step._replace(grads=grads))
    assert found["zero_gradient/trunk.layers.0"].item() == pytest.approx(20 / (16 * 5 + 16))
    assert found["zero_gradient"].item() == pytest.approx(20 / sum(p.numel() for p in s.params.values()))
    assert found["zero_gradient/trunk.layers.1"] == 0


def test_pre_activation_moments_by_hand():
    agent = dqn(spec=VECTOR)
    a = torch.tensor([[0.0, 3.0], [2.0, 3.0]]).repeat(4, 8)  # units of mean 1 and variance 1, or 3 and 0
    found = preactivation(agent.q, born(agent)["q"], pre(h0=a, h1=-a))
    assert found["preactivation_mean_abs/trunk.layers.1"].item() == pytest.approx(2)
    assert found["preactivation_mean_abs"].item() == pytest.approx(2)
    assert found["preactivation_mean_sd/trunk.layers.0"].item() == pytest.approx(1)
    assert found["preactivation_mean_sd"].item() == pytest.approx(math.sqrt(5))  # of 1, 3, -1 and -3
    assert found["preactivation_one_sided"].item() == pytest.approx(0.5)
    wide = pre(
        h0=torch.tensor([0.0, 4.0]).repeat(4)[:, None].repeat(1, 16),
        h1=torch.tensor([0.0, 2.0]).repeat(4)[:, None].repeat(1, 16),
    )
    found = preactivation(agent.q, born(agent)["q"], wide)
    assert found["preactivation_variance/trunk.layers.0"] == 4 and found["preactivation_variance/trunk.layers.1"] == 1


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


def test_weight_magnitudes_are_of_matrices_and_affine_ones_stand_apart():
    agent = dqn(spec=VECTOR, net=Vectors(width=16, norm="layer"), dueling=False)
    states = born(agent)
    part, s, step = observe(agent, states)
    params = {k: torch.full_like(p, 7.0) for k, p in s.params.items()}  # biases, of which nothing is said
    params |= {k: torch.full_like(p, -3.0) for k, p in params.items() if "norms" in k}
    params |= {k: torch.full_like(p, -0.5) for k, p in params.items() if p.ndim > 1}
    params["trunk.layers.0.weight"] = torch.tensor([1.0, -3.0]).repeat(40).reshape(16, 5)
    found = weight_magnitude(part, s._replace(params=params), step)
    assert found["weight_magnitude/trunk.layers.0"] == 2 and found["affine_magnitude"] == 3
    assert found["weight_rms/trunk.layers.0"].item() == pytest.approx(math.sqrt(5))
    assert found["weight_magnitude/advantage"] == 0.5
    sizes = {k: p.numel() for k, p in params.items() if p.ndim > 1}
    expected = (2 * sizes["trunk.layers.0.weight"] + 0.5 * (sum(sizes.values()) - 80)) / sum(sizes.values())
    assert found["weight_magnitude"].item() == pytest.approx(expected)


def test_growth_is_relative_to_birth_and_its_balance_is_the_spread_of_logarithms():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    assert growth(part, s, step)["growth"] == 1 and growth(part, s, step)["growth_balance"] == 0
    alike = {k: 10 * p for k, p in s.params.items()}
    found = growth(part, s._replace(params=alike), step)
    assert found["growth"].item() == pytest.approx(10, rel=1e-5)
    assert found["growth_balance"].item() == pytest.approx(0, abs=1e-5)
    one = s.params | {"trunk.layers.0.weight": 3 * s.params["trunk.layers.0.weight"]}
    one |= {"trunk.layers.1.weight": s.params["trunk.layers.1.weight"] / 2}
    found = growth(part, s._replace(params=one), step)
    assert found["growth/trunk.layers.0"].item() == pytest.approx(3, rel=1e-5)
    assert found["growth_balance"].item() == pytest.approx(math.log(6), rel=1e-5)


def test_the_spectral_norm_is_numpys_and_scales_with_the_weights():
    w = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))
    for matrix in (w, w.T, torch.outer(w[0], w[1, :5])):
        assert top_singular_value(matrix).item() == pytest.approx(np.linalg.norm(matrix.double().numpy(), 2))
    assert top_singular_value(-4 * w).item() == pytest.approx(4 * top_singular_value(w).item())
    assert top_singular_value(torch.zeros(3, 3)) == 0


def test_the_lipschitz_bound_is_a_product_along_each_chain_to_each_output():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    found = spectral_norm(part, s, step)
    sigma = {k: np.linalg.norm(p.double().numpy(), 2) for k, p in s.params.items() if p.ndim > 1}
    trunk = sigma["trunk.layers.0.weight"] * sigma["trunk.layers.1.weight"]
    for head in ("advantage", "value"):
        assert found[f"lipschitz_bound/{head}"].item() == pytest.approx(trunk * sigma[f"{head}.weight"])
    doubled = spectral_norm(part, s._replace(params={k: 2 * p for k, p in s.params.items()}), step)
    assert doubled["spectral_norm"].item() == pytest.approx(2 * max(sigma.values()))
    assert doubled["lipschitz_bound/value"].item() == pytest.approx(8 * trunk * sigma["value.weight"])
    twins = spectral_norm(*observe(sac(), born(sac()), "critic"))
    assert {k for k in twins if k.startswith("lipschitz")} == {
        f"lipschitz_bound{k}" for k in ("", "/q.0.head", "/q.1.head")
    }


def test_the_lipschitz_bound_bounds():
    agent = dqn(spec=VECTOR, dueling=False)
    part, s, step = observe(agent, born(agent))
    bound = spectral_norm(part, s, step)["lipschitz_bound"].item()
    x, g = step.batch["obs"], torch.Generator().manual_seed(0)
    moved = x + 0.1 * torch.randn(x.shape, generator=g)
    change = (part(s.params, moved)[0] - part(s.params, x)[0]).flatten(1).norm(dim=1) / (moved - x).norm(dim=1)
    assert change.max().item() <= bound


def test_adams_health_by_hand():
    agent = dqn(spec=VECTOR, adam_eps=0.5)
    part, s, step = observe(agent, born(agent))
    count = sum(p.numel() for p in s.params.values())
    grads = {k: torch.ones_like(p) for k, p in s.params.items()}
    grads["value.bias"] = torch.tensor([0.1])  # its root mean square is below eps
    found = adam_health(part, s, step._replace(grads=grads))
    assert found["adam_max_update"].item() == pytest.approx(1 / 1.5, rel=1e-5)
    assert found["adam_mean_update"].item() == pytest.approx(((count - 1) / 1.5 + 0.1 / 0.6) / count, rel=1e-5)
    assert found["adam_below_eps"].item() == pytest.approx(1 / count)


def test_stale_second_moments_show_as_updates_far_above_one():
    agent = dqn(spec=VECTOR, adam_eps=1e-8)
    part, s, step = observe(agent, born(agent))
    ones = {k: torch.ones_like(p) for k, p in s.params.items()}
    old = {"m": ones, "v": {k: 1e-6 * p for k, p in ones.items()}, "t": {k: p.new_tensor(1e6) for k, p in ones.items()}}
    found = adam_health(part, s._replace(optim=old), step._replace(grads=ones))
    assert found["adam_max_update"].item() == pytest.approx(1 / math.sqrt(1e-3 + 1e-6), rel=1e-2)


def test_the_effective_learning_rate_by_hand():
    agent = dqn(spec=VECTOR, learning_rate=0.01)
    part, s, step = observe(agent, born(agent))
    found = effective_learning_rate(part, s, step)
    g, w = (total(tree["trunk.layers.1.weight"]) for tree in (step.grads, s.params))
    assert found["effective_learning_rate/trunk.layers.1"].item() == pytest.approx(0.01 * g / w**2, rel=1e-5)
    larger = effective_learning_rate(part, s._replace(params={k: 10 * p for k, p in s.params.items()}), step)
    assert larger["effective_learning_rate"].item() == pytest.approx(
        found["effective_learning_rate"].item() / 100, rel=1e-4
    )


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


@pytest.mark.parametrize("value", [TwoHot(-2, 2, 5), HLGauss(-2, 2, 5)], ids=["two-hot", "hl-gauss"])
def test_a_target_outside_the_support_is_clipped(value):
    nothing = torch.zeros(4, 5)  # equal logits: of value 0
    reward, discount = torch.tensor([0.0, 2.5, -2.5, 1.9]), torch.ones(4)
    assert value.clipped(reward, discount, nothing).tolist() == [0, 1, 1, 0]


def test_of_a_distribution_the_mass_beyond_the_edges_is_clipped():
    value, even = C51(-2, 2, 5), torch.zeros(5, 5)  # atoms -2, -1, 0, 1, 2 with a fifth each
    reward = torch.tensor([0.0, 1.0, -2.5, 100.0, 0.0])
    discount = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])
    expected = torch.tensor([0, 1 / 5, 3 / 5, 1, 0])
    torch.testing.assert_close(value.clipped(reward, discount, even), expected)


def test_the_losses_report_what_their_support_clips():
    for value, clipped in (
        (None, 0.0),
        (TwoHot(-1e-6, 1e-6, 5), 1.0),
        (C51(-1e-6, 1e-6, 5), 1.0),
        (TwoHot(-1e6, 1e6, 5), 0.0),
    ):
        for agent, name in ((dqn(spec=VECTOR, value=value), "q"), (sac(value=value), "critic")):
            assert target_scale(*observe(agent, born(agent), name))["target_clipped"].item() == pytest.approx(clipped)


# churn


def test_churn_of_a_step_that_moves_nothing_is_zero():
    for agent, name in ((dqn(spec=VECTOR, learning_rate=1e-30), "q"), (sac(learning_rate=1e-30), "actor")):
        found = churn(*observe(agent, born(agent), name))
        assert found and not any(found.values())


def test_a_constant_for_all_actions_is_value_churn_and_no_policy_churn():
    before = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    found = differences(before, before + 3, greedy=True, valued=True)
    assert found["policy_churn"] == 0 and found["value_churn"].item() == pytest.approx(3)
    found = differences(before, -before, greedy=True, valued=True)
    assert found["policy_churn"] == 1
    one = before.clone()
    one[:8, 0] += 100
    changed = (before[:8].argmax(-1) != 0).sum().item() / 32
    assert differences(before, one, greedy=True, valued=True)["policy_churn"].item() == pytest.approx(changed)
    assert "policy_churn" not in differences(before, one, greedy=False, valued=True)


def test_the_change_of_a_policy_is_the_length_of_the_change_of_its_action():
    before = torch.zeros(6, 2)
    found = differences(before, torch.tensor([3.0, 4.0]).expand(6, 2), greedy=False, valued=False)
    assert found == {"output_churn": 5}


def test_churn_is_that_of_a_training_step_on_the_first_half_seen_on_the_second():
    agent = dqn(spec=VECTOR, learning_rate=0.05)
    states = born(agent)
    part, s, step = observe(agent, states)
    halves = [{k: t[i : i + 4] if t.ndim else t for k, t in step.batch.items()} for i in (0, 4)]
    after, _ = descend(part, states, halves[0], {})
    q, moved = (part(params, halves[1]["obs"])[0][..., 0] for params in (s.params, after["q"].params))
    found = churn(part, s, step)
    assert (
        found["value_churn"].item() == pytest.approx((q - moved).abs().mean().item(), rel=1e-4)
        and found["value_churn"] > 0
    )
    assert found["policy_churn"].item() == (q.argmax(-1) != moved.argmax(-1)).float().mean().item()


def test_who_decides_by_the_largest_has_policy_churn_and_who_values_has_value_churn():
    agent = sac()
    assert set(churn(*observe(agent, born(agent), "critic"))) == {"value_churn"}
    assert set(churn(*observe(agent, born(agent), "actor"))) == {"output_churn"}
    agent = dqn(spec=VECTOR)
    assert set(churn(*observe(agent, born(agent)))) == {"value_churn", "policy_churn"}


# everywhere


def assert_finite(found):
    for key, value in found.items():
        assert value.ndim == (2 if key.endswith(IMAGE) else 0) and value.isfinite().all(), key


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
    assert_finite(found)
    if silent != "none" and diagnostic in (dormant, dead):
        assert all(found[f"{'dead' if diagnostic is dead else 'dormant@0'}/{name}"] == 1 for name in chosen)


@pytest.mark.parametrize("diagnostic", ALL, ids=lambda d: d.__name__)
@pytest.mark.parametrize(
    "spec, net", [(VECTOR, Vectors(depth=0)), (FRAMES, Nature(depth=0, padding="valid"))], ids=["vectors", "frames"]
)
def test_every_diagnostic_takes_a_network_without_dense_hidden_layers(diagnostic, spec, net):
    agent = dqn(spec=spec, net=net)
    assert_finite(diagnostic(*observe(agent, born(agent))))


@pytest.mark.parametrize("diagnostic", ALL, ids=lambda d: d.__name__)
def test_no_diagnostic_changes_anything(diagnostic):
    agent, states = moved_learner()
    part, s, step = observe(agent, states)
    before, seen = clone(s), tree_map(torch.clone, tuple(step)[:-1])  # the last are names
    random_state = torch.get_rng_state()
    first = diagnostic(part, s, step)
    assert equal(first, diagnostic(part, s, step))
    assert equal(s, before) and equal(tuple(step)[:-1], seen)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_tiers_hold_every_diagnostic_once():
    assert len(set(TIERED)) == len(TIERED) == 24


def test_a_metric_is_found_in_every_tier_and_its_dear_ones_are_not_computed_for_cheap_ones(monkeypatch):
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    for metric, function in (("dead", dead), ("churn/x", None), ("value_churn", churn), ("growth_balance", growth)):
        if function:
            assert measure(metric, part, s, lambda tier: step) == pytest.approx(float(function(part, s, step)[metric]))
    assert measure("dormant", part, s, lambda tier: step) == float(dormant(part, s, step)["dormant@0.025"])

    def never(*_):
        raise AssertionError("a dear diagnostic ran for a cheap metric")

    monkeypatch.setattr(
        "core.diagnostics.TIERS", [CHEAP._replace(diagnostics=(dead,)), DEAR._replace(diagnostics=(never,))]
    )
    measure("dead", part, s, lambda tier: step)
    with pytest.raises(AssertionError):
        measure("entk_rank", part, s, lambda tier: step)


def test_a_metric_that_is_a_picture_or_misspelt_is_refused_by_name(monkeypatch):
    agent = dqn(spec=VECTOR)
    both = CHEAP._replace(diagnostics=(lambda *_: {"dead": torch.ones(()), "x_image": torch.eye(2)},))
    monkeypatch.setattr("core.diagnostics.TIERS", [both])
    part, s, step = observe(agent, born(agent))
    for metric in ("ded", "x_image"):
        with pytest.raises(ValueError, match=f"when.metric={metric} given"):
            measure(metric, part, s, lambda tier: step)


# what a diagnostic is given


def test_the_step_is_shortened_as_training_shortens_it():
    agent = dqn(spec=VECTOR)
    agent.q.optim = replace(
        agent.q.optim, clip_norm=1e-4, eps=1e-3
    )  # far below the gradient's, and Adam not blind to it
    states = born(agent)
    part, s, step = observe(agent, states)
    stepped, _ = descend(part, states, step.batch, step.noise)
    moved = torch.cat([(stepped["q"].params[k] - p).flatten() for k, p in s.params.items()]).norm()
    whole = torch.cat([p.flatten() for p in s.params.values()]).norm()
    assert update_ratio(part, s, step)["update_ratio"].item() == pytest.approx(float(moved / whole), rel=1e-5)
    m, v = stepped["q"].optim["m"], stepped["q"].optim["v"]
    u = torch.cat([((m[k] / 0.1) / ((v[k] / 0.001).sqrt() + 1e-3)).abs().flatten() for k in m])
    assert adam_health(part, s, step)["adam_mean_update"].item() == pytest.approx(u.mean().item(), rel=1e-4)
    part.optim = replace(part.optim, clip_norm=0.0)
    assert update_ratio(part, s, step)["update_ratio"] > 2 * moved / whole


def test_gradient_descent_has_no_health_of_adam():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    part.optim = SGD(lr=0.1)
    assert adam_health(part, s, step) == {}


def test_sigmas_of_noisy_layers_are_no_weights():
    agent = dqn(spec=VECTOR, noisy=0.5)
    part, s, step = observe(agent, born(agent))
    kernels = [p.flatten() for k, p in s.params.items() if p.ndim > 1 and not k.endswith("_sigma")]
    assert len(kernels) < sum(p.ndim > 1 for p in s.params.values())
    assert torch.equal(weight_magnitude(part, s, step)["weight_magnitude"], torch.cat(kernels).abs().mean())


def test_a_metric_is_measured_on_as_many_samples_as_it_is_logged_from():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    sizes = []
    for metric in ("dead", "srank", "entk_rank"):
        measure(metric, part, s, lambda tier: sizes.append(tier.batch) or step)
    assert sizes == [256, 256, 1_024, 256, 1_024, 128]


def test_a_newborn_is_shown_what_the_clone_is_shown():
    """The newborn itself, told the moments of its observations, is as trainable as the newborn."""
    agent = sac(standardise=True)
    for name in ("critic", "actor"):
        part = agent.parts[name]
        s = part.birth(randomness.key(0, "diagnostics/probe/newborn"))
        moments = {"standardise.mean": torch.full((5,), 3.0), "standardise.var": torch.full((5,), 25.0)}
        assert moments.keys() <= s.buffers.keys()
        states = {k: p.birth(0) for k, p in agent.parts.items()} | {name: s._replace(buffers=s.buffers | moments)}
        _, s, step = observe(agent, states, name)
        found = trainability(part, s, step, steps=5)
        assert {v.item() for k, v in found.items()} == {0.0}


# networks whose outputs read no single layer


@pytest.mark.parametrize("net", [Simba(width=16), Bro(width=16, actor_width=16)])
def test_ranks_of_residual_networks_are_of_what_their_outputs_read(net):
    agent = sac(net=net)
    part, s, step = observe(agent, born(agent), "actor")
    found = feature_ranks(part, s, step)
    phi = step.outcome.feats["trunk.last"]
    outputs = torch.stack(
        [F.linear(phi, s.params[f"{k}.weight"], s.params[f"{k}.bias"]) for k in ("mean", "log_std")], 1
    )
    torch.testing.assert_close(outputs, part(weights(s), step.batch["obs"])[0])
    assert found["srank"] == found["srank/trunk.last"] == family(phi.double())["srank"]
    assert {"log10_sigma_1", "cos_v1_mean"} <= mean_signature(part, s, step).keys()


def test_a_gelu_is_dead_where_it_is_flat_and_linearised_where_it_is_a_straight_line():
    assert slope(a := torch.linspace(-6, 6, 50, requires_grad=True)).tolist() == pytest.approx(
        torch.autograd.grad(F.gelu(a).sum(), a)[0].tolist(), abs=1e-6
    )
    agent = classifier(net=Vectors(width=16, activation="gelu"))
    ramp = torch.linspace(-1, 1, 8)[:, None]
    pre = torch.zeros(8, 16) + ramp  # bent: alive and no line
    pre[:, :2] = ramp - 9.0  # flat
    pre[:, 2:4] = ramp + 9.0  # a line
    pre[:, 4:5] = 5.0 + 1e-6 * ramp  # a line so short that float32 makes steps of it
    feats = {f"trunk.h{i}{end}": x for i in (0, 1) for end, x in (("", F.gelu(pre)), (PRE, pre))}
    step, s = shown(feats), born(agent)["classifier"]
    part = agent.parts["classifier"]
    assert dead(part, s, step)["dead"].item() == pytest.approx(2 / 16)
    assert linearised(part, s, step)["linearised"].item() == pytest.approx(3 / 16)
