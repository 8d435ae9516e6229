"""Interventions from outside: a stranger's module and torch.optim.Adam."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapter import Plastic, chain_of
from core.when import When
from interventions.dash import DASH
from interventions.dormancy_scaled_perturbation import DormancyScaledPerturbation
from interventions.l2 import L2
from interventions.layer_norm import LayerNorm
from interventions.redo import ReDo
from interventions.reset import Reset
from interventions.selective_weight_reinit import SelectiveWeightReinit
from interventions.shrink_and_perturb import ShrinkAndPerturb

EVENTS = ("redo", "shrink_and_perturb")


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2))


class Convolutional(nn.Module):
    """Activations, pooling and flattening as functions, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 9, 2)

    def forward(self, x):
        return self.out(F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1))


def trained(net: nn.Module, x: torch.Tensor, steps: int = 3) -> torch.optim.Adam:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return optimizer


def adapted(net: nn.Module, intervention, x: torch.Tensor) -> Plastic:
    return Plastic(net, trained(net, x), [intervention], example=x, seed=7)


def test_shrink_and_perturb_changes_module_and_moments_by_its_rule_and_in_place():
    net, x = dense(), torch.randn(32, 5)
    plastic = adapted(net, ShrinkAndPerturb(keep=0.5, noise=0.25, when=When(every=2)), x)
    before, pointers = copy.deepcopy(net.state_dict()), [p.data_ptr() for p in net.parameters()]
    assert plastic.step(x) == []
    assert all(torch.equal(p, before[k]) for k, p in net.state_dict().items())
    (row,) = plastic.step(x)
    assert (row["intervention"], row["updates"]) == ("shrink_and_perturb", 2) and row["touched"] > 0
    for k, p in net.state_dict().items():
        drawn = (p - 0.5 * before[k]) / 0.25
        if k == "3.weight":
            assert torch.allclose(drawn, torch.ones(8), atol=1e-5)  # a newborn norm
        elif k.endswith("weight"):
            bound = p.shape[1] ** -0.5  # torch's initialiser is uniform in +- 1 / sqrt(inputs)
            assert 0.5 * bound < drawn.abs().max() <= bound + 1e-5
    assert [p.data_ptr() for p in net.parameters()] == pointers
    for p in net.parameters():
        state = plastic.optimizer.state[p]
        assert not state["exp_avg"].any() and not state["exp_avg_sq"].any() and float(state["step"]) == 0


def test_training_goes_on_and_the_callers_generator_is_not_touched():
    net, x = dense(), torch.randn(32, 5)
    optimizer = trained(net, x)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    plastic = Plastic(net, optimizer, [Reset(when=When(every=1))], example=x)
    plastic.step(x)
    assert torch.equal(torch.rand(4), expected)
    before = net[5].weight.clone()
    optimizer.step()
    assert not torch.equal(net[5].weight, before)


def test_what_the_module_holds_at_first_is_its_birth():
    net, x = dense(), torch.randn(32, 5)
    optimizer = torch.optim.Adam(net.parameters())
    start = copy.deepcopy(net.state_dict())
    plastic = Plastic(net, optimizer, [Reset(where=("all",), toward="birth", when=When(every=1))], example=x)
    for _ in range(3):
        net(x).square().mean().backward()
        optimizer.step()
    plastic.step(x)
    assert all(torch.equal(p, start[k]) for k, p in net.state_dict().items())


def test_events_repeat_with_the_seed_and_differ_without_it():
    def result(seed: int) -> torch.Tensor:
        net, x = dense(), torch.ones(32, 5)
        optimizer = torch.optim.Adam(net.parameters())
        Plastic(net, optimizer, [Reset(when=When(every=1))], example=x, seed=seed).step(x)
        return net[5].weight.detach()

    assert torch.equal(result(1), result(1)) and not torch.equal(result(1), result(2))


def test_the_map_finds_layers_norms_and_readers_in_the_order_of_execution():
    layers = {layer.name: layer for layer in chain_of(dense(), torch.randn(2, 5))}
    assert [layer.readers for layer in layers.values() if layer.kind == "linear"] == [
        ("module.2",),
        ("module.5",),
        (),
    ]
    assert layers["module.2"].norm == "module.3" and layers["module.5"].output
    conv, norm, out = chain_of(Convolutional(), torch.randn(2, 1, 8, 8))
    assert (conv.kind, conv.section, conv.norm, conv.readers) == ("conv", "encoder", norm.name, (out.name,))


def test_features_are_what_the_next_layer_reads_by_unit():
    net, x = Convolutional().eval(), torch.randn(6, 1, 8, 8)
    plastic = Plastic(net, torch.optim.Adam(net.parameters()), [Reset(when=When(every=1))], example=x)
    with torch.no_grad():
        expected = F.max_pool2d(F.relu(net.norm(net.conv(x))), 2).flatten(2)
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    out, feats = plastic.part(state, x)
    assert torch.allclose(feats["module.conv"], expected, atol=1e-6) and torch.allclose(out, net(x), atol=1e-6)


@pytest.mark.parametrize("wrong", [LayerNorm(), L2()])
def test_what_works_inside_the_update_is_refused(wrong):
    net = dense()
    with pytest.raises(ValueError, match="works inside the update"):
        Plastic(net, torch.optim.Adam(net.parameters()), [wrong], example=torch.randn(2, 5))


def test_a_network_that_is_no_chain_is_refused():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(7, 1)

        def forward(self, x):
            return self.out(torch.cat([self.a(x), self.b(x)], 1))

    with pytest.raises(ValueError, match="expected a plain chain"):
        chain_of(Wide(), torch.randn(2, 5))


class Heads(nn.Module):
    """Two heads on one torso, of widths that divide each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.p, self.v = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.p(h), self.v(h)


class Residual(Heads):
    def forward(self, x):
        h = F.relu(self.a(x))
        return self.v(F.relu(h + self.p(h)))


class Twice(Heads):
    def forward(self, x):
        return self.v(F.relu(self.p(F.relu(self.p(F.relu(self.a(x)))))))


@pytest.mark.parametrize("net", [Heads, Residual, Twice])
def test_what_reaches_more_than_the_next_layer_is_no_chain(net):
    with pytest.raises(ValueError, match="expected a plain chain"):
        chain_of(net(), torch.randn(4, 5))


WHEN = When(every=5)
REFUSED = {
    "the loss's gradient": (lambda: DASH(when=WHEN), "dash.*gradient of your loss"),
    "gradients as utility": (
        lambda: SelectiveWeightReinit(when=WHEN),
        "reinit.*gradient of your loss",
    ),
    "gradients as metric": (
        lambda: Reset(when=When(metric="zero_gradient", above=0.5, measure_every=5)),
        "zero_gradient.*what goes by gradients",
    ),
    "a target": (lambda: Reset(when=WHEN, control="target_only"), "target_only"),
    "another optimizer": (
        lambda: ReDo(when=WHEN, steps="renew"),
        "redo: its settings ask for.*elementwise",
    ),
    "no schedule": (lambda: Reset(), "reset: expected a schedule in updates"),
    "another unit": (lambda: Reset(when=When(every=5, unit="env_steps")), "expected a schedule in updates"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_silently_do_something_else_is_refused(case):
    make, message = REFUSED[case]
    net = dense()
    with pytest.raises(ValueError, match=message):
        Plastic(net, torch.optim.Adam(net.parameters()), [make()], example=torch.randn(4, 5))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "SGD given; expected torch.optim.Adam"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
    ],
)
def test_an_optimizer_that_would_not_be_reset_whole_is_refused(make, message):
    net = dense()
    with pytest.raises(ValueError, match=message):
        Plastic(net, make(net.parameters()), [Reset(when=WHEN)], example=torch.randn(4, 5))


@pytest.mark.parametrize("metric", ["dormant", "parameter_norm", "distance_from_birth"])
def test_metrics_that_need_no_gradient_can_be_conditions(metric):
    net, x = dense(), torch.randn(16, 5)
    plastic = Plastic(net, trained(net, x), [Reset(when=When(metric=metric, above=-1.0, measure_every=1))], example=x)
    assert len(plastic.step(x)) == 1


def test_pre_activations_are_known():
    net, x = dense(), torch.randn(16, 5)
    plastic = Plastic(net, trained(net, x), [DormancyScaledPerturbation(when=When(every=1))], example=x)
    assert plastic.step(x)[0]["touched"] > 0
    _, feats = plastic.part({f"module.{k}": v for k, v in net.state_dict().items()}, x)
    assert torch.allclose(feats["module.0.pre"].flatten(1), net[0](x)) and "module.2.pre" in feats


def test_being_made_touches_neither_statistics_nor_modes_nor_generators():
    net = nn.Sequential(Convolutional(), nn.Dropout(0.5))
    net[1].eval()
    x, before = torch.randn(6, 1, 8, 8), copy.deepcopy(net.state_dict())
    generator = torch.get_rng_state()
    Plastic(net, torch.optim.Adam(net.parameters()), [Reset(when=WHEN)], example=x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert net[0].training and not net[1].training


def test_behind_convolutions_everything_is_the_head():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = Plastic(net, torch.optim.Adam(net.parameters()), [Reset(when=WHEN)], example=torch.randn(2, 1, 8, 8))
    assert {name.split(".")[1] for name in plastic.part.names(("head",))} == {"3", "5"}


def test_fresh_weights_are_drawn_as_the_user_draws_them():
    def orthogonal(net: nn.Module) -> None:
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, 3.0)
                nn.init.zeros_(layer.bias)

    net, x = dense(), torch.randn(16, 5)
    optimizer = trained(net, x)
    reset = Reset(where=("all",), when=When(every=1))
    Plastic(net, optimizer, [reset], example=x, initialise=orthogonal).step(x)
    w = net[2].weight.detach()
    assert torch.allclose(w @ w.T, 9 * torch.eye(8), atol=1e-4) and not net[2].bias.any()


def test_a_weight_that_nobody_draws_is_refused_until_one_says_how():
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.gain, self.out = nn.Linear(5, 4), nn.Parameter(torch.full((4,), 2.0)), nn.Linear(4, 1)

        def forward(self, x):
            return self.out(F.relu(self.a(x) * self.gain))

    net, x = Gained(), torch.randn(6, 5)
    with pytest.raises(ValueError, match="gain belongs to a module without reset_parameters.*initialise="):
        Plastic(net, torch.optim.Adam(net.parameters()), [Reset(when=WHEN)], example=x)
    optimizer, reset = trained(net, x), Reset(where=("all",), when=When(every=1))
    Plastic(net, optimizer, [reset], example=x, initialise=lambda net: nn.init.constant_(net.gain, 5.0)).step(x)
    assert net.gain.tolist() == [5.0] * 4


def test_the_example_of_twenty_lines_recycles_and_perturbs_a_strangers_network(capsys):
    source = Path(__file__).parents[1] / "examples" / "plain_torch.py"
    code = [line for line in source.read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 20
    runpy.run_path(str(source))
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    changed = {name: [(int(words[1][:-1]), int(words[4])) for words in said if words[2] == name] for name in EVENTS}
    assert [update for update, _ in changed["redo"]] == list(range(100, 1_001, 100))
    assert [update for update, _ in changed["shrink_and_perturb"]] == [500, 1_000]
    assert all(entries > 0 for _, entries in changed["shrink_and_perturb"])
