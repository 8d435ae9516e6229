"""Fetch a data set: training itself never touches the network.

python -m images fetch mnist to=data/mnist    12 MB; then train with env.data=mnist env.folder=data/mnist
python -m images fetch cifar10 to=FOLDER      170 MB
python -m images fetch cifar100 to=FOLDER     169 MB
python -m images fetch svhn to=FOLDER         246 MB
python -m images fetch tiny_imagenet to=FOLDER    248 MB

The same command again goes on where it broke off; a folder that is whole is read, and left as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from core.options import nearest
from images.fetch import fetch
from images.sources import SOURCES


def main(argv: list[str]) -> int:
    """fetch NAME to=FOLDER. -> exit code; 2, after one line, for whatever is wrong"""
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    try:
        if len(argv) != 3 or argv[0] != "fetch" or not argv[2].removeprefix("to=") or not argv[2].startswith("to="):
            raise ValueError("expected python -m images fetch NAME to=FOLDER")
        _, name, to = argv
        if name not in SOURCES:
            raise ValueError(f"{name}: nothing to fetch; {nearest(name, SOURCES)}")
        folder = Path(to.removeprefix("to="))
        train, test = fetch(name, folder)
        print(f"{folder}: {train:,} images for training, {test:,} for testing")
        return 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
