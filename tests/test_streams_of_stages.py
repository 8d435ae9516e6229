"""Supervised streams: what a stage holds is a function of the seed and its index, and is what the papers say."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from core import rooms
from core.randomness import host_generator
from images import load

DIGITS = load("digits")


def stream(name: str, **settings):
    return importlib.import_module(f"testbeds.streams.{name}").Settings(**settings)


def test_every_stream_has_a_name():
    assert "testbed/warm_start" in rooms.env_names()
    assert set(rooms.streams()) >= {"permuted_pixels", "random_labels", "chunks", "large_means"}


@pytest.mark.parametrize("name", rooms.streams())
def test_a_stage_is_a_function_of_seed_and_index_whatever_was_asked_before(name):
    one, other = stream(name), stream(name)
    for index in (3, 0, 2):
        one.at(0, index)
    for index in (0, 2):
        a, b, another = one.at(0, index), other.at(0, index), one.at(1, index)
        assert all((x == y).all() and x.dtype == y.dtype for x, y in zip(a[:4], b[:4], strict=True))
        assert a.arrived == b.arrived and sum(a.arrived) in (0, len(a.inputs))
        assert len(a.inputs) == len(a.targets) and len(a.test_inputs) == len(a.test_targets)
        assert any(x.shape != y.shape or (x != y).any() for x, y in zip(a[:4], another[:4], strict=True))


def test_permuted_pixels_keep_labels_and_the_values_of_every_image():
    s = stream("permuted_pixels")
    first, second = s.at(0, 0), s.at(0, 1)
    assert (first.targets == second.targets).all() and (first.inputs != second.inputs).any()
    assert (np.sort(first.inputs.reshape(-1, 64)) == np.sort(second.inputs.reshape(-1, 64))).all()
    # training and test images are permuted alike: a pixel that is dark in all images is dark in both
    dark = (DIGITS.train.reshape(-1, 64).max(0) == 0).sum()
    assert dark and ((first.inputs.reshape(-1, 64).max(0) == 0).sum()) == dark
    silent = first.inputs.reshape(-1, 64).max(0) == 0
    assert (first.test_inputs.reshape(-1, 64)[:, silent] == 0).mean() > 0.99


def test_random_labels_draw_a_share_anew_and_keep_the_others():
    s = stream("random_labels", share=0.25)
    before, after = s.at(0, 3).targets, s.at(0, 4).targets
    assert 0.15 < (before != after).mean() <= 0.25  # one in ten of those drawn is drawn as it was
    whole = stream("random_labels")
    assert 0.85 < (whole.at(0, 0).targets != whole.at(0, 1).targets).mean() < 0.95
    assert (s.at(0, 0).inputs == s.at(0, 4).inputs).all()


def test_a_warm_start_is_on_the_first_part_with_labels_of_other_classes():
    s = stream("warm_start", share=0.1, noise=0.5)
    part, whole = s.at(0, 0), s.at(0, 1)
    assert len(part.targets) == 144 and len(whole.targets) == 1_437
    assert (part.inputs == whole.inputs[:144]).all()  # what was seen is seen again
    assert (part.targets != whole.targets[:144]).mean() == 0.5
    assert (part.test_targets == DIGITS.test_labels).all()


def test_chunks_add_up_or_follow_each_other():
    s, last = stream("chunks", chunks=7), stream("chunks", chunks=7, keep="last")
    sizes = [len(s.at(0, i).targets) for i in range(7)]
    assert sizes == [1_437 * (i + 1) // 7 for i in range(7)]
    parts = np.concatenate([last.at(0, i).inputs for i in range(7)])
    assert (parts == s.at(0, 6).inputs).all() and (s.at(0, 9).inputs == parts).all()


def test_data_that_add_up_say_which_of_them_came_when():
    for keep in ("all", "last"):
        s = stream("chunks", chunks=4, keep=keep, images=102)
        sizes = [25, 26, 25, 26]
        for index in range(6):
            last = min(index, 3)
            assert list(s.at(0, index).arrived) == (sizes[: last + 1] if keep == "all" else sizes[last : last + 1])
    s = stream("warm_start", share=0.25, images=102)
    assert [s.at(0, index).arrived for index in range(3)] == [(26,), (26, 76), (26, 76)]
    assert stream("warm_start", share=1.0, images=102).at(0, 1).arrived == (102,)
    assert stream("permuted_pixels").at(0, 1).arrived == stream("class_incremental").at(0, 1).arrived == ()


def test_the_noise_of_chunks_falls_to_nothing():
    s, clean = stream("chunks", chunks=5, noise=0.4), stream("chunks", chunks=5)
    wrong = [(s.at(0, i).targets != clean.at(0, i).targets).mean() for i in range(5)]
    assert wrong == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0], abs=0.01)


def test_shifted_labels_move_on_by_one_in_both_splits():
    s = stream("shifted_labels")
    for index in (1, 12):
        a, b = s.at(0, 0), s.at(0, index)
        assert ((a.targets + index) % 10 == b.targets).all()
        assert ((a.test_targets + index) % 10 == b.test_targets).all()


def test_classes_come_two_by_two_and_only_theirs_are_tested():
    s = stream("class_incremental")
    known = [set(s.at(0, i).targets.tolist()) for i in range(5)]
    assert [len(k) for k in known] == [2, 4, 6, 8, 10]
    assert all(a < b for a, b in zip(known, known[1:], strict=False))
    assert set(s.at(0, 1).test_targets.tolist()) == known[1]


def test_large_means_move_and_the_spread_stays():
    s = stream("large_means", offsets=(0.0, 100.0))
    a, b, later = (s.at(0, i).targets for i in (0, 1, 2))
    assert (a.mean(), b.mean(), later.mean()) == pytest.approx((0, 100, 100), abs=1e-3)
    assert (a.std(), b.std()) == pytest.approx((1, 1), abs=1e-3)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.9  # another function, not the old one moved


def test_fewer_images_are_this_seeds_own():
    a, b = (stream("permuted_pixels", images=100).at(seed, 0) for seed in (0, 1))
    assert len(a.targets) == 100 and (a.targets != b.targets).any()
    with pytest.raises(ValueError, match="env.images: 2000 given; digits has 1437"):
        stream("permuted_pixels", images=2_000).at(0, 0)


def test_slow_bits_stay_within_a_stage_and_the_others_are_random():
    s = stream("slow_regression")
    a, b = s.at(0, 0), s.at(0, 1)
    assert (a.inputs[:, :15] == a.inputs[0, :15]).all() and (a.test_inputs[:, :15] == a.inputs[0, :15]).all()
    assert abs(a.inputs[:, 15:].mean() - 0.5) < 0.02
    assert (a.inputs[0, :15] != b.inputs[0, :15]).any()


def test_with_flip_one_a_single_slow_bit_turns_round_at_every_change():
    s = stream("slow_regression", flip="one")
    slow = [s.slow(0, i) for i in range(20)]
    assert all((a != b).sum() == 1 for a, b in zip(slow, slow[1:], strict=False))


def test_what_is_imitated_is_a_network_of_threshold_units():
    s = stream("slow_regression")
    stage = s.at(3, 2)
    generator = host_generator(3, "testbed/units")
    w = generator.choice([-1.0, 1.0], (100, 20))
    b, v = generator.choice([-1.0, 1.0], 100), generator.choice([-1.0, 1.0], 100)
    for x, y in zip(stage.inputs[:20], stage.targets[:20], strict=True):
        total = 0.0
        for i in range(100):
            threshold = 0.7 * 21 - (20 - sum(w[i]) + b[i]) / 2
            total += v[i] * (sum(w[i] * x) + b[i] > threshold)
        assert total == pytest.approx(y)
    assert stage.targets.std() > 0.3
