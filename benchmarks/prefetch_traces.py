"""Synthetic requests of tenants for adapters, over time. Seeded: the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import eviction_traces
from benchmarks.eviction_traces import even_sizes, zipf

_TENANTS = 200


@dataclass(frozen=True)
class Timed:
    """Requests in order of time. times_s, adapters, tenants: [n]. sizes: [num_adapters] bytes.
    restarts: times at which the first data plane begins anew, with nothing in memory."""

    times_s: np.ndarray[Any, Any]
    adapters: np.ndarray[Any, Any]
    tenants: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]
    restarts: tuple[float, ...] = ()


def zipf_drift(num_adapters: int, num_requests: int, rate: float) -> Timed:
    """Popularity that drifts; no sessions."""
    trace = eviction_traces.zipf_drift(num_adapters, num_requests)
    return _poisson(trace.accesses, trace.sizes, rate, 11)


def bursts(num_adapters: int, num_requests: int, rate: float) -> Timed:
    trace = eviction_traces.bursts(num_adapters, num_requests)
    return _poisson(trace.accesses, trace.sizes, rate, 12)


def restarts(num_adapters: int, num_requests: int, rate: float) -> Timed:
    """Steady popularity, and a data plane that is started again four times."""
    random = np.random.default_rng(13)
    accesses = random.permutation(num_adapters)[zipf(random, num_adapters, num_requests, 1.0)]
    made = _poisson(accesses, even_sizes(random, num_adapters), rate, 13)
    ends = float(made.times_s[-1])
    return Timed(
        made.times_s,
        made.adapters,
        made.tenants,
        made.sizes,
        tuple(ends * part / 5 for part in range(1, 5)),
    )


def daily(num_adapters: int, num_requests: int, rate: float) -> Timed:
    """Three groups of adapters, each with its time of the day; a day takes a sixth of the trace."""
    random = np.random.default_rng(14)
    times_s = np.cumsum(random.exponential(1 / rate, num_requests))
    phase = 6 * times_s / times_s[-1]
    per_group = num_adapters // 3
    weights = np.stack([1 + np.cos(2 * np.pi * (phase - group / 3)) for group in range(3)]) ** 3
    edges = np.cumsum(weights / weights.sum(axis=0), axis=0)
    group = (random.random(num_requests) > edges).sum(axis=0).clip(0, 2)
    adapters = group * per_group + zipf(random, per_group, num_requests, 0.9)
    tenants = random.integers(_TENANTS, size=num_requests)
    return Timed(times_s, adapters, tenants, even_sizes(random, num_adapters))


def sessions(num_adapters: int, num_requests: int, rate: float) -> Timed:
    """Tenants work in steps: after an adapter, 8 of 10 times its own next one, some seconds later;
    else any, by popularity. About eight steps to a session."""
    random = np.random.default_rng(15)
    ranks = random.permutation(num_adapters)
    following = random.permutation(num_adapters)
    starts_s = np.cumsum(random.exponential(8 / rate, num_requests))
    made: list[tuple[float, int, int]] = []
    for session, start_s in enumerate(starts_s):
        adapter = int(ranks[zipf(random, num_adapters, 1, 0.6)[0]])
        now_s = float(start_s)
        for _ in range(int(random.geometric(0.125))):
            made.append((now_s, adapter, session))
            now_s += 4.0 + float(random.exponential(6.0))
            if random.random() < 0.8:
                adapter = int(following[adapter])
            else:
                adapter = int(ranks[zipf(random, num_adapters, 1, 0.6)[0]])
        if len(made) > 2 * num_requests:
            break
    made = sorted(made)[:num_requests]
    times_s, adapters, tenants = (np.array(column) for column in zip(*made, strict=True))
    return Timed(times_s, adapters, tenants, even_sizes(random, num_adapters))


def uniform(num_adapters: int, num_requests: int, rate: float) -> Timed:
    """Nothing to predict by."""
    random = np.random.default_rng(16)
    accesses = random.integers(num_adapters, size=num_requests)
    return _poisson(accesses, even_sizes(random, num_adapters), rate, 16)


GENERATORS: Mapping[str, Callable[[int, int, float], Timed]] = {
    "sessions": sessions,
    "restarts": restarts,
    "daily": daily,
    "zipf_drift": zipf_drift,
    "bursts": bursts,
    "uniform": uniform,
}


def _poisson(accesses: Any, sizes: Any, rate: float, seed: int) -> Timed:
    random = np.random.default_rng(seed)
    times_s = np.cumsum(random.exponential(1 / rate, len(accesses)))
    return Timed(times_s, accesses, random.integers(_TENANTS, size=len(accesses)), sizes)
