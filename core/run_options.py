"""The options of a run that belong to no agent, network or environment: defaults, units and ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from core.options import option, show


@dataclass(frozen=True)
class Uniform:
    """Replay that samples every transition alike."""

    capacity: int = option(1_000_000, low=1, help="slots per seed: one for each agent step, one more for each episode")


@dataclass(frozen=True)
class Prioritised:
    """Replay that samples by error (Schaul et al. 2016; Dopamine's constants)."""

    capacity: int = option(1_000_000, low=1, help="slots per seed: one for each agent step, one more for each episode")
    alpha: float = option(0.5, low=0, high=1, help="priority = error^alpha; 0 samples uniformly")
    beta: float = option(0.5, low=0, high=1, help="importance weight = priority^-beta; 1 corrects in full")
    beta_final: float | None = option(None, low=0, high=1, help="beta moves there over the run's updates; null: stays")


REPLAYS = {"uniform": Uniform, "prioritised": Prioritised}


@dataclass(frozen=True)
class Stream:
    """Which task when. No tasks: `env` throughout."""

    tasks: tuple[str, ...] = option(
        (), help="environments of one family, entered in turn; the last one lasts to the end"
    )
    steps: int = option(0, low=0, help="env steps per task")
    replay: Literal["clear", "keep"] = option("clear", help="what happens to the replay when a task begins")

    def __post_init__(self) -> None:
        if self.steps and not self.tasks:
            raise ValueError(f"steps={self.steps} given without tasks; name them, as in stream.tasks=[TASK,TASK]")
        if len(self.tasks) > 1 and not self.steps:
            raise ValueError("steps=0 given; expected the env steps per task, as in stream.steps=100_000")


@dataclass(frozen=True)
class Priming:
    """Updates all at once on little data, before training goes on as usual (Nikishin et al. 2022, section 3); with
    offline data and after=0: pre-training."""

    updates: int = option(0, low=0, help="how many; 0: none. 100_000 as published")
    after: int = option(100, low=0, help="agent steps before them")


@dataclass(frozen=True)
class Offline:
    """Data from elsewhere that training batches are mixed with."""

    data: str = option("", help="an npz file of transitions, as python -m core.run export RUN_DIR writes it")
    share: float = option(0.5, low=0, high=1, help="of every batch; RLPD takes half")
    pooled: bool = option(False, help="draw from file and replay as from one, whatever the share; IQL does")


@dataclass(frozen=True)
class Run:
    """The options that belong to no group."""

    seeds: tuple[int, ...] = option((0,), low=0, help="one learner each, side by side in one process")
    steps: int = option(100_000, low=1, high=10**12, help="length of the run, env steps")
    replay_ratio: float = option(1.0, above=0, high=10**6, help="updates per agent step; fractions allowed")
    warmup: int = option(1_000, low=0, help="random agent steps before the first update (priming apart)")
    stream: Stream = option(Stream())
    priming: Priming = option(Priming())
    offline: Offline = option(Offline())
    device: str = option("cpu", help="cpu | cuda | cuda:N")
    compile: bool = option(True, help="compile the update; false runs the same code eagerly")
    precision: Literal["float32", "tf32", "bfloat16"] = option("float32", help="of products; all else is float32")
    run_dir: str = option("", help="the run folder; empty: named by the configuration, under runs/")
    resume: Literal["strict", "exact", "force"] = option(
        "strict",
        help="force: go on where the configuration differs; exact: not even where code, versions or machine do",
    )
    on_divergence: Literal["freeze", "stop"] = option("freeze", help="what becomes of a run when a seed diverges")
    on_failure: Literal["stop", "restart"] = option("stop", help="what follows an environment's error")
    env_timeout: float = option(600, low=0, help="seconds that an environment may take to answer; 0: for ever")
    save_every: int = option(10_000, low=0, help="env steps between checkpoints; 0: only at the end")
    eval_every: int = option(5_000, low=0, help="env steps between evaluations; 0: only at the end")
    eval_episodes: int = option(10, low=1, help="episodes per evaluation and seed")
    final_episodes: int = option(0, low=0, help="episodes of the last evaluation; 0: eval_episodes")
    observe_every: int = option(2_000, low=0, help="updates between cheap diagnostics; 0: none")
    rank_every: int = option(10_000, low=0, help="updates between ranks, churn and spectra; 0: none")
    probe_every: int = option(0, low=0, help="updates between tangent kernels, curvature and probes; 0: none")
    trace: bool = option(False, help="write digests of every step, for python -m core.run difference")
    log_every: int = option(1_000, low=1, help="env steps between rows of metrics")

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} given; expected at least one seed, and each once")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device: {show(self.device)} given; expected cpu | cuda | cuda:N")
        switches = len(self.stream.tasks) - 1
        if switches > 0 and self.stream.steps * switches >= self.steps:
            raise ValueError(
                f"stream.steps: {self.stream.steps} given; with steps={self.steps} the last of {switches + 1} tasks "
                f"would never begin; expected less than {-(-self.steps // switches)}, or more steps"
            )
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup: {self.warmup} given; expected less than steps={self.steps}, or nothing is learned"
            )


NESTED = ("stream", "priming", "offline")  # options that have settings of their own
