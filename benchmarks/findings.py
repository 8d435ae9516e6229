"""The claims of benchmarks/claims.py tried at a small scale, with what was seen.

    python -m benchmarks.findings run [only=NAME,...] [workers=2] [out=runs/findings]    run or go on, keep the numbers
    python -m benchmarks.findings                                    write docs/findings.md from the kept numbers

Runs are the ablations of configs/testbeds/. Their numbers at the end of every stage are kept in
benchmarks/results/findings/, four digits each; docs/findings.md is a function of these and of the remarks beside them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import ablate
from benchmarks.claims import CLAIMS, COLUMNS, Kept
from core import files
from core.ablation import Cell, read
from core.statistics import student_interval as interval

ROOT = Path(__file__).parents[1]
CONFIGS, KEPT, PAGE = ROOT / "configs" / "testbeds", ROOT / "benchmarks" / "results" / "findings", ROOT / "docs"
PARTS = {"classifier": "classifier", "regressor": "regressor", "dqn": "q"}  # whose diagnostics are kept
USAGE = (__doc__ or "").split("\n\n")[1]
ABLATIONS = list(dict.fromkeys(claim.ablation for claim in CLAIMS))
HEAD = """# Findings

What the field says about plasticity in supervised streams, tried here on handwritten digits of 8 x 8 pixels and small
networks: minutes on two CPU cores. A small scale can miss what a large one shows; the full one is a size of the same
file.

An effect is above 0 where the claim holds: the mean over seeds of the difference between runs that share a seed, with
its 95 % Student interval. *Reproduced*: the interval lies above 0. *Contradicted*: below. Else *not reproduced*.
There are {claims} rows: where there is no effect, one interval in twenty still leaves 0 out.

Written by `make findings` from the numbers in `benchmarks/results/findings/`; `make findings-runs` makes these anew.
"""


def main(argv: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in argv[1:])
    chosen = given["only"].split(",") if "only" in given else ABLATIONS
    if argv[:1] not in ([], ["run"]) or given.keys() - {"only", "workers", "out"} or not set(chosen) <= set(ABLATIONS):
        print(f"{' '.join(argv)}: expected\n{USAGE}\nNAME: {', '.join(ABLATIONS)}", file=sys.stderr)
        return 2
    if not argv:
        files.write(PAGE / "findings.md", page())
        return 0
    for name in chosen:
        if code := run(name, Path(given.get("out", "runs/findings")) / name, given.get("workers", "2")):
            return code
    return 0


def run(name: str, out: Path, workers: str) -> int:
    """One ablation, and its numbers into the kept table; columns that nothing is in are left out. -> exit code"""
    path = CONFIGS / f"{name}.yaml"
    if code := ablate.main([str(path), f"out={out}", f"workers={workers}"]):
        return code
    KEPT.mkdir(parents=True, exist_ok=True)
    rows = [["arm", "seed", "step", *COLUMNS], *(row for cell in read(path, out).cells for row in rows_of(cell))]
    full = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    with (KEPT / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([row[i] for i in full] for row in rows)
    return 0


def rows_of(cell: Cell) -> Iterator[list[str]]:
    """[arm, seed, step, one per column] for each stage (or probe) and seed; empty where it was not measured."""
    part = PARTS[cell.config.agent_kind]
    names = {column: name if "/" in name else f"{part}/{name}" for column, name in COLUMNS.items()}
    found: dict[int, dict[str, list[float]]] = {}
    for line in (cell.folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["step"], {}).update(row)
    for step, row in found.items():
        if names["test"] in row or names["trainability"] in row:
            for i, seed in enumerate(cell.config.seeds):
                values = [f"{float(row[name][i]):.4g}" if name in row else "" for name in names.values()]
                yield [cell.arm, str(seed), str(step), *values]


def page() -> str:
    """docs/findings.md."""
    lines = [
        HEAD.format(claims=len(CLAIMS)),
        "| claim | source | effect | 95 % interval | n | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        effect = claim.effect(Kept(KEPT / f"{claim.ablation}.csv"))
        low, high = interval(effect)
        where = f"[{claim.text}](../configs/testbeds/{claim.ablation}.yaml)"
        numbers = f"{effect.mean():+.3g} {claim.unit} | [{low:+.3g}, {high:+.3g}] | {len(effect)}"
        lines.append(f"| {where} | {claim.source} | {numbers} | {verdict(low, high)} |")
    lines += [
        "",
        (KEPT / "remarks.md").read_text(),
        "## The runs",
        "",
        "| ablation | command here | at full scale |",
        "| --- | --- | --- |",
    ]
    for name in ABLATIONS:
        lines.append(f"| {name} | `python ablate.py configs/testbeds/{name}.yaml` | {full_scale(name)} |")
    return "\n".join(lines) + "\n"


def verdict(low: float, high: float) -> str:
    return "reproduced" if low > 0 else "**contradicted**" if high < 0 else "not reproduced"


def full_scale(name: str) -> str:
    import yaml

    sizes = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("sizes", {})
    found = []
    for size, diff in sizes.items():
        images = diff["settings"].get("env.data")
        fetched = f", with `env.folder: FOLDER` in the file's settings ({images})"
        found.append(f"`... size={size}`{fetched if images else ''}")
    return "; ".join(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
