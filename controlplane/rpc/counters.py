"""Between Load's counters and the domain's."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from msgspec import structs

from chorale.v1 import fleet_pb2 as pb
from controlplane.fleet.counters import (
    MAX_LOAD_COUNTS,
    MAX_TIERS,
    Counters,
    LoadCount,
    TierCounters,
    word,
)

T = TypeVar("T", TierCounters, LoadCount)


def counters_from_pb(load: pb.Load) -> Counters:
    return Counters(
        num_loading=load.num_loading,
        num_waiting_pins=load.num_waiting_pins,
        tiers=[_taken(TierCounters, each) for each in load.tiers[:MAX_TIERS]],
        load_counts=[_taken(LoadCount, each) for each in load.load_counts[:MAX_LOAD_COUNTS]],
    )


def add_counters(load: pb.Load, counters: Counters) -> None:
    """Fills them into `load`."""
    load.num_loading = counters.num_loading
    load.num_waiting_pins = counters.num_waiting_pins
    load.tiers.extend(pb.TierCounters(**structs.asdict(each)) for each in counters.tiers)
    load.load_counts.extend(pb.LoadCount(**structs.asdict(each)) for each in counters.load_counts)


def _taken(kind: type[T], message: pb.TierCounters | pb.LoadCount) -> T:
    """The message's fields have the same names. What is no time or no number is taken as 0."""
    fields: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        value = getattr(message, name)
        if isinstance(value, str):
            fields[name] = word(value)
        else:
            # No JSON has the others, and one report that cannot be read hides the whole fleet.
            fields[name] = value if math.isfinite(value) and value >= 0 else 0
    return kind(**fields)
