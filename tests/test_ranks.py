"""Ranks of features by hand and by NumPy's SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learners import FRAMES, VECTOR, dqn, sac
from test_diagnostics import born, layer_tensors, observe, shown

from core.diagnostics.ranks import (
    condition,
    effective_rank,
    family,
    feature_rank,
    feature_ranks,
    matrix_rank,
    mean_signature,
    pca_rank,
    penultimate,
    srank,
    stable_rank,
    top_ratio,
)
from nets import Nature, Vectors

EPS = float(np.finfo(np.float32).eps)
RANKS = ("srank", "effective_rank", "feature_rank", "matrix_rank", "stable_rank", "pca_rank")
RATIOS = ("condition", "sigma_1_over_sigma_2")
NAMES = RANKS + RATIOS


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def sigmas(*values):
    return torch.tensor(values).double()


def with_spectrum(n, d, *values):
    """Features [n, d] with these singular values and zeros behind them."""
    u, v = (torch.linalg.qr(draw(k, len(values), seed=k))[0] for k in (n, d))
    return u @ torch.diag(sigmas(*values)) @ v.T


def by_numpy(phi):
    """The whole family from its definitions, by NumPy."""
    phi = np.asarray(phi, dtype=np.float64)
    n, d = phi.shape
    sigma = np.linalg.svd(phi, compute_uv=False)
    p, squares = sigma[sigma > 0] / sigma.sum(), sigma**2 / (sigma**2).sum()
    floor = max(n, d) * EPS * sigma[0]
    return {
        "srank": 1 + np.argmax(np.cumsum(sigma / sigma.sum()) >= 0.99),
        "effective_rank": math.exp(-(p * np.log(p)).sum()),
        "feature_rank": np.linalg.matrix_rank(phi / math.sqrt(n), tol=0.01),
        "matrix_rank": np.linalg.matrix_rank(phi, tol=floor),
        "stable_rank": (np.linalg.norm(phi) / np.linalg.norm(phi, 2)) ** 2,
        "pca_rank": 1 + np.argmax(np.cumsum(squares) >= 0.99),
        "condition": sigma[0] / max(sigma[-1], floor),
        "sigma_1_over_sigma_2": sigma[0] / max(sigma[1], floor),
    }


def numbers(found):
    return {k: v.item() for k, v in found.items()}


def of_features(phi, measure=feature_ranks):
    """What is said of a network whose penultimate features are these, without its layers' own."""
    phi = torch.as_tensor(phi)
    agent = dqn(spec=VECTOR, net=Vectors(width=phi.shape[1]), dueling=False)
    found = measure(agent.q, born(agent)["q"], shown({"trunk.h0": torch.zeros(1, 1), "trunk.h1": phi}))
    return {k: v.item() for k, v in found.items() if "/" not in k}


# from singular values


@pytest.mark.parametrize("d", [1, 4, 32])
def test_the_identity_has_full_rank_by_every_definition(d):
    assert numbers(family(torch.eye(d).double())) == pytest.approx(dict.fromkeys(RANKS, d) | dict.fromkeys(RATIOS, 1))


def test_a_matrix_of_rank_one_has_rank_one_by_every_definition():
    found = numbers(family(torch.outer(torch.arange(1, 9), torch.ones(5)).double()))
    floor = dict.fromkeys(RATIOS, 1 / (8 * EPS))
    assert found == pytest.approx(dict.fromkeys(RANKS, 1) | floor, abs=1e-6)


def test_features_that_are_zero_throughout_span_nothing_and_no_direction_leads():
    found = numbers(family(torch.zeros(8, 5).double()))
    assert found == dict.fromkeys(RANKS, 0) | dict.fromkeys(RATIOS, 1) | {"effective_rank": 1}


def test_ranks_by_shares_by_hand():
    sigma = sigmas(90, 9.5, 0.4, 0.1)  # shares 0.9, 0.995, 0.999, 1
    assert srank(sigma) == 2 and srank(sigma, delta=0.2) == 1 and srank(sigma, delta=0.002) == 3
    assert srank(sigmas(3, 1), delta=0.25) == 1, "what reaches the share exactly is enough"
    assert srank(sigmas(97, 1, 1, 0.5, 0.5)) == 3 and srank(sigmas(1, 0, 0)) == 1
    assert pca_rank(sigma) == 2 and pca_rank(sigma, delta=0.02) == 1  # 8100 and 90.25 of 8190.42
    assert pca_rank(sigmas(1, 0.1)) == 1 and pca_rank(sigmas(1, 0.1), delta=0.009) == 2  # 1 of 1.01: 0.990099
    p = sigma.numpy() / 100
    assert effective_rank(sigma).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert effective_rank(sigmas(2, 1, 1, 0)).item() == pytest.approx(2**1.5)
    assert stable_rank(sigmas(2, 1, 1)).item() == 1.5


def test_the_feature_rank_counts_what_is_above_a_hundredth_for_each_sample():
    assert feature_rank(sigmas(1, 0.0101, 0.01, 0.0099), 1) == 2, "above, not at"
    assert feature_rank(sigmas(1, 0.0401, 0.0399), 16) == 2
    assert feature_rank(sigmas(0.5, 0.3), 1, epsilon=0.4) == 1


def test_the_matrix_rank_counts_what_single_precision_can_tell_from_nothing():
    assert matrix_rank(sigmas(2, 8.01 * EPS, 8 * EPS, 7.99 * EPS), 4) == 2
    assert matrix_rank(sigmas(1, 0.5, 0), 3) == 2


def test_quotients_of_singular_values_have_a_floor_below():
    assert condition(sigmas(8, 4, 2), 10).item() == 4 and top_ratio(sigmas(8, 4, 2), 10).item() == 2
    assert condition(sigmas(8, 4, 1e-9), 10).item() == pytest.approx(1 / (10 * EPS))
    assert condition(sigmas(8, 4, 1e-9), 10, eps=1e-4).item() == pytest.approx(1e3)
    assert top_ratio(sigmas(8, 1e-9), 10).item() == pytest.approx(1 / (10 * EPS))
    assert top_ratio(sigmas(8), 10) == 1 == condition(sigmas(8), 10)
    assert condition(sigmas(4e-30, 1e-30), 10).item() == pytest.approx(4)


# of features


SHAPES = {"tall": (40, 16), "square": (16, 16), "wide": (8, 16), "two units": (5, 2)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["normal", "positive", "steep", "faint"])
def test_the_whole_family_is_numpys_and_so_is_its_centred_half(shape, kind):
    n, d = SHAPES[shape]
    values = [10.0 ** -(8 * i / (min(n, d) - 1)) for i in range(min(n, d))]  # 1 to 1e-8
    phi = {
        "normal": draw(n, d),
        "positive": draw(n, d).relu() + 0.1,
        "steep": with_spectrum(n, d, *values),
        "faint": 3e-3 * draw(n, d),
    }[kind].float()
    found = of_features(phi)
    assert set(found) == set(NAMES) | {f"{name}_centred" for name in NAMES}
    exact = phi.double().numpy()
    for centred, x in (("", exact), ("_centred", exact - exact.mean(0))):
        assert {k: found[k + centred] for k in NAMES} == pytest.approx(by_numpy(x), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
def test_a_factor_on_all_features_changes_the_feature_rank_alone(scale):
    phi = with_spectrum(32, 16, *np.linspace(5, 0.1, 12)).float().double() + 0.2
    once, scaled = of_features(phi), of_features(scale * phi)
    changed = {k for k in once if once[k] != pytest.approx(scaled[k], rel=1e-6)}
    absolute = {"feature_rank", "feature_rank_centred"}
    assert changed == (absolute if scale < 1 else set()), "1e6 leaves no direction below the threshold, nor did 1"
    assert scale > 1e-6 or scaled["feature_rank"] == scaled["feature_rank_centred"] == 0


def test_a_constant_on_each_feature_leaves_centred_ranks_unchanged_and_swamps_the_others():
    phi, offset = draw(32, 16), 1e3 * (1 + torch.arange(16).double())
    plain, moved = of_features(phi), of_features(phi + offset)
    centred = [f"{name}_centred" for name in NAMES]
    assert [moved[k] for k in centred] == pytest.approx([plain[k] for k in centred], rel=1e-6)
    assert moved["srank"] == moved["pca_rank"] == 1 < 10 < plain["srank"]
    assert moved["stable_rank"] < 1.01 and moved["effective_rank"] < 1.2
    assert moved["sigma_1_over_sigma_2"] > 1e3 * moved["sigma_1_over_sigma_2_centred"]


def test_constant_features_are_one_direction_and_none_when_centred():
    found = of_features(torch.full((32, 16), 3.0))
    assert [round(found[k], 6) for k in RANKS] == [1] * 6
    assert [found[f"{k}_centred"] for k in RANKS] == [0, 1, 0, 0, 0, 0]
    assert found["condition_centred"] == found["sigma_1_over_sigma_2_centred"] == 1


# of networks


def test_feature_ranks_are_those_of_what_each_critics_output_layer_reads():
    agent = sac()
    part, s, step = observe(agent, born(agent), part="critic")
    found = numbers(feature_ranks(part, s, step))
    by_hand = []
    for i in (0, 1):
        h = torch.cat([step.batch["obs"], step.batch["action"]], 1)
        for j in (0, 1):
            w, b = layer_tensors(s.params, f"q.{i}.trunk.layers.{j}")
            h = (h @ w.T + b).relu()
        by_hand.append(by_numpy(h) | {f"{k}_centred": v for k, v in by_numpy(h - h.mean(0)).items()})
    steady = [k for k in by_hand[0] if k != "condition_centred"]  # eight centred samples: the last sigma is rounding
    for k in steady:
        for i in (0, 1):
            assert found[f"{k}/q.{i}.trunk.layers.1"] == pytest.approx(by_hand[i][k], rel=1e-3)
        assert found[k] == pytest.approx((by_hand[0][k] + by_hand[1][k]) / 2, rel=1e-3)
    assert {key.partition("/")[2] for key in found} == {"", "q.0.trunk.layers.1", "q.1.trunk.layers.1"}


def test_feature_ranks_are_of_the_last_hidden_layer_alone():
    agent = dqn(spec=VECTOR)
    feats = {"trunk.h0": torch.ones(32, 16), "trunk.h1": 3 * torch.eye(16).repeat(2, 1)}
    found = feature_ranks(agent.q, born(agent)["q"], shown(feats))
    assert found["srank"] == found["srank/trunk.layers.1"] == 16
    assert found["effective_rank"].item() == pytest.approx(16)
    assert {key.partition("/")[2] for key in found} == {"", "trunk.layers.1"}


def test_where_outputs_read_a_convolution_every_pixel_of_every_channel_is_a_feature():
    agent = dqn(spec=FRAMES, net=Nature(depth=0, padding="valid"))
    part, s, step = observe(agent, born(agent))
    ((name, phi),) = penultimate(part, step)
    (feats,) = (step.outcome.feats[layer.feats] for layer in part.layers if layer.name == name)
    assert feats.ndim == 4 and phi.dtype == torch.float64
    assert torch.equal(phi, feats.reshape(8, -1).double())
    assert feature_ranks(part, s, step)["stable_rank"].item() == pytest.approx(by_numpy(phi)["stable_rank"])


def test_without_hidden_layers_there_are_no_features():
    agent = dqn(spec=VECTOR, net=Vectors(depth=0))
    learner = observe(agent, born(agent))
    assert feature_ranks(*learner) == {} and set(mean_signature(*learner)) == {"output_bias_norm"}


# what large mean targets leave behind


def signature_by_numpy(phi):
    phi = np.asarray(phi, dtype=np.float64)
    _, sigma, rows = np.linalg.svd(phi / math.sqrt(len(phi)), full_matrices=False)
    mean = phi.mean(0)
    return {"log10_sigma_1": math.log10(sigma[0]), "cos_v1_mean": abs(rows[0] @ mean) / np.linalg.norm(mean)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, -0.5, 30.0])
@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_the_first_direction_is_numpys_and_its_angle_is_blind_to_scale(shape, offset, scale):
    phi = scale * (draw(*SHAPES[shape]) + offset).float()
    found = of_features(phi, mean_signature)
    assert {k: found[k] for k in ("log10_sigma_1", "cos_v1_mean")} == pytest.approx(
        signature_by_numpy(phi), rel=1e-4, abs=1e-4
    )


def test_constant_features_lie_along_their_mean_and_opposite_ones_across_it():
    same = of_features(100 * torch.ones(32, 16), mean_signature)
    assert same["log10_sigma_1"] == pytest.approx(math.log10(400)) and same["cos_v1_mean"] == pytest.approx(1)
    across = torch.tensor([[5.0, 1.0], [-5.0, 1.0]]).repeat(4, 1)
    found = of_features(across, mean_signature)
    assert found["log10_sigma_1"] == pytest.approx(math.log10(5)) and found["cos_v1_mean"] == pytest.approx(0)


def test_silent_features_have_a_finite_signature():
    for n in (32, 8):
        found = of_features(torch.zeros(n, 16), mean_signature)
        assert found["log10_sigma_1"] == -12 and found["cos_v1_mean"] == 0


def test_the_output_bias_is_that_of_all_output_layers_together_and_of_no_others():
    agent = dqn(spec=VECTOR)
    part, s, step = observe(agent, born(agent))
    biases = {k: 9 * torch.ones_like(p) for k, p in s.params.items() if k.endswith("bias")}
    biases |= {"advantage.bias": torch.tensor([1.0, -2.0, 2.0]), "value.bias": torch.tensor([4.0])}
    found = mean_signature(part, s._replace(params=s.params | biases), step)
    assert found["output_bias_norm"].item() == pytest.approx(5)


def test_each_critic_has_its_own_signature_and_the_bare_name_is_the_mean():
    agent = sac()
    part, s, step = observe(agent, born(agent), "critic")
    found = numbers(mean_signature(part, s, step))
    for layer, phi in penultimate(part, step):
        for name, value in signature_by_numpy(phi).items():
            assert found[f"{name}/{layer}"] == pytest.approx(value, rel=1e-4)
    for name in ("log10_sigma_1", "cos_v1_mean"):
        assert found[name] == pytest.approx(np.mean([found[f"{name}/q.{i}.trunk.layers.1"] for i in (0, 1)]))
