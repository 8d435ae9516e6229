"""What a checkpoint costs while a replay grows to 100,000 frames: seconds, and bytes that are written anew.

    python -m benchmarks.saving [env=atari/breakout] [every=10_000]

A DQN of the published size plays 100,000 steps by chance, with a few updates at the end, and saves every so many
steps, into a temporary folder. Chunks of replay that an earlier checkpoint has written are not written again.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import train
from benchmarks.speed import machine, markdown
from core.agent_session import AgentSession
from core.config import load

RUN = ["agent=dqn", "steps=100_000", "warmup=99_990", "compile=false", "replay.capacity=100_000", "eval_every=0"]
RUN += ["final_episodes=1", "observe_every=0", "rank_every=0", "log_every=1_000_000"]


def sizes(folder: Path) -> dict[Path, int]:
    """Bytes of the checkpoints' and the replay's files."""
    found = [path for name in ("checkpoints", "replay") for path in (folder / name).rglob("*") if path.is_file()]
    return {path: path.stat().st_size for path in found}


def saving(env: str, every: str, folder: Path) -> list[list[str]]:
    """One row per checkpoint."""
    rows = [["agent steps", "seconds", "MB written", "MB of it replay", "MB of replay on disk"]]
    run = AgentSession(load([*RUN, f"env={env}", f"save_every={every}", f"run_dir={folder}"]))
    save = run.save

    def timed() -> bool:
        before, began = sizes(folder), time.perf_counter()
        saved = save()
        seconds, after = time.perf_counter() - began, sizes(folder)
        new = {path: size for path, size in after.items() if path not in before}
        chunks = {path: size for path, size in after.items() if path.parent.name == "replay"}
        written = [sum(new.values()), sum(size for path, size in new.items() if path in chunks), sum(chunks.values())]
        rows.append([f"{run.clock.agent_steps:,}", f"{seconds:.2f}", *(f"{size / 1e6:.1f}" for size in written)])
        return saved

    run.save = timed  # type: ignore[method-assign]
    with run:
        train.loop(run.config, run)
    return rows


def main(argv: list[str]) -> int:
    given = {"env": "atari/breakout", "every": "10_000"} | dict(argument.split("=", 1) for argument in argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = saving(given["env"], given["every"], Path(folder) / "run")
    print(f"{machine()}\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
