"""n environments in lock-step, in this process: what a learner with n seeds plays on."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from core.options import told
from core.randomness import env_seed
from core.spec import Env, EnvStep, Episode, Transition
from core.watchdog import FAILURES, EnvironmentFailed, Watchdog

GREATEST = float(np.finfo(np.float32).max)  # rewards are stored in single precision


class Vector:
    """Environments of equal spaces; environment i plays episode k from the seed env_seed(seeds[i], stream, k).

    `observation` [n, *seen_shape] is what agents act on: of frames the latest `stack`; before an episode's first one
    and, after a life loss, before the newest stand zeros (as Dopamine and BBF do) or that frame itself (as on DMC).
    Every step makes a new array.

    Of actions, observations and rewards that are not finite `faults` keeps the first, by member; zeros stand in their
    place, so that a learner that has come to an end does not take its neighbours' simulators with it.

    An environment that raises an error ends the run (EnvironmentFailed), or, where `remake` can open another one, its
    episode: as cut, where it stood. `failures` tells of these, each once; the new one stands in the list `envs`.
    """

    def __init__(
        self,
        envs: list[Env],
        seeds: Sequence[int],
        stream: str,
        remake: Callable[[], Env] | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.envs, self.seeds, self.stream = envs, list(seeds), stream
        self.spec = self.envs[0].spec
        self.observation = np.zeros((len(self.envs), *self.spec.seen_shape), self.spec.obs_dtype)
        self._episode = [0 for _ in self.envs]
        self._actions: list[list[np.ndarray]] = [[] for _ in self.envs]  # of the current episode
        self._score = [0.0 for _ in self.envs]
        self.faults: dict[int, dict[str, np.ndarray]] = {}  # entries of a batch, [1, ...]
        self.failures: list[dict[str, Any]] = []  # member, episode, length, error
        self._remake, self._watchdog = remake, watchdog or Watchdog(0)
        self._failed: list[int | None] = [None for _ in self.envs]  # the episode that failed last

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
        before = list(self._failed)
        played = self._play_all(actions)
        failed = [now != then for now, then in zip(self._failed, before, strict=True)]
        episodes = []
        for i, t in enumerate(played):
            if t.terminated or t.truncated:
                whole = not failed[i]
                episodes.append(Episode(i, self._episode[i], self._score[i], len(self._actions[i]), whole))
                self._begin(i, self._episode[i] + 1)
        reward = np.array([t.reward for t in played], np.float32)
        return EnvStep(
            action=_zeroed(actions),
            next_obs=np.stack([t.obs for t in played]),
            reward=reward.clip(-1, 1) if self.spec.clip_rewards else reward,
            terminal=np.array([t.terminated or t.life_lost for t in played]),
            ended=np.array([t.terminated or t.truncated for t in played]),
            failed=np.array(failed),
            episodes=episodes,
        )

    def close(self) -> None:
        """What goes wrong there does not matter any more."""
        for i, env in enumerate(self.envs):
            self._watchdog.waiting_for = partial(self._where, i)
            with self._watchdog, contextlib.suppress(*FAILURES):
                env.close()

    def state_dict(self) -> dict:
        """Where every environment is: its episode, the actions so far, a digest of what it sees, its last failure."""
        shape = (-1, *self.spec.action_shape)
        return {
            "envs": [
                {
                    "episode": self._episode[i],
                    "actions": torch.from_numpy(np.array(actions, self.spec.action_dtype).reshape(shape)),
                    "digest": self._digest(i),
                    "failed": self._failed[i],
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
            episode, failed = env["episode"], env["failed"]
            if type(episode) is not int or episode < 0 or not (failed is None or type(failed) is int):
                raise ValueError(f"episode: {episode}, and {failed} failed last; expected numbers of episodes")
            actions = env["actions"].numpy().reshape(-1, *self.spec.action_shape)
            self._begin(i, episode)
            self._failed[i] = failed
            try:
                for action in actions:
                    self._play(i, action)
            except FAILURES as error:
                raise EnvironmentFailed(f"played again, {self._told(i, error)}", undone=False) from error
            if self._digest(i) != env["digest"]:
                name = self.spec.name
                raise ValueError(
                    f"env: {name}, seed {self.seeds[i]}, episode {env['episode']} differs when played again; "
                    f"its version has changed, or python -m envs.check {name} shows what it does not repeat"
                )

    def _play_all(self, actions: np.ndarray) -> list[Transition]:
        seen, scores, lengths = self.observation, list(self._score), [len(mine) for mine in self._actions]
        failed, failures, faults = list(self._failed), list(self.failures), dict(self.faults)
        self.observation = self.observation.copy()
        played: list[Transition] = []
        for i, action in enumerate(actions):
            try:
                played.append(self._play_or_restart(i, action))
            except FAILURES as error:
                self.observation, self._score = seen, scores
                self._failed, self.failures, self.faults = failed, failures, faults
                for mine, length in zip(self._actions, lengths, strict=True):
                    del mine[length:]  # of one that was restarted in this step nothing was added
                raise EnvironmentFailed(self._told(i, error), undone=True, restart=not self._remake) from error
        return played

    def _play_or_restart(self, i: int, action: np.ndarray) -> Transition:
        """Of an environment that fails, the end of its episode. Raises its error where no other can take its place."""
        try:
            return self._play(i, action)
        except FAILURES as error:
            if not self._remake or self._failed[i] == self._episode[i] - 1:
                raise
            return self._restart(i, error, self._remake)

    def _restart(self, i: int, error: BaseException, remake: Callable[[], Env]) -> Transition:
        """Another environment in its place. -> the end of the episode, as if it had been cut where it stood"""
        with self._watchdog:
            with contextlib.suppress(*FAILURES):
                self.envs[i].close()
            self.envs[i] = remake()
        failure = {"member": i, "episode": self._episode[i], "length": len(self._actions[i])}
        self.failures.append(failure | {"error": told(error)})
        self._failed[i] = self._episode[i]
        return Transition(self.frame[i].copy(), 0.0, terminated=False, truncated=True)

    def _told(self, i: int, error: BaseException) -> str:
        return f"{self._where(i)}, step {len(self._actions[i])}: {told(error)}"

    def _where(self, i: int) -> str:
        return f"{self.spec.name}, seed {self.seeds[i]}, episode {self._episode[i]} ({self.stream})"

    def _begin(self, i: int, episode: int) -> None:
        self._episode[i], self._actions[i], self._score[i] = episode, [], 0.0
        try:
            self._watchdog.waiting_for = partial(self._where, i)
            with self._watchdog:
                obs = self.envs[i].reset(env_seed(self.seeds[i], self.stream, episode))
        except FAILURES as error:
            raise EnvironmentFailed(self._told(i, error), undone=False) from error
        self._see(i, obs if self.spec.is_image else self._finite(i, {"obs": obs})["obs"], alone=True)

    def _play(self, i: int, action: np.ndarray) -> Transition:
        self._watchdog.waiting_for = partial(self._where, i)
        playable = self._finite(i, {"action": action})["action"]
        with self._watchdog:
            transition = self.envs[i].step(playable)
        shown = {"reward": transition.reward} | ({} if self.spec.is_image else {"next_obs": transition.obs})
        finite = self._finite(i, shown)
        if finite is not shown:
            transition = transition._replace(reward=float(finite["reward"]), obs=finite.get("next_obs", transition.obs))
        self._actions[i].append(action)  # as it was: played again, it is judged again
        self._score[i] += transition.reward
        self._see(i, transition.obs, alone=transition.life_lost)
        return transition

    def _see(self, i: int, obs: np.ndarray, alone: bool) -> None:
        """Put the newest observation in place; `alone` forgets the frames before it."""
        stack = self.observation[i].reshape(-1, *self.spec.obs_shape)  # a view
        stack[:-1] = stack[1:] if not alone else obs if self.spec.repeat_first else 0
        stack[-1] = obs

    def _finite(self, i: int, shown: dict[str, Any]) -> dict[str, Any]:
        """The same, or what may be put in its place."""
        if all(abs(v) <= GREATEST if name == "reward" else np.isfinite(v).all() for name, v in shown.items()):
            return shown
        self._score[i] = math.nan
        with np.errstate(over="ignore"):
            kept = {name: np.float32(value) if name == "reward" else value for name, value in shown.items()}
        self.faults.setdefault(i, {name: np.array(value)[None] for name, value in kept.items()})
        return {name: _zeroed(value) for name, value in kept.items()}

    def _digest(self, i: int) -> str:
        return hashlib.blake2b(self.observation[i].tobytes()).hexdigest()


def _zeroed(values: Any) -> np.ndarray:
    """Zeros where they are not finite."""
    return values if np.isfinite(values).all() else np.nan_to_num(values, posinf=0.0, neginf=0.0)
