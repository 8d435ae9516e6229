"""Environments that fail or hang: the run ends with one line and is saved, or opens another and writes that down."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from core import checkpoint
from core.agent_session import AgentSession
from core.config import BadConfig, load
from core.replay_ring import CLOSING
from core.run import main as run_command
from core.signals import ENVIRONMENT
from core.watchdog import EnvironmentFailed
from envs.toy import Reach

SAC = ["agent=sac", "env=toy/reach", "net.width=16", "agent.batch_size=8", "steps=80", "warmup=20", "compile=false"]
SAC += ["eval_every=0", "eval_episodes=1", "save_every=30", "log_every=10", "observe_every=0", "rank_every=0"]
SAC += ["replay.capacity=160", "seeds=[0,1]"]


def play(folder: Path, *more: str) -> int:
    return train.train(load([*SAC, *more, f"run_dir={folder}"]))


def digests(folder: Path, capsys) -> str:
    capsys.readouterr()
    assert run_command(["digest", str(folder)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def failing(monkeypatch):
    """Environments fail in the given calls of `step`, counted over all of them."""
    step = Reach.step

    def plant(*calls: int, error: type[BaseException] = RuntimeError) -> None:
        count = iter(range(1, 100_000))

        def broken(self, action):
            if next(count) in calls:
                raise error("the simulator\nwent away")
            return step(self, action)

        monkeypatch.setattr(Reach, "step", broken)

    return plant


@pytest.mark.parametrize("call", [91, 92])  # of the first seed and of the second, in the 46th step
def test_an_error_ends_the_run_in_one_line_and_it_goes_on_as_if_nothing_had_been(call, tmp_path, failing, capsys):
    play(tmp_path / "sound")
    failing(call)
    with pytest.raises(EnvironmentFailed) as error:
        play(tmp_path / "broken")
    told = str(error.value)
    assert told.startswith(f"toy/reach, seed {call - 91}, episode ") and "\n" not in told
    assert told.endswith("RuntimeError: the simulator went away")
    assert checkpoint.step(checkpoint.newest(tmp_path / "broken")) == 45
    failing()
    assert play(tmp_path / "broken") == 0
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "sound", capsys)


def test_a_simulator_that_leaves_the_process_has_failed_like_any_other(tmp_path, failing):
    failing(91, error=SystemExit)
    with pytest.raises(EnvironmentFailed, match="SystemExit: the simulator went away"):
        play(tmp_path)
    assert checkpoint.step(checkpoint.newest(tmp_path)) == 45


def test_the_command_line_says_it_and_has_its_own_exit_code(tmp_path):
    code = (
        "import train, envs.toy\ndef broken(self, action): raise RuntimeError('gone')\nenvs.toy.Reach.step = broken\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code + "train.main(train.train)")
    command = [sys.executable, script, *SAC, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(train.__file__).parent, env=environment())
    assert done.returncode == ENVIRONMENT
    assert "toy/reach, seed 0, episode 0 (train), step 0: RuntimeError: gone; the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_restarting_cuts_the_episode_and_writes_it_down(tmp_path, failing, capsys):
    failing(91)
    assert play(tmp_path, "on_failure=restart") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert row["seed"] == 0 and row["restarted"] == "train" and row["error"] == "RuntimeError: the simulator went away"
    assert "seed 0: its environment failed and was opened anew" in capsys.readouterr().err
    saved = checkpoint.load(checkpoint.newest(tmp_path))
    episodes = [env["episode"] for env in saved["envs"]["envs"]]
    assert episodes[0] > 0


def test_a_step_that_failed_is_not_learned_from(tmp_path, failing):
    failing(91)  # the first seed's 46th step, the 21st of its second episode
    run = AgentSession(load([*SAC, "on_failure=restart", f"run_dir={tmp_path}"]))
    with run:
        train.loop(run.config, run)
    closed = [np.flatnonzero(kind == CLOSING).tolist() for kind in run.replay.ring.kind.reshape(2, -1)]
    assert closed == [[25, 25 + 21, 25 + 21 + 26], [25, 25 + 26, 25 + 2 * 26]]


def test_a_run_that_was_restarted_resumes_to_the_same_bits(tmp_path, failing, capsys):
    """The failure lies before the checkpoint that is resumed."""
    failing(51)
    play(tmp_path / "whole", "on_failure=restart")
    failing(51)
    run = AgentSession(load([*SAC, "on_failure=restart", f"run_dir={tmp_path / 'halves'}"]))
    turn = run.progress.step
    run.progress.step = lambda: (turn(), run.clock.env_steps == 60 and run.stop.ask("enough", 1))
    with run:
        train.loop(run.config, run)
    failing()
    resumed = AgentSession(load([*SAC, "on_failure=restart", f"run_dir={tmp_path / 'halves'}"]))
    failed = [env["failed"] for env in resumed.envs.state_dict()["envs"]]
    assert failed == [env["failed"] for env in run.envs.state_dict()["envs"]] and failed != [None, None]
    with resumed:
        train.loop(resumed.config, resumed)
    assert digests(tmp_path / "halves", capsys) == digests(tmp_path / "whole", capsys)


@pytest.mark.parametrize(("call", "stream"), [(7, "train"), (160 + 5, "evaluate/80/0")])
def test_the_first_episode_may_fail_too(call, stream, tmp_path, failing):
    failing(call)
    assert play(tmp_path, "on_failure=restart") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert (row["episode"], row["restarted"]) == (0, stream)
    with (tmp_path / "eval.csv").open() as scores:  # of whole episodes alone: in place of one that was cut, another
        assert [(row["seed"], row["episode"], row["length"]) for row in csv.DictReader(scores)] == [
            ("0", "0", "25"),
            ("1", "0", "25"),
        ]


def test_an_environment_that_fails_again_at_once_ends_the_run(tmp_path, failing):
    failing(*range(91, 1_000))
    with pytest.raises(EnvironmentFailed, match="went away"):
        play(tmp_path, "on_failure=restart")


def test_an_error_in_evaluation_ends_the_run_saved_before_it(tmp_path, failing, capsys):
    play(tmp_path / "sound", "eval_every=40")
    failing(81 + 3)  # 40 steps of two seeds, and then the evaluation's
    with pytest.raises(EnvironmentFailed, match="evaluate/40"):
        play(tmp_path / "broken", "eval_every=40")
    assert checkpoint.step(checkpoint.newest(tmp_path / "broken")) == 40
    failing()
    play(tmp_path / "broken", "eval_every=40")
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "sound", capsys)


@pytest.fixture
def opening(monkeypatch):
    """Environments do not open from the given one on, nor after they were closed."""
    start, reset, close = Reach.__init__, Reach.reset, Reach.close

    def plant(first_missing: int = 100_000) -> None:
        count = iter(range(1, 100_000))

        def limited(self):
            if next(count) >= first_missing:
                raise RuntimeError("no licence left")
            start(self)
            self.over = False

        def closing(self):
            close(self)
            self.over = True

        def beginning(self, seed):
            assert not self.over, "it was closed"
            return reset(self, seed)

        for name, function in {"__init__": limited, "close": closing, "reset": beginning}.items():
            monkeypatch.setattr(Reach, name, function)

    return plant


def test_one_that_does_not_open_for_an_evaluation_ends_the_run_saved_before_it(tmp_path, opening, capsys):
    play(tmp_path / "sound", "eval_every=40")
    opening(4)  # of the two of the evaluation the second
    with pytest.raises(EnvironmentFailed, match=r"env: toy/reach does not open \(RuntimeError: no licence left\)"):
        play(tmp_path / "broken", "eval_every=40")
    assert checkpoint.step(checkpoint.newest(tmp_path / "broken")) == 40
    opening()
    play(tmp_path / "broken", "eval_every=40")
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "sound", capsys)


def test_one_that_does_not_open_for_the_next_task_ends_the_run_saved_before_it(tmp_path, opening, capsys):
    tasks = ("stream.tasks=[toy/reach,toy/reach]", "stream.steps=40")
    play(tmp_path / "sound", *tasks)
    opening(3 + 2)  # each task once for its spaces, the first one's two, the next one's first
    with pytest.raises(EnvironmentFailed, match="no licence left"):
        play(tmp_path / "broken", *tasks)
    assert checkpoint.step(checkpoint.newest(tmp_path / "broken")) == 40
    opening()
    play(tmp_path / "broken", *tasks)
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "sound", capsys)


def test_a_restart_that_is_undone_leaves_no_mark(tmp_path, failing, opening, capsys):
    """In one step both fail, and only the first one's place can be taken: the run ends, saved as before that step."""
    play(tmp_path / "sound")
    opening(4)
    failing(71, 72)
    with pytest.raises(EnvironmentFailed, match="toy/reach, seed 1, episode 1"):
        play(tmp_path / "broken", "on_failure=restart")
    failing()
    opening()
    play(tmp_path / "broken", "on_failure=restart")
    for name in ("checkpoints/000000000080/state.pt",):
        whole, gone_on = (checkpoint.load((tmp_path / run / name).parent) for run in ("sound", "broken"))
    assert [env["failed"] for env in gone_on["envs"]["envs"]] == [None, None]
    assert gone_on["replay"]["digest"] == whole["replay"]["digest"]


def test_where_none_opens_in_its_place_the_run_ends_saved(tmp_path, failing, opening):
    opening(3)
    failing(91)
    with pytest.raises(EnvironmentFailed, match="no licence left"):
        play(tmp_path, "on_failure=restart")
    assert checkpoint.step(checkpoint.newest(tmp_path)) == 45


def test_the_next_evaluation_plays_on_the_one_that_was_opened_anew(tmp_path, failing, opening):
    opening()
    failing(81 + 3)  # in the evaluation at step 40; there is another at 80
    assert play(tmp_path, "on_failure=restart", "eval_every=40") == 0
    (row,) = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert row["restarted"] == "evaluate/40/0"


def test_one_that_does_not_close_properly_is_left_behind(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("the window is gone")

    monkeypatch.setattr(Reach, "close", broken)
    assert play(tmp_path, "stream.tasks=[toy/reach,toy/reach]", "stream.steps=40") == 0


@pytest.mark.parametrize("method", ["__init__", "close"])
def test_one_that_hangs_when_it_is_opened_or_closed_ends_the_process(method, tmp_path):
    code = f"import time, train, envs.toy\nenvs.toy.Reach.{method} = lambda self: time.sleep(60)\n"
    script = tmp_path / "script.py"
    script.write_text(code + "train.main(train.train)")
    tasks = ["stream.tasks=[toy/reach,toy/reach]", "stream.steps=40"]  # each is looked at before the first step
    command = [sys.executable, script, *SAC, *tasks, "env_timeout=0.5", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment(), timeout=50)
    assert done.returncode == ENVIRONMENT
    assert "toy/reach, opened: no answer for 0.5 seconds (env_timeout)" in done.stderr


@pytest.mark.parametrize("terminal", ["PIPE", "/dev/full"])
def test_one_that_does_not_answer_ends_the_process(terminal, tmp_path):
    code = "import time, train, envs.toy\ndef hang(self, action): time.sleep(60)\nenvs.toy.Reach.step = hang\n"
    script = tmp_path / "script.py"
    script.write_text(code + "train.main(train.train)")
    command = [sys.executable, script, *SAC, "env_timeout=0.5", f"run_dir={tmp_path / 'run'}"]
    with open(terminal, "w") if terminal != "PIPE" else contextlib.nullcontext(subprocess.PIPE) as shown:
        done = subprocess.run(command, stderr=shown, text=True, env=environment(), timeout=50)
    assert done.returncode == ENVIRONMENT
    if terminal == "PIPE":
        assert "toy/reach, seed 0, episode 0 (train): no answer for 0.5 seconds (env_timeout)" in done.stderr


def test_one_that_does_not_open_is_told_in_a_line_before_anything_is_written(tmp_path, monkeypatch, capsys):
    def missing(self):
        raise ImportError("libGL.so.1: cannot open\nshared object file")

    monkeypatch.setattr(Reach, "__init__", missing)
    with pytest.raises(BadConfig, match=r"env: toy/reach does not open \(ImportError: libGL.so.1: cannot open shared"):
        play(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(train.__file__).parent)}
