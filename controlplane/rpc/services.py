"""The services of a control plane, as a server takes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import grpc

from chorale.v1 import (
    adapter_registry_pb2_grpc,
    admission_pb2_grpc,
    blob_pb2_grpc,
    fleet_pb2_grpc,
    tenant_pb2_grpc,
)
from controlplane.admission.admission import Admission
from controlplane.admission.prefixes import PrefixKey
from controlplane.admission.source_access import SourceAccess
from controlplane.fleet.directives import Directives
from controlplane.options import ControlPlaneOptions
from controlplane.parts import Parts
from controlplane.placement.placement import PlacementPolicy
from controlplane.registry.uploads import Uploads
from controlplane.rpc.adapter_registry import AdapterRegistryHandlers
from controlplane.rpc.admission import AdmissionHandlers
from controlplane.rpc.blobs import BlobHandlers
from controlplane.rpc.fleet import FleetHandlers
from controlplane.rpc.tenants import TenantHandlers
from controlplane.tenants.running import Running
from controlplane.tenants.tenants import Tenants

Service = tuple[str, Callable[[grpc.aio.Server], None]]


def services_of(options: ControlPlaneOptions, parts: Parts) -> list[Service]:
    """Full names, and what adds each to a server."""
    uploads = Uploads(parts.blobs, parts.registry)
    registry, admission, blobs, fleet, tenants = cast(
        "Any",
        (
            adapter_registry_pb2_grpc,
            admission_pb2_grpc,
            blob_pb2_grpc,
            fleet_pb2_grpc,
            tenant_pb2_grpc,
        ),
    )  # untyped
    return [
        _service(
            "chorale.v1.AdapterRegistryService",
            registry.add_AdapterRegistryServiceServicer_to_server,
            AdapterRegistryHandlers(parts.registry, uploads),
        ),
        _service(
            "chorale.v1.AdmissionService",
            admission.add_AdmissionServiceServicer_to_server,
            AdmissionHandlers(_admission(options, parts), parts.metrics),
        ),
        _service(
            "chorale.v1.BlobService",
            blobs.add_BlobServiceServicer_to_server,
            BlobHandlers(uploads, token=options.fleet_token),
        ),
        _service(
            "chorale.v1.FleetService",
            fleet.add_FleetServiceServicer_to_server,
            _fleet_handlers(options, parts),
        ),
        _service(
            "chorale.v1.TenantService",
            tenants.add_TenantServiceServicer_to_server,
            TenantHandlers(Tenants(parts.store), token=options.fleet_token),
        ),
    ]


def _service(
    name: str, add: Callable[[object, grpc.aio.Server], None], handlers: object
) -> Service:
    return name, lambda server: add(handlers, server)


def _admission(options: ControlPlaneOptions, parts: Parts) -> Admission:
    return Admission(
        parts.store,
        parts.ticket_keys,
        parts.reservations,
        PlacementPolicy(max_queue_factor=options.max_queue_factor, lease_s=options.lease_s),
        SourceAccess(parts.sources, ttl_s=options.source_check_ttl_s, clock=time.monotonic),
        PrefixKey(options.fleet_token),
        ticket_ttl_s=options.ticket_ttl_s,
        generations_hold_s=options.generations_hold_s,
        max_priority=options.max_priority,
        tenant_prefixes=options.prefix_cache_per_tenant,
    )


def _fleet_handlers(options: ControlPlaneOptions, parts: Parts) -> FleetHandlers:
    return FleetHandlers(
        parts.fleet,
        Directives(parts.store, parts.registry),
        parts.demand,
        parts.metrics,
        running=Running(parts.store, holds_s=options.generations_hold_s),
        token=options.fleet_token,
        lease_s=options.lease_s,
        heartbeat_interval_s=options.heartbeat_interval_s,
    )
