"""Data sets in the formats their makers publish."""

from __future__ import annotations

import gzip
import struct

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from images import load
from images.digits import TRAIN

rng = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, packed: bool):
    parts = {}
    for split, count in (("train", 5), ("t10k", 3)):
        parts[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[f"{split}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8)
    for name, array in parts.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return list(parts.values())


def test_digits_come_with_a_dependency():
    found = load("digits")
    assert found.train.shape == (TRAIN, 1, 8, 8) and found.test.shape == (1_797 - TRAIN, 1, 8, 8)
    assert found.train.dtype == np.uint8 and found.train.max() == 255 and found.classes == 10
    counts = np.bincount(np.concatenate([found.labels, found.test_labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as UCI counts them


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_its_idx_files(tmp_path, packed):
    images, labels, test, _ = write_mnist(tmp_path, packed)
    found = load("mnist", str(tmp_path))
    assert (found.train[:, 0] == images).all() and (found.test[:, 0] == test).all()
    assert found.labels.tolist() == labels.tolist() and found.labels.dtype == np.int64


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_is_read_from_its_binary_version(tmp_path, name, label_bytes):
    rows = rng.integers(0, 10, (4, label_bytes + 3_072), dtype=np.uint8)
    names = ["train.bin", "test.bin"]
    if name == "cifar10":
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for file in names:
        (tmp_path / file).write_bytes(rows.tobytes())
    found = load(name, str(tmp_path))
    assert len(found.train) == 4 * (len(names) - 1)
    assert found.test.shape == (4, 3, 32, 32) and (found.test[2].ravel() == rows[2, label_bytes:]).all()
    assert found.test_labels.tolist() == rows[:, label_bytes - 1].tolist()  # of two labels, the fine one


def test_svhn_is_read_from_its_matlab_files_and_ten_is_the_digit_zero(tmp_path):
    images = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[1], [10], [9], [10]])})
    found = load("svhn", str(tmp_path))
    assert found.labels.tolist() == [1, 0, 9, 0]
    assert (found.train[3, 2] == images[:, :, 2, 3]).all()


@pytest.mark.parametrize("cut", [130, 2_000, -50])
def test_a_damaged_matlab_file_is_told(tmp_path, cut):
    images = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images, "y": np.full((4, 1), 10)}, do_compression=True)
    whole = path.read_bytes()
    for content in (whole[:cut], whole[:cut] + bytes([whole[cut] ^ 255]) + whole[cut + 1 :]):
        path.write_bytes(content)
        load.cache_clear()
        with pytest.raises(ValueError, match="test_32x32.mat is no file of SVHN's format 2, or damaged"):
            load("svhn", str(tmp_path))


def write_tiny_imagenet(folder):
    """Two classes; every picture is a colour, red channel first."""
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "val" / "images").mkdir(parents=True)
    for label, wnid in enumerate(("n02", "n01")):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for k in range(3):
            colour = np.full((64, 64, 3), (10 * k, 100, 200 - 100 * label), np.uint8)  # blue, green, red
            cv2.imwrite(str(folder / "train" / wnid / "images" / f"{wnid}_{k}.JPEG"), colour)
    cv2.imwrite(str(folder / "val" / "images" / "val_0.JPEG"), np.full((64, 64, 3), 50, np.uint8))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t62\t62\n")


def test_tiny_imagenet_is_read_from_its_folders_and_its_validation_set_is_the_test_set(tmp_path):
    write_tiny_imagenet(tmp_path)
    found = load("tiny_imagenet", str(tmp_path))
    assert found.train.shape == (6, 3, 64, 64) and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test_labels.tolist() == [1] and abs(int(found.test[0, 0, 5, 5]) - 50) < 4
    means = found.train.mean((2, 3))
    assert np.abs(means[1] - [200, 100, 10]).max() < 4 and np.abs(means[5] - [100, 100, 20]).max() < 4
    (tmp_path / "train" / "n01" / "images" / "n01_1.JPEG").write_bytes(b"nothing")
    load.cache_clear()
    with pytest.raises(ValueError, match="n01_1.JPEG is no image"):
        load("tiny_imagenet", str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_what_is_missing_damaged_or_misspelt_is_one_line(tmp_path, name):
    with pytest.raises(ValueError, match=f"env.folder: none given; expected where the files of {name} are"):
        load(name)
    with pytest.raises(
        ValueError, match=f"env.folder: .* is not there; python -m images fetch {name} to={tmp_path} fetches it"
    ):
        load(name, str(tmp_path))
    files = {
        "mnist": [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")],
        "cifar10": [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"],
        "cifar100": ["train.bin", "test.bin"],
        "svhn": ["train_32x32.mat", "test_32x32.mat"],
    }[name]
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"no such format")
    with pytest.raises(ValueError, match="env.folder: .* (is no|holds) .*"):
        load(name, str(folder))


def test_a_truncated_idx_file_is_told(tmp_path):
    write_mnist(tmp_path, packed=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"holds 2351 bytes; expected 2352"):
        load("mnist", str(tmp_path))


def test_a_download_that_broke_off_is_told(tmp_path):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    for content in (path.read_bytes()[:-9], b"<html>not found</html>"):
        path.write_bytes(content)
        load.cache_clear()
        with pytest.raises(ValueError, match="train-labels-idx1-ubyte.gz is damaged"):
            load("mnist", str(tmp_path))


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ValueError, match="env.data: cifar given; did you mean cifar10?"):
        load("cifar")
