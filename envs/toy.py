"""Environments that are solved within seconds, for tests and first steps. Returns are undiscounted."""

from __future__ import annotations

import numpy as np

from core.spec import Env, EnvSpec, Transition


class Chain:
    """Five cells in a row, seen one-hot; action 0 goes left, 1 right. Reward 1 for every step that ends in the last.

    Starts in one of the first four cells; truncated after 20 steps. Always right: 18.5 on average. Random: 3.7.
    """

    CELLS, LIMIT = 5, 20
    spec = EnvSpec("toy/chain", (CELLS,), "float32", num_actions=2)

    def reset(self, seed: int) -> np.ndarray:
        self._cell = int(np.random.default_rng(seed).integers(self.CELLS - 1))
        self._steps = 0
        return self._obs()

    def step(self, action: np.ndarray) -> Transition:
        self._cell = min(max(self._cell + (1 if action else -1), 0), self.CELLS - 1)
        self._steps += 1
        return Transition(self._obs(), float(self._cell == self.CELLS - 1), False, self._steps == self.LIMIT)

    def close(self) -> None: ...

    def _obs(self) -> np.ndarray:
        return np.eye(self.CELLS, dtype=np.float32)[self._cell]


class Pixels:
    """A bright quarter of a frame names the one action of four that is rewarded with 1; then another quarter lights up.

    Terminates after 10 steps. Best: 10. Random: 2.5 on average.
    """

    LIMIT = 10
    spec = EnvSpec("toy/pixels", (84, 84), "uint8", num_actions=4, stack=4)

    def reset(self, seed: int) -> np.ndarray:
        self._bright = np.random.default_rng(seed).integers(4, size=self.LIMIT + 1)
        self._steps = 0
        return self._frame()

    def step(self, action: np.ndarray) -> Transition:
        reward = float(action == self._bright[self._steps])
        self._steps += 1
        return Transition(self._frame(), reward, self._steps == self.LIMIT, False)

    def close(self) -> None: ...

    def _frame(self) -> np.ndarray:
        frame = np.zeros((2, 42, 2, 42), np.uint8)
        row, column = divmod(int(self._bright[self._steps]), 2)
        frame[row, :, column] = 255
        return frame.reshape(84, 84)


class Reach:
    """A point in the square [-1, 1]^2 that moves by 0.2 * action; reward 1 - distance to a target. Sees both positions.

    Truncated after 25 steps. Straight to the target: 22.7 on average. Random: -1.1.
    """

    LIMIT = 25
    spec = EnvSpec("toy/reach", (4,), "float32", action_dim=2)

    def reset(self, seed: int) -> np.ndarray:
        self._point, self._target = np.random.default_rng(seed).uniform(-1.0, 1.0, (2, 2))
        self._steps = 0
        return self._obs()

    def step(self, action: np.ndarray) -> Transition:
        self._point = np.clip(self._point + 0.2 * action.astype(np.float64), -1.0, 1.0)
        self._steps += 1
        reward = 1.0 - float(np.hypot(*(self._point - self._target)))
        return Transition(self._obs(), reward, False, self._steps == self.LIMIT)

    def close(self) -> None: ...

    def _obs(self) -> np.ndarray:
        return np.concatenate([self._point, self._target]).astype(np.float32)


class Lives:
    """One side of the frame is bright; to step there costs one of three lives, to the other side earns 2 (clipped: 1).

    Terminates with the last life, truncated after 12 steps. Best: 24. Random: 5.9 on average, nearly always dying.
    """

    LIMIT = 12
    spec = EnvSpec("toy/lives", (84, 84), "uint8", num_actions=2, stack=4, clip_rewards=True)

    def reset(self, seed: int) -> np.ndarray:
        self._bright = np.random.default_rng(seed).integers(2, size=self.LIMIT + 1)
        self._steps, self._lives = 0, 3
        return self._frame()

    def step(self, action: np.ndarray) -> Transition:
        hit = bool(action == self._bright[self._steps])
        self._steps += 1
        self._lives -= hit
        terminated = self._lives == 0
        truncated = self._steps == self.LIMIT and not terminated
        return Transition(self._frame(), 0.0 if hit else 2.0, terminated, truncated, hit and not terminated)

    def close(self) -> None: ...

    def _frame(self) -> np.ndarray:
        frame = np.full((84, 2, 42), 20 * self._lives, np.uint8)
        frame[:, self._bright[self._steps]] = 255
        return frame.reshape(84, 84)


TOYS: dict[str, type[Env]] = {"chain": Chain, "pixels": Pixels, "reach": Reach, "lives": Lives}
