"""A run of an agent: environments, their stream of tasks, a replay."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from core import assemble
from core.config import Config, check_device, clock_of
from core.evaluation import LANES, evaluate, mean_scores
from core.memory import free_memory, size
from core.offline import OfflineData, mixed
from core.options import one_line, told
from core.randomness import host_generator
from core.rehearsal import blank
from core.replay import Replay
from core.session import Session
from core.spec import Env, EnvSpec, EnvStep
from core.state import Batch
from core.watchdog import FAILURES, EnvironmentFailed, Watchdog

TOGETHER = 8  # batches drawn at once, where a step has so many updates


class AgentSession(Session):
    """A run in memory, its environments opened."""

    replay: Replay

    def __init__(self, config: Config) -> None:
        """Raises ValueError for a configuration that does not fit together, this machine, or what the folder holds."""
        check_device(config.device)
        assemble.choose_arithmetic(config.precision)
        self.config = config
        streams = importlib.import_module("envs.stream")
        self.stream = streams.Stream(config.tasks, config.stream.steps)
        self.task = self.stream.at(0)
        self.watchdog = Watchdog(config.env_timeout)
        self._evaluation_envs: dict[str, list[list[Env]]] = {}  # opened once per task, played in turn
        self.envs = self._vector(self._open_envs(self.task.name), "train")
        if len(config.tasks) > 1:
            streams.check_spaces([self._looks_of(task) for task in dict.fromkeys(config.tasks)])
        spec = self.envs.spec
        self.agent = assemble.agent(config, spec)
        if not hasattr(self.agent, "act"):
            raise ValueError(
                f"agent: {config.agent_name} given; it does not act; supervised learners take env=testbed/..."
            )
        settings = self.agent.settings
        if config.warmup <= settings.n_step:
            raise ValueError(f"warmup: {config.warmup} given; expected more than agent.n_step={settings.n_step}")
        assemble.check_role(self.agent, settings.act_with, "act_with")
        self.evaluated = assemble.evaluated_role(self.agent)
        self._short = ""
        replay = self._replay(spec)
        self._drawn: dict[tuple[int, int], Batch] = {}  # by agent step and update, for the updates to come
        self.offline = None
        if config.offline.data:
            self.offline = OfflineData(config.offline.data, spec, config.seeds, config.device)
            if replay.moments:
                raise ValueError("agent.standardise: the moments of offline.data are not known; leave one of them out")
            if len(config.tasks) > 1:
                raise ValueError("offline.data: of one task; stream.tasks has several; leave one of them out")
        _check_priming(config, settings.n_step + 1, spec.action_repeat)
        clock = clock_of(config, spec.action_repeat)
        super().__init__(config, self.agent, clock, blank(spec, settings.batch_size), replay)
        if self._short:
            self.progress.say(
                f"the replay takes {self._short}: lower replay.capacity, or the run may be killed on the way"
            )

    def __exit__(self, *raised: object) -> None:
        self.watchdog.close()
        super().__exit__(*raised)

    @property
    def looks(self) -> EnvSpec:
        return self.envs.spec

    def begin(self) -> None:
        self.envs.reset()
        if self.trace:
            self.trace.begin(self.envs.observation)

    # what the loop asks for

    def random_action(self) -> np.ndarray:
        """Uniform over the action space. [n, *action_shape]."""
        spec = self.envs.spec
        generators = [host_generator(seed, "random_action", self.clock.agent_steps) for seed in self.config.seeds]
        if spec.is_discrete:
            return np.array([g.integers(spec.num_actions) for g in generators])
        return np.stack([g.uniform(-1, 1, spec.action_shape) for g in generators]).astype(np.float32)

    def sample(self, stream: str, count: int, size: int = 0) -> Batch:
        """A batch of every member, from a stream of its own. Leaves [n, B, ...]. "replay" is training's, of the agent's
        batch size; all others are uniform."""
        if stream != "replay":
            return self._draw(stream, [count], size or self.agent.settings.batch_size, uniform=True)[0]
        at = self.clock.agent_steps
        if (at, count) not in self._drawn:  # those of the step's next updates with it: nothing is written in between
            alone = self.replay.priorities or self.looks.is_image  # they change with each update; frames are large
            together = 1 if alone else min(TOGETHER, max(1, self.clock.updates_due()))
            counts = range(count, count + together)
            batches = self._draw(stream, counts, self.agent.settings.batch_size, uniform=False)
            self._drawn = {(at, number): batch for number, batch in zip(counts, batches, strict=True)}
        return self._drawn.pop((at, count))

    def _draw(self, stream: str, counts: Sequence[int], size: int, uniform: bool) -> list[Batch]:
        settings, elsewhere = self.agent.settings, self._from_elsewhere(size, uniform)
        progress = min(1.0, self.clock.updates / self.clock.total("updates"))
        window = (settings.n_step, settings.discount)
        parts = []
        if elsewhere < size:
            parts.append(self.replay.samples(size - elsewhere, counts, *window, stream, uniform, progress))
        if self.offline and elsewhere:
            parts.append([self.offline.sample(elsewhere, count, *window, f"offline/{stream}") for count in counts])
        return [mixed(batches) for batches in zip(*parts, strict=True)]

    def _from_elsewhere(self, size: int, uniform: bool) -> int:
        """How many samples of a batch are offline data: a share in training (pooled: the file's of all steps, to the
        nearest sample), all before the first step."""
        if not self.offline:
            return 0
        if self.clock.agent_steps == 0:
            return size
        if uniform:
            return 0
        if not self.config.offline.pooled:
            return round(self.config.offline.share * size)
        read, lived = len(self.offline), min(self.clock.agent_steps, self.replay.ring.capacity)  # of every seed alike
        return round(read / (read + lived) * size)

    def enter_task(self) -> None:
        """The world changes: other environments, an empty replay unless configured otherwise; the learner stays."""
        task = self.stream.at(self.clock.env_steps)
        envs = self._opened(task.name)  # first of all: if that fails, nothing has changed yet
        self.clock.enter_task()
        self.intervene("tasks")  # with the old task's data: the new one has none yet
        self.replay.truncate(self.envs.frame)
        if self.config.stream.replay == "clear":
            self.replay.clear()
        self._switch_to(task, envs)
        self.envs.reset()

    def note_step(self, action: np.ndarray, step: EnvStep) -> None:
        """Take in what the step that the clock has just counted has shown."""
        if self.trace:
            self.trace.step(self.clock.agent_steps, action, step)
        for episode in step.episodes:
            self.averages.add_episode(episode)
        self._look_at(self.envs)

    def _look_at(self, vector: Any) -> None:
        """Write down which environments had to be opened anew. A member whose world has shown what is not finite learns
        no more."""
        for failure in vector.failures:
            seed = self.config.seeds[failure.pop("member")]
            where = {"step": self.clock.env_steps, "updates": self.clock.updates, "seed": seed}
            self.folder.events([where | {"restarted": vector.stream} | failure])
            self.progress.say(f"seed {seed}: its environment failed and was opened anew ({failure['error']})")
        vector.failures.clear()
        if vector is not self.envs:  # training has not seen it; the score is not a number
            self.tell_faults()  # of those that have diverged it is known
            for seed in (self.config.seeds[member] for member, shown in vector.faults.items() if "action" not in shown):
                if seed not in self.averages.diverged:
                    where = {"step": self.clock.env_steps, "updates": self.clock.updates, "seed": seed}
                    self.folder.events([where | {"not_finite": vector.stream}])
                    self.progress.say(f"seed {seed}: an evaluation has shown numbers that are not finite")
        new = False
        for member, shown in vector.faults.items():
            if vector is self.envs or "action" in shown:  # what a network does is its own fault, wherever it is seen
                batch = {name: torch.as_tensor(value) for name, value in shown.items()}
                new |= self.watch.freeze(member, batch, self.clock.updates, self.clock.agent_steps)
        if new:
            self.tell_faults()

    def evaluate(self) -> bool:
        """Play the current task, with environments and streams of its own; the last time for `final_episodes`.

        -> False if it was told to stop: nothing is kept, and it begins anew when the run goes on.
        """
        config = self.config
        final = not self.clock.running and config.final_episodes
        episodes = final or config.eval_episodes
        stream = f"evaluate/{self.clock.env_steps}"
        self.evaluating, stop = True, self.stop
        vectors = [self._vector(envs, f"{stream}/{lane}") for lane, envs in enumerate(self._lanes(episodes))]
        greedy, role = self.agent.explore_eval, self.evaluated
        results = evaluate(self.engine, vectors, episodes, explore=greedy, role=role, stream=stream, stop=stop)
        if not results:
            return False
        self.evaluating = False
        for vector in vectors:
            self._look_at(vector)
        where: dict[str, Any] = {"step": self.clock.env_steps, "task": self.task.name, "updates": self.clock.updates}
        self.folder.evaluation(results, **where, network=self.evaluated)
        self.returns = mean_scores(results, config.seeds)
        self.progress.refresh()
        return True

    # persistence

    def state_dict(self) -> dict[str, Any]:
        where = {"task_step": self.task.start, "evaluating": self.evaluating}
        data = self.offline.sha256 if self.offline else ""
        return super().state_dict() | where | {"envs": self.envs.state_dict(), "offline.data": data}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        if self.clock.tasks:
            task = self.stream.at(saved["task_step"])
            self._switch_to(task, self._open_envs(task.name))
        self.evaluating = saved["evaluating"]
        self.envs.load_state_dict(saved["envs"])
        self.replay.load(self.folder.path / "replay", saved["replay"])

    # environments

    def _replay(self, spec: EnvSpec) -> Replay:
        """Raises ValueError if the machine has not so much memory to promise. What it promises it may not have."""
        options, device = assemble.replay_options(self.config, spec), self.config.device
        try:
            replay = Replay(spec, self.config.seeds, device=device, **options)
        except (RuntimeError, MemoryError) as error:
            slots = f"{options['capacity']} slots for each of {len(self.config.seeds)} seeds"
            raise ValueError(f"replay.capacity: no memory for {slots}; lower it ({one_line(error)[:80]})") from error
        if device == "cpu" and replay.nbytes > (free := free_memory()):  # a GPU has given it by now
            self._short = f"{size(replay.nbytes)} when full, {size(free)} are free now"
        return replay

    def _switch_to(self, task: Any, envs: list[Env]) -> None:
        self.envs.close()
        self.task = task
        self.envs = self._vector(envs, f"train/{task.index}")

    def _open_envs(self, task: str) -> list[Env]:
        """One environment per seed. Raises ValueError, one line, if it does not open on this machine."""
        return [self._open(task) for _ in self.config.seeds]

    def _open(self, task: str) -> Env:
        make = assemble.environments(self.config, task)
        self.watchdog.waiting_for = lambda: f"{task}, opened"
        try:
            with self.watchdog:
                return make()
        except (ValueError, OSError):
            raise
        except FAILURES as error:  # whatever a simulator raises is what is wrong with it
            raise ValueError(
                f"env: {task} does not open ({told(error)}); python -m core.doctor looks closer"
            ) from error

    def _looks_of(self, task: str) -> EnvSpec:
        env = self._open(task)
        with self.watchdog, suppress(*FAILURES):  # it has shown what it was opened for
            env.close()
        return env.spec

    def _opened(self, task: str) -> list[Env]:
        """The same in the middle of a run."""
        try:
            return self._open_envs(task)
        except (ValueError, OSError) as error:
            raise EnvironmentFailed(one_line(error), undone=True) from error

    def _lanes(self, episodes: int) -> list[list[Env]]:
        """Environments for evaluation on the current task: so many sets as episodes go side by side."""
        lanes = self._evaluation_envs.setdefault(self.task.name, [])
        while len(lanes) < min(LANES, episodes):
            lanes.append(self._opened(self.task.name))
        return lanes[:episodes]

    def _vector(self, envs: list[Env], stream: str) -> Any:
        """Environments in lock-step whose episodes come from `stream`."""
        remake = assemble.environments(self.config, self.task.name) if self.config.on_failure == "restart" else None
        return importlib.import_module("envs.vector").Vector(envs, self.config.seeds, stream, remake, self.watchdog)


def _check_priming(config: Config, window: int, action_repeat: int) -> None:
    """Raises ValueError if it never begins, or has nothing to learn from. window: agent steps that make one sample."""
    after, length = config.priming.after, config.stream.steps if len(config.tasks) > 1 else config.steps
    if not config.priming.updates:
        return
    if after < window and not (config.offline.data and after == 0):
        raise ValueError(f"priming.after: {after} given; expected at least {window}, or 0 with offline.data=FILE.npz")
    if after * action_repeat > length:
        raise ValueError(f"priming.after: {after} given; the first task has {length // action_repeat} agent steps")
