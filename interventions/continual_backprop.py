"""Continual backpropagation: at all times a few of the least useful units begin life again.

Idea      Random features at birth are what makes a network plastic. Keep supplying them: test new units for a while,
          and replace the least useful of the old ones.
Rule      after every update, for every hidden unit:   age += 1,   utility <- decay utility + (1 - decay) u,
            contribution   u = mean|h_i| * mean|outgoing weights|
            adaptable      u = mean|h_i - f_i| * mean|outgoing weights| / mean|incoming weights|
          with f the average of h; of the units older than `maturity` a share `rate` per update is replaced, lowest
          utility / (1 - decay^age) first:   incoming weights <- fresh draw, outgoing weights <- 0, age and utility <-
          0, and the average output of the unit passes to the biases of its readers:   b += outgoing weights * f_i
Source    Dohare et al. 2024, "Loss of plasticity in deep continual learning", Methods; released code (verified).
Choices   Averages advance in every update. Units are replaced in an event: what is owed, `rate` times the mature units
          of a layer, is summed up, and whole units are replaced when `when` comes (every=1 is the published rule). f_i
          is corrected for its start, f / (1 - decay^age). The released code zeroes f before it uses it, so that its
          bias correction does nothing: `bias_correction=false` has that. Fresh draws come from the network's own
          initialiser (the released code: Kaiming uniform). Each entry has an Adam step count of its own, as in the
          released AdamGnT; `steps=keep` is faster. At the borders of a padded convolution, and behind a max-pool
          (net=cnn, vgg16), the bias correction is an approximation: h is taken before the pool, and the mean of what
          the readers see is larger.
Effects   Function: the mean output is kept, up to what the unit's activity varies. Target and other slow copies: kept.
          Birth weights: kept.
Defaults  rate 1e-4, maturity 10,000 updates, decay 0.99, looked at every 100 updates (rate and maturity as in the
          paper's PPO; nothing is published for DQN or SAC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.blueprint import Layer
from core.events import Context
from core.options import option
from core.part import Part, Step
from core.recycle import Recycling, recyclable
from core.state import State, Tensors


@dataclass(kw_only=True)
class ContinualBackprop(Recycling):
    rate: float = option(1e-4, low=0, high=1, help="share of a layer's mature units that is replaced per update")
    maturity: int = option(10_000, low=0, help="updates that a unit is left alone")
    decay: float = option(0.99, low=0, high=1, help="of the averages of utility and activity")
    utility: Literal["contribution", "adaptable"] = option("contribution", help="what is averaged (see the rule)")
    bias_correction: bool = option(True, help="pass a replaced unit's average output on to the biases of its readers")
    steps: Literal["keep", "renew"] = option("renew", help="Adam's step count: one per tensor, or renewed per entry")

    def remember(self, part: Part, params: Tensors) -> Tensors:
        super().remember(part, params)
        memory: Tensors = {}
        for layer in recyclable(part, self.where):
            weight = params[f"{layer.name}.weight"]
            memory |= {f"{name}/{layer.name}": weight.new_zeros(len(weight)) for name in ("age", "utility")}
            memory[f"mean/{layer.name}"] = weight.new_zeros(layer.halves * len(weight))
            memory[f"owed/{layer.name}"] = weight.new_zeros(())
        return memory

    def after_step(self, part: Part, s: State, step: Step) -> State:
        memory = s.memory[self.name]
        new: Tensors = {}
        for layer in recyclable(part, self.where):
            samples = step.outcome.feats[layer.feats].movedim(1, -1).flatten(0, -2)  # [N, features]
            mean = memory[f"mean/{layer.name}"].lerp(samples.mean(0), 1 - self.decay)
            age = memory[f"age/{layer.name}"] + 1
            now = self._utility(s.params, layer, samples, self._corrected(mean, age, layer))
            new |= {
                f"mean/{layer.name}": mean,
                f"age/{layer.name}": age,
                f"utility/{layer.name}": memory[f"utility/{layer.name}"].lerp(now, 1 - self.decay),
                f"owed/{layer.name}": memory[f"owed/{layer.name}"] + self.rate * (age > self.maturity).sum(),
            }
        return s._replace(memory=s.memory | {self.name: memory | new})

    def event(self, part: Part, s: State, ctx: Context) -> State:
        memory, chosen = s.memory[self.name], {}
        for layer in recyclable(part, self.where):
            age = memory[f"age/{layer.name}"]
            utility = self._corrected(memory[f"utility/{layer.name}"], age)
            mature = age > self.maturity
            count = min(int(memory[f"owed/{layer.name}"]), int(mature.sum()))
            least = utility.masked_fill(~mature, torch.inf).argsort(stable=True)[:count]
            chosen[layer.name] = torch.zeros_like(mature).index_fill(0, least, True)
        new = self.recycled(s, ctx, chosen)
        if new is s:
            return s
        begun: Tensors = {}
        for layer in recyclable(part, self.where):
            units = chosen[layer.name]
            begun[f"owed/{layer.name}"] = memory[f"owed/{layer.name}"] - units.sum()
            for name in ("age", "utility", "mean"):
                old = memory[f"{name}/{layer.name}"]
                begun[f"{name}/{layer.name}"] = old.masked_fill(units.repeat(len(old) // len(units)), 0.0)
        if self.bias_correction:
            new = new._replace(params=new.params | self._passed_on(part, s, new.params, chosen))
        return new._replace(memory=s.memory | {self.name: memory | begun})

    def _utility(self, params: Tensors, layer: Layer, samples: Tensor, mean: Tensor) -> Tensor:
        """What each unit is worth on these samples [N, features]. -> [units]"""
        activity = samples if self.utility == "contribution" else samples - mean
        worth = activity.abs().mean(0) * torch.stack([_said(params, layer, name) for name in layer.readers]).mean(0)
        worth = worth.unflatten(0, (layer.halves, -1)).sum(0)
        if self.utility == "adaptable":
            worth = worth / params[f"{layer.name}.weight"].flatten(1).abs().mean(1).clamp_min(1e-12)
        return worth

    def _corrected(self, average: Tensor, age: Tensor, layer: Layer | None = None) -> Tensor:
        """An average without the weight of the zero it began with."""
        halves = layer.halves if layer else 1
        return average / (1 - self.decay**age).clamp_min(1e-12).repeat(halves)

    def _passed_on(self, part: Part, s: State, params: Tensors, chosen: dict[str, Tensor]) -> Tensors:
        """Biases of the readers that make up for the average output of the chosen units."""
        biases: Tensors = {}
        names = set(part.names(self.where))
        for layer in recyclable(part, self.where):
            memory = s.memory[self.name]
            mean = self._corrected(memory[f"mean/{layer.name}"], memory[f"age/{layer.name}"], layer)
            lost = mean * chosen[layer.name].repeat(layer.halves)
            for reader in layer.readers:
                if f"{reader}.bias" in names:
                    weight = s.params[f"{reader}.weight"]
                    inputs = lost.repeat_interleave(weight.shape[1] // len(lost))
                    passed = torch.einsum("oi...,i->o", weight, inputs)
                    old = biases.get(f"{reader}.bias", params[f"{reader}.bias"])
                    unit = chosen.get(reader)  # a reader's unit that begins again itself has nothing to make up for
                    biases[f"{reader}.bias"] = old + (passed if unit is None else passed.masked_fill(unit, 0.0))
        return biases


def _said(params: Tensors, layer: Layer, reader: str) -> Tensor:
    """Mean size of the weights through which a layer reads each feature. -> [features]"""
    sizes = params[f"{reader}.weight"].abs().transpose(0, 1).flatten(1).mean(1)  # of each of its inputs
    features = layer.halves * params[f"{layer.name}.weight"].shape[0]
    return sizes.unflatten(0, (features, -1)).mean(1)
