"""L2 Init: half the squared distance from the weights at birth, in the loss."""

from __future__ import annotations

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, equal, run, sac

from core.clock import Clock
from core.state import member
from core.when import When
from interventions.l2_init import L2Init
from interventions.layer_norm import LayerNorm
from interventions.reset import Reset


def gradients(learner, part: str, states, batch):
    noise = {"critic": torch.zeros(8, 2), "actor": torch.zeros(8, 2)}
    return learner.parts[part].gradient(states, batch, noise)[0]


def added_by(intervention, state=None, others=()):
    """What L2 Init adds to the gradient of a DQN's state: an old one, unless given."""
    regularised, plain = engine(dqn([*others, intervention])), engine(dqn(others))
    if state is None:
        run(plain, 3)
        state = member(plain.states, 0)["q"]
    batch = member(batch_for(FRAMES, (0,)), 0)
    more, less = (gradients(e.learner, "q", {"q": state}, batch) for e in (regularised, plain))
    return {k: more[k] - less[k] for k in more}, state


def shifted(state, by: float = 0.05):
    """The same network, every number `by` above or below the one at birth."""
    g = torch.Generator().manual_seed(0)
    signs = {k: torch.randint(0, 2, p.shape, generator=g) * 2 - 1 for k, p in state.params.items()}
    return state._replace(params={k: state.birth[k] + by * sign for k, sign in signs.items()})


def test_the_gradient_grows_by_the_coefficient_times_the_distance_from_birth_biases_included():
    added, s = added_by(L2Init(weight=0.1), shifted(member(engine(dqn()).states, 0)["q"]))
    assert "value.bias" in added and "encoder.convs.0.bias" in added
    for k, gradient in added.items():
        assert (gradient - 0.1 * (s.params[k] - s.birth[k])).abs().max() < 1e-6, k
    assert max(float(g.abs().max()) for g in added.values()) == pytest.approx(0.1 * 0.05, abs=1e-6)


def test_a_trained_network_is_pulled_by_the_distance_it_has_gone():
    added, s = added_by(L2Init(weight=10.0))
    for k, gradient in added.items():
        assert (gradient - 10.0 * (s.params[k] - s.birth[k])).abs().max() < 1e-6, k


def test_the_penalty_is_half_the_coefficient_times_the_squared_distance():
    part = engine(dqn([L2Init(weight=0.2)])).learner.parts["q"]
    s = shifted(part.birth(seed=0), by=0.5)
    numbers = sum(p.numel() for p in s.params.values())
    value = part.interventions[0].penalty(part, s.params, s, None)
    assert float(value) == pytest.approx(0.5 * 0.2 * numbers * 0.25, rel=1e-4)


def test_a_newborn_network_feels_nothing():
    newborn = member(engine(dqn()).states, 0)["q"]
    added, s = added_by(L2Init(weight=10.0), newborn)
    assert all(torch.count_nonzero(gradient) == 0 for gradient in added.values())
    part = engine(dqn([L2Init(weight=10.0)])).learner.parts["q"]
    assert float(part.interventions[0].penalty(part, s.params, s, None)) == 0.0


def test_gains_and_shifts_of_normalisation_receive_no_gradient_but_biases_do():
    newborn = member(engine(dqn([LayerNorm()])).states, 0)["q"]
    added, _ = added_by(L2Init(weight=0.1), shifted(newborn), others=[LayerNorm()])
    layers = ["trunk.norms.0", *(f"encoder.norms.{i}" for i in range(3))]
    norms = {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
    assert {k for k, gradient in added.items() if torch.count_nonzero(gradient) == 0} == norms


def test_without_data_gradient_a_plain_gradient_step_shrinks_the_distance_by_the_coefficient():
    e = engine(dqn([L2Init(weight=0.1)]))
    s = shifted(member(e.states, 0)["q"])
    batch = member(batch_for(FRAMES, (0,)), 0)
    grads, rate = gradients(e.learner, "q", {"q": s}, batch | {"weight": torch.zeros(8)}), 0.5
    for k, p in s.params.items():
        distance, next_distance = p - s.birth[k], p - rate * grads[k] - s.birth[k]
        ratio = next_distance.double().norm() / distance.double().norm()
        assert float(ratio) == pytest.approx(1 - rate * 0.1, abs=1e-6), k


def test_a_strong_pull_keeps_a_training_network_near_its_birth():
    def distance(*interventions):
        e = engine(dqn(interventions, spec=VECTOR, learning_rate=1e-2))
        run(e, 30)
        s = e.states["q"]
        return sum(float((s.params[k] - s.birth[k]).square().sum()) for k in s.params) ** 0.5

    assert distance(L2Init(weight=10.0)) < 0.3 * distance()


def test_what_a_reset_redraws_is_pulled_to_the_new_draw_and_the_rest_to_its_old_birth():
    e = engine(dqn([L2Init(weight=0.1), Reset(where=("head",), when=When(every=1))], spec=VECTOR))
    plain = engine(dqn(spec=VECTOR))
    clock = run(e, 1)
    drawn = {k: p[0].clone() for k, p in e.states["q"].params.items()}  # the reset is the last thing that happened
    first = {k: p[0] for k, p in engine(dqn(spec=VECTOR)).states["q"].params.items()}
    e.update(batch_for(VECTOR, (0,), 7), clock)
    states, batch = member(e.states, 0), member(batch_for(VECTOR, (0,)), 0)
    more, less = (gradients(x.learner, "q", states, batch) for x in (e, plain))
    for k, p in states["q"].params.items():
        origin = drawn[k] if k.startswith(("advantage", "value")) else first[k]
        assert (more[k] - less[k] - 0.1 * (p - origin)).abs().max() < 1e-6, k
    assert not torch.equal(drawn["advantage.weight"], first["advantage.weight"])


def test_birth_weights_survive_a_checkpoint():
    e = engine(dqn([L2Init(weight=0.1)], spec=VECTOR))
    run(e, 3)
    other = engine(dqn([L2Init(weight=0.1)], spec=VECTOR), seeds=(1,))
    other.load_state_dict(e.state_dict())
    assert equal(other.states["q"].birth, e.states["q"].birth)


def test_where_and_on_limit_the_penalty_and_the_temperature_is_pulled_only_when_named():
    added, _ = added_by(L2Init(weight=10.0, where=("encoder",)))
    assert {k.split(".")[0] for k, gradient in added.items() if torch.count_nonzero(gradient)} == {"encoder"}
    batch = member(batch_for(CONTROL, (0,)), 0) | {"entropy": torch.tensor(0.3)}
    plain = engine(sac())
    states = {name: shifted(s) for name, s in member(plain.states, 0).items()}
    for on, pulled in ((("*",), {"critic", "actor"}), (("alpha",), {"alpha"}), (("*", "alpha"), set(states))):
        regularised = sac([L2Init(weight=0.1, on=on)])
        felt = {
            name
            for name in states
            if not equal(*(gradients(x, name, states, batch) for x in (regularised, plain.learner)))
        }
        assert felt == pulled


def test_a_target_that_does_not_follow_is_not_regularised():
    e = engine(dqn([L2Init(weight=1.0)], spec=VECTOR, target="ema", tau=0.0))
    for p in e.states["q"].copies["target"].values():
        p += 0.5
    before = {k: p.clone() for k, p in e.states["q"].copies["target"].items()}
    e.update(batch_for(VECTOR, (0,)), Clock(steps=10))
    assert equal(e.states["q"].copies["target"], before)


def test_a_selection_of_gains_and_shifts_alone_is_refused_at_birth():
    with pytest.raises(ValueError, match="where=.*only gains and shifts of part q"):
        engine(dqn([LayerNorm(), L2Init(where=("trunk.norms.*",))], spec=VECTOR))


def test_defaults_are_as_described():
    assert (L2Init().weight, L2Init().on, L2Init().where) == (1e-3, ("*",), ("all",))
