"""Weight clipping: where the box of each layer ends, what is held in it, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac

from core.blueprint import Layer
from core.options import build
from core.state import State, clone, member
from core.when import When
from interventions.layer_norm import LayerNorm
from interventions.normalize_and_project import NormalizeAndProject
from interventions.reset import Reset
from interventions.weight_clipping import WeightClipping
from nets import Nature, Vectors

LAYERS = (
    Layer("conv", "conv", "encoder", norm="norm"),
    Layer("norm", "norm", "encoder"),
    Layer("out", "linear", "head", output=True),
)
NOW = {
    "conv.weight": [[[[0.9, -0.9]], [[0.1, -0.1]]], [[[0.6, -0.6]], [[0.4, 0.0]]]],  # two kernels of four numbers
    "conv.bias": [0.9, -0.7],
    "norm.weight": [9.0, -9.0],
    "norm.bias": [-9.0, 9.0],
    "out.weight": [[0.3, -2.0, 0.8, 0.75]],  # one unit of four inputs
    "out.bias": [-2.0],
    "auxiliary": [9.0],  # of no layer
}
BIRTH = {
    "conv.weight": [[[[0.1, 0.2]], [[0.3, -0.2]]], [[[-0.4, 0.1]], [[0.3, 0.0]]]],  # 0.4 at most
    "conv.bias": [5.0, 5.0],  # of no importance
    "norm.weight": [1.0, 1.0],
    "norm.bias": [0.0, 0.0],
    "out.weight": [[0.75, -0.2, 0.5, 0.1]],
    "out.bias": [5.0],
    "auxiliary": [1.0],
}
LEARNERS = {
    "dqn": (dqn, "q", {"target": "ema", "tau": 0.0}),  # a target that stays, as the hand does not reach it
    "sac": (sac, "actor", {}),
    "classifier": (classifier, "classifier", {}),
}


def tensors(numbers) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(x) for k, x in numbers.items()}


def clipped(names=tuple(NOW), **options) -> dict[str, torch.Tensor]:
    """The layers above after a clip that may touch `names`."""
    s = State(tensors(NOW), tensors(BIRTH), {"target": tensors(NOW)}, {"m": tensors(NOW)}, {}, {})
    new = WeightClipping(**options).after_step(SimpleNamespace(layers=LAYERS, names=lambda where: names), s, None)
    assert all(a is b for a, b in zip(new[1:], s[1:], strict=True))  # nothing but the parameters
    assert equal(s.params, tensors(NOW)) and list(new.params) == list(NOW)
    return new.params


def inside(edges: dict[str, float]) -> dict[str, torch.Tensor]:
    """The layers above with the tensors of these layers cut at these numbers, by NumPy."""
    cut = {
        k: torch.from_numpy(np.clip(np.float32(NOW[k]), -edges[la], edges[la])) for k in NOW for la in edges if la in k
    }
    return tensors(NOW) | cut


def moved(s: State, seed: int = 0) -> State:
    """The same network with every number further from zero, some by far."""
    g = torch.Generator().manual_seed(seed)
    return s._replace(params={k: p + 2 * torch.randn(p.shape, generator=g) for k, p in s.params.items()})


def boxed(part) -> list[str]:
    """Layers that are clipped by default."""
    return [layer.name for layer in part.layers if layer.kind != "norm"]


# the box


@pytest.mark.parametrize(
    ("options", "edges"),
    [
        ({"zeta": 1.0}, {"conv": 0.4, "out": 0.75}),
        ({"zeta": 2.0}, {"conv": 0.8, "out": 1.5}),
        ({"zeta": 0.5}, {"conv": 0.2, "out": 0.375}),
        ({"zeta": 1.0, "output": False}, {"conv": 0.4}),
        ({"zeta": 1.0, "bound": "fan_in"}, {"conv": 0.5, "out": 0.5}),
        ({"zeta": 3.0, "bound": "fan_in"}, {"conv": 1.5, "out": 1.5}),
        ({"zeta": 0.25, "bound": "fan_in", "output": False}, {"conv": 0.125}),
    ],
    ids=str,
)
def test_weights_and_biases_are_cut_at_zeta_times_the_bound_of_their_own_layer(options, edges):
    found = clipped(**options)
    for k, p in inside(edges).items():
        assert torch.allclose(found[k], p, rtol=1e-6, atol=0), k


@pytest.mark.parametrize("without", NOW)
def test_what_is_not_chosen_stays_and_the_rest_of_its_layer_is_cut_all_the_same(without):
    found, usual = clipped([k for k in NOW if k != without], zeta=0.5), clipped(zeta=0.5)
    assert equal(found, usual | {without: torch.tensor(NOW[without])})


def test_numbers_inside_the_box_and_on_its_edge_stay_bit_by_bit():
    part = dqn([WeightClipping(zeta=1.0)]).q
    newborn = part.birth(0)
    assert equal(part.interventions[0].after_step(part, newborn, None), newborn)
    once = part.interventions[0].after_step(part, moved(newborn), None)
    assert equal(part.interventions[0].after_step(part, once, None), once)


@pytest.mark.parametrize("net", [Nature(width=16, padding="valid", init="torch"), Vectors(width=16, init="torch")])
def test_fan_in_is_the_edge_of_the_uniform_initialiser_of_torch(net):
    part = dqn([WeightClipping(zeta=1.0, bound="fan_in")], FRAMES if isinstance(net, Nature) else VECTOR, net=net).q
    newborn, rule = part.birth(0), part.interventions[0]
    assert equal(rule.after_step(part, newborn, None).params, newborn.params)
    far = rule.after_step(part, moved(newborn), None)
    for name in boxed(part):
        fan_in, _ = torch.nn.init._calculate_fan_in_and_fan_out(newborn.params[f"{name}.weight"])
        assert float(far.params[f"{name}.weight"].abs().max()) == pytest.approx(fan_in**-0.5)
        assert float(newborn.params[f"{name}.weight"].abs().max()) > 0.75 * fan_in**-0.5


def test_gains_and_shifts_of_normalisation_are_left_alone():
    part = dqn([LayerNorm(), WeightClipping(zeta=1e-3, bound="fan_in")]).q
    s = moved(part.birth(0))
    new = part.interventions[1].after_step(part, s, None)
    assert {k for k in s.params if torch.equal(new.params[k], s.params[k])} == part.norm_names()
    assert len(part.norm_names()) == 8


def test_the_function_changes_only_where_something_is_clipped():
    part = dqn([WeightClipping(zeta=1.0)]).q
    s, obs = part.birth(0), member(batch_for(FRAMES, (0,)), 0)["obs"]
    for change, same in ((0.5, True), (1.5, False)):
        other = s._replace(params={k: change * p for k, p in s.params.items()})
        new = part.interventions[0].after_step(part, other, None)
        assert torch.equal(part(new.params, obs)[0], part(other.params, obs)[0]) == same


# in training


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bound", ["birth", "fan_in"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_training_is_that_of_a_network_which_numpy_clips_after_every_update(learner, bound, fused):
    make, part, settings = LEARNERS[learner]
    rule = WeightClipping(zeta=0.6, bound=bound, on=(part,))
    clipping, plain = (engine(make(given, learning_rate=1e-2, **settings), seeds=(0, 1)) for given in ([rule], []))
    clocks, cut = [None, None], 0
    for e in (clipping, plain):
        e.learner.parts[part].fused = fused
    for _ in range(3):
        clocks = [run(e, 1, clock) for e, clock in zip((clipping, plain), clocks, strict=True)]
        for seed, name in [(i, name) for i in range(2) for name in boxed(plain.learner.parts[part])]:
            s = member(plain.states, seed)[part]
            born = s.birth[f"{name}.weight"].numpy()
            edge = 0.6 * (np.abs(born).max() if bound == "birth" else 1 / np.sqrt(born.size / len(born)))
            for k in (f"{name}.weight", f"{name}.bias"):
                cut += int((s.params[k].abs() > edge).sum())
                np.clip(s.params[k].numpy(), -edge, edge, out=s.params[k].numpy())
                assert float(member(clipping.states, seed)[part].params[k].abs().max()) <= edge * (1 + 1e-6)
        a, b = clipping.states[part], plain.states[part]
        assert max(largest_difference(a.params, b.params), largest_difference(a.optim, b.optim)) < 1e-5
    assert cut > 20


def test_a_box_without_end_is_no_box():
    boundless, plain = (engine(dqn(given)) for given in ([WeightClipping(zeta=1e6)], []))
    for e in (boundless, plain):
        run(e, 3)
    for field in ("params", "copies", "optim", "birth"):
        assert equal(getattr(boundless.states["q"], field), getattr(plain.states["q"], field))


def test_an_average_of_weights_in_the_box_stays_in_it_by_itself():
    rule = WeightClipping(zeta=1.0)
    e = engine(dqn([rule], VECTOR, target="ema", tau=0.3, learning_rate=0.1))
    run(e, 5)
    s = member(e.states, 0)["q"]
    assert not equal(s.copies["target"], s.params)
    for name in boxed(e.learner.q):
        edge = s.birth[f"{name}.weight"].abs().max() * (1 + 1e-6)
        assert all(s.copies["target"][f"{name}.{what}"].abs().max() <= edge for what in ("weight", "bias"))


@pytest.mark.parametrize("renew", [True, False])
def test_a_redrawn_layer_has_the_bound_of_its_new_draw_if_the_reset_renews_birth_weights(renew):
    reset = Reset(where=("output",), renew_birth=renew, when=When(at=(2,)))
    e = engine(dqn([WeightClipping(zeta=1.0), reset], VECTOR, learning_rate=1e-6))
    for p in e.states["q"].birth.values():
        p *= 0.1
    clock = run(e, 2)
    drawn = clone(e.states["q"].params)["advantage.weight"].abs().max()
    run(e, 1, clock)
    ratio = float(e.states["q"].params["advantage.weight"].abs().max() / drawn)
    assert ratio == pytest.approx(1.0, abs=1e-4) if renew else ratio < 0.3


# settings


def test_where_and_on_limit_it():
    part = dqn([WeightClipping(zeta=0.1, where=("encoder.convs.1.*", "*.bias"))]).q
    s = moved(part.birth(0))
    new = part.interventions[0].after_step(part, s, None)
    expected = {k for k in s.params if k.endswith("bias")} | {"encoder.convs.1.weight"}
    assert {k for k in s.params if not torch.equal(new.params[k], s.params[k])} == expected
    clipping, plain = (engine(sac(given)) for given in ([WeightClipping(zeta=0.5, on=("actor",))], []))
    for e in (clipping, plain):
        run(e, 1)
    same = {name for name in plain.states if equal(clipping.states[name].params, plain.states[name].params)}
    assert same == {"critic", "alpha"}


@pytest.mark.parametrize(("where", "output"), [("trunk.norms.*", True), ("output", False)])
def test_a_selection_of_nothing_to_clip_is_refused_at_birth(where, output):
    with pytest.raises(ValueError, match="interventions.weight_clipping.where"):
        engine(dqn([LayerNorm(), WeightClipping(where=(where,), output=output)], VECTOR))


def test_it_does_not_go_with_another_rule_for_norms():
    told = "weight_clipping and normalize_and_project on q: each sets the norms of the weights"
    with pytest.raises(ValueError, match=told):
        engine(dqn([WeightClipping(), NormalizeAndProject()], VECTOR))


def test_defaults_are_twice_the_bound_at_birth_and_the_box_has_a_size():
    rule = build(WeightClipping, {})
    assert (rule.zeta, rule.bound, rule.output, rule.where) == (2.0, "birth", True, ("all",))
    for key, value in {"zeta": 0, "bound": "init", "output": "no"}.items():
        with pytest.raises(ValueError, match=f"{key}: {value} given"):
            build(WeightClipping, {key: value})
