"""The words of a command line: read, their names and choices checked, and what Hydra has against them retold.

Every refusal names the key that is wrong and what to write instead.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from core.config import BadConfig
from core.options import nearest, no_such_setting, one_line, settings, show
from core.rooms import choices
from core.run_options import NESTED, Run

GROUPS = ("agent", "net", "value", "replay", "env", "interventions")
EXAMPLE = "as in agent=sac env=dmc/walker-walk steps=100_000"
APART = r"\s,=:()\[\]{}'\""  # what stands between the words of a value
ODD = re.compile(rf"[^{APART}]*[^{APART}\w/\\+.$%*@?|-][^{APART}]*", re.ASCII)  # a word that Hydra reads only in quotes


def parsed(argv: Sequence[str]) -> list[Override]:
    """The overrides that these words are."""
    for arg in argv:
        if not arg.startswith("~") and not re.match(r"[^=]+=", arg):
            hint = "; write lists without spaces" if "]" in arg else ""
            raise BadConfig(f"{arg.strip() or 'an empty word'}: no value given; expected OPTION=VALUE, {EXAMPLE}{hint}")
        if digits := re.search(r"\d{400,}", arg):  # beyond what Python turns into a number
            raise BadConfig(f"{arg[: digits.start()][:80]}: a number of {len(digits[0])} digits given")
        if arg.startswith("env=gym/") and not arg.partition("gym/")[2]:
            raise BadConfig("env: gym/ given; expected the ID of a Gymnasium environment, as in env=gym/CartPole-v1")
        key = arg.partition("=")[0].lstrip("+~")
        if not key.isascii():
            raise BadConfig(f"{key}: no such setting; --cfg job shows them all")
    try:
        return OverridesParser.create().parse_overrides(list(argv))
    except OverrideParseException as error:
        raise BadConfig(_unreadable(error)) from error


def _unreadable(error: OverrideParseException) -> str:
    key, _, value = error.override.partition("=")
    quoted = key + "=" + ODD.sub(r"'\g<0>'", value)
    with contextlib.suppress(OverrideParseException):
        check(OverridesParser.create().parse_overrides([quoted]), multirun=True)  # quotes mend no misspelt choice
        return f'{key}: {value} can be read only in quotes; write "{quoted}"'
    reason = re.sub(r"^Error parsing override.*\n|\n?See https.*", "", error.message)
    if reason.startswith("LexerNoViableAltException"):
        reason = "a character or a quote out of place"
    return f"{error.override}: cannot be read ({reason}); expected OPTION=VALUE, {EXAMPLE}"


def check(overrides: Sequence[Override], multirun: bool) -> None:
    """Names and choices, in our words; values are judged when the tree is built."""
    names = [*GROUPS, *settings(Run)]
    keys = [override.key_or_group for override in overrides if not override.package]
    packages = [override.package for override in overrides if override.package]
    for override in overrides:
        key = override.key_or_group
        root = key.partition(".")[0]
        if key.startswith(("hydra.run", "hydra.sweep.", "hydra.output_subdir")):
            raise BadConfig(f"{key}: the folder of a run is set by run_dir")
        if key == "hydra":
            raise BadConfig("hydra: no settings named; write hydra.SETTING=VALUE, --cfg hydra shows them all")
        if root.partition("/")[0] == "hydra":
            continue
        if root not in names:
            raise BadConfig(no_such_setting(root, names))
        option = ".".join(key.split(".")[: 2 if root in NESTED else 1])
        if key != option and root not in GROUPS:
            raise BadConfig(f"{key}: {option} is an option without settings; write {option}=VALUE")
        _check_prefix(override)
        if override.is_sweep_override() and not multirun:
            raise BadConfig(f"{key}: several values given; write a list as [a,b], or add -m to run once with each")
        if key in GROUPS:
            if keys.count(key) > 1 and isinstance(override.value(), dict):
                raise BadConfig(
                    f"{key}: given {keys.count(key)} times, the last would hide the others; write settings "
                    f"as {key}.SETTING=VALUE"
                )
            for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
                _check_choice(key, override.package, value, packages)


def _check_prefix(override: Override) -> None:
    """`~` deletes and `+` adds only inside a group; the rest every run has. `+interventions@...` adds an instance."""
    key, package = override.key_or_group, override.package
    value = (override.input_line or "").partition("=")[2]
    if key in GROUPS or key.partition(".")[0] not in GROUPS:
        if override.is_delete():
            raise BadConfig(f"~{key}: cannot be deleted; leave {key} out, and it has its default")
        if override.is_add() and not package and key != "interventions":
            raise BadConfig(f"+{key}: {key} is there already; write {key}={value}")
        if override.is_force_add() and key in GROUPS:
            raise BadConfig(f"++{key}: {key} is there already; write {key}={value}")
    if package and not (override.is_add() and key == "interventions" and package.startswith("interventions.")):
        name = package.rpartition(".")[2]
        meant = f"+interventions@interventions.{name}=NAME" if key == "interventions" else f"{key}={value}"
        raise BadConfig(f"{key}@{package}: no such place; write {meant}")


def _check_choice(group: str, package: str | None, value: Any, packages: Sequence[str]) -> None:
    """`group=value` names something that exists, and an intervention once; a dict sets the group's settings instead.

    package: where `group@package=value` puts it; packages: the same of all overrides.
    """
    if isinstance(value, dict):
        return
    several = group == "interventions" and package is None
    if several and not isinstance(value, list):
        meant = f"[{value}]" if value in choices(group) else "[NAME], or [] for none"
        raise BadConfig(f"interventions: {show(value)} is not a list; write interventions={meant}")
    if value is None:
        raise BadConfig(f"{group}: null given; expected a name")
    if not several and isinstance(value, list):
        raise BadConfig(f"{group}: {show(value)} given; expected one choice, as in {group}=NAME")
    for name in value if several else [value]:
        if name not in choices(group) and not (group == "env" and re.fullmatch(r"gym/.+", show(name))):
            raise BadConfig(f"{group}: {show(name)} given; {nearest(show(name), choices(group))}")
        if several and value.count(name) + packages.count(f"interventions.{name}") > 1 or packages.count(package) > 1:
            raise BadConfig(
                f"interventions: {name} is chosen twice; name the second, as in "
                f"+interventions@interventions.{name}_again={name}"
            )


def in_our_words(error: BaseException) -> str:
    """The one line about an error that ends the composition: its key, what is wrong, and what to write."""
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}: {show(name)} given; {nearest(name, error.options)}"
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        return one_line(error)
    key, index, _ = cause.full_key.partition("[")
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(cause).partition("\n")[0]).strip('"')
    if key.startswith(("hydra.", "hydra/")):
        return f"{key}: {reason}; --cfg hydra shows what is there"
    if reason == "Cannot merge DictConfig with ListConfig":
        if cause.object_type is list:
            return f"{key}: settings given; expected a list, as in {key}=[VALUE]"
        return f"{key}: a list given; expected settings, as in {key}.SETTING=VALUE"
    return f"{key}: {reason}; write {key}={'[VALUE]' if index else 'VALUE'}"
