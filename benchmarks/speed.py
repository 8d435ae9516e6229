"""How fast: updates beside the bare limit and peers, whole loops with the share of each stage, draws from the replay.

    python -m benchmarks.speed [parts=sac,dqn,impala,pixels,loop,real,replay,layer,guards,denormals]
                               [blocks=5] [seconds=0.6] [keep=true]

Everything that is compared is timed in turn in the same process (benchmarks/timing.py); what is compared is the ratio.
With `keep` the tables are appended to benchmarks/RESULTS.md, with the machine they are from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from inspect import getdoc
from pathlib import Path

import torch

from benchmarks import denormals, draws, guards, layer, loops, updates
from core import assemble
from core.provenance import provenance

RESULTS = Path(__file__).parent / "RESULTS.md"
PARTS: dict[str, Callable[[int, float], list[list[str]]]] = {
    "sac": updates.sac,
    "dqn": updates.dqn,
    "impala": updates.impala,
    "pixels": updates.pixels,
    "loop": loops.sac_loop,
    "real": loops.real_loops,
    "replay": draws.replay,
    "layer": layer.overhead,
    "guards": guards.guards,
    "denormals": denormals.denormals,
}


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def machine() -> str:
    known = provenance()
    hardware, commit = known["hardware"], (known["commit"] or "")[:10]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}: {hardware['cpu']}, {hardware['cores']} cores, {gpus}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def main(argv: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in argv)
    unknown = sorted(given.keys() - {"parts", "blocks", "seconds", "keep"})
    chosen = given.get("parts", ",".join(PARTS)).split(",")
    if unknown or not set(chosen) <= PARTS.keys():
        print(f"{unknown or chosen}: expected parts={','.join(PARTS)}, blocks=N, seconds=S, keep=true", file=sys.stderr)
        return 2
    assemble.choose_arithmetic("float32")  # as runs have it, and before any part brings threads to life
    text = [f"## {machine()}\n\n    python -m benchmarks.speed {' '.join(argv)}\n"]
    print(text[0], flush=True)
    for name in chosen:
        part = PARTS[name]
        table = markdown(part(int(given.get("blocks", 5)), float(given.get("seconds", 0.6))))
        text.append(f"{getdoc(part)}\n\n{table}\n")
        print(f"\n{text[-1]}", flush=True)
    if given.get("keep") == "true":
        before = RESULTS.read_text() if RESULTS.exists() else "# Measured speed\n"
        RESULTS.write_text(f"{before}\n" + "\n".join(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
