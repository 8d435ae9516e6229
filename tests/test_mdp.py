"""Image classification MDPs: what is rewarded, and where one goes."""

import numpy as np
import pytest

from envs.check import check
from envs.make import make
from images import load

DIGITS = load("digits")
PIXELS = {(image / 255.0).astype(np.float32).tobytes(): i for i, image in enumerate(DIGITS.train.reshape(-1, 64))}


def seen(obs: np.ndarray) -> int:
    """Which image it is. (Digits has no two alike.)"""
    return PIXELS[obs.tobytes()]


@pytest.mark.parametrize("kind", ["true_label", "random_label", "sparse"])
def test_it_keeps_the_contract_of_environments(kind):
    assert len(PIXELS) == len(DIGITS.train)
    assert [finding for finding in check(lambda: make(f"mdp/{kind}")) if finding.problem] == []


def test_the_true_label_is_rewarded_and_states_are_uniform():
    env, states, rewards = make("mdp/true_label", steps=2_000), [], []
    obs = env.reset(0)
    for step in range(2_000):
        label = DIGITS.labels[seen(obs)]
        states.append(label)
        found = env.step(np.array(label if step % 2 else (label + 1) % 10))
        rewards.append(found.reward)
        obs = found.obs
    assert rewards[::2] == [0.0] * 1_000 and rewards[1::2] == [1.0] * 1_000
    assert found.truncated and not found.terminated
    assert np.bincount(states, minlength=10).min() > 150  # 200 expected, sd 13


def test_random_labels_belong_to_images_for_good():
    answers: dict[int, int] = {}
    for action in range(10):
        env = make("mdp/random_label", steps=500)
        obs = env.reset(0)
        for _ in range(500):  # the same images in the same order, whatever is done
            image = seen(obs)
            found = env.step(np.array(action))
            if found.reward:
                assert answers.setdefault(image, action) == action
            obs = found.obs
    labels = np.array([DIGITS.labels[image] for image in answers])
    assert len(answers) > 350 and (labels == np.array(list(answers.values()))).mean() < 0.2


def test_the_sparse_one_is_walked_through_all_classes_and_a_mistake_leads_back():
    env = make("mdp/sparse")
    obs, rewards = env.reset(0), []
    for step in range(20):
        assert DIGITS.labels[seen(obs)] == step % 10
        found = env.step(np.array(step % 10))
        rewards.append(found.reward)
        obs = found.obs
    assert rewards == ([0.0] * 9 + [1.0]) * 2
    obs = env.step(np.array(0)).obs  # right: on to class 1
    assert DIGITS.labels[seen(obs)] == 1
    assert DIGITS.labels[seen(env.step(np.array(0)).obs)] == 0  # wrong: back
