"""Normalize-and-Project: what is held at its norm at birth, what is scaled with it, and what the function does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac

from core.blueprint import Layer
from core.options import build
from core.state import State, member, weights
from core.when import When
from interventions.layer_norm import LayerNorm
from interventions.normalize_and_project import NormalizeAndProject
from interventions.reset import Reset
from interventions.weight_clipping import WeightClipping
from nets import Impala, Nature, ResNet18, Vectors

LAYERS = (
    Layer("fc", "linear", "trunk", norm="norm"),
    Layer("norm", "norm", "trunk"),
    Layer("out", "linear", "head", output=True),
)
NOW = {
    "fc.weight": [[3.0, 0.0], [0.0, 4.0]],  # length 5
    "fc.bias": [1.0, -2.0],
    "norm.weight": [2.0, 2.0],  # length sqrt 8; with the shift 3
    "norm.bias": [0.0, 1.0],
    "out.weight": [[0.0, 8.0]],
    "out.bias": [7.0],
}
BIRTH = {
    "fc.weight": [[6.0, 8.0], [0.0, 0.0]],  # length 10
    "fc.bias": [50.0, 60.0],  # of no importance
    "norm.weight": [1.0, 1.0],  # length sqrt 2
    "norm.bias": [3.0, 5.0],  # with the gain 6
    "out.weight": [[2.0, 0.0]],
    "out.bias": [90.0],
}
FC = {"fc.weight": [[6.0, 0.0], [0.0, 8.0]], "fc.bias": [2.0, -4.0]}
GAINS = {"norm.weight": [4.0, 4.0], "norm.bias": [0.0, 2.0]}
OUT = {"out.weight": [[0.0, 2.0]]}
LEARNERS = {"dqn": (dqn, FRAMES), "sac": (sac, CONTROL), "classifier": (classifier, VECTOR)}
LAST = [f"trunk.{kind}.1.{what}" for kind in ("layers", "norms") for what in ("weight", "bias")]


def tensors(numbers) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(x) for k, x in numbers.items()}


def projected(names=tuple(NOW), now=NOW, **options) -> dict[str, torch.Tensor]:
    """The three layers above after a projection that may touch `names`."""
    s = State(tensors(now), tensors(BIRTH), {"target": tensors(now)}, {"m": tensors(now)}, {}, {})
    new = NormalizeAndProject(**options).after_step(SimpleNamespace(layers=LAYERS, names=lambda where: names), s, None)
    assert new.buffers == s.buffers and all(getattr(new, k) is getattr(s, k) for k in ("birth", "copies", "optim"))
    assert equal(s.params, tensors(now)) and list(new.params) == list(now)
    return new.params


def disturbed(part, seed: int = 0) -> State:
    """A newborn network with every number moved and every length changed; in double precision."""
    s, g = part.birth(seed), torch.Generator().manual_seed(seed)
    moved = {
        k: p.double() * (0.5 + 2 * torch.rand((), generator=g)) + 0.2 * torch.randn(p.shape, generator=g)
        for k, p in s.params.items()
    }
    return s._replace(params=moved, birth={k: p.double() for k, p in s.birth.items()})


def outputs(part, s: State, spec=VECTOR):
    x = member(batch_for(spec, (0,)), 0)["obs"]
    return part(weights(s), x if spec.is_image else x.double())[0]


def held(part, output: bool) -> list[str]:
    return [f"{la.name}.weight" for la in part.layers if la.kind != "norm" and (output or not la.output)]


# on numbers by hand


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FC),
        ({"output": True}, FC | OUT),
        ({"gains": "project"}, FC | GAINS),
        ({"output": True, "gains": "project"}, FC | GAINS | OUT),
    ],
    ids=str,
)
def test_lengths_become_those_at_birth_and_biases_before_a_normalisation_go_along(options, expected):
    found = projected(**options)
    for k, p in tensors(NOW | expected).items():
        assert torch.allclose(found[k], p, rtol=1e-6, atol=0), k


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (["fc.bias"], {"fc.weight": FC["fc.weight"]} | GAINS | OUT),
        (["fc.weight"], GAINS | OUT),
        (["norm.bias"], FC | {"norm.weight": [1.0, 1.0]} | OUT),
        (["norm.weight"], FC | OUT),
        (["out.weight"], FC | GAINS),
        (["out.bias"], FC | GAINS | OUT),
        (["fc.weight", "fc.bias", "norm.bias"], {"norm.weight": [1.0, 1.0]} | OUT),
    ],
    ids=str,
)
def test_what_is_not_chosen_stays_and_does_not_count(without, expected):
    found = projected([k for k in NOW if k not in without], output=True, gains="project")
    for k, p in tensors(NOW | expected).items():
        assert torch.allclose(found[k], p, rtol=1e-6, atol=0), k


def test_weights_that_have_all_but_vanished_come_back_and_zeros_stay_zeros():
    found = projected(now=NOW | {"fc.weight": [[3e-12, 0.0], [0.0, 4e-12]]})
    assert torch.allclose(found["fc.weight"], torch.tensor(FC["fc.weight"]), rtol=1e-5)
    found = projected(now=NOW | {"fc.weight": [[0.0, 0.0], [0.0, 0.0]], "fc.bias": [0.0, 0.0]})
    assert torch.count_nonzero(found["fc.weight"]) == 0 and torch.count_nonzero(found["fc.bias"]) == 0


# the blueprint


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_hidden_layer_is_born_with_layer_normalisation_and_no_output(learner):
    make, _ = LEARNERS[learner]
    for name, part in make([NormalizeAndProject()]).parts.items():
        reference = make([LayerNorm()]).parts[name]
        assert part.shapes == reference.shapes and part.layers == reference.layers
        assert equal(part.birth(0).params, reference.birth(0).params)
        assert all(la.norm for la in part.layers if la.readers)


@pytest.mark.parametrize(("norm", "axes"), [("layer", "channel"), ("batch", "image"), ("none", "channel")])
def test_a_normalisation_that_is_there_already_stays(norm, axes):
    net = Nature(width=16, padding="valid", norm=norm, norm_axes=axes)
    spec = dqn([NormalizeAndProject()], net=net).q.spec
    assert (spec.norm, spec.norm_axes) == ("layer" if norm == "none" else norm, axes)


# the function


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("spec", "axes"), [(VECTOR, "image"), (FRAMES, "image"), (FRAMES, "channel")])
def test_the_projection_of_hidden_layers_keeps_the_function(seed, spec, axes):
    net = Nature(width=16, padding="valid", norm_axes=axes) if spec.is_image else Vectors(width=16)
    part = dqn([NormalizeAndProject()], spec, net=net).q
    s = disturbed(part, seed)
    if spec.is_image:
        s = s._replace(params={k: p.float() for k, p in s.params.items()})
    new = part.interventions[0].after_step(part, s, None)
    old, kept = outputs(part, s, spec), outputs(part, new, spec)
    assert largest_difference(kept, old) < 1e-4
    assert all(abs(float(new.params[k].norm() / s.params[k].norm()) - 1) > 0.02 for k in held(part, False))
    biases_as_they_were = new.params | {k: p for k, p in s.params.items() if k.endswith("bias")}
    assert largest_difference(outputs(part, new._replace(params=biases_as_they_were), spec), old) > 1e-3


def counted(s: State) -> State:
    """The state with running statistics that are no newborn's; in double precision where `s` is."""
    g = torch.Generator().manual_seed(7)
    kind = next(iter(s.params.values())).dtype
    buffers = {k: (torch.rand(x.shape, generator=g) + 0.5).to(kind) for k, x in s.buffers.items()}
    return s._replace(buffers=buffers)


NORMALISED = {
    "dense": (VECTOR, Vectors(width=16, norm="batch")),
    "convolutions": (FRAMES, Nature(width=16, padding="valid", norm="batch")),
    "residual": (FRAMES, ResNet18(width=64, depth=1, units=1 / 4)),
    "residual, layer": (FRAMES, ResNet18(width=64, depth=1, units=1 / 4, norm="layer")),
}


@pytest.mark.parametrize(("spec", "net"), NORMALISED.values(), ids=NORMALISED)
def test_with_batch_normalisation_and_in_residual_networks_the_function_is_kept_too(spec, net):
    part = dqn([NormalizeAndProject()], spec, net=net).q
    s = counted(disturbed(part))
    if spec.is_image:
        s = s._replace(**{k: {n: x.float() for n, x in getattr(s, k).items()} for k in ("params", "buffers")})
    new = part.interventions[0].after_step(part, s, None)
    old = outputs(part, s, spec)
    assert largest_difference(outputs(part, new, spec), old) < 3e-3  # an epsilon in every normalisation
    assert all(abs(float(new.params[k].norm() / s.params[k].norm()) - 1) > 1e-3 for k in held(part, False))
    if s.buffers:
        assert largest_difference(outputs(part, new._replace(buffers=s.buffers), spec), old) > 1e-2


def test_statistics_of_a_layer_are_scaled_by_its_factor_and_those_of_others_stay():
    part = classifier(
        [NormalizeAndProject(where=("trunk.layers.1.*",))], net=Vectors(width=16, norm="batch")
    ).classifier
    s = counted(disturbed(part))
    new = part.interventions[0].after_step(part, s, None)
    factor = s.birth["trunk.layers.1.weight"].norm() / s.params["trunk.layers.1.weight"].norm()
    for name, power in (("running_mean", 1), ("running_var", 2)):
        assert torch.allclose(new.buffers[f"trunk.norms.1.{name}"], s.buffers[f"trunk.norms.1.{name}"] * factor**power)
        assert torch.equal(new.buffers[f"trunk.norms.0.{name}"], s.buffers[f"trunk.norms.0.{name}"])


@pytest.mark.parametrize(("where", "kept"), [(("*.first.*", "trunk.*"), True), (("all",), False)])
def test_in_impala_all_but_what_writes_into_the_residual_stream_keeps_the_function(where, kept):
    part = dqn([NormalizeAndProject(where=where)], net=Impala(width=16, scale=1, blocks=1)).q
    s = disturbed(part)
    s = s._replace(params={k: p.float() for k, p in s.params.items()})
    new = part.interventions[0].after_step(part, s, None)
    assert (largest_difference(outputs(part, new, FRAMES), outputs(part, s, FRAMES)) < 1e-3) == kept


def test_the_projection_of_the_output_layer_multiplies_what_it_adds_to_its_bias():
    part = classifier([NormalizeAndProject(output=True)]).classifier
    s = disturbed(part)
    new = part.interventions[0].after_step(part, s, None)
    scale, bias = s.birth["head.weight"].norm() / s.params["head.weight"].norm(), s.params["head.bias"]
    assert abs(float(scale) - 1) > 0.1
    assert largest_difference(outputs(part, new), scale * (outputs(part, s) - bias) + bias) < 1e-5


def test_a_gain_and_its_shift_get_their_common_length_at_birth_and_keep_their_direction():
    part = classifier([NormalizeAndProject(gains="project")]).classifier
    s = disturbed(part)
    new = part.interventions[0].after_step(part, s, None)
    for name in ("trunk.norms.0", "trunk.norms.1"):
        old, now = (torch.cat([x.params[f"{name}.{what}"] for what in ("weight", "bias")]) for x in (s, new))
        assert float(now.norm()) == pytest.approx(16**0.5)
        assert torch.allclose(now, old * (16**0.5 / old.norm()))


@pytest.mark.parametrize("options", [{}, {"output": True, "gains": "project"}], ids=str)
def test_a_second_projection_changes_nothing(options):
    part = classifier([NormalizeAndProject(**options)]).classifier
    once = part.interventions[0].after_step(part, disturbed(part), None)
    twice = part.interventions[0].after_step(part, once, None)
    assert largest_difference(once.params, twice.params) < 1e-12
    newborn = part.birth(0)
    assert largest_difference(part.interventions[0].after_step(part, newborn, None).params, newborn.params) < 1e-6


def test_the_loss_does_not_feel_the_length_it_holds_and_the_gradient_falls_with_it():
    part = classifier([NormalizeAndProject()]).classifier
    s = part.birth(0)
    longer = s._replace(params=s.params | {k: 3 * s.params[k] for k in held(part, False)})
    batch = member(batch_for(VECTOR, (0,)), 0)
    (grads, outcome), (smaller, same) = (part.gradient({"classifier": x}, batch, {}) for x in (s, longer))
    assert float(outcome.loss) == pytest.approx(float(same.loss), abs=1e-5)
    for k in grads:
        assert torch.allclose(smaller[k], grads[k] / (3 if ".layers." in k else 1), atol=1e-5), k


# in training


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("learner", LEARNERS)
def test_after_every_update_lengths_are_those_at_birth_of_each_seed(learner, output):
    make, _ = LEARNERS[learner]
    e = engine(make([NormalizeAndProject(output=output)], learning_rate=1e-2), seeds=(0, 1))
    clock = None
    for _ in range(3):
        clock = run(e, 1, clock)
        for name, part in e.learner.parts.items():
            for seed, k in [(i, k) for i in range(2) for k in held(part, True)]:
                s = member(e.states, seed)[name]
                ratio = float(s.params[k].norm() / s.birth[k].norm())
                assert abs(ratio - 1) < 1e-6 if k in held(part, output) else abs(ratio - 1) > 1e-5, k
                assert not torch.allclose(s.params[k], s.birth[k], atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_training_is_that_of_a_normalised_network_whose_layers_are_projected_by_hand(fused):
    projecting, plain = (engine(dqn([i], VECTOR, learning_rate=1e-2)) for i in (NormalizeAndProject(), LayerNorm()))
    for e in (projecting, plain):
        e.learner.q.fused = fused
    clocks = [None, None]
    for _ in range(3):
        clocks = [run(e, 1, clock) for e, clock in zip((projecting, plain), clocks, strict=True)]
        s = plain.states["q"]
        for i in range(2):
            w, b = (s.params[f"trunk.layers.{i}.{what}"] for what in ("weight", "bias"))
            factor = s.birth[f"trunk.layers.{i}.weight"].norm() / w.norm()
            w.mul_(factor), b.mul_(factor)
        assert largest_difference(projecting.states["q"].params, s.params) < 1e-5
        assert largest_difference(projecting.states["q"].optim, s.optim) < 1e-5


def test_an_averaged_target_is_a_little_shorter_and_a_copied_one_as_long():
    for settings, shorter in (({"target": "ema", "tau": 0.1}, True), ({"target": "ema", "tau": 1.0}, False)):
        e = engine(dqn([NormalizeAndProject()], VECTOR, learning_rate=3e-2, **settings))
        run(e, 5)
        s = member(e.states, 0)["q"]
        for k in held(e.learner.q, False):
            ratio = float(s.copies["target"][k].norm() / s.birth[k].norm())
            assert 0.9 < ratio < 0.9999 if shorter else ratio == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("renew", [True, False])
def test_a_redrawn_layer_has_its_new_length_if_the_reset_renews_birth_weights(renew):
    reset = Reset(where=("trunk.layers.1.*",), renew_birth=renew, when=When(at=(2,)))
    e = engine(dqn([NormalizeAndProject(), reset], VECTOR))
    for p in e.states["q"].birth.values():
        p *= 3.0
    clock = run(e, 2)
    drawn = float(e.states["q"].params["trunk.layers.1.weight"].norm())
    run(e, 1, clock)
    ratio = float(e.states["q"].params["trunk.layers.1.weight"].norm()) / drawn
    assert ratio == pytest.approx(1.0 if renew else 3.0, rel=1e-4)


# settings


def test_where_and_on_limit_it():
    part = classifier([NormalizeAndProject(output=True, gains="project", where=("trunk.*.1.*",))]).classifier
    s = disturbed(part)
    new = part.interventions[0].after_step(part, s, None)
    assert {k for k in s.params if not torch.equal(new.params[k], s.params[k])} == set(LAST)
    learner = sac([NormalizeAndProject(on=("critic",))])
    assert learner.actor.spec.norm == "none" and learner.critic.spec.norm == "layer"


@pytest.mark.parametrize("where", ["*.bias", "output", "trunk.norms.*"])
def test_a_selection_of_nothing_to_hold_is_refused_at_birth(where):
    with pytest.raises(ValueError, match="interventions.normalize_and_project.where"):
        engine(dqn([NormalizeAndProject(where=(where,))], VECTOR))


def test_it_does_not_go_with_another_rule_for_norms():
    told = "normalize_and_project and weight_clipping on q: each sets the norms of the weights"
    with pytest.raises(ValueError, match=told):
        engine(dqn([NormalizeAndProject(), WeightClipping()], VECTOR))


def test_defaults_leave_outputs_and_gains_alone_and_other_words_are_refused():
    rule = build(NormalizeAndProject, {})
    assert (rule.output, rule.gains, rule.where) == (False, "keep", ("all",))
    for key, value in {"output": "yes", "gains": "hold"}.items():
        with pytest.raises(ValueError, match=f"{key}: {value} given"):
            build(NormalizeAndProject, {key: value})
