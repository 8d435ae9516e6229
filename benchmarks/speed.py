"""Time per update: eager and compiled, one seed and three.

    python -m benchmarks.speed [rows=sac,dqn] [seeds=1,3] [seconds=4]

Every row trains on one made-up batch of the published shape, so that only the update is timed: SAC on 17 observations
and 6 actions, 256 x 256, batch 256; DQN on 84 x 84 x 4 frames with the Nature network (valid padding, double, plain
head), batch 32. Blocks in which other processes took part of the machine are slow, not wrong: the best of several
blocks is printed.
"""

from __future__ import annotations

import sys
import time

import torch

from agents import DQN, SAC
from core.clock import Clock
from core.engine import Engine
from core.spec import EnvSpec
from core.state import Batch
from nets import Nature, Scalar, Vectors

CONTROL = EnvSpec("benchmark/control", (17,), "float32", action_dim=6)
FRAMES = EnvSpec("benchmark/frames", (84, 84), "uint8", num_actions=6, stack=4)


def sac(seeds: int) -> tuple[SAC, Batch]:
    agent = SAC(SAC.Settings(), CONTROL, Vectors(), Scalar("mse"))
    lead = (seeds, 256)
    batch = {
        "obs": torch.randn(*lead, 17),
        "next_obs": torch.randn(*lead, 17),
        "action": torch.rand(*lead, 6) * 2 - 1,
        "reward": torch.randn(lead),
    }
    return agent, batch


def dqn(seeds: int) -> tuple[DQN, Batch]:
    agent = DQN(DQN.Settings(dueling=False, n_step=1), FRAMES, Nature(padding="valid"), Scalar())
    lead = (seeds, 32)
    batch = {
        "obs": torch.randint(0, 256, (*lead, 4, 84, 84), dtype=torch.uint8),
        "next_obs": torch.randint(0, 256, (*lead, 4, 84, 84), dtype=torch.uint8),
        "action": torch.randint(0, 6, lead),
        "reward": torch.randn(lead),
    }
    return agent, batch


def measure(make, seeds: int, compile: bool, seconds: float) -> tuple[float, float]:
    """-> (milliseconds per update of all seeds, seconds of the first call)."""
    torch.manual_seed(0)
    learner, batch = make(seeds)
    lead = batch["reward"].shape
    batch |= {"discount": torch.full(lead, 0.99), "weight": torch.ones(lead)}
    engine, clock = Engine(learner, range(seeds), lead[1], compile=compile), Clock(steps=10**9)

    def update() -> None:
        engine.update(batch, clock)
        clock.update()

    start = time.perf_counter()
    update()
    first = time.perf_counter() - start
    best = float("inf")
    for _ in range(5):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / 5:
            update()
            count += 1
        best = min(best, (time.perf_counter() - start) / count)
    return 1000 * best, first


def main() -> None:
    given = dict(argument.split("=") for argument in sys.argv[1:])
    rows = given.get("rows", "sac,dqn").split(",")
    counts = [int(n) for n in given.get("seeds", "1,3").split(",")]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| update | seeds | mode | ms per update | updates/s, all seeds | first call, s |\n|---|---|---|---|---|---|")
    for row in rows:
        for seeds in counts:
            for compile in (False, True):
                ms, first = measure({"sac": sac, "dqn": dqn}[row], seeds, compile, float(given.get("seconds", 4)))
                mode = "compiled" if compile else "eager"
                print(f"| {row} | {seeds} | {mode} | {ms:.1f} | {1000 * seeds / ms:.0f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    main()
