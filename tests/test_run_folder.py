"""A run's folder: entered once at a time, gone on with exactly, looked at from the command line."""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from fake_replay import FakeReplay
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core import files, provenance, run
from core.cells import held
from core.config import BadConfig, setting_up
from core.evaluation import Result
from core.run_folder import RunFolder, differing
from core.signals import Stop

CONFIG = {
    "agent": {"name": "dqn", "learning_rate": 1e-5},
    "interventions": [{"name": "reset", "where": "head", "when": {"every": 40}}, {"name": "l2", "weight": 1.0}],
    "seeds": [0, 1],
    "steps": 40,
    "device": "cpu",
    "run_dir": "",
    "save_every": 10,
}
SEEDS, TASK = (0, 1), "toy/chain"
RECORDS = ("metrics.jsonl", "eval.csv", "ledger.jsonl")


def enter(path, config=CONFIG, resume="strict", ignore=("run_dir", "save_every")) -> RunFolder:
    return RunFolder(path, config, resume, seeds=SEEDS, tasks=(TASK,), ignore=ignore)


def changed(**settings) -> dict:
    """The configuration with other settings; `a__b=1` stands for a.b."""
    config = copy.deepcopy(CONFIG)
    for name, value in settings.items():
        *path, last = (int(key) if key.isdigit() else key for key in name.split("__"))
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    return config


class Killed(BaseException):
    pass


def train(path, config=CONFIG, killed_at: int | None = None, resume="strict") -> bool:
    """A run whose weights depend on all that it went through. -> whether it did anything"""
    with enter(path, config, resume) as folder:
        if folder.finished is not None:
            return False
        weights, replay, step = torch.ones(2, 3), FakeReplay(capacity=30), 0
        if saved := folder.resume():
            weights, step = saved["states"]["critic"]["params"]["w"], saved["clock"]["step"]
            replay.load(folder.path / "replay", saved["replay"])
        folder.accept()
        while step < 40:
            step += 1
            replay.add(step)
            weights = weights * 1.01 + sum(replay.held) / 1000
            folder.metrics({"step": step, "loss": weights.mean(1).tolist(), "all": float(weights.sum())})
            folder.timing({"step": step, "seconds": time.perf_counter()})
            if step % 5 == 0:
                results = [Result(seed, 0, float(weights[seed, 0]), step) for seed in SEEDS]
                folder.evaluation(results, step=step, task=TASK, updates=step, network="params")
                folder.events([{"step": step, "touched": 3}])
            if step == killed_at:
                raise Killed
            if step % 10 == 0:
                folder.save(step, state(weights, step), replay)
        folder.finish({"return": weights.mean(1).tolist()})
    return True


def state(weights: torch.Tensor, step: int) -> dict:
    fields = {"params": {"w": weights}, "birth": {"w": torch.ones(2, 3)}, "copies": {"target": {"w": weights / 2}}}
    fields |= {"optim": {"m": {"w": weights * 3}}, "buffers": {}, "memory": {"reset": {}}}
    return {
        "states": {"critic": fields},
        "engine": {"alive": [True]},
        "clock": {"step": step},
        "envs": {},
        "pending": {},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run. Not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert train(path)
    return path


def command(capsys, *argv) -> tuple[int, list[str], list[str]]:
    """-> exit code, lines on stdout, lines on stderr"""
    code = run.main(list(map(str, argv)))
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err.splitlines()


# going on


@pytest.mark.parametrize("kills", [[3], [10], [11], [39], [40], [4, 17, 17, 25]], ids=str)
def test_a_killed_run_ends_in_the_bits_and_rows_of_an_uninterrupted_one(whole, tmp_path, capsys, kills):
    path = tmp_path / "killed"
    for killed_at in kills:
        with pytest.raises(Killed):
            train(path, killed_at=killed_at)
    assert train(path)
    assert [(path / name).read_bytes() for name in RECORDS] == [(whole / name).read_bytes() for name in RECORDS]
    assert command(capsys, "digest", path) == command(capsys, "digest", whole)
    assert command(capsys, "verify", path)[0] == 0
    curve = EventAccumulator(str(path / "tensorboard" / "seed_1")).Reload().Scalars("loss")
    expected = [json.loads(line)["loss"][1] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in curve] == list(range(1, 41))
    assert [event.value for event in curve] == pytest.approx(expected)


@pytest.mark.parametrize("place", ["checkpoints/000000000030/state.pt", "replay/replay-000020"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(whole, tmp_path, capsys, place):
    path = tmp_path / "damaged"
    with pytest.raises(Killed):
        train(path, killed_at=35)
    content = bytearray((path / place).read_bytes())
    content[len(content) // 2] ^= 1
    (path / place).write_bytes(content)
    assert train(path)
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"checkpoint 000000000030 is damaged and not used: {place}: its content has changed"
    assert command(capsys, "digest", path) == command(capsys, "digest", whole)
    assert [(path / name).read_bytes() for name in RECORDS] == [(whole / name).read_bytes() for name in RECORDS]


def test_a_disk_that_cannot_be_read_for_a_while_costs_no_checkpoint(whole, tmp_path, capsys):
    path, place = tmp_path / "run", "checkpoints/000000000030/state.pt"
    with pytest.raises(Killed):
        train(path, killed_at=35)
    opened = Path.open

    def failing(file, *args, **kwargs):
        if str(file).endswith(place):
            raise OSError(errno.EIO, "Input/output error")
        return opened(file, *args, **kwargs)

    line = f"{path / place}: Input/output error; try again; remove this file only if it is lost for good"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", failing)
        with pytest.raises(BadConfig, match=f"^{re.escape(line)}$"), setting_up():
            train(path)
        assert command(capsys, "digest", path) == (2, [], [line])
        assert command(capsys, "verify", path) == (1, [f"{place}: cannot be read (Input/output error)"], [])
    assert len(list((path / "checkpoints").iterdir())) == 2
    assert train(path)
    assert capsys.readouterr().err == ""
    assert command(capsys, "digest", path) == command(capsys, "digest", whole)


def test_a_finished_run_says_so_and_nothing_in_its_folder_changes(whole):
    def snapshot():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size) for path in whole.rglob("*") if path.name != ".lock"
        }

    before = snapshot()
    assert not train(whole)
    with enter(whole) as folder:
        assert folder.finished == {"return": json.loads((whole / "done.json").read_text())["return"]}
    assert snapshot() == before


# entering


def test_a_new_folder_holds_the_configuration_and_where_it_comes_from(tmp_path):
    with enter(tmp_path / "deep" / "run") as folder:
        assert folder.finished is None and folder.resume() is None
        folder.accept()
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == CONFIG
    [start] = json.loads((folder.path / "provenance.json").read_text())
    assert start["versions"]["torch"] == version("torch") and start["started"] and start["command"]
    with enter(folder.path) as folder:
        folder.accept()
    assert len(json.loads((folder.path / "provenance.json").read_text())) == 2


def test_a_disk_without_room_for_the_lock_is_told_by_name(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("core.run_folder.os.getpid", full)
    with pytest.raises(ValueError, match=rf"run_dir: {tmp_path} cannot be used \(No space left on device\)"):
        enter(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_start_where_nothing_can_be_written_is_told_with_what_to_do(number):
    line = f"/runs/a: {os.strerror(number)}; make room there or name another run_dir"
    with pytest.raises(BadConfig, match=f"^{line}$"), setting_up():
        raise OSError(number, os.strerror(number), "/runs/a")


def test_a_finished_run_in_a_place_that_is_only_read_is_finished(tmp_path, monkeypatch):
    def read_only():
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as there:
        train(tmp_path)
        there.setattr("core.run_folder.os.getpid", read_only)
        assert not train(tmp_path)
        (tmp_path / "done.json").unlink()
        with pytest.raises(ValueError, match="Read-only file system"):
            enter(tmp_path)


def test_a_folder_in_use_is_refused_with_the_process_that_holds_it_and_free_when_that_is_killed(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        folder = enter(tmp_path)
        os.write(writer, b"held")
        time.sleep(60 if folder else 0)
        os._exit(0)
    assert os.read(reader, 4) == b"held"
    with pytest.raises(
        ValueError, match=rf"^run_dir: .* is in use by process {child} on .*; wait for it, or choose another"
    ):
        enter(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    enter(tmp_path).close()


def test_who_only_looks_at_the_lock_of_a_folder_keeps_no_run_out(tmp_path):
    enter(tmp_path).close()
    with (tmp_path / ".lock").open() as glance:
        fcntl.flock(glance, fcntl.LOCK_SH)
        assert not held(tmp_path)  # two who look do not see each other
        leaving = threading.Timer(0.2, fcntl.flock, (glance, fcntl.LOCK_UN))
        leaving.start()
        enter(tmp_path).close()
        leaving.join()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"agent__learning_rate": 2e-5}, "agent.learning_rate was 1e-05, now 2e-05"),
        ({"seeds": [0, 2]}, "seeds was [0,1], now [0,2]"),
        ({"interventions__0__when__every": 20}, "interventions.reset.when.every was 40, now 20"),
        ({"device": "cuda"}, "device was cpu, now cuda"),
        ({"new": True}, "new was null, now true"),
    ],
)
def test_another_configuration_is_refused_by_the_keys_that_differ_and_changes_nothing(tmp_path, settings, line):
    enter(tmp_path).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
    with pytest.raises(ValueError) as error:
        enter(tmp_path, changed(**settings))
    assert f"({line})" in str(error.value) and "resume=force" in str(error.value) and "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"} == before


def test_the_order_of_interventions_is_part_of_the_configuration():
    swapped = changed(interventions=CONFIG["interventions"][::-1])
    assert differing(CONFIG, swapped) == ["interventions was [reset,l2], now [l2,reset]"]


def test_ignored_keys_and_the_index_of_a_gpu_do_not_make_another_configuration(tmp_path):
    enter(tmp_path, changed(device="cuda:0")).close()
    now = changed(device="cuda:1", save_every=7, run_dir="elsewhere")
    with enter(tmp_path, now) as folder:
        folder.accept()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == now


def test_force_goes_on_with_another_configuration_also_after_the_end_and_says_so(tmp_path):
    with enter(tmp_path) as folder:
        folder.resume()
        folder.finish({"return": [float("nan"), 1.0]})
    with enter(tmp_path, changed(steps=80), resume="force") as folder:
        assert folder.finished is None
        assert (tmp_path / "done.json").exists()  # until the run is known to fit
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 40
        folder.accept()
    assert not (tmp_path / "done.json").exists()
    assert json.loads((tmp_path / "provenance.json").read_text())[-1]["forced"] == ["steps was 40, now 80"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 80


def test_force_goes_on_where_the_configuration_cannot_be_read(tmp_path, capsys):
    """One byte of it shall not cost what the checkpoints hold."""
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "damaged"
    train(undisturbed)
    with pytest.raises(Killed):
        train(folder, killed_at=25)
    (folder / "config.yaml").write_text("steps: [")
    with pytest.raises(ValueError, match="config.yaml cannot be read; resume=force puts the configuration of this"):
        enter(folder)
    assert train(folder, resume="force")
    assert json.loads((folder / "provenance.json").read_text())[-1]["forced"] == ["config.yaml could not be read"]
    capsys.readouterr()
    assert command(capsys, "digest", folder) == command(capsys, "digest", undisturbed)


def test_a_summary_is_gone_for_good_before_a_forced_configuration_stands(tmp_path, monkeypatch):
    """Otherwise a kill between the two leaves a longer run that the same command takes for finished."""
    train(tmp_path)
    synced: list[bool] = []  # of the folder's names: whether the summary was among them
    write, sync = files.write, files.sync

    def noted(path):
        sync(path)
        if path == tmp_path:
            synced.append((tmp_path / "done.json").exists())

    def killed(path, content):
        if path.name == "config.yaml":
            raise Killed
        write(path, content)

    monkeypatch.setattr(files, "sync", noted)
    with enter(tmp_path, changed(steps=80), resume="force") as folder:
        monkeypatch.setattr(files, "write", killed)
        with pytest.raises(Killed):
            folder.accept()
    monkeypatch.undo()
    assert not (tmp_path / "done.json").exists() and synced[-1] is False
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 40
    with enter(tmp_path, changed(steps=80), resume="force") as folder:
        assert folder.finished is None


def test_rows_that_were_added_to_a_finished_run_are_found(tmp_path, capsys):
    train(tmp_path)
    assert command(capsys, "verify", tmp_path)[0] == 0
    with (tmp_path / "eval.csv").open("a") as file:
        file.write("40,toy/chain,0,9,999.0,40,40,params\n")
    code, lines, _ = command(capsys, "verify", tmp_path)
    assert code == 1 and len(lines) == 1 and lines[0].startswith("eval.csv: ")


def test_of_a_longer_run_that_is_told_to_be_short_other_settings_are_told_first(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="another configuration .*learning_rate was 1e-05, now 0.1; steps was 40"):
        enter(tmp_path, changed(steps=10, agent__learning_rate=0.1))


def test_force_does_not_go_back_behind_what_is_done(tmp_path):
    train(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ValueError, match="steps: 10 given; .* is at step 40 already"):
        enter(tmp_path, changed(steps=10), resume="force")
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize("left", [slice(1), slice(None, -1), slice(0)], ids=str)
def test_records_that_somebody_has_changed_cost_no_checkpoint_where_force_says_so(whole, tmp_path, capsys, left):
    """Of one record its first byte, all but its last or nothing is left; the run goes on and ends whole."""
    with pytest.raises(Killed):
        train(tmp_path, killed_at=25)
    record = tmp_path / "metrics.jsonl"
    record.write_bytes(record.read_bytes()[: (record.read_bytes().index(b"\n") + 1) * 5][left])
    with pytest.raises(ValueError, match="only records in .* have changed; resume=force goes on with them as they are"):
        train(tmp_path)
    capsys.readouterr()
    assert train(tmp_path, resume="force")
    assert "metrics.jsonl: " in (said := capsys.readouterr().err) and said.endswith("; it stays as it is\n")
    (forced,) = json.loads((tmp_path / "provenance.json").read_text())[-1]["forced"]
    assert forced.startswith("metrics.jsonl: ")
    for name in ("eval.csv", "ledger.jsonl"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    rows = [json.loads(line)["step"] for line in record.read_text().splitlines()]
    assert rows[-20:] == list(range(21, 41)) and len(rows) < 26
    assert run.main(["verify", str(tmp_path)]) == 0


@pytest.mark.parametrize(("name", "content"), [("done.json", ""), ("provenance.json", "[")])
def test_a_damaged_record_of_the_folder_is_named(tmp_path, name, content):
    with enter(tmp_path) as folder:
        folder.resume()
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}: is damaged .*; remove it"):
        enter(tmp_path)


def test_a_folder_of_something_else_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds thesis.tex and no run; choose another folder"):
        enter(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match="cannot be used"):
        enter(tmp_path / "thesis.tex")


# the command line


def test_digest_prints_one_line_per_component(whole, capsys):
    code, lines, _ = command(capsys, "digest", whole)
    names = "parameters birth copies moments buffers memories replay streams records"
    assert code == 0 and [line.split()[0] for line in lines] == names.split()
    assert all(len(line.split()[1]) == 64 for line in lines)


@pytest.mark.parametrize("component", ["parameters", "copies", "moments", "memories", "streams"])
def test_each_digest_speaks_of_its_own_component(tmp_path, capsys, component):
    def build(path, other):
        tree = state(torch.ones(2, 3), 1)
        fields = tree["states"]["critic"]
        places = {"parameters": fields["params"], "copies": fields["copies"], "moments": fields["optim"]["m"]}
        places |= {"memories": fields["memory"]["reset"], "streams": tree["clock"]}
        places[component]["x"] = torch.tensor(float(other))
        with enter(path) as folder:
            folder.resume()
            folder.save(1, tree, FakeReplay())
        return command(capsys, "digest", path)[1]

    pairs = zip(build(tmp_path / "a", 0), build(tmp_path / "b", 1), strict=True)
    assert [a.split()[0] for a, b in pairs if a != b] == [component]


def test_verify_prints_a_line_for_every_damaged_file(tmp_path, capsys):
    train(tmp_path)
    code, lines, _ = command(capsys, "verify", tmp_path)
    assert code == 0 and lines == [f"{tmp_path}: 2 checkpoints, every file as it was written"]
    os.truncate(tmp_path / "replay/replay-000012", 1)
    (tmp_path / "checkpoints/000000000040/state.pt").unlink()
    code, lines, _ = command(capsys, "verify", tmp_path)
    assert code == 1 and lines == [
        "replay/replay-000012: 1 bytes long, 4 expected",
        "checkpoints/000000000040/state.pt: cannot be read (No such file or directory)",
    ]


def listed(saved: Path) -> set[str]:
    """The chunks of replay that a checkpoint needs."""
    manifest = json.loads((saved / "manifest.json").read_text())
    return {entry["path"] for entry in manifest["files"] if entry["path"].startswith("replay/")}


@pytest.mark.parametrize("damaged", [False, True])
def test_verify_of_a_run_that_goes_on_tells_only_of_what_is_damaged(tmp_path, capsys, monkeypatch, damaged):
    """The older checkpoint is dropped while the newest is read, with all that only it lists."""
    train(tmp_path)
    (tmp_path / "done.json").unlink()
    if damaged:
        os.truncate(tmp_path / "replay/replay-000024", 1)
    older, newest = sorted((tmp_path / "checkpoints").iterdir())
    only = listed(older) - listed(newest)
    assert only
    read, looked = files.sha256, []

    def later(path, size=None):
        looked.append(path)
        if len(looked) == 2:
            older.rename(older.with_name(".dropped"))
            for name in only:
                (tmp_path / name).unlink()
        return read(path, size)

    monkeypatch.setattr(files, "sha256", later)
    code, lines, _ = command(capsys, "verify", tmp_path)
    if damaged:
        assert (code, lines) == (1, ["replay/replay-000024: 1 bytes long, 4 expected"])
    else:
        assert (code, lines) == (0, [f"{tmp_path}: 1 checkpoints, every file as it was written"])


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "{{{"), ("config.yaml", ""), ("done.json", "{")])
def test_verify_reads_what_no_manifest_lists(tmp_path, capsys, name, content):
    train(tmp_path)
    (tmp_path / name).write_text(content)
    code, lines, _ = command(capsys, "verify", tmp_path)
    assert code == 1 and len(lines) == 1 and lines[0].startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "old", "new", "line"),
    [
        ("config.yaml", "1.0e-05", "1.0e-04", "config.yaml: agent.learning_rate was 1e-05, now 0.0001"),
        ("config.yaml", "seeds:", "seads:", "config.yaml: seeds was [0,1], now null"),
        ("config.yaml", "save_every: 10", "save_every: 20", None),  # training does not depend on it
        ("config.yaml", "device: cpu", "device: 5", "config.yaml: cannot be read (AttributeError"),
        ("config.yaml", "name: reset", "nome: reset", "config.yaml: cannot be read (KeyError"),
        ("done.json", "1", "2", "done.json: its content has changed"),
        ("done.json", "return", "retorn", "done.json: its content has changed"),
        ("done.json", "sha256", "sha257", "done.json: has no digest: another version wrote it, or it is damaged"),
    ],
)
def test_verify_compares_the_folders_own_files_too(tmp_path, capsys, name, old, new, line):
    train(tmp_path)
    path = tmp_path / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    code, lines, _ = command(capsys, "verify", tmp_path)
    if line is None:
        assert code == 0
    else:
        assert code == 1 and len(lines) == 1 and lines[0].startswith(f"{tmp_path}/{line}")
    if name == "done.json":
        with pytest.raises(ValueError, match="done.json: (its content has changed|has no digest)"):
            enter(tmp_path)


def test_what_force_overrules_is_said(tmp_path, capsys):
    with pytest.raises(Killed):
        train(tmp_path, killed_at=35)
    train(tmp_path, changed(agent__learning_rate=1e-4), resume="force")
    assert "resume=force: agent.learning_rate was 1e-05, now 0.0001" in capsys.readouterr().err
    assert command(capsys, "verify", tmp_path)[0] == 0


def test_a_folder_without_a_checkpoint_is_not_called_whole(tmp_path, capsys):
    with enter(tmp_path) as folder:
        folder.resume()
    assert command(capsys, "verify", tmp_path)[:2] == (1, [f"{tmp_path}: no checkpoint"])


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "expected python -m core.run digest | verify | evaluate | export | difference RUN_DIR"),
        (["digest", "nowhere"], "nowhere: no run folder (config.yaml is missing)"),
        (["dijest", "nowhere"], "dijest: no such command; did you mean digest?"),
        (["difference", "RUN", "other=nowhere"], "nowhere: no run folder (config.yaml is missing)"),
        (["verify", "RUN", "episodes=3"], "episodes: no such option of verify; expected none"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(whole, capsys, argv, line):
    assert command(capsys, *(whole if word == "RUN" else word for word in argv)) == (2, [], [line])


# where it comes from


def repository(path: Path) -> None:
    (path / "a.py").write_text("old = 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "a.py"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(path), *words], check=True)


def test_provenance_of_a_clean_tree_is_its_commit(tmp_path, monkeypatch):
    repository(tmp_path)
    monkeypatch.setattr(provenance, "SOURCE", tmp_path)
    found = provenance.provenance()
    assert len(found["commit"]) == 40 and (found["dirty"], found["diff"]) == (False, "")
    assert found["hardware"]["cores"] == os.cpu_count() and found["hardware"]["memory_gib"] > 0
    assert None not in found["versions"].values()


def test_the_patch_in_the_folder_turns_the_commit_into_what_ran(tmp_path, monkeypatch):
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    repository(source)
    subprocess.run(["git", "clone", "-q", str(source), str(clone)], check=True)
    (source / "a.py").write_text("new = 2\n")
    (source / "mine.py").write_text("idea = 3\n")
    monkeypatch.setattr(provenance, "SOURCE", source)
    for _ in range(2):
        with enter(tmp_path / "run") as folder:
            folder.accept()
    first, second = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert first["dirty"] and first["diff"] == second["diff"]
    subprocess.run(["git", "-C", str(clone), "apply", str(tmp_path / "run" / first["diff"])], check=True)
    assert {path.name: path.read_text() for path in clone.glob("*.py")} == {
        "a.py": "new = 2\n",
        "mine.py": "idea = 3\n",
    }


def test_what_has_changed_since_it_was_saved_is_listed_and_refused_where_that_is_asked_for(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    repository(source)
    monkeypatch.setattr(provenance, "SOURCE", source)
    monkeypatch.setattr(provenance, "_threads", lambda: 2)
    for step, resume in enumerate(("strict", "exact")):
        with enter(tmp_path / "run", resume=resume) as folder:
            folder.resume()
            assert folder.changed == []
            folder.accept()
            folder.save(step, state(torch.ones(2, 3), 1), FakeReplay())
    (source / "a.py").write_text("new = 2\n")
    monkeypatch.setattr(provenance, "_threads", lambda: 1)
    before = (tmp_path / "run" / "provenance.json").read_bytes()
    for _ in range(2):  # a start that saved nothing changes nothing
        with pytest.raises(ValueError, match=r"since .* was saved, the code \(.*; threads \(2, now 1\) has"):
            enter(tmp_path / "run", resume="exact").resume()
        assert (tmp_path / "run" / "provenance.json").read_bytes() == before
        with enter(tmp_path / "run") as folder:
            folder.resume()
            code, threads = folder.changed
            folder.accept()
        before = (tmp_path / "run" / "provenance.json").read_bytes()
    assert code.startswith("the code (commit ") and ".patch)" in code and threads == "threads (2, now 1)"
    with enter(tmp_path / "run") as folder:
        folder.resume()
        folder.accept()
        folder.save(2, state(torch.ones(2, 3), 1), FakeReplay())
    with enter(tmp_path / "run", resume="exact") as folder:
        folder.resume()
        assert folder.changed == []


def test_without_git_or_anything_else_a_run_still_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(provenance, "_cpu", lambda: 1 / 0)
    with enter(tmp_path / "run") as folder:
        folder.accept()
    [start] = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert (start["commit"], start["dirty"], start["versions"]["no-such-package"]) == (None, None, None)


# being asked to stop


@pytest.fixture
def hangup():
    """What SIGHUP does, as the process was started: it ends it, or, by nohup, nothing."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138), ("SIGHUP", 129)])
def test_a_signal_becomes_a_request_with_its_exit_code(name, code, hangup):
    hangup(signal.SIG_DFL)
    before = signal.getsignal(signal.Signals[name])
    with Stop() as stop:
        assert (stop.requested, stop.exit_code) == (None, 0)
        os.kill(os.getpid(), signal.Signals[name])
        assert (stop.requested, stop.exit_code) == (name, code)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == name
    assert signal.getsignal(signal.Signals[name]) is before


def test_what_was_started_with_nohup_outlives_its_terminal(hangup):
    hangup(signal.SIG_IGN)
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_the_second_control_c_ends_the_process_at_once():
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGUSR1", "on_divergence=stop"])
def test_the_first_control_c_after_another_request_interrupts_no_saving(reason):
    saved = False
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        if reason.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[reason])
        else:
            stop.ask(reason, 3)
        os.kill(os.getpid(), signal.SIGINT)
        saved = stop.requested == reason
        os.kill(os.getpid(), signal.SIGINT)
    assert saved
