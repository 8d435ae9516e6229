"""EMA: an average of the weights is kept and evaluated; training does not know of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_leaves

from agents.dqn import Exploration
from core.assemble import evaluated_role
from core.clock import Clock
from core.options import build
from core.state import State, clone, member, weights
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.ema import EMA
from interventions.l2 import L2
from interventions.plasticity_injection import PlasticityInjection
from interventions.reset import Reset
from interventions.weight_clipping import WeightClipping

LEARNERS = {"convolutions": (dqn, FRAMES), "actor and critic": (sac, CONTROL), "classifier": (classifier, VECTOR)}
every_learner = pytest.mark.parametrize(("learner", "spec"), LEARNERS.values(), ids=LEARNERS)


def update(e, count: int) -> None:
    """One update without events."""
    e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))


class Numbers(nn.Module):
    """A module that holds these parameters and buffers."""

    def __init__(self, s: State) -> None:
        super().__init__()
        for k, p in s.params.items():
            self.register_parameter(k.replace(".", "_"), nn.Parameter(p.clone()))
        for k, x in s.buffers.items():
            self.register_buffer(k.replace(".", "_"), x.clone())

    def load(self, s: State) -> None:
        self.load_state_dict({k.replace(".", "_"): x for k, x in weights(s).items()})


# the average


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9, 1.0])
def test_one_update_keeps_the_share_of_the_average_and_takes_the_rest_from_the_network(momentum):
    s = State(
        params={"w": torch.tensor([4.0, -2.0]), "other": torch.tensor([8.0])},
        birth={"w": torch.tensor([3.0, 3.0])},
        copies={
            "average": {"w": torch.tensor([2.0, 0.0]), "other": torch.tensor([1.0]), "mean": torch.tensor(-1.0)},
            "target": {"w": torch.tensor([5.0, 5.0])},
        },
        optim={},
        buffers={"mean": torch.tensor(3.0)},
        memory={},
    )
    part = SimpleNamespace(names=lambda where: {"some": ["w"], "all": ["w", "other"]}[where[0]])
    for where in ("some", "all"):
        new = EMA(momentum=momentum, where=(where,)).after_step(part, s, None)
        share = 1 - momentum
        expected = {
            "w": torch.tensor([momentum * 2.0 + share * 4.0, share * -2.0]),
            "other": torch.tensor([momentum * 1.0 + share * 8.0 if where == "all" else 8.0]),
            "mean": torch.tensor(momentum * -1.0 + share * 3.0 if where == "all" else 3.0),  # of no layer
        }
        assert largest_difference(new.copies["average"], expected) < 1e-6
        assert new.copies["target"] is s.copies["target"]
        assert (new.params, new.birth, new.buffers) == (s.params, s.birth, s.buffers)


@every_learner
def test_over_six_updates_it_is_torchs_averaged_model(learner, spec):
    e = engine(learner([EMA(momentum=0.8)], learning_rate=1e-2))
    names = [part.name for part in e.learner.parts.values() if part.layers]
    networks = {name: Numbers(member(e.states, 0)[name]) for name in names}
    averages = {
        name: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
        for name, net in networks.items()
    }
    for name, net in networks.items():
        averages[name].update_parameters(net)  # the first is taken as it is: that of birth
    for count in range(6):
        update(e, count)
        for name, net in networks.items():
            net.load(member(e.states, 0)[name])
            averages[name].update_parameters(net)
    for name in names:
        s = member(e.states, 0)[name]
        theirs = averages[name].module.state_dict()
        mine = {k.replace(".", "_"): x for k, x in s.copies["average"].items()}
        assert largest_difference(mine, {k: theirs[k] for k in mine}) < 1e-6
        for other in (s.params, s.birth):
            assert largest_difference({k: s.copies["average"][k] for k in other}, other) > 1e-3


def test_running_statistics_are_averaged_like_weights():
    e = engine(dqn([BatchNorm(), EMA(momentum=0.8)], spec=VECTOR))
    average = clone({k: x[0] for k, x in e.states["q"].copies["average"].items()})
    assert any(k.endswith("running_var") for k in average)
    for count in range(4):
        update(e, count)
        fast = weights(member(e.states, 0)["q"])
        average = {k: 0.8 * x + 0.2 * fast[k] for k, x in average.items()}
    s = member(e.states, 0)["q"]
    assert largest_difference(s.copies["average"], average) < 1e-6
    assert not equal(s.buffers, {k: average[k] for k in s.buffers})


@pytest.mark.parametrize(
    ("where", "layers"),
    [("trunk.layers.*", ()), ("trunk.norms.0.weight", ("trunk.norms.0.",)), ("trunk", ("trunk.norms.",)), ("head", ())],
)
def test_running_statistics_outside_where_are_the_networks_own(where, layers):
    e = engine(dqn([BatchNorm(), EMA(momentum=0.5, where=(where,))], spec=VECTOR))
    run(e, 3)
    s = e.states["q"]
    for k, x in s.buffers.items():
        assert torch.equal(s.copies["average"][k], x) != k.startswith(layers), k


@pytest.mark.parametrize("where", ["all", "head", "output"])
def test_frozen_heads_are_averaged_with_the_layers_they_stand_for(where):
    injection, ema = PlasticityInjection(where=("head",), when=When(at=(2,))), EMA(momentum=0.5, where=(where,))
    e = engine(dqn([injection, ema], learning_rate=1e-2))
    run(e, 4)
    s, part = e.states["q"], e.learner.q
    chosen = part.names((where,))
    for k in part.names(("head",)):
        frozen = f"plasticity_injection/0/frozen/{k}"
        assert torch.equal(s.copies["average"][frozen], s.buffers[frozen]) != (k in chosen), k
    assert s.copies["average"]["plasticity_injection/0/done"] == 1


def test_with_momentum_one_it_stays_at_birth_and_with_zero_it_is_the_network_bit_by_bit():
    for momentum, field in ((1.0, "birth"), (0.0, "params")):
        e = engine(dqn([EMA(momentum=momentum)]))
        run(e, 3)
        s = e.states["q"]
        assert equal(s.copies["average"], getattr(s, field))
        assert not equal(s.params, s.birth)


def test_a_newborns_average_is_itself_in_storage_of_its_own():
    e = engine(sac([EMA()]), (0, 1))
    for name in ("critic", "actor"):
        s = e.states[name]
        assert set(s.copies) == {"critic": {"target", "average"}, "actor": {"average"}}[name]
        assert equal(s.copies["average"], s.params)
        pointers = [x.data_ptr() for x in tree_leaves((s.params, s.birth, s.copies))]
        assert len(set(pointers)) == len(pointers)
    assert e.states["alpha"].copies == {}


@pytest.mark.parametrize(
    ("where", "averaged"), [(("head",), ("trunk.layers.", "advantage", "value")), (("*.bias",), ())]
)
def test_outside_where_the_average_is_the_network_itself(where, averaged):
    e = engine(dqn([EMA(momentum=0.5, where=where)]))
    run(e, 3)
    s = e.states["q"]
    for k, x in s.copies["average"].items():
        chosen = k.startswith(averaged) if averaged else k.endswith("bias")
        assert torch.equal(x, s.params[k]) != chosen, k


def test_the_temperature_is_averaged_only_when_named():
    e = engine(sac([EMA(momentum=0.5, on=("alpha",))]))
    born = float(e.states["alpha"].params["log"])
    update(e, 0)
    s = e.states["alpha"]
    assert float(s.copies["average"]["log"]) == pytest.approx(0.5 * born + 0.5 * float(s.params["log"]), abs=1e-7)
    assert "average" not in e.states["critic"].copies | e.states["actor"].copies


def test_members_average_each_for_itself():
    together = engine(dqn([EMA(momentum=0.5)], spec=VECTOR), (4, 5))
    alone = engine(dqn([EMA(momentum=0.5)], spec=VECTOR), (5,))
    for e in (together, alone):
        run(e, 3)
    mine, other = (member(together.states, k)["q"].copies["average"] for k in (1, 0))
    assert largest_difference(mine, member(alone.states, 0)["q"].copies["average"]) < 1e-6
    assert largest_difference(mine, other) > 1e-2


@pytest.mark.parametrize("clipped_first", [True, False])
def test_it_sees_the_weights_as_those_before_it_in_the_list_have_left_them(clipped_first):
    # the bound binds: nothing of a weight this large would be left by it
    clip, ema = WeightClipping(), EMA(momentum=0.0)
    e = engine(dqn([clip, ema] if clipped_first else [ema, clip], spec=VECTOR))
    for p in e.states["q"].params.values():
        p += 100.0
    update(e, 0)
    s = e.states["q"]
    assert equal(s.copies["average"], s.params) == clipped_first
    assert float(s.params["value.weight"].abs().max()) < 50


# what it leaves alone


@every_learner
def test_training_is_plain(learner, spec):
    averaging, plain = engine(learner([EMA(momentum=0.5)]), (0, 1)), engine(learner(), (0, 1))
    for e in (averaging, plain):
        run(e, 4)
    for name, s in averaging.states.items():
        others = {role: x for role, x in s.copies.items() if role != "average"}
        assert equal(s._replace(copies=others, memory={}), plain.states[name]._replace(memory={}))


def test_it_has_no_penalty_no_events_and_nothing_to_draw_or_remember():
    rule, part = EMA(), dqn(spec=VECTOR).q
    s = part.birth(0)
    assert not any(rule.overrides(moment) for moment in ("build", "tune", "forward", "penalty", "event"))
    assert (rule.draws(part), rule.remember(part, s.params), rule.carry(part, s.params)) == ({}, {}, {})


@pytest.mark.parametrize("slow", ["copy", "keep"])
def test_a_reset_renews_the_average_or_leaves_it_as_the_resets_own_rule_says(slow):
    e = engine(dqn([EMA(momentum=0.5), Reset(when=When(at=(2,)), where=("all",), slow=slow)], spec=VECTOR))
    update(e, 0)
    update(e, 1)
    before = clone(e.states["q"])
    e.intervene(Clock(steps=10**9, updates=2, last={"updates": 1}), ("updates",), None)
    s = e.states["q"]
    assert equal(s.copies["average"], s.params if slow == "copy" else before.copies["average"])
    assert not equal(s.params, before.params)


# evaluation


def test_the_average_is_evaluated_unless_the_agent_says_otherwise():
    assert evaluated_role(dqn([EMA()], VECTOR)) == "average"
    assert evaluated_role(dqn([L2(), EMA()], VECTOR)) == "average"
    assert evaluated_role(dqn([EMA()], VECTOR, evaluate_with="params")) == "params"
    assert evaluated_role(dqn([EMA()], VECTOR, evaluate_with="target")) == "target"
    assert evaluated_role(sac([EMA()])) == evaluated_role(sac([EMA(on=("actor",))])) == "average"
    assert evaluated_role(sac([EMA(on=("critic",))])) == "params"
    acting = dict(act_with="target", target="ema")
    assert evaluated_role(dqn([], VECTOR, **acting)) == "target"
    assert evaluated_role(dqn([EMA()], VECTOR, **acting)) == "average"
    with pytest.raises(ValueError, match="evaluate_with"):
        evaluated_role(dqn([], VECTOR, evaluate_with="average"))


def test_the_average_can_act():
    e = engine(dqn([EMA(momentum=0.5)], spec=VECTOR, learning_rate=0.1))
    run(e, 3)
    obs, s = batch_for(VECTOR, (0,), 9)["obs"], member(e.states, 0)["q"]
    for role, numbers in (("average", s.copies["average"]), ("params", s.params)):
        expected = e.learner.q(numbers, obs[0])[0][..., 0].argmax(-1)
        assert (e.act(obs.numpy(), Exploration(0.0, False), "eval", 0, role)[0] == expected.numpy()).all()
    assert not torch.equal(*(e.learner.q(x, obs[0])[0] for x in (s.copies["average"], s.params)))


def test_the_default_is_that_of_the_released_code_and_a_momentum_is_a_share():
    assert build(EMA, {}).momentum == 0.999
    assert [build(EMA, {"momentum": x}).momentum for x in (0, 1)] == [0, 1]
    for outside in (-0.01, 1.01):
        with pytest.raises(ValueError, match="momentum"):
            build(EMA, {"momentum": outside})
