"""Transitions from a file: windows by hand, what a replay exports, batches half and half, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import train
from core.agent_session import AgentSession
from core.config import load
from core.offline import FIELDS, OfflineData, mixed, transitions
from core.replay import Replay
from core.run import main as run_command
from core.spec import EnvSpec

SPEC = EnvSpec("toy/x", (1,), "float32", action_dim=1)
RUN = ["env=toy/reach", "net.width=16", "agent.batch_size=8", "compile=false", "seeds=[0,1]", "steps=60"]
RUN += ["eval_every=30", "eval_episodes=1", "observe_every=10", "log_every=20"]


def written(path: Path, **changed) -> str:
    """Two episodes, 0 1 2 (truncated in 3) and 10 11 (terminated); step t has reward t and action -t / 16."""
    obs = np.array([[0.0], [1], [2], [10], [11]], np.float32)
    arrays = {
        "observations": obs,
        "actions": -obs / 16,
        "rewards": obs[:, 0],
        "next_observations": obs + 1,
        "terminals": np.array([0, 0, 0, 0, 1], bool),
        "ends": np.array([0, 0, 1, 0, 1], bool),
    } | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_windows_are_cut_at_ends_and_bootstrap_from_truncations_alone(tmp_path, n):
    data = OfflineData(written(tmp_path / "d.npz"), SPEC, [0, 7])
    batch = data.sample(200, draw=0, n_step=n, discount=0.5)
    ends = {0.0: 3, 1.0: 3, 2.0: 3, 10.0: 12, 11.0: 12}  # one behind the last observation of the episode
    seen = set()
    for m in range(2):
        for i in range(200):
            first = float(batch["obs"][m, i, 0])
            steps = min(n, ends[first] - int(first))
            reward = sum(0.5**k * (first + k) for k in range(steps))
            terminal = first + steps == 12
            assert float(batch["reward"][m, i]) == pytest.approx(reward)
            assert float(batch["next_obs"][m, i, 0]) == first + steps
            assert float(batch["discount"][m, i]) == (0 if terminal else 0.5**steps)
            assert float(batch["action"][m, i, 0]) == -first / 16
            seen.add(first)
    assert seen == set(ends)


def test_each_seed_draws_by_itself_and_uniformly(tmp_path):
    path = written(tmp_path / "d.npz")
    both, alone = OfflineData(path, SPEC, [0, 7]), OfflineData(path, SPEC, [7])
    a, b = both.sample(64, draw=3), alone.sample(64, draw=3)
    assert torch.equal(a["obs"][1], b["obs"][0]) and not torch.equal(a["obs"][0], a["obs"][1])
    assert not torch.equal(a["obs"], both.sample(64, draw=4)["obs"])
    counts = np.unique(both.sample(20_000, draw=0)["obs"].numpy(), return_counts=True)[1]
    assert (np.abs(counts - 8_000) < 5 * np.sqrt(8_000)).all()


def lived(replay: Replay, steps: int) -> list[tuple]:
    """Two members play episodes of 4 and 3 steps, the second one's end in terminals. -> what was added"""
    told = []
    for t in range(steps):
        obs = np.array([[t], [100 + t]], np.float32)
        ended = np.array([t % 4 == 3, t % 3 == 2])
        terminal = ended & np.array([False, True])
        replay.add(obs, obs / 200, obs[:, 0], terminal, ended, obs + 0.5)
        told += [(float(obs[m, 0]), float(obs[m, 0]), bool(terminal[m]), bool(ended[m])) for m in range(2)]
    return told


def test_an_export_holds_every_step_with_its_true_next_observation():
    replay = Replay(SPEC, [0, 1], capacity=100)
    told = lived(replay, 13)
    found = transitions(replay.ring)
    assert set(found) == set(FIELDS)
    rows = {
        float(o): (float(r), bool(t), bool(e), float(n))
        for o, r, t, e, n in zip(
            found["observations"][:, 0],
            found["rewards"],
            found["terminals"],
            found["ends"],
            found["next_observations"][:, 0],
            strict=True,
        )
    }
    for obs, reward, terminal, ended in told:
        if obs in (12.0, 112.0):  # the last step leads into the unknown
            assert obs not in rows
            continue
        last_known = obs in (11.0, 111.0)
        assert rows[obs] == (reward, terminal, ended or last_known, obs + (0.5 if ended else 1.0))


def test_what_was_exported_is_sampled_as_the_replay_would():
    """Every window of the file is one the replay itself gives."""
    replay = Replay(SPEC, [0], capacity=100)
    for t in range(12):
        obs = np.array([[t]], np.float32)
        replay.add(obs, obs / 200, obs[:, 0], np.array([t == 7]), np.array([t in (3, 7)]), obs + 0.5)
    found = transitions(replay.ring)
    data = OfflineData.__new__(OfflineData)
    data.spec, data.seeds, data.device = SPEC, (0,), torch.device("cpu")
    data.obs, data.next_obs = found["observations"], found["next_observations"]
    data.action, data.reward, data.terminal, data.ends = (found[k] for k in ("actions", "rewards", "terminals", "ends"))

    def windows(batch) -> dict:
        keys = ("reward", "discount", "next_obs")
        return {
            float(o): tuple(round(float(batch[k].flatten()[i]), 5) for k in keys)
            for i, o in enumerate(batch["obs"].flatten())
        }

    mine, theirs = windows(data.sample(500, 0, n_step=3)), windows(replay.sample(500, 0, n_step=3))
    assert all(mine[o] == theirs[o] for o in theirs)
    assert len(theirs) >= 8


def test_batches_side_by_side():
    first = {"obs": torch.zeros(1, 2, 3), "index": torch.zeros(1, 2), "obs_mean": torch.zeros(1, 3)}
    second = {"obs": torch.ones(1, 4, 3), "index": torch.full((1, 4), -1.0)}
    both = mixed([first, second])
    assert both["obs"].shape == (1, 6, 3) and both["obs_mean"].shape == (1, 3)
    assert both["index"].tolist() == [[0, 0, -1, -1, -1, -1]]
    assert all(mixed([first])[name] is value for name, value in first.items())


# runs


@pytest.fixture
def data(tmp_path) -> str:
    """A file made of a short run's replay."""
    train.train(load([*RUN, "agent=sac", "warmup=20", f"run_dir={tmp_path / 'made'}"]))
    assert run_command(["export", str(tmp_path / "made"), f"to={tmp_path / 'd.npz'}"]) == 0
    return str(tmp_path / "d.npz")


def test_training_takes_its_share_and_nothing_else_does(tmp_path, data):
    arguments = [*RUN, "agent=sac", "warmup=20", f"offline.data={data}", "offline.share=0.25"]
    run = AgentSession(load([*arguments, f"run_dir={tmp_path / 'run'}"]))
    with run:
        train.loop(run.config, run)
        assert (run.sample("replay", 3)["index"] == -1).sum(1).tolist() == [2, 2]
        assert (run.sample("observe", 3)["index"] == -1).sum() == 0


def test_pooled_every_step_is_as_likely_whether_it_was_lived_or_read(tmp_path, data):
    arguments = [*RUN, "agent=sac", "warmup=20", f"offline.data={data}", "offline.pooled=true"]
    run = AgentSession(load([*arguments, "agent.batch_size=100", f"run_dir={tmp_path / 'run'}"]))
    with run:
        assert (run.sample("replay", 0)["index"] == -1).all()
        train.loop(run.config, run)
        read, lived = len(run.offline), run.clock.agent_steps
        assert lived > 0 and round(100 * read / (read + lived)) not in (0, 50, 100)
        assert (run.sample("replay", 3)["index"] == -1).sum(1).tolist() == [round(100 * read / (read + lived))] * 2
        assert (run.sample("observe", 3)["index"] == -1).sum() == 0


def test_a_file_that_has_changed_since_is_noticed(tmp_path, data):
    arguments = [*RUN, "agent=sac", "warmup=20", f"offline.data={data}", f"run_dir={tmp_path / 'run'}"]
    run = AgentSession(load(arguments))
    run.progress.step = lambda: run.stop.ask("enough", 1)
    with run:
        train.loop(run.config, run)
    with np.load(data) as arrays:
        changed = dict(arrays) | {"rewards": arrays["rewards"] + 1}
    np.savez(data, **changed)
    with pytest.raises(ValueError, match="offline.data would not be as saved"):
        AgentSession(load(arguments))


def test_iql_learns_before_its_first_step_and_goes_on(tmp_path, data, capsys):
    arguments = [*RUN, "agent=iql", "priming.updates=30", f"offline.data={data}"]
    arguments += ["agent.batch_size=8", "replay=prioritised"]
    assert train.train(load([*arguments, f"run_dir={tmp_path / 'run'}"])) == 0
    rows = [line.split(",") for line in (tmp_path / "run" / "eval.csv").read_text().splitlines()[1:]]
    assert {int(row[6]) for row in rows} == {30, 30 + 24, 30 + 54}  # updates at the evaluations; 6 steps warm up


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"rewards": None}, "has no rewards; expected observations, actions"),
        ({"rewards": np.zeros(3)}, r"arrays of lengths \[5, 5, 3, 5, 5, 5\]; expected equal ones"),
        ({"actions": np.zeros((5, 2))}, r"has actions of shape \(2,\); expected \(1,\)"),
        ({"actions": np.array([[1.0], [-1.0], [0.0], [2.0], [0.0]])}, r"has actions beyond \[-1, 1\]; stretch"),
        ({"rewards": np.zeros((5, 1))}, r"has rewards of shape \(1,\); expected \(\)"),
        ({"next_observations": np.zeros((5, 3))}, r"has next_observations of shape \(3,\); expected \(1,\)"),
        ({"rewards": np.full(5, np.nan)}, "has rewards that are not finite"),
        ({"observations": np.array([[None]] * 5)}, "is no npz file"),
    ],
)
def test_a_file_that_does_not_fit_is_told_in_one_line(tmp_path, changed, line):
    with pytest.raises(ValueError, match=line) as error:
        OfflineData(written(tmp_path / "d.npz", **changed), SPEC, [0])
    assert "\n" not in str(error.value)


def test_a_missing_or_foreign_file_is_told_in_one_line(tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text is no npz file"):
        OfflineData(str(tmp_path / "text"), SPEC, [0])
    (tmp_path / "half.npz").write_bytes(Path(written(tmp_path / "d.npz")).read_bytes()[:300])
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("half.npz", "one.npy"):
        with pytest.raises(ValueError, match=f"{name} is no npz file"):
            OfflineData(str(tmp_path / name), SPEC, [0])
    with pytest.raises(ValueError, match="none is not there; python -m core.run export RUN_DIR writes one"):
        OfflineData(str(tmp_path / "none"), SPEC, [0])
    with pytest.raises(ValueError, match="shows frames; expected an environment of vectors"):
        OfflineData("x", EnvSpec("toy/f", (8, 8), "uint8", action_dim=1), [0])


def test_an_export_needs_a_checkpoint(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("{}")
    assert run_command(["export", str(tmp_path)]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err


def test_it_is_of_one_task(tmp_path, data):
    arguments = [*RUN, "agent=sac", f"offline.data={data}", "stream.tasks=[toy/reach,toy/reach]", "stream.steps=30"]
    with pytest.raises(ValueError, match="offline.data: of one task; stream.tasks has several"):
        AgentSession(load([*arguments, f"run_dir={tmp_path / 'run'}"]))


def test_pretraining_is_evaluated_before_the_first_step(tmp_path, data):
    arguments = [*RUN, "agent=iql", "priming.updates=30", f"offline.data={data}", f"run_dir={tmp_path / 'run'}"]
    assert train.train(load(arguments)) == 0
    rows = [line.split(",") for line in (tmp_path / "run" / "eval.csv").read_text().splitlines()[1:]]
    assert ("0", "30") in {(row[0], row[6]) for row in rows}
