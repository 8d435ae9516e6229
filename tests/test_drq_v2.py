"""DrQ-v2 against a plain-torch version of the authors' update; its noise, its encoder, its published geometry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, batch_for, engine, equal, largest_difference, named
from torch import nn
from torch.utils._pytree import tree_map

import nets
from agents.drq_v2 import DrQV2
from core import assemble
from core.clock import Clock
from core.config import load
from core.engine import Engine
from core.randomness import draw, draw_on_host
from core.spec import EnvSpec
from core.state import clone, member, weights
from core.when import When
from interventions.hare_and_tortoise import HareAndTortoise
from interventions.reset import Reset

PIXELS = EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3, repeat_first=True)
WALKER = EnvSpec("dmc/walker-walk", (3, 84, 84), "uint8", action_dim=6, stack=3, repeat_first=True, action_repeat=2)
NET = nets.DrQ(width=16, channels=(4, 8), strides=(2, 2), padding="valid", centred=True, init="orthogonal_1")
ENCODER = tuple(f"encoder.convs.{i}.{what}" for i in range(2) for what in ("weight", "bias"))
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "t": "step"}
AGENT_STEPS = (0, 30_000, 70_000, 100_000, 400_000)  # before, on the way to, and after the schedule's end


def drq_v2(interventions=(), spec=PIXELS, net=NET, value=None, **settings) -> DrQV2:
    """A DrQ-v2 of some twenty-five thousand weights."""
    settings = DrQV2.Settings(**{"batch_size": BATCH, "learning_rate": 1e-3, "tau": 0.05} | settings)
    return DrQV2(settings, spec, net, value or nets.Scalar("mse"), named(interventions))


def batch(seeds, count: int, spec=PIXELS):
    """A made-up batch with importance weights that are not 1."""
    weight = torch.linspace(0.2, 1.0, BATCH).expand(len(seeds), BATCH)
    return batch_for(spec, seeds, count) | {"weight": weight}


def noise_of(e, count: int):
    """The random numbers that the engine's update after `count` others takes. Leaves [n, ...]."""
    return draw(e.noise, e._keys, torch.tensor(count + 1))


def clock_at(updates: int, agent_steps: int = 0) -> Clock:
    return Clock(steps=10**9, updates=updates, agent_steps=agent_steps)


def train(e, updates: int, start: int = 0, agent_steps: int = 0):
    for count in range(start, start + updates):
        e.update(batch(e.seeds, count), clock_at(count, agent_steps))
    return e


def parts_of(tensors, encoder: bool):
    """The encoder's tensors among these, or all the others."""
    return {k: x for k, x in tensors.items() if k.startswith("encoder.") == encoder}


def bolder(e, factor: float = 4.0):
    """The same engine with a policy whose actions come near the border."""
    e.states["actor"].params["policy.head.weight"].mul_(factor)
    return e


def one(updates: int = 2, agent_steps: int = 0, **settings):
    """An agent, its state after some updates, a batch and its noise."""
    agent = drq_v2(**settings)
    e = train(bolder(engine(agent)), updates)
    b = member(batch((0,), updates), 0) | {"step": torch.tensor(agent_steps), "alive": torch.tensor(True)}
    return agent, member(e.states, 0), b, member(noise_of(e, updates), 0)


# an independent implementation, after facebookresearch/drqv2


def moved(frames, fraction, pad: int = 4):
    """Their RandomShiftsAug: bilinear samples of the padded frames on a grid that is moved by whole pixels."""
    x = F.pad(frames.double(), (pad,) * 4, mode="replicate")
    count, _, side, _ = frames.shape
    eps = 1.0 / (side + 2 * pad)
    line = torch.linspace(-1 + eps, 1 - eps, side + 2 * pad, dtype=torch.float64)[:side]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).expand(count, side, side, 2)
    places = torch.floor((2 * pad + 1) * fraction).double().flip(1)  # ours: rows first; theirs: columns
    grid = grid + (places * 2 / (side + 2 * pad))[:, None, None]
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def sigma_at(step: int, initial=1.0, final=0.1, duration=100_000) -> float:
    mix = float(np.clip(step / duration, 0.0, 1.0))
    return (1.0 - mix) * initial + mix * final


class PlainEncoder(nn.Module):
    def __init__(self, channels: int, net):
        super().__init__()
        pairs = zip((channels, *net.channels[:-1]), net.channels, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, s) for (a, b), s in zip(pairs, net.strides, strict=True))

    def forward(self, frames):
        x = frames / 255 - 0.5
        for conv in self.convs:
            x = conv(x).relu()
        return x.flatten(1)


def trunk(n_in: int):
    return nn.Sequential(nn.Linear(n_in, 50), nn.LayerNorm(50, eps=1e-6), nn.Tanh())


def perceptron(n_in: int, n_out: int, width: int):
    hidden = [nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, n_out))


class PlainCritic(nn.Module):
    def __init__(self, n_in: int, actions: int, width: int):
        super().__init__()
        self.trunk, (self.q1, self.q2) = trunk(n_in), (perceptron(50 + actions, 1, width) for _ in range(2))

    def forward(self, features, action):
        x = torch.cat([self.trunk(features), action], 1)
        return self.q1(x)[:, 0], self.q2(x)[:, 0]


class PlainDrQV2:
    """Their agent in double precision, going on from these newborn states."""

    def __init__(self, states, spec=PIXELS, net=NET, features: int = 8 * 5 * 5, tau=0.05, learning_rate=1e-3):
        self.tau, actions = tau, spec.action_dim
        self.encoder = PlainEncoder(spec.seen_shape[0], net).double()
        self.critic, self.target = (PlainCritic(features, actions, net.width).double() for _ in range(2))
        self.actor = nn.Sequential(trunk(features), perceptron(50, actions, net.width), nn.Tanh()).double()
        self.trained = {
            "critic": [*self.encoder.parameters(), *self.critic.parameters()],
            "actor": list(self.actor.parameters()),
        }
        for own, theirs, _ in self.pairs(states):
            assert own.shape == theirs.shape
            own.data.copy_(theirs)
        self.optimizers = {name: torch.optim.Adam(p, lr=learning_rate) for name, p in self.trained.items()}
        self.clipped = self.clamped = 0.0  # shares of noise and actions in the latest update

    def pairs(self, states):
        """Own parameters with the engine's of the same place: (own, theirs, name). The target has no encoder."""
        theirs = {name: s.params for name, s in states.items()}
        theirs["target"] = parts_of(states["critic"].copies["target"], encoder=False)
        for name, own in (self.trained | {"target": list(self.target.parameters())}).items():
            yield from zip(own, theirs[name].values(), (f"{name}.{k}" for k in theirs[name]), strict=True)

    def act(self, features, sigma, noise):
        """TruncatedNormal(mean, sigma).sample(clip=0.3)"""
        mean, eps = self.actor(features), (sigma * noise).double()
        x = mean + eps.clamp(-0.3, 0.3)
        inside = x.clamp(-1 + 1e-6, 1 - 1e-6)
        self.clipped, self.clamped = (
            (a != b).double().mean().item() for a, b in ((eps, eps.clamp(-0.3, 0.3)), (x, inside))
        )
        return x - x.detach() + inside.detach()

    def step(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def update(self, b, noise, agent_steps: int):
        b = tree_map(lambda x: x.double() if x.is_floating_point() else x, b)
        sigma = sigma_at(agent_steps)
        obs, next_obs = (moved(b[name], noise[f"shift/{name}"]) for name in ("obs", "next_obs"))
        with torch.no_grad():
            seen = self.encoder(next_obs)
            y = b["reward"] + b["discount"] * torch.min(*self.target(seen, self.act(seen, sigma, noise["critic"])))
        q1, q2 = self.critic(self.encoder(obs), b["action"])
        loss = (b["weight"] * (q1 - y) ** 2).mean() + (b["weight"] * (q2 - y) ** 2).mean()
        losses = {"critic": self.step("critic", loss)}
        features = self.encoder(obs).detach()
        losses["actor"] = self.step(
            "actor", -torch.min(*self.critic(features, self.act(features, sigma, noise["actor"]))).mean()
        )
        with torch.no_grad():
            for slow, p in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_(self.tau * p + (1 - self.tau) * slow)
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


def test_its_updates_are_those_of_a_plain_implementation_for_every_seed():
    e = bolder(engine(drq_v2(), (0, 3)))
    born, clipped, clamped = clone(e.states), [], []
    plain = [PlainDrQV2(member(e.states, i)) for i in range(2)]
    for count, agent_steps in enumerate(AGENT_STEPS):
        b, noise = batch(e.seeds, count), noise_of(e, count)
        info = e.update(b, clock_at(count, agent_steps))
        for i, mine in enumerate(plain):
            losses = mine.update(member(b, i), member(noise, i), agent_steps)
            for name in ("critic", "actor"):
                assert info[f"{name}/loss"][i].item() == pytest.approx(losses[name], rel=1e-4, abs=1e-5)
            mine.check(member(e.states, i))
            clipped.append(mine.clipped)
            clamped.append(mine.clamped)
    for name in ("critic", "actor"):
        for old, new in zip(born[name].params.values(), e.states[name].params.values(), strict=True):
            assert float((new - old).abs().max()) > 1e-3, "a comparison of what hardly moves would show nothing"
    assert max(clipped) > 0.5 and max(clamped) > 0.1 and min(clipped) < 0.1, "both clips are at work"


def test_one_update_of_the_published_networks_is_that_of_a_plain_implementation():
    net = replace(NET, channels=(32, 32, 32, 32), strides=(2, 1, 1, 1), width=1024)
    e = engine(drq_v2(spec=WALKER, net=net, learning_rate=1e-4, tau=0.01))
    plain = PlainDrQV2(member(e.states, 0), WALKER, net, features=39_200, tau=0.01, learning_rate=1e-4)
    b, noise = batch((0,), 0, WALKER), noise_of(e, 0)
    info = e.update(b, clock_at(0))
    losses = plain.update(member(b, 0), member(noise, 0), 0)
    s = member(e.states, 0)
    for name in ("critic", "actor"):
        assert info[f"{name}/loss"][0].item() == pytest.approx(losses[name], rel=1e-4, abs=1e-5)
        state = plain.optimizers[name].state
        for p, k in zip(plain.trained[name], s[name].params, strict=True):  # the first step is a sign: gradients
            theirs, mine = s[name].optim["m"][k].double(), state[p]["exp_avg"]
            assert float((theirs - mine).norm()) <= 1e-3 * float(mine.norm()) + 1e-8, (name, k)


def test_the_critics_loss_is_the_sum_of_their_mean_squared_errors():
    for count in (1, 2, 3):
        agent, s, b, noise = one(critics=count)
        b["weight"] = torch.ones(BATCH)
        outcome = agent.critic_loss(s["critic"].params, s, b, noise)
        seen = moved(b["obs"], noise["shift/obs"]).float()
        q = agent.critic(s["critic"].params, seen, b["action"])[0][..., 0]
        assert q.shape == (count, BATCH)
        wanted = sum(F.mse_loss(each, outcome.values["target"]) for each in q)
        torch.testing.assert_close(outcome.loss, wanted)


def test_a_terminal_sample_has_its_reward_alone_as_target():
    agent, s, b, noise = one()
    target = agent.critic_loss(s["critic"].params, s, b | {"discount": torch.zeros(BATCH)}, noise).values["target"]
    assert torch.equal(target, b["reward"])


def test_the_target_follows_once_after_both_steps_and_nothing_else_moves_it():
    e = train(engine(drq_v2(tau=0.1), (0, 1)), 1)
    for count in (1, 2, 3):
        before = clone(e.states["critic"].copies["target"])
        train(e, 1, start=count)
        s = e.states["critic"]
        for k, slow in s.copies["target"].items():
            torch.testing.assert_close(slow, 0.9 * before[k] + 0.1 * s.params[k], rtol=1e-5, atol=1e-6)


def test_the_actors_step_sees_the_encoder_and_the_critics_that_have_just_moved():
    agent, s, b, noise = one()
    first, _ = agent.update(clone(s), b, noise)
    moved_critic = s | {"critic": s["critic"]._replace(params=first["critic"].params)}
    for states, same in ((moved_critic, True), (s, False)):
        grads, _ = agent.actor.gradient(states, b, noise)
        moment = {k: 0.9 * s["actor"].optim["m"][k] + 0.1 * g for k, g in grads.items()}
        assert (largest_difference(moment, first["actor"].optim["m"]) < 1e-6) == same


@pytest.mark.slow
def test_compiled_updates_are_the_eager_ones_and_the_actor_carries_the_critics_encoder():
    eager, fast = (engine(drq_v2(), (0, 1), compile=c) for c in (False, True))
    for count in range(3):
        for e in (eager, fast):
            train(e, 1, start=count, agent_steps=40_000 * count)
        assert carries_the_critics_encoder(fast)
    assert largest_difference(eager.states, fast.states) < 1e-5


# noise


@pytest.mark.parametrize(
    ("step", "sigma"),
    [(0, 1.0), (1, 0.999991), (25_000, 0.775), (50_000, 0.55), (99_999, 0.100009), (100_000, 0.1), (10**7, 0.1)],
)
def test_the_deviation_falls_in_a_line_over_agent_steps_in_acting_and_in_losses(step, sigma):
    agent = drq_v2()
    clock = Clock(steps=10**9, agent_steps=step, env_steps=2 * step, updates=7, task_start=step // 2)
    assert agent.explore(clock) == pytest.approx(sigma, rel=1e-9)
    assert agent.deviation(torch.tensor(step)).item() == pytest.approx(sigma, rel=1e-6)
    assert sigma_at(step) == pytest.approx(sigma, rel=1e-9)
    small = torch.linspace(-0.29, 0.29, 6).reshape(3, 2)  # not clipped at any step
    action = agent.noised(torch.zeros(3, 2), torch.tensor(step), small)
    torch.testing.assert_close(action, sigma * small)


def test_the_schedules_length_and_ends_are_settings():
    agent = drq_v2(noise_initial=0.8, noise_final=0.2, noise_steps=500_000)
    steps = (0, 250_000, 500_000, 600_000)
    assert [agent.explore(Clock(steps=1, agent_steps=n)) for n in steps] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    assert [agent.deviation(torch.tensor(n)).item() for n in steps] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    flat = drq_v2(noise_initial=0.3, noise_final=0.3)
    assert [flat.explore(Clock(steps=1, agent_steps=n)) for n in steps] == pytest.approx([0.3] * 4)


@pytest.mark.parametrize("step", AGENT_STEPS)
def test_both_losses_explore_with_the_deviation_of_the_batchs_agent_step(step):
    agent, s, b, noise = one(agent_steps=step)
    sigma = sigma_at(step)

    def explored(name, key):
        seen = moved(b[key], noise[f"shift/{key}"]).float()
        features, _ = agent.critic(s["critic"].params, seen)
        mean = agent.actor(weights(s["actor"]), features)[0].tanh()
        return features, (mean + (sigma * noise[name]).clamp(-0.3, 0.3)).clamp(-1, 1)

    q = agent.critic(s["critic"].copies["target"], *explored("critic", "next_obs"))[0][..., 0].amin(0)
    target = agent.critic_loss(s["critic"].params, s, b, noise).values["target"]
    torch.testing.assert_close(target, b["reward"] + b["discount"] * q, rtol=1e-4, atol=1e-4)
    q = agent.critic(s["critic"].params, *explored("actor", "obs"))[0][..., 0].amin(0)
    torch.testing.assert_close(agent.actor_loss(s["actor"].params, s, b, noise).loss, -q.mean(), rtol=1e-4, atol=1e-5)


def test_noise_in_losses_is_clipped_and_gradient_passes_the_border_as_if_there_were_none():
    agent = drq_v2()
    mean = torch.tensor([[0.0, 0.5, 0.9, -0.95, 0.99]], requires_grad=True)
    noise = torch.tensor([[9.0, -0.1, 0.25, -4.0, -0.2]])
    action = agent.noised(mean, torch.tensor(0), noise)
    edge = 1 - 1e-6
    torch.testing.assert_close(action, torch.tensor([[0.3, 0.4, edge, -edge, 0.79]]), rtol=0, atol=1e-7)
    slope = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert torch.equal(torch.autograd.grad((slope * action).sum(), mean)[0], slope)
    wide = drq_v2(noise_clip=0.0)
    assert torch.equal(wide.noised(torch.zeros(1, 2), torch.tensor(0), torch.ones(1, 2)), torch.zeros(1, 2))


def test_the_two_losses_and_the_two_shifts_have_draws_of_their_own():
    agent = drq_v2()
    shapes = {name: (n.kind, n.shape) for name, n in agent.noise(BATCH).items()}
    assert shapes == {
        "critic": ("normal", (BATCH, 2)),
        "actor": ("normal", (BATCH, 2)),
        "shift/obs": ("uniform", (BATCH, 2)),
        "shift/next_obs": ("uniform", (BATCH, 2)),
    }
    noise = noise_of(engine(agent, (0, 1)), 0)
    for one_, other in (("critic", "actor"), ("shift/obs", "shift/next_obs")):
        assert not torch.equal(noise[one_], noise[other])
    assert not torch.equal(noise["critic"][0], noise["critic"][1])


# acting


def test_acting_adds_noise_that_is_not_clipped_and_stays_within_the_borders():
    agent, s, _, _ = one()
    obs = batch((0,), 5)["obs"][0]
    plain = PlainDrQV2(s)
    mean = plain.actor(plain.encoder(obs.double())).detach()
    noise = torch.linspace(-2.5, 2.5, 2 * BATCH).reshape(BATCH, 2)
    for step in AGENT_STEPS:
        sigma = agent.explore(Clock(steps=1, agent_steps=step))
        acted = agent.act(s, obs, sigma, {"policy": noise}, "params").double()
        torch.testing.assert_close(acted, (mean + sigma * noise).clamp(-1, 1), rtol=0, atol=1e-5)
    acted = agent.act(s, obs, 1.0, {"policy": noise}, "params").double()
    assert float((acted - mean).abs().max()) > 0.31, "more than a loss would allow"
    assert float(acted.abs().max()) == 1.0


def test_evaluation_takes_the_mean():
    agent, s, _, _ = one()
    assert agent.explore_eval == 0
    obs = batch((0,), 5)["obs"][0]
    plain = PlainDrQV2(s)
    acted = agent.act(s, obs, agent.explore_eval, {"policy": torch.full((BATCH, 2), 3.0)}, "params")
    torch.testing.assert_close(acted.double(), plain.actor(plain.encoder(obs.double())).detach(), rtol=0, atol=1e-5)


def test_the_engine_acts_with_the_host_streams_noise_and_each_members_own_policy():
    agent = drq_v2()
    e = train(engine(agent, (0, 1)), 2)
    obs = batch((0, 1), 5)["obs"]
    acted = e.act(obs.numpy(), 0.7, "act", 3)
    noise = draw_on_host(agent.act_noise(BATCH), (0, 1), "act", 3)
    for i in range(2):
        plain = PlainDrQV2(member(e.states, i))
        mean = plain.actor(plain.encoder(obs[i].double())).detach()
        wanted = (mean + 0.7 * noise["policy"][i]).clamp(-1, 1)
        torch.testing.assert_close(torch.from_numpy(acted[i]).double(), wanted, rtol=0, atol=1e-5)
    assert np.array_equal(acted, e.act(obs.numpy(), 0.7, "act", 3))
    assert not np.array_equal(acted, e.act(obs.numpy(), 0.7, "act", 4))


# the encoder belongs to the critics


def carries_the_critics_encoder(e) -> bool:
    return equal(e.states["actor"].buffers, parts_of(e.states["critic"].params, encoder=True))


def test_the_actor_trains_only_what_stands_behind_the_encoder():
    e = engine(drq_v2())
    s = e.states["actor"]
    for tensors in (s.params, s.birth, *s.optim.values()):
        assert tensors and not parts_of(tensors, encoder=True)
    assert tuple(s.buffers) == ENCODER and tuple(parts_of(e.states["critic"].params, encoder=True)) == ENCODER


def test_the_actors_loss_gives_no_gradient_through_the_features_and_the_critics_loss_does():
    agent, s, b, noise = one()
    for name, reached in (("actor", False), ("critic", True)):
        leaves = {k: p.clone().requires_grad_() for k, p in weights(s[name]).items()}
        loss = getattr(agent, f"{name}_loss")(leaves, s, b, noise).loss
        grads = dict(zip(leaves, torch.autograd.grad(loss, tuple(leaves.values()), allow_unused=True), strict=True))
        for k, g in parts_of(grads, encoder=True).items():
            assert (g is not None and bool(g.any())) == reached, (name, k)
        assert all(g is not None for g in parts_of(grads, encoder=False).values())


def test_the_critics_step_is_the_same_whatever_the_actors_noise():
    agent, s, b, noise = one()
    first, _ = agent.update(clone(s), b, noise)
    second, _ = agent.update(clone(s), b, noise | {"actor": -noise["actor"]})
    assert equal(first["critic"], second["critic"])
    assert not equal(first["actor"].params, second["actor"].params)
    assert not any(torch.equal(first["critic"].params[k], s["critic"].params[k]) for k in ENCODER)
    grads, _ = agent.critic.gradient(s, b, noise)
    for k in ENCODER:
        moment = 0.9 * s["critic"].optim["m"][k] + 0.1 * grads[k]
        torch.testing.assert_close(first["critic"].optim["m"][k], moment, rtol=1e-5, atol=1e-8)


def test_next_observations_are_seen_by_the_critics_encoder_as_it_is_and_without_gradient():
    agent, s, b, noise = one()

    def target(s, params=None):
        return agent.critic_loss(params or s["critic"].params, s, b, noise).values["target"]

    def scaled(tensors, factor=1.5):
        return tensors | {k: factor * x for k, x in parts_of(tensors, encoder=True).items()}

    slow = s["critic"]._replace(copies={"target": scaled(s["critic"].copies["target"])})
    carried = s["actor"]._replace(buffers=scaled(s["actor"].buffers))
    assert torch.equal(target(s), target(s | {"critic": slow}))
    assert torch.equal(target(s), target(s | {"actor": carried}))
    now = s["critic"]._replace(params=scaled(s["critic"].params))
    assert not torch.allclose(target(s), target(s | {"critic": now}))

    leaves = {k: p.clone().requires_grad_() for k, p in s["critic"].params.items()}
    assert not target(s, leaves).requires_grad
    loss = agent.critic_loss(leaves, s, b, noise).loss
    seen = moved(b["obs"], noise["shift/obs"]).float()
    q = agent.critic(leaves, seen, b["action"])[0][..., 0]
    alone = (b["weight"] * (q - target(s)).square()).sum(0).mean()
    grads = (torch.autograd.grad(x, tuple(leaves.values())) for x in (loss, alone))
    for a, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_after_every_update_every_actor_carries_its_critics_encoder_bit_for_bit():
    e = engine(drq_v2(), (0, 1, 2))
    assert carries_the_critics_encoder(e)  # at birth, too
    kept = [x.data_ptr() for x in e.states["actor"].buffers.values()]
    for count in range(3):
        before = clone(e.states["actor"].buffers)
        train(e, 1, start=count)
        assert carries_the_critics_encoder(e)
        assert not any(torch.equal(before[k][i], e.states["actor"].buffers[k][i]) for k in ENCODER[::2] for i in (0, 1))
    assert [x.data_ptr() for x in e.states["actor"].buffers.values()] == kept  # a copy: the storage never moves
    one_, other = (e.states["actor"].buffers[ENCODER[0]][i] for i in (0, 1))
    assert not torch.equal(one_, other)
    alone = train(engine(drq_v2(), (2,)), 3)
    assert equal(member(e.states, 2), member(alone.states, 0))


def test_an_update_by_values_is_the_one_in_place_and_leaves_its_arguments_alone():
    """In place the actor's encoder would follow even if it were not renewed: it is then the critic's own storage."""
    e, agent = train(engine(drq_v2()), 2), drq_v2()
    s = clone(member(e.states, 0))
    kept = clone(s)
    b = member(batch((0,), 2), 0) | {"step": torch.tensor(0)}
    new, _ = agent.update(s, b, member(noise_of(e, 2), 0))
    assert equal(s, kept)
    assert equal(new["actor"].buffers, parts_of(new["critic"].params, encoder=True))
    train(e, 1, start=2)
    assert largest_difference([*new.values()], [*member(e.states, 0).values()]) < 1e-6


def test_a_member_that_is_frozen_carries_the_encoder_it_was_frozen_with():
    e = train(engine(drq_v2(), (0, 1)), 2)
    bad = batch(e.seeds, 2)
    bad["reward"] = bad["reward"].clone()
    bad["reward"][0, 0] = math.nan
    before = clone(e.states)
    e.update(bad, clock_at(2))
    assert e.diverged() == [True, False] and carries_the_critics_encoder(e)
    for name, s in member(e.states, 0).items():
        old = member(before, 0)[name]
        assert all(equal(getattr(old, field), getattr(s, field)) for field in ("params", "buffers", "optim"))


def test_the_actor_has_the_critics_encoder_at_birth_and_after_every_event():
    """Its slow copies begin with it too; afterwards they are averages of their own."""
    agent = drq_v2([HareAndTortoise(when=When(at=(10**6,))), Reset(where=("all",), on=("*",), when=When(at=(2,)))])
    e = Engine(agent, (0, 1), BATCH, compile=False)
    assert carries_the_critics_encoder(e)
    for states in e._members:
        slow, fast = states["actor"].copies["tortoise"], weights(states["actor"])
        assert slow.keys() == fast.keys() and all(torch.equal(slow[k], fast[k]) for k in fast)
    train(e, 2)
    before = clone(e.states)
    clock = Clock(steps=10**9, updates=2, last={"updates": 1})
    rows = e.intervene(clock, ("updates",), lambda stream, count, size: pytest.fail("this event looks at no data"))
    assert len(rows) == 4
    assert not any(torch.equal(before["critic"].params[k], e.states["critic"].params[k]) for k in ENCODER[::2])
    assert carries_the_critics_encoder(e)


# the published agent


@pytest.fixture(scope="module")
def config():
    return load(["agent=drq_v2", "env=dmc/finger-spin"])  # easy, and without settings of its own


@pytest.fixture(scope="module")
def published(config) -> DrQV2:
    return assemble.agent(config, WALKER)


def test_the_defaults_are_the_published_ones(config):
    o = config.agent
    assert (o.learning_rate, o.weight_decay, o.batch_size, o.discount) == (1e-4, 0.0, 256, 0.99)
    assert (o.n_step, o.critics, o.tau, o.noise_clip) == (3, 2, 0.01, 0.3)
    assert (o.noise_initial, o.noise_final, o.noise_steps) == (1.0, 0.1, 100_000)
    assert (o.augment.shift, o.augment.intensity) == (4, 0.0)
    assert (o.act_with, o.evaluate_with) == ("params", "auto")
    assert o == DrQV2.Settings()
    assert (config.warmup, config.replay_ratio, config.replay.capacity) == (2_000, 0.5, 1_000_000)
    assert (config.agent_kind, type(config.replay).__name__, config.value) == ("drq_v2", "Uniform", nets.Scalar("mse"))
    options = config.env_options
    assert (options["pixels"], options["colours"], options["stack"], options["action_repeat"]) == (84, "rgb", 3, 2)
    net = config.net
    assert (net.channels, net.strides, net.padding, net.centred) == ((32,) * 4, (2, 1, 1, 1), "valid", True)
    assert (net.width, net.depth, net.bottleneck, net.init) == (1024, 2, 50, "orthogonal_1")
    assert (net.norm, net.activation, net.dropout) == ("none", "relu", 0.0)


def test_the_settings_of_single_tasks_are_their_authors():
    """cfgs/task/*.yaml of facebookresearch/drqv2, every task of the suite that has one."""
    easy = ["cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup", "ball_in_cup-catch", "finger-spin"]
    easy += ["hopper-stand", "pendulum-swingup", "walker-stand", "walker-walk"]
    medium = ["acrobot-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-turn_easy", "finger-turn_hard"]
    medium += ["hopper-hop", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run"]
    hard = ["humanoid-run", "humanoid-stand", "humanoid-walk"]
    decays = dict.fromkeys(easy, 100_000) | dict.fromkeys(medium, 500_000) | dict.fromkeys(hard, 2_000_000)
    for task, noise_steps in decays.items():
        config = load(["agent=drq_v2", f"env=dmc/{task}"])
        o, hardest = config.agent, task in hard
        assert o.noise_steps == noise_steps, task
        assert (o.n_step, o.batch_size) == ((1, 512) if task.startswith("walker") else (3, 256)), task
        assert (o.learning_rate, config.net.bottleneck) == ((8e-5, 100) if hardest else (1e-4, 50)), task
        assert config.replay.capacity == (100_000 if task == "quadruped-run" else 1_000_000), task


def test_adam_is_torchs_own_and_the_networks_evaluated_are_those_that_learn(published):
    for part in published.parts.values():
        assert (part.optim.lr, part.optim.b1, part.optim.b2, part.optim.eps) == (1e-4, 0.9, 0.999, 1e-8)
        assert part.optim.clip_norm == 0
    assert published.critic.copies == ("target",) and published.actor.copies == ()
    assert assemble.evaluated_role(published) == "params"


def test_nine_channels_become_39200_features_and_the_parameters_are_those_counted_by_hand(config, published):
    assert WALKER.seen_shape == (9, 84, 84)
    encoder = config.net.encoder(WALKER.seen_shape)
    out, feats = encoder(torch.zeros(1, 9, 84, 84, dtype=torch.uint8))
    assert [tuple(feats[f"h{i}"].shape[1:]) for i in range(4)] == [(32, side, side) for side in (41, 39, 37, 35)]
    assert out.shape == (1, 39_200) and encoder.n_out == 32 * 35 * 35

    convs = (9 * 9 * 32 + 32) + 3 * (32 * 9 * 32 + 32)
    bottleneck = 39_200 * 50 + 50 + 2 * 50
    critic = (50 + 6) * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 + 1
    actor = 50 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 6 + 6
    assert (convs, bottleneck, critic, actor) == (30_368, 1_960_150, 1_108_993, 1_107_974)
    count = {name: sum(shape.numel() for shape in part.shapes.values()) for name, part in published.parts.items()}
    assert count == {"critic": convs + bottleneck + 2 * critic, "actor": bottleneck + actor}


def test_pixels_lie_between_minus_a_half_and_a_half(config):
    encoder = config.net.encoder(WALKER.seen_shape)
    seen = []
    encoder.convs[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    frames = torch.zeros(1, 9, 84, 84, dtype=torch.uint8)
    frames[:, 1], frames[:, 2] = 255, 51
    encoder(frames)
    assert [seen[0][0, i].unique().tolist() for i in (0, 1, 2)] == [[-0.5], [0.5], [pytest.approx(-0.3)]]


def test_newborn_weights_are_orthogonal_with_gain_sqrt_2_in_convolutions_and_1_in_linear_layers(published):
    for part in published.parts.values():
        born = part.birth(0)
        for k, p in {**born.params, **born.buffers}.items():
            if p.ndim > 1:
                gain = math.sqrt(2) if ".convs." in k else 1.0
                rows = p.flatten(1).double()
                gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
                wanted = gain**2 * torch.eye(len(gram), dtype=torch.float64)
                torch.testing.assert_close(gram, wanted, rtol=0, atol=1e-4, msg=lambda m, k=k: k + m)
            else:
                assert bool((p == float(k.endswith("norm.weight"))).all()), k
        for role, copy in born.copies.items():
            assert role == "target" and all(torch.equal(copy[k], p) for k, p in born.params.items())


def test_frames_move_as_the_authors_bilinear_grid_moves_them():
    """Their offsets are whole pixels, so that nothing is mixed: the same bytes but for rounding."""
    agent, frames = drq_v2(), batch((0,), 0)["obs"][0]
    places = torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"), -1).reshape(-1, 2)
    for start in range(0, 81, BATCH):
        fraction = (places[start : start + BATCH] + 0.5) / 9
        some = frames[: len(fraction)]
        b = {"obs": some, "next_obs": some}
        seen = agent.settings.augment(b, {"shift/obs": fraction, "shift/next_obs": fraction.flip(1)})
        assert seen["obs"].dtype == torch.uint8
        for name, own in (("obs", fraction), ("next_obs", fraction.flip(1))):
            torch.testing.assert_close(seen[name].double(), moved(some, own), rtol=0, atol=1e-6)


# what it cannot do


@pytest.mark.parametrize(
    ("spec", "net", "advice"),
    [
        (CONTROL, NET, "needs frames; env=toy/control shows vectors; use env.pixels=84"),
        (FRAMES, NET, "needs continuous actions; env=toy/frames has not; use agent=dqn$"),
        (PIXELS, nets.Vectors(), "^net: .*use net=drq$"),
        (PIXELS, nets.Nature(), "^net: .*use net=drq$"),
        (PIXELS, nets.DrQ(channels=(4,) * 12, strides=(2,) * 12, padding="valid"), "too small"),
    ],
    ids=["vectors", "discrete", "mlp", "nature", "too many convolutions"],
)
def test_what_it_cannot_do_is_refused_in_one_line_with_the_fix(spec, net, advice):
    with pytest.raises(ValueError, match=advice) as error:
        drq_v2(spec=spec, net=net)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ("agent.noise_clip=-0.1", "^agent.noise_clip: -0.1 given; expected at least 0"),
        ("agent.noise_steps=0", "^agent.noise_steps: 0 given; expected at least 1"),
        ("agent.n_step=0", "^agent.n_step: 0 given; expected at least 1"),
        ("agent.stddev=0.1", "agent.stddev: no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(wrong, advice):
    with pytest.raises(ValueError, match=advice) as error:
        load(["agent=drq_v2", "env=dmc/walker-walk", wrong])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [nets.TwoHot(), nets.C51(), nets.Quantiles(bins=7)], ids=lambda v: type(v).__name__)
def test_values_that_are_distributions_train_all_parts_too(value):
    agent = drq_v2(value=value)
    e = engine(agent)
    born = clone(e.states)
    train(e, 2)
    assert e.diverged() == [False]
    for name in ("critic", "actor"):
        assert all(not torch.equal(old, e.states[name].params[k]) for k, old in born[name].params.items())
