"""The report in TensorBoard: one folder per arm with equal tags, so that arms overlay, each in its colour.

Custom Scalars has the IQM curves with their bands, for all tasks together and for each, and below them the diagnostics
that are asked for most; Time Series has the same numbers and all diagnostics under equal names, Text the table and the
events, HParams the arms' settings beside their scores.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from core import files
from core.ablation import Ablation, Cell
from core.cells import progress
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
Points = list[tuple[int, float]]  # (env step, value), in order


class ReportBoard:
    """Writers of all arms, for a report that is made again while runs go on: what is new is added; an arm of which
    something else holds now than was drawn (its runs have come, or one has diverged) is drawn anew as a whole."""

    def __init__(self, folder: Path, ablation: Ablation) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.ablation, self._folder, self._writer = ablation, folder, SummaryWriter
        self._writers = {arm: SummaryWriter(folder / arm) for arm in ablation.arms}
        self._drawn: dict[str, dict[str, Points]] = {arm: {} for arm in ablation.arms}  # arm -> tag -> what it shows
        self._told: dict[str, str] = {}  # arm -> its events
        for arm in ablation.arms:
            self._lay_out(arm)

    def draw(self, curves: Mapping[tuple[str, str], Curve]) -> None:
        """The IQM curves, what the runs measured, and how often each intervention acted."""
        for arm in self.ablation.arms:
            cells = [cell for cell in self.ablation.cells if cell.arm == arm]
            found = {f"measured/{tag}": points for tag, points in measured(cells).items()}
            for (name, task), curve in curves.items():
                for end, values in (("iqm", curve.value), ("low", curve.low), ("high", curve.high)):
                    if name == arm:
                        tag = f"iqm/{'all tasks' if task == 'all' else task}/{end}"
                        points = zip(curve.steps.tolist(), values.tolist(), strict=True)
                        found[tag] = [(step, value) for step, value in points if math.isfinite(value)]
            self._scalars(arm, found)
            lines = [line for cell in cells for line in _events(cell)]
            self._events(arm, "\n\n".join(lines))

    def table(self, rows: list[Row], markdown: str, settings: Mapping[str, Mapping[str, str]]) -> None:
        """The table as text, and a row per arm in HParams."""
        for row in rows:
            writer = self._writers[row.arm]
            if row.arm == self.ablation.base:
                writer.add_text("report", markdown)
            metrics = {f"score/{name}": value.value for name, value in row.statistics.items()}
            writer.add_hparams({"arm": row.arm, **settings[row.arm]}, metrics, run_name=".")

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def flush(self) -> None:
        for writer in self._writers.values():
            writer.flush()

    def _lay_out(self, arm: str) -> None:
        tasks = self.ablation.tasks
        tags = ["all tasks", *tasks] if len(tasks) > 1 else list(tasks)
        charts = {tag: ["Margin", [f"iqm/{tag}/{name}" for name in ("iqm", "low", "high")]] for tag in tags}
        beside = {title: ["Multiline", [f"measured/[^/]+/{tag}$"]] for title, tag in BESIDE.items()}
        layout = {"IQM over seeds and tasks, 95 % interval": charts, "Diagnostics, means over seeds and tasks": beside}
        self._writers[arm].add_custom_scalars(layout)

    def _scalars(self, arm: str, found: Mapping[str, Points]) -> None:
        drawn = self._drawn[arm]
        if any(found.get(tag, [])[: len(points)] != points for tag, points in drawn.items()):
            self._begin_anew(arm)
        for tag, points in found.items():
            for step, value in points[len(drawn.get(tag, [])) :]:
                self._writers[arm].add_scalar(tag, value, step)
            drawn[tag] = points

    def _begin_anew(self, arm: str) -> None:
        """A TensorBoard forgets what it has read of this arm, also one that is looking on: it needs the file that it is
        in, so that only the one before goes."""
        self._writers[arm].close()
        for path in sorted((self._folder / arm).glob("events.*"), key=lambda path: path.stat().st_mtime_ns)[:-1]:
            path.unlink()
        self._writers[arm] = self._writer(self._folder / arm, purge_step=0)
        self._drawn[arm].clear()
        self._told.pop(arm, None)
        self._lay_out(arm)

    def _events(self, arm: str, text: str) -> None:
        if text and self._told.get(arm) != text:
            self._writers[arm].add_text("events", text)
            self._told[arm] = text


def measured(cells: Iterable[Cell]) -> dict[str, Points]:
    """Means over the seeds and the cells of what their runs logged, by tag; per-layer numbers are left to the runs' own
    pages.

    Cells measure at steps of their own. A point is drawn where one of them did, from where all have begun, as far as
    all that are under way have come, with the latest number of each: every point is a mean over the same cells. Of
    many points every k-th is taken.
    """
    curves: dict[str, list[np.ndarray]] = defaultdict(list)  # tag -> [points, (step, value)] of each cell
    under_way: dict[str, list[int]] = defaultdict(list)  # tag -> last steps of cells that have not ended
    for cell in cells:
        path = cell.folder / "metrics.jsonl"
        by_tag: dict[str, list[tuple[int, float]]] = defaultdict(list)
        with files.reading(path):
            for row in files.json_rows(path):
                for tag, values in row.items():
                    if isinstance(values, list) and tag.count("/") == 1:
                        numbers = [float(v) for v in values if v is not None]  # nan is written as text
                        finite = [v for v in numbers if np.isfinite(v)]
                        if finite:
                            by_tag[tag].append((int(row["step"]), float(np.mean(finite))))
        ended = progress(cell).status in ("finished", "diverged")
        for tag, points in by_tag.items():
            curves[tag].append(np.array(points))
            if not ended:
                under_way[tag].append(points[-1][0])
    return {tag: _mean_of(each, min(under_way[tag], default=math.inf)) for tag, each in curves.items()}


def _mean_of(curves: list[np.ndarray], come: float) -> Points:
    steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    begun = max(curve[0, 0] for curve in curves)
    steps = steps[(begun <= steps) & (steps <= come)]
    latest = [curve[np.searchsorted(curve[:, 0], steps, side="right") - 1, 1] for curve in curves]
    points = list(zip(steps.astype(int).tolist(), np.mean(latest, axis=0).tolist(), strict=True))
    return points[:: 1 + len(points) // POINTS]


def _events(cell: Cell) -> list[str]:
    """One line per intervention and part."""
    path, seen = cell.folder / "ledger.jsonl", defaultdict(list)
    with files.reading(path):
        for row in files.json_rows(path):
            if row.get("touched"):
                seen[row["intervention"], row["part"]].append(int(row["step"]))
    return [
        f"{cell.task}: {name} acted on {part} {len(steps)} times (each seed counts), from step {min(steps):,} "
        f"to {max(steps):,}"
        for (name, part), steps in seen.items()
    ]
