"""What an ablation file says: arms x tasks, every pair a cell that train.py runs with all seeds in one process.

    tasks: [dmc/cartpole-swingup, dmc/cheetah-run]
    seeds: [0, 1, 2]
    settings: {agent: sac, steps: 20_000}                 # of all arms, as on train.py's command line
    arms:
      base: []
      ln: [layer_norm]                                    # an arm is a list of interventions, by name or with settings
      reset: [layer_norm, {name: reset, where: [head], when: {every: 5_000}}]
      hl_gauss: {value: hl_gauss, interventions: [l2]}    # or a mapping of settings
    controls: {reset: [optimizer_only, identity]}         # arms of their own: the same events, under each control

The first arm is the one the others are compared with, unless `base:` names another. A file may come in several sizes,
each a diff of tasks, seeds and settings, chosen by size=NAME:

    sizes: {smoke: {seeds: [0, 1], settings: {steps: 2_000}, overlay: {interventions.reset.when.every: 500}}}

`overlay` is laid over the arms; settings of an intervention hold for the arms that choose it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core import rooms
from core.config import BadConfig, Config, load
from core.options import nearest, one_line, show

KEYS = ("tasks", "seeds", "settings", "arms", "controls", "base", "overlay", "sizes")
OF_THE_LAUNCHER = ("run_dir", "seeds", "env")
OF_A_SIZE = ("tasks", "seeds", "settings", "overlay")


@dataclass(frozen=True)
class Cell:
    """One arm on one task."""

    arm: str
    task: str
    arguments: tuple[str, ...]  # of train.py
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def name(self) -> str:
        return f"{self.arm} on {self.task}"


@dataclass(frozen=True)
class Ablation:
    """An ablation file, read and checked."""

    out: Path
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    base: str
    cells: tuple[Cell, ...]
    tree: dict[str, Any]  # the file in the chosen size, as plain data


class Loader(yaml.SafeLoader):
    """Yaml in which no key may stand twice: the later one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path, out: Path | None = None, size: str = "") -> Ablation:
    """The ablation in a file. Raises ValueError, one line, for whatever does not fit; every cell is checked to the end.

    out: where the runs go; without it runs/FILE'S NAME, with the size behind it.
    """
    try:
        tree = yaml.load(path.read_text(), Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ValueError(f"{path}: line {line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # no text, too deep, odd numbers and keys
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected {', '.join(KEYS)}")
    for key in tree:
        if key not in KEYS:
            raise ValueError(f"{path}: {show(key)}: no such key; {nearest(show(key), KEYS)}")
    tree = _sized(tree, size, path)
    tasks, seeds = _list(tree, "tasks", path), _list(tree, "seeds", path)
    named = [("tasks", task) for task in tasks] + [(key, tree[key]) for key in ("base",) if key in tree]
    for key, value in named:
        if not isinstance(value, str):
            raise ValueError(f"{path}: {key}: {show(value)} given; expected a name")
    settings, arms = _settings("settings", _mapping(tree, "settings", path), path), _mapping(tree, "arms", path)
    if not arms:
        raise ValueError(f"{path}: arms: none given; expected NAME: [interventions], as in base: []")
    for arm in arms:
        if not isinstance(arm, str) or not re.fullmatch(r"[\w.+-]+", arm):
            raise ValueError(f"{path}: arms: {show(arm)} given; expected a name that can be a folder's")
    every = dict(_with_controls(arms, _mapping(tree, "controls", path), path))
    base = tree.get("base", next(iter(every)))
    if base not in every:
        raise ValueError(f"{path}: base: {show(base)} given; {nearest(show(base), every)}")
    out = out or Path("runs") / (f"{path.stem}-{size}" if size else path.stem)
    overlay = _settings("overlay", _mapping(tree, "overlay", path), path)
    contents = {arm: settings | _settings(arm, content, path) | overlay for arm, content in every.items()}
    for key in OF_THE_LAUNCHER:
        if any(key in content for content in contents.values()):
            raise ValueError(
                f"{path}: {key}: set by ablate.py; out=FOLDER and the file's seeds and tasks say where and what"
            )
    _check_names({**settings, **overlay}, contents, path)
    cells = tuple(
        _cell(arm, task, tuple(seeds), _of_chosen(content), out, path)
        for arm, content in contents.items()
        for task in tasks
    )
    return Ablation(out, tuple(tasks), tuple(seeds), tuple(every), base, cells, tree)


def _sized(tree: dict[str, Any], size: str, path: Path) -> dict[str, Any]:
    """The file without its sizes, one of them laid over it."""
    sizes = _mapping(tree, "sizes", path)
    tree = {key: value for key, value in tree.items() if key != "sizes"}
    if not size:
        return tree
    if size not in sizes:
        raise ValueError(f"{path}: size={size} given; {nearest(size, sizes) if sizes else 'it has no sizes'}")
    diff = _mapping(sizes, size, path)
    for key in diff:
        if key not in OF_A_SIZE:
            raise ValueError(f"{path}: sizes: {size}: {show(key)}: no such key; {nearest(show(key), OF_A_SIZE)}")
    laid = {key: _mapping(tree, key, path) | _mapping(diff, key, path) for key in ("settings", "overlay")}
    return tree | diff | laid


def _cell(arm: str, task: str, seeds: tuple[int, ...], settings: Mapping[str, Any], out: Path, path: Path) -> Cell:
    arguments = [f"env={task}", f"seeds={_written(list(seeds))}"]
    arguments += [f"{key}={_written(value)}" for key, value in settings.items()]
    arguments.append(f"run_dir={_written(str(out / arm / task))}")
    try:
        return Cell(arm, task, tuple(arguments), load(arguments))
    except BadConfig as error:
        raise ValueError(f"{path}: arm {arm} on {task}: {error}") from error


def _of_chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """Without settings of interventions that are not chosen."""
    chosen = settings.get("interventions", [])
    return {key: value for key, value in settings.items() if _owner(key) in ("", *chosen)}


def _check_names(common: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Settings of an intervention that no arm chooses are a mistake."""
    chosen = {name for settings in arms.values() for name in settings.get("interventions", [])}
    for key in common:
        if _owner(key) not in ("", *chosen):
            raise ValueError(f"{path}: {key}: no arm chooses it; {nearest(_owner(key), chosen)}")


def _owner(key: str) -> str:
    """Whose setting it is, if an intervention's; else ""."""
    words = key.split(".")
    return words[1] if words[0] == "interventions" and len(words) > 1 else ""


def _with_controls(arms: Mapping[str, Any], controls: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Every arm, and after it an arm for each of its controls."""
    for arm, kinds in controls.items():
        if arm not in arms:
            raise ValueError(f"{path}: controls: {show(arm)} given; {nearest(show(arm), arms)}")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f"{path}: controls: {arm}: {show(kinds)} given; expected a list, as in [identity]")
    for arm, content in arms.items():
        yield arm, content
        for control in controls.get(arm, ()):
            settings = _settings(arm, content, path)
            known = [name for name in settings.get("interventions", []) if name in rooms.interventions()]
            events = [name for name in known if rooms.intervention(name)().overrides("event")]
            if not events:
                raise ValueError(
                    f"{path}: controls: {arm}: has no intervention that acts by events; nothing to control"
                )
            yield f"{arm}-{control}", settings | {f"interventions.{name}.control": control for name in events}


def _settings(arm: str, content: Any, path: Path) -> dict[str, Any]:
    """An arm as settings of train.py: keys with dots, values as they are."""
    if isinstance(content, list):
        content = {"interventions": content}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: arms: {arm}: {show(content)} given; expected a list of interventions, or settings")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if key == "interventions":
            settings |= _interventions(arm, value, path)
        else:
            settings |= _flat(str(key), value)
    return settings


def _interventions(arm: str, entries: Any, path: Path) -> dict[str, Any]:
    names: list[str] = []
    settings: dict[str, Any] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, str):
            names.append(entry)
        elif isinstance(entry, dict) and isinstance(entry.get("name"), str):
            names.append(entry["name"])
            for key, value in entry.items():
                if key != "name":
                    name = "on" if key is True else key  # yaml takes `on` for true
                    settings |= _flat(f"interventions.{entry['name']}.{name}", value)
        else:
            raise ValueError(
                f"{path}: arms: {arm}: {show(entry)} given; expected an intervention's name, or {{name: NAME, ...}}"
            )
    return {"interventions": names, **settings}


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for inner, v in value.items() for name, leaf in _flat(f"{key}.{inner}", v).items()}
    return {key: value}


def _written(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    text = str(value)
    plain = text.replace("/", "").replace("_", "").replace(".", "").replace("-", "").replace("+", "").replace("*", "")
    return text if plain.isalnum() or not isinstance(value, str) else "'" + text.replace("'", "\\'") + "'"


def _list(tree: Mapping[str, Any], key: str, path: Path) -> list:
    value = tree.get(key)
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise ValueError(f"{path}: {key}: {show(value)} given; expected a list without repetitions, as in {key}: [...]")
    return value


def _mapping(tree: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key}: {show(value)} given; expected NAME: VALUE lines")
    return value
