"""IQL against a plain-torch implementation of the authors' update; the expectile, the weights, the policy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, engine, equal, largest_difference, named
from scipy.stats import expectile
from torch import nn
from torch.distributions import Normal
from torch.utils._pytree import tree_map

import nets
from agents.iql import IQL
from core.assemble import evaluated_role
from core.clock import Clock
from core.config import load
from core.part import descend
from core.randomness import draw_on_host
from core.spec import EnvSpec
from core.state import clone, member, weights

NET = nets.Vectors(width=16)
LINEAR = nets.Vectors(depth=0)  # each network is one linear map, so that its outputs can be set by hand
MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq", "t": "step"}


def iql(spec=CONTROL, net=NET, value=None, interventions=(), **settings) -> IQL:
    """An IQL of some two thousand weights."""
    settings = IQL.Settings(**{"batch_size": BATCH, "learning_rate": 1e-3, "tau": 0.05} | settings)
    return IQL(settings, spec, net, value or nets.Scalar("mse"), named(interventions))


def batch(seeds, count: int):
    """A made-up batch with importance weights that are not 1, which are the critics' alone."""
    weight = torch.linspace(0.2, 1.0, BATCH).expand(len(seeds), BATCH)
    return batch_for(CONTROL, seeds, count) | {"weight": weight}


def train(e, updates: int, start: int = 0):
    for count in range(start, start + updates):
        e.update(batch(e.seeds, count), Clock(steps=10**9, updates=count))
    return e


def one(updates: int = 2, **settings):
    """An agent, its state after some updates, and a batch."""
    agent = iql(**settings)
    e = train(engine(agent), updates)
    return agent, member(e.states, 0), member(batch((0,), updates), 0)


# an independent implementation, after ikostrikov/implicit_q_learning


def perceptron(n_in: int, n_out: int):
    return nn.Sequential(nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, n_out))


class PlainCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q1, self.q2 = perceptron(7, 1), perceptron(7, 1)

    def forward(self, obs, action):
        x = torch.cat([obs, action], 1)
        return self.q1(x)[:, 0], self.q2(x)[:, 0]


class PlainActor(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_stds, self.mean = nn.Parameter(torch.zeros(2)), perceptron(5, 2)

    def forward(self, obs):
        return Normal(torch.tanh(self.mean(obs)), torch.exp(torch.clip(self.log_stds, -5.0, 2.0)))


class PlainIQL:
    """Their learner in double precision, going on from these newborn states."""

    def __init__(self, states, expectile=0.7, temperature=3.0, tau=0.05, learning_rate=1e-3):
        self.expectile, self.temperature, self.tau = expectile, temperature, tau
        networks = PlainCritic(), PlainCritic(), perceptron(5, 1), PlainActor()
        self.critic, self.target, self.value, self.actor = (x.double() for x in networks)
        for own, theirs, _ in self.pairs(states):
            assert own.shape == theirs.shape
            own.data.copy_(theirs)
        self.optimizers = {name: torch.optim.Adam(p, lr=learning_rate) for name, p in self.trained.items()}
        self.weight = torch.empty(0)  # of the latest update

    @property
    def trained(self):
        return {name: list(getattr(self, name).parameters()) for name in ("critic", "value", "actor")}

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

    def update(self, b):
        b = tree_map(lambda x: x.double() if x.is_floating_point() else x, b)
        losses = {}
        with torch.no_grad():
            q = torch.minimum(*self.target(b["obs"], b["action"]))
        diff = q - self.value(b["obs"])[:, 0]
        losses["value"] = self.step(
            "value", (torch.where(diff > 0, self.expectile, 1 - self.expectile) * diff**2).mean()
        )
        with torch.no_grad():
            v = self.value(b["obs"])[:, 0]
            self.weight = torch.minimum(torch.exp((q - v) * self.temperature), torch.tensor(100.0))
        log_probs = self.actor(b["obs"]).log_prob(b["action"]).sum(-1)
        losses["actor"] = self.step("actor", -(self.weight * log_probs).mean())
        with torch.no_grad():
            target_q = b["reward"] + b["discount"] * self.value(b["next_obs"])[:, 0]
        q1, q2 = self.critic(b["obs"], b["action"])
        losses["critic"] = self.step("critic", (b["weight"] * ((q1 - target_q) ** 2 + (q2 - target_q) ** 2)).mean())
        with torch.no_grad():
            for slow, p in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_(p * self.tau + slow * (1 - self.tau))
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


@pytest.mark.parametrize(("tau", "beta"), [(0.7, 3.0), (0.9, 10.0)], ids=["locomotion", "mazes"])
def test_its_updates_are_those_of_a_plain_implementation_for_every_seed(tau, beta):
    e = engine(iql(expectile=tau, beta=beta), (0, 3))
    born = clone(e.states)
    plain = [PlainIQL(member(e.states, i), tau, beta) for i in range(2)]
    met = []
    for count in range(6):
        b = batch(e.seeds, count)
        info = e.update(b, Clock(steps=10**9, updates=count))
        for i, mine in enumerate(plain):
            losses = mine.update(member(b, i))
            for name in ("value", "actor", "critic"):
                assert info[f"{name}/loss"][i].item() == pytest.approx(losses[name], rel=1e-4, abs=1e-5)
            mine.check(member(e.states, i))
            met.append(mine.weight)
    for name in ("critic", "value", "actor"):
        for old, new in zip(born[name].params.values(), e.states[name].params.values(), strict=True):
            assert float((new - old).abs().max()) > 1e-3, "a comparison of what hardly moves would show nothing"
    met = torch.cat(met)
    assert bool((met == 100).any()) and bool(((met > 0.1) & (met < 90)).any()), "clipped weights, and others"


def test_the_order_is_value_then_actor_then_critic_then_target_each_with_the_new_value():
    agent, s, b = one()
    new, _ = agent.update(clone(s), b)if False else agent.update(clone(s), b | {"alive": torch.tensor(True)}, {})
    value, _ = descend(agent.state_value, clone(s), b | {"alive": torch.tensor(True)}, {})
    for states, same in ((s | {"value": value["value"]}, True), (s, False)):
        for part in (agent.actor, agent.critic):
            grads, _ = part.gradient(states, b, {})
            moment = {k: 0.9 * s[part.name].optim["m"][k] + 0.1 * g for k, g in grads.items()}
            assert (largest_difference(moment, new[part.name].optim["m"]) < 1e-6) == same
    for k, slow in new["critic"].copies["target"].items():
        wanted = 0.95 * s["critic"].copies["target"][k] + 0.05 * new["critic"].params[k]
        torch.testing.assert_close(slow, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_asks_what_the_policy_would_do():
    """Value and critics are the same beside any actor; and the update takes no random numbers."""
    agent, s, b = one()
    other = s | {"actor": s["actor"]._replace(params={k: p + 0.3 for k, p in s["actor"].params.items()})}
    first, second = (agent.update(clone(x), b | {"alive": torch.tensor(True)}, {})[0] for x in (s, other))
    assert equal([first[k] for k in ("value", "critic")], [second[k] for k in ("value", "critic")])
    assert agent.noise(BATCH) == {}


def test_the_value_sees_the_target_and_the_critics_regress_on_the_value():
    agent, s, b = one()
    params = {name: s[name].params for name in s}
    now = s | {"critic": s["critic"]._replace(params={k: 2 * p for k, p in s["critic"].params.items()})}
    slow = {"target": {k: 2 * p for k, p in s["critic"].copies["target"].items()}}
    slow = s | {"critic": s["critic"]._replace(copies=slow)}
    for loss, name in ((agent.value_loss, "value"), (agent.actor_loss, "actor")):
        assert torch.equal(loss(params[name], s, b, {}).loss, loss(params[name], now, b, {}).loss)
        assert not torch.equal(loss(params[name], s, b, {}).loss, loss(params[name], slow, b, {}).loss)
    outcome = agent.critic_loss(params["critic"], s, b, {})
    assert torch.equal(outcome.loss, agent.critic_loss(params["critic"], slow, b, {}).loss)
    v = agent.state_value(params["value"], b["next_obs"])[0][:, 0]
    torch.testing.assert_close(outcome.values["target"], b["reward"] + b["discount"] * v)
    ended = agent.critic_loss(params["critic"], s, b | {"discount": torch.zeros(BATCH)}, {})
    assert torch.equal(ended.values["target"], b["reward"])


@pytest.mark.slow
def test_compiled_updates_are_the_eager_ones():
    eager, fast = (train(engine(iql(), (0, 1), compile=c), 3) for c in (False, True))
    assert fast.batched and not eager.batched
    assert largest_difference(eager.states, fast.states) < 1e-5


# the expectile


def by_hand(q1, q2, v: float, **settings):
    """An agent whose target critics give these numbers, whose V is `v`, and a batch. log std 0, mean 0."""
    agent = iql(net=LINEAR, **settings)
    s = member(engine(agent).states, 0)
    for part in s.values():
        for tensors in (part.params, *part.copies.values()):
            for x in tensors.values():
                x.zero_()
    target = s["critic"].copies["target"]
    for i in range(2):
        target[f"q.{i}.head.weight"][0, i] = 1.0  # critic i reads the observation's number i
    s["value"].params["head.bias"].fill_(v)
    obs = torch.zeros(len(q1), 5)
    obs[:, 0], obs[:, 1] = torch.tensor(q1), torch.tensor(q2)
    count = len(q1)
    action = torch.linspace(-1, 1, 2 * count).reshape(count, 2)
    b = {"obs": obs, "next_obs": obs, "action": action, "reward": torch.zeros(count), "discount": torch.ones(count)}
    return agent, s, b | {"weight": torch.ones(count)}


def test_the_values_loss_by_hand():
    """The smaller critic minus V = 1: -2, -1, 1, 2. At tau 0.7: (0.3 * 4 + 0.3 * 1 + 0.7 * 1 + 0.7 * 4) / 4 = 1.25"""
    q1, q2 = [-1.0, 5.0, 2.0, 3.0], [0.0, 0.0, 9.0, 3.5]
    for tau, loss, slope in ((0.7, 1.25, -0.6), (0.5, 1.25, 0.0), (0.9, 1.25, -1.2), (1.0, 1.25, -1.5)):
        agent, s, b = by_hand(q1, q2, 1.0, expectile=tau)
        outcome = agent.value_loss(s["value"].params, s, b, {})
        assert outcome.loss.item() == pytest.approx(loss)  # errors of both signs alike: tau shows in the slope
        assert outcome.info["value/advantage"].item() == pytest.approx(0.0)
        grads, _ = agent.state_value.gradient(s, b, {})
        assert grads["head.bias"].item() == pytest.approx(slope, abs=1e-6)
    agent, s, b = by_hand(q1, q2, 0.0, expectile=0.7)  # -1, 0, 2, 3
    assert agent.value_loss(s["value"].params, s, b, {}).loss.item() == pytest.approx((0.3 + 0 + 0.7 * 13) / 4)


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7, 0.9])
def test_v_converges_to_the_expectile_of_what_it_is_fitted_to(tau):
    numbers = np.random.default_rng(0).exponential(2.0, 200).astype(np.float32)
    agent, s, b = by_hand(numbers.tolist(), (numbers + 1).tolist(), 1.0, expectile=tau, learning_rate=0.02)
    b |= {"alive": torch.tensor(True)}
    s["value"].params["head.weight"].zero_()
    target = {k: x.clone() for k, x in s["critic"].copies["target"].items()}
    for i in range(2):  # let the critics read the action, so that V, which cannot, has one number to give
        target[f"q.{i}.head.weight"].zero_()
        target[f"q.{i}.head.weight"][0, 5] = 1.0
    target["q.1.head.bias"].fill_(1.0)
    s["critic"].copies["target"] = target
    b |= {"obs": torch.zeros(200, 5), "action": torch.stack([torch.from_numpy(numbers)] * 2, 1)}
    for _ in range(400):
        s, _ = descend(agent.state_value, s, b, {})
    assert s["value"].params["head.bias"].item() == pytest.approx(expectile(numbers, alpha=tau), abs=2e-3)
    if tau == 0.5:
        assert expectile(numbers, alpha=tau) == pytest.approx(numbers.mean(), rel=1e-5)
