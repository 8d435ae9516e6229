"""DeepMind Control against dm_control itself."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from envs.catalog import DMC_TASKS
from envs.dmc import DMC, LIMIT, Settings, load_suite

suite = load_suite()
SOME_TASKS = [
    "cartpole-swingup",  # initial state drawn
    "cheetah-run",  # steps the physics inside the reset
    "finger-turn_hard",  # moves a target inside the model
    "fish-swim",
    "humanoid-run",
    "lqr-lqr_2_1",  # draws its model when it is loaded
    "point_mass-hard",  # changes the actuators inside the model
    "reacher-easy",
]


def play(env: DMC, seed: int, steps: int) -> list:
    """Everything an episode answers to random actions."""
    generator = np.random.default_rng(seed)
    answers: list = [env.reset(seed).tobytes()]
    for _ in range(steps):
        t = env.step(generator.uniform(-1, 1, env.spec.action_dim).astype(np.float32))
        answers.append((t.obs.tobytes(), *t[1:]))
    return answers


def compare_used_with_fresh(task: str, steps: int) -> None:
    used = DMC(task)
    for seed in (5, 6):
        play(used, seed, steps)
    repeated = play(used, 7, steps)
    assert repeated == play(DMC(task), 7, steps)
    assert repeated != play(used, 8, steps)


@pytest.mark.parametrize("task", SOME_TASKS)
def test_an_episode_is_repeated_bit_for_bit_whatever_was_played_before(task):
    compare_used_with_fresh(task, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in DMC_TASKS if task != "quadruped-escape"])
def test_whole_episodes_of_all_tasks_are_repeated(task):
    compare_used_with_fresh(task, steps=LIMIT)


@pytest.mark.parametrize("task", ["walker-walk", "cheetah-run"])
def test_observations_and_rewards_are_the_suites_own(task):
    env = DMC(task)
    domain, _, name = task.partition("-")
    bare = suite.load(domain, name, {"random": np.random.RandomState(3)})

    def flat(observation) -> np.ndarray:
        return np.concatenate([np.atleast_1d(value).ravel() for value in observation.values()]).astype(np.float32)

    assert np.array_equal(env.reset(3), flat(bare.reset().observation))
    for action in np.random.default_rng(0).uniform(-1, 1, (50, env.spec.action_dim)).astype(np.float32):
        t, step = env.step(action), bare.step(action)
        assert np.array_equal(t.obs, flat(step.observation))
        assert t.reward == step.reward


def test_a_number_among_the_observations_takes_one_place():
    assert suite.load("walker", "walk").reset().observation["height"].shape == ()
    assert DMC("walker-walk").spec.obs_shape == (24,)


@pytest.mark.parametrize(("repeat", "steps"), [(1, 1000), (2, 500), (3, 334)])
def test_the_time_limit_truncates_and_is_counted_in_env_steps(repeat, steps):
    env = DMC("pendulum-swingup", Settings(action_repeat=repeat))
    env.reset(0)
    transitions = [env.step(np.zeros(1, np.float32)) for _ in range(steps)]
    assert [t.truncated for t in transitions] == [False] * (steps - 1) + [True]
    assert not any(t.terminated for t in transitions)


def test_rewards_of_repeated_actions_are_summed():
    one, two = DMC("cheetah-run"), DMC("cheetah-run", Settings(action_repeat=2))
    assert two.spec.action_repeat == 2
    one.reset(0), two.reset(0)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        first, second, repeated = one.step(action), one.step(action), two.step(action)
        assert repeated.reward == first.reward + second.reward
        assert np.array_equal(repeated.obs, second.obs)


def test_lqr_terminates_at_rest_and_is_cut_like_all_others():
    env = DMC("lqr-lqr_2_1")
    env.reset(0)
    moving = [env.step(np.zeros(1, np.float32)) for _ in range(LIMIT)]
    assert moving[-1].truncated and not any(t.terminated for t in moving)
    env.reset(0)
    with env._env.physics.reset_context():
        env._env.physics.data.qpos[:] = 0
    at_rest = env.step(np.zeros(1, np.float32))
    assert at_rest.terminated and not at_rest.truncated


def test_actions_are_stretched_to_the_actuators_bounds():
    env = DMC("quadruped-walk")
    bounds = env._env.action_spec()
    assert bounds.minimum.min() != bounds.maximum.max() * -1
    env.reset(0)
    for action, control in ((1.0, bounds.maximum), (-1.0, bounds.minimum)):
        env.step(np.full(12, action, np.float32))
        assert np.allclose(env._env.physics.data.ctrl, control, rtol=1e-15)


def test_actions_within_minus_one_and_one_pass_untouched():
    env = DMC("cheetah-run")
    env.reset(0)
    action = np.random.default_rng(0).uniform(-1, 1, 6).astype(np.float32)
    env.step(action)
    assert np.array_equal(env._env.physics.data.ctrl, action.astype(np.float64))


def test_a_mujoco_that_cannot_load_the_suite_is_named_with_the_pin(monkeypatch):
    import mujoco

    monkeypatch.setattr(mujoco, "__version__", "4.0.0")
    with pytest.raises(ValueError, match=r"mujoco 4\.0\.0; .*'mujoco>=3\.17,<4'"):
        DMC("walker-walk")


def test_no_renderer_is_loaded_unless_the_user_asks_for_one():
    code = "import os; from envs.dmc import DMC; DMC('cartpole-balance').reset(0); print(os.environ['MUJOCO_GL'])"
    for chosen in ("disabled", "egl"):
        env = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
        env |= {"MUJOCO_GL": chosen} if chosen != "disabled" else {}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == chosen or "EGL" in done.stderr  # a machine without EGL says so itself


def test_a_renderer_that_does_not_exist_is_to_be_unset():
    code = "from envs.dmc import DMC; DMC('cartpole-balance')"
    env = os.environ | {"MUJOCO_GL": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "env: MUJOCO_GL=nonsense fails (" in done.stderr and "; unset it, or set it to egl or osmesa" in done.stderr


def test_the_one_task_that_draws_with_opengl_says_so(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(ValueError, match="quadruped-escape draws its terrain with OpenGL; start with MUJOCO_GL=egl"):
        DMC("quadruped-escape")


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="env: dmc/walker-wlak given; did you mean walker-walk"):
        DMC("walker-wlak")
