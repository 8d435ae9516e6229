"""Labelled images, as their makers split them. Digits ship with scikit-learn; the others lie in a folder of one's own,
where `python -m images fetch NAME to=FOLDER` puts them.

load("digits")                        1,797 images of 8 x 8, from scikit-learn: nothing to download
load("mnist", "~/data/mnist")         the four idx files, plain or .gz
load("cifar10", "~/data/cifar10")     the binary version's data_batch_*.bin and test_batch.bin
load("cifar100", "~/data/cifar100")   the binary version's train.bin and test.bin
load("svhn", "~/data/svhn")           train_32x32.mat and test_32x32.mat
load("tiny_imagenet", "~/data/tiny")  wnids.txt, train/, val/
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import files
from core.options import nearest
from images import cifar, digits, mnist, svhn, tiny_imagenet


class Images(NamedTuple):
    """A data set. Images are uint8 [N, channels, height, width]."""

    train: np.ndarray
    labels: np.ndarray  # [N] int64
    test: np.ndarray
    test_labels: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
SETS: dict[str, Callable[[Path], Arrays]] = {
    "digits": digits.read,
    "mnist": mnist.read,
    "cifar10": cifar.read_10,
    "cifar100": cifar.read_100,
    "svhn": svhn.read,
    "tiny_imagenet": tiny_imagenet.read,
}


@functools.cache
def load(name: str, folder: str = "") -> Images:
    """Raises ValueError, one line, for a name or files that are not there, or files of another format."""
    if name not in SETS:
        raise ValueError(f"env.data: {name} given; {nearest(name, SETS)}")
    if name != "digits" and not folder:
        raise ValueError(
            f"env.folder: none given; expected where the files of {name} are, as in env.folder=data/{name}; "
            f"python -m images fetch {name} to=data/{name} puts them there"
        )
    try:
        return Images(*SETS[name](Path(folder).expanduser()))
    except files.Damaged as error:
        raise ValueError(f"env.folder: {error}") from error
    except OSError as error:
        raise ValueError(
            f"env.folder: {error.filename} is not there; python -m images fetch {name} to={folder} fetches it"
        ) from error
