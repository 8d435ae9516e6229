"""A replay memory of plain numbers: what checkpoints ask of one, and no more."""

from __future__ import annotations

import hashlib
from pathlib import Path

from core import files

CHUNK = 4


class FakeReplay:
    """A ring of numbers below 256; chunks of four go into files of their own, what is left over into the metadata."""

    def __init__(self, capacity: int = 1_000) -> None:
        self.capacity, self.added, self.held = capacity, 0, list[int]()

    def add(self, number: int) -> None:
        self.added += 1
        self.held = [*self.held, number][-self.capacity :]

    def save(self, folder: Path) -> dict:
        oldest = self.added - len(self.held)
        start = min(-(-oldest // CHUNK) * CHUNK, self.added)
        chunks = range(start, self.added - CHUNK + 1, CHUNK)
        listed = []
        for at in chunks:
            name, content = f"replay-{at:06d}", bytes(self.held[at - oldest :][:CHUNK])
            if not (folder / name).exists():
                files.write(folder / name, content)
            listed.append({"file": name, "sha256": hashlib.sha256(content).hexdigest()})
        end = start + CHUNK * len(chunks)
        left_over = [self.held[: start - oldest], self.held[end - oldest :]]
        return {"added": self.added, "left_over": left_over, "files": listed}

    def load(self, folder: Path, saved: dict) -> None:
        head, tail = saved["left_over"]
        middle = b"".join((folder / chunk["file"]).read_bytes() for chunk in saved["files"])
        self.added, self.held = saved["added"], [*head, *middle, *tail]

    def digest(self) -> str:
        return hashlib.sha256(bytes(self.held)).hexdigest()
