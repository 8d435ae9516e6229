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

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

MASK32 = 0xFFFFFFFF
AHEAD = 64  # counts of a host's stream that are drawn at once


def key(seed: int, name: str, *counters: int) -> int:
    """A stable 64-bit key for a stream; the same on every machine and in every process."""
    text = ":".join([str(seed), name, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class _Key(ISeedSequence):
    """What Philox takes its key from. Given as `key=` it is the same in twice the time: entropy is drawn first."""

    def __init__(self, number: int) -> None:
        self.words = np.array([number, 0], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        return self.words


def host_generator(seed: int, name: str, *counters: int) -> np.random.Generator:
    """A NumPy generator at the start of the stream (seed, name, counters)."""
    words = _Key(key(seed, name, *counters))
    return np.random.Generator(np.random.Philox(words))  # type: ignore[arg-type]


def env_seed(seed: int, name: str, episode: int) -> int:
    """The 31-bit seed of an episode, as simulators want it."""
    return key(seed, name, episode) & 0x7FFFFFFF


@contextmanager
def fork_torch(seed: int, name: str, *counters: int) -> Iterator[None]:
    """Inside the block torch's CPU generator draws from the stream; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(seed, name, *counters) & 0x7FFFFFFFFFFFFFFF)  # no other device's
        yield


@contextmanager
def beside() -> Iterator[None]:
    """Inside the block torch's CPU generator draws other numbers; afterwards it is as it was.

    For what is built beside a network and must leave the network's own draw alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))
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


def _between_0_and_1(words: Tensor) -> Tensor:
    """The upper 23 bits of 32-bit words, in the middle of their interval: exact in float32, and never 0 or 1."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _normal(words: Tensor) -> Tensor:
    """Box-Muller, four at a time. words [..., 4] -> [..., 4]."""
    a, b, c, d = _between_0_and_1(words).unbind(-1)
    r1, r2 = (-2 * a.log()).sqrt(), (-2 * c.log()).sqrt()
    t1, t2 = 2 * math.pi * b, 2 * math.pi * d
    return torch.stack((r1 * t1.cos(), r1 * t1.sin(), r2 * t2.cos(), r2 * t2.sin()), dim=-1)


TRANSFORMS = {"normal": _normal, "uniform": _between_0_and_1}


class Noise(NamedTuple):
    """A declaration: random numbers that an update or a decision takes as an input tensor."""

    kind: Literal["normal", "uniform"]  # standard normal, or uniform in (0, 1)
    shape: tuple[int, ...]  # for one seed
    shared: bool = False  # by all samples of a batch; else it leads with them


def draw(noise: dict[str, Noise], keys: dict[str, Tensor], counter: Tensor) -> dict[str, Tensor]:
    """The declared numbers for n members at one count (or each at its own), by Philox; float32.

    keys [n, 2] by name, counter [] or [n] int64 -> [n, *shape] by name. All words come from one generation, so that a
    compiled update does not grow by it with every name.
    """
    if not noise:
        return {}
    blocks = {name: -(-math.prod(shape) // 4) for name, (_, shape, _) in noise.items()}  # of four words
    key = torch.cat([keys[name][:, None].expand(-1, count, -1) for name, count in blocks.items()], dim=1)
    block = torch.cat([torch.arange(count, device=key.device) for count in blocks.values()])[None]
    zero, counter = torch.zeros_like(block), counter.reshape(-1, 1)
    words = philox(key, (block, zero + (counter & MASK32), zero + (counter >> 32), zero))
    own = torch.stack(words, dim=-1).split(list(blocks.values()), dim=1)
    return {
        name: TRANSFORMS[kind](mine).flatten(1)[:, : math.prod(shape)].reshape(len(key), *shape)
        for (name, (kind, shape, _)), mine in zip(noise.items(), own, strict=True)
    }


def draw_on_host(noise: dict[str, Noise], seeds: Sequence[int], stream: str, counter: int) -> dict[str, Tensor]:
    """The same declaration drawn by NumPy, for decisions taken on the host. -> [n, *shape] float32 by name."""
    block, place = divmod(counter, AHEAD)
    drawn = _ahead(tuple(noise.items()), tuple(seeds), stream, block)
    return {name: numbers[place].clone() for name, numbers in drawn.items()}


@functools.lru_cache(maxsize=8)
def _ahead(noise: tuple[tuple[str, Noise], ...], seeds: tuple[int, ...], stream: str, block: int) -> dict[str, Tensor]:
    """The numbers of so many counts: to begin a stream takes longer than to draw from it. -> [AHEAD, n, *shape]"""
    drawn = {}
    for name, (kind, shape, _) in noise:
        generators = [host_generator(seed, f"{stream}/{name}", block) for seed in seeds]
        size = (AHEAD, *shape)
        rows = [
            g.standard_normal(size, np.float32) if kind == "normal" else g.random(size, np.float32) for g in generators
        ]
        drawn[name] = torch.from_numpy(np.stack(rows, 1))
    return drawn
