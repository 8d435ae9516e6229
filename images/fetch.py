"""A data set into a folder, whole or not at all, in the files its makers publish.

Downloads lie aside, in .FOLDER.part, until every one has its published digest and the whole has been read as training
will read it; then the folder gets its name. What broke off goes on where it stopped, from any of a file's addresses.
"""

from __future__ import annotations

import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from core import files
from images import SETS
from images.sources import SOURCES, File

SILENCE = 60  # seconds without a byte after which a connection is given up


def fetch(name: str, folder: Path) -> tuple[int, int]:
    """Have the data set in `folder`; nothing is done if it is there. -> images for training, for testing

    Raises ValueError, one line: a download that fails or is damaged, a folder that holds something else.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and any(folder.iterdir()):
        return check(name, folder)
    source, aside = SOURCES[name], folder.with_name(f".{folder.name}.part")
    aside.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        download(file, aside / file.name)
    if source.inside:
        shutil.unpack_archive(aside / source.files[0].name, aside)
    images = check(name, aside / source.inside)
    files.move_folder(aside / source.inside, folder)
    shutil.rmtree(aside, ignore_errors=True)
    return images


def download(file: File, path: Path) -> None:
    """The whole file at `path`, or ValueError, one line: what has come so far stays, unless it is damaged."""
    problem = ""
    for url in file.urls:
        try:
            receive(url, path, file.size)
        except (OSError, HTTPException) as error:
            problem = f"{url}: {getattr(error, 'reason', error)}"
            continue
        if files.sha256(path) == file.sha256:
            return
        path.unlink()
        problem = f"{path}: is damaged as {url} sent it, and removed"
    raise ValueError(f"{problem}; the same command goes on where this one stopped")


def receive(url: str, path: Path, size: int) -> None:
    """Bytes from `url` onto the end of `path` until there are `size`. Raises OSError."""
    have = path.stat().st_size if path.exists() else 0
    if have >= size:
        return
    print(f"{url}: {size / 1e6:,.1f} MB", flush=True)
    request = Request(url, headers={"User-Agent": "evergreen"} | ({"Range": f"bytes={have}-"} if have else {}))
    with urlopen(request, timeout=SILENCE) as answer:
        goes_on = answer.status == 206  # partial content; else it begins again
        expected = size - have if goes_on else size
        if answer.length not in (None, expected):
            raise OSError(f"sends {answer.length:,} bytes; expected {expected:,}")
        with path.open("ab" if goes_on else "wb") as into:
            shutil.copyfileobj(answer, into, 1 << 20)
    if (have := path.stat().st_size) < size:
        raise OSError(f"broke off after {have:,} of {size:,} bytes")


def check(name: str, folder: Path) -> tuple[int, int]:
    """Read it as training will. -> images for training, for testing"""
    try:
        train, _, test, _ = SETS[name](folder)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix("env.folder: ")
        raise ValueError(f"{folder}: is no whole {name} ({reason}); remove it, or choose another folder") from error
    if (len(train), len(test)) != SOURCES[name].images:
        wanted = " and ".join(f"{count:,}" for count in SOURCES[name].images)
        raise ValueError(f"{folder}: holds {len(train):,} and {len(test):,} images; {name} has {wanted}")
    return len(train), len(test)
