"""CReLU: every hidden unit speaks through two rectifiers, one for each sign.

Idea      Of ReLU(x) and ReLU(-x) one is always active, so that no unit can die.
Rule      h = [ReLU(x), ReLU(-x)], concatenated along the units
Source    Shang et al. 2016; Abbas et al. 2023, "Loss of Plasticity in Continual Deep Reinforcement Learning".
Choices   Twice the features would mean twice the inputs of the next layer. `match` says what stays as it was:
            output       the features: half the units (PLASTIC's CReLU_output, verified)
            input        the units: twice the inputs behind them (PLASTIC's CReLU_input, verified)
            parameters   their number: as many units as come nearest (Kumar et al. 2023 drop 9 % of an MLP's units and
                         27 % of a small CNN's, verified; here the factor is found for the network at hand)
          All hidden layers, as Abbas et al. have it; PLASTIC and Hare & Tortoise's code have it in the head alone.
          Initialisers see the inputs there are. A unit is dormant or dead if both halves are.
Effects   Function: changed at birth. Optimizer, target, copies: not involved.
Defaults  match=output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from core.blueprint import NetSpec
from core.intervention import Intervention
from core.options import option

BISECTIONS = 12  # of the factor on the units: finer than one unit in a thousand


@dataclass(kw_only=True)
class CReLU(Intervention):
    exclusive: ClassVar[str] = "sets the activation"

    match: Literal["output", "input", "parameters"] = option("output", help="what stays as it was with ReLU")

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        rectified = replace(spec, activation="crelu")
        if self.match == "input":
            return rectified
        if self.match == "output":
            return replace(rectified, units=spec.units / 2)
        wanted, fewer, more = size(spec), replace(rectified, units=spec.units / 2), rectified
        for _ in range(BISECTIONS):
            middle = replace(rectified, units=(fewer.units + more.units) / 2)
            fewer, more = (fewer, middle) if size(middle) > wanted else (middle, more)
        return min(fewer, more, key=lambda candidate: abs(size(candidate) - wanted))
