"""What the tiers below the pool hold and what their loads came to, in the channel's words."""

from __future__ import annotations

from typing import Any, NamedTuple

from dataplane.load_reports import REPORTED_LOADS, AdapterLoad, LoadUnderWay, TierCounters
from storage.disk_tier import DiskTierStats
from storage.host_tier import HostTierStats
from storage.load_count import LoadCount
from storage.loader import TieredLoader


class LoaderReport(NamedTuple):
    """Fields as in channel.Stats."""

    tiers: list[TierCounters]
    loads: list[LoadCount]
    loading: list[LoadUnderWay]
    num_loading: int


def report_of(
    tiers: TieredLoader[Any], host_bytes: int, disk_bytes: int, now_s: float
) -> LoaderReport:
    """host_bytes, disk_bytes: the tiers' bounds. now_s: on the loader's clock. From any thread."""
    host, disk = tiers.tier_stats()
    counters = [_tier("host", host, host_bytes)]
    if disk is not None:
        counters.append(_tier("disk", disk, disk_bytes))
    under_way = tiers.under_way()
    return LoaderReport(
        counters,
        tiers.history.counts(),
        [
            LoadUnderWay(
                digest=each.digest,
                origin=each.origin,
                state=each.state,
                received_bytes=each.received_bytes,
                total_bytes=each.total_bytes,
                bytes_per_s=each.bytes_per_s,
                waited_s=max(0.0, now_s - each.began_s),
            )
            for each in under_way[:REPORTED_LOADS]
        ],
        len(under_way),
    )


def recent_loads(tiers: TieredLoader[Any], now_s: float) -> list[AdapterLoad]:
    """The last loads, those that failed among them, oldest first. From any thread."""
    ended = [
        AdapterLoad(
            digest=each.digest,
            tier=each.tier,
            size_bytes=each.size_bytes,
            read_s=each.read_s,
            parse_s=each.parse_s,
            build_s=each.build_s,
            queue_s=each.queue_s,
            age_s=max(0.0, now_s - each.ended_s),
            origin=each.origin,
        )
        for each in tiers.recent_timings()
    ]
    failed = [
        AdapterLoad(
            digest=each.digest,
            tier="source",
            size_bytes=0,
            read_s=0.0,
            parse_s=0.0,
            build_s=0.0,
            age_s=max(0.0, now_s - each.ended_s),
            origin=each.origin,
            reason=each.reason,
            message=each.message,
        )
        for each in tiers.history.failures()
    ]
    return sorted([*ended, *failed], key=lambda each: -each.age_s)


def _tier(name: str, stats: HostTierStats | DiskTierStats, max_bytes: int) -> TierCounters:
    return TierCounters(
        tier=name,
        num_adapters=stats.num_entries,
        size_bytes=stats.entry_bytes,
        max_bytes=max_bytes,
        num_hits=stats.num_hits,
        num_misses=stats.num_misses,
        num_evictions=stats.num_evictions,
        num_damaged=stats.num_damaged if isinstance(stats, DiskTierStats) else 0,
    )
