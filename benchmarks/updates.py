"""Time per update: bare products, plain PyTorch, peers, and ours eager, compiled, in bfloat16, with several seeds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import cases, peers, plain
from benchmarks.bare import bare
from benchmarks.timing import interleaved
from core.state import member

Table = list[list[str]]
HEAD = ["update", "ms", "updates/s, all seeds", "time / bare float32", "speed / plain PyTorch"]


def sac(blocks: int, seconds: float) -> Table:
    """SAC 256 x 256, batch 256."""
    updates: dict[str, tuple[Callable[[], object], int]] = {
        "plain PyTorch": (plain.sac_update(member(cases.batch_for(cases.sac(), 1), 0)), 1)
    }
    for name, module in peers.installed().items():
        updates[f"{name}, draw included"] = (peers.sac_update(module), 1)
    updates["eager"] = (cases.update_of(cases.sac(), compile=False), 1)
    for seeds in (1, 4, 8):
        for precision in ("float32", "bfloat16"):
            name = "compiled" + (f", {seeds} seeds" if seeds > 1 else "")
            updates[f"{name}, {precision}"] = (cases.update_of(cases.sac(), seeds, precision=precision), seeds)
    return compared(cases.sac, updates, blocks, seconds)


def dqn(blocks: int, seconds: float) -> Table:
    """DQN, Nature network, batch 32."""
    updates: dict[str, tuple[Callable[[], object], int]] = {
        "plain PyTorch": (plain.dqn_update(member(cases.batch_for(cases.dqn(), 1), 0)), 1),
        "eager": (cases.update_of(cases.dqn(), compile=False), 1),
    }
    for seeds in (1, 3):
        for precision in ("float32", "bfloat16"):
            name = "compiled" + (f", {seeds} seeds" if seeds > 1 else "")
            updates[f"{name}, {precision}"] = (cases.update_of(cases.dqn(), seeds, precision=precision), seeds)
    return compared(cases.dqn, updates, blocks, seconds)


def impala(blocks: int, seconds: float) -> Table:
    """DQN, IMPALA x4 with 2,048 hidden units and C51, batch 32."""
    updates = {
        "eager": (cases.update_of(cases.impala(), compile=False), 1),
        "eager, bfloat16": (cases.update_of(cases.impala(), compile=False, precision="bfloat16"), 1),
        "compiled, float32": (cases.update_of(cases.impala()), 1),
        "compiled, bfloat16": (cases.update_of(cases.impala(), precision="bfloat16"), 1),
    }
    return compared(cases.impala, updates, blocks, seconds)


def pixels(blocks: int, seconds: float) -> Table:
    """Agents from pixels as they are published."""
    rows = [["agent", "batch", "bare ms", "eager ms", "compiled ms", "compiled / bare", "GFLOP"]]
    for name in cases.PIXEL_AGENTS:
        learner = cases.named(name)
        limit, _, operations = bare(cases.update_of(learner, compile=False), torch.float32)
        timed = {
            "bare": limit,
            "eager": cases.update_of(cases.named(name), compile=False),
            "compiled": cases.update_of(cases.named(name)),
        }
        found = {key: timing.ms for key, timing in interleaved(timed, blocks, seconds).items()}
        times = [f"{found[key]:.1f}" for key in timed]
        share = f"{found['compiled'] / found['bare']:.2f}"
        rows.append([name, str(learner.settings.batch_size), *times, share, f"{operations / 1e9:.1f}"])
    return rows


def compared(
    make: Callable[[], object], updates: dict[str, tuple[Callable[[], object], int]], blocks: int, seconds: float
) -> Table:
    """updates: name -> (a function, the updates of one call)."""
    recorded = cases.update_of(make(), compile=False)
    limits = {dtype: bare(recorded, dtype) for dtype in (torch.float32, torch.bfloat16)}
    timed = {f"bare {str(dtype).removeprefix('torch.')}": (limit[0], 1) for dtype, limit in limits.items()} | updates
    found = interleaved({name: run for name, (run, _) in timed.items()}, blocks, seconds)
    _, count, operations = limits[torch.float32]
    rows = [HEAD]
    each = {name: found[name].ms / timed[name][1] for name in timed}
    for name, ms in each.items():
        against = f"{each['plain PyTorch'] / ms:.2f}" if "plain PyTorch" in each else ""
        label = f"{name} ({count} products, {operations / 1e6:.0f} MFLOP)" if name == "bare float32" else name
        spread = f"{found[name].ms:.2f} ({1000 * found[name].low:.2f} to {1000 * found[name].high:.2f})"
        rows.append([label, spread, f"{1000 / ms:.0f}", f"{ms / each['bare float32']:.2f}", against])
    return rows
