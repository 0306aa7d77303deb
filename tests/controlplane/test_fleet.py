"""Leases, reports and refusals of the fleet."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as pb
from controlplane.options import ControlPlaneOptions
from controlplane.store import keys
from controlplane.store.embedded import EmbeddedRedis
from storage.base_model import BaseModelSpec, MixtureModule
from tests.helpers.adapters import TINY_BASE, make_adapter_dir
from tests.helpers.control_plane import (
    AUTHORIZATION,
    LEASE_S,
    ControlPlane,
    base_model,
    failure,
    running,
)
from tests.helpers.redis import send
from tests.helpers.waiting import eventually


async def planes(plane: ControlPlane) -> list[pb.DataPlane]:
    response = await plane.fleet.ListDataPlanes(pb.ListDataPlanesRequest())
    return list(response.data_planes)


async def test_join_grants_a_lease_and_keys(plane: ControlPlane) -> None:
    joined = await plane.join("dp-b")
    other = await plane.join("dp-a", endpoint="[::1]:70")
    assert joined.lease.ToTimedelta().total_seconds() == LEASE_S
    assert joined.heartbeat_interval.ToTimedelta().total_seconds() == LEASE_S / 5
    assert ControlPlaneOptions("redis://", "t").lease_s == 5
    assert [len(key.key) for key in joined.ticket_keys] == [32]
    assert joined.ticket_keys == other.ticket_keys == (await plane.beat("dp-a")).ticket_keys
    assert [(p.data_plane_id, p.endpoint) for p in await planes(plane)] == [
        ("dp-a", "[::1]:70"),
        ("dp-b", "127.0.0.1:7000"),
    ]


async def test_reports_are_listed(plane: ControlPlane) -> None:
    incarnation = 2**64 - 1
    await plane.join(incarnation=incarnation)
    load = pb.Load(
        num_running=1,
        num_waiting=2,
        max_running=3,
        num_pages=4,
        num_available_pages=5,
        num_generated_tokens=2**63,
    )
    residency = pb.Residency(
        pool_digests=["a" * 64], host_digests=["b" * 64, "c" * 64], disk_digests=["d" * 64]
    )
    request = pb.HeartbeatRequest(
        data_plane_id="dp-0", incarnation=incarnation, load=load, residency=residency
    )
    began_s = time.time()
    await plane.fleet.Heartbeat(request, metadata=AUTHORIZATION)
    told_s = time.time()
    (found,) = await planes(plane)
    assert found.load == load
    assert found.residency == residency
    assert found.incarnation == incarnation
    assert found.base_model == "tiny/llama"
    assert began_s - 0.01 <= found.last_heartbeat_at.ToMilliseconds() / 1000 <= told_s + 0.01


async def test_residency_follows_the_reports(plane: ControlPlane) -> None:
    await plane.join()
    many = [f"{i:064x}" for i in range(2500)]
    for pool, disk in ((many, []), (many[:1], many), ([], [])):
        await plane.beat(residency=pb.Residency(pool_digests=pool, disk_digests=disk))
        (found,) = await planes(plane)
        assert list(found.residency.pool_digests) == pool
        assert list(found.residency.disk_digests) == disk


async def test_a_rejoin_forgets_residency(plane: ControlPlane) -> None:
    await plane.join()
    residency = pb.Residency(pool_digests=["a" * 64])
    await plane.beat(residency=residency)
    await plane.join(incarnation=2)
    (found,) = await planes(plane)
    assert not found.residency.pool_digests
    await plane.beat(incarnation=2, residency=residency)
    (found,) = await planes(plane)
    assert found.residency == residency


async def test_leave(plane: ControlPlane) -> None:
    await plane.join(incarnation=2)
    for incarnation, left in ((1, 1), (2, 0), (2, 0)):
        request = pb.LeaveRequest(data_plane_id="dp-0", incarnation=incarnation)
        await plane.fleet.Leave(request, metadata=AUTHORIZATION)
        assert len(await planes(plane)) == left


async def test_a_lease_runs_out_without_heartbeats(
    plane: ControlPlane, redis_server: EmbeddedRedis
) -> None:
    def left_s(name: str) -> float:
        return int(send(redis_server, f"PTTL {keys.DATA_PLANE}{name}")[1:]) / 1000

    for name in ("dp-kept", "dp-lost"):
        await plane.join(name)
        assert LEASE_S / 2 < left_s(name) <= LEASE_S
        send(redis_server, f"PEXPIRE {keys.DATA_PLANE}{name} {LEASE_S * 500:.0f}")
    await plane.beat("dp-kept")
    assert left_s("dp-lost") <= LEASE_S / 2 < left_s("dp-kept") <= LEASE_S
    send(redis_server, f"PEXPIRE {keys.DATA_PLANE}dp-lost 1")

    async def live() -> list[str]:
        return [found.data_plane_id for found in await planes(plane)]

    async def is_lost() -> bool:
        return await live() == ["dp-kept"]

    await eventually(is_lost)
    error = await failure(plane.beat("dp-lost"))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "LEASE_EXPIRED")
    await plane.join("dp-lost")
    await plane.beat("dp-lost")
    assert await live() == ["dp-kept", "dp-lost"]


async def test_leases_are_as_long_as_the_option_says(
    redis_url: str, redis_server: EmbeddedRedis
) -> None:
    async with running(redis_url, lease_s=7200.0) as plane:
        await plane.join()
    assert 3_600_000 < int(send(redis_server, f"PTTL {keys.DATA_PLANE}dp-0")[1:]) <= 7_200_000


async def test_a_new_incarnation_replaces_the_old_one(plane: ControlPlane) -> None:
    now = time.time_ns()  # one nanosecond apart: more digits than a double holds
    await plane.join(incarnation=now)
    await plane.join(incarnation=now + 1, endpoint="127.0.0.1:7001")
    error = await failure(plane.beat(incarnation=now))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "INCARNATION_REPLACED")
    error = await failure(plane.join(incarnation=now))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "STALE_INCARNATION")
    assert [found.endpoint for found in await planes(plane)] == ["127.0.0.1:7001"]


async def test_fingerprints_agree_among_the_living(plane: ControlPlane) -> None:
    await plane.join("dp-0")
    error = await failure(plane.join("dp-1", fingerprint="e" * 64))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "FINGERPRINT_CONFLICT")
    assert error.metadata["other_data_plane_id"] == "dp-0"
    request = pb.LeaveRequest(data_plane_id="dp-0", incarnation=1)
    await plane.fleet.Leave(request, metadata=AUTHORIZATION)
    await plane.join("dp-1", fingerprint="e" * 64)


async def test_a_base_model_may_not_take_an_adapters_name(
    plane: ControlPlane, tmp_path: Path
) -> None:
    await plane.join()
    await plane.register("voice", make_adapter_dir(tmp_path / "1"))
    alias = registry_pb.Alias(name="prod", adapter="voice")
    await plane.registry.SetAlias(registry_pb.SetAliasRequest(alias=alias))
    for name in ("voice", "prod"):
        error = await failure(plane.join("dp-1", base=replace(TINY_BASE, name=name)))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "BASE_MODEL_NAME_TAKEN")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "FLEET_TOKEN_MISSING"),
        ((("authorization", "Bearer "),), "FLEET_TOKEN_MISSING"),
        ((("authorization", "Basic dGVzdA=="),), "FLEET_TOKEN_MISSING"),
        ((("authorization", "Bearer wrong"),), "FLEET_TOKEN_WRONG"),
        ((*AUTHORIZATION, ("authorization", "Bearer x")), "FLEET_TOKEN_MISSING"),
    ],
)
async def test_the_fleet_token(plane: ControlPlane, metadata: Any, reason: str) -> None:
    join = pb.JoinRequest(
        data_plane_id="dp", incarnation=1, endpoint="h:1", base_model=base_model(TINY_BASE)
    )
    for call in (
        plane.fleet.Join(join, metadata=metadata),
        plane.fleet.Heartbeat(pb.HeartbeatRequest(data_plane_id="dp"), metadata=metadata),
        plane.fleet.Leave(pb.LeaveRequest(data_plane_id="dp"), metadata=metadata),
    ):
        error = await failure(call)
        assert (error.code.name, error.reason) == ("UNAUTHENTICATED", reason)
        assert "test-fleet-token" not in error.message
    assert not await planes(plane)


def some_experts(
    num_experts: int, *, layers: tuple[int, ...] = (1,), count: int = 1
) -> BaseModelSpec:
    one = MixtureModule(16, 16, num_experts, layers)
    return replace(TINY_BASE, mixture_modules={f"experts.{n}": one for n in range(count)})


def some_layers(*layers: int) -> BaseModelSpec:
    return replace(TINY_BASE, module_layers={"mlp.up_proj": layers})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_plane_id": ""}, "DATA_PLANE_ID_INVALID"),
        ({"data_plane_id": "a b"}, "DATA_PLANE_ID_INVALID"),
        ({"data_plane_id": "a" * 129}, "DATA_PLANE_ID_INVALID"),
        ({"incarnation": 0}, "INCARNATION_INVALID"),
        ({"endpoint": "host"}, "ENDPOINT_INVALID"),
        ({"endpoint": "host:0"}, "ENDPOINT_INVALID"),
        ({"endpoint": "host:65536"}, "ENDPOINT_INVALID"),
        ({"endpoint": "0.0.0.0:7000"}, "ENDPOINT_INVALID"),
        ({"endpoint": "http://host:1"}, "ENDPOINT_INVALID"),
        ({"fingerprint": "xyz"}, "BASE_MODEL_INVALID"),
        ({"base": replace(TINY_BASE, num_layers=0)}, "BASE_MODEL_INVALID"),
        ({"base": replace(TINY_BASE, layer_modules={"q": (0, 1)})}, "BASE_MODEL_INVALID"),
        ({"base": some_experts(1025)}, "BASE_MODEL_INVALID"),
        ({"base": some_experts(8, layers=(0, 9))}, "BASE_MODEL_INVALID"),
        ({"base": some_experts(8, count=17)}, "BASE_MODEL_INVALID"),
        ({"base": some_layers(0, 0)}, "BASE_MODEL_INVALID"),
        ({"base": some_layers(1, 0)}, "BASE_MODEL_INVALID"),
        ({"base": some_layers(0, 10**6)}, "BASE_MODEL_INVALID"),
        ({"base": replace(TINY_BASE, name="a@1")}, "NAME_INVALID"),
    ],
)
async def test_malformed_joins(plane: ControlPlane, change: dict[str, Any], reason: str) -> None:
    error = await failure(plane.join(**change))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
    assert error.metadata["field"]


async def test_malformed_residency(plane: ControlPlane) -> None:
    await plane.join()
    error = await failure(plane.beat(residency=pb.Residency(host_digests=["x"])))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "DIGEST_INVALID")
    assert error.metadata["field"] == "residency.host_digests"


async def test_residency_outlives_the_lease(
    plane: ControlPlane, redis_server: EmbeddedRedis
) -> None:
    """Unchanged digests are not sent again: every heartbeat must keep them alive."""
    await plane.join()
    residency = pb.Residency(pool_digests=["a" * 64])
    await plane.beat(residency=residency)
    digests, lease = f"{keys.RESIDENCY_POOL}dp-0", f"{keys.DATA_PLANE}dp-0"
    assert send(redis_server, f"PEXPIRE {digests} 60000") == b":1\r\n"
    await plane.beat(residency=residency)
    left = [int(send(redis_server, f"PTTL {key}")[1:]) for key in (digests, lease)]
    assert left[0] > left[1] > 0
