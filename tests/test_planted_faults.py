"""Planted faults and what each diagnostic must say of them: the table was written down before it was looked at."""

from __future__ import annotations

import pytest
import torch
from learners import CONTROL, VECTOR, dqn, sac

from core.diagnostics import TIERS, trainability
from core.part import Step
from nets import Vectors

SAMPLES = 256

# fault -> {diagnostic: how it stands to the healthy network: + above, - below, 0 the same}
EXPECTED = {
    "half-dead layer": {
        "dormant@0": "+",
        "dormant@0/trunk.layers.1": "+",
        "dormant@0.025": "+",
        "dormant@0/trunk.layers.0": "0",
        "dead": "+",
        "dead/trunk.layers.1": "+",
        "linearised": "0",
        "sign_entropy": "-",
        "zero_gradient": "+",
        "preactivation_one_sided": "+",
        "srank": "-",
        "effective_rank": "-",
        "feature_rank": "-",
        "matrix_rank": "-",
        "matrix_rank_centred": "-",
        "pca_rank": "-",
        "condition": "+",
        "target_mean_over_std": "0",
        "spectral_norm/trunk.layers.0": "0",
        "growth_balance": "0",
    },
    "inflated norms": {
        "dormant@0.025": "0",
        "dead": "0",
        "linearised": "0",
        "sign_entropy": "0",
        "parameter_norm": "+",
        "weight_magnitude": "+",
        "distance_from_birth": "+",
        "growth": "+",
        "growth_balance": "0",
        "spectral_norm": "+",
        "lipschitz_bound": "+",
        "preactivation_variance": "+",
        "preactivation_one_sided": "0",
        "srank": "0",
        "effective_rank": "0",
        "stable_rank": "0",
        "condition": "0",
        "log10_sigma_1": "+",
        "cos_v1_mean": "0",
        "update_ratio": "-",
        "value_churn": "+",
        "hessian_probe_top": "+",
        "hessian_probe_magnitude": "+",
        "entk_rank": "+",  # kernels' gradients grow by more than biases', which hardly differ between samples
    },
    "rank-one features": {
        "dormant@0": "0",
        "dead": "0",
        "dead/trunk.layers.0": "0",
        "srank": "-",
        "effective_rank": "-",
        "feature_rank": "-",
        "matrix_rank": "-",
        "matrix_rank_centred": "-",
        "stable_rank": "-",
        "pca_rank": "-",
        "condition": "+",
        "sigma_1_over_sigma_2": "+",
        "entk_rank": "-",
        "parameter_norm/trunk.layers.0": "0",
        "growth": "0",
    },
    "constant-offset targets": {
        "dormant@0.025": "0",
        "dead": "0",
        "linearised": "0",
        "parameter_norm": "0",
        "target_mean": "+",
        "target_std": "0",
        "target_mean_over_std": "+",
        "q_mean": "0",
        "gradient_norm": "+",
        "gradient_cosine": "+",
        "gradient_cosine_negative": "-",
        "srank": "0",
        "cos_v1_mean": "0",
        "entk_rank": "0",
        "entk_off_diagonal": "0",
        "hessian_probe_top": "0",
        "spectral_norm": "0",
    },
    "zombie layer": {
        "dead": "+",
        "dead/trunk.layers.0": "0",
        "dead/trunk.layers.1": "+",  # a constant of hundreds goes into the layer behind
        "linearised": "+",
        "linearised/trunk.layers.0": "+",
        "sign_entropy": "-",
        "sign_entropy/trunk.layers.0": "-",
        "preactivation_one_sided/trunk.layers.0": "+",
        "preactivation_mean_abs/trunk.layers.0": "+",
        "preactivation_variance/trunk.layers.0": "0",
        "weight_magnitude": "0",
        "spectral_norm": "0",
        "growth": "0",
        "cos_v1_mean": "+",
        "entk_top_share": "+",
        "entk_off_diagonal": "+",
    },
    "dead twin": {
        "dead": "+",
        "dead/q.0.trunk.layers.0": "0",
        "dead/q.1.trunk.layers.0": "+",
        "dormant@0": "+",
        "zero_gradient": "+",
        "sign_entropy": "-",
        "srank": "-",
        "srank/q.0.trunk.layers.1": "0",
        "srank/q.1.trunk.layers.1": "-",
        "effective_rank": "-",
        "feature_rank": "-",
        "entk_off_diagonal": "+",
        "entk_top_share": "+",
        "weight_magnitude": "0",
        "spectral_norm": "0",
        "growth_balance": "0",
        "target_mean": "0",
    },
}


def half_dead(params, batch):
    """The first 8 of 16 units: their weights stay, their bias is far below."""
    params["trunk.layers.1.bias"] = params["trunk.layers.1.bias"].clone()
    params["trunk.layers.1.bias"][:8] = -100


def inflated(params, batch):
    for name in params:
        params[name] = 10 * params[name]


def rank_one(params, batch):
    """All units of the last hidden layer are copies of one that is sometimes active, in the norm the layer had."""
    weight = params["trunk.layers.1.weight"]
    copies = weight[:1].abs().expand_as(weight)
    params["trunk.layers.1.weight"] = copies * weight.norm() / copies.norm()


def offset(params, batch):
    batch["reward"] = batch["reward"] + 100


def zombie(params, batch):
    params["trunk.layers.0.bias"] = params["trunk.layers.0.bias"] + 100


def dead_twin(params, batch):
    for i in (0, 1):
        params[f"q.1.trunk.layers.{i}.bias"] = params[f"q.1.trunk.layers.{i}.bias"] - 1e3


FAULTS = {
    "half-dead layer": half_dead,
    "inflated norms": inflated,
    "rank-one features": rank_one,
    "constant-offset targets": offset,
    "zombie layer": zombie,
    "dead twin": dead_twin,
}


def plain_batch(spec):
    g = torch.Generator().manual_seed(1)
    discrete = spec.is_discrete
    return {
        "obs": torch.randn(SAMPLES, *spec.obs_shape, generator=g),
        "next_obs": torch.randn(SAMPLES, *spec.obs_shape, generator=g),
        "action": torch.randint(0, 3, (SAMPLES,), generator=g)
        if discrete
        else torch.rand(SAMPLES, spec.action_dim, generator=g) * 2 - 1,
        "reward": torch.randn(SAMPLES, generator=g),
        "discount": torch.full((SAMPLES,), 0.9),
        "weight": torch.ones(SAMPLES),
        "update": torch.tensor(1),
        "alive": torch.tensor(True),
    }


def measured(fault: str, planted: bool) -> dict[str, float]:
    """All numbers of all diagnostics but the one that trains; the target network is the healthy one."""
    twins = fault == "dead twin"
    agent, part, spec = (sac(), "critic", CONTROL) if twins else (dqn(spec=VECTOR, net=NET, double=False), "q", VECTOR)
    states = {name: p.birth(3) for name, p in agent.parts.items()}
    params, batch = dict(states[part].params), plain_batch(spec)
    if planted:
        FAULTS[fault](params, batch)
    states[part] = states[part]._replace(params=params)
    g = torch.Generator().manual_seed(2)
    noise = {k: torch.randn(n.shape, generator=g) for k, n in agent.noise(SAMPLES).items()}
    grads, outcome = agent.parts[part].gradient(states, batch, noise, observing=True)
    step, found = Step(batch, noise, outcome, grads, states), {}
    for diagnostic in (d for tier in TIERS for d in tier.diagnostics if d is not trainability):
        found |= diagnostic(agent.parts[part], states[part], step)
    return {name: float(value) for name, value in found.items() if value.ndim == 0}


NET = Vectors(width=16)


@pytest.mark.parametrize("fault", EXPECTED)
def test_every_diagnostic_says_of_a_planted_fault_what_the_table_says(fault):
    healthy, faulty = measured(fault, False), measured(fault, True)
    said = {}
    for name in EXPECTED[fault]:
        a, b = healthy[name], faulty[name]
        said[name] = "0" if abs(b - a) <= 1e-3 * abs(a) + 1e-6 else "+" if b > a else "-"
    assert said == EXPECTED[fault]


def test_the_table_has_every_fault_and_both_signs_of_most_diagnostics():
    assert EXPECTED.keys() == FAULTS.keys()
    signs: dict[str, set[str]] = {}
    for row in EXPECTED.values():
        for name, sign in row.items():
            signs.setdefault(name.partition("/")[0], set()).add(sign)
    assert all(sign in "+-0" for seen in signs.values() for sign in seen)
    assert {name for name, seen in signs.items() if seen == {"0"}} <= {"growth_balance", "q_mean", "target_std"}
