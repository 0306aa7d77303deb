"""A control plane and data planes that do as they are told, over real gRPC on 127.0.0.1."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import httpx

from chorale.errors import (
    AlreadyExistsError,
    ChoraleError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
)
from chorale.fleet_tls import FleetTls
from chorale.server import Server, start_server
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1 import tenant_pb2 as tenant_pb
from chorale.v1.adapter_registry_pb2_grpc import (
    AdapterRegistryServiceServicer,
    add_AdapterRegistryServiceServicer_to_server,
)
from chorale.v1.admission_pb2_grpc import (
    AdmissionServiceServicer,
    add_AdmissionServiceServicer_to_server,
)
from chorale.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from chorale.v1.tenant_pb2_grpc import TenantServiceServicer, add_TenantServiceServicer_to_server
from controlplane.gateway.generation import Generation
from controlplane.gateway.main import serve
from controlplane.gateway.options import GatewayOptions
from tests.helpers.fake_data_plane import FakeDataPlane
from tests.helpers.prometheus import Metrics
from tests.helpers.waiting import eventually

BASE_MODEL = "base"


@dataclass
class FakeFleet(
    AdmissionServiceServicer,
    AdapterRegistryServiceServicer,
    FleetServiceServicer,
    TenantServiceServicer,
):
    """The control plane. Adapters: name → versions; a ticket is good for one stream."""

    planes: list[FakeDataPlane] = field(default_factory=list)
    adapters: dict[str, registry_pb.Adapter] = field(default_factory=dict)
    admits: list[admission_pb.AdmitRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    admit_errors: list[ChoraleError] = field(default_factory=list)
    admit_delay_s: float = 0.0
    admit_delays_s: list[float] = field(default_factory=list)  # of the next ones
    admit_gate: asyncio.Event | None = None  # waited for before anything is answered
    registered: list[registry_pb.RegisterAdapterRequest] = field(default_factory=list)
    register_delay_s: float = 0.0
    register_error: ChoraleError | None = None
    tickets: dict[bytes, admission_pb.AdmitResponse] = field(default_factory=dict)
    directed: list[fleet_pb.DirectAdapterRequest] = field(default_factory=list)
    ticket_claims: admission_pb.TicketClaims | None = None  # what tickets say beside their number
    used: set[bytes] = field(default_factory=set)
    listed: list[fleet_pb.DataPlane] | None = None  # what ListDataPlanes tells in place of `planes`
    num_listings: int = 0
    num_residencies_listed: int = 0
    tls: FleetTls | None = None
    server: Server | None = None

    async def start(self) -> None:
        names = ("AdmissionService", "AdapterRegistryService", "FleetService", "TenantService")
        adds = (
            add_AdmissionServiceServicer_to_server,
            add_AdapterRegistryServiceServicer_to_server,
            add_FleetServiceServicer_to_server,
            add_TenantServiceServicer_to_server,
        )
        self.server = await start_server(
            host="127.0.0.1",
            port=0,
            services=[
                (f"chorale.v1.{name}", lambda server, add=add: add(self, server))
                for name, add in zip(names, adds, strict=True)
            ],
            error_table={},
            fleet_tls=self.tls,
        )
        await self.server.set_serving(True)

    async def stop(self) -> None:
        for plane in self.planes:
            await plane.kill()
        if self.server is not None:
            await self.server.stop(0)

    def add_adapter(self, name: str, num_versions: int = 1, **aliases: int) -> None:
        versions = [
            registry_pb.AdapterVersion(
                version=number,
                digest=f"{name}-{number}".encode().hex().ljust(64, "0"),
                source=f"file:///adapters/{name}/{number}",
                base_model=BASE_MODEL,
                rank=8,
            )
            for number in range(num_versions, 0, -1)
        ]
        for version in versions:
            version.created_at.FromSeconds(1_700_000_000 + version.version)
        self.adapters[name] = registry_pb.Adapter(
            name=name,
            current_version=num_versions,
            versions=versions,
            aliases=[
                registry_pb.Alias(name=alias, adapter=name, version=version)
                for alias, version in sorted(aliases.items())
            ],
        )

    def use_ticket(self, ticket: bytes, data_plane_id: str) -> None:
        if ticket in self.used:
            raise UnauthenticatedError("TICKET_USED", "used before; call Admit again")
        place = self.tickets.get(ticket)
        if place is None or place.data_plane_id != data_plane_id:
            raise UnauthenticatedError("TICKET_WRONG_DATA_PLANE", "not mine; call Admit again")
        self.used.add(ticket)

    def resolve(self, name: str) -> tuple[registry_pb.Adapter, int]:
        bare, _, version = name.partition("@")
        for adapter in self.adapters.values():
            for alias in adapter.aliases:
                if alias.name == name and alias.adapter == adapter.name:
                    return adapter, alias.version or adapter.current_version
        if bare not in self.adapters:
            raise NotFoundError(
                "MODEL_NOT_FOUND", f"no model {name!r}", metadata={"model": name, "field": "model"}
            )
        return self.adapters[bare], int(version or self.adapters[bare].current_version)

    async def Admit(self, request: admission_pb.AdmitRequest, context: Any) -> Any:
        self.admits.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.admit_gate is not None:
            await self.admit_gate.wait()
        delays = self.admit_delays_s
        await asyncio.sleep(delays.pop(0) if delays else self.admit_delay_s)
        if self.admit_errors:
            raise self.admit_errors.pop(0)
        place = admission_pb.AdmitResponse(model=BASE_MODEL)
        if request.model not in ("", BASE_MODEL):
            adapter, number = self.resolve(request.model)
            digest = next(v.digest for v in adapter.versions if v.version == number)
            place = admission_pb.AdmitResponse(
                model=adapter.name, adapter_version=number, adapter_digest=digest
            )
        for plane in self.planes:
            if plane.data_plane_id not in request.excluded_data_plane_ids:
                place.endpoint = plane.endpoint
                place.data_plane_id = plane.data_plane_id
                place.ticket = f"ticket-{len(self.tickets)}".encode()
                if self.ticket_claims is not None:
                    place.ticket = admission_pb.SignedTicket(
                        claims=self.ticket_claims.SerializeToString(),
                        key_id=place.ticket.decode(),
                    ).SerializeToString()
                place.expires_at.FromSeconds(int(time.time()) + 60)
                self.tickets[place.ticket] = place
                return place
        raise UnavailableError("NO_DATA_PLANE", "no live data plane serves it", retry_after_s=0.05)

    async def RegisterAdapter(self, request: Any, context: Any) -> Any:
        if not request.source.startswith("/"):
            raise InvalidArgumentError(
                "SOURCE_INVALID",
                f"source={request.source!r} is not absolute",
                metadata={"field": "source"},
            )
        self.metadata.append(dict(context.invocation_metadata()))
        await asyncio.sleep(self.register_delay_s)
        self.registered.append(request)
        if self.register_error is not None:
            raise self.register_error
        created = request.name not in self.adapters
        if request.must_be_new and not created:
            raise AlreadyExistsError(
                "ADAPTER_EXISTS", "it exists", metadata={"field": "name", "name": request.name}
            )
        self.add_adapter(request.name)
        self.adapters[request.name].versions[0].labels.update(dict(request.labels))
        adapter = self.adapters[request.name]
        return registry_pb.RegisterAdapterResponse(
            adapter=adapter, version=adapter.versions[0], created=created
        )

    async def GetAdapter(self, request: Any, context: Any) -> Any:
        adapter, version = self.resolve(request.name)
        alias = next((each for each in adapter.aliases if each.name == request.name), None)
        return registry_pb.GetAdapterResponse(
            adapter=adapter, resolved_version=version, alias=alias
        )

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        names = sorted(name for name in self.adapters if name > request.page_token)
        size = min(request.page_size or 100, 1000)
        more = len(names) > size
        return registry_pb.ListAdaptersResponse(
            adapters=[self.adapters[name] for name in names[:size]],
            next_page_token=names[size - 1] if more else "",
            total_size=len(self.adapters),
        )

    async def PromoteAdapter(self, request: Any, context: Any) -> Any:
        adapter, _ = self.resolve(request.name)
        adapter.current_version = request.version
        return registry_pb.PromoteAdapterResponse(adapter=adapter)

    async def RollbackAdapter(self, request: Any, context: Any) -> Any:
        adapter, _ = self.resolve(request.name)
        adapter.current_version -= 1
        return registry_pb.RollbackAdapterResponse(adapter=adapter)

    async def RemoveAdapter(self, request: Any, context: Any) -> Any:
        self.resolve(request.name)
        del self.adapters[request.name]
        return registry_pb.RemoveAdapterResponse()

    async def SetAlias(self, request: Any, context: Any) -> Any:
        if request.alias.targets:
            request.alias.adapter = request.alias.targets[0].adapter
        self.adapters[request.alias.adapter].aliases.append(request.alias)
        return registry_pb.SetAliasResponse(alias=request.alias)

    async def RemoveAlias(self, request: Any, context: Any) -> Any:
        adapter, _ = self.resolve(request.name)
        kept = [alias for alias in adapter.aliases if alias.name != request.name]
        del adapter.aliases[:]
        adapter.aliases.extend(kept)
        return registry_pb.RemoveAliasResponse()

    async def VerifyAdapter(self, request: Any, context: Any) -> Any:
        adapter, version = self.resolve(request.name)
        digest = next(v.digest for v in adapter.versions if v.version == version)
        return registry_pb.VerifyAdapterResponse(
            matches=True, registered_digest=digest, found_digest=digest
        )

    async def ListBaseModels(self, request: Any, context: Any) -> Any:
        model = registry_pb.BaseModel(name=BASE_MODEL, max_context_tokens=512, vocab_size=1000)
        return registry_pb.ListBaseModelsResponse(base_models=[model])

    async def DirectAdapter(self, request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        self.directed.append(request)
        told = request.data_plane_id or "dp0"
        return fleet_pb.DirectAdapterResponse(adapter=request.name, data_plane_ids=[told])

    async def SetTenant(self, request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        return tenant_pb.SetTenantResponse(tenant=request.tenant)

    async def ListDemand(self, request: Any, context: Any) -> Any:
        follower = fleet_pb.Follower(name="parrot@1", share=request.limit / 100)
        return fleet_pb.ListDemandResponse(
            adapters=[fleet_pb.AdapterDemand(name="pirate@3", followers=[follower])]
        )

    async def ListDataPlanes(self, request: Any, context: Any) -> Any:
        self.num_listings += 1
        self.num_residencies_listed += not request.without_residency
        if self.listed is not None:
            return fleet_pb.ListDataPlanesResponse(data_planes=self.listed)
        return fleet_pb.ListDataPlanesResponse(
            data_planes=[
                fleet_pb.DataPlane(
                    data_plane_id=p.data_plane_id, endpoint=p.endpoint, base_model=BASE_MODEL
                )
                for p in self.planes
            ]
        )


@asynccontextmanager
async def running_fleet(
    num_planes: int = 2, *, relays: bool = True, tls: FleetTls | None = None
) -> AsyncIterator[FakeFleet]:
    """A started control plane with data planes "dp0", "dp1" … and the adapter "pirate".

    relays: whether the data planes have RelayService. tls: of all servers.
    """
    fleet = FakeFleet()
    fleet.tls = tls
    fleet.planes = [FakeDataPlane(f"dp{i}", fleet, relays=relays) for i in range(num_planes)]
    fleet.add_adapter("pirate", num_versions=2, prod=1)
    try:
        for plane in fleet.planes:
            await plane.start()
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()


@dataclass
class RunningGateway:
    """A gateway in this event loop."""

    address: str
    http_url: str
    stop: asyncio.Event
    hurry: asyncio.Event
    task: asyncio.Task[None]

    async def metrics(self) -> Metrics:
        async with httpx.AsyncClient(timeout=60) as http:
            answer = await http.get(f"{self.http_url}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return Metrics(answer.text)

    async def until_idle(self) -> None:
        """Until no generation runs: who went away has been heard of."""

        async def is_idle() -> bool:
            return (await self.metrics())("chorale_gateway_requests_running") == 0

        await eventually(is_idle)


@asynccontextmanager
async def running_gateway(fleet: FakeFleet, **options: Any) -> AsyncIterator[RunningGateway]:
    """A gateway before `fleet`, stopped at the end."""
    assert fleet.server is not None
    stop, hurry = asyncio.Event(), asyncio.Event()
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    given: dict[str, Any] = {
        "control_plane": fleet.server.address,
        "grpc_port": 0,
        "http_port": 0,
        "drain_s": 0.1,
        "ready": lambda grpc_port, http_port: ports.set_result((grpc_port, http_port)),
    }
    task = asyncio.create_task(serve(GatewayOptions(**(given | options)), stop, hurry))
    await asyncio.wait((task, ports), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    grpc_port, http_port = ports.result()
    try:
        with _counting_what_is_heard(fleet):
            yield RunningGateway(
                f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", stop, hurry, task
            )
    finally:
        stop.set()
        if not task.cancelled():
            await task


@contextmanager
def _counting_what_is_heard(fleet: FakeFleet) -> Generator[None]:
    """In `num_heard` of data planes: what one that is killed had said before is lost until then."""
    responses = Generation._responses

    async def counted(generation: Any, call: Any, place: Any) -> AsyncGenerator[Any]:
        (plane,) = (p for p in fleet.planes if p.data_plane_id == place.data_plane_id)
        async with aclosing(responses(generation, call, place)) as heard:
            async for response in heard:
                plane.num_heard += 1
                yield response

    with mock.patch.object(Generation, "_responses", counted):
        yield
