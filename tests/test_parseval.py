"""Parseval regularisation: the penalty, its gradient, its lowest value, and which tensors it concerns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac

from core.options import build
from core.state import member
from interventions.layer_norm import LayerNorm
from interventions.parseval import Parseval
from nets import Nature, Vectors

SQUARE = torch.tensor([[1.0, 1.0], [0.0, 2.0]])  # times its transpose: [[2, 2], [2, 4]]
KERNEL = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])  # one row of squared length 6
LEARNERS = {"dqn": (dqn, "q"), "sac": (sac, "critic"), "classifier": (classifier, "classifier")}


def penalty(params, **options) -> float:
    part = SimpleNamespace(matrices=lambda where: [k for k in params if params[k].ndim > 1])
    return float(Parseval(**{"weight": 1.0} | options).penalty(part, params, None, None))


def moved(s, seed: int = 0):
    """The same network with every number moved."""
    g = torch.Generator().manual_seed(seed)
    return s._replace(params={k: p + 0.2 * torch.randn(p.shape, generator=g) for k, p in s.params.items()})


def alone(part, s):
    """The gradient of a part's penalties."""
    return torch.func.grad(lambda params: sum(i.penalty(part, params, s, None) for i in part.interventions))(s.params)


def gradients(learner, part: str, states, batch):
    noise = {"critic": torch.zeros(8, 2), "actor": torch.zeros(8, 2)}
    return learner.parts[part].gradient(states, batch, noise)[0]


# the penalty


@pytest.mark.parametrize(
    ("params", "options", "expected"),
    [
        ({"a": SQUARE}, {}, 1 + 4 + 4 + 9),
        ({"a": SQUARE}, {"scale": 2.0}, 0 + 4 + 4 + 4),
        ({"a": SQUARE}, {"scale": 0.5}, 1.5**2 + 4 + 4 + 3.5**2),
        ({"a": SQUARE}, {"weight": 0.25}, 18 / 4),
        ({"a": KERNEL}, {}, 25),
        ({"a": KERNEL}, {"scale": 6.0}, 0),
        ({"a": SQUARE, "b": KERNEL, "c": torch.tensor([7.0])}, {}, 18 + 25),
        ({"a": SQUARE, "b": KERNEL}, {"weight": 2.0, "scale": 2.0}, 2 * (12 + 16)),
    ],
    ids=str,
)
def test_the_penalty_is_the_squared_distance_of_products_of_rows_from_the_scaled_identity(params, options, expected):
    assert penalty(params, **options) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (6, 6), (4, 2, 3, 3), (20, 1, 2, 2)], ids=str)
def test_it_is_what_numpy_makes_of_the_singular_values(shape, scale):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = np.linalg.svd(w.numpy().reshape(shape[0], -1), compute_uv=False)
    missing = shape[0] - len(found)  # rows that cannot be orthogonal to the others
    expected = ((found**2 - scale) ** 2).sum() + missing * scale**2
    assert penalty({"w": w}, scale=scale) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("gain", "scale"), [(1.0, 1.0), (2**0.5, 2.0), (2.0, 4.0)])
def test_orthogonal_rows_of_the_wanted_length_cost_nothing_and_feel_nothing(gain, scale):
    part = dqn([Parseval(weight=1.0, scale=scale, where=("encoder.convs.1.*", "output"))]).q
    s = part.birth(0)
    for k in part.matrices():
        torch.nn.init.orthogonal_(s.params[k], gain)
    assert float(part.interventions[0].penalty(part, s.params, s, None)) < 1e-8
    assert max(float(g.abs().max()) for g in alone(part, s).values()) < 1e-3


def test_networks_born_orthogonal_with_gain_root_two_are_at_the_lowest_value_of_scale_two():
    part = classifier([Parseval(weight=1.0, scale=2.0)], net=Vectors(width=16, init="orthogonal")).classifier
    s = part.birth(0)
    too_many = 16 - 5  # more outputs than inputs, in the first layer alone
    assert float(part.interventions[0].penalty(part, s.params, s, None)) == pytest.approx(2.0**2 * too_many, rel=1e-4)
    assert max(float(g.abs().max()) for g in alone(part, s).values()) < 1e-4


# the gradient


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", LEARNERS)
def test_the_gradient_of_matrices_and_kernels_is_the_one_derived_by_hand_and_others_have_none(name, scale):
    make, part_name = LEARNERS[name]
    part = make([LayerNorm(), Parseval(weight=0.1, scale=scale)]).parts[part_name]
    s = moved(part.birth(0))
    for k, g in alone(part, s).items():
        rows = s.params[k].flatten(1).double() if s.params[k].ndim > 1 else None
        if rows is None:
            assert torch.count_nonzero(g) == 0, k
        else:
            expected = 0.1 * 4 * (rows @ rows.T - scale * torch.eye(len(rows))) @ rows
            assert largest_difference(g.flatten(1).double(), expected) < 1e-5, k
            assert g.abs().max() > 0.01


@pytest.mark.parametrize("net", [Nature(width=16, padding="valid"), Vectors(width=16)], ids=["image", "vector"])
def test_the_gradient_joins_that_of_the_data(net):
    spec = FRAMES if isinstance(net, Nature) else VECTOR
    regularised, plain = (engine(dqn(given, spec, net=net)) for given in ([Parseval(weight=0.1)], []))
    states = {"q": moved(member(plain.states, 0)["q"])}
    batch = member(batch_for(spec, (0,)), 0)
    more, less = (gradients(e.learner, "q", states, batch) for e in (regularised, plain))
    added = alone(regularised.learner.q, states["q"])
    assert max(float(g.abs().max()) for g in less.values()) > 1e-4
    assert largest_difference(more, {k: less[k] + added[k] for k in more}) < 1e-5


def test_descent_makes_rows_orthonormal():
    part = classifier([Parseval(weight=0.05, where=("head",))]).classifier
    s = moved(part.birth(0))
    for _ in range(200):
        felt = alone(part, s)
        s = s._replace(params={k: p - felt[k] for k, p in s.params.items()})
    rows = s.params["head.weight"]
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_training_with_it_holds_the_rows_of_each_seed_closer_to_orthonormal(name):
    make, part = LEARNERS[name]

    def distances(weight: float) -> list[float]:
        e = engine(make([Parseval(weight=weight)], learning_rate=3e-3), seeds=(0, 1))
        run(e, 20)
        seeds = [member(e.states, i)[part].params for i in range(2)]
        return [penalty({k: p for k, p in params.items() if "trunk" in k}) for params in seeds]

    assert all(held < 0.8 * free for held, free in zip(distances(1.0), distances(0.0), strict=True))


# settings


def test_where_and_on_limit_the_penalty():
    part = dqn([Parseval(weight=0.1, where=("output", "encoder.convs.0.*"))]).q
    found = alone(part, moved(part.birth(0)))
    felt = {"encoder.convs.0.weight", "advantage.weight", "value.weight"}
    assert {k for k, g in found.items() if torch.count_nonzero(g)} == felt
    regularised, plain = engine(sac([Parseval(weight=0.1, on=("actor",))])), engine(sac())
    states, batch = member(plain.states, 0), member(batch_for(CONTROL, (0,)), 0) | {"entropy": torch.tensor(0.3)}
    same = {k for k in states if equal(*(gradients(e.learner, k, states, batch) for e in (regularised, plain)))}
    assert same == {"critic", "alpha"}


def test_nothing_but_the_loss_is_touched():
    settings = {"spec": VECTOR, "target": "ema", "tau": 0.0}
    nothing, plain, strong = (
        engine(dqn(given, **settings)) for given in ([Parseval(weight=0.0)], [], [Parseval(weight=1.0)])
    )
    for e in (nothing, plain, strong):
        run(e, 3)
    for field in ("params", "optim"):
        assert equal(getattr(nothing.states["q"], field), getattr(plain.states["q"], field))
        assert not equal(getattr(strong.states["q"], field), getattr(plain.states["q"], field))
    s = strong.states["q"]
    assert equal(s.copies["target"], s.birth) and equal(s.birth, plain.states["q"].birth)


@pytest.mark.parametrize(("where", "on"), [("*.bias", "q"), ("log", "alpha")])
def test_a_selection_without_a_matrix_is_refused_at_birth(where, on):
    rule = Parseval(where=(where,), on=(on,))
    with pytest.raises(ValueError, match=f"parseval.where=.*only biases, gains and shifts of part {on}"):
        engine(dqn([rule], VECTOR) if on == "q" else sac([rule]))


def test_defaults_are_those_of_the_paper_for_convolutions_and_limits_are_told():
    rule = build(Parseval, {})
    assert (rule.weight, rule.scale, rule.where) == (1e-3, 1.0, ("all",))
    for key, value in {"weight": -0.1, "scale": 0}.items():
        with pytest.raises(ValueError, match=f"{key}: {value} given"):
            build(Parseval, {key: value})
