"""Every random number of a run is a pure function of (run seed, name of the stream, counters).

There is no generator state to save, to restore or to disturb: a resumed run draws what the uninterrupted one would have
drawn, a diagnostic cannot shift anybody's stream, and member k of a process with many seeds draws exactly what it would
draw alone.

Three forms, one idea:

* `host_generator`: NumPy draws on the host (replay indices, environment seeds);
* `fork_torch`: a block in which torch's initialisers draw from a stream (births, resets);
* `uniform` and `normal`: numbers that enter a compiled update as tensors. They are Philox4x32-10 (Salmon et al. 2011,
  "Parallel random numbers: as easy as 1, 2, 3"), written as integer tensor operations, so that eager and compiled, CPU
  and GPU, one seed and many draw the same bits. torch's own generators do not: they depend on `vmap` and the compiler.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF


def key(seed: int, name: str, *counters: int) -> int:
    """A stable 64-bit key for a stream; the same on every machine and in every process."""
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def host_generator(seed: int, name: str, *counters: int) -> np.random.Generator:
    """A NumPy generator at the start of the stream (seed, name, counters)."""
    return np.random.Generator(np.random.Philox(key=key(seed, name, *counters)))


def env_seed(seed: int, name: str, episode: int) -> int:
    """The 31-bit seed of an episode, as simulators want it."""
    return key(seed, name, episode) & 0x7FFFFFFF


@contextmanager
def fork_torch(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Inside the block torch's CPU generator draws from the stream; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, name, *counters) & 0x7FFFFFFFFFFFFFFF)  # no other device's
        yield


def keys_tensor(seeds: Sequence[int], name: str) -> Tensor:
    """Keys of one stream for several seeds, as two 32-bit words each. -> [n, 2] int64."""
    words = [(k & MASK32, k >> 32) for k in (key(seed, name) for seed in seeds)]
    return torch.tensor(words, dtype=torch.int64)


def philox(keys: Tensor, counters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four 32-bit words per (key, counter), as int64 tensors.

    keys: [..., 2]; counters: four tensors that broadcast with keys[..., 0].
    """
    k0, k1 = keys[..., 0], keys[..., 1]
    c0, c1, c2, c3 = counters
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # exact: the low 64 bits of a 32 x 32 bit product
        c0, c1, c2, c3 = ((p1 >> 32) & MASK32) ^ c1 ^ k0, p1 & MASK32, ((p0 >> 32) & MASK32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
    return c0, c1, c2, c3


def _words(keys: Tensor, counter: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words for `count` blocks per member at update `counter`. keys [n, 2], counter [] or [n] -> four of [n, count]."""
    block = torch.arange(count, device=keys.device)[None]
    counter = counter.reshape(-1, 1)
    low, high = counter & MASK32, counter >> 32
    zero = torch.zeros_like(block)
    return philox(keys[:, None, :], (block + zero, low + zero, high + zero, zero))


def _between_0_and_1(words: Tensor) -> Tensor:
    """The upper 23 bits of 32-bit words, in the middle of their interval: exact in float32, and never 0 or 1."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def uniform(keys: Tensor, counter: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform in (0, 1), n members at once. keys [n, 2], counter [] or [n] int64 -> [n, *shape] float32."""
    size = math.prod(shape)
    words = torch.stack(_words(keys, counter, -(-size // 4)), dim=-1).flatten(1)[:, :size]
    return _between_0_and_1(words).reshape(-1, *shape)


def normal(keys: Tensor, counter: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal (Box-Muller), n members at once. keys [n, 2], counter [] or [n] int64 -> [n, *shape] float32."""
    size = math.prod(shape)
    a, b, c, d = (_between_0_and_1(words) for words in _words(keys, counter, -(-size // 4)))
    r1, r2 = (-2 * a.log()).sqrt(), (-2 * c.log()).sqrt()
    t1, t2 = 2 * math.pi * b, 2 * math.pi * d
    draws = torch.stack((r1 * t1.cos(), r1 * t1.sin(), r2 * t2.cos(), r2 * t2.sin()), dim=-1)
    return draws.flatten(1)[:, :size].reshape(-1, *shape)


class Noise(NamedTuple):
    """A declaration: random numbers that an update or a decision takes as an input tensor."""

    kind: Literal["normal", "uniform"]
    shape: tuple[int, ...]  # for one seed


def draw(noise: dict[str, Noise], keys: dict[str, Tensor], counter: Tensor) -> dict[str, Tensor]:
    """The declared numbers for n members at one count, by Philox. keys [n, 2] by name -> [n, *shape] by name."""
    sources = {"normal": normal, "uniform": uniform}
    return {name: sources[kind](keys[name], counter, shape) for name, (kind, shape) in noise.items()}


def draw_on_host(noise: dict[str, Noise], seeds: Sequence[int], stream: str, counter: int) -> dict[str, Tensor]:
    """The same declaration drawn by NumPy, for decisions taken on the host. -> [n, *shape] float32 by name."""
    drawn = {}
    for name, (kind, shape) in noise.items():
        generators = [host_generator(seed, f"{stream}/{name}", counter) for seed in seeds]
        rows = [
            g.standard_normal(shape, np.float32) if kind == "normal" else g.random(shape, np.float32)
            for g in generators
        ]
        drawn[name] = torch.from_numpy(np.stack(rows))
    return drawn
