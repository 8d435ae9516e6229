"""What there is to choose from, found by name: nobody keeps a list, and `core` imports no room.

Names are read from the source with `ast`, so that help, completion and the answer to a misspelt choice need no torch;
the classes behind them are imported when a run is built.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
TABLES = {  # of each group: modules, and what their tables are called
    "agent": (("agents", "AGENTS"), ("testbeds", "LEARNERS")),
    "net": (("nets", "NETS"),),
    "value": (("nets", "VALUES"),),
    "replay": (("core.run_options", "REPLAYS"),),
}


def choices(group: str) -> list[str]:
    """What `group=...` may be: classes and yaml files. Groups: those of TABLES, env, interventions."""
    found = env_names() if group == "env" else interventions() if group == "interventions" else names(group)
    return list(dict.fromkeys([*found, *(path.stem for path in sorted((CONFIGS / group).glob("*.yaml")))]))


@functools.cache
def names(group: str) -> list[str]:
    """Entries of a group's tables, in their order."""
    return [name for module, table in TABLES[group] for name in _names(module, table)]


def _names(module: str, table: str) -> list[str]:
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table and isinstance(node.value, ast.Dict):
            return [ast.literal_eval(key) for key in node.value.keys if key]
    raise LookupError(f"{module} has no table {table}")


def classes(group: str) -> dict[str, Any]:
    """A group's tables themselves: name -> class. Imports the rooms."""
    found: dict[str, Any] = {}
    for module, table in TABLES[group]:
        found |= getattr(importlib.import_module(module), table)
    return found


def streams() -> list[str]:
    """Supervised streams, by the names of their files."""
    return [path.stem for path in sorted((ROOT / "testbeds" / "streams").glob("[!_]*.py")) if path.stem != "stage"]


def env_names() -> list[str]:
    """Environments and supervised streams that have a name of their own; any Gymnasium ID goes besides, as gym/ID."""
    return [*importlib.import_module("envs.catalog").names(), *(f"testbed/{name}" for name in streams())]


def families() -> list[str]:
    """Families of environments that have options, by what stands before the slash."""
    names = {name.partition("/")[0] for name in importlib.import_module("envs.catalog").names()}
    return sorted(family for family in names if env_settings(f"{family}/"))


def env_settings(name: str) -> type | None:
    """The dataclass of an environment's options, `Settings` in envs/<family>.py or testbeds/streams/<name>.py; None if
    it has none."""
    family, _, last = name.partition("/")
    if family == "testbed":
        return importlib.import_module(f"testbeds.streams.{last}").Settings
    if not (ROOT / "envs" / f"{family}.py").exists():
        return None
    return getattr(importlib.import_module(f"envs.{family}"), "Settings", None)


@functools.cache
def interventions() -> dict[str, str]:
    """Name of every intervention (its file's) -> the first line of its docstring."""
    lines = {}
    for path in sorted((ROOT / "interventions").glob("[!_]*.py")):
        lines[path.stem] = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return lines


def intervention(name: str) -> type:
    """The one Intervention that interventions/<name>.py defines."""
    base = importlib.import_module("core.intervention").Intervention
    module = importlib.import_module(f"interventions.{name}")
    found = [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, base) and thing.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"interventions/{name}.py defines {len(found)} interventions; expected one")
    return found[0]
