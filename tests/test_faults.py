"""A number that is not finite, planted in every place: the right name, in the same update, and neighbours unmoved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import train
from core import checkpoint, faults
from core.agent_session import AgentSession
from core.config import load
from core.nonfinite import first_bad
from core.packing import packed
from core.signals import DIVERGED

SAC = ["agent=sac", "env=toy/reach", "net.width=16", "agent.batch_size=8", "steps=60", "warmup=20", "compile=false"]
SAC += ["eval_every=0", "eval_episodes=1", "save_every=0", "log_every=1000", "observe_every=0", "rank_every=0"]
SAC += ["seeds=[0,1]", "replay.capacity=60"]
NAN, INF = float("nan"), float("inf")
UPDATE = 13  # the first update that meets it, counted from 1


class NoGradient(torch.autograd.Function):
    """Its own value, with a derivative that is not a number."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * NAN


def in_batch(entry: str, value: float):
    """Seed 0's first sample has it in update 13."""

    def plant(run: AgentSession, monkeypatch) -> None:
        sample = run.sample

        def poisoned(stream: str, count: int, size: int = 0):
            batch = sample(stream, count, size)
            if stream == "replay" and count == UPDATE - 1:
                batch[entry][0, 0] = value
            return batch

        monkeypatch.setattr(run, "sample", poisoned)

    return plant


def in_state(field: str, *path: str, value: float = NAN, part: str = "critic", late: bool = False):
    """Seed 0's network has it before update 13; late: after update 12, so that it acts before it is trained."""

    def plant(run: AgentSession, monkeypatch) -> None:
        update = run.engine.update

        def poison() -> None:
            tree = getattr(run.engine.states[part], field)
            for name in path:
                tree = tree[name]
            tree[0].view(-1)[0] = value

        def poisoned(batch, clock):
            if clock.updates == UPDATE - 1 and not late:
                poison()
            metrics = update(batch, clock)
            if clock.updates == UPDATE - 2 and late:
                poison()
            return metrics

        monkeypatch.setattr(run.engine, "update", poisoned)

    return plant


def in_critic(place: str):
    """The critic's computation has it in update 13, of every seed: they see the same rule."""

    def plant(run: AgentSession, monkeypatch) -> None:
        part = run.engine.learner.critic
        loss = part.loss

        def poisoned(params, s, b, noise):
            if int(b["update"]) != UPDATE:
                return loss(params, s, b, noise)
            if place == "target":
                b = b | {"reward": b["reward"] * 1e38 * 1e38}  # of finite rewards, in float32
            if place == "gradient":
                name = next(iter(params))
                params = params | {name: NoGradient.apply(params[name])}
            outcome = loss(params, s, b, noise)
            return outcome._replace(loss=outcome.loss * 1e38 * 1e38) if place == "loss" else outcome

        monkeypatch.setattr(part, "loss", poisoned)

    return plant


WEIGHT = "q.0.trunk.layers.0.weight"
PLANTED = {
    "observation": (in_batch("obs", NAN), "batch: observation", [0]),
    "infinite observation": (in_batch("next_obs", INF), "batch: next observation", [0]),
    "reward": (in_batch("reward", NAN), "batch: reward", [0]),
    "infinite reward": (in_batch("reward", -INF), "batch: reward", [0]),
    "weight": (in_batch("weight", INF), "batch: weight", [0]),
    "parameter": (in_state("params", WEIGHT), f"critic: parameter {WEIGHT}", [0]),
    "slow copy": (in_state("copies", "target", WEIGHT), f"critic: slow copy target of {WEIGHT}", [0]),
    "target": (in_critic("target"), "critic: target", [0, 1]),
    "loss": (in_critic("loss"), "critic: loss", [0, 1]),
    "gradient": (in_critic("gradient"), f"critic: gradient of {WEIGHT}", [0, 1]),
}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def played(folder: Path, plant=None, monkeypatch=None, *more: str) -> AgentSession:
    run = AgentSession(load([*SAC, *more, f"run_dir={folder}"]))
    if plant:
        plant(run, monkeypatch)
    with run:
        train.loop(run.config, run)
    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("sound")
    played(folder)
    return checkpoint.load(checkpoint.newest(folder))


@pytest.mark.parametrize("place", PLANTED)
def test_it_is_named_in_the_update_that_meets_it_and_neighbours_do_not_notice(
    place, tmp_path, monkeypatch, sound, capsys
):
    plant, name, struck = PLANTED[place]
    played(tmp_path, plant, monkeypatch)
    found = [row for row in rows(tmp_path) if "diverged" in row]
    assert [(row["diverged"], row["updates"], row["cause"]) for row in found] == [(i, UPDATE, name) for i in struck]
    assert {row["step"] for row in found} == {20 + UPDATE}
    assert f"seed 0 diverged in update {UPDATE}: {name} (" in capsys.readouterr().err
    assert json.loads((tmp_path / "done.json").read_text())["diverged"] == struck
    saved = checkpoint.load(checkpoint.newest(tmp_path))
    assert saved["engine"]["alive"].tolist() == [i not in struck for i in (0, 1)]
    for i in {0, 1} - set(struck):
        for part, fields in saved["states"].items():
            for name, value in fields["params"].items():
                assert torch.equal(value[i], sound["states"][part]["params"][name][i])


@pytest.mark.parametrize("place", ["observation", "reward", "parameter", "slow copy"])
def test_what_is_kept_shows_the_same_again(place, tmp_path, monkeypatch, capsys):
    plant, name, _ = PLANTED[place]
    played(tmp_path, plant, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["train.py", f"replay_fault={tmp_path}/faults/seed_0-update_{UPDATE}.pt"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        train.main(train.train)
    assert end.value.code == 1
    assert capsys.readouterr().out.startswith(f"seed 0, update {UPDATE}: {name} (")


def test_the_operation_is_named_with_its_line_of_code(tmp_path, monkeypatch, capsys):
    """A learning rate so large that the weights overflow: what multiplied them is shown."""
    played(tmp_path, None, None, "agent.learning_rate=1e30")
    shown = capsys.readouterr().err
    assert "seed 0 diverged in update 1: critic: target (8 of 8 numbers, the first -inf; made by addmm in " in shown
    assert "nets/layers.py:" in shown


def test_a_sound_update_has_nothing_to_name(tmp_path):
    run = played(tmp_path)
    states = {name: state for name, state in run.engine.states.items()}
    batch = {name: value[0] for name, value in run.sample("replay", 5).items()}
    batch |= {"update": torch.tensor(5), "step": torch.tensor(25)}
    one = {name: torch.utils._pytree.tree_map(lambda leaf: leaf[0], state) for name, state in states.items()}
    assert first_bad(run.engine.learner, one, batch, faults._noise(run.engine, 0, 5)) is None


def test_a_run_may_stop_where_a_seed_diverges(tmp_path, monkeypatch, capsys):
    plant, _, _ = PLANTED["reward"]
    run = played(tmp_path, plant, monkeypatch, "on_divergence=stop")
    assert (run.exit_code, run.clock.updates) == (DIVERGED, UPDATE)
    assert "on_divergence=freeze goes on with the other seeds" in capsys.readouterr().err
    again = [*SAC, f"run_dir={tmp_path}"]
    assert train.train(load([*again, "on_divergence=stop"])) == DIVERGED
    assert train.train(load(again)) == 0  # nothing that training depends on has changed


def test_where_all_seeds_diverge_stopping_leaves_the_run_open_and_freezing_ends_it(tmp_path, monkeypatch, capsys):
    plant, _, _ = PLANTED["target"]
    assert played(tmp_path, plant, monkeypatch, "on_divergence=stop").exit_code == DIVERGED
    assert "on_divergence=stop: saved at step 33; no seed is left" in capsys.readouterr().err
    assert not (tmp_path / "done.json").exists()
    assert train.train(load([*SAC, f"run_dir={tmp_path}"])) == 0
    assert json.loads((tmp_path / "done.json").read_text())["diverged"] == [0, 1]


@pytest.mark.parametrize("what", ["reward", "next_obs"])
def test_a_world_that_shows_what_is_not_finite_stops_its_seed_at_once(what, tmp_path, monkeypatch, sound):
    def plant(run: AgentSession, monkeypatch) -> None:
        env = run.envs.envs[0]
        step = env.step
        count = iter(range(1000))

        def broken(action):
            t = step(action)
            if next(count) != 39:
                return t
            return t._replace(reward=NAN) if what == "reward" else t._replace(obs=np.full_like(t.obs, INF))

        monkeypatch.setattr(env, "step", broken)

    run = played(tmp_path, plant, monkeypatch)
    (row,) = [row for row in rows(tmp_path) if "diverged" in row]
    names = {"reward": "batch: reward", "next_obs": "batch: next observation"}
    assert row == {"step": 40, "updates": 19, "diverged": 0, "cause": names[what]}
    assert all(np.isfinite(field).all() for field in run.replay.ring.read(0, 0, 59).values())
    saved = checkpoint.load(checkpoint.newest(tmp_path))
    for part, fields in saved["states"].items():
        for name, value in fields["params"].items():
            assert torch.equal(value[1], sound["states"][part]["params"][name][1])


ACTORS = {"parameter": ("params", "mean.bias"), "moment": ("optim", "v", "mean.bias")}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ACTORS)
def test_an_actor_that_is_not_finite_does_not_take_its_neighbours_simulator_with_it(
    kind, late, tmp_path, monkeypatch, capsys
):
    """MuJoCo raises an error for such an action; and of what the network did with it the network is the cause."""
    dmc = ["env=dmc/cartpole-swingup", "eval_every=30"]
    played(tmp_path / "sound", None, None, *dmc)
    capsys.readouterr()
    run = played(tmp_path / "run", in_state(*ACTORS[kind], part="actor", late=late), monkeypatch, *dmc)
    name = {"parameter": "actor: parameter mean.bias", "moment": "actor: moment v of mean.bias"}[kind]
    (row,) = [row for row in rows(tmp_path / "run") if "diverged" in row or "not_finite" in row]
    assert (row["diverged"], row["cause"]) == (0, name)
    assert row["updates"] <= UPDATE + 1
    assert all(np.isfinite(field).all() for field in run.replay.ring.read(0, 0, 59).values())
    ends = [checkpoint.load(checkpoint.newest(tmp_path / folder)) for folder in ("run", "sound")]
    for part, fields in ends[1]["states"].items():
        for path, value in fields["params"].items():
            assert torch.equal(ends[0]["states"][part]["params"][path][1], value[1])


class Slow:
    """A GPU's event that arrives two updates later."""

    recorded: list[Slow] = []

    def record(self) -> None:
        self.recorded.append(self)

    def query(self) -> bool:
        return len(self.recorded) - self.recorded.index(self) > 2

    def synchronize(self) -> None: ...


@pytest.fixture
def slowly(monkeypatch):
    """What a GPU does, on a CPU: a reward that is no number is met in update 13, the answer comes with update 15."""
    monkeypatch.setattr(faults, "_host_memory", lambda members: torch.empty(members, dtype=torch.bool))
    monkeypatch.setattr(torch.cuda, "Event", Slow)
    monkeypatch.setattr(Slow, "recorded", [])

    def plant(run: AgentSession, monkeypatch) -> None:
        run.watch._waits = True
        PLANTED["reward"][0](run, monkeypatch)

    return plant


def test_a_device_that_answers_late_has_the_batch_of_the_right_update_named(tmp_path, monkeypatch, slowly):
    """And the line comes with the next metrics."""
    played(tmp_path, slowly, monkeypatch, "log_every=16")
    name = PLANTED["reward"][1]
    (row,) = [row for row in rows(tmp_path) if "diverged" in row]
    assert row == {"step": 20 + UPDATE, "updates": UPDATE, "diverged": 0, "cause": name}
    assert (tmp_path / "faults" / f"seed_0-update_{UPDATE}.pt").exists()
    assert 2 < len(Slow.recorded) == 40


def test_when_it_is_told_does_not_depend_on_when_the_run_is_saved(tmp_path, monkeypatch, slowly):
    """Frozen in update 13, saved after update 14 and gone on with: told at the log all the same, with its batch."""

    def briefly(run: AgentSession, monkeypatch) -> None:
        slowly(run, monkeypatch)
        turn = run.progress.step
        monkeypatch.setattr(run.progress, "step", lambda: run.stop.ask("x", 1) if run.clock.updates == 14 else turn())

    played(tmp_path / "whole", slowly, monkeypatch, "log_every=16")
    played(tmp_path / "halves", briefly, monkeypatch, "log_every=16")
    assert not rows(tmp_path / "halves") and not (tmp_path / "halves" / "faults").exists()
    played(tmp_path / "halves", lambda run, _: setattr(run.watch, "_waits", True), monkeypatch, "log_every=16")
    assert rows(tmp_path / "halves") == rows(tmp_path / "whole") != []
    assert (tmp_path / "halves" / "faults" / f"seed_0-update_{UPDATE}.pt").exists()


def test_a_cause_that_cannot_be_looked_for_takes_nobodys_run_with_it(tmp_path, monkeypatch, capsys):
    def full(engine, fault):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("core.session.cause", full)
    plant, _, _ = PLANTED["reward"]
    played(tmp_path, plant, monkeypatch)
    (row,) = [row for row in rows(tmp_path) if "diverged" in row]
    assert (row["diverged"], row["cause"]) == (0, "not found when the update was made again")
    assert json.loads((tmp_path / "done.json").read_text())["diverged"] == [0]


@pytest.mark.gpu
def test_on_a_gpu_the_same_tensor_is_named(tmp_path, monkeypatch):
    plant, name, _ = PLANTED["reward"]
    played(tmp_path, plant, monkeypatch, "device=cuda", "compile=true")
    (row,) = [row for row in rows(tmp_path) if "diverged" in row]
    assert (row["updates"], row["cause"]) == (UPDATE, name)


def test_a_reward_beyond_single_precision_is_not_stored(tmp_path, monkeypatch):
    def plant(run: AgentSession, monkeypatch) -> None:
        step = run.envs.envs[1].step
        monkeypatch.setattr(run.envs.envs[1], "step", lambda action: step(action)._replace(reward=1e300))

    run = played(tmp_path, plant, monkeypatch)
    assert [row["diverged"] for row in rows(tmp_path) if "diverged" in row] == [1]
    assert np.isfinite(run.replay.ring.read(1, 0, 50)["reward"]).all()


def test_what_an_evaluation_shows_does_not_touch_training(tmp_path, monkeypatch, sound):
    """Its score is not a number, and a row of the ledger says so."""

    def plant(run: AgentSession, monkeypatch) -> None:
        make = run._open_envs

        def broken(task):
            envs = make(task)
            step = envs[0].step
            monkeypatch.setattr(envs[0], "step", lambda action: step(action)._replace(reward=NAN))
            return envs

        monkeypatch.setattr(run, "_open_envs", broken)

    run = played(tmp_path, plant, monkeypatch)
    assert np.isnan(run.returns[0]) and np.isfinite(run.returns[1])
    assert [row["not_finite"] for row in rows(tmp_path)] == ["evaluate/60/0"]
    saved = checkpoint.load(checkpoint.newest(tmp_path))
    for part, fields in saved["states"].items():
        for name, value in fields["params"].items():
            assert torch.equal(value, sound["states"][part]["params"][name])


def test_an_actor_that_an_evaluation_finds_not_finite_has_diverged(tmp_path, monkeypatch):
    """After the last update: training would not notice any more."""

    def plant(run: AgentSession, monkeypatch) -> None:
        evaluate = run.evaluate

        def poisoned():
            if not run.clock.running:
                run.engine.states["actor"].params["mean.bias"][0] = NAN
            return evaluate()

        monkeypatch.setattr(run, "evaluate", poisoned)

    run = played(tmp_path, plant, monkeypatch, "eval_episodes=3")
    (row,) = [row for row in rows(tmp_path) if "diverged" in row or "not_finite" in row]
    assert (row["diverged"], row["cause"]) == (0, "actor: parameter mean.bias")
    assert json.loads((tmp_path / "done.json").read_text())["diverged"] == [0]
    assert np.isnan(run.returns[0]) and np.isfinite(run.returns[1])


def test_what_is_shown_again_takes_no_other_settings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "replay_fault=fault.pt", "device=cuda"])
    with pytest.raises(SystemExit) as end:
        train.main(train.train)
    assert end.value.code == 2
    assert capsys.readouterr().err == "replay_fault: stands alone; its file holds the whole configuration\n"


EMPTY = dict.fromkeys(faults.ENTRIES, {})
FOREIGN = [b"", b"not a fault", *(packed(tree, "") for tree in ({}, {"format": 1}, {"format": 1} | EMPTY))]


@pytest.mark.parametrize("content", [*FOREIGN, None])
def test_a_foreign_file_is_refused_in_one_line(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "fault.pt"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["train.py", f"replay_fault={path}"])
    with pytest.raises(SystemExit) as end:
        train.main(train.train)
    shown = capsys.readouterr().err.strip()
    assert end.value.code == 2 and "\n" not in shown and str(path) in shown
