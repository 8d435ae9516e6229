"""Findings: what is kept of the runs, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from benchmarks import findings
from benchmarks.claims import CLAIMS, COLUMNS, Kept
from core.ablation import read
from core.command_line import load
from testbeds import __main__ as testbeds

SMALL = """
tasks: [testbed/permuted_pixels]
seeds: [0, 1]
settings: {steps: 120, env.stage: 40, net.width: 16, compile: false, observe_every: 40, rank_every: 40}
arms: {base: [], l2: [l2]}
"""


@pytest.fixture
def kept(tmp_path) -> Kept:
    """Eleven stages of two seeds: accuracy falls by 0.01 a stage with base and stays with fixed."""
    lines = [",".join(["arm", "seed", "step", *COLUMNS])]
    for arm, slope in (("base", -0.01), ("fixed", 0.0)):
        for seed in (0, 1):
            for stage in range(11):
                values = dict.fromkeys(COLUMNS, "")
                values["online"] = str(round(0.9 + 0.02 * seed + slope * stage, 4))
                if stage % 5 == 0:
                    values["dead"] = str(stage)
                lines.append(",".join([arm, str(seed), str(stage * 100), *values.values()]))
    path = tmp_path / "kept.csv"
    path.write_text("\n".join(lines) + "\n")
    return Kept(path)


def test_what_was_kept_is_by_arm_seed_and_stage(kept):
    assert kept.arms == ["base", "fixed"] and kept.seeds == [0, 1]
    assert kept("base", "online").shape == (2, 11) and kept("base", "dead").tolist() == [[0, 5, 10]] * 2
    assert kept.last("base", "online") == pytest.approx([0.8, 0.82])
    assert kept.mean("base", "online") == pytest.approx([0.85, 0.87])
    # of ten stages behind the first, the last two (0.9 and 1.0 of the slope) less the first two (0.1 and 0.2)
    assert kept.change("base", "online") == pytest.approx([-0.08, -0.08])
    assert kept.change("fixed", "online") == pytest.approx([0, 0])
    with pytest.raises(ValueError, match="base has no rank"):
        kept("base", "rank")


def test_the_interval_is_students_and_the_verdict_its_side():
    effect = np.array([0.3, 0.1, 0.4, 0.2, 0.35])
    wanted = stats.ttest_1samp(effect, 0).confidence_interval(0.95)
    assert findings.interval(effect) == pytest.approx((wanted.low, wanted.high))
    assert findings.verdict(*findings.interval(effect)) == "reproduced"
    assert findings.verdict(*findings.interval(-effect)) == "**contradicted**"
    assert findings.verdict(*findings.interval(effect - 0.27)) == "not reproduced"


def test_the_numbers_kept_are_those_of_the_runs(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    cell = read(path, tmp_path / "out").cells[0]
    assert testbeds.train(load(cell.arguments)) == 0
    rows = [dict(zip(["arm", "seed", "step", *COLUMNS], row, strict=True)) for row in findings.rows_of(cell)]
    assert [(row["step"], row["seed"]) for row in rows] == [(str(s), str(i)) for s in (40, 80, 120) for i in (0, 1)]
    scores = [line.split(",") for line in (cell.folder / "eval.csv").read_text().splitlines()[1:]]
    assert [float(row["online"]) for row in rows] == pytest.approx([float(score[4]) for score in scores], abs=1e-3)
    assert all(float(row["norm"]) > 1 and float(row["rank"]) > 1 and 0 <= float(row["dead"]) <= 1 for row in rows)
    assert {row["trainability"] for row in rows} == {""}


def test_every_claim_is_about_arms_of_its_ablation_and_the_page_is_made_of_the_kept_numbers():
    for name in findings.ABLATIONS:
        arms = yaml.safe_load((findings.CONFIGS / f"{name}.yaml").read_text())["arms"]
        assert set(Kept(findings.KEPT / f"{name}.csv").arms) == set(arms)
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    assert Path("docs/findings.md").read_text() == findings.page()


@pytest.mark.parametrize("words", [["--help"], ["rnu"], ["run", "onyl=chunks"], ["run", "only=chunk"]])
def test_what_is_misspelt_runs_and_writes_nothing(words, monkeypatch, capsys):
    monkeypatch.setattr(findings, "run", None)
    monkeypatch.setattr(findings.files, "write", None)
    assert findings.main(words) == 2
    assert "python -m benchmarks.findings run [only=NAME,...]" in capsys.readouterr().err
