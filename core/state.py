"""A network with all that training attaches to it, as one value.

Everything plasticity research does to a network is a function State -> State. Shapes are for one seed; the engine
stacks the states of n seeds along a leading axis and writes new values into storage that never moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Tensors = dict[str, Tensor]  # parameter name -> tensor
Batch = dict[str, Tensor]  # obs, action, reward, discount, next_obs, weight; update and (agent) step: where the run is


class State(NamedTuple):
    """One network of one seed: what is trained, and what surrounds it."""

    params: Tensors  # what the optimizer trains
    birth: Tensors  # the weights this network (or its redrawn part) was born with
    copies: dict[str, Tensors]  # slow copies by role: "target" for bootstrapping, ...; names of params and buffers
    optim: dict[str, Tensors]  # optimizer slots by name, for Adam: m, v, t
    buffers: Tensors  # untrained numbers the network carries (running statistics); {} for most
    memory: dict[str, Tensors]  # what each intervention remembers, under its name


States = dict[str, State]  # part name -> State: the whole learner is this tree


def weights(s: State, role: str = "params") -> Tensors:
    """All a network runs on, as it decides and bootstraps: the trained one ("params") or the slow copy of that role."""
    return s.params | s.buffers if role == "params" else s.copies[role]


def leaves(s: State) -> Iterator[tuple[str, str, str, Tensor]]:
    """Every tensor but the birth weights: (field, role or slot or "", name, tensor), moments before what they move."""
    plain = {"params": {"": s.params}, "buffers": {"": s.buffers}}
    for field, trees in ({"optim": s.optim} | plain | {"copies": s.copies, "memory": s.memory}).items():
        for role, tensors in trees.items():
            for name, tensor in tensors.items():
                yield field, role, name, tensor


def stack(trees: Sequence[States]) -> States:
    """Put n learners side by side: every leaf [...] becomes [n, ...]."""
    return tree_map(lambda *leaves: torch.stack(leaves), *trees)


def member(states, i: int):
    """Learner i of a stack, as views into its storage."""
    if isinstance(states, dict):  # at each decision and update: most of a walk through any tree is finding out its kind
        return {name: member(value, i) for name, value in states.items()}
    return states[i] if isinstance(states, Tensor) else tree_map(lambda leaf: leaf[i], states)


def clone(states):
    """The same values in new storage."""
    return tree_map(torch.clone, states)


def where(alive: Tensor, new, old):
    """The new values where a member is alive, else the old ones; what did not change is left as it is."""
    return tree_map(lambda a, b: a if a is b else torch.where(alive, a, b), new, old)


def write(old, new) -> None:
    """Write `new` into the storage of `old`, leaf by leaf and by name.

    Raises ValueError if one has names that the other lacks.
    """
    if isinstance(old, Tensor):
        if new is not old:
            old.copy_(new)
        return
    if isinstance(old, State):
        old, new = old._asdict(), new._asdict()
    if old.keys() != new.keys():
        raise ValueError(f"{sorted(old.keys() ^ new.keys())[:4]} is in one of two states alone")
    for name, leaf in old.items():
        write(leaf, new[name])


def shaped(saved: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """The same tensor. Raises ValueError if it is of another shape."""
    if tuple(saved.shape) != tuple(shape):
        raise ValueError(f"{name}: shape {list(saved.shape)} given; expected {list(shape)}")
    return saved


def check_same_tree(mine: States, saved: States) -> None:
    """Raises ValueError, naming the first, if a tensor is in one of two learners alone or of another shape there."""

    def leaves(tree: States) -> dict[str, tuple]:
        flat, _ = torch.utils._pytree.tree_flatten_with_path(tree)
        return {torch.utils._pytree.keystr(path): tuple(leaf.shape) for path, leaf in flat}

    a, b = leaves(mine), leaves(saved)
    if a != b:
        wrong = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
        raise ValueError(
            f"the checkpoint does not fit this configuration: {', '.join(wrong[:3])} differ in shape or name"
        )
