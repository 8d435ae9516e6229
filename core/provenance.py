"""Where a result comes from: code, versions, machine, command."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("torch", "numpy", "scipy", "gymnasium", "ale-py", "opencv-python-headless", "dm-control", "mujoco"),
    *("tensorboard", "hydra-core", "zstandard"),
)
SOURCE = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, Any]:
    """What is known about this process, as plain data. What cannot be found out is None; nothing raises.

    `diff` is a patch from `commit` to the files that ran, new Python and yaml files included; "" if there is none.
    """
    diff = _or_none(_diff)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if diff is None else bool(diff),
        "diff": diff,
        "python": platform.python_version(),
        "threads": _or_none(_threads),
        "versions": {name: _or_none(version, name) for name in PACKAGES},
        "hardware": {
            "host": _or_none(socket.gethostname),
            "system": platform.platform(),
            "cpu": _or_none(_cpu) or platform.processor(),
            "cores": os.cpu_count(),
            "memory_gib": _or_none(lambda: round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)),
            "gpus": _gpus(),
        },
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two starts may make a difference to the last bits: one text each."""
    found = []
    if _code(before) != _code(now):
        found.append(f"the code ({_code(before)}, now {_code(now)})")
    for name in ("python", "threads"):
        if before.get(name, now[name]) != now[name]:
            found.append(f"{name} ({before[name]}, now {now[name]})")
    old, new = _table(before, "versions"), _table(now, "versions")
    found += [f"{name} ({old.get(name)}, now {new.get(name)})" for name in new if old.get(name) != new[name]]
    for name in ("cpu", "gpus"):
        was, here = (_table(start, "hardware").get(name) for start in (before, now))
        if was != here:
            found.append(f"{name} ({was}, now {here})")
    return found


def _table(start: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry of a start; a file that somebody has changed may hold anything there."""
    entry = start.get(name)
    return entry if isinstance(entry, Mapping) else {}


def _code(start: Mapping[str, Any]) -> str:
    return f"commit {start.get('commit')}" + (f" with {start['diff']}" if start.get("diff") else "")


def _diff() -> str | None:
    changed = _git("diff", "--binary", "HEAD")
    if changed is None:
        return None
    new = _git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml") or ""
    patches = [_git("diff", "--no-index", "/dev/null", name, fine=(0, 1)) or "" for name in new.splitlines()]
    return "".join(f"{patch}\n" for patch in [changed, *patches] if patch)


def _git(*arguments: str, fine: tuple[int, ...] = (0,)) -> str | None:
    return _output("git", "-C", str(SOURCE), *arguments, fine=fine)


def _gpus() -> list[str]:
    """Names, driver and memory, without opening the devices."""
    return (
        _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader") or ""
    ).splitlines()


def _threads() -> int:
    import torch  # by now it has been imported, and told how many

    return torch.get_num_threads()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def _output(*command: str, fine: tuple[int, ...] = (0,)) -> str | None:
    """What a command prints; None if it is not there, fails or hangs."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
        return done.stdout.rstrip("\n") if done.returncode in fine else None
    return None


def _or_none(find: Callable[..., Any], *arguments: str) -> Any:
    try:
        return find(*arguments)
    except Exception:  # a record of the machine is never worth a run
        return None
