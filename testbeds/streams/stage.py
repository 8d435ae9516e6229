"""What a learner sees between two changes of the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from core.options import option
from core.randomness import host_generator
from images import Images, load

Score = Literal["online", "train", "test"]


class Stage(NamedTuple):
    """Data of one seed. Inputs are uint8 [N, C, H, W] for images, else float32 [N, d]."""

    inputs: np.ndarray
    targets: np.ndarray  # [N] int64 labels, or float32 numbers
    test_inputs: np.ndarray
    test_targets: np.ndarray
    arrived: tuple[int, ...] = ()  # how many of the inputs came with each chunk, in order; () if they come otherwise


@dataclass(frozen=True)
class Stream:
    """Settings that all streams share. A subclass says what a stage is."""

    stage: int = option(500, low=1, help="updates per stage; the run is as many stages as `steps` holds")
    until: float = option(0.0, low=0, high=1, help="a seed rests once an epoch's accuracy is this high; 0: never")
    score: Score = option("test", help="what is reported: mean accuracy while learning, or on which data at the end")

    classes = 0  # 0: targets are numbers

    def at(self, seed: int, index: int) -> Stage:
        """Stage `index` for this seed."""
        raise NotImplementedError

    def length(self, index: int) -> int:
        """Updates of stage `index`, at most `stage`: then all seeds rest until its end."""
        return self.stage


@dataclass(frozen=True)
class OfImages(Stream):
    """Streams over a labelled data set."""

    data: str = option("digits", help="digits | mnist | cifar10 | cifar100 | svhn | tiny_imagenet")
    folder: str = option("", help="where its files are; digits need none")
    images: int = option(0, low=0, help="training images, drawn once per seed; 0: all")

    @property
    def found(self) -> Images:
        return load(self.data, self.folder)

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.found.classes

    def training(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """This seed's training images and their labels, in an order of its own."""
        images = self.found
        if self.images > len(images.train):
            raise ValueError(f"env.images: {self.images} given; {self.data} has {len(images.train)}")
        rows = host_generator(seed, "testbed/rows").permutation(len(images.train))[: self.images or None]
        return images.train[rows], images.labels[rows]


def relabelled(labels: np.ndarray, share: float, classes: int, generator: np.random.Generator) -> np.ndarray:
    """A share of the labels replaced by another class, drawn uniformly from the others."""
    wrong = generator.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return changed
