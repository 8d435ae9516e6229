"""Files of runs and ablations, damaged or malicious: what reads them goes on without, or says in one line which it is;
and nothing that stands in a file is ever executed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from spoilers import FUZZ, Bomb, bomb, refused, sign, spoilt_bytes, spoilt_trees, write_manifest

import train
from core import checkpoint
from core.ablation import Ablation, read
from core.cells import Attempts, check, progress
from core.config import BadConfig, load
from core.policy import load_policy
from core.report import board
from core.report.scores import runs
from core.run import main as look
from core.when import happenings

SETTINGS = {"agent": "sac", "replay": "prioritised", "steps": 40, "warmup": 8, "compile": False, "save_every": 20}
SETTINGS |= {"eval_every": 20, "eval_episodes": 1, "observe_every": 10, "log_every": 10, "agent.batch_size": 8}
SETTINGS |= {"net.width": 8}
FILE = {"tasks": ["toy/reach"], "seeds": [0, 1], "settings": SETTINGS}
FILE["arms"] = {"base": [], "reset": [{"name": "reset", "when": {"every": 10}}]}
RUN = Path("reset/toy/reach")
CHECKPOINT = "checkpoints/000000000040"
ZSTD = b"\x28\xb5\x2f\xfd"  # how a chunk of replay begins
NAMES = ["config.yaml", "provenance.json", "done.json", ".lock", "metrics.jsonl", "ledger.jsonl", "timing.jsonl"]
NAMES += ["eval.csv", f"{CHECKPOINT}/manifest.json", f"{CHECKPOINT}/state.pt", "replay"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished ablation of two runs. Not to be changed."""
    out = tmp_path_factory.mktemp("ablation")
    (out / "ablation.yaml").write_text(yaml.safe_dump(FILE))
    (out / "attempts.jsonl").write_text('{"cell": "base on toy/reach", "code": 1, "cause": "killed"}\n')
    for cell in read(out / "ablation.yaml", out).cells:
        assert train.train(cell.config) == 0
        shutil.rmtree(cell.folder / "tensorboard")
    return out


@contextlib.contextmanager
def copied(whole: Path) -> Iterator[Path]:
    """A copy to be spoilt, always in the same place."""
    copy = whole.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    yield shutil.copytree(whole, copy)


def place(out: Path, name: str) -> Path:
    """A file of the run; "replay" is the first chunk that its newest checkpoint needs."""
    first = checkpoint.load(out / RUN / CHECKPOINT)["replay"]["files"][0]["file"] if name == "replay" else ""
    return out / RUN / name / first


# what reads: each goes through, or raises a ValueError or OSError of one line


@cache
def ablation(out: Path) -> Ablation:
    return read(out / "ablation.yaml", out)


def looked(out: Path, *commands: str) -> None:
    """The commands of core.run answer with an exit code; 2 is one line."""
    for words in map(str.split, commands or ("verify", "digest")):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            code = look([words[0], str(out / RUN), *words[1:]])
        last = told.getvalue().splitlines()[-1:]
        assert code in (0, 1) or (code == 2 and last and last[0].isprintable()), told.getvalue()


def played(out: Path) -> None:
    looked(out, f"export to={out / 'data.npz'}", "evaluate episodes=1")


def policy(out: Path) -> None:
    load_policy(out / RUN).act(np.zeros(4, np.float32))


def resumed(out: Path) -> None:
    """The same command again, of a finished run and of one that is not. Anything but BadConfig would be a traceback."""
    try:
        for _ in range(2):
            assert train.train(ablation(out).cells[1].config) == 0
            (out / RUN / "done.json").unlink()
    except BadConfig:
        raise
    except (ValueError, OSError) as error:
        raise AssertionError(f"no BadConfig: {error!r}") from error


def standing(out: Path) -> None:
    """What ablate.py looks at before it starts."""
    for cell in ablation(out).cells:
        progress(cell)
        check(cell)
    Attempts(out)


def reported(out: Path) -> None:
    """What report.py reads of the runs."""
    runs(ablation(out))
    board.measured(ablation(out).cells)
    for cell in ablation(out).cells:
        board._events(cell)


READERS = [looked, policy, standing, reported]
READERS += [pytest.param(reader, marks=pytest.mark.slow) for reader in (played, resumed)]


# bytes that are not as they were written


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_of_a_run_is_passed_over_or_refused(whole, name, reader):
    @settings(max_examples=25, **FUZZ)
    @given(st.data())
    def spoil(data):
        with copied(whole) as out:
            path = place(out, name)
            path.write_bytes(data.draw(spoilt_bytes(path.read_bytes())))
            refused(reader, out, naming="reach|checkpoint")

    spoil()


CONTENTS = {"nothing": b"", "half of a letter": b"\xc3", "a list": b"[1]", "too deep": b"[" * 20_000}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", [*CONTENTS, "a pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_other_contents_is_passed_over_or_refused_and_runs_nothing(whole, name, what, reader):
    with copied(whole) as out:
        marker = out / "MARKER"
        place(out, name).write_bytes(CONTENTS[what] if what in CONTENTS else bomb(marker))
        refused(reader, out, naming="reach|checkpoint")
        assert not marker.exists()


# contents that are whole, and wrong


def agreed(out: Path, content: bytes) -> None:
    """Another state.pt, to which the manifest agrees; the older checkpoint is gone."""
    folder = out / RUN / CHECKPOINT
    for older in checkpoint.checkpoints(out / RUN)[:-1]:
        shutil.rmtree(older)
    (out / RUN / "done.json").unlink()
    (folder / "state.pt").write_bytes(content)
    sign(folder)


def saved(state) -> bytes:
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


OF_STATES = [reader for reader in READERS if reader not in (standing, reported)]
STATES = {
    "a pickle": lambda marker: bomb(marker),
    "a checkpoint of torch": lambda marker: saved({"states": Bomb(marker)}),
    "a list": lambda marker: saved([1]),
    "an empty dict": lambda marker: saved({}),
    "no archive": lambda marker: b"PK\x03\x04" + b"\0" * 100,
    "nothing": lambda marker: b"",
}


@pytest.mark.parametrize("reader", OF_STATES)
@pytest.mark.parametrize("what", STATES)
def test_a_state_that_agrees_with_its_manifest_is_refused_if_it_is_none(whole, what, reader):
    with copied(whole) as out:
        marker = out / "MARKER"
        agreed(out, STATES[what](marker))
        assert refused(reader, out, naming="reach|checkpoint") or reader in (looked, played)
        assert not marker.exists()


def test_a_state_whose_configuration_holds_a_tensor_is_told_by_verify(whole, capsys):
    with copied(whole) as out:
        state = checkpoint.load(out / RUN / CHECKPOINT)
        agreed(out, saved(state | {"config": state["config"] | {"steps": torch.zeros(2)}}))
        assert look(["verify", str(out / RUN)]) == 1
        assert f"{CHECKPOINT}: its config is none (" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("reader", OF_STATES)
def test_a_state_with_entries_of_other_kinds_is_passed_over_or_refused(whole, reader):
    state = checkpoint.load(whole / RUN / CHECKPOINT)

    @settings(max_examples=1_000, **FUZZ)
    @given(spoilt_trees(state, [torch.zeros(2), torch.zeros(1, 1, dtype=torch.int64)]))
    def spoil(tree):
        with copied(whole) as out:
            agreed(out, saved(tree))
            refused(reader, out, naming="reach|checkpoint")

    spoil()


@pytest.mark.parametrize("reader", OF_STATES)
def test_a_manifest_with_entries_of_other_kinds_is_passed_over_or_refused(whole, reader):
    manifest = json.loads((whole / RUN / CHECKPOINT / "manifest.json").read_text())

    @settings(max_examples=15, **FUZZ)
    @given(spoilt_trees(manifest))
    def spoil(tree):
        with copied(whole) as out:
            (out / RUN / "done.json").unlink()
            write_manifest(out / RUN / CHECKPOINT, tree)
            refused(reader, out, naming="reach|checkpoint")

    spoil()


@pytest.mark.parametrize(
    "content", [b"", b"\x28\xb5\x2f\xfd", bomb(Path("MARKER")), b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 9]
)
def test_a_chunk_of_replay_that_agrees_with_its_checkpoint_is_refused_if_it_is_none(whole, content, monkeypatch):
    with copied(whole) as out:
        monkeypatch.chdir(out)
        folder, chunk = out / RUN / CHECKPOINT, place(out, "replay")
        state = checkpoint.load(folder)
        for entry in state["replay"]["files"]:
            if entry["file"] == chunk.name:
                entry["sha256"] = hashlib.sha256(content).hexdigest()
        chunk.write_bytes(content)
        agreed(out, saved(state))
        assert refused(resumed, out, naming="reach|checkpoint")
        played(out)
        assert not Path("MARKER").exists()


RECORDS = ["metrics.jsonl", "ledger.jsonl", "timing.jsonl", "eval.csv", "../../../attempts.jsonl"]
ROWS = """
[]
3
{}
{"st
{"step": "x"}
{"step": null, "touched": 1}
{"step": 20, "a/b": [[1]]}
{"step": "x", "a/b": [1]}
{"diverged": 0}
{"diverged": [0], "step": 1}
{"intervention": "reset", "touched": 1}
{"code": 1}
{"cell": [], "code": 1}
20
20,toy/reach,0,0,x,1,1,params
x,toy/reach,0,0,1.0,1,1,params
1e9,toy/reach,0,0,nan,0,0,
,,,,,,,
""".strip().splitlines()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", RECORDS)
def test_a_strange_row_of_a_record_is_passed_over_or_refused_by_the_report(whole, name, row):
    with copied(whole) as out:
        with place(out, name).open("a") as file:
            file.write(row + "\n")
        for reader in (standing, reported):
            refused(reader, out, naming=Path(name).name)


@pytest.mark.parametrize("row", ROWS)
def test_a_strange_row_of_the_ledger_that_a_yoke_follows_is_passed_over_or_refused(whole, row):
    with copied(whole) as out:
        with (out / RUN / "ledger.jsonl").open("a") as file:
            file.write(row + "\n")
        happenings.cache_clear()
        yoke = ["env=toy/reach", "interventions=[reset]", f"interventions.reset.when.yoke={out / RUN}"]
        refused(load, [*yoke, "interventions.reset.when.every=0"], naming="yoke")
