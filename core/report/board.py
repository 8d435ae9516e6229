"""The report in TensorBoard: one folder per arm with equal tags, so that arms overlay, each in its colour.

Custom Scalars has the IQM curves with their bands, for all tasks together and for each, and below them the diagnostics
that are asked for most; Time Series has the same numbers and all diagnostics under equal names, Text the table and the
events, HParams the arms' settings beside their scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from core import files
from core.ablation import Ablation, Cell
from core.report.comparison import Curve, Row

POINTS = 500  # of a diagnostic's curve at most
BESIDE = {  # diagnostics shown beside the curves: title -> expression for what comes behind the part's name
    "dormant units, threshold 0.025": r"dormant@0\.025",
    "parameter norm": "parameter_norm",
    "distance from birth": "distance_from_birth",
    "gradient norm": "grad_norm",
    "effective rank": "effective_rank",
    "loss": "loss",
}
Series = dict[str, dict[int, list[float]]]  # tag -> step -> one number per run


class ReportBoard:
    """Writers of all arms. What has been drawn is not drawn again, so that a report may be made while runs go on."""

    def __init__(self, folder: Path, ablation: Ablation) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.ablation = ablation
        self.writers = {arm: SummaryWriter(folder / arm) for arm in ablation.arms}
        self._drawn: dict[tuple[str, str], int] = defaultdict(lambda: -1)  # (arm, tag) -> last step
        tags = ["all tasks", *ablation.tasks] if len(ablation.tasks) > 1 else list(ablation.tasks)
        charts = {tag: ["Margin", [f"iqm/{tag}/{name}" for name in ("iqm", "low", "high")]] for tag in tags}
        beside = {title: ["Multiline", [f"measured/[^/]+/{tag}$"]] for title, tag in BESIDE.items()}
        layout = {"IQM over seeds and tasks, 95 % interval": charts, "Diagnostics, means over seeds and tasks": beside}
        for writer in self.writers.values():
            writer.add_custom_scalars(layout)

    def curves(self, curves: Mapping[tuple[str, str], Curve]) -> None:
        for (arm, task), curve in curves.items():
            tag = f"iqm/{'all tasks' if task == 'all' else task}"
            for name, values in (("iqm", curve.value), ("low", curve.low), ("high", curve.high)):
                self._scalars(arm, f"{tag}/{name}", zip(curve.steps, values, strict=True))

    def diagnostics(self) -> None:
        """Means over seeds and tasks of what the runs measured, by env step."""
        for arm in self.ablation.arms:
            for tag, points in measured(cell for cell in self.ablation.cells if cell.arm == arm).items():
                self._scalars(
                    arm, f"measured/{tag}", ((step, float(np.mean(values))) for step, values in points.items())
                )

    def events(self) -> None:
        """How often each intervention acted, and when first and last, as text."""
        for arm in self.ablation.arms:
            lines = [line for cell in self.ablation.cells if cell.arm == arm for line in _events(cell)]
            if lines and self._drawn[arm, "events"] < len(lines):
                self.writers[arm].add_text("events", "\n\n".join(lines))
                self._drawn[arm, "events"] = len(lines)

    def table(self, rows: list[Row], markdown: str, settings: Mapping[str, Mapping[str, str]]) -> None:
        """The table as text, and a row per arm in HParams."""
        for row in rows:
            writer = self.writers[row.arm]
            if row.arm == self.ablation.base:
                writer.add_text("report", markdown)
            metrics = {f"score/{name}": value.value for name, value in row.statistics.items()}
            writer.add_hparams({"arm": row.arm, **settings[row.arm]}, metrics, run_name=".")

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def flush(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def _scalars(self, arm: str, tag: str, points: Iterable[tuple[int, float]]) -> None:
        for step, value in points:
            if step > self._drawn[arm, tag] and np.isfinite(value):
                self.writers[arm].add_scalar(tag, float(value), int(step))
                self._drawn[arm, tag] = int(step)


def measured(cells: Iterable[Cell]) -> Series:
    """What the runs of these cells logged, by tag and env step; per-layer numbers are left to the runs' own pages.

    Of long records every k-th row is taken, so that a curve has POINTS points.
    """
    found: Series = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        path = cell.folder / "metrics.jsonl"
        by_tag: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
        with files.reading(path):
            for row in files.json_rows(path):
                for tag, values in row.items():
                    if isinstance(values, list) and tag.count("/") == 1:
                        numbers = [float(v) for v in values if v is not None]  # nan is written as text
                        by_tag[tag].append((int(row["step"]), [v for v in numbers if np.isfinite(v)]))
        for tag, points in by_tag.items():
            for step, values in points[:: max(1, len(points) // POINTS)]:
                found[tag][step] += values
    return {tag: {step: v for step, v in sorted(points.items()) if v} for tag, points in found.items()}


def _events(cell: Cell) -> list[str]:
    """One line per intervention and part."""
    path, seen = cell.folder / "ledger.jsonl", defaultdict(list)
    with files.reading(path):
        for row in files.json_rows(path):
            if row.get("touched"):
                seen[row["intervention"], row["part"]].append(int(row["step"]))
    return [
        f"{cell.task}: {name} acted on {part} {len(steps)} times, from step {min(steps):,} to {max(steps):,}"
        for (name, part), steps in seen.items()
    ]
