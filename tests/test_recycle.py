"""What belongs to a unit, found by explicit loops, and what happens to each of its entries when it begins again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import FRAMES, VECTOR, classifier, dqn, equal, sac

from core.blueprint import Layer
from core.clock import Clock
from core.events import Context
from core.recycle import Recycling, columns, incoming, outgoing, recyclable, recycle
from core.state import clone
from interventions.crelu import CReLU
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.layer_norm import LayerNorm
from nets import Nature, Vectors

ATARI = replace(FRAMES, obs_shape=(84, 84), stack=4)


def nature(*interventions, **settings):
    """The network of a DQN on small frames, with 4, 8 and 8 channels, the last on 25 pixels."""
    return dqn(interventions, net=Nature(width=40, units=0.125, **settings)).q


def mlp(*interventions, **settings):
    return dqn(interventions, VECTOR, net=Vectors(width=5, **settings)).q


def picture(chosen, layer: Layer, reader) -> torch.Tensor:
    """Inputs of a reader that come from the chosen units: an image of each unit's number goes where its features go."""
    numbers = torch.arange(len(chosen)).repeat(layer.halves)
    if reader.ndim == 2:
        side = round((reader.shape[1] // len(numbers)) ** 0.5)
        numbers = numbers[None, :, None, None].expand(1, -1, side, side).flatten(-3)[0]
    return torch.tensor([bool(chosen[int(k)]) for k in numbers])


def some(part, seed: int = 0) -> dict[str, torch.Tensor]:
    """About a third of the units of every hidden layer, never none and never all."""
    g, params, chosen = torch.Generator().manual_seed(seed), part.birth(0).params, {}
    for layer in recyclable(part, ("all",)):
        mask = torch.rand(len(params[f"{layer.name}.weight"]), generator=g) < 0.34
        mask[0], mask[-1] = True, False
        chosen[layer.name] = mask
    return chosen


def aged(part):
    """A state in which every number differs from every other group's: params, birth, copies, moments."""
    s, g = part.birth(0), torch.Generator().manual_seed(1)

    def noise(tensors):
        return {k: x + 1 + torch.rand(x.shape, generator=g) for k, x in tensors.items()}

    return s._replace(
        params=noise(s.params),
        copies={role: noise(old) for role, old in s.copies.items()},
        optim={slot: noise(old) for slot, old in s.optim.items()},
    )


def context(part, s) -> Context:
    return Context(part, {part.name: s}, Clock(steps=10**9, updates=3), 0, "recycling", "cpu", None)


NETS = {
    "mlp": mlp,
    "normalised": lambda: mlp(LayerNorm()),
    "conv": nature,
    "normalised_conv": lambda: nature(LayerNorm()),
    "crelu": lambda: nature(CReLU(match="output")),
    "critics": lambda: sac(net=Vectors(width=4)).critic,
    "actor": lambda: sac(net=Vectors(width=4)).actor,
}
every_net = pytest.mark.parametrize("part", [pytest.param(make(), id=name) for name, make in NETS.items()])


# what belongs to a unit


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("pixels", [1, 4, 49])
def test_columns_follow_a_channel_major_flattening(halves, pixels):
    chosen = torch.tensor([True, False, False, True, False])
    layer = Layer("conv", "conv", "encoder", halves=halves)
    expected = [bool(chosen[j // pixels % 5]) for j in range(halves * 5 * pixels)]
    assert columns(chosen, layer, torch.zeros(3, halves * 5 * pixels)).tolist() == expected


@every_net
def test_columns_are_where_the_network_puts_the_units_features(part):
    params, chosen = part.birth(0).params, some(part)
    for layer in recyclable(part, ("all",)):
        for reader in layer.readers:
            weight = params[f"{reader}.weight"]
            assert torch.equal(columns(chosen[layer.name], layer, weight), picture(chosen[layer.name], layer, weight))


def test_behind_the_nature_networks_last_convolution_64_channels_have_49_inputs_each():
    part = dqn(spec=ATARI, net=Nature(width=2, padding="valid")).q
    layer = next(layer for layer in part.layers if layer.name == "encoder.convs.2")
    weight = part.birth(0).params["trunk.layers.0.weight"]
    assert columns(torch.ones(64, dtype=torch.bool), layer, weight).tolist() == [True] * 3136
    one = columns(torch.arange(64) == 5, layer, weight)
    assert one.nonzero().flatten().tolist() == list(range(5 * 49, 6 * 49))


@every_net
def test_incoming_entries_are_rows_of_the_layer_and_of_its_normalisation(part):
    params, chosen = part.birth(0).params, some(part)
    rows = {layer.name: chosen[layer.name] for layer in part.layers if layer.name in chosen}
    rows |= {layer.norm: chosen[layer.name] for layer in part.layers if layer.norm}
    found = incoming(part, params, chosen)
    assert set(found) == {f"{holder}.{what}" for holder in rows for what in ("weight", "bias")}
    for k, mask in found.items():
        assert mask.shape == params[k].shape
        for i in np.ndindex(*params[k].shape):
            assert mask[i] == rows[k.rpartition(".")[0]][i[0]]


@every_net
def test_outgoing_entries_are_columns_of_every_reader_and_nothing_else(part):
    params, chosen = part.birth(0).params, some(part)
    found, expected = outgoing(part, params, chosen), {}
    for layer in recyclable(part, ("all",)):
        for reader in layer.readers:
            weight = params[f"{reader}.weight"]
            expected[f"{reader}.weight"] = mask = torch.zeros(weight.shape, dtype=torch.bool)
            for j, read in enumerate(picture(chosen[layer.name], layer, weight)):
                mask[:, j] = read
    assert set(found) == set(expected)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_layers_without_chosen_units_have_no_entries():
    part = mlp(LayerNorm())
    params = part.birth(0).params
    chosen = {"trunk.layers.0": torch.ones(5, dtype=torch.bool)}
    assert set(incoming(part, params, chosen)) == {
        f"trunk.{holder}.0.{what}" for holder in ("layers", "norms") for what in ("weight", "bias")
    }
    assert set(outgoing(part, params, chosen)) == {"trunk.layers.1.weight"}


def test_two_layers_that_one_layer_reads_add_up():
    layers = [Layer(name, "linear", "trunk", readers=("sum",)) for name in ("left", "right")]
    part, params = SimpleNamespace(layers=layers), {"sum.weight": torch.zeros(2, 3)}
    chosen = {"left": torch.tensor([True, False, False]), "right": torch.tensor([False, False, True])}
    assert outgoing(part, params, chosen)["sum.weight"].tolist() == [[True, False, True]] * 2


# which units can be recycled


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("all", ["encoder.convs.0", "encoder.convs.1", "encoder.convs.2", "trunk.layers.0"]),
        ("encoder", ["encoder.convs.0", "encoder.convs.1"]),  # what reads the last is not among them
        ("head", ["trunk.layers.0"]),
        ("*.weight", ["encoder.convs.0", "encoder.convs.1", "encoder.convs.2", "trunk.layers.0"]),
        ("encoder.convs.[12].weight", ["encoder.convs.1"]),
    ],
)
def test_a_layer_takes_part_if_it_and_all_its_readers_are_chosen(where, found):
    assert [layer.name for layer in recyclable(nature(), (where,))] == found


@pytest.mark.parametrize("where", [("output",), ("encoder.convs.1.*",), ("trunk.*", "advantage.*"), ("*.bias",)])
def test_a_selection_without_a_layer_and_all_its_readers_is_refused(where):
    with pytest.raises(ValueError, match=r"where=\[.*\] holds no hidden layer of part q together with the layers"):
        recyclable(nature(), where)


def test_networks_without_hidden_layers_have_nothing_to_recycle():
    with pytest.raises(ValueError, match="holds no hidden layer of part classifier"):
        recyclable(classifier(net=Vectors(depth=0)).classifier, ("all",))


# beginning again


def expected(part, s, drawn, chosen, reader):
    """The new parameters, and which entries are recycled."""
    rows, cols = incoming(part, s.params, chosen), outgoing(part, s.params, chosen)
    new, touched = clone(s.params), {}
    for k in rows.keys() | cols.keys():
        none = torch.zeros(new[k].shape, dtype=torch.bool)
        goes_out = none if reader == "keep" else cols.get(k, none)
        comes_in = rows.get(k, none) & ~goes_out
        new[k][goes_out] = drawn[k][goes_out] if reader == "fresh" else 0.0
        new[k][comes_in] = drawn[k][comes_in]
        touched[k] = goes_out | comes_in
    return new, touched


@every_net
@pytest.mark.parametrize("toward", ["fresh", "birth"])
@pytest.mark.parametrize("reader", ["zero", "fresh", "keep"])
def test_new_weights_come_in_where_the_chosen_units_are_and_nowhere_else(part, toward, reader):
    s, chosen = aged(part), some(part)
    before, ctx = clone(s), context(part, s)
    new = recycle(s, ctx, chosen, toward=toward, reader=reader)
    params, touched = expected(part, s, ctx.fresh() if toward == "fresh" else s.birth, chosen, reader)
    assert equal(new.params, params)
    for slot, old in s.optim.items():
        for k, moment in old.items():
            mask = touched[k] if k in touched and moment.ndim else torch.zeros((), dtype=torch.bool)
            assert torch.equal(new.optim[slot][k], moment.masked_fill(mask, 0.0))
    assert equal((new.copies, new.birth, new.buffers), (s.copies, s.birth, s.buffers))
    assert equal(s, before)  # the old values are not written over


def test_without_a_chosen_unit_the_state_is_the_very_same():
    part = nature()
    s = aged(part)
    none = {name: torch.zeros_like(mask) for name, mask in some(part).items()}
    assert recycle(s, context(part, s), none) is s
    assert recycle(s, context(part, s), {}) is s
    none["trunk.layers.0"][2] = True
    assert recycle(s, context(part, s), none) is not s


def test_where_a_chosen_unit_reads_a_chosen_unit_the_rule_of_what_goes_out_wins():
    part = mlp()
    s = aged(part)
    chosen = {f"trunk.layers.{i}": torch.arange(5) == i for i in range(2)}
    ctx, k = context(part, s), "trunk.layers.1.weight"
    drawn = ctx.fresh()[k][1, 0]
    assert drawn != 0
    for reader, entry in (("zero", 0.0), ("fresh", drawn), ("keep", drawn)):
        assert recycle(s, ctx, chosen, reader=reader).params[k][1, 0] == entry


@pytest.mark.parametrize("optimizer", ["keep", "touched"])
@pytest.mark.parametrize("elementwise", [False, True])
def test_moments_of_recycled_entries_start_at_zero_and_so_do_step_counts_of_their_own(optimizer, elementwise):
    part = nature()
    part.optim = replace(part.optim, elementwise=elementwise)
    s, chosen = aged(part), some(part)
    new = recycle(s, context(part, s), chosen, optimizer=optimizer)
    _, touched = expected(part, s, s.birth, chosen, "zero")
    for slot, old in s.optim.items():
        for k, moment in old.items():
            zeroed = optimizer == "touched" and k in touched and (slot != "t" or elementwise)
            assert torch.equal(new.optim[slot][k] == 0, touched[k] if zeroed else torch.zeros_like(moment).bool())
            assert torch.equal(new.optim[slot][k], torch.where(new.optim[slot][k] == 0, 0.0, moment))


@pytest.mark.parametrize("copied", [(), ("target",), ("tortoise",), ("target", "tortoise")])
def test_copied_roles_get_the_new_entries_and_keep_their_own_elsewhere(copied):
    part = nature(HareAndTortoise())
    s, chosen = aged(part), some(part)
    new = recycle(s, context(part, s), chosen, copied=copied)
    _, touched = expected(part, s, s.birth, chosen, "zero")
    for role, old in s.copies.items():
        for k, x in old.items():
            mask = touched[k] if role in copied and k in touched else torch.zeros((), dtype=torch.bool)
            assert torch.equal(new.copies[role][k], torch.where(mask, new.params[k], x))


# options that the recycling interventions share


@dataclass(kw_only=True)
class First(Recycling):
    """The first unit of every hidden layer begins again."""

    def event(self, part, s, ctx):
        layers = recyclable(part, self.where)
        return self.recycled(s, ctx, {la.name: torch.arange(len(s.params[f"{la.name}.bias"])) == 0 for la in layers})


@pytest.mark.parametrize("options", [{}, {"toward": "birth"}, {"reader": "keep"}, {"optimizer": "keep"}])
@pytest.mark.parametrize("copies", [{}, {"target": "copy"}, {"slow": "copy"}, {"target": "copy", "slow": "copy"}])
def test_each_option_arrives_where_it_acts(options, copies):
    first = First(**options, **copies)
    part = mlp(HareAndTortoise(), first)
    s = aged(part)
    chosen = {f"trunk.layers.{i}": torch.arange(5) == 0 for i in range(2)}
    copied = [role for role, key in (("target", "target"), ("tortoise", "slow")) if key in copies]
    assert equal(first.event(part, s, context(part, s)), recycle(s, context(part, s), chosen, copied=copied, **options))


def test_renewed_steps_ask_for_a_count_of_every_entry_and_keep_all_else_of_the_optimizer():
    plain, kept, renewed = mlp().optim, mlp(First()).optim, mlp(First(steps="renew")).optim
    assert kept == plain and renewed == replace(plain, elementwise=True) != plain


def test_nothing_to_recycle_is_refused_at_birth():
    with pytest.raises(ValueError, match=r"where=\[output\] holds no hidden layer"):
        mlp(First(where=("output",))).birth(0)
