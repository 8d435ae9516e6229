"""Anyone's own environment, and the command that checks it."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from envs import check
from envs.gymnasium_env import GymnasiumEnv


class Own(gymnasium.Env):
    """Five steps of whatever spaces it is given; each test breaks it in one way."""

    def __init__(self, observes=None, acts=None, ends="terminated", noise=False, value=0.5, error=None):
        if error is not None:
            raise error
        self.observation_space = Box(-1, 1, (2, 3)) if observes is None else observes
        self.action_space = Discrete(3, start=5) if acts is None else acts
        self.ends, self.noise, self.value = ends, noise, value

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.last_action = 0, None
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.last_action, self.steps = action, self.steps + 1
        over = self.steps == 5
        if over and self.ends == "exit":
            sys.exit(0)
        return self._obs(), 1, over and self.ends == "terminated", over and self.ends == "truncated", {}

    def _obs(self):
        if self.observation_space.dtype == np.uint8:
            return np.full(self.observation_space.shape, self.steps, np.uint8)
        noise = np.random.rand() if self.noise else self.np_random.random()
        return np.full(self.observation_space.shape, self.value * noise, np.float32)


def own(**options) -> str:
    """The ID of an environment with these properties."""
    name = f"Own{len(gymnasium.registry)}-v0"
    gymnasium.register(name, entry_point=lambda: Own(**options))
    return name


def test_cartpole_answers_what_gymnasiums_own_does():
    env, bare = GymnasiumEnv("CartPole-v1"), gymnasium.make("CartPole-v1")
    assert (env.spec.obs_shape, env.spec.obs_dtype, env.spec.num_actions) == ((4,), "float32", 2)
    for seed in (1, 2):
        assert np.array_equal(env.reset(seed), bare.reset(seed=seed)[0])
        for action in np.random.default_rng(seed).integers(2, size=500):
            t = env.step(action)
            obs, reward, terminated, truncated, _ = bare.step(int(action))
            assert np.array_equal(t.obs, obs)
            assert t[1:4] == (reward, terminated, truncated)
            if terminated:
                break


def test_continuous_actions_are_stretched_to_the_box():
    space = Box(np.array([[0.0, -4.0]]), np.array([[1.0, 2.0]]), dtype=np.float64)
    env = GymnasiumEnv(own(acts=space))
    env.reset(0)
    assert env.spec.action_dim == 2
    for action, expected in (([-1, -1], [0, -4]), ([1, 1], [1, 2]), ([0, 0.5], [0.5, 0.5])):
        env.step(np.array(action, np.float32))
        assert np.allclose(env._env.unwrapped.last_action, [expected])


def test_discrete_actions_begin_where_the_space_begins():
    env = GymnasiumEnv(own())
    env.reset(0)
    env.step(np.int64(0))
    assert env._env.unwrapped.last_action == 5


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_termination_and_truncation_are_passed_on_as_reported(ends):
    env = GymnasiumEnv(own(ends=ends))
    env.reset(0)
    last = [env.step(np.int64(0)) for _ in range(5)][-1]
    assert (last.terminated, last.truncated) == (ends == "terminated", ends == "truncated")
    assert isinstance(last.reward, float)


def test_a_registered_time_limit_truncates():
    env = GymnasiumEnv("Pendulum-v1")
    env.reset(0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_floats_are_flattened_and_grayscale_images_kept():
    assert GymnasiumEnv(own()).reset(0).shape == (6,)
    env = GymnasiumEnv(own(observes=Box(0, 255, (20, 30), np.uint8)))
    assert (env.spec.obs_shape, env.spec.obs_dtype, env.spec.stack) == ((20, 30), "uint8", 1)
    assert env.spec.seen_shape == (1, 20, 30)
    assert np.array_equal(env.reset(0), np.zeros((20, 30), np.uint8))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"observes": Dict(a=Box(0, 1, (2,)))}, r"observes Dict.*; expected a Box of floats, or of uint8"),
        ({"observes": Box(0, 255, (20, 30, 3), np.uint8)}, r"observes Box.*; expected a Box of floats, or of uint8"),
        ({"observes": Discrete(4)}, "observes Discrete"),
        (
            {"acts": MultiDiscrete([2, 2])},
            r"acts in MultiDiscrete.*; expected Discrete, or a Box of floats with finite",
        ),
        ({"acts": Box(-np.inf, np.inf, (2,))}, "acts in Box.*finite bounds"),
        ({"acts": Box(0, 3, (2,), np.int64)}, "acts in Box.*; expected Discrete"),
    ],
)
def test_other_spaces_are_refused_in_one_line(options, line):
    with pytest.raises(ValueError, match=line) as error:
        GymnasiumEnv(own(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["CartPool-v1", "no_such_module:Own-v0", "CartPole-v99"])
def test_what_gymnasium_cannot_make_is_told_in_one_line(name):
    with pytest.raises(ValueError, match=f"^env: gym/{name} cannot be made: ") as error:
        GymnasiumEnv(name)
    assert "\n" not in str(error.value)


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    register = (
        "import gymnasium; gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')"
    )
    (tmp_path / "my_own_module.py").write_text(register)
    monkeypatch.syspath_prepend(tmp_path)
    assert GymnasiumEnv("my_own_module:Mine-v0").spec.name == "gym/my_own_module:Mine-v0"


def run_check(capsys, name: str) -> tuple[int, str]:
    code = check.main([name])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", ["gym/CartPole-v1", "gym/Pendulum-v1", "toy/lives"])
def test_the_check_passes_environments_that_keep_the_contract(capsys, name):
    code, out = run_check(capsys, name)
    assert code == 0
    assert len(out.splitlines()) == 1 + len(check.CHECKS)
    assert all(line.startswith("ok") for line in out.splitlines()[1:])


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"noise": True}, "FAIL  a seed decides the first observation"),
        ({"noise": True}, "FAIL  equal seeds and actions give equal episodes"),
        ({"noise": True}, "FAIL  an episode that was cut off goes on where it was"),
        ({"value": np.nan}, "FAIL  observations and rewards are of the declared kind: an observation is not finite"),
        ({"ends": "never"}, "FAIL  episodes end: no end within"),
    ],
)
def test_the_check_names_what_is_broken(capsys, monkeypatch, options, finding):
    monkeypatch.setattr(check, "END", 2_000)
    code, out = run_check(capsys, f"gym/{own(**options)}")
    assert code == 1
    assert any(line.startswith(finding) for line in out.splitlines())


def test_the_check_says_what_it_checks(capsys):
    code, out = run_check(capsys, "--help")
    assert code == 0 and "python -m envs.check gym/CartPole-v1" in out and "train.py --help lists the env" in out


def test_the_check_refuses_what_cannot_be_made(capsys):
    assert check.main(["gym/CartPool-v1"]) == 2
    assert "CartPool" in capsys.readouterr().err
    assert check.main([]) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("no\nlicence"), "RuntimeError: no licence"),
        (OSError(2, "No such file", "a.xml"), "FileNotFoundError: [Errno 2] No such file: 'a.xml'"),
        (KeyError("hip"), "KeyError: 'hip'"),
        (SystemExit(1), "SystemExit: 1"),
    ],
)
def test_the_check_refuses_in_one_line_what_raises_when_it_is_made(capsys, error, words):
    name = f"gym/{own(error=error)}"
    assert check.main([name]) == 2
    assert capsys.readouterr().err == f"env: {name} cannot be made: {words}\n"


def test_an_environment_that_leaves_the_process_is_a_finding(capsys):
    code, out = run_check(capsys, f"gym/{own(ends='exit')}")
    assert code == 1
    assert "FAIL  episodes end: raised SystemExit: 0" in out.splitlines()
