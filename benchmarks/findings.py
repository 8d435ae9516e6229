"""The claims of benchmarks/claims.py tried at a small scale, with what was seen.

    python -m benchmarks.findings run [only=NAME,...] [workers=2] [out=runs/findings]    run or go on, keep the numbers
    python -m benchmarks.findings                                    write docs/findings.md from the kept numbers

Runs are the ablations of configs/testbeds/. Their numbers at the end of every stage are kept in
benchmarks/results/findings/, four digits each; docs/findings.md is a function of these files alone.
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
ABLATIONS = list(dict.fromkeys(claim.ablation for claim in CLAIMS))
HEAD = """# Findings

What the field says about plasticity in supervised streams, tried here on handwritten digits of 8 x 8 pixels and small
networks: minutes on two CPU cores. A small scale can miss what a large one shows; the full one is a size of the same
file.

An effect is above 0 where the claim holds: the mean over seeds of the difference between runs that share a seed, with
its 95 % Student interval. *Reproduced*: the interval lies above 0. *Contradicted*: below. Else *not reproduced*.

Written by `make findings` from the numbers in `benchmarks/results/findings/`; `make findings-runs` makes these anew.
"""


REMARKS = """
## Remarks

- Layer normalisation learns every permutation better than plain Adam does, early and late; it starts from a higher
  level and loses more of it.
- L2 at 0.01 holds the weights small and costs accuracy from the first stage on; Kumar et al. searched for its weight.
- On random labels plain Adam ends with a tangent kernel of rank 1: every input can only be moved with all others. The
  function has become flat, and its curvature falls with it; with normalisation curvature is high, and grows while all
  is still learned. Curvature alone does not tell who can learn.
- Half of the digits are known by heart after 100 updates. Test accuracy at the end falls from 0.946, where the first
  stage had 50, to 0.940, where it had 1,000 or more; ten seeds do not tell that from chance.
- C51 on the classification MDP copies its target ten times as often as the other arms. With their 47 copies a
  distribution as wide as its support does not narrow: at discount 0.99 its return was 25 of 100 and its probe as low as
  squared error's. The interval of copies was chosen on three seeds and tried on ten others (return 87):
  `benchmarks/results/findings/sweeps.md`.
- That curvature would grow was our guess before the runs; no source here says so.
- DASH and Shrink & Perturb shrink every layer. Behind a normalisation that changes nothing but the step size; without
  one a few layers leave almost nothing, and the way back is long.
- The slowly changing regression is 60 stages of 1,000 examples here, published are 100 of 10,000: in so short a time no
  learner of five units lost anything.
- Ten classes of digits in turn are little to lose plasticity on: all but Shrink & Perturb end within 0.01 of what is
  trained from scratch. It shrinks to 0.4 nine times, and 500 updates are few to come back from that.
- Soft weight rescaling holds the weights where they began and does no harm: on one task test accuracy is that of plain
  Adam, within 0.004.
- Hare & Tortoise and the plain average (EMA) did not differ here, whatever was varied: what was tried before the
  settings were chosen is in `benchmarks/results/findings/sweeps.md`.
"""


def main(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        given = dict(argument.split("=", 1) for argument in argv[1:])
        out, workers = Path(given.get("out", "runs/findings")), given.get("workers", "2")
        for name in given["only"].split(",") if "only" in given else ABLATIONS:
            if code := run(name, out / name, workers):
                return code
    else:
        files.write(PAGE / "findings.md", page())
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
    lines = [HEAD, "| claim | source | effect | 95 % interval | n | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for claim in CLAIMS:
        effect = claim.effect(Kept(KEPT / f"{claim.ablation}.csv"))
        low, high = interval(effect)
        where = f"[{claim.text}](../configs/testbeds/{claim.ablation}.yaml)"
        numbers = f"{effect.mean():+.3g} {claim.unit} | [{low:+.3g}, {high:+.3g}] | {len(effect)}"
        lines.append(f"| {where} | {claim.source} | {numbers} | {verdict(low, high)} |")
    lines += [REMARKS, "## The runs", "", "| ablation | command here | at full scale |", "| --- | --- | --- |"]
    for name in ABLATIONS:
        lines.append(f"| {name} | `python ablate.py configs/testbeds/{name}.yaml` | {full_scale(name)} |")
    return "\n".join(lines) + "\n"


def verdict(low: float, high: float) -> str:
    return "reproduced" if low > 0 else "**contradicted**" if high < 0 else "not reproduced"


def full_scale(name: str) -> str:
    import yaml

    sizes = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()).get("sizes", {})
    return "; ".join(f"`... size={size}`, with `settings: {{env.folder: ...}}`" for size in sizes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
