"""Continual backpropagation: against a NumPy loop of one's own; by hand, who goes; and the mean output is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.blueprint import PRE
from core.clock import Clock
from core.events import Context
from core.options import build
from core.part import Outcome, Step
from core.recycle import recyclable, recycle
from core.state import clone
from core.when import When
from interventions.continual_backprop import ContinualBackprop
from interventions.crelu import CReLU
from nets import Nature, Vectors

LARGER = replace(FRAMES, obs_shape=(44, 44))  # without padding the last convolution has 2 x 2 pixels
IMAGES = Nature(width=40, units=0.125, padding="valid")  # 4, 8 and 8 channels, then 5 units
NETS = {
    "dueling": lambda *i: dqn(i, VECTOR, net=Vectors(width=5)).q,
    "conv": lambda *i: dqn(i, LARGER, net=IMAGES).q,
    "crelu": lambda *i: classifier([CReLU(match="input"), *i], net=Vectors(width=4)).classifier,
    "crelu_conv": lambda *i: dqn([CReLU(match="input"), *i], LARGER, net=IMAGES).q,
    "actor": lambda *i: sac([replace(x, on=("actor",)) for x in i], net=Vectors(width=5)).actor,
}
TRAINED = [
    (dqn, "q", FRAMES, replace(IMAGES, padding="same")),
    (sac, "critic", CONTROL, Vectors(width=6)),
    (classifier, "classifier", VECTOR, Vectors(width=6)),
]
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)
LAST = ("trunk.layers.1.*", "head.*")
CBP = "continual_backprop"


def context(part, s) -> Context:
    return Context(part, {part.name: s}, Clock(steps=10**9, updates=3), 0, CBP, "cpu", None)


def seen(part, s, feats):
    """The state after an update in which the network had these features."""
    return part.interventions[-1].after_step(part, s, Step({}, {}, Outcome(torch.zeros(()), feats, {}), {}))


def renew(part, s):
    """-> the state after an event"""
    return part.interventions[-1].event(part, s, context(part, s))


class Loop:
    """The published rule for one layer, one unit after the other, in double precision."""

    def __init__(self, layer, units: int, rate, maturity, decay, utility):
        self.layer, self.units, self.owed = layer, units, 0.0
        self.rate, self.maturity, self.decay, self.utility = rate, maturity, decay, utility
        self.age, self.u, self.f = [0] * units, [0.0] * units, np.zeros((layer.halves, units))

    def said(self, params, reader, half, i):
        """A reader's weights of half a unit. -> [out, pixels]"""
        weight = params[f"{reader}.weight"].double().numpy()
        return weight.reshape(len(weight), self.layer.halves, self.units, -1)[:, half, i]

    def update(self, params, feats):
        for i in range(self.units):
            self.age[i] += 1
            worth = 0.0
            for half in range(self.layer.halves):
                h = feats[:, half * self.units + i].double().numpy()
                self.f[half, i] = self.decay * self.f[half, i] + (1 - self.decay) * h.mean()
                mean = self.f[half, i] / (1 - self.decay ** self.age[i])
                activity = abs(h if self.utility == "contribution" else h - mean).mean()
                worth += activity * np.mean([abs(self.said(params, r, half, i)).mean() for r in self.layer.readers])
            if self.utility == "adaptable":
                worth /= abs(params[f"{self.layer.name}.weight"][i].double().numpy()).mean()
            self.u[i] = self.decay * self.u[i] + (1 - self.decay) * worth
        self.owed += self.rate * sum(age > self.maturity for age in self.age)

    def event(self, params, gains):
        """-> units that go. `gains`: what the biases of their readers gain for it."""
        mature = [i for i in range(self.units) if self.age[i] > self.maturity]
        mature.sort(key=lambda i: self.u[i] / (1 - self.decay ** self.age[i]))
        gone = mature[: int(self.owed)]
        self.owed -= len(gone)
        for i in gone:
            for half in range(self.layer.halves):
                for r in self.layer.readers:
                    mean = self.f[half, i] / (1 - self.decay ** self.age[i])
                    gains[r] = gains.get(r, 0.0) + self.said(params, r, half, i).sum(-1) * mean
            self.age[i], self.u[i], self.f[:, i] = 0, 0.0, 0.0
        return torch.tensor([i in gone for i in range(self.units)])


@every_net
@pytest.mark.parametrize("utility", ["contribution", "adaptable"])
@pytest.mark.parametrize("decay", [0.8, 0.0])
def test_several_updates_and_events_equal_a_loop_over_units(make, utility, decay):
    settings = {"rate": 0.13, "maturity": 2, "decay": decay, "utility": utility}
    part, g = make(ContinualBackprop(**settings)), torch.Generator().manual_seed(0)
    s, replaced = part.birth(0), 0
    loops = {la.name: Loop(la, len(s.params[f"{la.name}.weight"]), **settings) for la in recyclable(part, ("all",))}
    for update in range(1, 13):
        s = s._replace(params={k: torch.randn(p.shape, generator=g) for k, p in s.params.items()})
        feats = {}
        for loop in loops.values():
            shape = (loop.layer.halves * loop.units, *((3, 2) if loop.layer.kind == "conv" else ()))
            feats[loop.layer.feats] = torch.randn(4, *shape, generator=g) + 0.5
        s = seen(part, s, feats)
        for loop in loops.values():
            loop.update(s.params, feats[loop.layer.feats])
        if update % 4 == 0:
            gains: dict = {}
            chosen = {name: loop.event(s.params, gains) for name, loop in loops.items()}
            replaced += sum(int(mask.sum()) for mask in chosen.values())
            wanted = recycle(s, context(part, s), chosen).params
            for reader, gain in gains.items():
                own = chosen.get(reader, torch.tensor(False))  # what begins again makes up for nothing
                wanted[f"{reader}.bias"] = wanted[f"{reader}.bias"] + torch.tensor(gain).float().masked_fill(own, 0.0)
            s = renew(part, s)
            assert all(torch.allclose(s.params[k], p, atol=1e-4) for k, p in wanted.items())
        for name, loop in loops.items():
            memory = {k: s.memory[CBP][f"{k}/{name}"].tolist() for k in ("age", "utility", "mean", "owed")}
            assert memory["age"] == loop.age
            assert memory["utility"] == pytest.approx(loop.u, rel=1e-4)
            assert memory["mean"] == pytest.approx(loop.f.flatten().tolist(), rel=1e-4, abs=1e-6)
            assert memory["owed"] == pytest.approx(loop.owed, abs=1e-5)
    assert replaced >= 6


# who goes


def small(**options):
    """Four units whose outgoing weights are all 1, a maturity of 2 updates, and no other layer."""
    part = classifier(
        [ContinualBackprop(**{"maturity": 2, "rate": 0.25, "where": LAST} | options)], net=Vectors(width=4)
    ).classifier
    s = part.birth(0)
    s.params["head.weight"].fill_(1.0)
    return part, s


def remembering(s, **memory):
    """The state with this memory of the second hidden layer."""
    new = {f"{k}/trunk.layers.1": torch.tensor(value) for k, value in memory.items()}
    return s._replace(memory={CBP: s.memory[CBP] | new})


def gone(before, after) -> list[int]:
    """Units whose outgoing weights are zero now."""
    return (after.params["head.weight"] == 0).all(0).nonzero().flatten().tolist() if after is not before else []


def test_units_are_left_alone_until_they_are_older_than_maturity():
    part, s = small()
    feats = {"trunk.h1": torch.tensor([[4.0, 1.0, 2.0, 3.0]])}
    for _ in range(2):
        s = seen(part, s, feats)
        assert renew(part, s) is s and s.memory[CBP]["owed/trunk.layers.1"] == 0
    s = seen(part, s, feats)
    assert s.memory[CBP]["owed/trunk.layers.1"] == 1  # a quarter of four
    after = renew(part, s)
    assert gone(s, after) == [1] and after.memory[CBP]["owed/trunk.layers.1"] == 0
    assert after.memory[CBP]["age/trunk.layers.1"].tolist() == [3, 0, 3, 3]
    assert renew(part, after) is after


@pytest.mark.parametrize(
    ("owed", "age", "units", "left"),
    [
        (0.99, [9.0, 9.0, 9.0, 9.0], [], 0.99),
        (1.0, [9.0, 9.0, 9.0, 9.0], [2], 0.0),
        (2.75, [9.0, 9.0, 9.0, 9.0], [2, 3], 0.75),
        (2.75, [2.0, 9.0, 2.0, 3.0], [1, 3], 0.75),  # the least useful one is too young
        (3.5, [2.0, 3.0, 2.0, 2.0], [1], 2.5),  # the others stay owed
        (1.0, [2.0, 2.0, 2.0, 2.0], [], 1.0),
    ],
)
def test_whole_units_of_those_mature_go_and_the_rest_stays_owed(owed, age, units, left):
    part, s = small()
    s = remembering(s, owed=owed, age=age, utility=[4.0, 3.0, 1.0, 2.0])
    after = renew(part, s)
    assert gone(s, after) == units and (after is s) == (not units)
    assert float(after.memory[CBP]["owed/trunk.layers.1"]) == pytest.approx(left)


def test_utilities_are_compared_without_the_zero_they_began_with():
    part, s = small(decay=0.5)
    s = remembering(s, owed=1.0, age=[3.0, 20.0, 20.0, 20.0], utility=[1.0, 1.1, 2.0, 2.0])
    assert gone(s, renew(part, s)) == [1]  # 1 / (1 - 1/8) is more than 1.1


def test_a_unit_without_incoming_weights_has_a_finite_utility():
    part, s = small(utility="adaptable", decay=0.0)
    s.params["trunk.layers.1.weight"].zero_()
    s = seen(part, s, {"trunk.h1": torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])})
    assert s.memory[CBP]["utility/trunk.layers.1"].isfinite().all()


# the mean output


@every_net
@pytest.mark.parametrize("correction", [True, False])
def test_the_average_output_of_the_readers_is_kept_where_images_are_flat(make, correction):
    moved = []
    for layer in recyclable(make(), ("all",)):
        where = tuple(f"{name}.*" for name in (layer.name, *layer.readers))
        part = make(ContinualBackprop(rate=0.4, maturity=1, decay=0.9, bias_correction=correction, where=where))
        s, g = part.birth(0), torch.Generator().manual_seed(0)
        s = s._replace(params={k: p + 0.1 * torch.rand(p.shape, generator=g) for k, p in s.params.items()})
        flat = torch.randint(0, 256, (8, 2, 1, 1), generator=g).expand(8, 2, 44, 44)
        inputs = flat if part.layers[0].kind == "conv" else torch.randn(8, 5, generator=g)

        def said(params, part=part, inputs=inputs, layer=layer):
            out, feats = part(params, inputs)
            pres = [feats[la.feats + PRE] for la in part.layers if la.feats and la.name in layer.readers]
            return (pres[0].transpose(0, 1).flatten(1).mean(1) if pres else out.mean(0)), feats

        mean, feats = said(s.params)
        for _ in range(4):  # three updates of a mature layer
            s = seen(part, s, feats)
        after = renew(part, s)
        assert (after.memory[CBP][f"age/{layer.name}"] == 0).sum() >= 1
        change = (said(after.params)[0] - mean).abs().max()
        moved.append(float(change / mean.abs().max()))
        same = all(torch.equal(after.params[f"{r}.bias"], s.params[f"{r}.bias"]) for r in layer.readers)
        assert same != correction
    assert max(moved) < 1e-5 if correction else min(moved) > 1e-3


def test_biases_outside_where_make_up_for_nothing():
    part, s = small(where=("*.weight",))
    s = remembering(s, owed=1.0, age=[9.0] * 4, mean=[1.0] * 4)
    after = renew(part, s)
    assert gone(s, after) == [0] and torch.equal(after.params["head.bias"], s.params["head.bias"])


# in training


@pytest.mark.parametrize(("make", "part", "spec", "net"), TRAINED)
def test_the_rate_is_the_share_replaced_and_each_entry_counts_its_own_steps(make, part, spec, net):
    rate, maturity = 0.11, 3
    e = engine(make([ContinualBackprop(rate=rate, maturity=maturity, when=When(every=1))], net=net), (0, 1))
    layers, clock = recyclable(e.learner.parts[part], ("all",)), Clock(steps=10**9)
    found, mature = ({la.name: torch.zeros(2) for la in layers} for _ in range(2))
    for update in range(14):
        e.update(batch_for(spec, e.seeds, update), clock)
        clock.update()
        ages = clone(e.states[part].memory[CBP])
        e.intervene(clock, ("updates",), None)
        s = e.states[part]
        for la in layers:
            old, new = ages[f"age/{la.name}"], s.memory[CBP][f"age/{la.name}"]
            assert (old[new == 0] > maturity).all() and torch.equal(new[new > 0], old[new > 0])
            mature[la.name] += (old > maturity).sum(1)
            found[la.name] += (new == 0).sum(1)
            assert torch.equal(s.optim["t"][f"{la.name}.bias"], new)  # moments and counts begin with the unit
            assert (s.optim["m"][f"{la.name}.weight"][new == 0] == 0).all()
    for la in layers:
        owed = s.memory[CBP][f"owed/{la.name}"]
        assert torch.allclose(found[la.name] + owed, rate * mature[la.name], atol=1e-4)
        assert (owed < 1).all() and (owed > -1e-5).all() and (found[la.name] >= 3).all()


def test_without_a_rate_training_is_plain():
    idle, plain = (
        engine(dqn(i, VECTOR))
        for i in ([ContinualBackprop(rate=0.0, maturity=0, steps="keep", when=When(every=1))], [])
    )
    for e in (idle, plain):
        run(e, 4)
    assert equal((idle.states["q"].params, idle.states["q"].optim), (plain.states["q"].params, plain.states["q"].optim))


# settings


def test_defaults_are_those_of_the_papers_reinforcement_learning():
    d = ContinualBackprop()
    assert (d.rate, d.maturity, d.decay, d.utility) == (1e-4, 10_000, 0.99, "contribution")
    assert (d.bias_correction, d.steps, d.toward, d.reader) == (True, "renew", "fresh", "zero")


@pytest.mark.parametrize(
    "wrong", [{"rate": -0.1}, {"rate": 1.1}, {"maturity": -1}, {"decay": 1.5}, {"decay": -0.5}, {"utility": "size"}]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(ContinualBackprop, wrong)
