"""Spectral regularisation: the penalty and its gradient, and the vector that follows the largest singular value."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.blueprint import Layer
from core.options import build
from core.state import State, member
from core.when import When
from interventions.layer_norm import LayerNorm
from interventions.redo import ReDo
from interventions.spectral_regularization import SpectralRegularization
from nets import Nature, Vectors

NAME = "spectral_regularization"
NUMBERS = {
    "fc.weight": torch.tensor([[3.0, 0.0], [0.0, 2.0]]),
    "fc.bias": torch.tensor([1.0, -2.0]),
    "norm.weight": torch.tensor([-2.0, 0.5]),
    "norm.bias": torch.tensor([3.0, 0.0]),
    "log": torch.tensor(-2.0),  # of no layer
}
FIRST, SECOND = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
LAYERS = (Layer("fc", "linear", "head"), Layer("norm", "norm", "head"))
NETS = {
    "dqn": lambda given=(): dqn(given, net=Nature(width=16, padding="valid", init="torch")),
    "sac": lambda given=(): sac(given, net=Vectors(width=16, init="xavier")),
    "classifier": lambda given=(): classifier(given, net=Vectors(width=16, init="torch", norm="layer")),
}
every_net = pytest.mark.parametrize("net", NETS)


def penalty(u=FIRST, names=tuple(NUMBERS), numbers=NUMBERS, **options) -> float:
    """The penalty on the numbers above, or on those named."""
    rule = SpectralRegularization(**{"weight": 1.0} | options)
    s = State(numbers, {}, {}, {}, {}, {"": {"fc.weight": u}})
    return float(rule.penalty(SimpleNamespace(layers=LAYERS, names=lambda where: names), numbers, s, None))


def remembered(matrix) -> np.ndarray:
    """The vector that a newborn network keeps for one matrix."""
    part = SimpleNamespace(matrices=lambda where: ["w"])
    return SpectralRegularization().remember(part, {"w": torch.as_tensor(matrix)})["w"].numpy()


def iterated(matrix: np.ndarray, u: np.ndarray, times: int = 1) -> np.ndarray:
    """Power iteration, by NumPy."""
    for _ in range(times):
        u = matrix @ (matrix.T @ u)
        u = u / np.linalg.norm(u)
    return u


def gradients(learner, name: str, states, batch):
    noise = {"critic": torch.zeros(8, 2), "actor": torch.zeros(8, 2)}
    return learner.parts[name].gradient(states, batch, noise)[0]


def alone(rule, others=(), born: bool = False):
    """The gradient of a DQN that data do not move, newborn or with every number moved; and its state."""
    part = dqn([*others, rule]).q
    s, g = part.birth(0), torch.Generator().manual_seed(2)
    if not born:
        s = s._replace(params={k: p + 0.3 * torch.randn(p.shape, generator=g) for k, p in s.params.items()})
    batch = member(batch_for(FRAMES, (0,)), 0) | {"weight": torch.zeros(8)}
    return part.gradient({"q": s}, batch, {})[0], s


# the penalty


@pytest.mark.parametrize(
    ("power", "terms"),
    [
        (1, [(3 - 1) ** 2, 1 + 4, (2 - 1) ** 2, 9, 4]),
        (2, [(9 - 1) ** 2, (1 + 4) ** 2, (4 - 1) ** 2, 9**2, 4**2]),
        (3, [(27 - 1) ** 2, (1 + 4) ** 3, (8 - 1) ** 2, 9**3, 4**3]),
    ],
)
def test_matrices_and_gains_are_held_near_one_and_biases_and_shifts_near_zero(power, terms):
    for name, term in zip(NUMBERS, terms, strict=True):
        assert penalty(names=(name,), power=power) == pytest.approx(term), name
    assert penalty(power=power) == pytest.approx(sum(terms))
    assert penalty(power=power, weight=0.25) == pytest.approx(0.25 * sum(terms))


def test_the_singular_value_is_the_stretch_along_the_vector_that_is_kept():
    only = {"names": ("fc.weight",), "power": 1}
    assert penalty(SECOND, **only) == pytest.approx((2 - 1) ** 2)
    between = torch.tensor([0.6, 0.8])
    assert penalty(between, **only) == pytest.approx((np.hypot(3 * 0.6, 2 * 0.8) - 1) ** 2)


@every_net
def test_the_penalty_of_a_network_is_that_of_its_singular_values_by_numpy(net):
    for part in NETS[net]([SpectralRegularization(weight=0.1)]).parts.values():
        if not part.interventions:
            continue
        g, s = torch.Generator().manual_seed(1), part.birth(0)
        params = {k: p + 0.3 * torch.randn(p.shape, generator=g) for k, p in s.params.items()}
        s = s._replace(params=params, memory={NAME: part.interventions[0].remember(part, params)})
        expected = 0.0
        for k, p in params.items():
            matrix = p.flatten(1).numpy() if p.ndim > 1 else np.diag(p.numpy())
            top = np.linalg.svd(matrix, compute_uv=False)[0]
            held = p.ndim > 1 or (k in part.norm_names() and k.endswith("weight"))
            expected += (top**2 - 1) ** 2 if held else float(p.square().sum()) ** 2
        value = part.interventions[0].penalty(part, params, s, None)
        assert float(value) == pytest.approx(0.1 * expected, rel=0.05)


def test_orthogonal_matrices_gains_of_one_and_no_biases_cost_nothing_and_feel_nothing():
    rule = SpectralRegularization(weight=1.0)
    part = dqn([LayerNorm(), rule]).q
    s = part.birth(0)
    for k in part.matrices():
        torch.nn.init.orthogonal_(s.params[k])
    s = s._replace(memory={NAME: rule.remember(part, s.params)})
    assert float(rule.penalty(part, s.params, s, None)) < 1e-9
    felt = torch.func.grad(lambda params: rule.penalty(part, params, s, None))(s.params)
    assert max(float(g.abs().max()) for g in felt.values()) < 1e-5


# the gradient


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_gradient_of_every_tensor_is_the_one_derived_by_hand(k):
    found, s = alone(SpectralRegularization(weight=0.1, power=k), [LayerNorm()])
    for name, p in s.params.items():
        if p.ndim > 1:
            matrix, u = p.flatten(1), s.memory[NAME][name]
            top = (matrix.T @ u).norm()
            expected = 2 * (top**k - 1) * k * top ** (k - 1) * torch.outer(u, matrix.T @ u / top)
        elif name.endswith("weight"):
            top = p.abs().max()
            expected = 2 * (top**k - 1) * k * top ** (k - 1) * p.sign() * (p.abs() == top)
        else:
            expected = 2 * k * p.square().sum() ** (k - 1) * p
        assert torch.allclose(found[name], 0.1 * expected.reshape(p.shape), atol=1e-6, rtol=1e-3), name
        assert found[name].abs().max() > 1e-5, name


@pytest.mark.parametrize("power", [1, 2])
def test_the_gradient_of_a_newborn_network_is_finite_where_biases_are_zero(power):
    found, s = alone(SpectralRegularization(weight=1.0, power=power), born=True)
    assert all(torch.count_nonzero(s.params[k]) == 0 for k in s.params if k.endswith("bias"))
    assert all(g.isfinite().all() for g in found.values())
    assert any(torch.count_nonzero(g) for g in found.values())


def test_descent_brings_the_largest_singular_value_to_one_and_leaves_smaller_ones_free():
    rule = SpectralRegularization(weight=0.01, where=("head.weight",))
    part = classifier([rule]).classifier
    s, batch = part.birth(0), member(batch_for(VECTOR, (0,)), 0) | {"weight": torch.zeros(8)}
    s.params["head.weight"].copy_(torch.diag_embed(torch.tensor([2.5, 0.6, 0.3])) @ s.params["head.weight"] / 2**0.5)
    for _ in range(200):
        step = SimpleNamespace(batch=batch)
        grads = torch.func.grad(lambda p: rule.penalty(part, p, s, step))(s.params)  # noqa: B023
        s = rule.after_step(part, s._replace(params={k: p - grads[k] for k, p in s.params.items()}), step)
    found = torch.linalg.svdvals(s.params["head.weight"])
    assert found.tolist() == pytest.approx([1.0, 0.6, 0.3], abs=0.02)


# the vector


def test_a_newborn_network_has_iterated_a_hundred_times_from_ones():
    slow = np.array([[1.0, 0.0], [0.0, 0.99]], np.float32)
    expected = iterated(slow, np.ones(2), 100)
    assert remembered(slow) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - iterated(slow, np.ones(2), 101)).max() > 1e-3
    assert remembered(np.array([[3.0], [-4.0]], np.float32)) == pytest.approx([-0.6, 0.8])


def test_the_iterations_find_a_largest_value_that_stands_out_to_a_hundredth():
    g = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(n, 8, generator=g))[0] for n in (12, 20))
    matrix = left * torch.tensor([3.0, *[2.7] * 3, *[1.0] * 4]) @ right.T
    assert float((matrix.T @ torch.from_numpy(remembered(matrix))).norm()) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("seed", range(2))
@every_net
def test_at_birth_the_value_found_is_close_to_the_largest_and_not_above_it(net, seed):
    for part in NETS[net]([SpectralRegularization()]).parts.values():
        s = part.birth(seed)
        for k, u in s.memory.get(NAME, {}).items():
            matrix = s.params[k].flatten(1)
            ratio = float((matrix.T @ u).norm() / torch.linalg.matrix_norm(matrix, 2))
            assert 0.9 < ratio < 1 + 1e-6, k
            assert u.shape == matrix[:, 0].shape and float(u.norm()) == pytest.approx(1)


@every_net
def test_every_update_advances_the_vector_by_one_iteration_of_the_new_weights_as_torch_takes_it(net):
    e = engine(NETS[net]([SpectralRegularization(weight=0.1)]), seeds=(0, 1))
    clock = None
    for _ in range(3):
        before = [{k: member(e.states, i)[k].memory for k in e.states} for i in range(2)]
        before = torch.utils._pytree.tree_map(torch.clone, before)
        clock = run(e, 1, clock)
        for i, name in [(i, name) for i in range(2) for name in e.states]:
            s = member(e.states, i)[name]
            for k, u in s.memory.get(NAME, {}).items():
                matrix = s.params[k].flatten(1)
                layer = torch.nn.Linear(*reversed(matrix.shape), bias=False)
                layer.weight.data.copy_(matrix)
                norm = torch.nn.utils.parametrizations.spectral_norm(layer).parametrizations.weight[0]
                norm._v.copy_(matrix.T @ before[i][name][NAME][k])
                layer(torch.zeros(matrix.shape[1]))  # in training a pass takes one iteration
                assert torch.allclose(u, norm._u, atol=1e-4), k


def test_updates_without_change_find_the_largest_singular_value_again_and_touch_nothing_else():
    rule = SpectralRegularization()
    part = NETS["dqn"]([rule]).q
    s = part.birth(0)._replace(params=part.birth(5).params)
    for _ in range(150):
        new = rule.after_step(part, s, None)
        assert all(a is b for a, b in zip(new[:5], s[:5], strict=True))  # all but the memory
        s = new
    for k in part.matrices():
        matrix, u = s.params[k].flatten(1), s.memory[NAME][k]
        assert float((matrix.T @ u).norm()) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=0.01)


def test_a_matrix_that_a_recycling_has_emptied_is_followed_again():
    e = engine(dqn([SpectralRegularization(), ReDo(when=When(at=(1,)))], VECTOR, learning_rate=1e-2))
    e.states["q"].params["trunk.layers.1.bias"][:] = -1e3  # all units of the last hidden layer are dormant
    clock = run(e, 1)
    assert torch.count_nonzero(e.states["q"].params["advantage.weight"]) == 0
    run(e, 25, clock)
    s = member(e.states, 0)["q"]
    matrix, u = s.params["advantage.weight"], s.memory[NAME]["advantage.weight"]
    assert 0.01 < float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(float((matrix.T @ u).norm()), rel=0.05)


# settings


def test_where_limits_the_penalty_and_what_is_remembered():
    rule = SpectralRegularization(weight=0.1, where=("head", "encoder.convs.1.weight"))
    found, s = alone(rule)
    matrices = {"encoder.convs.1.weight", "trunk.layers.0.weight", "advantage.weight", "value.weight"}
    assert set(s.memory[NAME]) == matrices
    biases = {k.replace("weight", "bias") for k in matrices if "convs" not in k}
    assert {k for k in found if torch.count_nonzero(found[k])} == matrices | biases


def test_on_limits_it_to_the_named_part():
    regularised, plain = engine(sac([SpectralRegularization(weight=0.1, on=("critic",))])), engine(sac())
    states, batch = member(regularised.states, 0), member(batch_for(CONTROL, (0,)), 0) | {"entropy": torch.tensor(0.3)}
    same = {k for k in states if equal(*(gradients(e.learner, k, states, batch) for e in (regularised, plain)))}
    assert same == {"actor", "alpha"}
    assert {k for k in states if NAME in states[k].memory} == {"critic"}


def test_a_coefficient_of_zero_is_no_penalty_and_a_target_that_does_not_follow_is_not_regularised():
    settings = {"spec": VECTOR, "target": "ema", "tau": 0.0}
    nothing, plain, strong = (
        engine(dqn(i, **settings))
        for i in ([SpectralRegularization(weight=0.0)], [], [SpectralRegularization(weight=1.0)])
    )
    for e in (nothing, plain, strong):
        run(e, 3)
    assert equal(nothing.states["q"].params, plain.states["q"].params)
    assert not equal(strong.states["q"].params, plain.states["q"].params)
    assert equal(strong.states["q"].copies["target"], strong.states["q"].birth)


@pytest.mark.parametrize(("where", "on"), [("*.bias", "q"), ("log", "alpha")])
def test_a_selection_without_a_matrix_is_refused_at_birth(where, on):
    rule = SpectralRegularization(where=(where,), on=(on,))
    with pytest.raises(ValueError, match=f"{NAME}.where=.*only biases, gains and shifts of part {on}"):
        engine(dqn([rule], VECTOR) if on == "q" else sac([rule]))


def test_defaults_are_a_small_coefficient_and_the_square_and_limits_are_told():
    rule = build(SpectralRegularization, {})
    assert (rule.weight, rule.power, rule.where) == (1e-4, 2, ("all",))
    for key, value in {"weight": -0.1, "power": 0}.items():
        with pytest.raises(ValueError, match=f"{key}: {value} given"):
            build(SpectralRegularization, {key: value})
