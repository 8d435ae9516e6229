"""Layer normalisation: where it stands, over which axes, and what it makes a network indifferent to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from learners import FRAMES, VECTOR, batch_for, dqn, engine, equal, run, sac
from torch import Tensor

from core.part import Part
from core.state import Tensors, member
from interventions.layer_norm import LayerNorm
from nets import Vectors

OBS = {spec.name: member(batch_for(spec, (0,)), 0)["obs"] for spec in (VECTOR, FRAMES)}


def born(part: Part) -> Tensors:
    return part.birth(seed=0).params


def watched(part: Part, params: Tensors, *inputs: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """What every innermost module puts out, and the order in which they ran."""
    outputs: dict[str, Tensor] = {}
    inner = {name: module for name, module in part.net.named_modules() if not list(module.children())}
    hooks = [
        module.register_forward_hook(lambda m, i, out, name=name: outputs.update({name: out.detach()}))
        for name, module in inner.items()
    ]
    part(params, *inputs)
    for hook in hooks:
        hook.remove()
    return outputs, list(outputs)


def standardised(x: Tensor, axes: tuple[int, ...], eps: float = 1e-6) -> Tensor:
    """The reference: mean 0, variance 1."""
    return (x - x.mean(axes, keepdim=True)) / (x.var(axes, keepdim=True, unbiased=False) + eps).sqrt()


def test_every_dense_pre_activation_has_mean_zero_and_variance_one_at_birth():
    part = dqn([LayerNorm()], VECTOR, net=Vectors(width=32, depth=3)).q
    outputs, _ = watched(part, born(part), 5 * OBS[VECTOR.name] + 3)
    for i in range(3):
        x = outputs[f"trunk.norms.{i}"]
        assert x.mean(-1).abs().max() < 1e-5
        assert (x.var(-1, unbiased=False) - 1).abs().max() < 1e-3


def test_image_axes_normalise_each_sample_over_channels_and_space_together():
    part = dqn([LayerNorm(axes="image")]).q
    outputs, _ = watched(part, born(part), OBS[FRAMES.name])
    for i in range(3):
        x = outputs[f"encoder.norms.{i}"]
        assert x.mean((1, 2, 3)).abs().max() < 1e-5
        assert (x.var((1, 2, 3), unbiased=False) - 1).abs().max() < 1e-2
        assert (x - standardised(outputs[f"encoder.convs.{i}"], (1, 2, 3))).abs().max() < 1e-4
    first = outputs["encoder.norms.0"]
    assert first.mean(1).abs().max() > 0.05  # single pixels are not normalised


def test_channel_axes_normalise_the_channels_of_every_pixel():
    part = dqn([LayerNorm(axes="channel")]).q
    outputs, _ = watched(part, born(part), OBS[FRAMES.name])
    for i in range(3):
        x = outputs[f"encoder.norms.{i}"]
        assert x.mean(1).abs().max() < 1e-5
        assert (x.var(1, unbiased=False) - 1).abs().max() < 1e-2
        assert (x - standardised(outputs[f"encoder.convs.{i}"], (1,))).abs().max() < 1e-4


def test_image_and_channel_axes_have_the_same_parameters_and_different_outputs():
    image, channel = (dqn([LayerNorm(axes=axes)]).q for axes in ("image", "channel"))
    params = born(image)
    assert equal(params, born(channel))
    assert image(params, OBS[FRAMES.name])[0].sub(channel(params, OBS[FRAMES.name])[0]).abs().max() > 1e-3


def test_a_normalised_mlp_equals_one_written_by_hand():
    part = dqn([LayerNorm()], VECTOR, dueling=False, net=Vectors(width=16, depth=2)).q
    params = {k: p + 0.1 * torch.arange(p.numel()).reshape(p.shape).sin() for k, p in born(part).items()}
    x = OBS[VECTOR.name]
    for i in range(2):
        linear = F.linear(x, params[f"trunk.layers.{i}.weight"], params[f"trunk.layers.{i}.bias"])
        x = standardised(linear, (-1,)) * params[f"trunk.norms.{i}.weight"] + params[f"trunk.norms.{i}.bias"]
        x = x.clamp(min=0)
        assert (part(params, OBS[VECTOR.name])[1][f"trunk.h{i}"] - x).abs().max() < 1e-5
    expected = F.linear(x, params["advantage.weight"], params["advantage.bias"])
    assert (part(params, OBS[VECTOR.name])[0][..., 0] - expected).abs().max() < 1e-5


def test_the_norm_runs_right_after_its_layer_and_the_output_layer_has_none():
    part = dqn([LayerNorm()]).q
    _, order = watched(part, born(part), OBS[FRAMES.name])
    hidden = [(f"encoder.convs.{i}", f"encoder.norms.{i}") for i in range(3)] + [("trunk.layers.0", "trunk.norms.0")]
    order = [name for name in order if ".acts." not in name]
    assert order == [name for pair in hidden for name in pair] + ["advantage", "value"]


@pytest.mark.parametrize("layer", ["trunk.norms.0", *(f"encoder.norms.{i}" for i in range(3))])
def test_the_activation_comes_after_the_norm(layer):
    part = dqn([LayerNorm()]).q
    params = born(part)
    assert torch.equal(params[f"{layer}.weight"], torch.ones_like(params[f"{layer}.weight"]))
    assert torch.equal(params[f"{layer}.bias"], torch.zeros_like(params[f"{layer}.bias"]))
    key = layer.replace("norms.", "h")
    alive = part(params, OBS[FRAMES.name])[1][key]
    assert 0.2 < float((alive > 0).float().mean()) < 0.8  # cut at the mean, so about half passes
    silenced = params | {f"{layer}.bias": params[f"{layer}.bias"] - 100}
    assert torch.count_nonzero(part(silenced, OBS[FRAMES.name])[1][key]) == 0


@pytest.mark.parametrize("axes", ["image", "channel"])
@pytest.mark.parametrize("layer", ["trunk.layers.0", *(f"encoder.convs.{i}" for i in range(3))])
def test_the_scale_of_the_preceding_weights_and_biases_does_not_matter(layer, axes):
    part = dqn([LayerNorm(axes=axes)]).q
    params = {k: p + 0.01 * torch.arange(p.numel()).reshape(p.shape).sin() for k, p in born(part).items()}
    out = part(params, OBS[FRAMES.name])[0]
    for scale in (10.0, 1000.0):
        scaled = params | {f"{layer}.{what}": scale * params[f"{layer}.{what}"] for what in ("weight", "bias")}
        assert (part(scaled, OBS[FRAMES.name])[0] - out).abs().max() < 1e-3
    without = dqn().q
    bare = {k: params[k] for k in born(without)}
    scaled = bare | {f"{layer}.weight": 10 * bare[f"{layer}.weight"]}
    assert (without(scaled, OBS[FRAMES.name])[0] - without(bare, OBS[FRAMES.name])[0]).abs().max() > 0.1


def test_samples_are_normalised_one_by_one():
    part = dqn([LayerNorm()]).q
    params, obs = born(part), OBS[FRAMES.name]
    assert (part(params, obs)[0][2:3] - part(params, obs[2:3])[0]).abs().max() < 1e-5


def test_gains_and_shifts_are_trained_and_known_as_norms():
    e = engine(dqn([LayerNorm()], learning_rate=1e-2))
    part = e.learner.q
    norms = {k for k in born(part) if ".norms." in k}
    assert part.norm_names() == norms and len(norms) == 8
    assert all(layer.section == "encoder" for layer in part.layers if layer.name.startswith("encoder.norms"))
    run(e, 3)
    for k in norms:
        assert not torch.equal(e.states["q"].params[k], e.states["q"].birth[k])


def test_the_target_network_is_normalised_too():
    e = engine(dqn([LayerNorm()]))
    assert e.states["q"].copies["target"].keys() == e.states["q"].params.keys()


def test_on_names_the_networks_that_are_normalised():
    learner = sac([LayerNorm(on=("critic",))])
    assert {k for k in born(learner.critic) if ".norms." in k} == {
        f"q.{i}.trunk.norms.{j}.{what}" for i in range(2) for j in range(2) for what in ("weight", "bias")
    }
    assert born(learner.actor).keys() == born(sac().actor).keys()


def test_without_it_there_are_no_norms():
    assert not any(".norms." in k for k in born(dqn().q))
