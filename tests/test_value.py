"""Value objects against SciPy, plain loops and hand-made numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm

from core.options import build
from nets import C51, VALUES, HLGauss, Scalar, TwoHot

ATOMS = np.linspace(-10, 10, 51)
CATEGORICAL = {"two_hot": TwoHot(), "hl_gauss": HLGauss(), "c51": C51()}
SUPPORTS = [(-10.0, 10.0, 51), (0.0, 100.0, 101), (-1.0, 2.0, 7), (5.0, 6.0, 2)]
every_support = pytest.mark.parametrize("low, high, bins", SUPPORTS)


def spread(low, high, count=401):
    """Targets over the support and a fifth of its length beyond each end, the ends and the middle among them."""
    room = (high - low) / 5
    return torch.linspace(low - room, high + room, count - 3).tolist() + [low, high, (low + high) / 2]


def logits(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_hot(position, bins=51):
    """Logits that put all mass on one bin."""
    out = torch.full((bins,), -1e9)
    out[position] = 0
    return out


# two-hot


@every_support
def test_a_two_hot_targets_mean_is_the_clipped_target_exactly(low, high, bins):
    y = torch.tensor(spread(low, high))
    p = TwoHot(low, high, bins).encode(y).double()
    mean = p @ torch.linspace(low, high, bins).double()
    torch.testing.assert_close(mean, y.double().clamp(low, high), rtol=1e-5, atol=1e-5 * (high - low))


@every_support
def test_a_two_hot_target_equals_a_plain_loop(low, high, bins):
    value, step = TwoHot(low, high, bins), (high - low) / (bins - 1)
    for y in spread(low, high, 53):
        position = (min(max(y, low), high) - low) / step
        i = min(math.floor(position), bins - 2)
        expected = np.zeros(bins)
        expected[i], expected[i + 1] = 1 - (position - i), position - i
        np.testing.assert_allclose(value.encode(torch.tensor(y)).numpy(), expected, atol=2e-5)


# HL-Gauss


@every_support
@pytest.mark.parametrize("smooth", [0.5, 0.75, 2.0])
def test_an_hl_gauss_target_is_the_normal_cdf_over_the_bins(low, high, bins, smooth):
    edges = np.linspace(low, high, bins + 1)
    sigma = smooth * (high - low) / bins
    value = HLGauss(low, high, bins, smooth=smooth)
    for y in spread(low, high, 53):
        mass = np.diff(norm.cdf(edges, loc=min(max(y, low), high), scale=sigma))
        np.testing.assert_allclose(value.encode(torch.tensor(y)).numpy(), mass / mass.sum(), atol=1e-5)


def test_an_hl_gauss_mean_is_biased_near_the_edge_alone():
    """51 bins on [-10, 10], sigma 0.75 bins: -0.0004 at 9, -0.03 at 9.5, -0.2 at 9.9, next to none inside."""
    value = HLGauss()

    def bias(y):
        p = value.encode(torch.tensor([y])).double()
        return (p @ value.atoms(p).double()).item() - y

    inside = 10 - 3 * 0.75 * 20 / 51
    for y in np.linspace(-inside, inside, 41):
        assert abs(bias(float(y))) < 2e-3  # three sigma from the edge: sigma phi(3) = 0.0013
    for y in np.linspace(-7, 7, 41):
        assert abs(bias(float(y))) < 1e-5
    assert bias(9.0) == pytest.approx(-0.0004, abs=5e-5)
    assert bias(9.5) == pytest.approx(-0.03, abs=5e-3)
    assert bias(9.9) == pytest.approx(-0.20, abs=5e-3)
    assert bias(-9.5) == pytest.approx(-bias(9.5), abs=1e-5)


def test_hl_gauss_bins_tile_the_range_from_edge_to_edge():
    value = HLGauss(0.0, 10.0, 5)
    assert value.atoms(torch.zeros(())).tolist() == pytest.approx([1, 3, 5, 7, 9])
    assert value.step == 2


# C51


def project(probabilities, reward, discount, atoms=ATOMS):
    """Bellemare et al. 2017, algorithm 1, with the mass of exact hits kept."""
    low, high, step = atoms[0], atoms[-1], atoms[1] - atoms[0]
    target = np.zeros(len(atoms))
    for p, z in zip(probabilities, atoms, strict=True):
        b = (min(max(reward + discount * z, low), high) - low) / step
        if abs(b - round(b)) < 1e-9:
            target[round(b)] += p
        else:
            target[math.floor(b)] += p * (math.ceil(b) - b)
            target[math.ceil(b)] += p * (b - math.floor(b))
    return target


@pytest.mark.parametrize("reward", [0.0, 0.4, 1.0, -0.37, 3.3, 12.0, -50.0])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
def test_c51s_projection_equals_a_plain_loop(reward, discount):
    out = logits(51, seed=1)
    got = C51().backup(torch.tensor(reward), torch.tensor(discount), out)
    expected = project(out.double().softmax(0).numpy(), reward, discount)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_c51_splits_a_collapsed_target_of_1_between_its_neighbours():
    """A terminal reward of 1 on linspace(-10, 10, 51): half the mass at 0.8, half at 1.2."""
    got = C51().backup(torch.tensor(1.0), torch.tensor(0.0), logits(51))
    expected = np.zeros(51)
    expected[[27, 28]] = 0.5
    assert ATOMS[27] == pytest.approx(0.8) and ATOMS[28] == pytest.approx(1.2)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("hit", range(51))
def test_c51_keeps_all_mass_of_an_exact_hit(hit):
    got = C51().backup(torch.tensor(float(ATOMS[hit])), torch.tensor(0.0), logits(51))
    assert got[hit] == pytest.approx(1, abs=2e-5)
    assert got.sum() == pytest.approx(1, abs=1e-5)


def test_c51s_projection_keeps_the_mean_inside_the_support():
    for reward, discount in ((0.3, 0.5), (-1.7, 0.8), (2.0, 0.1)):
        out = logits(51, seed=3)
        got = C51().backup(torch.tensor(reward), torch.tensor(discount), out)
        mean = reward + discount * float(out.double().softmax(0).numpy() @ ATOMS)
        assert C51().expected(got).item() == pytest.approx(mean, abs=1e-5)


def test_c51_moves_mass_beyond_the_support_to_its_ends():
    value = C51()
    assert value.backup(torch.tensor(100.0), torch.tensor(1.0), logits(51))[-1] == pytest.approx(1)
    assert value.backup(torch.tensor(-100.0), torch.tensor(1.0), logits(51))[0] == pytest.approx(1)


def test_c51_backs_up_a_distribution_and_not_its_mean():
    """A fair coin over -8 and 8, discounted by a half, stays a fair coin over -4 and 4."""
    out = torch.full((51,), -1e9)
    out[[5, 45]] = 0
    got = C51().backup(torch.tensor(0.0), torch.tensor(0.5), out)
    assert got[[15, 35]].tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_each_sample_of_a_batch_is_backed_up_by_its_own_numbers():
    reward, discount, out = torch.tensor([0.5, -2.0]), torch.tensor([0.9, 0.0]), logits(2, 51)
    got = C51().backup(reward, discount, out)
    for i in range(2):
        alone = C51().backup(reward[i], discount[i], out[i])
        torch.testing.assert_close(got[i], alone)


# all histograms


def target_of(name, y):
    """A target distribution of a categorical value for the number y."""
    value = CATEGORICAL[name]
    return value.backup(y, torch.zeros_like(y), logits(*y.shape, 51)) if name == "c51" else value.encode(y)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_targets_are_probabilities(name):
    p = target_of(name, torch.tensor(spread(-10, 10)))
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(len(p)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_a_target_moved_by_one_bin_moves_its_mass_by_one_index(name):
    step = CATEGORICAL[name].step
    a, b = target_of(name, torch.tensor([0.13, 0.13 + step]))
    torch.testing.assert_close(b[1:], a[:-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_decoding_gives_the_mean_over_the_atoms(name):
    value, out = CATEGORICAL[name], logits(4, 51, scale=3.0)
    low, width = (-10 + 10 / 51, 20 / 51) if name == "hl_gauss" else (-10, 0.4)
    atoms = low + width * np.arange(51)
    e = np.exp(out.double().numpy())
    np.testing.assert_allclose(value.decode(out).numpy(), (e / e.sum(-1, keepdims=True)) @ atoms, atol=1e-5)
    for i in (0, 20, 50):
        assert value.decode(one_hot(i)).item() == pytest.approx(atoms[i], abs=1e-5)


@pytest.mark.parametrize("name", ["two_hot", "hl_gauss"])
def test_decoding_what_was_encoded_gives_the_number_back(name):
    y = torch.linspace(-8.5, 8.5, 200)
    value = CATEGORICAL[name]
    decoded = value.decode(value.encode(y).clamp_min(1e-30).log())
    torch.testing.assert_close(decoded, y, rtol=0, atol=1e-3 if name == "hl_gauss" else 2e-5)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_the_loss_is_the_cross_entropy_of_each_sample(name):
    value, out = CATEGORICAL[name], logits(6, 51)
    y = torch.linspace(-9, 9, 6)
    target = target_of(name, y)
    given = target if name == "c51" else y
    expected = F.cross_entropy(out, target, reduction="none")
    torch.testing.assert_close(value.loss(out, given), expected, rtol=1e-4, atol=1e-5)
    assert value.loss(out, given).shape == (6,)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_the_gradient_is_prediction_less_target_and_never_longer_than_sqrt_2(name):
    value, y = CATEGORICAL[name], torch.tensor([0.0, 9.9, -1e6, 1e6])
    target = target_of(name, y)
    for out in (logits(4, 51, scale=5.0), one_hot(50).clamp_min(-50).expand(4, 51), torch.zeros(4, 51)):
        out = out.clone().requires_grad_()
        value.loss(out, target if name == "c51" else y).sum().backward()
        torch.testing.assert_close(out.grad, out.detach().softmax(-1) - target, rtol=1e-4, atol=1e-5)
        assert out.grad.norm(dim=-1).max() <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize("name", ["scalar", "two_hot", "hl_gauss"])
def test_a_backup_to_a_number_is_reward_plus_discounted_value(name):
    value = VALUES[name]()
    out = logits(4, value.bins)
    reward, discount = torch.tensor([1.0, 0.0, -2.0, 0.5]), torch.tensor([0.99, 0.9, 0.5, 0.0])
    expected = [r + d * v for r, d, v in zip(reward, discount, value.decode(out), strict=True)]
    got = value.backup(reward, discount, out)
    torch.testing.assert_close(got, torch.stack(expected))
    assert torch.equal(value.expected(got), got)


def test_a_c51_target_stands_for_its_mean():
    target = logits(4, 51).softmax(-1)
    np.testing.assert_allclose(C51().expected(target).numpy(), target.double().numpy() @ ATOMS, atol=1e-5)


# regression


@pytest.mark.parametrize("error", [0.0, 0.5, -0.9, 1.0, -3.0, 100.0])
def test_scalar_losses_equal_torchs_and_the_formulas(error):
    out, target = torch.tensor([[2.0 + error]]), torch.tensor([2.0])
    squared, huber = Scalar("mse").loss(out, target), Scalar("huber").loss(out, target)
    torch.testing.assert_close(squared, F.mse_loss(out[:, 0], target, reduction="none"))
    torch.testing.assert_close(huber, F.smooth_l1_loss(out[:, 0], target, reduction="none"))
    assert squared.item() == pytest.approx(error**2, rel=1e-5, abs=1e-9)
    assert huber.item() == pytest.approx(error**2 / 2 if abs(error) < 1 else abs(error) - 0.5, rel=1e-5, abs=1e-9)


def test_a_scalars_output_is_its_value():
    assert Scalar().bins == 1
    assert torch.equal(Scalar().decode(torch.tensor([[3.0], [4.0]])), torch.tensor([3.0, 4.0]))


# settings


@pytest.mark.parametrize("kind", [TwoHot, HLGauss, C51])
@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 1.0}, {"low": 2.0, "high": -2.0}, {"bins": 1}])
def test_an_impossible_support_is_refused_in_one_line(kind, wrong):
    with pytest.raises(ValueError, match=r"value.*(low=|bins)") as error:
        build(kind, wrong, "value")
    assert "\n" not in str(error.value)
