"""Noisy layers: by hand, their distribution, which passes of an agent draw, and what interventions make of sigma."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, FRAMES, VECTOR, batch_for, dqn, engine, equal, largest_difference, run

from core.recycle import incoming, outgoing
from interventions.normalize_and_project import NormalizeAndProject
from interventions.redo import ReDo
from interventions.soft_weight_rescaling import SoftWeightRescaling
from nets.noisy import FEW, NoisyLinear, NoisyOutput, noise_of, with_noise


def test_a_noisy_layer_by_hand():
    layer = NoisyLinear(2, 1, sigma=0.5)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    layer.weight_sigma.data, layer.bias_sigma.data = torch.tensor([[0.1, 0.2]]), torch.tensor([0.3])
    x = torch.tensor([[10.0, 100.0]])
    assert layer(x).item() == pytest.approx(213)
    layer.noise_in, layer.noise_out = torch.tensor([4.0, -9.0]), torch.tensor([16.0])
    # f: 4 -> 2, -9 -> -3, 16 -> 4;  w = [1 + 0.1 * 4 * 2, 2 - 0.2 * 4 * 3] = [1.8, -0.4];  b = 3 + 0.3 * 4
    assert layer(x).item() == pytest.approx(18 - 40 + 4.2)


@pytest.mark.parametrize("make", [NoisyLinear, NoisyOutput])
def test_means_and_sigmas_begin_as_published(make):
    layer = make(400, 300, sigma=0.5).requires_grad_(False)
    for mean in (layer.weight, layer.bias):
        assert mean.abs().max() <= 1 / 20
        assert mean.std() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.1)
    for sigma in (layer.weight_sigma, layer.bias_sigma):
        assert torch.allclose(sigma, torch.tensor(0.5 / 20))


def test_the_noise_of_a_weight_has_the_moments_of_the_product_of_two_roots():
    layer, g = NoisyLinear(3, 2, sigma=1.0), torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(20_000):
        layer.noise_in, layer.noise_out = torch.randn(3, generator=g), torch.randn(2, generator=g)
        weight, bias = layer.drawn()
        drawn.append(torch.cat([(weight - layer.weight).flatten(), bias - layer.bias]).detach())
    noise = torch.stack(drawn) * math.sqrt(3)  # in units of sigma
    root = math.sqrt(2 / math.pi)  # E f(e)^2 = E |e|
    assert torch.allclose(noise.mean(0), torch.zeros(8), atol=0.03)
    assert torch.allclose(noise[:, :6].var(0), torch.full((6,), root**2), rtol=0.06)
    assert torch.allclose(noise[:, 6:].var(0), torch.full((2,), root), rtol=0.06)


@pytest.mark.parametrize("make", [NoisyLinear, NoisyOutput])
def test_a_pass_of_few_samples_is_that_of_many(make):
    """Few are multiplied by mu and sigma, many by the drawn matrix."""
    layer = make(30, 20, sigma=0.5).requires_grad_(False)
    layer.bias_sigma.mul_(torch.arange(20))
    x = torch.randn(FEW + 1, 30)
    assert torch.equal(layer(x[:FEW]), layer(x)[:FEW])  # of the means
    layer.noise_in, layer.noise_out = torch.randn(30), torch.randn(20)
    weight, bias = layer.drawn()
    assert torch.equal(layer(x), F.linear(x, weight, bias))
    for count in (1, FEW):
        assert torch.allclose(layer(x[:count]), x[:count] @ weight.T + bias, atol=1e-5)


def test_the_whole_head_is_noisy_and_no_convolution():
    learner = dqn(noisy=0.5, streams="separate")
    sigmas = {name.removesuffix(".weight_sigma") for name in learner.q.shapes if name.endswith("weight_sigma")}
    assert sigmas == {"trunk.layers.0", "value_trunk.layers.0", "advantage", "value"}
    assert set(noise_of(learner.q.net)) == {f"{name}.noise_{end}" for name in sigmas for end in ("in", "out")}
    assert set(learner.q.names(["head"])) == {name for name in learner.q.shapes if not name.startswith("encoder")}


def test_an_update_draws_for_the_online_network_the_choice_and_the_target():
    learner = dqn(noisy=0.5)
    layers = set(noise_of(learner.q.net))
    drawn = engine(learner).noise
    assert set(drawn) == {f"{which}/{name}" for which in ("q", "target", "choice") for name in layers}


def test_each_draw_enters_its_own_pass():
    """The loss of a noisy DQN, pass by pass, from networks whose numbers are the drawn ones."""
    learner = dqn(spec=VECTOR, noisy=0.5)
    states = {"q": learner.q.birth(0)}
    batch = {k: v[0] for k, v in batch_for(VECTOR, [0]).items()} | {"update": torch.tensor(1)}
    g = torch.Generator().manual_seed(0)
    noise = {k: torch.randn(n.shape, generator=g) for k, n in engine(learner).noise.items()}

    def q(obs, which):
        numbers = dict(states["q"].params)
        for name in [k.removesuffix(".weight_sigma") for k in numbers if k.endswith(".weight_sigma")]:
            row, column = (noise[f"{which}/{name}.noise_{end}"] for end in ("in", "out"))
            row, column = (e.sign() * e.abs().sqrt() for e in (row, column))
            numbers[f"{name}.weight"] = numbers[f"{name}.weight"] + numbers[f"{name}.weight_sigma"] * torch.outer(
                column, row
            )
            numbers[f"{name}.bias"] = numbers[f"{name}.bias"] + numbers[f"{name}.bias_sigma"] * column
        return learner.q(numbers, obs)[0][..., 0]

    best = q(batch["next_obs"], "choice").argmax(-1, keepdim=True)
    target = batch["reward"] + batch["discount"] * q(batch["next_obs"], "target").gather(1, best)[:, 0]
    expected = F.huber_loss(q(batch["obs"], "q").gather(1, batch["action"][:, None])[:, 0], target)
    _, outcome = learner.q.gradient(states, batch, noise)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_decisions_are_noisy_in_training_and_those_of_the_means_in_evaluation():
    learner = dqn(spec=VECTOR, noisy=3.0, epsilon_final=0.0, epsilon_eval=0.0)
    e = engine(learner)
    obs = torch.randn(1, 64, 5, generator=torch.Generator().manual_seed(0)).numpy()
    training = learner.explore_eval._replace(noisy=True)
    means = [e.act(obs, learner.explore_eval, "act", count) for count in range(5)]
    noisy = [e.act(obs, training, "act", count) for count in range(5)]
    assert all((a == means[0]).all() for a in means)
    assert len({a.tobytes() for a in noisy}) > 1
    out = learner.value.decode(learner.q(e._members[0]["q"].params, torch.from_numpy(obs[0]))[0])
    assert (means[0][0] == out.argmax(-1).numpy()).all()


def test_sigmas_learn_and_each_seed_is_what_it_is_alone():
    together, alone = (engine(dqn(noisy=0.5, spec=VECTOR), seeds) for seeds in ((0, 1), (1,)))
    before = {k: v.clone() for k, v in alone._members[0]["q"].params.items()}
    run(together, 4)
    run(alone, 4)
    after = alone._members[0]["q"].params
    assert all(not torch.equal(after[k], before[k]) for k in after if "sigma" in k)
    assert equal(together._members[1]["q"].params, after)


@pytest.mark.slow
def test_compiled_and_eager_agree():
    eager, fast = (engine(dqn(noisy=0.5, spec=VECTOR), (0,), compile=c) for c in (False, True))
    run(eager, 3)
    run(fast, 3)
    assert largest_difference(eager.states, fast.states) < 1e-5


def test_names_of_a_draw():
    assert with_noise(
        {"a": torch.ones(1)}, {"target/b": torch.zeros(1), "other/c": torch.zeros(1)}, "target"
    ).keys() == {
        "a",
        "b",
    }


# interventions


def test_a_recycled_units_sigmas_go_with_its_means():
    learner = dqn(spec=VECTOR, noisy=0.5, interventions=[ReDo()])
    s = learner.q.birth(0)
    chosen = {"trunk.layers.0": torch.arange(16) < 2}
    rows = incoming(learner.q, s.params, chosen)
    assert {k for k in rows} == {f"trunk.layers.0.{k}" for k in ("weight", "bias", "weight_sigma", "bias_sigma")}
    assert all(mask[:2].all() and not mask[2:].any() for mask in rows.values())
    read = outgoing(learner.q, s.params, chosen)
    assert {k for k in read} == {f"trunk.layers.1.{k}" for k in ("weight", "weight_sigma")}
    assert all(mask[:, :2].all() and not mask[:, 2:].any() for mask in read.values())


def test_rescaling_multiplies_the_noisy_function_too():
    """With its draws the network is homogeneous in means and sigmas together, so every decision stays."""
    method = SoftWeightRescaling(rate=0.5, output_rate=0.5)
    learner = dqn(spec=VECTOR, noisy=0.5, dueling=False, interventions=[method])
    s = learner.q.birth(0)
    s = s._replace(params={k: 3 * v for k, v in s.params.items()})
    obs, g = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    noise = {k: torch.randn(n.shape, generator=g) for k, n in noise_of(learner.q.net).items()}
    scaled = method.after_step(learner.q, s, None)
    old, new = (learner.q(numbers | noise, obs)[0][..., 0] for numbers in (s.params, scaled.params))
    ratio = new / old
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)
    assert ratio.mean() < 0.9


def test_what_acts_on_matrices_leaves_sigmas_alone():
    part = dqn(spec=VECTOR, noisy=0.5).q
    assert part.matrices() == [name for name in part.names() if name.endswith(".weight")]


def test_projection_scales_a_layers_sigmas_with_its_means():
    method = NormalizeAndProject()
    learner = dqn(spec=VECTOR, noisy=0.5, interventions=[method])
    s = learner.q.birth(0)
    s = s._replace(params={k: 3 * v for k, v in s.params.items()})
    new = method.after_step(learner.q, s, None).params
    for name in ("trunk.layers.0", "trunk.layers.1"):
        for kind in ("weight", "weight_sigma", "bias_sigma"):
            torch.testing.assert_close(new[f"{name}.{kind}"], s.birth[f"{name}.{kind}"])


def test_frames_take_part():
    e = engine(dqn(noisy=0.1, streams="separate", encoder_gradient=0.7071, clip_norm=10.0), (0,))
    run(e, 2)
    assert not e.diverged()[0]
    assert FRAMES.is_image
