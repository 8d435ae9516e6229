"""Handwritten digits of 8 x 8 pixels (UCI, in scikit-learn). Four fifths, drawn once and for all, are for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TRAIN = 1_437


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The folder is not looked at."""
    from sklearn.datasets import load_digits  # slow to import

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]  # 0 to 16 -> 0 to 255
    labels = found.target.astype(np.int64)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(labels))
    images, labels = images[order], labels[order]
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]
