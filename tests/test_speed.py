"""Every part of the speed benchmark runs; what it measures is nobody's promise."""

import pytest

from benchmarks import guards
from benchmarks.speed import PARTS


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("part", PARTS)
def test_it_gives_a_table(part, monkeypatch):
    monkeypatch.setattr(guards, "BIRTHS", 2)
    header, *rows = PARTS[part](1, 0.01)
    assert rows and all(len(row) <= len(header) for row in rows)
    assert all(cell for row in rows for cell in row[:2])
