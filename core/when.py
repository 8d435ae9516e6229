"""When an event happens: at counts of the clock, on a condition, or when it happened in another run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core import files
from core.clock import Clock, Unit
from core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from core.state import Tensors

LEDGER, SUMMARY = "ledger.jsonl", "done.json"


@dataclass(frozen=True)
class When:
    """When an event happens: at counts (every, at), on a condition (metric), or when it did in another run (yoke).

    A condition is looked at every `measure_every` units, on a batch of the event's own, as large as the one the metric
    is logged from (beside a loop of your own: on the step's inputs), and holds if the metric is above `above`, or with
    `falling` below `below`. It then waits until the metric has been on the other side of the other threshold (the same
    one if only one is given), and for `cooldown`. Each seed and part has its own condition.
    A yoke is the control that has the times of a condition but not its reason. It reads the other run's ledger when
    this one starts, so that run has to be finished. A condition or a yoke replaces `every` and `at`, and `at` replaces
    `every`. Empty means never.
    """

    every: int = option(0, low=0, help="at every multiple of this many units")
    at: tuple[int, ...] = option((), low=1, help="at these counts instead")
    start: int = option(0, low=0, help="not before this count")
    stop: int = option(0, low=0, help="nor after this one; 0: no end")
    unit: Unit = option("updates", help="what is counted")
    skip_last: bool = option(False, help="not with less than one full `every` left: no score within a recovery")
    metric: str = option("", help="on a condition: a diagnostic, such as dormant, dormant@0.1 or srank")
    measure_every: int = option(1_000, low=1, help="units between two looks at the metric")
    above: float | None = option(None, help="upper threshold of the metric")
    below: float | None = option(None, help="lower threshold of the metric")
    falling: bool = option(False, help="happen below the lower threshold, wait for the upper one")
    cooldown: int = option(0, low=0, help="units between two events, at least")
    yoke: str = option("", help="folder of a finished run: whenever the intervention of this name acted there")

    def __post_init__(self) -> None:
        if min(self.every, self.start, self.stop, self.cooldown) < 0 or any(count < 1 for count in self.at):
            raise ValueError("counts of a schedule are positive: every, start, stop and cooldown >= 0, at >= 1")
        if self.metric and self.measure_every < 1:
            raise ValueError(f"measure_every={self.measure_every} given; expected at least 1")
        thresholds = [value for value in (self.below, self.above) if value is not None]
        if self.metric and (self.below if self.falling else self.above) is None:
            wanted, kind = ("below", " with falling") if self.falling else ("above", "")
            raise ValueError(f"{wanted} is not set; a condition{kind} needs it, as in when.{wanted}=0.3")
        if self.metric and sorted(thresholds) != thresholds:
            raise ValueError(f"above={self.above:g} given; expected at least below={self.below:g}")
        if not self.metric and (thresholds or self.falling or self.cooldown):
            raise ValueError("above, below, falling and cooldown belong to a metric; set metric, as in metric=dormant")
        if self.metric and self.yoke:
            raise ValueError("metric and yoke given; expected one of them")
        if self.yoke and self.unit != "updates":
            raise ValueError(f"unit={self.unit} given; a yoke goes by updates, whatever the other run's unit was")

    def __bool__(self) -> bool:
        return self.every > 0 or bool(self.at or self.metric or self.yoke)

    def due(self, clock: Clock) -> bool:
        """Did the clock's latest advance in `unit` reach a count at which to act, to measure, or to ask the yoke?"""
        before, now = clock.last.get(self.unit, 0), clock.now(self.unit)
        if now == before or now < self.start or (self.stop and now > self.stop):
            return False
        if self.yoke:
            return True
        if self.at and not self.metric:
            return any(before < count <= now for count in self.at)
        every, apart = (self.measure_every, self.cooldown) if self.metric else (self.every, self.every)
        late = self.skip_last and now + apart > clock.total(self.unit)
        return clock.passed(every, self.unit) and not late

    def first(self) -> int:
        """The first count at which to act or to measure, where the clock knows it beforehand."""
        if self.at and not self.metric:
            return min(self.at)
        every = self.measure_every if self.metric else max(1, self.every)
        return max(1, -(-self.start // every)) * every

    # conditions

    def memory(self, like: Tensors) -> Tensors:
        """What a condition remembers beside a network: whether it may happen, and the count at which it last did."""
        if not self.metric:
            return {}
        device = next(iter(like.values())).device
        return {"armed": _integer(1, device), "happened": _integer(-1, device)}

    def judge(self, value: float, memory: Tensors, clock: Clock) -> tuple[bool, Tensors]:
        """Does the event happen at this value of the metric? -> (whether, the memory from now on)."""
        now, happened, armed = clock.now(self.unit), int(memory["happened"]), bool(memory["armed"])
        thresholds = [threshold for threshold in (self.below, self.above) if threshold is not None]
        low, high = thresholds[0], thresholds[-1]
        beyond, back = (value < low, value >= high) if self.falling else (value > high, value <= low)
        armed = armed or back
        happens = beyond and armed and (happened < 0 or now - happened >= self.cooldown)
        device = memory["armed"].device
        return happens, {
            "armed": _integer(armed and not happens, device),
            "happened": _integer(now if happens else happened, device),
        }

    # yokes

    def yoked(self, instance: str, part: str, seed: int, position: int, clock: Clock) -> bool:
        """Did it happen to this part at this update in the other run? Seeds it lacks are matched by position."""
        times = happenings(self.yoke, instance)
        if seed not in times.seeds:
            seed = times.seeds[position % len(times.seeds)]
        return clock.updates in times.updates[part, seed]


class Happenings(NamedTuple):
    """When an intervention acted in a run."""

    seeds: tuple[int, ...]
    updates: dict[tuple[str, int], set[int]]  # by part and seed


@cache
def happenings(run_dir: str, instance: str) -> Happenings:
    """From the ledger of a run. Raises ValueError if the intervention never acted there."""
    ledger = Path(run_dir) / LEDGER
    if not ledger.is_file():
        raise ValueError(f"yoke={run_dir} given; expected a run folder ({LEDGER} is missing)")
    if not (Path(run_dir) / SUMMARY).is_file():
        raise ValueError(f"yoke={run_dir} given; expected a run that is over: what it has still to do is not known")
    updates: dict[tuple[str, int], set[int]] = defaultdict(set)
    try:
        with files.reading(ledger):
            for row in files.json_rows(ledger):
                if row.get("intervention") == instance and row["touched"]:
                    updates[row["part"], row["seed"]].add(row["updates"])
    except files.Damaged as error:
        raise ValueError(f"yoke={run_dir} given; {error}") from error
    if not updates:
        raise ValueError(f"yoke={run_dir} given; no {instance} happened in that run")
    return Happenings(tuple(sorted({seed for _, seed in updates})), updates)


def _integer(value: int, device: object) -> Tensor:
    import torch  # only where there are networks: --help and a wrong word need none

    return torch.tensor(value, dtype=torch.int64, device=device)  # type: ignore[arg-type]
