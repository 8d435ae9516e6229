"""The map of anybody's module: which layer feeds which, found by running it, and proven by running it again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.blueprint import PRE, Kind, Layer, Section
from core.state import Tensors

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
Initialise = Callable[[nn.Module], object]


class Traced(nn.Module):
    """A newborn copy of a module that also returns what each layer hands to the next, and its pre-activations."""

    def __init__(self, module: nn.Module, layers: list[Layer], initialise: Initialise | None) -> None:
        super().__init__()
        self.module, self.layers = copy.deepcopy(module).eval(), layers
        begin_again(self.module, initialise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensors]:
        feats: Tensors = {}
        modules: dict[str, Any] = dict(self.named_modules())

        def keep(layer: Layer, units: int):
            def hook(reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                feats[layer.feats] = inputs[0].reshape(len(inputs[0]), units, -1)

            return hook

        def keep_before(layer: Layer, units: int):
            def hook(last: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                feats[layer.feats + PRE] = output.reshape(len(output), units, -1)

            return hook

        hooks = []
        for layer in self.layers:
            if layer.readers:
                units = modules[layer.name].weight.shape[0]
                hooks.append(modules[layer.readers[0]].register_forward_pre_hook(keep(layer, units)))
                hooks.append(modules[layer.norm or layer.name].register_forward_hook(keep_before(layer, units)))
        try:
            return self.module(x), feats
        finally:
            for hook in hooks:
                hook.remove()

    def chains(self) -> list[list[Layer]]:
        return [self.layers]


def begin_again(module: nn.Module, initialise: Initialise | None) -> None:
    """Every layer draws its weights anew: torch's own draw, then the user's. Raises ValueError for a weight that
    neither draws."""
    own = [child for child in module.modules() if hasattr(child, "reset_parameters")]
    for child in own:
        cast(Any, child).reset_parameters()
    if initialise:
        initialise(module)
        return
    drawn = {id(p) for child in own for p in child.parameters(recurse=False)}
    for name, p in module.named_parameters():
        if id(p) not in drawn:
            raise ValueError(
                f"{name} belongs to a module without reset_parameters; say how it is drawn by initialise=FUNCTION, "
                "which is given a copy of the module"
            )


def chain_of(module: nn.Module, example: Tensor) -> list[Layer]:
    """The map of a module's layers, in the order in which `example` runs through them.

    Raises ValueError if it is not one chain: if what a layer computes reaches anything but the next one.
    """
    found: dict[nn.Module, str] = {
        layer: name for name, layer in module.named_modules() if isinstance(layer, WEIGHTED + NORMS)
    }
    with torch.no_grad(), evaluating(module):
        order = [(f"module.{found[layer]}", layer) for layer, _ in run(module, example, list(found))[1]]
        if len({name for name, _ in order}) < len(order):
            raise ValueError("a layer runs twice; expected a plain chain")
        weighted = [i for i, (_, layer) in enumerate(order) if isinstance(layer, WEIGHTED)]
        check_chain(module, example, [order[i] for i in weighted])
    layers: list[Layer] = []
    convolved = False
    for i, j in zip(weighted, [*weighted[1:], None], strict=True):
        (name, layer), norm = order[i], order[i + 1][0] if i + 1 < (j or len(order)) else ""
        kind: Kind = "conv" if isinstance(layer, nn.Conv2d) else "linear"
        convolved |= kind == "conv"
        if j is None:
            layers.append(Layer(name, kind, "head", output=True, norm=norm))
            continue
        reader, reading = order[j]
        units, inputs = (cast(Tensor, m.weight).shape[k] for m, k in ((layer, 0), (reading, 1)))
        if inputs % units:
            raise ValueError(f"{reader} has {inputs} inputs and {name} before it {units} units; expected a plain chain")
        section: Section = "encoder" if kind == "conv" else "head" if convolved else "trunk"
        layers.append(Layer(name, kind, section, feats=name, readers=(reader,), norm=norm))
        layers += [Layer(norm, "norm", section)] if norm else []
    return layers


def check_chain(module: nn.Module, example: Tensor, layers: list[tuple[str, nn.Module]]) -> None:
    """With the next layer's output held fast, nothing later may feel a layer's output; the next one must feel it."""
    out, seen = run(module, example, [layer for _, layer in layers])
    outputs = {layer: output for layer, output in seen}
    for (name, layer), (reader, reading) in zip(layers, layers[1:], strict=False):
        other = outputs[layer] + torch.linspace(0.5, 1.5, outputs[layer].numel()).view_as(outputs[layer]).to(out)
        held, _ = run(module, example, [], {layer: other, reading: outputs[reading]})
        _, moved = run(module, example, [reading], {layer: other})
        if not torch.equal(held, out):
            raise ValueError(f"what {name} computes is read by more than {reader}; expected a plain chain")
        if torch.equal(moved[0][1], outputs[reading]):
            raise ValueError(f"{reader} runs after {name} and does not read it; expected a plain chain")


def run(
    module: nn.Module, example: Tensor, watched: list[nn.Module], replaced: dict[nn.Module, Tensor] | None = None
) -> tuple[Tensor, list[tuple[nn.Module, Tensor]]]:
    """-> (the output, what the watched layers computed, in order). The outputs of some layers may be replaced."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((layer, output.clone()))

    def replace(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (replaced or {})[layer]

    hooks = [layer.register_forward_hook(replace) for layer in replaced or ()]
    hooks += [layer.register_forward_hook(note) for layer in watched]
    try:
        return flat(module(example)), seen
    finally:
        for hook in hooks:
            hook.remove()


def flat(output: Any) -> Tensor:
    """Whatever a module returns, as one tensor."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.cat([leaf.flatten() for leaf in leaves])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block nothing is counted and nothing is dropped; afterwards every submodule is as it was."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, training in modes.items():
            child.training = training
