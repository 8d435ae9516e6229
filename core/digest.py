"""One hash for a tree of tensors and plain data, whatever its layout in files or in memory."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch
from torch import Tensor


def digest(tree: Any) -> str:
    """sha256 of nested dicts, lists, tuples, tensors and plain values.

    Dicts count by sorted key, lists and tuples alike, tensors by dtype, shape and bytes on any device, floats by their
    bits (so -0.0 differs from 0.0, and nan equals itself). Raises TypeError for anything else.
    """
    found = hashlib.sha256()
    _feed(found, tree)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    """Every value goes in with its kind and its length first, so that no two trees give the same bytes."""

    def feed(kind: str, length: int, content: Any = b"") -> None:
        found.update(f"{kind}:{length}:".encode())
        found.update(content)

    if isinstance(value, dict):
        feed("dict", len(value))
        for name in sorted(value, key=lambda name: (type(name).__name__, name)):
            _feed(found, name)
            _feed(found, value[name])
    elif isinstance(value, list | tuple):
        feed("list", len(value))
        for element in value:
            _feed(found, element)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        feed(f"tensor {value.dtype} {list(value.shape)}", flat.nbytes, flat.view(torch.uint8).numpy())
    elif value is None or isinstance(value, bool | int | str | bytes):
        content = value if isinstance(value, bytes) else str(value).encode()
        feed(type(value).__name__, len(content), content)
    elif isinstance(value, float):
        feed("float", 8, struct.pack("<d", value))
    else:
        raise TypeError(f"{type(value).__name__} has no digest; expected tensors and plain data")
