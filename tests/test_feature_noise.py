"""The counting model of warm starts: worked by hand, against a slow reference, and what the paper says follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.randomness import host_generator
from core.statistics import student_interval
from testbeds.feature_noise import STARTS, Row, Settings, follow, hits, main, simulate, table, train

KEPT = Path("benchmarks/results/findings/feature_noise.csv")


def points(*rows: str, names: str = "abcd") -> np.ndarray:
    """One class of points, each written as the features it has. -> [1, n, features]"""
    return np.array([[[name in row for name in names] for row in rows]])


def names(learned: np.ndarray) -> str:
    return "".join(name for name, known in zip("abcd", learned[0], strict=True) if known)


FIVE = points("ab", "ab", "ac", "cd", "")


@pytest.mark.parametrize(
    ("tau", "gamma", "learned", "left"),
    [
        # a stands in three points, then b and c in two each: b is first, and the first two points have two features;
        # c still stands in the third and the fourth, which leaves d in one point: too few
        (2, 2, "abc", [3, 4]),
        (2, 3, "a", [0, 1, 2, 3, 4]),  # after a, nothing stands in three points
        (2, 1, "abcd", [4]),  # nothing is too rare, and the last point has only noise
        (1, 2, "a", [3, 4]),  # a settles three points; c and d stand in one each of what is left
    ],
)
def test_five_points_by_hand(tau, gamma, learned, left):
    found, memorised, time = train(FIVE, np.zeros((1, 4), bool), np.zeros((1, 5), bool), tau, gamma)
    assert names(found) == learned and np.flatnonzero(memorised[0]).tolist() == left and time == 5


def test_a_rare_feature_is_found_only_by_those_who_look_at_old_points_again():
    chunks = [points("a", ""), points("a", "")]  # once in each half: gamma is 2
    found = {start: [(names(f), int(m.sum()), t) for f, m, t in follow(start, chunks, 1, 2)] for start in STARTS}
    assert found["cold"] == [("", 2, 2), ("a", 2, 4)]
    assert found["warm"] == [("", 2, 2), ("", 4, 2)]  # both halves by heart
    assert found["ideal"] == [("", 2, 2), ("a", 2, 4)]


def test_a_feature_that_is_known_need_not_be_learned_again():
    chunks = [points("a", "a"), points("a", "b")]
    found = {start: [(names(f), int(m.sum()), t) for f, m, t in follow(start, chunks, 1, 1)] for start in STARTS}
    assert found == {
        "cold": [("a", 0, 2), ("ab", 0, 4)],
        **dict.fromkeys(["warm", "ideal"], [("a", 0, 2), ("ab", 0, 1)]),
    }


def test_features_of_a_class_say_nothing_about_another():
    both = np.concatenate([points("a", "a", "b"), points("b", "b", "b")])
    learned, memorised, _ = train(both, np.zeros((2, 4), bool), np.zeros((2, 3), bool), 1, 2)
    assert learned.tolist() == [[True, False, False, False], [False, True, False, False]]
    assert memorised.tolist() == [[False, False, True], [False, False, False]]


def slow(start: str, chunks: list[np.ndarray], tau: int, gamma: int):
    """Every point a set, every count made anew."""
    seen, learned, by_heart = [], set(), set()
    for chunk in chunks:
        old = len(seen) // len(chunk)
        classes, count, features = chunk.shape
        seen += [
            ((c, old + i), {(c, f) for f in range(features) if chunk[c, i, f]})
            for c in range(classes)
            for i in range(count)
        ]
        learned = set() if start == "cold" else learned
        by_heart = by_heart if start == "warm" else set()

        def open_points():
            return [(p, has) for p, has in seen if p not in by_heart and len(has & learned) < tau]  # noqa: B023

        time = len(open_points())
        while True:
            counts = {
                (c, f): sum((c, f) in has for _, has in open_points())
                for c in range(classes)
                for f in range(features)
                if (c, f) not in learned
            }
            most = max(counts.values(), default=0)
            if most < gamma:
                break
            learned = learned | {min(feature for feature, count in counts.items() if count == most)}
        by_heart = by_heart | {p for p, _ in open_points()}
        yield learned, by_heart, time


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("tau", "gamma"), [(1, 3), (2, 2), (3, 4)])
def test_it_is_what_a_slow_reference_does(start, tau, gamma):
    for seed in range(3):
        generator = host_generator(seed, "test")
        chunks = list(generator.random((4, 2, 12, 6)) < generator.uniform(0, 0.6, (2, 1, 6)))
        for (learned, memorised, time), wanted in zip(
            follow(start, chunks, tau, gamma), slow(start, chunks, tau, gamma), strict=True
        ):
            found = (set(zip(*np.nonzero(array), strict=True)) for array in (learned, memorised))
            assert (*found, time) == wanted


SMALL = Settings(seeds=(0, 1), experiments=6, points=200, features=20, most=0.4, gamma=8)


@pytest.mark.parametrize("seed", range(4))
def test_what_holds_always(seed):
    rows = {start: [row for row in simulate(seed, SMALL) if row.arm == start] for start in STARTS}
    assert len({row[3:] for row in (rows[start][0] for start in STARTS)}) == 1  # there is nothing to keep yet
    for cold, warm, ideal in zip(*rows.values(), strict=True):
        assert cold.time == 200 * cold.step and warm.time <= 200 and ideal.time <= cold.time
        assert all(0.5 <= row.accuracy <= 1 and row.features <= 40 for row in (cold, warm, ideal))
    for kept in (rows["warm"], rows["ideal"]):
        for name in ("accuracy", "features"):
            values = [getattr(row, name) for row in kept]
            assert values == sorted(values)


def test_training_ends_when_nothing_frequent_is_left_and_memorises_just_what_is_not_classified():
    for start in STARTS:
        chunks = list(host_generator(0, "test").random((5, 2, 50, 10)) < 0.3)
        before = np.zeros((2, 0), bool)
        for k, (learned, memorised, _) in enumerate(follow(start, chunks, 2, 6), 1):
            arrived = np.concatenate(chunks[:k], 1)
            kept = np.zeros_like(memorised)
            kept[:, : before.shape[1]] = before if start == "warm" else False
            left = memorised & ~kept
            assert (left == (~kept & (hits(arrived, learned) < 2))).all()
            assert (arrived & left[..., None]).sum(1)[~learned].max(initial=0) < 6
            before = memorised


def test_warm_is_quick_and_bad_and_ideal_is_quick_and_as_good_as_cold():
    s = Settings(seeds=(0, 1, 2), experiments=12)
    rows = [row for seed in s.seeds for row in simulate(seed, s)]
    mean = {start: np.mean([row[3:] for row in rows if row.arm == start and row.step > 1], 0) for start in STARTS}
    (cold, cold_features, cold_time, _), (warm, warm_features, warm_time, _) = mean["cold"], mean["warm"]
    ideal, ideal_features, ideal_time, _ = mean["ideal"]
    assert warm < cold - 0.1 and warm_features < cold_features / 1.5 and warm_time < cold_time / 5
    assert abs(ideal - cold) < 0.002 and abs(ideal_features - cold_features) < 0.5 and ideal_time < cold_time / 3


def test_more_experiments_begin_with_the_same_and_seeds_differ():
    few = [row for row in simulate(3, SMALL) if row.step <= 4]
    assert few == list(simulate(3, Settings(**{**vars(SMALL), "experiments": 4})))
    assert [row[3:] for row in few] != [row[3:] for row in simulate(4, SMALL) if row.step <= 4]


def test_the_interval_is_students():
    # of 1, 2, 3: mean 2, deviation 1, and t of two degrees of freedom 4.302653
    assert student_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_what_is_kept_is_what_the_command_writes_and_the_page_shows_it(tmp_path, capsys):
    rows = [row.split(",") for row in KEPT.read_text().splitlines()]
    kept = [Row(arm, int(seed), int(i), float(right), *map(int, rest)) for arm, seed, i, right, *rest in rows[1:]]
    assert rows[0] == list(Row._fields) and len(kept) == 10 * 3 * 50
    assert table(kept) in Path("docs/testbeds.md").read_text()
    assert main(["seeds=[0,1]", "experiments=2", f"out={tmp_path / 'some.csv'}"]) == 0
    assert "after 2 experiments, mean over 2 seeds" in capsys.readouterr().out
    written = (tmp_path / "some.csv").read_text().splitlines()
    assert len(written) == 1 + 2 * 3 * 2 and set(written) <= set(KEPT.read_text().splitlines())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gama=3", "gama: no such setting; did you mean gamma?"),
        ("seeds=[1]", "seeds: [1] given; expected at least two, and each once"),
        ("seeds=[0", "while parsing a flow sequence"),
        ("points=7", "points: 7 given; expected a multiple of classes=2"),
        ("tau=0", "tau: 0 given; expected at least 1"),
    ],
)
def test_a_mistake_is_one_line(capsys, given, said):
    assert main([given]) == 2
    found = capsys.readouterr().err
    assert found.startswith(said) and found.count("\n") == 1
