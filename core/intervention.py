"""What an intervention is: at most five things it may do to a network, and when.

A network's life has five moments. An intervention overrides the methods of those it acts at, and touches nothing else:

1. `build`       before birth: edit the blueprint; by `tune` the optimizer's settings, by `forward` the way to outputs
2. `remember`    at birth: what must be kept beside the network; by `carry`, what it runs on beside its parameters
3. `penalty`     in the loss of every update
4. `after_step`  after every optimizer step
5. `event`       now and then, when `when` says so

Moments 3 and 4 are traced into the compiled update: pure tensor code, no branching on values. Moment 5 runs eagerly,
seed by seed, between two updates: any Python is allowed. The order of the list in the configuration is the order of
execution. An intervention sees one `Part`, never an agent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from core.controls import Control
from core.options import option
from core.when import When

if TYPE_CHECKING:
    from torch import Tensor

    from core.blueprint import NetSpec
    from core.events import Context
    from core.optim import Adam
    from core.part import Output, Part, Step
    from core.randomness import Noise
    from core.state import State, Tensors

CopyRule = Literal["keep", "copy", "same_draw", "own_draw"]
OptimizerRule = Literal["keep", "touched", "all"]


@dataclass(kw_only=True)
class Intervention:
    """Base of all interventions; every method here does nothing."""

    exclusive: ClassVar[str] = ""  # what only one intervention of a part can do, as "projects the weights"

    on: tuple[str, ...] = ("*",)  # parts, by name or pattern; "*" is every part that has layers
    where: tuple[str, ...] = ("all",)  # parameters: all | encoder | trunk | head | output | a name pattern
    when: When = field(default_factory=When)  # for `event` only
    control: Control = option("none", help="for `event` only: one of its matched controls instead (core/controls.py)")
    name: str = field(default="", init=False)  # of the instance; the loader sets it

    @property
    def copies(self) -> tuple[str, ...]:
        """Roles of the slow copies it needs in `State.copies`."""
        return ()

    @property
    def evaluates(self) -> str:
        """Role of the slow copy that its paper evaluates; "" if it evaluates what is trained."""
        return ""

    def build(self, spec: NetSpec, size: Callable[[NetSpec], int]) -> NetSpec:
        """Moment 1. The blueprint as this intervention wants it; `size` counts the parameters of a blueprint."""
        return spec

    def tune(self, part: Part, optim: Adam) -> Adam:
        """Moment 1. The optimizer's settings as this intervention wants them."""
        return optim

    def forward(self, part: Part, run: Callable[[Tensors], Output], numbers: Tensors) -> Output:
        """Moment 1. How the network's output comes about; `run` computes it as it would be without this."""
        return run(numbers)

    def draws(self, part: Part) -> dict[str, Noise]:
        """Random numbers that moments 3 and 4 take in each update, in `step.noise["PART/INTERVENTION/NAME"]`."""
        return {}

    def remember(self, part: Part, params: Tensors) -> Tensors:
        """Moment 2. Tensors to keep in `State.memory[self.name]`: the intervention's own."""
        return {}

    def carry(self, part: Part, params: Tensors) -> Tensors:
        """Moment 2. Untrained numbers the network runs on, for `forward`: "INTERVENTION/NAME" in buffers and copies."""
        return {}

    def penalty(self, part: Part, params: Tensors, s: State, step: Step) -> Tensor | float:
        """Moment 3. A scalar added to the loss; gradient flows through `params` alone."""
        return 0.0

    def after_step(self, part: Part, s: State, step: Step) -> State:
        """Moment 4. The state after the optimizer has stepped."""
        return s

    def event(self, part: Part, s: State, ctx: Context) -> State:
        """Moment 5. The state after the event; the very same object `s` if it selected nothing."""
        return s

    def overrides(self, method: str) -> bool:
        """Whether it does something of its own in that method."""
        return getattr(type(self), method) is not getattr(Intervention, method)
