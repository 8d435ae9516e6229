"""Options are fields of dataclasses: their defaults, ranges and meaning stand there, and nowhere else.

`option` declares one. `build` turns plain data, what a command line or a yaml file gives, into the dataclass, and
refuses whatever does not fit in one line that names the key. `plain` is the way back. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Iterable[str] = (),
    help: str = "",
) -> Any:
    """A dataclass field with its default and its limits: low <= value <= high, above < value, one of `choices`.

    The limits hold for every element of a tuple. A dataclass as default is copied for every instance.
    """
    limits = {"low": low, "high": high, "above": above, "choices": tuple(choices), "help": help}
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.field(default_factory=lambda: dataclasses.replace(default), metadata=limits)
    return dataclasses.field(default=default, metadata=limits)


def settings(cls: type) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass that a configuration may set."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def build(cls: type[T], values: Mapping[str, Any], key: str = "") -> T:
    """The dataclass with these values, defaults elsewhere. `key` is where `values` stands in the configuration.

    Raises ValueError, one line: an unknown setting, a wrong type, a value out of range, or the class's own objection.
    """
    fields, hints = settings(cls), typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{key}: {show(values)} given; expected {' | '.join(f'{key}.{name}=' for name in fields)}")
    values = {"on" if name is True else str(name): value for name, value in values.items()}  # yaml takes `on` for true
    for name in values:
        if name not in fields:
            raise ValueError(no_such_setting(name, fields, key))
    given = {name: _value(hints[name], value, _under(key, name), fields[name]) for name, value in values.items()}
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{key}: {error}" if key else str(error)) from error


def plain(instance: Any) -> dict[str, Any]:
    """A dataclass as plain data: dicts, lists, numbers, text. `build` makes the same instance of it."""
    return {name: _plain(getattr(instance, name)) for name in settings(type(instance))}


def nearest(name: str, names: Iterable[str], key: str = "") -> str:
    """What to write instead, below `key`: "did you mean X?", or all names when none is near.

    Near is a similar spelling (stepz: steps) or an abbreviation (lr: learning_rate).
    """
    names = sorted(names)
    similar = difflib.get_close_matches(name, names, n=1)
    close = similar or sorted((long for long in names if _abbreviates(name, long)), key=len)
    if close:
        return f"did you mean {_under(key, close[0])}?"
    return f"there is {', '.join(names)}" if len(names) <= 30 else "--help lists them all"


def no_such_setting(name: str, names: Iterable[str], key: str = "") -> str:
    """The line about a setting `name` below `key` that does not exist."""
    return f"{_under(key, name)}: no such setting; {nearest(name, names, key)}"


def show(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{show(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(show, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return printable(str(value)) or "''"


def one_line(error: BaseException) -> str:
    """What an exception says, without its line breaks."""
    return " ".join(str(error).split())


def told(error: BaseException) -> str:
    """Kind and words of an exception, on one line: for what somebody else's code has raised."""
    kind, words = type(error).__name__, one_line(error)
    return f"{kind}: {words}" if words else kind


def printable(text: str) -> str:
    """The same, with escapes for what a terminal would not show, or obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _under(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _abbreviates(short: str, long: str) -> bool:
    letters = iter(long)
    return len(short) > 1 and all(letter in letters for letter in short)


def _value(hint: Any, value: Any, key: str, field: dataclasses.Field) -> Any:
    """`value` as `hint` wants it, inside the field's limits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            meant = _listed(inner[0], value, key, field)
            raise ValueError(f"{key}: {show(value)} is not a list; write {key}={show(meant)}")
        return tuple(_value(inner[0], element, key, field) for element in value)
    if origin is types.UnionType:  # NUMBER | None: absent unless it is given
        return None if value is None else _value(inner[0], value, key, field)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            raise ValueError(f"{key}: {show(value)} given; {_one_of(value, inner)}")
        return value
    converted = _scalar(hint, value)
    if type(converted) is not hint:
        raise ValueError(f"{key}: {show(value)} given; expected {NAMES[hint]}")
    if objection := _outside(converted, field.metadata):
        raise ValueError(f"{key}: {show(value)} given; {objection}")
    return converted


def _listed(hint: Any, value: Any, key: str, field: dataclasses.Field) -> Any:
    """The list of a value, or the field's default where a list of this is nothing to write."""
    with contextlib.suppress(ValueError):
        if value != "":
            return [_value(hint, value, key, field)]
    return field.default


def _scalar(kind: type, value: Any) -> Any:
    """A number as the other kind of number, and text as a number, where nothing is lost."""
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # yaml takes 1e-4 for text
    if kind is float and type(value) in (int, float):
        with contextlib.suppress(OverflowError):  # of whole numbers beyond all measure
            return float(value) if math.isfinite(value) else None
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    return None if kind is float else value


def _outside(value: Any, limits: Mapping[str, Any]) -> str:
    """What was expected, if the value breaks a limit."""
    if limits.get("choices") and value not in limits["choices"]:
        return _one_of(value, limits["choices"])
    bounds = [("low", operator.ge, "at least"), ("above", operator.gt, "more than"), ("high", operator.le, "at most")]
    bounds = [(limits[name], holds, words) for name, holds, words in bounds if limits.get(name) is not None]
    if all(holds(value, limit) for limit, holds, _ in bounds):
        return ""
    return "expected " + " and ".join(f"{words} {limit}" for limit, _, words in bounds)


def _one_of(value: Any, choices: Iterable[Any]) -> str:
    choices = [show(choice) for choice in choices]
    close = difflib.get_close_matches(show(value), choices, n=1)
    return f"expected {' | '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain(value)
    return [_plain(element) for element in value] if isinstance(value, tuple | list) else value
