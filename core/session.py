"""What every run has in common, put together from its configuration: a learner in its engine, a clock, a folder.

Saved, restored and reported as one. core/agent_session.py adds environments and a replay, testbeds/session.py data.
Nothing here decides when anything happens: that is the loop of train.py or `python -m testbeds`.
"""

from __future__ import annotations

from typing import Any, Self

from core import assemble
from core.averages import Averages
from core.checkpoint import Replay
from core.clock import Clock, Unit
from core.config import WITHOUT_EFFECT, Config, resolved
from core.diagnostics import IMAGE, TIERS
from core.engine import Engine
from core.progress import Progress
from core.rehearsal import rehearse
from core.run_folder import RunFolder
from core.signals import Stop
from core.state import Batch, Tensors


class Session:
    """A run in memory."""

    task: Any  # the current stretch of the run; it has a name
    score = "mean return"  # what `returns` holds

    def __init__(self, config: Config, learner: Any, clock: Clock, blank: Batch, replay: Replay) -> None:
        """Build the engine, rehearse every event on a blank batch, enter the run folder, go back to its newest
        checkpoint.

        Raises ValueError for a configuration that does not fit together, or does not fit what the folder holds.
        """
        self.config, self.clock, self.replay = config, clock, replay
        self.compile = config.compile and assemble.compiler_found()
        self.engine = Engine(
            learner, config.seeds, learner.settings.batch_size, config.device, self.compile, config.precision
        )
        assemble.choose_threads(self.engine)
        assemble.choose_products(config.precision)
        self.averages = Averages(len(config.seeds))
        self.stop = Stop()
        self.returns: list[float] = []  # score of each seed in the latest evaluation
        rehearse(self.engine, {k: v.to(config.device) for k, v in blank.items()})
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
                self.begin()
            else:
                self.load_state_dict(saved)

    # what a kind of run brings

    def begin(self) -> None:
        """Called once in a run's life, before its first step."""

    def sample(self, stream: str, count: int, size: int = 0) -> Batch:
        """A batch of every member, a function of the stream, the count and what is held. Leaves [n, B, ...]."""
        raise NotImplementedError

    # a run's life

    def __enter__(self) -> Self:
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
    def going(self) -> bool:
        """There are steps to take, or updates to make for those that were taken."""
        return self.clock.running or self.clock.updates_due() > 0

    @property
    def exit_code(self) -> int:
        return self.stop.exit_code

    def close(self) -> None:
        """The loop has ended: the run is complete, or it was told to stop. Save either way."""
        if self.going:
            self.save()
            self.progress.say(f"{self.stop.requested}: saved at step {self.clock.env_steps}; the same command goes on")
            return
        self.log()
        self.save()
        summary = {"step": self.clock.env_steps, "updates": self.clock.updates, "returns": self.returns}
        self.folder.finish(summary | {"diverged": self.averages.diverged})
        self.progress.table(self.returns)

    # what the loop asks for

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

    def observe(self) -> None:
        """Run the diagnostics that are due."""
        for tier in TIERS:
            if self.clock.passed(getattr(self.config, tier.every), "updates"):
                with self.progress.observing():
                    batch = self.sample("observe", self.clock.updates, tier.batch)
                    found = self.engine.observe(batch, self.clock, tier)
                images = {name: found.pop(name) for name in list(found) if name.endswith(IMAGE)}
                self.report({name: value.tolist() for name, value in found.items()})
                self.folder.images(images, self.clock.env_steps)

    def log(self) -> None:
        """Write the averages since the last log, and say which members have diverged since."""
        self.report(self.averages.take())
        for seed, diverged in zip(self.config.seeds, self.engine.diverged(), strict=True):
            if diverged and seed not in self.averages.diverged:
                self.averages.diverged.append(seed)
                self.folder.events([{"step": self.clock.env_steps, "updates": self.clock.updates, "diverged": seed}])
                self.progress.say(f"seed {seed} diverged before step {self.clock.env_steps}; its weights are frozen")
        self.folder.timing(self.progress.rates())
        self.progress.refresh()

    def report(self, found: dict[str, list[float]]) -> None:
        """A row of metrics, one number per seed each."""
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
            "pending": self.averages.state_dict() | {"scores": self.returns},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.clock.load_state_dict(saved["clock"])
        self.engine.load_state_dict(saved["engine"] | {"states": saved["states"]})
        self.returns = saved["pending"].pop("scores")
        self.averages.load_state_dict(saved["pending"], self.config.device)
