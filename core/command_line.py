"""The command line: Hydra composes it, and every mistake is answered in one line before anything is written.

Choices come from what is there: the tables of the rooms, the names of environments, the files in interventions/, and
the yaml files of configs/, which are short diffs over the defaults in code. A yaml in configs/agent/, configs/env/ or
configs/protocol/ speaks about the whole tree; one in configs/<other group>/ about its group alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra import compose, initialize
from hydra import main as hydra_main
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core import rooms
from core.config import BadConfig, Config, from_plain, resolved, setting_up
from core.options import plain
from core.overrides import GROUPS, check, in_our_words, parsed
from core.rooms import CONFIGS, choices
from core.run_options import NESTED, Run
from core.signals import ENVIRONMENT
from core.terminal import forgiving
from core.watchdog import EnvironmentFailed


def main(run: Callable[[Config], int | None]) -> None:
    """core.config.main, behind --help."""
    forgiving()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing and exiting

    def job(tree: DictConfig) -> None:
        with _one_line():
            if code := run(_config(tree)):
                sys.exit(code)

    with _one_line():
        for argument in sys.argv[1:]:
            if argument.startswith("replay_fault="):
                _replay_fault(argument.partition("=")[2])
        flags, overrides = _split(sys.argv[1:])
        if flags.shell_completion or flags.hydra_help or flags.info or flags.cfg in ("hydra", "all"):
            register()
        else:
            runs = jobs(overrides, flags.multirun)
            if flags.cfg:
                print(OmegaConf.to_yaml(OmegaConf.create(resolved(runs[0]))), end="")
                return
        hydra_main(config_path=None, config_name="train", version_base="1.3")(job)()


def _replay_fault(path: str) -> NoReturn:
    from core import faults  # torch, only here

    with setting_up():
        if len(sys.argv) > 2:
            raise ValueError("replay_fault: stands alone; its file holds the whole configuration")
        if not path:
            raise ValueError("replay_fault: nothing given; expected a file of RUN_DIR/faults")
        sys.exit(faults.replay(Path(path)))


@contextmanager
def _one_line() -> Iterator[None]:
    """What ends the process is told in one line: a mistake in the configuration, exit code 2, a failed environment, an
    impatient user; anything else is a bug, and shown."""
    try:
        yield
    except (BadConfig, HydraException) as error:
        print(in_our_words(error), file=sys.stderr)
        sys.exit(2)
    except EnvironmentFailed as error:
        advice = ", with on_failure=restart past such errors" if error.restart else ""
        print(f"{error}; the same command goes on{advice}", file=sys.stderr)
        sys.exit(ENVIRONMENT)
    except KeyboardInterrupt:  # the second Ctrl-C
        print("stopped at once; the same command goes on from what was saved before", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def load(argv: Sequence[str]) -> Config:
    """The run that these overrides ask for. Raises BadConfig, one line."""
    return jobs(argv, multirun=False)[0]


def register(argv: Iterable[str] = ()) -> None:
    """Put everything that can be chosen into Hydra's store; `argv` may name Gymnasium environments."""
    OmegaConf.register_new_resolver("at_most", _at_most, replace=True)
    OmegaConf.register_new_resolver("by_task", _by_task, replace=True)
    _register_rooms()
    for arg in argv:
        if arg.startswith("env="):
            for name in re.findall(r"gym/[^,\[\]\s'\"]+", arg):
                _register_env(name)


def _at_most(share: float, whole: int, wanted: int) -> int:
    """What is wanted, but no more than a share of the whole: how a default fits itself to a short run."""
    if not isinstance(whole, int | float) or not math.isfinite(whole):
        return wanted  # whoever builds the options will say what is wrong with the whole
    return min(wanted, int(share * whole))


def _by_task(task: str, usual: Any, others: Mapping[str, Any]) -> Any:
    """What the first pattern that matches the task stands for, as in {dmc/walker-*: 512}; else the usual."""
    return next((value for pattern, value in others.items() if fnmatch.fnmatch(task, pattern)), usual)


@functools.cache
def _register_rooms() -> None:
    store = ConfigStore.instance().store
    store(name="schema", node=_schema())
    store(name="train", node=_yaml("train"), package="_global_")
    for group in ("net", "value", "replay"):
        for name in choices(group):
            store(group=group, name=name, node=OmegaConf.merge({"name": name}, _yaml(group, name)), package=group)
    for name in choices("interventions"):
        node = OmegaConf.merge({"kind": name}, _yaml("interventions", name))
        store(group="interventions", name=name, node=node, package=f"interventions.{name}")
    for name in choices("agent"):
        node = OmegaConf.merge(_yaml("agent", name), {"agent": {"name": name}})
        store(group="agent", name=name, node=node, package="_global_")
    for name in rooms.env_names():
        _register_env(name)
    for group in ("env", "protocol"):
        for path in (CONFIGS / group).glob("*.yaml"):
            store(group=group, name=path.stem, node=_yaml(group, path.stem), package="_global_")


def _register_env(name: str) -> None:
    """An environment brings its family's protocol."""
    folder, _, last = name.rpartition("/")
    node = {"defaults": [f"/protocol/{name.partition('/')[0]}", "_self_"], "env": {"name": name}}
    ConfigStore.instance().store(group=f"env/{folder}", name=last, node=node, package="_global_")


def _schema() -> DictConfig:
    """Every option with its default, and the groups. Inside groups any name may be set; building them judges it."""
    tree = OmegaConf.create(plain(Run()) | {group: {} for group in GROUPS})
    for name in (*GROUPS, *NESTED):
        OmegaConf.set_struct(tree[name], False)
    return tree


def _yaml(*names: str) -> DictConfig:
    path = CONFIGS.joinpath(*names).with_suffix(".yaml")
    tree = OmegaConf.load(path) if path.exists() else OmegaConf.create({})
    if not isinstance(tree, DictConfig):
        raise BadConfig(f"{path}: expected NAME: VALUE lines")
    return tree


def _split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, and the overrides. Flags may stand anywhere; sys.argv is put in the order that Hydra can read."""

    def refuse(message: str) -> NoReturn:
        raise BadConfig(f"{message}; see --help and --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    flags, rest = parser.parse_known_args(argv)
    for arg in rest:
        if arg.startswith("-"):
            name = arg.lstrip("-").partition("=")[0].replace("-", "_")
            raise BadConfig(f"{arg}: options are written without dashes, as in {name}=VALUE; see --help")
    if flags.config_name or flags.config_dir or flags.config_path:
        raise BadConfig("--config-*: settings of your own go into configs/agent/NAME.yaml, chosen by agent=NAME")
    overrides = flags.overrides + rest
    sys.argv[1:] = [arg for arg in argv if arg not in overrides] + overrides
    return flags, overrides


def jobs(argv: Sequence[str], multirun: bool) -> list[Config]:
    """Every run these overrides ask for, checked to the end; several with `multirun`."""
    try:
        overrides = parsed(argv)
        check(overrides, multirun)
        searches = any(override.key_or_group == "hydra/sweeper" for override in overrides)  # it picks values as it goes
        known = [override for override in overrides if not (searches and override.is_sweep_override())]
        (lines,) = BasicSweeper.split_arguments(known, None)
        register(argv)
        with initialize(config_path=None, version_base="1.3"):
            found = [_config(_composed(line)) for line in lines]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise BadConfig(in_our_words(error)) from error
    if len({job.run_dir for job in found}) < len(found):
        raise BadConfig("run_dir: several runs of this sweep would share a folder; leave run_dir out")
    return found


def _composed(line: list[str]) -> DictConfig:
    try:
        return compose("train", line)
    except TypeError as error:  # a name where a list wants a number
        raise ValueError(f"{' '.join(line)}: {error}") from error


def _config(tree: DictConfig) -> Config:
    return from_plain(cast(dict, OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)))
