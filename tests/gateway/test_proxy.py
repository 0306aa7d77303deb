"""One address: what the gateway passes on to the control plane."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chorale import AsyncClient, NotFoundError, ResourceExhaustedError, UnavailableError
from chorale.status import from_rpc_error
from chorale.v1 import fleet_pb2
from chorale.v1 import inference_pb2 as pb
from chorale.v1.fleet_pb2_grpc import FleetServiceStub
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from controlplane.gateway.first_status import FirstStatus
from tests.helpers.fake_fleet import FakeFleet, RunningGateway, running_gateway
from tests.helpers.waiting import eventually


async def test_registry_fleet_and_admission_answer_at_the_gateway(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    assert [adapter.name async for adapter in client.adapters.list()] == ["pirate"]
    assert [plane.data_plane_id for plane in await client.data_planes()] == ["dp0", "dp1"]
    assert [base.name for base in await client.base_models()] == ["base"]
    place = await client.admit("prod", excluded_data_plane_ids=["dp0"])
    assert (place.data_plane_id, place.adapter_version) == ("dp1", 1)
    async with AsyncClient(place.endpoint) as direct:
        completion = await direct.complete("x", ticket=place.ticket, max_tokens=2)
    assert completion.accepted.data_plane_id == "dp1"


async def test_directives_pass_with_the_fleet_token(client: AsyncClient, fleet: FakeFleet) -> None:
    told = await client.direct_adapter(
        "pirate",
        fleet_pb2.ADAPTER_ACTION_UNLOAD,
        "secret",
        within_s=0.25,
        data_plane_id="dp1",
    )
    assert list(told.data_plane_ids) == ["dp1"]
    assert fleet.metadata[-1]["authorization"] == "Bearer secret"
    (request,) = fleet.directed
    assert request == fleet_pb2.DirectAdapterRequest(
        name="pirate",
        action=fleet_pb2.ADAPTER_ACTION_UNLOAD,
        within={"nanos": 250_000_000},
        data_plane_id="dp1",
    )
    await client.direct_adapter("pirate", fleet_pb2.ADAPTER_ACTION_PIN, "secret")
    assert not fleet.directed[-1].HasField("within")


async def test_tenants_pass_with_the_fleet_token(client: AsyncClient, fleet: FakeFleet) -> None:
    made = await client.tenants("secret").set("acme", requests_per_minute=7)
    assert (made.name, made.limits.requests_per_minute) == ("acme", 7)
    assert fleet.metadata[-1]["authorization"] == "Bearer secret"


async def test_demand_passes(client: AsyncClient) -> None:
    (pirate,) = (await client.demand(limit=50)).adapters
    assert pirate.name == "pirate@3" and pirate.followers[0].share == 0.5


async def test_errors_pass_with_reason_metadata_and_retry_info(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    with pytest.raises(NotFoundError) as unknown:
        await client.adapters.get("nobody")
    assert unknown.value.reason == "MODEL_NOT_FOUND" and unknown.value.metadata["model"] == "nobody"
    fleet.admit_errors = [ResourceExhaustedError("FULL", "all full", retry_after_s=1.5)]
    with pytest.raises(ResourceExhaustedError) as full:
        await client.admit("pirate")
    assert full.value.retry_after_s == 1.5


async def test_a_refusal_passes_though_grpc_writes_over_it(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for a write that fails because the call has ended."""

    class Overwritten(FirstStatus):
        def __init__(self, call: Any) -> None:
            super().__init__(call)
            times = iter(range(2))  # to set a status runs the callbacks again

            def write_over(ended: Any) -> None:
                if next(times) == 0:
                    ended._cython_call.set_internal_error("the write failed")

            call.add_done_callback(write_over)

        def of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
            seen.append(error)
            return super().of(error)

    seen: list[grpc.aio.AioRpcError] = []
    monkeypatch.setattr("controlplane.gateway.proxy.FirstStatus", Overwritten)
    with pytest.raises(NotFoundError) as unknown:
        await client.adapters.get("nobody")
    assert unknown.value.reason == "MODEL_NOT_FOUND" and unknown.value.metadata["model"] == "nobody"
    assert [error.details() for error in seen] == ["Internal error from Core"]


async def test_metadata_and_deadline_go_to_the_control_plane(
    gateway: RunningGateway, fleet: FakeFleet
) -> None:
    path = "/chorale.v1.AdapterRegistryService/ListAdapters"
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        await channel.unary_unary(path)(b"", metadata=(("authorization", "Bearer s"),))
        assert fleet.metadata[-1]["authorization"] == "Bearer s"
        fleet.admit_gate = asyncio.Event()
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            await channel.unary_unary("/chorale.v1.AdmissionService/Admit")(b"", timeout=0.2)
        assert seen.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_control_plane_that_is_gone_is_unavailable_and_comes_back(
    client: AsyncClient, fleet: FakeFleet
) -> None:
    assert fleet.server is not None
    await fleet.server.stop(0)
    with pytest.raises(UnavailableError) as seen:
        await client.adapters.get("pirate")
    assert seen.value.reason == "CONTROL_PLANE_UNREACHABLE"
    assert seen.value.retry_after_s is not None and "127.0.0.1" not in seen.value.message


async def test_the_rest_of_the_fleet_service_is_not_served(gateway: RunningGateway) -> None:
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub = FleetServiceStub(channel)
        for call, request in (
            (stub.Join, fleet_pb2.JoinRequest()),
            (stub.Heartbeat, fleet_pb2.HeartbeatRequest()),
            (stub.Leave, fleet_pb2.LeaveRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as seen:
                await call(request)
            assert seen.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_fault_in_the_gateway_itself_is_internal_never_unknown(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("controlplane.gateway.generation.Objective", broken)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as seen:
            async for _ in InferenceServiceStub(channel).Generate(pb.GenerateRequest(prompt="x")):
                pass
    error = from_rpc_error(seen.value)
    assert seen.value.code() is grpc.StatusCode.INTERNAL and error.reason == "INTERNAL"
    assert "secret" not in error.message


async def test_health_is_the_control_plane_s(gateway: RunningGateway, fleet: FakeFleet) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    request = health_pb2.HealthCheckRequest(service="chorale.v1.InferenceService")
    async with grpc.aio.insecure_channel(gateway.address) as channel, asyncio.timeout(60):
        stub = health_pb2_grpc.HealthStub(channel)
        while (await stub.Check(request)).status != serving:
            await asyncio.sleep(0.02)
        assert fleet.server is not None
        await fleet.server.stop(0)
        while (await stub.Check(request)).status == serving:
            await asyncio.sleep(0.02)


async def test_reflection_lists_and_describes_the_services(gateway: RunningGateway) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="chorale.v1.AdapterRegistryService"
        ),
    ]
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = [r async for r in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert names >= {
        "chorale.v1.InferenceService",
        "chorale.v1.AdapterRegistryService",
        "chorale.v1.AdmissionService",
        "chorale.v1.FleetService",
        "chorale.v1.TenantService",
        "grpc.health.v1.Health",
    }
    raw = described.file_descriptor_response.file_descriptor_proto[0]
    assert FileDescriptorProto.FromString(raw).name == "chorale/v1/adapter_registry.proto"


async def test_proxied_calls_are_bounded(fleet: FakeFleet) -> None:
    async with (
        running_gateway(fleet, max_concurrent_requests=1) as gateway,
        AsyncClient(gateway.address) as client,
    ):
        fleet.admit_gate = asyncio.Event()
        first = asyncio.create_task(client.admit())
        await eventually(lambda: fleet.admits)
        with pytest.raises(ResourceExhaustedError) as seen:
            await client.adapters.get("pirate")
        assert seen.value.reason == "GATEWAY_FULL"
        fleet.admit_gate.set()
        await first
        await client.adapters.get("pirate")
