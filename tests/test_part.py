"""Parts: a descent against a plain autograd loop, and the rules by which copies and weights are moved."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from learners import dqn, equal, sac
from torch import nn
from torch.func import functional_call

from core.blueprint import NetSpec
from core.clock import Clock
from core.copies import follow
from core.events import Context, redraw
from core.functional import Functional
from core.intervention import Intervention
from core.optim import Adam
from core.part import Outcome, Part, descend, replant
from core.selection import check_parts
from core.state import clone
from nets.mlp import MLP

HEAD = ["head.weight", "head.bias"]
TRUNK = ["trunk.layers.0.weight", "trunk.layers.0.bias", "trunk.layers.1.weight", "trunk.layers.1.bias"]
GO = torch.tensor(True)


@dataclass(kw_only=True)
class Decay(Intervention):
    """0.3 |theta|^2 in the loss."""

    def penalty(self, part, params, s, step):
        return 0.3 * sum(p.square().sum() for p in params.values())


@dataclass(kw_only=True)
class Plus(Intervention):
    """theta <- (theta + add) times, after every step; notes what it was shown."""

    add: float = 0.0
    times: float = 1.0

    def after_step(self, part, s, step):
        self.seen = step
        return s._replace(params={k: (p + self.add) * self.times for k, p in s.params.items()})


def regression(interventions=(), optim=None, copies=("target",), spec=None) -> Part:
    """A network of 5 inputs, two hidden layers of 8 and 3 outputs that fits b["y"]."""
    part = None

    def loss(params, states, b, noise):
        out, feats = part(params, b["x"])
        error = F.mse_loss(out, b["y"])
        return Outcome(error, feats, {"net/loss": error})

    part = Part(
        "net",
        lambda blueprint: MLP(5, 3, blueprint),
        spec or NetSpec(width=8),
        loss,
        optim=optim or Adam(lr=0.01),
        copies=copies,
        interventions=interventions,
    )
    return part


def batch(seed: int):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(16, 5, generator=g), "y": torch.randn(16, 3, generator=g), "alive": GO.clone()}


def sequential(params) -> nn.Sequential:
    """The same network, made of torch's own pieces."""
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for own, p in zip(net.parameters(), params.values(), strict=True):
        own.data = p.clone()
    return net


def assert_params(params, net: nn.Sequential) -> None:
    for p, (name, own) in zip(params.values(), net.named_parameters(), strict=True):
        torch.testing.assert_close(p, own.detach(), rtol=1e-5, atol=1e-6, msg=lambda m, name=name: name + m)


def trained(part: Part, steps: int = 3):
    """The state after some steps, its target different from its weights."""
    states = {"net": part.birth(0)}
    for i in range(steps):
        states, _ = descend(part, states, batch(i), {})
        states = follow(part, states, 0.1, {})
    return states["net"]


# descend


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_descent_equals_autograd_and_torch_optim(fused, decay):
    part = regression(optim=Adam(lr=0.01, decay=decay))
    part.fused = fused
    states = {"net": part.birth(0)}
    net = sequential(states["net"].params)
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for i in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(net(batch(i)["x"]), batch(i)["y"])
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        optimizer.step()
        states, outcome = descend(part, states, batch(i), {})
        torch.testing.assert_close(outcome.loss, loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outcome.info["net/grad_norm"], norm, rtol=1e-4, atol=1e-6)
        assert_params(states["net"].params, net)


@pytest.mark.parametrize("fused", [False, True])
def test_a_descent_touches_neither_copies_nor_birth_weights(fused):
    part = regression()
    part.fused = fused
    states = {"net": part.birth(0)}
    before = clone(states["net"])
    states, _ = descend(part, states, batch(0), {})
    assert equal(states["net"].copies, before.copies) and equal(states["net"].birth, before.birth)
    assert not equal(states["net"].params, before.params)


def test_a_descent_that_is_not_fused_leaves_its_argument_alone():
    part = regression()
    states = {"net": part.birth(0)}
    before = clone(states)
    descend(part, states, batch(0), {})
    assert equal(states, before)


def test_a_fused_descent_writes_into_the_storage_it_was_given():
    part = regression()
    part.fused = True
    states = {"net": part.birth(0)}
    after, _ = descend(part, states, batch(0), {})
    assert all(after["net"].params[k] is p for k, p in states["net"].params.items())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("spoil", [{"y": torch.full((16, 3), torch.nan)}, {"alive": ~GO}])
def test_a_descent_skips_a_gradient_that_is_not_finite_and_a_member_that_is_not_alive(spoil, fused):
    part = regression()
    part.fused = fused
    states = {"net": trained(part)}
    before = clone(states)
    after, _ = descend(part, states, batch(9) | spoil, {})
    assert equal(after, before)


def test_a_penalty_is_added_to_the_objective_and_not_to_the_loss_reported():
    plain, penalised = regression(), regression([Decay()])
    states = {"net": plain.birth(0)}
    net = sequential(states["net"].params)
    (F.mse_loss(net(batch(0)["x"]), batch(0)["y"]) + 0.3 * sum(p.square().sum() for p in net.parameters())).backward()
    grads, outcome = penalised.gradient(states, batch(0), {})
    for g, p in zip(grads.values(), net.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(outcome.loss, plain.gradient(states, batch(0), {})[1].loss)


def test_gradient_flows_through_params_alone():
    """A loss that reads the same weights from `states` treats them as constants."""
    part = None

    def loss(params, states, b, noise):
        out, feats = part(params, b["x"])
        constant, _ = part(states["net"].params, b["x"])
        return Outcome(((out - constant - 1) ** 2).mean(), feats, {})

    part = Part("net", lambda blueprint: MLP(5, 3, blueprint), NetSpec(width=8), loss, optim=Adam())
    states = {"net": part.birth(0)}
    grads, _ = part.gradient(states, batch(0), {})
    net = sequential(states["net"].params)
    out = net(batch(0)["x"])
    ((out - out.detach() - 1) ** 2).mean().backward()
    for g, p in zip(grads.values(), net.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad)


def test_interventions_act_after_the_step_in_the_order_of_the_list():
    plain, changed = regression(), regression([Plus(add=1.0), Plus(times=2.0)])
    states = {"net": plain.birth(0)}
    stepped, _ = descend(plain, states, batch(0), {})
    after, _ = descend(changed, states, batch(0), {})
    for k, p in stepped["net"].params.items():
        torch.testing.assert_close(after["net"].params[k], (p + 1) * 2)
    assert equal(after["net"].optim, stepped["net"].optim)


def test_what_follows_a_step_sees_its_batch_gradient_and_outcome():
    plus = Plus()
    part = regression([plus])
    states = {"net": part.birth(0)}
    grads, outcome = part.gradient(states, batch(0), {})
    descend(part, states, batch(0), {})
    assert equal(plus.seen.grads, grads) and equal(plus.seen.batch, batch(0))
    assert torch.equal(plus.seen.outcome.loss, outcome.loss)


class Shared(nn.Module):
    """One activation at two places, and statistics that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(5, 8), nn.Linear(8, 3), nn.PReLU()
        self.body = nn.Sequential(self.first, nn.BatchNorm1d(8), self.act, self.second, self.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_a_network_is_called_as_torch_calls_it():
    net, x = Shared(), torch.randn(7, 5)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    given = {name: torch.randn_like(v) if v.is_floating_point() else v for name, v in net.state_dict().items()}
    given |= {name: given[name].abs() for name in given if "running_var" in name}
    given["body.2.weight"] = given["body.4.weight"] = given["act.weight"]
    for name in ("first", "second"):  # other names of the same modules
        place = {"first": "body.0", "second": "body.3"}[name]
        given |= {f"{place}.{leaf}": given[f"{name}.{leaf}"] for leaf in ("weight", "bias")}
    net.eval()
    out = Functional(net)(given | {"unknown": x}, (x,))
    assert torch.equal(out, functional_call(deepcopy(net), given, (x,), tie_weights=False))
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())
    with pytest.raises(RuntimeError):
        Functional(net)(given, (x[:, :2],))
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())


def test_buffers_that_a_loss_returns_are_kept():
    part = None

    def loss(params, states, b, noise):
        out, feats = part(params, b["x"])
        return Outcome(F.mse_loss(out, b["y"]), feats, {}, buffers={"count": states["net"].buffers["count"] + 1})

    part = Part("net", lambda blueprint: MLP(5, 3, blueprint), NetSpec(width=8), loss, optim=Adam())
    states = {"net": part.birth(0)._replace(buffers={"count": torch.tensor(4.0), "mean": torch.tensor(2.0)})}
    states, _ = descend(part, states, batch(0), {})
    assert states["net"].buffers == {"count": torch.tensor(5.0), "mean": torch.tensor(2.0)}


# birth


def test_a_newborn_is_its_own_birth_weights_and_its_own_copies():
    s = regression(copies=("target", "slow")).birth(3)
    assert set(s.copies) == {"target", "slow"}
    tensors = [s.params, s.birth, *s.copies.values()]
    for other in tensors[1:]:
        assert equal(s.params, other)
    assert len({p.data_ptr() for tree in tensors for p in tree.values()}) == 4 * len(s.params), "storage is shared"
    assert not any(x.any() for slot in s.optim.values() for x in slot.values())


def test_births_repeat_with_the_seed_and_leave_torchs_generator_alone():
    part = regression()
    before = torch.get_rng_state()
    assert equal(part.birth(3), part.birth(3))
    assert not equal(part.birth(3).params, part.birth(4).params)
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_draws_repeat_with_equal_counters_and_differ_otherwise():
    part = regression()
    base = part.fresh(0, "event/reset/net/params", 5, 7, 0)
    assert equal(base, part.fresh(0, "event/reset/net/params", 5, 7, 0))
    for other in [
        part.fresh(1, "event/reset/net/params", 5, 7, 0),
        part.fresh(0, "event/reset/net/target", 5, 7, 0),
        part.fresh(0, "event/reset/net/params", 6, 7, 0),
        part.fresh(0, "event/reset/net/params", 5, 8, 0),
        part.fresh(0, "event/reset/net/params", 5, 7, 1),
    ]:
        assert all(not torch.equal(base[k], other[k]) for k in base if k.endswith("weight"))


def context(part: Part, s, clock=None, seed=0, instance="reset") -> Context:
    return Context(
        part, {"net": s}, clock or Clock(steps=100), seed, instance, "cpu", lambda *which: (batch(which[0]), {})
    )


def test_fresh_draws_of_an_event_are_a_function_of_seed_name_purpose_and_time():
    part = regression()
    s = part.birth(0)
    base = context(part, s).fresh()
    assert equal(base, context(part, s).fresh("params"))
    later = [Clock(steps=100, **{unit: 1}) for unit in ("updates", "agent_steps", "tasks")]
    others = [context(part, s, clock).fresh() for clock in later]
    others += [context(part, s, seed=1).fresh(), context(part, s, instance="other").fresh()]
    others += [context(part, s).fresh("target"), s.params]
    for other in others:
        assert not torch.equal(base["head.weight"], other["head.weight"])


def test_an_event_can_ask_for_loss_features_and_gradient():
    part = regression()
    s = part.birth(0)
    step = context(part, s).step()
    grads, outcome = part.gradient({"net": s}, batch(0), {})
    assert equal(step.grads, grads) and torch.equal(step.outcome.loss, outcome.loss)


# names


@pytest.mark.parametrize(
    "where, expected",
    [
        (("all",), TRUNK + HEAD),
        (("trunk",), TRUNK),
        (("head",), HEAD),
        (("output",), HEAD),
        (("*.bias",), [TRUNK[1], TRUNK[3], HEAD[1]]),
        (("head", "trunk.layers.0.*"), TRUNK[:2] + HEAD),
        (("head.weight", "head"), HEAD),
    ],
)
def test_names_are_selected_by_section_output_or_pattern_in_the_networks_order(where, expected):
    assert regression().names(where) == expected


def test_a_section_holds_its_norms():
    part = regression(spec=NetSpec(width=8, norm="layer"))
    norms = [f"trunk.norms.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")]
    assert set(part.names(("trunk",))) == {*TRUNK, *norms}
    assert part.norm_names() == set(norms)
    assert regression().norm_names() == set()


def test_frames_have_an_encoder_and_the_rest_is_the_head_with_two_outputs():
    part = dqn().q
    every, encoder, head = part.names(), part.names(("encoder",)), part.names(("head",))
    assert encoder == [k for k in every if k.startswith("encoder.")] and encoder + head == every
    assert part.names(("output",)) == ["advantage.weight", "advantage.bias", "value.weight", "value.bias"]


@pytest.mark.parametrize("word", ["encoder", "trnk", "*.gain"])
def test_a_word_that_matches_nothing_is_one_line_that_names_it_and_what_there_is(word):
    with pytest.raises(ValueError) as error:
        regression().names(("head", word))
    line = str(error.value)
    assert "\n" not in line and f"where={word} " in line and "part net" in line
    assert all(name in line for name in ("all", "output", "head", "trunk", "trunk.layers.0.weight"))


def test_an_intervention_whose_where_matches_nothing_is_refused_before_training():
    with pytest.raises(ValueError, match="where=encoder"):
        regression([Decay(where=("encoder",))])


# on


def test_a_star_means_every_part_that_has_layers_and_a_name_means_that_part():
    star, both, one = Decay(), Decay(on=("*", "alpha")), Decay(on=("act*",))
    learner = sac([star, both, one])
    assert learner.critic.interventions == (star, both)
    assert learner.actor.interventions == (star, both, one)
    assert learner.alpha.interventions == (both,)


def test_a_word_of_on_that_matches_no_part_is_one_line_that_lists_the_parts():
    learner = sac([Decay(on=("critic", "acter"))])
    with pytest.raises(ValueError, match=r"on=acter .*critic, actor, alpha") as error:
        check_parts(learner.parts, learner.interventions)
    assert "\n" not in str(error.value)
    good = sac([Decay(on=("critic", "alpha")), Decay()])
    check_parts(good.parts, good.interventions)


def test_interventions_may_edit_the_blueprint_and_ask_for_copies_and_memory():
    @dataclass(kw_only=True)
    class Wider(Intervention):
        copies = ("slow",)

        def build(self, spec, size):
            return replace(spec, width=2 * spec.width)

        def remember(self, part, params):
            return {"start": params["head.bias"] + 1}

    wider = Wider()
    wider.name = "wider"
    part = regression([wider])
    s = part.birth(0)
    assert s.params["head.weight"].shape == (3, 16) and part.spec.width == 16
    assert part.copies == ("target", "slow") and equal(s.copies["slow"], s.params)
    assert torch.equal(s.memory["wider"]["start"], torch.ones(3))


# follow


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0, torch.tensor(0.25)])
def test_a_copy_follows_by_its_share(tau):
    part = regression(copies=("target", "slow"))
    s = part.birth(0)
    s = s._replace(params={k: p.cos() + 2 for k, p in s.params.items()})
    after = follow(part, {"net": s}, tau, {})["net"]
    for k, p in s.params.items():
        torch.testing.assert_close(after.copies["target"][k], (1 - tau) * s.copies["target"][k] + tau * p)
    assert equal(after.copies["slow"], s.copies["slow"]) and equal(after.params, s.params)


def test_a_hard_copy_and_no_copy_are_exact_and_share_no_storage():
    part = regression()
    s = trained(part)
    whole = follow(part, {"net": s}, torch.tensor(1.0), {})["net"]
    none = follow(part, {"net": s}, torch.tensor(0.0), {})["net"]
    assert equal(whole.copies["target"], s.params) and equal(none.copies["target"], s.copies["target"])
    assert all(whole.copies["target"][k].data_ptr() != p.data_ptr() for k, p in s.params.items())


def test_where_steps_are_taken_in_place_a_copy_that_is_not_due_is_not_touched():
    """A hard copy every 2,000 updates would else read and write all weights in each of them."""
    part = regression()
    part.fused, s = True, trained(part)
    s = s._replace(params={k: torch.full_like(p, torch.nan) for k, p in s.params.items()})
    target = {k: p.clone() for k, p in s.copies["target"].items()}
    for tau, alive in ((0.0, True), (1.0, False)):  # not due; due, and the member is not trained
        after = follow(part, {"net": s}, torch.tensor(tau), {"alive": torch.tensor(alive)})["net"]
        assert equal(after.copies["target"], target)
    s = s._replace(params={k: torch.ones_like(p) for k, p in s.params.items()})
    follow(part, {"net": s}, torch.tensor(1.0), {"alive": torch.tensor(True)})
    assert equal(s.copies["target"], s.params)


# replant


def new_head(s, value=7.0):
    return {k: torch.full_like(s.params[k], value) for k in HEAD}


@pytest.mark.parametrize("rule, renewed", [("keep", []), ("touched", HEAD), ("all", TRUNK + HEAD)])
def test_replanting_renews_the_optimizer_as_its_rule_says(rule, renewed):
    part = regression()
    s = trained(part)
    assert all(x.any() for slot in s.optim.values() for x in slot.values()), "nothing to forget"
    after = replant(part, s, new_head(s), optimizer=rule)
    for slot, tensors in after.optim.items():
        assert set(tensors) == set(s.optim[slot])
        for k, x in tensors.items():
            assert torch.equal(x, torch.zeros_like(x) if k in renewed else s.optim[slot][k])
            assert x.shape == s.optim[slot][k].shape


def test_replanting_renews_element_wise_step_counts_in_their_shape():
    part = regression()
    s = trained(part)
    counts = {k: (t.expand_as(s.params[k]).clone() if k == "head.weight" else t) for k, t in s.optim["t"].items()}
    s = s._replace(optim=s.optim | {"t": counts})
    after = replant(part, s, new_head(s))
    assert torch.equal(after.optim["t"]["head.weight"], torch.zeros(3, 8))


def test_replanting_changes_what_is_named_and_nothing_else():
    part = regression(copies=("target", "slow"))
    s = trained(part)
    before = clone(s)
    copies = {"target": {"head.bias": torch.full((3,), 5.0)}}
    after = replant(part, s, new_head(s), copies=copies, birth={"head.bias": torch.full((3,), 4.0)})
    assert equal(s, before), "the argument changed"
    for k in s.params:
        assert torch.equal(after.params[k], new_head(s)[k] if k in HEAD else s.params[k])
        assert torch.equal(after.birth[k], torch.full((3,), 4.0) if k == "head.bias" else s.birth[k])
        target = torch.full((3,), 5.0) if k == "head.bias" else s.copies["target"][k]
        assert torch.equal(after.copies["target"][k], target)
    assert equal(after.copies["slow"], s.copies["slow"])


def test_the_first_step_after_replanting_is_the_learning_rate_for_what_was_renewed():
    part = regression(optim=Adam(lr=0.01, eps=1e-15))
    s = trained(part, steps=30)
    s = replant(part, s, {k: s.params[k].clone() for k in HEAD})
    grads, _ = part.gradient({"net": s}, batch(99), {})
    after, _ = descend(part, {"net": s}, batch(99), {})
    for k in HEAD:
        expected = -0.01 * grads[k].sign()
        torch.testing.assert_close(after["net"].params[k] - s.params[k], expected, rtol=1e-4, atol=1e-6)


# redraw


def redrawn(s, ctx, **options):
    settings = {"keep": 0.8, "noise": 0.2, "toward": "fresh", "rules": {}, "optimizer": "keep", "renew_birth": False}
    return redraw(s, ctx, HEAD, **(settings | options))


def test_redrawing_mixes_the_named_weights_with_a_fresh_draw():
    part = regression()
    s = trained(part)
    ctx = context(part, s)
    after, phi = redrawn(s, ctx), ctx.fresh()
    for k in s.params:
        expected = 0.8 * s.params[k] + 0.2 * phi[k] if k in HEAD else s.params[k]
        torch.testing.assert_close(after.params[k], expected)
    assert equal(after.copies, s.copies) and equal(after.birth, s.birth) and equal(after.optim, s.optim)


def test_redrawing_can_go_back_towards_birth():
    part = regression()
    s = trained(part)
    after = redrawn(s, context(part, s), keep=0.0, noise=1.0, toward="birth")
    assert all(torch.equal(after.params[k], s.birth[k]) for k in HEAD)
    assert all(torch.equal(after.params[k], s.params[k]) for k in TRUNK)


@pytest.mark.parametrize("toward", ["fresh", "birth"])
@pytest.mark.parametrize("rule", ["keep", "copy", "same_draw", "own_draw"])
def test_a_slow_copy_is_redrawn_as_its_rule_says(rule, toward):
    part = regression(copies=("target", "slow"))
    s = trained(part)
    ctx = context(part, s)
    after = redrawn(s, ctx, toward=toward, rules={"target": rule, "slow": "keep"})
    phi = {"fresh": ctx.fresh(), "birth": s.birth}[toward]
    own = {"fresh": ctx.fresh("target"), "birth": s.birth}[toward]
    old = s.copies["target"]
    for k in HEAD:
        expected = {
            "keep": old[k],
            "copy": 0.8 * s.params[k] + 0.2 * phi[k],
            "same_draw": 0.8 * old[k] + 0.2 * phi[k],
            "own_draw": 0.8 * old[k] + 0.2 * own[k],
        }[rule]
        torch.testing.assert_close(after.copies["target"][k], expected)
    assert all(torch.equal(after.copies["target"][k], old[k]) for k in TRUNK)
    assert equal(after.copies["slow"], s.copies["slow"])


def test_own_draws_differ_between_copies_and_from_the_weights():
    part = regression(copies=("target", "slow"))
    s = trained(part)
    after = redrawn(s, context(part, s), keep=0.0, noise=1.0, rules={"target": "own_draw", "slow": "own_draw"})
    drawn = [after.params, after.copies["target"], after.copies["slow"]]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(drawn[a]["head.weight"], drawn[b]["head.weight"])


def test_a_full_redraw_forgets_even_weights_that_are_not_finite():
    part = regression()
    s = trained(part)
    s = s._replace(params=s.params | {k: torch.full_like(s.params[k], torch.nan) for k in HEAD})
    after = redrawn(s, context(part, s), keep=0.0, noise=1.0)
    assert all(p.isfinite().all() for p in after.params.values())


def test_birth_weights_become_the_new_draw_where_asked():
    part = regression()
    s = trained(part)
    ctx = context(part, s)
    after = redrawn(s, ctx, renew_birth=True)
    assert all(torch.equal(after.birth[k], ctx.fresh()[k]) for k in HEAD)
    assert all(torch.equal(after.birth[k], s.birth[k]) for k in TRUNK)
