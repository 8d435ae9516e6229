"""Other people's libraries on the same work, where they are installed (`pip install -e .[bench]`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np

STILL = "EvergreenStill-v0"


class Still(gym.Env):
    """Costs nothing: 17 observations out of a table, 6 actions that do nothing, 1,000 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def __init__(self) -> None:
        self._table = np.random.default_rng(0).standard_normal((512, 17)).astype(np.float32)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step = 0
        return self._table[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        return self._table[self._step % 512], 0.5, False, self._step >= 1_000, {}


def register() -> str:
    """-> the name under which `Still` can be chosen."""
    if STILL not in gym.registry:
        gym.register(STILL, entry_point=Still)
    return f"gym/{STILL}"


def stable_baselines(steps: int) -> tuple[Callable[[], object], Callable[[], object]] | None:
    """Stable-Baselines3's SAC: (one update with its draw, so many steps of its whole loop at replay ratio 1)."""
    if not find_spec("stable_baselines3"):
        return None
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    def model() -> Any:
        made = SAC("MlpPolicy", Still(), buffer_size=20_000, batch_size=256, learning_starts=300, device="cpu")
        made.set_logger(Logger(None, []))
        made.learn(400)
        return made

    alone, looping = model(), model()
    return (
        lambda: alone.train(gradient_steps=1, batch_size=256),
        lambda: looping.learn(steps, reset_num_timesteps=False),
    )
