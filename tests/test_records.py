"""Records: exact, deterministic, and cut back to where a checkpoint was."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch

from core.evaluation import Result
from core.records import COLUMNS, Records

AWKWARD = [0.1, 1e-45, -0.0, 1 / 3, 5e-324, 1.7976931348623157e308, 123456789.123456789]


@pytest.fixture
def records(tmp_path):
    records = Records(tmp_path)
    yield records
    records.close()


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def fill(records, step):
    records.metrics({"step": step, "loss": [step / 3, step / 7]})
    records.event({"step": step, "touched": 2})
    records.evaluation([Result(0, 0, step / 9, 10)], step=step, task="toy/chain", updates=step, network="params")
    records.timing({"step": step, "seconds": 1.5})


def test_every_float_reads_back_to_the_same_bits(records, tmp_path):
    records.metrics({"values": AWKWARD})
    records.evaluation(
        [Result(0, i, x, 1) for i, x in enumerate(AWKWARD)], step=0, task="t", updates=0, network="params"
    )
    [row] = rows(tmp_path / "metrics.jsonl")
    with (tmp_path / "eval.csv").open() as file:
        scores = [float(row["return"]) for row in csv.DictReader(file)]
    assert list(map(float.hex, row["values"])) == list(map(float.hex, scores)) == list(map(float.hex, AWKWARD))


def test_float32_is_written_as_the_number_it_is(records, tmp_path):
    records.metrics({"t": torch.tensor([0.1]), "n": np.float32(0.1), "s": np.int64(3), "l": [torch.tensor(0.1)]})
    exact = float(np.float32(0.1))
    assert rows(tmp_path / "metrics.jsonl") == [{"t": [exact], "n": exact, "s": 3, "l": [exact]}]


def test_nan_and_infinities_are_strings_so_that_every_line_is_json(records, tmp_path):
    records.metrics({"loss": [math.nan, math.inf, -math.inf, 1.0], "deep": {"x": torch.tensor(math.nan)}})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"loss": ["NaN", "Infinity", "-Infinity", 1.0], "deep": {"x": "NaN"}}
    assert list(map(float, row["loss"]))[1:] == [math.inf, -math.inf, 1.0]


def test_eval_csv_has_one_row_per_episode_under_the_documented_columns(records, tmp_path):
    results = [Result(0, 0, 1.5, 10), Result(0, 1, 2.0, 11), Result(4, 0, -3.0, 12)]
    records.evaluation(results, step=500, task="atari/pong", updates=70, network="target")
    lines = (tmp_path / "eval.csv").read_text().splitlines()
    assert lines[0] == "step,task,seed,episode,return,length,updates,network" == ",".join(COLUMNS)
    assert lines[1:] == [
        "500,atari/pong,0,0,1.5,10,70,target",
        "500,atari/pong,0,1,2.0,11,70,target",
        "500,atari/pong,4,0,-3.0,12,70,target",
    ]


def test_a_position_is_the_length_of_each_file_on_disk(records, tmp_path):
    fill(records, 1)
    position = records.position()
    assert position == {
        name: (tmp_path / name).stat().st_size for name in ("metrics.jsonl", "eval.csv", "ledger.jsonl")
    }


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_a_run_cut_back_to_its_checkpoint_ends_with_the_rows_of_an_uninterrupted_one(tmp_path, killed_after):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        records = Records(folder)
        for step in (1, 2):
            fill(records, step)
        position = records.position()
        for step in (3, 4, 5) if folder == whole else (3, 4, 5)[:killed_after]:
            fill(records, step)
        records.close()
    with (cut / "eval.csv").open("ab") as file:
        file.write(b"3,toy/ch")  # killed in mid-line
    records = Records(cut)
    records.truncate(position)
    for step in (3, 4, 5):
        fill(records, step)
    records.close()
    for name in ("metrics.jsonl", "eval.csv", "ledger.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_without_a_checkpoint_everything_but_timing_starts_anew(records, tmp_path):
    fresh = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "eval.csv", "ledger.jsonl")}
    fill(records, 1)
    records.truncate({})
    assert {name: (tmp_path / name).read_bytes() for name in fresh} == fresh
    assert len(rows(tmp_path / "timing.jsonl")) == 1


def test_timing_is_kept_but_for_a_half_line(tmp_path):
    (tmp_path / "timing.jsonl").write_bytes(b'{"step": 1}\n{"st')
    records = Records(tmp_path)
    records.timing({"step": 2})
    records.close()
    assert rows(tmp_path / "timing.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_file_that_lost_rows_is_not_taken_for_whole(records):
    fill(records, 1)
    position = records.position()
    with pytest.raises(ValueError, match="metrics.jsonl: shorter than the .* bytes"):
        records.truncate(position | {"metrics.jsonl": position["metrics.jsonl"] + 1})
