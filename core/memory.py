"""How much memory there is, and how much a run's networks take.

A job of Slurm and a container may take less than the machine has: the kernel ends a process that goes beyond what its
control group grants.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from core.engine import Learner

FLOAT, GIB = 4, 2**30
MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# by version: where groups lie, and their files: the limit, what is used, what of that can be had back at any time
VERSION_1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file total_active_file")
VERSION_2 = ("", "memory.max", "memory.current", "inactive_file active_file slab_reclaimable")


def networks_size(learner: Learner, seeds: Sequence[int]) -> int:
    """Bytes of the networks of all seeds: parameters as they are and at birth, two moments, copies."""
    return len(seeds) * sum(
        (4 + len(part.copies)) * FLOAT * shape.numel()
        for part in learner.parts.values()
        for shape in part.shapes.values()
    )


def check_networks(learner: Learner, seeds: Sequence[int], device: str) -> None:
    """Raises ValueError if the parameters, their copies and moments do not fit: no allocator says so in time."""
    needed, free = 2 * networks_size(learner, seeds), free_memory(device)  # twice: all of them are stacked
    if needed > free:
        raise ValueError(
            f"net: the networks of all seeds, with copies and moments, take {size(needed)}, and {size(free)} are free; "
            "use a smaller network, or fewer seeds"
        )


def free_memory(device: str = "cpu") -> int:
    """Bytes that a new process may take."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    return int(min(_available(), granted(MEMBERSHIP.read_text() if MEMBERSHIP.exists() else "")))


def granted(membership: str, groups: Path = GROUPS) -> float:
    """Bytes that the control groups of a process leave it; inf without a limit. membership: its /proc/PID/cgroup"""
    left = math.inf
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, *names = VERSION_1 if controllers else VERSION_2
        inside = groups / top / path.lstrip("/")
        for group in (inside, *inside.parents):  # a container may see its own group alone, as the top
            if group.is_relative_to(groups / top):
                with suppress(OSError):  # no such group, or none of its business
                    left = min(left, _left(group, *names))
    return left


def _left(group: Path, limit: str, used: str, idle: str) -> float:
    granted = (group / limit).read_text().strip()
    if granted == "max":
        return math.inf
    cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(granted) - int((group / used).read_text()) + sum(int(cached.get(name, 0)) for name in idle.split())


def _available() -> int:
    """Bytes that the machine has left."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def size(count: int) -> str:
    """Bytes as one says them."""
    return f"{count / 2**20:.0f} MiB" if count < GIB else f"{count / GIB:,.1f} GiB"
