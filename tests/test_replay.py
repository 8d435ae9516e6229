"""The replay against a plain list of what happened, walked step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from core import replay_store
from core.replay import Replay
from core.replay_store import prune
from core.spec import EnvSpec

FRAMES = EnvSpec("toy/frames", (3, 2), "uint8", num_actions=5, stack=4)
SINGLE = EnvSpec("toy/single", (3, 2), "uint8", num_actions=5, stack=1)
VECTOR = EnvSpec("toy/vector", (3,), "float32", action_dim=2)
ATARI = EnvSpec("atari/any", (84, 84), "uint8", num_actions=18, stack=4)


class Loop:
    """One member's history as a list of slots, and the obviously right answers."""

    def __init__(self, spec, capacity):
        self.spec, self.capacity, self.slots, self.life, self.first = spec, capacity, [], 0, 0

    def add(self, obs, action, reward, terminal, ended, next_obs):
        self.slots.append((obs, action, reward, terminal, False, self.life))
        if ended:
            self.slots.append((next_obs, 0, 0.0, False, True, self.life))
        self.life += int(terminal or ended)

    def stacked(self, t):
        if not self.spec.is_image:
            return self.slots[t][0]
        return np.stack([self.slots[j][0] if self.same_life(j, t) else 0 * self.slots[t][0] for j in self.frames(t)])

    def frames(self, t):
        return range(t - self.spec.stack + 1, t + 1)

    def same_life(self, j, t):
        return j >= 0 and self.slots[j][5] == self.slots[t][5]

    def window(self, t, n, gamma):
        """-> (return, discount, slot to bootstrap from), or None past the newest slot."""
        total, k = 0.0, 0
        while t + k + 1 < len(self.slots):
            _, _, reward, terminal, _, _ = self.slots[t + k]
            total, k = total + gamma**k * reward, k + 1
            if terminal:
                return total, 0.0, t + k
            if k == n or self.slots[t + k][4]:
                return total, gamma**k, t + k
        return None

    def starts(self, n):
        oldest = max(self.first, len(self.slots) - self.capacity)
        whole = [t for t in range(oldest, len(self.slots)) if not self.slots[t][4] and self.window(t, n, 1.0)]
        return {t for t in whole if all(j >= oldest or not self.same_life(j, t) for j in self.stack_frames(t))}

    def stack_frames(self, t):
        return self.frames(t) if self.spec.is_image else [t]


def life(spec, n, seed=0, length=5.0, lost=0.15):
    """Endless random steps of n members: short episodes that terminate, are truncated or lose a life on the way."""
    rng = np.random.default_rng(seed)
    draw = (lambda: rng.integers(1, 255, (n, *spec.obs_shape)).astype(np.uint8)) if spec.is_image else None
    draw = draw or (lambda: rng.standard_normal((n, *spec.obs_shape)).astype(np.float32))
    obs = draw()
    while True:
        action = rng.integers(spec.num_actions, size=n) if spec.is_discrete else rng.random((n, 2)).astype(np.float32)
        ended = rng.random(n) < 1 / length
        terminal = rng.random(n) < np.where(ended, 0.5, lost)
        next_obs = draw()
        yield obs, action, rng.standard_normal(n).astype(np.float32), terminal, ended, next_obs
        obs = np.where(ended.reshape(n, *[1] * len(spec.obs_shape)), draw(), next_obs)


ENDLESS = life(VECTOR, 1, length=1e9, lost=0.0)


def filled(spec, seeds, capacity, steps, source=None, **options):
    """A replay with its loops after some steps of `life`."""
    replay, loops = Replay(spec, seeds, capacity, **options), [Loop(spec, capacity) for _ in seeds]
    source = source or life(spec, len(seeds))
    for _ in range(steps):
        both(replay, loops, next(source))
    return replay, loops


def both(replay, loops, step):
    replay.add(*step)
    for i, loop in enumerate(loops):
        loop.add(*(part[i] for part in step))


def agree(loops, batch, n_step, discount):
    """Every sample is what the loop says."""
    members, size = batch["index"].shape
    n_step, discount = np.broadcast_to(n_step, (members, size)), np.broadcast_to(discount, (members, size))
    batch = {name: values.numpy() for name, values in batch.items()}
    for i, loop in enumerate(loops):
        for b in range(size):
            t = int(batch["index"][i, b])
            reward, gamma_k, end = loop.window(t, int(n_step[i, b]), float(discount[i, b]))
            assert t >= max(loop.first, len(loop.slots) - loop.capacity) and not loop.slots[t][4]
            assert np.array_equal(batch["obs"][i, b], loop.stacked(t))
            assert np.array_equal(batch["action"][i, b], loop.slots[t][1])
            assert batch["reward"][i, b] == pytest.approx(reward, rel=1e-6, abs=1e-6)
            assert batch["discount"][i, b] == np.float32(gamma_k)
            if gamma_k:
                assert np.array_equal(batch["next_obs"][i, b], loop.stacked(end))


@pytest.mark.parametrize("spec, prioritised", [(FRAMES, False), (FRAMES, True), (SINGLE, False), (VECTOR, False)])
def test_batches_equal_the_loop_over_ten_thousand_episodes(spec, prioritised):
    source, rng, draw = life(spec, n := 4), np.random.default_rng(1), 0
    replay, loops = filled(spec, range(n), 53, 30, source, prioritised=prioritised)
    while sum(slot[4] for loop in loops for slot in loop.slots) < 10_000:
        for _ in range(100):
            both(replay, loops, next(source))
        per_sample = rng.integers(1, 11, (n, 8)), rng.random((n, 8))
        for n_step, discount in ((1, 0.99), (3, 0.99), (10, 0.9), per_sample):
            batch = replay.sample(8, draw, n_step, discount)
            agree(loops, batch, n_step, discount)
            replay.update_priorities(batch["index"], torch.rand(n, 8))
            draw += 1


def test_the_shapes_and_types_are_what_agents_expect():
    replay, _ = filled(FRAMES, [0, 1], 50, 60)
    batch = replay.sample(7, 0)
    shapes = {name: (tuple(values.shape), values.dtype) for name, values in batch.items()}
    stack, number = ((2, 7, 4, 3, 2), torch.uint8), ((2, 7), torch.float32)
    assert shapes == {
        **dict.fromkeys(("obs", "next_obs"), stack),
        **dict.fromkeys(("reward", "discount", "weight"), number),
        **dict.fromkeys(("action", "index"), ((2, 7), torch.int64)),
    }
    assert batch["obs"].is_contiguous() and batch["next_obs"].is_contiguous()
    batch = filled(VECTOR, [0], 50, 60)[0].sample(7, 0)
    assert batch["obs"].shape == (1, 7, 3) and batch["action"].shape == (1, 7, 2)
    assert batch["action"].dtype == batch["obs"].dtype == torch.float32


def by_hand(terminal, ended, steps=5):
    """An episode o_0 .. o_5 with rewards 1, 2, 4, 8, 16, and one slot of the next; n = 3, gamma = 1/2."""
    replay = Replay(VECTOR, [0], 20)
    at = lambda t: np.full((1, 3), t, np.float32)  # noqa: E731
    for t in range(steps):
        last = np.array([t == steps - 1])
        action, reward = np.zeros((1, 2)), np.array([2.0**t])
        replay.add(at(t), action, reward, last & terminal, last & ended, at(t + 1))
    replay.add(at(100), np.zeros((1, 2)), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), at(101))
    batch = replay.sample(64, 0, n_step=3, discount=0.5)
    rows = zip(*(batch[name][0].tolist() for name in ("index", "reward", "discount")), strict=True)
    following = batch["next_obs"][0, :, 0].tolist()
    return {row[0]: (*row[1:], o) for row, o in zip(rows, following, strict=True)}


def test_a_five_step_episode_with_three_step_returns_by_hand():
    cut = {0: (3.0, 0.125, 3), 1: (6.0, 0.125, 4)}
    truncated = cut | {2: (12.0, 0.125, 5), 3: (16.0, 0.25, 5), 4: (16.0, 0.5, 5)}
    assert by_hand(terminal=False, ended=True) == truncated
    terminated = {t: (reward, 0.0 if t >= 2 else d, o) for t, (reward, d, o) in truncated.items()}
    assert by_hand(terminal=True, ended=True) == terminated
    # a lost life is a terminal without a closing slot: windows to slot 5 end in the next life's first observation
    lost = {t: (reward, d, 100 if t >= 2 else o) for t, (reward, d, o) in terminated.items()}
    assert by_hand(terminal=True, ended=False) == lost


@pytest.mark.parametrize("spec", [FRAMES, VECTOR], ids=lambda spec: spec.name)
@pytest.mark.parametrize("steps", [4, 15, 40, 400])
def test_every_valid_start_is_sampled_and_no_other(spec, steps):
    replay, loops = filled(spec, [3, 4], 17, steps)
    for n_step in (1, 3):
        drawn = torch.cat([replay.sample(64, draw, n_step)["index"] for draw in range(30)], 1)
        for i, loop in enumerate(loops):
            assert set(drawn[i].tolist()) == loop.starts(n_step)


def test_valid_starts_are_equally_likely():
    replay, (loop,) = filled(FRAMES, [0], 40, 100)
    drawn = torch.cat([replay.sample(100, draw, 3)["index"][0] for draw in range(100)]).tolist()
    counts = [drawn.count(t) for t in loop.starts(3)]
    assert sum(counts) == 10_000 and stats.chisquare(counts).pvalue > 0.001


def test_a_few_valid_starts_among_many_are_still_equally_likely():
    replay, (loop,) = filled(VECTOR, [0], 300, 290, ENDLESS)
    valid = loop.starts(286)
    assert valid == {0, 1, 2, 3}  # so few that redrawing alone would rarely find one
    drawn = torch.cat([replay.sample(50, draw, 286)["index"][0] for draw in range(12)]).tolist()
    assert set(drawn) == valid
    assert stats.chisquare([drawn.count(t) for t in valid]).pvalue > 0.001


def test_a_replay_without_a_complete_window_says_so():
    replay = Replay(VECTOR, [7, 8], 20)
    with pytest.raises(ValueError, match="seed 7 holds 0 slots and no complete window of 1 steps"):
        replay.sample(4, 0)
    replay, _ = filled(VECTOR, [7], 20, 4, ENDLESS)
    with pytest.raises(ValueError, match="raise warmup"):
        replay.sample(4, 0, n_step=10)


def test_draws_repeat_and_differ_by_seed_stream_and_number():
    replay = Replay(VECTOR, [0, 1], 50)
    for step in steps_of_one(40):
        replay.add(*(np.repeat(part, 2, 0) for part in step))  # two seeds, one history
    index = replay.sample(32, 5)["index"]
    assert not torch.equal(index[0], index[1])
    assert torch.equal(index, replay.sample(32, 5)["index"])
    assert not torch.equal(index, replay.sample(32, 6)["index"])
    assert not torch.equal(index, replay.sample(32, 5, stream="observe")["index"])


@pytest.mark.parametrize(
    "spec, options", [(FRAMES, {"prioritised": True}), (VECTOR, {}), (VECTOR, {"standardise": True})]
)
@pytest.mark.parametrize("seeds", [[4], [4, 5, 6]])
def test_several_draws_at_once_are_what_each_is_alone(spec, options, seeds):
    replay, loops = filled(spec, seeds, 40, 90, **options)  # short episodes: many a draw is repeated
    n_step = np.arange(1, len(seeds) + 1)
    together = replay.samples(5, range(7, 16), n_step, 0.9, progress=0.5)  # 5: sizes that are no multiple of 64 bytes
    assert len(together) == 9
    for number, batch in zip(range(7, 16), together, strict=True):
        agree(loops, batch, n_step[:, None], 0.9)
        alone = replay.sample(5, number, n_step, 0.9, progress=0.5)
        assert batch.keys() == alone.keys()
        for name, values in alone.items():
            assert torch.equal(batch[name], values)
            assert batch[name].stride() == values.stride(), name
        for name in ("obs", "next_obs"):  # where they begin decides the bits of a matrix product
            assert batch[name].data_ptr() % 64 == alone[name].data_ptr() % 64 == 0


def steps_of_one(count, spec=VECTOR, seed=0):
    source = life(spec, 1, seed)
    return [next(source) for _ in range(count)]


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_member_of_three_equals_a_replay_of_its_own(prioritised):
    seeds, n_step, discount = [5, 6, 7], np.array([1, 10, 3]), np.array([0.9, 0.97, 0.99])
    histories = [steps_of_one(200, FRAMES, seed) for seed in seeds]
    together = Replay(FRAMES, seeds, 60, prioritised=prioritised)
    alone = [Replay(FRAMES, [seed], 60, prioritised=prioritised) for seed in seeds]
    for t, steps in enumerate(zip(*histories, strict=True)):
        together.add(*(np.concatenate(parts) for parts in zip(*steps, strict=True)))
        for replay, step in zip(alone, steps, strict=True):
            replay.add(*step)
        if t < 20:
            continue
        batch = together.sample(16, t, n_step, discount)
        error = torch.rand(3, 16, generator=torch.Generator().manual_seed(t))
        together.update_priorities(batch["index"], error)
        for i, replay in enumerate(alone):
            single = replay.sample(16, t, int(n_step[i]), float(discount[i]))
            replay.update_priorities(single["index"], error[i : i + 1])
            assert all(torch.equal(single[name][0], batch[name][i]) for name in batch)


def test_a_cleared_replay_draws_like_a_new_one():
    replay, (loop,) = filled(FRAMES, [0], 30, 100)
    replay.clear()
    assert len(replay) == 0
    with pytest.raises(ValueError, match="no complete window"):
        replay.sample(4, 0)
    new, offset = Replay(FRAMES, [0], 30), len(loop.slots)
    loop.first, loop.life = offset, loop.life + 1
    for step in steps_of_one(20, FRAMES, seed=9):
        both(replay, [loop], step)
        new.add(*step)
    a, b = replay.sample(32, 1, 3), new.sample(32, 1, 3)
    agree([loop], a, 3, 0.99)
    b["index"] += offset
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_cleared_prioritised_replay_samples_only_what_came_after():
    replay, (loop,) = filled(FRAMES, [0], 30, 100, prioritised=True)
    replay.clear()
    loop.first, loop.life = len(loop.slots), loop.life + 1
    for step in steps_of_one(12, FRAMES, seed=9):
        both(replay, [loop], step)
    drawn = torch.cat([replay.sample(32, draw)["index"][0] for draw in range(20)])
    assert set(drawn.tolist()) == loop.starts(1)
    steps = sum(not slot[4] for slot in loop.slots[loop.first :])
    assert replay.priorities.get(0, np.arange(30)).sum() == steps  # nothing is left of what was before


def test_an_episode_left_unfinished_is_truncated_in_what_it_had_come_to():
    replay, at = Replay(VECTOR, [0, 1], 20), lambda t: np.full((2, 3), t, np.float32)
    no = np.zeros(2, bool)
    replay.add(at(0), np.zeros((2, 2)), np.ones(2), no, np.array([False, True]), at(1))  # member 1 ended by itself
    replay.truncate(at(50))
    replay.add(at(100), np.zeros((2, 2)), np.ones(2), no, no, at(101))
    assert replay.ring.count.tolist() == [3, 3]
    batch = replay.sample(8, 0, n_step=3, discount=0.5)
    assert batch["index"].unique().tolist() == [0]
    assert batch["next_obs"][:, 0, 0].tolist() == [50, 1] and batch["discount"].unique().tolist() == [0.5]


def test_a_step_that_failed_ends_the_episode_and_is_never_sampled():
    """Member 0 fails in its third step; its second is bootstrapped from where it stood then."""
    replay, at = Replay(VECTOR, [0, 1], 20, prioritised=True), lambda t: np.full((2, 3), t, np.float32)
    no = np.zeros(2, bool)
    for t in range(4):
        failed = np.array([t == 2, False])
        replay.add(at(t), np.ones((2, 2)), np.ones(2), no, failed, at(t + 1), failed)
    assert replay.ring.count.tolist() == [4, 4]
    batch = replay.sample(64, 0, n_step=2, discount=0.5)
    found = [dict(zip(*(batch[k][i].flatten(0).tolist() for k in ("index", "discount")), strict=True)) for i in (0, 1)]
    assert found == [{0: 0.25, 1: 0.5}, {0: 0.25, 1: 0.25}]
    returns = {i: r for i, r in zip(batch["index"][0].tolist(), batch["reward"][0].tolist(), strict=True)}
    assert returns == {0: 1.5, 1: 1.0} and set(batch["next_obs"][0, :, 0].tolist()) == {2.0}


def test_truncating_where_every_episode_has_just_ended_adds_nothing():
    replay, obs, ended = Replay(VECTOR, [0, 1], 20), np.zeros((2, 3), np.float32), np.ones(2, bool)
    replay.add(obs, np.zeros((2, 2)), np.ones(2), ~ended, ended, obs)
    replay.truncate(obs)
    assert replay.ring.count.tolist() == [2, 2]


def test_an_atari_transition_takes_at_most_7200_bytes():
    for prioritised in (False, True):
        replay = Replay(ATARI, [0, 1, 2], 1_000, prioritised=prioritised)
        assert replay.nbytes / 3_000 <= 7_200


# on disk


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(replay_store, "CHUNK", 10)


def reloaded(replay, folder, saved):
    torch.save(saved, folder / "meta.pt")
    new = Replay(replay.spec, replay.seeds, replay.ring.capacity, prioritised=replay.priorities is not None)
    new.load(folder, torch.load(folder / "meta.pt", weights_only=True))
    return new


def train(replay, source, steps, draw):
    """Steps and prioritised updates, as training does them. -> batches"""
    batches = []
    for t in range(steps):
        replay.add(*next(source))
        batches.append(replay.sample(8, draw + t, 2))
        error = torch.rand(len(replay.seeds), 8, generator=torch.Generator().manual_seed(draw + t))
        replay.update_priorities(batches[-1]["index"], error)
    return batches


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("before", [12, 30, 95])  # 95 steps: the ring of 47 has wrapped
@pytest.mark.parametrize("spec", [FRAMES, VECTOR], ids=lambda spec: spec.name)
def test_a_reloaded_replay_goes_on_as_if_nothing_had_happened(tmp_path, small_chunks, spec, before, prioritised):
    a, source = Replay(spec, [0, 1], 47, prioritised=prioritised), life(spec, 2)
    for _ in range(10):
        a.add(*next(source))
    train(a, source, before, 0)
    b = reloaded(a, tmp_path, a.save(tmp_path))
    assert a.digest() == b.digest()
    steps = [next(source) for _ in range(70)]
    for x, y in zip(train(a, iter(steps), 70, 1000), train(b, iter(steps), 70, 1000), strict=True):
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert a.digest() == b.digest()
    assert a.save(tmp_path)["files"] == b.save(tmp_path / "other")["files"]  # chunks too: the same bytes in both


def test_a_smaller_replay_takes_the_newest_of_what_was_saved(tmp_path, small_chunks):
    saved, _ = filled(VECTOR, [0, 1], 60, 45)
    kept = saved.save(tmp_path)
    small = Replay(VECTOR, [0, 1], 20)
    small.load(tmp_path, kept)
    for member in range(2):
        last = int(saved.ring.count[member]) - 1
        assert small.ring.oldest[member] == last - 19
        mine, theirs = (ring.read(member, last - 19, last) for ring in (small.ring, saved.ring))
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_the_digest_sees_every_field():
    def digest(field=None):
        replay, _ = filled(FRAMES, [0], 40, 60, life(FRAMES, 1), prioritised=True)
        row = int(replay.ring.oldest[0]) % 40
        if field == "priority":
            replay.priorities.set(0, np.array([row]), 0.123)
        elif field:
            getattr(replay.ring, field)[row] += 1
        return replay.digest()

    fields = ("obs", "action", "reward", "kind", "age", "priority")
    assert digest() == digest() and len({digest(), *map(digest, fields)}) == 7


def test_a_save_writes_only_what_is_new(tmp_path, small_chunks):
    replay, loops = filled(VECTOR, [0, 1], 1_000, 30)
    first = replay.save(tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert replay.save(tmp_path) == first and stamps == {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    source = life(VECTOR, 2, seed=5)
    for _ in range(4):
        replay.add(*next(source))
    second = replay.save(tmp_path)
    assert all(tmp_path.joinpath(name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    new = [file for file in second["files"] if file not in first["files"]]
    assert len(new) <= 4 and all(file["last"] >= count for file, count in zip(new, first["count"], strict=False))
    complete = [file for file in first["files"] if file["last"] % 10 == 9]
    assert complete and all(file in second["files"] for file in complete)


def test_a_kill_between_save_and_prune_loses_neither_checkpoint(tmp_path, small_chunks):
    replay, source = Replay(FRAMES, [0, 1], 47, prioritised=True), life(FRAMES, 2)
    for _ in range(20):
        replay.add(*next(source))
    train(replay, source, 60, 0)
    older, older_digest = replay.save(tmp_path), replay.digest()
    steps = [next(source) for _ in range(33)]
    train(replay, iter(steps), 33, 100)
    newer, newer_digest = replay.save(tmp_path), replay.digest()

    again = reloaded(replay, tmp_path, older)  # killed here, before the new manifest: the older one still counts
    assert again.digest() == older_digest
    train(again, iter(steps), 33, 100)
    saved = again.save(tmp_path)
    assert again.digest() == newer_digest and saved["files"] == newer["files"]

    prune(tmp_path, {file["file"] for file in saved["files"]})
    assert reloaded(replay, tmp_path, saved).digest() == newer_digest
    assert {p.name for p in tmp_path.glob("replay-*")} == {file["file"] for file in saved["files"]}
    with pytest.raises(ValueError, match=r"replay-0-.* is missing"):
        reloaded(replay, tmp_path, older)


def test_pruning_touches_nothing_but_the_replays_files(tmp_path):
    for name in ("replay-0-000000-0-9.zst", "replay-0-000000-0-9.zst.tmp", "states.pt", "manifest.json"):
        (tmp_path / name).touch()
    prune(tmp_path, {"replay-0-000000-0-9.zst"})
    assert {p.name for p in tmp_path.iterdir()} == {"replay-0-000000-0-9.zst", "states.pt", "manifest.json"}


def test_a_flipped_byte_is_refused_by_name(tmp_path, small_chunks):
    replay, _ = filled(FRAMES, [0, 1], 60, 100)
    saved = replay.save(tmp_path)
    path = tmp_path / saved["files"][3]["file"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        reloaded(replay, tmp_path, saved)


def test_saving_after_clear_keeps_the_older_files(tmp_path, small_chunks):
    replay, _ = filled(VECTOR, [0], 60, 33)
    older, digest = replay.save(tmp_path), replay.digest()
    replay.clear()
    assert reloaded(replay, tmp_path, replay.save(tmp_path)).digest() == replay.digest()
    for step in steps_of_one(25):
        replay.add(*step)
    assert reloaded(replay, tmp_path, replay.save(tmp_path)).digest() == replay.digest()
    assert reloaded(replay, tmp_path, older).digest() == digest


def test_chunks_of_a_thousand_frames_survive_the_disk(tmp_path):
    replay, _ = filled(FRAMES, [0], 3_500, 4_000)
    saved = replay.save(tmp_path)
    assert [file["last"] - file["first"] + 1 for file in saved["files"]][1:-1] == [1_000] * (len(saved["files"]) - 2)
    assert reloaded(replay, tmp_path, saved).digest() == replay.digest()


def test_diagnostics_sample_uniformly_whatever_the_priorities():
    """With all mass on one slot, uniform samples are those of a replay that has no priorities."""
    uniform, prioritised = (Replay(VECTOR, [0], 60, prioritised=p) for p in (False, True))
    for replay in (uniform, prioritised):
        for k in range(40):
            obs = np.full((1, *VECTOR.obs_shape), k, np.float32)
            replay.add(obs, np.zeros(1, np.int64), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), obs)
    first = prioritised.sample(8, 0)
    prioritised.update_priorities(first["index"], torch.full((1, 8), 1e6))
    a, b = uniform.sample(64, 3, stream="observe"), prioritised.sample(64, 3, stream="observe", uniform=True)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["index"], prioritised.sample(64, 3, stream="observe")["index"])
