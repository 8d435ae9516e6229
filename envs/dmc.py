"""DeepMind Control (Tassa et al. 2018), from state or from pixels.

Pixels are drawn by MuJoCo through OpenGL without a screen: EGL, else OSMesa. Cameras, stack and what fills it before an
episode's third frame are those of DrQ and DrQ-v2 (verified in drqv2's dmc.py).
"""

from __future__ import annotations

import ctypes.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np

from core.options import nearest, option
from core.spec import EnvSpec, Transition
from envs.catalog import DMC_TASKS

LIMIT = 1_000  # env steps per episode: the suite's own limit in all tasks but lqr, which has none


@dataclass(frozen=True)
class Settings:
    """Options of a DeepMind Control task."""

    action_repeat: int = option(1, low=1, high=100, help="env steps per agent step; their rewards are summed")
    pixels: int = option(0, low=0, help="side of the frames that are seen instead of the state, as 84; 0: state")
    colours: Literal["rgb", "gray"] = option("rgb", help="of frames")
    stack: int = option(3, low=1, help="frames seen at once")
    fast_render: bool = option(False, help="small shadows, no smoothing: 3 x as fast, not quite the published pixels")


CAMERAS = {"quadruped": 2}  # others: 0
DEFAULTS = Settings()

PACKAGES = "on Debian: apt-get install libegl1 libgl1, or libosmesa6 and MUJOCO_GL=osmesa"


class DMC:
    """One task, e.g. "walker-walk". Observations are float32 vectors, the suite's entries in their order, flattened; or
    uint8 frames, [pixels, pixels] in gray and [3, pixels, pixels] in colour.

    Actions lie in [-1, 1] and are stretched to the actuators' bounds; unbounded ones (lqr) take them as they are. The
    time limit truncates; only lqr can terminate. Raises ValueError for an unknown task, or a MuJoCo that cannot run it.
    """

    def __init__(self, task: str, settings: Settings = DEFAULTS) -> None:
        if task not in DMC_TASKS:
            raise ValueError(f"env: dmc/{task} given; {nearest(task, DMC_TASKS)}")
        domain, _, name = task.partition("-")
        suite = load_suite(draws=settings.pixels > 0)
        if task == "quadruped-escape" and os.environ["MUJOCO_GL"] == "disabled":
            raise ValueError(
                "env: dmc/quadruped-escape draws its terrain with OpenGL; start with MUJOCO_GL=egl or osmesa"
            )
        # seed 0 fixes what a task builds but once: the model of lqr
        self._env = suite.load(domain, name, {"random": 0}, {"flat_observation": True})
        self.settings, self._task, self._camera = settings, task, CAMERAS.get(domain, 0)
        if settings.fast_render:
            quality = self._env.physics.model.vis.quality
            quality.shadowsize, quality.offsamples = 512, 0
        bounds = self._env.action_spec()
        unbounded = (bounds.maximum - bounds.minimum) >= 1e10  # MuJoCo's mark for no limit
        self._centre = np.where(unbounded, 0.0, (bounds.maximum + bounds.minimum) / 2)
        self._scale = np.where(unbounded, 1.0, (bounds.maximum - bounds.minimum) / 2)
        self.spec = self._spec(bounds.shape[0])

    def _spec(self, action_dim: int) -> EnvSpec:
        name, o = f"dmc/{self._task}", self.settings
        if not o.pixels:
            shape = self._env.observation_spec()["observations"].shape
            return EnvSpec(name, shape, "float32", action_dim=action_dim, action_repeat=o.action_repeat)
        shape = self._frame().shape  # and OpenGL has been tried
        return EnvSpec(
            name,
            shape,
            "uint8",
            action_dim=action_dim,
            action_repeat=o.action_repeat,
            stack=o.stack,
            repeat_first=True,
        )

    def reset(self, seed: int) -> np.ndarray:
        self._env.task.random.seed(seed)
        self._steps = 0
        return self._see(self._env.reset())

    def step(self, action: np.ndarray) -> Transition:
        control = self._centre + self._scale * action
        reward = 0.0
        for _ in range(self.settings.action_repeat):
            step = self._env.step(control)
            self._steps += 1
            reward += step.reward
            over = step.last() or self._steps >= LIMIT
            if over:
                break
        terminated = step.last() and step.discount == 0.0
        return Transition(self._see(step), float(reward), terminated, over and not terminated)

    def render(self) -> np.ndarray:
        """The scene for a film, uint8 [240, 320, 3]. Raises ValueError where no OpenGL is at hand."""
        return self._draw(240, 320, "video")

    def close(self) -> None:
        self._env.close()

    def _see(self, step) -> np.ndarray:
        return self._frame() if self.settings.pixels else step.observation["observations"].astype(np.float32)

    def _frame(self) -> np.ndarray:
        side = self.settings.pixels
        picture = self._draw(side, side, "env.pixels")
        if self.settings.colours == "rgb":
            return np.moveaxis(picture, -1, 0)
        import cv2

        return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)

    def _draw(self, height: int, width: int, key: str) -> np.ndarray:
        kind = os.environ["MUJOCO_GL"]
        if kind == "disabled":
            raise ValueError(f"{key}: dmc/{self._task} is drawn with OpenGL; start with MUJOCO_GL=egl or osmesa")
        try:
            return self._env.physics.render(height, width, camera_id=self._camera)
        except Exception as error:  # whatever OpenGL's loaders raise
            raise ValueError(
                f"{key}: dmc/{self._task} cannot be drawn; MUJOCO_GL={kind} fails ({error}); {PACKAGES}"
            ) from error


def load_suite(draws: bool = False) -> ModuleType:
    """dm_control.suite. Unless the user chose a renderer, one is looked for where frames will be drawn."""
    if "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = _renderer() if draws else "disabled"
    if draws and os.environ["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    with _loading_renderer():
        import mujoco
    if int(mujoco.__version__.partition(".")[0]) >= 4:
        raise ValueError(
            f"env: dm_control cannot load its tasks with mujoco {mujoco.__version__}; "
            "make a new environment with pip install 'dm-control==1.0.50' 'mujoco>=3.17,<4'"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)  # a task of the suite warns of its own deprecated model
    with _loading_renderer():
        from dm_control import suite
    return suite


@contextmanager
def _loading_renderer() -> Iterator[None]:
    """Of whatever OpenGL's loaders raise, one line: ValueError."""
    try:
        yield
    except Exception as error:
        if os.environ["MUJOCO_GL"] == "disabled" or isinstance(error, ModuleNotFoundError):
            raise  # OpenGL has no part in it
        asked = os.environ["MUJOCO_GL"]
        fix = PACKAGES if asked in ("egl", "osmesa") else "unset it, or set it to egl or osmesa"
        raise ValueError(f"env: MUJOCO_GL={asked} fails ({error}); {fix}") from error


def _renderer() -> str:
    """EGL if its library is there, else OSMesa. Raises ValueError if neither is."""
    for kind, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            return kind
    raise ValueError(f"env.pixels: neither EGL nor OSMesa is installed; {PACKAGES}")
