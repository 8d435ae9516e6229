"""One intervention of a run: its settings read, and refused where it could never act."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from core import rooms
from core.options import build, nearest, show
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
    if not isinstance(kind, str) or kind not in rooms.interventions():
        raise ValueError(f"{key}.kind: {show(kind)} given; {nearest(show(kind), rooms.interventions())}")
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
    if acts and (objection := _objection(when, name, clock)):
        raise ValueError(f"{key}.when.{objection}")
    return made


def _objection(when: Any, name: str, clock: Clock) -> str:
    """What of a schedule lies outside the clock's run; "" if nothing does."""
    length = f"{clock.greatest(when.unit)} {'task switches' if when.unit == 'tasks' else when.unit}".replace("_", " ")
    if when.yoke:
        try:
            times = happenings(when.yoke, name).updates
        except ValueError as error:
            return str(error)
        within = any(count <= clock.greatest("updates") for counts in times.values() for count in counts)
        return "" if within else f"yoke={when.yoke}: all it did there came after this run's {length}"
    if when.metric:
        due = _reached(when, clock)
        return "" if due else f"measure_every={when.measure_every}: no look falls within this run's {length}"
    late = [count for count in when.at if not when.start <= count <= _end(when, clock)]
    if late:
        return f"at={late}: beyond start, stop or this run's {length}"
    if not when.at and when.every and not _reached(when, clock):
        wish = " with a full interval after it (when.skip_last)" if when.skip_last else ""
        return f"every={when.every}: no event{wish} falls within this run's {length}"
    return ""


def _reached(when: Any, clock: Clock) -> bool:
    """Whether the run comes to a count at which the schedule may act."""
    apart = when.cooldown if when.metric else when.every
    return when.first() <= _end(when, clock) and when.first() + when.skip_last * apart <= clock.total(when.unit)


def _end(when: Any, clock: Clock) -> int:
    greatest = clock.greatest(when.unit)
    return min(greatest, when.stop or greatest)
