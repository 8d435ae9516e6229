"""Tiny-ImageNet: 200 classes of 64 x 64 photographs in folders, as its archive unpacks. The validation set is the test
set: the labels of the test images were never published."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core import files


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Classes are numbered in the order of wnids.txt."""
    with files.reading(folder / "wnids.txt"):
        number = {wnid: i for i, wnid in enumerate((folder / "wnids.txt").read_text().split())}
    train = [
        (path, label) for wnid, label in number.items() for path in sorted((folder / "train" / wnid).glob("images/*"))
    ]
    annotations = folder / "val" / "val_annotations.txt"
    with files.reading(annotations):
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
        test = [(folder / "val" / "images" / name, number[wnid]) for name, wnid in rows]
    if not train or not test:
        raise ValueError(f"env.folder: {folder} holds no images in train/ or val/")
    return *_images(train), *_images(test)


def _images(listed: list[tuple[Path, int]]) -> tuple[np.ndarray, np.ndarray]:
    """-> [N, 3, 64, 64] red, green, blue; [N]"""
    import cv2  # slow to import

    images = []
    for path, _ in listed:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f"env.folder: {path} is no image")
        images.append(image[:, :, ::-1].transpose(2, 0, 1))
    return np.stack(images), np.array([label for _, label in listed], np.int64)
