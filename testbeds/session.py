"""A run on a stream of supervised stages: data instead of environments, everything else as for agents."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from core import assemble
from core.config import Config, check_device, clock_of
from core.digest import digest
from core.evaluation import Result
from core.session import Session
from core.spec import EnvSpec
from core.state import Batch, Tensors, member, shaped
from nets.body import Frames
from testbeds.examples import Examples

SEEN = 64  # examples that a checkpoint remembers the looks of
MEASURED = 2_048  # examples that accuracy on training data is measured on, at most


@dataclass(frozen=True)
class Now:
    """The stage that a run is in."""

    index: int
    name: str
    start: int  # update at which it begins


class Nothing:
    """There is no replay to save: a stage is a function of the seed and its index."""

    def save(self, folder: Path) -> dict:
        return {"files": []}

    def digest(self) -> str:
        return ""


class TestbedSession(Session):
    """A run in memory, its data loaded."""

    __test__ = False  # pytest takes the name for a test's
    task: Now

    def __init__(self, config: Config) -> None:
        """Raises ValueError for a configuration that does not fit together, this machine, or what the folder holds."""
        check_device(config.device)
        assemble.choose_arithmetic(config.precision)
        self.config = config
        module = importlib.import_module(f"testbeds.streams.{config.env.partition('/')[2]}")
        self.stream = module.Settings(**config.env_options)
        wanted = "classifier" if self.stream.classes else "regressor"
        if config.agent_kind != wanted:
            raise ValueError(f"agent: {config.agent_name} given; env={config.env} needs agent={wanted}")
        kind = "accuracy" if self.stream.classes else "score"
        self.score = {"online": f"online {kind}", "train": f"{kind} on training data", "test": f"test {kind}"}[
            self.stream.score
        ]
        if (config.replay_ratio, config.warmup) != (1, 0):
            raise ValueError(f"env={config.env}: has no replay; leave replay_ratio and warmup out")
        if config.priming.updates or config.offline.data:
            raise ValueError(f"env={config.env}: every stage brings its data; leave priming and offline out")
        if config.stream.tasks:
            raise ValueError("stream.tasks: a supervised stream has stages of its own; leave it out")
        if self.stream.until and not self.stream.classes:
            raise ValueError(
                f"env.until: {self.stream.until:g} given; there is no accuracy in regression; leave it out"
            )
        self._enter(0)
        self.learner = assemble.agent(config, self.looks)
        self.evaluated = assemble.evaluated_role(self.learner)
        self._check_support(clock_of(config, 1, self.stream.stage).switches + 1)
        members = len(config.seeds)
        self._online = torch.zeros(members, device=config.device)  # score, summed over the updates of this stage
        self._epoch = torch.zeros(members, device=config.device)  # and of this epoch
        self._taken = [0] * members  # updates after which a seed has come to rest in this stage; 0: it has not
        blank = {name: values[:1] for name, values in self.sample("blank", 0, 2).items()}
        super().__init__(config, self.learner, clock_of(config, 1, self.stream.stage), blank, Nothing())

    # what the loop asks for

    def sample(self, stream: str, count: int, size: int = 0) -> Batch:
        """ "data": the batch of update `count`; "chunk/NUMBER": all that came then; any other stream: drawn uniformly.
        Leaves [n, B, ...]."""
        size = size or self.config.agent.batch_size
        batches = []
        for examples in self._examples:
            if stream == "data":
                rows = examples.in_turn(count - self.task.start, size)
            elif stream.startswith("chunk/"):
                rows = examples.chunk(int(stream.removeprefix("chunk/")))
            else:
                rows = examples.anywhere(stream, count, size)
            batches.append(examples.batch(rows))
        return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}

    @property
    def chunks(self) -> int:
        return self._examples[0].chunks

    @property
    def stage_is_over(self) -> bool:
        return self.clock.updates - self.task.start >= self.stream.stage

    def enter_stage(self) -> None:
        """The world changes; events at changes see the new data."""
        self.clock.enter_task()
        self._enter(self.clock.tasks)
        self._online.zero_()
        self._epoch.zero_()
        self._taken = [0] * len(self._taken)
        self.engine.awake.fill_(True)
        self.intervene("tasks")

    def note(self, batch: Batch, metrics: Tensors) -> None:
        super().note(batch, metrics)
        score = metrics["classifier/accuracy"] if self.stream.classes else -metrics["regressor/squared_error"]
        self._online += score * self.engine.awake
        self._epoch += score

    def rest(self) -> None:
        """Seeds that are done with a stage rest until the next one; where all rest, time moves on to its end."""
        done, length = self.clock.updates - self.task.start, self.stream.length(self.task.index)
        if self.stream.until:
            self._rest_who_is_right(done)
        if done == length < self.stream.stage:
            self._taken = [mine or done for mine in self._taken]
        if all(self._taken):
            left = min(self.stream.stage - done, self.clock.steps - self.clock.env_steps)
            self.clock.pass_by(left)

    def _rest_who_is_right(self, done: int) -> None:
        """At the end of an epoch: seeds that were right often enough in it."""
        size = self.config.agent.batch_size
        batches = [examples.per_epoch(size) for examples in self._examples]
        ending = [i for i, count in enumerate(batches) if done % count == 0]
        if not ending:
            return
        sums = self._epoch.tolist()
        for i in ending:
            if sums[i] / batches[i] >= self.stream.until and not self._taken[i]:
                self._taken[i] = done
                self.engine.awake[i] = False
            self._epoch[i] = 0

    def evaluate(self) -> None:
        """Measure every seed on its data. The score goes to eval.csv, an episode being a stage."""
        done = self.clock.updates - self.task.start
        taken = [mine or done for mine in self._taken]
        found: dict[str, list[float]] = {
            "stage/online": [total / count for total, count in zip(self._online.tolist(), taken, strict=True)],
            "stage/train": [self._measured(i, examples.train(MEASURED)) for i, examples in enumerate(self._examples)],
            "stage/test": [self._measured(i, examples.test()) for i, examples in enumerate(self._examples)],
            "stage/updates": [float(count) for count in taken],
        }
        self.report(found)
        self.returns = found[f"stage/{self.stream.score}"]
        rows = zip(self.config.seeds, self.returns, taken, strict=True)
        self.folder.evaluation(
            [Result(seed, self.task.index, score, count) for seed, score, count in rows],
            step=self.clock.env_steps,
            task=self.task.name,
            updates=self.clock.updates,
            network=self.evaluated,
        )
        self.progress.refresh()

    # persistence

    def state_dict(self) -> dict[str, Any]:
        stage = {"online": self._online, "epoch": self._epoch, "taken": list(self._taken)}
        looks = digest(self.sample("saved", 0, SEEN))  # whether env.folder still holds what it held
        return super().state_dict() | {"stage": stage, "env.folder": looks}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self._enter(self.clock.tasks)
        stage, members = saved["stage"], len(self._examples)
        self._online.copy_(shaped(stage["online"], [members], "online"))
        self._epoch.copy_(shaped(stage["epoch"], [members], "epoch"))
        self._taken = [int(stage["taken"][member]) for member in range(members)]

    # data

    def _enter(self, index: int) -> None:
        config = self.config
        self.task = Now(index, config.env, index * self.stream.stage)
        flat = not isinstance(config.net, Frames)
        self._examples = [
            Examples(self.stream.at(seed, index), seed, str(index), flat, config.device) for seed in config.seeds
        ]

    def _check_support(self, stages: int) -> None:
        """A histogram must hold every target of the run."""
        value = self.config.value
        if self.stream.classes or value.bins == 1:
            return
        for seed, index in product(self.config.seeds, range(stages)):
            targets = self.stream.at(seed, index).targets
            low, high = float(targets.min()), float(targets.max())
            if low < value.low or high > value.high:
                raise ValueError(
                    f"value.low, value.high: {value.low:g} and {value.high:g} given; targets of stage {index} lie "
                    f"between {low:.3g} and {high:.3g} with seed {seed}"
                )

    @property
    def looks(self) -> EnvSpec:
        """What the data look like to a network: "actions" are classes, or one number."""
        seen = self._examples[0].seen
        if len(seen) == 1:
            return EnvSpec(self.config.env, seen, "float32", num_actions=self.stream.classes or 1)
        return EnvSpec(self.config.env, seen[1:], "uint8", num_actions=self.stream.classes or 1, stack=seen[0])

    def _measured(self, i: int, pieces: Any) -> float:
        """Score of member i: the learner's, averaged over the examples."""
        states, learner = member(self.engine.states, i), self.learner
        with torch.no_grad():
            scores = torch.cat([learner.score(states, batch, self.evaluated) for batch in pieces])
        return float(scores.double().mean())
