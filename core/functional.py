"""A network as a function of its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.func import functional_call


class Functional:
    """torch's `functional_call`, which the compiler knows; called eagerly, in a third of its time.

    A single decision waited longer for it than for the network. Names that the network does not have are passed over.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net, self._places = net, dict(_places(net))

    def __call__(self, numbers: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
        if is_compiling():
            return functional_call(self._net, numbers, inputs, tie_weights=False)
        taken = [(*self._places[name], tensor) for name, tensor in numbers.items() if name in self._places]
        own = [place[leaf] for place, leaf, _ in taken]
        try:
            for place, leaf, tensor in taken:
                place[leaf] = tensor
            return self._net(*inputs)
        finally:
            for (place, leaf, _), tensor in zip(taken, own, strict=True):
                place[leaf] = tensor


def _places(net: nn.Module) -> Iterator[tuple[str, tuple[dict, str]]]:
    """Where a module keeps each of its tensors: names -> (its dictionary, the name there)."""
    for path, module in net.named_modules(remove_duplicate=False):
        for place in (module._parameters, module._buffers):
            for leaf in place:
                yield f"{path}.{leaf}" if path else leaf, (place, leaf)
