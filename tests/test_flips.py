"""A changed byte in any file of a checkpoint is noticed, and nothing in a run folder can make it run a program."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from learners import CONTROL
from spoilers import sign, write_manifest

import ablate
import train
from core import checkpoint, files
from core.command_line import load
from core.config import BadConfig
from core.offline import FIELDS, OfflineData
from core.policy import load_policy
from core.randomness import host_generator
from core.replay import Replay
from core.replay_store import LOOKED_AT, _due
from core.run import main as run_command

FLIPS = 100  # of each kind of byte
ARGUMENTS = ["agent=sac", "env=toy/reach", "net.width=8", "agent.batch_size=8", "steps=60", "warmup=20", "seeds=[0,1]"]
ARGUMENTS += ["compile=false", "save_every=30", "log_every=10", "eval_every=20", "eval_episodes=1"]
ARGUMENTS += ["replay=prioritised", "interventions=[shrink_and_perturb]"]
ARGUMENTS += ["interventions.shrink_and_perturb.when.every=10"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with checkpoints at steps 30 and 60. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.train(load([*ARGUMENTS, f"run_dir={folder}"])) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """The same run, killed before it could say that it was over."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "done.json").unlink()
    return folder


def test_a_file_that_older_checkpoints_share_is_written_again_once_it_is_found_damaged(tmp_path, capsys):
    """Slots never change: what is in memory is what was written. Every save reads some files again."""
    replay = Replay(CONTROL, [0], 5_000)
    step = (np.ones((1, *CONTROL.obs_shape)), np.ones((1, CONTROL.action_dim)), np.ones(1))
    for _ in range(2_500):
        replay.add(*step, np.zeros(1, bool), np.zeros(1, bool), step[0])
    saved = replay.save(tmp_path)
    path = tmp_path / saved["files"][0]["file"]
    sound = path.read_bytes()
    with changed(path, len(sound) // 2, sound[len(sound) // 2] ^ 1):
        assert path.read_bytes() != sound
        assert replay.save(tmp_path) == saved
        assert path.read_bytes() == sound
    assert f"{path} had been damaged; it is written again" in capsys.readouterr().err


def test_every_shared_file_is_read_again_in_its_turn_while_the_ring_fills_and_goes_round():
    """Three new files a save; the ring holds forty. The longest unread come first, so none waits for more than its
    turn."""
    unread: list[str] = []
    last = {}
    for save in range(60):
        known = [{"file": str(number)} for number in range(max(0, 3 * save - 40), 3 * save)]
        due = _due(known, unread)
        assert len(due) == min(LOOKED_AT, len(known)) and due <= {file["file"] for file in known}
        last |= dict.fromkeys(due, save)
        for file in known:
            assert save - last.get(file["file"], int(file["file"]) // 3) <= 4  # 40 files, of which 16 at a time


# flipped bytes

Piece = tuple[Path, int, int]  # a file, and the bytes from ... to ... in it


def pieces(run: Path, kind: str) -> list[Piece]:
    """Where the bytes of a kind lie, of the newest checkpoint alone."""
    older, last = checkpoint.checkpoints(run)
    listed, before = (json.loads((path / "manifest.json").read_text()) for path in (last, older))
    if kind == "manifest":
        return [whole(last / "manifest.json")]
    if kind == "replay":
        mine = {entry["path"] for entry in listed["files"]} - {entry["path"] for entry in before["files"]}
        return [whole(run / path) for path in sorted(mine) if path.startswith("replay/")]
    if kind == "records":
        known = {entry["path"]: entry["bytes"] for entry in before["records"]}
        return [(run / entry["path"], known[entry["path"]], entry["bytes"]) for entry in listed["records"]]
    state, size = last / "state.pt", (last / "state.pt").stat().st_size
    ends = [(state, 0, 1_000), (state, size - 1_000, size)]  # of the archive: its first header, and its directory
    return ends if kind == "header" else [(state, 1_000, size - 1_000)]


def whole(path: Path) -> Piece:
    return path, 0, path.stat().st_size


@contextmanager
def changed(path: Path, at: int, value: int) -> Iterator[None]:
    """Inside, one byte of a file is another."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        (was,) = file.read(1)
        try:
            os.pwrite(file.fileno(), bytes([value]), at)
            yield
        finally:
            os.pwrite(file.fileno(), bytes([was]), at)


def passed_over(run: Path) -> bool:
    """Whether the newest checkpoint is told of by name, in one line, and the one before it is taken."""
    older, last = checkpoint.checkpoints(run)
    lines: list[str] = []
    if checkpoint.newest(run, lines.append) == last:
        return False
    [line] = lines
    assert line.startswith(f"checkpoint {last.name} is damaged and not used: ") and "\n" not in line
    assert checkpoint.newest(run, lines.append) == older
    return True


@pytest.mark.parametrize("kind", ["header", "body", "manifest", "replay", "records"])
def test_every_flipped_byte_is_noticed_and_the_checkpoint_before_it_is_taken(run, kind):
    rng, where = host_generator(0, f"flips/{kind}"), pieces(run, kind)
    assert where and all(first < last for _, first, last in where)
    for _ in range(FLIPS):
        path, first, last = where[rng.integers(len(where))]
        at = int(rng.integers(first, last))
        was = path.read_bytes()[at]
        with changed(path, at, was ^ int(rng.integers(1, 256))):
            assert passed_over(run), f"byte {at} of {path.name}, which was {was:#x}"
            assert any(path.name in line for line in checkpoint.problems(newest_of(run)))


def newest_of(run: Path) -> Path:
    return checkpoint.checkpoints(run)[-1]


def test_a_flipped_byte_that_both_checkpoints_know_leaves_none(run):
    older, _ = checkpoint.checkpoints(run)
    record = json.loads((older / "manifest.json").read_text())["records"][0]
    content = (run / record["path"]).read_bytes()
    lines: list[str] = []
    with (
        changed(run / record["path"], record["bytes"] - 1, content[record["bytes"] - 1] ^ 1),
        pytest.raises(ValueError, match="only records in .* have changed; resume=force goes on with them as they are"),
    ):
        checkpoint.newest(run, lines.append)
    assert len(lines) == 2 and all(record["path"] in line for line in lines)


RARE = [pytest.param(text, marks=pytest.mark.slow) for text in '\n\t.eE+"\\/,:']


@pytest.mark.parametrize("text", [" ", "\r", "-", "0", *RARE])
def test_no_byte_of_a_manifest_may_become_one_that_means_something_to_json(run, text):
    manifest = newest_of(run) / "manifest.json"
    for at, was in enumerate(manifest.read_bytes()):
        if was != ord(text):
            with changed(manifest, at, ord(text)):
                assert next(checkpoint.problems(manifest.parent), None), f"byte {at}, which was {chr(was)!r}"


# programs in place of data


class Program:
    """What a pickle of it does when it is loaded: it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


class Module(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def marker(tmp_path) -> Iterator[Path]:
    """A file that no test may leave there."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "the program ran"


def said_by_training(run: Path) -> str:
    with pytest.raises(BadConfig) as error:
        train.train(load([*ARGUMENTS, f"run_dir={run}"]))
    return str(error.value)


def said_by_loading(run: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_policy(run)
    return str(error.value)


def said_by(command: str, run: Path, capsys) -> str:
    """What python -m core.run says, which fails."""
    capsys.readouterr()
    code, shown = run_command([command, str(run)]), capsys.readouterr()
    assert code == (1 if command == "verify" else 2)
    return (shown.out + shown.err).rstrip("\n")


PICKLES = {
    "pickle": lambda file, state, program: file.write_bytes(pickle.dumps(program)),
    "archive": lambda file, state, program: torch.save(program, file),
    "one leaf": lambda file, state, program: torch.save(state | {"clock": state["clock"] | {"last": program}}, file),
    "legacy": lambda file, state, program: torch.save(program, file, _use_new_zipfile_serialization=False),
    "script": lambda file, state, program: torch.jit.save(torch.jit.script(Module()), file),
    "nothing": lambda file, state, program: file.write_bytes(b""),
    "text": lambda file, state, program: file.write_text("import os"),
    "a list": lambda file, state, program: torch.save([1.0], file),
}


@pytest.mark.filterwarnings("error:Detected pickle")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_state_that_is_a_program_is_refused_in_one_line_by_everything_that_loads_it(run, marker, capsys, kind):
    last = newest_of(run)
    PICKLES[kind](last / "state.pt", checkpoint.load(last), Program(marker))
    sign(last)
    said = [said_by(command, run, capsys) for command in ("digest", "evaluate", "export")]
    for line in (*said, said_by_training(run), said_by_loading(run)):
        assert str(last / "state.pt") in line and "\n" not in line


CHUNKS = {
    "pickle": lambda data, program: pickle.dumps(program),
    "compressed": lambda data, program: zstandard.compress(pickle.dumps(program)),
    "nothing": lambda data, program: b"",
    "half": lambda data, program: data[: len(data) // 2],
    "longer": lambda data, program: zstandard.compress(zstandard.decompress(data) + b"more"),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_chunk_of_replay_that_is_none_is_refused_in_one_line(run, marker, capsys, kind):
    last = newest_of(run)
    state = checkpoint.load(last)
    entry = state["replay"]["files"][0]
    chunk = run / "replay" / entry["file"]
    chunk.write_bytes(CHUNKS[kind](chunk.read_bytes(), Program(marker)))
    entry["sha256"] = files.sha256(chunk)
    torch.save(state, last / "state.pt")
    sign(last)
    for line in (said_by_training(run), said_by("export", run, capsys)):
        assert str(chunk) in line and "\n" not in line


TAGS = ["!!python/object/apply:builtins.open [{}, w]", "!!python/object/new:builtins.open {{args: [{}, w]}}"]
TAGS += ["&a [*a, !!python/name:os.system '']", "!!python/module:os ''", "[" * 500]


@pytest.mark.parametrize("tag", TAGS)
def test_yaml_that_is_a_program_is_refused_in_one_line(run, marker, capsys, tag):
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"more: {tag.format(marker)}\n")
    said = [said_by_training(run), said_by_loading(run), said_by("verify", run, capsys)]
    assert ablate.main([str(config)]) == 2
    for line in (*said, capsys.readouterr().err.rstrip("\n")):
        assert str(config) in line and "\n" not in line


@pytest.mark.parametrize("name", ["provenance.json", "done.json"])
@pytest.mark.parametrize("kind", ["pickle", "deep", "a number"])
def test_json_that_is_none_is_refused_in_one_line(run, marker, capsys, name, kind):
    program = pickle.dumps(Program(marker))
    (run / name).write_bytes({"pickle": program, "deep": b"[" * 100_000, "a number": b"3"}[kind])
    for line in (said_by_training(run), said_by("verify", run, capsys)):
        assert str(run / name) in line and "\n" not in line


@pytest.mark.parametrize("content", [b"[" * 100_000, b"3", b'{"format": 1, "step": 60, "files": 3}', b"\x80\x05."])
def test_a_manifest_that_is_none_is_passed_over(run, marker, content):
    (newest_of(run) / "manifest.json").write_bytes(content)
    assert passed_over(run)


@pytest.mark.parametrize("path", ["\0", "..", "x" * 5_000, "/dev/null"])
def test_a_manifest_with_an_impossible_path_is_passed_over(run, path):
    last = newest_of(run)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["files"][-1]["path"] = path
    write_manifest(last, manifest)
    assert passed_over(run)


@pytest.mark.parametrize("kind", ["objects", "pickle"])
def test_offline_data_that_are_a_program_are_refused_in_one_line(tmp_path, marker, kind):
    file, programs = tmp_path / "data.npz", np.array([Program(marker)], dtype=object)
    if kind == "objects":
        np.savez(file, allow_pickle=True, **dict.fromkeys(FIELDS, programs))
    else:
        file.write_bytes(pickle.dumps(programs))
    with pytest.raises(ValueError, match=f"offline.data: {file} is no npz file") as error:
        OfflineData(str(file), CONTROL, (0,), "cpu")
    assert "\n" not in str(error.value)
