"""What numbers below 1.2e-38 cost a CPU that does not take them for zero (core.assemble.choose_arithmetic)."""

from __future__ import annotations

import statistics
import tempfile
import time

import torch

import train
from core.agent_session import AgentSession
from core.config import load

RUNS = {"drq_eps": "atari/krull", "dqn": "atari/krull", "sac": "dmc/walker-run"}
STEPS = 1_000  # of random play; from them alone is learned
AT = (50, 500, 1_500)  # updates


def denormals(blocks: int, seconds: float) -> list[list[str]]:
    """Compiled updates on one thread after so many from random play, two equal runs in turn: denormal numbers kept in
    one, taken for zero in the other. Share of Adam's moments that are denormal where they are kept; medians; ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the others would not hear of each change
    rows = [["agent", "updates", "denormal moments", "kept, ms", "zero, ms", "ratio"]]
    for agent, env in RUNS.items():
        kept, zero = _warm(agent, env), _warm(agent, env)
        for goal in AT:
            while kept.clock.updates < goal:
                _update(kept, False), _update(zero, True)
            took, end = [], time.perf_counter() + blocks * seconds
            while time.perf_counter() < end:
                took.append((_update(kept, False), _update(zero, True)))
            slow, fast = (1_000 * statistics.median(column) for column in zip(*took, strict=True))
            rows.append([agent, f"{goal:,}", f"{_share(kept):.1%}", f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.2f}"])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return rows


def _warm(agent: str, env: str) -> AgentSession:
    """A run at the end of its random steps."""
    folder = tempfile.mkdtemp(prefix="evergreen-denormals-")
    run = AgentSession(load([f"agent={agent}", f"env={env}", f"warmup={STEPS}", f"run_dir={folder}/run"]))
    while not run.clock.warm:
        train.act(run)
    return run


def _update(run: AgentSession, flush: bool) -> float:
    """-> seconds of one more update, the draw apart."""
    batch = run.sample("replay", run.clock.updates)
    torch.set_flush_denormal(flush)
    began = time.perf_counter()
    run.engine.update(batch, run.clock)
    took = time.perf_counter() - began
    torch.set_flush_denormal(True)
    run.clock.update()
    return took


def _share(run: AgentSession) -> float:
    """Of the entries of Adam's moments: an exponent of zero and a fraction that is not, read from their bits."""
    moments = [m for state in run.engine.states.values() for slot in "mv" for m in state.optim[slot].values()]
    bits = torch.cat([moment.reshape(-1).view(torch.int32) for moment in moments])
    return float(((bits & 0x7F800000 == 0) & (bits & 0x007FFFFF != 0)).double().mean())
