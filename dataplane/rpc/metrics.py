"""A data plane's Prometheus metrics: its requests, and what its engine reported last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chorale.load_metrics import load_families
from chorale.request_metrics import RequestMetrics
from chorale.v1 import fleet_pb2
from dataplane.channel import Stats
from dataplane.rpc.constraints import Constraints
from dataplane.rpc.foresight import Foresight

PREFIX = "chorale_data_plane"
_COUNTERS = {
    "num_prompt_tokens": ("prompt_tokens", "Of requests that began to run."),
    "num_prefix_hit_tokens": ("prefix_hit_tokens", "Of those: spared by the prefix cache."),
    "num_preemptions": ("preemptions", "Sequences put back and computed again."),
    "num_drafted_tokens": ("drafted_tokens", "Guessed ahead and computed."),
    "num_accepted_tokens": ("accepted_draft_tokens", "Of those: that were tokens of an answer."),
    "num_hopeless": ("hopeless_requests", "Ended in the queue, their time out of reach."),
    "num_copies": ("adapter_copies", "Adapters copied into the pool, to the end."),
    "num_grammars": ("constraint_compilations", "Constraints compiled by the engine."),
    "grammar_s": ("constraint_compile_seconds", "What that took, beside the steps."),
    "num_masks": ("constraint_masks", "Tokens chosen under a constraint."),
    "mask_s": ("constraint_mask_seconds", "Of the step loop, finding what may follow."),
    "copy_s": ("adapter_copy_seconds", "From the first to the last layer of those copies."),
}
_GAUGES = {
    "prefill_tokens_per_s": ("prefill_tokens_per_second", "Measured; 0 until it was."),
    "decode_step_s": ("decode_step_seconds", "Measured, at the present batch; 0 until it was."),
}


class EngineCollector(Collector):
    """load: as it is reported. stats: of the engine of the moment; nothing is asked of it for a
    scrape."""

    def __init__(
        self,
        data_plane_id: str,
        load: Callable[[], fleet_pb2.Load],
        stats: Callable[[], Stats | None],
    ) -> None:
        self._data_plane_id = data_plane_id
        self._load = load
        self._stats = stats

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        yield from load_families(PREFIX, {self._data_plane_id: self._load()})
        if stats is None:
            return
        for fields, kind in ((_COUNTERS, CounterMetricFamily), (_GAUGES, GaugeMetricFamily)):
            for field, (name, help_text) in fields.items():
                yield self._family(kind, name, help_text, {"": getattr(stats, field)})
        yield self._family(
            GaugeMetricFamily, "pool_owner_pages", "By what holds them.", _owners(stats), "owner"
        )
        yield self._family(
            GaugeMetricFamily,
            "pins_waiting_for",
            "Waiting pins by reason, of the first of them.",
            Counter(pin.reason for pin in stats.waiting_pins),
            "reason",
        )
        yield self._family(
            GaugeMetricFamily,
            "adapters_loading_bytes",
            "Of the loads under way.",
            {
                "received": sum(each.received_bytes for each in stats.loading),
                "total": sum(each.total_bytes for each in stats.loading),
            },
            "what",
        )

    def _family(
        self,
        kind: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        help_text: str,
        values: dict[str, Any],
        label: str = "",
    ) -> CounterMetricFamily | GaugeMetricFamily:
        labels = ("data_plane", label) if label else ("data_plane",)
        family = kind(f"{PREFIX}_{name}", help_text, labels=labels)
        for value, number in values.items():
            family.add_metric((self._data_plane_id, value)[: len(labels)], number)
        return family


def make_registry(
    requests: RequestMetrics,
    engine: EngineCollector,
    foresight: Foresight,
    constraints: Constraints,
) -> CollectorRegistry:
    """With what the operating system tells of this process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(requests)
    registry.register(engine)
    registry.register(foresight)
    registry.register(constraints)
    return registry


def _owners(stats: Stats) -> dict[str, Any]:
    kept = stats.num_adapter_pages + stats.num_cached_blocks + stats.num_free_pages
    return {
        "adapter": stats.num_adapter_pages,
        "prefix": stats.num_cached_blocks,
        "free": stats.num_free_pages,
        "sequence": max(0, stats.num_pages - kept),
    }
