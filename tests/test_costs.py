"""What methods cost: the counts equal those by hand, and the page shows what is kept."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.claims import Kept
from benchmarks.costs import COLUMNS, FILE, counted, main, table, weighed
from benchmarks.findings import CONFIGS, KEPT
from core.ablation import read

CELLS = {cell.arm: cell for cell in read(CONFIGS / "chunks.yaml").cells}
FORWARD = 2 * 32 * (64 * 100 + 100 * 100 + 100 * 10)  # a batch of 32 through 64, 100, 100 and 10 units
UPDATE = 3 * FORWARD - 2 * 32 * 64 * 100  # forward, weights, inputs; but nobody asks for the gradient of images
WEIGHTS = 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10


def test_operations_and_memory_are_those_by_hand():
    # weights as they are and as they were born, two slots of the optimizer, and a count of updates for each tensor
    assert weighed(CELLS["plain_warm"]) == (UPDATE, 0, 4 * (4 * WEIGHTS + 6))
    gains = 2 * 2 * 100  # and shifts; as many running means and variances, which are carried once
    assert weighed(CELLS["cold"]) == (UPDATE, 0, 4 * (4 * (WEIGHTS + gains) + 10 + gains))
    assert weighed(CELLS["dash"])[:2] == (UPDATE, 8 * UPDATE)  # DASH looks at eight batches


def test_what_is_kept_is_what_was_counted_and_the_page_shows_it(capsys):
    kept = {row["arm"]: row for row in csv.DictReader(FILE.open())}
    assert list(kept) == list(CELLS) and set(next(iter(kept.values()))) == set(COLUMNS)
    for arm in ("warm", "dash"):
        for name, value in counted(CELLS[arm], Kept(KEPT / "chunks.csv")).items():
            assert float(kept[arm][name]) == pytest.approx(value, rel=5e-3)
    assert main([]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown == table(list(kept.values())) and shown in Path("docs/testbeds.md").read_text()
