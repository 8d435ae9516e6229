"""Compiling, with a cache on disk that may have been left damaged.

The compiler keeps libraries in a folder that outlives the process. One killed while it wrote there leaves half a file
behind, and every later run would fail on it: before the first region is compiled such files are removed.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, TypeVar, cast

import torch
from torch._dynamo.types import GuardFilterEntry
from torch._inductor.runtime.cache_dir_utils import cache_dir

F = TypeVar("F", bound=Callable[..., object])
AGE = 60.0  # seconds; a younger library may still be written, by another process


def compiled(function: F, device: torch.device) -> F:
    """The method as one compiled region on this device; a graph break is an error.

    Each call looks at the shapes and layouts of the batch's tensors, and at nothing else that the method read when it
    was compiled (`watched`): settings, parts and interventions are what they were at the start, and the learner's
    numbers lie where they lay (the compiled code refuses other shapes by itself). To ask all that is not a tensor took
    6 to 8 % of an update of SAC, to ask for the learner's numbers 1 to 3 %.

    It is compiled as a copy of its own: the compiler counts how often it has compiled a function, whoever it belonged
    to, and refuses after a few, so that a sweep of many runs in one process would end there.
    """
    _heal()
    method = _own_copy(cast(MethodType, function))
    return cast(F, torch.compile(method, fullgraph=True, dynamic=False, options=options(device)))


def options(device: torch.device) -> dict[str, Any]:
    """What the compiler is asked for. On a CPU kernels are called from C++: Python took a twentieth of SAC's loop."""
    compares_sizes = torch.__version__ >= "2.13"  # (a TorchVersion) the C++ of 2.12 would misread what lies otherwise
    return {"guard_filter_fn": watched, "cpp_wrapper": device.type == "cpu" and compares_sizes}


def watched(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """Which of the compiler's questions are asked at each call. tests/test_compiled.py asks all: no answer changes."""
    return [guard.guard_type == "TENSOR_MATCH" and guard.name.startswith("batch[") for guard in guards]


def _own_copy(method: MethodType) -> MethodType:
    original = method.__func__
    copy = FunctionType(
        original.__code__.replace(),
        original.__globals__,
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    copy.__kwdefaults__ = original.__kwdefaults__
    return MethodType(copy, method.__self__)


@functools.cache
def _heal() -> None:
    remove_damaged(Path(cache_dir()))


def remove_damaged(folder: Path) -> list[Path]:
    """Remove the libraries that are not whole. -> which they were"""
    damaged = [path for path in folder.rglob("*.so") if time.time() - path.stat().st_mtime > AGE and not _whole(path)]
    for path in damaged:
        path.unlink(missing_ok=True)
    return damaged


def _whole(library: Path) -> bool:
    """Whether an ELF file reaches as far as its header says: to the end of the table of sections."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (offset,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return offset + size * count <= library.stat().st_size
