"""Figures for a paper, PNG and PDF: learning curves with bands, aggregates with intervals, performance profiles.

Needs matplotlib: pip install -e ".[plots]".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from core.ablation import Ablation
from core.randomness import host_generator
from core.report.comparison import STATISTICS, Curve, Row
from core.report.published import Published
from core.statistics import bootstrap, interval, profile

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000"]  # Okabe and Ito


def draw(
    folder: Path,
    ablation: Ablation,
    rows: list[Row],
    curves: Mapping[tuple[str, str], Curve],
    scores: Mapping[str, np.ndarray],
    unit: str,
    others: Sequence[Published] = (),
) -> list[Path]:
    """Write the figures; scores: arm -> [runs, tasks] at the last step. -> their paths, none without matplotlib.

    others: published means, drawn as dotted lines.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    colours = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(ablation.arms)}
    tasks = ["all", *ablation.tasks] if len(ablation.tasks) > 1 else list(ablation.tasks)
    figures = {
        "curves": _curves(tasks, ablation, curves, colours, unit, others),
        "aggregates": _aggregates(rows, colours, unit),
        "profiles": _profiles(scores, colours, unit),
    }
    paths = [folder / f"{name}.{kind}" for name in figures for kind in ("png", "pdf")]
    for path in paths:
        figures[path.stem].savefig(path, dpi=200, bbox_inches="tight")
    return paths


def _figure(panels: int, width: float):
    from matplotlib.figure import Figure

    columns = min(panels, 4)
    lines = -(-panels // columns)
    figure = Figure(figsize=(width * columns, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes


def _curves(
    tasks: list[str],
    ablation: Ablation,
    curves: Mapping[tuple[str, str], Curve],
    colours: Mapping[str, str],
    unit: str,
    others: Sequence[Published],
):
    figure, axes = _figure(len(tasks), 3.4)
    for axis, task in zip(axes, tasks, strict=False):
        for arm, colour in colours.items():
            curve = curves[arm, task]
            axis.plot(curve.steps, curve.value, color=colour, label=arm)
            axis.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        for k, other in enumerate(others):
            scores = other.scores(ablation.tasks if task == "all" else (task,))
            axis.axhline(float(scores.mean()), color=str(0.2 + 0.2 * k), linestyle=":", label=f"{other.name} (mean)")
        axis.set(title="all tasks" if task == "all" else task, xlabel="env steps", ylabel=f"IQM ({unit})")
    axes[0].legend(frameon=False)
    return figure


def _aggregates(rows: list[Row], colours: Mapping[str, str], unit: str):
    figure, axes = _figure(len(STATISTICS), 2.8)
    for axis, name in zip(axes, STATISTICS, strict=True):
        for i, row in enumerate(reversed(rows)):
            found = row.statistics[name]
            axis.barh(i, found.high - found.low, left=found.low, color=colours[row.arm], alpha=0.6, height=0.6)
            axis.plot([found.value] * 2, [i - 0.3, i + 0.3], color="black", linewidth=1.5)
        axis.set(title=name, xlabel=unit, yticks=range(len(rows)))
        axis.set_yticklabels([row.arm for row in reversed(rows)] if axis is axes[0] else [])
    return figure


def _profiles(scores: Mapping[str, np.ndarray], colours: Mapping[str, str], unit: str):
    figure, (axis, *_) = _figure(1, 4.2)
    top = max(float(values.max()) for values in scores.values())
    thresholds = np.linspace(min(0.0, *(float(values.min()) for values in scores.values())), max(top, 1e-9), 101)
    for arm, values in scores.items():
        drawn = bootstrap(values, lambda x: profile(x, thresholds), host_generator(0, "report/profile"), reps=1000)
        low, high = interval(drawn)
        axis.plot(thresholds, profile(values, thresholds), color=colours[arm], label=arm)
        axis.fill_between(thresholds, low, high, color=colours[arm], alpha=0.2, linewidth=0)
    axis.set(xlabel=f"score ({unit})", ylabel="share of runs above", ylim=(0, 1.02))
    axis.legend(frameon=False)
    return figure
