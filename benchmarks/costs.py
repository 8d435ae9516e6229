"""What each method costs on arriving chunks: epochs, updates, floating point operations, seconds, memory.

    python -m benchmarks.costs run    count and time, keep and print the table: a minute or two
    python -m benchmarks.costs        print the table of docs/testbeds.md from what is kept

Epochs and updates are those of benchmarks/results/findings/chunks.csv. Operations are torch's count of the products of
one update and one event, forward and backward. Seconds are of one processor for ten seeds at once, until the last of
them knows its data. Memory is what one seed carries from update to update.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims import Kept
from benchmarks.findings import CONFIGS, KEPT
from core import assemble, files
from core.ablation import Cell, read
from core.clock import Clock
from core.engine import Engine, Sample
from core.spec import EnvSpec
from core.state import Batch

COLUMNS = ("arm", "epochs", "updates", "mflop", "seconds", "kilobytes")  # means over stages, but for the last
FILE = KEPT / "chunks_costs.csv"


def counted(cell: Cell, kept: Kept) -> dict[str, float]:
    """All but the seconds."""
    chunks, images = cell.config.env_options["chunks"], cell.config.env_options["images"]
    size = cell.config.agent.batch_size
    updates = kept(cell.arm, "updates")  # [seeds, stages]
    per_epoch = np.array([max(1, images * (stage + 1) // chunks // size) for stage in range(chunks)])
    update, event, memory = weighed(cell)
    return {
        "epochs": float((updates / per_epoch).mean()),
        "updates": float(updates.mean()),
        "mflop": (update * float(updates.mean()) + event * (chunks - 1) / chunks) / 1e6,
        "kilobytes": memory / 1e3,
    }


def weighed(cell: Cell) -> tuple[int, int, int]:
    """Of one seed: operations of an update, operations of an event at a change, bytes of its state."""
    engine, clock, sample = begun(cell, [0], compile=False)
    update = operations(lambda: engine.update(sample("data", 0), clock))
    clock.update()
    clock.enter_task()
    event = operations(lambda: engine.intervene(clock, ["tasks"], sample))
    return update, event, sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(engine.states))


def begun(cell: Cell, seeds: Sequence[int], compile: bool) -> tuple[Engine, Clock, Sample]:
    """A cell's learner as it begins, on made-up digits."""
    size = cell.config.agent.batch_size
    learner = assemble.agent(cell.config, EnvSpec(cell.config.env, (64,), "float32", num_actions=10))

    def sample(stream: str, count: int, samples: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(count)
        labels = torch.randint(0, 10, (len(seeds), size), generator=generator)
        return {"obs": torch.rand(len(seeds), size, 64, generator=generator), "label": labels}

    return Engine(learner, seeds, size, compile=compile), Clock(steps=10**9), sample


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def timed(cell: Cell) -> float:
    """Processor seconds of one stage of all seeds: its updates until the last of them rests, and the event before it.

    Not the wall clock, which tells what else the machine was doing.
    """
    engine, clock, sample = begun(cell, cell.config.seeds, cell.config.compile)
    batch = sample("data", 0)

    def update() -> None:
        engine.update(batch, clock)
        clock.update()

    def event() -> None:
        clock.enter_task()
        engine.intervene(clock, ["tasks"], sample)

    updates = Kept(KEPT / "chunks.csv")(cell.arm, "updates").max(0)
    took = [each(update, 500) * updates.mean(), each(event, 20) * (len(updates) - 1) / len(updates)]
    return float(sum(took))


def each(run: Callable[[], None], times: int) -> float:
    """Processor seconds of one call, the first ones (compilation, caches) apart."""
    for _ in range(3):
        run()
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times


def table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| method | epochs | updates | MFLOP | seconds, ten seeds | state, kB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += ["| " + " | ".join([f"`{row['arm']}`", *(row[name] for name in COLUMNS[1:])]) + " |" for row in rows]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    if argv == ["run"]:
        kept = Kept(KEPT / "chunks.csv")
        lines = [",".join(COLUMNS)]
        for cell in read(CONFIGS / "chunks.yaml").cells:
            found = counted(cell, kept) | {"seconds": timed(cell)}
            lines.append(",".join([cell.arm, *(f"{float(f'{found[name]:.3g}'):g}" for name in COLUMNS[1:])]))
        files.write(FILE, "\n".join(lines) + "\n")
    print(table(list(csv.DictReader(FILE.open()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
