"""L2: half the squared norm of matrices and kernels in the loss, and its decoupled sister, AdamW's decay."""

from __future__ import annotations

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, equal, run, sac

from core.clock import Clock
from core.state import clone, member
from interventions.l2 import L2
from interventions.layer_norm import LayerNorm

CONV = [f"encoder.convs.{i}.weight" for i in range(3)]
MATRICES = [*CONV, "trunk.layers.0.weight", "advantage.weight", "value.weight"]


def gradients(learner, part: str, states, batch):
    noise = {"critic": torch.zeros(8, 2), "actor": torch.zeros(8, 2)}
    return learner.parts[part].gradient(states, batch, noise)[0]


def added_by(interventions, others=(), weight_of_data: float = 1.0):
    """What interventions add to the gradient of a DQN's three-update-old state, beside that state's parameters."""
    with_penalty, without = engine(dqn([*others, *interventions])), engine(dqn(others))
    run(without, 3)
    states, batch = member(without.states, 0), member(batch_for(FRAMES, (0,)), 0)
    batch["weight"] = batch["weight"] * weight_of_data
    more, less = (gradients(e.learner, "q", states, batch) for e in (with_penalty, without))
    return {k: more[k] - less[k] for k in more}, states["q"].params


def silent(spec, count: int = 0):
    """A batch whose data have no gradient."""
    batch = batch_for(spec, (0,), count)
    return batch | {"weight": torch.zeros_like(batch["weight"])}


def test_the_gradient_of_every_matrix_and_kernel_grows_by_the_coefficient_times_the_weights():
    added, params = added_by([L2(weight=0.1)])
    for k in MATRICES:
        assert (added[k] - 0.1 * params[k]).abs().max() < 1e-6, k


def test_biases_gains_and_shifts_receive_no_gradient():
    added, params = added_by([L2(weight=0.1)], others=[LayerNorm()])
    one_dimensional = {k for k in params if params[k].ndim == 1}
    assert {"trunk.norms.0.weight", "trunk.norms.0.bias", "encoder.norms.1.weight", "value.bias"} <= one_dimensional
    assert all(torch.count_nonzero(added[k]) == 0 for k in one_dimensional)
    assert all(torch.count_nonzero(added[k]) for k in params if k not in one_dimensional)


def test_the_penalty_is_half_the_coefficient_times_the_squared_norm():
    intervention = L2(weight=0.2)

    class OneMatrix:
        def matrices(self, where):
            return ["w"]

    params = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0])}
    assert float(intervention.penalty(OneMatrix(), params, None, None)) == pytest.approx(0.5 * 0.2 * 30.0)


def test_where_limits_the_penalty():
    added, params = added_by([L2(weight=0.1, where=("output",))])
    assert {k for k in params if torch.count_nonzero(added[k])} == {"advantage.weight", "value.weight"}


def test_without_data_gradient_a_plain_gradient_step_shrinks_the_norm_by_the_coefficient():
    e = engine(dqn([L2(weight=0.1)]))
    states = member(e.states, 0)
    grads, params, rate = gradients(e.learner, "q", states, member(silent(FRAMES), 0)), states["q"].params, 0.5
    for k in MATRICES:
        assert float((params[k] - rate * grads[k]).norm() / params[k].norm()) == pytest.approx(1 - rate * 0.1, abs=1e-6)


def test_without_data_gradient_coupled_adam_first_moves_every_weight_by_the_step_size_towards_zero():
    e = engine(dqn([L2(weight=1.0)], spec=VECTOR, learning_rate=1e-3, adam_eps=1e-12))
    before = clone(e.states["q"].params)
    e.update(silent(VECTOR), Clock(steps=10))
    for k, p in e.states["q"].params.items():
        expected = -1e-3 * before[k].sign() if k.endswith("weight") else torch.zeros_like(p)
        assert (p - before[k] - expected).abs().max() < 1e-6, k


def test_without_data_gradient_decoupled_decay_shrinks_matrices_by_step_size_times_coefficient():
    e = engine(dqn(spec=VECTOR, learning_rate=1e-2, weight_decay=0.5))
    for name, p in e.states["q"].params.items():
        if name.endswith("bias"):
            p += 1.0  # so that a decayed bias would show
    before = clone(e.states["q"].params)
    for count in range(3):
        e.update(silent(VECTOR, count), Clock(steps=10, updates=count))
    for k, p in e.states["q"].params.items():
        if p[0].ndim > 1:
            assert float(p.norm() / before[k].norm()) == pytest.approx((1 - 1e-2 * 0.5) ** 3, abs=1e-6)
        else:
            assert torch.equal(p, before[k])


def test_on_limits_the_penalty_to_the_named_part_and_the_temperature_has_nothing_to_decay():
    regularised, plain = engine(sac([L2(weight=0.1, on=("critic",))])), engine(sac())
    states, batch = member(plain.states, 0), member(batch_for(CONTROL, (0,)), 0) | {"entropy": torch.tensor(0.3)}
    for part in ("critic", "actor", "alpha"):
        same = equal(*(gradients(e.learner, part, states, batch) for e in (regularised, plain)))
        assert same == (part != "critic")
    everywhere = engine(sac([L2(weight=0.1)]))
    assert everywhere.learner.parts["alpha"].interventions == ()


def test_a_target_that_does_not_follow_is_not_regularised():
    e = engine(dqn([L2(weight=1.0)], spec=VECTOR, target="ema", tau=0.0))
    run(e, 3)
    assert equal(e.states["q"].copies["target"], e.states["q"].birth)


def test_a_selection_without_a_matrix_is_refused_at_birth():
    with pytest.raises(ValueError, match="where=.*only biases, gains and shifts of part q"):
        engine(dqn([L2(where=("*.bias",))], spec=VECTOR))


def test_defaults_are_as_described():
    assert (L2().weight, L2().on, L2().where) == (1e-5, ("*",), ("all",))
