"""The bare limit of an update: its matrix products and convolutions alone, forward and backward.

They are recorded from the update itself, with their shapes and memory order, and repeated on made-up numbers: no loss,
no activation, no optimizer, no copy. Nothing that trains the same network on the same batch can be faster than that
with torch's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward}


class Recorder(TorchDispatchMode):
    """Writes down every product that runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if op.overloadpacket in PRODUCTS:
            self.calls.append((op, tree_map(_described, args)))
        return op(*args, **(kwargs or {}))


def bare(update: Callable[[], object], dtype: torch.dtype = torch.float32) -> tuple[Callable[[], None], int, float]:
    """-> (a function that runs the products of `update` alone, their number, their floating-point operations)."""
    with Recorder() as recorder:
        update()
    torch.manual_seed(0)
    calls = [(op, tree_map(lambda x: x(dtype) if callable(x) else x, args)) for op, args in recorder.calls]
    calls = [(aten.mm.default, args[1:]) if op.overloadpacket is aten.addmm else (op, args) for op, args in calls]

    def run() -> None:
        for op, args in calls:
            op(*args)

    with FlopCounterMode(display=False) as counter:
        run()
    return run, len(calls), float(counter.get_total_flops())


def _described(value: Any) -> Any:
    """A tensor as a recipe for one like it; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    shape, strides, floating = value.shape, value.stride(), value.is_floating_point()
    device = value.device

    def make(dtype: torch.dtype) -> Tensor:
        new = torch.empty_strided(shape, strides, dtype=dtype if floating else value.dtype, device=device)
        return new.normal_() if floating else new.zero_()

    return make
