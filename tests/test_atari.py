"""The Atari-100k protocol, against Gymnasium's own wrapper and the emulator."""

from __future__ import annotations

import subprocess
import sys

import ale_py
import gymnasium
import numpy as np
import pytest

from envs import atari
from envs.atari import Atari, Settings, insert
from envs.catalog import games
from envs.vector import Vector

gymnasium.register_envs(ale_py)
NO_NOOPS = Settings(noop_max=0)


class PowerOn(gymnasium.Wrapper):
    """A reset that loads the game with memory from the seed and lets `noops` raw frames pass."""

    noops = 0

    def reset(self, *, seed, options=None):
        answer = self.env.reset(seed=seed, options=options)
        self.unwrapped.ale.setInt("system_random_seed", seed)
        self.unwrapped.load_game()
        for _ in range(self.noops):
            self.env.step(0)
        return answer


def reference(game: str):
    """Gymnasium's preprocessing with the settings of Atari-100k."""
    name = f"ALE/{games()[game].ale_name}-v5"
    env = gymnasium.make(name, frameskip=1, repeat_action_probability=0.0, obs_type="grayscale")
    return gymnasium.wrappers.AtariPreprocessing(PowerOn(env), noop_max=0, frame_skip=4)


def random_actions(env: Atari, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(env.spec.num_actions, size=steps)


def play(env: Atari, seed: int, steps: int) -> list:
    """Everything an episode answers to random actions, up to its end."""
    answers: list = [env.reset(seed).tobytes()]
    for action in random_actions(env, steps, seed):
        t = env.step(action)
        answers.append((t.obs.tobytes(), *t[1:]))
        if t.terminated:
            break
    return answers


def until(env: Atari, wanted, steps: int = 3_000):
    """Random play until `wanted(transition)`; -> that transition and all before it."""
    past = []
    for action in random_actions(env, steps):
        past.append(env.step(action))
        if wanted(past[-1]):
            return past[-1], past[:-1]
    raise AssertionError("it never happened")


def compare_with_gymnasium(game: str, steps: int, episodes: int, noop_max: int) -> None:
    env, gym_env = Atari(game, Settings(noop_max=noop_max)), reference(game)
    for seed in range(1, episodes + 1):
        ours = env.reset(seed)
        gym_env.env.noops = env._ale.getEpisodeFrameNumber()
        theirs, _ = gym_env.reset(seed=seed)
        assert np.array_equal(ours, theirs)
        for action in random_actions(env, steps, seed):
            t = env.step(action)
            obs, reward, terminated, _, _ = gym_env.step(int(action))
            assert (t.reward, t.terminated) == (reward, terminated)
            if terminated:  # Gymnasium shows an older screen here
                break
            assert np.array_equal(t.obs, obs)


@pytest.mark.parametrize("game", ["breakout", "ms_pacman", "seaquest"])
def test_frames_rewards_and_ends_are_bit_equal_to_gymnasiums_wrapper(game):
    compare_with_gymnasium(game, steps=250, episodes=2, noop_max=0)


@pytest.mark.parametrize("game", ["kung_fu_master", "qbert"])
def test_they_are_bit_equal_after_the_same_number_of_no_ops(game):
    compare_with_gymnasium(game, steps=150, episodes=2, noop_max=30)


@pytest.mark.slow
@pytest.mark.parametrize("game", games())
def test_all_26_games_are_bit_equal_to_gymnasiums_wrapper(game):
    compare_with_gymnasium(game, steps=1_500, episodes=2, noop_max=30)


def compare_used_with_fresh(game: str, steps: int) -> None:
    used = Atari(game)
    for seed in (5, 6):
        play(used, seed, steps // 2)
    assert play(used, 7, steps) == play(Atari(game), 7, steps)


@pytest.mark.parametrize("game", ["amidar", "qbert", "assault", "breakout"])
def test_an_episode_is_repeated_by_its_seed_and_actions_whatever_was_played_before(game):
    compare_used_with_fresh(game, steps=300)


@pytest.mark.slow
@pytest.mark.parametrize("game", games())
def test_episodes_of_all_26_games_are_repeated(game):
    compare_used_with_fresh(game, steps=2_000)


def test_the_seed_decides_the_number_of_no_ops():
    env, counts = Atari("pong"), []
    for seed in range(10):
        env.reset(seed)
        counts.append(env._ale.getEpisodeFrameNumber())
    assert all(1 <= count <= 30 for count in counts)
    assert len(set(counts)) > 5


def test_where_a_game_takes_its_chances_from_the_console_seeds_differ_without_no_ops():
    env = Atari("assault", NO_NOOPS)
    actions = random_actions(env, 100)
    episodes = set()
    for seed in range(3):
        env.reset(seed)
        episodes.add(b"".join(env.step(action).obs.tobytes() for action in actions))
    assert len(episodes) == 3


def test_a_life_loss_is_no_end_and_the_last_one_is_only_an_end():
    env = Atari("breakout")
    env.reset(3)
    end, past = until(env, lambda t: t.terminated)
    assert sum(t.life_lost for t in past) == 4  # of five lives
    assert not end.life_lost and not end.truncated
    assert not any(t.terminated or t.truncated for t in past)


def test_bank_heist_loses_its_last_life_long_before_the_game_is_over():
    env = Atari("bank_heist")
    env.reset(0)
    last_loss, _ = until(env, lambda t: t.life_lost and env._ale.lives() == 0)
    assert not last_loss.terminated
    end, between = until(env, lambda t: t.terminated)
    assert len(between) > 20
    assert not any(t.life_lost for t in (*between, end))


@pytest.mark.parametrize("game", ["amidar", "demon_attack"])
def test_lives_that_are_counted_late_are_not_taken_for_losses(game):
    env = Atari(game, NO_NOOPS)
    env.reset(0)
    before = env._ale.lives()
    _, past = until(env, lambda t: env._ale.lives() > before)
    assert not any(t.life_lost for t in past)


def test_the_time_limit_truncates(monkeypatch):
    assert atari.LIMIT * atari.FRAMES == 108_000
    monkeypatch.setattr(atari, "LIMIT", 30)
    env = Atari("pong")
    env.reset(0)
    steps = [env.step(0) for _ in range(30)]
    assert [t.truncated for t in steps] == [False] * 29 + [True]
    assert not steps[-1].terminated


@pytest.mark.slow
def test_a_game_that_is_never_started_is_cut_after_half_an_hour():
    env = Atari("breakout")
    env.reset(0)
    steps = [env.step(0)[1:] for _ in range(27_000)]  # without fire no ball is served
    assert steps[-1] == (0.0, False, True, False)
    assert not any(truncated for _, _, truncated, _ in steps[:-1])


def test_rewards_are_raw_and_the_spec_asks_to_clip_them():
    env = Atari("ms_pacman")
    env.reset(0)
    assert until(env, lambda t: t.reward > 0)[0].reward == 10.0
    assert env.spec.clip_rewards and env.spec.stack == 4


def test_before_the_first_frame_of_a_game_an_agent_sees_black_ones():
    """Zeros, as in Dopamine and BBF; Gymnasium repeats the first frame."""
    pong = Vector([Atari("pong")], (0,), "train")
    pong.reset()
    assert [bool(frame.any()) for frame in pong.observation[0]] == [False, False, False, True]


def test_the_full_action_set_moves_a_game_that_has_fewer_of_its_own():
    env, full = Atari("breakout", NO_NOOPS), Atari("breakout", Settings(full_actions=True, noop_max=0))
    assert (env.spec.num_actions, full.spec.num_actions) == (4, 18)
    env.reset(0), full.reset(0)
    own = {action.name: k for k, action in enumerate(env._actions)}
    of_all = {action.name: k for k, action in enumerate(full._actions)}
    for name in ["FIRE", *["RIGHT"] * 5, *["LEFT"] * 20]:
        assert np.array_equal(env.step(own[name]).obs, full.step(of_all[name]).obs)


def test_an_unknown_game_or_one_for_two_is_refused_in_one_line():
    with pytest.raises(ValueError, match="env: atari/breakotu given; did you mean breakout"):
        Atari("breakotu")
    with pytest.raises(ValueError, match="env: atari/combat given"):
        Atari("combat")


BROKEN = """
import sys, types
sys.modules["ale_py"] = types.ModuleType("ale_py")
from train import main, train
main(train)
"""


def test_opencv_that_cannot_be_loaded_is_named_with_the_build_that_can(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"env: cv2 cannot be loaded \(.+\); pip install .*opencv-python-headless$"):
        Atari("pong")


def test_a_broken_emulator_ends_a_run_of_its_games_with_a_line_and_leaves_other_families_alone(tmp_path):
    def run(*argv):
        short = ["compile=false", "steps=60", "warmup=20", "eval_episodes=1", f"run_dir={tmp_path}/run"]
        return subprocess.run([sys.executable, "-c", BROKEN, *argv, *short], capture_output=True, text=True)

    done = run("env=atari/pong", "agent=dqn")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "env: ale_py cannot be loaded (" in done.stderr and "pip install --force-reinstall" in done.stderr
    assert not (tmp_path / "run").exists()
    assert run("env=toy/reach", "agent=sac").returncode == 0


def test_a_rom_that_cannot_be_read_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(ale_py.roms, "__file__", str(tmp_path / "roms.py"))
    insert.cache_clear()
    with pytest.raises(ValueError, match=r"ROM of atari/pong cannot be read \(.*pong\.bin.*\); pip install --force"):
        Atari("pong")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"pong\.bin.*; correct ALE_ROMS_DIR, or unset it"):
        Atari("pong")


def test_a_game_without_published_scores_plays_as_well():
    env = Atari("space_invaders")
    assert env.reset(0).shape == (84, 84)
    assert env.spec.num_actions == 6


@pytest.mark.slow
def test_random_scores_are_those_of_the_literature():
    for game in ("breakout", "boxing", "freeway", "pong"):
        env, scores = Atari(game), []
        for seed in range(20):
            env.reset(seed)
            end, past = until(env, lambda t: t.terminated, steps=27_000)
            scores.append(sum(t.reward for t in (*past, end)))
        low, high = {"breakout": (0.3, 3), "boxing": (-5, 5), "freeway": (0, 0), "pong": (-21, -19.5)}[game]
        assert low <= np.mean(scores) <= high
