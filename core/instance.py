"""One intervention of a run: its settings read, and refused where it could never act."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from core import rooms
from core.options import build, nearest
from core.when import happenings

if TYPE_CHECKING:
    from core.clock import Clock


def intervention(entry: dict[str, Any], clock: Clock, chosen: Collection[str]) -> Any:
    """An instance with its settings. Raises ValueError if it has an event that would never happen in the clock's run.

    chosen: names of all interventions of the run, for who misspells one.
    """
    name = entry.pop("name")
    key = f"interventions.{name}"
    kind = entry.pop("kind", None)
    if kind is None:
        given = next(iter(entry), "...")
        if name in rooms.interventions():
            raise ValueError(f"{key}.{given}: {name} is not chosen; add it, as in interventions=[{name}]")
        raise ValueError(f"{key}.{given}: no such intervention in this run; {nearest(name, chosen)}")
    made: Any = build(rooms.intervention(kind), entry, key)
    made.name = name
    when, acts = made.when, made.overrides("event")
    if acts and not when:
        raise ValueError(
            f"{key}.when.every: {name} acts by events and has no schedule; set {key}.when.every or .when.at"
        )
    if when and not acts:
        raise ValueError(f"{key}.when: {name} has no event, so a schedule does nothing; leave it out")
    if made.control != "none" and not acts:
        raise ValueError(f"{key}.control: {name} has no event, so there is nothing to control for; leave it out")
    if when.yoke:
        try:
            happenings(when.yoke, name)
        except ValueError as error:
            raise ValueError(f"{key}.when.{error}") from error
    if acts and not (when.metric or when.yoke or _comes_due(when, clock)):
        option = f"every={when.every}" if when.every else f"at={list(when.at)}"
        wish = " with a full interval after it (when.skip_last)" if when.every and when.skip_last else ""
        length = f"{clock.greatest(when.unit)} {'task switches' if when.unit == 'tasks' else when.unit}"
        raise ValueError(f"{key}.when.{option}: no event{wish} falls within this run's {length.replace('_', ' ')}")
    return made


def _comes_due(when: Any, clock: Clock) -> bool:
    """Whether the schedule has a count that the run reaches."""
    greatest = clock.greatest(when.unit)
    end = min(greatest, when.stop or greatest)
    if when.every:
        first = max(1, -(-when.start // when.every)) * when.every
        if first <= end and first + when.skip_last * when.every <= clock.total(when.unit):
            return True
    return any(when.start <= count <= end for count in when.at)
