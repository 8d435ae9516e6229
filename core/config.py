"""The configuration of a run: every option with its default, unit and range, and how it is read, written and named.

    load(argv) -> Config        compose the command line with Hydra, check everything
    resolved(config) -> dict    plain data, as it is written into the run folder; from_plain is the way back
    main(run)                   what a script's last line calls

The tree of plain data has one entry per option below and one per group. `agent`, `net`, `value` and `replay` carry the
name of their choice as `name` (and as `kind` the class behind it, where a yaml of configs/ goes by another name), `env`
its name and options; `interventions` has one entry per instance, in order of execution.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from core import rooms
from core.clock import Clock
from core.instance import intervention
from core.options import build, nearest, plain, printable, show
from core.run_options import REPLAYS, Prioritised, Run, Uniform


class BadConfig(ValueError):
    """Something the user wrote cannot be run; the message is the one line they see."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(printable(line))


@dataclass(frozen=True, kw_only=True)
class Config(Run):
    """A whole run, checked and built: settings objects where the tree has plain data."""

    agent_name: str  # the choice: a name in AGENTS, or of a yaml in configs/agent/
    agent_kind: str  # the entry of AGENTS
    agent: Any  # its Settings
    net: Any  # blueprint, one of nets.NETS
    value: Any  # one of nets.VALUES
    replay: Uniform | Prioritised
    env: str
    env_options: dict[str, Any]
    interventions: tuple[Any, ...]  # in order of execution; each knows its name

    @property
    def tasks(self) -> tuple[str, ...]:
        """The environments of the stream."""
        return self.stream.tasks or (self.env,)


# What neither a trained number nor a score depends on: where the records go, how a folder is entered again, how often
# the run is saved and its metrics are written, what is done about trouble (while there is none). So is the index of a
# GPU; its kind, and `compile`, change the last bits.
WITHOUT_EFFECT = ("run_dir", "resume", "save_every", "log_every", "on_divergence", "on_failure", "env_timeout", "trace")
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a disk is full, a quota used up, a mount read-only


def from_plain(tree: Mapping[str, Any]) -> Config:
    """The run that a tree of plain data describes. Raises ValueError, one line, for whatever does not fit."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{show(tree)} given; expected settings by name")
    tree = {**tree}
    env = _group(tree, "env")
    groups = {group: _group(tree, group) for group in ("agent", "net", "value", "replay")}
    entries = _entries(tree.pop("interventions", None))
    run = build(Run, tree)
    name = env.pop("name")
    _check_envs(name, run.stream.tasks)
    options = _env_options(name, env)
    clock = clock_of(run, options.get("action_repeat", 1), options.get("stage", 0))
    if clock.total("updates") < 1:
        raise ValueError(
            f"replay_ratio: {run.replay_ratio:g} given; with steps={run.steps} and warmup={run.warmup} nothing is "
            "learned: no update is due"
        )
    if clock.switches and run.stream.steps % clock.action_repeat:
        raise ValueError(
            f"stream.steps: {run.stream.steps} given; expected a multiple of env.action_repeat={clock.action_repeat}"
        )
    shortest = min(clock.task_length, clock.steps - clock.switches * clock.task_length)
    if clock.switches and not clock.updates_within(shortest):
        raise ValueError(
            f"stream.steps: {run.stream.steps} given; every task warms up anew, and with warmup={run.warmup} no update "
            f"is due within one of {shortest} env steps: give tasks more steps, or lower warmup"
        )
    chosen = [entry["name"] for entry in entries if "kind" in entry]
    config = Config(
        **vars(run),
        env=name,
        env_options=options,
        agent_name=groups["agent"]["name"],
        agent_kind=groups["agent"].get("kind") or groups["agent"]["name"],
        agent=_choice("agent", groups["agent"], {k: c.Settings for k, c in rooms.classes("agent").items()}),
        net=_choice("net", groups["net"], rooms.classes("net")),
        value=_choice("value", groups["value"], rooms.classes("value")),
        replay=_choice("replay", groups["replay"], REPLAYS),
        interventions=tuple(intervention(dict(entry), clock, chosen) for entry in entries),
    )
    _check_support(config)
    return config if config.run_dir else dataclasses.replace(config, run_dir=default_run_dir(config))


def _check_support(config: Config) -> None:
    """Raises ValueError if a histogram cannot hold the values of DeepMind Control, where rewards lie in [0, 1]."""
    high, discount = getattr(config.value, "high", math.inf), getattr(config.agent, "discount", 0.0)
    repeat = config.env_options.get("action_repeat", 1)
    if config.tasks[0].startswith("dmc/") and discount < 1 and high < 0.999 * repeat / (1 - discount):
        reach = repeat / (1 - discount)
        raise ValueError(
            f"value.high: {high:g} given; with agent.discount={discount:g} and env.action_repeat={repeat} values reach "
            f"{reach:.4g}; set value.high={1.2 * reach:.4g}"
        )


def clock_of(run: Run, action_repeat: int, stage: int = 0) -> Clock:
    """The run's clock at its start. action_repeat: env steps per agent step; stage: updates per supervised stage."""
    if stage:
        return Clock(run.steps, task_length=stage, switches=(run.steps - 1) // stage)
    switches = max(0, len(run.stream.tasks) - 1)
    return Clock(
        run.steps,
        run.replay_ratio,
        run.warmup,
        action_repeat,
        task_length=run.stream.steps * (switches > 0),
        switches=switches,
        primed=run.priming.updates,
        primed_after=run.priming.after,
    )


def resolved(config: Config) -> dict[str, Any]:
    """The tree of plain data that makes exactly this run; lists, dicts, numbers and text only."""
    agent = {"name": config.agent_name, "kind": config.agent_kind}
    tables = {"net": rooms.classes("net"), "value": rooms.classes("value"), "replay": REPLAYS}
    return {
        "agent": agent | plain(config.agent),
        **{
            group: {"name": _kind(getattr(config, group), table)} | plain(getattr(config, group))
            for group, table in tables.items()
        },
        "env": {"name": config.env} | config.env_options,
        "interventions": [
            {"name": i.name, "kind": type(i).__module__.rpartition(".")[2]} | plain(i) for i in config.interventions
        ],
    } | {name: value for name, value in plain(config).items() if name in Run.__dataclass_fields__}


def identity(config: Config) -> dict[str, Any]:
    """What makes this run this run: two configurations that agree here may share a folder."""
    tree = {name: value for name, value in resolved(config).items() if name not in WITHOUT_EFFECT}
    return tree | {"device": config.device.partition(":")[0]}


def default_run_dir(config: Config) -> str:
    """runs/<env>/<agent>[-<interventions>]-<hash>: the same command finds the same folder, on any machine."""
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    parts = [config.agent_name, *(i.name for i in config.interventions), digest]
    return f"runs/{config.env.replace(':', '_')}/{'-'.join(parts)}"


def load(argv: Sequence[str]) -> Config:
    """The run that these command line arguments ask for (Hydra's syntax, without flags)."""
    from core import command_line  # Hydra is imported only where a command line is read

    return command_line.load(argv)


def main(run: Callable[[Config], int | None]) -> None:
    """Read sys.argv and run: once, or with -m once per combination. Bad input: one line on stderr, exit code 2.

    An exit code that `run` returns ends the process, and a sweep with it, unless it is 0.
    """
    if any(arg in ("--help", "-h", "help") for arg in sys.argv[1:]):
        from core import help_page

        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no mistake
        script = os.path.basename(sys.argv[0])
        print(help_page.page(script if script in help_page.EXAMPLES else "-m testbeds"))
        return
    from core import command_line

    command_line.main(run)


@contextmanager
def setting_up() -> Iterator[None]:
    """Inside this block a ValueError means that the configuration does not fit; `main` tells it in one line."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fix = "; make room there or name another run_dir" if error.errno in UNWRITABLE else ""
        raise BadConfig(f"{where}{error.strerror or error}{fix}") from error
    except ValueError as error:
        raise BadConfig(str(error)) from error


def check_device(device: str) -> None:
    """Raises ValueError if this machine has no such device."""
    import torch

    kind, _, index = device.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        raise ValueError(f"device: {device} given; this machine has {count or 'no'} CUDA devices; use device=cpu")


def _choice(group: str, node: dict[str, Any], table: Mapping[str, type]) -> Any:
    """The settings a group's node stands for.

    Settings under the name of a choice, as in value.hl_gauss.bins, hold only if it is chosen: so an agent or a suite
    may say what suits it, whichever is taken.
    """
    name = node.pop("name")
    kind = node.pop("kind", name)
    if kind not in table:
        raise ValueError(f"{group}: {kind} given; {nearest(kind, table)}")
    conditional = {choice: node.pop(choice) for choice in table if choice in node}
    for choice, settings in conditional.items():
        build(table[choice], settings, f"{group}.{choice}")  # a misspelt setting is one, chosen or not
    return build(table[kind], {**conditional.get(kind, {}), **node}, group)


def _group(tree: dict[str, Any], group: str) -> dict[str, Any]:
    """A group's node, its names being text."""
    node = dict(_settings(group, tree.pop(group, None)))
    for key in {"name": ..., **node}.keys() & {"name", "kind"}:
        if not isinstance(node.get(key), str):
            raise ValueError(f"{group}: {show(node.get(key))} given; expected one choice, as in {group}=NAME")
    return node


def _entries(node: Any) -> list[dict[str, Any]]:
    """Interventions with their names: a mapping from the command line; where order could be lost it is a list."""
    if isinstance(node, Mapping):
        for name, entry in node.items():
            if "name" in _settings(f"interventions.{name}", entry):
                raise ValueError(f"interventions.{name}.name: it is called {name}; there is no such setting")
        node = [{"name": str(name), **entry} for name, entry in node.items()]
    if not isinstance(node, list):
        raise ValueError(f"interventions: {show(node)} given; expected a list, as in interventions=[NAME]")
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in node]
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or names.count(name) > 1:
            raise ValueError(f"interventions: the name {show(name)} given; expected a word, and every name once")
    return node


def _kind(settings: Any, table: Mapping[str, type]) -> str:
    return next(name for name, cls in table.items() if type(settings) is cls)


def _settings(key: str, node: Any) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise ValueError(f"{key}: {show(node)} given; expected {key}.SETTING=VALUE")
    return node


def _check_envs(env: str, tasks: Sequence[str]) -> None:
    """Every name exists, and a stream stays within one family."""
    names, family = rooms.env_names(), env.partition("/")[0]
    for key, name in [("env", env), *(("stream.tasks", task) for task in tasks)]:
        if name not in names and not re.fullmatch(r"gym/.+", name):
            raise ValueError(f"{key}: {show(name)} given; {nearest(name, names)}")
    for task in tasks:
        if task.partition("/")[0] != family:
            raise ValueError(f"stream.tasks: {task} given; expected {family}/..., or start with env={task}")


def _env_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of the environment's family, as plain data.

    Options under the name of a family, as in env.dmc.action_repeat, hold only for its environments: so an agent may say
    what suits it.
    """
    for family in rooms.families():
        suited = options.pop(family, {})
        build(cast(type, rooms.env_settings(f"{family}/")), suited, f"env.{family}")  # judged, chosen or not
        if family == name.partition("/")[0]:
            options = {**suited, **options}
    settings = rooms.env_settings(name)
    if settings is None and options:
        raise ValueError(f"env.{next(iter(options))}: no such setting; {name} has none")
    return plain(build(settings, options, "env")) if settings else {}
