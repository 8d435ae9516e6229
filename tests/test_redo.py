"""ReDo: which units count as dormant, what a recycled one begins with, and what its neighbours notice of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.events import Context
from core.options import build
from core.part import Outcome, Step
from core.recycle import recyclable
from core.state import clone, member
from core.when import When
from interventions.crelu import CReLU
from interventions.layer_norm import LayerNorm
from interventions.redo import ReDo
from nets import Nature, Vectors

EVERY = When(every=1)
LAST = ("trunk.layers.1.*", "head")
IMAGES = Nature(width=40, units=0.125)  # 4, 8 and 8 channels, the last on 25 pixels; 5 units
LEARNERS = {
    "dqn": (dqn, "q", FRAMES, IMAGES),
    "sac": (sac, "critic", CONTROL, Vectors(width=6)),
    "classifier": (classifier, "classifier", VECTOR, Vectors(width=6)),
}
every_learner = pytest.mark.parametrize(("make", "part", "spec", "net"), LEARNERS.values(), ids=LEARNERS)


def sampler(e):
    """Batch number k of an event is the made-up one number 500 + k."""

    def sample(stream: str, count: int, size: int):
        number = stream.rpartition("/")[2]
        return batch_for(e.learner.spec, e.seeds, 500 + (int(number) if number.isdigit() else 0))

    return sample


def fire(e, update: int = 3) -> list[dict]:
    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), sampler(e))


def aged(learner, seeds=(0,), kill: bool = True):
    """An engine three updates old; then the first unit of every hidden layer falls silent, weights and moments stay."""
    e = engine(learner, seeds)
    for count in range(3):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    for part in learner.parts.values() if kill else ():
        for layer in part.layers:
            if layer.readers:
                e.states[part.name].params[f"{layer.name}.bias"][:, 0] = -1e3
    return e


def outputs(e, part: str, i: int = 0):
    """What the network of member i says to the batch of the event."""
    states, net = member(e.states, i), e.learner.parts[part]
    batch, _ = e.context(net.interventions[0], net, i, states, Clock(steps=10**9, updates=3), sampler(e)).sample(0, 0)
    return net(states[part].params, *net.inputs(batch))[0]


def hand_made(redo: ReDo, *batches):
    """Rows of the second layer that are recycled where each batch holds these features, [B, units] of it."""
    part = classifier([redo], net=Vectors(width=len(batches[0][0]))).classifier
    s, asked = part.birth(0), []
    ctx = Context(part, {"classifier": s}, Clock(steps=10), 0, redo.name, "cpu", None)

    def step(number=0):
        asked.append(number)
        h = torch.tensor(batches[number])
        return Step({}, {}, Outcome(torch.zeros(()), {"trunk.h0": torch.ones_like(h), "trunk.h1": h}, {}), {})

    ctx.step = step
    new = redo.event(part, s, ctx)
    assert asked == list(range(len(batches)))
    assert torch.equal(new.params["trunk.layers.0.weight"], s.params["trunk.layers.0.weight"])
    changed = (new.params["trunk.layers.1.weight"] != s.params["trunk.layers.1.weight"]).any(1)
    return changed.nonzero().flatten().tolist()


# which units are dormant


@pytest.mark.parametrize(
    ("threshold", "rows"), [(0.0, [2]), (0.24, [2]), (0.25, [1, 2]), (0.5, [0, 1, 2]), (3.24, [0, 1, 2])]
)
def test_units_at_or_below_the_threshold_are_recycled(threshold, rows):
    h = [[2.0, 0.0, 0.0, 10.0], [0.0, -1.0, 0.0, 3.0]]  # mean sizes 1, 1/2, 0, 13/2 around 2: scores 1/2, 1/4, 0, 13/4
    assert hand_made(ReDo(threshold=threshold, batches=1, where=LAST), h) == rows


def test_a_unit_that_speaks_in_the_last_of_the_batches_is_not_dormant():
    silent, late = [[1.0, 0.0, 0.0]], [[1.0, 2.0, 0.0]]
    assert hand_made(ReDo(batches=1), silent) == [1, 2]
    assert hand_made(ReDo(batches=3), silent, silent, late) == [2]


def test_scores_are_those_of_all_samples_together():
    one, four = (
        [[1.0, 6.0]],
        [[1.0, 0.0]] * 4,
    )  # together: 1 and 6/5; batch by batch the scores would be 2/7, 12/7 and 2, 0
    assert hand_made(ReDo(threshold=0.92, batches=2), one, four) == [0]
    assert hand_made(ReDo(threshold=0.9, batches=2), one, four) == []


def test_with_crelu_a_unit_is_as_active_as_both_its_halves():
    e = aged(classifier([CReLU(match="input"), ReDo(threshold=0.1, when=EVERY)], net=Vectors(width=4)), kill=False)
    s = member(e.states, 0)["classifier"]
    s.params["trunk.layers.1.bias"][0], s.params["trunk.layers.1.bias"][1] = -5.0, 5.0  # each has one silent half
    assert fire(e)[0]["touched"] == 0
    s.params["trunk.layers.1.weight"][2], s.params["trunk.layers.1.bias"][2] = 0.0, 0.0
    old = clone(s)
    fire(e)
    changed = (old.params["trunk.layers.1.weight"] != s.params["trunk.layers.1.weight"]).any(1)
    assert changed.tolist() == [False, False, True, False]
    assert (s.params["head.weight"] == 0).all(0).tolist() == [False, False, True, False] * 2


# what happens to them


@every_learner
def test_recycling_silent_units_keeps_the_networks_function(make, part, spec, net):
    e = aged(make([ReDo(threshold=0.0, when=EVERY)], net=net))
    before, old = outputs(e, part), clone(member(e.states, 0))[part]
    assert all(row["touched"] > 0 for row in fire(e))
    assert not equal(old.params, member(e.states, 0)[part].params)
    assert (outputs(e, part) - before).abs().max() < 1e-6 * (1 + before.abs().max())


@every_learner
def test_a_recycled_unit_has_a_newborns_weights_no_say_and_no_moments(make, part, spec, net):
    redo = ReDo(threshold=0.0, batches=1, when=EVERY)
    e = aged(make([redo], net=net))
    old = clone(member(e.states, 0))[part]
    states, layers = member(e.states, 0), recyclable(e.learner.parts[part], ("all",))
    clock = Clock(steps=10**9, updates=3)
    ctx = e.context(redo, e.learner.parts[part], 0, clone(states), clock, sampler(e))
    drawn, feats = ctx.fresh(), ctx.step().outcome.feats
    fire(e)
    new = member(e.states, 0)[part]
    for layer in layers:
        h = feats[layer.feats].abs().transpose(0, 1).flatten(1).mean(1)
        silent = h == 0
        assert silent[0] and not silent.all()
        rows, bias = new.params[f"{layer.name}.weight"][silent], new.params[f"{layer.name}.bias"]
        fresh = drawn[f"{layer.name}.weight"][silent]
        assert torch.equal(rows[rows != 0], fresh[rows != 0])  # 0 where it reads a unit that begins again itself
        assert torch.count_nonzero(rows) and torch.count_nonzero(bias[silent]) == 0
        assert torch.equal(bias[~silent], old.params[f"{layer.name}.bias"][~silent])
        for reader in layer.readers:
            columns = slice(0, new.params[f"{reader}.weight"].shape[1] // len(silent))  # of the first unit
            assert torch.count_nonzero(new.params[f"{reader}.weight"][:, columns]) == 0
            assert torch.count_nonzero(old.params[f"{reader}.weight"][:, columns])
        for slot in ("m", "v"):
            for k in (f"{layer.name}.weight", f"{layer.name}.bias"):
                assert torch.count_nonzero(new.optim[slot][k][silent]) == 0
                kept = (old.optim[slot][k] == new.optim[slot][k]) | (new.optim[slot][k] == 0)
                assert kept.all() and torch.count_nonzero(new.optim[slot][k][~silent])
    assert equal(new.optim["t"], old.optim["t"])
    assert equal((new.copies, new.birth, new.buffers), (old.copies, old.birth, old.buffers))
    for k in old.params:  # the network's outputs are no units, and biases that a recycled unit is read beside stay
        if k.endswith("bias") and k.startswith(("advantage", "value", "q.0.head", "q.1.head", "head")):
            assert torch.equal(new.params[k], old.params[k])


@every_learner
def test_recycled_units_speak_again(make, part, spec, net):
    e = aged(make([ReDo(threshold=0.0, when=EVERY)], net=replace(net, width=32)), seeds=range(4))
    speak = []
    for event in (lambda: None, lambda: fire(e)):
        event()
        for i in e.seeds:
            redo, net_, clock = e.learner.interventions[0], e.learner.parts[part], Clock(steps=10**9, updates=3)
            feats = e.context(redo, net_, i, member(e.states, i), clock, sampler(e)).step().outcome.feats
            speak += [bool(feats[layer.feats][:, 0].any()) for layer in recyclable(net_, ("all",))]
    before, after = speak[: len(speak) // 2], speak[len(speak) // 2 :]
    assert not any(before) and sum(after) > 0.8 * len(after)  # a new draw may happen to be silent on eight samples


@pytest.mark.parametrize(("init", "deviation"), [("xavier", math.sqrt(2 / 128)), ("torch", math.sqrt(1 / 192))])
def test_recycled_rows_have_the_initialisers_deviation(init, deviation):
    e = aged(dqn([ReDo(threshold=100.0, when=EVERY, reader="fresh")], VECTOR, net=Vectors(width=64, init=init)))
    fire(e)
    weight = e.states["q"].params["trunk.layers.1.weight"]
    assert float(weight.std()) == pytest.approx(deviation, rel=0.03)


def test_gain_and_shift_of_the_normalisation_begin_again_with_the_unit():
    e = aged(classifier([LayerNorm(), ReDo(threshold=0.0, when=EVERY)], net=Vectors(width=6)), kill=False)
    s = member(e.states, 0)["classifier"]
    for name in ("trunk.norms.0", "trunk.norms.1"):
        s.params[f"{name}.weight"].fill_(2.0)
        s.params[f"{name}.bias"].fill_(50.0)
        s.params[f"{name}.bias"][3] = -50.0
    fire(e)
    for name in ("trunk.norms.0", "trunk.norms.1"):
        assert s.params[f"{name}.weight"].tolist() == [2.0, 2.0, 2.0, 1.0, 2.0, 2.0]
        assert s.params[f"{name}.bias"].tolist() == [50.0, 50.0, 50.0, 0.0, 50.0, 50.0]


def test_each_member_draws_its_own_weights_and_the_second_event_others():
    e = aged(dqn([ReDo(threshold=100.0, when=EVERY)], VECTOR), seeds=(0, 1))
    k, seen = "trunk.layers.0.weight", []
    for update in (3, 4):
        fire(e, update)
        seen += [x.clone() for x in e.states["q"].params[k]]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    alone = aged(dqn([ReDo(threshold=100.0, when=EVERY)], VECTOR), seeds=(1,))
    fire(alone)
    assert torch.equal(alone.states["q"].params[k][0], seen[1])


# options


@pytest.mark.parametrize(("steps", "counts"), [("keep", 4.0), ("renew", 1.0)])
def test_the_next_step_of_a_recycled_weight_has_the_learning_rates_size_where_step_counts_are_renewed(steps, counts):
    redo = ReDo(threshold=0.0, steps=steps, where=("trunk.layers.1.*", "advantage.*", "value.*"), when=EVERY)
    e = aged(dqn([redo], VECTOR, net=Vectors(width=6, init="torch"), learning_rate=1e-3, adam_eps=1e-12), (1,))
    fire(e)
    old = member(clone(e.states), 0)["q"].params["advantage.weight"]
    assert torch.count_nonzero(old[:, 0]) == 0
    e.update(batch_for(VECTOR, (0,), 3), Clock(steps=10**9, updates=3))
    new = member(e.states, 0)["q"]
    step = (new.params["advantage.weight"] - old)[:, 0].abs()
    # of a first gradient g, m = (1 - b1) g and v = (1 - b2) g^2; the count says how much of them is expected
    size = 1e-3 * 0.1 / (1 - 0.9**counts) / math.sqrt(1e-3 / (1 - 0.999**counts))
    assert step.max() > 0
    assert (step[step > 0] - size).abs().max() < 1e-3 * size
    t = new.optim["t"]["advantage.weight"].expand(3, 6)
    assert t[:, 0].tolist() == [counts] * 3 and t.max() == 4.0


def test_only_layers_in_where_are_recycled_and_refusals_come_at_birth():
    e = aged(dqn([ReDo(threshold=0.0, where=("head",), when=EVERY)], net=IMAGES))
    old = clone(member(e.states, 0))["q"].params
    fire(e)
    new = member(e.states, 0)["q"].params
    assert {k for k in old if not torch.equal(old[k], new[k])} == {
        f"{k}" for k in old if k.startswith(("trunk", "advantage.w", "value.w"))
    }
    with pytest.raises(ValueError, match="where"):
        engine(dqn([ReDo(where=("output",))]))


@pytest.mark.parametrize(
    "wrong", [{"threshold": -0.1}, {"batches": 0}, {"toward": "zero"}, {"reader": "birth"}, {"steps": "all"}]
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(ReDo, wrong)


def test_defaults_are_the_papers_at_replay_ratio_1():
    redo = ReDo()
    assert (redo.threshold, redo.batches, redo.reader, redo.toward) == (0.1, 2, "zero", "fresh")
    assert (redo.optimizer, redo.steps, redo.target, redo.slow) == ("touched", "keep", "keep", "keep")


def test_a_run_recycles_when_its_time_has_come():
    e = engine(sac([ReDo(threshold=0.5, when=When(every=4))], net=Vectors(width=BATCH)))
    clock = run(e, 3)
    plain = engine(sac(net=Vectors(width=BATCH)))
    other = run(plain, 3)
    assert equal(e.states["critic"].params, plain.states["critic"].params)
    run(e, 1, clock), run(plain, 1, other)
    assert not equal(e.states["critic"].params, plain.states["critic"].params)
