"""IQL against a plain-torch implementation of the authors' update; the expectile, the weights, the policy."""

from __future__ import annotations

import math

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
from core.run_options import Priming
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
    return agent, member(e.states, 0), member(batch((0,), updates), 0) | {"alive": torch.tensor(True)}


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
    for i in range(2):
        e.states["critic"].copies["target"][f"q.{i}.head.bias"].add_(1.5)  # some actions are far better than V
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
    new, _ = agent.update(clone(s), b, {})
    value, _ = descend(agent.state_value, clone(s), b, {})
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
    first, second = (agent.update(clone(x), b, {})[0] for x in (s, other))
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


def by_hand(q1, q2, v: float, scale: float = 1.0, **settings):
    """An agent whose target critics give these numbers and whose V is `v`, with a batch.

    Every network is one linear map. Critic i gives `scale` times the action's number i; all observations are zero, so
    that V and the policy's mean are their biases, `v` and 0; the deviations are 1.
    """
    agent = iql(net=LINEAR, **settings)
    s = clone(member(engine(agent).states, 0))
    for part in s.values():
        for tensors in (part.params, *part.copies.values()):
            for x in tensors.values():
                x.zero_()
    for i in range(2):
        s["critic"].copies["target"][f"q.{i}.head.weight"][0, 5 + i] = scale
    s["value"].params["head.bias"].fill_(v)
    action = torch.stack([torch.tensor(q1), torch.tensor(q2)], 1) / scale
    obs, ones = torch.zeros(len(action), 5), torch.ones(len(action))
    b = {"obs": obs, "next_obs": obs, "action": action, "reward": 0 * ones, "discount": ones, "weight": ones}
    return agent, s, b | {"alive": torch.tensor(True)}


def test_the_values_loss_by_hand():
    """The smaller critic minus V = 1 is -2, -1, 1, 2. At tau 0.7: (0.3 * 4 + 0.3 * 1 + 0.7 * 1 + 0.7 * 4) / 4."""
    q1, q2 = [-1.0, 5.0, 2.0, 3.0], [0.0, 0.0, 9.0, 3.5]
    for tau, slope in ((0.7, -0.6), (0.5, 0.0), (0.9, -1.2), (1.0, -1.5)):
        agent, s, b = by_hand(q1, q2, 1.0, expectile=tau)
        outcome = agent.value_loss(s["value"].params, s, b, {})
        assert outcome.loss.item() == pytest.approx(1.25)  # both signs alike: tau shows in the slope
        assert outcome.info["value/advantage"].item() == pytest.approx(0.0)
        grads, _ = agent.state_value.gradient(s, b, {})
        assert grads["head.bias"].item() == pytest.approx(slope, abs=1e-6)
    agent, s, b = by_hand(q1, q2, 0.0, expectile=0.7)  # -1, 0, 2, 3
    assert agent.value_loss(s["value"].params, s, b, {}).loss.item() == pytest.approx((0.3 + 0.7 * 13) / 4)


@pytest.mark.parametrize("tau", [0.3, 0.5, 0.7, 0.9])
def test_v_converges_to_the_expectile_of_what_it_is_fitted_to(tau):
    numbers = np.random.default_rng(0).exponential(2.0, 200)
    q1 = numbers.astype(np.float32).tolist()
    agent, s, b = by_hand(q1, [q + 1 for q in q1], 1.0, expectile=tau, learning_rate=0.05)
    for _ in range(500):
        s, _ = descend(agent.state_value, s, b, {})
    fitted = s["value"].params["head.bias"].item()
    assert fitted == pytest.approx(expectile(numbers, alpha=tau), abs=1e-3)
    assert (fitted > numbers.mean() + 0.1) == (tau > 0.5) and (fitted < numbers.mean() - 0.1) == (tau < 0.5)


# the weights of actions


def test_weights_by_hand_are_exponential_in_the_advantage_and_clipped_at_100():
    """Advantages 0, 1, -1 and, around the border, log(100) / 3 -+ 0.01 and far beyond."""
    border = math.log(100) / 3
    ahead = [0.0, 1.0, -1.0, border - 0.01, border + 0.01, 50.0, 1e5]
    wanted = [1.0, math.exp(3), math.exp(-3), 100 * math.exp(-0.03), 100.0, 100.0, 100.0]
    for each, weight in zip(ahead, wanted, strict=True):
        agent, s, b = by_hand([each + 2], [each + 7], 2.0, scale=1e5, beta=3.0)
        cloning = iql(net=LINEAR, beta=0.0)
        for x in (s["actor"].params["log_std"], s["actor"].params["head.bias"]):
            x.copy_(torch.tensor([0.3, -0.2]))
        b["action"][:, 1] += 1e-3  # the second critic is the greater
        ours, theirs = (a.actor.gradient(s, b, {}) for a in (agent, cloning))
        assert ours[1].loss.item() == pytest.approx(weight * theirs[1].loss.item(), rel=1e-4)
        for k, g in theirs[0].items():
            torch.testing.assert_close(ours[0][k], weight * g, rtol=1e-4, atol=1e-6)


def test_without_beta_it_clones_the_data_whatever_critics_and_value_say():
    agent, s, b = one(beta=0.0)
    other = {name: s[name]._replace(params={k: 3 * p for k, p in s[name].params.items()}) for name in ("value",)}
    slow = {"target": {k: 5 * p for k, p in s["critic"].copies["target"].items()}}
    other = s | other | {"critic": s["critic"]._replace(copies=slow)}
    grads, outcome = agent.actor.gradient(s, b, {})
    again, _ = agent.actor.gradient(other, b, {})
    assert equal(grads, again)
    plain = PlainIQL(s)
    nll = -plain.actor(b["obs"].double()).log_prob(b["action"].double()).sum(-1).mean()
    nll.backward()
    assert outcome.loss.item() == pytest.approx(nll.item(), rel=1e-5)
    for p, k in zip(plain.actor.parameters(), grads, strict=True):
        torch.testing.assert_close(grads[k].double(), p.grad, rtol=1e-4, atol=1e-6)


def test_a_greater_beta_pulls_the_policy_to_the_better_actions():
    """A bandit: values are -(a0 - 0.5)^2 for actions drawn evenly. Clones stay at the mean, 0; beta draws near 0.5."""
    reached = []
    for beta in (0.0, 3.0, 30.0):
        action = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
        agent, s, b = by_hand([0.0] * 512, [0.0] * 512, 0.0, beta=beta, learning_rate=0.02)
        q = -((action[:, 0] - 0.5) ** 2)
        agent.advantage = lambda params, s, b, q=q: (q, {})
        b |= {"action": action}
        for _ in range(200):
            s, _ = descend(agent.actor, s, b, {})
        reached.append(s["actor"].params["head.bias"].tanh()[0].item())
        weight = torch.exp(beta * q)
        assert reached[-1] == pytest.approx(float((weight * action[:, 0]).sum() / weight.sum()), abs=5e-3)
    assert abs(reached[0]) < 0.06 and 0.3 < reached[1] < reached[2] - 0.05 < 0.45


# the policy


def test_the_log_probability_is_torchs_and_the_mean_goes_through_tanh():
    agent, s, b = one(beta=0.0)
    for log_std in ([0.0, 0.0], [-1.5, 0.7], [-4.9, 1.9], [-7.0, 3.0]):
        s["actor"].params["log_std"].copy_(torch.tensor(log_std))
        out, _ = agent.actor(s["actor"].params, b["obs"])
        policy = Normal(out[:, 0].tanh(), torch.tensor(log_std).clamp(-5, 2).exp())
        for i in range(BATCH):  # a batch of one: minus its log-probability
            single = {k: x[i : i + 1] for k, x in b.items() if x.ndim}
            loss = agent.actor_loss(s["actor"].params, s, single, {}).loss
            wanted = -policy.log_prob(b["action"])[i].sum()
            torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
        info = agent.actor_loss(s["actor"].params, s, b, {}).info
        assert info["actor/deviation"].item() == pytest.approx(policy.scale.mean().item(), rel=1e-5)


def test_deviations_do_not_depend_on_the_state_and_are_learned_from_1_within_bounds():
    agent = iql()
    e = engine(agent)
    assert torch.equal(e.states["actor"].params["log_std"], torch.zeros(1, 2))
    train(e, 3)
    s = member(e.states, 0)
    assert bool((s["actor"].params["log_std"].abs() > 1e-3).all())
    _, log_std, _ = agent.gaussian(s["actor"].params, torch.randn(50, 5))
    assert torch.equal(log_std, s["actor"].params["log_std"].expand(50, 2))
    b = member(batch((0,), 3), 0)
    for outside in (-5.5, 2.5):
        s["actor"].params["log_std"].fill_(outside)
        grads, _ = agent.actor.gradient(s, b, {})
        assert not grads["log_std"].any()  # as jax clips: no gradient from outside


def test_acting_samples_the_policy_within_the_borders_and_evaluation_takes_the_mean():
    agent = iql()
    e = train(engine(agent, (0, 1)), 3)
    obs = batch((0, 1), 9)["obs"]
    assert agent.explore(Clock(steps=1, agent_steps=10**6)) == 1.0 and agent.explore_eval == 0.0
    drawn = draw_on_host(agent.act_noise(BATCH), (0, 1), "act", 3)["policy"]
    for explore in (1.0, 0.0):
        acted = torch.from_numpy(e.act(obs.numpy(), explore, "act", 3)).double()
        assert acted.shape == (2, BATCH, 2) and float(acted.abs().max()) <= 1
        for i in range(2):
            policy = PlainIQL(member(e.states, i)).actor(obs[i].double())
            wanted = (policy.mean + explore * policy.stddev * drawn[i]).clamp(-1, 1).detach()
            torch.testing.assert_close(acted[i], wanted, rtol=0, atol=1e-5)
    s, noise = member(e.states, 0), {"policy": torch.full((BATCH, 2), 9.0)}
    assert bool((agent.act(s, obs[0], 1.0, noise, "params") == 1).all())
    mean = agent.actor(weights(s["actor"]), obs[0])[0][:, 0].tanh()
    assert torch.equal(agent.act(s, obs[0], agent.explore_eval, noise, "params"), mean)


# seeds, defaults, and what it cannot do


def test_a_member_of_many_learns_what_it_would_alone():
    together, alone = train(engine(iql(), (0, 1, 2)), 3), train(engine(iql(), (2,)), 3)
    assert equal(member(together.states, 2), member(alone.states, 0))


def test_newborn_networks_have_jaxs_orthogonal_weights_and_a_target_that_is_the_critic():
    s = member(engine(iql()).states, 0)
    assert equal(s["critic"].params, s["critic"].copies["target"])
    assert not s["value"].copies and not s["actor"].copies
    for part in s.values():
        for k, p in part.params.items():
            if p.ndim > 1:
                singular = torch.linalg.svdvals(p)
                torch.testing.assert_close(singular, torch.full_like(singular, math.sqrt(2)), rtol=1e-4, atol=1e-4)
            else:
                assert not p.any(), k


def test_the_defaults_are_those_of_the_authors_locomotion_tasks():
    config = load(["agent=iql", "env=dmc/walker-walk"])
    o = config.agent
    assert o == IQL.Settings()
    assert (o.learning_rate, o.weight_decay, o.batch_size, o.discount, o.n_step) == (3e-4, 0.0, 256, 0.99, 1)
    assert (o.critics, o.tau, o.expectile, o.beta) == (2, 0.005, 0.7, 3.0)
    assert (config.net, config.value) == (nets.Vectors(width=256, depth=2, init="orthogonal"), nets.Scalar("mse"))
    assert (config.replay_ratio, config.warmup, config.offline.pooled) == (1, 5, True)
    assert load(["agent=iql", "env=dmc/walker-walk", "steps=500_000"]).priming == Priming(1_000_000, 0)
    agent = iql()
    assert all(
        (p.optim.b1, p.optim.b2, p.optim.eps, p.optim.clip_norm) == (0.9, 0.999, 1e-8, 0) for p in agent.parts.values()
    )
    assert evaluated_role(agent) == "params"


@pytest.mark.parametrize(
    ("spec", "value", "advice"),
    [
        (VECTOR, None, "^agent=iql needs continuous actions; env=toy/vector has not; use agent=dqn$"),
        (FRAMES, None, "^agent=iql needs continuous actions; env=toy/frames has not; use agent=dqn$"),
        (
            EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3),
            None,
            "needs vectors; use net=mlp and env.pixels=0",
        ),
        (CONTROL, nets.TwoHot(), "^value: .*use value=scalar$"),
        (CONTROL, nets.HLGauss(), "^value: .*use value=scalar$"),
        (CONTROL, nets.C51(), "^value: .*use value=scalar$"),
        (CONTROL, nets.Quantiles(), "^value: .*use value=scalar$"),
    ],
    ids=["discrete", "discrete frames", "frames", "two_hot", "hl_gauss", "c51", "quantiles"],
)
def test_what_it_cannot_do_is_refused_in_one_line_with_the_fix(spec, value, advice):
    with pytest.raises(ValueError, match=advice) as error:
        iql(spec=spec, value=value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ("agent.expectile=0", "^agent.expectile: 0 given; expected more than 0"),
        ("agent.expectile=1.2", "^agent.expectile: 1.2 given; expected more than 0 and at most 1"),
        ("agent.beta=-1", "^agent.beta: -1 given; expected at least 0"),
        ("agent.temperature=3", "agent.temperature: no such setting"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(wrong, advice):
    with pytest.raises(ValueError, match=advice) as error:
        load(["agent=iql", "env=dmc/walker-walk", wrong])
    assert "\n" not in str(error.value)
