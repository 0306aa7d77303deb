"""What the engine says, in the words of FleetService."""

from __future__ import annotations

import dataclasses

from google.protobuf import duration_pb2
from msgspec import structs

from chorale.outlooks import outlook_to_pb
from chorale.v1 import adapter_registry_pb2, fleet_pb2
from dataplane.channel import (
    Adapter,
    Directive,
    ModuleShape,
    Prefetch,
    Ready,
    Stats,
    Unload,
    Unpin,
)

_MAX_DIGESTS = 50_000  # as Residency has it
_TIERS = {fleet_pb2.ADAPTER_TIER_HOST: "host", fleet_pb2.ADAPTER_TIER_POOL: "pool"}


def base_model_of(ready: Ready) -> adapter_registry_pb2.BaseModel:
    return adapter_registry_pb2.BaseModel(
        name=ready.model_name,
        fingerprint=ready.fingerprint,
        num_layers=ready.num_layers,
        layer_modules=[_shape(module) for module in ready.layer_modules],
        outer_modules=[_shape(module) for module in ready.outer_modules],
        mixture_modules=[_shape(module) for module in ready.mixture_modules],
        max_context_tokens=ready.max_context_tokens,
        vocab_size=ready.vocab_size,
    )


def load_of(ready: Ready, stats: Stats | None) -> fleet_pb2.Load:
    """stats: None before the engine has sent any, which is an idle engine."""
    if stats is None:
        return fleet_pb2.Load(
            max_running=ready.max_running,
            num_pages=ready.num_pages,
            num_available_pages=ready.num_pages,
        )
    return fleet_pb2.Load(
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        max_running=ready.max_running,
        num_pages=stats.num_pages,
        num_available_pages=stats.num_available_pages,
        num_generated_tokens=stats.num_generated_tokens,
        prefetches=_prefetches(stats),
        tiers=[fleet_pb2.TierCounters(**structs.asdict(each)) for each in stats.tiers],
        num_loading=stats.num_loading,
        num_waiting_pins=stats.num_waiting_pins,
        load_counts=[fleet_pb2.LoadCount(**dataclasses.asdict(each)) for each in stats.loads],
        outlook=outlook_to_pb(stats.outlook) if stats.outlook else None,
    )


def residency_of(stats: Stats | None) -> fleet_pb2.Residency:
    """Each digest in the fastest tier that holds it, and no more of them than the contract lets."""
    if stats is None:
        return fleet_pb2.Residency()
    pool = set(stats.pool_digests)
    host = set(stats.host_digests) - pool
    disk = sorted(set(stats.disk_digests) - host - pool)
    return fleet_pb2.Residency(
        pool_digests=sorted(pool),
        host_digests=sorted(host),
        disk_digests=disk[: max(_MAX_DIGESTS - len(pool) - len(host), 0)],
    )


def directive_of(message: fleet_pb2.Directive) -> Directive | None:
    """For the engine; None for what this version does not know."""
    match message.action:
        case fleet_pb2.ADAPTER_ACTION_PREFETCH | fleet_pb2.ADAPTER_ACTION_PIN:
            tier = _TIERS.get(message.tier)
            if tier is None:
                return None
            adapter = Adapter(message.digest, message.source, message.name)
            return Prefetch(adapter, tier, message.action == fleet_pb2.ADAPTER_ACTION_PIN)
        case fleet_pb2.ADAPTER_ACTION_UNPIN:
            return Unpin(message.digest)
        case fleet_pb2.ADAPTER_ACTION_UNLOAD:
            return Unload(message.digest, message.within.ToNanoseconds() / 1e9)
        case _:
            return None


def _prefetches(stats: Stats) -> fleet_pb2.Prefetches:
    late = duration_pb2.Duration()
    late.FromMilliseconds(int(stats.prefetch_late_s * 1000))
    return fleet_pb2.Prefetches(
        num_hits=stats.num_prefetch_hits,
        num_late=stats.num_prefetch_late,
        late=late,
        wasted_bytes=stats.prefetch_wasted_bytes,
        num_failed=stats.num_prefetch_failed,
        num_refused=stats.num_prefetch_refused,
        num_asked=stats.num_prefetch_asked,
    )


def _shape(module: ModuleShape) -> adapter_registry_pb2.ModuleShape:
    return adapter_registry_pb2.ModuleShape(
        module=module.module,
        in_features=module.in_features,
        out_features=module.out_features,
        layers=module.layers,
        num_experts=module.num_experts,
    )
