"""MNIST's idx files, plain or compressed."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

IMAGES, LABELS = 0x0803, 0x0801  # the files' first four bytes


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    train, test = (_idx(folder / f"{split}-images-idx3-ubyte", IMAGES)[:, None] for split in ("train", "t10k"))
    labels, test_labels = (_idx(folder / f"{split}-labels-idx1-ubyte", LABELS) for split in ("train", "t10k"))
    return train, labels.astype(np.int64), test, test_labels.astype(np.int64)


def _idx(path: Path, kind: int) -> np.ndarray:
    """An array of bytes: its kind, its shape, its contents, all big-endian."""
    packed = path.with_name(path.name + ".gz")
    try:
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"env.folder: {packed} is damaged ({error})") from error
    axes = kind & 0xFF
    size = 4 + 4 * axes
    if len(content) < size or struct.unpack(">I", content[:4])[0] != kind:
        raise ValueError(f"env.folder: {path} is no idx file of {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:size])
    if len(content) - size != np.prod(shape):
        raise ValueError(f"env.folder: {path} holds {len(content) - size} bytes; expected {np.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=size).reshape(shape)
