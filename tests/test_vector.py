"""Lock-step, automatic reset, the stack that agents see, and exact resume."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from core.randomness import env_seed
from core.spec import EnvSpec, Transition
from envs.make import make
from envs.vector import Vector


def vector(name: str, seeds=(0, 1), **options) -> Vector:
    return Vector([make(name, **options) for _ in seeds], seeds, "train")


def random_actions(spec, steps: int, n: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if spec.is_discrete:
        return generator.integers(spec.num_actions, size=(steps, n))
    return generator.uniform(-1, 1, (steps, n, spec.action_dim)).astype(np.float32)


def reference(name: str, seed: int, actions: np.ndarray):
    """One environment alone: per step what is seen before it, and everything it answers."""
    env, episode, score, length = make(name), 0, 0.0, 0
    spec = env.spec
    history = [env.reset(env_seed(seed, "train", 0))]
    for action in actions:
        if spec.is_image:
            blank = np.zeros(spec.obs_shape, np.uint8)
            seen = np.stack(([blank] * spec.stack + history)[-spec.stack :])
        else:
            seen = history[-1]
        t = env.step(action)
        score, length = score + t.reward, length + 1
        ended = t.terminated or t.truncated
        finished = (episode, score, length) if ended else None
        history = [t.obs] if t.life_lost else [*history, t.obs]
        if ended:
            episode, score, length = episode + 1, 0.0, 0
            history = [env.reset(env_seed(seed, "train", episode))]
        yield seen, t, ended, finished


@pytest.mark.parametrize("name", ["toy/chain", "toy/pixels", "toy/reach", "toy/lives", "gym/CartPole-v1"])
def test_environments_in_lock_step_do_what_each_does_alone(name):
    v = vector(name, seeds=(3, 8))
    actions = random_actions(v.spec, 150, 2)
    v.reset()
    alone = [list(reference(name, seed, actions[:, i])) for i, seed in enumerate(v.seeds)]
    for now, action in enumerate(actions):
        seen, frame = v.observation, v.frame
        step = v.step(action)
        for i in range(2):
            expected, t, ended, finished = alone[i][now]
            assert np.array_equal(seen[i], expected)
            assert np.array_equal(frame[i], expected[-1] if v.spec.is_image else expected)
            assert np.array_equal(step.next_obs[i], t.obs)
            assert step.reward[i] == np.float32(np.clip(t.reward, -1, 1) if v.spec.clip_rewards else t.reward)
            assert step.terminal[i] == (t.terminated or t.life_lost)
            assert step.ended[i] == ended
            assert all(e.whole for e in step.episodes)
            assert [tuple(e[1:4]) for e in step.episodes if e.member == i] == ([finished] if finished else [])


class Frames:
    """Continuous actions, frames; keeps what it was given."""

    spec = EnvSpec("frames", (4, 4), "uint8", action_dim=2, repeat_first=True)

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def reset(self, seed: int) -> np.ndarray:
        return np.zeros((4, 4), np.uint8)

    def step(self, action: np.ndarray) -> Transition:
        self.given.append(action)
        return Transition(np.zeros((4, 4), np.uint8), 1.0, False, False)

    def close(self) -> None: ...


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_played_and_stored_as_zeros_and_noted(value):
    v = Vector([Frames(), Frames()], (0, 1), "train")
    v.reset()
    step = v.step(np.array([[value, 0.5], [0.25, 0.5]], np.float32))
    assert np.array_equal(step.action, [[0, 0.5], [0.25, 0.5]])
    assert [env.given[0].tolist() for env in v.envs] == [[0, 0.5], [0.25, 0.5]]
    assert list(v.faults) == [0] and not np.isfinite(v.faults[0]["action"]).all()
    again = Vector([Frames(), Frames()], (0, 1), "train")
    again.load_state_dict(v.state_dict())
    assert [env.given[0].tolist() for env in again.envs] == [[0, 0.5], [0.25, 0.5]]
    assert list(again.faults) == [0] and np.isnan(again._score[0]) and again._score[1] == 1.0


def test_the_stack_is_zero_before_the_first_frame_and_after_a_life_loss():
    v = vector("toy/lives", seeds=(0,))
    v.reset()
    newest = []
    for dangerous in (False, False, True, False):
        bright = int(v.observation[0, -1, 0, 0] == 255)
        step = v.step(np.array([bright ^ 1 if dangerous else bright]))
        newest.append([bool(frame.any()) for frame in v.observation[0]])
        assert step.terminal[0] == dangerous and not step.ended[0]
    assert newest == [
        [False, False, True, True],
        [False, True, True, True],
        [False, False, False, True],  # the life loss
        [False, False, True, True],
    ]


def test_a_step_leaves_earlier_observations_alone():
    v = vector("toy/pixels")
    v.reset()
    seen = v.observation
    before = seen.copy()
    v.step(np.zeros(2, np.int64))
    assert np.array_equal(seen, before) and v.observation is not seen


def test_the_last_observation_of_an_episode_is_not_the_next_ones_first():
    v = vector("toy/chain", seeds=(0,))
    v.reset()
    for _ in range(20):
        step = v.step(np.ones(1, np.int64))
    assert step.ended[0] and not step.terminal[0]
    assert step.next_obs[0].argmax() == 4  # truncated in the last cell
    assert v.observation[0].argmax() < 4


def test_scores_are_raw_where_the_learner_sees_clipped_rewards():
    v = vector("toy/lives", seeds=(0,))
    v.reset()
    done = []
    while not done:
        step = v.step(np.array([int(v.observation[0, -1, 0, 0] == 255)]))
        assert step.reward[0] == 1.0
        done = step.episodes
    assert done[0] == (0, 0, 24.0, 12, True)


def test_every_seed_and_episode_and_stream_has_a_start_of_its_own():
    def starts(seed: int, stream: str) -> list[bytes]:
        v = Vector([make("toy/reach")], [seed], stream)
        v.reset()
        found = [v.observation.tobytes()]
        for _ in range(50):
            if v.step(np.zeros((1, 2))).ended[0]:
                found.append(v.observation.tobytes())
        return found

    every = [*starts(0, "train"), *starts(1, "train"), *starts(0, "evaluate")]
    assert len(every) == len(set(every)) == 9
    assert starts(1, "train") == starts(1, "train")


def saved_and_loaded(state: dict) -> dict:
    """The state as it comes back from a file that may hold nothing but tensors and plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def compare_resumed_with_uninterrupted(name: str, before: int, after: int = 200, **options) -> None:
    whole = vector(name, **options)
    actions = random_actions(whole.spec, before + after, 2)
    whole.reset()
    for action in actions[:before]:
        whole.step(action)
    resumed = vector(name, **options)
    resumed.reset()
    resumed.step(actions[-1])  # what it did before does not matter
    resumed.load_state_dict(saved_and_loaded(whole.state_dict()))
    for action in actions[before:]:
        assert np.array_equal(whole.observation, resumed.observation)
        one, other = whole.step(action), resumed.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        assert one.episodes == other.episodes
    assert saved_and_loaded(resumed.state_dict())["envs"][0]["digest"] == whole.state_dict()["envs"][0]["digest"]


@pytest.mark.parametrize("name", ["toy/chain", "toy/pixels", "toy/reach", "toy/lives", "gym/CartPole-v1"])
@pytest.mark.parametrize("before", [0, 1, 33])
def test_a_resumed_run_continues_bit_for_bit(name, before):
    compare_resumed_with_uninterrupted(name, before)


@pytest.mark.parametrize(("name", "before"), [("atari/breakout", 150), ("atari/qbert", 120)])
def test_a_resumed_game_continues_bit_for_bit(name, before):
    compare_resumed_with_uninterrupted(name, before)


@pytest.mark.parametrize("name", ["dmc/cheetah-run", "dmc/finger-turn_hard", "dmc/point_mass-hard", "dmc/fish-swim"])
def test_a_resumed_control_task_continues_bit_for_bit(name):
    compare_resumed_with_uninterrupted(name, before=450, action_repeat=2)  # over an episode's end


def test_an_environment_that_does_not_repeat_itself_is_found_out():
    v = vector("toy/reach")
    v.reset()
    v.step(np.ones((2, 2)))
    state = v.state_dict()
    state["envs"][1]["actions"] = torch.zeros_like(state["envs"][1]["actions"])
    with pytest.raises(ValueError, match="env: toy/reach, seed 1, episode 0 differs when played again; .*envs.check"):
        vector("toy/reach").load_state_dict(state)
