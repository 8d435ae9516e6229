"""Kernels of per-sample gradients: of linear networks by hand, of all others by a loop with torch.autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learners import VECTOR, classifier, dqn, sac
from test_diagnostics import born, observe, shown
from torch import nn

from core.blueprint import NetSpec
from core.diagnostics.tangents import (
    SAMPLES,
    entk,
    gradient_covariance,
    loss_gram,
    normalised,
    off_diagonal,
    order,
    signs,
    spectrum,
    tangent_kernel,
)
from core.optim import Adam
from core.part import Outcome, Part
from core.state import State
from interventions.l2 import L2
from nets import C51, Vectors


class Plain(nn.Sequential):
    """Layers one after the other, without a map of them."""

    def forward(self, x):
        return super().forward(x), {}

    def chains(self):
        return []


def plain(*layers, loss=None) -> tuple[Part, State]:
    """A part of fresh layers; `layers` are functions that make one."""
    part = Part("net", lambda spec: Plain(*(make() for make in layers)), NetSpec(), loss, optim=Adam())
    return part, part.birth(0)


def linear(inputs: int, outputs: int = 1, bias: bool = False, loss=None) -> tuple[Part, State]:
    return plain(lambda: nn.Linear(inputs, outputs, bias=bias), loss=loss)


def at(x, noise=None, **batch):
    """A step that shows these inputs."""
    return shown()._replace(batch={"obs": torch.as_tensor(x)} | batch, noise=noise or {})


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pushed(x, weight, push):
    """A linear network; its loss multiplies outputs by 6 and by a weight and a noise of each sample."""

    def loss(params, states, batch, noise):
        factor = batch["weight"] * noise["push"] * batch["both"] * noise["all"]
        return Outcome((factor * part(params, batch["obs"])[0][:, 0]).mean(), {}, {})

    part, s = linear(len(x[0]), loss=loss)
    numbers = {"weight": torch.as_tensor(weight), "both": torch.tensor(2.0)}
    return part, s, at(x, {"push": torch.as_tensor(push), "all": torch.tensor(3.0)}, **numbers)


def by_a_loop(part, s, step):
    """All samples at once through the network; one backward pass per sample."""
    params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
    out = part.decode(part(params | s.buffers, *part.inputs(step.batch))[0]).flatten(1)
    scalars = out @ signs(out.shape[1]).to(out)
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}  # sigmas rest in evaluation
    return gram_of([torch.autograd.grad(f, list(params.values()), **options) for f in scalars])


def gram_of(gradients):
    rows = torch.stack([torch.cat([g.flatten() for g in sample]) for sample in gradients]).double()
    return rows @ rows.T


# the kernel


@pytest.mark.parametrize("bias", [False, True])
def test_of_a_linear_network_the_kernel_is_the_inner_product_of_inputs_and_1_for_the_bias(bias):
    x = draw(6, 4)
    expected = x.double() @ x.double().T + bias
    torch.testing.assert_close(entk(*linear(4, bias=bias), at(x)), expected)
    torch.testing.assert_close(entk(*linear(4, 5, bias=bias), at(x)), 5 * expected)  # signs squared, of five outputs
    assert set(signs(64).tolist()) == {-1, 1} and torch.equal(signs(64), signs(64))


LEARNERS = {
    "vectors": (lambda: dqn(spec=VECTOR), "q"),
    "categorical": (lambda: dqn(spec=VECTOR, value=C51(-2, 2, 5)), "q"),
    "frames": (dqn, "q"),
    "critics": (sac, "critic"),
    "actor": (sac, "actor"),
    "classifier": (classifier, "classifier"),
    "noisy": (lambda: dqn(spec=VECTOR, noisy=0.5, value=C51(-2, 2, 5)), "q"),
    "random critics": (lambda: sac(critics=10, subset=2), "critic"),
    "batch norm": (lambda: dqn(spec=VECTOR, net=Vectors(width=16, norm="batch")), "q"),
}


def observed(learner):
    """A newborn one, but for its statistics, and a step."""
    make, name = LEARNERS[learner]
    states = born(agent := make())
    buffers = {k: t + 0.5 if t.is_floating_point() else t for k, t in states[name].buffers.items()}
    return observe(agent, states | {name: states[name]._replace(buffers=buffers)}, name)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_kernel_is_that_of_a_loop_and_symmetric_and_without_negative_spectrum(learner):
    part, s, step = observed(learner)
    k, expected = entk(part, s, step), by_a_loop(part, s, step)
    assert k.dtype == torch.float64 and k.shape == (8, 8)
    torch.testing.assert_close(k, expected, rtol=1e-4, atol=1e-5 * expected.max().item())
    torch.testing.assert_close(k, k.T)
    assert torch.linalg.eigvalsh(k).min() > -1e-9 * k.max()


def test_a_small_step_along_one_samples_gradient_moves_the_others_by_the_kernel():
    part, s = plain(lambda: nn.Linear(3, 6), nn.Tanh, lambda: nn.Linear(6, 2))
    s = s._replace(params={k: p.double() for k, p in s.params.items()})
    x, v = draw(5, 3).double(), signs(2)
    k = entk(part, s, at(x))
    for j in range(5):
        params = {name: p.clone().requires_grad_() for name, p in s.params.items()}
        (part(params, x[j : j + 1])[0] @ v).sum().backward()
        moved = ({name: p.detach() + h * p.grad for name, p in params.items()} for h in (1e-5, -1e-5))
        up, down = (part(numbers, x)[0] @ v for numbers in moved)
        torch.testing.assert_close((up - down) / 2e-5, k[:, j], rtol=1e-6, atol=1e-8)


def test_duplicated_samples_have_duplicated_rows():
    part, s, step = observed("vectors")
    again = step.batch["obs"].clone()
    again[5] = again[2]
    k = entk(part, s, step._replace(batch=step.batch | {"obs": again}))
    assert torch.equal(k[5], k[2]) and torch.equal(k[:, 5], k[:, 2]) and not torch.allclose(k[5], k[3])


@pytest.mark.parametrize("size", [1, 7])
def test_a_parameter_at_a_time_or_in_pieces_is_the_same_sum(monkeypatch, size):
    at_once = entk(*observed("vectors"))
    monkeypatch.setattr("core.diagnostics.tangents.BLOCK", size)
    torch.testing.assert_close(entk(*observed("vectors")), at_once)


def test_the_first_64_samples_are_looked_at():
    x = draw(70, 2)
    learner, expected = pushed(x, torch.ones(70), torch.ones(70)), (x @ x.T).double()[:64, :64]
    torch.testing.assert_close(entk(*learner), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss_gram(*learner), 36 * expected, rtol=1e-5, atol=1e-5)
    assert SAMPLES == 64 and tangent_kernel(*learner)["entk_image"].shape == (64, 64)


# its statistics


def two(ratio):
    """Unit vectors whose cosines have two eigenvalues in this ratio."""
    angle = 2 * math.atan(math.sqrt(ratio))
    return torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]])


EPS = float(np.finfo(np.float64).eps)
STATISTICS = [f"entk_{k}" for k in ("rank", "condition", "above_1e-3", "top_share", "off_diagonal")]
INPUTS = {  # of a linear network, and its five statistics
    "of any length": ([[2e-4, 0.0], [5e-4, 0.0], [0.0, 3e-4]], [3 / 2 ** (2 / 3), 1 / (3 * EPS), 2, 2 / 3, 1 / 3]),
    "at right angles": (3 * torch.eye(8), [8, 1, 8, 1 / 8, 0]),
    "in one direction": (torch.ones(8, 8).cumsum(0), [1, 1 / (8 * EPS), 1, 1, 1]),
    "without gradient": (torch.zeros(3, 2), [1, 1, 0, 0, 0]),
}


@pytest.mark.parametrize("inputs", INPUTS)
def test_statistics_by_hand(inputs):
    x, expected = INPUTS[inputs]
    found = tangent_kernel(*linear(len(x[0])), at(x))
    assert [found[k].item() for k in STATISTICS] == pytest.approx(expected)
    assert set(found) == {*STATISTICS, "entk_image"}


@pytest.mark.parametrize("ratio, above", [(1.1e-3, 2), (0.9e-3, 1)])
def test_eigenvalues_above_a_thousandth_of_the_greatest_count(ratio, above):
    found = tangent_kernel(*linear(2), at(two(ratio)))
    assert found["entk_above_1e-3"] == above
    assert found["entk_condition"].item() == pytest.approx(1 / ratio, rel=1e-4)


def test_cosines_have_a_diagonal_of_1_but_for_samples_without_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]]).double()
    torch.testing.assert_close(normalised(x @ x.T), torch.tensor([[1, 0, 0.6], [0, 0, 0], [0.6, 0, 1]]).double())


def test_off_diagonals_and_eigenvalues_of_small_matrices():
    k = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert off_diagonal(k).tolist() == [2, 3]
    assert off_diagonal(torch.arange(9.0).reshape(3, 3)).tolist() == [1, 2, 3, 5, 6, 7]
    assert off_diagonal(torch.ones(1, 1)).tolist() == [0]
    assert spectrum(torch.diag(torch.tensor([0.5, -1e-9, 2.0]))).tolist() == [2, 0.5, 0]


# its picture


def test_order_puts_what_is_alike_side_by_side():
    directions = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])  # all within a right angle
    cluster = torch.tensor([0, 2, 1, 0, 2, 2, 1, 0, 1])
    x = (directions[cluster] + 0.01 * draw(9, 2)) * torch.arange(1.0, 10)[:, None]
    first = order((x @ x.T).double())
    seen = cluster[first].tolist()
    assert sorted(first.tolist()) == list(range(9))
    assert sum(a != b for a, b in zip(seen, seen[1:], strict=False)) == 2, "three clusters, two borders"


def test_of_three_the_two_that_are_alike_are_neighbours_and_two_or_one_stay_as_they_are():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]]).double()
    places = order(x @ x.T).tolist()
    assert abs(places.index(0) - places.index(2)) == 1
    assert order(x[:2] @ x[:2].T).tolist() == [0, 1] and order(x[:1] @ x[:1].T).tolist() == [0]


def test_the_picture_is_the_cosines_in_that_order_both_ways():
    x = torch.eye(2)[[0, 1, 0, 1, 1, 0]] * torch.arange(1.0, 7)[:, None]
    image = tangent_kernel(*linear(2), at(x))["entk_image"]
    torch.testing.assert_close(image, torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).double())
    learner = observed("vectors")
    kn = normalised(entk(*learner))
    first = order(kn).numpy()
    np.testing.assert_array_equal(tangent_kernel(*learner)["entk_image"].numpy(), kn.numpy()[np.ix_(first, first)])


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_samples_will_do(count):
    learner = pushed(torch.eye(3)[:count], torch.ones(count), torch.ones(count))
    found = tangent_kernel(*learner)
    assert torch.equal(found["entk_image"], torch.eye(count).double())
    assert found["entk_off_diagonal"] == 0 and found["entk_rank"].item() == pytest.approx(count)
    assert gradient_covariance(*learner)["gradient_cosine"] == 0


# gradients of losses


def test_every_sample_comes_with_its_own_weight_and_noise_and_the_numbers_of_all():
    x, weight, push = [[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]], [1.0, 0.5, 2.0], [1.0, -1.0, 0.1]
    rows = 6 * np.array(x) * np.array(weight)[:, None] * np.array(push)[:, None]
    np.testing.assert_allclose(loss_gram(*pushed(x, weight, push)).numpy(), rows @ rows.T, rtol=1e-5)


@pytest.mark.parametrize(
    "x, push, expected",
    [
        ([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]], [1.0, -1.0, 1.0], [-1 / 3, 1 / 3, 3 / 2 ** (2 / 3)]),
        ([[3.0, 4.0]] * 3, [0.5] * 3, [1, 0, 1]),
    ],
    ids=["a right angle is not negative", "one sample again and again"],
)
def test_agreement_of_gradients_by_hand(x, push, expected):
    found = gradient_covariance(*pushed(x, [1.0] * 3, push))
    names = ["gradient_cosine", "gradient_cosine_negative", "gradient_cosine_rank"]
    assert {k: v.item() for k, v in found.items()} == pytest.approx(dict(zip(names, expected, strict=True)))


def test_gradients_of_q_learning_are_weighted_errors_times_the_values_gradients_without_targets_and_penalties():
    agent = dqn([L2(weight=10.0)], spec=VECTOR)
    states = born(agent)
    target = {k: 1.5 * p for k, p in states["q"].copies["target"].items()}
    states["q"] = states["q"]._replace(copies={"target": target})
    part, s, step = observe(agent, states)
    step = step._replace(batch=step.batch | {"weight": torch.linspace(0.1, 2, 8)})
    params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
    q = part(params, step.batch["obs"])[0][torch.arange(8), step.batch["action"], 0]
    slope = step.batch["weight"] * (q - step.outcome.values["target"]).clamp(-1, 1).detach()  # Huber's
    expected = gram_of(
        [torch.autograd.grad(slope[i] * q[i], list(params.values()), retain_graph=True) for i in range(8)]
    )
    torch.testing.assert_close(loss_gram(part, s, step), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "learner", ["frames", "critics", "actor", "classifier", "batch norm", "noisy", "random critics"]
)
def test_the_gradients_are_those_of_single_samples_with_their_noise_as_in_evaluation(learner):
    part, s, step = observed(learner)
    gradients = []
    for i in range(8):
        params = {k: p.clone().requires_grad_() for k, p in s.params.items()}
        row = {k: t[i : i + 1] for k, t in step.batch.items() if t.ndim}
        noise = {k: t if k in step.shared else t[i : i + 1] for k, t in step.noise.items()}
        loss = part.loss(params | s.buffers, step.states, row, noise).loss
        gradients.append(torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(loss_gram(part, s, step), gram_of(gradients), rtol=1e-4, atol=1e-6)


def test_a_network_whose_gradients_overflow_has_no_numbers_and_stops_nothing():
    nothing = torch.full((4, 4), math.nan, dtype=torch.float64)
    assert spectrum(nothing).isnan().all() and sorted(order(nothing).tolist()) == [0, 1, 2, 3]
