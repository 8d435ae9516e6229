"""The plain records that the rooms hand to one another. No torch, no logic.

Axes, everywhere: ``n`` seeds (one process trains several), ``B`` samples of a batch, ``E`` episodes played side by
side. Units, everywhere: an *env step* is one control step of DeepMind Control, one agent decision (4 frames) on Atari,
one step of any other environment; an *agent step* is one decision of the policy; an *update* is one gradient step on
one minibatch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class EnvSpec:
    """What an environment looks like to replay, networks and agents."""

    name: str  # "atari/pong", "dmc/walker-walk", "gym/CartPole-v1", "toy/chain"
    obs_shape: tuple[int, ...]  # of one observation as it is stored: (84, 84) or (3, 84, 84), a frame; (24,), a vector
    obs_dtype: str  # "uint8" for frames, "float32" for vectors
    num_actions: int = 0  # discrete actions; 0 means continuous
    action_dim: int = 0  # continuous actions in [-1, 1]; 0 means discrete
    stack: int = 1  # frames the agent sees at once
    repeat_first: bool = False  # what stands before an episode's (or life's) first frame: itself, or zeros
    action_repeat: int = 1  # env steps per agent step
    clip_rewards: bool = False  # the learner sees rewards clipped to [-1, 1]; reported returns never are

    @property
    def is_image(self) -> bool:
        return len(self.obs_shape) > 1

    @property
    def seen_shape(self) -> tuple[int, ...]:
        """Shape of what the agent sees: (stack, H, W) for frames, (3 stack, H, W) in colour, (d,) for vectors."""
        if not self.is_image:
            return self.obs_shape
        *colours, height, width = self.obs_shape
        return (self.stack * math.prod(colours), height, width)

    @property
    def is_discrete(self) -> bool:
        return self.num_actions > 0

    @property
    def action_shape(self) -> tuple[int, ...]:
        return () if self.is_discrete else (self.action_dim,)

    @property
    def action_dtype(self) -> str:
        return "int64" if self.is_discrete else "float32"


class Transition(NamedTuple):
    """What one environment answers to one action."""

    obs: np.ndarray  # the true next observation, also when the episode ends here; obs_shape
    reward: float  # raw, never clipped
    terminated: bool  # the world ended: nothing to bootstrap from
    truncated: bool  # a limit cut the episode: bootstrap from `obs`
    life_lost: bool = False  # a terminal for the learner alone; the episode goes on


class Env(Protocol):
    """One simulator, stepped once per agent decision.

    An episode is a pure function of the seed given to `reset` and of the actions that follow: exact resume replays it.
    """

    spec: EnvSpec

    def reset(self, seed: int) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> Transition: ...

    def close(self) -> None: ...


class Episode(NamedTuple):
    """A finished episode."""

    member: int  # position of the environment among its neighbours (the seed's index in training)
    episode: int  # running number of the episode in that environment
    score: float  # sum of raw rewards
    length: int  # agent steps
    whole: bool = True  # else its environment failed, and it was cut there


class EnvStep(NamedTuple):
    """What n environments in lock-step answer to n actions. All arrays lead with [n]."""

    action: np.ndarray  # [n, *action_shape] as it was played: zeros where it was not finite
    next_obs: np.ndarray  # [n, *obs_shape] true next observations (the last ones where an episode ended)
    reward: np.ndarray  # [n] float32, as the learner sees it (clipped where the spec says so)
    terminal: np.ndarray  # [n] bool: terminated or life lost; no bootstrapping across it
    ended: np.ndarray  # [n] bool: terminated or truncated; the next observation starts a new episode
    failed: np.ndarray  # [n] bool: no step was made, the environment failed; its episode is cut where it stood
    episodes: list[Episode]  # those that ended in this step
