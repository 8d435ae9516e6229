"""Everything a run leaves on disk, and how it goes on from there.

config.yaml             the resolved configuration
provenance.json         one entry per start: code, versions, machine, command; diff-*.patch is code not yet committed
metrics.jsonl, eval.csv, ledger.jsonl, timing.jsonl     see core/records.py
tensorboard/            see core/tensorboard.py
checkpoints/, replay/   see core/checkpoint.py
done.json               the summary of a finished run, and its digest
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from core import checkpoint, files
from core.config import Config, from_plain
from core.digest import digest
from core.evaluation import Result, mean_scores
from core.options import show
from core.provenance import changes, provenance
from core.records import Records, to_json
from core.replay_store import Replay
from core.storage import Storage
from core.tensorboard import Board

CONFIG, PROVENANCE, DONE, LOCK = "config.yaml", "provenance.json", "done.json", ".lock"
POINTS = 1_000  # of a curve in TensorBoard, which shows no more of it
SHOWN = 20  # differences told when a folder is refused


class RunFolder:
    """The folder of one run, held by one process until it is closed.

    with RunFolder(path, config, seeds=seeds, tasks=tasks) as folder:
        if folder.finished is None:
            saved = folder.resume()  # None: from the beginning
            folder.accept()
            ...  # folder.metrics(row), folder.save(step, state, replay)
            folder.finish(summary)
    """

    finished: dict[str, Any] | None  # the summary of a finished run
    changed: list[str]  # code, versions or machine, since the run was here last
    records: Records  # once resumed
    board: Board  # once resumed

    def __init__(
        self,
        path: str | Path,
        config: dict[str, Any],
        resume: Literal["strict", "exact", "force"] = "strict",
        *,
        seeds: Sequence[int],
        tasks: Sequence[str] = (),
        ignore: Collection[str] = (),
    ) -> None:
        """Create the folder or enter it again.

        config: plain data; `ignore` names its keys that may differ from the last time. Raises ValueError if the folder
        is in use, holds no run, or a run of another configuration and resume is not "force".
        """
        self.path, self.seeds, self.tasks = Path(path), tuple(seeds), tuple(tasks)
        self.storage, self._mode = Storage(), resume
        self._spacing = config.get("steps", 0) / POINTS
        self._settings = {name: value for name, value in config.items() if name not in ignore}
        self._open = ExitStack()
        with self._open:
            self._hold()
            self._forced = self._check(config, ignore, resume)
            self.finished = None if self._forced else read_summary(self.path)
            if self.finished is None:
                self._starts, self._start = files.read_json(self.path / PROVENANCE, [], list), _provenance()
                self._config = yaml.safe_dump(config, sort_keys=False)
                if not self._forced:
                    files.write(self.path / CONFIG, self._config)
            self._open = self._open.pop_all()

    def resume(self) -> dict | None:
        """Go back to the newest whole checkpoint, the records with it. -> what it holds; None: start from nothing.

        `changed` names what the start that saved it had otherwise: code, versions, hardware. With resume="force"
        records that have changed stay as they are, and the provenance says so. Raises ValueError if resume is "exact"
        and something has changed.
        """
        for line in self._forced:
            self.storage.say(f"resume=force: {line}")
        last = checkpoint.newest(self.path, records=self._mode != "force")
        state = checkpoint.load(last) if last else None
        self.changed = self._changes(state.get("start")) if state else []
        damaged = list(checkpoint.problems(last)) if last and self._mode == "force" else []
        for line in damaged:
            self.storage.say(f"{line}; it stays as it is")
        self._forced = self._forced + damaged
        checkpoint.tidy(self.path, last)
        self.records = self._open.enter_context(closing(Records(self.path, self.storage)))
        self.records.truncate(state["records"] if state else {}, bool(damaged))
        redrawn = checkpoint.step(last) + 1 if last else 0
        board = Board(self.path / "tensorboard", self.seeds, self.tasks, redrawn, self._spacing, self.storage)
        self.board = self._open.enter_context(closing(board))
        return state

    def forced(self, state: dict) -> bool:
        """Whether a run goes on from this state otherwise than it was saved: by resume=force, or with a configuration
        that was forced upon the folder since."""
        return self._mode == "force" or digest(state["config"]) != digest(self._settings)

    def accept(self) -> None:
        """The run fits what the folder holds: its start goes into the provenance, what is forced holds from now on.

        A configuration that does not fit has changed nothing until then. The old summary goes first, durably: beside
        a new configuration it would say that a run is finished that has not been.
        """
        self._sign()
        (self.path / DONE).unlink(missing_ok=True)
        files.sync(self.path)
        files.write(self.path / CONFIG, self._config)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """A row of metrics at row["step"]; its lists, one number per seed, are drawn too."""
        self.records.metrics(row)
        self.board.scalars({tag: value for tag, value in row.items() if isinstance(value, list)}, row["step"])

    def images(self, matrices: Mapping[str, Tensor], step: int) -> None:
        """Matrices with entries between -1 and 1, [seeds, height, width]; they are drawn, and not kept as numbers."""
        for tag, values in matrices.items():
            self.board.image(tag, values, step)

    def evaluation(self, results: Sequence[Result], *, step: int, task: str, updates: int, network: str) -> None:
        """The episodes of one evaluation, of all seeds."""
        self.records.evaluation(results, step=step, task=task, updates=updates, network=network)
        self.board.evaluation(task, mean_scores(results, self.seeds), step)

    def events(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the ledger."""
        for row in rows:
            self.records.event(row)

    def timing(self, row: Mapping[str, Any]) -> None:
        self.records.timing(row)

    def save(self, step: int, state: dict, replay: Replay) -> Path:
        """A checkpoint of the run as it stands, with its place in the records. -> its folder. Raises OSError."""
        ours = {"records": self.records.position(), "config": self._settings, "start": len(self._starts)}
        return checkpoint.save(self.path, step, state | ours, replay)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The run is over; entering the folder again finds this summary. -> it. Raises OSError."""
        self.records.position()
        files.write(self.path / DONE, _signed(summary))
        self.finished = dict(summary)
        return self.finished

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self) -> None:
        """Create the folder and lock it. The lock ends with the process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = [name for name in os.listdir(self.path) if not name.startswith(".")]
            if foreign and CONFIG not in foreign:
                raise ValueError(f"run_dir: {self.path} holds {foreign[0]} and no run; choose another folder")
            lock = self._open.enter_context((self.path / LOCK).open("a+"))
            files.lock(lock)
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
        except BlockingIOError:
            holder = (self.path / LOCK).read_text() or "another process"
            raise ValueError(f"run_dir: {self.path} is in use by {holder}; wait for it, or choose another") from None
        except OSError as error:
            if not (self.path / DONE).exists():  # a finished run is read, and that alone
                raise ValueError(f"run_dir: {self.path} cannot be used ({error.strerror}); choose another") from error

    def _check(self, config: dict[str, Any], ignore: Collection[str], resume: str) -> list[str]:
        """What differs from the configuration that is there, if the folder may be entered nevertheless."""
        if not (self.path / CONFIG).exists():
            return []
        try:
            changed = differing(read_config(self.path), config, ignore)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            if resume != "force":
                line = "cannot be read; resume=force puts the configuration of this command in its place"
                raise ValueError(f"run_dir: {self.path / CONFIG} {line}") from error
            changed = [f"{CONFIG} could not be read"]
        if changed and resume != "force":
            more = [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
            raise ValueError(
                f"run_dir: {self.path} holds a run of another configuration ({'; '.join(changed[:SHOWN] + more)}); "
                f"choose another folder, or go on in this one with resume=force"
            )
        saved = checkpoint.checkpoints(self.path)
        if saved and checkpoint.step(saved[-1]) > config.get("steps", checkpoint.step(saved[-1])):
            raise ValueError(
                f"steps: {config['steps']} given; {self.path} is at step {checkpoint.step(saved[-1])} already"
            )
        return changed

    def _changes(self, number: object) -> list[str]:
        """What the start of this number had otherwise."""
        known = self._starts[number] if type(number) is int and 0 <= number < len(self._starts) else None
        changed = changes(known, self._start) if known else []
        if changed and self._mode == "exact":
            raise ValueError(f"resume: exact given; since {self.path} was saved, {'; '.join(changed)} has changed")
        return changed

    def _sign(self) -> None:
        """Add this start to the provenance."""
        start = self._start | ({"forced": self._forced} if self._forced else {})
        if patch := start.pop("patch", ""):
            files.write(self.path / start["diff"], patch)
        else:
            del start["diff"]
        files.write(self.path / PROVENANCE, json.dumps([*self._starts, start], indent=1))


def _provenance() -> dict[str, Any]:
    """Of this start; a patch of the code has a name, by what it holds."""
    start = provenance()
    if start["diff"]:
        name = f"diff-{hashlib.sha256(start['diff'].encode()).hexdigest()[:8]}.patch"
        start["patch"], start["diff"] = start["diff"], name
    return start


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved configuration in a run folder. Raises ValueError if it cannot be read."""
    try:
        tree = yaml.safe_load((folder / CONFIG).read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG}: cannot be read; it is not the yaml that a run writes") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{folder / CONFIG}: cannot be read; it holds no settings")
    return tree


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run. Raises ValueError if it is not as it was written."""
    done = files.read_json(folder / DONE)
    if done is None:
        return None
    summary = {name: value for name, value in done.items() if name != "sha256"}
    if summary == done:
        raise ValueError(f"{folder / DONE}: has no digest: another version wrote it, or it is damaged")
    if to_json(done) != _signed(summary):
        raise ValueError(f"{folder / DONE}: its content has changed; remove it, and the same command goes on without")
    return summary


def _signed(summary: Mapping[str, Any]) -> str:
    return to_json({**summary, "sha256": hashlib.sha256(to_json(summary).encode()).hexdigest()})


def config_of(folder: Path) -> Config:
    """The configuration of a run. Raises ValueError, naming the file, if it is none of this version."""
    tree = read_config(folder)
    with files.reading(folder / CONFIG):
        return from_plain(tree)


def differing(old: dict[str, Any], new: dict[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """ "key was A, now B" for every setting that differs and is not in `ignore`.

    The order of interventions counts; which GPU of several does not.
    """
    before, now = _flat(old), _flat(yaml.safe_load(yaml.safe_dump(new, sort_keys=False)))
    changed = [key for key in before | now if before.get(key) != now.get(key) and key.partition(".")[0] not in ignore]
    return [f"{key} was {show(before.get(key))}, now {show(now.get(key))}" for key in changed]


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys -> values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "device":
            value = value.partition(":")[0]
        if key == "interventions":
            flat[key] = [entry["name"] for entry in value]
            value = {entry["name"]: entry for entry in value}
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in _flat(value).items()}
        else:
            flat[key] = value
    return flat
