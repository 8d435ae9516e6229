"""What a person at the terminal sees: a line before each silence, a bar, a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from core.randomness import host_generator
from core.statistics import bootstrap_interval, iqm

if TYPE_CHECKING:
    from core.session import Session


class Progress:
    """The terminal of one run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bar: tqdm | None = None
        self._since = (time.monotonic(), 0, 0)  # moment, env steps and updates at the last rate
        self._begun = time.monotonic()
        self._observed = self._observed_before = 0.0  # seconds: in all, and at the last rate

    def start(self) -> None:
        run, config, clock = self._session, self._session.config, self._session.clock
        if run.finished:
            self.say(f"{run.folder.path} is finished; the same command does nothing more")
            return
        self.say(
            f"{config.agent_name} on {', '.join(config.tasks)}, seeds {list(config.seeds)}, folder {run.folder.path}"
        )
        if clock.env_steps:
            self.say(f"going on from step {clock.env_steps}")
        if hasattr(config.value, "high") and config.tasks[0].startswith("gym/"):  # Atari's are clipped, DMC's bounded
            reach = f"values from {config.value.low:g} to {config.value.high:g}"
            self.say(f"value: {reach} fit its histogram (value.low, value.high); target_clipped tells what does not")
        if config.compile and not run.compile:
            self.say("no C++ compiler found: running eagerly, up to 1.7 times slower (install g++ to compile)")
        if run.compile:
            self.say("the first update compiles: up to a minute of silence, a few seconds the next time")
        self._begun = time.monotonic()
        self._since = (self._begun, clock.env_steps, clock.updates)
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=config.steps,
            initial=clock.env_steps,
            unit=" env steps",
            mininterval=0.5 if terminal else 20,
            maxinterval=30,
            dynamic_ncols=terminal,
            smoothing=0.05,
        )

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def step(self) -> None:
        """One more turn of the loop; the bar redraws itself when it is time."""
        if self._bar is not None:
            self._bar.update(self._session.clock.env_steps - self._bar.n)

    def refresh(self) -> None:
        """Put the latest returns beside the bar."""
        if self._bar is None:
            return
        run = self._session
        latest = [r for r in run.averages.latest if r is not None]
        shown: dict[str, Any] = {"updates/s": f"{self._update_rate:.0f}"}
        if latest:
            shown["return"] = f"{np.mean(latest):.1f}"
        if run.returns:
            shown["evaluated"] = f"{np.mean(run.returns):.1f}"
        self._bar.set_postfix(shown, refresh=False)

    def events(self, rows: Sequence[dict[str, Any]]) -> None:
        """Those of all seeds share a line. rows: of the ledger, at one update."""
        touched: dict[str, list[int]] = {}
        for row in rows:
            what = f"step {row['step']}, update {row['updates']}: {row['intervention']} on {row['part']}"
            touched.setdefault(what, []).append(row["touched"])
        for what, counts in touched.items():
            least, most = min(counts), max(counts)
            self.say(f"{what}: {least if least == most else f'{least} to {most}'} entries changed")

    @contextmanager
    def observing(self) -> Iterator[None]:
        """What happens inside is diagnostics; on a GPU they wait for the updates that are still under way."""
        began = time.monotonic()
        yield
        self._observed += time.monotonic() - began

    _update_rate = 0.0

    def rates(self) -> dict[str, float]:
        """Env steps and updates per second since the last call, per seed, as all seeds go in lock-step; and the share
        of that time that diagnostics took."""
        then, steps, updates = self._since
        clock, now = self._session.clock, time.monotonic()
        seconds = max(now - then, 1e-9)
        observed = self._observed - self._observed_before
        self._since, self._observed_before = (now, clock.env_steps, clock.updates), self._observed
        self._update_rate = (clock.updates - updates) / seconds
        return {
            "step": clock.env_steps,
            "seconds": seconds,
            "env_steps_per_second": (clock.env_steps - steps) / seconds,
            "updates_per_second": self._update_rate,
            "observing": observed / seconds,
        }

    def table(self, returns: list[float]) -> None:
        """The scores of a finished run, and how to look at it."""
        run = self._session
        self.close()
        digits = 1 if max(map(abs, returns)) >= 10 else 3
        print(f"\n{run.task.name} at {run.clock.env_steps} env steps, {run.score} of the last evaluation")
        for seed, value in zip(run.config.seeds, returns, strict=True):
            diverged = "   diverged: its weights were frozen on the way" if seed in run.averages.diverged else ""
            print(f"  seed {seed:<6} {value:10.{digits}f}{diverged}")
        if np.isfinite(returns).all():
            low, high = bootstrap_interval(np.array(returns), iqm, host_generator(0, "bootstrap"))
            middle = float(iqm(np.array(returns)))
            print(f"  IQM         {middle:10.{digits}f}   95% interval [{low:.{digits}f}, {high:.{digits}f}]")
        else:
            print("  IQM               none   a seed has no score; report.py counts it as the worst")
        share = self._observed / (time.monotonic() - self._begun)
        print(f"  diagnostics took {share:.1%} of the time")
        print(f"\nlook at it: .venv/bin/tensorboard --logdir {run.folder.path}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
