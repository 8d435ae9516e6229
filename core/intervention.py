"""What an intervention is: at most five things it may do to a network, and when.

A network's life has five moments. An intervention overrides the methods of those it acts at, and touches nothing else:

1. `build`       before birth: edit the blueprint
2. `remember`    at birth: what must be kept beside the network
3. `penalty`     in the loss of every update
4. `after_step`  after every optimizer step
5. `event`       now and then, when `when` says so

Moments 3 and 4 are traced into the compiled update: pure tensor code, no branching on values. Moment 5 runs eagerly,
seed by seed, between two updates: any Python is allowed. The order of the list in the configuration is the order of
execution. An intervention sees one `Part`, never an agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from core.clock import Clock, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from core.blueprint import NetSpec
    from core.events import Context
    from core.part import Part, Step
    from core.state import State, Tensors

CopyRule = Literal["keep", "copy", "same_draw", "own_draw"]
OptimizerRule = Literal["keep", "touched", "all"]


@dataclass(frozen=True)
class When:
    """A schedule for `event`. Empty means no schedule."""

    every: int = 0  # at every multiple of this many units
    at: tuple[int, ...] = ()  # and at these counts
    start: int = 0  # not before this count
    stop: int = 0  # nor after this one; 0: no end
    unit: Unit = "updates"  # updates | agent_steps | env_steps | tasks
    skip_last: bool = False  # do not fire with less than one full `every` left: no score within a recovery

    def __post_init__(self) -> None:
        if self.every < 0 or self.start < 0 or self.stop < 0 or any(count < 1 for count in self.at):
            raise ValueError("counts of a schedule are positive: every >= 0, start >= 0, stop >= 0, at >= 1")

    def __bool__(self) -> bool:
        return self.every > 0 or bool(self.at)

    def due(self, clock: Clock) -> bool:
        """Did the clock's latest advance in `unit` reach a count of this schedule?"""
        before, now = clock.last.get(self.unit, 0), clock.now(self.unit)
        if now == before or now < self.start or (self.stop and now > self.stop):
            return False
        periodic = clock.passed(self.every, self.unit)
        if periodic and self.skip_last and now + self.every > clock.total(self.unit):
            periodic = False
        return periodic or any(before < count <= now for count in self.at)


@dataclass(kw_only=True)
class Intervention:
    """Base of all interventions; every method here does nothing."""

    on: tuple[str, ...] = ("*",)  # parts, by name or pattern; "*" is every part that has layers
    where: tuple[str, ...] = ("all",)  # parameters: all | encoder | trunk | head | output | a name pattern
    when: When = field(default_factory=When)  # for `event` only
    name: str = field(default="", init=False)  # of the instance; the loader sets it

    @property
    def copies(self) -> tuple[str, ...]:
        """Roles of the slow copies it needs in `State.copies`."""
        return ()

    @property
    def evaluates(self) -> str:
        """Role of the slow copy that its paper evaluates; "" if it evaluates what is trained."""
        return ""

    def build(self, spec: NetSpec) -> NetSpec:
        """Moment 1. The blueprint as this intervention wants it."""
        return spec

    def remember(self, part: Part, params: Tensors) -> Tensors:
        """Moment 2. Tensors to keep in `State.memory[self.name]`."""
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

    def acts_at(self, moment: str) -> bool:
        """Whether it overrides the method of that name."""
        return getattr(type(self), moment) is not getattr(Intervention, moment)
