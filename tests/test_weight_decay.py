"""Weight decay: beside the gradient, of matrices and kernels alone, as torch's AdamW does it with parameter groups."""

from __future__ import annotations

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac

from core.clock import Clock
from core.options import build
from core.state import clone, member
from interventions.layer_norm import LayerNorm
from interventions.upgd import UPGD
from interventions.weight_decay import WeightDecay

LEARNERS = {"convolutions": (dqn, "q", FRAMES), "classifier": (classifier, "classifier", VECTOR)}


def update(e, count: int) -> None:
    e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))


def silent(count: int = 0):
    """A batch whose data have no gradient."""
    batch = batch_for(VECTOR, (0,), count)
    return batch | {"weight": torch.zeros_like(batch["weight"])}


def away_from_zero(e) -> None:
    """Biases, gains and shifts at values at which a decay of theirs would show."""
    for state in e.states.values():
        for p in state.params.values():
            if p[0].ndim <= 1:
                p += 0.5


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", LEARNERS)
def test_five_updates_are_those_of_adamw_with_matrices_in_one_group_and_the_rest_in_another(name, fused):
    learner, part_name, spec = LEARNERS[name]
    e = engine(learner([WeightDecay(weight=2.0), LayerNorm()], learning_rate=1e-2, adam_eps=1e-6))
    part = e.learner.parts[part_name]
    part.fused = fused
    away_from_zero(e)
    mine = {k: p.clone() for k, p in member(e.states, 0)[part_name].params.items()}
    matrices, others = ([p for p in mine.values() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 2.0}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, eps=1e-6)
    for count in range(5):
        batch = member(batch_for(spec, (0,), count), 0)
        grads, _ = part.gradient(member(e.states, 0), batch, {})
        for k, p in mine.items():
            p.grad = grads[k].clone()
        reference.step()
        update(e, count)
    assert largest_difference(member(e.states, 0)[part_name].params, mine) < 1e-5


def test_without_data_gradient_the_norm_of_matrices_shrinks_by_rate_times_coefficient_and_the_rest_stays():
    e = engine(dqn([WeightDecay(weight=0.5), LayerNorm()], spec=VECTOR, learning_rate=1e-2))
    away_from_zero(e)
    before = clone(e.states["q"].params)
    for count in range(3):
        e.update(silent(count), Clock(steps=10, updates=count))
    for k, p in e.states["q"].params.items():
        if p[0].ndim > 1:
            assert float(p.norm() / before[k].norm()) == pytest.approx((1 - 1e-2 * 0.5) ** 3, abs=1e-6)
        else:
            assert torch.equal(p, before[k]), k


def test_the_moments_do_not_see_the_decay():
    e = engine(dqn([WeightDecay(weight=0.5)], spec=VECTOR))
    e.update(silent(), Clock(steps=10))
    slots = e.states["q"].optim
    assert not any(torch.count_nonzero(x) for slot in ("m", "v") for x in slots[slot].values())


def test_it_is_what_the_agents_own_setting_does():
    engines = [engine(dqn([WeightDecay(weight=0.7)])), engine(dqn(weight_decay=0.7))]
    for e in engines:
        run(e, 3)
    assert equal(engines[0].states["q"].params, engines[1].states["q"].params)
    plain = engine(dqn())
    run(plain, 3)
    assert not equal(engines[0].states["q"].params, plain.states["q"].params)


def test_a_coefficient_of_zero_is_plain_training():
    engines = [engine(dqn([WeightDecay(weight=0.0)])), engine(dqn())]
    for e in engines:
        run(e, 3)
    assert equal(engines[0].states["q"].params, engines[1].states["q"].params)


@pytest.mark.parametrize(
    "where, decaying",
    [
        (("output",), {"advantage.weight", "value.weight"}),
        (("trunk.layers.1.*", "value.bias"), {"trunk.layers.1.weight"}),
        (("all",), {"trunk.layers.0.weight", "trunk.layers.1.weight", "advantage.weight", "value.weight"}),
    ],
)
def test_where_chooses_among_matrices(where, decaying):
    e = engine(dqn([WeightDecay(weight=0.5, where=where)], spec=VECTOR, learning_rate=1e-2))
    away_from_zero(e)
    before = clone(e.states["q"].params)
    e.update(silent(), Clock(steps=10))
    assert {k for k, p in e.states["q"].params.items() if not torch.equal(p, before[k])} == decaying


@pytest.mark.parametrize("decayed", ["critic", "actor"])
def test_on_limits_it_to_the_named_part(decayed):
    engines = [engine(sac([WeightDecay(weight=3.0, on=(decayed,))])), engine(sac())]
    birth = member(clone(engines[0].states), 0)
    batch, noise = member(batch_for(CONTROL, (0,)), 0), {k: torch.full((8, 2), 0.3) for k in ("critic", "actor")}
    ends = [e.learner.update(member(e.states, 0), batch | {"alive": e.alive[0]}, noise)[0] for e in engines]
    for name in ("critic", "actor"):
        for k, born in birth[name].params.items():
            lost = ends[1][name].params[k] - ends[0][name].params[k]
            if name == decayed:
                assert (lost - (3e-4 * 3.0 * born if born.ndim > 1 else 0)).abs().max() < 2e-7, k
            elif name == "critic":  # the actor learns from the critic
                assert torch.equal(lost, torch.zeros_like(lost)), k


def test_the_temperature_of_sac_has_nothing_to_decay():
    learner = sac([WeightDecay()])
    assert [learner.parts[name].optim.decay for name in ("critic", "actor", "alpha")] == [0.01, 0.01, 0.0]


def test_the_optimizers_other_settings_stay():
    (with_decay, plain) = (dqn(x, learning_rate=3e-3, adam_eps=1e-4).q.optim for x in ([WeightDecay()], []))
    assert (with_decay.lr, with_decay.eps, with_decay.b1, with_decay.b2) == (3e-3, 1e-4, plain.b1, plain.b2)


def test_two_decays_on_one_part_are_refused_whichever_setting_they_come_from():
    told = (
        r"interventions\.weight_decay\.weight=0\.5: part q already decays its weights by 0\.25; .*agent\.weight_decay"
    )
    with pytest.raises(ValueError, match=told):
        dqn([WeightDecay(weight=0.5)], weight_decay=0.25)
    with pytest.raises(ValueError, match=told):
        dqn([WeightDecay(weight=0.25), WeightDecay(weight=0.5)])
    dqn([WeightDecay(weight=0.5)], weight_decay=0.0)
    sac([WeightDecay(on=("critic",)), WeightDecay(on=("actor",))])


def test_it_is_refused_beside_upgd_which_moves_the_weights_itself():
    with pytest.raises(ValueError, match=r"interventions\.weight_decay\.weight=0\.01: upgd decays .* part q"):
        dqn([UPGD(), WeightDecay()])
    with pytest.raises(ValueError, match=r"interventions\.upgd\."):
        dqn([WeightDecay(), UPGD()])


def test_a_selection_without_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"interventions\.weight_decay\.where=.*only biases, gains and shifts"):
        dqn([WeightDecay(where=("*.bias",))], spec=VECTOR)


def test_the_coefficient_has_simbas_default_and_is_not_negative():
    assert build(WeightDecay, {}).weight == 0.01
    assert build(WeightDecay, {"weight": 0}).weight == 0
    with pytest.raises(ValueError, match="weight"):
        build(WeightDecay, {"weight": -1e-9})
