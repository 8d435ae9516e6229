"""Anyone's own environment, through Gymnasium's registry."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space

from core.options import one_line
from core.spec import EnvSpec, Transition


class GymnasiumEnv:
    """The environment registered as `id`, or as `module:id` after importing that module.

    Actions: Discrete, or a bounded Box of floats (stretched from [-1, 1]). Observations: a Box of floats (flattened to
    float32) or of uint8 [H, W] (a frame, seen without a stack). Raises ValueError, one line, for any other.
    """

    def __init__(self, id: str) -> None:
        name = f"gym/{id}"
        try:
            self._env = gymnasium.make(id, disable_env_checker=True)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"env: {name} cannot be made: {one_line(error)}") from error
        shape, dtype = _observations(self._env.observation_space, name)
        num_actions, action_dim = _actions(self._env.action_space, name)
        self.spec = EnvSpec(name, shape, dtype, num_actions, action_dim)
        space = self._env.action_space
        if isinstance(space, Box):
            self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)

    def reset(self, seed: int) -> np.ndarray:
        return self._stored(self._env.reset(seed=seed)[0])

    def step(self, action: np.ndarray) -> Transition:
        obs, reward, terminated, truncated, _ = self._env.step(self._own_action(action))
        return Transition(self._stored(obs), float(reward), bool(terminated), bool(truncated))

    def close(self) -> None:
        self._env.close()

    def _own_action(self, action: np.ndarray) -> np.ndarray:
        space = self._env.action_space
        if isinstance(space, Discrete):
            return space.start + action
        assert isinstance(space, Box)
        low, high = self._low, self._high
        stretched = (high + low) / 2 + (high - low) / 2 * action.reshape(space.shape)
        return np.clip(stretched, low, high).astype(space.dtype)

    def _stored(self, obs: np.ndarray) -> np.ndarray:
        return np.array(obs, self.spec.obs_dtype).reshape(self.spec.obs_shape)


def _observations(space: Space, name: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of what is stored."""
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        return (int(np.prod(space.shape)),), "float32"
    if isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 2:
        return space.shape, "uint8"
    raise ValueError(f"env: {name} observes {space}; expected a Box of floats, or of uint8 with shape (height, width)")


def _actions(space: Space, name: str) -> tuple[int, int]:
    """Number of discrete actions, and dimension of continuous ones; one of them is 0."""
    if isinstance(space, Discrete):
        return int(space.n), 0
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and space.is_bounded():
        return 0, int(np.prod(space.shape))
    raise ValueError(f"env: {name} acts in {space}; expected Discrete, or a Box of floats with finite bounds")
