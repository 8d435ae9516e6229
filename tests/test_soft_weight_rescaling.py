"""Soft weight rescaling: norms return towards birth, and the function is multiplied by one number, or kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from learners import CONTROL, FRAMES, VECTOR, batch_for, classifier, dqn, engine, equal, largest_difference, run, sac

from agents import DrQ
from core.blueprint import Layer
from core.options import build
from core.spec import EnvSpec
from core.state import State, member, weights
from core.when import When
from interventions.normalize_and_project import NormalizeAndProject
from interventions.reset import Reset
from interventions.soft_weight_rescaling import SoftWeightRescaling
from nets import Bro, Nature, ResNet18, Scalar, Vectors
from nets import DrQ as DrQNet

# A chain on paper. Norms now and at birth, and the factors they give with rate 0.5, for outputs 0.25: these are one
# layer of norm sqrt(1 + 4) now and sqrt(25 + 1) at birth.
NOW = {"l1": 4.0, "n1": 1.0, "l2": 5.0, "n2": 1.0, "out": 1.0, "other": 2.0}
BIRTH = {"l1": 2.0, "n1": 3.0, "l2": 1.0, "n2": 2.0, "out": 5.0, "other": 1.0}
HEADS = 1 - 0.25 * (1 - (26 / 5) ** 0.5)
FACTORS = {"l1": 0.75, "n1": 2.0, "l2": 0.6, "n2": 1.5, "out": HEADS, "other": HEADS}
LAYERS = {
    "l1": Layer("l1", "linear", "trunk", feats="h1", norm="n1"),
    "n1": Layer("n1", "norm", "trunk"),
    "l2": Layer("l2", "linear", "trunk", feats="h2", norm="n2"),
    "n2": Layer("n2", "norm", "trunk"),
    "out": Layer("out", "linear", "head", output=True),
    "other": Layer("other", "linear", "head", output=True),
}
ALL = tuple(LAYERS)
PLAIN = ("l1", "l2", "out", "other")


def rescaled(chain=ALL, without: tuple[str, ...] = (), now=NOW, layers=LAYERS, **options) -> dict[str, float]:
    """By what each tensor of the chain is multiplied, running statistics included."""
    keys = [f"{name}.{kind}" for name in chain for kind in ("weight", "bias")]
    params = {k: torch.tensor([0.6, -0.8]) * now[k.split(".")[0]] if "weight" in k else torch.ones(3) for k in keys}
    birth = {k: torch.tensor([BIRTH[k.split(".")[0]], 0.0]) for k in keys}
    buffers = {f"{n}.running_{k}": torch.full((2,), 7.0) for n in ("n1", "n2") if n in chain for k in ("mean", "var")}
    s = State(params=params, birth=birth, copies={}, optim={}, buffers=buffers, memory={})
    names = [k for k in keys if k not in without and k.split(".")[0] not in without]
    part = SimpleNamespace(chains=(tuple(layers[name] for name in chain),), names=lambda where: names)
    rule = SoftWeightRescaling(**{"rate": 0.5, "output_rate": 0.25} | options)
    new = rule.after_step(part, s, None)
    assert set(new.params) == set(params) and set(new.buffers) == set(buffers)
    assert new.birth is birth and new.optim == {} and new.copies == {}
    old = params | buffers
    return {k: float((x / old[k]).mean()) for k, x in (new.params | new.buffers).items()}


def biases(factors: dict[str, float]) -> list[float]:
    return [factor for k, factor in factors.items() if k.endswith("bias")]


@pytest.mark.parametrize("rule", ["exact", "paper"])
def test_every_weight_is_multiplied_by_the_factor_that_averages_its_norm_towards_birth(rule):
    found = rescaled(biases=rule)
    assert [found[f"{name}.weight"] for name in ALL] == pytest.approx(list(FACTORS.values()))


def test_exact_biases_carry_the_product_of_factors_since_the_last_normalisation():
    assert biases(rescaled()) == pytest.approx([0.75, 2.0, 2.0 * 0.6, 1.5, 1.5 * HEADS, 1.5 * HEADS])


def test_biases_as_printed_forget_before_the_final_normalisation_and_carry_the_factor_before_it():
    found = biases(rescaled(biases="paper"))
    assert found == pytest.approx([0.75, 2.0, 0.6, 0.6 * 1.5, 0.6 * 1.5 * HEADS, 0.6 * 1.5 * HEADS])


def test_without_normalisation_both_rules_carry_the_product_of_all_factors():
    for rule in ("exact", "paper"):
        found = biases(rescaled(PLAIN, biases=rule))
        assert found == pytest.approx([0.75, 0.75 * 0.6, 0.75 * 0.6 * HEADS, 0.75 * 0.6 * HEADS])


@pytest.mark.parametrize("rule, into_n2", [("exact", 2.0 * 0.6), ("paper", 0.6)])
def test_running_means_are_scaled_like_their_inputs_and_variances_by_the_square(rule, into_n2):
    found = rescaled(biases=rule)
    statistics = [found[f"{name}.running_{k}"] for name in ("n1", "n2") for k in ("mean", "var")]
    assert statistics == pytest.approx([0.75, 0.75**2, into_n2, into_n2**2])


@pytest.mark.parametrize("rule, scale", [("exact", 1.5), ("paper", 0.6 * 1.5)])
def test_keep_output_divides_every_output_layer_by_what_has_accumulated_and_leaves_its_bias(rule, scale):
    found, usual = rescaled(biases=rule, keep_output=True), rescaled(biases=rule)
    for name in ("out", "other"):
        assert (found[f"{name}.weight"], found[f"{name}.bias"]) == (pytest.approx(1 / scale), 1.0)
    hidden = [k for k in found if not k.startswith(("out", "other"))]
    assert [found[k] for k in hidden] == [usual[k] for k in hidden]


def test_layers_outside_where_have_factor_one_and_hand_the_scale_on():
    found = rescaled(PLAIN, without=("l2",))
    assert (found["l2.weight"], found["l2.bias"]) == (1, 1)
    assert (found["l1.weight"], found["out.weight"], found["out.bias"]) == pytest.approx((0.75, HEADS, 0.75 * HEADS))
    found = rescaled(PLAIN, without=("l1.bias",))
    assert (found["l1.weight"], found["l1.bias"], found["l2.bias"]) == pytest.approx((0.75, 1, 0.75 * 0.6))
    for head, other, factor in (("out", "other", 2.0), ("other", "out", 0.875)):  # what is left is a layer of its own
        found = rescaled(PLAIN, without=(other,))
        assert (found[f"{head}.weight"], found[f"{other}.weight"]) == pytest.approx((factor, 1))
    found = rescaled(PLAIN, without=("l1", "out"), keep_output=True)
    assert (found["out.weight"], found["other.weight"]) == pytest.approx((1, 1 / 0.6))


def test_a_normalisation_outside_where_erases_the_scale_and_statistics_before_layers_outside_stay():
    found = rescaled(without=("n1", "l2"))
    assert [found[f"{k}.running_mean"] for k in ("n1", "n2")] == pytest.approx([0.75, 1])
    assert biases(found)[:4] == pytest.approx([0.75, 1, 1, 1.5])


def test_gain_and_shift_behind_a_layer_without_units_of_its_own_stay_and_the_scale_begins_anew():
    mute = {k: replace(layer, feats="") if k == "l2" else layer for k, layer in LAYERS.items()}
    for keep_output in (False, True):
        found = rescaled(layers=mute, keep_output=keep_output)
        assert (found["n2.weight"], found["n2.bias"]) == (1, 1)
        assert (found["l2.weight"], found["l2.bias"], found["n2.running_mean"]) == pytest.approx((0.6, 1.2, 1.2))
        head = 1.0 if keep_output else HEADS
        assert (found["out.weight"], found["other.bias"]) == pytest.approx((head, head))


def test_a_tensor_of_norm_zero_is_skipped():
    found = rescaled(PLAIN, now=NOW | {"l2": 0.0})
    assert biases(found) == pytest.approx([0.75, 0.75, 0.75 * HEADS, 0.75 * HEADS])
    state = State({"a.weight": torch.zeros(2), "a.bias": torch.ones(2)}, {"a.weight": torch.ones(2)}, {}, {}, {}, {})
    part = SimpleNamespace(chains=((Layer("a", "linear", "head", output=True),),), names=lambda where: ["a.weight"])
    new = SoftWeightRescaling(rate=1.0, output_rate=1.0).after_step(part, state, None)
    assert torch.equal(new.params["a.weight"], torch.zeros(2))


# on networks

NORMS = {"no norm": ("none", 3), "one layer norm": ("layer", 1), "three layer norms": ("layer", 3)}


def disturbed(learner, seed: int = 0, precise: bool = True):
    """A part with every number moved away from birth, biases, gains and running statistics included."""
    part = next(iter(learner.parts.values()))
    s, g = part.birth(seed, "cpu"), torch.Generator().manual_seed(seed + 1)

    def moved(tensors, positive=False):
        drawn = {k: 0.3 * torch.randn(p.shape, generator=g) for k, p in tensors.items()}
        new = {k: p * (1.5 + drawn[k].mean()) + (drawn[k].abs() if positive else drawn[k]) for k, p in tensors.items()}
        return {k: p.double() if precise else p for k, p in new.items()}

    birth = {k: p.double() for k, p in s.birth.items()} if precise else s.birth
    means, variances = ({k: x for k, x in s.buffers.items() if k.endswith(end)} for end in ("mean", "var"))
    counted = moved(means) | moved(variances, positive=True)
    return part, s._replace(params=moved(s.params), birth=birth, buffers=s.buffers | counted)


def outputs(part, s):
    x = torch.randn(64, *VECTOR.obs_shape, generator=torch.Generator().manual_seed(9)).double()
    return part(weights(s), x)[0]


def after_last_norm(part, before, after) -> float:
    """The product of the norms' ratios from the last normalisation to the output."""
    layers = part.chains[0]
    last = max((i for i, layer in enumerate(layers) if layer.kind == "norm"), default=0)
    names = [f"{layer.name}.weight" for layer in layers[last:]]
    ratios = torch.stack([after.params[k].norm() / before.params[k].norm() for k in names])
    return float(ratios.prod())


@pytest.mark.parametrize("norm, depth", NORMS.values(), ids=NORMS)
def test_exactly_one_positive_number_multiplies_the_function_and_every_decision_stays(norm, depth):
    part, s = disturbed(classifier(net=Vectors(width=16, depth=depth, norm=norm)))
    new = SoftWeightRescaling(rate=0.3, output_rate=0.2).after_step(part, s, None)
    scale = after_last_norm(part, s, new)
    old_out, new_out = outputs(part, s), outputs(part, new)
    assert scale > 0 and abs(scale - 1) > 0.05
    assert (new_out - scale * old_out).abs().max() < 1e-5 * old_out.abs().max()
    assert torch.equal(new_out.argmax(-1), old_out.argmax(-1))


@pytest.mark.parametrize("norm, depth", NORMS.values(), ids=NORMS)
def test_as_printed_the_function_is_proportional_only_without_normalisation(norm, depth):
    part, s = disturbed(classifier(net=Vectors(width=16, depth=depth, norm=norm)))
    new = SoftWeightRescaling(rate=0.3, output_rate=0.2, biases="paper").after_step(part, s, None)
    old_out, new_out = outputs(part, s), outputs(part, new)
    best = (new_out * old_out).sum() / old_out.square().sum()
    deviation = (new_out - best * old_out).abs().max() / old_out.abs().max()
    assert deviation < 1e-9 if norm == "none" else deviation > 1e-2


def test_in_evaluation_mode_batch_norm_sees_the_inputs_it_has_statistics_of():
    part, s = disturbed(classifier(net=Vectors(width=16, depth=3, norm="batch")))
    new = SoftWeightRescaling(rate=0.5, output_rate=0.2).after_step(part, s, None)
    old_out, scale = outputs(part, s), after_last_norm(part, s, new)
    assert (outputs(part, new) - scale * old_out).abs().max() < 1e-3 * old_out.abs().max()
    stale = outputs(part, new._replace(buffers=s.buffers))
    assert (stale - scale * old_out).abs().max() > 0.1 * old_out.abs().max()


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_keep_output_keeps_the_function_of_a_dueling_convolutional_network(norm):
    for axes in ("image", "channel"):
        learner = dqn(net=Nature(width=16, padding="valid", norm=norm, norm_axes=axes))
        part, s = disturbed(learner, precise=False)
        s = s._replace(params={k: p.float() for k, p in s.params.items()})
        seen = batch_for(FRAMES, (0,))["obs"][0]
        old = part(weights(s), seen)[0]
        kept = SoftWeightRescaling(rate=0.3, output_rate=1.0, keep_output=True).after_step(part, s, None)
        free = SoftWeightRescaling(rate=0.3, output_rate=1.0).after_step(part, s, None)
        assert largest_difference(part(weights(kept), seen)[0], old) < 1e-3
        assert largest_difference(part(weights(free), seen)[0], old) > 1e-2


BEYOND_CHAINS = {  # networks, and the network's answer to what it sees
    "dueling": lambda: dqn(spec=VECTOR, net=Vectors(width=16)).q,
    "dueling, three layer norms": lambda: dqn(spec=VECTOR, net=Vectors(width=16, depth=3, norm="layer")).q,
    "resnet": lambda: dqn(net=ResNet18(width=64, depth=1, units=1 / 4, norm="layer")).q,
    "resnet, running statistics": lambda: dqn(net=ResNet18(width=64, depth=1, units=1 / 4)).q,
    "bro": lambda: dqn(spec=VECTOR, net=Bro(width=16)).q,
    "critics from pixels": lambda: drq().critic,
    "actor from pixels": lambda: drq().actor,
}


def drq():
    spec = EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3)
    net = DrQNet(width=16, channels=(4, 8), strides=(2, 2))
    return DrQ(DrQ.Settings(batch_size=8), spec, net, Scalar("mse"))


@pytest.mark.parametrize("make", BEYOND_CHAINS.values(), ids=BEYOND_CHAINS)
def test_one_number_multiplies_networks_of_several_heads_of_residual_streams_and_behind_a_tanh(make):
    part = make()
    _, s = disturbed(SimpleNamespace(parts={"it": part}), precise=False)
    g = torch.Generator().manual_seed(3)
    s = s._replace(params={k: p.float() for k, p in s.params.items()})
    seen = [torch.randn(32, 5, generator=g)]
    if any(layer.kind == "conv" for layer in part.layers) or part.name == "actor":
        shape = (3, 24, 24) if part.name != "q" else FRAMES.seen_shape
        seen = [torch.randint(0, 256, (32, *shape), generator=g, dtype=torch.uint8)]
    seen += [torch.rand(32, 2, generator=g)] * (part.name == "critic")
    old = part(weights(s), *seen)[0]
    kept = SoftWeightRescaling(rate=0.3, output_rate=0.3, keep_output=True).after_step(part, s, None)
    assert largest_difference(part(weights(kept), *seen)[0], old) < 2e-3
    free = SoftWeightRescaling(rate=0.3, output_rate=0.3).after_step(part, s, None)
    now = part(weights(free), *seen)[0]
    networks = zip(old, now, strict=True) if part.name == "critic" else [(old, now)]  # two critics are two networks
    for before, after in networks:
        scale = (before * after).sum() / before.square().sum()
        assert abs(float(scale) - 1) > 0.01 and largest_difference(after, scale * before) < 2e-3
        assert before.std() > 1e-3


def test_with_hidden_layers_of_their_own_value_and_advantage_are_kept_or_scaled_by_a_number_each():
    part, s = disturbed(dqn(spec=VECTOR, net=Vectors(width=16), streams="separate"), precise=False)
    s, seen = s._replace(params={k: p.float() for k, p in s.params.items()}), torch.linspace(-1, 1, 40).reshape(8, 5)
    kept, free = (
        SoftWeightRescaling(rate=0.3, output_rate=0.3, keep_output=k).after_step(part, s, None) for k in (1, 0)
    )
    old, same, now = (part(weights(x), seen)[0] for x in (s, kept, free))
    assert largest_difference(same, old) < 1e-4
    for what in (lambda q: q.mean(1), lambda q: q - q.mean(1, keepdim=True)):  # value, advantage
        ratios = what(now) / what(old)
        assert (ratios / ratios.median() - 1).abs().max() < 1e-2
    assert (now / old).std() > 1e-3


def test_on_a_plain_chain_every_factor_is_the_published_one_bit_by_bit():
    part, s = disturbed(classifier(net=Vectors(width=16, norm="layer")), precise=False)
    new, scale = SoftWeightRescaling(rate=1e-2, output_rate=1e-3).after_step(part, s, None), torch.ones(())
    for layer in part.layers:
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        rate = 1e-3 if layer.output else 1e-2
        factor = 1 - rate * (1 - s.birth[weight].norm() / s.params[weight].norm())
        scale = factor if layer.kind == "norm" else factor * scale
        assert torch.equal(new.params[weight], factor * s.params[weight])
        assert torch.equal(new.params[bias], scale * s.params[bias])


def test_two_critics_are_rescaled_each_for_itself_and_two_heads_of_an_actor_as_one():
    learner, batch = sac(), member(batch_for(CONTROL, (0,)), 0)
    for part in (learner.critic, learner.actor):
        _, s = disturbed(SimpleNamespace(parts={"it": part}), precise=False)
        s = s._replace(params={k: p.float() for k, p in s.params.items()})
        old = part(weights(s), *part.inputs(batch))[0]
        kept = SoftWeightRescaling(rate=0.5, keep_output=True).after_step(part, s, None)
        assert largest_difference(part(weights(kept), *part.inputs(batch))[0], old) < 1e-4
        free = SoftWeightRescaling(rate=0.5, output_rate=0.5).after_step(part, s, None)
        ratios = part(weights(free), *part.inputs(batch))[0] / old
        ratios = ratios if part is learner.critic else ratios.movedim(-2, 0)  # of mean, of log-deviation
        one_number = [x.flatten().median() for x in ratios]
        assert all((x / c - 1).abs().max() < 1e-2 for x, c in zip(ratios, one_number, strict=True))
        assert (abs(one_number[0] / one_number[1] - 1) > 1e-3) == (part is learner.critic)


@pytest.mark.parametrize("rate, output_rate", [(0.0, 0.0), (0.3, 0.1), (1.0, 1.0), (0.0, 1.0)])
def test_each_norm_moves_towards_birth_by_its_rate_from_above_and_from_below(rate, output_rate):
    part, s = disturbed(classifier(net=Vectors(width=16, norm="layer")))
    s.params["trunk.layers.0.weight"].mul_(0.1)
    new = SoftWeightRescaling(rate=rate, output_rate=output_rate).after_step(part, s, None)
    below = 0
    for layer in part.layers:
        k, share = f"{layer.name}.weight", output_rate if layer.output else rate
        now, born = s.params[k].norm(), s.birth[k].norm()
        below += int(now < born)
        assert float(now - new.params[k].norm()) == pytest.approx(float(share * (now - born)), abs=1e-9)
        if share == 0:
            assert torch.equal(new.params[k], s.params[k])
    assert 0 < below < len(part.layers)


@pytest.mark.parametrize("seed", range(5))
def test_the_balance_between_layers_never_leaves_that_of_birth_further_than_it_has(seed):
    part, s = disturbed(classifier(net=Vectors(width=16, norm="layer")), seed)
    new = SoftWeightRescaling(rate=0.3, output_rate=0.3).after_step(part, s, None)
    names = [f"{layer.name}.weight" for layer in part.layers]
    for a, b in combinations(names, 2):
        birth, old, now = (float(x[a].norm() / x[b].norm()) for x in (s.birth, s.params, new.params))
        assert abs(now - birth) <= abs(old - birth) + 1e-12


def test_it_acts_after_every_update_and_leaves_the_moments_as_the_step_left_them():
    e = engine(dqn([SoftWeightRescaling(rate=1.0, output_rate=1.0)], spec=VECTOR, learning_rate=1e-2))
    for _ in range(3):
        clock = run(e, 1)
        s = member(e.states, 0)["q"]
        hidden = [(f"{layer.name}.weight",) for layer in e.learner.q.layers if not layer.output]
        for names in (*hidden, ("advantage.weight", "value.weight")):
            now, birth = (torch.cat([x[k].flatten() for k in names]).norm() for x in (s.params, s.birth))
            assert float(now) == pytest.approx(float(birth), rel=1e-5)
        assert equal(s.copies["target"], s.params)
    plain, one = engine(dqn(spec=VECTOR)), engine(dqn([SoftWeightRescaling(rate=1.0)], spec=VECTOR))
    for e in (plain, one):
        clock = run(e, 1)
    assert clock.updates == 1 and equal(plain.states["q"].optim, one.states["q"].optim)
    assert equal(plain.states["q"].birth, one.states["q"].birth)


def test_where_and_on_limit_it():
    part, s = disturbed(classifier([SoftWeightRescaling(rate=0.5, output_rate=0.5, where=("trunk.layers.1.*",))]))
    new = part.interventions[0].after_step(part, s, None)
    changed = [k for k in s.params if not torch.equal(new.params[k], s.params[k])]
    assert changed == ["trunk.layers.1.weight", "trunk.layers.1.bias"]
    rescaling, plain = engine(sac([SoftWeightRescaling(rate=1.0, on=("actor",))])), engine(sac())
    for e in (rescaling, plain):
        run(e, 1)
    assert equal(rescaling.states["critic"].params, plain.states["critic"].params)
    assert not equal(rescaling.states["actor"].params, plain.states["actor"].params)


@pytest.mark.parametrize("renew", [True, False])
def test_a_redrawn_layer_keeps_its_new_norm_if_the_reset_renews_birth_weights(renew):
    reset = Reset(where=("output",), renew_birth=renew, when=When(at=(2,)))
    e = engine(dqn([SoftWeightRescaling(rate=1.0, output_rate=1.0), reset], spec=VECTOR))
    for p in e.states["q"].birth.values():
        p *= 3.0
    run(e, 2)
    drawn = float(e.states["q"].params["advantage.weight"].norm())
    run(e, 1)
    ratio = float(e.states["q"].params["advantage.weight"].norm()) / drawn
    assert ratio == pytest.approx(1.0 if renew else 3.0, rel=0.2)


def test_two_rules_that_set_norms_are_refused_on_one_part():
    told = "soft_weight_rescaling and normalize_and_project on q: each sets the norms of the weights"
    with pytest.raises(ValueError, match=told):
        engine(dqn([SoftWeightRescaling(), NormalizeAndProject()], spec=VECTOR))


def test_defaults_are_those_of_the_paper_for_mlps_and_rates_are_shares():
    rule = build(SoftWeightRescaling, {})
    assert (rule.rate, rule.output_rate, rule.biases, rule.keep_output) == (1e-4, 1e-4, "exact", False)
    for key in ("rate", "output_rate"):
        assert [getattr(build(SoftWeightRescaling, {key: x}), key) for x in (0, 1)] == [0, 1]
        for outside in (-0.01, 1.01):
            with pytest.raises(ValueError, match=key):
                build(SoftWeightRescaling, {key: outside})
    with pytest.raises(ValueError, match="biases"):
        build(SoftWeightRescaling, {"biases": "printed"})
