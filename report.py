"""What an ablation shows: a table with intervals, learning curves in TensorBoard, figures and CSVs.

    python report.py runs/ablation [base=ARM] [published=drq_eps,der] [missing=worst|drop] [--watch]

Writes runs/ablation/report/. Arms are compared with the base of the file, or with another. With --watch the report
follows the runs until all of them are over, also past what cannot be read or written for a moment.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from core import files
from core.ablation import Ablation, read
from core.cells import over
from core.options import nearest
from core.report import pages
from core.report.board import ReportBoard
from core.report.card import check_cards
from core.report.comparison import NotYet, compare, curve
from core.report.figures import draw
from core.report.published import Published, load
from core.report.scores import Missing, matrix, reached, runs

WATCH = 30.0  # seconds between two reports


def report(ablation: Ablation, board: ReportBoard, missing: Missing, others: list[Published]) -> str:
    """Write everything once. -> the table"""
    folder, card = ablation.out / "report", check_cards(ablation.cells)
    found = runs(ablation)
    rows = compare(ablation, found, missing)
    points = reached(found, ablation.tasks)
    tasks = {task: (task,) for task in ablation.tasks} | {"all": ablation.tasks}
    curves = {
        (arm, name): curve(ablation, found, arm, of, missing) for arm in ablation.arms for name, of in tasks.items()
    }
    markdown = pages.page(ablation, rows, card, int(points[-1]), missing, others)
    files.write(folder / "report.md", markdown)
    files.write(folder / "scores.csv", pages.scores_csv(found))
    files.write(folder / "curves.csv", pages.curves_csv(curves))
    last = {arm: matrix(found, arm, ablation.tasks, points[-1:], missing)[0] for arm in ablation.arms}
    draw(folder, ablation, rows, curves, last, card["scale"], others)
    board.draw(curves)
    if over(ablation):
        board.table(rows, markdown, {arm: _settings(ablation, arm) for arm in ablation.arms})
    board.flush()
    return markdown


def _settings(ablation: Ablation, arm: str) -> dict[str, str]:
    """What sets an arm apart, for HParams."""
    config = next(cell.config for cell in ablation.cells if cell.arm == arm)
    return {
        "agent": config.agent_name,
        "interventions": ", ".join(i.name for i in config.interventions) or "none",
        "value": type(config.value).__name__,
        "replay_ratio": str(config.replay_ratio),
    }


def main(argv: list[str]) -> int:
    """-> exit code; 2, after one line, for a mistake."""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    try:
        out, *rest = argv
        watch = "--watch" in rest
        options = {name: value for name, _, value in (a.partition("=") for a in rest if a != "--watch")}
        missing: Any = options.pop("missing", "worst")
        base = options.pop("base", "")
        others = [load(name) for name in options.pop("published", "").split(",") if name]
        if options or missing not in ("worst", "drop"):
            raise ValueError(
                f"{' '.join(rest)}: expected base=ARM, published=NAME, missing=worst, missing=drop or --watch"
            )
        ablation = read(Path(out) / "ablation.yaml", Path(out))
        if base and base not in ablation.arms:
            raise ValueError(f"base={base} given; {nearest(base, ablation.arms)}")
        ablation = dataclasses.replace(ablation, base=base or ablation.base)
        folder = Path(out) / "report"
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # drawn anew, whole
        folder.mkdir(exist_ok=True)
        board = ReportBoard(folder / "tensorboard", ablation)
        while True:
            last = False
            try:
                last = over(ablation)
                print(report(ablation, board, missing, others))
            except (NotYet, OSError) as passing:
                if not watch or (last and isinstance(passing, NotYet)):
                    raise
                last = False
                print(passing)
            if last or not watch:
                break
            time.sleep(WATCH)
        board.close()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"look at it: .venv/bin/tensorboard --logdir {folder / 'tensorboard'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
