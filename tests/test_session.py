"""Whole runs on tiny environments: what is promised about resuming, observing, seeds and divergence."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import core.session
import train
from core import assemble, checkpoint
from core.agent_session import AgentSession
from core.clock import Clock
from core.config import BadConfig, load
from core.diagnostics import CHEAP, DEAR, MIDDLE, trainability
from core.policy import load_policy
from core.replay import Replay
from core.run import main as run_command

DQN = ["agent=dqn", "env=toy/lives", "net=nature", "net.width=16", "net.padding=valid", "agent.batch_size=8"]
DQN += [
    "steps=90",
    "warmup=20",
    "interventions=[layer_norm,reset,hare_and_tortoise]",
    "interventions.reset.when.every=15",
]
DQN += ["interventions.hare_and_tortoise.when.every=10", "agent.n_step=3", "replay=prioritised"]
SAC = ["agent=sac", "env=toy/reach", "net.width=16", "agent.batch_size=8", "steps=90", "warmup=20"]
SAC += ["interventions=[l2,shrink_and_perturb]", "interventions.shrink_and_perturb.when.every=15"]
COMMON = ["compile=false", "eval_every=30", "eval_episodes=2", "log_every=20", "save_every=25", "replay.capacity=60"]
COMMON += ["observe_every=5", "rank_every=20", "probe_every=40", "seeds=[0,1]"]
RUNS = {"dqn": DQN + COMMON, "sac": SAC + COMMON}


@pytest.fixture(autouse=True)
def small_probes(monkeypatch):
    """Diagnostics on few samples: these tests ask whether they disturb, not what they find."""

    def short_trainability(part, s, step):
        return trainability(part, s, step, steps=1)

    quick = [short_trainability if d is trainability else d for d in DEAR.diagnostics]
    tiers = [CHEAP, MIDDLE, DEAR._replace(diagnostics=quick)]
    monkeypatch.setattr(core.session, "TIERS", [tier._replace(batch=8) for tier in tiers])


either = pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
quick = [RUNS["sac"], pytest.param(RUNS["dqn"], marks=pytest.mark.slow)]  # convolutions take their time
sooner = pytest.mark.parametrize("arguments", quick, ids=["sac", "dqn"])


def play(folder: Path, arguments: list[str], *more: str) -> int:
    return train.train(load([*arguments, *more, f"run_dir={folder}"]))


def digests(folder: Path, capsys) -> dict[str, str]:
    capsys.readouterr()
    assert run_command(["digest", str(folder)]) == 0
    return dict(line.split(" ") for line in capsys.readouterr().out.splitlines())


def stopped_at(folder: Path, arguments: list[str], step: int) -> None:
    """Run until `step` env steps, then be told to stop."""
    run = AgentSession(load([*arguments, f"run_dir={folder}"]))
    turn = run.progress.step

    def watch() -> None:
        turn()
        if run.clock.env_steps >= step:
            os.kill(os.getpid(), signal.SIGTERM)

    run.progress.step = watch
    with run:
        train.loop(run.config, run)
    assert run.exit_code == 128 + signal.SIGTERM


@either
def test_a_run_stopped_anywhere_ends_in_the_same_bits(tmp_path, capsys, arguments):
    play(tmp_path / "whole", arguments)
    wanted = digests(tmp_path / "whole", capsys)
    for step in (7, 33, 64):
        stopped_at(tmp_path / "broken", arguments, step)
    assert play(tmp_path / "broken", arguments) == 0
    assert digests(tmp_path / "broken", capsys) == wanted
    for name in ("eval.csv", "metrics.jsonl", "ledger.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_batches_drawn_together_change_nothing_wherever_a_run_is_stopped(tmp_path, capsys, monkeypatch):
    many = [*RUNS["sac"], "replay_ratio=11.5", "steps=32"]
    sizes = []
    draw = Replay.samples
    monkeypatch.setattr(
        Replay, "samples", lambda self, size, draws, *a: sizes.append(len(draws)) or draw(self, size, draws, *a)
    )
    play(tmp_path / "together", many)
    assert {8, 3, 4} <= set(sizes)  # of 11 or 12
    run = AgentSession(load([*many, f"run_dir={tmp_path / 'broken'}"]))
    note = run.note

    def stopping(batch, metrics) -> None:
        note(batch, metrics)
        if run.clock.updates == 100:
            run.stop.ask("the test", 99, "go on")

    run.note = stopping
    with run:
        train.loop(run.config, run)
    assert (run.exit_code, run.clock.updates_due()) == (99, 3)
    assert play(tmp_path / "broken", many) == 0
    monkeypatch.setattr("core.agent_session.TOGETHER", 1)
    play(tmp_path / "alone", many)
    wanted = digests(tmp_path / "alone", capsys)
    assert digests(tmp_path / "together", capsys) == wanted == digests(tmp_path / "broken", capsys)


def test_a_forced_configuration_that_does_not_fit_leaves_the_folder_as_it_was(tmp_path):
    play(tmp_path, RUNS["sac"])
    names = ("config.yaml", "done.json", "provenance.json", "metrics.jsonl", "eval.csv")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    with pytest.raises(BadConfig, match="does not fit this configuration") as raised:
        play(tmp_path, [*RUNS["sac"], "net.width=8", "resume=force"])
    assert raised.tb  # it holds the session that was not built: its folder must be free nevertheless
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert play(tmp_path, RUNS["sac"]) == 0


def test_a_device_that_is_not_there_is_told_where_the_run_starts(tmp_path):
    config = load([*RUNS["sac"], "device=cuda:99", f"run_dir={tmp_path / 'run'}"])  # another machine may have it
    with pytest.raises(BadConfig, match=r"device: cuda:99 given; this machine has \w+ CUDA devices; use device=cpu"):
        train.train(config)
    assert not (tmp_path / "run").exists()


def test_what_was_forced_on_a_run_that_was_killed_before_it_was_saved_again_goes_on(tmp_path):
    stopped_at(tmp_path, RUNS["sac"], 64)
    smaller = [*RUNS["sac"], "replay.capacity=30", f"run_dir={tmp_path}"]
    with pytest.raises(KeyboardInterrupt), AgentSession(load([*smaller, "resume=force"])):
        raise KeyboardInterrupt
    assert train.train(load(smaller)) == 0


def test_a_run_that_is_not_as_it_was_saved_does_not_start(tmp_path, monkeypatch):
    stopped_at(tmp_path, RUNS["sac"], 64)
    load_clock = Clock.load_state_dict
    monkeypatch.setattr(Clock, "load_state_dict", lambda self, saved: load_clock(self, saved | {"updates": 7}))
    with pytest.raises(BadConfig, match="000000000064: clock would not be as saved; remove this checkpoint, or go on"):
        play(tmp_path, RUNS["sac"])
    assert play(tmp_path, RUNS["sac"], "resume=force") == 0


@sooner
def test_a_power_cut_between_checkpoints_repeats_what_was_lost(tmp_path, capsys, arguments):
    play(tmp_path / "whole", arguments)
    run = AgentSession(load([*arguments, f"run_dir={tmp_path / 'cut'}"]))
    turn = run.progress.step

    def cut() -> None:
        turn()
        if run.clock.env_steps == 62:  # the newest checkpoint is that of step 50
            raise InterruptedError

    run.progress.step = cut
    with pytest.raises(InterruptedError), run:
        train.loop(run.config, run)
    play(tmp_path / "cut", arguments)
    assert digests(tmp_path / "cut", capsys) == digests(tmp_path / "whole", capsys)


@pytest.mark.parametrize("step", [30, 90])
def test_a_run_told_to_stop_in_an_evaluation_stops_there_and_begins_it_anew(tmp_path, capsys, step):
    play(tmp_path / "whole", RUNS["sac"])
    run = AgentSession(load([*RUNS["sac"], f"run_dir={tmp_path / 'halves'}"]))
    act, played = run.engine.act, iter(range(10_000))

    def asked_to_stop(obs, explore, stream, count, role="params"):
        if stream == f"evaluate/{step}/act" and next(played) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return act(obs, explore, stream, count, role)

    run.engine.act = asked_to_stop
    with run:
        train.loop(run.config, run)
    assert run.exit_code == 128 + signal.SIGTERM and next(played) == 4  # not one more decision
    assert f"SIGTERM: saved at step {step}" in capsys.readouterr().err
    play(tmp_path / "halves", RUNS["sac"])
    assert digests(tmp_path / "halves", capsys) == digests(tmp_path / "whole", capsys)


def test_a_run_stopped_in_an_evaluation_ends_even_where_none_is_due_any_more(tmp_path):
    arguments = [*RUNS["sac"], f"run_dir={tmp_path}"]
    run = AgentSession(load(arguments))
    act = run.engine.act

    def asked_to_stop(obs, explore, stream, count, role="params"):
        if stream == "evaluate/30/act":
            run.stop.ask("enough", 1)
        return act(obs, explore, stream, count, role)

    run.engine.act = asked_to_stop
    with run:
        train.loop(run.config, run)
    assert run.evaluating and run.clock.env_steps == 30
    assert train.train(load([*arguments, "eval_every=0", "resume=force"])) == 0


def test_a_finished_run_does_nothing_more(tmp_path, capsys):
    play(tmp_path, RUNS["sac"])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert play(tmp_path, RUNS["sac"]) == 0
    assert "finished" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"} == files


def test_the_replay_takes_no_more_room_than_the_run_can_fill(tmp_path):
    run = AgentSession(load([*DQN, "compile=false", "replay.capacity=1_000_000", f"run_dir={tmp_path / 'run'}"]))
    assert run.replay.ring.capacity == 2 * 90  # each step might end an episode, which takes another slot


@pytest.mark.parametrize(
    ("name", "given", "threads"), [("sac", None, 1), ("sac", "2", 2), ("dqn", None, 2)], ids=["dense", "asked", "conv"]
)
def test_eager_dense_networks_get_one_thread_unless_told_otherwise(tmp_path, monkeypatch, name, given, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(assemble, "usual_threads", [])
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    try:
        torch.set_num_threads(2)
        AgentSession(load([*RUNS[name], f"run_dir={tmp_path / 'run'}"])).folder.close()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_run_after_an_eager_dense_one_has_the_threads_that_torch_would_give_it(tmp_path, monkeypatch):
    """As in a sweep, `train.py -m compile=false,true`: its runs share a process."""
    before, threads = torch.get_num_threads(), []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(assemble, "usual_threads", [])
    try:
        torch.set_num_threads(2)
        for number, name in enumerate(["sac", "sac", "dqn", "sac"]):
            AgentSession(load([*RUNS[name], f"run_dir={tmp_path / str(number)}"])).folder.close()
            threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1, 2, 1]


@either
def test_observing_and_evaluating_do_not_disturb_training(tmp_path, capsys, arguments):
    play(tmp_path / "watched", arguments, "observe_every=1")
    off = ["observe_every=0", "rank_every=0", "probe_every=0", "eval_every=0"]
    play(tmp_path / "alone", arguments, *off, "log_every=90")
    watched, alone = digests(tmp_path / "watched", capsys), digests(tmp_path / "alone", capsys)
    for component in ("parameters", "birth", "copies", "moments", "buffers", "memories", "replay"):
        assert watched[component] == alone[component], component
    found = set().union(*map(json.loads, (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()))
    part = "q" if "agent=dqn" in arguments else "critic"
    assert {
        f"{part}/{name}" for name in ("dormant@0.025", "srank", "value_churn", "entk_rank", "trainability")
    } <= found
    board = EventAccumulator(str(tmp_path / "watched" / "tensorboard" / "seed_0")).Reload()
    assert f"{part}/entk_image" in board.Tags()["images"]
    timing = [json.loads(line) for line in (tmp_path / "watched" / "timing.jsonl").read_text().splitlines()]
    assert all(0 < row["observing"] < 1 for row in timing[1:])


@sooner
def test_seeds_side_by_side_equal_seeds_alone(tmp_path, arguments):
    play(tmp_path / "both", arguments)
    play(tmp_path / "second", arguments, "seeds=[1]")
    both, second = (checkpoint.load(checkpoint.newest(tmp_path / name)) for name in ("both", "second"))
    for part, fields in both["states"].items():
        for name, value in fields["params"].items():
            assert torch.allclose(value[1], second["states"][part]["params"][name][0], atol=1e-6)
    assert [both["envs"]["envs"][1]["digest"]] == [env["digest"] for env in second["envs"]["envs"]]


@pytest.mark.parametrize(("value", "told"), [("c51", "values from -10 to 10 fit"), ("hl_gauss", "fit"), ("scalar", "")])
def test_where_rewards_have_no_known_bounds_the_reach_of_a_histogram_is_told(tmp_path, capsys, value, told):
    """CartPole's values are near 100."""
    short = ["agent=dqn", "env=gym/CartPole-v1", "net.width=8", "agent.batch_size=4", "steps=30", "warmup=20"]
    short += ["compile=false", "eval_every=0", "eval_episodes=1", "observe_every=0", "rank_every=0"]
    train.train(load([*short, f"value={value}", f"run_dir={tmp_path}"]))
    lines = [line for line in capsys.readouterr().err.splitlines() if "target_clipped" in line]
    assert len(lines) == bool(told) and all(told in line for line in lines)


def test_records_have_the_promised_columns_and_rows(tmp_path):
    play(tmp_path, RUNS["dqn"])
    rows = list(csv.DictReader((tmp_path / "eval.csv").open()))
    assert list(rows[0]) == ["step", "task", "seed", "episode", "return", "length", "updates", "network"]
    assert [(r["step"], r["seed"], r["episode"]) for r in rows] == [
        (str(step), str(seed), str(episode)) for step in (30, 60, 90) for seed in (0, 1) for episode in (0, 1)
    ]
    events = [json.loads(line) for line in (tmp_path / "ledger.jsonl").open()]
    assert [e["updates"] for e in events if e["intervention"] == "reset" and e["seed"] == 0] == [15, 30, 45]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert any("q/dormant@0.025" in row for row in metrics) and any("q/srank" in row for row in metrics)
    assert any("q/loss" in row for row in metrics)
    text = "".join((tmp_path / name).read_text() for name in ("eval.csv", "metrics.jsonl", "ledger.jsonl"))
    assert str(tmp_path) not in text


def test_a_diverging_seed_is_frozen_and_its_neighbour_does_not_notice(tmp_path, capsys):
    run = AgentSession(load([*RUNS["sac"], f"run_dir={tmp_path / 'broken'}"]))
    sample = run.sample

    def poisoned(stream: str, count: int, size: int = 0):
        batch = sample(stream, count, size)
        if stream == "replay" and count == 12:
            batch["reward"][0, 0] = float("nan")
        return batch

    run.sample = poisoned
    with run:
        train.loop(run.config, run)
    assert "seed 0 diverged" in capsys.readouterr().err
    assert '"diverged": 0' in (tmp_path / "broken" / "ledger.jsonl").read_text()
    assert json.loads((tmp_path / "broken" / "done.json").read_text())["diverged"] == [0]
    play(tmp_path / "sound", RUNS["sac"])
    broken, sound = (checkpoint.load(checkpoint.newest(tmp_path / name)) for name in ("broken", "sound"))
    assert broken["engine"]["alive"].tolist() == [False, True]
    for part, fields in broken["states"].items():
        for name, value in fields["params"].items():
            assert value.isfinite().all()
            assert torch.equal(value[1], sound["states"][part]["params"][name][1])


def test_what_happened_after_the_last_log_is_logged_at_the_end(tmp_path):
    play(tmp_path, RUNS["sac"], "log_every=1_000")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows[-1]["step"] == 90 and "critic/loss" in rows[-1]


def test_a_run_whose_seeds_have_all_diverged_is_over(tmp_path, capsys):
    play(tmp_path, RUNS["sac"], "log_every=1_000", "agent.learning_rate=1e30")
    done, shown = json.loads((tmp_path / "done.json").read_text()), capsys.readouterr()
    assert done["diverged"] == [0, 1] and done["step"] < 90
    assert "seed 1 diverged" in shown.err and f"no seed is left: the run ends at step {done['step']}" in shown.err
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows[-1]["step"] == done["step"] and "critic/loss" in rows[-1]
    play(tmp_path, RUNS["sac"], "log_every=1_000", "agent.learning_rate=1e30")
    assert "is finished" in capsys.readouterr().err


def test_a_finished_run_keeps_an_earlier_checkpoint_to_fall_back_to(tmp_path):
    play(tmp_path, RUNS["sac"], "save_every=30")
    assert [checkpoint.step(path) for path in checkpoint.checkpoints(tmp_path)] == [60, 90]


def test_a_replay_too_small_for_one_window_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"replay.capacity: 3 given; expected at least \d+"):
        play(tmp_path / "run", RUNS["dqn"], "replay.capacity=3")
    assert not (tmp_path / "run").exists()


def test_a_stream_of_two_tasks_runs_and_resumes(tmp_path, capsys):
    arguments = ["stream.tasks=[toy/reach,toy/reach]", "stream.steps=45", *RUNS["sac"]]
    play(tmp_path / "whole", arguments)
    for step in (20, 70):
        stopped_at(tmp_path / "broken", arguments, step)
    play(tmp_path / "broken", arguments)
    assert digests(tmp_path / "broken", capsys) == digests(tmp_path / "whole", capsys)


def test_a_trained_policy_can_be_loaded_and_played(tmp_path, capsys):
    play(tmp_path, RUNS["sac"])
    policy = load_policy(tmp_path)
    action = policy.act(torch.zeros(policy.spec.seen_shape).numpy(), seed=1)
    assert action.shape == policy.spec.action_shape and abs(action).max() <= 1
    with pytest.raises(ValueError, match=r"observation: shape \(7,\) given; toy/reach has"):
        policy.act(torch.zeros(7).numpy())
    capsys.readouterr()
    assert run_command(["evaluate", str(tmp_path), "episodes=3"]) == 0
    assert capsys.readouterr().out.count("mean return") == 2
    assert run_command(["verify", str(tmp_path)]) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loaded_policy_is_the_network_the_run_was_evaluated_with(tmp_path, precision):
    play(tmp_path, [*RUNS["sac"], f"precision={precision}"])
    with (tmp_path / "eval.csv").open() as file:
        last = [float(row["return"]) for row in csv.DictReader(file) if row["step"] == "90"]
    assert [result.score for result in load_policy(tmp_path).evaluate(2, "evaluate/90")] == last


@pytest.mark.slow
@either
def test_twelve_kills_leave_no_trace(tmp_path, arguments):
    command = [sys.executable, "-m", "benchmarks.kills", f"out={tmp_path}", "kills=12", *arguments]
    result = subprocess.run([*command, "steps=3000", "save_every=100"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "12 kills, every run ended as the undisturbed one" in result.stdout


def test_a_killed_process_is_gone_on_with(tmp_path, capsys):
    """SIGKILL: no handler runs, nothing is flushed."""
    arguments = [*RUNS["sac"], "steps=400", "observe_every=0", "rank_every=0", "probe_every=0"]
    command = [sys.executable, "train.py", *arguments, f"run_dir={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert play(tmp_path / "killed", arguments) == 0
    play(tmp_path / "whole", arguments)
    assert digests(tmp_path / "killed", capsys) == digests(tmp_path / "whole", capsys)


def test_a_reset_before_the_first_update_finds_all_as_it_was_born(tmp_path):
    """In warm-up everything is new already: the ledger says so, and the run goes on."""
    arguments = ["env=toy/reach", "agent=sac", "interventions=[full_reset]", "interventions.full_reset.when.every=3"]
    arguments += [
        "interventions.full_reset.when.unit=env_steps",
        "steps=20",
        "warmup=8",
        "compile=false",
        "net.width=8",
    ]
    assert train.train(load([*arguments, "eval_every=0", "eval_episodes=1", f"run_dir={tmp_path}"])) == 0
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    untouched = {row["part"] for row in rows if row["updates"] == 0 and row["touched"] == 0}
    assert untouched == {"alpha"} and all(row["touched"] for row in rows if row["updates"])


def test_a_replay_beyond_all_memory_is_refused_and_one_beyond_what_is_free_is_told(tmp_path, capsys, monkeypatch):
    endless = ["agent=sac", "env=toy/reach", "replay.capacity=1_000_000_000_000", "steps=1_000_000_000_000"]
    with pytest.raises(ValueError, match="replay.capacity: no memory for 1000000000000 slots for each of 1 seeds"):
        AgentSession(load([*endless, f"run_dir={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(core.agent_session, "free_memory", lambda: 2**10)
    AgentSession(load([*RUNS["sac"], f"run_dir={tmp_path}/run"]))
    assert "MiB when full, 0 MiB are free now: lower replay.capacity" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, line",
    [
        (["net.width=1_000_000"], "net: the networks of all seeds, .* take .* GiB, and .* are free"),
        (["net.width=100_000_000_000"], "net.width: 100000000000 given; .* at most 1000000"),
        (["agent.critics=1_000_000_000"], "agent.critics: 1000000000 given; .* at most 1000"),
    ],
)
def test_networks_beyond_all_memory_are_refused_before_anything_is_written(overrides, line, tmp_path):
    with pytest.raises(ValueError, match=line):
        AgentSession(load(["agent=sac", "env=toy/reach", "steps=100", f"run_dir={tmp_path}/run", *overrides]))
    assert not (tmp_path / "run").exists()


def test_the_lines_of_a_run_speak_of_all_its_seeds(tmp_path, capsys):
    """An event's line of every seed, not the first alone; where one has no score, no mean pretends to be of all."""
    run = AgentSession(load([*RUNS["sac"], f"run_dir={tmp_path}"]))
    row = {"step": 30, "updates": 10, "intervention": "reset", "part": "critic"}
    run.progress.events([row | {"touched": 0}, row | {"touched": 7}, row | {"part": "actor", "touched": 3}])
    shown = capsys.readouterr().err.splitlines()
    assert shown[-2:] == [
        "step 30, update 10: reset on critic: 0 to 7 entries changed",
        "step 30, update 10: reset on actor: 3 entries changed",
    ]
    run.progress.table([1.0, 3.0])
    assert "IQM              2.000   95% interval [1.000, 3.000]" in capsys.readouterr().out
    run.progress.table([1.0, math.nan])
    assert "IQM               none   a seed has no score" in capsys.readouterr().out
