"""What may happen to a file: bytes are lost, flipped or made up, a tree loses or gains branches, a pickle bites, and a
manifest vouches for all of it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from core import checkpoint

FUZZ: dict[str, Any] = {  # the same examples every time, and none made smaller: one of them can take a second
    "derandomize": True,
    "database": None,
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
WRONG = [None, True, 0, -1, 3, 1.5, 1e300, float("nan"), 10**30, 10**400, "", "x", "é", [], [1], [[]], {}, {"a": 1}]
KEYS = ["x", 1, True, None, 1.5, "kind", "name"]


class Bomb:
    """A pickle that runs a command where somebody loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def bomb(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def sign(path: Path) -> None:
    """Make the manifest of a checkpoint say that all its files are as they were written."""
    run, manifest = path.parents[1], json.loads((path / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (run / entry["path"]).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(path, manifest)
    assert not list(checkpoint.problems(path))


def write_manifest(path: Path, manifest: Any) -> None:
    """As `checkpoint.save` writes it: one in other words is refused before anything in it is looked at."""
    text = checkpoint._text(manifest) if isinstance(manifest, dict) else json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(text)


def refused(call: Callable, *arguments: Any, naming: str = "") -> bool:
    """Whether the call is refused: by a ValueError or OSError of one line that can be printed, and matches
    `naming`.

    Any other exception goes through.
    """
    try:
        call(*arguments)
    except (ValueError, OSError) as error:
        line = str(error)
        assert line and line.isprintable() and re.search(naming, line), f"{type(error).__name__}: {line!r}"
        return True
    return False


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content, cut off, with bytes changed, put in or left out, or something else altogether."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    how = draw(st.integers(0, 5))
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    if how == 2:
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    if how == 3:
        return content[:at] + content[at + draw(st.integers(1, 40)) :]
    if how == 4:
        return content[:at] * 2 + content[at:]
    return draw(st.binary(max_size=40))


@st.composite
def spoilt_trees(draw: st.DrawFn, tree: Any, more: Sequence[Any] = ()) -> Any:
    """A tree of dicts and lists with one or two entries left out, doubled, renamed, moved, or of another type."""
    tree, wrong = copy.deepcopy(tree), st.sampled_from([*WRONG, *more])
    for _ in range(draw(st.integers(1, 2))):
        *above, last = draw(st.sampled_from([*places(tree)] or [()])) or (None,)
        if last is None:
            return draw(wrong)
        node = tree
        for key in above:
            node = node[key]
        how = draw(st.integers(0, 4))
        if how == 0:
            del node[last]
        elif how == 1 and isinstance(node, list):
            node.insert(0, copy.deepcopy(node[last]))
        elif how == 1:
            node[draw(st.sampled_from([*KEYS, f"{last}s"]))] = copy.deepcopy(node[last])
        elif how == 2:
            node[last] = [node[last]]
        elif how == 3:
            node[last] = {str(last): node[last]}
        else:
            node[last] = draw(wrong)
    return tree


def places(tree: Any, above: tuple = ()) -> Iterator[tuple]:
    """The way to every entry of a tree."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in entries:
        yield (*above, key)
        yield from places(inner, (*above, key))
