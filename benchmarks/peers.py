"""Other people's libraries on the same work, where they are installed (`pip install -e .[bench]`)."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch

STILL = "EvergreenStill-v0"
PEERS = {"Stable-Baselines3": "stable_baselines3", "SBX": "sbx"}  # SBX: the same in JAX, the interface too


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


def installed() -> dict[str, str]:
    """Libraries whose SAC has this interface: names, and modules."""
    return {name: module for name, module in PEERS.items() if find_spec(module)}


def sac_update(module: str) -> Callable[[], object]:
    """One update of a peer's SAC with its draw."""
    model = _sac(module)
    return lambda: model.train(gradient_steps=1, batch_size=256)


def sac_loop(module: str, steps: int) -> Callable[[], object]:
    """So many steps of a peer's whole loop at replay ratio 1."""
    model = _sac(module)
    return lambda: model.learn(steps, reset_num_timesteps=False)


class Processes:
    """The same loop in several processes at once, each on a core of its own; a call takes all of them so many steps
    on. Raises EOFError if one has died."""

    def __init__(self, module: str, steps: int, count: int) -> None:
        spawn = get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(count)]
        cores = sorted(os.sched_getaffinity(0))
        for place, (_, theirs) in enumerate(pipes):
            core = cores[place % len(cores)]
            spawn.Process(target=_serve, args=(theirs, core, module, steps), daemon=True).start()
            theirs.close()
        self._mine = [mine for mine, _ in pipes]

    def __call__(self) -> None:
        for pipe in self._mine:
            pipe.send(True)
        for pipe in self._mine:
            pipe.recv()


def _serve(pipe: Connection, core: int, module: str, steps: int) -> None:
    os.sched_setaffinity(0, {core})  # before a library counts the cores: torch's and XLA's threads both
    torch.set_num_threads(1)
    run = sac_loop(module, steps)
    with suppress(EOFError):  # whoever asked is gone
        while pipe.recv():
            run()
            pipe.send(True)


def _sac(module: str) -> Any:
    """Past its random steps."""
    logger = import_module("stable_baselines3.common.logger").Logger(None, [])
    sac = import_module(module).SAC
    made = sac("MlpPolicy", Still(), buffer_size=20_000, batch_size=256, learning_starts=300, device="cpu")
    made.set_logger(logger)
    made.learn(400)
    return made
