"""What re-implementations of published agents get wrong: whose weights act, what is stored, learned from and kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, equal, sac

import train
from agents import DrQV2
from core.agent_session import AgentSession
from core.clock import Clock
from core.config import load
from core.evaluation import evaluate
from core.optim import Adam
from core.replay import Replay
from core.spec import EnvSpec, Transition
from core.state import clone, member, weights
from core.when import When
from envs.atari import insert
from envs.dmc import DMC
from envs.vector import Vector
from interventions.reset import Reset
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import C51, DrQ, Quantiles, Scalar
from nets.augmentation import Augmentation

PIXELS = EnvSpec("dmc/x", (24, 24), "uint8", action_dim=2, stack=3, repeat_first=True)


def born(agent):
    """States of one seed, whose targets have weights of their own."""
    states = {name: part.birth(0) for name, part in agent.parts.items()}
    for name, part in agent.parts.items():
        copies = {role: part.birth(100).params for role in part.copies}
        states[name] = states[name]._replace(copies=copies)
    return agent.tied(states, newborn=False) if hasattr(agent, "tied") else states


def batch(spec, **fields):
    """A made-up batch, some of it terminal."""
    counts = {"update": torch.tensor(1), "step": torch.tensor(50)}
    return member(batch_for(spec, (0,)), 0) | counts | fields


def drawn(agent):
    g = torch.Generator().manual_seed(0)
    kinds = {"normal": torch.randn, "uniform": torch.rand}
    return {name: kinds[noise.kind](noise.shape, generator=g) for name, noise in agent.noise(BATCH).items()}


def first_moments(part, states, b, noise):
    """Adam's after a first step along this part's gradient."""
    return {k: 0.1 * g for k, g in part.gradient(states, b, noise)[0].items()}


# a whole run, recorded

RUN = ["agent=dqn", "env=toy/lives", "net=nature", "net.width=16", "net.padding=valid", "agent.batch_size=8"]
RUN += ["steps=60", "warmup=20", "agent.n_step=3", "replay=prioritised", "agent.act_with=target", "seeds=[0,1]"]
RUN += ["agent.epsilon_decay=10", "interventions=[reset]", "interventions.reset.when.every=15"]
RUN += ["interventions.reset.when.unit=agent_steps", "eval_every=15", "eval_episodes=2", "compile=false"]
RUN += ["observe_every=0", "rank_every=0", "probe_every=0"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> SimpleNamespace:
    """What a run's loop asked of its environments, replay and engine, in order."""
    run = AgentSession(load([*RUN, f"run_dir={tmp_path_factory.mktemp('traps') / 'run'}"]))
    envs, replay, learner = run.envs, run.replay, run.engine
    seen = SimpleNamespace(run=run, order=[], roles={}, stored=[], learned=[], around_events=[])

    def leaves() -> np.ndarray:
        return replay.priorities._leaves.copy()

    def add(*step, plain=replay.add):
        seen.stored.append((frame_before[0], last_step[0], step, envs.frame.copy()))
        plain(*step)

    def step(action, plain=envs.step):
        frame_before[0] = envs.frame.copy()
        last_step[0] = plain(action)
        return last_step[0]

    def act(obs, explore, stream, count, role="params", plain=learner.act):
        seen.roles.setdefault(stream.partition("/")[0], set()).add(role)
        return plain(obs, explore, stream, count, role)

    def update(b, clock, plain=learner.update):
        metrics = plain(b, clock)
        seen.learned.append([b["index"].clone(), metrics["priority"].clone()])
        return metrics

    def update_priorities(index, error, plain=replay.update_priorities):
        plain(index, error)
        seen.learned[-1] += [index.clone(), error.clone(), leaves(), replay.ring.oldest.copy()]

    def intervene(clock, units, sample, plain=learner.intervene):
        before = leaves(), replay.ring.count.copy(), clock.state_dict(), run.agent.explore(clock)
        rows = plain(clock, units, sample)
        if rows:
            seen.order.append(("events", clock.env_steps))
            after = leaves(), replay.ring.count.copy(), clock.state_dict(), run.agent.explore(clock)
            seen.around_events.append((before, after))
        return rows

    def evaluation(plain=run.evaluate):
        seen.order.append(("evaluation", run.clock.env_steps))
        plain()

    frame_before, last_step = [None], [None]
    envs.step, replay.add, replay.update_priorities = step, add, update_priorities
    learner.act, learner.update, learner.intervene, run.evaluate = act, update, intervene, evaluation
    with run:
        train.loop(run.config, run)
    return seen


def test_the_weights_that_are_asked_for_act_in_training_and_others_are_evaluated(recorded):
    assert recorded.roles == {"act": {"target"}, "evaluate": {"params"}}


def test_what_is_stored_is_what_was_acted_on_and_the_true_last_observation(recorded):
    ends = 0
    for before, step, (obs, _, reward, terminal, ended, next_obs), after in recorded.stored:
        assert np.array_equal(obs, before) and np.array_equal(next_obs, step.next_obs)
        assert all(np.array_equal(a, b) for a, b in zip((reward, terminal, ended), step[1:4], strict=True))
        for i in range(2):
            ends += bool(ended[i])
            assert ended[i] or np.array_equal(next_obs[i], after[i])
    assert len(recorded.stored) == 60 and ends > 4
    assert any(not np.array_equal(s[2][5], s[3]) for s in recorded.stored), "the next episode began with the last frame"


def test_priorities_are_written_to_the_samples_they_were_computed_from(recorded):
    replay = recorded.run.replay
    capacity, alpha = replay.ring.capacity, replay.priorities.alpha
    assert len(recorded.learned) == 40
    for sampled, error, index, given, leaves, oldest in recorded.learned:
        assert torch.equal(sampled, index) and torch.equal(error, given)
        for i in range(2):
            found = leaves.reshape(2, -1)[i, index[i].numpy() % capacity]
            last = {int(slot): float(e) for slot, e in zip(index[i], error[i], strict=True)}  # of equal slots
            wanted = [(last[int(slot)] + 1e-10) ** alpha for slot in index[i]]
            assert (index[i].numpy() >= oldest[i]).all() and found == pytest.approx(wanted, rel=1e-5)


def test_a_reset_leaves_priorities_replay_schedules_and_exploration_alone(recorded):
    assert len(recorded.around_events) >= 2
    for before, after in recorded.around_events:
        assert all(np.array_equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
        assert before[2:] == after[2:] and before[0].any()


def test_an_evaluation_comes_before_the_reset_of_the_same_step(recorded):
    events = [step for kind, step in recorded.order if kind == "events"]
    assert events == [15, 30, 45]
    for step in events:
        assert recorded.order.index(("evaluation", step)) < recorded.order.index(("events", step))


# evaluation


class Lives:
    """Six steps of reward 2; a life is lost at the fourth."""

    spec = replace(FRAMES, clip_rewards=True)

    def reset(self, seed: int) -> np.ndarray:
        self.now = 0
        return np.full(FRAMES.obs_shape, 9, np.uint8)

    def step(self, action) -> Transition:
        self.now += 1
        return Transition(np.full(FRAMES.obs_shape, self.now, np.uint8), 2.0, self.now == 6, False, self.now == 4)

    def close(self) -> None: ...


def test_evaluation_plays_on_after_a_lost_life_and_sums_raw_rewards():
    agent = dqn(spec=Lives.spec)
    lanes = [Vector([Lives(), Lives()], (0, 1), f"evaluate/{k}") for k in range(2)]
    found = evaluate(engine(agent, (0, 1)), lanes, 3, explore=agent.explore_eval, role="params", stream="evaluate")
    assert [tuple(result) for result in found] == [(seed, k, 12.0, 6) for seed in (0, 1) for k in range(3)]


# what is learned from


def test_observations_are_standardised_by_those_acted_on_and_not_by_what_follows_an_end():
    replay, rng, acted_on = Replay(CONTROL, [0, 1], 7, standardise=True), np.random.default_rng(0), []
    for t in range(20):
        acted_on.append(rng.normal(3, 2, (2, 5)).astype(np.float32))
        over = np.array([t % 4 == 3, t % 5 == 4])
        replay.add(acted_on[-1], np.zeros((2, 2)), np.zeros(2), over, over, np.full((2, 5), 1e6, np.float32))
    b = replay.sample(4, 0)
    assert b["obs_mean"].numpy() == pytest.approx(np.mean(acted_on, 0), rel=1e-5)
    assert b["obs_var"].numpy() == pytest.approx(np.var(acted_on, 0), rel=1e-4)


def test_the_priority_of_a_categorical_loss_is_the_cross_entropy_with_the_entropy_of_the_target():
    agent = dqn(spec=VECTOR, value=C51())
    s, b, rows = born(agent), batch(VECTOR), torch.arange(BATCH)
    best = agent.value.decode(agent.q(s["q"].params, b["next_obs"])[0]).argmax(-1)
    judged = agent.q(s["q"].copies["target"], b["next_obs"])[0][rows, best]
    target = agent.value.backup(b["reward"], b["discount"], judged)
    predicted = agent.q(s["q"].params, b["obs"])[0][rows, b["action"]].log_softmax(-1)
    priority = agent.q_loss(s["q"].params, s, b, {}).values["priority"]
    torch.testing.assert_close(priority, -(target * predicted).sum(-1))
    entropy = torch.special.entr(target).sum(-1)
    assert (priority >= entropy - 1e-5).all() and (entropy > 0.1).any()


@pytest.mark.parametrize("value", [Scalar("mse"), Quantiles(4)], ids=["scalar", "quantiles"])
@pytest.mark.parametrize("joined", ["min", "mean", "subset"])
def test_the_target_joins_the_critics_as_it_is_told(joined, value):
    settings = {"subset": 2} if joined == "subset" else {"target_value": joined}
    agent = sac(value=value, critics=5, initial_temperature=0.5, **settings)
    s, b, noise = born(agent), batch(CONTROL), drawn(agent)
    if joined == "subset":
        noise["subset"] = torch.tensor([0.5, 0.1, 0.9, 0.2, 0.8])  # the second and the fourth
    action, log_prob, _ = agent.sample(s["actor"].params, b["next_obs"], noise["critic"])
    q = value.decode(agent.critic(s["critic"].copies["target"], b["next_obs"], action)[0])
    chosen = {"min": q.amin(0), "mean": q.mean(0), "subset": q[[1, 3]].amin(0)}
    expected = {k: b["reward"] + b["discount"] * (v - 0.5 * log_prob) for k, v in chosen.items()}
    target = agent.critic_loss(s["critic"].params, s, b, noise).values["target"]
    torch.testing.assert_close(target, expected.pop(joined))
    assert not any(torch.allclose(target, other) for other in expected.values())


@pytest.mark.parametrize(("critics", "joined"), [(3, "min"), (3, "mean"), (1, "min")])
def test_the_actor_climbs_the_critics_joined_as_it_is_told(critics, joined):
    agent = sac(critics=critics, actor_value=joined, initial_temperature=0.5)
    s, b, noise = born(agent), batch(CONTROL), drawn(agent)
    action, log_prob, _ = agent.sample(s["actor"].params, b["obs"], noise["actor"])
    q = agent.critic(s["critic"].params, b["obs"], action)[0][..., 0]
    wanted = {"min": q.amin(0), "mean": q.mean(0)}[joined]
    torch.testing.assert_close(agent.actor_loss(s["actor"].params, s, b, noise).loss, (0.5 * log_prob - wanted).mean())
    assert critics == 1 or not torch.allclose(q.amin(0), q.mean(0))


def test_where_the_actor_moves_first_the_critics_learn_from_the_new_actor_and_temperature():
    agent = sac(order="actor_first", learning_rate=0.05, tau=0.1)
    s, b, noise = born(agent), batch(CONTROL), drawn(agent)
    new, _ = agent.update(s, b, noise)
    torch.testing.assert_close(new["actor"].optim["m"], first_moments(agent.actor, s, b, noise))
    entropy = agent.actor_loss(s["actor"].params, s, b, noise).info["actor/entropy"]
    torch.testing.assert_close(new["alpha"].optim["m"], first_moments(agent.alpha, s, b | {"entropy": entropy}, noise))
    moved = new | {"critic": s["critic"]}
    torch.testing.assert_close(new["critic"].optim["m"], first_moments(agent.critic, moved, b, noise))
    for earlier in (s, moved | {"alpha": s["alpha"]}, moved | {"actor": s["actor"]}):
        other = first_moments(agent.critic, earlier, b, noise)
        assert not torch.allclose(new["critic"].optim["m"]["q.0.head.bias"], other["q.0.head.bias"], rtol=1e-3)
    for k, slow in new["critic"].copies["target"].items():
        torch.testing.assert_close(slow, s["critic"].copies["target"][k].lerp(new["critic"].params[k], 0.1))


# deterministic policies from pixels


def drq_v2(**settings) -> DrQV2:
    net = DrQ(width=16, channels=(4, 8), strides=(2, 2), bottleneck=8)
    settings = DrQV2.Settings(batch_size=BATCH, augment=Augmentation(), noise_steps=100, **settings)
    return DrQV2(settings, PIXELS, net, Scalar("mse"))


@pytest.mark.parametrize("repeat", [1, 2, 4])
def test_the_noise_of_a_deterministic_policy_falls_in_agent_steps(repeat):
    agent, clock, found = drq_v2(noise_initial=1.0, noise_final=0.1), Clock(steps=10**6, action_repeat=repeat), []
    for _ in range(201):
        found.append(agent.explore(clock))
        assert float(agent.deviation(torch.tensor(clock.agent_steps))) == pytest.approx(found[-1])
        clock.step()
    assert [found[t] for t in (0, 50, 100, 200)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert agent.explore_eval == 0


def test_its_target_sees_through_the_critics_encoder_of_today_and_a_discount_of_0_stays_0():
    agent = drq_v2()
    discount = torch.tensor([0.9, 0.0] * (BATCH // 2))
    s, b, noise = born(agent), batch(PIXELS, discount=discount), drawn(agent)
    encoded = agent.critic(weights(s["critic"]), b["next_obs"])[0]
    shaken = (0.55 * noise["critic"]).clamp(-0.3, 0.3)  # half of the schedule has passed
    assert (shaken.abs() == 0.3).any() and (shaken.abs() < 0.3).any()
    action = (agent.actor(weights(s["actor"]), encoded)[0].tanh() + shaken).clamp(-1, 1)
    q = agent.critic(s["critic"].copies["target"], encoded, action)[0][..., 0].amin(0)
    target = agent.critic_loss(s["critic"].params, s, b, noise).values["target"]
    torch.testing.assert_close(target, b["reward"] + discount * q, rtol=1e-4, atol=1e-5)
    assert torch.equal(target[1::2], b["reward"][1::2]) and (q[1::2] != 0).all()


def test_its_actor_climbs_the_critics_that_have_just_moved_through_their_encoder():
    agent = drq_v2(learning_rate=0.01, tau=0.1)
    s, b, noise = born(agent), batch(PIXELS), drawn(agent)
    new, _ = agent.update(s, b, noise)
    torch.testing.assert_close(new["critic"].optim["m"], first_moments(agent.critic, s, b, noise))
    moved = agent.tied(s | {"critic": new["critic"]}, newborn=False)
    wanted = first_moments(agent.actor, moved, b, noise)
    torch.testing.assert_close(new["actor"].optim["m"], wanted)
    assert any(not torch.allclose(wanted[k], m) for k, m in first_moments(agent.actor, s, b, noise).items())
    for k, p in new["critic"].params.items():
        torch.testing.assert_close(new["critic"].copies["target"][k], s["critic"].copies["target"][k].lerp(p, 0.1))


# what events keep

EVERYTHING = {"where": ("all",), "on": ("*", "alpha"), "when": When(every=1)}


@pytest.mark.parametrize("event", [Reset(**EVERYTHING), ShrinkAndPerturb(**EVERYTHING)], ids=["reset", "shrink"])
def test_no_event_touches_the_moments_by_which_observations_are_standardised(event):
    e = engine(sac([event], standardise=True), (0, 1))
    seen = {"obs_mean": torch.randn(2, 5), "obs_var": torch.rand(2, 5) + 0.5}
    e.update(batch_for(CONTROL, e.seeds) | seen, Clock(steps=10**9))
    before = clone(e.states)
    assert len(e.intervene(Clock(steps=10**9, updates=1, last={"updates": 0}), ("updates",), None)) == 6
    for name in ("critic", "actor"):
        old, new = before[name], e.states[name]
        assert not equal(old.params, new.params)
        for held in (new.buffers, *new.copies.values()):
            assert torch.equal(held["standardise.mean"], seen["obs_mean"])
            assert torch.equal(held["standardise.var"], seen["obs_var"])


# weight decay


def test_decay_of_all_tensors_is_torchs_adamw_with_one_group():
    g = torch.Generator().manual_seed(0)
    params = {k: torch.randn(shape, generator=g) for k, shape in {"weight": (4, 3), "bias": (4,), "one": ()}.items()}
    adam = Adam(lr=0.01, decay=0.3, decays="all")
    theirs = {k: p.clone().requires_grad_() for k, p in params.items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.3)
    mine, slots, mine_slots = clone(params), adam.start(params), adam.start(params)
    for _ in range(5):
        grads = {k: torch.randn(p.shape, generator=g) for k, p in params.items()}
        for k, p in theirs.items():
            p.grad = grads[k]
        optimizer.step()
        params, slots = adam.step(params, grads, slots)
        adam.step_(mine, grads, mine_slots, torch.zeros(()))
    for k, p in theirs.items():
        torch.testing.assert_close(params[k], p.detach())
        torch.testing.assert_close(mine[k], p.detach())


def test_actor_and_critics_decay_and_the_temperature_does_not():
    agent = sac(weight_decay=0.1, decays="all")
    assert {name: (p.optim.decay, p.optim.decays) for name, p in agent.parts.items()} == {
        "critic": (0.1, "all"),
        "actor": (0.1, "all"),
        "alpha": (0.0, "matrices"),
    }


# agents by name

DESCENDANTS = {  # critics, target, actor, subset, order, decay, what decays, wanted entropy
    "sac": (2, "min", "min", 0, "critic_first", 0.0, "matrices", -0.5),
    "sr_sac": (2, "min", "min", 0, "critic_first", 0.0, "matrices", -0.5),
    "simba": (1, "min", "min", 0, "actor_first", 0.01, "all", -0.5),
    "bro": (2, "mean", "mean", 0, "critic_first", 1e-4, "all", -0.5),
    "rlpd": (10, "min", "mean", 2, "critic_first", 0.0, "matrices", -0.5),
    "drq_sac": (2, "min", "min", 0, "critic_first", 0.0, "matrices", -1.0),
}


@pytest.mark.parametrize("name", DESCENDANTS)
def test_a_descendant_of_sac_has_its_own_numbers(name):
    o = load([f"agent={name}", "env=dmc/walker-run"]).agent
    found = (o.critics, o.target_value, o.actor_value, o.subset, o.order, o.weight_decay, o.decays, o.target_entropy)
    assert found == DESCENDANTS[name]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["agent=dqn_nature", "env=atari/pong"], "mse"),
        (["agent=drq_eps", "env=atari/pong"], "huber"),
        *((["env=dmc/walker-run", f"agent={name}"], "mse") for name in ("sac", "simba", "rlpd", "drq_sac", "drq_v2")),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_agent_regresses_with_the_loss_of_its_source(words, error):
    assert load(words).value.error == error


# schedules


@pytest.mark.parametrize(("ratio", "interval"), [(8, 320), (16, 160), (32, 80), (128, 20)])
def test_an_interval_in_updates_is_shorter_in_steps_at_a_higher_replay_ratio(ratio, interval):
    """2,560,000 updates in SR-SAC; here all counts are a thousandth of it."""
    when, found = When(every=2_560), []
    clock = Clock(steps=3 * interval + 10, replay_ratio=ratio, warmup=10)
    while clock.running:
        clock.step()
        for _ in range(clock.updates_due()):
            clock.update()
            found += [clock.env_steps] * when.due(clock)
    assert found == [10 + interval, 10 + 2 * interval, 10 + 3 * interval]


def test_everything_is_reset_after_2560000_updates_of_sr_sac():
    config = load(["agent=sr_sac", "env=dmc/walker-run", "interventions=[full_reset]"])
    (reset,) = config.interventions
    assert (reset.when.every, reset.when.unit, config.replay_ratio) == (80_000, "env_steps", 32)
    assert reset.when.every * config.replay_ratio == 2_560_000 and set(reset.on) == {"*", "alpha"}


def test_at_replay_ratio_two_a_hundred_thousand_steps_have_two_updates_for_each_step_behind_warm_up():
    assert Clock(steps=100_000, replay_ratio=2, warmup=2_000).total("updates") == 196_000


# spaces


@pytest.mark.parametrize(("task", "shape", "actions"), [("walker-walk", (24,), 6), ("dog-walk", (223,), 38)])
def test_the_spaces_of_control_tasks_are_the_suites(task, shape, actions):
    spec = DMC(task).spec
    assert (spec.obs_shape, spec.action_dim) == (shape, actions)


@pytest.mark.parametrize(("game", "actions"), [("pong", 6), ("breakout", 4), ("freeway", 3), ("kung_fu_master", 14)])
def test_games_have_their_minimal_action_sets(game, actions):
    assert len(insert(game).actions) == actions
