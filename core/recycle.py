"""Units that begin life again: the one core of ReDo, continual backpropagation and self-normalised resets.

A unit is a neuron of a dense layer or a channel of a convolution. What belongs to it: a row of its layer's weight and
bias (and of their sigmas, in a noisy layer), its gain and shift in the normalisation behind, and a column (behind a
flattened image: one per pixel; behind CReLU: one per half) of every layer that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from core.blueprint import Layer
from core.events import Context
from core.intervention import Intervention
from core.optim import Adam
from core.options import option
from core.part import Part
from core.state import State, Tensors

Chosen = dict[str, Tensor]  # layer name -> bool [units]


def recyclable(part: Part, where: Iterable[str]) -> list[Layer]:
    """Hidden layers whose weights, and the weights that read them, are among `where`. Raises ValueError if none is."""
    names = set(part.names(where))
    layers = [
        layer
        for layer in part.layers
        if layer.readers and all(f"{holder}.weight" in names for holder in (layer.name, *layer.readers))
    ]
    if not layers:
        chosen = ",".join(where)
        raise ValueError(
            f"where=[{chosen}] holds no hidden layer of part {part.name} together with the layers that read it; "
            "expected all, or names such as those of two layers in a row"
        )
    return layers


def columns(chosen: Tensor, layer: Layer, reader: Tensor) -> Tensor:
    """Which inputs of a reading layer come from the chosen units. bool [units] -> bool [inputs of the reader]."""
    features = chosen.repeat(layer.halves)
    return features.repeat_interleave(reader.shape[1] // len(features))


def incoming(part: Part, params: Tensors, chosen: Chosen) -> Tensors:
    """Entries that make the chosen units what they are. -> bool, by parameter name, in the parameters' shapes."""
    entries = {}
    for layer in part.layers:
        if layer.name in chosen:
            for holder in filter(None, (layer.name, layer.norm)):
                for k in (k for k in params if k.startswith(f"{holder}.")):
                    rows = chosen[layer.name].reshape(-1, *[1] * (params[k].ndim - 1))
                    entries[k] = rows.expand_as(params[k])
    return entries


def outgoing(part: Part, params: Tensors, chosen: Chosen) -> Tensors:
    """Entries through which the chosen units are read. -> bool, by parameter name, in the parameters' shapes."""
    entries: Tensors = {}
    for layer in part.layers:
        readers = layer.readers if layer.name in chosen else ()
        for k in (k for reader in readers for k in params if k.startswith(f"{reader}.") and params[k].ndim > 1):
            read = columns(chosen[layer.name], layer, params[k])
            mask = read.reshape(1, -1, *[1] * (params[k].ndim - 2)).expand_as(params[k])
            entries[k] = entries[k] | mask if k in entries else mask
    return entries


def recycle(
    s: State,
    ctx: Context,
    chosen: Chosen,
    *,
    toward: Literal["fresh", "birth"] = "fresh",
    reader: Literal["zero", "fresh", "keep"] = "zero",
    optimizer: Literal["keep", "touched"] = "touched",
    copied: Sequence[str] = (),
) -> State:
    """Give the chosen units new incoming weights, and outgoing ones by the rule `reader`; the state as it was if none.

    Where a chosen unit reads a chosen unit, the rule of the outgoing entry wins. optimizer "touched": moments of all
    these entries start at 0, and so does their step count where each entry has its own. copied: roles of the slow
    copies that get the new entries.
    """
    if not any(bool(mask.any()) for mask in chosen.values()):
        return s
    part, drawn = ctx.part, ctx.fresh() if toward == "fresh" else s.birth
    new, touched = dict(s.params), incoming(part, s.params, chosen)
    for k, mask in touched.items():
        new[k] = torch.where(mask, drawn[k], new[k])
    if reader != "keep":
        for k, mask in outgoing(part, s.params, chosen).items():
            new[k] = torch.where(mask, drawn[k] if reader == "fresh" else torch.zeros_like(new[k]), new[k])
            touched[k] = touched[k] | mask if k in touched else mask
    slots = dict(s.optim)
    if optimizer == "touched":
        for slot, old in s.optim.items():
            zeroed = {k: old[k].masked_fill(mask, 0.0) for k, mask in touched.items() if old[k].ndim}
            slots[slot] = old | zeroed
    slow = {
        role: old | {k: torch.where(mask, new[k], old[k]) for k, mask in touched.items()} if role in copied else old
        for role, old in s.copies.items()
    }
    return s._replace(params=new, optim=slots, copies=slow)


@dataclass(kw_only=True)
class Recycling(Intervention):
    """What all interventions that recycle units have in common: how a unit begins again, and what goes with it."""

    toward: Literal["fresh", "birth"] = option("fresh", help="incoming weights: a new draw, or those at birth")
    reader: Literal["zero", "fresh", "keep"] = option("zero", help="outgoing weights: zero, a new draw, or as they are")
    optimizer: Literal["keep", "touched"] = option("touched", help="moments of recycled entries: keep, or start at 0")
    steps: Literal["keep", "renew"] = option("keep", help="Adam's step count: one per tensor, or renewed per entry")
    target: Literal["keep", "copy"] = option("keep", help="target network: keep, or copy the new entries")
    slow: Literal["keep", "copy"] = option("keep", help="the same for every other slow copy")

    def tune(self, part: Part, optim: Adam) -> Adam:
        return replace(optim, elementwise=True) if self.steps == "renew" else optim

    def remember(self, part: Part, params: Tensors) -> Tensors:
        recyclable(part, self.where)  # nothing to recycle is an error now, not in an hour
        return {}

    def recycled(self, s: State, ctx: Context, chosen: Chosen) -> State:
        """The state after the chosen units have begun life again."""
        rules = {role: self.target if role == "target" else self.slow for role in s.copies}
        copied = [role for role, rule in rules.items() if rule == "copy"]
        return recycle(s, ctx, chosen, toward=self.toward, reader=self.reader, optimizer=self.optimizer, copied=copied)
