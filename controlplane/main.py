"""The control plane process: registry, fleet and admission behind one gRPC server."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from chorale import event_loop
from chorale.exporter import Exporter
from chorale.server import Server, start_server
from chorale.v1 import (
    adapter_registry_pb2_grpc,
    admission_pb2_grpc,
    blob_pb2_grpc,
    fleet_pb2_grpc,
    tenant_pb2_grpc,
)
from controlplane.admission.admission import Admission
from controlplane.admission.prefixes import PrefixKey
from controlplane.admission.reservations import Reservations
from controlplane.admission.source_access import SourceAccess
from controlplane.errors import OptionError, StoreUnavailableError
from controlplane.fleet.directives import Directives
from controlplane.fleet.fleet import Fleet
from controlplane.fleet.ticket_keys import TicketKeys
from controlplane.metrics import ControlPlaneMetrics
from controlplane.options import ControlPlaneOptions
from controlplane.placement.placement import PlacementPolicy
from controlplane.prefetch.batch import DemandBatch
from controlplane.prefetch.demand import Demand
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.predictor import Predictor
from controlplane.registry.intake import Intake
from controlplane.registry.registry import AdapterRegistry
from controlplane.registry.uploads import Uploads
from controlplane.rpc.adapter_registry import AdapterRegistryHandlers
from controlplane.rpc.admission import AdmissionHandlers
from controlplane.rpc.blobs import BlobHandlers
from controlplane.rpc.error_table import ERROR_TABLE
from controlplane.rpc.fleet import FleetHandlers
from controlplane.rpc.tenants import TenantHandlers
from controlplane.store.client import Store
from controlplane.tasks import end
from controlplane.tenants.running import Running
from controlplane.tenants.tenants import Tenants
from storage.blobs import BlobStore
from storage.limits import AdapterLimits
from storage.sources import SourceOptions, SourceRouter, build_router

__all__ = ["ControlPlaneOptions", "run", "serve"]

log = logging.getLogger(__name__)

_HEALTH_INTERVAL_S = 0.5
_GRACE_S = 1.0


async def serve(
    options: ControlPlaneOptions,
    *,
    ready: Callable[[str, int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set, or without one until cancelled. Calls `ready(host, port)` when
    it can serve.

    Raises: StoreUnavailableError when Redis does not answer within `redis_start_s`; OSError when
    the address cannot be bound; OptionError.
    """
    stop = stop or asyncio.Event()
    connect = partial(
        Store,
        options.redis_url,
        password=options.redis_password,
        timeout_s=options.redis_timeout_s,
    )
    store = connect()
    # Connections of its own: heartbeats that wait behind a burst of admissions would end leases.
    fleet_store = connect(max_connections=4)
    try:
        if not await _first_of(store.wait_until_up(options.redis_start_s), stop):
            return
        demand_limits = DemandLimits()
        reservations = Reservations(store, DemandBatch(demand_limits) if options.prefetch else None)
        demand = Demand(store, demand_limits)
        prefetch_policy = PrefetchPolicy(budget_bytes_per_s=options.prefetch_bytes_per_s)
        predictor = Predictor(store, prefetch_policy, demand_limits)
        limits = AdapterLimits(max_weights_bytes=options.max_adapter_bytes)
        blobs = _blobs(options, limits)
        sources = _sources(options, limits, blobs)
        registry = AdapterRegistry(store, Intake(sources, limits))
        ticket_keys = TicketKeys(store)
        fleet = Fleet(fleet_store, ticket_keys, lease_s=options.lease_s)
        metrics = ControlPlaneMetrics(registry, fleet, demand, predictor)
        exporter = Exporter(metrics.registry, metrics.refresh)
        server = await _start(
            options,
            store,
            registry,
            fleet,
            ticket_keys,
            reservations,
            demand,
            sources,
            blobs,
            metrics,
        )
        reservations.start()
        if options.prefetch:
            predictor.start()
        try:
            if options.metrics_port is not None:
                await exporter.start(options.host, options.metrics_port)
            await server.set_serving(True)
            if ready is not None:
                ready(options.host, server.port)
            await _first_of(_watch_health(server, store), stop)
        finally:
            await exporter.stop()
            await server.stop(_GRACE_S)
            await reservations.stop()
            await predictor.stop()
            await sources.aclose()
    finally:
        await store.close()
        await fleet_store.close()


def run(options: ControlPlaneOptions, *, ready: Callable[[str, int], None] | None = None) -> None:
    """Runs the process until SIGTERM or SIGINT. Raises as `serve`."""
    event_loop.run(_run(options, ready))


async def _run(options: ControlPlaneOptions, ready: Callable[[str, int], None] | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(options, ready=ready, stop=stop)


async def _first_of(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Whether `work` ended (True, or what it raised) before `stop`, which cancels it."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(working)
        await end(stopping)
    if working.cancelled():
        return False
    working.result()
    return True


def _blobs(options: ControlPlaneOptions, limits: AdapterLimits) -> BlobStore | None:
    """Raises: OptionError when the directory cannot be used."""
    if options.blob_dir is None:
        return None
    try:
        return BlobStore(options.blob_dir, options.max_blob_bytes, limits)
    except OSError as error:
        raise OptionError("blob_dir", f"{options.blob_dir}: {error.strerror}") from error


def _sources(
    options: ControlPlaneOptions, limits: AdapterLimits, blobs: BlobStore | None
) -> SourceRouter:
    """Raises: OptionError."""
    source_options = SourceOptions(
        roots=options.adapter_roots,
        allowed=options.allowed_sources,
        private_hosts=options.private_hosts,
    )
    try:
        return build_router(source_options, limits, {"blob": blobs} if blobs else {})
    except ValueError as error:
        raise OptionError("allow_source", str(error)) from error


async def _start(
    options: ControlPlaneOptions,
    store: Store,
    registry: AdapterRegistry,
    fleet: Fleet,
    ticket_keys: TicketKeys,
    reservations: Reservations,
    demand: Demand,
    sources: SourceRouter,
    blobs: BlobStore | None,
    metrics: ControlPlaneMetrics,
) -> Server:
    uploads = Uploads(blobs, registry)
    blob_handlers = BlobHandlers(uploads, token=options.fleet_token)
    fleet_handlers = FleetHandlers(
        fleet,
        Directives(store, registry),
        demand,
        metrics,
        running=Running(store, holds_s=2 * options.lease_s),
        token=options.fleet_token,
        lease_s=options.lease_s,
        heartbeat_interval_s=options.heartbeat_interval_s,
    )
    policy = PlacementPolicy(max_queue_factor=options.max_queue_factor, lease_s=options.lease_s)
    admission = AdmissionHandlers(
        Admission(
            store,
            ticket_keys,
            reservations,
            policy,
            SourceAccess(sources, ttl_s=options.source_check_ttl_s, clock=time.monotonic),
            PrefixKey(options.fleet_token),
            ticket_ttl_s=options.ticket_ttl_s,
            max_priority=options.max_priority,
        ),
        metrics,
    )
    tenants = TenantHandlers(Tenants(store), token=options.fleet_token)
    blob_pb: Any = blob_pb2_grpc
    tenant_pb: Any = tenant_pb2_grpc
    registry_pb, admission_pb, fleet_pb = (
        adapter_registry_pb2_grpc,
        admission_pb2_grpc,
        fleet_pb2_grpc,
    )
    return await start_server(
        host=options.host,
        port=options.port,
        services=(
            (
                "chorale.v1.AdapterRegistryService",
                lambda server: registry_pb.add_AdapterRegistryServiceServicer_to_server(
                    AdapterRegistryHandlers(registry, uploads), server
                ),
            ),
            (
                "chorale.v1.AdmissionService",
                lambda server: admission_pb.add_AdmissionServiceServicer_to_server(
                    admission, server
                ),
            ),
            (
                "chorale.v1.BlobService",
                lambda server: blob_pb.add_BlobServiceServicer_to_server(blob_handlers, server),
            ),
            (
                "chorale.v1.FleetService",
                lambda server: fleet_pb.add_FleetServiceServicer_to_server(fleet_handlers, server),
            ),
            (
                "chorale.v1.TenantService",
                lambda server: tenant_pb.add_TenantServiceServicer_to_server(tenants, server),
            ),
        ),
        error_table=ERROR_TABLE,
        max_concurrent_rpcs=options.max_concurrent_rpcs,
    )


async def _watch_health(server: Server, store: Store) -> None:
    """SERVING exactly while Redis answers. Never ends by itself."""
    serving = True
    while True:
        await asyncio.sleep(_HEALTH_INTERVAL_S)
        try:
            await store.ping()
            answers = True
        except StoreUnavailableError as error:
            answers = False
            if serving:
                log.error("not serving: %s", error.message)
        if answers != serving:
            serving = answers
            await server.set_serving(serving)
