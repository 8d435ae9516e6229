"""What the runs of an ablation scored: normalised returns by arm, task, seed and step, with nothing dropped in silence.

Normalised: on Atari 0 is a random policy and 1 a human (the table in envs/atari_games.csv says whose numbers), on
DeepMind Control 1 is a return of 1,000; other environments keep their returns.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from core import files
from core.ablation import Ablation, Cell
from core.cells import given_up, progress

Missing = Literal["worst", "drop"]
LOST = ("missing", "diverged", "given up")


@dataclass(frozen=True)
class Run:
    """One seed of one cell."""

    arm: str
    task: str
    seed: int
    steps: np.ndarray  # [evaluations] env steps
    returns: np.ndarray  # [evaluations] mean return of the episodes, unnormalised
    normalised: np.ndarray  # [evaluations] the same, each episode by the task it was of
    status: str  # finished | diverged | given up | unfinished | missing
    over: bool  # its cell has come to its end: nothing above will change
    lost_at: float = np.inf  # env step from which on it has no score

    def at(self, points: np.ndarray, worst: float) -> np.ndarray:
        """Normalised scores at these steps: of the latest evaluation up to each, `worst` where there is none."""
        latest = np.searchsorted(self.steps, points, side="right") - 1
        scores = np.full(len(points), worst)
        scored = (latest >= 0) & (points < self.lost_at)
        scores[scored] = self.normalised[latest[scored]]
        return scores


def normalise(task: str, returns: np.ndarray) -> np.ndarray:
    """Returns of a task on the scale of its benchmark."""
    family, _, name = task.partition("/")
    if family == "dmc":
        return np.asarray(returns) / 1000
    if family == "atari":
        game = importlib.import_module("envs.catalog").games().get(name)
        if game is not None:
            return (np.asarray(returns) - game.random) / (game.human - game.random)
    return np.asarray(returns, dtype=np.float64)


def scale(task: str) -> str:
    """What a normalised score of a task is."""
    family, _, name = task.partition("/")
    if family == "atari" and name in importlib.import_module("envs.catalog").games():
        return "human-normalised"
    return {"dmc": "return / 1000", "testbed": "score"}.get(family, "return")


def runs(ablation: Ablation) -> list[Run]:
    """Every planned run, arm by arm, whether it exists or not."""
    lost = given_up(ablation)
    return [run for cell in ablation.cells for run in _of_cell(cell, cell.name in lost)]


def _of_cell(cell: Cell, lost: bool) -> list[Run]:
    found: dict[int, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))  # by seed and step
    path = cell.folder / "eval.csv"
    if path.exists():
        with files.reading(path):
            whole = path.read_bytes()[: files.whole_lines(path)].decode()  # a full disk may have taken half a line
            for row in csv.DictReader(io.StringIO(whole)):
                score = float(row["return"])
                pair = score, float(normalise(row["task"], np.array(score)))
                found[int(row["seed"])][int(row["step"])].append(pair)
    diverged = _diverged(cell.folder)
    done = progress(cell).status in ("finished", "diverged")
    made = []
    for seed in cell.config.seeds:
        curve = {step: np.mean(pairs, axis=0) for step, pairs in sorted(found[seed].items())}
        steps = np.array(list(curve), dtype=np.int64)
        returns, normalised = np.array(list(curve.values())).reshape(len(steps), 2).T
        for step in steps[np.isnan(returns)]:  # its world has shown what is not finite
            diverged.setdefault(seed, float(step))
        standing = "finished" if done else "given up" if lost else "unfinished"
        lost_at = diverged.get(seed, float(steps[-1]) + 1 if lost and curve else np.inf)
        status = "diverged" if seed in diverged else standing if curve or lost else "missing"
        made.append(Run(cell.arm, cell.task, seed, steps, returns, normalised, status, done, lost_at))
    return made


def _diverged(folder: Path) -> dict[int, float]:
    """Seed -> env step at which its divergence was noticed."""
    ledger, found = folder / "ledger.jsonl", dict[int, float]()
    with files.reading(ledger):
        for row in files.json_rows(ledger):
            if "diverged" in row:
                found[int(row["diverged"])] = float(row["step"])
    return found


def matrix(found: list[Run], arm: str, tasks: tuple[str, ...], points: np.ndarray, missing: Missing) -> np.ndarray:
    """Scores of an arm at these steps. -> [points, runs, tasks]

    A run that is missing, has diverged or was given up scores the worst that any run of any arm scores on that task,
    and at most 0, from there on; or, with "drop", its row is left out for all tasks (`kept`).
    """
    columns = []
    for task in tasks:
        worst = worst_of(found, task)
        mine = [run for run in found if (run.arm, run.task) == (arm, task)]
        columns.append(np.stack([run.at(points, worst) for run in mine], axis=1))
    return np.stack(columns, axis=2)[:, kept(found, arm, tasks, missing)]


def kept(found: list[Run], arm: str, tasks: tuple[str, ...], missing: Missing) -> list[int]:
    """Which seeds of an arm count, by their place in the ablation's list."""
    mine = [[run for run in found if (run.arm, run.task) == (arm, task)] for task in tasks]
    lost = {row for column in mine for row, run in enumerate(column) if run.status in LOST}
    return [row for row in range(len(mine[0])) if missing == "worst" or row not in lost]


def worst_of(found: list[Run], task: str) -> float:
    """What a run scores that is lost."""
    return min([0.0, *(score for run in found if run.task == task for score in run.normalised)])


def reached(found: list[Run], tasks: tuple[str, ...]) -> np.ndarray:
    """Steps that were evaluated and that every run still under way has come to: what is known of all. -> [points]"""
    mine = [run for run in found if run.task in tasks]
    under_way = [run for run in mine if run.status == "unfinished"]
    furthest = min((run.steps[-1] for run in under_way), default=np.inf)
    steps = np.unique(np.concatenate([run.steps for run in mine])) if mine else np.array([], dtype=np.int64)
    return steps[steps <= furthest]
