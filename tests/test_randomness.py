"""Random streams against Random123's published vectors, a plain-Python Philox and SciPy's statistics."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from core import randomness
from core.randomness import (
    Noise,
    beside,
    draw,
    draw_on_host,
    env_seed,
    fork_torch,
    host_generator,
    key,
    keys_tensor,
    philox,
)

ONES = 0xFFFFFFFF
# Random123's published kat_vectors for philox4x32, 10 rounds: counter, key, result
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
SEEDS = (0, 1, 17)
COUNT = torch.tensor(3)


def uniform(keys, counter, shape):
    return draw({"a": Noise("uniform", shape)}, {"a": keys}, counter)["a"]


def normal(keys, counter, shape):
    return draw({"a": Noise("normal", shape)}, {"a": keys}, counter)["a"]


def plain_philox(counter, key_words):
    """Salmon et al. 2011, section 3.3, on Python's unbounded integers."""
    c, k = list(counter), list(key_words)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second % 2**32, (first >> 32) ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def plain_words(seed, name, counter, blocks):
    """The 32-bit words that member `seed` should see at a count, four per block."""
    k = key(seed, name)
    halves = (counter % 2**32, counter // 2**32)
    return np.array([plain_philox((b, *halves, 0), (k % 2**32, k // 2**32)) for b in range(blocks)]).ravel()


# Philox


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(name):
    counter, key_words, expected = KNOWN_ANSWERS[name]
    words = philox(torch.tensor([key_words]), [torch.tensor([c]) for c in counter])
    assert tuple(int(w) for w in words) == expected


def test_philox_equals_plain_python_on_random_inputs():
    g = np.random.default_rng(0)
    inputs = g.integers(0, 2**32, size=(200, 6))
    columns = torch.from_numpy(inputs)
    words = torch.stack(philox(columns[:, 4:], [columns[:, i] for i in range(4)]), -1)
    expected = [plain_philox(row[:4], row[4:]) for row in inputs.tolist()]
    assert words.tolist() == [list(row) for row in expected]


def test_uniform_numbers_are_the_words_in_order_scaled_to_the_unit_interval():
    words = plain_words(17, "a", 3, blocks=3)
    got = uniform(keys_tensor([17], "a"), COUNT, (2, 5))
    expected = ((words >> 8) + 0.5)[:10] / 2**24
    np.testing.assert_allclose(got.flatten().numpy(), expected, rtol=0, atol=2**-24)


def test_normal_numbers_are_the_box_muller_transform_of_the_words():
    u = ((plain_words(17, "a", 3, blocks=4) >> 8) + 0.5).reshape(4, 4) / 2**24
    pairs = [np.sqrt(-2 * np.log(u[:, i])) * np.exp(2j * np.pi * u[:, i + 1]) for i in (0, 2)]
    expected = np.stack([pairs[0].real, pairs[0].imag, pairs[1].real, pairs[1].imag], 1).ravel()[:13]
    got = normal(keys_tensor([17], "a"), COUNT, (13,))
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-5)


def test_a_counter_beyond_32_bits_does_not_wrap():
    counter = 2**32 + 5
    got = uniform(keys_tensor([0], "a"), torch.tensor(counter), (8,))
    expected = ((plain_words(0, "a", counter, blocks=2) >> 8) + 0.5) / 2**24
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=0, atol=2**-24)
    assert not torch.equal(got, uniform(keys_tensor([0], "a"), torch.tensor(5), (8,)))


# statistics


def test_uniform_numbers_are_uniform():
    u = uniform(keys_tensor([5], "a"), COUNT, (200_000,))[0].double().numpy()
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 1e-3
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(u.size)


def test_normal_numbers_are_standard_normal():
    z = normal(keys_tensor([5], "a"), COUNT, (200_000,))[0].double().numpy()
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    assert abs(stats.skew(z)) < 0.03 and abs(stats.kurtosis(z)) < 0.06
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for lag in (1, 2, 3):  # the four numbers of a block share two radii and two angles
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 4 / np.sqrt(z.size)


@pytest.mark.parametrize("word", [0, ONES])
def test_uniform_numbers_never_reach_0_or_1(word, monkeypatch):
    monkeypatch.setattr(randomness, "philox", lambda keys, counters: (torch.full_like(counters[0], word),) * 4)
    u = uniform(keys_tensor([0], "a"), COUNT, (4,))
    assert (u > 0).all() and (u < 1).all()


@pytest.mark.parametrize("word", [0, ONES])
def test_normal_numbers_are_finite_at_the_extreme_words(word, monkeypatch):
    monkeypatch.setattr(randomness, "philox", lambda keys, counters: (torch.full_like(counters[0], word),) * 4)
    assert normal(keys_tensor([0], "a"), COUNT, (4,)).isfinite().all()


def test_uniform_numbers_drawn_on_the_host_never_reach_1(monkeypatch):
    """floor(u n) is then one of 0 .. n-1."""

    class Highest:
        def random(self, shape, dtype=np.float64):
            return np.full(shape, np.nextafter(dtype(1), dtype(0)), dtype)

    monkeypatch.setattr(randomness, "host_generator", lambda *args: Highest())
    assert (draw_on_host({"u": Noise("uniform", (4,))}, SEEDS, "highest", 0)["u"] < 1).all()


# streams


@pytest.mark.parametrize("source", [uniform, normal])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (7,), (2, 3, 4)])
def test_a_member_among_many_draws_what_it_draws_alone(source, shape):
    together = source(keys_tensor(SEEDS, "a"), COUNT, shape)
    assert together.shape == (3, *shape) and together.dtype == torch.float32
    for k, seed in enumerate(SEEDS):
        assert torch.equal(together[k], source(keys_tensor([seed], "a"), COUNT, shape)[0])


def test_a_host_draw_of_a_member_among_many_is_what_it_draws_alone():
    noise = {"explore": Noise("uniform", (4,)), "policy": Noise("normal", (4, 2))}
    together = draw_on_host(noise, SEEDS, "act", 9)
    assert {k: (tuple(v.shape), v.dtype) for k, v in together.items()} == {
        "explore": ((3, 4), torch.float32),
        "policy": ((3, 4, 2), torch.float32),
    }
    for k, seed in enumerate(SEEDS):
        alone = draw_on_host(noise, [seed], "act", 9)
        assert all(torch.equal(together[name][k], alone[name][0]) for name in noise)


def test_a_hosts_stream_is_numpys_philox_with_the_streams_key():
    for stream in ((0, "replay", 7), (2**63, "a/b", 0), (5, "x", 2**40, 3)):
        ours, numpys = host_generator(*stream), np.random.Generator(np.random.Philox(key=key(*stream)))
        assert str(ours.bit_generator.state) == str(numpys.bit_generator.state)
        assert np.array_equal(ours.standard_normal(9), numpys.standard_normal(9))


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_host_draw_is_its_place_in_a_block_that_numpy_draws(kind):
    """Counts 64 to 127 are the second block of 64; the stream's key is that of (seed, name, block)."""
    generator = host_generator(SEEDS[1], "act/x", 1)
    block = (generator.standard_normal if kind == "normal" else generator.random)((64, 3, 2), np.float32)
    for count in (64, 100, 127, 64):
        drawn = draw_on_host({"x": Noise(kind, (3, 2))}, SEEDS, "act", count)["x"]
        assert np.array_equal(drawn[1], block[count - 64])
        drawn.zero_()  # whoever takes them may write there
    assert not np.array_equal(draw_on_host({"x": Noise(kind, (3, 2))}, SEEDS, "act", 63)["x"][1], block[63])


def test_members_may_stand_at_different_counts():
    keys = keys_tensor(SEEDS, "a")
    got = uniform(keys, torch.tensor([4, 5, 6]), (3,))
    for k, count in enumerate((4, 5, 6)):
        assert torch.equal(got[k], uniform(keys[k : k + 1], torch.tensor(count), (3,))[0])


def test_declared_noise_is_drawn_each_from_its_own_key():
    assert draw({}, {}, COUNT) == {}
    noise = {"critic": Noise("normal", (2, 3)), "mask": Noise("uniform", (4,)), "nothing": Noise("uniform", (0,))}
    keys = {name: keys_tensor(SEEDS, f"update/{name}") for name in noise}
    drawn = draw(noise, keys, COUNT)
    assert torch.equal(drawn["critic"], normal(keys["critic"], COUNT, (2, 3)))
    assert torch.equal(drawn["mask"], uniform(keys["mask"], COUNT, (4,)))
    assert drawn["nothing"].shape == (3, 0)


STREAMS = {
    "base": (0, "a", 1),
    "another seed": (1, "a", 1),
    "another name": (0, "b", 1),
    "another counter": (0, "a", 2),
}


def forked(stream):
    with fork_torch(*stream):
        return tuple(torch.rand(4).tolist())


def tensor_stream(stream):
    seed, name, counter = stream
    return tuple(uniform(keys_tensor([seed], name), torch.tensor(counter), (4,)).flatten().tolist())


DRAWS = {
    "key": lambda stream: key(*stream),
    "env_seed": lambda stream: env_seed(*stream),
    "host_generator": lambda stream: tuple(host_generator(*stream).random(4)),
    "fork_torch": forked,
    "uniform": tensor_stream,
    "draw_on_host": lambda stream: tuple(
        draw_on_host({"x": Noise("normal", (4,))}, stream[:1], stream[1], stream[2])["x"].flatten().tolist()
    ),
}


@pytest.mark.parametrize("source", DRAWS)
def test_streams_repeat_and_differ_by_seed_name_and_counter(source):
    first = {name: DRAWS[source](stream) for name, stream in STREAMS.items()}
    randomness._ahead.cache_clear()
    again = {name: DRAWS[source](stream) for name, stream in reversed(STREAMS.items())}
    assert first == again
    assert len(set(first.values())) == len(STREAMS)


def test_a_key_is_the_same_on_every_machine():
    """The first 8 bytes of BLAKE2b("7:birth/q:3"), little-endian; from the b2sum of coreutils."""
    assert key(7, "birth/q", 3).to_bytes(8, "little").hex() == "d10516e8603c89ec"
    assert 0 <= env_seed(7, "birth/q", 3) < 2**31


def test_keys_hold_the_low_and_the_high_word():
    low, high = keys_tensor([5], "a")[0].tolist()
    assert low + high * 2**32 == key(5, "a")
    assert 0 <= low < 2**32 and 0 <= high < 2**32


# the global generators


@pytest.mark.parametrize("source", DRAWS)
def test_no_global_generator_moves(source):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()
    DRAWS[source](STREAMS["base"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and np.random.get_state()[2] == before[2]
    assert random.getstate() == before[3]


@pytest.mark.parametrize("source", DRAWS)
def test_no_global_generator_is_read(source):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = DRAWS[source](STREAMS["base"])
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert DRAWS[source](STREAMS["base"]) == first


def test_what_is_drawn_beside_moves_nothing_and_depends_on_where_the_generator_stands():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with beside():
        first = torch.randn(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, torch.randn(4))
    with beside():
        assert not torch.equal(first, torch.randn(4))


def test_a_fork_gives_the_generator_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), fork_torch(0, "a"):
        torch.rand(3)
        raise RuntimeError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fork_leaves_the_generators_of_other_devices_alone(monkeypatch):
    touched = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    with fork_torch(0, "a"):
        torch.rand(3)
    assert touched == []
