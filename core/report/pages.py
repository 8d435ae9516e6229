"""The report as files: report.md with the table and what it stands on, scores.csv, curves.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.ablation import Ablation
from core.cells import Attempts
from core.report.comparison import STATISTICS, Curve, Row
from core.report.published import Published
from core.report.scores import Missing, Run
from core.statistics import mean, median

FEW = 10  # runs: with fewer, percentile intervals miss the truth two times too often and more


def page(
    ablation: Ablation,
    rows: list[Row],
    card: Mapping[str, Any],
    step: int,
    missing: Missing,
    others: Sequence[Published] = (),
) -> str:
    """The table in Markdown, with footnotes for what is not as planned."""
    head = [
        "arm",
        "runs",
        *STATISTICS,
        f"P(better than {ablation.base})",
        f"gain over {ablation.base}, paired",
        "the same, always valid",
    ]
    lines = [f"# {ablation.out.name}", "", _cells(head), _cells(["---"] * len(head))]
    for row in rows:
        numbers = [str(row.statistics[name]) for name in STATISTICS]
        against = [str(value) if value is not None else "" for value in (row.improvement, row.gain)]
        against.append(_watched(row))
        lines.append(_cells([row.arm, f"{row.runs}{_mark(row)}", *numbers, *against]))
    for other in others:  # of means alone there is neither an IQM of runs nor an interval
        scores = other.scores(ablation.tasks)
        numbers = ["", f"{float(median(scores)):.3f}", f"{float(mean(scores)):.3f}", ""]
        lines.append(_cells([f"{other.name}, published", "", *numbers, "", "", ""]))
    lines += [
        "",
        f"At env step {step:,} on {', '.join(ablation.tasks)}; seeds {', '.join(map(str, ablation.seeds))}. Scores are "
        f"{card['scale']}. Intervals: 95 %, stratified bootstrap over runs within each task, 2,000 resamples; of the "
        "gain Student's. The last column holds at any number of finished pairs, six at least: one may watch, and stop "
        "once it excludes 0.",
        *_caveats(ablation, rows, card),
        *_footnotes(rows, missing, Attempts(ablation.out).failures),
        *(f"\n{other.name}: {other.title}; {other.source}" for other in others),
        "",
        "| protocol | |",
        "| --- | --- |",
        *(_cells([key, str(value)]) for key, value in card.items()),
    ]
    return "\n".join(lines) + "\n"


def scores_csv(runs: list[Run]) -> str:
    """Every evaluation of every run; a run without any has one row with its status."""
    rows: list[list[Any]] = [["arm", "task", "seed", "status", "step", "return", "normalised"]]
    for run in runs:
        who = [run.arm, run.task, run.seed, run.status]
        pairs = zip(run.steps.tolist(), run.returns.tolist(), run.normalised.tolist(), strict=True)
        rows += [[*who, *numbers] for numbers in pairs] or [[*who, "", "", ""]]
    return _csv(rows)


def curves_csv(curves: Mapping[tuple[str, str], Curve]) -> str:
    """IQM and its band over env steps, by (arm, task); task "all" is the aggregate."""
    rows: list[list[Any]] = [["arm", "task", "step", "iqm", "low", "high"]]
    for (arm, task), curve in curves.items():
        points = zip(curve.steps, curve.value, curve.low, curve.high, strict=True)
        rows += [[arm, task, int(step), *map(float, numbers)] for step, *numbers in points]
    return _csv(rows)


def _watched(row: Row) -> str:
    """The interval that may be looked at; infinite as long as the pairs are too few to exclude anything."""
    if row.watched is None:
        return ""
    return str(row.watched) if math.isfinite(row.watched.high - row.watched.low) else "too few pairs"


def _caveats(ablation: Ablation, rows: list[Row], card: Mapping[str, Any]) -> list[str]:
    """What the intervals do not say."""
    notes, fewest, others = [], min(row.runs for row in rows), len(rows) - 1
    if fewest < FEW:
        notes.append(
            f"Bootstrap intervals of {fewest} runs are too narrow (on one task, of a mean of three runs 25 in 100 miss "
            "the truth, of five 16, of ten 10): go by the gain, or run more seeds."
        )
    if others > 1:
        notes.append(
            f"{others} arms are compared with {ablation.base}, and no interval is widened for their number: if none "
            f"did anything, one or more would exclude 0 in up to {100 * (1 - 0.95**others):.0f} of 100 ablations."
        )
    if card["scale"] == "return" and len(ablation.tasks) > 1:
        notes.append(
            "Returns of several tasks are on no common scale: the widest task leads the sums. Look at each alone."
        )
    return [""] * bool(notes) + notes


def _mark(row: Row) -> str:
    return "*" if set(row.statuses) - {"finished"} else ""


def _footnotes(rows: list[Row], missing: Missing, failures: Mapping[str, list[str]]) -> list[str]:
    notes = [f"{cell} has died {len(causes)} times; at last: {causes[-1]}." for cell, causes in failures.items()]
    for row in rows:
        amiss = {status: count for status, count in row.statuses.items() if status != "finished"}
        if amiss:
            notes.append(f"\\* {row.arm}: {', '.join(f'{count} {status}' for status, count in amiss.items())}.")
    if notes:
        rule = {
            "worst": "A run that is missing, has diverged or was given up scores the worst of its task over all arms, "
            "at most 0, from there on.",
            "drop": "Seeds with such a run are left out of their arm (missing=drop).",
        }
        notes.append(rule[missing])
    return [""] * bool(notes) + notes


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
