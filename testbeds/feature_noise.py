"""Why a warm start generalises worse than a cold one: learned features against memorised noise, by counting alone.

    python -m testbeds.feature_noise [seeds=[0,1,2]] [experiments=50] [gamma=50] [tau=3] [...] [out=FILE.csv]

Source    Shin et al. 2024, "DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of
          Plasticity", section 3. V: read in the authors' notebook, Discrete_Feature_Learning.ipynb of their
          repository; S: in summaries of the paper; I: ours. The text of section 3 and its proofs was not at hand.
Data      Every class has features of its own. Feature k is in a point of its class with a probability that is drawn
          once per seed, uniformly below `most`; every experiment adds `points` to the data of those before. (V)
Training  A point is well classified, and its gradient zero, once `tau` of its features are learned. Of the features
          not yet learned the one that stands in most points with a gradient is learned, the first of several, as long
          as it stands in `gamma` points or more: a count, whatever the size of the data. Then the noise of the points
          that are left is memorised, and their gradient is zero as well. (V)
Starts    cold: of nothing; warm: of features and memorised points; ideal: of features, with all noise forgotten. (V)
Reported  accuracy: a test point is right if it is well classified, else with the chance of a guess (V), counted at
          its mean (I: the notebook draws it); features: those learned, of all classes (V); time: points with a
          gradient as training begins (V), which the paper takes for training time (S); memorised: points so far (V).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from core import files
from core.options import build, one_line, option
from core.randomness import host_generator
from core.statistics import student_interval

STARTS = ("cold", "warm", "ideal")


@dataclass(frozen=True)
class Settings:
    """Defaults are the notebook's (V), but for the generator of random numbers."""

    seeds: tuple[int, ...] = option(tuple(range(10)), low=0)
    experiments: int = option(50, low=1)
    points: int = option(1_000, low=1, help="that every experiment adds, of all classes together")
    classes: int = option(2, low=1)
    features: int = option(50, low=1, help="of each class")
    most: float = option(0.2, above=0, high=1, help="the greatest probability of a feature")
    gamma: int = option(50, low=1, help="points that a feature must stand in to be learned")
    tau: int = option(3, low=1, help="learned features that classify a point well")
    test: int = option(10_000, low=1, help="test points, of all classes together")
    out: str = option("", help="a CSV to write")

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < max(2, len(self.seeds)):
            raise ValueError(f"seeds: {list(self.seeds)} given; expected at least two, and each once")
        for name in ("points", "test"):
            if getattr(self, name) % self.classes:
                raise ValueError(f"{name}: {getattr(self, name)} given; expected a multiple of classes={self.classes}")


class Row(NamedTuple):
    """What one experiment of one seed shows."""

    arm: str
    seed: int
    step: int  # the experiment, from 1
    accuracy: float
    features: int
    time: int
    memorised: int


def hits(points: np.ndarray, learned: np.ndarray) -> np.ndarray:
    """How many learned features each point has. [classes, n, features], [classes, features] bool -> [classes, n]"""
    return (points & learned[:, None]).sum(-1)


def train(
    points: np.ndarray, learned: np.ndarray, memorised: np.ndarray, tau: int, gamma: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Learn what is frequent, memorise the rest.

    points [classes, n, features], learned [classes, features], memorised [classes, n], all bool; none is changed.
    -> learned, memorised, points with a gradient at the start
    """
    learned, known = learned.copy(), hits(points, learned)
    gradient = ~memorised & (known < tau)
    time = int(gradient.sum())
    counts = (points & gradient[..., None]).sum(1)
    while True:
        candidates = np.where(learned, -1, counts)
        best, feature = np.unravel_index(candidates.argmax(), candidates.shape)
        if candidates[best, feature] < gamma:
            return learned, memorised | gradient, time
        learned[best, feature] = True
        known[best] += points[best, :, feature]
        classified = gradient[best] & (known[best] >= tau)
        counts[best] -= points[best, classified].sum(0)
        gradient[best] &= ~classified


def follow(start: str, chunks: list[np.ndarray], tau: int, gamma: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """What `train` gives in each experiment from one of STARTS. chunks: each [classes, points of a class, features]."""
    classes, _, features = chunks[0].shape
    arrived = np.zeros((classes, 0, features), bool)
    learned, memorised = np.zeros((classes, features), bool), np.zeros((classes, 0), bool)
    for chunk in chunks:
        arrived = np.concatenate([arrived, chunk], 1)
        memorised = np.concatenate([memorised, np.zeros(chunk.shape[:2], bool)], 1)
        if start == "cold":
            learned = np.zeros_like(learned)
        if start != "warm":
            memorised = np.zeros_like(memorised)
        learned, memorised, time = train(arrived, learned, memorised, tau, gamma)
        yield learned, memorised, time


def simulate(seed: int, s: Settings) -> Iterator[Row]:
    """Every start on the same data. More experiments of the same seed begin with the same ones."""

    def draw(name: str, count: int, *counters: int) -> np.ndarray:
        generator = host_generator(seed, f"feature_noise/{name}", *counters)
        return generator.random((s.classes, count // s.classes, s.features)) < probability[:, None]

    generator = host_generator(seed, "feature_noise/probability")
    probability = np.sort(generator.uniform(0, s.most, (s.classes, s.features)))[:, ::-1]
    chunks, test = [draw("points", s.points, i) for i in range(s.experiments)], draw("test", s.test)
    for start in STARTS:
        for i, (learned, memorised, time) in enumerate(follow(start, chunks, s.tau, s.gamma)):
            right = float((hits(test, learned) >= s.tau).mean())
            accuracy = right + (1 - right) / s.classes
            yield Row(start, seed, i + 1, accuracy, int(learned.sum()), time, int(memorised.sum()))


def table(rows: list[Row]) -> str:
    """Means over seeds at the last experiment with their 95 % Student intervals, and differences within seeds."""
    last, names = max(row.step for row in rows), Row._fields[3:]
    found = {start: np.array([row[3:] for row in rows if row.arm == start and row.step == last]) for start in STARTS}
    found |= {f"{start} - cold": found[start] - found["cold"] for start in ("warm", "ideal")}
    lines = [f"| start | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for name, values in found.items():
        texts = ["{:,.4f} [{:,.4f}, {:,.4f}]"] + ["{:,.0f} [{:,.0f}, {:,.0f}]"] * (len(names) - 1)
        cells = [text.format(x.mean(), *student_interval(x)) for text, x in zip(texts, values.T, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """OPTION=VALUE ... -> exit code; 2, after one line, for a mistake in it"""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        s = build(Settings, {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in argv)})
        rows = [row for seed in s.seeds for row in simulate(seed, s)]
        if s.out:
            lines = [Row._fields, *([*row[:3], f"{row.accuracy:.6g}", *row[4:]] for row in rows)]
            files.write(Path(s.out), "".join(",".join(map(str, line)) + "\n" for line in lines))
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    print(f"after {s.experiments} experiments, mean over {len(s.seeds)} seeds [95 % interval]\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
