"""DASH: what points along the negative gradient is kept, everything else shrinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, named, sac

from core.clock import Clock
from core.options import build
from core.rehearsal import rehearse
from core.spec import EnvSpec
from core.state import clone, member
from core.when import When
from interventions.batch_norm import BatchNorm
from interventions.dash import DASH, shrunk
from interventions.dropout import Dropout
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.l2 import L2
from interventions.layer_norm import LayerNorm
from nets import CNN
from nets.augmentation import Augmentation
from testbeds import Classifier

EVERY = When(every=1)
LEARNERS = [(dqn, "q", FRAMES), (sac, "critic", CONTROL), (classifier, "classifier", VECTOR)]


def aged(learner, seeds=(0,), updates: int = 3):
    """An engine some updates old; its events have not fired yet."""
    e = engine(learner, seeds)
    for count in range(updates):
        e.update(batch_for(learner.spec, e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def sampler(e):
    """Batch number k of an event is the made-up one number 500 + k."""

    def sample(stream: str, count: int, size: int):
        number = stream.rpartition("/")[2]
        return batch_for(e.learner.spec, e.seeds, 500 + (int(number) if number.isdigit() else 0))

    return sample


def fire(e, update: int = 3) -> list[dict]:
    return e.intervene(Clock(steps=10**9, updates=update, last={"updates": update - 1}), ("updates",), sampler(e))


def cosine(a, b) -> float:
    a, b = a.flatten().double().numpy(), b.flatten().double().numpy()
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def reference(w, follow, keep: float):
    """One vector after the other: rows, kernels, whole biases."""
    w, new = w.clone(), w.clone()
    if w.ndim == 1:
        return w * min(max(cosine(w, follow), keep), 1)
    for i in np.ndindex(*w.shape[: 1 if w.ndim == 2 else 2]):
        new[i] = w[i] * min(max(cosine(w[i], follow[i]), keep), 1)
    return new


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# the factor


def test_rows_along_the_direction_stay_across_or_against_it_shrink_and_between_take_the_cosine():
    w = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    follow = torch.tensor([[6.0, 8.0], [-4.0, 3.0], [-3.0, -4.0], [0.6, 0.8], [0.2, 1.0], [1.0, 1.0]])
    factors = torch.tensor([1.0, 0.25, 0.25, 0.6, 0.25, 1.0])
    assert torch.allclose(shrunk(w, follow, 0.25), w * factors[:, None])


def test_a_bias_shrinks_as_a_whole():
    b = torch.tensor([1.0, 1.0, 0.0])
    assert torch.allclose(shrunk(b, torch.tensor([1.0, 0.0, 0.0]), 0.25), b / 2**0.5)
    assert torch.allclose(shrunk(b, -b, 0.25), 0.25 * b)


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 6), (4, 3, 3, 2)])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3])
def test_factors_equal_those_taken_one_by_one(shape, keep):
    w, follow = drawn(*shape), drawn(*shape, seed=1)
    follow = follow + 0.8 * w  # so that some cosines are large
    assert torch.allclose(shrunk(w, follow, keep), reference(w, follow, keep), atol=1e-5)


def test_kernels_shrink_one_by_one():
    w = drawn(2, 2, 3, 3)
    follow = torch.stack([torch.stack([w[0, 0], -w[0, 1]]), torch.stack([-w[1, 0], 5 * w[1, 1]])])
    factors = torch.tensor([[1.0, 0.5], [0.5, 1.0]])[..., None, None]
    assert torch.allclose(shrunk(w, follow, 0.5), w * factors)


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 3, 2)])
def test_only_the_direction_counts_and_without_one_everything_shrinks(shape):
    w, follow = drawn(*shape), drawn(*shape, seed=1) + 0.5 * drawn(*shape)
    for scale in (1e-6, 1e6):
        assert torch.allclose(shrunk(w, scale * follow, 0.3), shrunk(w, follow, 0.3), rtol=1e-4)
    assert torch.allclose(shrunk(w, torch.zeros(shape), 0.3), 0.3 * w)
    assert torch.allclose(shrunk(w, follow, 1.0), w)
    assert torch.isfinite(shrunk(torch.zeros(shape), torch.zeros(shape), 0.3)).all()


# the direction


@pytest.mark.parametrize(("make", "part", "spec"), LEARNERS)
def test_the_direction_is_the_average_of_negative_gradients_in_order_of_arrival(make, part, spec):
    keep, alpha = 0.01, 0.4
    e = aged(make([DASH(keep=keep, alpha=alpha, batches=3, on=(part,), when=EVERY)]))
    states, net = clone(member(e.states, 0)), e.learner.parts[part]
    clock = Clock(steps=10**9, updates=3)
    ctx = e.context(net.interventions[0], net, 0, states, clock, sampler(e))
    follow = {k: torch.zeros_like(p) for k, p in states[part].params.items()}
    for number in range(3):
        for k, g in ctx.step(number).grads.items():
            follow[k] = (1 - alpha) * follow[k] - alpha * g
    fire(e)
    for k, new in member(e.states, 0)[part].params.items():
        assert torch.allclose(new, reference(states[part].params[k], follow[k], keep), atol=1e-5), k
        assert new.numel() == 1 or not torch.equal(new, states[part].params[k])  # a lone number's cosine can be 1


@pytest.mark.parametrize("chunks", [1, 3])
def test_by_chunks_the_direction_is_the_average_over_whole_chunks_in_order_of_arrival(chunks):
    keep, alpha, sizes = 0.01, 0.4, [4, 11, 6]
    e = aged(classifier([DASH(keep=keep, alpha=alpha, chunks=True, batches=7, when=EVERY)]))
    e.chunks, part, asked = chunks, e.learner.classifier, []
    s = clone(member(e.states, 0))["classifier"]

    def chunk(number: int):
        return {
            k: x.repeat(1, 2, *[1] * (x.ndim - 2))[:, : sizes[number]]
            for k, x in batch_for(VECTOR, (0,), number).items()
        }

    def sample(stream: str, count: int, size: int):
        asked.append(stream)
        return chunk(int(stream.removeprefix("chunk/")))

    follow = {k: torch.zeros_like(p) for k, p in s.params.items()}
    for number in range(chunks):
        for k, g in part.gradient({"classifier": s}, member(chunk(number), 0), {})[0].items():
            follow[k] = (1 - alpha) * follow[k] - alpha * g
    e.intervene(Clock(steps=10**9, updates=3, last={"updates": 2}), ("updates",), sample)
    assert asked == [f"chunk/{number}" for number in range(chunks)]
    for k, new in member(e.states, 0)["classifier"].params.items():
        assert torch.allclose(new, reference(s.params[k], follow[k], keep), atol=1e-5), k


def test_a_chunk_of_any_size_is_shifted_by_noise_of_its_own_size():
    augmented = Augmentation(shift=1)
    spec = EnvSpec("toy/frames", (8, 8), "uint8", num_actions=3, stack=1)
    settings = Classifier.Settings(batch_size=8, augment=augmented)
    learner = Classifier(settings, spec, CNN(width=8), None, named([DASH(chunks=True, when=EVERY)]))
    e = engine(learner)
    e.chunks = 1
    seen = {k: x.repeat(1, 3, *[1] * (x.ndim - 2))[:, :19] for k, x in batch_for(spec, (0,)).items()}
    assert e.intervene(Clock(steps=10**9, updates=1), ("updates",), lambda stream, count, size: seen)[0]["touched"]


def test_chunks_are_refused_where_data_do_not_come_so():
    for learner, spec in (
        (dqn([DASH(chunks=True, when=EVERY)], VECTOR), VECTOR),
        (classifier([DASH(chunks=True)]), VECTOR),
    ):
        e = engine(learner)
        with pytest.raises(ValueError, match="interventions.dash.chunks=true: no data arrive in chunks here; expected"):
            rehearse(e, batch_for(spec, (0,)))
        e.chunks = 2
        rehearse(e, batch_for(spec, (0,)))


def one_step(dash: DASH, grads, params):
    """The new parameters of a classifier whose gradients are given, batch by batch."""
    net = classifier([dash]).classifier
    s = net.birth(0)
    s = s._replace(params=s.params | params)
    asked = []

    class Ctx:
        def step(self, number, chunk=False):
            assert not chunk
            asked.append(number)
            given = {k: torch.zeros_like(p) for k, p in s.params.items()} | grads[number]
            return type("Step", (), {"grads": given})

    new = dash.event(net, s, Ctx())
    assert asked == list(range(dash.batches))
    return s, new


def test_weights_against_the_gradient_stay_and_weights_along_it_shrink():
    w = drawn(3, 16)
    gradient = torch.stack([-2 * w[0], 3 * w[1], -0.5 * w[2]])
    _, new = one_step(DASH(batches=1), [{"head.weight": gradient}], {"head.weight": w})
    assert torch.allclose(new.params["head.weight"], w * torch.tensor([1.0, 0.3, 1.0])[:, None], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_alpha_is_the_share_of_the_newest_batch(alpha):
    w = torch.zeros(3, 16)
    w[:, 0] = 1.0
    first, second = torch.zeros(3, 16), torch.zeros(3, 16)
    first[:, 0], second[:, 1] = -1.0, -1.0
    dash = DASH(keep=0.0, alpha=alpha, batches=2)
    _, new = one_step(dash, [{"head.weight": first}, {"head.weight": second}], {"head.weight": w})
    along, across = (1 - alpha) * alpha, alpha
    assert torch.allclose(new.params["head.weight"], w * along / (along**2 + across**2) ** 0.5)


def test_where_nothing_would_shrink_nothing_is_selected():
    s, new = one_step(DASH(keep=1.0, batches=1), [{}], {})
    assert new is s
    s, new = one_step(DASH(where=("*.bias",), batches=1), [{}], {})  # newborn biases are zero
    assert new is s
    s, new = one_step(DASH(where=("*.bias",), batches=1), [{}], {"head.bias": torch.ones(3)})
    assert new is not s and torch.allclose(new.params["head.bias"], torch.full((3,), 0.3))


def test_penalties_belong_to_the_gradient_and_masks_do_not():
    def gradient(interventions):
        e = engine(classifier([*interventions, DASH(batches=1)]))
        part = e.learner.classifier
        ctx = e.context(part.interventions[-1], part, 0, member(e.states, 0), Clock(steps=10), sampler(e))
        return ctx.step().grads["head.weight"], e.states["classifier"].params["head.weight"][0]

    (plain, w), (decayed, _), (masked, _) = (gradient(i) for i in ([], [L2(weight=0.5)], [Dropout(rate=0.9)]))
    assert torch.allclose(decayed - plain, 0.5 * w, atol=1e-6) and torch.allclose(masked, plain, atol=1e-6)


# what lies around it


@pytest.mark.parametrize("norm", [LayerNorm, BatchNorm])
def test_normalisation_is_left_alone(norm):
    e = aged(dqn([norm(), DASH(when=EVERY)]))
    before = clone(e.states["q"])
    fire(e)
    norms = e.learner.q.norm_names()
    assert len(norms) == 8 and equal(before.buffers, e.states["q"].buffers)
    for k, p in e.states["q"].params.items():
        assert p[0].numel() == 1 or torch.equal(p, before.params[k]) == (k in norms)


def test_gains_and_shifts_alone_are_refused():
    with pytest.raises(ValueError, match="dash.where=.*selects only gains and shifts of part q; expected a weight or"):
        engine(dqn([LayerNorm(), DASH(where=("trunk.norms.*",))], VECTOR))


@pytest.mark.parametrize("optimizer", ["keep", "touched", "all"])
@pytest.mark.parametrize("copied", ["none", "target", "slow"])
def test_moments_and_slow_copies_follow_their_rules(optimizer, copied):
    rules = {copied: "copy"} if copied != "none" else {}
    dash = DASH(where=("head",), optimizer=optimizer, when=EVERY, **rules)
    e = aged(dqn([HareAndTortoise(momentum=0.9), dash], target="ema", tau=0.1))
    before, head = clone(e.states["q"]), e.learner.q.names(("head",))
    fire(e)
    after = e.states["q"]
    assert equal(before.birth, after.birth)
    assert {k for k, p in after.params.items() if not torch.equal(p, before.params[k])} == set(head)
    for role, name in (("target", "target"), ("tortoise", "slow")):
        for k, value in after.copies[role].items():
            assert torch.equal(value, after.params[k] if copied == name and k in head else before.copies[role][k])
    renewed = {"keep": [], "touched": head, "all": list(after.params)}[optimizer]
    for slot, values in after.optim.items():
        for k, value in values.items():
            assert torch.equal(value, torch.zeros_like(value) if k in renewed else before.optim[slot][k])


def test_seeds_look_at_data_of_their_own_and_each_as_it_would_alone():
    both, alone = (aged(classifier([DASH(keep=0.01, when=EVERY)]), seeds) for seeds in ((0, 1), (1,)))
    for leaf in both.states["classifier"].params.values():
        leaf[0] = leaf[1]
    assert len(fire(both)) == 2 and fire(alone)
    w, single = (e.states["classifier"].params["trunk.layers.0.weight"] for e in (both, alone))
    assert not torch.equal(w[0], w[1]) and torch.allclose(w[1], single[0], atol=1e-6)


def test_a_named_temperature_does_not_end_the_run():
    e = aged(sac([DASH(on=("*", "alpha"), when=EVERY)]))
    assert {row["part"] for row in fire(e)} == {"critic", "actor", "alpha"}


def test_defaults_and_refusals():
    default = DASH()
    assert (default.keep, default.alpha, default.batches, default.optimizer) == (0.3, 0.3, 8, "keep")
    assert (default.target, default.slow, default.where) == ("keep", "keep", ("all",))
    for values in ({"keep": 1.1}, {"alpha": 0.0}, {"alpha": 1.1}, {"batches": 0}, {"target": "same_draw"}):
        with pytest.raises(ValueError, match=next(iter(values))):
            build(DASH, values)
