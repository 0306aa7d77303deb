"""A control plane in this process, on a free port, with stubs for its services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from chorale.errors import ChoraleError
from chorale.exporter import Exporter
from chorale.status import from_rpc_error
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from chorale.v1.admission_pb2_grpc import AdmissionServiceStub
from chorale.v1.fleet_pb2_grpc import FleetServiceStub
from controlplane.admission.reservations import Reservations
from controlplane.main import serve
from controlplane.options import ControlPlaneOptions
from controlplane.prefetch.batch import DemandBatch
from controlplane.store.client import Store
from storage.base_model import BaseModelSpec
from tests.helpers.adapters import TINY_BASE
from tests.helpers.waiting import eventually

TOKEN = "test-fleet-token"
AUTHORIZATION = (("authorization", f"Bearer {TOKEN}"),)
LEASE_S = 120.0


@dataclass(frozen=True)
class ControlPlane:
    """What a test talks to."""

    address: str
    channel: grpc.aio.Channel
    registry: Any
    admission: Any
    fleet: Any
    _reservations: NotedReservations
    _exporter: Exporter

    @property
    def metrics_url(self) -> str:
        """Of one with `metrics_port`, 0 say."""
        return f"http://127.0.0.1:{self._exporter.port}/metrics"

    async def until_written(self) -> None:
        """Until Redis knows what is written behind the backs of admissions that have ended."""
        await eventually(lambda: self._reservations.is_idle)

    async def join(
        self,
        data_plane_id: str = "dp-0",
        *,
        base: BaseModelSpec = TINY_BASE,
        fingerprint: str = "f" * 64,
        incarnation: int = 1,
        endpoint: str = "127.0.0.1:7000",
        max_running: int = 0,
    ) -> fleet_pb.JoinResponse:
        """Joins a data plane and, with `max_running`, sends a first report."""
        response = await self.fleet.Join(
            fleet_pb.JoinRequest(
                data_plane_id=data_plane_id,
                incarnation=incarnation,
                endpoint=endpoint,
                base_model=base_model(base, fingerprint),
            ),
            metadata=AUTHORIZATION,
        )
        if max_running:
            await self.beat(data_plane_id, incarnation=incarnation, max_running=max_running)
        return response

    async def beat(
        self,
        data_plane_id: str = "dp-0",
        *,
        incarnation: int = 1,
        residency: fleet_pb.Residency | None = None,
        **load: int,
    ) -> fleet_pb.HeartbeatResponse:
        return await self.fleet.Heartbeat(
            fleet_pb.HeartbeatRequest(
                data_plane_id=data_plane_id,
                incarnation=incarnation,
                load=fleet_pb.Load(**load),
                residency=residency,
            ),
            metadata=AUTHORIZATION,
        )

    async def register(self, name: str, source: Path | str, **fields: Any) -> Any:
        return await self.registry.RegisterAdapter(
            registry_pb.RegisterAdapterRequest(name=name, source=str(source), **fields)
        )


class NotedReservations(Reservations):
    """It knows when all is written."""

    def __init__(self, store: Store, demand: DemandBatch | None = None) -> None:
        super().__init__(store, demand)
        self._store: Any = self
        self._redis = store
        self._num_under_way = 0

    @property
    def is_idle(self) -> bool:
        waits = self._numbers or self._given_back or self._demand
        return not waits and not self._num_under_way

    async def run(self, name: str, *args: str | int) -> Any:
        self._num_under_way += 1
        try:
            return await self._redis.run(name, *args)
        finally:
            self._num_under_way -= 1


def base_model(spec: BaseModelSpec, fingerprint: str = "f" * 64) -> registry_pb.BaseModel:
    def shapes(modules: Any) -> list[registry_pb.ModuleShape]:
        return [
            registry_pb.ModuleShape(
                module=name,
                in_features=size[0],
                out_features=size[1],
                layers=spec.module_layers.get(name, ()),
            )
            for name, size in modules.items()
        ]

    return registry_pb.BaseModel(
        name=spec.name,
        fingerprint=fingerprint,
        num_layers=spec.num_layers,
        layer_modules=shapes(spec.layer_modules),
        outer_modules=shapes(spec.outer_modules),
        mixture_modules=[
            registry_pb.ModuleShape(
                module=name,
                in_features=each.in_features,
                out_features=each.out_features,
                layers=each.layers,
                num_experts=each.num_experts,
            )
            for name, each in spec.mixture_modules.items()
        ],
        max_context_tokens=128,
        vocab_size=64,
    )


@contextlib.asynccontextmanager
async def running(redis_url: str, **options: Any) -> AsyncIterator[ControlPlane]:
    """A control plane on `redis_url`. options: of ControlPlaneOptions; left out, leases end and
    Redis is given up so late that no pause of the machine makes it happen."""
    options = {"lease_s": LEASE_S, "redis_timeout_s": 60.0} | options
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    reservations: list[NotedReservations] = []
    exporters: list[Exporter] = []

    def noted(*args: Any) -> NotedReservations:
        reservations.append(NotedReservations(*args))
        return reservations[0]

    def kept(*args: Any) -> Exporter:
        exporters.append(Exporter(*args))
        return exporters[0]

    with (
        mock.patch("controlplane.parts.Reservations", noted),
        mock.patch("controlplane.main.Exporter", kept),
    ):
        task = asyncio.create_task(
            serve(
                ControlPlaneOptions(redis_url=redis_url, fleet_token=TOKEN, **options),
                ready=lambda host, port: ready.set_result(f"{host}:{port}"),
                stop=stop,
            )
        )
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            task.result()
        async with grpc.aio.insecure_channel(ready.result()) as channel:
            yield ControlPlane(
                ready.result(),
                channel,
                AdapterRegistryServiceStub(channel),
                AdmissionServiceStub(channel),
                FleetServiceStub(channel),
                reservations[0],
                exporters[0],
            )
    finally:
        stop.set()
        await task


async def failure(call: Awaitable[Any]) -> ChoraleError:
    """The typed error that `call` ends with; every error must carry an ErrorInfo."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error.reason != "UNTYPED", repr(caught.value)
    assert error.message
    return error
