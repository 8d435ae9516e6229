"""Street View House Numbers, format 2: MATLAB files of 32 x 32 crops. The digit 0 has label 10 there."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (*_mat(folder / "train_32x32.mat"), *_mat(folder / "test_32x32.mat"))


def _mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat  # slow to import

    if not path.exists():
        raise FileNotFoundError(2, "No such file", str(path))
    try:
        found = loadmat(path)
        images, labels = found["X"], found["y"]  # [32, 32, 3, N], [N, 1]
    except Exception as error:  # whatever a damaged file makes of SciPy's reader
        raise ValueError(f"env.folder: {path} is no file of SVHN's format 2, or damaged ({error})") from error
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.ravel().astype(np.int64) % 10
