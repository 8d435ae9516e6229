"""DeepMind Control from state (Tassa et al. 2018)."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from core.options import nearest, option
from core.spec import EnvSpec, Transition
from envs.catalog import DMC_TASKS

LIMIT = 1_000  # env steps per episode: the suite's own limit in all tasks but lqr, which has none


@dataclass(frozen=True)
class Settings:
    """Options of a DeepMind Control task."""

    action_repeat: int = option(1, low=1, high=100, help="env steps per agent step; their rewards are summed")


DEFAULTS = Settings()


class DMC:
    """One task, e.g. "walker-walk". Observations are float32 vectors: the suite's entries in their order, flattened.

    Actions lie in [-1, 1] and are stretched to the actuators' bounds; unbounded ones (lqr) take them as they are. The
    time limit truncates; only lqr can terminate. Raises ValueError for an unknown task, or a MuJoCo that cannot run it.
    """

    def __init__(self, task: str, settings: Settings = DEFAULTS) -> None:
        if task not in DMC_TASKS:
            raise ValueError(f"env: dmc/{task} given; {nearest(task, DMC_TASKS)}")
        domain, _, name = task.partition("-")
        suite = load_suite()
        if task == "quadruped-escape" and os.environ["MUJOCO_GL"] == "disabled":
            raise ValueError(
                "env: dmc/quadruped-escape draws its terrain with OpenGL; start with MUJOCO_GL=egl or osmesa"
            )
        # seed 0 fixes what a task builds but once: the model of lqr
        self._env = suite.load(domain, name, {"random": 0}, {"flat_observation": True})
        self._repeat = settings.action_repeat
        bounds = self._env.action_spec()
        unbounded = (bounds.maximum - bounds.minimum) >= 1e10  # MuJoCo's mark for no limit
        self._centre = np.where(unbounded, 0.0, (bounds.maximum + bounds.minimum) / 2)
        self._scale = np.where(unbounded, 1.0, (bounds.maximum - bounds.minimum) / 2)
        self.spec = EnvSpec(
            f"dmc/{task}",
            self._env.observation_spec()["observations"].shape,
            "float32",
            action_dim=bounds.shape[0],
            action_repeat=settings.action_repeat,
        )

    def reset(self, seed: int) -> np.ndarray:
        self._env.task.random.seed(seed)
        self._steps = 0
        return self._flat(self._env.reset())

    def step(self, action: np.ndarray) -> Transition:
        control = self._centre + self._scale * action
        reward = 0.0
        for _ in range(self._repeat):
            step = self._env.step(control)
            self._steps += 1
            reward += step.reward
            over = step.last() or self._steps >= LIMIT
            if over:
                break
        terminated = step.last() and step.discount == 0.0
        return Transition(self._flat(step), float(reward), terminated, over and not terminated)

    def render(self) -> np.ndarray:
        """The scene from its first camera, uint8 [240, 320, 3]. Raises ValueError where no OpenGL is at hand."""
        if os.environ["MUJOCO_GL"] == "disabled":
            raise ValueError(f"video: {self.spec.name} is drawn with OpenGL; start with MUJOCO_GL=egl or osmesa")
        try:
            return self._env.physics.render(240, 320, camera_id=0)
        except Exception as error:  # whatever OpenGL's loaders raise
            kind = os.environ["MUJOCO_GL"]
            raise ValueError(f"video: {self.spec.name} cannot be drawn; MUJOCO_GL={kind} fails ({error})") from error

    def close(self) -> None:
        self._env.close()

    @staticmethod
    def _flat(step) -> np.ndarray:
        return step.observation["observations"].astype(np.float32)


def load_suite() -> ModuleType:
    """dm_control.suite. State needs no renderer: unless the user chose one, none is looked for."""
    os.environ.setdefault("MUJOCO_GL", "disabled")
    import mujoco

    if int(mujoco.__version__.partition(".")[0]) >= 4:
        raise ValueError(
            f"env: dm_control cannot load its tasks with mujoco {mujoco.__version__}; "
            "make a new environment with pip install 'dm-control==1.0.50' 'mujoco>=3.17,<4'"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)  # a task of the suite warns of its own deprecated model
    from dm_control import suite

    return suite
