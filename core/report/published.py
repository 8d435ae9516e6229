"""Published results, to be drawn beside one's own: benchmarks/published/NAME.csv, mean returns by task, with source."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.options import nearest
from core.report.scores import normalise

FOLDER = Path(__file__).parents[2] / "benchmarks" / "published"


@dataclass(frozen=True)
class Published:
    """Mean returns of somebody else's runs. Without the runs themselves there is no IQM and no interval."""

    name: str
    title: str  # whose, and what a score means there
    source: str
    returns: dict[str, float]

    def scores(self, tasks: tuple[str, ...]) -> np.ndarray:
        """Normalised scores of these tasks, as one run. Raises ValueError if it lacks one. -> [1, tasks]"""
        lacking = [task for task in tasks if task not in self.returns]
        if lacking:
            raise ValueError(f"published={self.name}: has no {lacking[0]}; leave it out")
        return np.array([[float(normalise(task, np.array(self.returns[task]))) for task in tasks]])


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load(name: str) -> Published:
    """Raises ValueError for a name that is not there."""
    if name not in names():
        raise ValueError(f"published={name} given; {nearest(name, names())}")
    lines = (FOLDER / f"{name}.csv").read_text().splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    title, _, source = comment.partition("; ")
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return Published(name, title, source, {row["task"]: float(row["return"]) for row in rows})
