"""Between Load's counters and the domain's."""

from __future__ import annotations

from typing import Any

from chorale.v1 import fleet_pb2 as pb
from controlplane.fleet.counters import (
    MAX_LOAD_COUNTS,
    MAX_TIERS,
    Counters,
    LoadCount,
    TierCounters,
    word,
)


def counters_from_pb(load: pb.Load) -> Counters:
    return Counters(
        num_loading=load.num_loading,
        num_waiting_pins=load.num_waiting_pins,
        tiers=[
            TierCounters(
                tier=word(each.tier),
                num_adapters=each.num_adapters,
                size_bytes=each.size_bytes,
                max_bytes=each.max_bytes,
                num_hits=each.num_hits,
                num_misses=each.num_misses,
                num_evictions=each.num_evictions,
                num_damaged=each.num_damaged,
            )
            for each in load.tiers[:MAX_TIERS]
        ],
        load_counts=[
            LoadCount(
                origin=word(each.origin),
                outcome=word(each.outcome),
                num_loads=each.num_loads,
                size_bytes=each.size_bytes,
                queue_s=each.queue_s,
                read_s=each.read_s,
                parse_s=each.parse_s,
                build_s=each.build_s,
            )
            for each in load.load_counts[:MAX_LOAD_COUNTS]
        ],
    )


def add_counters(load: pb.Load, counters: Counters) -> None:
    """Fills them into `load`."""
    load.num_loading = counters.num_loading
    load.num_waiting_pins = counters.num_waiting_pins
    load.tiers.extend(pb.TierCounters(**_fields(each)) for each in counters.tiers)
    load.load_counts.extend(pb.LoadCount(**_fields(each)) for each in counters.load_counts)


def _fields(value: TierCounters | LoadCount) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}
