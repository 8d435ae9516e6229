"""DQN by hand, and SAC against a plain-torch implementation of jaxrl's update."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, equal, largest_difference, run, sac
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution
from torch.utils._pytree import tree_map

from agents import DQN, SAC
from agents.dqn import Exploration
from core.clock import Clock
from core.gradients import shortened
from core.randomness import Noise, draw
from core.state import member
from nets import C51, VALUES, Nature, Scalar, TwoHot, Vectors
from nets.value import least

STEPS = Clock(steps=10**6)


def born(agent, seed=0):
    """States of one seed, every slow copy with weights of its own."""
    states = {name: part.birth(seed) for name, part in agent.parts.items()}
    for name, part in agent.parts.items():
        copies = {role: part.birth(seed + 100).params for role in part.copies}
        states[name] = states[name]._replace(copies=copies)
    return states


def batch(spec, seed=0, **fields):
    """A made-up batch with importance weights that are not 1."""
    weight = torch.linspace(0.2, 1.0, BATCH)
    return member(batch_for(spec, (seed,), seed), 0) | {"weight": weight, "update": torch.tensor(1)} | fields


def huber(error: float) -> float:
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


# DQN: loss


@pytest.mark.parametrize("spec", [VECTOR, FRAMES], ids=["vectors", "frames"])
@pytest.mark.parametrize("double", [True, False])
def test_dqns_loss_is_the_weighted_huber_loss_of_the_td_error(double, spec):
    agent = dqn(spec=spec, double=double)
    s, b = born(agent), batch(spec)
    b["reward"] = 3 * b["reward"]  # both branches of the Huber loss
    outcome = agent.q_loss(s["q"].params, s, b, {})
    q = agent.q(s["q"].params, b["obs"])[0][..., 0].tolist()
    chooser = agent.q(s["q"].params, b["next_obs"])[0][..., 0].tolist()
    judge = agent.q(s["q"].copies["target"], b["next_obs"])[0][..., 0].tolist()
    errors, targets = [], []
    for i in range(BATCH):
        scores = chooser[i] if double else judge[i]
        best = scores.index(max(scores))
        targets.append(float(b["reward"][i]) + float(b["discount"][i]) * judge[i][best])
        errors.append(q[i][int(b["action"][i])] - targets[i])
    expected = sum(float(w) * huber(e) for w, e in zip(b["weight"], errors, strict=True)) / BATCH
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-4)
    assert outcome.values["target"].tolist() == pytest.approx(targets, rel=1e-4, abs=1e-5)
    assert outcome.values["q"].tolist() == pytest.approx([q[i][int(a)] for i, a in enumerate(b["action"])])
    assert outcome.values["priority"].tolist() == pytest.approx([huber(e) for e in errors], rel=1e-3)


def test_double_and_plain_dqn_choose_differently():
    targets = []
    for double in (True, False):
        agent = dqn(spec=VECTOR, double=double)
        s = born(agent)
        targets.append(agent.q_loss(s["q"].params, s, batch(VECTOR), {}).values["target"])
    assert not torch.equal(*targets) and (targets[0] <= targets[1] + 1e-6).all()


def test_the_online_network_chooses_the_next_action_of_the_loss_also_where_the_target_acts():
    s, targets = born(dqn(spec=VECTOR)), []
    for role in ("params", "target"):
        agent = dqn(spec=VECTOR, double=True, act_with=role)
        targets.append(agent.q_loss(s["q"].params, s, batch(VECTOR), {}).values["target"])
    assert torch.equal(*targets)


def test_dqns_gradient_takes_the_target_for_a_constant():
    agent = dqn(spec=VECTOR)
    s, b = born(agent), batch(VECTOR)
    grads, outcome = agent.q.gradient(s, b, {})
    params = {k: p.clone().requires_grad_() for k, p in s["q"].params.items()}
    q = agent.q(params, b["obs"])[0][..., 0][torch.arange(BATCH), b["action"]]
    (b["weight"] * F.smooth_l1_loss(q, outcome.values["target"].detach(), reduction="none")).mean().backward()
    for k, p in params.items():
        torch.testing.assert_close(grads[k], p.grad)


@pytest.mark.parametrize("name", VALUES)
def test_every_value_bootstraps_from_the_targets_value_of_the_chosen_action(name):
    agent = dqn(spec=VECTOR, value=VALUES[name]())
    s = born(agent)
    b = batch(VECTOR, reward=torch.linspace(-1, 1, BATCH), discount=torch.tensor([0.9, 0.0] * (BATCH // 2)))
    outcome = agent.q_loss(s["q"].params, s, b, {})
    online = agent.value.decode(agent.q(s["q"].params, b["next_obs"])[0])
    target = agent.value.decode(agent.q(s["q"].copies["target"], b["next_obs"])[0])
    expected = b["reward"] + b["discount"] * target[torch.arange(BATCH), online.argmax(1)]
    torch.testing.assert_close(outcome.values["target"], expected, rtol=1e-4, atol=1e-4)


def test_nothing_is_bootstrapped_past_a_terminal():
    agent = dqn(spec=VECTOR)
    s, b = born(agent), batch(VECTOR, discount=torch.zeros(BATCH))
    assert torch.equal(agent.q_loss(s["q"].params, s, b, {}).values["target"], b["reward"])


# DQN: target network


def test_a_hard_copy_falls_on_multiples_of_its_period_and_copies_the_new_weights():
    agent = dqn(spec=VECTOR, target="copy", target_period=3)
    s = born(agent)
    for update in range(1, 8):
        old = s["q"].copies["target"]
        s, _ = agent.update(s, batch(VECTOR, update, update=torch.tensor(update)), {})
        expected = s["q"].params if update in (3, 6) else old
        assert equal(s["q"].copies["target"], expected), update


def test_an_average_takes_in_its_share_of_the_new_weights_at_every_update():
    agent = dqn(spec=VECTOR, target="ema", tau=0.1, target_period=3)
    s = born(agent)
    for update in (1, 2, 3):
        old = s["q"].copies["target"]
        s, _ = agent.update(s, batch(VECTOR, update, update=torch.tensor(update)), {})
        for k, p in s["q"].params.items():
            torch.testing.assert_close(s["q"].copies["target"][k], 0.9 * old[k] + 0.1 * p)


# DQN: acting


@pytest.mark.parametrize("step, expected", [(0, 1), (2000, 1), (3000, 0.50025), (4001, 0), (9000, 0)])
def test_epsilon_falls_from_1_after_warm_up(step, expected):
    """Warm-up 2,000, decay 2,001, final 0: the vector of Dopamine's linearly decaying epsilon."""
    agent = dqn(spec=VECTOR, epsilon_decay=2001, epsilon_final=0.0)
    clock = replace(STEPS, warmup=2000, agent_steps=step)
    assert agent.explore(clock).epsilon == pytest.approx(expected, abs=1e-6)


def test_epsilon_is_dopamines_formula_everywhere():
    agent = dqn(spec=VECTOR, epsilon_decay=500, epsilon_final=0.1)
    for step in range(0, 1500, 37):
        left = min(max((500 + 200 - step) / 500, 0), 1)
        assert agent.explore(replace(STEPS, warmup=200, agent_steps=step)).epsilon == pytest.approx(0.1 + 0.9 * left)


def test_epsilon_begins_anew_with_a_task():
    agent = dqn(spec=VECTOR, epsilon_decay=10, epsilon_final=0.0)
    clock = replace(STEPS, warmup=5, agent_steps=40)
    assert agent.explore(clock).epsilon == 0
    clock.enter_task()
    assert agent.explore(clock).epsilon == 1
    for _ in range(10):
        clock.step()
    assert agent.explore(clock).epsilon == pytest.approx(0.5)


def acting_noise(episodes, count=0):
    keys = torch.tensor([[11, 12], [13, 14]])
    drawn = draw({"u": Noise("uniform", (episodes,))}, {"u": keys}, torch.tensor(count))["u"]
    return {"explore": drawn[0], "action": drawn[1]}


def test_without_exploration_dqn_is_greedy():
    agent = dqn(spec=VECTOR)
    s, obs = born(agent), torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    for role, params in (("params", s["q"].params), ("target", s["q"].copies["target"])):
        q = agent.q(params, obs)[0][..., 0].tolist()
        actions = agent.act(s, obs, Exploration(0.0, False), acting_noise(200), role)
        assert actions.dtype == torch.int64
        assert actions.tolist() == [row.index(max(row)) for row in q]


def test_with_full_exploration_dqn_is_uniform():
    agent = dqn(spec=VECTOR)
    actions = agent.act(born(agent), torch.zeros(30_000, 5), Exploration(1.0, False), acting_noise(30_000), "params")
    counts = torch.bincount(actions, minlength=3)
    assert len(counts) == 3 and stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_epsilon_is_the_share_of_random_actions():
    agent = dqn(spec=VECTOR)
    s, obs = born(agent), torch.zeros(30_000, 5)
    greedy = int(agent.act(s, obs[:1], Exploration(0.0, False), acting_noise(1), "params"))
    actions = agent.act(s, obs, Exploration(0.3, False), acting_noise(30_000), "params")
    assert (actions != greedy).float().mean().item() == pytest.approx(0.3 * 2 / 3, abs=0.01)


def test_random_actions_are_valid_at_both_ends_of_the_noise():
    agent = dqn(spec=VECTOR)
    below_one = torch.nextafter(torch.ones(()), torch.zeros(()))
    noise = {"explore": torch.zeros(2), "action": torch.stack([torch.zeros(()), below_one])}
    assert agent.act(born(agent), torch.zeros(2, 5), Exploration(1.0, False), noise, "params").tolist() == [0, 2]


@pytest.mark.parametrize("make, spec", [(dqn, FRAMES), (sac, CONTROL)], ids=["dqn", "sac"])
def test_acting_is_a_function_of_its_arguments(make, spec):
    agent = make()
    s, obs = born(agent), batch(spec)["obs"]
    noise = {k: torch.full(n.shape, 0.3) for k, n in agent.act_noise(BATCH).items()}
    before = torch.get_rng_state()
    explore = agent.explore(STEPS)
    assert torch.equal(agent.act(s, obs, explore, noise, "params"), agent.act(s, obs, explore, noise, "params"))
    assert torch.equal(torch.get_rng_state(), before)


# SAC: an independent implementation


class PlainActor(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.mean, self.log_std = nn.Linear(16, 2), nn.Linear(16, 2)

    def forward(self, obs, noise):
        """Action and its log-probability, by the change of variables through tanh."""
        h = self.body(obs)
        mean, std = self.mean(h), torch.exp(-10 + 6 * (1 + torch.tanh(self.log_std(h))))
        u = mean + std * noise
        return u.tanh(), (Normal(mean, std).log_prob(u) - torch.log(1 - u.tanh() ** 2)).sum(1)


class PlainCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.ModuleList(
            nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)) for _ in range(2)
        )

    def forward(self, obs, action):
        return tuple(q(torch.cat([obs, action], 1))[:, 0] for q in self.q)


class PlainSAC:
    """jaxrl's SAC: critic, target, actor with the new critic, temperature with the entropy the actor has just had."""

    def __init__(self, states, tau=0.005, learning_rate=3e-4):
        self.actor, self.critic, self.target = PlainActor(), PlainCritic(), PlainCritic()
        self.log_alpha = nn.Parameter(states["alpha"].params["log"].clone())
        self.tau = tau
        modules = [
            (self.actor, states["actor"].params),
            (self.critic, states["critic"].params),
            (self.target, states["critic"].copies["target"]),
        ]
        for module, params in modules:
            module.double()
            for own, p in zip(module.parameters(), params.values(), strict=True):
                own.data.copy_(p)
        trained = ("critic", self.critic.parameters()), ("actor", self.actor.parameters()), ("alpha", [self.log_alpha])
        self.optimizers = {name: torch.optim.Adam(params, lr=learning_rate) for name, params in trained}

    def step(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.item()

    def update(self, b, noise):
        losses = {}
        with torch.no_grad():
            action, log_prob = self.actor(b["next_obs"], noise["critic"])
            next_v = torch.min(*self.target(b["next_obs"], action)) - self.log_alpha.exp() * log_prob
            y = b["reward"] + b["discount"] * next_v
        q1, q2 = self.critic(b["obs"], b["action"])
        losses["critic"] = self.step("critic", (b["weight"] * ((q1 - y) ** 2 + (q2 - y) ** 2)).mean())
        with torch.no_grad():
            for slow, p in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                slow.copy_((1 - self.tau) * slow + self.tau * p)
        action, log_prob = self.actor(b["obs"], noise["actor"])
        q = torch.min(*self.critic(b["obs"], action))
        losses["actor"] = self.step("actor", (self.log_alpha.exp().detach() * log_prob - q).mean())
        entropy = -log_prob.mean().detach()
        self.step("alpha", self.log_alpha.exp() * (entropy - (-2 / 2)))  # wanted: minus half the action dimension
        return losses


def double(tree):
    return tree_map(lambda x: x.double() if x.is_floating_point() else x, tree)


def policy_noise(seed):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(BATCH, 2, generator=g).double() for k in ("critic", "actor")}


def test_sacs_updates_are_those_of_a_plain_implementation():
    agent = sac(initial_temperature=0.7, tau=0.05)
    s = double(born(agent))
    plain = PlainSAC(s, tau=0.05)
    for i in range(4):
        b, noise = double(batch(CONTROL, i)), policy_noise(i)
        losses = plain.update(b, noise)
        s, info = agent.update(s, b, noise)
        assert info["critic/loss"].item() == pytest.approx(losses["critic"], rel=1e-9)
        assert info["actor/loss"].item() == pytest.approx(losses["actor"], rel=1e-9)
        pairs = [
            (s["critic"].params, plain.critic),
            (s["critic"].copies["target"], plain.target),
            (s["actor"].params, plain.actor),
        ]
        for params, module in pairs:
            for (k, p), own in zip(params.items(), module.parameters(), strict=True):
                torch.testing.assert_close(p, own.detach(), rtol=0, atol=1e-9, msg=lambda m, k=k: k + m)
        torch.testing.assert_close(s["alpha"].params["log"], plain.log_alpha.detach(), rtol=0, atol=1e-9)
        for name, module in (("critic", plain.critic), ("actor", plain.actor)):  # Adam hides a gradient's scale
            for m, own in zip(s[name].optim["m"].values(), module.parameters(), strict=True):
                moment = plain.optimizers[name].state[own]["exp_avg"]
                torch.testing.assert_close(m, moment, rtol=1e-7, atol=1e-10)
        moment = plain.optimizers["alpha"].state[plain.log_alpha]["exp_avg"]
        torch.testing.assert_close(s["alpha"].optim["m"]["log"], moment, rtol=1e-7, atol=1e-12)


def test_in_single_precision_one_update_is_the_same_to_a_millionth():
    agent = sac()
    s = born(agent)
    plain = PlainSAC(double(s))
    b, noise = batch(CONTROL), policy_noise(0)
    plain.update(double(b), noise)
    s, _ = agent.update(s, b, {k: v.float() for k, v in noise.items()})
    pairs = [(s["critic"].params, plain.critic), (s["actor"].params, plain.actor)]
    for params, module in [*pairs, (s["critic"].copies["target"], plain.target)]:
        for p, own in zip(params.values(), module.parameters(), strict=True):
            torch.testing.assert_close(p.double(), own.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(s["alpha"].params["log"].double(), plain.log_alpha.detach(), rtol=0, atol=1e-6)


def test_the_temperature_rises_below_the_wanted_entropy_and_falls_above_it():
    agent = sac(target_entropy=-0.5)
    s = born(agent)
    assert agent.target_entropy == -1  # two action dimensions
    for entropy, sign in ((-3.0, -1), (3.0, 1)):
        b = batch(CONTROL) | {"entropy": torch.tensor(entropy)}
        grads, _ = agent.alpha.gradient(s, b, {})
        assert grads["log"].item() == pytest.approx(1.0 * (entropy + 1)) and math.copysign(1, grads["log"]) == sign


# SAC: the policy


def fixed_policy(agent, mean, raw_log_std):
    """An actor whose Gaussian does not depend on what it sees."""
    params = {k: torch.zeros_like(p) for k, p in agent.actor.birth(0).params.items()}
    return params | {"mean.bias": torch.tensor(mean), "log_std.bias": torch.tensor(raw_log_std)}


def test_the_log_probability_is_that_of_a_tanh_transformed_gaussian():
    agent = sac()
    params, obs = double(born(agent)["actor"].params), double(batch(CONTROL)["obs"])
    for seed in range(5):
        noise = policy_noise(seed)["actor"]
        action, log_prob, _ = agent.sample(params, obs, noise)
        mean, log_std, _ = agent.gaussian(params, obs)
        transform = TanhTransform(cache_size=1)
        policy = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), [transform])
        expected = transform(mean + log_std.exp() * noise)
        torch.testing.assert_close(action, expected)
        torch.testing.assert_close(log_prob, policy.log_prob(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [-30.0, -9.0, 9.0, 30.0])
def test_the_log_probability_and_its_gradient_are_right_where_tanh_saturates(mean):
    """-log(1 - tanh(u)^2) = 2 log cosh(u), with slope 2 tanh(u); in single precision tanh(9) rounds to 1."""
    agent = sac()
    params = fixed_policy(agent, [mean, 0.0], [0.0, 0.0])
    noise, std = torch.tensor([[0.5, -1.5]]), math.exp(-4)

    def log_prob(p):
        return agent.sample(p, torch.zeros(1, 5), noise)[1].sum()

    us = [mean + std * 0.5, -1.5 * std]
    gaussian = sum(-(e**2) / 2 + 4 - math.log(2 * math.pi) / 2 for e in (0.5, -1.5))
    expected = gaussian + sum(2 * math.log(math.cosh(u)) for u in us)
    assert log_prob(params).item() == pytest.approx(expected, rel=1e-5)
    slopes = torch.func.grad(log_prob)(params)
    assert slopes["mean.bias"].tolist() == pytest.approx([2 * math.tanh(u) for u in us], abs=1e-5)
    assert slopes["log_std.bias"].isfinite().all()


@pytest.mark.parametrize("raw, expected", [(-100.0, -10.0), (0.0, -4.0), (100.0, 2.0), (0.5, -4 + 6 * math.tanh(0.5))])
def test_the_log_deviation_is_squashed_into_minus_10_to_2(raw, expected):
    agent = sac()
    _, log_std, _ = agent.gaussian(fixed_policy(agent, [0.0, 0.0], [raw, raw]), torch.zeros(1, 5))
    assert log_std.tolist() == [pytest.approx([expected, expected], abs=1e-5)]


def test_exploring_samples_the_policy_and_evaluating_takes_its_mode():
    agent = sac()
    s, obs = born(agent), batch(CONTROL)["obs"]
    noise = policy_noise(0)["actor"].float()
    sampled, _, _ = agent.sample(s["actor"].params, obs, noise)
    mean, _, _ = agent.gaussian(s["actor"].params, obs)
    torch.testing.assert_close(agent.act(s, obs, agent.explore(STEPS), {"policy": noise}, "params"), sampled)
    torch.testing.assert_close(agent.act(s, obs, agent.explore_eval, {"policy": noise}, "params"), mean.tanh())


def test_a_slow_copy_can_act():
    agent = sac()
    s, obs = born(agent), batch(CONTROL)["obs"]
    slow = agent.actor.birth(7).params
    s["actor"] = s["actor"]._replace(copies={"slow": slow})
    acted = agent.act(s, obs, 0.0, {"policy": torch.zeros(BATCH, 2)}, "slow")
    torch.testing.assert_close(acted, agent.gaussian(slow, obs)[0].tanh())


# SAC: ensembles and histograms


@pytest.mark.parametrize("value", [Scalar("mse"), TwoHot(), C51()], ids=["scalar", "two_hot", "c51"])
def test_the_worst_critic_is_chosen_sample_by_sample_by_its_value(value):
    out = torch.randn(3, BATCH, value.bins, generator=torch.Generator().manual_seed(0))
    got = least(value, out)
    chosen = set()
    for i in range(BATCH):
        values = [value.decode(out[c, i]).item() for c in range(3)]
        chosen.add(values.index(min(values)))
        assert torch.equal(got[i], out[values.index(min(values)), i])
    assert len(chosen) > 1, "the sample does not tell critics apart"


@pytest.mark.parametrize("value", [TwoHot(-100, 100, 201), C51(-100, 100, 201)], ids=["two_hot", "c51"])
def test_categorical_critics_aim_at_the_soft_value(value):
    agent = sac(value=value, initial_temperature=0.5)
    s, b = born(agent), batch(CONTROL, discount=torch.tensor([0.9, 0.0] * (BATCH // 2)))
    noise = {k: v.float() for k, v in policy_noise(0).items()}
    outcome = agent.critic_loss(s["critic"].params, s, b, noise)
    action, log_prob, _ = agent.sample(s["actor"].params, b["next_obs"], noise["critic"])
    values = value.decode(agent.critic(s["critic"].copies["target"], b["next_obs"], action)[0])
    expected = b["reward"] + b["discount"] * (values.amin(0) - 0.5 * log_prob)
    torch.testing.assert_close(outcome.values["target"], expected, rtol=1e-3, atol=2e-3)


def test_the_critics_losses_are_summed():
    agent = sac(critics=3)
    s, b = born(agent), batch(CONTROL)
    noise = {k: v.float() for k, v in policy_noise(0).items()}
    outcome = agent.critic_loss(s["critic"].params, s, b, noise)
    q = agent.critic(s["critic"].params, b["obs"], b["action"])[0][..., 0]
    squared = (q - outcome.values["target"]) ** 2
    torch.testing.assert_close(outcome.loss, sum((b["weight"] * squared[i]).mean() for i in range(3)))
    torch.testing.assert_close(outcome.values["priority"], (squared[0] + squared[1] + squared[2]) / 3)


# what they cannot do


@pytest.mark.parametrize(
    "make, advice",
    [
        (lambda: DQN(DQN.Settings(), CONTROL, Vectors(), Scalar()), "agent=sac"),
        (lambda: SAC(SAC.Settings(), VECTOR, Vectors(), Scalar("mse")), "agent=dqn"),
        (lambda: SAC(SAC.Settings(), FRAMES, Vectors(), Scalar("mse")), "agent=dqn"),
        (lambda: SAC(SAC.Settings(), CONTROL, Nature(), Scalar("mse")), "net=mlp"),
        (lambda: DQN(DQN.Settings(), VECTOR, Nature(), Scalar()), "net=mlp"),
        (lambda: DQN(DQN.Settings(), FRAMES, Vectors(), Scalar()), "net=nature"),
    ],
    ids=["dqn control", "sac discrete", "sac frames", "sac nature", "nature vectors", "mlp frames"],
)
def test_what_an_agent_cannot_do_is_refused_in_one_line_with_the_fix(make, advice):
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value) and advice in str(error.value)


def test_the_defaults_are_the_published_ones():
    """DrQ(eps) of Dopamine's DrQ_eps.gin; SAC of jaxrl's configs/sac.py."""
    d, s = DQN.Settings(), SAC.Settings()
    assert (d.learning_rate, d.adam_eps, d.batch_size, d.discount, d.n_step) == (1e-4, 1.5e-4, 32, 0.99, 10)
    assert (d.double, d.dueling, d.target, d.target_period) == (True, True, "copy", 1)
    assert (d.epsilon_final, d.epsilon_decay, d.epsilon_eval, d.weight_decay) == (0.01, 5000, 0.001, 0)
    assert (s.learning_rate, s.batch_size, s.discount, s.n_step, s.critics) == (3e-4, 256, 0.99, 1, 2)
    assert (s.tau, s.initial_temperature, s.target_entropy, s.weight_decay) == (0.005, 1.0, -0.5, 0)


@pytest.mark.parametrize("make", [dqn, sac])
def test_the_optimizer_in_place_takes_the_steps_of_the_one_by_values(make):
    """In place, by torch's fused kernel, as the engine steps convolutions; by values, as the definition reads."""
    fused, plain = engine(make(), (0, 1)), engine(make(), (0, 1))
    for part in plain.learner.parts.values():
        part.fused = False
    run(fused, 3)
    run(plain, 3)
    assert largest_difference(fused.states, plain.states) < 1e-5


# options of the pixel agents


def gradients(**settings):
    agent = dqn(**settings)
    states = {"q": agent.q.birth(0)}
    grads, outcome = agent.q.gradient(states, batch(FRAMES) | {"update": torch.tensor(1)}, {})
    return agent, grads, outcome


@pytest.mark.parametrize("streams", ["shared", "separate"])
def test_the_gradient_into_the_encoder_is_scaled_and_nothing_else(streams):
    agent, plain, old = gradients(streams=streams)
    _, scaled, new = gradients(streams=streams, encoder_gradient=0.7071)
    torch.testing.assert_close(new.loss, old.loss)
    for name, grad in plain.items():
        torch.testing.assert_close(scaled[name], grad * (0.7071 if name.startswith("encoder") else 1.0))


def test_separate_streams_have_hidden_layers_of_their_own():
    """V + A - mean A, by hand from the two streams' own features; a layer of one stream feeds its own head alone."""
    agent, _, outcome = gradients(streams="separate", value=C51())
    states = {"q": agent.q.birth(0)}
    p, b = states["q"].params, batch(FRAMES)
    out, feats = agent.q(p, b["obs"])
    a = F.linear(feats["trunk.h0"], p["advantage.weight"], p["advantage.bias"]).unflatten(-1, (3, 51))
    v = F.linear(feats["value_trunk.h0"], p["value.weight"], p["value.bias"])[:, None]
    torch.testing.assert_close(out, v + a - a.mean(1, keepdim=True))
    readers = {layer.name: layer.readers for layer in agent.q.layers}
    assert readers["encoder.convs.2"] == ("trunk.layers.0", "value_trunk.layers.0")
    assert readers["trunk.layers.0"] == ("advantage",) and readers["value_trunk.layers.0"] == ("value",)


def test_a_gradient_that_is_too_long_is_scaled_to_the_limit():
    grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    norm = torch.tensor(5.0)
    short = shortened(grads, 1.0, norm)
    assert [float(g) for g in short.values()] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert shortened(grads, 0.0, norm) is grads
    assert [float(g) for g in shortened(grads, 6.0).values()] == [3.0, 4.0]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clipping_is_torchs(compile):
    """Against torch.optim.Adam and torch's clip_grad_norm_, where every gradient is too long."""
    agent = dqn(spec=VECTOR, clip_norm=0.01)
    e = engine(agent, (0,), compile=compile)
    net = {k: p.clone().requires_grad_() for k, p in e._members[0]["q"].params.items()}
    optim = torch.optim.Adam(net.values(), lr=1e-4, eps=1.5e-4)
    for i in range(3):
        b = {k: v[0] for k, v in batch_for(VECTOR, [0], i).items()}
        target = b["reward"] + b["discount"] * agent.value.decode(agent.q(net, b["next_obs"])[0]).amax(-1)
        q = agent.value.decode(agent.q(net, b["obs"])[0]).gather(1, b["action"][:, None])[:, 0]
        optim.zero_grad()
        F.huber_loss(q, target.detach()).backward()
        assert torch.nn.utils.clip_grad_norm_(net.values(), 0.01) > 0.01
        optim.step()
    run(e, 3)
    for name, value in e._members[0]["q"].params.items():
        torch.testing.assert_close(value, net[name].detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("make", [sac, lambda: dqn(spec=VECTOR, target="ema")], ids=["sac", "dqn"])
def test_the_target_of_a_member_that_is_not_trained_stays(make, rest, compile):
    e = engine(make(), (0, 1), compile=compile)
    run(e, 2)
    if rest:
        e.awake[0] = False
    else:
        e.alive[0] = False
    before = [tree_map(torch.clone, m) for m in e._members]
    run(e, 2)
    assert equal(e._members[0], before[0])
    assert not equal(e._members[1], before[1])
