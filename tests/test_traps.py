"""What re-implementations of published agents get wrong: whose weights act, what is stored, learned from and kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learners import BATCH, CONTROL, FRAMES, VECTOR, batch_for, dqn, engine, equal, sac

import train
from core.agent_session import AgentSession
from core.clock import Clock
from core.config import load
from core.evaluation import evaluate
from core.spec import Transition
from core.state import clone, member
from core.when import When
from envs.atari import insert
from envs.dmc import DMC
from envs.vector import Vector
from interventions.shrink_and_perturb import ShrinkAndPerturb
from nets import C51

# a whole run, recorded

RUN = ["agent=dqn", "env=toy/lives", "net=nature", "net.width=16", "net.padding=valid", "agent.batch_size=8"]
RUN += ["steps=60", "warmup=20", "agent.n_step=3", "replay=prioritised", "agent.act_with=target", "seeds=[0,1]"]
RUN += ["agent.epsilon_decay=10", "interventions=[reset]", "interventions.reset.when.every=15"]
RUN += ["interventions.reset.when.unit=agent_steps", "eval_every=15", "eval_episodes=2", "compile=false"]
RUN += ["agent.evaluate_with=params", "agent.discount=0.9"]
RUN += ["observe_every=0", "rank_every=0", "probe_every=0"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> SimpleNamespace:
    """What a run's loop asked of its environments, replay and engine, in order."""
    run = AgentSession(load([*RUN, f"run_dir={tmp_path_factory.mktemp('traps') / 'run'}"]))
    envs, replay, learner = run.envs, run.replay, run.engine
    seen = SimpleNamespace(run=run, order=[], roles={}, stored=[], acted=[], learned=[], windows=[], around_events=[])

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
        seen.acted += [count] * (stream == "act")
        return plain(obs, explore, stream, count, role)

    def update(b, clock, plain=learner.update):
        metrics = plain(b, clock)
        seen.windows.append([b[name].clone() for name in ("index", "reward", "discount")])
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
        return plain()

    frame_before, last_step = [None], [None]
    envs.step, replay.add, replay.update_priorities = step, add, update_priorities
    learner.act, learner.update, learner.intervene, run.evaluate = act, update, intervene, evaluation
    with run:
        train.loop(run.config, run)
    return seen


def test_the_weights_that_are_asked_for_act_in_training_and_others_are_evaluated(recorded):
    assert recorded.roles == {"act": {"target"}, "evaluate": {"params"}}


def test_the_policy_acts_from_the_end_of_warm_up_on_and_learns_once_for_each_step_of_its_own(recorded):
    assert recorded.acted == list(range(20, 60)) and len(recorded.learned) == 40


def test_what_is_stored_is_what_was_acted_on_and_the_true_last_observation(recorded):
    ends = 0
    for before, step, (obs, action, reward, terminal, ended, next_obs, failed), after in recorded.stored:
        assert np.array_equal(obs, before) and np.array_equal(next_obs, step.next_obs)
        shown = (step.action, step.reward, step.terminal, step.ended, step.failed)
        assert all(np.array_equal(a, b) for a, b in zip((action, reward, terminal, ended, failed), shown, strict=True))
        for i in range(2):
            ends += bool(ended[i])
            assert ended[i] or np.array_equal(next_obs[i], after[i])
    assert len(recorded.stored) == 60 and ends > 4
    assert any(not np.array_equal(s[2][5], s[3]) for s in recorded.stored), "the next episode began with the last frame"


def test_what_is_learned_from_are_windows_of_the_agents_own_length_and_discount(recorded):
    lengths = set()
    for i in range(2):
        slots: list = []
        for _, _, (_, _, reward, terminal, ended, *_), _ in recorded.stored:
            slots += [(reward[i], terminal[i], ended[i])] + [None] * bool(ended[i])  # what an episode ended in
        for sampled in recorded.windows:
            for slot, reward, discount in zip(*(values[i].tolist() for values in sampled), strict=True):
                total, factor, length = 0.0, 1.0, 0
                for gain, terminal, ended in slots[slot : slot + 3]:
                    total, factor, length = total + factor * gain, 0.9 * factor * (not terminal), length + 1
                    if terminal or ended:
                        break
                assert (reward, discount) == pytest.approx((total, factor))
                lengths.add(length)
    assert lengths == {1, 2, 3}


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


def test_the_priority_of_a_categorical_loss_is_the_cross_entropy_with_the_entropy_of_the_target():
    agent = dqn(spec=VECTOR, value=C51())
    b, rows = member(batch_for(VECTOR, (0,)), 0), torch.arange(BATCH)
    s = {"q": agent.q.birth(0)._replace(copies={"target": agent.q.birth(100).params})}
    best = agent.value.decode(agent.q(s["q"].params, b["next_obs"])[0]).argmax(-1)
    judged = agent.q(s["q"].copies["target"], b["next_obs"])[0][rows, best]
    target = agent.value.backup(b["reward"], b["discount"], judged)
    predicted = agent.q(s["q"].params, b["obs"])[0][rows, b["action"]].log_softmax(-1)
    priority = agent.q_loss(s["q"].params, s, b, {}).values["priority"]
    torch.testing.assert_close(priority, -(target * predicted).sum(-1))
    entropy = torch.special.entr(target).sum(-1)
    assert (priority >= entropy - 1e-5).all() and (entropy > 0.1).any()


# what events keep


def test_shrink_and_perturb_leaves_the_moments_by_which_observations_are_standardised_alone():
    e = engine(sac([ShrinkAndPerturb(on=("*", "alpha"), when=When(every=1))], standardise=True), (0, 1))
    seen = {"obs_mean": torch.randn(2, 5), "obs_var": torch.rand(2, 5) + 0.5}
    e.update(batch_for(CONTROL, e.seeds) | seen, Clock(steps=10**9))
    before = clone(e.states)
    assert len(e.intervene(Clock(steps=10**9, updates=1, last={"updates": 0}), ("updates",), None)) == 6
    for name in ("critic", "actor"):
        assert not equal(before[name].params, e.states[name].params)
        for held in (e.states[name].buffers, *e.states[name].copies.values()):
            assert torch.equal(held["standardise.mean"], seen["obs_mean"])
            assert torch.equal(held["standardise.var"], seen["obs_var"])


# agents by name


@pytest.mark.parametrize(("name", "error"), [("dqn_nature", "mse"), ("drq_eps", "huber")])
def test_an_agent_regresses_with_the_loss_of_its_source(name, error):
    assert load([f"agent={name}", "env=atari/pong"]).value.error == error


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


def test_a_run_has_its_length_in_env_steps_and_warm_up_replay_and_updates_in_agent_steps(tmp_path):
    given = ["agent=sac", "env=dmc/pendulum-swingup", "env.action_repeat=4", "steps=80", "warmup=8", "replay_ratio=2"]
    given += ["net.width=8", "agent.batch_size=4", "eval_every=0", "eval_episodes=1", "compile=false"]
    given += ["observe_every=0", "rank_every=0", "probe_every=0", f"run_dir={tmp_path / 'run'}"]
    with AgentSession(load(given)) as run:
        train.loop(run.config, run)
    assert (run.clock.env_steps, run.clock.agent_steps, run.clock.updates) == (80, 20, 2 * (20 - 8))
    assert len(run.replay) == 20


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
