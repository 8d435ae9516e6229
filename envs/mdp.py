"""Image classification as a decision problem: states are classes, seen as random images of them; actions name a class.

    mdp/true_label      reward 1 for the image's class; the next state is drawn uniformly
    mdp/random_label    reward 1 for a label that was drawn for the image once and for all; else the same
    mdp/sparse          the class of the image leads to the next class, any other action back to class 0; reward 1 for
                        the right action in the last class

A bridge from labels to temporal differences: the first is supervised learning in a DQN's clothes, the second must be
known by heart, and what changes with the discount is the mean of the targets alone.

Source: Lyle et al. 2023, "Understanding plasticity in neural networks" (secondary: the table of what is rewarded); that
states follow each other uniformly, and an episode's length, is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.options import option
from core.randomness import host_generator
from core.spec import EnvSpec, Transition
from images import load


@dataclass(frozen=True)
class Settings:
    """Options of an image classification MDP."""

    data: str = option("digits", help="digits | mnist | cifar10 | cifar100 | svhn | tiny_imagenet")
    folder: str = option("", help="where its files are; digits need none")
    steps: int = option(100, low=1, help="agent steps per episode; it is truncated then")


class MDP:
    """One variant. Observations are float32 vectors of pixels in [0, 1]; truncated after `steps`."""

    def __init__(self, kind: str, settings: Settings) -> None:
        self._kind, self._settings = kind, settings
        found = load(settings.data, settings.folder)
        self._images = found.train.reshape(len(found.train), -1)
        self._classes = found.classes
        self._of_class = [np.flatnonzero(found.labels == c) for c in range(found.classes)]
        drawn = host_generator(0, "mdp/labels").integers(0, found.classes, len(found.labels))
        self._answers = drawn if kind == "random_label" else found.labels
        self.spec = EnvSpec(f"mdp/{kind}", self._images.shape[1:], "float32", num_actions=found.classes)

    def reset(self, seed: int) -> np.ndarray:
        self._random = np.random.default_rng(seed)
        self._steps = 0
        return self._see(0 if self._kind == "sparse" else int(self._random.integers(self._classes)))

    def step(self, action: np.ndarray) -> Transition:
        right = int(action) == self._answers[self._image]
        last = self._state == self._classes - 1
        self._steps += 1
        if self._kind == "sparse":
            reward = float(right and last)
            state = (self._state + 1) % self._classes if right else 0
        else:
            reward, state = float(right), int(self._random.integers(self._classes))
        return Transition(self._see(state), reward, False, self._steps == self._settings.steps)

    def close(self) -> None: ...

    def _see(self, state: int) -> np.ndarray:
        """A random image of the class."""
        self._state = state
        self._image = int(self._random.choice(self._of_class[self._state]))
        return (self._images[self._image] / 255.0).astype(np.float32)
