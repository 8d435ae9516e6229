"""What every run has in common, put together from its configuration: a learner in its engine, a clock, a folder.

Saved, restored and reported as one. core/agent_session.py adds environments and a replay, testbeds/session.py data.
Nothing here decides when anything happens: that is the loop of train.py or `python -m testbeds`.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Self

from core import assemble, checkpoint
from core.averages import Averages
from core.clock import Clock, Unit
from core.config import WITHOUT_EFFECT, Config, resolved
from core.diagnostics import IMAGE, TIERS
from core.digest import digest
from core.engine import Engine
from core.faults import FOLDER, Fault, Watch, cause, keep
from core.memory import check_networks
from core.progress import Progress
from core.rehearsal import rehearse
from core.replay_store import Replay
from core.run_folder import RunFolder
from core.signals import DIVERGED, UNSAVED, Stop
from core.spec import EnvSpec
from core.state import Batch, Tensors
from core.trace import Trace
from core.watchdog import EnvironmentFailed


class Session:
    """A run in memory."""

    task: Any  # the current stretch of the run; it has a name
    score = "mean return"  # what `returns` holds
    evaluating = False  # within a step, all its updates made

    def __init__(self, config: Config, learner: Any, clock: Clock, blank: Batch, replay: Replay) -> None:
        """Build the engine, rehearse every event on a blank batch, enter the run folder, go back to its newest
        checkpoint.

        Raises ValueError for a configuration that does not fit together, or does not fit what the folder holds.
        """
        self.config, self.clock, self.replay = config, clock, replay
        self.compile = config.compile and assemble.compiler_found()
        check_networks(learner, config.seeds, config.device)
        self.engine = Engine(
            learner, config.seeds, learner.settings.batch_size, config.device, self.compile, config.precision
        )
        assemble.choose_threads(self.engine)
        self.averages = Averages(len(config.seeds))
        self.watch = Watch(self.engine)
        self.stop = Stop()
        self.returns: list[float] = []  # score of each seed in the latest evaluation
        self.engine.chunks = self.chunks
        blank = {name: value.to(config.device) for name, value in blank.items()}
        rehearse(self.engine, blank, clock, cleared=config.stream.replay == "clear")
        self.folder = RunFolder(
            config.run_dir,
            resolved(config),
            config.resume,
            seeds=config.seeds,
            tasks=config.tasks,
            ignore=WITHOUT_EFFECT,
        )
        self.progress = Progress(self)
        self.folder.storage.say = self.progress.say
        with ExitStack() as opened:  # if this fails, nobody will have the session to close it
            opened.callback(self.folder.close)
            self.trace = Trace(self.folder.path, self.folder.storage) if config.trace else None
            if self.trace:
                opened.callback(self.trace.close)
            if not self.finished:
                self._go_back()
            opened.pop_all()

    def _go_back(self) -> None:
        """Begin, or go back to the newest checkpoint."""
        saved = self.folder.resume()
        if saved is None:
            if self.trace:
                self.trace.birth(self.engine.states)
            self.begin()
        else:
            with checkpoint.fitting(checkpoint.checkpoints(self.folder.path)[-1]):
                self.load_state_dict(saved)
                if not self.folder.forced(saved):
                    self._compare(saved)
            for change in self.folder.changed:
                self.progress.say(f"since step {self.clock.env_steps} {change} has changed; the last bits may differ")
            self._stop_where_diverged()
        self.folder.accept()

    def _compare(self, saved: dict[str, Any]) -> None:
        """Raises ValueError for a state that this run, told to go on from it, does not have in every bit."""
        own = self.state_dict()
        wrong = [name for name in own if digest(own[name]) != digest(saved[name])]
        if self.replay.digest() != saved["replay"]["digest"]:
            wrong.append("replay")
        if wrong:
            raise ValueError(
                f"{' and '.join(wrong)} would not be as saved; remove this checkpoint, or go on by resume=force"
            )

    # what a kind of run brings

    @property
    def looks(self) -> EnvSpec:
        """What the networks see and answer."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called once in a run's life, before its first step."""

    def sample(self, stream: str, count: int, size: int = 0) -> Batch:
        """A batch of every member, a function of the stream, the count and what is held. Leaves [n, B, ...]."""
        raise NotImplementedError

    @property
    def chunks(self) -> int:
        """In how many chunks the data of now have come, each a stream "chunk/NUMBER"; 0 if they came otherwise."""
        return 0

    # a run's life

    def __enter__(self) -> Self:
        self.stop.__enter__()
        self.progress.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.folder.storage.ending = True
        self.progress.close()
        error = raised[1]
        if isinstance(error, EnvironmentFailed) and (error.undone or self.evaluating):
            self.save()
        if self.trace:
            self.trace.close()
        self.folder.close()
        self.stop.__exit__(*raised)

    @property
    def finished(self) -> bool:
        return self.folder.finished is not None

    @property
    def going(self) -> bool:
        """There are steps to take, updates to make for those that were taken, or an evaluation to finish."""
        return not self.lost and (self.clock.running or self.clock.updates_due() > 0 or self.evaluating)

    @property
    def lost(self) -> bool:
        """Every seed has diverged."""
        return len(self.averages.diverged) == len(self.config.seeds)

    @property
    def exit_code(self) -> int:
        return self.stop.exit_code

    def close(self) -> None:
        """The loop has ended: the run is complete, or it was told to stop. Save either way."""
        self.folder.storage.ending = True
        if not self.going:
            self.log()
        over = not self.going and self.stop.exit_code != DIVERGED
        if not self.save() or (over and not self._finish()):
            self.stop.exit_code = UNSAVED
            self.progress.say(
                f"step {self.clock.env_steps} is not saved; the same command goes on from what was saved before"
            )
        elif not over:
            self.progress.say(f"{self.stop.requested}: saved at step {self.clock.env_steps}; {self.stop.advice}")
        else:
            if self.lost:
                self.progress.say(f"no seed is left: the run ends at step {self.clock.env_steps}")
            if self.returns:
                self.progress.table(self.returns)

    def _finish(self) -> bool:
        """-> whether the run's summary could be written."""
        summary = {"step": self.clock.env_steps, "updates": self.clock.updates, "returns": self.returns}
        summary["diverged"] = self.averages.diverged
        return self.folder.storage.attempt("the summary", lambda: self.folder.finish(summary)) is not None

    # what the loop asks for

    def intervene(self, *units: Unit) -> None:
        """Apply the events that are due in these units, and write each to the ledger."""
        self.engine.chunks = self.chunks
        rows = self.engine.intervene(self.clock, units, self.sample)
        self.folder.events(rows)
        self.progress.events(rows)
        for row in rows:
            if self.trace:
                self.trace.event(self.clock.updates, row, self.engine.states)

    # reporting

    def note(self, batch: Batch, metrics: Tensors) -> None:
        """Take in what the update with this batch reports; nothing waits for the device."""
        self.averages.add(metrics)
        if self.trace:
            self.trace.update(self.clock.updates, self.engine, batch, metrics)
        if self.watch.look(batch, self.clock.updates, self.clock.agent_steps):
            self.tell_faults()

    def tell_faults(self) -> None:
        """Write down which members have been frozen since the last time, and why; stop if that is configured."""
        for fault in self.watch.take():
            self._tell(fault)
        self._stop_where_diverged()

    def _tell(self, fault: Fault) -> None:
        seed, update = self.config.seeds[fault.member], int(fault.batch["update"])
        step = min(int(fault.batch["step"]) * self.looks.action_repeat, self.config.steps)
        bad = None
        with suppress(Exception):  # what is only looked for takes nobody's run with it, a full GPU for one
            bad = cause(self.engine, fault)
        name = bad.name if bad else "not found when the update was made again"
        self.averages.diverged.append(seed)
        self.folder.events([{"step": step, "updates": update, "diverged": seed, "cause": name}])
        self.progress.say(f"seed {seed} diverged in update {update}: {bad or name}; its weights are frozen")
        path = self.folder.path / FOLDER / f"seed_{seed}-update_{update}.pt"
        saving = partial(keep, path, self.config, self.engine, self.looks, fault)
        if self.folder.storage.attempt("the fault", saving):
            self.progress.say(f"python train.py replay_fault={path} shows it again")

    def _stop_where_diverged(self) -> None:
        if self.averages.diverged and self.config.on_divergence == "stop":
            left = "no seed is left" if self.lost else "on_divergence=freeze goes on with the other seeds"
            self.stop.ask("on_divergence=stop", DIVERGED, left)

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
        """Write the averages since the last log."""
        self.report(self.averages.take())
        self.tell_faults()
        self.folder.timing(self.progress.rates())
        self.progress.refresh()

    def report(self, found: dict[str, list[float]]) -> None:
        """A row of metrics, one number per seed each."""
        if found:
            self.folder.metrics({"step": self.clock.env_steps, "updates": self.clock.updates, **found})

    # persistence

    def save(self) -> bool:
        """-> whether it could be; if not, that is said, and all that was saved before stands."""
        step, state = self.clock.env_steps, self.state_dict()
        done = self.folder.storage.attempt("the checkpoint", lambda: self.folder.save(step, state, self.replay))
        return done is not None

    def state_dict(self) -> dict[str, Any]:
        engine = self.engine.state_dict()
        return {
            "states": engine.pop("states"),
            "engine": engine,
            "clock": self.clock.state_dict(),
            "pending": self.averages.state_dict() | {"scores": self.returns},
            "faults": self.watch.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.clock.load_state_dict(saved["clock"])
        self.engine.load_state_dict(saved["engine"] | {"states": saved["states"]})
        scores = saved["pending"]["scores"]
        self.returns = [float(scores[member]) for member in range(len(self.config.seeds))] if scores else []
        self.averages.load_state_dict(saved["pending"], self.config.device)
        self.watch.load_state_dict(saved["faults"])
