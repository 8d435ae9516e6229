"""TensorBoard's event files, written at once and from this thread: a disk that fails is no error of training."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from core.storage import Appending, Storage

_number = itertools.count()


class EventFile:
    """A new file of one folder's curves."""

    def __init__(self, folder: Path, storage: Storage, purge_step: int | None = None) -> None:
        """purge_step: what earlier files of the folder hold from this step on is hidden."""
        folder.mkdir(parents=True, exist_ok=True)
        begun = f"{time.time():.6f}"  # files are read in the order of their names: of two starts the later one counts
        name = f"events.out.tfevents.{begun}.{socket.gethostname()}.{os.getpid()}.{next(_number):06}"
        self._file = Appending(folder / name, storage, called=f"tensorboard/{folder.name}")
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def numbers(self, values: dict[str, float], step: int) -> None:
        """A point each of several curves."""
        self.add(Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]), step)

    def add(self, summary: Summary, step: int | None = None) -> None:
        self._write(Event(summary=summary, step=step))

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())
