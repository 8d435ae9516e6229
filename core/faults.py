"""What becomes of a member that meets a number which is not finite: it is named, told, and kept to be shown again.

    faults/seed_3-update_1234.pt     the batch of that update and the learner as it was kept

`python train.py replay_fault=FILE` goes through that update again. The engine has frozen the member in the same update;
here the host learns of it. On a CPU at once; a GPU is asked without being waited for, and the answer is read when
metrics are written or the run is saved.

Networks are updated one after the other (core/engine.py): those that came before the fault have taken their step
already when they are kept.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core import assemble, files
from core.config import Config, from_plain, resolved
from core.engine import Engine
from core.nonfinite import Bad, first_bad
from core.packing import packed
from core.randomness import draw
from core.spec import EnvSpec
from core.state import Batch, State, Tensors, clone, member

FOLDER, FORMAT = "faults", 1
ENTRIES = ("config", "spec", "seed", "batch", "states")  # of such a file, beside its format


class Fault(NamedTuple):
    """A member that was frozen, and what it was given in the update that froze it."""

    member: int  # its position
    batch: Batch  # leaves [B, ...]; "update" and (agent) "step" say where the run was


class _Look(NamedTuple):
    """One update's answer, on its way from the device."""

    alive: Tensor
    arrived: torch.cuda.Event
    batch: Batch
    clock: tuple[int, int]  # update, agent step


class Watch:
    """Notices members that the engine has frozen, with the batch that did it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waits = engine.device.type == "cuda"
        self._known = engine.alive.tolist()
        self._looks: deque[_Look] = deque()
        self._found: list[Fault] = []

    def state_dict(self) -> dict:
        """What is known, and what nobody has been told of yet: when faults are told does not depend on when a run is
        saved. Waits for the device."""
        self._read_all()
        return {"known": list(self._known), "found": [fault._asdict() for fault in self._found]}

    def load_state_dict(self, saved: dict) -> None:
        """Raises ValueError for what is of other members than these."""
        known, device = list(saved["known"]), self._engine.device
        found = [Fault(f["member"], {k: v.to(device) for k, v in f["batch"].items()}) for f in saved["found"]]
        members = {len(known)} | {fault.member + 1 for fault in found}
        if len(known) != len(self._known) or max(members) > len(known) or {type(alive) for alive in known} - {bool}:
            raise ValueError(f"known: {known} given; expected whether each of {len(self._known)} members lives")
        self._known, self._found = known, found

    def look(self, batch: Batch, update: int, step: int) -> bool:
        """After an update with this batch, leaves [n, B, ...]. -> whether there is something to take at once"""
        if not self._waits:
            alive = self._engine.alive.tolist()
            return alive != self._known and self._compare(alive, batch, (update, step))
        answer = _host_memory(len(self._known))
        answer.copy_(self._engine.alive, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._looks.append(_Look(answer, arrived, batch, (update, step)))
        while self._looks and self._looks[0].arrived.query():
            self._read()
        return False

    def take(self) -> list[Fault]:
        """All that was noticed since the last call. Waits for the device."""
        self._read_all()
        found, self._found = self._found, []
        return found

    def freeze(self, index: int, batch: Batch, update: int, step: int) -> bool:
        """The member's world has shown it what is not finite: it learns no more. batch: what it was shown, [1, ...].

        -> whether that is new
        """
        new = self._known[index]
        if new:
            self._known[index] = False
            self._engine.alive[index] = False
            self._found.append(Fault(index, _dated(batch, (update, step))))
        return new

    def _read_all(self) -> None:
        while self._looks:
            self._looks[0].arrived.synchronize()
            self._read()

    def _read(self) -> None:
        look = self._looks.popleft()
        self._compare(look.alive.tolist(), look.batch, look.clock)

    def _compare(self, alive: list[bool], batch: Batch, clock: tuple[int, int]) -> bool:
        new = [i for i, was in enumerate(self._known) if was and not alive[i]]
        self._found += [Fault(i, _dated(clone(member(batch, i)), clock)) for i in new]
        self._known = [was and now for was, now in zip(self._known, alive, strict=True)]
        return bool(new)


def _host_memory(members: int) -> Tensor:
    """Where a GPU can write without being waited for."""
    return torch.empty(members, dtype=torch.bool, pin_memory=True)


def _dated(batch: Batch, clock: tuple[int, int]) -> Batch:
    device = next(iter(batch.values())).device
    update, step = (torch.tensor(count, device=device) for count in clock)
    return batch | {"update": update, "step": step}


def cause(engine: Engine, fault: Fault) -> Bad | None:
    """The first tensor of the member's update that is not finite; None if the same update, made eagerly, has none."""
    states = clone(member(engine.states, fault.member))
    return first_bad(engine.learner, states, fault.batch, _noise(engine, fault.member, int(fault.batch["update"])))


def keep(path: Path, config: Config, engine: Engine, spec: EnvSpec, fault: Fault) -> Path:
    """Write all that `replay` needs. -> path. Raises OSError where that cannot be done."""
    states = member(engine.states, fault.member)
    saved = {
        "format": FORMAT,
        "config": resolved(config),
        "spec": dataclasses.asdict(spec),
        "seed": config.seeds[fault.member],
        "batch": fault.batch,
        "states": {name: state._asdict() for name, state in states.items()},
    }
    files.make_folder(path.parent)
    files.write(path, packed(saved, "fault"))
    return path


def replay(path: Path) -> int:
    """Go through a kept update again and say what is found. -> exit code: 1 for a fault, 0 where there is none

    Raises ValueError, one line, for any file that `keep` has not written.
    """
    saved = load(path)
    with files.reading(path):
        config, spec = from_plain(saved["config"]), EnvSpec(**{k: _tuples(v) for k, v in saved["spec"].items()})
        config = dataclasses.replace(config, seeds=(saved["seed"],), device="cpu")
        learner = assemble.agent(config, spec)
        engine = Engine(learner, config.seeds, learner.settings.batch_size, compile=False, precision=config.precision)
        states = {name: State(**fields) for name, fields in saved["states"].items()}
        update = int(saved["batch"]["update"])
        bad = first_bad(learner, states, saved["batch"], _noise(engine, 0, update))
    where = f"seed {saved['seed']}, update {update}"
    print(f"{where}: {bad or 'every number is finite here, in an eager update on a CPU'}")
    return 1 if bad else 0


def load(path: Path) -> dict[str, Any]:
    """What `keep` has written. Raises ValueError, one line, for any other file."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of a stranger's pickle
            saved = torch.load(path, weights_only=True, map_location="cpu")
        missing = [name for name in ENTRIES if name not in saved]
        if saved["format"] != FORMAT:
            problem = f"in format {saved['format']}; this version reads format {FORMAT}"
        elif missing:
            problem = f"holds no {' and no '.join(missing)}"
        else:
            return saved
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except Exception as error:  # whatever a foreign file makes of the reader
        problem = f"cannot be read ({type(error).__name__})"
    raise ValueError(f"replay_fault: {path}: {problem}; expected a file from the folder {FOLDER}/ of a run")


def _noise(engine: Engine, index: int, update: int) -> Tensors:
    count = torch.full((), update, device=engine.device)
    return member(draw(engine.noise, engine.keys_of("update"), count), index)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
