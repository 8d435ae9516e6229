"""Adam and AdamW, and SGD with momentum, as functions of values.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   t <- t + 1
    w <- w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Kingma & Ba 2015, Algorithm 1; decay decoupled as in Loshchilov & Hutter 2019. The step count t belongs to each tensor
and may have the tensor's own shape, so that an intervention can restart single tensors, or single units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.state import Tensors

Slots = dict[str, Tensors]


@dataclass(frozen=True)
class Adam:
    """Settings of the optimizer of one part."""

    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    decay: float = 0.0  # decoupled weight decay
    decays: frozenset[str] | Literal["matrices", "all"] = "matrices"  # what decays: names, or tensors with two axes
    clip_norm: float = 0.0  # gradients of the part longer than this are scaled down to it; 0: none are
    elementwise: bool = False  # a step count for every entry, so that single units can start anew
    hold: bool = False  # moments advance and weights stay: an intervention moves them

    def start(self, params: Tensors) -> Slots:
        """Slots of an optimizer that has taken no step."""
        return {
            "m": {k: torch.zeros_like(p) for k, p in params.items()},
            "v": {k: torch.zeros_like(p) for k, p in params.items()},
            "t": {k: torch.zeros_like(p) if self.elementwise else p.new_zeros(()) for k, p in params.items()},
        }

    def step(self, params: Tensors, grads: Tensors, slots: Slots, alive: Tensor | None = None) -> tuple[Tensors, Slots]:
        """One step, as new values. All dicts share the names of `params`.

        Where `alive` () is false nothing moves, whatever the gradients are. That is said in the rates, in float32: to
        hold back each result would cost a compiled update several per cent.
        """
        lr, take, add, tick = (_or(alive, rate, 0.0) for rate in (self.lr, 1 - self.b1, 1 - self.b2, 1.0))
        keep = _or(alive, self.b2, 1.0)
        new, m, v, t = {}, {}, {}, {}
        for k, p in params.items():
            g, count = _or(alive, grads[k], 0.0), slots["t"][k] + 1
            t[k] = slots["t"][k] + tick
            m[k] = slots["m"][k] + take * (g - slots["m"][k])
            v[k] = slots["v"][k] * keep + g.square() * add
            step_size = lr / (1 - self.b1**count)
            denominator = (v[k] / (1 - self.b2**count)).sqrt() + self.eps
            new[k] = p if self.hold else p * (1 - lr * self._decay(k, p)) - step_size * m[k] / denominator
        return new, {"m": m, "v": v, "t": t}

    def direction(self, name: str, slots: Slots) -> Tensor:
        """What a step subtracts from a tensor, in learning rates, by the moments as they are."""
        m, v, t = (slots[slot][name] for slot in ("m", "v", "t"))
        return m / (1 - self.b1**t) / ((v / (1 - self.b2**t)).sqrt() + self.eps)

    def step_(self, params: Tensors, grads: Tensors, slots: Slots, alive: Tensor | None = None) -> None:
        """The same step in place, by torch's fused kernel where it can."""
        tick = None if alive is None else alive.float()
        single = [k for k in params if slots["t"][k].ndim == 0]
        decays = {k: self._decay(k, params[k]) for k in single}
        for decay in set(decays.values()):
            self._fused([k for k in single if decays[k] == decay], params, grads, slots, tick, decay)
        rest = [k for k in params if slots["t"][k].ndim > 0]  # the kernel knows one step count per tensor
        if rest:
            old = {"params": params, **slots}
            mine = {name: {k: tensors[k] for k in rest} for name, tensors in old.items()}
            stepped, new_slots = self.step(mine.pop("params"), grads, mine, alive)
            for name, tensors in {"params": stepped, **new_slots}.items():
                for k, value in tensors.items():
                    old[name][k].copy_(value)

    def _fused(
        self, names: list[str], params: Tensors, grads: Tensors, slots: Slots, tick: Tensor | None, decay: float
    ) -> None:
        t = [slots["t"][k] for k in names]
        torch._foreach_add_(t, 1 if tick is None else [tick] * len(t))
        torch._fused_adamw_(
            [params[k] for k in names],
            [grads[k].contiguous() for k in names],  # it reads memory in order, whatever the strides say
            [slots["m"][k] for k in names],
            [slots["v"][k] for k in names],
            [],
            t,
            lr=0.0 if self.hold else self.lr,
            beta1=self.b1,
            beta2=self.b2,
            weight_decay=decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=None if tick is None else 1 - tick,
        )

    def _decay(self, name: str, p: Tensor) -> float:
        chosen = self.decays == "all" or (p.ndim > 1 if self.decays == "matrices" else name in self.decays)
        return self.decay if chosen else 0.0


@dataclass(frozen=True)
class SGD(Adam):
    """Gradient descent with momentum b1: m <- b1 m + g,  w <- w (1 - lr decay) - lr m.

    As torch.optim.SGD without dampening, but for decay, which is decoupled here too. The slots are Adam's, so that
    whatever starts a tensor's optimizer anew does so here; v stays 0.
    """

    b1: float = 0.9

    def step(self, params: Tensors, grads: Tensors, slots: Slots, alive: Tensor | None = None) -> tuple[Tensors, Slots]:
        lr, keep, tick = _or(alive, self.lr, 0.0), _or(alive, self.b1, 1.0), _or(alive, 1.0, 0.0)
        m = {k: slots["m"][k] * keep + _or(alive, grads[k], 0.0) for k in params}
        t = {k: slots["t"][k] + tick for k in params}
        new = {k: p if self.hold else p * (1 - lr * self._decay(k, p)) - lr * m[k] for k, p in params.items()}
        return new, {"m": m, "v": slots["v"], "t": t}

    def direction(self, name: str, slots: Slots) -> Tensor:
        return slots["m"][name]

    def step_(self, params: Tensors, grads: Tensors, slots: Slots, alive: Tensor | None = None) -> None:
        stepped, new_slots = self.step(params, grads, slots, alive)
        for old, new in ((params, stepped), (slots["m"], new_slots["m"]), (slots["t"], new_slots["t"])):
            for k, value in new.items():
                old[k].copy_(value)


def _or(alive: Tensor | None, value: Any, otherwise: float) -> Any:
    """The value, or where a member is not alive the other; None: it is."""
    return value if alive is None else torch.where(alive, value, otherwise)
