"""The command that measures a GPU keeps its time, and one failure is its own (benchmarks/gpu.py, dry run on a CPU)."""

import contextlib
import time

import pytest

from benchmarks import gpu


def sleeps(device):
    """A check that never ends."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(60)


def fails(device):
    """A check that finds something."""
    raise AssertionError(f"all is lost on {device}")


def passes(device):
    """A check that is content."""
    return "well"


def test_what_hangs_is_cut_off_and_what_comes_after_is_named(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "CHECKS", (passes, fails, sleeps, passes))
    began = time.monotonic()
    assert gpu.main(["device=cpu", "parts=checks", "minutes=0.01"]) == 1
    assert time.monotonic() - began < 5
    assert [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| A check")] == [
        ["| A check that is content.", "passed", "well |"],
        ["| A check that finds something.", "FAILED", "AssertionError: all is lost on cpu |"],
        ["| A check that never ends.", "cut off", " |"],
        ["| A check that is content.", "not reached", " |"],
    ]


def test_a_row_that_hangs_or_fails_leaves_the_others_measured(monkeypatch, capsys):
    sac, dqn, impala = gpu.SIZES
    calls = iter([lambda: None, sleeps, None])

    def calls_of(row, device):
        update = next(calls)
        if update is None:
            raise RuntimeError("no such kernel")
        return (lambda: update(device) if update is sleeps else update()), lambda: None

    monkeypatch.setattr(gpu, "calls_of", calls_of)
    rows = [gpu.Row(size, 1, "eager", "float32") for size in (sac, impala, dqn)]
    monkeypatch.setattr(gpu, "rows", lambda graphs: rows)
    ends = iter([3600, 0.5, 3600])
    before = gpu.before
    monkeypatch.setattr(gpu, "before", lambda end: before(time.monotonic() + next(ends)))
    assert gpu.main(["device=cpu", "parts=updates", "seconds=0.001"]) == 0
    shown = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    measured, cut, failed = (row for row in shown if row[2:4] == ["eager", "float32"])
    assert float(measured[4]) >= 0 and cut[4] == "cut off" and failed[4] == "RuntimeError: no such kernel"


def test_draws_are_measured_on_the_device_or_the_table_says_why_not(monkeypatch, capsys):
    monkeypatch.setattr(gpu.draws, "FRAMES_HELD", 1_200)
    assert gpu.main(["device=cpu", "parts=draws", "seconds=0.001"]) == 0
    shown = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| frames")]
    assert len(shown) == 5 and all(float(row[1]) > 0 for row in shown)
    assert gpu.main(["device=cpu", "parts=draws", "minutes=0"]) == 0
    assert "| not reached |" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["part=checks", "parts=rows", "device=cuda"])
def test_what_cannot_be_measured_is_refused_in_one_line(argument, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main([argument]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
