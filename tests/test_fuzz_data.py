"""Data from elsewhere, damaged or malicious: read, or refused in one line that names the file; never executed."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spoilers import FUZZ, Bomb, bomb, refused, spoilt_bytes

import images
from core.offline import FIELDS, OfflineData
from core.spec import EnvSpec

SPEC = EnvSpec("toy/x", (2,), "float32", action_dim=1)
DISCRETE = EnvSpec("toy/x", (2,), "float32", num_actions=3)
GOOD = {
    "observations": np.zeros((5, 2), np.float32),
    "actions": np.zeros((5, 1), np.float32),
    "rewards": np.zeros(5),
    "next_observations": np.zeros((5, 2), np.float32),
    "terminals": np.zeros(5, bool),
    "ends": np.zeros(5, bool),
}
KINDS = [
    bool,
    np.int8,
    np.uint64,
    np.float16,
    np.float64,
    np.complex64,
    "U3",
    "S3",
    "M8[s]",
    "m8[s]",
    object,
    "V4",
    "f4,i4",
]


def archive(**changed) -> bytes:
    content = io.BytesIO()
    np.savez(content, **(GOOD | changed))
    return content.getvalue()


def read_offline(content: bytes) -> None:
    """By a learner of torques and by one of choices; what they take can be sampled, and is finite."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "data.npz"
        path.write_bytes(content)
        for spec in (SPEC, DISCRETE):
            if not refused(OfflineData, str(path), spec, [0], naming="data.npz"):
                batch = OfflineData(str(path), spec, [0]).sample(4, 0, 3)
                assert all(torch.isfinite(values).all() for values in batch.values())


@settings(max_examples=200, **FUZZ)
@given(spoilt_bytes(archive()))
def test_a_damaged_npz_is_read_or_refused(content):
    read_offline(content)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_an_array_of_another_kind_is_read_or_refused(name, kind):
    read_offline(archive(**{name: np.zeros(GOOD[name].shape, kind)}))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (5, 0), (5, 2, 1), (1,), (0, 2), (5, 3)], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_an_array_of_another_shape_is_read_or_refused(name, shape):
    read_offline(archive(**{name: np.zeros(shape)}))
    read_offline(archive(**dict.fromkeys(FIELDS, np.zeros(shape))))


@pytest.mark.parametrize("name", FIELDS)
def test_numbers_beyond_their_kind_are_refused(name):
    for number in (np.nan, np.inf, 1e300, -1e300, 2.5, -1):
        read_offline(archive(**{name: np.full(GOOD[name].shape, number)}))


@pytest.mark.parametrize("name", FIELDS)
def test_a_pickle_in_an_array_runs_nothing(name, tmp_path):
    marker = tmp_path / "MARKER"
    array = np.empty(GOOD[name].shape, object)
    array[:] = Bomb(marker)
    for content in (archive(**{name: array}), bomb(marker)):
        (tmp_path / "data.npz").write_bytes(content)
        assert refused(OfflineData, str(tmp_path / "data.npz"), SPEC, [0], naming="data.npz")
    assert not marker.exists()


# labelled images

IDX = {
    "train-images-idx3-ubyte": b"\0\0\x08\x03" + b"\0\0\0\2" + b"\0\0\0\4" * 2 + bytes(32),
    "train-labels-idx1-ubyte": b"\0\0\x08\x01" + b"\0\0\0\2" + b"\1\0",
    "t10k-images-idx3-ubyte": b"\0\0\x08\x03" + b"\0\0\0\2" + b"\0\0\0\4" * 2 + bytes(32),
    "t10k-labels-idx1-ubyte": b"\0\0\x08\x01" + b"\0\0\0\2" + b"\1\0",
}
CIFAR = {f"{name}.bin": bytes(2 * 3073) for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
CIFAR_100 = {name: bytes(2 * 3074) for name in ("train.bin", "test.bin")}
TINY = {"wnids.txt": b"n1\nn2\n", "val/val_annotations.txt": b"a.JPEG\tn1\t0\t0\t1\t1\n", "val/images/a.JPEG": b"?"}
TINY |= {"train/n1/images/b.JPEG": b"?"}


def mat() -> bytes:
    from scipy.io import savemat

    content = io.BytesIO()
    savemat(content, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [10]], np.uint8)})
    return b"MATLAB 5.0 MAT-file".ljust(116) + content.getvalue()[116:]  # without the date


SETS = {"mnist": IDX, "cifar10": CIFAR, "cifar100": CIFAR_100, "tiny_imagenet": TINY}
SETS["svhn"] = dict.fromkeys(("train_32x32.mat", "test_32x32.mat"), mat())


@pytest.mark.parametrize("name", SETS)
def test_damaged_images_are_read_or_refused(name):
    @settings(max_examples=60, **FUZZ)
    @given(st.data())
    def spoil(data):
        wrong = data.draw(st.sampled_from(sorted(SETS[name])))
        with tempfile.TemporaryDirectory() as folder:
            for file, content in SETS[name].items():
                path = Path(folder, file)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data.draw(spoilt_bytes(content)) if file == wrong else content)
            refused(images.load, name, folder, naming="env.folder")
        images.load.cache_clear()

    spoil()


@pytest.mark.parametrize("name", SETS)
def test_a_pickle_among_images_runs_nothing(name, tmp_path):
    for file in SETS[name]:
        for path in (tmp_path / file, tmp_path / f"{file}.gz"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bomb(tmp_path / "MARKER"))
    assert refused(images.load, name, str(tmp_path), naming="env.folder")
    assert not (tmp_path / "MARKER").exists()
