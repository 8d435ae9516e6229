"""Updates all at once on little data: when they come, and that being stopped among them loses nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from test_clock import updates_by_step

import train
from core.agent_session import AgentSession
from core.clock import Clock
from core.config import load
from core.run import main as run_command

RUN = ["agent=sac", "env=toy/reach", "net.width=16", "agent.batch_size=8", "steps=60", "warmup=20", "compile=false"]
RUN += ["eval_every=30", "eval_episodes=2", "observe_every=7", "log_every=20", "seeds=[0,1]", "save_every=25"]
RUN += ["priming.updates=50", "priming.after=10", "interventions=[shrink_and_perturb]"]
RUN += ["interventions.shrink_and_perturb.when.every=15"]


def test_the_burst_comes_once_after_its_step_and_training_goes_on_as_usual():
    clock = Clock(steps=100, replay_ratio=0.5, warmup=4, primed=7, primed_after=2)
    assert updates_by_step(clock, 10) == [0, 7, 0, 0, 0, 1, 0, 1, 0, 1]
    assert Clock(steps=100, replay_ratio=0.5, warmup=4, primed=7).total("updates") == 7 + 48


def test_it_is_of_the_first_task_alone():
    clock = Clock(steps=20, warmup=2, primed=5, primed_after=3, task_length=10, switches=1)
    first = updates_by_step(clock, 10)
    clock.enter_task()
    assert (sum(first), sum(updates_by_step(clock, 10))) == (5 + 8, 8)
    assert clock.total("updates") == 21


def test_before_the_first_step_it_is_owed_at_once():
    assert Clock(steps=10, primed=3, primed_after=0).updates_due() == 3


def digest(folder: Path, capsys) -> str:
    capsys.readouterr()
    assert run_command(["digest", str(folder)]) == 0
    return capsys.readouterr().out


def stopped_after(folder: Path, updates: int) -> AgentSession:
    """Run until so many updates have been made, then be told to stop."""
    run = AgentSession(load([*RUN, f"run_dir={folder}"]))
    observe = run.observe

    def watch() -> None:
        observe()
        if run.clock.updates == updates:
            os.kill(os.getpid(), signal.SIGTERM)

    run.observe = watch  # type: ignore[method-assign]
    with run:
        train.loop(run.config, run)
    return run


@pytest.mark.parametrize("updates", [1, 15, 49, 50])
def test_a_run_stopped_among_them_ends_in_the_same_bits(tmp_path, capsys, updates):
    train.train(load([*RUN, f"run_dir={tmp_path / 'whole'}"]))
    stopped = stopped_after(tmp_path / "cut", updates)
    assert (stopped.clock.updates, stopped.clock.agent_steps) == (updates, 10)
    assert train.train(load([*RUN, f"run_dir={tmp_path / 'cut'}"])) == 0
    assert digest(tmp_path / "whole", capsys) == digest(tmp_path / "cut", capsys)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("priming.after=0", r"priming.after: 0 given; expected at least 2, or 0 with offline.data=FILE.npz"),
        ("priming.after=1", r"priming.after: 1 given; expected at least 2"),
        ("priming.update=3", r"priming.update: no such setting; did you mean priming.updates\?"),
        ("priming=3", r"priming: 3 given; expected priming.updates="),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, setting, line):
    with pytest.raises(ValueError, match=line):
        AgentSession(load([*RUN, setting, f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_among_the_updates_of_its_last_step_is_not_over(tmp_path, capsys):
    arguments = [*RUN, "replay_ratio=4", "priming.updates=0"]
    train.train(load([*arguments, f"run_dir={tmp_path / 'whole'}"]))
    run = AgentSession(load([*arguments, f"run_dir={tmp_path / 'cut'}"]))
    observe, total = run.observe, run.clock.total("updates")

    def watch() -> None:
        observe()
        if run.clock.updates == total - 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run.observe = watch  # type: ignore[method-assign]
    with run:
        train.loop(run.config, run)
    assert (run.clock.env_steps, run.clock.updates, run.finished) == (60, total - 2, False)
    assert train.train(load([*arguments, f"run_dir={tmp_path / 'cut'}"])) == 0
    assert digest(tmp_path / "whole", capsys) == digest(tmp_path / "cut", capsys)
    assert (tmp_path / "cut" / "done.json").exists()


def test_a_long_burst_is_saved_on_its_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "LONG", 20)
    run = AgentSession(load([*RUN, f"run_dir={tmp_path / 'run'}"]))
    saved = []
    save = run.save
    run.save = lambda: saved.append(run.clock.updates) or save()  # type: ignore[method-assign]
    with run:
        train.loop(run.config, run)
    assert saved[:2] == [10, 30]  # 40 and 20 updates before the end of the burst


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["priming.after=61"], "priming.after: 61 given; the first task has 60 agent steps"),
        (["stream.tasks=[toy/reach,toy/reach]", "stream.steps=30", "priming.after=40"], "the first task has 30"),
    ],
)
def test_priming_that_would_never_come_is_refused(tmp_path, settings, line):
    with pytest.raises(ValueError, match=line):
        AgentSession(load([*RUN, *settings, f"run_dir={tmp_path / 'run'}"]))
