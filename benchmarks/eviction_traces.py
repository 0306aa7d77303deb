"""Synthetic demand for adapters, for comparing eviction policies. Seeded: the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MIB = 1 << 20
_EVEN_SIZES = (16 * MIB, 32 * MIB, 64 * MIB)


@dataclass(frozen=True)
class Trace:
    """accesses: [n] adapter indices in order of use. sizes: [num_adapters] bytes."""

    accesses: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]


def zipf_drift(num_adapters: int, num_accesses: int) -> Trace:
    """Zipf popularity whose ranking drifts: every 40 uses two adapters change places in it."""
    random = np.random.default_rng(1)
    ranks = random.permutation(num_adapters)
    chosen = zipf(random, num_adapters, num_accesses, 1.0)
    accesses = np.empty(num_accesses, dtype=np.int64)
    for at in range(num_accesses):
        if at % 40 == 0:
            a, b = random.integers(num_adapters, size=2)
            ranks[a], ranks[b] = ranks[b], ranks[a]
        accesses[at] = ranks[chosen[at]]
    return Trace(accesses, even_sizes(random, num_adapters))


def bursts(num_adapters: int, num_accesses: int) -> Trace:
    """Half of the uses are Zipf; the others come in bursts of 10 to 40 for an adapter picked
    without regard to popularity, a few bursts at a time."""
    random = np.random.default_rng(2)
    ranks = random.permutation(num_adapters)
    steady = zipf(random, num_adapters, num_accesses, 0.8)
    accesses = np.empty(num_accesses, dtype=np.int64)
    open_bursts: list[list[int]] = []
    for at in range(num_accesses):
        if random.random() < 1 / 50:
            open_bursts.append([int(random.integers(num_adapters)), int(random.integers(10, 40))])
        if open_bursts and random.random() < 0.5:
            burst = open_bursts[int(random.integers(len(open_bursts)))]
            accesses[at] = burst[0]
            burst[1] -= 1
            if burst[1] <= 0:
                open_bursts.remove(burst)
        else:
            accesses[at] = ranks[steady[at]]
    return Trace(accesses, even_sizes(random, num_adapters))


def mixed_sizes(num_adapters: int, num_accesses: int, seed: int = 3) -> Trace:
    """Zipf; sizes from 4 to 256 MiB, evenly by their logarithm and whatever the popularity."""
    random = np.random.default_rng(seed)
    ranks = random.permutation(num_adapters)
    chosen = zipf(random, num_adapters, num_accesses, 0.9)
    sizes = (2.0 ** random.uniform(2, 8, num_adapters) * MIB).astype(np.int64)
    return Trace(ranks[chosen], sizes)


GENERATORS: Mapping[str, Callable[[int, int], Trace]] = {
    "zipf_drift": zipf_drift,
    "bursts": bursts,
    "mixed_sizes": mixed_sizes,
}


def zipf(random: np.random.Generator, count: int, draws: int, exponent: float) -> Any:
    weights = 1.0 / np.arange(1, count + 1) ** exponent
    edges = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(edges, random.random(draws)), count - 1)


def even_sizes(random: np.random.Generator, count: int) -> Any:
    return np.array(_EVEN_SIZES, dtype=np.int64)[random.integers(len(_EVEN_SIZES), size=count)]
