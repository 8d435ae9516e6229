"""Prioritised sampling against sums taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from core.priorities import BLOCK, Priorities
from core.replay import Replay
from core.spec import EnvSpec

VECTOR = EnvSpec("toy/vector", (1,), "float32", num_actions=2)


def endless(seeds, steps, capacity=1_000, **options):
    """A prioritised replay of one unfinished episode: all slots but the last are valid starts."""
    replay, n = Replay(VECTOR, seeds, capacity, prioritised=True, **options), len(seeds)
    no = np.zeros(n, bool)
    for t in range(steps):
        obs = np.full((n, 1), t, np.float32)
        replay.add(obs, np.zeros(n), np.zeros(n), no, no, obs)
    return replay


def draws(replay, count, batch_size=50):
    return torch.cat([replay.sample(batch_size, draw)["index"] for draw in range(count)], 1)


def test_a_fraction_of_the_mass_lands_where_a_plain_sum_says():
    rng = np.random.default_rng(0)
    tree, leaves = Priorities(2, 1_000, 0.5, 0.5), np.zeros((2, 1_000))
    for _ in range(50):
        member, position = rng.integers(2, size=40), rng.integers(1_000, size=40)
        position = np.unique(position)
        member, value = member[: len(position)], rng.random(len(position)).astype(np.float32)
        tree.set(member, position, value)
        leaves[member, position] = value
    for m in range(2):
        fraction = rng.random(500)
        expected = np.searchsorted(leaves[m].cumsum(), fraction * leaves[m].sum(), side="right")
        assert np.array_equal(tree.pick(m, fraction), expected)


def test_slots_without_mass_are_never_picked():
    tree = Priorities(1, 300, 0.5, 0.5)
    tree.set(0, np.array([150, 250]), 1.0)
    assert tree.pick(0, np.array([0.0, 0.499, 0.5, 0.999])).tolist() == [150, 150, 250, 250]


def test_the_sums_are_a_function_of_the_leaves_alone():
    rng, busy = np.random.default_rng(0), Priorities(1, 300, 0.5, 0.5)
    for _ in range(2_000):
        busy.set(0, rng.integers(300, size=8), rng.random(8) * 10.0 ** rng.integers(-8, 8))
    at_once = Priorities(1, 300, 0.5, 0.5)
    at_once.set(0, np.arange(300), busy.get(0, np.arange(300)))
    assert np.array_equal(busy._sums, at_once._sums) and np.array_equal(busy._leaves, at_once._leaves)


def test_a_tree_whose_last_block_is_not_full_never_picks_beyond_it():
    for capacity in (1, BLOCK - 1, BLOCK, BLOCK + 1):
        tree = Priorities(1, capacity, 0.5, 0.5)
        tree.set(0, np.arange(capacity), 1.0)
        picked = tree.pick(0, (np.arange(1_000) + 0.5) / 1_000)
        assert set(picked.tolist()) == set(range(capacity))


def test_slots_are_sampled_in_proportion_to_their_priority():
    replay = endless([0], 41)
    error = torch.linspace(0.1, 4.0, 40)[None] ** 2
    replay.update_priorities(torch.arange(40)[None], error)
    replay.update_priorities(torch.tensor([[40]]), torch.zeros(1, 1))  # the newest: its window is not written
    drawn = draws(replay, 400)[0].bincount(minlength=40).numpy()
    share = error[0].sqrt().numpy() / error.sqrt().sum().item()
    assert drawn.sum() == 20_000
    assert stats.chisquare(drawn, share / share.sum() * drawn.sum()).pvalue > 0.001


def test_the_exponent_is_applied_once():
    for alpha in (0.0, 0.5, 1.0):
        replay = endless([0], 5, alpha=alpha)
        replay.update_priorities(torch.arange(4)[None], torch.tensor([[4.0, 9.0, 16.0, 0.25]]))
        priority = replay.priorities.get(0, np.arange(4))
        assert priority == pytest.approx(np.array([4.0, 9.0, 16.0, 0.25]) ** alpha, rel=1e-6)


def test_new_slots_get_the_largest_priority_ever_stored():
    replay = endless([0, 1], 5)
    assert replay.priorities.get(0, np.arange(6)).tolist() == [1, 1, 1, 1, 1, 0]
    replay.update_priorities(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[9.0, 0.1], [0.2, 0.3]]))
    replay.update_priorities(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0.01, 0.1], [0.2, 0.3]]))
    no, one = np.zeros(2, bool), np.ones((2, 1), np.float32)
    replay.add(one, np.zeros(2), np.zeros(2), no, ~no, one)
    position = np.array([5, 6])  # the step and the closing slot
    assert replay.priorities.get(0, position).tolist() == [3, 0]
    assert replay.priorities.get(1, position).tolist() == [1, 0]


def test_importance_weights_by_hand():
    replay = endless([0, 1], 5, beta=0.5)
    error = torch.tensor([[1.0, 16.0, 81.0, 256.0]]) ** 2
    replay.update_priorities(torch.arange(4).expand(2, 4), torch.cat([error, torch.ones(1, 4)]))
    batch = replay.sample(400, 0)
    for index, weight in zip(batch["index"][0].tolist(), batch["weight"][0].tolist(), strict=True):
        smallest = batch["index"][0].min().item()
        assert weight == pytest.approx({0: 1.0, 1: 1 / 4, 2: 1 / 9, 3: 1 / 16}[index] * (smallest + 1) ** 2, rel=1e-5)
    assert batch["weight"][1].unique().tolist() == [1.0]
    assert endless([0], 5, beta=0.0).sample(8, 0)["weight"].unique().tolist() == [1.0]


def test_each_share_of_the_mass_gives_one_sample():
    replay = endless([0], 101)
    replay.update_priorities(torch.tensor([[100]]), torch.zeros(1, 1))
    assert torch.equal(replay.sample(100, 0)["index"][0], torch.arange(100))  # 100 equal shares, 100 equal slots


def test_an_overwritten_slot_takes_no_priority_from_an_old_sample():
    replay = endless([0], 30, capacity=20)
    before = replay.priorities.get(0, np.arange(20)).copy()
    replay.update_priorities(torch.tensor([[9, 10]]), torch.tensor([[100.0, 0.25]]))
    after = replay.priorities.get(0, np.arange(20))
    assert after[9] == before[9] and after[10] == 0.5 and replay.priorities.largest[0] == 1


def test_a_diverged_member_changes_no_priority():
    replay = endless([0, 1], 10)
    error = torch.tensor([[torch.nan, torch.inf], [0.25, 0.04]])
    replay.update_priorities(torch.tensor([[0, 1], [0, 1]]), error)
    assert replay.priorities.get(0, np.arange(2)).tolist() == [1, 1]
    assert replay.priorities.get(1, np.arange(2)) == pytest.approx([0.5, 0.2])
    assert replay.sample(8, 0)["weight"].isfinite().all()


def test_invalid_slots_with_nearly_all_the_mass_do_not_stop_sampling():
    replay = endless([0], 60)
    error = torch.full((1, 60), 1e-6)
    error[0, 50:] = 1e12  # windows of ten steps from these are not written yet
    error[0, 7] = 4e-6
    replay.update_priorities(torch.arange(60)[None], error)
    drawn = torch.cat([replay.sample(50, draw, n_step=10)["index"][0] for draw in range(40)]).bincount(minlength=50)
    share = error[0, :50].sqrt().numpy()
    assert len(drawn) == 50 and stats.chisquare(drawn.numpy(), share / share.sum() * 2_000).pvalue > 0.001


def test_uniform_replay_ignores_errors():
    replay = Replay(VECTOR, [0], 10)
    replay.update_priorities(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))
    assert replay.priorities is None
