"""Which intervention acts on which part and which of its parameters, and whose objection is whose."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

from core.blueprint import SECTIONS

if TYPE_CHECKING:
    from core.blueprint import Layer
    from core.intervention import Intervention
    from core.part import Part


def matches(name: str, has_layers: bool, words: Iterable[str]) -> bool:
    """Does one of the words of `on` mean this part? "*" is every part that has layers."""
    return any(has_layers if word == "*" else fnmatch.fnmatch(name, word) for word in words)


def select(word: str, names: list[str], layers: Sequence[Layer]) -> list[str]:
    """Those of a part's parameter names that one word of `where` means."""
    if word == "all" or (word in SECTIONS and not layers):
        return names
    if word in SECTIONS:
        chosen = [layer for layer in layers if (layer.output if word == "output" else layer.section == word)]
        prefixes = tuple(f"{layer.name}." for layer in chosen)
        return [name for name in names if name.startswith(prefixes)]
    return fnmatch.filter(names, word)


@contextmanager
def named(intervention: Intervention) -> Iterator[None]:
    """Objections raised inside speak of this intervention's settings."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"interventions.{intervention.name}.{error}") from error


def check_parts(parts: dict[str, Part], interventions: Sequence[Intervention]) -> None:
    """Every intervention must act on some part, every word of its `on` must match one, and none exclude each other."""
    for intervention in interventions:
        if not intervention.on:
            raise ValueError(
                f"interventions.{intervention.name}.on=[] means no part; this agent has {', '.join(parts)}"
            )
        if not intervention.where:
            raise ValueError(
                f"interventions.{intervention.name}.where=[] means no weight; leave it out for its default"
            )
        for word in intervention.on:
            if not any(matches(p.name, bool(p.chains), (word,)) for p in parts.values()):
                raise ValueError(
                    f"interventions.{intervention.name}.on={word} matches no part; this agent has {', '.join(parts)}"
                )
    for part in parts.values():
        for a, b in combinations(part.interventions, 2):
            if a.exclusive and a.exclusive == b.exclusive:
                raise ValueError(
                    f"interventions: {a.name} and {b.name} on {part.name}: each {a.exclusive}, and only one can; "
                    f"drop one, or give them different parts by interventions.{b.name}.on"
                )
