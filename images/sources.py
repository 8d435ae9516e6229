"""Where the files of the data sets come from, and the digests by which they are known.

Addresses, sizes and SHA-256 of MNIST, CIFAR and SVHN are those that TensorFlow Datasets pins (url_checksums/mnist.txt,
cifar10.txt, cifar100.txt, svhn_cropped.txt); MNIST's mirrors are torchvision's (datasets/mnist.py) and theirs.
Tiny-ImageNet's page names no digest: this one is pinned by several public projects that share nothing else.
"""

from __future__ import annotations

from typing import NamedTuple


class File(NamedTuple):
    """One download."""

    urls: tuple[str, ...]  # of the same file, tried in turn
    size: int  # bytes
    sha256: str

    @property
    def name(self) -> str:
        return self.urls[0].rpartition("/")[2]


class Source(NamedTuple):
    """The files of one data set, or the one archive that holds them."""

    files: tuple[File, ...]
    images: tuple[int, int]  # for training, for testing
    inside: str = ""  # the folder of the archive that is wanted; empty: the files are no archives


def _mnist(name: str, size: int, sha256: str) -> File:
    homes = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
    return File(tuple(f"{home}/{name}" for home in homes), size, sha256)


def _file(url: str, size: int, sha256: str) -> File:
    return File((url,), size, sha256)


CIFAR, SVHN = "https://www.cs.toronto.edu/~kriz", "http://ufldl.stanford.edu/housenumbers"
TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
# fmt: off
SOURCES = {
    "mnist": Source((
        _mnist("train-images-idx3-ubyte.gz", 9_912_422,
               "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        _mnist("train-labels-idx1-ubyte.gz", 28_881,
               "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        _mnist("t10k-images-idx3-ubyte.gz", 1_648_877,
               "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        _mnist("t10k-labels-idx1-ubyte.gz", 4_542,
               "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ), (60_000, 10_000)),
    "cifar10": Source((
        _file(f"{CIFAR}/cifar-10-binary.tar.gz", 170_052_171,
              "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ), (50_000, 10_000), "cifar-10-batches-bin"),
    "cifar100": Source((
        _file(f"{CIFAR}/cifar-100-binary.tar.gz", 168_513_733,
              "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    ), (50_000, 10_000), "cifar-100-binary"),
    "svhn": Source((
        _file(f"{SVHN}/train_32x32.mat", 182_040_794,
              "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        _file(f"{SVHN}/test_32x32.mat", 64_275_384,
              "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    ), (73_257, 26_032)),
    "tiny_imagenet": Source((
        _file(TINY, 248_100_043,
              "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"),
    ), (100_000, 10_000), "tiny-imagenet-200"),
}
# fmt: on
