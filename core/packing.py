"""Tensors and plain data as the bytes of a file, in a form that torch.load(weights_only=True) reads."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor


def packed(tree: dict, name: str) -> memoryview:
    """What a file of it holds. Raises TypeError, naming the entry, if something could not be loaded again."""
    content = io.BytesIO()
    torch.save(_loadable(tree, name), content)
    return content.getbuffer()


def _loadable(value: Any, name: str) -> Any:
    """The same tree, every tensor on the CPU and in storage of its own size.

    Bytes are refused too: torch.load(weights_only=True) does not read b"" (seen with 2.13).
    """
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) is dict:
        return {key: _loadable(inner, f"{name}[{key!r}]") for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_loadable(inner, f"{name}[{i}]") for i, inner in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint holds tensors and plain data only")
