"""Of two runs the first number that differs is named, with its stage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import train
from core import checkpoint
from core.agent_session import AgentSession
from core.config import load
from core.run import main as run_command

SAC = ["agent=sac", "env=toy/reach", "net.width=8", "agent.batch_size=4", "steps=40", "warmup=20", "compile=false"]
SAC += ["eval_every=0", "eval_episodes=1", "save_every=30", "observe_every=0", "rank_every=0", "seeds=[3,4]"]
SAC += ["interventions=[shrink_and_perturb]", "interventions.shrink_and_perturb.when.every=10"]


def play(folder: Path, disturb=lambda run: None, *more: str) -> AgentSession:
    run = AgentSession(load([*SAC, "trace=true", *more, f"run_dir={folder}"]))
    disturb(run)
    with run:
        train.loop(run.config, run)
    return run


def told(capsys, *command: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run_command(["difference", *command])
    shown = capsys.readouterr()
    return code, (shown.out + shown.err).strip()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "run"
    play(folder)
    return folder


def of_env(run: AgentSession) -> None:
    step, count = run.envs.step, iter(range(1, 100))

    def other(action):
        found = step(action)
        return found._replace(reward=found.reward + 1e-6) if next(count) == 25 else found

    run.envs.step = other


def of_index(run: AgentSession) -> None:
    sample = run.sample

    def other(stream, count, size=0):
        batch = sample(stream, count, size)
        return batch | {"index": batch["index"] + 1} if count == 6 else batch

    run.sample = other


def of_batch(run: AgentSession) -> None:
    sample = run.sample

    def other(stream, count, size=0):
        batch = sample(stream, count, size)
        if count == 6 and stream == "replay":
            batch["next_obs"][1] += 1e-3
        return batch

    run.sample = other


def of_moment(run: AgentSession) -> None:
    update = run.engine.update

    def other(batch, clock):
        metrics = update(batch, clock)
        if clock.updates == 6:
            run.engine.states["actor"].optim["m"]["trunk.layers.0.bias"][0, 0] += 1e-3
        return metrics

    run.engine.update = other


def of_parameter(run: AgentSession) -> None:
    update = run.engine.update

    def other(batch, clock):
        metrics = update(batch, clock)
        if clock.updates == 6:
            run.engine.states["critic"].params["q.0.trunk.layers.0.bias"][1, 0] += 1e-3
        return metrics

    run.engine.update = other


def of_event(run: AgentSession) -> None:
    intervene = run.engine.intervene

    def other(clock, units, sample):
        rows = intervene(clock, units, sample)
        if rows:
            run.engine.states["critic"].params["q.0.trunk.layers.0.bias"][0, 0] += 1e-3
        return rows

    run.engine.intervene = other


PLANTED = {
    of_env: "step 25: env: reward (of seed 3, 4)",
    of_index: "update 7: index: index (of seed 3, 4)",
    of_batch: "update 7: batch: next_obs (of seed 4)",
    of_moment: "update 7: moment: actor: m trunk.layers.0.bias (of seed 3)",
    of_parameter: "update 7: parameter: critic: q.0.trunk.layers.0.bias (of seed 4)",
    of_event: "after update 10, shrink_and_perturb on critic of seed 3: event: parameter, critic: "
    "q.0.trunk.layers.0.bias (of seed 3)",
}


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_a_planted_difference_is_named(plant, tmp_path, sound, capsys):
    play(tmp_path, plant)
    assert told(capsys, str(sound), f"other={tmp_path}") == (1, f"first difference: {PLANTED[plant]}")


def test_a_different_seed_differs_from_the_first_step_and_equal_runs_nowhere(tmp_path, sound, capsys):
    play(tmp_path / "equal")
    assert told(capsys, str(sound), f"other={tmp_path / 'equal'}")[0] == 0
    play(tmp_path / "other", lambda run: None, "seeds=[3,5]")
    assert told(capsys, str(sound), f"other={tmp_path / 'other'}") == (
        1,
        f"from {sound} to {tmp_path / 'other'}: seeds was [3,4], now [3,5]\n"
        "first difference: birth: parameter: critic: q.0.trunk.layers.0.weight (of seed 4)",
    )


def test_the_parts_of_an_update_are_looked_at_in_its_order(tmp_path, sound, capsys):
    """Another learning rate shows first in what the first step has made of the first part's weights."""
    play(tmp_path, lambda run: None, "agent.learning_rate=0.0003001")
    last = told(capsys, str(sound), f"other={tmp_path}")[1].splitlines()[-1]
    assert last == "first difference: update 1: parameter: critic: q.0.trunk.layers.0.weight (of seed 3, 4)"


def test_what_the_world_shows_at_first_is_looked_at(tmp_path, sound, capsys):
    play(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [row["at"] for row in rows[:3]] == ["birth", "step 0", "step 1"]
    rows[1]["seen"][0][2][0] = "otherwise"
    (tmp_path / "trace.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = "first difference: step 0: env: observation (of seed 3)"
    assert told(capsys, str(sound), f"other={tmp_path}") == (1, said)


def test_what_one_of_two_runs_has_alone_is_counted(tmp_path, sound, capsys):
    play(tmp_path, lambda run: None, "steps=42")
    shown = f"from {sound} to {tmp_path}: steps was 40, now 42"
    counted = "no difference in 66 steps, updates and events; 4 more in one of them alone"
    assert told(capsys, str(sound), f"other={tmp_path}") == (0, f"{shown}\n{counted}")


def test_a_run_is_compared_with_its_resumed_self(tmp_path, capsys):
    def killed(run: AgentSession) -> None:
        turn = run.progress.step

        def step() -> None:
            turn()
            if run.clock.env_steps == 36:
                raise KeyboardInterrupt

        run.progress.step = step

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, killed)
    trace = tmp_path / "trace.jsonl"
    os.truncate(trace, trace.stat().st_size - 10)  # a power cut within its last row
    play(tmp_path)
    assert told(capsys, str(tmp_path))[0] == 0


def test_tracing_changes_nothing(tmp_path, sound, capsys):
    run = AgentSession(load([*SAC, f"run_dir={tmp_path}"]))
    with run:
        train.loop(run.config, run)
    plain, traced = (checkpoint.load(checkpoint.newest(folder)) for folder in (tmp_path, sound))
    for part, fields in plain["states"].items():
        for name, value in fields["params"].items():
            assert torch.equal(value, traced["states"][part]["params"][name])


def test_without_a_trace_the_option_is_named(tmp_path, sound, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    assert told(capsys, str(tmp_path)) == (2, f"{tmp_path}: has no trace.jsonl; run it with trace=true")
    assert told(capsys, str(sound)) == (2, f"{sound}: nothing was done twice")
