"""Matched controls: what an event would have been without one of the things it does.

A gain after an event may come from new weights, from a fresh optimizer, from a moved target, or from the mere size of
the shock. Any event can be run as one of its controls, at the same times and with the same draws:

    optimizer_only   the optimizer's slots change, weights and copies stay
    target_only      the slow copies change, weights and optimizer stay
    same_norm        every changed tensor of weights and copies moves as far, in a random direction, the same for both;
                     what the event makes equal to the new weights (a target, the weights at birth) becomes equal to
                     these; the rest happens
    birth            fresh draws are replaced by the weights at birth
    identity         all is computed and nothing is changed; the ledger has the row
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from core.events import Context
    from core.state import State, Tensors

Fields = dict[str, dict[str, "Tensor"]]
Control = Literal["none", "optimizer_only", "target_only", "same_norm", "birth", "identity"]


def controlled(kind: Control, old: State, new: State, ctx: Context) -> State:
    """The state after the control of an event that would have made `new` of `old`."""
    if new is old or kind == "identity":
        return old
    if kind == "optimizer_only":
        _expect_change(kind, "optimizer", old.optim, new.optim, ctx)
        return old._replace(optim=new.optim)
    if kind == "target_only":
        _expect_change(kind, "slow copies", old.copies, new.copies, ctx)
        return old._replace(copies=new.copies)
    if kind == "same_norm":
        params = _as_far(old.params, new.params, ctx, old.params)
        copies = {role: _as_far(old.copies[role], new.copies[role], ctx, old.params) for role in old.copies}
        copies = {
            role: copies[role] | _equal(old.copies[role], new.copies[role], new.params, params) for role in copies
        }
        return new._replace(
            params=params, copies=copies, birth=new.birth | _equal(old.birth, new.birth, new.params, params)
        )
    return new


def _expect_change(kind: Control, what: str, old: Fields, new: Fields, ctx: Context) -> None:
    """A control that keeps what the event never touches would be a run without the event, under another name."""
    if all(new[field][k] is old[field][k] for field in old for k in old[field]):
        raise ValueError(
            f"control={kind}: the event leaves the {what} of part {ctx.part.name} as they are, so there is nothing to "
            f"control for; leave the part out of interventions.{ctx.instance}.on"
        )


def _equal(old: Tensors, new: Tensors, params: Tensors, moved: Tensors) -> Tensors:
    """`moved` wherever the event makes of `old` something `new` that equals its new `params`."""
    made = [k for k in moved if new[k] is not old[k] and bool((new[k] == params[k]).all())]
    return {k: moved[k].clone() for k in made}


def _as_far(old: Tensors, new: Tensors, ctx: Context, names: Iterable[str]) -> Tensors:
    """Every named tensor as far from `old` as `new` is, in a direction drawn uniformly; the others as in `new`.

    names: those of parameters. A running variance, or what an intervention carries, has no direction to go in.
    """

    def moved(name: str, before: Tensor) -> Tensor:
        distance = (new[name] - before).norm()
        if new[name] is before:
            return before
        direction = ctx.normal(f"same_norm/{name}", before.shape)
        return before + direction * (distance / direction.norm().clamp_min(1e-12))

    return new | {name: moved(name, old[name]) for name in names}
