"""Everything that only a GPU can tell, in one command of at most nine minutes: is it right, and how fast is it?

    python -m benchmarks.gpu [device=cuda] [parts=checks,draws,updates] [minutes=9] [seconds=0.5] [keep=true]

First the checks (benchmarks/gpu_checks.py), for half of the time at most if others follow, then batches drawn from a
replay on the device and updates per second, most wanted rows first, until it is over; what was not reached, or was cut
off, is named. With `keep` all of it is appended to benchmarks/RESULTS.md. `device=cpu` is the dry run of the same code.
Exit code 1 if a check failed.

It needs torch, numpy, zstandard, gymnasium, hydra-core, omegaconf and antlr4-python3-runtime 4.9 (as a wheel: `pip
wheel`), and dm-control for the check of pixels. For a machine without network `pip download -d wheels` them on another.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from agents import DQN, SAC
from benchmarks import cases, draws
from benchmarks.gpu_checks import CHECKS
from benchmarks.speed import RESULTS, machine, markdown
from benchmarks.timing import interleaved
from core import assemble
from core.captured import Captured
from core.clock import Clock
from core.engine import Engine, Precision

SIZES: dict[str, Callable[[], DQN | SAC]] = {
    "sac 256x256, batch 256": cases.sac,
    "dqn nature, batch 32": cases.dqn,
    "dqn impala x4, batch 32": cases.impala,
}
HEAD = ["size", "seeds", "way", "precision", "ms / update", "seed-updates/s", "first call, s", "MB", "decision, ms"]
PARTS = ("checks", "draws", "updates")
DEFAULTS = {"device": "cuda", "parts": ",".join(PARTS), "minutes": "9", "seconds": "0.5", "keep": "false"}
ATARI_STEP, DMC_STEP = 0.375, 0.3  # milliseconds of an environment, measured on a CPU core
RUNS = {  # name: (size, updates per agent step, agent steps, milliseconds of an environment's step)
    "Atari-100k, nature, replay ratio 1": ("dqn nature, batch 32", 1, 100_000, ATARI_STEP),
    "Atari-100k, nature, replay ratio 8": ("dqn nature, batch 32", 8, 100_000, ATARI_STEP),
    "Atari-100k, impala x4, replay ratio 2": ("dqn impala x4, batch 32", 2, 100_000, ATARI_STEP),
    "Atari-100k, impala x4, replay ratio 8": ("dqn impala x4, batch 32", 8, 100_000, ATARI_STEP),
    "DMC-1M, sac, replay ratio 1": ("sac 256x256, batch 256", 1, 1_000_000, DMC_STEP),
    "DMC-1M, sac, replay ratio 16": ("sac 256x256, batch 256", 16, 1_000_000, DMC_STEP),
}


@dataclass(frozen=True)
class Row:
    """One measurement: a size, how many seeds, and the way it runs."""

    size: str
    seeds: int
    way: str  # eager | compiled | graph
    precision: Precision


def rows(graphs: bool) -> list[Row]:
    """Most wanted first."""
    sac, dqn, impala = SIZES
    best = "graph" if graphs else "compiled"
    half: tuple[Precision, ...] = ("tf32", "bfloat16") if graphs else ("bfloat16",)
    wanted = [Row(size, 1, best, "float32") for size in SIZES]
    wanted += [Row(size, 1, "eager", "float32") for size in SIZES]
    wanted += [Row(impala, 1, best, precision) for precision in half]
    wanted += [Row(sac, seeds, best, "float32") for seeds in (4, 16, 64)]
    wanted += [Row(dqn, seeds, best, "float32") for seeds in (4, 16)]
    wanted += [Row(size, 1, "compiled", "float32") for size in SIZES if graphs]
    wanted += [Row(dqn, 1, best, precision) for precision in half]
    wanted += [Row(sac, 16, best, precision) for precision in half]
    return [*wanted, Row(impala, 4, best, half[-1])]


def calls_of(row: Row, device: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """-> (one update, one decision)"""
    learner = SIZES[row.size]()
    engine = Engine(learner, range(row.seeds), learner.settings.batch_size, device, row.way != "eager", row.precision)
    if row.way == "compiled" and isinstance(engine._run, Captured):
        engine._run = engine._run.function
    batch, clock = cases.batch_for(learner, row.seeds, device), Clock(steps=10**9)
    seen = batch["obs"][:, :1].cpu().numpy()

    def update() -> None:
        engine.update(batch, clock)
        clock.update()

    count = itertools.count()
    return update, lambda: engine.act(seen, engine.learner.explore_eval, "act", next(count))


def measured(device: str, end: float, seconds: float) -> tuple[list[list[str]], dict[str, tuple[float, float]]]:
    """-> (table, the best (update, decision) of one seed in float32 of each size, in milliseconds)"""
    table = [HEAD]
    best: dict[str, tuple[float, float]] = {}
    for row in rows(device.startswith("cuda")):
        label = [row.size, str(row.seeds), row.way, row.precision]
        try:
            with before(end):
                table.append(label + _measured(row, device, seconds, best))
        except OutOfTime as late:
            table.append([*label, str(late), "", "", "", ""])
        except Exception as error:  # the other rows are wanted too
            table.append([*label, _line(error), "", "", "", ""])
        print(" | ".join(table[-1]), flush=True)
    return table, best


def _measured(row: Row, device: str, seconds: float, best: dict[str, tuple[float, float]]) -> list[str]:
    """-> the cells of a row; in float32 a size of one seed is put among the `best`."""
    torch._dynamo.reset()
    gc.collect()  # of the row before, whose engine and functions know each other
    assemble.choose_arithmetic(row.precision)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    update, decide = calls_of(row, device)
    update()
    first = time.monotonic() - began
    found = interleaved({"update": update, "decision": decide}, 5, seconds)
    ms, decision = found["update"].ms, found["decision"].ms
    if (row.seeds, row.precision) == (1, "float32"):
        best[row.size] = min(best.get(row.size, (ms, decision)), (ms, decision))
    memory = f"{torch.cuda.max_memory_allocated() / 1e6:.0f}" if device.startswith("cuda") else ""
    return [f"{ms:.3f}", f"{1000 * row.seeds / ms:.0f}", f"{first:.0f}", memory, f"{decision:.3f}"]


def drawn(device: str, end: float, seconds: float) -> list[list[str]]:
    """Batches from a replay of 100,000 frames on the device."""
    try:
        with before(end):
            return draws.replay(5, seconds, device)
    except OutOfTime as late:
        return [["draw"], [str(late)]]
    except Exception as error:
        return [["draw"], [_line(error)]]


def projected(best: dict[str, tuple[float, float]]) -> list[list[str]]:
    """Minutes of whole runs: updates and decisions as measured, environments at a fixed price."""
    table = [["run", "minutes per seed"]]
    for name, (size, ratio, steps, environment) in RUNS.items():
        if size in best:
            update, decision = best[size]
            table.append([name, f"{steps * (ratio * update + decision + environment) / 60_000:.0f}"])
    return table


def checked(device: str, end: float) -> tuple[list[list[str]], bool]:
    """-> (table, whether all is well)"""
    table, well = [["check", "", "found"]], True
    for check in CHECKS:
        try:
            with before(end):
                verdict, found = "passed", check(device)
        except OutOfTime as late:
            verdict, found = str(late), ""
        except Exception as error:  # whatever happens in one, the others and the measurements are wanted too
            well, verdict, found = False, "FAILED", _line(error)
        table.append([(check.__doc__ or "").splitlines()[0], verdict, found])
        print(" | ".join(table[-1]), flush=True)
    return table, well


class OutOfTime(BaseException):
    """The time is over; not an Exception, which whoever is at work might take for a failure of its own."""


@contextmanager
def before(end: float) -> Iterator[None]:
    """Raises OutOfTime at a moment of time.monotonic(), wherever the block then is; from the main thread alone."""

    def ring(*signalled: object) -> None:
        raise OutOfTime("cut off")

    if (left := end - time.monotonic()) <= 0:
        raise OutOfTime("not reached")
    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _line(error: Exception) -> str:
    """What went wrong, for a table; all of it goes to stderr."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def main(argv: list[str]) -> int:
    given = DEFAULTS | dict(argument.partition("=")[::2] for argument in argv)
    if unknown := sorted(given.keys() - DEFAULTS):
        print(f"{unknown[0]}: expected one of {', '.join(f'{k}={v}' for k, v in DEFAULTS.items())}", file=sys.stderr)
        return 2
    device, parts = given["device"], given["parts"].split(",")
    if not set(parts) <= set(PARTS):
        print(f"parts={given['parts']}: expected one or more of {','.join(PARTS)}", file=sys.stderr)
        return 2
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("device=cuda: no GPU here; device=cpu is the dry run", file=sys.stderr)
        return 2
    seconds, well = float(given["seconds"]), True
    length = 60 * float(given["minutes"])
    end = time.monotonic() + length
    kind = "" if device.startswith("cuda") else " Dry run without a GPU."
    text = f"## {machine()}\n\n    python -m benchmarks.gpu {' '.join(argv)}\n"
    if "checks" in parts:
        checks, well = checked(device, end - (length / 2 if len(parts) > 1 else 0))
        text += f"\nChecks.{kind}\n\n{markdown(checks)}\n"
    if "draws" in parts:
        text += f"\nDraws.{kind}\n\n{markdown(drawn(device, end, seconds))}\n"
    if "updates" in parts:
        table, best = measured(device, end, seconds)
        text += f"\nUpdates.{kind}\n\n{markdown(table)}\n"
        text += f"\nProjected from these, not run.\n\n{markdown(projected(best))}\n"
    print(text)
    if given["keep"] == "true":
        RESULTS.write_text(f"{RESULTS.read_text()}\n{text}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
