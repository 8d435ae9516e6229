"""A terminal that takes no more: lines are dropped, nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from core.terminal import Terminal

TALKING = "import sys\n{}print('to output')\nprint('to error', file=sys.stderr)"
FORGIVING = "from core.terminal import forgiving\nforgiving()\n"
HERE = Path(train.__file__).parent
RUN = ["agent=dqn", "env=toy/chain", "net.width=8", "agent.batch_size=4", "steps=60", "warmup=20", "compile=false"]


def test_what_it_cannot_take_is_dropped_and_what_it_can_take_again_is_written(tmp_path):
    full, room = os.open("/dev/full", os.O_WRONLY), os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    number = os.dup(full)
    with open(number, "w", 1, closefd=False) as stream:  # line by line, as standard error is
        terminal = Terminal(stream)
        print("one", file=terminal)
        print("two", file=terminal, flush=True)
        os.dup2(room, number)  # the same terminal, with room again
        print("three", file=terminal)
        assert (tmp_path / "log").read_text() == "three\n"
        assert not terminal.isatty() and terminal.encoding.lower() == "utf-8"


@pytest.mark.parametrize(("before", "code"), [(FORGIVING, 0), ("", 1)], ids=["forgiving", "plain"])
def test_a_process_ends_as_if_it_had_been_read(before, code):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", TALKING.format(before)]
        done = subprocess.run(command, stdout=full, stderr=full, cwd=HERE)
    assert (done.returncode != 0) == code


def test_a_run_whose_log_lies_on_a_full_disk_goes_on_to_its_end(tmp_path):
    command = [sys.executable, HERE / "train.py", *RUN, f"run_dir={tmp_path}"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=full)
    assert done.returncode == 0 and (tmp_path / "done.json").exists()
