"""Files of a run that are whole and hold what no run has written: refused in one line, and nothing is lost."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spoilers import sign, write_manifest

import train
from core import checkpoint
from core.config import BadConfig, load
from core.policy import load_policy
from core.run import main as run_command

ARGUMENTS = ["agent=sac", "env=toy/reach", "net.width=8", "agent.batch_size=8", "steps=40", "warmup=20", "seeds=[0,1]"]
ARGUMENTS += ["compile=false", "save_every=20", "log_every=10", "eval_every=20", "eval_episodes=1"]
RECORDS = ("metrics.jsonl", "eval.csv", "ledger.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with checkpoints at steps 20 and 40. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.train(load([*ARGUMENTS, f"run_dir={folder}"])) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The same run, killed before it could say that it was over."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "done.json").unlink()
    return folder


def trained(run: Path) -> int:
    return train.train(load([*ARGUMENTS, f"run_dir={run}"]))


def change(run: Path, changed: Callable[[dict], dict | None]) -> Path:
    """Another state in the newest checkpoint, for which its manifest vouches. -> its file"""
    last = checkpoint.checkpoints(run)[-1]
    state = checkpoint.load(last)
    other = changed(state)
    torch.save(state if other is None else other, last / "state.pt")
    sign(last)
    return last / "state.pt"


def kept(run: Path) -> dict[str, bytes]:
    """All that has cost time: records, checkpoints, replay."""
    found = [run / name for name in RECORDS] + [*run.glob("checkpoints/*/*"), *run.glob("replay/*")]
    return {str(path): path.read_bytes() for path in found}


def said(run: Path, capsys) -> list[str]:
    """What everything that reads a state answers: one line each, and a refusal."""
    with pytest.raises(BadConfig) as training:
        trained(run)
    with pytest.raises(ValueError) as loading:
        load_policy(run)
    lines = [str(training.value), str(loading.value)]
    capsys.readouterr()
    for command in ("digest", "evaluate"):
        assert run_command([command, str(run)]) == 2
        lines.append(capsys.readouterr().err.rstrip("\n"))
    return lines


def dropping(*names: str) -> Callable[[dict], dict]:
    return lambda state: {name: entry for name, entry in state.items() if name not in names}


FOREIGN = {
    "an empty dict": (lambda state: {}, "holds no states and no engine and no clock"),
    "another dict": (lambda state: {"model": torch.ones(2)}, "holds no states and no engine and no clock"),
    "a number for a clock": (lambda state: state | {"clock": 3}, "holds no clock; remove this checkpoint"),
    "no records": (lambda state: state | {"records": {}}, "knows other records than its manifest.json; remove"),
    "shorter records": (
        lambda state: state | {"records": dict.fromkeys(RECORDS, 0)},
        "knows other records than its manifest.json; remove",
    ),
}
FOREIGN |= {f"without {name}": (dropping(name), f"holds no {name}; remove") for name in checkpoint.ENTRIES}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_state_that_is_none_is_refused_by_all_that_read_it_before_anything_is_cut(run, capsys, what):
    changed, problem = FOREIGN[what]
    state, before = change(run, changed), kept(run)
    for line in said(run, capsys):
        assert line.startswith(f"{state}: {problem}") and "\n" not in line
    assert kept(run) == before
    shutil.rmtree(state.parent)
    gc.collect()  # the refused run holds the folder until it is gone; a process of its own would have ended
    assert trained(run) == 0
    assert all((run / name).read_bytes() == before[str(run / name)] for name in RECORDS)


EMPTY = {
    "clock": lambda state: state["clock"].clear(),
    "states": lambda state: state["states"].update(x=3),
    "fields": lambda state: state["states"]["critic"].update(memory=None, params=[1]),
    "engine": lambda state: state["engine"].clear(),
}


@pytest.mark.parametrize("entry", EMPTY)
def test_a_state_with_an_entry_that_is_none_is_refused_by_all_that_read_it(run, capsys, entry):
    state, before = change(run, EMPTY[entry]), kept(run)
    with pytest.raises(BadConfig) as training:
        trained(run)
    with pytest.raises(ValueError) as loading:
        load_policy(run)
    for error in (training, loading):
        assert str(state) in str(error.value) and "\n" not in str(error.value)
    assert run_command(["digest", str(run)]) in (0, 2)
    assert kept(run) == before


@pytest.mark.parametrize("name", ["pending", "envs", "replay"])
def test_a_run_does_not_go_on_without_its_environments_or_its_replay(run, name):
    state = change(run, lambda state: state | {name: {}})
    with pytest.raises(BadConfig) as error:
        trained(run)
    assert str(error.value).startswith(f"{state}: does not fit this version (KeyError: ")


@pytest.mark.parametrize("size", ["Infinity", "NaN", "1e300", "-1"])
def test_a_manifest_with_an_impossible_size_is_passed_over(run, size):
    older, last = checkpoint.checkpoints(run)
    for entries in ("files", "records"):
        manifest = json.loads((last / "manifest.json").read_text())
        manifest[entries][0]["bytes"] = json.loads(size)
        write_manifest(last, manifest)
        lines: list[str] = []
        assert checkpoint.newest(run, lines.append) == older and len(lines) == 1


@pytest.mark.parametrize("content", ["[1]", "[[]]", "[null]"])
def test_a_provenance_that_lists_no_starts_is_named(run, capsys, content):
    (run / "provenance.json").write_text(content)
    with pytest.raises(BadConfig, match=r"provenance.json: is damaged \(.*\); remove it, and the same command goes on"):
        trained(run)
    assert run_command(["verify", str(run)]) == 1
    assert capsys.readouterr().out.startswith(f"{run / 'provenance.json'}: is damaged")


def test_a_start_with_entries_of_other_kinds_is_another_one(run, capsys):
    (run / "provenance.json").write_text('[{"versions": 3, "hardware": [1], "threads": {}}]')
    assert trained(run) == 0
    assert "torch (None, now " in capsys.readouterr().err
