"""How much memory there is, and how much a run's networks take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from core.engine import Learner

FLOAT, GIB = 4, 2**30


def check_networks(learner: Learner, seeds: Sequence[int], device: str) -> None:
    """Raises ValueError if the parameters, their copies and moments do not fit: no allocator says so in time."""
    needed = sum(
        2
        * (4 + len(part.copies))
        * FLOAT
        * shape.numel()  # as they are, at birth, and two moments; all of them stacked
        for part in learner.parts.values()
        for shape in part.shapes.values()
    )
    needed, free = len(seeds) * needed, free_memory(device)
    if needed > free:
        raise ValueError(
            f"net: the networks of all seeds, with copies and moments, take {size(needed)}, and {size(free)} are free; "
            "use a smaller network, or fewer seeds"
        )


def free_memory(device: str = "cpu") -> int:
    """Bytes that a new process may take."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def size(count: int) -> str:
    """Bytes as one says them."""
    return f"{count / 2**20:.0f} MiB" if count < GIB else f"{count / GIB:,.1f} GiB"
