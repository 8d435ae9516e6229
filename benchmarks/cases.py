"""What is timed: learners of the published sizes on made-up batches, so that nothing but the update is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from agents import DQN, SAC
from core import assemble
from core.clock import Clock
from core.config import load
from core.engine import Engine, Precision
from core.spec import EnvSpec
from core.state import Batch
from nets import C51, Impala, Nature, Scalar, Vectors

CONTROL = EnvSpec("benchmark/control", (17,), "float32", action_dim=6)
FRAMES = EnvSpec("benchmark/frames", (84, 84), "uint8", num_actions=6, stack=4)


def sac(width: int = 256) -> SAC:
    """17 observations, 6 actions, an actor and two critics of two hidden layers; batch 256."""
    return SAC(SAC.Settings(), CONTROL, Vectors(width=width), Scalar("mse"))


def dqn() -> DQN:
    """84 x 84 x 4 frames, the Nature network with valid padding, double, plain head; batch 32."""
    return DQN(DQN.Settings(dueling=False, n_step=1), FRAMES, Nature(padding="valid"), Scalar())


def impala() -> DQN:
    """The same frames, IMPALA's network as wide as BBF's, 2,048 hidden units, C51, dueling; batch 32."""
    return DQN(DQN.Settings(), FRAMES, Impala(), C51())


GRAY = EnvSpec("benchmark/gray", (64, 64), "uint8", action_dim=6, stack=3, repeat_first=True)
COLOUR = EnvSpec("benchmark/colour", (3, 84, 84), "uint8", action_dim=6, stack=3, repeat_first=True)
PIXEL_AGENTS = {  # names of configurations, and where they live
    **{name: ("atari/pong", FRAMES) for name in ("dqn_nature", "drq_eps", "der", "drq")},
    "drq_sac": ("dmc/walker-walk", GRAY),
    "drq_v2": ("dmc/walker-walk", COLOUR),
}


def named(agent: str) -> Any:
    """An agent from pixels as its configuration has it."""
    env, spec = PIXEL_AGENTS[agent]
    return assemble.agent(load([f"agent={agent}", f"env={env}"]), spec)


def batch_for(learner: DQN | SAC, seeds: int, device: str = "cpu", count: int = 0) -> Batch:
    """Made-up batch number `count` of the learner's size. Leaves [seeds, B, ...]."""
    spec, lead = learner.spec, (seeds, learner.settings.batch_size)
    generator = torch.Generator().manual_seed(count)

    def seen() -> torch.Tensor:
        if spec.is_image:
            return torch.randint(0, 256, (*lead, *spec.seen_shape), dtype=torch.uint8, generator=generator)
        return torch.randn(*lead, *spec.seen_shape, generator=generator)

    if spec.is_discrete:
        action = torch.randint(0, spec.num_actions, lead, generator=generator)
    else:
        action = 2 * torch.rand(*lead, spec.action_dim, generator=generator) - 1
    batch = {"obs": seen(), "next_obs": seen(), "action": action, "reward": torch.randn(lead, generator=generator)}
    batch |= {"discount": torch.full(lead, 0.99), "weight": torch.ones(lead)}
    return {name: values.to(device) for name, values in batch.items()}


def update_of(
    learner: DQN | SAC, seeds: int = 1, compile: bool = True, precision: Precision = "float32", device: str = "cpu"
) -> Callable[[], object]:
    """One update of so many seeds of a learner."""
    engine = Engine(learner, range(seeds), learner.settings.batch_size, device, compile, precision)
    batch, clock = batch_for(learner, seeds, device), Clock(steps=10**9)

    def update() -> object:
        info = engine.update(batch, clock)
        clock.update()
        return info

    return update
