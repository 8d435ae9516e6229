"""Networks: geometry and counts of the published ones, their map of layers by numeric probes, initial weights."""

from __future__ import annotations

import math
from collections import Counter
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.blueprint import NetSpec
from nets import CNN, VGG16, DrQ, Impala, Nature, ResNet18, Vectors, ViT
from nets.mlp import MLP, Critics, GaussianActor, Temperature
from nets.noisy import NoisyLinear
from nets.pixel_control import PixelCritics
from nets.predictor import Predictor
from nets.q_network import QNetwork

ATARI = (4, 84, 84)
SMALL = (2, 40, 36)
TINY = (1, 8, 8)
CIFAR = (3, 32, 32)
B = 3


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that no gain is 1 and no bias 0."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) / math.sqrt(max(p[0].numel(), 1) if p.ndim > 1 else 4)
    return net


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


NETWORKS = {
    "q vectors": lambda o: (QNetwork((5,), 3, 1, False, Vectors(width=8, **o)), (vectors(B, 5),)),
    "q dueling": lambda o: (QNetwork((5,), 3, 4, True, Vectors(width=8, depth=1, **o)), (vectors(B, 5),)),
    "q no hidden layer": lambda o: (QNetwork((5,), 3, 4, True, Vectors(width=8, depth=0, **o)), (vectors(B, 5),)),
    "nature same": lambda o: (QNetwork(SMALL, 3, 2, True, Nature(width=8, **o)), (frames(B, *SMALL),)),
    "nature valid": lambda o: (
        QNetwork(SMALL, 3, 1, False, Nature(width=8, depth=2, padding="valid", **o)),
        (frames(B, *SMALL),),
    ),
    "nature no hidden layer": lambda o: (
        QNetwork(SMALL, 3, 1, True, Nature(width=8, depth=0, **o)),
        (frames(B, *SMALL),),
    ),
    "impala": lambda o: (
        QNetwork(SMALL, 3, 2, True, Impala(width=8, scale=1, units=0.25, **o)),
        (frames(B, *SMALL),),
    ),
    "noisy streams": lambda o: (
        QNetwork(SMALL, 3, 2, True, Nature(width=8, **o), streams="separate", noisy=0.5),
        (frames(B, *SMALL),),
    ),
    "pixel critics": lambda o: (
        PixelCritics(2, SMALL, 2, 1, DrQ(width=8, channels=(4, 8), strides=(2, 2), bottleneck=5, **o)),
        (frames(B, *SMALL), vectors(B, 2)),
    ),
    "cnn": lambda o: (Predictor(TINY, 3, CNN(width=8, **o)), (frames(B, *TINY),)),
    "vgg16": lambda o: (Predictor(TINY, 3, VGG16(width=32, units=1 / 4, **o)), (frames(B, *TINY),)),
    "resnet18": lambda o: (
        Predictor(TINY, 3, ResNet18(width=32, depth=1, units=1 / 4, **{"norm": "none"} | o)),
        (frames(B, *TINY),),
    ),
    "vit": lambda o: (
        Predictor(
            TINY,
            3,
            ViT(
                width=8, depth=1, patch=4, dim=12, blocks=2, heads=2, **{k: v for k, v in o.items() if "norm" not in k}
            ),
        ),
        (frames(B, *TINY),),
    ),
    "mlp": lambda o: (MLP(5, 3, NetSpec(width=8, depth=3, **o)), (vectors(B, 5),)),
    "critics": lambda o: (Critics(3, 5, 2, 4, NetSpec(width=8, **o)), (vectors(B, 5), vectors(B, 2))),
    "actor": lambda o: (GaussianActor(5, 2, NetSpec(width=8, **o)), (vectors(B, 5),)),
}
NORMS = {
    "none": {},
    "image": {"norm": "layer", "norm_axes": "image"},
    "channel": {"norm": "layer", "norm_axes": "channel"},
}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_norm = pytest.mark.parametrize("norm", NORMS)


def build(name: str, norm: str = "none", **options):
    return NETWORKS[name](NORMS[norm] | {"init": "xavier"} | options)  # orthogonal draws are slow


def layers_of(net):
    return list(dict.fromkeys(layer for chain in net.chains() for layer in chain))


# geometry


@pytest.mark.parametrize("padding, features, dense", [("same", 7744, 3_965_440), ("valid", 3136, 1_606_144)])
def test_the_nature_network_has_the_published_numbers(padding, features, dense):
    net = QNetwork(ATARI, 18, 51, True, Nature(padding=padding))
    assert numbers(net.encoder) == 77_984
    assert net.encoder.n_out == features == net.encoder(frames(2, *ATARI))[0].shape[-1]
    assert numbers(net.trunk) == dense
    assert numbers(net.advantage) + numbers(net.value) == 513 * 51 * 19
    assert net(frames(2, *ATARI))[0].shape == (2, 18, 51)


@pytest.mark.parametrize("padding, sides", [("same", (21, 11, 11)), ("valid", (20, 9, 7))])
def test_the_nature_convolutions_have_the_published_sides(padding, sides):
    _, feats = QNetwork(ATARI, 4, 1, False, Nature(padding=padding))(frames(2, *ATARI))
    shapes = [tuple(feats[f"encoder.h{i}"].shape[1:]) for i in range(3)]
    assert shapes == [(c, s, s) for c, s in zip((32, 64, 64), sides, strict=True)]


def test_same_padding_is_the_asymmetric_one_of_tensorflow_and_flax():
    """Derived by hand for 84 x 84: (2, 2), (1, 2), (1, 1) before and after each axis."""
    net = randomise(QNetwork(ATARI, 4, 1, False, Nature()))
    x = frames(2, *ATARI)
    _, feats = net(x)
    h = x.double() / 255
    for i, ((before, after), stride) in enumerate([((2, 2), 4), ((1, 2), 2), ((1, 1), 1)]):
        conv = net.encoder.convs[i].double()
        canvas = torch.zeros(2, h.shape[1], h.shape[2] + before + after, h.shape[3] + before + after).double()
        canvas[:, :, before : before + h.shape[2], before : before + h.shape[3]] = h
        h = F.conv2d(canvas, conv.weight, conv.bias, stride=stride).relu()
        torch.testing.assert_close(feats[f"encoder.h{i}"].double(), h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 40, 36), (1, 37, 50), (1, 84, 61)])
def test_same_padding_gives_the_ceiling_of_side_over_stride_on_each_axis(shape):
    _, feats = QNetwork(shape, 2, 1, False, Nature(width=4))(frames(1, *shape))
    sides = shape[1:]
    for i, stride in enumerate((4, 2, 1)):
        sides = tuple(math.ceil(side / stride) for side in sides)
        assert tuple(feats[f"encoder.h{i}"].shape[2:]) == sides


def test_same_padding_keeps_height_and_width_apart():
    """A frame turned on its side, with kernels turned too, gives features turned."""
    net, turned = (randomise(QNetwork((1, *s), 2, 1, False, Nature(width=4))) for s in ((37, 50), (50, 37)))
    for conv in turned.encoder.convs:
        conv.weight.data = conv.weight.data.mT.contiguous()
    x = frames(1, 1, 37, 50)
    torch.testing.assert_close(turned(x.mT)[1]["encoder.h2"], net(x)[1]["encoder.h2"].mT, rtol=1e-4, atol=1e-5)


def test_the_impala_network_has_the_published_numbers():
    """BBF: 15 convolutions and 1.55 million weights in the encoder, 84 -> 42 -> 21 -> 11, 15,488 features."""
    net = QNetwork(ATARI, 18, 51, True, Impala())
    convolutions = [la.name for la in layers_of(net) if la.kind == "conv"]
    assert len(convolutions) == 15
    assert numbers(net.encoder) == 1_552_192  # 2,368 + 4 x 36,928; 73,856 + 4 x 147,584; 147,584 + 4 x 147,584
    assert net.encoder.n_out == 15_488 == 11 * 11 * 128
    assert numbers(net.trunk) == 15_489 * 2048
    out, feats = net(frames(2, *ATARI))
    assert out.shape == (2, 18, 51)
    sides = [tuple(feats[f"encoder.stages.{i}.blocks.1"].shape[1:]) for i in range(3)]
    assert sides == [(64, 42, 42), (128, 21, 21), (128, 11, 11)]


def test_pooling_takes_the_windows_that_flax_takes():
    """Derived by hand: windows of 3 with stride 2 begin at pixel 0 where the side is even, at -1 where it is odd."""
    from nets.impala import Stage

    for side in (36, 21, 84):
        stage = Stage(1, 1, [side, side], 0, NetSpec())
        stage.conv.weight.data.zero_()[0, 0, 1, 1] = 1  # the identity
        x = frames(2, 1, side, side).float()
        first = -(side % 2)
        starts = [first + 2 * i for i in range(math.ceil(side / 2))]
        expected = [[x[:, 0, max(r, 0) : r + 3, max(c, 0) : c + 3].amax((1, 2)) for c in starts] for r in starts]
        got = stage(x, "", {})[:, 0]
        assert torch.equal(got, torch.stack([torch.stack(row, -1) for row in expected], -2))


def test_residual_blocks_without_their_last_convolution_are_the_identity():
    encoder = randomise(QNetwork(SMALL, 3, 1, False, Impala(width=8, scale=1))).encoder
    plain = deepcopy(encoder)
    for stage, bare in zip(encoder.stages, plain.stages, strict=True):
        for block in stage.blocks:
            block.second.weight.data.zero_()
            block.second.bias.data.zero_()
        bare.blocks = nn.ModuleList()
    x = frames(B, *SMALL)
    assert torch.equal(encoder(x)[0], plain(x)[0]) and plain(x)[0].any()


def test_an_impala_network_is_the_one_written_by_hand():
    net = randomise(QNetwork(SMALL, 3, 1, False, Impala(width=8, scale=1)))
    x = frames(B, *SMALL)
    h = x / 255
    for stage in net.encoder.stages:
        h = F.conv2d(h, stage.conv.weight, stage.conv.bias, padding=1)
        h = F.pad(h, [v for side in reversed(h.shape[2:]) for v in ((1, 1) if side % 2 else (0, 1))], value=-math.inf)
        h = F.max_pool2d(h, 3, 2)
        for block in stage.blocks:
            inner = F.conv2d(h.relu(), block.first.weight, block.first.bias, padding=1).relu()
            h = h + F.conv2d(inner, block.second.weight, block.second.bias, padding=1)
    h = F.linear(h.relu().flatten(1), net.trunk.layers[0].weight, net.trunk.layers[0].bias).relu()
    expected = F.linear(h, net.advantage.weight, net.advantage.bias)
    torch.testing.assert_close(net(x)[0].squeeze(-1), expected, rtol=1e-4, atol=1e-4)


def test_frames_that_are_too_small_are_refused_in_one_line():
    with pytest.raises(ValueError, match="too small") as error:
        QNetwork((4, 20, 20), 2, 1, False, Nature(padding="valid"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape, spec", [(ATARI, Vectors()), ((5,), Nature())])
def test_a_network_that_does_not_fit_the_observations_is_refused_in_one_line(shape, spec):
    with pytest.raises(ValueError, match="net=") as error:
        QNetwork(shape, 2, 1, False, spec)
    assert "\n" not in str(error.value)


def test_depth_and_width_are_hidden_layers_and_their_units():
    assert numbers(MLP(5, 3, NetSpec(width=8, depth=3))) == 6 * 8 + 2 * 9 * 8 + 9 * 3
    assert numbers(Critics(2, 24, 6, 1, NetSpec())) == 2 * (31 * 256 + 257 * 256 + 257)
    assert numbers(GaussianActor(24, 6, NetSpec())) == 25 * 256 + 257 * 256 + 2 * 257 * 6


# heads


def test_a_dueling_head_is_value_plus_advantage_less_its_mean_over_actions():
    net = randomise(QNetwork((5,), 3, 4, True, Vectors(width=8)))
    x = vectors(B, 5)
    out, feats = net(x)
    h = feats["trunk.h1"]
    advantage = (h @ net.advantage.weight.T + net.advantage.bias).reshape(B, 3, 4)
    value = h @ net.value.weight.T + net.value.bias
    for action in range(3):
        expected = value + advantage[:, action] - advantage.sum(1) / 3
        torch.testing.assert_close(out[:, action], expected)
    torch.testing.assert_close((out - value[:, None]).mean(1), torch.zeros(B, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        # ResNet-18 with a 3 x 3 stem on 10 classes as the CIFAR forms have it, and a bias for each of 4,800 channels
        (lambda: Predictor(CIFAR, 10, ResNet18(norm="batch")), 11_173_962 + 4_800),
        # VGG-16's convolutions (14,714,688), and 512 -> 4096 -> 4096 -> 10
        (lambda: Predictor(CIFAR, 10, VGG16()), 14_714_688 + 513 * 4096 + 4097 * 4096 + 4097 * 10),
        # 5 x 5 convolutions 3 -> 16 -> 16, then 16 x 8 x 8 -> 100 -> 100 -> 10
        (lambda: Predictor(CIFAR, 10, CNN()), 76 * 16 + 401 * 16 + 1025 * 100 + 101 * 100 + 101 * 10),
    ],
)
def test_networks_for_images_have_the_published_numbers(net, count):
    with torch.device("meta"):
        assert numbers(net()) == count


def test_a_residual_network_halves_its_sides_three_times_and_ends_in_a_mean():
    net = randomise(Predictor(CIFAR, 10, ResNet18(units=1 / 16, norm="none")))
    shapes = []
    for block in net.encoder.blocks:
        block.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[1:])))
    x = frames(B, *CIFAR)
    features, _ = net.features(x)
    assert shapes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2 + [(32, 4, 4)] * 2
    assert features.shape == (B, 32)


def test_a_block_of_resnet_is_the_one_written_by_hand():
    net = randomise(Predictor(TINY, 3, ResNet18(units=1 / 16, norm="layer")))
    p, x = dict(net.encoder.blocks[2].named_parameters()), vectors(B, 4, 8, 8)

    def norm(h, name):
        return F.group_norm(h, 1, p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)

    h = F.relu(norm(F.conv2d(x, p["first.weight"], p["first.bias"], stride=2, padding=1), "norm"))
    y = norm(F.conv2d(h, p["second.weight"], p["second.bias"], padding=1), "norm_second")
    skip = norm(F.conv2d(x, p["shortcut.weight"], p["shortcut.bias"], stride=2), "norm_shortcut")
    feats: dict[str, torch.Tensor] = {}
    torch.testing.assert_close(net.encoder.blocks[2](x, "b", feats), F.relu(y + skip))
    torch.testing.assert_close(feats["b"], h)


def test_a_stack_of_convolutions_pools_as_long_as_there_is_something_to_pool():
    net = randomise(Predictor(TINY, 3, VGG16(width=8, units=1 / 16)))
    assert net.encoder.pooled.count(True) == 3 and net.encoder.n_out == 32  # 8 -> 4 -> 2 -> 1


def test_a_constant_added_to_all_advantages_changes_nothing():
    net = randomise(QNetwork((5,), 3, 4, True, Vectors(width=8)))
    before = net(vectors(B, 5))[0]
    net.advantage.bias.data.view(3, 4).add_(torch.tensor([5.0, -3.0, 1.0, 0.5]))  # per bin, the same for all actions
    torch.testing.assert_close(net(vectors(B, 5))[0], before, rtol=1e-5, atol=1e-5)


def test_without_a_dueling_head_each_action_has_its_own_rows():
    net = randomise(QNetwork((5,), 3, 4, False, Vectors(width=8)))
    before = net(vectors(B, 5))[0]
    net.advantage.bias.data.view(3, 4)[1].add_(1)
    difference = net(vectors(B, 5))[0] - before
    torch.testing.assert_close(difference[:, 1], torch.ones(B, 4))
    assert difference[:, [0, 2]].abs().max() == 0


def test_critics_know_nothing_of_each_other():
    net = randomise(Critics(3, 5, 2, 4, NetSpec(width=8)))
    obs, action = vectors(B, 5), vectors(B, 2)
    before, _ = net(obs, action)
    assert before.shape == (3, B, 4)
    randomise(net.q[1], seed=7)
    after, _ = net(obs, action)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and not torch.equal(after[1], before[1])
    torch.testing.assert_close(after[1], net.q[1](torch.cat([obs, action], 1))[0])


def test_an_actor_gives_mean_and_log_deviation_from_heads_of_their_own():
    net = randomise(GaussianActor(5, 2, NetSpec(width=8)))
    before, _ = net(vectors(B, 5))
    assert before.shape == (B, 2, 2)
    net.log_std.bias.data += 1
    difference = net(vectors(B, 5))[0] - before
    assert difference[:, 0].abs().max() == 0
    torch.testing.assert_close(difference[:, 1], torch.ones(B, 2))


@pytest.mark.parametrize("initial", [0.1, 1.0, 2.5])
def test_a_temperature_is_born_at_its_initial_value_and_has_no_layers(initial):
    net = Temperature(initial)
    assert net()[0].item() == pytest.approx(initial)
    assert net.log.item() == pytest.approx(math.log(initial), abs=1e-6)
    assert net.chains() == []


# the map of layers


@every_network
@every_norm
def test_every_parameter_belongs_to_exactly_one_layer(name, norm):
    net, _ = build(name, norm)
    owners = Counter()
    for layer in layers_of(net):
        for parameter, _ in net.named_parameters():
            owners[parameter] += parameter.startswith(layer.name + ".")
    assert owners == {parameter: 1 for parameter, _ in net.named_parameters()}


@every_network
@every_norm
def test_layers_are_what_the_map_says_they_are(name, norm):
    net, _ = build(name, norm)
    kinds = {"linear": nn.Linear, "conv": nn.Conv2d, "norm": (nn.LayerNorm, nn.GroupNorm)}
    for layer in layers_of(net):
        assert isinstance(net.get_submodule(layer.name), kinds[layer.kind])
        if layer.kind == "conv":
            assert layer.section == "encoder"
        if layer.output:
            assert layer.section == "head" and not layer.feats and not layer.readers


@every_network
@every_norm
def test_chains_are_in_the_order_of_the_forward_pass(name, norm):
    net, inputs = build(name, norm)
    called = []
    names = {net.get_submodule(layer.name): layer.name for layer in layers_of(net)}
    for module in names:
        module.register_forward_hook(lambda m, *_: called.append(names[m]))
    net(*inputs)
    for chain in net.chains():
        listed = [layer.name for layer in chain]
        heads = {layer.name for layer in chain if layer.output}  # two of them may be one product
        body = [n for n in listed if n not in heads]
        assert set(body) <= set(called) and len(set(listed)) == len(listed)
        assert body == [n for n in called if n in body]
        assert listed[: len(body)] == body


@every_network
@every_norm
def test_outputs_are_the_layers_that_nothing_reads(name, norm):
    net, _ = build(name, norm)
    for chain in net.chains():
        read = {reader for layer in chain for reader in layer.readers}
        outputs = {layer.name for layer in chain if layer.output}
        assert outputs and outputs.isdisjoint(layer.name for layer in chain if layer.readers)
        hidden = [layer for layer in chain if layer.feats]
        assert [bool(layer.readers) for layer in hidden] == [True] * len(hidden)
        if hidden:
            assert outputs <= read


def nudge(net, layer, unit, amount):
    """Move what unit `unit` of a hidden layer computes: by its own shift, after the norm where there is one."""
    norms = {la.name for la in layers_of(net) if la.kind == "norm"}
    names = [la.name for chain in net.chains() for la in chain]
    following = names[names.index(layer.name) + 1]
    module = net.get_submodule(following if following in norms else layer.name)
    module.bias.data[unit] += amount


def liveliest(h):
    """The unit with the highest activity. h [B, units, ...]."""
    return int(h.transpose(0, 1).flatten(1).mean(1).argmax())


def silence(net, layer, unit, readers):
    """Zero the columns by which `readers` read a unit."""
    units = len(net.get_submodule(layer.name).weight)
    for reader in readers:
        weight = net.get_submodule(reader).weight.data
        columns = weight.shape[1] // units  # the pixels of a channel, where a dense layer reads a convolution
        weight[:, unit * columns : (unit + 1) * columns] = 0


@every_network
@every_norm
def test_a_unit_acts_through_its_readers_columns_and_through_nothing_else(name, norm):
    intact, inputs = build(name, norm)
    before, seen = randomise(intact)(*inputs)
    for layer in layers_of(intact):
        if not layer.feats:
            continue
        net, unit = deepcopy(intact), liveliest(seen[layer.feats])
        nudge(net, layer, unit, 1.0)
        after, moved = net(*inputs)
        difference = (moved[layer.feats] - seen[layer.feats]).transpose(0, 1).flatten(1).abs().amax(1)
        assert len(difference) == len(net.get_submodule(layer.name).weight)
        assert difference.nonzero().flatten().tolist() == [unit], f"{layer.feats} are not this layer's units"
        assert not torch.equal(before, after)

        silence(net, layer, unit, layer.readers)
        without, _ = net(*inputs)
        nudge(net, layer, unit, 1.0)
        assert torch.equal(without, net(*inputs)[0]), f"{layer.name}: its readers are not all that read it"


@every_network
def test_each_reader_reads(name):
    """With a reader left out, the unit's influence remains: none is listed in vain."""
    intact, inputs = build(name)
    _, seen = randomise(intact)(*inputs)
    for layer in layers_of(intact):
        for left_out in layer.readers:
            net, unit = deepcopy(intact), liveliest(seen[layer.feats])
            silence(net, layer, unit, set(layer.readers) - {left_out})
            before, _ = net(*inputs)
            nudge(net, layer, unit, 1.0)
            assert not torch.equal(before, net(*inputs)[0]), f"{left_out} does not read {layer.name}"


def test_with_an_encoder_all_that_follows_the_convolutions_is_the_head():
    image, _ = build("nature same", "image")
    assert {la.section for la in layers_of(image) if la.name.startswith("encoder.")} == {"encoder"}
    assert {la.section for la in layers_of(image) if not la.name.startswith("encoder.")} == {"head"}
    vector, _ = build("q dueling", "image")
    assert {la.name for la in layers_of(vector) if la.section == "head"} == {"advantage", "value"}


def test_an_ensemble_has_one_chain_per_member():
    net, _ = build("critics")
    chains = net.chains()
    assert len(chains) == 3
    for i, chain in enumerate(chains):
        assert all(layer.name.startswith(f"q.{i}.") for layer in chain)


# layer normalisation


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vit"])  # its norms stand elsewhere
@pytest.mark.parametrize("norm", ["image", "channel"])
def test_scaling_the_weights_before_a_norm_changes_nothing(name, norm):
    net, inputs = build(name, norm)
    randomise(net)
    before, _ = net(*inputs)
    scaled = [layer for layer in layers_of(net) if layer.kind != "norm" and not layer.output]
    for layer in scaled:
        module = net.get_submodule(layer.name)
        module.weight.data *= 7
        module.bias.data *= 7
    torch.testing.assert_close(net(*inputs)[0], before, rtol=1e-3, atol=1e-3)
    assert not any(layer.kind == "norm" and layer.output for layer in layers_of(net))


def by_hand(z: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    z = z.double().detach().numpy()
    mean, variance = z.mean(axes, keepdims=True), z.var(axes, keepdims=True)
    return torch.from_numpy((z - mean) / np.sqrt(variance + 1e-6))


@pytest.mark.parametrize("norm, axes", [("image", (1, 2, 3)), ("channel", (1,))])
def test_a_convolutions_norm_acts_before_the_activation_and_over_its_axes(norm, axes):
    net, (x,) = build("nature valid", norm)
    randomise(net)
    _, feats = net(x)
    gain, shift = (getattr(net.encoder.norms[0], k).double().reshape(1, -1, 1, 1) for k in ("weight", "bias"))
    z = net.encoder.convs[0](x.float() / 255)
    torch.testing.assert_close(
        feats["encoder.h0"].double(), (by_hand(z, axes) * gain + shift).relu(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("norm", ["image", "channel"])
def test_a_dense_layers_norm_acts_before_the_activation_and_over_its_units(norm):
    net, (x,) = build("mlp", norm)
    randomise(net)
    _, feats = net(x)
    layer, scale = net.trunk.layers[0], net.trunk.norms[0]
    expected = (by_hand(layer(x), (1,)) * scale.weight.double() + scale.bias.double()).relu()
    torch.testing.assert_close(feats["trunk.h0"].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_newborn_norm_gives_mean_0_and_variance_1_before_the_activation():
    net, (x,) = build("mlp", "image")
    z = net.trunk.norms[0](net.trunk.layers[0](x))
    torch.testing.assert_close(z.mean(1), torch.zeros(B), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(B), rtol=1e-3, atol=1e-3)


def test_without_a_norm_a_hidden_layer_is_linear_and_relu():
    net, (x,) = build("mlp")
    randomise(net)
    h = x.double()
    for layer in net.trunk.layers:
        h = (h @ layer.weight.double().T + layer.bias.double()).clamp(min=0)
    expected = h @ net.head.weight.double().T + net.head.bias.double()
    torch.testing.assert_close(net(x)[0].double(), expected, rtol=1e-4, atol=1e-5)


# initial weights


def test_orthogonal_weights_have_gain_sqrt_2_and_the_log_deviation_head_1():
    networks = [
        MLP(5, 3, NetSpec(width=32)),
        Critics(2, 24, 6, 1, NetSpec(width=32)),
        QNetwork(SMALL, 3, 1, True, Nature(init="orthogonal", width=16)),
        GaussianActor(24, 6, NetSpec(width=32)),
    ]
    for net in networks:
        for layer in layers_of(net):
            weight = net.get_submodule(layer.name).weight.detach()
            expected = 1.0 if layer.name == "log_std" else math.sqrt(2)
            flat = weight.double().flatten(1)
            gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
            torch.testing.assert_close(gram, expected**2 * torch.eye(len(gram)).double(), rtol=0, atol=1e-4)


def test_xavier_weights_are_uniform_within_glorots_bound():
    """sqrt(6 / (fan_in + fan_out)), a kernel's fans counting its field (Glorot & Bengio 2010, eq. 16)."""
    net = QNetwork(ATARI, 18, 1, True, Nature(width=128))
    for layer in layers_of(net):
        weight = net.get_submodule(layer.name).weight.detach()
        field = math.prod(weight.shape[2:])
        bound = math.sqrt(6 / (weight.shape[1] * field + weight.shape[0] * field))
        assert weight.abs().max() <= bound
        if weight.numel() > 2000:
            assert weight.abs().max() > 0.99 * bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert weight.mean().abs() < 5 * bound / math.sqrt(3 * weight.numel())


def test_torchs_own_initialiser_is_left_alone():
    torch.manual_seed(3)
    mine = MLP(5, 3, NetSpec(width=8, depth=1, init="torch"))
    torch.manual_seed(3)
    reference = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    for a, b in zip(mine.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


@every_network
@pytest.mark.parametrize("init", ["orthogonal", "xavier"])
def test_biases_are_born_zero_and_gains_one(name, init):
    net, _ = build(name, "image", init=init)
    for layer in layers_of(net):
        module = net.get_submodule(layer.name)
        assert isinstance(module, NoisyLinear) or not module.bias.any()  # noisy layers draw theirs
        if layer.kind == "norm":
            assert (module.weight == 1).all()


def test_the_defaults_are_the_published_initialisers():
    assert NetSpec().init == Vectors().init == "orthogonal"  # jaxrl's SAC
    assert Nature().init == "xavier" and Nature().padding == "same"  # Dopamine's Atari-100k agents


def test_a_vision_transformer_is_the_one_written_by_hand():
    """Against torch's own encoder layer, pre-normalised, with the same weights."""
    encoder = randomise(Predictor((3, 8, 8), 3, ViT(patch=4, dim=12, blocks=1, heads=2))).encoder
    block, images = encoder.blocks[0], frames(B, 3, 8, 8)
    torchs = nn.TransformerEncoderLayer(
        12, 2, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
    )
    pairs = [
        (torchs.self_attn.in_proj_weight, block.attention.mix_in.weight),
        (torchs.self_attn.in_proj_bias, block.attention.mix_in.bias),
    ]
    for theirs, ours in (
        (torchs.self_attn.out_proj, block.attention.mix_out),
        (torchs.linear1, block.first),
        (torchs.linear2, block.second),
        (torchs.norm1, block.norm_in),
        (torchs.norm2, block.norm),
    ):
        pairs += [(theirs.weight, ours.weight), (theirs.bias, ours.bias)]
    for theirs, ours in pairs:
        theirs.data = ours.data.clone()
    patches = images.float().unfold(2, 4, 4).unfold(3, 4, 4).movedim(1, 3).flatten(1, 2).flatten(2) / 255
    tokens = patches @ encoder.patches.weight.flatten(1).T + encoder.patches.bias
    tokens = tokens + encoder.position.weight.T + encoder.position.bias
    expected = F.layer_norm(torchs(tokens), (12,), encoder.norm.weight, encoder.norm.bias, 1e-6).mean(1)

    torch.testing.assert_close(encoder(images)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_tiny_vision_transformer_has_the_published_numbers():
    net = Predictor(CIFAR, 10, ViT())
    block = 192 * 576 + 576 + 192 * 192 + 192 + 192 * 768 + 768 + 768 * 192 + 192 + 4 * 192
    assert numbers(net.encoder.blocks) == 12 * block
    assert numbers(net) == 12 * block + (48 * 192 + 192) + (64 * 192 + 192) + 2 * 192 + 1_930
