"""What data planes do per second, from counters that come with their heartbeats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from chorale.v1 import fleet_pb2 as fleet_pb


class Rate(NamedTuple):
    """Between the last two heartbeats that were seen. hit_share: of requests whose adapter was in
    the pool when they came; None when none came."""

    tokens_per_s: float
    hit_share: float | None
    evictions_per_s: float


class _Seen(NamedTuple):
    at_s: float
    tokens: int
    hits: int
    misses: int
    evictions: int


class Rates:
    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._rates: dict[str, Rate] = {}

    def update(self, planes: Iterable[fleet_pb.DataPlane]) -> dict[str, Rate]:
        """By data plane; without those of which one heartbeat only is known, as after a restart."""
        seen = {plane.data_plane_id: _seen(plane) for plane in planes}
        rates: dict[str, Rate] = {}
        for name, now in seen.items():
            before = self._seen.get(name)
            if before is None or any(a < b for a, b in zip(now[1:], before[1:], strict=True)):
                continue  # counters begin again with the engine
            if now.at_s > before.at_s:
                rates[name] = _rate(before, now)
            elif name in self._rates:
                rates[name] = self._rates[name]
        self._seen, self._rates = seen, rates
        return rates


def _seen(plane: fleet_pb.DataPlane) -> _Seen:
    pool = next((tier for tier in plane.load.tiers if tier.tier == "pool"), fleet_pb.TierCounters())
    return _Seen(
        plane.last_heartbeat_at.ToNanoseconds() / 1e9,
        plane.load.num_generated_tokens,
        pool.num_hits,
        pool.num_misses,
        pool.num_evictions,
    )


def _rate(before: _Seen, now: _Seen) -> Rate:
    seconds = now.at_s - before.at_s
    hits, misses = now.hits - before.hits, now.misses - before.misses
    return Rate(
        (now.tokens - before.tokens) / seconds,
        hits / (hits + misses) if hits + misses else None,
        (now.evictions - before.evictions) / seconds,
    )
