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
    """SAC 256 x 256, batch 256, replay ratio 1, on an environment that costs nothing, beside installed peers."""
    still = ["agent=sac", f"env={peers.register()}", "agent.batch_size=256", "net.width=256", "warmup=300"]
    loops = {
        "ours, float32": (Loop(still, 50), 1),
        "ours, bfloat16": (Loop([*still, "precision=bfloat16"], 50), 1),
        "ours, bfloat16, 4 seeds": (Loop([*still, "precision=bfloat16", "seeds=[0,1,2,3]"], 50), 4),
    }
    there, steps = peers.installed(), 50
    others = {name: (peers.sac_loop(module, steps), steps) for name, module in there.items()}
    for name, module in there.items():
        others[f"{name}, 2 processes"] = (peers.Processes(module, steps, 2), 2 * steps)
    return _compared(loops, others, blocks, seconds)


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
    return _compared(loops, {}, blocks, seconds)


def _compared(
    loops: dict[str, tuple[Loop, int]],
    others: dict[str, tuple[Callable[[], object], int]],
    blocks: int,
    seconds: float,
) -> Table:
    """loops: with their seeds. others: peers' calls, with the steps that each makes."""
    for loop, _ in loops.values():
        loop.warm_up()
    timed = {name: loop.block for name, (loop, _) in loops.items()} | {name: call for name, (call, _) in others.items()}
    found: dict[str, Timing] = interleaved(timed, blocks, seconds)
    steps = {name: loop.turns * seeds for name, (loop, seeds) in loops.items()}
    steps |= {name: made for name, (_, made) in others.items()}
    rates = {name: steps[name] / timing.median for name, timing in found.items()}
    rows = [["loop", "agent steps/s, all seeds", *(f"speed / {name}" for name in others), *STAGES, "loop"]]
    for name, rate in rates.items():
        ratios = [f"{rate / rates[other]:.2f}" for other in others]
        stages = [f"{share:.1%}" for share in loops[name][0].shares().values()] if name in loops else []
        rows.append([name, f"{rate:.0f}", *ratios, *(stages or [""] * (len(STAGES) + 1))])
    return rows
