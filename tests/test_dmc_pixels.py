"""DeepMind Control from pixels, in processes of their own: OpenGL is chosen once, when MuJoCo is first imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from core.config import load

FACTS = """
import json, sys
import cv2, numpy as np
from envs.make import make

def frames(env, seed, steps=4):
    rng = np.random.default_rng(seed)
    seen = [env.reset(seed)]
    return seen + [env.step(rng.uniform(-1, 1, env.spec.action_dim).astype(np.float32)).obs for _ in range(steps)]

rgb = make("dmc/walker-walk", pixels=84)
again, gray = make("dmc/walker-walk", pixels=84), make("dmc/walker-walk", pixels=64, colours="gray")
quick, state = make("dmc/walker-walk", pixels=84, fast_render=True), make("dmc/walker-walk")
first = frames(rgb, 3)
other = frames(again, 5)
small = frames(gray, 3)
facts = {
    "rgb": [rgb.spec.obs_shape, rgb.spec.seen_shape, rgb.spec.obs_dtype, rgb.spec.stack, rgb.spec.repeat_first],
    "gray": [gray.spec.obs_shape, gray.spec.seen_shape],
    "a used environment repeats itself": all((a == b).all() for a, b in zip(first, frames(rgb, 3))),
    "and is as a fresh one": all((a == b).all() for a, b in zip(first, frames(again, 3))),
    "seeds differ": bool((first[0] != other[0]).any()),
    "frames change": bool((first[0] != first[-1]).any()),
}
rgb.reset(3)
own = rgb._env.physics.render(84, 84, camera_id=0)
facts["is the suite's own picture"] = bool((np.moveaxis(first[0], 0, -1) == own).all())
gray.reset(3)
luma = gray._env.physics.render(64, 64, camera_id=0) @ np.array([0.299, 0.587, 0.114])
facts["gray is luma to a rounding"] = float(np.abs(luma - small[0]).max())
a, b = np.mean(frames(quick, 3)), np.mean(first)
facts["quick against slow"] = float(abs(a - b) / b)
states = [state.reset(3)]
twice = make("dmc/walker-walk", pixels=84, action_repeat=2)
action = np.full(6, 0.3, np.float32)
state.reset(3), twice.reset(3)
two = state.step(action).reward + state.step(action).reward
facts["rewards of repeats are summed"] = abs(two - twice.step(action).reward)
dog = make("dmc/quadruped-walk", pixels=32)
dog.reset(0)
facts["quadruped is seen by camera 2"] = bool(
    (np.moveaxis(dog._frame(), 0, -1) == dog._env.physics.render(32, 32, camera_id=2)).all()
)
print(json.dumps(facts))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env | environment, capture_output=True, text=True
    )


@cache
def facts() -> dict:
    suite = "from dm_control import suite; suite.load('cartpole', 'swingup').physics.render(8, 8)"
    if all(python(suite, MUJOCO_GL=kind, PYOPENGL_PLATFORM=kind).returncode for kind in ("egl", "osmesa")):
        pytest.skip("dm_control itself draws neither by EGL nor by OSMesa here: apt-get install libegl1 libgl1")
    done = python(FACTS)
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_frames_have_the_shapes_that_are_declared():
    assert facts()["rgb"] == [[3, 84, 84], [9, 84, 84], "uint8", 3, True]
    assert facts()["gray"] == [[64, 64], [3, 64, 64]]


@pytest.mark.parametrize(
    "fact",
    [
        "a used environment repeats itself",
        "and is as a fresh one",
        "seeds differ",
        "frames change",
        "is the suite's own picture",
        "quadruped is seen by camera 2",
    ],
)
def test_what_is_seen(fact):
    assert facts()[fact]


def test_gray_is_the_usual_luma():
    assert facts()["gray is luma to a rounding"] <= 1.0


def test_rewards_of_repeated_actions_are_summed():
    assert facts()["rewards of repeats are summed"] < 1e-12


def test_fast_rendering_keeps_the_brightness():
    assert 0 < facts()["quick against slow"] < 0.005


def test_without_opengl_one_line_says_which_package_is_missing():
    code = "import envs.dmc; envs.dmc.ctypes.util.find_library = lambda name: None; envs.dmc.DMC('walker-walk', "
    done = python(code + "envs.dmc.Settings(pixels=84))")
    assert "ValueError: env.pixels: neither EGL nor OSMesa is installed; on Debian: apt-get" in done.stderr


def test_a_chosen_renderer_whose_library_is_missing_is_named():
    broken = "import ctypes.util, sys; ctypes.util.find_library = lambda name: None; from envs.dmc import DMC; "
    done = python(broken + "DMC('walker-walk')", MUJOCO_GL="osmesa")  # even to show states it is loaded
    assert "ValueError: env: MUJOCO_GL=osmesa fails (" in done.stderr and "or libosmesa6 and" in done.stderr


def test_a_renderer_that_was_switched_off_is_told():
    done = python("from envs.make import make; make('dmc/walker-walk', pixels=84)", MUJOCO_GL="disabled")
    assert "env.pixels: dmc/walker-walk is drawn with OpenGL; start with MUJOCO_GL=egl or osmesa" in done.stderr


PLANET = {"cartpole-swingup": 8, "reacher-easy": 4, "cheetah-run": 4, "ball_in_cup-catch": 4}
PLANET |= {"finger-spin": 2, "walker-walk": 2}  # Hafner et al. 2019, table 1


def test_the_benchmarks_action_repeats():
    configs = {
        task: load(["agent=drq_sac", f"env=dmc/{task}"]) for task in PLANET | {"walker-run": 2, "acrobot-swingup": 2}
    }
    repeats = {task: config.env_options["action_repeat"] for task, config in configs.items()}
    assert repeats == PLANET | {"walker-run": 2, "acrobot-swingup": 2}
    assert configs["cheetah-run"].env_options["pixels"] == 64
    assert load(["agent=drq_v2", "env=dmc/cartpole-swingup"]).env_options["action_repeat"] == 2


RUNS = """
import os, signal, sys, train
from core.agent_session import AgentSession
from core.config import load
from core.run import main

def run(folder, stop):
    run = AgentSession(load(["agent=AGENT", "env=dmc/cartpole-swingup", "env.pixels=32", "env.action_repeat=8",
        "env.fast_render=true", "steps=240", "warmup=6", "eval_every=0", "eval_episodes=1", "agent.batch_size=8",
        "net.width=16",
        "net.channels=[4,4]", "net.strides=[2,2]", "compile=false", "observe_every=9", f"run_dir={folder}"]))
    turn = run.progress.step
    def watch():
        turn()
        if stop and run.clock.env_steps >= stop:
            os.kill(os.getpid(), signal.SIGTERM)
    run.progress.step = watch
    with run:
        train.loop(run.config, run)

whole, cut = sys.argv[1:]
run(whole, 0), run(cut, 96), run(cut, 0)
main(["digest", whole]), print("and"), main(["digest", cut])
"""


@pytest.mark.parametrize("agent", ["drq_sac", pytest.param("drq_v2", marks=pytest.mark.slow)])
def test_a_run_from_pixels_stopped_and_resumed_ends_in_the_same_bits(tmp_path: Path, agent):
    facts()  # skips without OpenGL
    done = python(RUNS.replace("AGENT", agent), str(tmp_path / "whole"), str(tmp_path / "cut"))
    assert done.returncode == 0, done.stderr[-2_000:]
    whole, _, cut = done.stdout[done.stdout.index("parameters") :].partition("and\n")
    assert whole == cut and "going on from step 96" in done.stderr
