"""What an event did to a network, as one row of the ledger. An event that selected something and changed nothing is an
error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.clock import Clock
from core.state import State, Tensors

if TYPE_CHECKING:
    from core.intervention import Intervention
    from core.part import Part


class NothingChanged(RuntimeError):
    """An event claimed to act and left every number as it was."""


def entry(intervention: Intervention, part: Part, seed: int, clock: Clock, old: State, new: State) -> dict:
    """Compare a state before and after an event. -> a row of plain data.

    An event that selects nothing by its own criterion returns the very state it was given: it is recorded with touched
    = 0. Raises NothingChanged if it returned another state that holds the same numbers, once anything has been learned.
    """
    changes = {
        "params": _changes(old.params, new.params),
        "birth": _changes(old.birth, new.birth),
        **{f"copies/{role}": _changes(old.copies[role], new.copies[role]) for role in old.copies},
        **{f"optim/{slot}": _changes(old.optim[slot], new.optim[slot]) for slot in old.optim},
        "buffers": _changes(old.buffers, new.buffers),
        **{f"memory/{name}": _changes(old.memory[name], new.memory[name]) for name in old.memory},
    }
    changes = {field: change for field, change in changes.items() if change["tensors"]}
    if new is not old and not changes and clock.updates:  # before the first update all is as it was born
        raise NothingChanged(
            f"interventions.{intervention.name} selected tensors of part {part.name} at update {clock.updates} and "
            "changed nothing; an event that selects nothing must return the state it was given"
        )
    return {
        "step": clock.env_steps,
        "updates": clock.updates,
        "intervention": intervention.name,
        "part": part.name,
        "seed": seed,
        "unit": intervention.when.unit,
        "touched": sum(change["entries"] for change in changes.values()),
        "changes": changes,
    }


def _changes(old: Tensors, new: Tensors) -> dict:
    """Tensors and entries that differ, and the Euclidean norm of the difference."""
    tensors, entries, squares = 0, 0, 0.0
    for name, before in old.items():
        if new[name] is before:
            continue
        differs = int((new[name] != before).sum())
        tensors, entries = tensors + (differs > 0), entries + differs
        squares += float((new[name] - before).double().square().sum())
    return {"tensors": tensors, "entries": entries, "norm": squares**0.5}
