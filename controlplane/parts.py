"""What a control plane is made of, over one Redis."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.admission.reservations import Reservations
from controlplane.errors import OptionError
from controlplane.fleet.fleet import Fleet
from controlplane.fleet.ticket_keys import TicketKeys
from controlplane.metrics import ControlPlaneMetrics
from controlplane.options import ControlPlaneOptions
from controlplane.prefetch.batch import DemandBatch
from controlplane.prefetch.demand import Demand
from controlplane.prefetch.limits import DemandLimits
from controlplane.prefetch.policy import PrefetchPolicy
from controlplane.prefetch.predictor import Predictor
from controlplane.registry.intake import Intake
from controlplane.registry.registry import AdapterRegistry
from controlplane.store.client import Store
from storage.blobs import BlobStore
from storage.limits import AdapterLimits
from storage.sources import SourceOptions, SourceRouter, build_router


@dataclass(frozen=True, slots=True)
class Parts:
    """`reservations` and `predictor` are to be started and stopped, `sources` closed."""

    store: Store
    blobs: BlobStore | None
    sources: SourceRouter
    registry: AdapterRegistry
    ticket_keys: TicketKeys
    fleet: Fleet
    reservations: Reservations
    demand: Demand
    predictor: Predictor
    metrics: ControlPlaneMetrics


def make_parts(options: ControlPlaneOptions, store: Store, fleet_store: Store) -> Parts:
    """fleet_store: for heartbeats. Raises: OptionError."""
    limits = AdapterLimits(max_weights_bytes=options.max_adapter_bytes)
    blobs = _blobs(options, limits)
    sources = _sources(options, limits, blobs)
    registry = AdapterRegistry(store, Intake(sources, limits))
    ticket_keys = TicketKeys(store)
    fleet = Fleet(fleet_store, ticket_keys, lease_s=options.lease_s)
    demand_limits = DemandLimits()
    demand = Demand(store, demand_limits)
    prefetch_policy = PrefetchPolicy(budget_bytes_per_s=options.prefetch_bytes_per_s)
    predictor = Predictor(store, prefetch_policy, demand_limits)
    return Parts(
        store=store,
        blobs=blobs,
        sources=sources,
        registry=registry,
        ticket_keys=ticket_keys,
        fleet=fleet,
        reservations=Reservations(store, DemandBatch(demand_limits) if options.prefetch else None),
        demand=demand,
        predictor=predictor,
        metrics=ControlPlaneMetrics(registry, fleet, demand, predictor),
    )


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
