"""Everything a run consists of, put together from its configuration; saved, restored and reported as one.

`train.py` drives it: nothing here decides when anything happens.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from core import assemble
from core.averages import Averages
from core.clock import Unit
from core.config import WITHOUT_EFFECT, Config, clock_of, resolved
from core.diagnostics import IMAGE, TIERS
from core.engine import Engine
from core.evaluation import LANES, evaluate, mean_scores
from core.progress import Progress
from core.randomness import host_generator
from core.rehearsal import blank, rehearse
from core.replay import Replay
from core.run_folder import RunFolder
from core.signals import Stop
from core.spec import Env, Episode
from core.state import Batch, Tensors


class Session:
    """A run in memory."""

    def __init__(self, config: Config) -> None:
        """Open the environments, build the learner, enter the run folder and go back to its newest checkpoint.

        Raises ValueError for a configuration that does not fit together, or does not fit what the folder holds.
        """
        self.config = config
        streams = importlib.import_module("envs.stream")
        self.stream = streams.Stream(config.tasks, config.stream.steps)
        self.task = self.stream.at(0)
        self._evaluation_envs: dict[str, list[list[Env]]] = {}  # opened once per task, played in turn
        self.envs = self._vector(self._open_envs(self.task.name), "train")
        if len(config.tasks) > 1:
            streams.check_spaces([assemble.environments(config, task)().spec for task in config.tasks])
        spec = self.envs.spec
        self.agent = assemble.agent(config, spec)
        settings = self.agent.settings
        self.compile = config.compile and assemble.compiler_found()
        self.engine = Engine(
            self.agent, config.seeds, settings.batch_size, config.device, self.compile, config.precision
        )
        assemble.choose_threads(self.engine)
        assemble.choose_products(config.precision)
        if config.warmup <= settings.n_step:
            raise ValueError(f"warmup: {config.warmup} given; expected more than agent.n_step={settings.n_step}")
        assemble.check_role(self.agent, settings.act_with, "act_with")
        self.evaluated = assemble.evaluated_role(self.agent)
        self.replay = Replay(spec, config.seeds, device=config.device, **assemble.replay_options(config, spec))
        self.clock = clock_of(config, spec.action_repeat)
        self.averages = Averages(len(config.seeds))
        self.stop = Stop()
        self.returns: list[float] = []  # mean return of each seed in the latest evaluation
        rehearse(self.engine, {k: v.to(config.device) for k, v in blank(spec, settings.batch_size).items()})
        self.folder = RunFolder(
            config.run_dir,
            resolved(config),
            config.resume,
            seeds=config.seeds,
            tasks=config.tasks,
            ignore=WITHOUT_EFFECT,
        )
        self.progress = Progress(self)
        if not self.finished:
            saved = self.folder.resume()
            if saved is None:
                self.envs.reset()
            else:
                self.load_state_dict(saved)

    # a run's life

    def __enter__(self) -> Session:
        self.stop.__enter__()
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.close()
        self.folder.close()
        self.stop.__exit__(*error)

    @property
    def finished(self) -> bool:
        return self.folder.finished is not None

    @property
    def exit_code(self) -> int:
        return self.stop.exit_code

    def close(self) -> None:
        """The loop has ended: the run is complete, or it was told to stop. Save either way."""
        if self.clock.running:
            self.save()
            self.progress.say(f"{self.stop.requested}: saved at step {self.clock.env_steps}; the same command goes on")
            return
        self.log()
        self.save()
        summary = {"step": self.clock.env_steps, "updates": self.clock.updates, "returns": self.returns}
        self.folder.finish(summary | {"diverged": self.averages.diverged})
        self.progress.table(self.returns)

    # what the loop asks for

    def random_action(self) -> np.ndarray:
        """Uniform over the action space. [n, *action_shape]."""
        spec = self.envs.spec
        generators = [host_generator(seed, "random_action", self.clock.agent_steps) for seed in self.config.seeds]
        if spec.is_discrete:
            return np.array([g.integers(spec.num_actions) for g in generators])
        return np.stack([g.uniform(-1, 1, spec.action_shape) for g in generators]).astype(np.float32)

    def sample(self, stream: str, count: int, size: int = 0) -> Batch:
        """A batch of every member, from a stream of its own; beside training's always uniform. Leaves [n, B, ...]."""
        settings, uniform = self.agent.settings, stream != "replay"
        size = size or settings.batch_size
        return self.replay.sample(size, count, settings.n_step, settings.discount, stream, uniform)

    def enter_task(self) -> None:
        """The world changes: other environments, an empty replay unless configured otherwise; the learner stays."""
        self.clock.enter_task()
        self.intervene("tasks")  # with the old task's data: the new one has none yet
        self.replay.truncate(self.envs.frame)
        if self.config.stream.replay == "clear":
            self.replay.clear()
        self._switch_to(self.stream.at(self.clock.env_steps))
        self.envs.reset()

    def intervene(self, *units: Unit) -> None:
        """Apply the events that are due in these units, and write each to the ledger."""
        rows = self.engine.intervene(self.clock, units, self.sample)
        self.folder.events(rows)
        for row in rows:
            self.progress.event(row)

    # reporting

    def note(self, metrics: Tensors) -> None:
        """Take in what an update reports; nothing waits for the device."""
        self.averages.add(metrics)

    def note_episodes(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            self.averages.add_episode(episode)

    def observe(self) -> None:
        """Run the diagnostics that are due."""
        for tier in TIERS:
            if self.clock.passed(getattr(self.config, tier.every), "updates"):
                with self.progress.observing():
                    batch = self.sample("observe", self.clock.updates, tier.batch)
                    found = self.engine.observe(batch, self.clock, tier)
                images = {name: found.pop(name) for name in list(found) if name.endswith(IMAGE)}
                self._report({name: value.tolist() for name, value in found.items()})
                self.folder.images(images, self.clock.env_steps)

    def log(self) -> None:
        """Write the averages since the last log, and say which members have diverged since."""
        self._report(self.averages.take())
        for seed, diverged in zip(self.config.seeds, self.engine.diverged(), strict=True):
            if diverged and seed not in self.averages.diverged:
                self.averages.diverged.append(seed)
                self.folder.events([{"step": self.clock.env_steps, "updates": self.clock.updates, "diverged": seed}])
                self.progress.say(f"seed {seed} diverged before step {self.clock.env_steps}; its weights are frozen")
        self.folder.timing(self.progress.rates())
        self.progress.refresh()

    def evaluate(self) -> None:
        """Play the current task, with environments and streams of its own; the last time for `final_episodes`."""
        config = self.config
        final = not self.clock.running and config.final_episodes
        episodes = final or config.eval_episodes
        stream = f"evaluate/{self.clock.env_steps}"
        results = evaluate(
            self.engine,
            [self._vector(envs, f"{stream}/{lane}") for lane, envs in enumerate(self._lanes(episodes))],
            episodes,
            explore=self.agent.explore_eval,
            role=self.evaluated,
            stream=stream,
        )
        where = {"step": self.clock.env_steps, "task": self.task.name, "updates": self.clock.updates}
        self.folder.evaluation(results, **where, network=self.evaluated)
        self.returns = mean_scores(results, config.seeds)
        self.progress.refresh()

    def _report(self, found: dict[str, list[float]]) -> None:
        if found:
            self.folder.metrics({"step": self.clock.env_steps, "updates": self.clock.updates, **found})

    # persistence

    def save(self) -> None:
        self.folder.save(self.clock.env_steps, self.state_dict(), self.replay)

    def state_dict(self) -> dict[str, Any]:
        engine = self.engine.state_dict()
        return {
            "states": engine.pop("states"),
            "engine": engine,
            "clock": self.clock.state_dict(),
            "task_step": self.task.start,
            "envs": self.envs.state_dict(),
            "pending": self.averages.state_dict() | {"scores": self.returns},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.clock.load_state_dict(saved["clock"])
        self.engine.load_state_dict(saved["engine"] | {"states": saved["states"]})
        self.returns = saved["pending"].pop("scores")
        self.averages.load_state_dict(saved["pending"])
        if self.clock.tasks:
            self._switch_to(self.stream.at(saved["task_step"]))
        self.envs.load_state_dict(saved["envs"])
        self.replay.load(self.folder.path / "replay", saved["replay"])

    # environments

    def _switch_to(self, task: Any) -> None:
        self.envs.close()
        self.task = task
        self.envs = self._vector(self._open_envs(task.name), f"train/{task.index}")

    def _open_envs(self, task: str) -> list[Env]:
        """One environment per seed."""
        make = assemble.environments(self.config, task)
        return [make() for _ in self.config.seeds]

    def _lanes(self, episodes: int) -> list[list[Env]]:
        """Environments for evaluation on the current task: so many sets as episodes go side by side."""
        lanes = self._evaluation_envs.setdefault(self.task.name, [])
        while len(lanes) < min(LANES, episodes):
            lanes.append(self._open_envs(self.task.name))
        return lanes[:episodes]

    def _vector(self, envs: list[Env], stream: str) -> Any:
        """Environments in lock-step whose episodes come from `stream`."""
        return importlib.import_module("envs.vector").Vector(envs, self.config.seeds, stream)
