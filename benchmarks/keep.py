"""Keep what a finished run showed: its scores, its configuration, and the command and machine behind them.

    python -m benchmarks.keep RUN_DIR benchmarks/results/NAME

Writes eval.csv, config.yaml and a README.md with the command and a table of mean returns. If the folder holds a
`published.csv` (step, seed, return; a comment in its first line names the source), the table shows it beside ours.
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

Returns = dict[int, dict[str, list[float]]]  # step -> seed -> returns of its episodes


def read(path: Path) -> tuple[str, Returns]:
    """-> (the comment of the first line, the returns)."""
    lines = path.read_text().splitlines()
    comment = lines.pop(0).lstrip("# ") if lines[0].startswith("#") else ""
    found: Returns = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(lines):
        found[int(row["step"])][row["seed"]].append(float(row["return"]))
    return comment, found


def seed_means(returns: dict[str, list[float]]) -> np.ndarray:
    """Mean over episodes of each seed. -> [seeds]"""
    return np.array([np.mean(episodes) for episodes in returns.values()])


def table(ours: Returns, published: Returns) -> list[str]:
    head = ["env step", "mean", "seeds"] + ["published mean", "least to greatest seed"] * bool(published)
    rows = [head, ["---"] * len(head)]
    for step, returns in ours.items():
        means = seed_means(returns)
        row = [f"{step:,}", f"{means.mean():.1f}", ", ".join(f"{mean:.1f}" for mean in means)]
        if published:
            theirs = seed_means(published.get(step, {}))
            row += [f"{theirs.mean():.1f}", f"{theirs.min():.1f} to {theirs.max():.1f}"] if theirs.size else ["", ""]
        rows.append(row)
    return ["| " + " | ".join(row) + " |" for row in rows]


def command_of(start: dict) -> str:
    """The command as anyone would type it: no interpreter's path, no run folder."""
    words = shlex.split(start["command"])
    words = words[next(i for i, word in enumerate(words) if word.endswith("train.py")) + 1 :]
    return "python train.py " + " ".join(word for word in words if not word.startswith("run_dir="))


def main() -> None:
    run, kept = Path(sys.argv[1]), Path(sys.argv[2])
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "eval.csv", kept)
    settings = (run / "config.yaml").read_text().splitlines(keepends=True)
    (kept / "config.yaml").write_text("".join(line for line in settings if not line.startswith("run_dir:")))
    starts = json.loads((run / "provenance.json").read_text())
    first, versions = starts[0], starts[0]["versions"]
    source, published = read(kept / "published.csv") if (kept / "published.csv").exists() else ("", {})
    lines = [
        f"# {kept.name.replace('_', ' ')}",
        "",
        f"    {command_of(first)}",
        "",
        f"Commit {first['commit'][:10]}{', with changes' if first['dirty'] else ''}; {len(starts)} start(s); "
        f"torch {versions['torch']}, {first['hardware']['cpu']}, {first['hardware']['cores']} cores, "
        f"GPUs: {', '.join(map(str, first['hardware']['gpus'])) or 'none'}.",
        *([f"Published: {source}."] if source else []),
        "",
        *table(read(run / "eval.csv")[1], published),
    ]
    (kept / "README.md").write_text("\n".join(lines) + "\n")
    print(f"{kept}: kept")


if __name__ == "__main__":
    main()
