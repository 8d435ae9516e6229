"""Running an ablation: finished cells are skipped, broken ones go on, what dies is tried again and told."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ablate
from core import campaign
from core.ablation import read
from core.cells import Attempts, alone, check, progress
from core.run import main as run_command
from core.storage import Storage

FILE = """
tasks: [toy/chain]
seeds: [0, 1]
settings: {agent: dqn, steps: 400, warmup: 40, compile: false, eval_every: 200, eval_episodes: 2, agent.batch_size: 8}
arms: {base: [], ln: [layer_norm]}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    return path


def cells(file: Path):
    return read(file, file.parent / "out").cells


def test_a_cell_is_planned_broken_finished_or_diverged_by_what_its_folder_holds(file):
    cell = cells(file)[0]
    assert progress(cell)[:2] == ("planned", 0.0)
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text("{}")
    assert progress(cell)[:2] == ("broken", 0.0)
    (cell.folder / "checkpoints" / "000000000100").mkdir(parents=True)
    assert progress(cell)[:2] == ("broken", 0.25)
    (cell.folder / "done.json").write_text("{}")
    assert progress(cell)[:2] == ("finished", 1.0)
    (cell.folder / "done.json").write_text('{"diverged": [1]}')
    assert progress(cell).status == "diverged"
    (cell.folder / "done.json").write_text('{"diverged"')  # train.py refuses it, and says so
    assert progress(cell).status == "broken"


def test_a_held_folder_is_running_and_says_how_long_still(file):
    cell = cells(file)[0]
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.yaml").write_text("{}")
    (cell.folder / "timing.jsonl").write_text('{"step": 100, "env_steps_per_second": 50.0}\n{"step": 20')
    with (cell.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert progress(cell) == ("running", 0.25, 6.0)
    assert progress(cell).status == "broken"


@pytest.mark.parametrize("row", ["{", "[1]", '{"step": "x"}', '{"step": [1]}', f'{{"step": 1{"0" * 400}}}', "\udcff"])
def test_a_held_folder_whose_times_cannot_be_read_is_as_far_as_it_was_saved(file, row):
    cell = cells(file)[0]
    (cell.folder / "checkpoints" / "000000000100").mkdir(parents=True)
    (cell.folder / "timing.jsonl").write_text(f"{row}\n", errors="surrogateescape")
    with (cell.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert progress(cell) == ("running", 0.25, None)


@pytest.mark.parametrize("call", ["exists", "iterdir", "read_text", "read_bytes", "open"])
def test_a_folder_that_cannot_be_read_for_a_while_stands_as_it_stood(file, monkeypatch, call):
    cell = cells(file)[0]
    (cell.folder / "checkpoints").mkdir(parents=True)
    for name, text in {"config.yaml": "{}", "timing.jsonl": "", "done.json": "{}"}.items():
        (cell.folder / name).write_text(text)
    if call != "read_text":
        (cell.folder / "done.json").unlink()

    def away(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    with (cell.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = progress(cell)
        assert before.status == ("finished" if call == "read_text" else "running")
        monkeypatch.setattr(Path, call, away)
        assert progress(cell, known=before) == before
        assert progress(cell) == ("broken", 0.0, None)


def test_a_folder_of_another_configuration_is_refused(file, capsys):
    assert ablate.main([str(file), f"out={file.parent / 'out'}"]) == 0
    file.write_text(FILE.replace("steps: 400", "steps: 500"))
    capsys.readouterr()
    assert ablate.main([str(file), f"out={file.parent / 'out'}"]) == 2
    line = capsys.readouterr().err
    assert "holds a run of another configuration (steps was 400, now 500)" in line and line.count("\n") == 1
    with pytest.raises(ValueError, match="another configuration"):
        check(cells(file)[0])


def test_every_cell_is_run_and_the_same_command_again_does_nothing(file, capsys):
    out = file.parent / "out"
    assert ablate.main([str(file), f"out={out}", "workers=2"]) == 0
    assert capsys.readouterr().out == f".venv/bin/python report.py {out}\n"
    assert [progress(cell).status for cell in cells(file)] == ["finished", "finished"]
    rows = [json.loads(line) for line in (out / "attempts.jsonl").read_text().splitlines()]
    assert sorted((row["cell"], row["code"]) for row in rows) == [("base on toy/chain", 0), ("ln on toy/chain", 0)]
    assert ablate.main([str(file), f"out={out}"]) == 0
    assert len((out / "attempts.jsonl").read_text().splitlines()) == 2
    assert read(out / "ablation.yaml", out).tree == read(file, out).tree


def test_what_dies_is_tried_again_and_then_given_up_with_its_cause(file, capsys, monkeypatch):
    dying = "import sys; print('a bar\\rout of memory', file=sys.stderr); sys.exit(3 if 'ln' in sys.argv[-1] else 0)"
    monkeypatch.setattr(campaign, "TRAIN", [sys.executable, "-c", dying])
    monkeypatch.setattr(campaign, "PAUSE", 0.05)
    monkeypatch.setattr(campaign, "progress", _finished_if_tried(file))
    assert ablate.main([str(file), f"out={file.parent / 'out'}", "retries=1"]) == 1
    shown = capsys.readouterr().err
    assert "ln on toy/chain: given up (exit code 3: out of memory)" in shown
    rows = [json.loads(line) for line in (file.parent / "out" / "attempts.jsonl").read_text().splitlines()]
    assert [row["code"] for row in rows if row["cell"] == "ln on toy/chain"] == [3, 3]
    assert [row["code"] for row in rows if row["cell"] == "base on toy/chain"] == [0]


def _finished_if_tried(file: Path):
    """A stand-in for folders: base is finished as soon as it has been tried."""

    def standing(cell, *looked):
        known = progress(cell, *looked)
        tried = file.parent / "out" / "attempts.jsonl"
        done = cell.arm == "base" and tried.exists() and "base on" in tried.read_text()
        return known._replace(status="finished", share=1.0) if done else known

    return standing


def test_attempts_are_remembered_and_a_success_clears_them(file):
    (file.parent / "out").mkdir()
    attempts, cell = Attempts(file.parent / "out"), cells(file)[0]
    with attempts.noting(Storage()):
        attempts.add(cell, 1, "one")
        attempts.add(cell, 137, "two")
        assert Attempts(file.parent / "out").failures == {cell.name: ["one", "two"]}
        attempts.add(cell, 0, "")
    assert Attempts(file.parent / "out").failures == {}


def test_what_was_told_to_stop_is_told_of_and_not_counted(file):
    (file.parent / "out").mkdir()
    attempts, cell = Attempts(file.parent / "out"), cells(file)[0]
    with attempts.noting(Storage()):
        attempts.add(cell, 128 + signal.SIGTERM, "")
    assert attempts.failures == {} and "143" in attempts.path.read_text()


class Queued:
    """A launcher whose queue holds jobs of an earlier launch."""

    workers, outlived = 3, True

    def __init__(self, names):
        self.names = names

    def standing(self):
        return dict.fromkeys(self.names)


def test_a_job_of_a_cell_that_is_no_more_is_let_go(file):
    ablation = read(file, file.parent / "out")
    made = campaign.Campaign(ablation, Queued(["base on toy/chain", "gone on toy/chain"]), 3, 2)
    assert list(made.jobs) == ["base on toy/chain"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["FILE", "worker=2"], "worker: no such option; expected size, out, workers, retries or launcher"),
        (["FILE", "workers=0"], "workers: 0 given; expected a whole number, at least 1"),
        (["FILE", "out=FILE"], "out: FILE is a file; choose a folder"),
        (["FILE", "size=smoke"], "FILE: size=smoke given; it has no sizes"),
        (["FILE", "launcher=slrum"], "launcher: slrum given; did you mean slurm?"),
        (["FILE", "launcher.num_gpus=1"], "launcher.num_gpus: launcher=local has no settings; use workers=N"),
        (["FILE", "two"], "two: expected OPTION=VALUE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_writes_nothing(file, capsys, monkeypatch, arguments, line):
    monkeypatch.chdir(file.parent)
    assert ablate.main([argument.replace("FILE", str(file)) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(line.replace("FILE", str(file))) and shown.count("\n") == 1
    assert [path.name for path in file.parent.iterdir()] == ["small.yaml"]


def test_a_device_that_is_not_there_is_told_before_anything_starts_here(file, capsys):
    """Elsewhere, on a cluster, it may be there: reading the file asks for none."""
    file.write_text(FILE.replace("ln: [layer_norm]", "ln: {device: 'cuda:99'}"))
    assert cells(file)[1].config.device == "cuda:99"
    assert ablate.main([str(file), f"out={file.parent / 'out'}"]) == 2
    assert capsys.readouterr().err.startswith("device: cuda:99 given; this machine has")
    assert not (file.parent / "out").exists()


def test_arms_that_cannot_be_reported_together_are_told_before_they_start(file, capsys):
    file.write_text(FILE.replace("ln: [layer_norm]", "ln: {eval_episodes: 7, device: 'cuda:99'}"))
    assert ablate.main([str(file), f"out={file.parent / 'out'}"]) == 2
    told = "report.py will not compare them: base on toy/chain and ln on toy/chain do not mean the same by a score"
    assert capsys.readouterr().err.startswith(f"{told} (episodes 2 and 7")


def start(file: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "ablate.py", str(file), f"out={out}", "workers=2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def digests(capsys, file: Path, out: Path) -> list[str]:
    found = []
    for cell in read(file, out).cells:
        capsys.readouterr()
        assert run_command(["digest", str(cell.folder)]) == 0
        found.append(capsys.readouterr().out)
    return found


def test_a_launcher_told_to_stop_lets_its_cells_save_and_goes_on_later(file, capsys):
    file.write_text(FILE.replace("steps: 400", "steps: 3_000"))
    out = file.parent / "out"
    launcher = start(file, out)
    while not list(out.glob("*/toy/chain/metrics.jsonl")):
        time.sleep(0.2)
    time.sleep(1)
    launcher.send_signal(signal.SIGTERM)
    _, shown = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGTERM and "the same command goes on" in shown
    assert not any(progress(cell).status == "running" for cell in cells(file))


@pytest.mark.slow
def test_killed_launchers_and_killed_cells_end_in_the_same_bits(file, capsys):
    file.write_text(FILE.replace("steps: 400", "steps: 1_500, save_every: 100"))
    whole, broken = file.parent / "whole", file.parent / "broken"
    assert start(file, whole).wait() == 0
    for seconds in (6, 8, 10):
        launcher = start(file, broken)
        time.sleep(seconds)
        launcher.kill()  # its cells live on without it
        for folder in broken.glob("*/toy/chain/.lock"):
            owner = folder.read_text().split()[1:2]
            if owner:
                try:
                    os.kill(int(owner[0]), signal.SIGKILL)
                except ProcessLookupError:
                    continue
        launcher.wait()
    assert start(file, broken).wait() == 0
    assert digests(capsys, file, broken) == digests(capsys, file, whole)


def test_a_second_launcher_on_the_same_folder_is_refused_and_changes_nothing(file, capsys):
    out = file.parent / "out"
    out.mkdir()
    before = {"ablation.yaml": FILE, "attempts.jsonl": "half a li"}
    for name, text in before.items():
        (out / name).write_text(text)
    file.write_text(FILE.replace("ln:", "more: [l2], ln:"))
    with alone(out):
        assert ablate.main([str(file), f"out={out}"]) == 2
    assert "another launcher is at work there" in capsys.readouterr().err
    assert {name: (out / name).read_text() for name in before} == before
    with alone(out):
        pass  # a lock does not outlive its holder
