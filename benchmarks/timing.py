"""Fair timing on a machine that is not ours alone.

Cases are timed in turn, block by block, so that a drift of the machine meets all of them, and the median block of each
is reported. A block during which other processes took more than 6 % of a core is thrown away and timed again: one of
them makes a step of two threads many times slower.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

FOREIGN = 0.06  # of a core
WARM_UP = 5  # calls: compilation, caches, the recording of a graph


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median block, and the quartiles around it."""

    median: float
    low: float
    high: float

    @property
    def ms(self) -> float:
        return 1_000 * self.median

    @property
    def us(self) -> float:
        return 1_000_000 * self.median


def interleaved(cases: dict[str, Callable[[], object]], blocks: int = 7, seconds: float = 0.6) -> dict[str, Timing]:
    """Time every case for so many blocks of about so many seconds, after warming each up."""
    calls = {name: max(1, round(seconds / _warm_up(run, seconds))) for name, run in cases.items()}
    found: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    for attempt in range(4 * blocks):
        for name, run in cases.items():
            if len(found[name]) < blocks:
                took, foreign = _block(run, calls[name])
                if foreign <= FOREIGN or attempt >= 3 * blocks:  # one that is never quiet counts too
                    found[name].append(took / calls[name])
        if min(map(len, found.values())) == blocks:
            break
    return {name: _timing(sorted(values)) for name, values in found.items()}


def _warm_up(run: Callable[[], object], seconds: float) -> float:
    """-> seconds per call, the first ones (compilation, caches) apart."""
    for _ in range(WARM_UP):
        run()
    settle()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds / 2 or not count:
        run()
        settle()
        count += 1
    return (time.perf_counter() - start) / count


def _block(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """-> (seconds, cores that others kept busy meanwhile)."""
    settle()
    before, start = _foreign_seconds(), time.perf_counter()
    for _ in range(calls):
        run()
    settle()
    took = time.perf_counter() - start
    slack = 0.04 / took  # the kernel counts in hundredths of a second
    return took, (_foreign_seconds() - before) / took - slack


def settle() -> None:
    """Wait for a GPU: its work only begins when the call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _foreign_seconds() -> float:
    """Processor time that others have used, the hypervisor's theft included; 0 where the kernel does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, interrupt, soft, stolen = map(int, stat.read_text().split("\n")[0].split()[1:9])
    ticks = user + nice + system + interrupt + soft + stolen
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks -= int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def _timing(values: list[float]) -> Timing:
    quarter = len(values) // 4
    return Timing(statistics.median(values), values[quarter], values[-1 - quarter])
