"""DrQ from pixels against a plain-torch implementation of jaxrl's update; its encoder, its reset, and what it sees."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, batch_for, engine, equal, largest_difference, named, run
from torch import nn
from torch.distributions import Normal
from torch.utils._pytree import tree_map

import nets
from agents.drq import DrQ
from core.assemble import evaluated_role
from core.clock import Clock
from core.engine import Engine
from core.randomness import draw
from core.replay import Replay
from core.spec import EnvSpec, Transition
from core.state import clone, member, weights
from core.when import When
from envs.vector import Vector
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.reset import Reset

PIXELS = EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3, repeat_first=True)
NET = nets.DrQ(width=16, channels=(4, 8), strides=(2, 2))
ENCODER = tuple(f"encoder.convs.{i}.{what}" for i in range(2) for what in ("weight", "bias"))
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "t": "step"}


def drq(interventions=(), spec=PIXELS, net=NET, **settings) -> DrQ:
    """A DrQ of some twenty thousand weights."""
    settings = DrQ.Settings(**{"batch_size": BATCH, "learning_rate": 1e-3, "tau": 0.05} | settings)
    return DrQ(settings, spec, net, nets.Scalar("mse"), named(interventions))


def batch(seeds, count: int):
    """A made-up batch with importance weights that are not 1."""
    weight = torch.linspace(0.2, 1.0, BATCH).expand(len(seeds), BATCH)
    return batch_for(PIXELS, seeds, count) | {"weight": weight}


def noise_of(e, count: int):
    """The random numbers that the engine's update after `count` others takes. Leaves [n, ...]."""
    return draw(e.noise, e._keys, torch.tensor(count + 1))


def train(e, updates: int, start: int = 0):
    for count in range(start, start + updates):
        e.update(batch(e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def fire(e, updates: int) -> list[dict]:
    def no_sample(stream, count, size):
        raise AssertionError("this event looks at no data")

    clock = Clock(steps=10**9, updates=updates, last={"updates": updates - 1})
    return e.intervene(clock, ("updates",), no_sample)


def parts_of(tensors, encoder: bool):
    """The encoder's tensors among these, or all the others."""
    return {k: x for k, x in tensors.items() if k.startswith("encoder.") == encoder}


# an independent implementation


def moved(frames, fraction):
    """Edges repeated four times, then a crop of the old size at one of 9 x 9 places."""
    padded = F.pad(frames.float(), (4, 4, 4, 4), mode="replicate")
    places = torch.floor(9 * fraction).long().tolist()
    height, width = frames.shape[2:]
    return torch.stack([x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, places, strict=True)]).double()


class PlainEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 8, 3, 2)])

    def forward(self, frames):
        x = frames / 255
        for conv in self.convs:
            x = conv(F.pad(x, (0, 1, 0, 1))).relu()  # 24 -> 12 -> 6
        return x.flatten(1)


def trunk():
    return nn.Sequential(nn.Linear(8 * 6 * 6, 50), nn.LayerNorm(50, eps=1e-6), nn.Tanh())


def hidden(n_in: int):
    return [nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]


class PlainCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.trunk = PlainEncoder(), trunk()
        self.q = nn.ModuleList(nn.Sequential(*hidden(52), nn.Linear(16, 1)) for _ in range(2))

    def forward(self, frames, action):
        x = torch.cat([self.trunk(self.encoder(frames)), action], 1)
        return tuple(q(x)[:, 0] for q in self.q)


class PlainActor(nn.Module):
    """What stands behind the convolutions, whose features reach it without a gradient."""

    def __init__(self):
        super().__init__()
        self.trunk, self.body = trunk(), nn.Sequential(*hidden(50))
        self.mean, self.log_std = nn.Linear(16, 2), nn.Linear(16, 2)

    def forward(self, features, noise):
        h = self.body(self.trunk(features.detach()))
        mean, std = self.mean(h), torch.exp(-10 + 6 * (1 + torch.tanh(self.log_std(h))))
        u = mean + std * noise
        return u.tanh(), (Normal(mean, std).log_prob(u) - torch.log(1 - u.tanh() ** 2)).sum(1)


class PlainDrQ:
    """jaxrl's DrQ in double precision, going on from these states: critic, target, actor, temperature."""

    def __init__(self, states, tau=0.05, learning_rate=1e-3):
        self.tau = tau
        self.critic, self.target, self.actor = (x.double() for x in (PlainCritic(), PlainCritic(), PlainActor()))
        self.log_alpha = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.trained = {
            "critic": list(self.critic.parameters()),
            "actor": list(self.actor.parameters()),
            "alpha": [self.log_alpha],
        }
        self.optimizers = {name: torch.optim.Adam(p, lr=learning_rate) for name, p in self.trained.items()}
        for module, theirs, _ in self.pairs(states):
            assert module.shape == theirs.shape
            module.data.copy_(theirs)
        for name, own in self.trained.items():
            for p, k in zip(own, states[name].params, strict=True):
                slots = {theirs: states[name].optim[slot][k].clone() for slot, theirs in MOMENTS.items()}
                self.optimizers[name].state[p] = {k: x if k == "step" else x.double() for k, x in slots.items()}

    def pairs(self, states):
        """Own parameters with the engine's of the same place: (own, theirs, name)."""
        theirs = {name: s.params for name, s in states.items()} | {"target": states["critic"].copies["target"]}
        for name, own in (self.trained | {"target": list(self.target.parameters())}).items():
            yield from zip(own, theirs[name].values(), (f"{name}.{k}" for k in theirs[name]), strict=True)

    def step(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def update(self, b, noise):
        b = tree_map(lambda x: x.double() if x.is_floating_point() else x, b)
        obs, next_obs = (moved(b[name], noise[f"shift/{name}"]) for name in ("obs", "next_obs"))
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            action, log_prob = self.actor(self.critic.encoder(next_obs), noise["critic"])
            y = b["reward"] + b["discount"] * (torch.min(*self.target(next_obs, action)) - alpha * log_prob)
        q1, q2 = self.critic(obs, b["action"])
        losses = {"critic": self.step("critic", (b["weight"] * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())}
        with torch.no_grad():
            for slow, p in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_((1 - self.tau) * slow + self.tau * p)
        action, log_prob = self.actor(self.critic.encoder(obs), noise["actor"])
        losses["actor"] = self.step("actor", (alpha * log_prob - torch.min(*self.critic(obs, action))).mean())
        entropy = -log_prob.mean().detach()
        losses["alpha"] = self.step("alpha", self.log_alpha.exp() * (entropy - (-2)))  # wanted: minus the dimensions
        return losses

    def check(self, states):
        """The engine's weights, target and moments are these."""
        for own, theirs, name in self.pairs(states):
            torch.testing.assert_close(theirs.double(), own.detach(), rtol=0, atol=1e-5, msg=lambda m, k=name: k + m)
        for name, own in self.trained.items():  # Adam hides a gradient's scale
            state = self.optimizers[name].state
            for p, k in zip(own, states[name].params, strict=True):
                for slot, moment in MOMENTS.items():
                    theirs, mine = states[name].optim[slot][k].double(), state[p][moment].double()
                    assert largest_difference(theirs, mine) < 1e-5, (name, slot, k)


def go_on(e, plain, updates: int, start: int = 0):
    """Update the engine and a plain implementation of each of its members side by side, and compare."""
    for count in range(start, start + updates):
        b, noise = batch(e.seeds, count), noise_of(e, count)
        info = e.update(b, Clock(steps=10**9, updates=count))
        for i, mine in enumerate(plain):
            losses = mine.update(member(b, i), member(noise, i))
            for name in ("critic", "actor"):
                assert info[f"{name}/loss"][i].item() == pytest.approx(losses[name], rel=1e-4, abs=1e-5)
            mine.check(member(e.states, i))


def test_drqs_updates_are_those_of_a_plain_implementation_for_every_seed():
    e = engine(drq(), (0, 3))
    born = clone(e.states)
    go_on(e, [PlainDrQ(member(e.states, i)) for i in range(2)], 5)
    for name in ("critic", "actor", "alpha"):
        for old, new in zip(born[name].params.values(), e.states[name].params.values(), strict=True):
            assert float((new - old).abs().max()) > 1e-3, "a comparison of what hardly moves would show nothing"


def test_the_shift_is_a_draw_of_its_own_for_each_observation_and_the_same_for_all_losses_of_an_update():
    agent = drq()
    assert {name: n.shape for name, n in agent.noise(BATCH).items() if name.startswith("shift/")} == {
        "shift/obs": (BATCH, 2),
        "shift/next_obs": (BATCH, 2),
    }
    e = train(engine(agent), 1)
    s, b, noise = member(e.states, 0), member(batch((0,), 1), 0), member(noise_of(e, 1), 0)
    assert not torch.equal(noise["shift/obs"], noise["shift/next_obs"])
    still = drq(augment=replace(agent.settings.augment, shift=0))
    shifted = b | {name: moved(b[name], noise[f"shift/{name}"]).to(torch.uint8) for name in ("obs", "next_obs")}
    for loss in ("critic_loss", "actor_loss"):
        params = s[loss.removesuffix("_loss")].params
        wanted = getattr(still, loss)(params, s, shifted, noise).loss
        assert torch.equal(getattr(agent, loss)(params, s, b, noise).loss, wanted)
        assert not torch.equal(getattr(still, loss)(params, s, b, noise).loss, wanted)


# the encoder belongs to the critics


def test_the_actor_trains_only_what_stands_behind_the_encoder():
    e = engine(drq())
    s = e.states["actor"]
    for tensors in (s.params, s.birth, *s.optim.values()):
        assert not parts_of(tensors, encoder=True)
    assert tuple(s.buffers) == ENCODER and tuple(parts_of(e.states["critic"].params, encoder=True)) == ENCODER


def test_the_actors_loss_gives_no_gradient_through_the_features_and_the_critics_loss_does():
    agent = drq()
    e = train(engine(agent), 2)
    s, b, noise = member(e.states, 0), member(batch((0,), 2), 0), member(noise_of(e, 2), 0)
    for name, reached in (("actor", False), ("critic", True)):
        leaves = {k: p.clone().requires_grad_() for k, p in (weights(s[name])).items()}
        loss = getattr(agent, f"{name}_loss")(leaves, s, b, noise).loss
        grads = dict(zip(leaves, torch.autograd.grad(loss, tuple(leaves.values()), allow_unused=True), strict=True))
        for k, g in parts_of(grads, encoder=True).items():
            assert (g is not None and bool(g.any())) == reached, (name, k)
        assert all(g is not None for g in parts_of(grads, encoder=False).values())


def test_the_encoder_moves_by_the_critics_loss_alone():
    agent = drq()
    e = train(engine(agent), 2)
    s, b, noise = member(e.states, 0), member(batch((0,), 2), 0), member(noise_of(e, 2), 0)
    b["alive"] = torch.tensor(True)
    other = noise | {"actor": noise["actor"] + 1}

    first, _ = agent.update(clone(s), b, noise)
    second, _ = agent.update(clone(s), b, other)
    alone, _ = agent.update_critic(clone(s), b, noise)
    assert equal(first["critic"], second["critic"]) and equal(first["critic"], alone["critic"])
    assert all(not torch.equal(first["actor"].params[k], second["actor"].params[k]) for k in first["actor"].params)

    grads, _ = agent.critic.gradient(s, b, noise)
    for k in ENCODER:
        assert not torch.equal(first["critic"].params[k], s["critic"].params[k])
        moment = 0.9 * s["critic"].optim["m"][k] + 0.1 * grads[k]
        torch.testing.assert_close(first["critic"].optim["m"][k], moment, rtol=1e-5, atol=1e-8)


def carries_the_critics_encoder(e) -> bool:
    return equal(e.states["actor"].buffers, parts_of(e.states["critic"].params, encoder=True))


def test_after_every_update_every_actor_carries_its_critics_encoder_bit_for_bit():
    e = engine(drq(), (0, 1, 2))
    kept = [x.data_ptr() for x in e.states["actor"].buffers.values()]
    for count in range(3):
        before = clone(e.states["actor"].buffers)
        train(e, 1, start=count)
        assert carries_the_critics_encoder(e)
        assert not any(torch.equal(before[k][i], e.states["actor"].buffers[k][i]) for k in ENCODER[::2] for i in (0, 1))
    assert [x.data_ptr() for x in e.states["actor"].buffers.values()] == kept  # a copy: the storage never moves
    one, other = (e.states["actor"].buffers[ENCODER[0]][i] for i in (0, 1))
    assert not torch.equal(one, other)
    alone = train(engine(drq(), (2,)), 3)
    assert equal(member(e.states, 2), member(alone.states, 0))


def test_an_update_by_values_is_the_one_in_place_and_leaves_its_arguments_alone():
    """In place the actor's encoder would follow even if it were not renewed: it is then the critic's own storage."""
    e, agent = train(engine(drq()), 2), drq()
    s = clone(member(e.states, 0))
    kept = clone(s)
    new, _ = agent.update(s, member(batch((0,), 2), 0), member(noise_of(e, 2), 0))
    assert equal(s, kept)
    assert equal(new["actor"].buffers, parts_of(new["critic"].params, encoder=True))
    train(e, 1, start=2)
    assert largest_difference([*new.values()], [*member(e.states, 0).values()]) < 1e-6


def test_a_member_that_is_frozen_carries_the_encoder_it_was_frozen_with():
    e = train(engine(drq(), (0, 1)), 2)
    bad = batch(e.seeds, 2)
    bad["reward"] = bad["reward"].clone()
    bad["reward"][0, 0] = math.nan
    before = clone(e.states)
    e.update(bad, Clock(steps=10**9, updates=2))
    assert e.diverged() == [True, False]
    assert carries_the_critics_encoder(e)
    for name, s in member(e.states, 0).items():
        old = member(before, 0)[name]
        assert all(equal(getattr(old, field), getattr(s, field)) for field in ("params", "buffers", "optim"))


@pytest.mark.slow
def test_compiled_updates_are_the_eager_ones_and_the_actor_carries_the_critics_encoder():
    eager, fast = (engine(drq(), (0, 1), compile=c) for c in (False, True))
    for count in range(3):
        train(fast, 1, start=count)
        assert carries_the_critics_encoder(fast)
    train(eager, 3)
    assert largest_difference(eager.states, fast.states) < 1e-5


# the target's encoder


def test_the_targets_encoder_follows_as_an_average():
    e = train(engine(drq(tau=0.1), (0, 1)), 1)
    for count in (1, 2, 3):
        before = clone(e.states["critic"].copies["target"])
        train(e, 1, start=count)
        s = e.states["critic"]
        for k, slow in s.copies["target"].items():
            torch.testing.assert_close(slow, 0.9 * before[k] + 0.1 * s.params[k], rtol=1e-5, atol=1e-6)
        assert all(not torch.equal(s.copies["target"][k], s.params[k]) for k in ENCODER)


def test_the_target_sees_through_its_own_encoder_and_the_next_action_through_the_critics():
    agent = drq()
    e = train(engine(agent), 2)
    s, b, noise = member(e.states, 0), member(batch((0,), 2), 0), member(noise_of(e, 2), 0)

    def target(s):
        return agent.critic_loss(s["critic"].params, s, b, noise).values["target"]

    def with_encoder(s, factor):
        slow = s["critic"].copies["target"]
        slow = slow | {k: factor * x for k, x in parts_of(slow, encoder=True).items()}
        return s | {"critic": s["critic"]._replace(copies={"target": slow})}

    seen = moved(b["next_obs"], noise["shift/next_obs"]).float()
    action, log_prob, _ = agent.sample(weights(s["actor"]), seen, noise["critic"])
    changed = with_encoder(s, 1.5)
    for states in (s, changed):
        q = agent.critic(states["critic"].copies["target"], seen, action)[0][..., 0].amin(0)
        alpha = s["alpha"].params["log"].exp()
        torch.testing.assert_close(target(states), b["reward"] + b["discount"] * (q - alpha * log_prob))
    assert not torch.allclose(target(s), target(changed))


# the published reset

HEAD_AND_TEMPERATURE = [
    pytest.param([(("head",), ("*",)), (("all",), ("alpha",))], id="two resets"),
    pytest.param([(("[!e]*",), ("*", "alpha"))], id="all but what begins with an e"),
    pytest.param([(("head",), ("*", "alpha"))], id="head"),
]


def resets(chosen):
    made = [Reset(where=where, on=on, when=When(at=(4,))) for where, on in chosen]
    for i, reset in enumerate(made):
        reset.name = f"reset_{i}"
    return made


@pytest.mark.parametrize("chosen", HEAD_AND_TEMPERATURE)
def test_the_published_reset_renews_everything_behind_the_convolutions(chosen):
    e = train(engine(drq(resets(chosen)), (0, 1)), 4)
    old = clone(e.states)
    rows = fire(e, 4)
    assert sorted((row["part"], row["seed"]) for row in rows) == [
        (part, seed) for part in ("actor", "alpha", "critic") for seed in (0, 1)
    ]
    for name in ("critic", "actor", "alpha"):
        before, after = old[name], e.states[name]
        for tensors in (after.params, after.birth, *after.optim.values()):
            assert list(tensors) == list(before.params)
        assert equal(before.buffers, after.buffers)
        for k, p in parts_of(after.params, encoder=False).items():
            assert not any(torch.count_nonzero(slot[k]) for slot in after.optim.values())
            if k.endswith("bias"):
                assert torch.count_nonzero(p) == 0
            elif k.endswith("norm.weight"):
                assert bool((p == 1).all())
            elif k != "log":
                assert not any(torch.equal(x[k][i], p[i]) for x in (before.params, before.birth) for i in (0, 1))
                assert not torch.equal(p[0], p[1])  # a draw of each seed's own
    assert e.states["alpha"].params["log"].tolist() == pytest.approx([math.log(0.1)] * 2)
    assert not bool((e.states["alpha"].params["log"] == old["alpha"].params["log"]).any())

    before, after = old["critic"], e.states["critic"]
    for a, b in ((before.params, after.params), *zip(before.optim.values(), after.optim.values(), strict=True)):
        assert equal(parts_of(a, encoder=True), parts_of(b, encoder=True))
        assert all(bool(x.any()) for x in parts_of(b, encoder=True).values())
    target, old_target = after.copies["target"], before.copies["target"]
    assert equal(parts_of(target, encoder=True), parts_of(old_target, encoder=True))
    assert not any(torch.equal(target[k], after.params[k]) for k in ENCODER)
    assert equal(parts_of(target, encoder=False), parts_of(after.params, encoder=False))
    assert carries_the_critics_encoder(e)


def test_after_the_published_reset_the_updates_are_still_those_of_a_plain_implementation():
    """The encoder's Adam goes on at its fifth step, all the others begin at their first."""
    e = train(engine(drq(resets(HEAD_AND_TEMPERATURE[0].values[0])), (0, 3)), 4)
    fire(e, 4)
    steps = e.states["critic"].optim["t"]
    assert {float(steps[k][0]) for k in ENCODER} == {4.0} and {float(t[0]) for t in steps.values()} == {0.0, 4.0}
    go_on(e, [PlainDrQ(member(e.states, i)) for i in range(2)], 3, start=4)


# geometry


def test_the_published_networks_have_4096_features_and_the_parameters_counted_by_hand():
    spec = EnvSpec("dmc/cheetah-run", (64, 64), "uint8", action_dim=6, stack=3, repeat_first=True)
    agent = DrQ(DrQ.Settings(), spec, nets.DrQ(), nets.Scalar("mse"))
    encoder = nets.DrQ().encoder(spec.seen_shape)
    out, feats = encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert [tuple(feats[f"h{i}"].shape[1:]) for i in range(4)] == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert out.shape == (2, 4096) and encoder.n_out == 4 * 4 * 256
    assert encoder.pads == [(0, 1, 0, 1)] * 4

    convs = (3 * 9 * 32 + 32) + (32 * 9 * 64 + 64) + (64 * 9 * 128 + 128) + (128 * 9 * 256 + 256)
    bottleneck = 4096 * 50 + 50 + 2 * 50
    critic = (50 + 6) * 256 + 256 + 256 * 256 + 256 + 256 + 1
    actor = 50 * 256 + 256 + 256 * 256 + 256 + 2 * (256 * 6 + 6)
    assert (convs, bottleneck, critic, actor) == (388_416, 204_950, 80_641, 81_932)
    count = {name: sum(shape.numel() for shape in part.shapes.values()) for name, part in agent.parts.items()}
    assert count == {"critic": convs + bottleneck + 2 * critic, "actor": bottleneck + actor, "alpha": 1}


def test_drqs_own_encoder_makes_39200_features_of_colour_frames():
    spec = EnvSpec("dmc/x", (3, 84, 84), "uint8", action_dim=2, stack=3, repeat_first=True)
    net = nets.DrQ(channels=(32, 32, 32, 32), strides=(2, 1, 1, 1), padding="valid")
    encoder = net.encoder(spec.seen_shape)
    out, feats = encoder(torch.zeros(1, 9, 84, 84, dtype=torch.uint8))
    assert [tuple(feats[f"h{i}"].shape[1:]) for i in range(4)] == [(32, side, side) for side in (41, 39, 37, 35)]
    assert out.shape == (1, 39_200) and encoder.n_out == 39_200
    assert sum(p.numel() for p in encoder.parameters()) == 9 * 9 * 32 + 32 + 3 * (32 * 9 * 32 + 32)
    agent = drq(spec=spec, net=net)
    assert agent.critic.shapes["bottleneck.linear.weight"] == agent.actor.shapes["bottleneck.linear.weight"]
    assert agent.critic.shapes["bottleneck.linear.weight"] == (50, 39_200)


def test_newborn_weights_are_orthogonal_and_the_defaults_are_the_published_ones():
    e = engine(drq())
    for name in ("critic", "actor"):
        for k, p in member(e.states, 0)[name].params.items():
            if p.ndim > 1:
                gain = 1.0 if "log_std" in k or k.startswith("bottleneck") else math.sqrt(2)
                singular = torch.linalg.svdvals(p.flatten(1))
                torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=1e-4)
            else:
                assert bool((p == float(k.endswith("norm.weight"))).all())
    o = DrQ.Settings()
    assert (o.learning_rate, o.batch_size, o.discount, o.n_step, o.tau) == (3e-4, 512, 0.99, 1, 0.005)
    assert (o.initial_temperature, o.target_entropy, o.critics, o.order) == (0.1, -1.0, 2, "critic_first")
    assert (o.target_value, o.actor_value, o.weight_decay, o.subset) == ("min", "min", 0.0, 0)
    assert (o.augment.shift, o.augment.intensity) == (4, 0.0)
    assert drq().target_entropy == -2 and e.states["alpha"].params["log"].exp().item() == pytest.approx(0.1)
    agent = drq()
    assert all((p.optim.b1, p.optim.b2, p.optim.eps) == (0.9, 0.999, 1e-8) for p in agent.parts.values())


# frames in colour, and what stands before the first


def test_what_is_seen_of_colour_frames_is_all_their_channels():
    spec = EnvSpec("dmc/x", (3, 84, 84), "uint8", action_dim=2, stack=3)
    assert spec.is_image and spec.seen_shape == (9, 84, 84)
    assert replace(spec, obs_shape=(84, 84)).seen_shape == (3, 84, 84)


class Numbered:
    """Frames that are all different; episodes of `length` steps, cut by a limit, with a life lost in the middle."""

    def __init__(self, obs_shape, repeat_first: bool, length: int = 6) -> None:
        self.spec = EnvSpec("toy/x", obs_shape, "uint8", action_dim=2, stack=3, repeat_first=repeat_first)
        self.length, self.count, self.now = length, 0, 0

    def _frame(self):
        self.count += 1
        values = np.arange(np.prod(self.spec.obs_shape)) * 7 + self.count
        return (values % 250 + 1).astype(np.uint8).reshape(self.spec.obs_shape)

    def reset(self, seed: int):
        self.now = 0
        return self._frame()

    def step(self, action) -> Transition:
        self.now += 1
        return Transition(self._frame(), 1.0, False, self.now == self.length, life_lost=self.now == 4)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("repeat_first", [True, False], ids=["itself", "zeros"])
@pytest.mark.parametrize("obs_shape", [(3, 4, 5), (4, 5)], ids=["colour", "gray"])
def test_agents_act_on_the_stacks_that_the_replay_gives_back(obs_shape, repeat_first):
    vector = Vector([Numbered(obs_shape, repeat_first), Numbered(obs_shape, repeat_first, 5)], (0, 1), "train")
    spec = vector.spec
    replay = Replay(spec, (0, 1), 200)
    vector.reset()
    history = [[vector.frame[i]] for i in (0, 1)]  # since the episode or life began
    seen: list[dict[int, tuple]] = [{}, {}]  # by slot: the stack acted on, and the one it led to
    slot = [0, 0]

    def stacked(frames):
        before = [frames[0] if repeat_first else 0 * frames[0]] * 2
        return np.concatenate([frame.reshape(-1, *obs_shape[-2:]) for frame in (before + frames)[-3:]])

    for _ in range(40):
        frame, stacks = vector.frame, vector.observation
        step = vector.step(np.zeros((2, 2), np.float32))
        replay.add(frame, np.zeros((2, 2), np.float32), step.reward, step.terminal, step.ended, step.next_obs)
        for i in (0, 1):
            assert np.array_equal(stacks[i], stacked(history[i]))
            life_lost = bool(step.terminal[i])
            following = [step.next_obs[i]] if life_lost else [*history[i], step.next_obs[i]]
            seen[i][slot[i]] = stacks[i], stacked(following)
            slot[i] += 1 + int(step.ended[i])
            history[i] = [vector.frame[i]] if step.ended[i] else following
    assert vector.observation.shape == (2, *spec.seen_shape)

    met = [set(), set()]
    for count in range(20):
        b = replay.sample(16, count)
        for i in (0, 1):
            for j, number in enumerate(b["index"][i].tolist()):
                obs, next_obs = seen[i][number]
                assert np.array_equal(b["obs"][i, j].numpy(), obs)
                assert np.array_equal(b["next_obs"][i, j].numpy(), next_obs)
                met[i].add(number)
    assert all(set(range(4)) <= m and len(m) > 30 for m in met), "not every place of an episode was sampled"


# what it cannot do


@pytest.mark.parametrize(
    ("spec", "net", "advice"),
    [
        (CONTROL, NET, "agent=sac"),
        (FRAMES, NET, "use agent=dqn$"),
        (PIXELS, nets.Vectors(), "net=drq"),
        (PIXELS, nets.Nature(), "net=drq"),
        (PIXELS, nets.DrQ(channels=(4,) * 12, strides=(2,) * 12, padding="valid"), "too small"),
    ],
    ids=["vectors", "discrete", "mlp", "nature", "too many convolutions"],
)
def test_what_drq_cannot_do_is_refused_in_one_line_with_the_fix(spec, net, advice):
    with pytest.raises(ValueError, match=advice) as error:
        drq(spec=spec, net=net)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


# acting


def test_acting_is_a_function_of_its_arguments():
    agent = drq()
    e = train(engine(agent), 2)
    s, obs = member(e.states, 0), batch((0,), 5)["obs"][0]
    noise = {"policy": torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(0))}
    generator, kept = torch.get_rng_state(), clone(s)
    one, two = (agent.act(s, obs, agent.explore(Clock(steps=10)), noise, "params") for _ in range(2))
    assert torch.equal(one, two) and torch.equal(torch.get_rng_state(), generator) and equal(s, kept)
    assert not torch.allclose(one, agent.act(s, obs, 1.0, {"policy": -noise["policy"]}, "params"))
    played = [e.act(obs[None].numpy(), 1.0, "stream", count) for count in (3, 3, 4)]
    assert np.array_equal(played[0], played[1]) and not np.array_equal(played[0], played[2])


def test_evaluating_takes_the_mode_through_tanh_of_the_frames_as_they_are():
    agent = drq()
    e = train(engine(agent), 2)
    s, obs = member(e.states, 0), batch((0,), 5)["obs"][0]
    noise = {"policy": torch.full((BATCH, 2), 3.0)}
    assert agent.explore_eval == 0
    actor = PlainDrQ(s).actor
    features = PlainDrQ(s).critic.encoder(obs.double())
    mode, _ = actor(features, torch.zeros(BATCH, 2))
    sampled, _ = actor(features, noise["policy"])
    for explore, wanted in ((agent.explore_eval, mode), (agent.explore(Clock(steps=10)), sampled)):
        acted = agent.act(s, obs, explore, noise, "params")
        torch.testing.assert_close(acted.double(), wanted.detach(), rtol=0, atol=1e-5)
        assert bool((acted.abs() < 1).all())
    assert not torch.allclose(mode, sampled)


def test_a_tortoise_is_evaluated_through_the_encoder_that_it_carries():
    agent = drq([HareAndTortoise(momentum=0.7)])
    assert evaluated_role(agent) == "tortoise"
    e = engine(agent)
    for count in range(3):
        before = clone(member(e.states, 0)["actor"].copies["tortoise"])
        train(e, 1, start=count)
        s = member(e.states, 0)
        slow, fast = s["actor"].copies["tortoise"], weights(s["actor"])
        assert set(slow) == set(fast) >= set(ENCODER)
        for k in slow:
            torch.testing.assert_close(slow[k], 0.7 * before[k] + 0.3 * fast[k], rtol=1e-5, atol=1e-6)
    assert carries_the_critics_encoder(e) and not any(torch.equal(slow[k], fast[k]) for k in ENCODER)

    obs = batch((0,), 5)["obs"][0]
    still = {"policy": torch.zeros(BATCH, 2)}

    def acted(copy, role="tortoise"):
        return agent.act(s | {"actor": s["actor"]._replace(copies={"tortoise": copy})}, obs, 0.0, still, role)

    as_params = s | {"actor": s["actor"]._replace(params=parts_of(slow, False), buffers=parts_of(slow, True))}
    assert torch.equal(acted(slow), agent.act(as_params, obs, 0.0, still, "params"))
    assert not torch.allclose(acted(slow), acted(slow, "params"))
    assert not torch.allclose(acted(slow), acted(slow | parts_of(fast, encoder=True)))
    played = e.act(obs[None].numpy(), 0.0, "x", 0, "tortoise")
    assert np.allclose(played[0], acted(slow).numpy(), atol=1e-6)


def test_a_hare_that_restarts_takes_its_tortoises_encoder_and_the_next_update_shares_the_critics():
    e = engine(drq([HareAndTortoise(momentum=0.9, when=When(at=(4,)))]))
    run(e, 4)
    critic, actor = (e.states[name] for name in ("critic", "actor"))
    assert equal(critic.params, critic.copies["tortoise"])
    assert all(torch.equal(x, actor.copies["tortoise"][k]) for k, x in weights(actor).items())
    restarted = [PlainDrQ(member(e.states, 0))]
    go_on(e, restarted, 1, start=4)
    assert carries_the_critics_encoder(e)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_actor_has_the_critics_encoder_at_birth_and_after_every_event(compile):
    """Its slow copies begin with it too; afterwards they are averages of their own."""
    learner = drq([HareAndTortoise(when=When(at=(10**6,))), Reset(where=("all",), on=("*",), when=When(at=(2,)))])
    e = Engine(learner, (0, 1), BATCH, compile=compile)

    def check(tortoises: bool) -> None:
        for states in e._members:
            for name, value in states["actor"].buffers.items():
                assert torch.equal(value, states["critic"].params[name])
                for copy in states["actor"].copies.values() if tortoises else ():
                    assert torch.equal(copy[name], value)

    check(tortoises=True)
    before = clone(e.states)
    train(e, 2)
    assert len(fire(e, 2)) == 4
    assert not equal(before["critic"].params, e.states["critic"].params)
    check(tortoises=False)


def test_standardising_frames_is_refused():
    with pytest.raises(ValueError, match="agent.standardise: env=dmc/x shows frames"):
        drq(standardise=True)
