"""Published tables: complete, and aggregating to the numbers that their papers print."""

from __future__ import annotations

import pytest

from core.report import published
from core.statistics import iqm, mean, median, optimality_gap
from envs.catalog import games, names

GAMES = tuple(f"atari/{name}" for name in games())


@pytest.mark.parametrize("name", published.names())
def test_a_table_names_its_source_and_known_tasks(name):
    table = published.load(name)
    assert table.title and table.source and set(table.returns) <= set(names())
    if next(iter(table.returns)).startswith("atari/"):
        assert set(table.returns) == set(GAMES)


def test_aggregates_are_those_in_print():
    """BBF's paper prints 0.917 and 2.247; of means of games an IQM is another number than of runs (1.139 and 1.045)."""
    bbf, sr_spr = (published.load(name).scores(GAMES) for name in ("bbf_rr8", "sr_spr"))
    assert float(median(bbf)) == pytest.approx(0.917, abs=5e-4) and float(mean(bbf)) == pytest.approx(2.247, abs=5e-4)
    assert [float(iqm(x)) for x in (bbf, sr_spr)] == pytest.approx([1.139, 0.700], abs=5e-4)
    assert [float(optimality_gap(x)) for x in (bbf, sr_spr)] == pytest.approx([0.311, 0.407], abs=5e-4)


def test_superhuman_games_are_counted_as_published():
    counts = {name: int((published.load(name).scores(GAMES) > 1).sum()) for name in ("sr_spr", "bbf_rr2", "bbf_rr8")}
    assert counts == {"sr_spr": 9, "bbf_rr2": 11, "bbf_rr8": 12}


@pytest.mark.parametrize(
    ("name", "wanted"), [("sac_rr1", 0.484), ("sac_rr32", 0.384), ("sac_resets_rr1", 0.411), ("sac_resets_rr32", 0.601)]
)
def test_means_of_sac_with_resets_are_those_of_the_released_curves(name, wanted):
    table = published.load(name)
    assert float(mean(table.scores(tuple(table.returns)))) == pytest.approx(wanted, abs=1e-3)


def test_a_misspelt_name_and_a_task_it_lacks_are_one_line():
    with pytest.raises(ValueError, match="published=drq_epss given; did you mean drq_eps?"):
        published.load("drq_epss")
    with pytest.raises(ValueError, match="published=der: has no dmc/walker-run"):
        published.load("der").scores(("dmc/walker-run",))
