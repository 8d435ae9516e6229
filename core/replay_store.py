"""The replay's slots on disk: append-only compressed chunks, so that a checkpoint writes only what is new.

A chunk covers CHUNK slots of one member, counted from slot 0, and is written once when it is complete. Until then each
save writes the part there is under a new name; so no file that an older checkpoint lists is ever changed, and `prune`
removes what is not needed once the new checkpoint stands. Both checkpoints of a run share most files: each save reads
some of them again, in turn, and one that has been damaged since is written anew from what is in memory.

A file is the zstd frame of the fields' bytes, one field after the other in the order of `Ring.read`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import zstandard

from core import files
from core.replay_ring import Ring

CHUNK = 1_000
LOOKED_AT = 16  # known files that a save reads again
PREFIX = "replay-"


class Replay(Protocol):
    """What saving asks of a replay memory.

    save(folder) writes the chunks that are not yet there. -> plain data and tensors; "files" lists all chunks it needs,
    each with its name as "file" and its "sha256". digest() is the sha256 of what it holds, however that is cut.
    """

    def save(self, folder: Path) -> dict: ...

    def digest(self) -> str: ...


def save_chunks(ring: Ring, folder: Path, known: list[dict], unread: list[str]) -> list[dict]:
    """Write every live slot that no `known` file holds. -> the files that hold the ring now, in order.

    A file is {"file", "sha256", "member", "first", "last"}; slots first to last inclusive. unread: names of files, the
    longest unread first; of the known ones the first are read again, and go to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    due = _due(known, unread)
    present = {
        (file["member"], file["last"]): file
        for file in known
        if (_whole(folder, file) if file["file"] in due else (folder / file["file"]).exists())
    }
    chunks = []
    for member in range(ring.members):
        for first, last in ring.pieces(member, CHUNK):
            chunks.append(present.get((member, last)) or _write(ring, folder, member, first, last))
    return chunks


def load_chunks(ring: Ring, folder: Path, chunks: list[dict]) -> None:
    """Fill the ring, whose counts are set already. Raises ValueError naming a file that is missing or damaged."""
    for file in chunks:
        path = folder / file["file"]
        if not path.exists():
            raise ValueError(f"{path} is missing; put it back, or remove this checkpoint to go on from an older one")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise ValueError(f"{path} is damaged (sha256 differs); remove this checkpoint to go on from an older one")
        try:
            ring.restore(file["member"], file["first"], _unpack(ring, data, file["last"] - file["first"] + 1))
        except (zstandard.ZstdError, ValueError) as error:
            raise ValueError(f"{path} is no chunk of this replay; remove this checkpoint") from error


def prune(folder: Path, keep: set[str]) -> None:
    """Remove the replay's files in `folder`, temporary ones too, whose names are not in `keep`.

    To be called once the checkpoint that needs `keep` is published; a crash before leaves the older one whole.
    """
    for pattern in (f"{PREFIX}*", f".{PREFIX}*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in keep:
                path.unlink()


def _due(known: list[dict], unread: list[str]) -> set[str]:
    """The names whose turn it is; `unread` is brought up to date."""
    names = dict.fromkeys(file["file"] for file in known)
    waiting = list(dict.fromkeys(name for name in [*unread, *names] if name in names))  # new ones last
    unread[:] = waiting[LOOKED_AT:] + waiting[:LOOKED_AT]
    return set(waiting[:LOOKED_AT])


def _whole(folder: Path, file: dict) -> bool:
    """Whether a file is as it was written; a line where it is not."""
    path = folder / file["file"]
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]:
            return True
        found = "had been damaged"
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
    print(f"{path} {found}; it is written again", file=sys.stderr)
    return False


def _write(ring: Ring, folder: Path, member: int, first: int, last: int) -> dict:
    fields = ring.read(member, first, last)
    data = zstandard.ZstdCompressor(level=1).compress(b"".join(values.tobytes() for values in fields.values()))
    name = f"{PREFIX}{member}-{first // CHUNK:06d}-{first}-{last}.zst"
    files.write(folder / name, data)
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "member": member, "first": first, "last": last}


def _unpack(ring: Ring, data: bytes, slots: int) -> dict[str, np.ndarray]:
    samples = ring.read(0, 0, 0)  # one slot, for the shapes
    if zstandard.frame_content_size(data) != slots * sum(sample.nbytes for sample in samples.values()):
        raise ValueError("another size")
    raw, at, fields = zstandard.ZstdDecompressor().decompress(data), 0, {}
    for name, sample in samples.items():
        size = slots * sample.nbytes
        fields[name] = np.frombuffer(raw, sample.dtype, size // sample.itemsize, at).reshape(slots, *sample.shape[1:])
        at += size
    return fields
