"""FIRE: against the nearest orthogonal matrix of a singular value decomposition, tap by tap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, sac

from core.clock import Clock
from core.options import build
from core.state import clone, member
from core.when import When
from interventions.fire import FIRE, orthogonal
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from nets import Nature

EVERY = When(every=1)
CONV = [f"encoder.convs.{i}.weight" for i in range(3)]
DENSE = ["trunk.layers.0", "advantage", "value"]


def aged(learner, seeds=(0,), updates: int = 3):
    """An engine some updates old; its events have not fired yet."""
    e = engine(learner, seeds)
    for count in range(updates):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def fire(e, update: int = 3) -> list[dict]:
    def no_sample(stream, count, size):
        raise AssertionError("FIRE looks at no data")

    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), no_sample)


def with_spectrum(rows: int, columns: int, values, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0] for n in (rows, columns))
    s = torch.tensor(values, dtype=torch.float64)
    return (u[:, : len(s)] * s @ v[: len(s)]).float()


def polar(w: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix."""
    u, _, vt = np.linalg.svd(w.double().numpy(), full_matrices=False)
    return torch.from_numpy(u @ vt).float()


def differing(a, b) -> set[str]:
    return {k for k in a if not torch.equal(a[k], b[k])}


# one matrix


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (9, 4), (4, 9), (1, 5)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_a_well_conditioned_matrix_becomes_the_nearest_orthogonal_one_times_its_scale(rows, columns, scale):
    w = scale * with_spectrum(rows, columns, np.linspace(0.5, 2.0, min(rows, columns)))
    assert torch.allclose(orthogonal(w), (rows / columns) ** 0.5 * polar(w), atol=1e-4)


@pytest.mark.parametrize(("rows", "columns", "sides"), [(8, 4, (3, 3)), (4, 8, (2, 3)), (6, 4, (5,))])
def test_of_a_kernel_every_tap_does_and_the_scale_is_divided_by_their_number(rows, columns, sides):
    taps = [with_spectrum(rows, columns, [2.0, 1.0, 1.5, 0.8], seed=k) for k in range(math.prod(sides))]
    kernel = torch.stack(taps, dim=-1).reshape(rows, columns, *sides)
    new = orthogonal(kernel)
    assert new.shape == kernel.shape
    for k, tap in enumerate(taps):
        wanted = (rows / columns) ** 0.5 / len(taps) * polar(tap)
        assert torch.allclose(new.reshape(rows, columns, -1)[..., k], wanted, atol=1e-4)


def test_ten_newton_schulz_steps_move_every_singular_value_as_they_move_a_number():
    values = [1.0, 0.3, 0.05, 0.01, 0.002]
    w = with_spectrum(5, 5, values)
    x = np.array(values) / np.linalg.norm(values)
    for _ in range(10):
        x = 1.5 * x - 0.5 * x**3
    assert 0.05 < x[-1] < 0.2 and 0.3 < x[-2] < 0.7  # the smallest do not arrive
    found = torch.linalg.svdvals(orthogonal(w))
    assert torch.allclose(found, torch.from_numpy(x).float(), atol=1e-4)


def test_directions_of_the_singular_vectors_stay():
    w = with_spectrum(4, 4, [2.0, 1.0, 0.5, 0.05])
    u, _, vt = torch.linalg.svd(w)
    turned = u.T @ orthogonal(w) @ vt.T
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4 and (turned.diagonal() > 0).all()


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2, 2)])
def test_a_matrix_of_zeros_stays_one(shape):
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


# the event


def test_by_default_all_matrices_and_kernels_change_and_nothing_one_dimensional():
    e = aged(dqn([LayerNorm(), FIRE(when=EVERY)]))
    old = clone(member(e.states, 0))["q"]
    assert fire(e)
    new = member(e.states, 0)["q"]
    assert differing(old.params, new.params) == {*CONV, *(f"{k}.weight" for k in DENSE)}
    for k in differing(old.params, new.params):
        assert torch.equal(new.params[k], orthogonal(old.params[k]))
    assert equal(old.birth, new.birth)


def test_of_dense_layers_birth_brings_back_weight_and_bias():
    e = aged(dqn([FIRE(dense="birth", when=EVERY)]))
    old = clone(member(e.states, 0))["q"]
    fire(e)
    new = member(e.states, 0)["q"]
    for k, p in new.params.items():
        if k in CONV:
            assert torch.equal(p, orthogonal(old.params[k])) and not torch.equal(p, old.params[k])
        elif k.startswith("encoder"):
            assert torch.equal(p, old.params[k])
        else:
            assert torch.equal(p, old.birth[k]) and not torch.equal(p, old.params[k])


def test_birth_brings_back_nothing_outside_where():
    e = aged(dqn([FIRE(dense="birth", where=("*.weight",), when=EVERY)]))
    old = clone(member(e.states, 0))["q"]
    fire(e)
    changed = differing(old.params, member(e.states, 0)["q"].params)
    assert changed == {k for k in old.params if k.endswith("weight")}


def test_dense_layers_can_keep_what_they_are():
    e = aged(dqn([FIRE(dense="keep", when=EVERY)]))
    old = clone(member(e.states, 0))["q"]
    fire(e)
    assert differing(old.params, member(e.states, 0)["q"].params) == set(CONV)


@pytest.mark.parametrize(("where", "chosen"), [("output", DENSE[1:]), ("trunk.layers.0.*", DENSE[:1])])
def test_where_says_which_layers(where, chosen):
    e = aged(dqn([FIRE(where=(where,), when=EVERY)]))
    old = clone(member(e.states, 0))["q"]
    fire(e)
    assert differing(old.params, member(e.states, 0)["q"].params) == {f"{k}.weight" for k in chosen}


@pytest.mark.parametrize(("make", "part", "spec"), [(sac, "critic", CONTROL), (classifier, "classifier", VECTOR)])
@pytest.mark.parametrize("dense", ["fire", "birth"])
def test_networks_of_dense_layers_alone(make, part, spec, dense):
    e = aged(make([FIRE(on=(part,), dense=dense, when=EVERY)]))
    old = clone(member(e.states, 0))
    assert [row["part"] for row in fire(e)] == [part]
    for k, p in member(e.states, 0)[part].params.items():
        if dense == "birth":
            assert torch.equal(p, old[part].birth[k])
        elif p.ndim > 1:
            scale = (p.shape[0] / p.shape[1]) ** 0.5
            assert torch.linalg.svdvals(p).max() == pytest.approx(scale, abs=1e-3)
        else:
            assert torch.equal(p, old[part].params[k])


def test_a_network_that_stands_where_it_was_born_selects_nothing():
    intervention = FIRE(dense="birth", where=("trunk.*",))
    part = dqn([intervention], VECTOR).q
    s = part.birth(0)
    assert intervention.event(part, s, None) is s
    moved = s._replace(params=s.params | {"trunk.layers.0.bias": torch.ones(16)})
    assert equal(intervention.event(part, moved, None).params, s.params)


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
@pytest.mark.parametrize("rules", [("keep", "copy"), ("copy", "keep"), ("keep", "keep")])
def test_moments_and_slow_copies_follow_their_rules(optimizer, rules):
    target, slow = rules
    event = FIRE(where=("encoder",), optimizer=optimizer, target=target, slow=slow, when=EVERY)
    e = aged(dqn([HareAndTortoise(momentum=0.9), event], target="ema", tau=0.1))
    before = clone(e.states["q"])
    fire(e)
    after = e.states["q"]
    for role, rule in (("target", target), ("tortoise", slow)):
        for k, value in after.copies[role].items():
            assert torch.equal(value, after.params[k] if rule == "copy" and k in CONV else before.copies[role][k])
            assert k not in CONV or not torch.equal(before.copies[role][k], before.params[k])
    renewed = {"keep": [], "touched": CONV, "all": list(after.params)}[optimizer]
    for slot, values in after.optim.items():
        for k, value in values.items():
            assert torch.equal(value, torch.zeros_like(value) if k in renewed else before.optim[slot][k])


def test_seeds_keep_directions_of_their_own():
    e = aged(dqn([FIRE(when=EVERY)], VECTOR), seeds=(0, 1))
    old = clone(e.states["q"].params["trunk.layers.1.weight"])
    assert len(fire(e)) == 2
    new = e.states["q"].params["trunk.layers.1.weight"]
    assert all(torch.equal(new[i], orthogonal(old[i])) for i in range(2)) and not torch.equal(new[0], new[1])


def test_outputs_are_finite_and_training_goes_on():
    e = aged(dqn([FIRE(when=EVERY)], net=Nature(width=16, padding="valid")))
    fire(e)
    before = clone(e.states["q"].params)
    e.update(batch_for(FRAMES, (0,), 9), Clock(steps=10, updates=3))
    after = e.states["q"].params
    assert all(p.isfinite().all() for p in after.values()) and len(differing(before, after)) == len(after)


def test_defaults_and_refusals():
    default = FIRE()
    assert (default.dense, default.optimizer, default.target, default.slow) == ("fire", "touched", "copy", "copy")
    for values in ({"dense": "fresh"}, {"target": "own_draw"}, {"optimizer": "none"}):
        with pytest.raises(ValueError, match=next(iter(values))):
            build(FIRE, values)
    with pytest.raises(ValueError, match="fire.dense=keep: part q has only dense layers there"):
        engine(dqn([FIRE(dense="keep")], VECTOR))
    with pytest.raises(ValueError, match="fire.where=.*only biases, gains and shifts of part q"):
        engine(dqn([FIRE(where=("*.bias",))], VECTOR))
    engine(dqn([FIRE(dense="keep")]))
    engine(dqn([FIRE(dense="birth")], VECTOR))
