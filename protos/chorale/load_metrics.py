"""What data planes report about themselves, as Prometheus' families: of one by itself, or of a
fleet as the gateway sees it. Not for clients: it needs prometheus_client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from chorale.v1 import fleet_pb2

_PARTS = ("queue", "read", "parse", "build")


def load_families(prefix: str, loads: Mapping[str, fleet_pb2.Load]) -> Iterator[Any]:
    """loads: by data plane id, which is a label of each family."""
    yield from _work(prefix, loads)
    yield from _tiers(prefix, loads)
    yield from _load_counts(prefix, loads)
    yield from _prefetches(prefix, loads)


def _work(prefix: str, loads: Mapping[str, fleet_pb2.Load]) -> Iterator[Any]:
    gauges = {
        "num_running": ("sequences_running", "In the batch."),
        "max_running": ("sequences_running_max", "The largest batch."),
        "num_waiting": ("sequences_waiting", "Waiting for a place or for their adapter."),
        "num_pages": ("pool_pages", "All pages of the pool."),
        "num_available_pages": ("pool_pages_available", "Free, or held by nothing in use."),
        "num_loading": ("adapters_loading", "On their way to host memory."),
        "num_waiting_pins": ("pins_waiting", "Pinned, and not in their tier yet."),
        "path_s": (
            "first_token_path_seconds",
            "What first tokens take lately beside the engine: before it has the request, and "
            "between its token and the call.",
        ),
    }
    for field, (name, help_text) in gauges.items():
        gauge = GaugeMetricFamily(f"{prefix}_{name}", help_text, labels=("data_plane",))
        for data_plane, load in loads.items():
            gauge.add_metric((data_plane,), getattr(load, field))
        yield gauge
    waits = GaugeMetricFamily(
        f"{prefix}_expected_wait_seconds",
        "Until a request of the lowest priority that waits, come with the last report, would be "
        "begun; no row until steps were measured.",
        labels=("data_plane",),
    )
    for data_plane, load in loads.items():
        if load.HasField("outlook"):
            behind = [each.wait_s for each in load.outlook.waits]
            waits.add_metric((data_plane,), max(behind, default=load.outlook.behind_running_s))
    yield waits
    tokens = CounterMetricFamily(
        f"{prefix}_generated_tokens", "Since the start of the engine.", labels=("data_plane",)
    )
    for data_plane, load in loads.items():
        tokens.add_metric((data_plane,), load.num_generated_tokens)
    yield tokens


def _tiers(prefix: str, loads: Mapping[str, fleet_pb2.Load]) -> Iterator[Any]:
    labels = ("data_plane", "tier")
    kinds: dict[str, tuple[type, str, str]] = {
        "num_adapters": (GaugeMetricFamily, "tier_adapters", "Adapters in the tier."),
        "size_bytes": (GaugeMetricFamily, "tier_bytes", "What they take."),
        "max_bytes": (GaugeMetricFamily, "tier_max_bytes", "The tier's bound."),
        "num_hits": (CounterMetricFamily, "tier_hits", "Looked for and found."),
        "num_misses": (CounterMetricFamily, "tier_misses", "Looked for in vain."),
        "num_evictions": (CounterMetricFamily, "tier_evictions", "Given up for others."),
        "num_damaged": (CounterMetricFamily, "tier_damaged", "Found damaged, and dropped."),
    }
    for field, (kind, name, help_text) in kinds.items():
        family = kind(f"{prefix}_{name}", help_text, labels=labels)
        for data_plane, load in loads.items():
            for tier in load.tiers:
                family.add_metric((data_plane, tier.tier), getattr(tier, field))
        yield family


def _load_counts(prefix: str, loads: Mapping[str, fleet_pb2.Load]) -> Iterator[Any]:
    counts = CounterMetricFamily(
        f"{prefix}_adapter_loads",
        "Loads into host memory. origin: disk, or the scheme of the source.",
        labels=("data_plane", "origin", "outcome"),
    )
    size = CounterMetricFamily(
        f"{prefix}_adapter_load_bytes",
        "Of those that ended well.",
        labels=("data_plane", "origin"),
    )
    seconds = CounterMetricFamily(
        f"{prefix}_adapter_load_seconds",
        "Of those that ended well, by part: waiting for a turn, reading with verification, parsing "
        "with the check of every value, building pages.",
        labels=("data_plane", "origin", "part"),
    )
    for data_plane, load in loads.items():
        for count in load.load_counts:
            counts.add_metric((data_plane, count.origin, count.outcome), count.num_loads)
            if count.outcome != "OK":
                continue
            size.add_metric((data_plane, count.origin), count.size_bytes)
            for part in _PARTS:
                seconds.add_metric((data_plane, count.origin, part), getattr(count, f"{part}_s"))
    yield from (counts, size, seconds)


def _prefetches(prefix: str, loads: Mapping[str, fleet_pb2.Load]) -> Iterator[Any]:
    counts = CounterMetricFamily(
        f"{prefix}_prefetches",
        "asked: all. hit: found by a request. late: the request came first. failed. refused: no "
        "room.",
        labels=("data_plane", "what"),
    )
    late = CounterMetricFamily(
        f"{prefix}_prefetch_late_seconds",
        "How long requests waited for a prefetch that was under way.",
        labels=("data_plane",),
    )
    wasted = CounterMetricFamily(
        f"{prefix}_prefetch_wasted_bytes",
        "Prefetched and evicted before any use.",
        labels=("data_plane",),
    )
    for data_plane, load in loads.items():
        found = load.prefetches
        counts.add_metric((data_plane, "asked"), found.num_asked)
        counts.add_metric((data_plane, "hit"), found.num_hits)
        counts.add_metric((data_plane, "late"), found.num_late)
        counts.add_metric((data_plane, "failed"), found.num_failed)
        counts.add_metric((data_plane, "refused"), found.num_refused)
        late.add_metric((data_plane,), found.late.ToNanoseconds() / 1e9)
        wasted.add_metric((data_plane,), found.wasted_bytes)
    yield from (counts, late, wasted)
