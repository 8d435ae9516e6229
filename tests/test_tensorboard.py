"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from core.run_folder import POINTS
from core.tensorboard import Board

TASK = "dmc/walker-walk"


def read(folder):
    return EventAccumulator(str(folder)).Reload()


def curve(folder, tag):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def draw(board, steps):
    for step in steps:
        board.scalars({"critic/loss": [step * 1.0, step * 3.0]}, step)


def test_seeds_have_equal_tags_in_their_own_folders_and_the_aggregate_is_their_mean(tmp_path):
    board = Board(tmp_path, seeds=(0, 7))
    draw(board, (1, 2))
    board.close()
    assert curve(tmp_path / "seed_0", "critic/loss") == [(1, 1.0), (2, 2.0)]
    assert curve(tmp_path / "seed_7", "critic/loss") == [(1, 3.0), (2, 6.0)]
    assert curve(tmp_path / "aggregate", "critic/loss") == [(1, 2.0), (2, 4.0)]


def test_a_seed_without_a_value_gets_no_point_and_does_not_hide_the_others(tmp_path):
    board = Board(tmp_path, seeds=(0, 1))
    board.scalars({"train/return": [float("nan"), 4.0]}, 1)
    board.scalars({"train/return": [float("nan"), float("nan")]}, 2)
    board.scalars({"train/return": [2.0, 6.0]}, 3)
    board.close()
    assert curve(tmp_path / "seed_0", "train/return") == [(3, 2.0)]
    assert curve(tmp_path / "aggregate", "train/return") == [(1, 4.0), (3, 4.0)]


def test_a_matrix_is_a_picture_blue_below_zero_white_at_it_and_red_above(tmp_path):
    board = Board(tmp_path, seeds=(0, 1))
    board.image("q/entk_image", torch.tensor([[[-1.0, 0.0], [0.5, 2.0]], [[math.nan] * 2] * 2]), 3)
    board.close()
    (event,) = read(tmp_path / "seed_0").Images("q/entk_image")
    pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 3 and pixels.shape == (8, 8, 3)
    assert [pixels[i, j].tolist() for i in (3, 4) for j in (3, 4)] == [
        [0, 0, 255],
        [255, 255, 255],
        [255, 127, 127],
        [255, 0, 0],
    ]
    assert read(tmp_path / "seed_1").Tags()["images"] == []  # its network overflows


def test_the_aggregate_of_an_evaluation_is_the_iqm_with_a_band_around_it(tmp_path):
    board = Board(tmp_path, seeds=range(5), tasks=(TASK,))
    returns = [1.0, 2.0, 3.0, 4.0, 100.0]
    board.evaluation(TASK, returns, 10)
    board.close()
    found = {
        tag: read(tmp_path / "aggregate").Scalars(f"evaluation/{TASK}/{tag}")[0].value for tag in ("iqm", "low", "high")
    }
    assert found["iqm"] == pytest.approx(stats.trim_mean(returns, 0.25))
    assert 1.0 <= found["low"] < found["iqm"] < found["high"] <= 100.0
    assert curve(tmp_path / "seed_4", f"evaluation/{TASK}/return") == [(10, 100.0)]


def test_each_task_has_a_margin_chart_of_its_iqm(tmp_path):
    Board(tmp_path, seeds=(0,), tasks=(TASK,)).close()
    [event] = read(tmp_path / "aggregate").Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    [chart] = layout.category[0].chart
    series = chart.margin.series[0]
    tags = [f"evaluation/{TASK}/{name}" for name in ("iqm", "low", "high")]
    assert (chart.title, [series.value, series.lower, series.upper]) == (TASK, tags)


def test_what_a_killed_process_drew_after_its_checkpoint_is_hidden(tmp_path):
    killed = Board(tmp_path, seeds=(0, 1))
    draw(killed, (1, 2, 3, 4))
    resumed = Board(tmp_path, seeds=(0, 1), purge_step=3)
    draw(resumed, (3,))
    assert [step for step, _ in curve(tmp_path / "seed_1", "critic/loss")] == [1, 2, 3]
    assert [step for step, _ in curve(tmp_path / "aggregate", "critic/loss")] == [1, 2, 3]


def test_a_torn_event_file_does_not_hide_what_comes_after(tmp_path):
    killed = Board(tmp_path, seeds=(0,))
    draw_one = [(1, [1.0]), (2, [2.0])]
    for step, values in draw_one:
        killed.scalars({"loss": values}, step)
    killed.close()
    [torn] = (tmp_path / "seed_0").iterdir()
    torn.write_bytes(torn.read_bytes()[:-7])
    resumed = Board(tmp_path, seeds=(0,), purge_step=2)
    resumed.scalars({"loss": [2.5]}, 2)
    resumed.close()
    assert curve(tmp_path / "seed_0", "loss") == [(1, 1.0), (2, 2.5)]


def test_a_value_for_each_seed_is_asked_for(tmp_path):
    board = Board(tmp_path, seeds=(0, 1))
    with pytest.raises(ValueError):
        board.scalars({"loss": [1.0]}, 0)
    board.close()


def test_ten_million_steps_fit_into_twenty_megabytes(tmp_path):
    """As a run with the default options reports them: a row of losses and one of diagnostics every thousand steps."""
    steps, tags = 10_000_000, [f"critic/a_diagnostic_of_some_length_{i:03}" for i in range(120)]
    board = Board(tmp_path, seeds=(0,), tasks=(TASK,), spacing=steps / POINTS)
    for step in range(1_000, steps + 1, 1_000):
        board.scalars({tag: [1.0] for tag in tags}, step)
        if step % 5_000 == 0:
            board.evaluation(TASK, [1.0], step)
    board.close()
    assert sum(path.stat().st_size for path in tmp_path.rglob("events*")) < 20e6
    drawn = curve(tmp_path / "seed_0", tags[0])
    assert len(drawn) == POINTS and drawn[-1][0] > steps - 2 * steps / POINTS
