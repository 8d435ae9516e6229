"""Shrink & Perturb: pull a network towards a newborn one without forgetting everything.

Idea      Shrinking keeps what was learned (up to confidence) and restores room to learn; noise restores diversity.
Rule      now and then   theta <- keep * theta + noise * phi,   phi a fresh draw from the initialisers (or the birth
          weights)
Source    Ash & Adams 2020, "On Warm-Starting Neural Network Training", section 4. Five parameterisations
          circulate; `preset` names them, all verified in the sources' code:
            custom          keep and noise as given
            ash_adams       0.4, 0.1, fresh draw, optimizer rebuilt, running statistics those of the newborn network
            bbf             0.5, 0.5, fresh, the target with a draw of its own, optimizer rebuilt
                            (Schwarzer et al. 2023, who do this to the encoder and reset the rest: `where=encoder`,
                            beside a `reset` with `where=head`)
            sr_spr          0.8, 0.2, otherwise as bbf
            hare_tortoise   0.2, 0.8 towards the birth weights (Lee et al. 2024 call 0.8 what multiplies theta_0)
Choices   All tensors of `where`, gains, shifts and biases included. Running statistics of batch normalisation stay as
          they are, those of the network before, until updates have moved them; `statistics=renew` begins those of
          `where` anew, and so does keep=0. Names `keep` and `noise` because the letter lambda means opposite things in
          different papers. Moments of what is touched start anew (`optimizer=keep` to keep them). Birth weights stay
          theta_0.
Effects   Function: damped and perturbed. Target: the same rule with the same draw by default.
Defaults  keep 0.8, noise 0.2 on all parameters every 40,000 updates, none with less than one interval left (our choice;
          the published Atari result of plain Shrink & Perturb on DrQ is below doing nothing: combine it with a head
          reset).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.events import Context, redraw
from core.intervention import CopyRule, Intervention, OptimizerRule
from core.options import option
from core.part import Part
from core.state import State

Toward = Literal["fresh", "birth"]
Statistics = Literal["keep", "renew"]

# keep, noise, toward, target, slow, optimizer, statistics
PRESETS: dict[str, tuple[float, float, Toward, CopyRule, CopyRule, OptimizerRule, Statistics]] = {
    "ash_adams": (0.4, 0.1, "fresh", "same_draw", "same_draw", "all", "renew"),
    "bbf": (0.5, 0.5, "fresh", "own_draw", "own_draw", "all", "keep"),
    "sr_spr": (0.8, 0.2, "fresh", "own_draw", "own_draw", "all", "keep"),
    "hare_tortoise": (0.2, 0.8, "birth", "same_draw", "keep", "all", "keep"),
}


@dataclass(kw_only=True)
class ShrinkAndPerturb(Intervention):
    preset: Literal["custom", "ash_adams", "bbf", "sr_spr", "hare_tortoise"] = option(
        "custom", help="a published rule; overrides keep, noise, toward, optimizer, target, slow and statistics"
    )
    keep: float = option(0.8, low=0, help="factor of the trained weights")
    noise: float = option(0.2, low=0, help="factor of the newborn weights")
    toward: Toward = option("fresh", help="a new draw, or the weights at birth")
    optimizer: OptimizerRule = option("touched", help="moments: keep, renew those touched, or all of the part")
    target: CopyRule = option("same_draw", help="target network: keep, copy, same_draw or own_draw")
    slow: CopyRule = option("same_draw", help="the same for every other slow copy")
    statistics: Statistics = option("keep", help="running statistics: keep, or renew those of layers that are touched")

    def __post_init__(self) -> None:
        if self.preset != "custom":
            rule = PRESETS[self.preset]
            self.keep, self.noise, self.toward, self.target, self.slow, self.optimizer, self.statistics = rule

    def event(self, part: Part, s: State, ctx: Context) -> State:
        return redraw(
            s,
            ctx,
            part.names(self.where),
            keep=self.keep,
            noise=self.noise,
            toward=self.toward,
            rules={role: self.target if role == "target" else self.slow for role in s.copies},
            optimizer=self.optimizer,
            renew_birth=False,
            renew_statistics=self.statistics == "renew",
        )
