"""The returns that the toys' docstrings state, and their determinism."""

from __future__ import annotations

import numpy as np
import pytest

from envs.toy import TOYS, Lives


def scores(name: str, policy, episodes: int = 1_000) -> tuple[float, list]:
    """Mean return, and the last transition of every episode."""
    env, generator, total, ends = TOYS[name](), np.random.default_rng(0), 0.0, []
    for seed in range(episodes):
        obs, over = env.reset(seed), False
        while not over:
            t = env.step(policy(obs, generator))
            obs, over, total = t.obs, t.terminated or t.truncated, total + t.reward
        ends.append(t)
    return total / episodes, ends


BEST = {
    "chain": lambda obs, _: 1,
    "pixels": lambda obs, _: 2 * bool(obs[42:].any()) + bool(obs[:, 42:].any()),
    "reach": lambda obs, _: np.clip((obs[2:] - obs[:2]) / 0.2, -1, 1),
    "lives": lambda obs, _: int(obs[0, 0] == 255),
}
RANDOM = {
    "chain": lambda _, generator: generator.integers(2),
    "pixels": lambda _, generator: generator.integers(4),
    "reach": lambda _, generator: generator.uniform(-1, 1, 2).astype(np.float32),
    "lives": lambda _, generator: generator.integers(2),
}


@pytest.mark.parametrize(
    ("name", "best", "random"),
    [("chain", 18.5, 3.7), ("pixels", 10.0, 2.5), ("reach", 22.7, -1.1), ("lives", 24.0, 5.9)],
)
def test_returns_are_as_stated(name, best, random):
    assert scores(name, BEST[name])[0] == pytest.approx(best, abs=0.2)
    assert scores(name, RANDOM[name])[0] == pytest.approx(random, abs=0.6)


def test_each_ends_as_stated():
    for name, terminated in (("chain", False), ("pixels", True), ("reach", False), ("lives", False)):
        _, ends = scores(name, BEST[name], episodes=20)
        assert all(t.terminated == terminated and t.truncated != terminated for t in ends)


def test_lives_are_lost_twice_and_then_for_good():
    env = Lives()
    obs, losses = env.reset(0), []
    for _ in range(3):
        losses.append(env.step(int(obs[0, 0] != 255)))
        obs = losses[-1].obs
    assert [t.life_lost for t in losses] == [True, True, False]
    assert [t.terminated for t in losses] == [False, False, True]
    assert [t.reward for t in losses] == [0.0] * 3


@pytest.mark.parametrize("name", TOYS)
def test_an_episode_is_a_function_of_seed_and_actions(name):
    def play(env, seed: int) -> list:
        generator = np.random.default_rng(seed)
        answers = [env.reset(seed).tobytes()]
        for _ in range(10):
            t = env.step(RANDOM[name](None, generator))
            answers.append((t.obs.tobytes(), *t[1:]))
            if t.terminated:
                break
        return answers

    used = TOYS[name]()
    assert play(used, 1) != play(used, 2)
    assert play(used, 3) == play(TOYS[name](), 3)
