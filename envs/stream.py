"""Which task is played when. One task is ordinary reinforcement learning, several are continual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.spec import EnvSpec


@dataclass(frozen=True)
class Task:
    """A stretch of the stream on one environment."""

    index: int
    name: str
    start: int  # env step at which it begins
    steps: int  # env steps it lasts; 0: to the end of the run


@dataclass(frozen=True)
class Stream:
    """Tasks in order, `steps` env steps each; the last goes on to the end of the run. To revisit one, name it again.

    Raises ValueError for no task, or several without a length.
    """

    tasks: Sequence[str]
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("stream.tasks: none given; expected at least one environment")
        if len(self.tasks) > 1 and self.steps <= 0:
            raise ValueError(
                f"stream.steps: {self.steps} given; expected the env steps of each of the {len(self.tasks)} tasks"
            )

    def at(self, env_step: int) -> Task:
        """The task that the env step with this number (from 0) belongs to."""
        last = len(self.tasks) - 1
        index = min(env_step // self.steps, last) if self.steps else 0
        return Task(index, self.tasks[index], index * self.steps, self.steps if index < last else 0)


def check_spaces(specs: Sequence[EnvSpec]) -> None:
    """One network serves the whole stream: raises ValueError unless all tasks look alike to it."""
    first = specs[0]
    for spec in specs[1:]:
        if (spec.obs_shape, spec.obs_dtype) != (first.obs_shape, first.obs_dtype):
            raise ValueError(f"stream.tasks: {_seen(first)}, {_seen(spec)}; expected tasks with equal observations")
        if (spec.num_actions, spec.action_dim) != (first.num_actions, first.action_dim):
            games = all(one.name.startswith("atari/") for one in (first, spec))
            fix = "set env.full_actions=true" if games else "expected tasks with equal actions"
            raise ValueError(f"stream.tasks: {_acts(first)}, {_acts(spec)}; {fix}")


def _seen(spec: EnvSpec) -> str:
    return f"{spec.name} observes {spec.obs_dtype} {list(spec.obs_shape)}"


def _acts(spec: EnvSpec) -> str:
    return f"{spec.name} has " + (
        f"{spec.num_actions} actions" if spec.is_discrete else f"a {spec.action_dim}-d action"
    )
