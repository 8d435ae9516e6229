"""How far a run is, in every unit, and when something is due."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

COUNTS = ("env_steps", "agent_steps", "updates", "tasks", "task_start", "task_updates")
Unit = Literal["updates", "agent_steps", "env_steps", "tasks"]


@dataclass
class Clock:
    """Counters of a run. `steps` is its length in env steps; a replay ratio counts updates per agent step."""

    steps: int
    replay_ratio: float = 1.0
    warmup: int = 0  # agent steps of random actions at the start of a task, without updates but those of priming
    action_repeat: int = 1
    task_length: int = 0  # env steps of every task but the last; 0: there is one task
    switches: int = 0  # task switches of the whole run, if it is long enough
    primed: int = 0  # updates made all at once, beyond those of the replay ratio
    primed_after: int = 0  # agent steps before them
    env_steps: int = 0
    agent_steps: int = 0
    updates: int = 0
    tasks: int = 0  # task switches so far
    task_start: int = 0  # agent step at which the current task began
    task_updates: int = 0  # updates done when the current task began
    forgiven: int = 0  # updates of this task that are owed no more, or are to be made all the same
    last: dict[str, int] = field(default_factory=dict)  # counters before the latest advance, by unit

    @property
    def running(self) -> bool:
        return self.env_steps < self.steps

    @property
    def task_steps(self) -> int:
        """Agent steps since the current task began."""
        return self.agent_steps - self.task_start

    @property
    def warm(self) -> bool:
        return self.task_steps >= self.warmup

    def now(self, unit: Unit) -> int:
        return getattr(self, unit)

    def total(self, unit: Unit) -> int:
        """Length of the run in `unit`."""
        switches = min(self.switches, (self.steps - 1) // self.task_length) if self.task_length else 0
        if unit == "updates":  # every task warms up anew
            last = self.steps - switches * self.task_length
            return self.primed + switches * self.updates_within(self.task_length) + self.updates_within(last)
        totals = {"env_steps": self.steps, "agent_steps": math.ceil(self.steps / self.action_repeat)}
        return (totals | {"tasks": switches + 1})[unit]

    def greatest(self, unit: Unit) -> int:
        """The last count of `unit` that the run reaches; tasks are counted by the switches to them."""
        return self.total(unit) - (unit == "tasks")

    def updates_within(self, env_steps: int) -> int:
        """Updates of a task of so many env steps, but for priming."""
        return self._owed(math.ceil(env_steps / self.action_repeat) - self.warmup)

    def updates_due(self) -> int:
        """Updates owed at this agent step: replay_ratio per step after warm-up, fractions carried, never caught up; and
        those of priming once its step has come."""
        return max(0, self._owing())

    def _owing(self) -> int:
        owed = self._owed(self.task_steps - self.warmup)
        if not self.tasks and self.agent_steps >= self.primed_after:
            owed += self.primed
        return owed - self.forgiven - (self.updates - self.task_updates)

    def _owed(self, trained: int) -> int:
        """Updates after so many agent steps past warm-up; a hair above, for ratios that binary fractions miss."""
        return math.floor(max(0, trained) * self.replay_ratio + 1e-9)

    def step(self) -> None:
        """One agent step was taken."""
        self.last |= {"agent_steps": self.agent_steps, "env_steps": self.env_steps, "updates": self.updates}
        self.agent_steps += 1
        self.env_steps = min(self.env_steps + self.action_repeat, self.steps)

    def update(self) -> None:
        """One update was made."""
        self.last["updates"] = self.updates
        self.updates += 1

    def pass_by(self, steps: int) -> None:
        """So many agent steps and updates pass in which nothing is learned."""
        self.agent_steps += steps
        self.env_steps = min(self.env_steps + steps * self.action_repeat, self.steps)
        self.updates += steps

    def enter_task(self) -> None:
        """The world changes: schedules that count from a task's start begin anew."""
        self.last["tasks"] = self.tasks
        self.tasks += 1
        self.task_start, self.task_updates, self.forgiven = self.agent_steps, self.updates, 0

    def passed(self, every: int, unit: Unit) -> bool:
        """Did the latest advance of `unit` reach a multiple of `every`? 0 means never."""
        return every > 0 and self.now(unit) // every > self.last.get(unit, 0) // every

    def state_dict(self) -> dict:
        counts = {name: getattr(self, name) for name in COUNTS}
        return counts | {"last": dict(self.last), "forgiven": self.forgiven, "owing": self._owing()}

    def load_state_dict(self, saved: dict) -> None:
        """Go on from there. Where replay ratio, warm-up or priming are others than when it was saved, what was owed
        then is owed now, and the new ones hold from here on: no burst of updates, no pause makes up for the past.

        Raises KeyError for a count that is not there, ValueError for one that no run reaches.
        """
        for name, count in (*((name, saved[name]) for name in COUNTS), *saved["last"].items()):
            if type(count) is not int or not 0 <= count < 2**60:
                raise ValueError(f"{name}: {count} given; expected a count that a run reaches")
        for name in ("forgiven", "owing"):
            if type(saved[name]) is not int or not abs(saved[name]) < 2**60:
                raise ValueError(f"{name}: {saved[name]} given; expected a number of updates")
        for name in (*COUNTS, "forgiven"):
            setattr(self, name, saved[name])
        self.last = dict(saved["last"])
        self.forgiven += self._owing() - saved["owing"]
