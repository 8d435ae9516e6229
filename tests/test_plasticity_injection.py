"""Plasticity injection: outputs stay, a newborn head learns, and three heads pass the gradient on."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, run, sac

from core.clock import Clock
from core.options import build
from core.state import clone, member, weights
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.l2_init import L2Init
from interventions.layer_norm import LayerNorm
from interventions.plasticity_injection import PlasticityInjection
from nets import Vectors

EVERY = When(every=1)
HEAD = [f"{layer}.{what}" for layer in ("trunk.layers.0", "advantage", "value") for what in ("weight", "bias")]
LEARNERS = [(dqn, "q", FRAMES), (sac, "critic", CONTROL), (sac, "actor", CONTROL), (classifier, "classifier", VECTOR)]


def inject(e, update: int = 3) -> list[dict]:
    def no_sample(stream, count, size):
        raise AssertionError("an injection looks at no data")

    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), no_sample)


def train(e, updates: int = 3, start: int = 0):
    for count in range(start, start + updates):
        e.update(batch_for(e.learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def aged(learner, seeds=(0,)):
    """An engine some updates old, nothing injected yet."""
    return train(engine(learner, seeds))


def convolutional(seeds=(0,), **settings):
    """Its target is an old average."""
    return aged(dqn([PlasticityInjection(when=EVERY, **settings)], target="ema", tau=0.1, learning_rate=1e-3), seeds)


def slot(s, i: int, role: str, names=HEAD):
    return {k: s.buffers[f"plasticity_injection/{i}/{role}/{k}"] for k in names}


def outputs(e, part: str, spec, role: str = "params"):
    net, s, batch = e.learner.parts[part], member(e.states, 0)[part], member(batch_for(spec, (0,), 77), 0)
    return net(weights(s, role), *net.inputs(batch))[0]


def head(z, p):
    """The dueling head on features of the encoder, by hand."""
    h = F.relu(F.linear(z, p["trunk.layers.0.weight"], p["trunk.layers.0.bias"]))
    advantage = F.linear(h, p["advantage.weight"], p["advantage.bias"])
    return advantage - advantage.mean(-1, keepdim=True) + F.linear(h, p["value.weight"], p["value.bias"])


# what stays


@pytest.mark.parametrize(("make", "part", "spec"), LEARNERS)
def test_outputs_of_the_network_and_of_its_slow_copies_stay(make, part, spec):
    e = aged(make([PlasticityInjection(on=(part,), when=EVERY)]))
    before = clone(member(e.states, 0))[part]
    roles = ["params", *before.copies]
    was = [outputs(e, part, spec, role) for role in roles]
    assert [row["part"] for row in inject(e)] == [part]
    after = member(e.states, 0)[part]
    for role, old in zip(roles, was, strict=True):
        assert torch.allclose(outputs(e, part, spec, role), old, atol=1e-5), role
    chosen = e.learner.parts[part].names(("head",))
    assert all(not torch.equal(after.params[k], before.params[k]) for k in chosen if k.endswith("weight"))
    assert all(torch.equal(after.params[k], p) for k, p in before.params.items() if k not in chosen)


def test_before_an_injection_the_network_is_the_one_without_it():
    e, plain = convolutional(), aged(dqn(target="ema", tau=0.1, learning_rate=1e-3))
    assert equal(e.states["q"].params, plain.states["q"].params)
    assert torch.equal(outputs(e, "q", FRAMES), outputs(plain, "q", FRAMES))


def test_the_network_freezes_its_head_and_every_copy_its_own_beside_one_newborn():
    e = convolutional()
    old = clone(member(e.states, 0))["q"]
    inject(e)
    new = member(e.states, 0)["q"]
    assert not equal(old.params, {k: old.copies["target"][k] for k in old.params})
    newborn = {k: new.params[k] for k in HEAD}
    assert equal(slot(new, 0, "frozen"), {k: old.params[k] for k in HEAD})
    assert equal(slot(new, 0, "newborn"), newborn) and float(new.buffers["plasticity_injection/0/done"]) == 1
    target = new.copies["target"]
    for k in HEAD:
        assert torch.equal(target[f"plasticity_injection/0/frozen/{k}"], old.copies["target"][k])
        assert torch.equal(target[f"plasticity_injection/0/newborn/{k}"], newborn[k])
        assert torch.equal(target[k], newborn[k])
    assert float(target["plasticity_injection/0/done"]) == 1
    assert all(torch.equal(target[k], old.copies["target"][k]) for k in old.params if k.startswith("encoder"))


def test_the_newborn_head_is_a_draw_of_the_initialiser():
    e = convolutional()
    inject(e)
    s = member(e.states, 0)["q"]
    for k in HEAD:
        if k.endswith("bias"):
            assert not torch.count_nonzero(s.params[k])
        else:
            bound = (6 / sum(s.params[k].shape)) ** 0.5  # Glorot's
            assert 0.8 * bound < s.params[k].abs().max() <= bound


def test_the_number_of_trained_numbers_is_what_it_was():
    with_, without = dqn([PlasticityInjection(injections=2)]).q, dqn().q
    assert with_.names() == without.names()
    assert set(with_.birth(0).optim["m"]) == set(without.names())


# what learns


def test_loss_and_gradient_equal_those_of_a_network_of_three_heads_written_by_hand():
    e = convolutional()
    inject(e)
    train(e, 2, start=3)
    s, part = member(e.states, 0)["q"], e.learner.q
    batch = member(batch_for(FRAMES, (0,), 5), 0)
    coefficients = torch.linspace(-1, 1, 3)

    def by_hand(params):
        encoder = {k.removeprefix("encoder."): p for k, p in params.items() if k.startswith("encoder")}
        z = torch.func.functional_call(part.net.encoder, encoder, (batch["obs"],))[0]
        return head(z, params) + head(z, slot(s, 0, "frozen")) - head(z, slot(s, 0, "newborn"))

    def ours(params):
        return part(params | s.buffers, batch["obs"])[0][..., 0]

    assert torch.allclose(ours(s.params), by_hand(s.params), atol=1e-5)
    mine, theirs = (torch.func.grad(lambda p, f=f: (coefficients * f(p)).sum())(s.params) for f in (ours, by_hand))
    for k in mine:
        assert torch.allclose(mine[k], theirs[k], atol=1e-4), k
    alone = torch.func.grad(lambda p: (coefficients * part(p | born(s), batch["obs"])[0][..., 0]).sum())(s.params)
    assert not torch.allclose(mine["encoder.convs.0.weight"], alone["encoder.convs.0.weight"], atol=1e-3)


def born(s):
    """Buffers as if nothing had been injected."""
    return s.buffers | {"plasticity_injection/0/done": torch.zeros(())}


def test_frozen_heads_stay_while_the_newborn_one_and_the_encoder_learn():
    e = convolutional()
    inject(e)
    injected = clone(member(e.states, 0))["q"]
    train(e, 4, start=3)
    now = member(e.states, 0)["q"]
    assert equal(now.buffers, injected.buffers)
    assert all(not torch.equal(now.params[k], injected.params[k]) for k in now.params)
    frozen = "plasticity_injection/0/frozen/advantage.weight"  # a copy's own frozen head follows, as its weights do
    target, old = now.copies["target"][frozen], injected.copies["target"][frozen]
    assert torch.allclose(target, old.lerp(now.buffers[frozen], 1 - 0.9**4), atol=1e-6)
    assert torch.equal(
        now.copies["target"]["plasticity_injection/0/newborn/value.bias"],
        now.buffers["plasticity_injection/0/newborn/value.bias"],
    )


# settings


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
def test_moments_are_kept_or_renewed_by_rule(optimizer):
    e = convolutional(optimizer=optimizer)
    before = clone(member(e.states, 0))["q"].optim
    inject(e)
    renewed = {"keep": [], "touched": HEAD, "all": list(before["m"])}[optimizer]
    for name, values in member(e.states, 0)["q"].optim.items():
        for k, value in values.items():
            assert torch.count_nonzero(before[name][k])
            assert torch.equal(value, torch.zeros_like(value) if k in renewed else before[name][k])


@pytest.mark.parametrize("renew", [True, False])
def test_birth_weights_of_the_head_are_renewed_or_not(renew):
    e = convolutional(renew_birth=renew)
    before = clone(member(e.states, 0))["q"]
    inject(e)
    after = member(e.states, 0)["q"]
    for k, birth in after.birth.items():
        assert torch.equal(birth, after.params[k] if renew and k in HEAD else before.birth[k])


def test_where_says_what_the_head_is():
    e = aged(dqn([PlasticityInjection(where=("output",), when=EVERY)], VECTOR))
    old, was = clone(member(e.states, 0))["q"], outputs(e, "q", VECTOR)
    inject(e)
    new = member(e.states, 0)["q"]
    assert {k for k in new.params if not torch.equal(new.params[k], old.params[k])} == {*HEAD[2:]}
    assert {k.split("/")[-1] for k in new.buffers} == {"done", *HEAD[2:]}
    assert torch.allclose(outputs(e, "q", VECTOR), was, atol=1e-5)


def test_the_control_birth_gives_the_head_its_first_weights():
    e = aged(dqn([PlasticityInjection(control="birth", renew_birth=False, when=EVERY)]))
    inject(e)
    s = member(e.states, 0)["q"]
    assert all(torch.equal(s.params[k], s.birth[k]) for k in HEAD)


def test_defaults_and_refusals():
    default = PlasticityInjection()
    assert (default.where, default.injections, default.optimizer, default.renew_birth) == (("head",), 1, "keep", True)
    with pytest.raises(ValueError, match="injections"):
        build(PlasticityInjection, {"injections": 0})
    with pytest.raises(ValueError, match="where=encoder matches no parameter of part q"):
        dqn([PlasticityInjection(where=("encoder",))], VECTOR)


# one after the other


def test_a_second_injection_nests_and_a_third_selects_nothing():
    e = convolutional(injections=2)
    inject(e, 3)
    train(e, 2, start=3)
    first, was = clone(member(e.states, 0))["q"], [outputs(e, "q", FRAMES, role) for role in ("params", "target")]
    inject(e, 5)
    second = clone(member(e.states, 0))["q"]
    for role, old in zip(("params", "target"), was, strict=True):
        assert torch.allclose(outputs(e, "q", FRAMES, role), old, atol=1e-5)
    assert equal(slot(second, 0, "frozen"), slot(first, 0, "frozen"))
    assert equal(slot(second, 0, "newborn"), slot(first, 0, "newborn"))
    assert equal(slot(second, 1, "frozen"), {k: first.params[k] for k in HEAD})  # the first newborn one, trained since
    assert equal(slot(second, 1, "newborn"), {k: second.params[k] for k in HEAD})
    assert not torch.equal(second.params["value.weight"], slot(first, 0, "newborn")["value.weight"])
    train(e, 1, start=5)
    s, obs = member(e.states, 0)["q"], member(batch_for(FRAMES, (0,), 77), 0)["obs"]
    encoder = {k.removeprefix("encoder."): p for k, p in s.params.items() if k.startswith("encoder")}
    z = torch.func.functional_call(e.learner.q.net.encoder, encoder, (obs,))[0]
    heads = [s.params] + [slot(s, i, role) for i in range(2) for role in ("frozen", "newborn")]
    five = sum(sign * head(z, p) for sign, p in zip((1, 1, -1, 1, -1), heads, strict=True))
    assert torch.allclose(outputs(e, "q", FRAMES)[..., 0], five, atol=1e-5)
    before = clone(e.states)
    rows = inject(e, 6)
    assert equal(before, e.states) and [row["touched"] for row in rows] == [0]
    (intervention,), part = e.learner.interventions, e.learner.q
    assert intervention.event(part, s, None) is s


def test_seeds_get_heads_of_their_own_and_each_as_it_would_alone():
    both, alone = convolutional((0, 1)), convolutional((1,))
    inject(both)
    inject(alone)
    w, single = (e.states["q"].params["trunk.layers.0.weight"] for e in (both, alone))
    assert not torch.equal(w[0], w[1]) and torch.equal(w[1], single[0])


def test_penalties_and_features_are_of_the_head_that_learns():
    e = aged(dqn([PlasticityInjection(when=EVERY), L2Init(weight=1.0)], VECTOR, net=Vectors(width=16)))
    inject(e)
    s, part = member(e.states, 0)["q"], e.learner.q
    penalty = part.interventions[1].penalty(part, s.params, s, None)
    apart = sum(float((s.params[k] - s.birth[k]).square().sum()) for k in s.params if k not in HEAD[2:])
    assert float(penalty) == pytest.approx(0.5 * apart) != 0  # the newborn head is at its birth
    obs = member(batch_for(VECTOR, (0,)), 0)["obs"]
    feats = part(s.params | s.buffers, obs)[1]
    assert torch.equal(feats["trunk.h1"], part(s.params | born(s), obs)[1]["trunk.h1"])


def test_a_run_resumed_after_an_injection_goes_on_as_it_would_have():
    def new():
        return engine(dqn([PlasticityInjection(injections=2, when=When(every=2))], VECTOR, target="ema"), (0, 1))

    whole, first, second = new(), new(), new()
    run(whole, 7)
    clock, file = run(first, 3), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    run(second, 4, clock)
    done = [whole.states["q"].buffers[f"plasticity_injection/{i}/done"].tolist() for i in range(2)]
    assert equal(whole.states, second.states) and done == [[1, 1], [1, 1]]


def test_a_head_with_batch_normalisation_is_refused_at_birth_and_one_without_is_not():
    for where in (("head",), ("trunk.*",)):
        with pytest.raises(ValueError, match=r"plasticity_injection.where=\[.*batch normalisation in part q"):
            engine(dqn([BatchNorm(), PlasticityInjection(where=where)]))
    engine(dqn([BatchNorm(), PlasticityInjection(where=("output",))]))
    engine(dqn([LayerNorm(), PlasticityInjection()]))
