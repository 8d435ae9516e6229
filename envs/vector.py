"""n environments in lock-step, in this process: what a learner with n seeds plays on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from core.randomness import env_seed
from core.spec import Env, EnvStep, Episode, Transition


class Vector:
    """Environments of equal spaces; environment i plays episode k from the seed env_seed(seeds[i], stream, k).

    `observation` [n, *seen_shape] is what agents act on: of frames the latest `stack`; before an episode's first one
    and, after a life loss, before the newest stand zeros (as Dopamine and BBF do) or that frame itself (as on DMC).
    Every step makes a new array.
    """

    def __init__(self, envs: Sequence[Env], seeds: Sequence[int], stream: str) -> None:
        self.envs, self.seeds, self.stream = list(envs), list(seeds), stream
        self.spec = self.envs[0].spec
        self.observation = np.zeros((len(self.envs), *self.spec.seen_shape), self.spec.obs_dtype)
        self._episode = [0 for _ in self.envs]
        self._actions: list[list[np.ndarray]] = [[] for _ in self.envs]  # of the current episode
        self._score = [0.0 for _ in self.envs]

    @property
    def frame(self) -> np.ndarray:
        """The newest observation alone, as replay stores it. [n, *obs_shape]"""
        return self.observation.reshape(len(self.envs), -1, *self.spec.obs_shape)[:, -1]

    def reset(self) -> None:
        """Every environment begins its episode 0."""
        self.observation = self.observation.copy()
        for i in range(len(self.envs)):
            self._begin(i, 0)

    def step(self, actions: np.ndarray) -> EnvStep:
        """One action each, [n, *action_shape]; an environment whose episode ends begins the next at once."""
        actions = np.array(actions, self.spec.action_dtype)
        self.observation = self.observation.copy()
        played = [self._play(i, action) for i, action in enumerate(actions)]
        episodes = []
        for i, t in enumerate(played):
            if t.terminated or t.truncated:
                episodes.append(Episode(i, self._episode[i], self._score[i], len(self._actions[i])))
                self._begin(i, self._episode[i] + 1)
        reward = np.array([t.reward for t in played], np.float32)
        return EnvStep(
            next_obs=np.stack([t.obs for t in played]),
            reward=reward.clip(-1, 1) if self.spec.clip_rewards else reward,
            terminal=np.array([t.terminated or t.life_lost for t in played]),
            ended=np.array([t.terminated or t.truncated for t in played]),
            episodes=episodes,
        )

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def state_dict(self) -> dict:
        """Where every environment is: its episode, the actions so far, and a digest of what it sees."""
        shape = (-1, *self.spec.action_shape)
        return {
            "envs": [
                {
                    "episode": self._episode[i],
                    "actions": torch.from_numpy(np.array(actions, self.spec.action_dtype).reshape(shape)),
                    "digest": self._digest(i),
                }
                for i, actions in enumerate(self._actions)
            ]
        }

    def load_state_dict(self, saved: dict) -> None:
        """Play the unfinished episodes again up to where they were.

        Raises ValueError if one does not lead to what was seen then.
        """
        self.observation = self.observation.copy()
        for i, env in enumerate(saved["envs"]):
            self._begin(i, env["episode"])
            for action in env["actions"].numpy():
                self._play(i, action)
            if self._digest(i) != env["digest"]:
                name = self.spec.name
                raise ValueError(
                    f"env: {name}, seed {self.seeds[i]}, episode {env['episode']} differs when played again; "
                    f"its version has changed, or python -m envs.check {name} shows what it does not repeat"
                )

    def _begin(self, i: int, episode: int) -> None:
        self._episode[i], self._actions[i], self._score[i] = episode, [], 0.0
        self._see(i, self.envs[i].reset(env_seed(self.seeds[i], self.stream, episode)), alone=True)

    def _play(self, i: int, action: np.ndarray) -> Transition:
        transition = self.envs[i].step(action)
        self._actions[i].append(action)
        self._score[i] += transition.reward
        self._see(i, transition.obs, alone=transition.life_lost)
        return transition

    def _see(self, i: int, obs: np.ndarray, alone: bool) -> None:
        """Put the newest observation in place; `alone` forgets the frames before it."""
        stack = self.observation[i].reshape(-1, *self.spec.obs_shape)  # a view
        stack[:-1] = stack[1:] if not alone else obs if self.spec.repeat_first else 0
        stack[-1] = obs

    def _digest(self, i: int) -> str:
        return hashlib.blake2b(self.observation[i].tobytes()).hexdigest()
