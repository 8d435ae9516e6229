"""Self-distillation: the network is pulled towards the softmax, or the numbers, of its own average."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac
from torch import nn

from core.assemble import evaluated_role
from core.clock import Clock
from core.options import build
from core.part import Step
from core.state import State, clone, member
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.dropout import Dropout
from interventions.reset import Reset
from interventions.self_distillation import SelfDistillation
from nets import C51, HLGauss

PARTS = {
    "values of convolutions": (dqn, {}, "q", FRAMES),
    "distributions of convolutions": (dqn, {"value": C51(bins=11)}, "q", FRAMES),
    "critics": (sac, {}, "critic", CONTROL),
    "critics' distributions": (sac, {"value": HLGauss(bins=11)}, "critic", CONTROL),
    "actor": (sac, {}, "actor", CONTROL),
    "classifier": (classifier, {}, "classifier", VECTOR),
}
every_part = pytest.mark.parametrize(("learner", "options", "name", "spec"), PARTS.values(), ids=PARTS)


def step(spec, count: int = 0) -> Step:
    """What a penalty has at hand of a made-up batch."""
    return Step(member(batch_for(spec, (0,), count), 0), {}, None, {}, {})


def apart(s: State) -> State:
    """The state with network and teacher away from birth and from each other."""
    g = torch.Generator().manual_seed(5)

    def moved(tensors):
        return {k: 1.2 * x + 0.05 * torch.randn(x.shape, generator=g) for k, x in tensors.items()}

    return s._replace(params=moved(s.params), copies=s.copies | {"teacher": moved(s.copies["teacher"])})


def penalty_of(part, s, at: Step, params=None) -> torch.Tensor:
    return part.interventions[-1].penalty(part, s.params if params is None else params, s, at)


def slopes(part, s, at: Step):
    """Gradient of the penalty at the state's own weights."""
    return torch.func.grad(lambda p: penalty_of(part, s, at, p))(s.params)


def outputs(part, s, at: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """What network and teacher say."""
    x = part.inputs(at.batch)
    return part(s.params | s.buffers, *x)[0], part(s.copies["teacher"], *x)[0]


# the number


def on_paper(student, teacher, logits=True, **options) -> float:
    """The penalty of a network that says what its parameters are."""

    class Paper:
        def __init__(self):
            self.logits = logits

        def names(self, where):
            return ["w"]

        def inputs(self, batch):
            return (batch["x"],)

        def __call__(self, numbers, x):
            return numbers["w"] + numbers["shift"] + 0 * x, {"h0": 1000 * x}

    s = SimpleNamespace(
        params={"w": torch.tensor(0.0)},
        buffers={"shift": torch.tensor(1.0)},
        copies={"teacher": {"w": torch.tensor(teacher), "shift": torch.tensor(0.0)}},
    )
    at = Step({"x": torch.zeros(())}, {}, None, {}, {})
    params = {"w": torch.tensor(student) - 1.0}
    return float(SelfDistillation(**options).penalty(Paper(), params, s, at))


LN2, LN3 = math.log(2), math.log(3)


def test_logits_are_pulled_by_the_divergence_of_the_network_from_the_teacher():
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # of (1/4, 3/4) from (1/2, 1/2)
    assert on_paper([[0.0, LN3]], [[0.0, 0.0]]) == pytest.approx(divergence, rel=1e-5)
    other_way = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert on_paper([[0.0, 0.0]], [[0.0, LN3]]) == pytest.approx(other_way, rel=1e-5)
    assert on_paper([[5.0, 5.0 + LN3]], [[-2.0, -2.0]], weight=0.5) == pytest.approx(0.5 * divergence, rel=1e-5)


def test_the_temperature_divides_the_logits_of_both_and_scales_nothing_else():
    divergence = on_paper([[0.0, LN2]], [[LN3, 0.0]])
    assert divergence == pytest.approx(0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 1.5), rel=1e-5)
    for tau in (0.5, 4.0):
        assert on_paper([[0.0, tau * LN2]], [[tau * LN3, 0.0]], tau=tau) == pytest.approx(divergence, rel=1e-5)


def test_the_divergence_is_summed_over_classes_and_averaged_over_samples():
    one = on_paper([[0.0, LN3]], [[0.0, 0.0]])
    assert on_paper([[0.0, LN3], [1.0, 1.0]], [[0.0, 0.0], [7.0, 7.0]]) == pytest.approx(one / 2, rel=1e-5)
    given, wanted = torch.tensor([[0.0, LN3, 1.0], [2.0, 0.0, 0.0]]), torch.zeros(2, 3)
    over_classes_too = F.kl_div(given.log_softmax(-1), wanted.softmax(-1), reduction="none").mean()  # released code
    assert on_paper(given.tolist(), wanted.tolist(), weight=1 / 3) == pytest.approx(float(over_classes_too), rel=1e-5)


def test_numbers_are_pulled_by_half_their_mean_squared_difference_whatever_the_temperature():
    for tau in (1.0, 3.0):
        found = on_paper([[1.0, 4.0], [0.0, -3.0]], [[2.0, 1.0], [0.0, -1.0]], logits=False, weight=0.3, tau=tau)
        assert found == pytest.approx(0.3 * 0.5 * (1 + 9 + 0 + 4) / 4)


@every_part
def test_it_is_torchs_divergence_or_half_its_squared_error(learner, options, name, spec):
    part = learner([SelfDistillation(weight=0.3, tau=2.0)], **options).parts[name]
    s, at = apart(part.birth(0)), step(spec)
    student, teacher = outputs(part, s, at)
    assert part.logits == (name == "classifier" or bool(options))
    if part.logits:
        classes = student.shape[-1]
        given, wanted = ((x / 2.0).log_softmax(-1).reshape(-1, classes) for x in (student, teacher))
        expected = F.kl_div(given, wanted.exp(), reduction="batchmean")
    else:
        expected = 0.5 * F.mse_loss(student, teacher)
    assert float(penalty_of(part, s, at)) == pytest.approx(0.3 * float(expected), rel=1e-4)
    assert float(expected) > 1e-4


@every_part
def test_agreement_costs_nothing_and_pulls_nowhere(learner, options, name, spec):
    part = learner([SelfDistillation()], **options).parts[name]
    s, at = part.birth(0), step(spec)
    assert float(penalty_of(part, s, at)) == pytest.approx(0, abs=1e-7)
    assert largest_difference(slopes(part, s, at), {k: torch.zeros_like(p) for k, p in s.params.items()}) < 1e-6


class Reference(nn.Module):
    """The small classifier in torch's own modules."""

    def __init__(self, params):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        for i, name in ((0, "trunk.layers.0"), (2, "trunk.layers.1"), (4, "head")):
            layer = self.body[i]
            layer.weight.data, layer.bias.data = params[f"{name}.weight"].clone(), params[f"{name}.bias"].clone()


def test_six_updates_are_those_of_a_plain_loop_with_torchs_modules_and_torchs_adam():
    e = engine(classifier([SelfDistillation(weight=3.0, tau=0.5, momentum=0.7)], learning_rate=1e-2))
    net = Reference(member(e.states, 0)["classifier"].params)
    teacher, adam = copy.deepcopy(net), torch.optim.Adam(net.parameters(), lr=1e-2)
    for count in range(6):
        batch = member(batch_for(VECTOR, (0,), count), 0)
        out, wanted = net.body(batch["obs"]), (teacher.body(batch["obs"]).detach() / 0.5).softmax(-1)
        divergence = F.kl_div((out / 0.5).log_softmax(-1), wanted, reduction="batchmean")
        loss = F.cross_entropy(out, batch["label"]) + 3.0 * divergence
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), net.parameters(), strict=True):
                slow.copy_(0.7 * slow + 0.3 * fast)
    run(e, 6)
    s = member(e.states, 0)["classifier"]
    assert largest_difference(net.state_dict(), Reference(s.params).state_dict()) < 1e-5
    assert largest_difference(teacher.state_dict(), Reference(s.copies["teacher"]).state_dict()) < 1e-5
    assert largest_difference(net.state_dict(), teacher.state_dict()) > 1e-3


# what is trained


@every_part
def test_gradient_flows_within_where_and_everything_else_is_a_constant(learner, options, name, spec):
    everywhere = learner([SelfDistillation()], **options).parts[name]
    part = learner([SelfDistillation(where=("output",))], **options).parts[name]
    s, at = apart(part.birth(0)), step(spec)
    params = {k: p + 0.1 for k, p in s.params.items()}
    chosen = set(part.names(("output",)))
    mixed = s._replace(params={k: (params if k in chosen else s.params)[k] for k in params})
    assert float(penalty_of(part, s, at, params)) == pytest.approx(float(penalty_of(everywhere, mixed, at)), rel=1e-5)
    found, full = slopes(part, s, at), slopes(everywhere, s, at)
    for k, slope in found.items():
        assert full[k].abs().sum() > 0
        assert torch.allclose(slope, full[k] if k in chosen else torch.zeros_like(slope), atol=1e-6), k


def test_the_penalty_joins_the_loss_of_its_part():
    part, plain = classifier([SelfDistillation(weight=0.5)]).classifier, classifier().classifier
    s, at = apart(part.birth(0)), step(VECTOR)
    (more, _), (less, _) = (p.gradient({"classifier": s}, at.batch, {}) for p in (part, plain))
    expected = slopes(part, s, at)
    assert all((more[k] - less[k] - expected[k]).abs().max() < 1e-6 for k in more)
    only_actor = sac([SelfDistillation(on=("actor",))])
    assert ["teacher" in p.copies for p in only_actor.parts.values()] == [False, True, False]


def test_a_weight_of_zero_trains_plainly_beside_a_teacher():
    taught, plain = engine(dqn([SelfDistillation(weight=0.0, momentum=0.5)])), engine(dqn())
    for e in (taught, plain):
        run(e, 3)
    assert equal(taught.states["q"].params, plain.states["q"].params)
    assert not equal(taught.states["q"].copies["teacher"], plain.states["q"].birth)


def test_each_runs_on_its_own_statistics_and_no_mask_is_drawn():
    part = classifier([BatchNorm(), Dropout(rate=0.5), SelfDistillation()]).classifier
    s, at = apart(part.birth(0)), step(VECTOR)
    found = []
    for by_network, by_teacher in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5)):
        slow = s.copies["teacher"]
        slow = slow | {k: slow[k] + by_teacher for k in s.buffers}
        c = s._replace(buffers={k: x + by_network for k, x in s.buffers.items()}, copies={"teacher": slow})
        given, wanted = (x.log_softmax(-1) for x in outputs(part, c, at))
        found.append(float(penalty_of(part, c, at)))
        assert found[-1] == pytest.approx(float(F.kl_div(given, wanted.exp(), reduction="batchmean")), rel=1e-4)
    assert min(abs(found[0] - x) for x in found[1:]) > 1e-3 * found[0]


# the teacher


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9])
@pytest.mark.parametrize(
    ("where", "first"), [("all", ""), ("output", ("advantage", "value")), ("trunk.norms.1.*", "trunk.norms.1.")]
)
def test_the_teacher_averages_weights_and_running_statistics_within_where(momentum, where, first):
    e = engine(dqn([BatchNorm(), SelfDistillation(momentum=momentum, where=(where,))], spec=VECTOR))
    teacher = clone(member(e.states, 0)["q"].copies["teacher"])
    for count in range(3):
        e.update(batch_for(VECTOR, (0,), count), Clock(steps=10**9, updates=count))
        s = member(e.states, 0)["q"]
        for k, x in (s.params | s.buffers).items():
            if k.startswith(first):
                teacher[k] = momentum * teacher[k] + (1 - momentum) * x
            else:
                teacher[k] = x.clone()
    assert largest_difference(s.copies["teacher"], teacher) < 1e-6
    assert not torch.equal(teacher["trunk.norms.1.weight"], s.birth["trunk.norms.1.weight"])


def test_with_momentum_one_the_teacher_is_the_newborn_network():
    e = engine(sac([SelfDistillation(momentum=1.0)]), (0, 1))
    run(e, 3)
    for name in ("critic", "actor"):
        s = e.states[name]
        assert equal(s.copies["teacher"], s.birth) and not equal(s.params, s.birth)
        assert not torch.equal(*s.copies["teacher"][next(k for k in s.birth if k.endswith("weight"))])
    assert e.states["alpha"].copies == {}


def test_the_target_network_follows_the_network_and_not_the_teacher():
    e = engine(dqn([SelfDistillation(momentum=0.9)], spec=VECTOR))
    run(e, 3)
    s = e.states["q"]
    assert equal(s.copies["target"], s.params) and not equal(s.copies["teacher"], s.params)


@pytest.mark.parametrize("slow", ["copy", "keep"])
def test_a_reset_renews_the_teacher_or_leaves_it_as_the_resets_own_rule_says(slow):
    reset = Reset(when=When(at=(2,)), where=("all",), slow=slow)
    e = engine(dqn([SelfDistillation(momentum=0.5), reset], spec=VECTOR))
    for count in range(2):
        e.update(batch_for(VECTOR, (0,), count), Clock(steps=10**9, updates=count))
    before = clone(e.states["q"])
    e.intervene(Clock(steps=10**9, updates=2, last={"updates": 1}), ("updates",), None)
    s = e.states["q"]
    assert equal(s.copies["teacher"], s.params if slow == "copy" else before.copies["teacher"])
    assert not equal(s.params, before.params)


def test_the_teacher_is_evaluated_only_when_the_agent_asks_for_it():
    assert evaluated_role(dqn([SelfDistillation()], VECTOR)) == "params"
    assert evaluated_role(dqn([SelfDistillation()], VECTOR, evaluate_with="teacher")) == "teacher"
    with pytest.raises(ValueError, match="evaluate_with"):
        evaluated_role(dqn([], VECTOR, evaluate_with="teacher"))


def test_defaults_are_those_of_the_released_code_and_options_have_limits():
    rule = build(SelfDistillation, {})
    assert (rule.weight, rule.tau, rule.momentum) == (1.0, 1.0, 0.999)
    given = {"weight": 0, "momentum": 1, "tau": 1e-3}
    assert vars(build(SelfDistillation, given)).items() >= given.items()
    assert build(SelfDistillation, {"momentum": 0}).momentum == 0
    for key, wrong in (("weight", -1e-9), ("tau", 0.0), ("tau", -1.0), ("momentum", -0.01), ("momentum", 1.01)):
        with pytest.raises(ValueError, match=key):
            build(SelfDistillation, {key: wrong})
