"""CIFAR-10 and CIFAR-100 in their binary version: records of one or two label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PIXELS = 3 * 32 * 32


def read_10(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        *_records([folder / f"data_batch_{i}.bin" for i in range(1, 6)], 1),
        *_records([folder / "test_batch.bin"], 1),
    )


def read_100(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """With the hundred fine labels."""
    return (*_records([folder / "train.bin"], 2), *_records([folder / "test.bin"], 2))


def _records(paths: list[Path], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """-> images [N, 3, 32, 32], the last label byte of each [N]"""
    content = b"".join(path.read_bytes() for path in paths)
    size = label_bytes + PIXELS
    if not content or len(content) % size:
        raise ValueError(f"env.folder: {paths[0]} holds no records of {size} bytes")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)
