"""What the engine says, in the words of FleetService."""

from __future__ import annotations

from chorale.v1 import adapter_registry_pb2, fleet_pb2
from dataplane.channel import ModuleShape, Ready, Stats


def base_model_of(ready: Ready) -> adapter_registry_pb2.BaseModel:
    return adapter_registry_pb2.BaseModel(
        name=ready.model_name,
        fingerprint=ready.fingerprint,
        num_layers=ready.num_layers,
        layer_modules=[_shape(module) for module in ready.layer_modules],
        outer_modules=[_shape(module) for module in ready.outer_modules],
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
    )


def residency_of(stats: Stats | None) -> fleet_pb2.Residency:
    """Each digest in the fastest tier that holds it, as the contract has it."""
    if stats is None:
        return fleet_pb2.Residency()
    pool = set(stats.pool_digests)
    host = set(stats.host_digests) - pool
    disk = set(stats.disk_digests) - host - pool
    return fleet_pb2.Residency(
        pool_digests=sorted(pool), host_digests=sorted(host), disk_digests=sorted(disk)
    )


def _shape(module: ModuleShape) -> adapter_registry_pb2.ModuleShape:
    return adapter_registry_pb2.ModuleShape(
        module=module.module,
        in_features=module.in_features,
        out_features=module.out_features,
    )
