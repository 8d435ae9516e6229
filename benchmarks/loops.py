"""The whole training loop, the real one of train.py: env steps per second, and the share of time of each stage."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import train
from benchmarks import peers
from benchmarks.timing import Timing, interleaved
from core.agent_session import AgentSession
from core.config import load

STAGES = {
    "update": [("engine", "update")],
    "act": [("engine", "act")],
    "env": [("envs", "step")],
    "replay": [("run", "sample"), ("replay", "add"), ("replay", "update_priorities")],
    "observe": [("run", "observe")],
    "log": [("run", "log"), ("run", "note")],
    "evaluate": [("run", "evaluate")],
    "save": [("run", "save")],
}
Table = list[list[str]]


class Loop:
    """A run that is led through its loop in blocks of agent steps, with a clock at each stage."""

    def __init__(self, overrides: Sequence[str], turns: int) -> None:
        folder = tempfile.mkdtemp(prefix="evergreen-speed-")
        self.run = AgentSession(load([*overrides, f"run_dir={folder}/run", "steps=1_000_000", "eval_every=0"]))
        self.turns, self.seconds, self.whole = turns, dict.fromkeys(STAGES, 0.0), 0.0
        self._left = 0
        holders: dict[str, Any] = {
            "run": self.run,
            "engine": self.run.engine,
            "envs": self.run.envs,
            "replay": self.run.replay,
        }
        for stage, methods in STAGES.items():
            for holder, name in methods:
                setattr(holders[holder], name, self._clocked(stage, getattr(holders[holder], name)))
        self.run.close = lambda: None  # type: ignore[method-assign]
        self.run.progress.step = self._turn  # type: ignore[method-assign]

    def block(self) -> None:
        """So many turns of the loop."""
        self._left, self.run.stop.requested = self.turns, ""
        began = time.perf_counter()
        train.loop(self.run.config, self.run)
        self.whole += time.perf_counter() - began

    def warm_up(self) -> None:
        """Past the random steps and the compiler; then all clocks start again."""
        while not self.run.clock.warm or self.run.clock.updates < 5:
            self.block()
        self.seconds, self.whole = dict.fromkeys(STAGES, 0.0), 0.0

    def shares(self) -> dict[str, float]:
        rest = self.whole - sum(self.seconds.values())
        return {name: seconds / self.whole for name, seconds in (self.seconds | {"loop": rest}).items()}

    def _turn(self) -> None:
        self._left -= 1
        if not self._left:
            self.run.stop.requested = "a block is over"

    def _clocked(self, stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds[stage] += time.perf_counter() - began

        return clocked


def sac_loop(blocks: int, seconds: float) -> Table:
    """SAC 256 x 256, batch 256, replay ratio 1, on an environment that costs nothing, beside Stable-Baselines3."""
    still = ["agent=sac", f"env={peers.register()}", "agent.batch_size=256", "net.width=256", "warmup=300"]
    loops = {
        "ours, float32": (Loop(still, 50), 1),
        "ours, bfloat16": (Loop([*still, "precision=bfloat16"], 50), 1),
        "ours, bfloat16, 4 seeds": (Loop([*still, "precision=bfloat16", "seeds=[0,1,2,3]"], 50), 4),
    }
    return _compared(loops, peers.stable_baselines(50), 50, blocks, seconds)


def real_loops(blocks: int, seconds: float) -> Table:
    """Real environments at two replay ratios each."""
    loops = {}
    for ratio in (1, 8):
        loops[f"der, atari/pong, replay ratio {ratio}"] = (
            Loop(["agent=der", "env=atari/pong", f"replay_ratio={ratio}", "warmup=200"], max(4, 40 // ratio)),
            1,
        )
    for ratio in (1, 32):
        loops[f"sac, dmc/walker-run, replay ratio {ratio}"] = (
            Loop(["agent=sac", "env=dmc/walker-run", f"replay_ratio={ratio}", "warmup=300"], max(4, 100 // ratio)),
            1,
        )
    return _compared(loops, None, 0, blocks, seconds)


def _compared(
    loops: dict[str, tuple[Loop, int]],
    peer: tuple[Callable[[], object], Callable[[], object]] | None,
    peer_steps: int,
    blocks: int,
    seconds: float,
) -> Table:
    for loop, _ in loops.values():
        loop.warm_up()
    timed: dict[str, Callable[[], object]] = {name: loop.block for name, (loop, _) in loops.items()}
    if peer:
        timed["Stable-Baselines3"] = peer[1]
    found: dict[str, Timing] = interleaved(timed, blocks, seconds)
    rows = [["loop", "agent steps/s, all seeds", "speed / peer", *STAGES, "loop"]]
    rates = {name: loop.turns * seeds / found[name].median for name, (loop, seeds) in loops.items()}
    base = peer_steps / found["Stable-Baselines3"].median if peer else 0.0
    for name, (loop, _) in loops.items():
        shares = [f"{share:.1%}" for share in loop.shares().values()]
        rows.append([name, f"{rates[name]:.0f}", f"{rates[name] / base:.2f}" if base else "", *shares])
    if peer:
        rows.append(["Stable-Baselines3", f"{base:.0f}", "1.00", *[""] * (len(STAGES) + 1)])
    return rows
