"""Which tensor of an update is the first that is not finite, found by going through the update slowly.

In the order in which numbers come about: what the world has shown, what the networks carry, what they have done, then
of each part in turn what its loss computes, its gradient, and what the optimizer makes of it. The operation that made
the number is named with its line of code.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.engine import Learner
from core.part import Outcome, Part
from core.state import Batch, States, Tensors, clone, leaves

ACTION = "action"
CALLED = {"obs": "observation", "next_obs": "next observation"}  # what a batch's entries are called
KINDS = {  # what a state's fields are called
    "optim": "moment {} of",
    "params": "parameter",
    "buffers": "buffer",
    "copies": "slow copy {} of",
    "memory": "memory of {}:",
}
LIBRARY = Path(torch.__file__).parents[1]  # where installed packages are


class Bad(NamedTuple):
    """The first tensor that is not finite."""

    name: str  # "batch: reward", "critic: parameter head.weight", "critic: target", "critic: gradient of head.weight"
    numbers: str  # how many of them, and the first
    origin: str = ""  # the operation that made it

    def __str__(self) -> str:
        return f"{self.name} ({self.numbers}{'; ' if self.origin else ''}{self.origin})"


class _Found(Exception):
    def __init__(self, bad: Bad) -> None:
        super().__init__(str(bad))
        self.bad = bad


def first_bad(learner: Learner, states: States, batch: Batch, noise: Tensors) -> Bad | None:
    """One learner's update made again, eagerly, on a copy; None if every number is finite.

    What an update is given is named even where it would not have spread.
    """
    trace = _Trace()
    with torch.no_grad():
        for name, tensor in batch.items():
            if name != ACTION and (bad := _judged(f"batch: {CALLED.get(name, name)}", tensor)):
                return bad
        if bad := _carried(states):
            return bad
        if ACTION in batch and (bad := _judged(f"batch: {ACTION}", batch[ACTION])):
            return bad
        try:
            with _watched(learner.parts, trace):
                new, _ = learner.update(clone(states), clone(batch), noise)
        except _Found as found:
            return found.bad
        return _carried(new, " after the step")


def _carried(states: States, when: str = "") -> Bad | None:
    """Moments come first: a parameter can have it from them; they cannot from one of a learner that was stopped."""
    for part, s in states.items():
        for field, role, name, tensor in leaves(s):
            if bad := _judged(f"{part}: {KINDS[field].format(role)} {name}{when}", tensor):
                return bad
    return None


@contextmanager
def _watched(parts: dict[str, Part], trace: _Trace) -> Iterator[None]:
    """Inside, every part's gradient is computed eagerly and looked through."""
    before = {name: (part.fused, part.compiled_gradient) for name, part in parts.items()}
    for part in parts.values():
        part.fused, part.compiled_gradient = False, _looking(part, trace)
    try:
        yield
    finally:
        for name, part in parts.items():
            part.fused, part.compiled_gradient = before[name]


def _looking(part: Part, trace: _Trace) -> Callable[..., tuple[Tensors, Outcome]]:
    def gradient(states: States, batch: Batch, noise: Tensors, observing: bool = False) -> tuple[Tensors, Outcome]:
        with trace:
            grads, outcome = part.gradient(states, batch, noise, observing)
        values = {"target": outcome.values.get("target"), "value": outcome.values.get("q"), "loss": outcome.loss}
        for name, tensor in {**values, **{f"gradient of {name}": grad for name, grad in grads.items()}}.items():
            if tensor is not None and (bad := _judged(f"{part.name}: {name}", tensor)):
                raise _Found(bad._replace(origin=trace.origin))
        return grads, outcome

    return gradient


class _Trace(TorchDispatchMode):
    """Remembers the first operation that makes what is not finite of what is."""

    origin = ""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        if not self.origin and _spoilt(out) and not _spoilt((args, kwargs)):
            self.origin = f"made by {operation.overloadpacket.__name__} in {_line()}"
        return out


def _spoilt(tree: object) -> bool:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return any(not leaf.isfinite().all() for leaf in leaves)


def _line() -> str:
    """The innermost line that is no library's."""
    frame = sys._getframe(1)
    while frame.f_back and (frame.f_code.co_filename == __file__ or LIBRARY in Path(frame.f_code.co_filename).parents):
        frame = frame.f_back
    path, number = Path(frame.f_code.co_filename), frame.f_lineno
    return f"{path.parent.name}/{path.name}:{number}: {linecache.getline(str(path), number).strip()}"


def _judged(name: str, tensor: Tensor) -> Bad | None:
    wrong = ~tensor.isfinite()
    if not wrong.any():
        return None
    return Bad(name, f"{int(wrong.sum())} of {tensor.numel()} numbers, the first {float(tensor[wrong][0])}")
