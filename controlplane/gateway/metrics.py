"""The gateway's Prometheus metrics: its generations, and the fleet as the control plane tells it.

Every gateway shows the same fleet; data planes show more of themselves on ports of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from chorale.exporter import exposition
from chorale.load_metrics import load_families
from chorale.request_metrics import RequestMetrics
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from chorale.v1.fleet_pb2_grpc import FleetServiceStub

_TIMEOUT_S = 2.0
_FRESH_S = 1.0


class GatewayRequests(RequestMetrics):
    """Generations, and how often one had to move."""

    def __init__(self) -> None:
        super().__init__("chorale_gateway")
        self.num_lost_streams = 0

    def collect(self) -> Iterator[Any]:
        yield from super().collect()
        yield CounterMetricFamily(
            "chorale_gateway_lost_streams",
            "Streams that broke with their data plane; each goes on elsewhere where it can.",
            value=self.num_lost_streams,
        )


class FleetView(Collector):
    """The fleet and the registry as of the last `refresh`."""

    def __init__(
        self, control_plane: grpc.aio.Channel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet: Any = FleetServiceStub(control_plane)
        self._registry: Any = AdapterRegistryServiceStub(control_plane)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._fresh_until_s = 0.0
        self._planes: list[fleet_pb.DataPlane] | None = None
        self._num_adapters = 0

    async def refresh(self) -> None:
        """Asks the control plane, at most once a second however many scrape. Never fails: without
        an answer nothing but `chorale_fleet_up 0` is shown."""
        async with self._turn:
            if self._clock() < self._fresh_until_s:
                return
            try:
                await self._ask()
            except grpc.aio.AioRpcError:
                self._planes = None
            self._fresh_until_s = self._clock() + _FRESH_S

    async def _ask(self) -> None:
        planes, adapters = cast(
            "tuple[fleet_pb.ListDataPlanesResponse, registry_pb.ListAdaptersResponse]",
            await asyncio.gather(
                self._fleet.ListDataPlanes(
                    fleet_pb.ListDataPlanesRequest(without_residency=True), timeout=_TIMEOUT_S
                ),
                self._registry.ListAdapters(
                    registry_pb.ListAdaptersRequest(page_size=1), timeout=_TIMEOUT_S
                ),
            ),
        )
        self._planes = list(planes.data_planes)
        self._num_adapters = adapters.total_size

    def collect(self) -> Iterator[Any]:
        planes = self._planes
        yield GaugeMetricFamily(
            "chorale_fleet_up", "Whether the control plane answered.", value=planes is not None
        )
        if planes is None:
            return
        yield GaugeMetricFamily("chorale_fleet_data_planes", "Live ones.", value=len(planes))
        yield GaugeMetricFamily(
            "chorale_registry_adapters", "Registered adapters.", value=self._num_adapters
        )
        yield from load_families(
            "chorale_fleet", {plane.data_plane_id: plane.load for plane in planes}
        )


class GatewayMetrics:
    """beside: what else the gateway shows."""

    def __init__(self, control_plane: grpc.aio.Channel, beside: Iterable[Collector] = ()) -> None:
        self.requests = GatewayRequests()
        self._view = FleetView(control_plane)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self.requests)
        self._registry.register(self._view)
        for collector in beside:
            self._registry.register(collector)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, for the request header `accept`."""
        await self._view.refresh()
        return exposition(self._registry, accept)
