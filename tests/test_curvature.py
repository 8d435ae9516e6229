"""Extreme eigenvalues of Hessians: of quadratics by hand, of networks by torch's dense Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import VECTOR, dqn, sac
from test_diagnostics import born, observe, shown
from torch import nn
from torch.autograd.functional import hessian

from core.blueprint import NetSpec
from core.diagnostics.curvature import curvature, hessian_product, lanczos, probe_loss, training_loss
from core.optim import Adam
from core.part import Outcome, Part
from interventions.l2 import L2
from nets import Vectors

SPECTRA = {
    "positive": [0.5, 1.0, 4.0, 7.0, 9.0, 10.0],
    "negative": [-8.0, -5.0, -4.0, -2.0, -1.0, -0.5],
    "indefinite": [-6.0, -1.0, 0.0, 1.0, 2.0, 3.0],
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def symmetric(eigenvalues):
    """A matrix with these eigenvalues, in float64."""
    q = torch.linalg.qr(draw(len(eigenvalues), len(eigenvalues)).double())[0]
    return q @ torch.diag(torch.tensor(eigenvalues).double()) @ q.T


def quadratic(a):
    """1/2 w' A w + a linear term, w all tensors one after the other."""

    def loss(params):
        w = torch.cat([p.flatten() for p in params.values()])
        return 0.5 * w @ a.to(w) @ w + w.sum()

    return loss


def dense(loss, params):
    """The Hessian by torch, entry by entry, of all tensors one after the other."""
    names, sizes = list(params), [p.numel() for p in params.values()]

    def flat(w):
        return loss({k: x.reshape(params[k].shape) for k, x in zip(names, w.split(sizes), strict=True)})

    return hessian(flat, torch.cat([p.flatten() for p in params.values()]))


class Numbers(nn.Module):
    """Says its own numbers, whatever it is shown."""

    def __init__(self, *shape):
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(*shape))

    def forward(self, x):
        return self.numbers, {}

    def chains(self):
        return []


class Linear(nn.Linear):
    """One layer, without a map of it."""

    def forward(self, x):
        return super().forward(x), {}

    def chains(self):
        return []


def part_of(make, loss=None):
    part = Part("net", lambda spec: make(), NetSpec(), loss, optim=Adam())
    return part, part.birth(0), shown()._replace(batch={"obs": draw(4, 3)})


def learner_of_quadratic(a, factor=1.0):
    """A part whose training loss is a quadratic in its numbers."""
    return part_of(
        lambda: Numbers(2, 3), lambda params, states, b, noise: Outcome(factor * quadratic(a)(params), {}, {})
    )


# Lanczos' method


@pytest.mark.parametrize("kind", SPECTRA)
def test_of_a_quadratic_all_eigenvalues_are_found(kind):
    params = {"a": draw(2, 2), "b": draw(1), "c": draw(1, 1)}
    values = lanczos(quadratic(symmetric(SPECTRA[kind])), params)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.numpy(), SPECTRA[kind], atol=1e-5)


def test_products_are_those_with_the_matrix_in_the_order_of_the_tensors():
    a = symmetric([1.0, -2, 3, 4, 5, 6, 7, 8, 9])
    params = {"b": draw(2, 3).double(), "a": draw(3).double()}
    product, v = hessian_product(quadratic(a), params), draw(9, seed=1).double()
    for x in (v, v / 3, torch.eye(9).double()[4]):
        torch.testing.assert_close(product(x), a @ x)


@pytest.mark.parametrize(
    "eigenvalues, found",
    [([0.0] * 40, [0]), ([3.0] * 40, [3]), ([-2.0] * 39 + [5.0], [-2, 5]), ([0.0] * 38 + [4.0, -7.0], [-7, 0, 4])],
    ids=["flat", "round", "two values", "rank two"],
)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_it_ends_where_no_new_direction_can_be_reached_whatever_the_scale(eigenvalues, found, scale):
    values = lanczos(quadratic(scale * torch.diag(torch.tensor(eigenvalues))), {"w": draw(40)})
    np.testing.assert_allclose(values.numpy() / scale, found, atol=1e-4)


@pytest.mark.parametrize("size, length", [(1, 1), (29, 29), (31, 30), (200, 30)])
def test_there_are_no_more_values_than_parameters_and_at_most_30(size, length):
    a = torch.diag(torch.arange(1.0, size + 1))
    assert len(lanczos(quadratic(a), {"w": torch.zeros(size)})) == length
    assert len(lanczos(quadratic(a), {"w": torch.zeros(size)}, iterations=5)) == min(5, size)


def test_every_value_lies_within_the_eigenvalues_and_more_steps_come_closer():
    true = torch.cat([torch.tensor([-90.0]), torch.linspace(-1, 1, 198), torch.tensor([100.0])])
    loss, params = quadratic(torch.diag(true)), {"w": torch.zeros(200)}
    runs = [lanczos(loss, params, k) for k in (2, 4, 8, 16, 30)]
    for values in runs:  # Cauchy's interlacing; copies of the extremes would break it
        k = len(values)
        assert (values <= true.double()[-k:] + 1e-4).all() and (values >= true.double()[:k] - 1e-4).all()
    tops, bottoms = [v[-1].item() for v in runs], [-v[0].item() for v in runs]
    assert all(b >= a - 1e-4 for found in (tops, bottoms) for a, b in zip(found, found[1:], strict=False))
    assert (tops[-1], bottoms[-1]) == pytest.approx((100, 90), rel=1e-5), "what stands apart is found"
    assert tops[0] < 99


def test_nearby_eigenvalues_are_bounded_from_below():
    true = torch.linspace(0, 1, 300)
    top = lanczos(quadratic(torch.diag(true)), {"w": torch.zeros(300)})[-1].item()
    assert 0.97 < top < 1 + 1e-5


def test_the_start_is_the_same_at_every_call_whatever_torch_has_drawn():
    loss, params = quadratic(torch.diag(torch.linspace(0, 1, 100))), {"w": torch.zeros(100)}
    first = lanczos(loss, params, 3)
    torch.randn(5)
    assert torch.equal(lanczos(loss, params, 3), first)


# of a loss


@pytest.mark.parametrize("kind, top, magnitude", [("positive", 10, 10), ("negative", -0.5, 8), ("indefinite", 3, 6)])
def test_the_top_is_the_most_positive_and_the_magnitude_the_largest_absolute(kind, top, magnitude):
    found = curvature(*learner_of_quadratic(symmetric(SPECTRA[kind])))
    assert found["hessian_loss_top"].item() == pytest.approx(top, abs=1e-5)
    assert found["hessian_loss_magnitude"].item() == pytest.approx(magnitude, rel=1e-5)
    assert set(found) == {f"hessian_{loss}_{what}" for loss in ("loss", "probe") for what in ("top", "magnitude")}


@pytest.mark.parametrize("factor, top, magnitude", [(100.0, 300, 600), (-1.0, 6, 6)])
def test_a_scaled_loss_has_scaled_curvature_and_the_probe_does_not_notice(factor, top, magnitude):
    once, scaled = (curvature(*learner_of_quadratic(symmetric(SPECTRA["indefinite"]), f)) for f in (1.0, factor))
    assert scaled["hessian_loss_top"].item() == pytest.approx(top, rel=1e-4)
    assert scaled["hessian_loss_magnitude"].item() == pytest.approx(magnitude, rel=1e-4)
    for name in ("hessian_probe_top", "hessian_probe_magnitude"):
        assert scaled[name] == once[name]


TINY = {
    "q": lambda: (dqn(spec=VECTOR, net=Vectors(width=3, depth=1), dueling=False), "q"),
    "batch norm": lambda: (dqn(spec=VECTOR, net=Vectors(width=2, depth=1, norm="batch"), dueling=False), "q"),
    "critic": lambda: (sac(net=Vectors(width=2, depth=1), critics=1), "critic"),
    "actor": lambda: (sac(net=Vectors(width=2, depth=1)), "actor"),
}


@pytest.mark.parametrize("learner", TINY)
def test_of_tiny_networks_it_is_that_of_the_dense_hessian_by_torch(learner):
    agent, name = TINY[learner]()
    states = born(agent)
    buffers = {k: b + 0.5 if b.is_floating_point() else b for k, b in states[name].buffers.items()}
    states[name] = states[name]._replace(buffers=buffers)
    part, s, step = observe(agent, states, name)
    found = curvature(part, s, step)
    assert sum(p.numel() for p in s.params.values()) <= 30
    training = lambda params: part.loss(params | s.buffers, states, step.batch, step.noise).loss  # noqa: E731
    for kind, loss in (("loss", training), ("probe", probe_loss(part, s, step))):
        expected = torch.linalg.eigvalsh(dense(loss, s.params).double())
        scale = expected.abs().max().item()
        assert scale > 1e-3
        assert found[f"hessian_{kind}_top"].item() == pytest.approx(expected[-1].item(), abs=1e-4 * scale)
        assert found[f"hessian_{kind}_magnitude"].item() == pytest.approx(scale, rel=1e-4)
    torch.testing.assert_close(training_loss(part, s, step)(s.params), step.outcome.loss)


def test_penalties_take_no_part():
    bare, pulled = (curvature(*observe(a, born(a))) for a in (dqn(spec=VECTOR), dqn([L2(weight=10.0)], spec=VECTOR)))
    assert bare == pulled


# of the probe


def test_the_probe_of_a_linear_network_is_that_of_its_inputs():
    part, s, step = part_of(lambda: Linear(3, 2))
    part.loss = lambda params, states, b, noise: Outcome(part(params, b["obs"])[0].mean(), {}, {})
    x = np.concatenate([step.batch["obs"].double().numpy(), np.ones((4, 1))], 1)
    top = 2 / (4 * 2) * np.linalg.norm(x, 2) ** 2  # of a mean over 4 samples and 2 numbers
    found = curvature(part, s, step)
    for name, value in found.items():
        expected = 0 if "loss" in name else top
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_probe_is_the_mean_square_of_the_change_plus_standard_normal_numbers_always_the_same():
    part, s, step = part_of(lambda: Numbers(64, 16))
    s = s._replace(params={"numbers": 5 + draw(64, 16, seed=3)})
    loss = probe_loss(part, s, step)
    e = torch.func.grad(loss)(s.params)["numbers"] * 64 * 16 / 2  # the derivative where nothing has changed
    assert abs(e.mean()) < 0.1 and e.std().item() == pytest.approx(1, abs=0.1)
    assert e.abs().max() > 2.5 and len(e.unique()) > 1000
    change = draw(64, 16, seed=4)
    moved = {"numbers": s.params["numbers"] + change}
    torch.testing.assert_close(loss(moved), (change + e).square().mean())
    torch.testing.assert_close(probe_loss(part, s, step)(moved), loss(moved), rtol=0, atol=0)


def test_the_probe_knows_no_targets():
    agent = dqn(spec=VECTOR)
    states = born(agent)
    part, s, step = observe(agent, states)
    found = curvature(part, s, step)
    doubled = s._replace(copies={"target": {k: 2 * p for k, p in s.copies["target"].items()}})
    batch = step.batch | {"reward": step.batch["reward"] / 100, "weight": 3 * step.batch["weight"]}
    other = curvature(part, s, step._replace(batch=batch, states={"q": doubled}))
    for kind in ("top", "magnitude"):
        assert other[f"hessian_probe_{kind}"] == found[f"hessian_probe_{kind}"]
        assert other[f"hessian_loss_{kind}"] != found[f"hessian_loss_{kind}"]
